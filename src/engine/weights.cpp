#include "engine/weights.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/progress.h"
#include "formats/quant_config.h"
#include "kernels/output_order.h"
#include "models/family.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <future>
#include <set>
#include <string_view>
#include <utility>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Scales and zero points of a site take a thread some milliseconds to decode, its packing on a GPU less than that.
constexpr std::size_t kSitesAhead = 8;

// Divides loading into its parts: what a part took by the clock less the uploads in it, which are a part of their own.
class Laps {
 public:
  Laps(const Device& device, LoadTimes& times)
      : device_(device), times_(times), uploaded_(device.upload_seconds()), last_(Clock::now()) {}

  /// Ends a part, and begins the next.
  void end(double& part) {
    const Clock::time_point now = Clock::now();
    const double uploads = device_.upload_seconds() - uploaded_;
    part += std::chrono::duration<double>(now - last_).count() - uploads;
    times_.upload += uploads;
    uploaded_ += uploads;
    last_ = now;
  }

 private:
  const Device& device_;
  LoadTimes& times_;
  double uploaded_;
  Clock::time_point last_;
};

// One linear node's tensors, read and decoded.
struct ReadSite {
  LinearSite site;
  std::vector<LoadedLinear> loaded;
  std::vector<LinearTensors> tensors;  // point into `loaded`
};

std::unique_ptr<Buffer> to_device(const std::vector<float>& values, const std::string& name, Device& device,
                                  Stream& stream) {
  std::unique_ptr<Buffer> buffer = device.allocate(values.size() * sizeof(float), name);
  device.upload(buffer->data(), values.data(), values.size() * sizeof(float), stream);
  return buffer;
}

// The bucket of a key `distance` rows after its query, as T5 has it for both directions: half of the buckets for each;
// half of those for the nearest distances one by one, the others for logarithmic steps up to `reach`.
std::int64_t distance_bucket(std::int64_t distance, std::int64_t buckets, std::int64_t reach) {
  const std::int64_t side = buckets / 2;
  const std::int64_t exact = side / 2;
  const std::int64_t base = distance > 0 ? side : 0;
  const std::int64_t far = std::abs(distance);
  if (far < exact) return base + far;
  const double steps = std::log(static_cast<double>(far) / static_cast<double>(exact)) /
                       std::log(static_cast<double>(reach) / static_cast<double>(exact)) *
                       static_cast<double>(side - exact);
  return base + std::min(side - 1, exact + static_cast<std::int64_t>(steps));
}

// The weight of a convolution with weight norm: direction / |direction| * magnitude, the norm for each frame of the
// kernel over all outputs and inputs (as torch.nn.utils.weight_norm with dim=2 has it).
std::vector<float> multiplied_out(const ConvolveNode& node, const Checkpoint& checkpoint) {
  std::vector<float> weight = to_float(checkpoint.tensor(node.direction));
  const std::vector<float> magnitude = to_float(checkpoint.tensor(node.magnitude));
  const auto kernel = static_cast<std::size_t>(node.shape.kernel);
  std::vector<double> squares(kernel);
  for (std::size_t i = 0; i < weight.size(); ++i)
    squares[i % kernel] += static_cast<double>(weight[i]) * static_cast<double>(weight[i]);
  for (std::size_t i = 0; i < weight.size(); ++i) {
    const double norm = std::sqrt(squares[i % kernel]);
    weight[i] = static_cast<float>(static_cast<double>(weight[i]) / norm * static_cast<double>(magnitude[i % kernel]));
  }
  return weight;
}

// The only node that reads what node `writer` puts into `buffer`, if it is a linear and reads it as its input.
std::optional<std::size_t> only_linear_reader(const std::vector<LoweredNode>& nodes, std::size_t writer,
                                              BufferId buffer) {
  std::optional<std::size_t> reader;
  for (std::size_t i = writer + 1; i < nodes.size(); ++i) {
    const std::vector<BufferId> reads = nodes[i].reads();
    const auto times = std::count(reads.begin(), reads.end(), buffer);
    if (times > 1 || (times == 1 && reader)) return std::nullopt;
    if (times == 1) {
      if (nodes[i].linear() == nullptr || nodes[i].linear()->x != buffer) return std::nullopt;
      reader = i;
    }
    const std::vector<BufferId> writes = nodes[i].writes();
    if (std::find(writes.begin(), writes.end(), buffer) != writes.end()) break;
  }
  return reader;
}

// Whether a node is a linear one that multiplies what lies in `buffer`, normed or not.
bool multiplies(const LoweredNode& node, BufferId buffer) {
  const LinearNode* linear = node.linear();
  return linear != nullptr && (node.norm ? node.norm->x : linear->x) == buffer;
}

// The first linear that multiplies what node `writer` puts into `buffer`.
std::optional<std::size_t> next_linear_reader(const std::vector<LoweredNode>& nodes, std::size_t writer,
                                              BufferId buffer) {
  for (std::size_t i = writer + 1; i < nodes.size(); ++i) {
    if (multiplies(nodes[i], buffer)) return i;
    const std::vector<BufferId> writes = nodes[i].writes();
    if (std::find(writes.begin(), writes.end(), buffer) != writes.end()) break;
  }
  return std::nullopt;
}

