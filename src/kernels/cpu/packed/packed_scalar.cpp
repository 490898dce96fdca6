// The reference of the units' integer arithmetic (isa.h), in plain C++; the others agree with it bit for bit, but for
// the activations of gated outputs, whose exponentials the compilers may contract in different ways.
#include "kernels/cpu/packed/finish.h"

#include "core/float_convert.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace nibble::packed {
namespace {

// 16 partial sums, input k in sum k mod 16, then halves on halves: the order that vectors of 8 and 16 lanes can both
// keep.
float sum_of_squares(const float* x, std::int64_t count) {
  std::array<float, 16> sums{};
  for (std::int64_t k = 0; k < count; ++k) {
    float& sum = sums[static_cast<std::size_t>(k % 16)];
    sum = std::fma(x[k], x[k], sum);
  }
  for (std::size_t half = 8; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// Where input i of a block lies among its slots: i = j*P + p in units of 4P goes to p*4 + j.
int slot_of(int input, int planes) {
  const int unit = 4 * planes;
  const int within = input % unit;
  return input / unit * unit + within % planes * 4 + within / planes;
}

using BlockCodes = std::array<std::array<std::uint8_t, kPanel>, kLine>;

// The codes of a block, [slot][output].
void unpack(const std::uint8_t* at, int bits, int chunks, BlockCodes& codes) {
  const auto word = [&at](int index, int lane) {
    std::uint32_t value;
    std::memcpy(&value, at + (index * kPanel + lane) * 4, 4);
    return value;
  };
  const int planes = bits == 3 ? 4 : 8 / bits;
  const int units = bits == 3 ? 2 : 1;
  std::size_t slot = 0;
  for (int c = 0; c < chunks; ++c, at += (bits == 3 ? 3 : 1) * 4 * kPanel) {
    for (int unit = 0; unit < units; ++unit) {
      for (int p = 0; p < planes; ++p) {
        for (int j = 0; j < 4; ++j, ++slot) {
          for (int lane = 0; lane < kPanel; ++lane) {
            std::uint32_t code = word(unit, lane) >> (8 * j + (bits == 3 ? 2 : bits) * p);
            if (bits == 3) code = (code & 3u) | (((word(2, lane) >> (8 * j + 4 * unit + p)) & 1u) << 2);
            codes[slot][static_cast<std::size_t>(lane)] = static_cast<std::uint8_t>(code & ((1u << bits) - 1));
          }
        }
      }
    }
  }
}

void panel_sums(const Call& call, const Matrix& matrix, std::int64_t panel, std::int64_t row, float* sums) {
  const std::uint8_t* const at = matrix.panels + panel * matrix.stride;
  const Staged& staged = call.staged[matrix.staged];
  const PlanView& plan = matrix.plan;
  const std::int64_t per_tile = kTileRows / call.planes;
  const std::int64_t tile = row / per_tile;
  const std::int64_t in_tile = row % per_tile;
  const std::int64_t tile_rows = staged_tile_rows(call.rows, call.planes);
  const std::int8_t* const q = staged.q + tile * tile_rows * plan.lines * kLine;
  std::fill(sums, sums + kPanel, 0.0f);
  const std::uint8_t* codes = at + matrix.codes_offset;
  BlockCodes unpacked;
  for (int b = 0; b < plan.block_count; ++b) {
    const Block& block = plan.blocks[b];
    const std::int8_t* const x =
        q + (block.slot / kLine * tile_rows + in_tile * call.planes) * kLine + block.slot % kLine;
    unpack(codes, matrix.bits, block.chunks, unpacked);
    std::array<std::int32_t, kPanel> dots{};
    for (int slot = 0; slot < block.chunks * plan.chunk_slots; ++slot) {
      const std::int32_t value = call.planes == 2 ? 256 * x[slot] + x[slot + kLine] : x[slot];
      for (std::size_t lane = 0; lane < kPanel; ++lane)
        dots[lane] += value * unpacked[static_cast<std::size_t>(slot)][lane];
    }
    const std::int64_t meta = (tile * plan.block_count + b) * per_tile + in_tile;
    for (int lane = 0; lane < kPanel; ++lane) {
      float scale = 0;
      if (matrix.wide_scales) {
        std::memcpy(&scale, at + 4 * (b * kPanel + lane), 4);
      } else {
        std::uint16_t half = 0;
        std::memcpy(&half, at + 2 * (b * kPanel + lane), 2);
        scale = half_to_float(half);
      }
      const float zero =
          matrix.symmetric ? matrix.middle : static_cast<float>(at[matrix.zeros_offset + b * kPanel + lane]);
      const float part =
          std::fma(zero, staged.minus_sum[meta], static_cast<float>(dots[static_cast<std::size_t>(lane)]));
      sums[lane] = std::fma(part * staged.scale[meta], scale, sums[lane]);
    }
    codes += block.chunks * (matrix.bits == 3 ? 3 : 1) * 4 * kPanel;
  }
}

}  // namespace

void stage_scalar(const StageCall& call, std::int64_t begin, std::int64_t end) {
  const PlanView& plan = call.plan;
  const std::int64_t per_tile = kTileRows / call.planes;
  const float limit = call.planes == 2 ? kMaxInt16 : kMaxInt8;
  for (std::int64_t row = begin; row < end; ++row) {
    const float* const x = call.x + row * call.stride;
    const std::int64_t tile = row / per_tile;
    const std::int64_t tile_rows = staged_tile_rows(call.rows, call.planes);
    std::int8_t* const q = call.to.q + tile * tile_rows * plan.lines * kLine + row % per_tile * call.planes * kLine;
    float factor = 1;
    if (call.norm_weight != nullptr) {
      factor = 1.0f / std::sqrt(sum_of_squares(x, call.inputs) / static_cast<float>(call.inputs) + call.eps);
    }
    for (int b = 0; b < plan.block_count; ++b) {
      const Block& block = plan.blocks[b];
      std::array<float, kLine> values{};
      std::uint32_t largest = 0;
      for (int i = 0; i < block.inputs; ++i) {
        const std::int64_t k = plan.order == nullptr ? block.first + i : plan.order[block.first + i];
        const float value = call.norm_weight == nullptr ? x[k] : x[k] * factor * call.norm_weight[k];
        values[static_cast<std::size_t>(i)] = value;
        largest = std::max(largest, std::bit_cast<std::uint32_t>(value) & 0x7fffffffu);
      }
      const bool finite = largest < 0x7f800000u;
      const float magnitude = std::bit_cast<float>(largest);
      const bool zero = !finite || magnitude < kTiny;
      const float inverse = zero ? 0.0f : limit / magnitude;
      std::int8_t* const out = q + block.slot / kLine * tile_rows * kLine + block.slot % kLine;
      std::int32_t sum = 0;
      for (int i = 0; i < block.chunks * plan.chunk_slots || i % 16 != 0; ++i) {
        const std::int32_t value =
            zero || i >= block.inputs
                ? 0
                : static_cast<std::int32_t>(std::nearbyint(values[static_cast<std::size_t>(i)] * inverse));
        sum += value;
        const int slot = slot_of(i, plan.planes_of_codes);
        if (call.planes == 2) {
          out[slot] = static_cast<std::int8_t>((value + 128) >> 8);
          out[slot + kLine] = static_cast<std::int8_t>(value);
        } else {
          out[slot] = static_cast<std::int8_t>(value);
        }
      }
      const std::int64_t meta = (tile * plan.block_count + b) * per_tile + row % per_tile;
      call.to.scale[meta] = !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : magnitude / limit;
      call.to.minus_sum[meta] = static_cast<float>(-sum);
    }
  }
}

void multiply_scalar(const Call& call, const Rectangle& area) {
  for (std::int64_t index = area.pair_begin; index < area.pair_end; ++index) {
    const PairRef pair = pair_at(call, index);
    for (std::int64_t row = area.row_begin; row < area.row_end; ++row) {
      std::array<float, kPairFloats> sums{};
      panel_sums(call, call.parts[pair.first_part], pair.first_panel, row, sums.data());
      if (pair.has_second) panel_sums(call, call.parts[pair.second_part], pair.second_panel, row, sums.data() + kPanel);
      finish_pair(call, pair, row, 1, sums.data());
    }
  }
}

}  // namespace nibble::packed
