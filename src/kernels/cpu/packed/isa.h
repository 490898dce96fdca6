// What the kernels `packed` and `packed-int8` say to their units, one for each instruction set: plain structs and
// functions.
//
// Codes. A matrix is cut into panels of 16 outputs. A panel is, in one piece:
//
//   scales [blocks][16] f16, or f32 where one does not fit
//   zeros [blocks][16] u8, none where symmetric
//   padding to 64 bytes
//   chunks: one 32-bit word for each of the 16 outputs, 64 bytes; with 3 bits three of them
//
// A word holds 32 / bits codes in the order of the file. With P = 8 / bits, code j*P + p stands at bit bits*(j*P + p),
// so that shifting by bits*p and masking every byte leaves the four codes j = 0..3 of plane p as bytes. Byte dot
// products (vpmaddubsw, vpdpbusd, tdpbsud) take them so, without a permutation. With 3 bits there are two words of
// 2-bit codes, of inputs 0-15 and 16-31 (P = 4), then a word of third bits: that of code 16*h + 4*j + p is bit 8*j +
// 4*h + p.
//
// Blocks. Inputs are sorted by group, and groups are cut into blocks of at most 128 inputs (64 with int8 activations),
// one scale and zero each. An input's place in the order of planes is its slot; blocks start at multiples of 16 slots
// and never cross a multiple of 128, which is a line.
//
// Activations. Each block of a row of inputs is rounded to integers of one scale: of 16 bits, kept as two signed bytes
// x = 256*high + low, or of 8 bits. Rows of bytes are staged in tiles of 16 rows (8 inputs with high and low each, or
// 16 inputs): [tile][line][row][128 bytes]; a single tile has only the rows it needs.
//
// Arithmetic, the same in every unit bit for bit: the sum D of code * x over a block, exactly, in int32, which holds
// 255 * 32639 * 128; then acc = fma(fma(zero, -sum(x), float(D)) * x_scale, w_scale, acc) over the blocks in order.
#pragma once

#include <cstdint>

