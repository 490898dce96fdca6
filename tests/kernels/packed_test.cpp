// `packed` and `packed-int8` against float64, with a bound that follows from how activations are rounded, and every
// instruction set against the scalar reference, bit for bit.
#include "kernels/packed_site.h"

#include "core/cpu.h"
#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>

namespace nibble {
namespace {

using test::PackedCase;
using test::PackedSiteForTest;

class IsaGuard {
 public:
  ~IsaGuard() { set_isa(before_); }

 private:
  Isa before_ = active_isa();
};

const LinearKernel& kernel_of(int planes) {
  return kernel_named(planes == 2 ? "packed" : "packed-int8", DeviceKind::cpu);
}

double limit_of(int planes) { return planes == 2 ? 32639.0 : 127.0; }

std::unique_ptr<PackedLinear> pack(const LinearKernel& kernel, PackedSiteForTest& site) {
  const auto stream = cpu_device().make_stream();
  return kernel.pack(site.site(), site.tensors(), cpu_device(), *stream);
}

void expect_same_bits(const std::vector<float>& got, const std::vector<float>& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(want[i]))
        << what << ": output " << i << " is " << got[i] << " instead of " << want[i];
  }
}

std::string describe(const PackedCase& c, std::int64_t rows, int planes) {
  return fmt::format("K {} bits {} group {}{}{}{}{} rows {} planes {}", c.inputs, c.bits, c.group,
                     c.act_order ? " act-order" : "", c.symmetric ? "" : " asymmetric", c.bias ? " bias" : "",
                     c.norm ? " norm" : "", rows, planes);
}

// Store epilogue: every output against its own bound.
void expect_near_double(PackedSiteForTest& site, const PackedCase& c, const std::vector<float>& x, std::int64_t rows,
                        const std::vector<float>& got, int planes) {
  std::size_t offset = 0;
  for (std::size_t part = 0; part < c.outputs.size(); ++part) {
    std::vector<double> want;
    std::vector<double> bound;
    site.reference(part, x, rows, limit_of(planes), want, bound);
    for (std::size_t i = 0; i < want.size(); ++i) {
      ASSERT_LE(std::abs(static_cast<double>(got[offset + i]) - want[i]), bound[i])
          << describe(c, rows, planes) << ", part " << part << ", output " << i << ": " << got[offset + i]
          << " instead of " << want[i];
    }
    offset += want.size();
  }
}

std::vector<PackedCase> shapes() {
  std::vector<PackedCase> cases;
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool symmetric : {true, false}) {
      cases.push_back({.inputs = 256, .outputs = {48}, .bits = bits, .group = 128, .symmetric = symmetric});
      cases.push_back(
          {.inputs = 192, .outputs = {35}, .bits = bits, .group = 64, .symmetric = symmetric, .bias = true});
      cases.push_back(
          {.inputs = 96, .outputs = {16}, .bits = bits, .group = 32, .act_order = true, .symmetric = symmetric});
    }
    cases.push_back({.inputs = 200, .outputs = {20, 7, 33}, .bits = bits, .group = 64});
    cases.push_back({.inputs = 333, .outputs = {17}, .bits = bits, .group = -1, .symmetric = false});
    cases.push_back({.inputs = 150, .outputs = {16}, .bits = bits, .group = 20});
    cases.push_back({.inputs = 1, .outputs = {1}, .bits = bits, .group = -1});
    cases.push_back({.inputs = 300,
                     .outputs = {24, 24},
                     .bits = bits,
                     .group = 100,
                     .act_order = true,
                     .symmetric = false,
                     .bias = true});
    // Panels enough that each thread packs several groups of them, the last one not full.
    cases.push_back({.inputs = 96, .outputs = {310}, .bits = bits, .group = 32, .act_order = true});
    cases.push_back({.inputs = 128, .outputs = {16}, .bits = bits, .group = 32, .wide_scales = true});
    cases.push_back({.inputs = 160, .outputs = {40}, .bits = bits, .group = 32, .norm = true});
  }
  return cases;
}

