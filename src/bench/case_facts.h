// What a measurement says of its model, whatever it runs.
#pragma once

#include "bench/bench_case.h"
#include "core/device.h"
#include "core/dtype.h"
#include "engine/engine.h"
#include "formats/checkpoint.h"

#include <optional>
#include <string>
#include <vector>

namespace nibble {

/// A type as users write it, nothing where the name is empty; UsageError naming `flag` for other names.
std::optional<DType> dtype_option(const std::string& name, const char* flag);

/// The part of the checkpoint's files, 0 to 1, that the system has in memory; nothing where it does not tell.
std::optional<double> weights_cached(const Checkpoint& checkpoint);

/// "packed x120, dense x1"
std::string kernels_of(const std::vector<SiteInfo>& sites);

/// Which kernel runs which linear layers, and how for how many rows:
/// "q_proj|k_proj|v_proj, o_proj: nibble (small_rows M<=16, dequantised above); lm_head: dense". Layers of one name
/// that run in several ways have their number behind it: "down_proj x38".
std::string layers_of(const std::vector<SiteInfo>& sites, DeviceKind device);

QuantisationFacts facts_of(const Checkpoint& checkpoint, const std::vector<SiteInfo>& sites);

}  // namespace nibble
