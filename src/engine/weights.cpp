#include "engine/weights.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/progress.h"
#include "formats/quant_config.h"
#include "models/family.h"

#include <chrono>
#include <cstdint>
#include <deque>
#include <future>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Scales and zero points of a site take a thread some milliseconds to decode, its packing on a GPU less than that.
constexpr std::size_t kSitesAhead = 8;

// One linear node's tensors, read and decoded.
struct ReadSite {
  LinearSite site;
  std::vector<LoadedLinear> loaded;
  std::vector<LinearTensors> tensors;  // point into `loaded`
};

}  // namespace

const float* Weights::norm(const std::string& name) const {
  const auto found = norms_.find(name);
  if (found == norms_.end()) fail("the norm weight {} was not loaded", name);
  return reinterpret_cast<const float*>(found->second->data());
}

void Weights::load_norm(const Checkpoint& checkpoint, const std::string& name, Device& device, Stream& stream) {
  if (name.empty() || norms_.contains(name)) return;
  const std::vector<float> values = to_float(checkpoint.tensor(name));
  std::unique_ptr<Buffer> buffer = device.allocate(values.size() * sizeof(float), name);
  stream.copy_to_device(buffer->data(), values.data(), values.size() * sizeof(float));
  stream.synchronize();
  norms_.emplace(name, std::move(buffer));
}

void Weights::load_embedding(const Checkpoint& checkpoint, const std::string& name, Device& device, Stream& stream) {
  const TensorView table = checkpoint.tensor(name);
  embedding_.dtype = table.dtype;
  embedding_.rows = table.shape[0];
  embedding_.columns = embedding_.stride = table.shape[1];
  const bool aligned = reinterpret_cast<std::uintptr_t>(table.bytes.data()) % bytes_of(table.dtype) == 0;
  if (device.info().kind == DeviceKind::cpu && aligned && table.dtype != DType::f64) {
    // Rows are read where the file is mapped: only the pages of tokens in use become resident.
    embedding_.data = const_cast<std::byte*>(table.bytes.data());
    return;
  }
  if (table.dtype == DType::f64) {
    const std::vector<float> values = to_float(table);
    embedding_.dtype = DType::f32;
    embedding_copy_ = device.allocate(values.size() * sizeof(float), name);
    stream.copy_to_device(embedding_copy_->data(), values.data(), values.size() * sizeof(float));
  } else {
    embedding_copy_ = device.allocate(table.bytes.size(), name);
    stream.copy_to_device(embedding_copy_->data(), table.bytes.data(), table.bytes.size());
  }
  stream.synchronize();
  embedding_.data = embedding_copy_->data();
}

std::vector<LinearTensors> load_site(const Checkpoint& checkpoint, const std::optional<QuantConfig>& quant,
                                     const LinearNode& node, LinearSite& site, std::vector<LoadedLinear>& loaded) {
  loaded = std::vector<LoadedLinear>(node.parts.size());
  std::vector<LinearTensors> tensors;
  for (std::size_t part = 0; part < loaded.size(); ++part) {
    load_linear(checkpoint, quant, node, part, loaded[part]);
    LinearDesc& desc = site.parts[part];
    if (desc.gptq) {
      const GptqTensors& gptq = loaded[part].gptq;
      desc.gptq = GptqFormat{gptq.bits, gptq.group_size, gptq.act_order, gptq.sym};
      desc.bias = !gptq.bias.empty();
    }
    tensors.push_back(loaded[part].tensors);
  }
  return tensors;
}

void Weights::load(const Checkpoint& checkpoint, std::vector<LoweredNode>& nodes, Device& device, Stream& stream,
                   LoadTimes& times) {
  const std::optional<QuantConfig> quant = find_quant_config(checkpoint.folder());
  packed_.resize(nodes.size());
  Progress progress("loading", static_cast<std::int64_t>(nodes.size()));
  // Sites are read ahead on other threads where the packing is not done by this machine's own cores.
  std::deque<std::future<ReadSite>> ahead;
  std::size_t next = 0;
  const bool gpu = device.info().kind == DeviceKind::cuda;
  const auto read_ahead = [&] {
    for (; next < nodes.size() && ahead.size() < (gpu ? kSitesAhead : 1); ++next) {
      if (nodes[next].linear() == nullptr) continue;
      ahead.push_back(
          std::async(gpu ? std::launch::async : std::launch::deferred, [&checkpoint, &quant, &nodes, at = next] {
            ReadSite read;
            read.site = nodes[at].site;
            read.tensors = load_site(checkpoint, quant, *nodes[at].linear(), read.site, read.loaded);
            return read;
          }));
    }
  };
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    LoweredNode& node = nodes[i];
    progress.update(static_cast<std::int64_t>(i), node.name());
    const Clock::time_point start = Clock::now();
    if (node.norm) load_norm(checkpoint, node.norm->weight, device, stream);
    if (const auto* norm = std::get_if<NormNode>(&node.node.op)) {
      load_norm(checkpoint, norm->weight, device, stream);
      load_norm(checkpoint, norm->bias, device, stream);
    }
    if (const auto* embed = std::get_if<EmbedNode>(&node.node.op))
      load_embedding(checkpoint, embed->table, device, stream);
    const LinearNode* linear = node.linear();
    if (linear == nullptr) continue;
    read_ahead();
    const ReadSite ready = ahead.front().get();
    ahead.pop_front();
    read_ahead();
    node.site = ready.site;
    const Clock::time_point read = Clock::now();
    times.read += std::chrono::duration<double>(read - start).count();
    packed_[i] = node.kernel->pack(node.site, ready.tensors, device, stream);
    times.pack += seconds_since(read);
    drop_linear(checkpoint, *linear);
  }
  const Clock::time_point last = Clock::now();
  stream.synchronize();
  device.trim();
  times.pack += seconds_since(last);
  progress.update(static_cast<std::int64_t>(nodes.size()));
}

}  // namespace nibble
