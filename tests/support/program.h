// Runs a program as a user does: its exit code, what it prints, and signals on its way.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace nibble::test {

struct ProgramEnd {
  int exit_code = -1;  // -1: a signal ended it
  std::string out;
  std::string err;
};

inline std::string file_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Runs `program` in `folder`, where its output is kept in files as well. While it runs, `while_running` is called with
/// its process id, about every 20 ms; it may send signals.
inline ProgramEnd run_program(const std::string& program, const std::vector<std::string>& arguments,
                              const std::filesystem::path& folder,
                              const std::function<void(pid_t)>& while_running = {}) {
  const std::string out = (folder / "stdout.txt").string();
  const std::string err = (folder / "stderr.txt").string();
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
  std::vector<std::string> words = {program};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ProgramEnd end;
  if (error != 0) {
    ADD_FAILURE() << "cannot start " << program;
    return end;
  }
  int status = 0;
  while (waitpid(pid, &status, while_running ? WNOHANG : 0) != pid) {
    if (while_running) while_running(pid);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  if (WIFEXITED(status)) end.exit_code = WEXITSTATUS(status);
  end.out = file_text(out);
  end.err = file_text(err);
  return end;
}

}  // namespace nibble::test
