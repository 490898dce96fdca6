// nibble encode, fill-mask and classify, as a user runs them.
#include "support/encoder_folder.h"
#include "support/program.h"
#include "support/temp_folder.h"
#include "support/wav_file.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstring>
#include <sstream>

namespace nibble {
namespace {

using nlohmann::json;
using test::ProgramEnd;

constexpr std::size_t kWidth = 40;  // the golden models' hidden size

std::vector<json> json_lines(const std::string& text) {
  std::vector<json> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) out.push_back(json::parse(line));
  return out;
}

class EncoderCommands : public testing::Test {
 protected:
  std::string model(const std::string& name) {
    if (!std::filesystem::exists(folder_.path() / name)) test::copy_encoder(folder_, name, name);
    return name;
  }
  ProgramEnd run(const std::vector<std::string>& words) {
    return test::run_program(NIBBLE_PROGRAM, words, folder_.path());
  }
  /// The same with a text on standard input; words without spaces.
  ProgramEnd run_with_input(const std::string& input, const std::vector<std::string>& words) {
    folder_.write("input.txt", input);
    std::string line = NIBBLE_PROGRAM;
    for (const std::string& word : words) line += " '" + word + "'";
    return test::run_program("/bin/sh", {"-c", line + " < input.txt"}, folder_.path());
  }
  void expect_refusal(int code, const std::string& part, const std::vector<std::string>& words) {
    const ProgramEnd end = run(words);
    EXPECT_EQ(end.exit_code, code) << end.out << end.err;
    EXPECT_NE(end.err.find(part), std::string::npos) << "said: " << end.err << "expected: " << part;
    EXPECT_EQ(end.out, "");
  }
  test::TempFolder folder_;
};

TEST_F(EncoderCommands, EncodeGivesALineForEachLine) {
  // An empty line in the middle, ends of lines of two kinds, none at the end.
  folder_.write("texts.txt", "w5 w6\r\n\nw9 w10 w11");
  const ProgramEnd end = run({"encode", "--model", model("bert"), "texts.txt"});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const std::vector<json> rows = json_lines(end.out);
  ASSERT_EQ(rows.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(rows[i]["index"], i);
    ASSERT_EQ(rows[i]["embedding"].size(), kWidth);
    double squares = 0;
    for (const double v : rows[i]["embedding"]) squares += v * v;
    EXPECT_NEAR(squares, 1, 1e-5);
  }
  const ProgramEnd piped = run_with_input("w5 w6\n\nw9 w10 w11\n", {"encode", "--model", "bert", "--path", "eager"});
  ASSERT_EQ(piped.exit_code, 0) << piped.err;
  const std::vector<json> other = json_lines(piped.out);
  ASSERT_EQ(other.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t c = 0; c < kWidth; ++c) {
      EXPECT_NEAR(rows[i]["embedding"][c].get<double>(), other[i]["embedding"][c].get<double>(), 1e-5);
    }
  }
}

TEST_F(EncoderCommands, EncodeKeepsTheOrderThroughManyChunks) {
  // Batches of 1 make chunks of 64 lines; lines of one text must have one embedding, wherever they stand.
  std::string text;
  for (int i = 0; i < 300; ++i) {
    for (int w = 0; w <= i % 7; ++w) text += test::word(5 + i % 7) + ' ';
    text += "\n";
  }
  folder_.write("texts.txt", text);
  const ProgramEnd end = run({"encode", "--model", model("bert"), "--batch-size", "1", "texts.txt"});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const std::vector<json> rows = json_lines(end.out);
  ASSERT_EQ(rows.size(), 300U);
  for (std::size_t i = 7; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i]["index"], i);
    EXPECT_NEAR(rows[i]["embedding"][0].get<double>(), rows[i % 7]["embedding"][0].get<double>(), 1e-5);
    EXPECT_NE(rows[i]["embedding"][0], rows[(i + 1) % 7]["embedding"][0]);
  }
}

