// The kernels that this build has. A kernel registers itself from its own file; no other file changes.
#pragma once

#include "kernels/linear_kernel.h"

#include <memory>
#include <string_view>
#include <vector>

namespace nibble {

/// All kernels for a kind of device, by name.
std::vector<const LinearKernel*> kernels_for(DeviceKind kind);

/// The kernel of this name, or UsageError that lists the names there are.
const LinearKernel& kernel_named(std::string_view name, DeviceKind kind);

/// Registers at start-up; used through NIBBLE_REGISTER_KERNEL.
class KernelRegistration {
 public:
  KernelRegistration(DeviceKind kind, std::unique_ptr<LinearKernel> kernel);
};

}  // namespace nibble

#define NIBBLE_REGISTER_KERNEL(KIND, CLASS) \
  const ::nibble::KernelRegistration registration_of_##CLASS(KIND, std::make_unique<CLASS>())
