#include "bench/memory.h"

#include "bench/bandwidth.h"
#include "bench/read_stream.h"
#include "core/cpu.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace nibble {
namespace {

TEST(Memory, APeakIsSeenAfterItIsGone) {
  constexpr std::size_t kBytes = std::size_t{64} << 20;
  const ResidentMemory before = resident_memory();
  ASSERT_GT(before.resident, 0u);
  EXPECT_GE(before.peak_resident, before.anonymous);
  MemoryWatch watch;
  {
    std::vector<char> block(kBytes, 1);
    volatile char sink = block[kBytes / 2];
    static_cast<void>(sink);
    // The watch looks every 5 ms; reading its own record makes the sample certain.
    EXPECT_GE(watch.peak().anonymous, before.anonymous + kBytes / 2);
  }
  watch.stop();
  EXPECT_GE(watch.peak().anonymous, before.anonymous + kBytes / 2);
  EXPECT_GE(watch.peak().peak_resident, before.resident);
}

TEST(Memory, AFileJustWrittenIsCached) {
  const test::TempFolder folder;
  const auto path = folder.write("weights", std::string(1 << 16, 'x'));
  const auto share = cached_share(path);
  if (share) {
    EXPECT_GT(*share, 0.5);
    EXPECT_LE(*share, 1.0);
  }
  EXPECT_FALSE(cached_share(folder.write("empty", "")).has_value());
}

TEST(ReadStream, EveryInstructionSetReadsEveryWord) {
  alignas(64) std::uint64_t words[256];
  std::uint64_t expected = 0;
  for (std::size_t i = 0; i < 256; ++i) {
    words[i] = 0x9e3779b97f4a7c15u * (i + 1);
    expected ^= words[i];
  }
  EXPECT_EQ(read_stream_scalar(words, 256), expected);
  if (isa_supported(Isa::avx2)) {
    EXPECT_EQ(read_stream_avx2(words, 256), expected);
  }
  if (isa_supported(Isa::avx512)) {
    EXPECT_EQ(read_stream_avx512(words, 256), expected);
  }
}

TEST(ReadBandwidth, GivesAPlausibleRate) {
  const ReadBandwidth measured = measure_read_bandwidth(std::size_t{4} << 20, 0.01);
  EXPECT_GE(measured.footprint, std::size_t{4} << 20);
  EXPECT_GE(measured.passes, 3);
  EXPECT_GT(measured.bytes_per_second, 1e7);
  EXPECT_LT(measured.bytes_per_second, 1e14);
  EXPECT_GE(memory_footprint(), std::size_t{256} << 20);
}

}  // namespace
}  // namespace nibble
