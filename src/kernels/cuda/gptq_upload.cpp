#include "kernels/cuda/gptq_upload.h"

#include "core/checked.h"
#include "formats/gptq_pack.h"
#include "kernels/cuda/gptq_ops.h"
#include "kernels/cuda/weights_upload.h"

#include <algorithm>

namespace nibble::cuda {
namespace {

// Where a linear's tensors lie in its memory, in bytes.
struct Places {
  std::size_t codes = 0;
  std::size_t zeros = 0;
  std::size_t scales = 0;
  std::size_t row_index = 0;
  std::size_t bias = 0;
  std::size_t bytes = 0;
};

bool keeps_row_index(const LinearDesc& part, RowOrder order) {
  return order == RowOrder::indexed || (order == RowOrder::sorted && part.gptq->act_order);
}

Places places(const LinearDesc& part, RowOrder order) {
  const GptqFormat& format = *part.gptq;
  const auto inputs = static_cast<std::size_t>(part.in_features);
  const auto outputs = static_cast<std::size_t>(part.out_features);
  const auto groups = static_cast<std::size_t>(ceil_div(part.in_features, format.group_size));
  Places at;
  // Each begins as an allocation does: on a multiple of 256 bytes.
  const auto take = [&](std::size_t bytes) {
    const std::size_t begin = at.bytes;
    at.bytes = begin + round_up(bytes, std::size_t{256});
    return begin;
  };
  at.codes = take(static_cast<std::size_t>(packed_words(part.in_features, format.bits)) * outputs * 4);
  at.zeros = take(groups * static_cast<std::size_t>(packed_words(part.out_features, format.bits)) * 4);
  at.scales = take(groups * outputs * 2);
  at.row_index = take(keeps_row_index(part, order) ? inputs * 4 : 0);
  at.bias = take(part.bias ? outputs * 4 : 0);
  return at;
}

// The codes without the columns that pad them, which copies only where there are such columns.
std::span<const std::uint32_t> trimmed(const GptqTensors& gptq, std::vector<std::uint32_t>& copy) {
  if (gptq.qweight_columns == gptq.out_features) return gptq.qweight;
  const auto rows = static_cast<std::size_t>(packed_words(gptq.in_features, gptq.bits));
  const auto columns = static_cast<std::size_t>(gptq.qweight_columns);
  const auto outputs = static_cast<std::size_t>(gptq.out_features);
  copy.resize(rows * outputs);
  for (std::size_t r = 0; r < rows; ++r) {
    std::copy_n(gptq.qweight.begin() + static_cast<std::ptrdiff_t>(r * columns), outputs,
                copy.begin() + static_cast<std::ptrdiff_t>(r * outputs));
  }
  return copy;
}

// The inputs in the order of their groups, those of one group in their own order.
std::vector<std::int32_t> sorted_rows(const GptqTensors& gptq) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(gptq.groups), 0);
  for (const std::int32_t g : gptq.g_idx) ++counts[static_cast<std::size_t>(g)];
  for (std::size_t g = 0; g < counts.size(); ++g) {
    if (counts[g] != gptq.group_size) {
      fail(
          "{}.g_idx gives group {} {} inputs instead of the {} that exllama kernels count on for each: use --kernel "
          "cuda",
          gptq.name, g, counts[g], gptq.group_size);
    }
  }
  std::vector<std::int32_t> order(gptq.g_idx.size());
  std::vector<std::int64_t> next(counts.size());
  for (std::size_t g = 0; g < next.size(); ++g) next[g] = static_cast<std::int64_t>(g) * gptq.group_size;
  for (std::size_t k = 0; k < gptq.g_idx.size(); ++k) {
    const std::int64_t place = next[static_cast<std::size_t>(gptq.g_idx[k])]++;
    order[static_cast<std::size_t>(place)] = static_cast<std::int32_t>(k);
  }
  return order;
}

// Scales become f16, and zero points are packed, on the GPU: a 13B model has 10^8 of each, which take this machine's
// cores longer than their way there.
void upload_groups(const GptqTensors& gptq, const DeviceGptq& to, std::uint32_t* zeros, __half* scales,
                   CudaDevice& device, CudaStream& stream) {
  const TensorView view{DType::f32, {gptq.groups, gptq.out_features}, std::as_bytes(std::span(gptq.scales))};
  upload_as(view, DType::f16, scales, device, stream);
  const std::uint16_t* stored = nullptr;
  if (!gptq.sym) {
    const std::size_t bytes = gptq.zeros.size() * sizeof(std::uint16_t);
    std::byte* const staged = device.staging(bytes);
    device.upload(staged, gptq.zeros.data(), bytes, stream);
    stored = reinterpret_cast<const std::uint16_t*>(staged);
  }
  pack_zeros(stored, to, zeros, stream);
}

