// A linear kernel: one file that knows how to keep the weights of a linear site and how to multiply by them.
#pragma once

#include "core/device.h"
#include "core/matrix.h"
#include "core/tensor.h"
#include "formats/gptq_tensors.h"
#include "kernels/sequence_tiles.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// How a matrix is quantised; absent in LinearDesc for a full-precision one.
struct GptqFormat {
  int bits = 4;                   // 2, 3, 4 or 8
  std::int64_t group_size = 128;  // input rows a scale; in_features where the file says -1
  bool act_order = false;         // g_idx is not k div group_size
  bool symmetric = true;          // every zero point is 2^(bits-1)
};

/// One matrix as a kernel must know it before it packs: y[m, n] = sum_k x[m, k] W[n, k] + bias[n].
struct LinearDesc {
  std::string name;  // the module's name in the checkpoint: "model.layers.0.self_attn.q_proj"
  std::int64_t in_features = 0;
  std::int64_t out_features = 0;
  bool bias = false;
  std::optional<GptqFormat> gptq;
};

enum class PrologueKind { none, rms_norm };
/// rms_norm: the site's input is x * rsqrt(mean(x^2) + eps) * weight, as Llama's RMSNorm.
struct Prologue {
  PrologueKind kind = PrologueKind::none;
  float eps = 0;
};

/// gelu is the exact one (erf); quick_gelu is x * sigmoid(1.702 x), as CLIP has it.
enum class ActivationKind { silu, gelu, gelu_tanh, relu, quick_gelu, tanh };
enum class EpilogueKind {
  store,       // y = x W^T + bias, each part to its own output
  residual,    // y = residual + x W^T + bias (one part); y and residual may be the same memory
  gated,       // two parts, gate and up: y = act(gate) * up, one output
  activation,  // y = act(x W^T + bias) (one part)
};
struct Epilogue {
  EpilogueKind kind = EpilogueKind::store;
  ActivationKind activation = ActivationKind::silu;
};

/// A place in the model where linear layers with one input stand, known before anything is packed.
struct LinearSite {
  std::vector<LinearDesc> parts;  // q|k|v or gate|up or one; all with the same in_features
  Prologue prologue;
  Epilogue epilogue;
  // f32: full float arithmetic; bf16, f16: operands may be rounded to that type, sums are f32.
  DType compute = DType::f32;
  // Element types of the activations that come in and go out: f32 on the CPU; on a GPU the compute type, but f32 for
  // the residual stream and the logits.
  DType x_dtype = DType::f32;
  DType y_dtype = DType::f32;

  std::int64_t in_features() const { return parts.front().in_features; }
  std::int64_t out_features() const;  // of all parts
};

/// The weights of one part, as the checkpoint has them: `weight` [out, in] or `gptq`, and `bias` [out] if the part has
/// one.
struct LinearTensors {
  TensorView weight;
  const GptqTensors* gptq = nullptr;
  TensorView bias;
};

/// The part's bias as float, [out] or empty: `bias`, or else what its GPTQ tensors hold.
std::vector<float> bias_of(const LinearTensors& tensors);

/// Yes with what it fuses, or no with a reason that a user can act on. What a kernel does not fuse, lowering composes
/// from ops.
struct Fit {
  bool ok = false;
  std::string reason;  // why not
  bool fuses_prologue = false;
  bool fuses_epilogue = false;

  static Fit no(std::string why) { return {false, std::move(why), false, false}; }
  static Fit yes(bool prologue, bool epilogue) { return {true, {}, prologue, epilogue}; }
};

struct KernelTraits {
  std::string_view summary;       // one line for `nibble kernels`
  std::string_view accumulate;    // "f32", "f64", "i32 in a group, f32 across groups"
  bool deterministic = true;      // bitwise the same result for the same build, device, threads and shapes
  bool exact_activations = true;  // false: activations are rounded to 8 bits, which changes numbers
  bool in_all = true;             // part of `--kernel all`
  bool in_auto = true;            // a candidate of `--kernel auto`
  // The largest error that verification (kernels/verify.h says in which norm) lets pass, by LinearSite::compute. f32
  // sums of 10^4 products stay below 1e-5. bf16 rounds each operand by up to 2^-9: 4e-3 in the worst of some thousand
  // outputs; f16 by 2^-12.
  double error_f32 = 3e-5;
  double error_bf16 = 1e-2;
  double error_f16 = 1.5e-3;

  double error_bound(DType compute) const {
    return compute == DType::f32 ? error_f32 : compute == DType::bf16 ? error_bf16 : error_f16;
  }
};

/// What a call must do at the least: the roofline counts with it.
struct Cost {
  double bytes = 0;  // weights, scales, zeros, activations in and out
  double flops = 0;  // multiply and add counted as two
};

