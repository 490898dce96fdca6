// Progress with time left, on stderr and only when it is a terminal; silent otherwise, but for a line at the end of
// each long stage so that a log shows where the time went.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace nibble {

class Progress {
 public:
  /// `total` steps of the work called `label` ("quantising", "perplexity").
  Progress(std::string label, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` steps are finished; `detail` is shown after the bar ("layer 3 of 30: mlp.down_proj").
  void update(std::int64_t done, std::string_view detail = {});
  /// Clears the bar and prints one line: label, what came of it, seconds taken.
  void finish(std::string_view summary = {});

  /// Never draw bars (as when stderr is not a terminal).
  static void disable();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
