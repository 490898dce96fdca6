#include "bench/encoder_bench.h"

#include "bench/child.h"
#include "bench/gpu_watch.h"
#include "bench/memory.h"
#include "bench/nvml.h"
#include "bench/statistics.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/file.h"
#include "kernels/random_site.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <map>
#include <numbers>
#include <numeric>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// f32 in another order of sums moves hidden states by some 1e-6 of the largest; bf16 rounds operands by 2^-9 and f16
// by 2^-12, which layers add up: a wrong mask or a lost bias moves them by far more than either bound.
double agreement_bound(DType compute) { return compute == DType::f32 ? 1e-3 : compute == DType::f16 ? 0.03 : 0.1; }

constexpr std::size_t kLeastRounds = 3;
constexpr std::size_t kLargestFile = std::size_t{64} << 20;
constexpr std::int64_t kLongest = 1 << 20;

template <typename T>
T number_of(std::string_view text, const std::string& file, std::size_t line) {
  T value{};
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || at != text.data() + text.size())
    fail("{}, line {}: \"{}\" is no number", file, line, text);
  return value;
}

std::int32_t length_of(std::string_view text, const std::string& file, std::size_t line) {
  const auto value = number_of<std::int64_t>(text, file, line);
  if (value < 1 || value > kLongest) fail("{}, line {}: a length of {}; expected 1 to {}", file, line, value, kLongest);
  return static_cast<std::int32_t>(value);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> out;
  while (true) {
    const std::size_t end = text.find(separator);
    out.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return out;
    text.remove_prefix(end + 1);
  }
}

// A normal deviate (Box and Muller 1958).
double normal(Random& random) {
  const double u = 1.0 - random.uniform();  // in (0, 1]
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * random.uniform());
}

}  // namespace

std::int64_t EncoderCell::tokens() const { return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}); }

double EncoderCell::padded_share() const {
  return 1.0 - static_cast<double>(tokens()) / static_cast<double>(batch * length);
}

std::vector<std::int32_t> draw_lengths(std::int64_t batch, std::int64_t length, double padding, double stddev,
                                       std::uint64_t seed) {
  const auto longest = static_cast<std::int32_t>(length);
  std::vector<std::int32_t> out(static_cast<std::size_t>(batch), longest);
  if (padding == 0) return out;
  Random random(seed);
  const double mean = std::trunc((1.0 - padding) * static_cast<double>(length));
  for (std::int32_t& value : out) {
    const double drawn = std::clamp(std::trunc(mean + stddev * normal(random)), 1.0, static_cast<double>(length));
    value = static_cast<std::int32_t>(drawn);
  }
  return out;
}

LengthsFile::LengthsFile(const std::filesystem::path& file) {
  const std::string text = read_text_file(file, kLargestFile);
  const std::string name = file.string();
  std::size_t number = 0;
  bool batches = false;
  for (std::string_view line : split(text, '\n')) {
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    if (number == 1 && line == "batch_size,seqlen,padding,lengths") {
      batches = true;
      continue;
    }
    if (!batches) {
      texts_.push_back(length_of(line, name, number));
      continue;
    }
    const std::vector<std::string_view> fields = split(line, ',');
    if (fields.size() != 4) fail("{}, line {}: expected 4 fields, found {}", name, number, fields.size());
    EncoderCell cell;
    cell.batch = number_of<std::int64_t>(fields[0], name, number);
    cell.length = length_of(fields[1], name, number);
    cell.padding = number_of<double>(fields[2], name, number);
    for (const std::string_view one : split(fields[3], ' ')) cell.lengths.push_back(length_of(one, name, number));
    if (static_cast<std::int64_t>(cell.lengths.size()) != cell.batch ||
        *std::max_element(cell.lengths.begin(), cell.lengths.end()) > cell.length) {
      fail("{}, line {}: expected {} lengths of at most {}", name, number, cell.batch, cell.length);
    }
    cells_.push_back(std::move(cell));
  }
  if (texts_.empty() && cells_.empty()) fail("{} holds no lengths: expected one a line", name);
}

