#include "kernels/autotune.h"

#include "core/cpu_device.h"
#include "core/error.h"
#include "core/file.h"
#include "core/float_convert.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <filesystem>

namespace nibble {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

// Takes as long as it is told, and keeps as many bytes as it says: some MiB, so that few copies are timed together.
class Timed final : public LinearKernel {
 public:
  Timed(std::string name, int microseconds, std::size_t bytes)
      : name_(std::move(name)), microseconds_(microseconds), bytes_(bytes) {}
  std::string_view name() const override { return name_; }
  KernelTraits traits() const override { return {}; }
  Fit fit(const LinearSite&, const DeviceInfo&, std::int64_t rows) const override {
    return rows > 1000 ? Fit::no("it takes no more than 1000 rows") : Fit::yes(false, false);
  }
  std::size_t packed_bytes(const LinearSite&) const override { return bytes_; }
  std::unique_ptr<PackedLinear> pack(const LinearSite&, std::span<const LinearTensors>, Device&,
                                     Stream&) const override {
    ++packs;
    return std::make_unique<Packed>(bytes_);
  }
  std::size_t workspace(const LinearSite&, std::int64_t) const override { return 64; }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }
  void enqueue(const PackedLinear&, const LinearArgs&, Stream& stream) const override {
    cpu_stream(stream).serial([time = std::chrono::microseconds(microseconds_)] {
      const auto end = std::chrono::steady_clock::now() + time;
      while (std::chrono::steady_clock::now() < end) {
      }
    });
  }
  mutable int packs = 0;

 private:
  struct Packed final : PackedLinear {
    explicit Packed(std::size_t bytes) : size(bytes) {}
    std::size_t bytes() const override { return size; }
    std::size_t size;
  };
  std::string name_;
  int microseconds_;
  std::size_t bytes_;
};

LinearSite small_site() {
  LinearSite site;
  site.parts = {{"small", 64, 64, false, GptqFormat{4, 32, false, true}}};
  return site;
}

constexpr std::array<std::int64_t, 2> kRows = {1, 40};

TEST(Autotune, TakesTheFastest) {
  const Timed slow("slow", 800, kMiB * 8);
  const Timed fast("fast", 50, kMiB * 9);
  const std::array<const LinearKernel*, 2> both = {&slow, &fast};
  Autotuner tuner(cpu_device(), {});
  EXPECT_EQ(tuner.choose(small_site(), kRows, both).name(), "fast");
}

TEST(Autotune, ATieGoesToTheSmaller) {
  const Timed large("large", 400, kMiB * 9);
  const Timed little("little", 401, kMiB * 8);
  for (const std::array<const LinearKernel*, 2>& both :
       {std::array<const LinearKernel*, 2>{&large, &little}, {&little, &large}}) {
    Autotuner tuner(cpu_device(), {});
    EXPECT_EQ(tuner.choose(small_site(), kRows, both).name(), "little");
  }
}

TEST(Autotune, ReasonsWhereNoneFits) {
  const Timed kernel("timed", 1, 1);
  const std::array<const LinearKernel*, 1> one = {&kernel};
  Autotuner tuner(cpu_device(), {});
  const std::array<std::int64_t, 1> rows = {2000};
  try {
    tuner.choose(small_site(), rows, one);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no more than 1000 rows"), std::string::npos) << error.what();
  }
}

