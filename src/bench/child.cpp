#include "bench/child.h"

#include "core/error.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <system_error>

namespace nibble {
namespace {

std::atomic<int> noted_signal{0};
struct sigaction action_before_int{};
struct sigaction action_before_term{};

extern "C" void note_signal(int number) { noted_signal.store(number, std::memory_order_relaxed); }

std::string reason(int error) { return std::generic_category().message(error); }

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(); }
  int get() const { return fd_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

class SpawnActions {
 public:
  SpawnActions() { posix_spawn_file_actions_init(&value); }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;
  ~SpawnActions() { posix_spawn_file_actions_destroy(&value); }
  posix_spawn_file_actions_t value;
};

class SpawnAttributes {
 public:
  SpawnAttributes() { posix_spawnattr_init(&value); }
  SpawnAttributes(const SpawnAttributes&) = delete;
  SpawnAttributes& operator=(const SpawnAttributes&) = delete;
  ~SpawnAttributes() { posix_spawnattr_destroy(&value); }
  posix_spawnattr_t value;
};

pid_t spawn(const std::filesystem::path& program, const std::vector<std::string>& arguments, int report) {
  std::vector<char*> argv;
  std::string name = program.filename().string();
  argv.push_back(name.data());
  std::vector<std::string> copies = arguments;
  for (std::string& argument : copies) argv.push_back(argument.data());
  argv.push_back(nullptr);
  SpawnActions actions;
  posix_spawn_file_actions_adddup2(&actions.value, STDERR_FILENO, STDOUT_FILENO);
  // Where both are the same descriptor, this clears its close-on-exec flag (glibc 2.29 and later).
  posix_spawn_file_actions_adddup2(&actions.value, report, kReportDescriptor);
  SpawnAttributes attributes;
  posix_spawnattr_setpgroup(&attributes.value, 0);
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGINT);
  sigaddset(&defaults, SIGTERM);
  posix_spawnattr_setsigdefault(&attributes.value, &defaults);
  posix_spawnattr_setflags(&attributes.value, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, program.c_str(), &actions.value, &attributes.value, argv.data(), environ);
  if (error != 0) fail("cannot start {}: {}", program.string(), reason(error));
  return pid;
}

}  // namespace

InterruptGuard::InterruptGuard() {
  noted_signal.store(0);
  struct sigaction action{};
  action.sa_handler = note_signal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &action_before_int);
  sigaction(SIGTERM, &action, &action_before_term);
}

InterruptGuard::~InterruptGuard() {
  sigaction(SIGINT, &action_before_int, nullptr);
  sigaction(SIGTERM, &action_before_term, nullptr);
  noted_signal.store(0);
}

int InterruptGuard::signal() { return noted_signal.load(std::memory_order_relaxed); }

std::filesystem::path own_program() {
  std::error_code error;
  const auto path = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) fail("cannot find this program's own file (/proc/self/exe): {}", error.message());
  return path;
}

ChildEnd run_child(const std::filesystem::path& program, const std::vector<std::string>& arguments,
                   const std::function<void(std::string_view line)>& on_line) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) fail("cannot make a pipe: {}", reason(errno));
  const Descriptor read_end(ends[0]);
  Descriptor write_end(ends[1]);
  const pid_t pid = spawn(program, arguments, write_end.get());
  write_end.close();

  ChildEnd end;
  const auto wait_for_child = [&] {
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
    if (WIFEXITED(status)) end.exit_code = WEXITSTATUS(status);
  };
  std::string pending;
  try {
    while (true) {
      if (InterruptGuard::signal() != 0 && !end.interrupted) {
        end.interrupted = true;
        ::kill(-pid, SIGKILL);
      }
      pollfd poll_for{read_end.get(), POLLIN, 0};
      // A signal may come just before poll() begins to wait: it is seen a fifth of a second later.
      if (::poll(&poll_for, 1, 200) <= 0) continue;
      char buffer[4096];
      const ssize_t n = ::read(read_end.get(), buffer, sizeof buffer);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      pending.append(buffer, static_cast<std::size_t>(n));
      std::size_t begin = 0;
      for (std::size_t at; (at = pending.find('\n', begin)) != std::string::npos; begin = at + 1) {
        on_line(std::string_view(pending).substr(begin, at - begin));
      }
      pending.erase(0, begin);
    }
  } catch (...) {
    ::kill(-pid, SIGKILL);
    wait_for_child();
    throw;
  }
  wait_for_child();
  return end;
}

void report_line(std::string_view line) {
  std::string text(line);
  text += '\n';
  std::size_t written = 0;
  while (written < text.size()) {
    const ssize_t n = ::write(kReportDescriptor, text.data() + written, text.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot report to the process that started this one: {}", reason(errno));
    written += static_cast<std::size_t>(n);
  }
}

void end_with_parent() { ::prctl(PR_SET_PDEATHSIG, SIGKILL); }

std::string describe(const ChildEnd& end) {
  if (end.signal == SIGKILL) return "was killed (signal 9); most likely the system ran out of memory";
  if (end.signal != 0) return fmt::format("crashed: signal {} ({})", end.signal, strsignal(end.signal));
  return fmt::format("ended with exit code {} and no result", end.exit_code);
}

}  // namespace nibble