DeviceGptq upload(const LinearDesc& part, const LinearTensors& tensors, RowOrder order, CudaDevice& device,
                  CudaStream& stream) {
  const GptqTensors& gptq = *tensors.gptq;
  const Places at = places(part, order);
  DeviceGptq out;
  out.bits = gptq.bits;
  out.in_features = gptq.in_features;
  out.out_features = gptq.out_features;
  out.groups = gptq.groups;
  out.group_size = gptq.group_size;
  out.memory = device.allocate(at.bytes, "the weights of " + part.name);
  std::byte* base = out.memory->data();
  const auto send = [&](std::byte* to, const auto& values) {
    device.upload(to, std::data(values), std::size(values) * sizeof(*std::data(values)), stream);
  };

  auto* const zeros = reinterpret_cast<std::uint32_t*>(base + at.zeros);
  auto* const scales = reinterpret_cast<__half*>(base + at.scales);
  upload_groups(gptq, out, zeros, scales, device, stream);
  out.zeros = zeros;
  out.scales = scales;

  const bool indexed = keeps_row_index(part, order);
  if (indexed) {
    const std::vector<std::int32_t> index = order == RowOrder::sorted ? sorted_rows(gptq) : gptq.g_idx;
    send(base + at.row_index, index);
    out.row_index = reinterpret_cast<const std::int32_t*>(base + at.row_index);
  }
  if (part.bias) {
    std::vector<float> bias = bias_of(tensors);
    bias.resize(static_cast<std::size_t>(gptq.out_features));
    send(base + at.bias, bias);
    out.bias = reinterpret_cast<const float*>(base + at.bias);
  }

  std::vector<std::uint32_t> copy;
  const std::span<const std::uint32_t> codes = trimmed(gptq, copy);
  out.codes = reinterpret_cast<std::uint32_t*>(base + at.codes);
  if (indexed && order == RowOrder::sorted) {
    std::byte* const unsorted = device.staging(codes.size_bytes());
    send(unsorted, codes);
    sort_code_rows(reinterpret_cast<const std::uint32_t*>(unsorted), out, stream);
  } else {
    send(base + at.codes, codes);
  }
  return out;
}

}  // namespace

std::size_t UploadedSite::bytes() const {
  std::size_t total = 0;
  for (const DeviceGptq& part : parts) total += part.memory->size();
  return total;
}

std::size_t uploaded_bytes(const LinearSite& site, RowOrder order) {
  std::size_t total = 0;
  for (const LinearDesc& part : site.parts) total += places(part, order).bytes;
  return total;
}

std::unique_ptr<UploadedSite> upload_site(const LinearSite& site, std::span<const LinearTensors> tensors,
                                          RowOrder order, Device& device, Stream& stream) {
  auto packed = std::make_unique<UploadedSite>();
  for (std::size_t i = 0; i < site.parts.size(); ++i) {
    packed->parts.push_back(upload(site.parts[i], tensors[i], order, cuda_device(device), cuda_stream(stream)));
  }
  return packed;
}

std::string refused_types(std::string_view kernel, const LinearSite& site) {
  for (const LinearDesc& part : site.parts) {
    if (!part.gptq) return fmt::format("{} is not quantised: use dense", part.name);
  }
  if (site.compute != DType::f16)
    return fmt::format("{} computes in f16 only, not {}: use --dtype f16", kernel, name_of(site.compute));
  // Behind a norm and before an addition or activation stand activations of the type that is computed in.
  if (site.prologue.kind == PrologueKind::none && site.x_dtype != DType::f16)
    return fmt::format("{} takes inputs of f16 only, and those of {} are {}", kernel, site.parts.front().name,
                       name_of(site.x_dtype));
  if (site.epilogue.kind == EpilogueKind::store && site.y_dtype != DType::f16)
    return fmt::format("{} writes outputs of f16 only, and those of {} are to be {}", kernel, site.parts.front().name,
                       name_of(site.y_dtype));
  return {};
}

void check_f16(std::string_view kernel, const LinearArgs& args) {
  if (args.x.dtype != DType::f16) fail("{} was given inputs of {}; it takes f16", kernel, name_of(args.x.dtype));
  for (const MatrixRef& y : args.y) {
    if (y.dtype != DType::f16) fail("{} was given outputs of {}; it writes f16", kernel, name_of(y.dtype));
  }
}

}  // namespace nibble::cuda