TEST_F(EncoderCommands, EncodeWritesNumPyFiles) {
  folder_.write("texts.txt", "w5 w6\nw7\n");
  const std::vector<std::string> words = {"encode", "--model", model("bert"), "texts.txt"};
  std::vector<std::string> npy = words;
  npy.insert(npy.end(), {"--format", "npy", "--output", "out.npy"});
  const ProgramEnd end = run(npy);
  ASSERT_EQ(end.exit_code, 0) << end.err;
  EXPECT_EQ(end.out, "");
  const std::string file = test::file_text(folder_.path() / "out.npy");
  ASSERT_EQ(file.size(), 128 + 2 * kWidth * sizeof(float));
  EXPECT_EQ(file.substr(0, 8), std::string("\x93NUMPY\x01\0", 8));
  EXPECT_EQ(file.substr(8, 2), std::string("\x76\0", 2));
  EXPECT_NE(file.find("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 40), }"), std::string::npos);
  EXPECT_EQ(file[127], '\n');
  const std::vector<json> rows = json_lines(run(words).out);
  ASSERT_EQ(rows.size(), 2U);
  for (std::size_t i = 0; i < 2 * kWidth; ++i) {
    float value = 0;
    std::memcpy(&value, file.data() + 128 + i * sizeof(float), sizeof value);
    EXPECT_EQ(value, rows[i / kWidth]["embedding"][i % kWidth].get<float>());
  }
}

TEST_F(EncoderCommands, EncodeOfNothingIsEmpty) {
  folder_.write("empty.txt", "");
  const std::vector<std::string> words = {"encode", "--model", model("bert"), "empty.txt"};
  const ProgramEnd end = run(words);
  EXPECT_EQ(end.exit_code, 0) << end.err;
  EXPECT_EQ(end.out, "");
  std::vector<std::string> npy = words;
  npy.insert(npy.end(), {"--format", "npy", "--output", "out.npy"});
  EXPECT_EQ(run(npy).exit_code, 0);
  EXPECT_NE(test::file_text(folder_.path() / "out.npy").find("'shape': (0, 40)"), std::string::npos);
}

TEST_F(EncoderCommands, EncodeTakesTheFoldersSettingsAndTheCommandLines) {
  folder_.write("texts.txt", "w5 w6 w7\n");
  model("bert");
  folder_.write("bert/modules.json", test::modules_json({"Transformer", "Pooling"}));
  folder_.write("bert/1_Pooling/config.json", R"({"pooling_mode_cls_token": true})");
  const auto embedding = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words = {"encode", "--model", "bert", "texts.txt"};
    words.insert(words.end(), more.begin(), more.end());
    const ProgramEnd end = run(words);
    EXPECT_EQ(end.exit_code, 0) << end.err;
    return json::parse(end.out)["embedding"].get<std::vector<float>>();
  };
  const std::vector<float> by_folder = embedding({});
  EXPECT_EQ(by_folder, embedding({"--pooling", "cls", "--no-normalize"}));
  EXPECT_NE(by_folder, embedding({"--normalize"}));
  EXPECT_NE(by_folder, embedding({"--pooling", "mean"}));
  EXPECT_NE(by_folder, embedding({"--pooling", "pooler"}));
  folder_.write("prefixed.txt", "w9 w5 w6 w7\n");
  const ProgramEnd prefixed = run({"encode", "--model", "bert", "prefixed.txt"});
  EXPECT_EQ(json::parse(prefixed.out)["embedding"].get<std::vector<float>>(), embedding({"--prefix", "w9 "}));
}

TEST_F(EncoderCommands, OneWarningCountsTextsThatWereCut) {
  folder_.write("texts.txt", "w5 w6 w7 w8\nw5\nw5 w6 w7\n");
  const ProgramEnd end = run({"encode", "--model", model("bert"), "--max-length", "4", "texts.txt"});
  EXPECT_EQ(end.exit_code, 0) << end.err;
  EXPECT_EQ(json_lines(end.out).size(), 3U);
  EXPECT_NE(end.err.find("2 of 3 texts had more than 4 tokens"), std::string::npos) << end.err;
}

