// The order in which a linear puts out what another one multiplies.
#pragma once

#include "kernels/linear_kernel.h"

#include <cstddef>
#include <cstdint>

namespace nibble {

/// The most rows of a call that copy_out_for() is about.
constexpr std::int64_t kMostCopiedRows = 64;

/// Weights that can be renumbered after they were packed: a PackedLinear that is one of these too.
class OutputOrder {
 public:
  virtual ~OutputOrder() = default;
  /// Lets this linear put out its results in the order in which `reader`, which alone reads them, multiplies them: then
  /// that one need not sort its inputs (act-order) at each call. False where they are left as they were, because there
  /// is nothing to sort or one of the two cannot.
  virtual bool put_out_for(PackedLinear& reader, Device& device, Stream& stream) = 0;
  /// As put_out_for(), where others read the results too: in calls of up to kMostCopiedRows rows this linear leaves its
  /// results in `copy` once more, in the order in which `reader` multiplies them, and that one takes them from there
  /// instead of LinearArgs::x. Both must be called with the same number of rows, this one first. `copy`:
  /// kMostCopiedRows rows of f32, one behind the other, which nobody else uses between the two calls. `norm_weight`:
  /// LinearArgs::norm_weight of the reader; null where it has no norm.
  virtual bool copy_out_for(PackedLinear& reader, const float* norm_weight, std::byte* copy, Device& device,
                            Stream& stream) = 0;

 protected:
  OutputOrder() = default;
  OutputOrder(const OutputOrder&) = default;
  OutputOrder& operator=(const OutputOrder&) = default;
};

}  // namespace nibble