template <typename Map>
const auto& loaded(const Map& map, const std::string& name, std::string_view what) {
  const auto found = map.find(name);
  if (found == map.end()) fail("the {} {} was not loaded", what, name);
  return found->second;
}

}  // namespace

const MatrixRef& Weights::table(const std::string& name) const {
  return loaded(tables_, name, "table of embeddings").ref;
}

const float* Weights::distance_bias(const std::string& name) const {
  return reinterpret_cast<const float*>(loaded(biases_, name, "table of biases")->data());
}

const PackedConvolution& Weights::convolution(const std::string& module) const {
  return *loaded(convolutions_, module, "convolution");
}

const float* Weights::norm(const std::string& name) const {
  return reinterpret_cast<const float*>(loaded(norms_, name, "norm weight")->data());
}

void Weights::load_norm(const Checkpoint& checkpoint, const std::string& name, Device& device, Stream& stream) {
  if (name.empty() || norms_.contains(name)) return;
  norms_.emplace(name, to_device(to_float(checkpoint.tensor(name)), name, device, stream));
}

void Weights::load_table(const Checkpoint& checkpoint, const std::string& name, Device& device, Stream& stream) {
  if (name.empty() || tables_.contains(name)) return;
  const TensorView tensor = checkpoint.tensor(name);
  Table table;
  table.ref.dtype = tensor.dtype;
  // The last dimension is a row; what stands before it counts rows.
  table.ref.columns = table.ref.stride = tensor.shape.back();
  table.ref.rows = tensor.elements() / table.ref.columns;
  const bool aligned = reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % bytes_of(tensor.dtype) == 0;
  if (device.info().kind == DeviceKind::cpu && aligned && tensor.dtype != DType::f64) {
    // Rows are read where the file is mapped: only the pages of tokens in use become resident.
    table.ref.data = const_cast<std::byte*>(tensor.bytes.data());
  } else if (tensor.dtype == DType::f64) {
    table.ref.dtype = DType::f32;
    table.copy = to_device(to_float(tensor), name, device, stream);
    table.ref.data = table.copy->data();
  } else {
    table.copy = device.allocate(tensor.bytes.size(), name);
    device.upload(table.copy->data(), tensor.bytes.data(), tensor.bytes.size(), stream);
    table.ref.data = table.copy->data();
  }
  tables_.emplace(name, std::move(table));
}

void Weights::load_distance_bias(const Checkpoint& checkpoint, const SelfAttentionNode& node, Device& device,
                                 Stream& stream) {
  if (node.bias.empty() || biases_.contains(node.bias)) return;
  const std::vector<float> table = to_float(checkpoint.tensor(node.bias));
  const std::int64_t width = 2 * node.bias_distance + 1;
  std::vector<float> out(static_cast<std::size_t>(node.heads * width));
  for (std::int64_t d = -node.bias_distance; d <= node.bias_distance; ++d) {
    const std::int64_t bucket = distance_bucket(d, node.bias_buckets, node.bias_distance);
    for (std::int64_t head = 0; head < node.heads; ++head) {
      out[static_cast<std::size_t>(head * width + d + node.bias_distance)] =
          table[static_cast<std::size_t>(bucket * node.heads + head)];
    }
  }
  biases_.emplace(node.bias, to_device(out, node.bias, device, stream));
}

void Weights::load_plain(const Checkpoint& checkpoint, const LoweredNode& node, Device& device, Stream& stream) {
  if (node.norm) load_norm(checkpoint, node.norm->weight, device, stream);
  if (const auto* norm = std::get_if<NormNode>(&node.node.op)) {
    load_norm(checkpoint, norm->weight, device, stream);
    load_norm(checkpoint, norm->bias, device, stream);
  } else if (const auto* over_time = std::get_if<InstanceNormNode>(&node.node.op)) {
    load_norm(checkpoint, over_time->module + ".weight", device, stream);
    load_norm(checkpoint, over_time->module + ".bias", device, stream);
  } else if (const auto* embed = std::get_if<EmbedNode>(&node.node.op)) {
    load_table(checkpoint, embed->table, device, stream);
    load_table(checkpoint, embed->positions, device, stream);
    load_table(checkpoint, embed->types, device, stream);
  } else if (const auto* place = std::get_if<PlaceNode>(&node.node.op)) {
    load_table(checkpoint, place->positions, device, stream);
    for (const std::string& name : place->leading) load_table(checkpoint, name, device, stream);
  } else if (const auto* attention = std::get_if<SelfAttentionNode>(&node.node.op)) {
    load_distance_bias(checkpoint, *attention, device, stream);
  }
}