TEST_F(EncoderCommands, EncodeRefusesWithASentence) {
  folder_.write("texts.txt", "w5\n");
  const std::string bert = model("bert");
  expect_refusal(2, "name one with --output", {"encode", "--model", bert, "--format", "npy", "texts.txt"});
  expect_refusal(2, "expected jsonl or npy", {"encode", "--model", bert, "--format", "csv", "texts.txt"});
  expect_refusal(2, "expected mean, cls or pooler", {"encode", "--model", bert, "--pooling", "max", "texts.txt"});
  expect_refusal(2, "expected eager or fast", {"encode", "--model", bert, "--path", "slow", "texts.txt"});
  expect_refusal(2, "--dtype i3", {"encode", "--model", bert, "--dtype", "i3", "texts.txt"});
  expect_refusal(2, "positions for 24", {"encode", "--model", bert, "--max-length", "25", "texts.txt"});
  expect_refusal(1, "cannot read nothing.txt", {"encode", "--model", bert, "nothing.txt"});
  expect_refusal(1, "bert: it is a folder", {"encode", "--model", bert, bert});
  expect_refusal(1, "cannot write /no/such/folder/x",
                 {"encode", "--model", bert, "--output", "/no/such/folder/x", "texts.txt"});
  expect_refusal(1, "take the mean or cls pooling",
                 {"encode", "--model", model("bert_mlm"), "--pooling", "pooler", "texts.txt"});
}

TEST_F(EncoderCommands, EncodeTakesImages) {
  const std::filesystem::path data = NIBBLE_TEST_DATA;
  const auto image = [&](const char* name) { return (data / "images" / name).string(); };
  for (const char* name : {"vit", "clip"}) {
    std::filesystem::copy(data / "golden_encoders" / name, folder_.path() / name);
    folder_.write(std::string(name) + "/preprocessor_config.json",
                  R"({"image_processor_type": "ViTImageProcessor", "size": {"height": 18, "width": 18}})");
  }
  const ProgramEnd end = run({"encode", "--model", "vit", "--pooling", "mean", "--images", image("photo.jpg"),
                              image("grey.png"), image("palette.png")});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const std::vector<json> rows = json_lines(end.out);
  ASSERT_EQ(rows.size(), 3U);
  for (const json& row : rows) EXPECT_EQ(row.at("embedding").size(), 36U);
  EXPECT_NE(rows[0].at("embedding"), rows[1].at("embedding"));
  // One at a time gives the same.
  const ProgramEnd alone =
      run({"encode", "--model", "vit", "--pooling", "mean", "--batch-size", "1", "--images", image("palette.png")});
  const json last = json_lines(alone.out).at(0).at("embedding");
  for (std::size_t i = 0; i < last.size(); ++i)
    EXPECT_NEAR(last[i].get<double>(), rows[2].at("embedding")[i].get<double>(), 1e-4);

  // Of a model of texts and images the latter: projected, and of length 1.
  const ProgramEnd clip = run({"encode", "--model", "clip", "--images", image("photo.png")});
  ASSERT_EQ(clip.exit_code, 0) << clip.err;
  const json projected = json_lines(clip.out).at(0).at("embedding");
  double squares = 0;
  for (const json& value : projected) squares += value.get<double>() * value.get<double>();
  EXPECT_NEAR(squares, 1, 1e-5);

  expect_refusal(1, "takes text", {"encode", "--model", model("bert"), "--images", image("photo.png")});
  expect_refusal(1, "nowhere.png", {"encode", "--model", "vit", "--images", "nowhere.png"});
  expect_refusal(2, "not both", {"encode", "--model", "vit", "texts.txt", "--images", image("photo.png")});
}

TEST_F(EncoderCommands, EncodeTakesTextsOfAModelOfBoth) {
  folder_.write("texts.txt", "w5 w6\nw7\n");
  const ProgramEnd end = run({"encode", "--model", model("clip"), "texts.txt"});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const std::vector<json> rows = json_lines(end.out);
  ASSERT_EQ(rows.size(), 2U);
  // Projected, and of length 1, as images are.
  double squares = 0;
  for (const json& value : rows[0].at("embedding")) squares += value.get<double>() * value.get<double>();
  EXPECT_EQ(rows[0].at("embedding").size(), 20U);
  EXPECT_NEAR(squares, 1, 1e-5);
  EXPECT_NE(rows[0], rows[1]);
  const ProgramEnd mean = run({"encode", "--model", "clip", "--pooling", "mean", "texts.txt"});
  ASSERT_EQ(mean.exit_code, 0) << mean.err;
  EXPECT_EQ(json_lines(mean.out).at(0).at("embedding").size(), 24U);
}

