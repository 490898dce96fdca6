// Weights from a checkpoint's words into the layout of layout.h, on the GPU.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "core/error.h"
#include "kernels/cuda/nibble/packed_site.h"
#include "kernels/cuda/weights_upload.h"

#include <algorithm>

namespace nibble::gpu {
namespace {

// One part's tensors on the device.
struct Source {
  const std::uint32_t* words = nullptr;  // [packed words of K, columns]
  const float* scales = nullptr;         // [groups, outputs]
  const std::uint16_t* zeros = nullptr;  // [groups, outputs]
  std::int64_t columns = 0;
  std::int64_t outputs = 0;
};

struct PackArgs {
  Source low, high;  // of rows 0-7 and 8-15 of a strip
  bool gated = false;
  bool zeros = false;
  int bits = 4;
  int sets = 1;
  int block_bytes = 0;
  std::int64_t blocks = 0;
  std::int64_t strips = 0;
  std::int64_t first_strip = 0;
  const std::int32_t* order = nullptr;   // [blocks * 128]
  const std::int32_t* groups = nullptr;  // [blocks * sets]
  std::byte* to = nullptr;               // the part's first strip
};

constexpr int kWarps = 8;

// The code at packed input `place` of output n: codes are a stream of bits along the inputs, 32 codes in `bits` words.
__device__ std::uint32_t code_at(const Source& s, int bits, std::int32_t input, std::int64_t n) {
  if (input < 0 || n >= s.outputs) return 0;
  const int bit = (input % 32) * bits;
  const std::int64_t word = static_cast<std::int64_t>(input / 32) * bits + bit / 32;
  std::uint32_t code = s.words[word * s.columns + n] >> (bit % 32);
  if (bit % 32 + bits > 32) code |= s.words[(word + 1) * s.columns + n] << (32 - bit % 32);
  return code & ((1u << bits) - 1u);
}

// A warp a block. `pair` numbers a step's input pairs: 0 for 2c, 1 for 2c + 8.
__global__ void pack_kernel(const PackArgs a) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (index >= a.strips * a.blocks) return;
  const std::int64_t strip = index / a.blocks;
  const std::int64_t block = index % a.blocks;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int c = lane % 4;
  const std::int64_t low_row = a.gated ? strip * 8 + g : strip * 16 + g;
  const std::int64_t high_row = a.gated ? low_row : low_row + 8;
  const std::int32_t* order = a.order + block * kBlockInputs;
  std::byte* to = a.to + block_place(a.first_strip + strip, block, a.blocks) * a.block_bytes;

  // Of row g (high = false) or g + 8, step s, pair, and which of the pair's two inputs.
  const auto code = [&](bool high, int step, int pair, int which) {
    const std::int32_t input = order[step * 16 + 2 * c + 8 * pair + which];
    return high ? code_at(a.high, a.bits, input, high_row) : code_at(a.low, a.bits, input, low_row);
  };

  if (a.bits == 4) {
    for (int unit = 0; unit < 2; ++unit) {
      std::uint32_t words[4];
      for (int s = 0; s < 4; ++s) {
        std::uint32_t word = 0;
        for (int which = 0; which < 2; ++which) {
          std::uint32_t half = 0;
          for (int high = 0; high < 2; ++high) {
            for (int pair = 0; pair < 2; ++pair)
              half |= code(high != 0, unit * 4 + s, pair, which) << (8 * high + 4 * pair);
          }
          word |= half << (16 * which);
        }
        words[s] = word;
      }
      reinterpret_cast<uint4*>(to + unit * 512)[lane] = make_uint4(words[0], words[1], words[2], words[3]);
    }
  } else if (a.bits == 8) {
    for (int pairs = 0; pairs < 4; ++pairs) {
      std::uint32_t words[4];
      for (int s = 0; s < 2; ++s) {
        for (int high = 0; high < 2; ++high) {
          std::uint32_t word = 0;
          for (int pair = 0; pair < 2; ++pair) {
            for (int which = 0; which < 2; ++which)
              word |= code(high != 0, pairs * 2 + s, pair, which) << (16 * pair + 8 * which);
          }
          words[2 * s + high] = word;
        }
      }
      reinterpret_cast<uint4*>(to + pairs * 512)[lane] = make_uint4(words[0], words[1], words[2], words[3]);
    }
  } else {
    std::uint32_t low_words[4];
    std::uint32_t high_words[2] = {0, 0};
    for (int j = 0; j < 4; ++j) {
      std::uint32_t word = 0;
      for (int which = 0; which < 2; ++which) {
        for (int high = 0; high < 2; ++high) {
          // The four pairs of two steps, in the order of their bits.
          for (int p = 0; p < 4; ++p) {
            const std::uint32_t q = code(high != 0, 2 * j + p / 2, p % 2, which);
            word |= (q & 3u) << (16 * which + 8 * high + 2 * p);
            const int bit = 2 + 2 * p + high;
            const int swapped = j % 2 == 0 ? bit : (bit + 8) % 16;
            high_words[j / 2] |= (q >> 2) << (16 * which + swapped);
          }
        }
      }
      low_words[j] = word;
    }
    reinterpret_cast<uint4*>(to)[lane] = make_uint4(low_words[0], low_words[1], low_words[2], low_words[3]);
    if (a.bits == 3) reinterpret_cast<uint2*>(to + 512)[lane] = make_uint2(high_words[0], high_words[1]);
  }

