// Verification must catch what it is there to catch: kernels that are wrong in one way each.
#include "kernels/verify.h"

#include "core/cpu_device.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"

#include <gtest/gtest.h>

#include <functional>

namespace nibble {
namespace {

using Fault = std::function<void(const LinearArgs& args, CpuStream& stream)>;

// The reference with a fault after it.
class Faulty final : public LinearKernel {
 public:
  explicit Faulty(Fault fault, std::size_t workspace = 0) : fault_(std::move(fault)), workspace_(workspace) {}
  std::string_view name() const override { return "faulty"; }
  KernelTraits traits() const override { return inner_.traits(); }
  Fit fit(const LinearSite& site, const DeviceInfo& device, std::int64_t rows) const override {
    return inner_.fit(site, device, rows);
  }
  std::size_t packed_bytes(const LinearSite& site) const override { return inner_.packed_bytes(site); }
  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream& stream) const override {
    return inner_.pack(site, tensors, device, stream);
  }
  std::size_t workspace(const LinearSite&, std::int64_t) const override { return workspace_; }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return inner_.cost(site, rows); }
  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    inner_.enqueue(packed, args, stream);
    fault_(args, cpu_stream(stream));
  }

 private:
  const LinearKernel& inner_ = kernel_named("reference", DeviceKind::cpu);
  Fault fault_;
  std::size_t workspace_;
};

VerifyResult outcome(const Fault& fault, std::size_t workspace = 0) {
  const RandomSite random({.in_features = 64, .out_features = {40}, .seed = 4});
  return verify(Faulty(fault, workspace), random.site(), random.tensors(),
                {.rows = 3, .outputs = 0, .compared_rows = 0}, cpu_device());
}

TEST(Verify, PassesTheReference) {
  const VerifyResult result = outcome([](const LinearArgs&, CpuStream&) {});
  EXPECT_TRUE(result.ok) << result.sentence;
  EXPECT_LT(result.error, result.bound);
}

TEST(Verify, CatchesASmallError) {
  const VerifyResult result = outcome(
      [](const LinearArgs& args, CpuStream& stream) { stream.serial([y = args.y[0]] { y.f32_row(1)[39] *= 1.01f; }); });
  EXPECT_FALSE(result.ok);
  EXPECT_NE(result.sentence.find("row 1, part 0, output 39"), std::string::npos) << result.sentence;
}

TEST(Verify, CatchesAnUnwrittenOutput) {
  const VerifyResult result = outcome([](const LinearArgs& args, CpuStream& stream) {
    stream.serial([y = args.y[0]] { y.f32_row(2)[0] = __builtin_nanf(""); });
  });
  EXPECT_FALSE(result.ok);
  EXPECT_NE(result.sentence.find("output 0 of row 2"), std::string::npos) << result.sentence;
}

TEST(Verify, CatchesAWriteBetweenRows) {
  const VerifyResult result = outcome(
      [](const LinearArgs& args, CpuStream& stream) { stream.serial([y = args.y[0]] { y.f32_row(0)[40] = 0; }); });
  EXPECT_FALSE(result.ok);
  EXPECT_NE(result.sentence.find("beside its rows"), std::string::npos) << result.sentence;
}

TEST(Verify, CatchesAWritePastTheWorkspace) {
  const VerifyResult result =
      outcome([](const LinearArgs& args,
                 CpuStream& stream) { stream.serial([at = args.workspace] { at[128] = std::byte{0}; }); },
              128);
  EXPECT_FALSE(result.ok);
  EXPECT_NE(result.sentence.find("past its workspace"), std::string::npos) << result.sentence;
}

TEST(Verify, CatchesOtherBitsOnReplay) {
  int calls = 0;
  const VerifyResult result = outcome([&calls](const LinearArgs& args, CpuStream& stream) {
    stream.serial([y = args.y[0], &calls] {
      float& value = y.f32_row(0)[7];
      if (++calls == 2) value = __builtin_nextafterf(value, 1e9f);
    });
  });
  EXPECT_FALSE(result.ok);
  EXPECT_NE(result.sentence.find("other bits"), std::string::npos) << result.sentence;
}

}  // namespace
}  // namespace nibble
