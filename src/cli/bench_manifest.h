// What a table's figures depend on: machine, build, models, flags, protocol.
#pragma once

#include "bench/bandwidth.h"
#include "bench/sweep.h"

#include <string>

namespace nibble {

/// The time now, "2026-01-31T12:00:00Z".
std::string utc_now();

/// A JSON array of runs, of several lines: those of `before` (the text of an earlier one, or empty), then this one.
/// Throws Error where `before` is something else; `where` names it.
std::string bench_manifest(const BenchSweep& sweep, const ReadBandwidth& memory, const std::string& started,
                           const std::string& protocol, const std::string& before, const std::string& where);

}  // namespace nibble