  auto* scales = reinterpret_cast<__half*>(to + a.bits * 256);
  auto* zeros = reinterpret_cast<std::uint8_t*>(scales + 16 * a.sets);
  for (int i = lane; i < 16 * a.sets; i += 32) {
    const int set = i / 16;
    const bool high = i % 2 != 0;
    const int pair = i % 16 / 2;
    const Source& source = high ? a.high : a.low;
    const std::int64_t row = a.gated ? strip * 8 + pair : strip * 16 + pair + (high ? 8 : 0);
    const std::int32_t group = a.groups[block * a.sets + set];
    const bool there = group >= 0 && row < source.outputs;
    scales[i] = __float2half_rn(there ? source.scales[group * source.outputs + row] : 0.0f);
    if (a.zeros) zeros[i] = there ? static_cast<std::uint8_t>(source.zeros[group * source.outputs + row]) : 0;
  }
}

// Hands out the device's staging memory piece by piece.
class Staging {
 public:
  static std::size_t room(std::size_t bytes) { return round_up(bytes, std::size_t{256}); }

  Staging(std::size_t bytes, CudaDevice& device, Stream& stream)
      : device_(device), stream_(stream), at_(device.staging(bytes)) {}

  template <typename T>
  const T* put(std::span<const T> values) {
    std::byte* to = at_;
    at_ += room(values.size_bytes());
    device_.upload(to, values.data(), values.size_bytes(), stream_);
    return reinterpret_cast<const T*>(to);
  }

 private:
  CudaDevice& device_;
  Stream& stream_;
  std::byte* at_;
};

bool keeps_y_bias(const LinearSite& site) {
  return site.y_dtype != DType::f32 && site.epilogue.kind != EpilogueKind::gated;
}

}  // namespace

std::size_t PackedSite::bytes() const {
  std::size_t all = weights->size();
  if (order) all += order->size();
  if (bias) all += bias->size();
  if (y_bias) all += y_bias->size();
  if (places) all += places->size();
  if (ordered_norm) all += ordered_norm->size();
  return all;
}

std::size_t packed_site_bytes(const LinearSite& site) {
  const PackedLayout layout = layout_of(site);
  std::size_t bytes = layout.bytes();
  const LinearDesc& first = site.parts.front();
  // Groups that are padded stand in another order, as those of act-order do.
  const bool padded =
      first.gptq->group_size < layout.inputs && first.gptq->group_size % (kBlockInputs / layout.sets) != 0;
  if ((first.gptq->act_order && first.gptq->group_size < layout.inputs) || padded)
    bytes += static_cast<std::size_t>(layout.packed_inputs()) * 4;
  if (std::any_of(site.parts.begin(), site.parts.end(), [](const LinearDesc& part) { return part.bias; }))
    bytes += static_cast<std::size_t>(site.out_features()) * (4 + (keeps_y_bias(site) ? bytes_of(site.y_dtype) : 0));
  return bytes;
}

