// What a run must know of its device before the first case, found out in a process of its own: a GPU's context, once
// made, stays with its process, and would take memory from the cases.
#pragma once

#include "bench/ceilings.h"

#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct ProbeQuestion {
  std::string device;     // as choose_device() names it
  bool ceilings = false;  // measure them
  std::string folder;     // of a model: which kernels run it? Empty: not asked
  std::string dtype;      // to be computed in; empty: the engine's choice
};

struct ProbeAnswer {
  std::string error;  // why there is no answer; empty where there is one
  std::string name;   // of the device
  DeviceCeilings ceilings;
  std::vector<std::string> kernels;  // by name
};

/// The kernels that `--kernel all` means for a model on a device: all that belong to it and can run the model. What is
/// left out, and why, goes to the log.
std::vector<std::string> kernels_that_run(const std::string& folder, const std::string& device,
                                          const std::string& dtype);

/// Asks a child: `program` with `arguments`, then the question as JSON. Throws Error with the child's sentence.
ProbeAnswer probe_in_child(const std::string& program, std::vector<std::string> arguments,
                           const ProbeQuestion& question);

/// The child's side: answers on the descriptor that run_child() gives. Returns the exit code.
int answer_probe(std::string_view json);

}  // namespace nibble