TEST_F(EncoderCommands, ClassifyTakesImages) {
  const std::filesystem::path data = NIBBLE_TEST_DATA;
  const std::string name = model("vit_image_classification");
  folder_.write(name + "/preprocessor_config.json",
                R"({"image_processor_type": "ViTImageProcessor", "size": {"height": 18, "width": 18}})");
  const auto image = [&](const char* file) { return (data / "images" / file).string(); };
  const ProgramEnd end = run({"classify", "--model", name, "--format", "jsonl", "--batch-size", "2", "--images",
                              image("photo.jpg"), image("grey.png"), image("palette.png")});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const std::vector<json> rows = json_lines(end.out);
  ASSERT_EQ(rows.size(), 3U);
  for (const json& row : rows) {
    ASSERT_EQ(row.at("labels").size(), 3U);
    double sum = 0;
    for (const json& label : row.at("labels")) sum += label.at("score").get<double>();
    EXPECT_NEAR(sum, 1, 1e-5);
    EXPECT_GE(row.at("labels")[0].at("score"), row.at("labels")[1].at("score"));
  }
  EXPECT_EQ(rows[1].at("image"), image("grey.png"));
  const ProgramEnd text = run({"classify", "--model", name, "--top-k", "1", "--images", image("photo.jpg")});
  EXPECT_NE(text.out.find("  " + rows[0].at("labels")[0].at("label").get<std::string>()), std::string::npos);
  expect_refusal(2, "not both", {"classify", "--model", name, "text", "--images", image("photo.jpg")});
  expect_refusal(1, "leave out --images",
                 {"classify", "--model", model("bert_sequence_classification"), "--images", image("photo.jpg")});
  expect_refusal(1, "nibble classify --images needs", {"classify", "--model", model("bert"), "--images", "a.png"});
}

