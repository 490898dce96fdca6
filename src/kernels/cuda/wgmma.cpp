// `wgmma`: full-precision weights in f16 or bf16. Products of few rows and of some thousands, and those with an
// activation behind them, run on kernels for Hopper's tensor cores (tile_gemm.h), which have the activation in their
// epilogue and overlap the kernels around them; the others on cuBLASLt where that is faster.
#include "core/error.h"
#include "kernels/cuda/dense_weights.h"
#include "kernels/cuda/elementwise_activation.h"
#include "kernels/cuda/site_gemm.h"
#include "kernels/cuda/tile_attention.h"
#include "kernels/cuda/tile_gemm.h"
#include "kernels/registry.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr int kHopper = 90;

// What the weights were packed for, with the GPU's size.
class Packed final : public PackedLinear {
 public:
  std::unique_ptr<DenseWeights> dense;
  int multiprocessors = 0;
  std::size_t bytes() const override { return dense->bytes(); }
};

class WgmmaKernel final : public LinearKernel {
 public:
  std::string_view name() const override { return "wgmma"; }
  KernelTraits traits() const override {
    return {.summary = "full precision on Hopper: f16 or bf16 with sums in f32; fuses activations",
            .accumulate = "f32",
            .in_auto = false};
  }

  Fit fit(const LinearSite& site, const DeviceInfo& device, std::int64_t) const override {
    Fit fit = fits_dense(site);
    if (!fit.ok) return fit;
    if (device.isa != "sm_90")
      return Fit::no(fmt::format("wgmma needs a GPU of compute capability 9.0; {} is {}", device.name, device.isa));
    if (site.compute == DType::f32) return Fit::no("wgmma computes in f16 or bf16: use dense for f32");
    // As lowering asks for it, with an epilogue that may not be fused.
    if (site.epilogue.kind == EpilogueKind::store && site.y_dtype != site.compute)
      return Fit::no(fmt::format("wgmma gives {}, not {}: use dense", name_of(site.compute), name_of(site.y_dtype)));
    constexpr std::int64_t kEight = 8;
    const bool whole = site.in_features() % kEight == 0 &&
                       std::all_of(site.parts.begin(), site.parts.end(),
                                   [](const LinearDesc& d) { return d.out_features % kEight == 0; });
    if (!whole) {
      return Fit::no(fmt::format("wgmma takes inputs and outputs in eights, {} has {} and {}: use dense",
                                 site.parts.front().name, site.in_features(), site.parts.front().out_features));
    }
    return Fit::yes(false, site.epilogue.kind == EpilogueKind::activation && site.y_dtype == site.compute);
  }

  std::size_t packed_bytes(const LinearSite& site) const override { return dense_bytes(site); }

  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream& stream) const override {
    auto packed = std::make_unique<Packed>();
    packed->dense = pack_dense(site, tensors, device, stream);
    packed->multiprocessors = cuda_device(device).multiprocessors();
    return packed;
  }

  // Of products that only cuBLASLt takes.
  std::size_t workspace(const LinearSite&, std::int64_t) const override { return gemm_workspace_bytes(); }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }

  int parts(const LinearSite& site, std::int64_t rows, const DeviceInfo& device) const override {
    if (site.parts.size() != 1 || site.epilogue.kind != EpilogueKind::store) return 1;
    TileGemm gemm;
    gemm.m = rows;
    gemm.n = site.out_features();
    gemm.k = site.in_features();
    return parts_plan_of(gemm, device.threads).parts;
  }

  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    const auto& own = static_cast<const Packed&>(packed);
    const LinearSite& site = own.dense->site;
    if (args.x.dtype != site.compute) {
      fail("wgmma: inputs of {} were given to {}, which computes in {}", name_of(args.x.dtype), site.parts.front().name,
           name_of(site.compute));
    }
    const bool activates = site.epilogue.kind == EpilogueKind::activation;
    for (const GemmArgs& one : products_of(product_of(*own.dense, args))) {
      TileGemm gemm = tile_gemm_of(one);
      if (activates) gemm.activation = site.epilogue.activation;
      if (args.parts != nullptr) {
        if (!takes(gemm, kHopper))
          fail("wgmma: parts were asked of {}, whose matrices do not lie at multiples of 16 bytes",
               site.parts.front().name);
        gemm.parts = args.parts;
        nibble::enqueue(gemm, parts_plan_of(gemm, own.multiprocessors), own.multiprocessors, cuda_stream(stream));
        continue;
      }
      const TilePlan plan = plan_of(gemm, own.multiprocessors);
      if (takes(gemm, kHopper) && beats_library(gemm, plan, own.multiprocessors)) {
        nibble::enqueue(gemm, plan, own.multiprocessors, cuda_stream(stream));
        continue;
      }
      GemmArgs library = one;
      library.prefers_clusters = long_and_few(one);
      nibble::gemm(library, cuda_stream(stream));
      if (activates) activate_rows(site.epilogue.activation, args.y.front(), cuda_stream(stream));
    }
  }

  std::int64_t attends(const LinearSite& site, std::int64_t heads, const DeviceInfo& device) const override {
    constexpr std::size_t kParts = 3;
    const std::int64_t width = site.parts.front().out_features;
    const bool takes = site.parts.size() == kParts && site.out_features() == 3 * width &&
                       site.parts[1].out_features == width && site.epilogue.kind == EpilogueKind::store &&
                       site.compute != DType::f32 && site.x_dtype == site.compute && site.y_dtype == site.compute &&
                       heads > 0 && width % heads == 0 && attends_in_tiles(site.in_features(), heads, width / heads);
    return takes ? most_attended_tiles(site.in_features(), width, device.threads) : 0;
  }

  void attend(const PackedLinear& packed, const LinearArgs& args, const SiteAttention& attention,
              Stream& stream) const override {
    const DenseWeights& dense = *static_cast<const Packed&>(packed).dense;
    TileAttention a;
    a.rows = args.rows;
    a.k = dense.site.in_features();
    a.head_dim = dense.site.parts.front().out_features / attention.heads;
    a.type = dense.site.compute;
    a.x = args.x.data;
    a.x_stride = args.x.stride;
    a.w = dense.weights->data();
    a.bias = dense.bias ? dense.bias->data() : nullptr;
    a.y = args.y.front().data;
    a.y_stride = args.y.front().stride;
    a.attention = attention;
    attend_in_tiles(a, cuda_stream(stream));
  }

 private:
  // Measured from 195 to 1536 rows; fewer and more do best with what the library puts first.
  static bool long_and_few(const GemmArgs& product) {
    constexpr std::int64_t kLeastRows = 192;
    constexpr std::int64_t kMostRows = 1600;
    return product.k >= kLongTileSum && product.m >= kLeastRows && product.m <= kMostRows;
  }

  static TileGemm tile_gemm_of(const GemmArgs& product) {
    TileGemm gemm;
    gemm.m = product.m;
    gemm.n = product.n;
    gemm.k = product.k;
    gemm.type = product.operands;
    gemm.x = product.x;
    gemm.x_stride = product.x_stride;
    gemm.w = product.w;
    gemm.w_stride = product.w_stride;
    gemm.bias = product.same_bias;
    gemm.y = product.y;
    gemm.y_stride = product.y_stride;
    return gemm;
  }
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cuda, WgmmaKernel);

}  // namespace
}  // namespace nibble
