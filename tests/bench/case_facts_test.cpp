#include "bench/case_facts.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

SiteInfo site(int layer, const std::string& kernel, const std::vector<std::string>& parts) {
  SiteInfo out;
  out.layer = layer;
  out.kernel = kernel;
  for (const std::string& part : parts) out.site.parts.push_back({part, 64, 64, false, std::nullopt});
  return out;
}

TEST(CaseFacts, LayersSayTheirKernels) {
  std::vector<SiteInfo> sites;
  for (int layer = 0; layer < 3; ++layer) {
    const std::string block = "model.layers." + std::to_string(layer);
    sites.push_back(site(layer, "packed", {block + ".self_attn.q_proj", block + ".self_attn.k_proj"}));
    sites.push_back(site(layer, "packed", {block + ".self_attn.o_proj"}));
    sites.push_back(site(layer, layer == 1 ? "dequant" : "packed", {block + ".mlp.down_proj"}));
  }
  sites.push_back(site(-1, "dense", {"lm_head"}));
  EXPECT_EQ(layers_of(sites, DeviceKind::cpu),
            "q_proj|k_proj, o_proj, down_proj x2: packed; down_proj x1: dequant; lm_head: dense");
  EXPECT_EQ(kernels_of(sites), "packed x8, dense x1, dequant x1");
  EXPECT_EQ(layers_of({}, DeviceKind::cpu), "");
}

}  // namespace
}  // namespace nibble