TEST_F(EncoderCommands, EncodeTakesAudio) {
  const std::filesystem::path data = NIBBLE_TEST_DATA;
  for (const char* name : {"wav2vec2", "wav2vec2_stable", "whisper_encoder"})
    std::filesystem::copy(data / "golden_encoders" / name, folder_.path() / name);
  for (const char* name : {"wav2vec2", "wav2vec2_stable"})
    folder_.write(std::string(name) + "/preprocessor_config.json", R"({"do_normalize": true})");
  // 28 frames of 10 bins.
  folder_.write("whisper_encoder/preprocessor_config.json",
                R"({"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 10, "sampling_rate": 1000,
                    "chunk_length": 1, "n_fft": 50, "hop_length": 35})");
  const auto record = [&](const std::string& name, std::int64_t rate, int count, int step) {
    test::WavFile wav;
    wav.rate = rate;
    for (int i = 0; i < count; ++i)
      wav.data += test::packed<std::int16_t>({static_cast<std::int16_t>(i * step % 20011 - 10000)});
    folder_.write(name, wav.bytes());
  };
  record("a.wav", 16000, 700, 31);
  record("b.wav", 16000, 500, 77);
  record("c.wav", 44100, 1700, 13);
  record("short.wav", 16000, 29, 1);

  for (const char* name : {"wav2vec2", "wav2vec2_stable", "whisper_encoder"}) {
    SCOPED_TRACE(name);
    const ProgramEnd end = run({"encode", "--model", name, "--audio", "a.wav", "b.wav", "c.wav"});
    ASSERT_EQ(end.exit_code, 0) << end.err;
    const std::vector<json> rows = json_lines(end.out);
    ASSERT_EQ(rows.size(), 3U);
    EXPECT_NE(rows[0].at("embedding"), rows[1].at("embedding"));
    // One at a time, and op by op, gives the same, however they are padded.
    const ProgramEnd alone =
        run({"encode", "--model", name, "--batch-size", "1", "--path", "eager", "--audio", "a.wav", "b.wav", "c.wav"});
    const std::vector<json> others = json_lines(alone.out);
    ASSERT_EQ(others.size(), 3U);
    for (std::size_t r = 0; r < 3; ++r) {
      const json& row = rows[r].at("embedding");
      EXPECT_EQ(row.size(), std::string_view(name) == "wav2vec2" ? 32U : 24U);
      for (std::size_t i = 0; i < row.size(); ++i)
        EXPECT_NEAR(row[i].get<double>(), others[r].at("embedding")[i].get<double>(), 1e-4);
    }
    // A frame alone is not the mean of all.
    const ProgramEnd first = run({"encode", "--model", name, "--pooling", "cls", "--normalize", "--audio", "a.wav"});
    double squares = 0;
    const json embedding = json_lines(first.out).at(0).at("embedding");
    for (const json& value : embedding) squares += value.get<double>() * value.get<double>();
    EXPECT_NEAR(squares, 1, 1e-5);
  }

  const ProgramEnd npy =
      run({"encode", "--model", "wav2vec2", "--format", "npy", "--output", "out.npy", "--audio", "a.wav", "b.wav"});
  ASSERT_EQ(npy.exit_code, 0) << npy.err;
  EXPECT_EQ(std::filesystem::file_size(folder_.path() / "out.npy") % 64, 2 * 32 * 4 % 64U);

  record("long.wav", 1000, 1500, 7);
  const ProgramEnd cut = run({"encode", "--model", "whisper_encoder", "--audio", "long.wav"});
  ASSERT_EQ(cut.exit_code, 0) << cut.err;
  EXPECT_NE(cut.err.find("1 of 1 recordings are longer"), std::string::npos) << cut.err;

  expect_refusal(1, "short.wav: 29 samples of 16000 a second are too short",
                 {"encode", "--model", "wav2vec2", "--audio", "a.wav", "short.wav"});
  expect_refusal(1, "nowhere.wav", {"encode", "--model", "wav2vec2", "--audio", "nowhere.wav"});
  expect_refusal(1, "takes text: leave out --audio", {"encode", "--model", model("bert"), "--audio", "a.wav"});
  expect_refusal(1, "takes audio: leave out --images", {"encode", "--model", "wav2vec2", "--images", "a.wav"});
  expect_refusal(1, "takes audio, not text: use nibble encode --audio", {"encode", "--model", "wav2vec2", "a.wav"});
  expect_refusal(2, "models of audio have none",
                 {"encode", "--model", "wav2vec2", "--pooling", "pooler", "--audio", "a.wav"});
  expect_refusal(2, "not both", {"encode", "--model", "wav2vec2", "texts.txt", "--audio", "a.wav"});
  expect_refusal(2, "--audio or --images", {"encode", "--model", "wav2vec2", "--images", "x.png", "--audio", "a.wav"});
}

