// The scales of an e4m3 cache: of 16 in the octave below the largest that fits, the one with the least squared error.
#include "cuda/typed_matrix.h"
#include "ops/cuda/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibble::test {
namespace {

constexpr int kTrials = 16;
constexpr std::int64_t kRows = 40;

float e4m3_to_float(std::uint8_t code) {
  const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                               : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10));
}

// To the nearest code, ties to even.
double e4m3(double value) {
  int exponent = 0;
  std::frexp(value, &exponent);
  const double step = std::ldexp(1.0, std::max(exponent - 1, -6) - 3);
  return std::clamp(std::nearbyint(value / step) * step, -448.0, 448.0);
}

// The squared error of a row with its largest value at 448 * 2^(-trial / 16).
double error_of(const std::vector<float>& row, double largest, int trial) {
  const double scale = largest / 448 * std::exp2(static_cast<double>(trial) / kTrials);
  double sum = 0;
  for (const float value : row) {
    const double error = e4m3(static_cast<double>(value) / scale) * scale - static_cast<double>(value);
    sum += error * error;
  }
  return sum;
}

TEST(CudaKvScale, HasTheLeastErrorOfItsOctave) {
  NIBBLE_NEEDS_GPU();
  for (const std::int64_t head_dim : {2, 36, 64, 128, 256}) {
    SCOPED_TRACE(testing::Message() << "head_dim " << head_dim);
    const std::unique_ptr<Stream> stream = gpu().device().make_stream();
    TypedMatrix k(*stream, DType::f32, kRows, head_dim);
    TypedMatrix v(*stream, DType::f32, kRows, head_dim);
    std::mt19937 random(3);
    k.fill(random);
    v.fill(random);
    // Keys as models have them: two elements far from the others.
    for (std::int64_t row = 0; row < kRows; ++row) {
      k.set(row, 0, 40 + static_cast<float>(row) / 3);
      k.set(row, head_dim - 1, -25 - static_cast<float>(row) / 7);
    }
    k.upload();
    v.upload();
    KvView view{DType::f8_e4m3, nullptr, nullptr, 1, 1, kRows, head_dim};
    const std::vector<std::byte> poison(gpu().kv_bytes(view), std::byte{0xff});
    const OnDevice<std::byte> stored_k(*stream, std::span<const std::byte>(poison));
    const OnDevice<std::byte> stored_v(*stream, std::span<const std::byte>(poison));
    view.k = stored_k.data();
    view.v = stored_v.data();
    std::vector<std::int32_t> positions(kRows);
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
    const std::vector<std::int32_t> slots(kRows, 0);
    const std::vector<std::int32_t> begin = {0, kRows};
    const OnDevice<std::int32_t> device_positions(*stream, std::span<const std::int32_t>(positions));
    const OnDevice<std::int32_t> device_slots(*stream, std::span<const std::int32_t>(slots));
    const OnDevice<std::int32_t> device_begin(*stream, std::span<const std::int32_t>(begin));
    const RowMap map{kRows, 1, nullptr, device_positions.data(), device_slots.data(), device_begin.data()};
    gpu().kv_store({map, k.ref(), v.ref(), view}, *stream);

    const cuda::KvCache layout = cuda::kv_cache(view);
    for (const bool of_v : {false, true}) {
      const std::vector<std::byte> bytes = (of_v ? stored_v : stored_k).read();
      double all = 0;
      double largest_alone = 0;
      for (std::int64_t row = 0; row < kRows; ++row) {
        std::vector<float> values(static_cast<std::size_t>(head_dim));
        double largest = 0;
        for (std::int64_t d = 0; d < head_dim; ++d) {
          values[static_cast<std::size_t>(d)] = (of_v ? v : k).at(row, d);
          largest = std::max(largest, std::abs(static_cast<double>(values[static_cast<std::size_t>(d)])));
        }
        float scale = 0;
        std::memcpy(&scale, bytes.data() + layout.scale_offset + row * 4, sizeof scale);
        double got = 0;
        for (std::int64_t d = 0; d < head_dim; ++d) {
          const auto code = static_cast<std::uint8_t>(bytes[static_cast<std::size_t>(row * layout.row_bytes + d)]);
          const double error = static_cast<double>(e4m3_to_float(code)) * static_cast<double>(scale) -
                               static_cast<double>(values[static_cast<std::size_t>(d)]);
          got += error * error;
        }
        double least = error_of(values, largest, 0);
        largest_alone += least;
        for (int trial = 1; trial < kTrials; ++trial) least = std::min(least, error_of(values, largest, trial));
        // Trials are told apart by floats with four bits less, and without the codes below the least normal one.
        ASSERT_LE(got, 1.01 * least + 1e-9 * largest * largest) << (of_v ? "v" : "k") << ", row " << row;
        all += got;
      }
      EXPECT_LT(all, 0.9 * largest_alone) << "trying scales is worth nothing";
    }
  }
}

}  // namespace
}  // namespace nibble::test
