// Has a kernel the right to be timed? Sampled outputs against a float64 product of the checkpoint's own tensors.
#pragma once

#include "kernels/linear_kernel.h"

#include <cstdint>
#include <span>
#include <string>

namespace nibble {

struct VerifyOptions {
  std::int64_t rows = 1;
  std::int64_t outputs = 48;       // compared outputs of each part, the first and last among them; 0: all
  std::int64_t compared_rows = 8;  // compared rows, the first and last among them; 0: all
  std::uint64_t seed = 1;
};

struct VerifyResult {
  bool ok = false;
  double error = 0;
  double bound = 0;
  std::string sentence;  // "packed agrees with the reference: ..." or what is wrong
};

/// Runs `packed` (of `site`, whose tensors these are) on random inputs with outliers, and compares.
///
/// The error is |y - reference| / (|x| |w| / sqrt(K) + |x w| + |reference| / 100), with Euclidean norms of the row of
/// inputs (after the prologue), of weights, and of their products term by term. The first two are the size of a sum of
/// K random products, and do not vanish by chance as the sum itself can; the first counts the errors of inputs rounded
/// to a common scale, the second those of operands rounded each by itself. Gated outputs carry the errors of both
/// factors. The bound is the kernel's own for site.compute. It also fails when any output is left unwritten or not
/// finite, when something beside the outputs or the workspace is written (outputs, gaps and workspace are filled with
/// NaN before), and when replaying the call from a captured graph gives other bits, if the kernel says that it is
/// deterministic. Takes some 10 ms for a 2000 x 2000 matrix.
VerifyResult verify(const LinearKernel& kernel, const PackedLinear& packed, const LinearSite& site,
                    std::span<const LinearTensors> tensors, const VerifyOptions& options, Device& device);

/// Packs first, fusing what the kernel can; not ok, with the kernel's reason, where the site does not fit.
VerifyResult verify(const LinearKernel& kernel, const LinearSite& site, std::span<const LinearTensors> tensors,
                    const VerifyOptions& options, Device& device);

}  // namespace nibble