void Weights::load_convolutions(const Checkpoint& checkpoint, const std::vector<LoweredNode>& nodes, Backend& backend,
                                Stream& stream, LoadTimes& times) {
  for (const LoweredNode& lowered : nodes) {
    const auto* node = std::get_if<ConvolveNode>(&lowered.node.op);
    if (node == nullptr || convolutions_.contains(node->module)) continue;
    const Clock::time_point start = Clock::now();
    const std::string stored = node->direction.empty() ? node->module + ".weight" : node->direction;
    const std::vector<float> weight =
        node->direction.empty() ? to_float(checkpoint.tensor(stored)) : multiplied_out(*node, checkpoint);
    std::vector<float> bias;
    if (node->shape.bias) bias = to_float(checkpoint.tensor(node->module + ".bias"));
    convolutions_.emplace(node->module, backend.pack_convolution(node->shape, weight, bias, stream));
    checkpoint.drop(stored);
    times.pack += seconds_since(start);
  }
  stream.synchronize();
}

OrderedCopyBytes ordered_copy_bytes(const std::vector<LoweredNode>& nodes, const DeviceInfo& device) {
  OrderedCopyBytes out;
  if (device.kind != DeviceKind::cuda) return out;
  for (const LoweredNode& node : nodes) {
    if (node.linear() == nullptr || !node.norm) continue;
    const std::optional<GptqFormat>& gptq = node.site.parts.front().gptq;
    if (!gptq || !gptq->act_order) continue;
    const std::size_t row = static_cast<std::size_t>(node.site.in_features()) * sizeof(float);
    out.copy = std::max(out.copy, static_cast<std::size_t>(kMostCopiedRows) * row);
    out.tables += 2 * row;
  }
  return out;
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

void Weights::put_out_in_order(const std::vector<LoweredNode>& nodes,
                               const std::vector<std::shared_ptr<PackedLinear>>& packed, Device& device,
                               Stream& stream) {
  const std::size_t copy_bytes = ordered_copy_bytes(nodes, device.info()).copy;
  std::size_t copied_until = 0;  // the node that reads the copy last
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    // Weights that several nodes share would have to please all of them.
    if (packed[i] == nullptr || packed[i].use_count() != 1) continue;
    auto* writer = dynamic_cast<OutputOrder*>(packed[i].get());
    if (writer == nullptr) continue;
    const auto alone = [&](std::size_t reader) { return packed[reader].use_count() == 1; };
    if (nodes[i].gated) {
      const std::optional<std::size_t> reader = only_linear_reader(nodes, i, nodes[i].gated->y);
      if (reader && alone(*reader)) writer->put_out_for(*packed[*reader], device, stream);
    } else if (nodes[i].add && copy_bytes > 0 && i > copied_until) {
      const std::optional<std::size_t> reader = next_linear_reader(nodes, i, nodes[i].add->y);
      if (!reader || !alone(*reader)) continue;
      if (ordered_copy_ == nullptr) ordered_copy_ = device.allocate(copy_bytes, "inputs in the order of act-order");
      const float* weight = nodes[*reader].norm ? norm(nodes[*reader].norm->weight) : nullptr;
      if (writer->copy_out_for(*packed[*reader], weight, ordered_copy_->data(), device, stream)) copied_until = *reader;
    }
  }
  stream.synchronize();
}

void Weights::load(const Checkpoint& checkpoint, std::vector<LoweredNode>& nodes, Device& device, Stream& stream,
                   LoadTimes& times) {
  const std::optional<QuantConfig> quant = find_quant_config(checkpoint.folder());
  std::vector<std::shared_ptr<PackedLinear>> packed(nodes.size());
  Progress progress("loading", static_cast<std::int64_t>(nodes.size()));
  // Sites are read ahead on other threads where the packing is not done by this machine's own cores.
  std::deque<std::future<ReadSite>> ahead;
  std::size_t next = 0;
  const bool gpu = device.info().kind == DeviceKind::cuda;
  Laps laps(device, times);
  std::map<std::string, std::size_t> shared;  // the node that packed these modules first
  std::set<std::string> wanted;
  const auto read_ahead = [&] {
    for (; next < nodes.size() && ahead.size() < (gpu ? kSitesAhead : 1); ++next) {
      if (nodes[next].linear() == nullptr || !wanted.insert(modules_of(*nodes[next].linear())).second) continue;
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
    load_plain(checkpoint, node, device, stream);
    laps.end(times.read);
    const LinearNode* linear = node.linear();
    if (linear == nullptr) continue;
    if (const auto same = shared.find(modules_of(*linear)); same != shared.end()) {
      node.site = nodes[same->second].site;
      packed[i] = packed[same->second];
      continue;
    }
    read_ahead();
    const ReadSite ready = ahead.front().get();
    ahead.pop_front();
    read_ahead();
    node.site = ready.site;
    laps.end(times.read);
    packed[i] = node.kernel->pack(node.site, ready.tensors, device, stream);
    shared.emplace(modules_of(*linear), i);
    laps.end(times.pack);
    drop_linear(checkpoint, *linear);
  }
  stream.synchronize();
  put_out_in_order(nodes, packed, device, stream);
  packed_.assign(packed.begin(), packed.end());
  device.trim();
  laps.end(times.pack);
  progress.update(static_cast<std::int64_t>(nodes.size()));
}

}  // namespace nibble
