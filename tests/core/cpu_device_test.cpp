#include "core/cpu_device.h"

#include "core/error.h"
#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace nibble {
namespace {

TEST(CpuDevice, SaysWhatItIs) {
  const DeviceInfo& info = cpu_device().info();
  EXPECT_EQ(info.kind, DeviceKind::cpu);
  EXPECT_EQ(info.threads, ThreadPool::instance().threads());
  EXPECT_FALSE(info.name.empty());
  EXPECT_FALSE(info.isa.empty());
  EXPECT_GT(info.memory_bytes, 0u);
}

TEST(CpuDevice, AllocatesAlignedMemoryToItsLastByte) {
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{4097}, std::size_t{3} << 20}) {
    const std::unique_ptr<Buffer> buffer = cpu_device().allocate(bytes, "a test");
    EXPECT_EQ(buffer->size(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer->data()) % 256, 0u);
    std::fill(buffer->data(), buffer->data() + bytes, std::byte{1});
  }
}

TEST(CpuDevice, SaysWhatThereIsNoMemoryFor) {
  try {
    cpu_device().allocate(std::size_t{1} << 62, "the weights of everything");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("the weights of everything"), std::string::npos) << error.what();
  }
}

// One step of each kind after the other, each depending on the one before.
void enqueue(CpuStream& stream, std::vector<int>& values) {
  stream.parallel([&values](int thread, int threads) {
    const auto [begin, end] = split_range(static_cast<std::int64_t>(values.size()), 1, thread, threads);
    for (std::int64_t i = begin; i < end; ++i) ++values[static_cast<std::size_t>(i)];
  });
  stream.parallel([&values](int thread, int) {
    if (thread == 0) std::reverse(values.begin(), values.end());
  });
  stream.serial([&values] { values.front() += 100; });
  stream.parallel([&values](int thread, int threads) {
    const auto [begin, end] = split_range(static_cast<std::int64_t>(values.size()), 1, thread, threads);
    for (std::int64_t i = begin; i < end; ++i) values[static_cast<std::size_t>(i)] *= 2;
  });
}

TEST(CpuStream, ReplayDoesWhatEagerDoes) {
  const std::unique_ptr<Stream> stream = cpu_device().make_stream();
  std::vector<int> eager = {1, 2, 3, 4, 5};
  enqueue(cpu_stream(*stream), eager);
  EXPECT_EQ(eager, (std::vector<int>{212, 10, 8, 6, 4}));

  std::vector<int> captured = {1, 2, 3, 4, 5};
  stream->begin_capture();
  enqueue(cpu_stream(*stream), captured);
  const std::unique_ptr<Graph> graph = stream->end_capture();
  EXPECT_EQ(captured, (std::vector<int>{1, 2, 3, 4, 5})) << "capture does not run";
  stream->launch(*graph);
  EXPECT_EQ(captured, eager);
  enqueue(cpu_stream(*stream), eager);
  stream->launch(*graph);
  EXPECT_EQ(captured, eager);
}

TEST(CpuStream, CopiesBytes) {
  const std::unique_ptr<Stream> stream = cpu_device().make_stream();
  const std::unique_ptr<Buffer> buffer = cpu_device().allocate(12, "a test");
  const std::vector<int> from = {7, 8, 9};
  std::vector<int> to(3);
  stream->copy_to_device(buffer->data(), from.data(), 12);
  stream->copy_to_host(to.data(), buffer->data(), 12);
  EXPECT_EQ(to, from);
}

class OtherStream final : public Stream {
 public:
  void copy_to_device(void*, const void*, std::size_t) override {}
  void copy_to_host(void*, const void*, std::size_t) override {}
  void synchronize() override {}
  void begin_capture() override {}
  std::unique_ptr<Graph> end_capture() override { return nullptr; }
  void launch(const Graph&) override {}
};

TEST(CpuStream, AnotherDevicesStreamIsAnError) {
  OtherStream other;
  EXPECT_THROW(cpu_stream(other), Error);
}

}  // namespace
}  // namespace nibble