TEST(Packed, AgreesWithFloat64OnEveryInstructionSet) {
  const IsaGuard guard;
  for (const PackedCase& c : shapes()) {
    PackedSiteForTest site(c);
    for (const int planes : {2, 1}) {
      const LinearKernel& kernel = kernel_of(planes);
      ASSERT_TRUE(kernel.fit(site.site(), cpu_device().info(), 64).ok);
      const auto packed = pack(kernel, site);
      for (const std::int64_t rows : {1, 7, 21}) {
        const std::vector<float> x = site.inputs(rows);
        set_isa(Isa::scalar);
        const std::vector<float> want = site.run(kernel, *packed, x, rows);
        expect_near_double(site, c, x, rows, want, planes);
        for (const Isa isa : supported_isas()) {
          set_isa(isa);
          expect_same_bits(site.run(kernel, *packed, x, rows), want,
                           describe(c, rows, planes) + " on " + std::string(name_of(isa)));
        }
      }
    }
  }
}

// With compute bf16 the operands may be rounded to 8 significant bits: up to 2^-8 each, and a little for sums.
std::vector<double> bf16_bound(const PackedSiteForTest& site, std::size_t part, const std::vector<float>& x,
                               std::int64_t rows, const std::vector<double>& bound) {
  std::vector<double> out = bound;
  const std::vector<double> sizes = site.absolute_sums(part, x, rows);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] += sizes[i] * (0x1p-7 + 0x1p-14);
  return out;
}

TEST(Packed, RoundsOperandsToBf16AtMostWhenItMay) {
  const IsaGuard guard;
  std::vector<PackedCase> cases = shapes();
  cases.push_back({.inputs = 1700, .outputs = {48}, .bits = 4, .group = 128});
  cases.push_back({.inputs = 776, .outputs = {96}, .bits = 3, .group = -1});
  for (PackedCase& c : cases) {
    c.compute = DType::bf16;
    PackedSiteForTest site(c);
    const auto packed = pack(kernel_of(2), site);
    for (const std::int64_t rows : {5, 29, 48, 84}) {
      const std::vector<float> x = site.inputs(rows);
      for (const Isa isa : supported_isas()) {
        // Those below have no bf16: what they compute with many rows is tested elsewhere.
        if (isa < Isa::avx512bf16 && rows > 5) continue;
        set_isa(isa);
        const std::vector<float> got = site.run(kernel_of(2), *packed, x, rows);
        std::size_t offset = 0;
        for (std::size_t part = 0; part < c.outputs.size(); ++part) {
          std::vector<double> want;
          std::vector<double> bound;
          site.reference(part, x, rows, limit_of(2), want, bound);
          bound = bf16_bound(site, part, x, rows, bound);
          for (std::size_t i = 0; i < want.size(); ++i) {
            ASSERT_LE(std::abs(static_cast<double>(got[offset + i]) - want[i]), bound[i])
                << describe(c, rows, 2) << " on " << name_of(isa) << ", part " << part << ", output " << i << ": "
                << got[offset + i] << " instead of " << want[i];
          }
          offset += want.size();
        }
      }
    }
  }
}

TEST(Packed, ManyRowsInBf16DoNotDependOnEachOtherOrOnThreads) {
  const PackedCase c{
      .inputs = 448, .outputs = {96}, .bits = 4, .group = 64, .symmetric = false, .compute = DType::bf16};
  PackedSiteForTest site(c);
  const auto packed = pack(kernel_of(2), site);
  const std::int64_t most = 1100;  // more than one thread's sums twice
  const std::vector<float> x = site.inputs(most);
  const std::vector<float> all = site.run(kernel_of(2), *packed, x, most);
  for (const std::int64_t rows : {48, 65, 513}) {
    const std::vector<float> first(x.begin(), x.begin() + rows * c.inputs);
    expect_same_bits(site.run(kernel_of(2), *packed, first, rows), {all.begin(), all.begin() + rows * 96},
                     describe(c, rows, 2));
  }
  ThreadPool& pool = ThreadPool::instance();
  const int before = pool.threads();
  for (const int threads : {1, 3, 7}) {
    pool.set_threads(threads);
    expect_same_bits(site.run(kernel_of(2), *packed, x, most), all, fmt::format("{} threads", threads));
  }
  pool.set_threads(before);
}

