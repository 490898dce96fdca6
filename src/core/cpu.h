// What this processor can do, and which instruction set the SIMD code uses: the best one, or the one that the user
// forces.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// Instruction sets that units are compiled for, in rising order of preference. Each includes all of avx2's;
/// avx512 is F+BW+VL+DQ+CD, avx512vnni adds VNNI, avx512bf16 adds BF16, amx adds AMX tiles with int8 and bf16.
enum class Isa { scalar, avx2, avxvnni, avx512, avx512vnni, avx512bf16, amx };

std::string_view name_of(Isa isa);
std::optional<Isa> isa_from_name(std::string_view name);

/// True where the processor and the operating system both support it (AMX asks the kernel for its tile state once).
bool isa_supported(Isa isa);

/// The best supported set, or the one forced by set_isa or the environment variable NIBBLE_ISA. Forcing a set that this
/// machine lacks is a UsageError that lists those it has.
Isa active_isa();
void set_isa(Isa isa);

/// All supported sets, lowest first.
std::vector<Isa> supported_isas();

template <typename F>
struct IsaChoice {
  Isa isa;
  F* function;
};

/// The function for the best set that is both supported and not above active_isa(). The scalar choice must be there.
template <typename F>
F* pick(std::initializer_list<IsaChoice<F>> choices) {
  const Isa limit = active_isa();
  F* best = nullptr;
  Isa best_isa = Isa::scalar;
  for (const IsaChoice<F>& choice : choices) {
    if (choice.isa <= limit && choice.isa >= best_isa && isa_supported(choice.isa)) {
      best = choice.function;
      best_isa = choice.isa;
    }
  }
  return best;
}

/// "Intel(R) Xeon(R) Processor" as the system names it.
std::string cpu_model();

/// CPUs that this process may use: the affinity mask cut by the cgroup's CPU quota (v2 and v1), at least 1.
int usable_cpus();

/// Size in bytes of the largest cache, 0 where unknown.
std::size_t last_level_cache_bytes();

/// Physical memory in bytes, cut by the cgroup's limit.
std::size_t usable_memory_bytes();

}  // namespace nibble
