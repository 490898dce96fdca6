// Work in a process of its own: it starts with fresh memory, and what kills it kills only it.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// From construction to destruction, SIGINT and SIGTERM end nothing by themselves but are noted. One at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  /// The signal that came since a guard has stood, 0 for none.
  static int signal();
};

struct ChildEnd {
  int exit_code = 0;         // meaningful where signal is 0
  int signal = 0;            // what killed it
  bool interrupted = false;  // it was ended because this process was interrupted
};

/// The file descriptor on which a child of run_child() reports.
inline constexpr int kReportDescriptor = 3;

/// This program's own file.
std::filesystem::path own_program();

/// Runs `program` with these arguments, in a process group of its own, so that the terminal's ^C comes to this process
/// alone. What it prints to stdout goes to stderr; each line that it writes to descriptor kReportDescriptor goes to
/// on_line. Once InterruptGuard has noted a signal, the child is killed. Throws Error when it cannot be started.
ChildEnd run_child(const std::filesystem::path& program, const std::vector<std::string>& arguments,
                   const std::function<void(std::string_view line)>& on_line);

/// In a child: writes one line to kReportDescriptor. Ends the process when nobody listens any more.
void report_line(std::string_view line);
/// In a child: it ends with its parent.
void end_with_parent();

/// "was killed by signal 9 (Killed): the system may have run out of memory", "ended with exit code 1".
std::string describe(const ChildEnd& end);

}  // namespace nibble