// What vpmaddubsw's sums of 16 bits must hold: the largest codes, and activations whose low bytes are all -128.
TEST(Packed, ExtremeCodesAndActivationsDoNotSaturate) {
  const IsaGuard guard;
  for (const int bits : {2, 3, 4, 8}) {
    const PackedCase c{.inputs = 256, .outputs = {32}, .bits = bits, .group = 128, .symmetric = false};
    PackedSiteForTest site(c);
    GptqTensors& gptq = site.gptq()[0];
    gptq.qweight_copy = std::make_shared<const std::vector<std::uint32_t>>(gptq.qweight.size(), 0xffffffffu);
    gptq.qweight = *gptq.qweight_copy;
    for (const int planes : {2, 1}) {
      const auto packed = pack(kernel_of(planes), site);
      for (const std::int64_t rows : {1, 4, 9}) {
        // 32384 = 127 * 256 - 128 steps beside one value of 32639.
        std::vector<float> x(static_cast<std::size_t>(rows * c.inputs), planes == 2 ? 32384.0f / 32639.0f : -1.0f);
        for (std::size_t i = 0; i < x.size(); i += 64) x[i] = 1.0f;
        set_isa(Isa::scalar);
        const std::vector<float> want = site.run(kernel_of(planes), *packed, x, rows);
        expect_near_double(site, c, x, rows, want, planes);
        for (const Isa isa : supported_isas()) {
          set_isa(isa);
          expect_same_bits(site.run(kernel_of(planes), *packed, x, rows), want,
                           describe(c, rows, planes) + " on " + std::string(name_of(isa)));
        }
      }
    }
  }
}

TEST(Packed, EveryNumberOfRowsGivesTheSameRow) {
  const IsaGuard guard;
  const PackedCase c{.inputs = 576, .outputs = {80}, .bits = 4, .group = 64, .symmetric = false};
  PackedSiteForTest site(c);
  for (const int planes : {2, 1}) {
    const LinearKernel& kernel = kernel_of(planes);
    const auto packed = pack(kernel, site);
    const std::int64_t most = 70;
    const std::vector<float> x = site.inputs(most);
    for (const Isa isa : supported_isas()) {
      set_isa(isa);
      const std::vector<float> all = site.run(kernel, *packed, x, most);
      for (std::int64_t rows = 1; rows < most; rows += rows < 20 ? 1 : 13) {
        const std::vector<float> first(x.begin(), x.begin() + rows * c.inputs);
        const std::vector<float> want(all.begin(), all.begin() + rows * 80);
        expect_same_bits(site.run(kernel, *packed, first, rows), want,
                         describe(c, rows, planes) + " on " + std::string(name_of(isa)));
      }
    }
  }
}

TEST(Packed, ResidualIsAddedAlsoInPlace) {
  const IsaGuard guard;
  for (const DType compute : {DType::f32, DType::bf16}) {
    const PackedCase c{.inputs = 600,
                       .outputs = {37},
                       .bits = 4,
                       .group = 64,
                       .bias = true,
                       .epilogue = {.kind = EpilogueKind::residual},
                       .compute = compute};
    PackedSiteForTest site(c);
    const LinearKernel& kernel = kernel_of(2);
    EXPECT_TRUE(kernel.fit(site.site(), cpu_device().info(), 64).fuses_epilogue);
    const auto packed = pack(kernel, site);
    for (const Isa isa : supported_isas()) {
      set_isa(isa);
      for (const std::int64_t rows : {1, 5, 70}) {
        const std::vector<float> x = site.inputs(rows);
        std::vector<float> residual(static_cast<std::size_t>(rows * 37));
        for (float& v : residual) v = site.uniform(-5, 5);
        const std::vector<float> got = site.run(kernel, *packed, x, rows, residual);
        std::vector<double> want;
        std::vector<double> bound;
        site.reference(0, x, rows, limit_of(2), want, bound);
        if (compute == DType::bf16) bound = bf16_bound(site, 0, x, rows, bound);
        for (std::size_t i = 0; i < want.size(); ++i) {
          const double sum = want[i] + static_cast<double>(residual[i]);
          EXPECT_NEAR(got[i], sum, bound[i] + std::abs(sum) * 0x1p-22)
              << name_of(isa) << " rows " << rows << " output " << i;
        }
        // y and residual as the same memory.
        std::vector<float> both = residual;
        const auto stream = cpu_device().make_stream();
        const auto workspace = cpu_device().allocate(kernel.workspace(site.site(), rows), "a test");
        std::vector<float> input = x;
        const MatrixRef ref{both.data(), DType::f32, rows, 37, 37};
        LinearArgs args;
        args.rows = rows;
        args.x = {input.data(), DType::f32, rows, c.inputs, c.inputs};
        args.y = {&ref, 1};
        args.residual = ref;
        args.workspace = workspace->data();
        kernel.enqueue(*packed, args, *stream);
        expect_same_bits(both, got, "in place");
      }
    }
  }
}

