#include "kernels/cuda/gptq_upload.h"

#include "core/checked.h"
#include "core/float_convert.h"
#include "core/thread_pool.h"
#include "formats/gptq_pack.h"
#include "kernels/cuda/gptq_ops.h"

#include <algorithm>
#include <numeric>
#include <utility>

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

// The scales as f16 and the zero points as v1 files have them, made by all threads: a 13B model has 10^8 of each.
void pack_groups(const GptqTensors& gptq, std::vector<std::uint32_t>& zeros, std::vector<std::uint16_t>& scales) {
  const auto outputs = static_cast<std::size_t>(gptq.out_features);
  const auto words = static_cast<std::size_t>(packed_words(gptq.out_features, gptq.bits));
  const unsigned mask = (1u << gptq.bits) - 1u;
  zeros.resize(static_cast<std::size_t>(gptq.groups) * words);
  scales.resize(static_cast<std::size_t>(gptq.groups) * outputs);
  ThreadPool::instance().run([&](int thread, int threads) {
    const auto [begin, end] = split_range(gptq.groups, 1, thread, threads);
    std::vector<std::uint8_t> stored(outputs);
    for (auto g = static_cast<std::size_t>(begin); g < static_cast<std::size_t>(end); ++g) {
      for (std::size_t n = 0; n < outputs; ++n) {
        stored[n] = static_cast<std::uint8_t>((gptq.zeros[g * outputs + n] - 1u) & mask);
        scales[g * outputs + n] = float_to_half(gptq.scales[g * outputs + n]);
      }
      pack_codes(stored, gptq.bits, std::span(zeros).subspan(g * words, words));
    }
  });
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
  std::vector<std::int32_t> order(gptq.g_idx.size());
  std::iota(order.begin(), order.end(), 0);
  const auto group = [&](std::int32_t k) { return gptq.g_idx[static_cast<std::size_t>(k)]; };
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return group(a) < group(b); });
  for (std::size_t p = 0; p < order.size(); ++p) {
    const std::int64_t want = static_cast<std::int64_t>(p) / gptq.group_size;
    if (group(order[p]) != want) {
      fail(
          "{}.g_idx does not give each group {} inputs (sorted, place {} belongs to group {} instead of {}), which "
          "exllama kernels count on: use --kernel cuda",
          gptq.name, gptq.group_size, p, group(order[p]), want);
    }
  }
  return order;
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

  std::vector<std::uint32_t> zeros;
  std::vector<std::uint16_t> scales;
  pack_groups(gptq, zeros, scales);
  send(base + at.zeros, zeros);
  send(base + at.scales, scales);
  out.zeros = reinterpret_cast<const std::uint32_t*>(base + at.zeros);
  out.scales = reinterpret_cast<const __half*>(base + at.scales);

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
    const std::unique_ptr<Buffer> unsorted = device.allocate(codes.size_bytes(), "sorting the rows of " + part.name);
    send(unsorted->data(), codes);
    sort_code_rows(reinterpret_cast<const std::uint32_t*>(unsorted->data()), out, stream);
    stream.synchronize();
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
