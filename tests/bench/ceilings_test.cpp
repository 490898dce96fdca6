#include "bench/ceilings.h"

#include "core/cpu_device.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Ceilings, TheSlowerOfMovingAndComputingBinds) {
  // 3 GB at 1 TB/s take 3 ms, 1 TFLOP at 1000 TFLOP/s takes 1 ms.
  const Floor memory = floor_of({3e9, 1e12}, 1e12, 1e15);
  EXPECT_DOUBLE_EQ(memory.seconds, 3e-3);
  EXPECT_EQ(memory.bound, "memory");
  const Floor compute = floor_of({3e9, 8e12}, 1e12, 1e15);
  EXPECT_DOUBLE_EQ(compute.seconds, 8e-3);
  EXPECT_EQ(compute.bound, "compute");
  EXPECT_EQ(floor_of({3e9, 1e12}, 0, 1e15).seconds, 0);
  EXPECT_EQ(floor_of({3e9, 1e12}, 1e12, 0).bound, "");
}

TEST(Ceilings, RatesGoByTheTypesName) {
  const GemmRates rates{.f32 = 1, .bf16 = 2, .f16 = 3};
  EXPECT_EQ(rates.of("f32"), 1);
  EXPECT_EQ(rates.of("bf16"), 2);
  EXPECT_EQ(rates.of("f16"), 3);
  EXPECT_EQ(rates.of("i8"), 0);
}

TEST(Ceilings, TheCpusMemoryIsMeasuredElsewhere) {
  EXPECT_FALSE(cpu_device().measure_memory_rate(std::size_t{1} << 20).has_value());
}

}  // namespace
}  // namespace nibble