double activated(ActivationKind kind, double v) {
  switch (kind) {
    case ActivationKind::silu:
      return v / (1 + std::exp(-v));
    case ActivationKind::gelu:
      return 0.5 * v * std::erfc(-v / std::sqrt(2.0));
    case ActivationKind::gelu_tanh:
      return 0.5 * v * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v)));
    case ActivationKind::relu:
      return std::max(v, 0.0);
    case ActivationKind::quick_gelu:
    case ActivationKind::tanh:
      break;  // left to an op
  }
  return 0;
}

TEST(Packed, GatedOutputsAreActivatedAndMultiplied) {
  const IsaGuard guard;
  for (const ActivationKind activation :
       {ActivationKind::silu, ActivationKind::gelu, ActivationKind::gelu_tanh, ActivationKind::relu}) {
    for (const DType compute : {DType::f32, DType::bf16}) {
      const PackedCase c{.inputs = 128,
                         .outputs = {50, 50},
                         .bits = 4,
                         .group = 32,
                         .bias = true,
                         .norm = true,
                         .epilogue = {.kind = EpilogueKind::gated, .activation = activation},
                         .compute = compute};
      PackedSiteForTest site(c);
      const LinearKernel& kernel = kernel_of(2);
      const auto packed = pack(kernel, site);
      for (const Isa isa : supported_isas()) {
        set_isa(isa);
        for (const std::int64_t rows : {1, 9, 50}) {
          const std::vector<float> x = site.inputs(rows);
          const std::vector<float> got = site.run(kernel, *packed, x, rows);
          std::vector<double> gate;
          std::vector<double> up;
          std::vector<double> gate_bound;
          std::vector<double> up_bound;
          site.reference(0, x, rows, limit_of(2), gate, gate_bound);
          site.reference(1, x, rows, limit_of(2), up, up_bound);
          if (compute == DType::bf16) {
            gate_bound = bf16_bound(site, 0, x, rows, gate_bound);
            up_bound = bf16_bound(site, 1, x, rows, up_bound);
          }
          for (std::size_t i = 0; i < gate.size(); ++i) {
            const double act = activated(activation, gate[i]);
            // No activation is steeper than 1.13; its own formula in float is good to some 4 units in the last place.
            const double bound = 1.13 * gate_bound[i] * std::abs(up[i]) +
                                 (std::abs(act) + gate_bound[i]) * up_bound[i] +
                                 (std::abs(act) + 0.01 * std::abs(gate[i])) * std::abs(up[i]) * 0x1p-18 +
                                 1.13 * gate_bound[i] * up_bound[i] + 1e-30;
            EXPECT_NEAR(got[i], act * up[i], bound)
                << name_of(isa) << " rows " << rows << " output " << i << " gate " << gate[i];
          }
        }
      }
    }
  }
}

TEST(Packed, ReportsItsBytesExactly) {
  for (const PackedCase& c : shapes()) {
    if (c.wide_scales || (c.act_order && c.outputs.size() > 1)) continue;  // f32 scales and several orders take more
    PackedSiteForTest site(c);
    for (const int planes : {2, 1}) {
      EXPECT_EQ(pack(kernel_of(planes), site)->bytes(), kernel_of(planes).packed_bytes(site.site()))
          << describe(c, 0, planes);
    }
  }
  // 4 bits, groups of 128, f16 scales, symmetric: half a byte a weight and 2 bytes a group.
  PackedSiteForTest site({.inputs = 1024, .outputs = {512}, .bits = 4, .group = 128});
  const std::size_t bytes = kernel_of(2).packed_bytes(site.site());
  EXPECT_GE(bytes, 1024u * 512 / 2 + 8 * 512 * 2);
  EXPECT_LE(bytes, 1024u * 512 / 2 + 8 * 512 * 2 + 256);
}

