// What a table's figures depend on: machine, build, models, flags, protocol.
#pragma once

#include "bench/bandwidth.h"
#include "bench/ceilings.h"
#include "bench/nvml.h"
#include "bench/sweep.h"

#include <optional>
#include <string>

namespace nibble {

/// The time now, "2026-01-31T12:00:00Z".
std::string utc_now();

/// What was measured of the device before the first row.
struct MeasuredDevice {
  ReadBandwidth memory;               // of the CPU's memory; zeros on a GPU
  DeviceCeilings ceilings;            // of a GPU; zeros on the CPU
  std::optional<GpuDescription> gpu;  // where the rows are a GPU's
};

/// A JSON array of runs, of several lines: those of `before` (the text of an earlier one, or empty), then this one.
/// Throws Error where `before` is something else; `where` names it.
std::string bench_manifest(const BenchSweep& sweep, const MeasuredDevice& measured, const std::string& started,
                           const std::string& protocol, const std::string& before, const std::string& where);

}  // namespace nibble