std::unique_ptr<PackedSite> pack_site(const LinearSite& site, std::span<const LinearTensors> tensors,
                                      CudaDevice& device, Stream& stream) {
  auto packed = std::make_unique<PackedSite>();
  packed->site = site;
  packed->small_rows_device = small_rows_device();
  PackedLayout& layout = packed->layout;
  layout = layout_of(site);
  const GptqTensors& first = *tensors.front().gptq;
  for (const LinearTensors& part : tensors) {
    if (part.gptq->g_idx != first.g_idx) {
      fail("{} and {} sort their inputs into different groups (g_idx), so they cannot share one product: use --no-fuse",
           first.name, part.gptq->name);
    }
  }
  const PackedLayout planned = layout;
  const InputOrder order = order_inputs(first.g_idx, first.groups, layout);
  if (layout.sets != planned.sets || layout.blocks != planned.blocks) {
    // Memory was planned for groups of group_size inputs each.
    fail(
        "{}: g_idx sorts the inputs into groups of other sizes than {}: expected that many in each but the last; use "
        "--kernel cuda, which takes any",
        first.name, first.group_size);
  }
  packed->weights = device.allocate(layout.bytes(), "the weights of " + site.parts.front().name);

  std::size_t room = Staging::room(order.inputs.size() * 4) + Staging::room(order.groups.size() * 4);
  for (const LinearTensors& part : tensors) {
    room += Staging::room(part.gptq->qweight.size_bytes()) + Staging::room(part.gptq->scales.size() * sizeof(float));
    if (layout.zeros) room += Staging::room(part.gptq->zeros.size() * sizeof(std::uint16_t));
  }
  Staging staging(room, device, stream);
  const std::int32_t* places = staging.put(std::span<const std::int32_t>(order.inputs));
  const std::int32_t* groups = staging.put(std::span<const std::int32_t>(order.groups));
  std::vector<Source> sources;
  for (const LinearTensors& part : tensors) {
    Source source;
    source.words = staging.put(part.gptq->qweight);
    source.scales = staging.put(std::span<const float>(part.gptq->scales));
    if (layout.zeros) source.zeros = staging.put(std::span<const std::uint16_t>(part.gptq->zeros));
    source.columns = part.gptq->qweight_columns;
    source.outputs = part.gptq->out_features;
    sources.push_back(source);
  }

  if (layout.strips() % 2 != 0) {
    const std::size_t pair = packed->weights->size() / static_cast<std::size_t>(layout.pairs());
    check_cuda(cudaMemsetAsync(packed->weights->data() + packed->weights->size() - pair, 0, pair,
                               cuda_stream(stream).handle()),
               "clearing a half pair of strips");
  }
  PackArgs args;
  args.gated = layout.gated;
  args.zeros = layout.zeros;
  args.bits = layout.bits;
  args.sets = layout.sets;
  args.block_bytes = layout.block_bytes();
  args.blocks = layout.blocks;
  args.order = places;
  args.groups = groups;
  args.to = packed->weights->data();
  std::int64_t strip = 0;
  for (std::size_t part = 0; part < layout.part_strips.size(); ++part) {
    packed->first_strips.push_back(strip);
    args.low = sources[part];
    args.high = sources[layout.gated ? 1 : part];
    args.strips = layout.part_strips[part];
    args.first_strip = strip;
    const std::int64_t count = ceil_div(args.strips * args.blocks, std::int64_t{kWarps});
    launch(cuda_stream(stream), dim3(static_cast<unsigned>(count)), dim3(kWarps * 32), 0, Overlap::no, pack_kernel,
           args);
    strip += args.strips;
  }
  if (!order.sorted) {
    packed->order = device.allocate(order.inputs.size() * 4, "the order of inputs");
    check_cuda(cudaMemcpyAsync(packed->order->data(), places, order.inputs.size() * 4, cudaMemcpyDeviceToDevice,
                               cuda_stream(stream).handle()),
               "keeping the order of inputs");
  }
  std::vector<std::vector<float>> biases;
  std::vector<std::int64_t> outputs;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    biases.push_back(bias_of(tensors[i]));
    outputs.push_back(site.parts[i].out_features);
  }
  packed->bias = upload_biases(biases, outputs, DType::f32, device, stream);
  if (keeps_y_bias(site)) packed->y_bias = upload_biases(biases, outputs, site.y_dtype, device, stream);
  return packed;
}

}  // namespace nibble::gpu