std::vector<std::int32_t> LengthsFile::draw(std::int64_t batch, std::int64_t length, std::uint64_t seed) const {
  Random random(seed);
  std::vector<std::int32_t> out;
  out.reserve(static_cast<std::size_t>(batch));
  for (std::int64_t i = 0; i < batch; ++i) {
    const auto at = static_cast<std::size_t>(random.below(static_cast<std::int64_t>(texts_.size())));
    out.push_back(static_cast<std::int32_t>(std::min<std::int64_t>(texts_[at], length)));
  }
  return out;
}

std::vector<std::int32_t> random_ids(const Program& program, const EncoderCell& cell, std::uint64_t seed,
                                     std::int32_t padding) {
  if (program.vocab < 4) fail("the model's vocabulary of {} entries is too small for random tokens", program.vocab);
  Random random(seed);
  std::vector<std::int32_t> out(static_cast<std::size_t>(cell.batch * cell.length), padding);
  for (std::int64_t s = 0; s < cell.batch; ++s) {
    for (std::int64_t i = 0; i < cell.lengths[static_cast<std::size_t>(s)]; ++i) {
      std::int32_t& id = out[static_cast<std::size_t>(s * cell.length + i)];
      do {
        id = 1 + static_cast<std::int32_t>(random.below(program.vocab - 2));
      } while (id == padding);
    }
  }
  return out;
}

EncoderCell image_cell(const EncoderEngine& engine, std::int64_t images) {
  const auto rows = static_cast<std::int32_t>(engine.program().max_positions);
  return {images, rows, 0, std::vector<std::int32_t>(static_cast<std::size_t>(images), rows)};
}

EncoderCell audio_cell(const EncoderEngine& engine, const EncoderCell& steps) {
  const AudioShape& shape = *engine.program().audio;
  if (shape.length > 0 && steps.length != shape.length)
    fail_usage("recordings of {} steps: this model takes {} of each", steps.length, shape.length);
  const std::int64_t rows = engine.frames(steps.length);
  if (rows < 1 || rows > engine.max_length()) {
    fail_usage("recordings of {} steps: this model takes {} at least, and at most so many as make {} rows",
               steps.length, shape.least_steps(), engine.max_length());
  }
  EncoderCell cell = steps;
  cell.steps = steps.length;
  cell.length = rows;
  cell.audio_lengths = steps.lengths;
  for (std::size_t i = 0; i < cell.lengths.size(); ++i) {
    std::int32_t& own = cell.audio_lengths[i];
    own = std::max(own, static_cast<std::int32_t>(shape.least_steps()));
    cell.lengths[i] = static_cast<std::int32_t>(engine.frames(own));
  }
  return cell;
}

struct BenchBatch;

struct EncoderBench::Impl {
  EncoderBenchOptions options;
  std::unique_ptr<EncoderEngine> eager, fast;
  std::int32_t padding_id = 0;
  std::optional<NvmlDevice> nvml;  // of the GPU, where there is one

  bool gpu() const { return fast->device().info().kind == DeviceKind::cuda; }
  /// Memory in use beside the weights: of this process, or on its GPU.
  std::size_t memory_now() const { return nvml ? gpu_memory_now(*nvml, 0).bytes : resident_memory().anonymous; }
  bool text() const { return !fast->program().image && !fast->program().audio; }
  EncoderPathResult warm_up(EncoderEngine& engine, const BenchBatch& batch, EncoderResult& result) const;
  std::optional<double> copy_seconds(const BenchBatch& batch) const;
};

