// Reads memory and does as little else as it can, in each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble {

/// The xor of `words` 64-bit words at `data` (64-byte aligned, words a multiple of 64). The result is there so that no
/// compiler leaves the reads out.
std::uint64_t read_stream_scalar(const std::uint64_t* data, std::size_t words);
std::uint64_t read_stream_avx2(const std::uint64_t* data, std::size_t words);
std::uint64_t read_stream_avx512(const std::uint64_t* data, std::size_t words);

}  // namespace nibble
