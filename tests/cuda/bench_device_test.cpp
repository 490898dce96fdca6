// What the benchmark measures of a GPU itself.
#include "bench/ceilings.h"
#include "bench/encoder_bench.h"
#include "bench/gpu_watch.h"
#include "cuda/gpu.h"
#include "support/golden_encoder.h"

namespace nibble {
namespace {

TEST(BenchGpu, NvmlSeesWhatIsAllocated) {
  NIBBLE_NEEDS_GPU();
  Device& device = test::gpu().device();
  EXPECT_EQ(cuda_device_bus(0), device.info().bus);
  std::string why;
  const std::optional<NvmlDevice> nvml = NvmlDevice::find(device.info().bus, &why);
  if (!nvml) GTEST_SKIP() << why;
  EXPECT_EQ(nvml->describe().name, device.info().name);
  const GpuMemory before = gpu_memory_now(*nvml, 0);
  ASSERT_NE(before.source, "");
  EXPECT_GT(before.bytes, std::size_t{100} << 20) << "a context is larger";
  constexpr std::size_t kBytes = std::size_t{1} << 30;
  GpuMemoryWatch watch(*nvml, 0);
  const std::unique_ptr<Buffer> buffer = device.allocate(kBytes, "a test");
  watch.stop();
  EXPECT_EQ(watch.peak().source, before.source);
  // Of the whole device others may free some.
  EXPECT_GT(watch.peak().bytes, before.bytes + kBytes / 2);
}

TEST(BenchGpu, ItsCeilingsArePlausible) {
  NIBBLE_NEEDS_GPU();
  const DeviceCeilings ceilings = measure_ceilings(test::gpu().device());
  // Any GPU that nibble runs on moves more than 100 GB/s; none moves 100 TB/s.
  EXPECT_GT(ceilings.memory.copy_bytes_per_second, 1e11);
  EXPECT_LT(ceilings.memory.copy_bytes_per_second, 1e14);
  EXPECT_GT(ceilings.memory.read_bytes_per_second, 1e11);
  EXPECT_LT(ceilings.memory.read_bytes_per_second, 1e14);
  EXPECT_GT(ceilings.gemm.f16, ceilings.gemm.f32);
  EXPECT_GT(ceilings.gemm.bf16, ceilings.gemm.f32);
  EXPECT_GT(ceilings.gemm.f32, 1e12);
}

TEST(BenchGpu, ARunOfProductsDrawsPower) {
  NIBBLE_NEEDS_GPU();
  Device& device = test::gpu().device();
  const std::optional<NvmlDevice> nvml = NvmlDevice::find(device.info().bus);
  if (!nvml) GTEST_SKIP() << "there is no NVML";
  GpuRunWatch watch(*nvml);
  measure_gemm_rates(device);
  const GpuRun run = watch.finish();
  EXPECT_GT(run.samples, 2);
  EXPECT_GT(run.sm_clock_max, 0);
  EXPECT_LE(run.sm_clock_min, run.sm_clock_max);
  EXPECT_GT(run.power, 0);
  EXPECT_GT(run.joules, 0);
}

// A GPU's passes of images begin with the copy of their pixels, whose time stands beside them.
TEST(BenchGpu, StatesTheCopyOfPixels) {
  NIBBLE_NEEDS_GPU();
  EncoderBenchOptions options;
  options.device = "cuda:0";
  options.num_batches = 3;
  EncoderBench bench(std::make_shared<const Checkpoint>(test::golden_encoders() / "vit"), options);
  const EncoderCellResult result = bench.run(image_cell(bench.fast(), 3), [](double) {});
  EXPECT_EQ(result.error, "");
  ASSERT_TRUE(result.copy.has_value());
  EXPECT_GT(*result.copy, 0);
  EXPECT_LT(*result.copy, 0.1);
}

}  // namespace
}  // namespace nibble