// A cell's batch: of tokens, of images, or of recordings.
struct BenchBatch {
  BenchBatch(const EncoderBench::Impl& bench, const EncoderCell& cell)
      : ids(bench.text() ? random_ids(bench.fast->program(), cell, bench.options.seed, bench.padding_id)
                         : std::vector<std::int32_t>()),
        tokens{cell.batch, cell.length, ids, cell.lengths, {}} {
    Device& device = bench.fast->device();
    Random random(bench.options.seed);
    if (const auto& shape = bench.fast->program().image) {
      const std::span<float> pixels = take(device, cell.batch * shape->values());
      for (float& value : pixels) value = random.normal();
      images = {cell.batch, shape->channels, shape->size, shape->size, pixels};
    } else if (const auto& sound = bench.fast->program().audio) {
      const std::span<float> all = take(device, cell.batch * sound->channels * cell.steps);
      std::fill(all.begin(), all.end(), 0.0F);
      for (std::int64_t row = 0; row < cell.batch * sound->channels; ++row) {
        const auto length =
            static_cast<std::size_t>(cell.audio_lengths[static_cast<std::size_t>(row / sound->channels)]);
        for (float& value : all.subspan(static_cast<std::size_t>(row * cell.steps), length)) value = random.normal();
      }
      audio = {cell.batch, sound->channels, cell.steps, all, cell.audio_lengths};
      // A model that looks at all steps of each recording takes no lengths.
      if (sound->length > 0) audio.lengths = {};
    }
  }

  void forward(EncoderEngine& engine, EncoderResult& result, const EncoderWants& wants = {}) const {
    if (engine.program().image) {
      engine.forward(images, wants, result);
    } else if (engine.program().audio) {
      engine.forward(audio, wants, result);
    } else {
      engine.forward(tokens, wants, result);
    }
  }

  std::vector<NodeTime> profile(EncoderEngine& engine) const {
    if (engine.program().image) return engine.profile(images);
    if (engine.program().audio) return engine.profile(audio);
    return engine.profile(tokens);
  }

  std::span<float> take(Device& device, std::int64_t count) {
    const auto values = static_cast<std::size_t>(count);
    bytes = values * sizeof(float);
    memory = device.allocate_staging(bytes);
    return {reinterpret_cast<float*>(memory->data()), values};
  }

  std::vector<std::int32_t> ids;
  std::unique_ptr<Buffer> memory;  // of pixels or sound
  std::size_t bytes = 0;           // of them
  EncoderBatch tokens;             // of images and audio: its lengths only
  ImageBatch images;
  AudioBatch audio;
};

EncoderPathResult EncoderBench::Impl::warm_up(EncoderEngine& engine, const BenchBatch& batch,
                                              EncoderResult& result) const {
  EncoderPathResult out;
  // What the last batch took is given back first, so that what this one takes shows.
  engine.release();
  const std::size_t before = memory_now();
  MemoryWatch watch;
  batch.forward(engine, result);
  watch.stop();
  if (gpu()) {
    // As it is timed, too: what this takes is taken before. A GPU that had nothing to do has lowered its clocks, and
    // needs some work to raise them again.
    constexpr double kRaisesClocks = 0.03;  // seconds
    EncoderResult none;
    const Clock::time_point start = Clock::now();
    do {
      batch.forward(engine, none, {.hidden = false, .head = false, .on_device = true});
    } while (seconds_since(start) < kRaisesClocks);
  }
  const std::size_t peak = nvml ? memory_now() : watch.peak().anonymous;
  out.planned_memory = engine.plan().weights + engine.plan().arena + engine.plan().workspace;
  out.peak_memory = gpu() && !nvml ? out.planned_memory : engine.plan().weights + (peak > before ? peak - before : 0);
  return out;
}

std::optional<double> EncoderBench::Impl::copy_seconds(const BenchBatch& batch) const {
  if (!gpu() || batch.bytes == 0) return std::nullopt;
  constexpr int kCopies = 5;
  Device& device = fast->device();
  const std::unique_ptr<Stream> stream = device.make_stream();
  const std::unique_ptr<Buffer> there = device.allocate(batch.bytes, "timing the copy of a batch");
  std::vector<double> seconds;
  seconds.reserve(kCopies);
  for (int i = 0; i < kCopies; ++i) {
    const Clock::time_point start = Clock::now();
    stream->copy_to_device(there->data(), batch.memory->data(), batch.bytes);
    stream->synchronize();
    seconds.push_back(seconds_since(start));
  }
  return statistics_of(seconds).median;
}