TEST(Packed, NotFiniteActivationsMakeTheirRowNaNAndNoOther) {
  const IsaGuard guard;
  const PackedCase c{.inputs = 256, .outputs = {32}, .bits = 4, .group = 64};
  PackedSiteForTest site(c);
  for (const int planes : {2, 1}) {
    const auto packed = pack(kernel_of(planes), site);
    for (const Isa isa : supported_isas()) {
      set_isa(isa);
      for (const std::int64_t rows : {3, 40}) {
        std::vector<float> x = site.inputs(rows);
        const std::vector<float> clean = site.run(kernel_of(planes), *packed, x, rows);
        x[256 + 100] = std::numeric_limits<float>::infinity();
        x[2 * 256 + 5] = std::numeric_limits<float>::quiet_NaN();
        const std::vector<float> got = site.run(kernel_of(planes), *packed, x, rows);
        for (std::size_t i = 0; i < got.size(); ++i) {
          const std::size_t row = i / 32;
          if (row == 1 || row == 2) {
            EXPECT_TRUE(std::isnan(got[i])) << name_of(isa) << " row " << row;
          } else {
            EXPECT_EQ(got[i], clean[i]) << name_of(isa) << " row " << row;
          }
        }
      }
    }
  }
}

TEST(Packed, ZeroAndTinyRowsGiveTheBias) {
  const IsaGuard guard;
  const PackedCase c{.inputs = 64, .outputs = {16}, .bits = 4, .group = 32, .symmetric = false, .bias = true};
  PackedSiteForTest site(c);
  const auto packed = pack(kernel_of(2), site);
  std::vector<float> x(2 * 64, 0.0f);
  for (std::size_t i = 64; i < 128; ++i) x[i] = 1e-42f;
  for (const Isa isa : supported_isas()) {
    set_isa(isa);
    const std::vector<float> got = site.run(kernel_of(2), *packed, x, 2);
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], site.gptq()[0].bias[i % 16]) << name_of(isa);
  }
}

TEST(Packed, ThreadsDoNotChangeTheResult) {
  const PackedCase c{.inputs = 192, .outputs = {112, 48}, .bits = 4, .group = 64};
  PackedSiteForTest site(c);
  const auto packed = pack(kernel_of(2), site);
  ThreadPool& pool = ThreadPool::instance();
  const int before = pool.threads();
  for (const std::int64_t rows : {1, 7, 100}) {
    const std::vector<float> x = site.inputs(rows);
    pool.set_threads(1);
    const std::vector<float> want = site.run(kernel_of(2), *packed, x, rows);
    for (const int threads : {2, 3, 7}) {
      pool.set_threads(threads);
      expect_same_bits(site.run(kernel_of(2), *packed, x, rows), want,
                       fmt::format("{} threads, {} rows", threads, rows));
    }
  }
  pool.set_threads(before);
}

TEST(Packed, SaysWhyItDoesNotFit) {
  LinearSite dense;
  dense.parts = {{"lm_head", 64, 64, false, {}}};
  const Fit fit = kernel_of(2).fit(dense, cpu_device().info(), 1);
  EXPECT_FALSE(fit.ok);
  EXPECT_NE(fit.reason.find("lm_head is not quantised"), std::string::npos) << fit.reason;
  PackedSiteForTest uneven({.inputs = 64, .outputs = {32, 48}, .epilogue = {.kind = EpilogueKind::gated}});
  EXPECT_FALSE(kernel_of(2).fit(uneven.site(), cpu_device().info(), 1).fuses_epilogue);
}

TEST(Packed, RefusesTensorsThatContradictTheSite) {
  PackedSiteForTest site({.inputs = 128, .outputs = {32}, .group = 32, .act_order = true});
  std::vector<std::int32_t>& g_idx = site.gptq()[0].g_idx;
  // 35 inputs in the first group and 29 in the second.
  for (std::size_t i = 0; i < g_idx.size(); ++i) g_idx[i] = i < 35 ? 0 : i < 64 ? 1 : i < 96 ? 2 : 3;
  EXPECT_THROW(pack(kernel_of(2), site), Error);
  PackedSiteForTest other({.inputs = 64, .outputs = {32}});
  other.site().parts[0].out_features = 48;
  EXPECT_THROW(pack(kernel_of(2), other), Error);
}

}  // namespace
}  // namespace nibble
