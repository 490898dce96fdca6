#include "ops/cpu/self_attention.h"

#include "core/checked.h"
#include "core/thread_pool.h"

#include <algorithm>
#include <cmath>

namespace nibble::cpu {

std::size_t self_attention_workspace(const SelfAttentionShape& shape, int parts) {
  return checked_mul<std::size_t>(static_cast<std::size_t>(parts) * sizeof(float),
                                  static_cast<std::size_t>(shape.longest), "attention's scratch");
}

void self_attention(const SelfAttentionArgs& args, const OpTable&, int, CpuStream& stream) {
  stream.parallel([args](int thread, int threads) {
    const std::int64_t dim = args.q.columns / args.heads;
    std::int64_t longest = 0;
    for (std::int64_t s = 0; s < args.map.sequences; ++s)
      longest = std::max<std::int64_t>(longest, args.map.row_begin[s + 1] - args.map.row_begin[s]);
    for (std::int64_t s = 0; s < args.map.sequences; ++s) {
      const std::int64_t first = args.map.row_begin[s];
      const std::int64_t rows = args.map.row_begin[s + 1] - first;
      const std::int64_t valid = args.valid != nullptr ? args.valid[s] : rows;
      const auto [begin, end] = split_range(rows * args.heads, 1, thread, threads);
      float* scores = reinterpret_cast<float*>(args.workspace) + thread * longest;
      for (std::int64_t work = begin; work < end; ++work) {
        const std::int64_t head = work / rows;
        const std::int64_t i = work % rows;
        const float* q = args.q.f32_row(first + i) + head * dim;
        const std::int64_t keys = args.causal ? std::min(valid, i + 1) : valid;
        float most = -INFINITY;
        for (std::int64_t j = 0; j < keys; ++j) {
          const float* k = args.k.f32_row(first + j) + head * dim;
          float sum = 0;
          for (std::int64_t d = 0; d < dim; ++d) sum += q[d] * k[d];
          const std::int64_t reach = args.bias_reach;
          scores[j] = sum * args.scale;
          if (args.bias != nullptr)
            scores[j] += args.bias[head * (2 * reach + 1) + std::clamp(j - i, -reach, reach) + reach];
          most = std::max(most, scores[j]);
        }
        float total = 0;
        for (std::int64_t j = 0; j < keys; ++j) total += scores[j] = std::exp(scores[j] - most);
        float* y = args.y.f32_row(first + i) + head * dim;
        std::fill_n(y, dim, 0.0f);
        for (std::int64_t j = 0; j < keys; ++j) {
          const float* v = args.v.f32_row(first + j) + head * dim;
          for (std::int64_t d = 0; d < dim; ++d) y[d] += scores[j] / total * v[d];
        }
      }
    }
  });
}

}  // namespace nibble::cpu
