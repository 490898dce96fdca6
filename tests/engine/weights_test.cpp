// Loading: where its time goes.
#include "engine/weights.h"

#include "core/cpu_device.h"
#include "engine/configuration.h"
#include "engine/engine.h"
#include "support/golden.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace nibble {
namespace {

/// The CPU with uploads that take their time.
class SlowUploads final : public Device {
 public:
  static constexpr double kSeconds = 0.01;

  const DeviceInfo& info() const override { return cpu_device().info(); }
  std::unique_ptr<Buffer> allocate(std::size_t bytes, const std::string& purpose) override {
    return cpu_device().allocate(bytes, purpose);
  }
  std::unique_ptr<Stream> make_stream() override { return cpu_device().make_stream(); }
  void upload(void* to, const void* from, std::size_t bytes, Stream& stream) override {
    std::this_thread::sleep_for(std::chrono::duration<double>(kSeconds));
    Device::upload(to, from, bytes, stream);
    ++uploads;
  }
  double upload_seconds() const override { return kSeconds * uploads; }

  int uploads = 0;
};

// The norms' weights are uploaded, the sites packed by kernels of the CPU.
TEST(LoadTimes, UploadsAreAPartOfTheirOwn) {
  const test::Golden golden = test::read_golden("gptq_b4_column");
  const Checkpoint checkpoint(golden.folder);
  EngineOptions options;
  options.kernel = "dequant";
  options.compute = options.kv_dtype = DType::f32;
  const std::unique_ptr<Backend> backend = make_cpu_backend();
  std::vector<LoweredNode> nodes = configure_engine(checkpoint, options, *backend).nodes;
  SlowUploads device;
  const std::unique_ptr<Stream> stream = device.make_stream();
  LoadTimes times;
  Weights weights;
  const auto start = std::chrono::steady_clock::now();
  weights.load(checkpoint, nodes, device, *stream, times);
  const double all = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ASSERT_GT(device.uploads, 2);
  EXPECT_DOUBLE_EQ(times.upload, device.uploads * SlowUploads::kSeconds);
  EXPECT_GT(times.pack, 0);
  // Sleeping takes a little longer than it should, and that is all that is left in reading.
  EXPECT_GE(times.read, 0);
  EXPECT_LT(times.read, all - times.upload);
  EXPECT_NEAR(times.read + times.pack + times.upload, all, 0.2 * all);
}

TEST(LoadTimes, OnTheCpuNothingIsUploaded) {
  const test::Golden golden = test::read_golden("gptq_b4_column");
  EngineOptions options;
  options.device = "cpu";
  options.kernel = "dequant";
  const Engine engine(std::make_shared<const Checkpoint>(golden.folder), options);
  const LoadTimes& times = engine.load_times();
  EXPECT_EQ(times.upload, 0);
  EXPECT_EQ(times.tune, 0);
  EXPECT_GT(times.read, 0);
  EXPECT_GT(times.pack, 0);
  EXPECT_LE(times.open + times.read + times.pack, times.total);
}

// On a GPU alone, and for normed act-order sites alone: one copy as wide as the widest, and two tables for each.
TEST(OrderedCopy, IsPlannedForNormedActOrderSites) {
  const auto site = [](std::int64_t inputs, bool act_order, bool normed) {
    LoweredNode node;
    LinearDesc part;
    part.name = "model.layers.0.mlp.up_proj";
    part.in_features = inputs;
    part.out_features = 64;
    part.gptq = GptqFormat{};
    part.gptq->act_order = act_order;
    node.site.parts = {part};
    LinearNode linear;
    linear.parts = {part};
    node.node.op = linear;
    if (normed) node.norm = NormNode{};
    return node;
  };
  const std::vector<LoweredNode> nodes = {site(256, true, true), site(128, true, true), site(512, false, true),
                                          site(1024, true, false)};
  DeviceInfo device;
  device.kind = DeviceKind::cuda;
  const OrderedCopyBytes bytes = ordered_copy_bytes(nodes, device);
  EXPECT_EQ(bytes.copy, 64u * 256 * 4);
  EXPECT_EQ(bytes.tables, 2u * (256 + 128) * 4);
  EXPECT_EQ(ordered_copy_bytes({site(512, false, true)}, device).copy, 0u);
  device.kind = DeviceKind::cpu;
  EXPECT_EQ(ordered_copy_bytes(nodes, device).copy, 0u);
  EXPECT_EQ(ordered_copy_bytes(nodes, device).tables, 0u);
}

}  // namespace
}  // namespace nibble
