#include "kernels/registry.h"

#include "core/error.h"

#include <algorithm>

namespace nibble {
namespace {

struct Entry {
  DeviceKind kind;
  std::unique_ptr<LinearKernel> kernel;
};

std::vector<Entry>& entries() {
  static std::vector<Entry> all;
  return all;
}

}  // namespace

KernelRegistration::KernelRegistration(DeviceKind kind, std::unique_ptr<LinearKernel> kernel) {
  entries().push_back({kind, std::move(kernel)});
}

std::vector<const LinearKernel*> kernels_for(DeviceKind kind) {
  std::vector<const LinearKernel*> out;
  for (const Entry& entry : entries()) {
    if (entry.kind == kind) out.push_back(entry.kernel.get());
  }
  std::sort(out.begin(), out.end(), [](const auto* a, const auto* b) { return a->name() < b->name(); });
  return out;
}

const LinearKernel& kernel_named(std::string_view name, DeviceKind kind) {
  std::string names;
  for (const LinearKernel* kernel : kernels_for(kind)) {
    if (kernel->name() == name) return *kernel;
    names += (names.empty() ? "" : ", ") + std::string(kernel->name());
  }
  fail_usage("there is no kernel named \"{}\" for this device; it has {}", name, names);
}

}  // namespace nibble
