#include "bench/read_stream.h"

#include <immintrin.h>

namespace nibble {

std::uint64_t read_stream_avx512(const std::uint64_t* data, std::size_t words) {
  __m512i a = _mm512_setzero_si512();
  __m512i b = a;
  __m512i c = a;
  __m512i d = a;
  const auto* at = reinterpret_cast<const __m512i*>(data);
  const auto* end = reinterpret_cast<const __m512i*>(data + words);
  for (; at < end; at += 4) {
    a = _mm512_xor_si512(a, _mm512_load_si512(at));
    b = _mm512_xor_si512(b, _mm512_load_si512(at + 1));
    c = _mm512_xor_si512(c, _mm512_load_si512(at + 2));
    d = _mm512_xor_si512(d, _mm512_load_si512(at + 3));
  }
  const __m512i sum = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
  alignas(64) std::uint64_t lanes[8];
  _mm512_store_si512(lanes, sum);
  std::uint64_t out = 0;
  for (const std::uint64_t lane : lanes) out ^= lane;
  return out;
}

}  // namespace nibble
