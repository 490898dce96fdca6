// Staging of activations in bf16.
#include "kernels/cpu/packed/stage512.h"

namespace nibble::packed {
namespace {

// Words in the order of slots (isa.h).
__m256i slot_order(int planes) {
  if (planes == 4) return _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  if (planes == 2) return _mm256_setr_epi16(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  return _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

}  // namespace

void stage_avx512bf16(const StageCall& call, std::int64_t begin, std::int64_t end) {
  constexpr int kStepSlots = 32;
  constexpr int kStepElements = kTileRows * kStepSlots;
  const PlanView& plan = call.plan;
  const __m256i to_slots = slot_order(plan.planes_of_codes);
  for (std::int64_t row = begin; row < end; ++row) {
    const float* const x = call.x + row * call.stride;
    // Read in the plan's order the next row would come from another core's cache a line at a time.
    if (row + 1 < end) {
      for (std::int64_t k = 0; k < call.inputs; k += 16) __builtin_prefetch(x + call.stride + k);
    }
    std::uint16_t* const out =
        call.to.bf16 + row / kTileRows * plan.steps * kStepElements + row % kTileRows * kStepSlots;
    if (plan.gaps) {
      for (int step = 0; step < plan.steps; ++step)
        _mm512_storeu_si512(out + step * kStepElements, _mm512_setzero_si512());
    }
    const OrderedRow ordered = ordered_row(call, x);
    for (int b = 0; b < plan.block_count; ++b) {
      const Block& block = plan.blocks[b];
      for (int i = 0; i < block.chunks * plan.chunk_slots; i += 16) {
        const __m512 values = load_inputs(ordered, block, i);
        const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(values);
        const int slot = block.slot + i;
        auto* const at = reinterpret_cast<__m256i*>(out + slot / kStepSlots * kStepElements + slot % kStepSlots);
        _mm256_storeu_si256(at, _mm256_permutexvar_epi16(to_slots, rounded));
      }
    }
  }
}

}  // namespace nibble::packed
