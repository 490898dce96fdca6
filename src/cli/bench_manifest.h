// What a table's figures depend on: machine, build, models, flags, protocol.
#pragma once

#include "bench/bandwidth.h"
#include "bench/sweep.h"

#include <string>

namespace nibble {

/// The time now, "2026-01-31T12:00:00Z".
std::string utc_now();

/// A JSON object of several lines.
std::string bench_manifest(const BenchSweep& sweep, const ReadBandwidth& memory, const std::string& started,
                           const std::string& protocol);

}  // namespace nibble