TEST(Autotune, RemembersInAFile) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "autotune_test";
  std::filesystem::remove_all(folder);
  const std::filesystem::path file = folder / "cache" / "autotune.json";
  const Timed slow("slow", 800, kMiB * 8);
  const Timed fast("fast", 50, kMiB * 9);
  const std::array<const LinearKernel*, 2> both = {&slow, &fast};
  EXPECT_EQ(Autotuner(cpu_device(), file).choose(small_site(), kRows, both).name(), "fast");
  EXPECT_GT(fast.packs, 0);
  fast.packs = 0;
  Autotuner again(cpu_device(), file);
  EXPECT_EQ(again.choose(small_site(), kRows, both).name(), "fast");
  EXPECT_EQ(fast.packs, 0) << "it measured although it knew";
  // Another site is another question.
  LinearSite other = small_site();
  other.compute = DType::bf16;
  EXPECT_EQ(again.choose(other, kRows, both).name(), "fast");
  EXPECT_GT(fast.packs, 0);
  // A damaged file, or one of another machine, is as none.
  for (const char* text : {"{", "[1, 2]", R"({"machine": "another", "kernels": {}})", R"({"machine": 3})"}) {
    write_text_file(file, text);
    fast.packs = 0;
    EXPECT_EQ(Autotuner(cpu_device(), file).choose(small_site(), kRows, both).name(), "fast");
    EXPECT_GT(fast.packs, 0) << text;
  }
  std::filesystem::remove_all(folder);
}

// What a kernel is given has the types of the site, as a GPU's activations between sites are not f32.
class Typed final : public LinearKernel {
 public:
  Typed(std::string name, bool fuses) : name_(std::move(name)), fuses_(fuses) {}
  std::string_view name() const override { return name_; }
  KernelTraits traits() const override { return {}; }
  Fit fit(const LinearSite&, const DeviceInfo&, std::int64_t) const override { return Fit::yes(fuses_, fuses_); }
  std::size_t packed_bytes(const LinearSite&) const override { return kMiB * 8; }
  std::unique_ptr<PackedLinear> pack(const LinearSite&, std::span<const LinearTensors> tensors, Device&,
                                     Stream&) const override {
    EXPECT_FALSE(tensors.front().gptq->qweight.empty());
    return std::make_unique<Packed>();
  }
  std::size_t workspace(const LinearSite&, std::int64_t) const override { return 64; }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }
  void enqueue(const PackedLinear&, const LinearArgs& args, Stream&) const override {
    EXPECT_EQ(args.x.dtype, DType::f16);
    EXPECT_EQ(args.y.front().dtype, DType::bf16);
    EXPECT_EQ(args.residual.dtype, DType::bf16);
    const auto* x = static_cast<const std::uint16_t*>(args.x.data);
    EXPECT_EQ(half_to_float(x[0]), half_to_float(float_to_half(Random(1).normal())));
    ++calls;
  }
  mutable int calls = 0;

 private:
  struct Packed final : PackedLinear {
    std::size_t bytes() const override { return kMiB * 8; }
  };
  std::string name_;
  bool fuses_;
};

TEST(Autotune, GivesKernelsTheTypesOfTheSite) {
  LinearSite site = small_site();
  site.x_dtype = DType::f16;
  site.y_dtype = DType::bf16;
  const Typed one("one", true);
  const Typed two("two", false);
  const std::array<const LinearKernel*, 2> both = {&one, &two};
  Autotuner(cpu_device(), {}).choose(site, kRows, both);
  EXPECT_GT(one.calls, 0);
  EXPECT_GT(two.calls, 0);
}

TEST(KernelWays, AreToldByTheirRows) {
  EXPECT_EQ(text_of({}), "");
  const std::array<KernelWay, 1> always = {{{"dequantised", 0}}};
  EXPECT_EQ(text_of(always), "dequantised");
  const std::array<KernelWay, 3> three = {{{"small_rows", 16}, {"small_rows in passes of 16", 64}, {"dequantised", 0}}};
  EXPECT_EQ(text_of(three), "small_rows M<=16, small_rows in passes of 16 M<=64, dequantised above");
}

TEST(Autotune, ChoosesAmongTheRegistered) {
  Autotuner tuner(cpu_device(), {});
  const LinearKernel& chosen = tuner.choose(small_site(), kRows);
  EXPECT_TRUE(chosen.traits().in_all && chosen.traits().exact_activations) << chosen.name();
  LinearSite dense = small_site();
  dense.parts.front().gptq.reset();
  EXPECT_EQ(tuner.choose(dense, kRows).name(), "dense");
}

}  // namespace
}  // namespace nibble
