// What the benchmark makes of a GPU's figures, from a management library that is a fake (support/fake_nvml.cpp).
#include "bench/gpu_watch.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

namespace nibble {
namespace {

constexpr const char* kBus = "0000:1b:00.0";

std::uint64_t bits(std::initializer_list<ThrottleReason> reasons) {
  std::uint64_t out = 0;
  for (const ThrottleReason one : reasons) out |= static_cast<std::uint64_t>(one);
  return out;
}

class FakeNvml : public testing::Test {
 protected:
  FakeNvml() { set("NIBBLE_NVML_LIBRARY", NIBBLE_FAKE_NVML); }
  ~FakeNvml() override {
    for (const std::string& name : names_) unsetenv(name.c_str());
  }
  void set(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    names_.push_back(name);
  }
  static NvmlDevice device() { return NvmlDevice::find(kBus).value(); }

 private:
  std::vector<std::string> names_;
};

TEST_F(FakeNvml, DescribesTheGpuAtABus) {
  const GpuDescription gpu = device().describe();
  EXPECT_EQ(gpu.name, "Fake GPU");
  EXPECT_EQ(gpu.bus, kBus);
  EXPECT_EQ(gpu.driver, "580.95.05");
  EXPECT_EQ(gpu.cuda, "12.8");
  EXPECT_EQ(gpu.sm_clock_max, 1980);
  EXPECT_EQ(gpu.memory_clock_max, 2619);
  EXPECT_DOUBLE_EQ(gpu.power_limit, 700);
  EXPECT_EQ(gpu.memory, std::size_t{80'000'000'000});
}

TEST_F(FakeNvml, WhatCannotBeFoundIsSaid) {
  std::string why;
  EXPECT_FALSE(NvmlDevice::find("0000:2c:00.0", &why));
  EXPECT_EQ(why, "NVML does not know the GPU at 0000:2c:00.0: Not Found");
  set("FAKE_NVML_BROKEN", "1");
  EXPECT_FALSE(NvmlDevice::find(kBus, &why));
  EXPECT_EQ(why, "NVML cannot start: Some Error");
  set("NIBBLE_NVML_LIBRARY", "/no/such/library.so");
  EXPECT_FALSE(NvmlDevice::find(kBus, &why));
  EXPECT_EQ(why.rfind("NVML cannot be loaded: ", 0), 0u) << why;
}

TEST_F(FakeNvml, MemoryIsTheProcesssWhereItIsListed) {
  set("FAKE_NVML_USED", "3000000000");
  GpuMemory now = gpu_memory_now(device(), 1'000'000'000);
  EXPECT_EQ(now.source, "device");
  EXPECT_EQ(now.bytes, std::size_t{2'000'000'000});
  EXPECT_EQ(gpu_memory_now(device(), 4'000'000'000).bytes, 0u);
  set("FAKE_NVML_OWN", "1500000000");
  now = gpu_memory_now(device(), 1'000'000'000);
  EXPECT_EQ(now.source, "process");
  EXPECT_EQ(now.bytes, std::size_t{1'500'000'000});
}

TEST_F(FakeNvml, TheWatchKeepsThePeakOfTheBetterSource) {
  set("FAKE_NVML_USED", "9000000000");
  set("FAKE_NVML_OWN", "700000000");
  set("FAKE_NVML_OWN_AFTER", "1");
  GpuMemoryWatch watch(device(), 0);
  // At least two samples: one when it begins, one when it ends.
  watch.stop();
  EXPECT_EQ(watch.peak().source, "process");
  EXPECT_EQ(watch.peak().bytes, std::size_t{700'000'000});
  watch.stop();
}

TEST_F(FakeNvml, ARunIsWatched) {
  set("FAKE_NVML_CLOCK_2", "1755");
  set("FAKE_NVML_REASONS", "4");
  GpuRunWatch watch(device());
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  const GpuRun run = watch.finish();
  EXPECT_GE(run.samples, 2);
  EXPECT_EQ(run.sm_clock_min, 1755);
  EXPECT_EQ(run.sm_clock_max, 1980);
  EXPECT_DOUBLE_EQ(run.power, 350);
  EXPECT_EQ(run.temperature, 55);
  EXPECT_EQ(run.throttle, bits({ThrottleReason::power_cap}));
  EXPECT_GE(run.seconds, 0.05);
  EXPECT_EQ(run.energy_source, "counter");
  EXPECT_DOUBLE_EQ(run.joules, 12);
}

TEST_F(FakeNvml, WithoutACounterEnergyIsPowerTimesTime) {
  set("FAKE_NVML_NO_COUNTER", "1");
  GpuRunWatch watch(device());
  const GpuRun run = watch.finish();
  EXPECT_EQ(run.energy_source, "power");
  EXPECT_DOUBLE_EQ(run.joules, 350 * run.seconds);
}

TEST(GpuRemarks, SteadyClocksNeedNone) {
  GpuRun run;
  EXPECT_EQ(remarks_on(run), "");
  run.sm_clock_min = 1965;
  run.sm_clock_max = 1980;
  run.throttle = bits({ThrottleReason::idle, ThrottleReason::application_clocks});
  EXPECT_EQ(remarks_on(run), "");
}

TEST(GpuRemarks, SayWhatMovedAndWhy) {
  GpuRun run;
  run.sm_clock_min = 1900;
  run.sm_clock_max = 1980;
  run.throttle = bits({ThrottleReason::idle, ThrottleReason::power_cap, ThrottleReason::software_thermal});
  run.ecc_errors = 2;
  EXPECT_EQ(remarks_on(run),
            "clocks moved: 1900 to 1980 MHz; held back by: power cap, thermal slowdown (software); 2 memory errors");
  EXPECT_EQ(throttle_text(bits({ThrottleReason::hardware_slowdown, ThrottleReason::power_brake})),
            "hardware slowdown, power brake");
}

}  // namespace
}  // namespace nibble
