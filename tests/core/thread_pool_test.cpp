#include "core/thread_pool.h"

#include "core/error.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace nibble {
namespace {

// Runs with a number of threads of its own, and puts the old one back.
class ThreadPoolTest : public testing::TestWithParam<int> {
 protected:
  ThreadPoolTest() { pool_.set_threads(GetParam()); }
  ~ThreadPoolTest() override { pool_.set_threads(before_); }
  ThreadPool& pool_ = ThreadPool::instance();
  int before_ = pool_.threads();
};

TEST_P(ThreadPoolTest, EachThreadRunsOnce) {
  std::vector<std::atomic<int>> calls(static_cast<std::size_t>(GetParam()));
  pool_.run([&](int thread, int threads) {
    EXPECT_EQ(threads, GetParam());
    ++calls[static_cast<std::size_t>(thread)];
  });
  for (const auto& count : calls) EXPECT_EQ(count, 1);
}

TEST_P(ThreadPoolTest, NestedRunStaysOnItsThread) {
  std::atomic<int> inner{0};
  pool_.run([&](int, int) {
    pool_.run([&](int thread, int threads) {
      EXPECT_EQ(thread, 0);
      EXPECT_EQ(threads, 1);
      ++inner;
    });
  });
  EXPECT_EQ(inner, GetParam());
}

TEST_P(ThreadPoolTest, ExceptionsComeOut) {
  EXPECT_THROW(pool_.run([](int thread, int) {
    if (thread == 0) fail("thread {} fails", thread);
  }),
               Error);
  // And the pool goes on.
  std::atomic<int> calls{0};
  pool_.run([&](int, int) { ++calls; });
  EXPECT_EQ(calls, GetParam());
}

// Between two barriers all threads see what all wrote before the first.
TEST_P(ThreadPoolTest, BarrierSeparatesSteps) {
  const auto count = static_cast<std::size_t>(GetParam());
  std::vector<int> step(count);
  std::atomic<int> wrong{0};
  pool_.run([&](int thread, int threads) {
    for (int round = 1; round <= 200; ++round) {
      step[static_cast<std::size_t>(thread)] = round;
      if (threads > 1) pool_.barrier();
      for (const int other : step) wrong += other != round;
      if (threads > 1) pool_.barrier();
    }
  });
  EXPECT_EQ(wrong, 0);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3));

TEST(SplitRange, CoversAllOnceInWholeGrains) {
  for (const std::int64_t count : {0, 1, 7, 64, 100}) {
    for (const std::int64_t grain : {1, 3, 16}) {
      for (const int threads : {1, 2, 3, 8}) {
        std::int64_t next = 0;
        for (int thread = 0; thread < threads; ++thread) {
          const auto [begin, end] = split_range(count, grain, thread, threads);
          EXPECT_EQ(begin, next);
          EXPECT_GE(end, begin);
          if (end < count) {
            EXPECT_EQ(end % grain, 0);
          }
          next = end;
        }
        EXPECT_EQ(next, count) << count << " by " << grain << " over " << threads;
      }
    }
  }
}

}  // namespace
}  // namespace nibble
