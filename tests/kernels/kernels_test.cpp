// Every registered CPU kernel against float64, on every kind of site that it takes.
#include "core/cpu_device.h"
#include "core/thread_pool.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"
#include "kernels/verify.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <string>

namespace nibble {
namespace {

class EveryKernel : public testing::TestWithParam<std::string> {
 protected:
  const LinearKernel& kernel() const { return kernel_named(GetParam(), DeviceKind::cpu); }

  // Compares every output when the kernel takes the site. Returns whether it does.
  bool check(const RandomSiteOptions& options, std::initializer_list<std::int64_t> row_counts) {
    const RandomSite random(options);
    Device& device = cpu_device();
    const Fit fit = kernel().fit(random.site(), device.info(), *std::max_element(row_counts.begin(), row_counts.end()));
    if (!fit.ok) {
      EXPECT_GT(fit.reason.size(), 10u) << "a kernel that refuses says why";
      return false;
    }
    const LinearSite site = fused_site(random.site(), fit);
    const std::unique_ptr<Stream> stream = device.make_stream();
    const std::unique_ptr<PackedLinear> packed = kernel().pack(site, random.tensors(), device, *stream);
    EXPECT_GT(packed->bytes(), 0u);
    for (const std::int64_t rows : row_counts) {
      EXPECT_GT(kernel().cost(site, rows).bytes, 0);
      EXPECT_GT(kernel().cost(site, rows).flops, 0);
      const VerifyResult result =
          verify(kernel(), *packed, site, random.tensors(),
                 {.rows = rows, .outputs = 0, .compared_rows = 0, .seed = options.seed}, device);
      EXPECT_TRUE(result.ok) << result.sentence << describe(options);
    }
    return true;
  }