namespace nibble::packed {

inline constexpr int kPanel = 16;     // outputs a panel: the 32-bit lanes of a zmm register
inline constexpr int kLine = 128;     // slots a line, and the longest block: 255 * 32639 * 128 still fits in int32
inline constexpr int kTileRows = 16;  // staged rows of bytes a tile: the rows of an AMX tile
inline constexpr int kMaxParts = 8;   // parts of a site
inline constexpr int kPairFloats = 2 * kPanel;
/// Inputs whose sums one thread holds at a time, on its stack: 64 KiB of them.
inline constexpr int kMaxSums = 512;

/// The largest magnitude of a rounded activation. 32639 = 127*256 + 127 is the largest whose two bytes are both signed.
inline constexpr int kMaxInt16 = 32639;
inline constexpr int kMaxInt8 = 127;
/// Below this a block's largest magnitude counts as zero, so that its reciprocal stays finite.
inline constexpr float kTiny = 0x1p-100f;

/// Rows of bytes in each staged tile of a call of `rows` rows. Static, so that each unit has its own.
static inline std::int64_t staged_tile_rows(std::int64_t rows, int planes) {
  return rows * planes < kTileRows ? rows * planes : kTileRows;
}

struct Block {
  std::int32_t first = 0;  // of its inputs, in sorted order
  std::int32_t inputs = 0;
  std::int32_t slot = 0;
  std::int32_t chunks = 0;
  friend bool operator==(const Block&, const Block&) = default;
};

/// How the inputs of a matrix are ordered and cut. Parts of a site that agree in it share staged activations.
struct PlanView {
  const Block* blocks = nullptr;
  const std::int32_t* order = nullptr;  // [inputs], sorted order to input; null where they are the same
  std::int32_t block_count = 0;
  std::int32_t lines = 0;
  std::int32_t planes_of_codes = 0;  // P
  std::int32_t chunk_slots = 0;
  bool gaps = false;       // some slot below 32 * steps belongs to no input of a block's chunks
  std::int32_t steps = 0;  // 32 slots each, that hold all blocks
};

/// One part's codes.
struct Matrix {
  const std::uint8_t* panels = nullptr;
  std::int64_t stride = 0;  // bytes from a panel to the next
  std::int64_t outputs = 0;
  std::int64_t zeros_offset = 0;  // in a panel; scales start it
  std::int64_t codes_offset = 0;
  const float* bias = nullptr;  // [outputs] or null
  PlanView plan;
  int bits = 4;
  bool symmetric = true;
  float middle = 8;          // every zero point of a symmetric one, 2^(bits - 1)
  bool wide_scales = false;  // f32
  int staged = 0;            // which staged activations it reads
};

/// Rounded activations of some rows of one plan. Tile i starts at q + i * staged_tile_rows * lines * kLine, and its
/// scales at i * block_count * (kTileRows / planes), as [block][row]. 64 bytes behind q may be read.
struct Staged {
  std::int8_t* q = nullptr;
  float* scale = nullptr;
  float* minus_sum = nullptr;     // of the integers
  std::uint16_t* bf16 = nullptr;  // or bf16 in AMX tiles: [ceil(rows/16)][steps][16 rows][32 slots]
};

/// Floats that a row of inputs takes in StageCall::scratch: whole lines of 64 bytes.
static inline std::int64_t scratch_stride(std::int64_t inputs) { return (inputs + 15) / 16 * 16; }

struct StageCall {
  const float* x = nullptr;
  std::int64_t stride = 0;
  std::int64_t rows = 0;
  std::int64_t inputs = 0;
  const float* norm_weight = nullptr;  // RMS norm in front where not null
  float eps = 0;
  PlanView plan;
  Staged to;
  float* scratch = nullptr;  // twice scratch_stride(inputs), of this thread
  int planes = 2;            // of activations: 2 for 16 bits, 1 for 8
};

enum class Finish : std::uint8_t {
  store,
  residual,
  silu,
  gelu,
  gelu_tanh,
  relu
};  // the last four: act(first) * second

struct Output {
  float* y = nullptr;
  std::int64_t stride = 0;
};

/// A site's product. Its work is counted in pairs of panels: neighbours of one part, or a panel of gate and the same of
/// up.
struct Call {
  const Matrix* parts = nullptr;
  int part_count = 0;
  int planes = 2;
  std::int64_t rows = 0;
  std::int64_t pairs = 0;
  Finish finish = Finish::store;
  Staged staged[kMaxParts];
  Output y[kMaxParts];
  const float* residual = nullptr;
  std::int64_t residual_stride = 0;
};

/// Stages rows [begin, end).
using StageFunction = void(const StageCall& call, std::int64_t begin, std::int64_t end);
/// A part of the output.
struct Rectangle {
  std::int64_t pair_begin = 0;
  std::int64_t pair_end = 0;
  std::int64_t row_begin = 0;  // a multiple of kRowGrain
  std::int64_t row_end = 0;
};
/// Computes a part of the output from staged activations.
using MultiplyFunction = void(const Call& call, const Rectangle& rectangle);

/// Rows are divided among threads in multiples of this: two AMX tiles of bf16.
inline constexpr int kRowGrain = 32;

// One of each for each instruction set that brings something; the scalar ones are the reference.
void stage_scalar(const StageCall& call, std::int64_t begin, std::int64_t end);
void stage_avx2(const StageCall& call, std::int64_t begin, std::int64_t end);
void stage_avx512(const StageCall& call, std::int64_t begin, std::int64_t end);

/// Rounds rows to bf16 instead, into Staged::bf16.
void stage_avx512bf16(const StageCall& call, std::int64_t begin, std::int64_t end);

void multiply_scalar(const Call& call, const Rectangle& rectangle);
void multiply_avx2(const Call& call, const Rectangle& rectangle);
void multiply_avxvnni(const Call& call, const Rectangle& rectangle);
void multiply_avx512(const Call& call, const Rectangle& rectangle);
void multiply_avx512vnni(const Call& call, const Rectangle& rectangle);
void multiply_amx(const Call& call, const Rectangle& rectangle);
/// On activations in bf16, with weights made bf16. All parts must have one plan.
void multiply_bf16_avx512bf16(const Call& call, const Rectangle& rectangle);
void multiply_bf16_amx(const Call& call, const Rectangle& rectangle);

}  // namespace nibble::packed
