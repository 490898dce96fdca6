// Element types, as safetensors and the engine name them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace nibble {

enum class DType : std::uint8_t {
  f64,
  f32,
  f16,
  bf16,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  f6_e2m3,
  f6_e3m2,
  f4,
  c64,
  i64,
  i32,
  i16,
  i8,
  u64,
  u32,
  u16,
  u8,
  boolean,
};

/// Bits of one element (4 to 64).
int bits_of(DType dtype);

/// Bytes of one element; throws Error for types narrower than a byte or not a whole number of bytes.
std::size_t bytes_of(DType dtype);

/// The short name that users see and write: "f32", "bf16", "i32".
std::string_view name_of(DType dtype);

/// The reverse of name_of, also taking "float32", "float16", "bfloat16", "fp16", "half" as Hugging Face configs do.
std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace nibble
