#include "cuda/gpu.h"

#include <dlfcn.h>

#include <numeric>

namespace nibble {
namespace {

// Also where there is no GPU: a symbol that is nowhere would show only on a machine that has one.
TEST(CudaLibrary, LoadsWithAllItsSymbols) {
  void* library = dlopen(NIBBLE_CUDA_LIBRARY_FILE, RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << dlerror();
  EXPECT_NE(dlsym(library, "nibble_cuda_entry"), nullptr);
}

TEST(CudaDevice, SaysWhatItIs) {
  NIBBLE_NEEDS_GPU();
  const DeviceInfo& info = test::gpu().device().info();
  EXPECT_EQ(info.kind, DeviceKind::cuda);
  EXPECT_FALSE(info.name.empty());
  EXPECT_GT(info.threads, 0);
  EXPECT_GT(info.memory_bytes, std::size_t{1} << 30);
}

TEST(CudaDevice, CopiesThereAndBack) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = test::gpu().device().make_stream();
  std::vector<std::int32_t> values(100'003);
  std::iota(values.begin(), values.end(), -7);
  const test::OnDevice<std::int32_t> there(*stream, values);
  EXPECT_EQ(there.read(), values);
}

TEST(CudaDevice, TooMuchMemoryIsASentence) {
  NIBBLE_NEEDS_GPU();
  try {
    test::gpu().device().allocate(std::size_t{1} << 50, "a test's whim");
    FAIL() << "a petabyte was to be had";
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("a test's whim"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace nibble
