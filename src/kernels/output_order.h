// The order in which a linear puts out what another one multiplies.
#pragma once

#include "kernels/linear_kernel.h"

namespace nibble {

/// Weights that can be renumbered after they were packed: a PackedLinear that is one of these too.
class OutputOrder {
 public:
  virtual ~OutputOrder() = default;
  /// Lets this linear put out its results in the order in which `reader`, which alone reads them, multiplies them: then
  /// that one need not sort its inputs (act-order) at each call. False where they are left as they were, because there
  /// is nothing to sort or one of the two cannot.
  virtual bool put_out_for(PackedLinear& reader, Device& device, Stream& stream) = 0;

 protected:
  OutputOrder() = default;
  OutputOrder(const OutputOrder&) = default;
  OutputOrder& operator=(const OutputOrder&) = default;
};

}  // namespace nibble
