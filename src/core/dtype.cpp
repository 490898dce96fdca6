#include "core/dtype.h"

#include "core/error.h"

#include <array>

namespace nibble {
namespace {

struct Row {
  DType dtype;
  int bits;
  std::string_view name;
};

constexpr std::array kRows = {
    Row{DType::f64, 64, "f64"},
    Row{DType::f32, 32, "f32"},
    Row{DType::f16, 16, "f16"},
    Row{DType::bf16, 16, "bf16"},
    Row{DType::f8_e4m3, 8, "f8_e4m3"},
    Row{DType::f8_e5m2, 8, "f8_e5m2"},
    Row{DType::f8_e8m0, 8, "f8_e8m0"},
    Row{DType::f8_e4m3fnuz, 8, "f8_e4m3fnuz"},
    Row{DType::f8_e5m2fnuz, 8, "f8_e5m2fnuz"},
    Row{DType::f6_e2m3, 6, "f6_e2m3"},
    Row{DType::f6_e3m2, 6, "f6_e3m2"},
    Row{DType::f4, 4, "f4"},
    Row{DType::c64, 64, "c64"},
    Row{DType::i64, 64, "i64"},
    Row{DType::i32, 32, "i32"},
    Row{DType::i16, 16, "i16"},
    Row{DType::i8, 8, "i8"},
    Row{DType::u64, 64, "u64"},
    Row{DType::u32, 32, "u32"},
    Row{DType::u16, 16, "u16"},
    Row{DType::u8, 8, "u8"},
    Row{DType::boolean, 8, "bool"},
};

const Row& row_of(DType dtype) {
  for (const Row& row : kRows) {
    if (row.dtype == dtype) return row;
  }
  fail("element type number {} is not one that nibble knows", static_cast<int>(dtype));
}

}  // namespace

int bits_of(DType dtype) { return row_of(dtype).bits; }

std::size_t bytes_of(DType dtype) {
  const int bits = bits_of(dtype);
  if (bits % 8 != 0) fail("element type {} has {} bits, not a whole number of bytes", name_of(dtype), bits);
  return static_cast<std::size_t>(bits) / 8;
}

std::string_view name_of(DType dtype) { return row_of(dtype).name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  if (name.starts_with("torch.")) name.remove_prefix(6);
  for (const Row& row : kRows) {
    if (row.name == name) return row.dtype;
  }
  if (name == "float32" || name == "fp32" || name == "float") return DType::f32;
  if (name == "float16" || name == "fp16" || name == "half") return DType::f16;
  if (name == "bfloat16") return DType::bf16;
  if (name == "float64" || name == "double") return DType::f64;
  return std::nullopt;
}

}  // namespace nibble