/// A site's weights in the layout that a kernel wants.
class PackedLinear {
 public:
  virtual ~PackedLinear() = default;
  virtual std::size_t bytes() const = 0;
};

/// The most parts that sums may be left in: each costs the op that adds them up a read.
constexpr int kMostSumParts = 4;

struct LinearArgs {
  std::int64_t rows = 0;
  MatrixRef x;                         // [rows, in_features] of the site's x_dtype
  const float* norm_weight = nullptr;  // [in_features], with Prologue rms_norm
  std::span<const MatrixRef> y;        // of y_dtype; store: one a part, [rows, out_features]; the others: one
  MatrixRef residual;                  // with Epilogue residual, of y_dtype
  /// Not null: where as many parts of y as LinearKernel::parts() says go, [parts, rows, out_features], and nothing to
  /// y.
  float* parts = nullptr;
  std::byte* workspace = nullptr;  // workspace(site, rows) bytes, 64-byte aligned, of undefined content
};

/// Attention behind a site of q, k and v (three parts of as many outputs) whose outputs nobody else wants, over
/// sequences so short that tiles hold whole ones: y = softmax(scale * q k^T) v among the rows of each sequence.
struct SiteAttention {
  std::int64_t heads = 0;
  float scale = 1;
  bool causal = false;  // a row sees the rows up to itself
  SequenceTiles tiles = {};
};

/// What a kernel does up to a number of rows.
struct KernelWay {
  std::string_view name;
  std::int64_t most_rows = 0;  // 0: from the way before on without end
};

/// "small_rows M<=16, small_rows in passes M<=64, dequantised above"; empty where there are none.
std::string text_of(std::span<const KernelWay> ways);

class LinearKernel {
 public:
  virtual ~LinearKernel() = default;
  /// As users write it: --kernel NAME.
  virtual std::string_view name() const = 0;
  virtual KernelTraits traits() const = 0;
  /// May this kernel run the site on this device for 1 to max_rows rows, and what does it fuse?
  virtual Fit fit(const LinearSite& site, const DeviceInfo& device, std::int64_t max_rows) const = 0;
  /// Bytes that pack() will keep.
  virtual std::size_t packed_bytes(const LinearSite& site) const = 0;
  /// Packs once, at load. `site` has only the prologue and epilogue that fit() said it fuses. tensors: one a part; they
  /// need not outlive the call.
  virtual std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors,
                                             Device& device, Stream& stream) const = 0;
  /// Scratch bytes that enqueue() needs for this many rows.
  virtual std::size_t workspace(const LinearSite& site, std::int64_t rows) const = 0;
  virtual Cost cost(const LinearSite& site, std::int64_t rows) const = 0;
  /// The ways in which enqueue() multiplies by such a site on the device in use, by rising numbers of rows; none where
  /// there is but one.
  virtual std::vector<KernelWay> ways(const LinearSite& site) const {
    static_cast<void>(site);
    return {};
  }
  /// In how many parts of k, up to kMostSumParts, enqueue() leaves the sums of so many rows at such a site if asked to,
  /// which is faster where the op behind adds them up as it reads them; 1: it does not. The more rows the fewer.
  virtual int parts(const LinearSite& site, std::int64_t rows, const DeviceInfo& device) const {
    static_cast<void>(site);
    static_cast<void>(rows);
    static_cast<void>(device);
    return 1;
  }
  /// Neither allocates nor waits; may be captured. args is copied as needed: its spans need not outlive the call, what
  /// its pointers point at must.
  virtual void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const = 0;

  /// The most tiles of sequences for which attend() at such a site with so many heads is faster than enqueue() and
  /// attention by itself, on a device that fit() has said yes to; 0: it does not take the site.
  virtual std::int64_t attends(const LinearSite& site, std::int64_t heads, const DeviceInfo& device) const {
    static_cast<void>(site);
    static_cast<void>(heads);
    static_cast<void>(device);
    return 0;
  }
  /// As enqueue(), with the attention behind the site; args.y is its one output, [rows, heads * head size], not x.
  /// Sequences share nothing, but where one holds what is no number, so may others of its tile.
  virtual void attend(const PackedLinear& packed, const LinearArgs& args, const SiteAttention& attention,
                      Stream& stream) const;
};

/// The site without the prologue and epilogue that a kernel does not fuse: what pack() wants.
LinearSite fused_site(LinearSite site, const Fit& fit);

/// Bytes of the site's weights as stored by the format (codes, scales, zero points, biases; 16-bit for compute bf16, 32
/// for f32) and of its activations in f32: what any kernel must move for this many rows.
Cost minimal_cost(const LinearSite& site, std::int64_t rows);

}  // namespace nibble
