#include "core/progress.h"

#include "core/log.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

std::atomic<bool> bars_disabled{false};

bool draws_bars() { return !bars_disabled.load() && ::isatty(STDERR_FILENO) == 1; }

int terminal_columns() {
  winsize size{};
  // 80 where the terminal does not tell: what every terminal has.
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

std::string duration(double seconds) {
  const auto total = static_cast<std::int64_t>(std::llround(seconds));
  if (total >= 3600) return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  return fmt::format("{}:{:02}", total / 60, total % 60);
}

}  // namespace

struct Progress::State {
  std::string label;
  std::int64_t total = 0;
  Clock::time_point start = Clock::now();
  Clock::time_point drawn{};
  bool visible = false;
  bool finished = false;
  std::mutex mutex;

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start).count(); }

  void clear() {
    if (visible) std::fputs("\r\x1b[K", stderr);
    visible = false;
  }
};

Progress::Progress(std::string label, std::int64_t total) : state_(std::make_unique<State>()) {
  state_->label = std::move(label);
  state_->total = total;
}

Progress::~Progress() { state_->clear(); }

void Progress::update(std::int64_t done, std::string_view detail) {
  if (!draws_bars()) return;
  const std::lock_guard lock(state_->mutex);
  const auto now = Clock::now();
  // Ten drawings a second look smooth and cost nothing.
  if (state_->visible && done < state_->total && now - state_->drawn < std::chrono::milliseconds(100)) return;
  state_->drawn = now;
  const double share =
      state_->total <= 0 ? 1.0 : std::clamp(static_cast<double>(done) / static_cast<double>(state_->total), 0.0, 1.0);
  constexpr int kBarWidth = 24;
  const int filled = static_cast<int>(share * kBarWidth);
  const double taken = state_->seconds();
  const std::string left = share > 0 ? duration(taken / share - taken) + " left" : "";
  std::string line = fmt::format(
      "{} [{}{}] {:3.0f}% {}/{} {} {}", state_->label, std::string(static_cast<std::size_t>(filled), '#'),
      std::string(static_cast<std::size_t>(kBarWidth - filled), '.'), share * 100, done, state_->total, left, detail);
  // A line that wraps could not be erased.
  line.resize(std::min(line.size(), static_cast<std::size_t>(terminal_columns() - 1)));
  std::fputs(("\r" + line + "\x1b[K").c_str(), stderr);
  std::fflush(stderr);
  state_->visible = true;
}

void Progress::finish(std::string_view summary) {
  const std::lock_guard lock(state_->mutex);
  state_->clear();
  if (state_->finished) return;
  state_->finished = true;
  const std::string what = summary.empty() ? std::string("done") : std::string(summary);
  log_info(fmt::format("{}: {} ({:.1f} s)", state_->label, what, state_->seconds()));
}

void Progress::disable() { bars_disabled.store(true); }

}  // namespace nibble
