#include "bench/child.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <string>
#include <thread>
#include <vector>

namespace nibble {
namespace {

ChildEnd run_shell(const std::string& script, std::vector<std::string>& lines) {
  return run_child("/bin/sh", {"-c", script}, [&lines](std::string_view line) { lines.emplace_back(line); });
}

TEST(Child, ReportsLinesOnItsOwnDescriptor) {
  std::vector<std::string> lines;
  const ChildEnd end =
      run_shell("echo one >&3; echo not a report; echo two >&3; echo cut off >&3; printf rest >&3; exit 7", lines);
  EXPECT_EQ(end.exit_code, 7);
  EXPECT_EQ(end.signal, 0);
  EXPECT_FALSE(end.interrupted);
  EXPECT_EQ(lines, (std::vector<std::string>{"one", "two", "cut off"}));
}

TEST(Child, ItsDeathIsToldFromItsFailure) {
  std::vector<std::string> lines;
  const ChildEnd end = run_shell("echo begun >&3; kill -KILL $$", lines);
  EXPECT_EQ(end.signal, SIGKILL);
  EXPECT_EQ(lines.size(), 1u);
  EXPECT_NE(describe(end).find("out of memory"), std::string::npos);
  EXPECT_NE(describe(run_shell("kill -SEGV $$", lines)).find("crashed: signal 11"), std::string::npos);
  EXPECT_NE(describe(run_shell("exit 3", lines)).find("exit code 3"), std::string::npos);
}

TEST(Child, AnInterruptEndsItAtOnce) {
  const InterruptGuard guard;
  std::vector<std::string> lines;
  const auto start = std::chrono::steady_clock::now();
  const ChildEnd end =
      run_child("/bin/sh", {"-c", "echo ready >&3; sleep 60"}, [&](std::string_view) { raise(SIGINT); });
  EXPECT_TRUE(end.interrupted);
  EXPECT_EQ(InterruptGuard::signal(), SIGINT);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
}

TEST(Child, WhatTheReaderThrowsEndsItToo) {
  EXPECT_THROW(run_child("/bin/sh", {"-c", "echo ready >&3; sleep 60"},
                         [](std::string_view) { throw std::runtime_error("no"); }),
               std::runtime_error);
}

TEST(Child, AProgramThatIsNotThereIsASentence) {
  test::expect_error("cannot start /no/such/program",
                     [] { run_child("/no/such/program", {}, [](std::string_view) {}); });
}

TEST(Child, FindsItsOwnProgram) { EXPECT_EQ(own_program().filename(), "test_bench"); }

}  // namespace
}  // namespace nibble