EncoderBench::EncoderBench(const std::shared_ptr<const Checkpoint>& checkpoint, const EncoderBenchOptions& options)
    : impl_(std::make_unique<Impl>()) {
  Impl& m = *impl_;
  m.options = options;
  EncoderOptions engine;
  engine.device = options.device;
  engine.compute = options.compute;
  engine.head = false;
  engine.pass_rows = options.pass_rows;
  m.fast = std::make_unique<EncoderEngine>(checkpoint, engine);
  if (m.gpu()) m.nvml = NvmlDevice::find(m.fast->device().info().bus);
  if (m.fast->program().skipped_token > 0) m.padding_id = m.fast->program().skipped_token;
  if (!options.eager) return;
  engine.path = EncoderPath::eager;
  m.eager = std::make_unique<EncoderEngine>(checkpoint, engine);
}

EncoderBench::~EncoderBench() = default;

EncoderEngine& EncoderBench::fast() { return *impl_->fast; }

EncoderCellResult EncoderBench::run(const EncoderCell& cell, const std::function<void(double)>& progress) {
  Impl& m = *impl_;
  EncoderCellResult out;
  try {
    const BenchBatch batch(m, cell);
    out.cost = m.fast->cost(cell.lengths);
    EncoderResult of_fast, of_eager;
    out.fast = m.warm_up(*m.fast, batch, of_fast);
    if (m.eager) {
      out.eager = m.warm_up(*m.eager, batch, of_eager);
      out.difference = largest_difference(batch.tokens, of_fast.hidden, of_eager.hidden);
      const double bound = agreement_bound(m.fast->compute());
      // Written so that a NaN fails.
      if (!(out.difference <= bound)) {
        fail("the paths' hidden states differ by {:.3g} of the largest; {} lets {} pass", out.difference,
             name_of(m.fast->compute()), bound);
      }
    }
    // One after the other, each first in every other round: a machine that slows down slows both.
    double spent = 0;
    std::optional<GpuRunWatch> run;
    if (m.nvml) run.emplace(*m.nvml);
    const auto rounds = static_cast<std::size_t>(m.options.num_batches);
    for (std::size_t round = 0; round < rounds && InterruptGuard::signal() == 0; ++round) {
      if (m.options.seconds > 0 && round >= kLeastRounds && spent > m.options.seconds) break;
      const auto time = [&](EncoderEngine* engine, EncoderPathResult& to, EncoderResult& result) {
        if (engine == nullptr) return;
        const EncoderWants wants{.hidden = !m.gpu(), .head = false, .on_device = m.gpu()};
        const Clock::time_point start = Clock::now();
        batch.forward(*engine, result, wants);
        to.seconds.push_back(seconds_since(start));
        spent += to.seconds.back();
      };
      if (round % 2 == 0) time(m.eager.get(), out.eager, of_eager);
      time(m.fast.get(), out.fast, of_fast);
      if (round % 2 == 1) time(m.eager.get(), out.eager, of_eager);
      const double of_rounds = static_cast<double>(round + 1) / static_cast<double>(rounds);
      progress(m.options.seconds > 0 ? std::max(of_rounds, std::min(1.0, spent / m.options.seconds)) : of_rounds);
    }
    if (run) out.gpu = run->finish();
    out.copy = m.copy_seconds(batch);
  } catch (const Error& error) {
    out.error = error.what();
  }
  return out;
}

std::vector<NodeTime> EncoderBench::profile(const EncoderCell& cell) {
  const BenchBatch batch(*impl_, cell);
  return batch.profile(*impl_->fast);
}

std::string profile_text(const std::vector<NodeTime>& times) {
  std::map<std::string, double> by_name;
  double total = 0;
  for (const NodeTime& time : times) {
    // Names of linear nodes hold their layer's number where the modules do.
    std::string name;
    for (const char c : time.name) name += c >= '0' && c <= '9' ? '*' : c;
    by_name[name] += time.seconds;
    total += time.seconds;
  }
  std::vector<std::pair<std::string, double>> sorted(by_name.begin(), by_name.end());
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string out;
  for (const auto& [name, seconds] : sorted)
    out += fmt::format("{:8.3f} ms {:5.1f}%  {}\n", seconds * 1e3, 100 * seconds / total, name);
  return out;
}

}  // namespace nibble