TEST_F(EncoderCommands, FillMaskListsCandidatesOfEachMask) {
  const ProgramEnd end = run({"fill-mask", "--model", model("bert_mlm"), "--top-k", "3", "--format", "jsonl",
                              "w5 [MASK] w7 [MASK]", "[MASK]"});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const std::vector<json> rows = json_lines(end.out);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0]["text"], "w5 [MASK] w7 [MASK]");
  ASSERT_EQ(rows[0]["masks"].size(), 2U);
  EXPECT_EQ(rows[0]["masks"][0]["position"], 2);
  EXPECT_EQ(rows[0]["masks"][1]["position"], 4);
  ASSERT_EQ(rows[1]["masks"].size(), 1U);
  for (const json& mask : rows[0]["masks"]) {
    ASSERT_EQ(mask["candidates"].size(), 3U);
    double last = 1;
    for (const json& candidate : mask["candidates"]) {
      EXPECT_LE(candidate["probability"], last);
      EXPECT_GT(candidate["probability"], 0);
      last = candidate["probability"];
      if (candidate["id"] >= 5) {
        EXPECT_EQ(candidate["token"], test::word(candidate["id"].get<int>()));
      }
    }
  }
  // All candidates' probabilities are 1 together; text of a person's eyes says the same.
  const ProgramEnd all = run({"fill-mask", "--model", "bert_mlm", "--top-k", "1000", "--format", "jsonl", "[MASK]"});
  double sum = 0;
  const json whole = json::parse(all.out);
  for (const json& candidate : whole["masks"][0]["candidates"]) sum += candidate["probability"].get<double>();
  EXPECT_NEAR(sum, 1, 1e-5);
  const ProgramEnd text = run_with_input("w5 [MASK] w7 [MASK]\n", {"fill-mask", "--model", "bert_mlm"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out.find("  [MASK] 2\n"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find(rows[0]["masks"][0]["candidates"][0]["token"].get<std::string>()), std::string::npos);
}

TEST_F(EncoderCommands, TextsBetweenBracketsStayWhole) {
  const std::string text = "[MASK], [MASK]";
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"fill-mask", "--format", "jsonl", "--model", model("bert_mlm"), text},
        {"fill-mask", "--format=jsonl", "--model=bert_mlm", "--", text}}) {
    const ProgramEnd end = run(words);
    ASSERT_EQ(end.exit_code, 0) << end.err;
    EXPECT_EQ(json::parse(end.out)["text"], text);
  }
  std::filesystem::copy(folder_.path() / "bert_mlm", folder_.path() / "[m]");
  EXPECT_EQ(run({"fill-mask", "--model=[m]", "[MASK]"}).exit_code, 0);
}

TEST_F(EncoderCommands, FillMaskRefusesWithASentence) {
  const std::string mlm = model("bert_mlm");
  expect_refusal(1, "text 2 has no masked token: write [MASK]", {"fill-mask", "--model", mlm, "[MASK]", "w5"});
  expect_refusal(1, "stands behind the 3 tokens", {"fill-mask", "--model", mlm, "--max-length", "3", "w5 w6 [MASK]"});
  expect_refusal(1, "has a pooler: nibble fill-mask needs", {"fill-mask", "--model", model("bert"), "[MASK]"});
  expect_refusal(1, "nibble classify and nibble encode can use this one",
                 {"fill-mask", "--model", model("bert_question_answering"), "[MASK]"});
  expect_refusal(1, "nibble generate runs it",
                 {"fill-mask", "--model", std::string(NIBBLE_TEST_DATA) + "/golden/qwen2", "[MASK]"});
}

TEST_F(EncoderCommands, ClassifyGivesLabelsOfTexts) {
  const std::string name = model("bert_sequence_classification");
  const ProgramEnd end = run({"classify", "--model", name, "--format", "jsonl", "w5 w6", "", "w5 w6"});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const std::vector<json> rows = json_lines(end.out);
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0], rows[2]);
  double sum = 0;
  for (const json& label : rows[1]["labels"]) sum += label["score"].get<double>();
  EXPECT_NEAR(sum, 1, 1e-5);
  EXPECT_GE(rows[0]["labels"][0]["score"], rows[0]["labels"][1]["score"]);

  const ProgramEnd pairs =
      run_with_input("w5\tw6\n\tw9\n", {"classify", "--model", name, "--pair", "--top-k", "1", "--format", "jsonl"});
  ASSERT_EQ(pairs.exit_code, 0) << pairs.err;
  EXPECT_EQ(json_lines(pairs.out)[0]["pair"], "w6");
  EXPECT_EQ(json_lines(pairs.out)[1]["text"], "");
  EXPECT_EQ(json_lines(pairs.out)[1]["labels"].size(), 1U);
  const ProgramEnd text = run({"classify", "--model", name, "w5 w6"});
  EXPECT_NE(text.out.find(rows[0]["labels"][0]["label"].get<std::string>()), std::string::npos);
  expect_refusal(1, "text 1 is no pair", {"classify", "--model", name, "--pair", "w5 w6"});
  expect_refusal(2, "--question is for heads that find answers",
                 {"classify", "--model", name, "--question", "w5", "w6"});
}

