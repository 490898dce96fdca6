// `--kernel auto` on a GPU: what it measures there, and what kernels say of the ways in which they work.
#include "kernels/autotune.h"

#include "cuda/gpu.h"
#include "kernels/registry.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <filesystem>

namespace nibble {
namespace {

// A site of a model of 7 billion weights as lowering has it on a GPU: the norm in front reads the f32 stream.
LinearSite gate_up() {
  LinearSite site;
  const GptqFormat format{4, 128, false, true};
  site.parts = {{"gate_proj", 4096, 11008, false, format}, {"up_proj", 4096, 11008, false, format}};
  site.prologue = {PrologueKind::rms_norm, 1e-5f};
  site.epilogue = {EpilogueKind::gated, ActivationKind::silu};
  site.compute = DType::f16;
  site.x_dtype = DType::f32;
  site.y_dtype = DType::f16;
  return site;
}

TEST(CudaAutotune, MeasuresOnceAndStreamsFewRows) {
  NIBBLE_NEEDS_GPU();
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "cuda_autotune_test";
  std::filesystem::remove_all(folder);
  Device& device = test::gpu().device();
  EXPECT_EQ(std::filesystem::path(device.info().library).filename(), "libnibble_cuda.so");
  // Writing weights out takes three times as long with one row: nothing that a card or its load could turn round.
  const std::array<std::int64_t, 2> rows = {1, 4096};
  EXPECT_EQ(Autotuner(device, folder / "autotune.json").choose(gate_up(), rows).name(), "nibble");
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(Autotuner(device, folder / "autotune.json").choose(gate_up(), rows).name(), "nibble");
  const auto again = std::chrono::steady_clock::now() - start;
  EXPECT_LT(again, std::chrono::milliseconds(50)) << "it measured although it knew";
  std::filesystem::remove_all(folder);
}

TEST(CudaKernelWays, FollowTheSite) {
  NIBBLE_NEEDS_GPU();
  test::gpu();
  const auto ways = [](const char* kernel, const LinearSite& site) {
    return text_of(kernel_named(kernel, DeviceKind::cuda).ways(site));
  };
  LinearSite site = gate_up();
  EXPECT_EQ(ways("nibble", site), "small_rows M<=16, small_rows in passes of 16 M<=64, dequantised above");
  EXPECT_EQ(ways("dequant", site), "dequantised");
  EXPECT_EQ(ways("dense", site), "");
  site.compute = DType::f32;
  EXPECT_EQ(ways("nibble", site), "dequantised") << "tensor cores do not take f32";
  EXPECT_EQ(ways("exllama", site), "blocks of codes M<=7, dequantised above");
  EXPECT_EQ(ways("exllamav2", site), "blocks of codes M<=50, dequantised above");
  EXPECT_EQ(ways("cuda-old", site), "blocks of codes M<=127, dequantised above");
  site.parts.resize(1);
  site.parts.front().out_features = 96;
  EXPECT_EQ(ways("cuda-old", site), "dequantised") << "96 is no multiple of 64";
}

}  // namespace
}  // namespace nibble
