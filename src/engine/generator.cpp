#include "engine/generator.h"

#include "core/error.h"

#include <algorithm>
#include <chrono>

namespace nibble {

Generation generate(Engine& engine, std::span<const std::vector<std::int32_t>> prompts,
                    const GenerateOptions& options) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  };
  if (options.max_new_tokens < 1)
    fail_usage("the number of new tokens should be at least 1, found {}", options.max_new_tokens);

  Generation out;
  out.tokens.resize(prompts.size());
  std::vector<char> ended(prompts.size(), 0);
  const auto take = [&](const std::vector<std::int32_t>& next) {
    bool all_ended = true;
    for (std::size_t i = 0; i < next.size(); ++i) {
      if (!ended[i]) {
        out.tokens[i].push_back(next[i]);
        if (options.on_token) options.on_token(static_cast<std::int64_t>(i), next[i]);
        const bool stop =
            std::find(options.stop_tokens.begin(), options.stop_tokens.end(), next[i]) != options.stop_tokens.end();
        ended[i] = stop && !options.ignore_stop;
      }
      all_ended = all_ended && ended[i];
    }
    return all_ended;
  };

  const Clock::time_point start = Clock::now();
  // Each sequence draws from its own stream of random numbers.
  std::vector<SampleParams> params(prompts.size(), options.sampling);
  for (std::size_t i = 0; i < params.size(); ++i) params[i].seed += i;
  engine.prefill(prompts, params);
  bool done = take(engine.next_tokens());
  Clock::time_point last = Clock::now();
  out.prefill_seconds = seconds(start, last);
  std::int64_t queued = 0;
  for (std::int64_t step = 1; step < options.max_new_tokens && !done; ++step) {
    // Steps beyond the one that is awaited keep the device at work; where all sequences end they were for nothing.
    while (queued < std::min(options.max_new_tokens - 1, step - 1 + engine.worth_queueing()) &&
           (queued < step || engine.has_room())) {
      engine.queue_step();
      ++queued;
    }
    done = take(engine.await_step());
    const Clock::time_point now = Clock::now();
    out.step_seconds.push_back(seconds(last, now));
    last = now;
  }
  out.total_seconds = seconds(start, last);
  return out;
}

}  // namespace nibble
