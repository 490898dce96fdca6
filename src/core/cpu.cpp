#include "core/cpu.h"

#include "core/error.h"

#include <cpuid.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace nibble {
namespace {

constexpr std::array kNames = {std::string_view("scalar"),     std::string_view("avx2"),
                               std::string_view("avxvnni"),    std::string_view("avx512"),
                               std::string_view("avx512vnni"), std::string_view("avx512bf16"),
                               std::string_view("amx")};
constexpr std::array kAll = {Isa::scalar,     Isa::avx2,       Isa::avxvnni, Isa::avx512,
                             Isa::avx512vnni, Isa::avx512bf16, Isa::amx};

std::uint64_t xcr0() {
  unsigned a = 0;
  unsigned d = 0;
  __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (static_cast<std::uint64_t>(d) << 32) | a;
}

// AMX tile data is 8 KiB of state that Linux gives only to processes that ask for it (arch_prctl, Linux 5.16).
bool amx_permitted() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}

std::array<bool, kAll.size()> detect() {
  std::array<bool, kAll.size()> has{};
  const auto set = [&has](Isa isa, bool value) { has[static_cast<std::size_t>(isa)] = value; };
  set(Isa::scalar, true);
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return has;
  const bool osxsave = (c >> 27) & 1u;
  const bool fma = (c >> 12) & 1u;
  const bool f16c = (c >> 29) & 1u;
  const bool popcnt = (c >> 23) & 1u;
  if (!osxsave) return has;
  const std::uint64_t state = xcr0();
  const bool ymm = (state & 0x6) == 0x6;
  const bool zmm = (state & 0xe6) == 0xe6;
  const bool tiles = (state & 0x60000) == 0x60000;
  unsigned b7 = 0, c7 = 0, d7 = 0, a71 = 0;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return has;
  if (a >= 1) {
    unsigned b1 = 0, c1 = 0, d1 = 0;
    __get_cpuid_count(7, 1, &a71, &b1, &c1, &d1);
  }
  const auto bit = [](unsigned word, int n) { return ((word >> n) & 1u) != 0; };
  const bool avx2 = ymm && fma && f16c && popcnt && bit(b7, 5) && bit(b7, 3) && bit(b7, 8);
  const bool avx512 = avx2 && zmm && bit(b7, 16) && bit(b7, 30) && bit(b7, 31) && bit(b7, 17) && bit(b7, 28);
  const bool vnni = avx512 && bit(c7, 11);
  const bool bf16 = vnni && bit(a71, 5);
  set(Isa::avx2, avx2);
  set(Isa::avxvnni, avx2 && bit(a71, 4));
  set(Isa::avx512, avx512);
  set(Isa::avx512vnni, vnni);
  set(Isa::avx512bf16, bf16);
  set(Isa::amx, bf16 && tiles && bit(d7, 22) && bit(d7, 24) && bit(d7, 25) && amx_permitted());
  return has;
}

const std::array<bool, kAll.size()>& supported() {
  static const std::array<bool, kAll.size()> has = detect();
  return has;
}

Isa checked(Isa isa, std::string_view source) {
  if (isa_supported(isa)) return isa;
  std::string list;
  for (const Isa one : supported_isas()) list += (list.empty() ? "" : ", ") + std::string(name_of(one));
  fail_usage("{} asks for the instruction set {}, which this machine lacks; it has {}", source, name_of(isa), list);
}

std::atomic<int> g_forced{-1};

Isa initial_isa() {
  if (const char* text = std::getenv("NIBBLE_ISA"); text != nullptr && *text != '\0') {
    const std::optional<Isa> isa = isa_from_name(text);
    if (!isa)
      fail_usage("NIBBLE_ISA is \"{}\", expected one of scalar, avx2, avxvnni, avx512, avx512vnni, avx512bf16, amx",
                 text);
    return checked(*isa, "NIBBLE_ISA");
  }
  return supported_isas().back();
}

std::string read_line(const char* path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

}  // namespace

std::string_view name_of(Isa isa) { return kNames[static_cast<std::size_t>(isa)]; }

std::optional<Isa> isa_from_name(std::string_view name) {
  for (const Isa isa : kAll) {
    if (name_of(isa) == name) return isa;
  }
  return std::nullopt;
}

bool isa_supported(Isa isa) { return supported()[static_cast<std::size_t>(isa)]; }

Isa active_isa() {
  const int forced = g_forced.load(std::memory_order_relaxed);
  if (forced >= 0) return static_cast<Isa>(forced);
  static const Isa initial = initial_isa();
  return initial;
}

void set_isa(Isa isa) { g_forced.store(static_cast<int>(checked(isa, "--isa")), std::memory_order_relaxed); }

std::vector<Isa> supported_isas() {
  std::vector<Isa> out;
  for (const Isa isa : kAll) {
    if (isa_supported(isa)) out.push_back(isa);
  }
  return out;
}

std::string cpu_model() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("model name")) {
      const std::size_t colon = line.find(':');
      if (colon != std::string::npos && colon + 2 <= line.size()) return line.substr(colon + 2);
    }
  }
  return "unknown x86-64 processor";
}

int usable_cpus() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  int cpus = 1;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) cpus = std::max(1, CPU_COUNT(&mask));
  double quota = 0;
  double period = 0;
  // cgroup v2: "max 100000" or "200000 100000"; v1: two files, quota -1 for none.
  std::istringstream v2(read_line("/sys/fs/cgroup/cpu.max"));
  std::string first;
  if (v2 >> first >> period) {
    quota = first == "max" ? 0 : std::strtod(first.c_str(), nullptr);
  } else {
    quota = std::strtod(read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").c_str(), nullptr);
    period = std::strtod(read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us").c_str(), nullptr);
  }
  if (quota > 0 && period > 0) cpus = std::min(cpus, std::max(1, static_cast<int>(std::ceil(quota / period))));
  return cpus;
}

std::size_t last_level_cache_bytes() {
  long best = 0;
  for (const int name : {_SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL4_CACHE_SIZE}) {
    best = std::max(best, sysconf(name));
  }
  return static_cast<std::size_t>(best);
}

std::size_t usable_memory_bytes() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  std::size_t bytes = static_cast<std::size_t>(std::max(0L, pages)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    const std::string line = read_line(path);
    if (line.empty() || line == "max") continue;
    const std::size_t limit = std::strtoull(line.c_str(), nullptr, 10);
    if (limit > 0) bytes = std::min(bytes, limit);
  }
  return bytes;
}

}  // namespace nibble
