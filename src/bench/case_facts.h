// What a measurement says of its model, whatever it runs.
#pragma once

#include "bench/bench_case.h"
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

QuantisationFacts facts_of(const Checkpoint& checkpoint, const std::vector<SiteInfo>& sites);

}  // namespace nibble
