#include "kernels/registry.h"
#include "core/error.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

namespace nibble {
namespace {

TEST(Registry, EachKernelFileIsRegistered) {
  std::size_t registrations = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(NIBBLE_TEST_DATA "/../../src/kernels/cpu")) {
    if (entry.path().extension() != ".cpp") continue;
    std::ifstream in(entry.path());
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    const std::string_view word = "NIBBLE_REGISTER_KERNEL(";
    for (std::size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++registrations;
  }
  EXPECT_GT(registrations, 0u);
  EXPECT_EQ(kernels_for(DeviceKind::cpu).size(), registrations);
}

TEST(Registry, NamesAreDistinctAndFound) {
  std::set<std::string_view> names;
  for (const LinearKernel* kernel : kernels_for(DeviceKind::cpu)) {
    EXPECT_TRUE(names.insert(kernel->name()).second) << kernel->name();
    EXPECT_EQ(&kernel_named(kernel->name(), DeviceKind::cpu), kernel);
    EXPECT_FALSE(kernel->traits().summary.empty());
    EXPECT_FALSE(kernel->traits().accumulate.empty());
  }
}

TEST(Registry, UnknownNameListsTheKnown) {
  try {
    kernel_named("no-such-kernel", DeviceKind::cpu);
    FAIL() << "no error";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("reference"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace nibble