  static std::string describe(const RandomSiteOptions& o) {
    const std::string gptq =
        !o.gptq ? "dense"
                : fmt::format("bits {}, group {}{}{}", o.gptq->bits, o.gptq->group_size,
                              o.gptq->act_order ? ", act-order" : "", o.gptq->symmetric ? ", sym" : "");
    return fmt::format("\n  K {}, {} parts of N {}, {}, compute {}, weights {}{}, prologue {}, epilogue {}, seed {}",
                       o.in_features, o.out_features.size(), o.out_features.front(), gptq, name_of(o.compute),
                       name_of(o.weights), o.bias ? ", bias" : "", static_cast<int>(o.prologue.kind),
                       static_cast<int>(o.epilogue.kind), o.seed);
  }
};

TEST_P(EveryKernel, GptqFormats) {
  std::uint64_t seed = 1;
  for (const int bits : {2, 3, 4, 8}) {
    for (const std::int64_t group : {-1, 32, 64, 128}) {
      for (const bool act_order : {false, true}) {
        for (const bool symmetric : {false, true}) {
          // 96, 160 and 288 are no multiples of 64 or 128; 72 outputs are no whole number of panels.
          const std::int64_t inputs = std::array<std::int64_t, 4>{96, 160, 256, 288}[seed % 4];
          const std::int64_t outputs = std::array<std::int64_t, 3>{32, 48, 72}[seed % 3];
          check({.in_features = inputs,
                 .out_features = {outputs},
                 .bias = seed % 2 == 0,
                 .gptq = GptqFormat{bits, group, act_order, symmetric},
                 .compute = seed % 5 < 2 ? DType::bf16 : DType::f32,
                 .seed = seed},
                {1, 2 + static_cast<std::int64_t>(seed % 7), 17});
          ++seed;
        }
      }
    }
  }
}

TEST_P(EveryKernel, DenseTypes) {
  std::uint64_t seed = 100;
  for (const DType weights : {DType::f32, DType::f16, DType::bf16}) {
    for (const DType compute : {DType::f32, DType::bf16}) {
      for (const std::int64_t inputs : {1, 37, 64, 576}) {
        check({.in_features = inputs,
               .out_features = {seed % 2 == 0 ? 48 : 131},
               .bias = seed % 3 == 0,
               .weights = weights,
               .compute = compute,
               .seed = seed},
              {1, 3, 33});
        ++seed;
      }
    }
  }
}

// Every number of rows from 1 to 17, and those around the limits of tiles.
TEST_P(EveryKernel, RowCounts) {
  for (const DType compute : {DType::f32, DType::bf16}) {
    const std::initializer_list<std::int64_t> rows = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12,
                                                      13, 14, 15, 16, 17, 31, 32, 33, 63, 64, 65};
    const RandomSiteOptions dense{.in_features = 96, .out_features = {48}, .bias = true, .compute = compute, .seed = 7};
    RandomSiteOptions gptq = dense;
    gptq.gptq = GptqFormat{4, 32, false, false};
    const bool takes_dense = check(dense, rows);
    const bool takes_gptq = check(gptq, rows);
    EXPECT_TRUE(takes_dense || takes_gptq) << "a kernel for nothing";
  }
}

// Prologues and epilogues: what a kernel does not fuse, it is not asked to.
TEST_P(EveryKernel, FusedSites) {
  std::uint64_t seed = 200;
  for (const bool gptq : {false, true}) {
    for (const DType compute : {DType::f32, DType::bf16}) {
      for (const Prologue prologue : {Prologue{}, Prologue{PrologueKind::rms_norm, 1e-5f}}) {
        const auto with = [&](std::vector<std::int64_t> outputs, Epilogue epilogue) {
          RandomSiteOptions options{.in_features = 128,
                                    .out_features = std::move(outputs),
                                    .bias = seed % 2 == 0,
                                    .compute = compute,
                                    .prologue = prologue,
                                    .epilogue = epilogue,
                                    .seed = seed};
          if (gptq) options.gptq = GptqFormat{4, 64, seed % 3 == 0, true};
          check(options, {1, 9, 33, 109});
          ++seed;
        };
        with({80, 32, 48}, {EpilogueKind::store, ActivationKind::silu});
        with({72}, {EpilogueKind::residual, ActivationKind::silu});
        for (const ActivationKind kind : {ActivationKind::silu, ActivationKind::gelu, ActivationKind::gelu_tanh,
                                          ActivationKind::relu, ActivationKind::quick_gelu, ActivationKind::tanh}) {
          with({80, 80}, {EpilogueKind::gated, kind});
          with({80}, {EpilogueKind::activation, kind});
        }
      }
    }
  }
}

// More rows than one group holds, in parts whose last panel is not full.
TEST_P(EveryKernel, ManyRows) {
  for (const DType compute : {DType::f32, DType::bf16}) {
    check({.in_features = 1056, .out_features = {40, 64}, .bias = true, .compute = compute, .seed = 400}, {500});
    check({.in_features = 1056,
           .out_features = {72},
           .compute = compute,
           .epilogue = {EpilogueKind::activation, ActivationKind::gelu},
           .seed = 401},
          {391});
  }
}

// Threads whose shares end within a panel and within a group of rows, and more threads than panels.
TEST_P(EveryKernel, SharesOfThreads) {
  ThreadPool& pool = ThreadPool::instance();
  const int before = pool.threads();
  for (const int threads : {1, 3, 7}) {
    pool.set_threads(threads);
    for (const bool gptq : {false, true}) {
      for (const DType compute : {DType::f32, DType::bf16}) {
        RandomSiteOptions options{.in_features = 1536, .out_features = {72}, .compute = compute, .seed = 402};
        if (gptq) options.gptq = GptqFormat{4, 128, false, true};
        check(options, {37, 203});
        options.in_features = 384;
        options.out_features = {104, 104};
        options.epilogue = {EpilogueKind::gated, ActivationKind::silu};
        check(options, {13, 49, 85, 387});
      }
    }
  }
  pool.set_threads(before);
}

// Of the proportions of a real model, where blocking over K, N and rows has whole and part blocks.
TEST_P(EveryKernel, RealShapes) {
  for (const bool gptq : {false, true}) {
    RandomSiteOptions options{.in_features = 1536, .out_features = {576}, .compute = DType::bf16, .seed = 300};
    if (gptq) options.gptq = GptqFormat{4, 128, false, true};
    const RandomSite random(options);
    const Fit fit = kernel().fit(random.site(), cpu_device().info(), 70);
    if (!fit.ok) continue;
    for (const std::int64_t rows : {1, 6, 70}) {
      const VerifyResult result = verify(kernel(), random.site(), random.tensors(), {.rows = rows}, cpu_device());
      EXPECT_TRUE(result.ok) << result.sentence;
    }
  }
}

std::vector<std::string> names() {
  std::vector<std::string> out;
  for (const LinearKernel* kernel : kernels_for(DeviceKind::cpu)) out.emplace_back(kernel->name());
  return out;
}

std::string test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Cpu, EveryKernel, testing::ValuesIn(names()), test_name);

}  // namespace
}  // namespace nibble
