// Whole encoders on the GPU: what transformers computes, both paths, every family; ragged batches, captured passes and
// results that stay on the device.
#include "engine/encoder.h"

#include "core/error.h"
#include "core/float_convert.h"
#include "cuda/encoder_options.h"
#include "cuda/gpu.h"
#include "support/expect_error.h"
#include "support/golden_encoder.h"

#include <random>

namespace nibble {
namespace {

using test::GoldenAudio;
using test::GoldenEncoder;
using test::GoldenImages;
using test::on_gpu;

EncoderBatch batch_of(const GoldenEncoder& golden) {
  return {golden.sequences, golden.length, golden.ids, golden.lengths, golden.types};
}

ImageBatch batch_of(const GoldenImages& golden) {
  return {golden.images, golden.channels, golden.height, golden.width, golden.pixels};
}

AudioBatch batch_of(const GoldenAudio& golden) {
  return {golden.recordings, golden.channels, golden.steps, golden.values, golden.lengths};
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  const std::vector<std::int32_t> one = {1};
  return largest_difference({1, 1, {}, one, {}}, a, b);
}

double head_difference(const GoldenEncoder& golden, const EncoderEngine& engine, const EncoderResult& result) {
  return engine.head_has_rows() ? largest_difference(batch_of(golden), result.head, golden.head)
                                : difference(result.head, golden.head);
}

// f32 sums in another order move these models' values by some 1e-6 of the largest. 16-bit types round operands,
// activations and the stream between blocks by up to 2^-11 and 2^-8, which models of large random weights amplify.
double bound_of(DType type) { return type == DType::f32 ? 1e-4 : type == DType::f16 ? 0.03 : 0.15; }

constexpr EncoderPath kPaths[] = {EncoderPath::eager, EncoderPath::fast};
constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};

TEST(CudaEncoder, GoldenTexts) {
  NIBBLE_NEEDS_GPU();
  for (const std::string& name : test::golden_encoder_names()) {
    const GoldenEncoder golden = test::read_golden_encoder(name);
    const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
    for (const EncoderPath path : kPaths) {
      for (const DType type : kTypes) {
        SCOPED_TRACE(name + ", " + std::string(name_of(path)) + ", " + std::string(name_of(type)));
        EncoderEngine engine(checkpoint, on_gpu(path, type));
        EncoderResult result;
        engine.forward(batch_of(golden), {.hidden = true, .head = !golden.head.empty()}, result);
        EXPECT_LT(largest_difference(batch_of(golden), result.hidden, golden.hidden), bound_of(type));
        if (!golden.head.empty()) {
          EXPECT_LT(head_difference(golden, engine, result), bound_of(type));
        }
      }
    }
  }
}

TEST(CudaEncoder, GoldenImages) {
  NIBBLE_NEEDS_GPU();
  for (const std::string& name : test::golden_image_names()) {
    const GoldenImages golden = test::read_golden_images(name);
    const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
    for (const EncoderPath path : kPaths) {
      for (const DType type : kTypes) {
        SCOPED_TRACE(name + ", " + std::string(name_of(path)) + ", " + std::string(name_of(type)));
        EncoderEngine engine(checkpoint, on_gpu(path, type));
        EncoderResult result;
        engine.forward(batch_of(golden), {.hidden = true, .head = !golden.head.empty()}, result);
        EXPECT_LT(difference(result.hidden, golden.hidden), bound_of(type));
        if (!golden.head.empty()) {
          EXPECT_LT(difference(result.head, golden.head), bound_of(type));
        }
      }
    }
  }
}

double audio_difference(const GoldenAudio& golden, const std::vector<float>& hidden) {
  return largest_difference({golden.recordings, golden.rows, {}, golden.frames, {}}, hidden, golden.hidden);
}

const char* const kAudioModels[] = {"hubert", "wav2vec2", "wav2vec2_stable", "whisper_encoder"};

TEST(CudaEncoder, GoldenAudio) {
  NIBBLE_NEEDS_GPU();
  for (const char* name : kAudioModels) {
    const GoldenAudio golden = test::read_golden_audio(name);
    const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
    for (const EncoderPath path : kPaths) {
      for (const DType type : kTypes) {
        for (const std::int64_t pass_rows : {0, 1}) {
          SCOPED_TRACE(std::string(name) + ", " + std::string(name_of(path)) + ", " + std::string(name_of(type)));
          EncoderOptions options = on_gpu(path, type);
          options.pass_rows = pass_rows;
          EncoderEngine engine(checkpoint, options);
          EncoderResult result;
          engine.forward(batch_of(golden), {}, result);
          EXPECT_LT(audio_difference(golden, result.hidden), bound_of(type));
          // A second pass of the same engine works in memory that the first one left.
          EncoderResult again;
          engine.forward(batch_of(golden), {}, again);
          EXPECT_EQ(again.hidden, result.hidden);
        }
      }
    }
  }
}

// A batch of noise for a golden model, of recordings of these lengths.
GoldenAudio random_audio(GoldenAudio golden, const EncoderEngine& engine, const std::vector<std::int32_t>& lengths,
                         std::int64_t steps, unsigned seed) {
  golden.recordings = static_cast<std::int64_t>(lengths.size());
  golden.steps = steps;
  golden.lengths = lengths;
  golden.frames.clear();
  golden.hidden.clear();
  const std::int64_t each = golden.channels * steps;
  golden.values.assign(static_cast<std::size_t>(golden.recordings * each), 0);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (std::int64_t r = 0; r < golden.recordings; ++r) {
    const std::int32_t length = lengths[static_cast<std::size_t>(r)];
    golden.frames.push_back(static_cast<std::int32_t>(engine.frames(length)));
    for (std::int64_t i = 0; i < golden.channels * length; ++i)
      golden.values[static_cast<std::size_t>(r * each + i)] = normal(random);
  }
  golden.rows = engine.frames(steps);
  return golden;
}

// Longer than the fixtures, of unequal lengths, more than one launch takes: as the CPU computes it.
TEST(CudaEncoder, AudioIsWhatTheCpuMakesOfIt) {
  NIBBLE_NEEDS_GPU();
  for (const char* name : {"wav2vec2", "wav2vec2_stable"}) {
    const GoldenAudio fixture = test::read_golden_audio(name);
    const auto checkpoint = std::make_shared<const Checkpoint>(fixture.folder);
    EncoderOptions of_cpu;
    of_cpu.compute = DType::f32;
    EncoderEngine cpu(checkpoint, of_cpu);
    constexpr std::int32_t kSteps = 9001;
    std::vector<std::int32_t> lengths;
    lengths.reserve(70);
    for (std::int32_t r = 0; r < 70; ++r) lengths.push_back(r == 1 ? kSteps : 40 + r * 1237 % 8000);
    GoldenAudio golden = random_audio(fixture, cpu, lengths, kSteps, 3);
    EncoderResult expected;
    cpu.forward(batch_of(golden), {}, expected);
    golden.hidden = expected.hidden;
    for (const EncoderPath path : kPaths) {
      for (const DType type : kTypes) {
        SCOPED_TRACE(std::string(name) + ", " + std::string(name_of(path)) + ", " + std::string(name_of(type)));
        EncoderEngine engine(checkpoint, on_gpu(path, type));
        EncoderResult result;
        engine.forward(batch_of(golden), {}, result);
        EXPECT_LT(audio_difference(golden, result.hidden), bound_of(type));
      }
    }
  }
}

// A pass that was captured with some recordings is replayed for others, whose frames lie elsewhere.
TEST(CudaEncoder, ReplaysOfRecordingsLookAtTheirOwnLengths) {
  NIBBLE_NEEDS_GPU();
  for (const char* name : kAudioModels) {
    const GoldenAudio fixture = test::read_golden_audio(name);
    const auto checkpoint = std::make_shared<const Checkpoint>(fixture.folder);
    for (const DType type : kTypes) {
      SCOPED_TRACE(std::string(name) + ", " + std::string(name_of(type)));
      EncoderOptions direct = on_gpu(EncoderPath::fast, type);
      direct.capture = false;
      EncoderEngine plain(checkpoint, direct);
      EncoderEngine captured(checkpoint, on_gpu(EncoderPath::fast, type));
      const bool whole = captured.program().audio->length > 0;
      const auto steps = static_cast<std::int32_t>(whole ? fixture.steps : 3000);
      captured.reserve(4, steps);
      unsigned seed = 20;
      for (const std::vector<std::int32_t>& parts :
           {std::vector<std::int32_t>{100, 20, 60, 40}, std::vector<std::int32_t>{30, 100, 10, 80},
            std::vector<std::int32_t>{40, 60, 20, 100}, std::vector<std::int32_t>{100, 20, 60, 40}}) {
        std::vector<std::int32_t> lengths;
        lengths.reserve(parts.size());
        for (const std::int32_t part : parts) lengths.push_back(whole ? steps : steps / 100 * part);
        const GoldenAudio batch = random_audio(fixture, plain, lengths, steps, seed++);
        EncoderResult a, b;
        plain.forward(batch_of(batch), {}, a);
        captured.forward(batch_of(batch), {}, b);
        const double far = largest_difference({batch.recordings, batch.rows, {}, batch.frames, {}}, b.hidden, a.hidden);
        EXPECT_LT(far, type == DType::f32 ? 1e-5 : bound_of(type));
        EncoderResult again;
        captured.forward(batch_of(batch), {}, again);
        EXPECT_EQ(again.hidden, b.hidden);
      }
    }
  }
}

GoldenEncoder random_batch(const EncoderEngine& engine, const std::vector<std::int32_t>& lengths, std::int64_t length) {
  GoldenEncoder batch;
  batch.sequences = static_cast<std::int64_t>(lengths.size());
  batch.length = length;
  batch.lengths = lengths;
  for (std::int64_t i = 0; i < batch.sequences * length; ++i)
    batch.ids.push_back(static_cast<std::int32_t>(i * 7 % engine.program().vocab));
  return batch;
}

TEST(CudaEncoder, PathsAgreeOnRaggedBatches) {
  NIBBLE_NEEDS_GPU();
  const auto checkpoint = std::make_shared<const Checkpoint>(test::golden_encoders() / "bert");
  EncoderEngine eager(checkpoint, on_gpu(EncoderPath::eager, DType::f32));
  EncoderEngine fast(checkpoint, on_gpu(EncoderPath::fast, DType::f32));
  EncoderOptions small_passes = on_gpu(EncoderPath::fast, DType::f32);
  small_passes.pass_rows = fast.max_length();
  EncoderEngine small(checkpoint, small_passes);
  const auto longest = static_cast<std::int32_t>(fast.max_length());
  for (const std::vector<std::int32_t>& lengths :
       {std::vector<std::int32_t>{longest}, std::vector<std::int32_t>{1, 1, 1}, std::vector<std::int32_t>(3, longest),
        std::vector<std::int32_t>{2, 1, longest, 3, 1}, std::vector<std::int32_t>(70, 3)}) {
    const GoldenEncoder batch = random_batch(fast, lengths, longest);
    EncoderResult a, b, c;
    eager.forward(batch_of(batch), {}, a);
    fast.forward(batch_of(batch), {}, b);
    small.forward(batch_of(batch), {}, c);
    EXPECT_LT(largest_difference(batch_of(batch), b.hidden, a.hidden), 1e-4);
    EXPECT_LT(largest_difference(batch_of(batch), c.hidden, a.hidden), 1e-4);
  }
}

std::vector<float> read_device(EncoderEngine& engine) {
  const MatrixRef there = engine.on_device();
  std::vector<float> out(static_cast<std::size_t>(there.rows * there.columns));
  const std::unique_ptr<Stream> stream = engine.device().make_stream();
  if (there.dtype == DType::f32) {
    stream->copy_to_host(out.data(), there.data, out.size() * sizeof(float));
    stream->synchronize();
    return out;
  }
  std::vector<std::uint16_t> raw(out.size());
  stream->copy_to_host(raw.data(), there.data, raw.size() * sizeof(std::uint16_t));
  stream->synchronize();
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = there.dtype == DType::f16 ? half_to_float(raw[i]) : bf16_to_float(raw[i]);
  return out;
}

// A captured pass gives the bits of one that was enqueued, whatever batch it was captured with, every time.
TEST(CudaEncoder, ReplaysGiveTheSameBits) {
  NIBBLE_NEEDS_GPU();
  const auto checkpoint = std::make_shared<const Checkpoint>(test::golden_encoders() / "bert");
  for (const DType type : kTypes) {
    EncoderOptions direct = on_gpu(EncoderPath::fast, type);
    direct.capture = false;
    EncoderEngine plain(checkpoint, direct);
    EncoderEngine captured(checkpoint, on_gpu(EncoderPath::fast, type));
    const auto longest = static_cast<std::int32_t>(plain.max_length());
    captured.reserve(4, longest);
    for (const std::vector<std::int32_t>& lengths :
         {std::vector<std::int32_t>{5, 1, longest, 3}, std::vector<std::int32_t>{longest, 2, 2, 1},
          std::vector<std::int32_t>{1, 1, 1, 1}, std::vector<std::int32_t>{5, 1, longest, 3}}) {
      const GoldenEncoder batch = random_batch(plain, lengths, longest);
      EncoderResult a, b, c;
      plain.forward(batch_of(batch), {}, a);
      captured.forward(batch_of(batch), {}, b);
      captured.forward(batch_of(batch), {.hidden = true, .head = false, .on_device = true}, c);
      // Another number of rows may choose another kernel for a product: bits are compared for the same one.
      if (type == DType::f32) {
        EXPECT_LT(difference(b.hidden, a.hidden), 1e-5);
      }
      EXPECT_EQ(c.hidden, b.hidden);
      EXPECT_EQ(read_device(captured), b.hidden);
      EncoderResult again;
      captured.forward(batch_of(batch), {}, again);
      EXPECT_EQ(again.hidden, b.hidden);
    }
  }
}

// Rows of a head that are asked for are those of all rows, on both paths.
TEST(CudaEncoder, HeadsOfTheRowsAskedFor) {
  NIBBLE_NEEDS_GPU();
  const GoldenEncoder golden = test::read_golden_encoder("bert_mlm");
  const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
  for (const EncoderPath path : kPaths) {
    for (const DType type : kTypes) {
      SCOPED_TRACE(std::string(name_of(path)) + ", " + std::string(name_of(type)));
      EncoderEngine engine(checkpoint, on_gpu(path, type));
      const auto columns = static_cast<std::size_t>(engine.head_columns());
      // The second time the pass before the head is replayed.
      for (const std::vector<TokenPlace>& places :
           {std::vector<TokenPlace>{{0, 1}, {1, 0}}, std::vector<TokenPlace>{{0, 0}, {0, 2}, {1, 1}},
            std::vector<TokenPlace>{{1, 0}}}) {
        EncoderResult some;
        engine.forward(batch_of(golden), {.hidden = false, .head = true, .head_rows = places}, some);
        std::vector<float> expected;
        for (const TokenPlace& place : places) {
          const auto first = static_cast<std::size_t>(place.sequence * golden.length + place.position) * columns;
          expected.insert(expected.end(), golden.head.begin() + static_cast<std::ptrdiff_t>(first),
                          golden.head.begin() + static_cast<std::ptrdiff_t>(first + columns));
        }
        ASSERT_EQ(some.head.size(), expected.size());
        EXPECT_LT(difference(some.head, expected), bound_of(type));
      }
    }
  }
}

TEST(CudaEncoder, WhatStaysOnTheDevice) {
  NIBBLE_NEEDS_GPU();
  const GoldenImages golden = test::read_golden_images(test::golden_image_names().front());
  const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
  for (const EncoderPath path : kPaths) {
    EncoderEngine engine(checkpoint, on_gpu(path, DType::f16));
    EncoderResult result;
    const ImageBatch batch = batch_of(golden);
    engine.forward(batch, {}, result);
    EncoderResult none;
    engine.forward(batch, {.hidden = false, .head = false, .on_device = true}, none);
    EXPECT_EQ(read_device(engine), result.hidden);
  }
}

}  // namespace
}  // namespace nibble