TEST_F(EncoderCommands, ClassifyGivesLabelsOfTokensAndGroups) {
  const std::string name = model("bert_token_classification");
  const ProgramEnd end = run({"classify", "--model", name, "--format", "jsonl", "w5 w60 w7 w33", ""});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const std::vector<json> rows = json_lines(end.out);
  ASSERT_EQ(rows.size(), 2U);
  const json& tokens = rows[0]["tokens"];
  ASSERT_EQ(tokens.size(), 4U);
  EXPECT_EQ(tokens[1]["token"], "w60");
  std::size_t next = 0;
  for (const json& entity : rows[0]["entities"]) {
    EXPECT_EQ(entity["begin"], next);
    next = entity["end"];
    const auto place = entity["characters"].get<std::vector<std::size_t>>();
    EXPECT_EQ(std::string("w5 w60 w7 w33").substr(place.at(0), place.at(1) - place.at(0)),
              entity["text"].get<std::string>());
    for (std::size_t i = entity["begin"]; i < next; ++i) EXPECT_EQ(tokens[i]["label"], entity["label"]);
  }
  EXPECT_EQ(next, 4U) << "these labels have no O";
  EXPECT_TRUE(rows[1]["tokens"].empty());
  EXPECT_TRUE(rows[1]["entities"].empty());
  expect_refusal(2, "--pair is for classifiers of texts", {"classify", "--model", name, "--pair", "w5\tw6"});
}

TEST_F(EncoderCommands, ClassifyFindsAnswersInTheText) {
  const std::string name = model("bert_question_answering");
  const ProgramEnd end =
      run({"classify", "--model", name, "--question", "w5 w6", "--format", "jsonl", "w50 w51 w52", ""});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const std::vector<json> rows = json_lines(end.out);
  const std::string answer = rows[0]["answer"];
  EXPECT_NE(std::string("w50 w51 w52").find(answer), std::string::npos) << answer;
  EXPECT_GT(rows[0]["score"], 0);
  const auto place = rows[0]["characters"].get<std::vector<std::size_t>>();
  EXPECT_EQ(std::string("w50 w51 w52").substr(place.at(0), place.at(1) - place.at(0)), answer);
  EXPECT_EQ(rows[1]["answer"], nullptr);
  EXPECT_EQ(rows[1]["characters"], nullptr);
  const ProgramEnd one = run(
      {"classify", "--model", name, "--question", "w5 w6", "--answer-tokens", "1", "--format", "jsonl", "w50 w51 w52"});
  EXPECT_EQ(json::parse(one.out)["answer"].get<std::string>().find(' '), std::string::npos);
  // A text of 15 tokens where there is room for 7 beside the question: windows that share 3 tokens.
  const auto best_of = [&](std::vector<std::string> texts, const std::vector<std::string>& more) {
    std::vector<std::string> words = {"classify", "--model", name, "--question", "w5 w6", "--format", "jsonl"};
    words.insert(words.end(), more.begin(), more.end());
    words.insert(words.end(), texts.begin(), texts.end());
    const ProgramEnd found = run(words);
    EXPECT_EQ(found.exit_code, 0) << found.err;
    EXPECT_EQ(found.err.find("cut"), std::string::npos) << found.err;
    json best = {{"score", 0}};
    for (const json& row : json_lines(found.out)) {
      if (row["score"] > best["score"]) best = row;
    }
    return std::pair<std::string, float>(best["answer"], best["score"]);
  };
  const auto whole = best_of({"w50 w51 w52 w53 w54 w55 w56 w57 w58 w59 w60 w61 w62 w63 w64"}, {"--max-length", "12"});
  const auto windows =
      best_of({"w50 w51 w52 w53 w54 w55 w56", "w54 w55 w56 w57 w58 w59 w60", "w58 w59 w60 w61 w62 w63 w64"}, {});
  EXPECT_EQ(whole.first, windows.first);
  EXPECT_NEAR(whole.second, windows.second, 1e-5);
  expect_refusal(2, "leaves no room",
                 {"classify", "--model", name, "--question", "w5 w6 w7 w8", "--max-length", "7", "w9 w10"});
  expect_refusal(2, "give one with --question", {"classify", "--model", name, "w5"});
  expect_refusal(1, "nibble encode can use this one", {"classify", "--model", model("bert"), "w5"});
}

}  // namespace
}  // namespace nibble
