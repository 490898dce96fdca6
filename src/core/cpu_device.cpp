#include "core/cpu_device.h"

#include "core/checked.h"
#include "core/cpu.h"
#include "core/error.h"
#include "core/thread_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

namespace nibble {
namespace {

constexpr std::size_t kHuge = std::size_t{2} << 20;

// Whole mappings, so that memory comes zeroed from the system and goes back to it at once. Buffers of 2 MiB and more
// ask for huge pages: a decode step reads hundreds of MB in order, and 4 KiB pages cost a TLB miss every 64 cache
// lines.
class CpuBuffer final : public Buffer {
 public:
  CpuBuffer(std::size_t bytes, const std::string& purpose) : size_(bytes) {
    mapped_ = round_up(std::max<std::size_t>(bytes, 1), bytes >= kHuge ? kHuge : std::size_t{4096});
    // One huge page more, so that the start can be aligned to one.
    const std::size_t slack = bytes >= kHuge ? kHuge : 0;
    reserved_ = checked_add(mapped_, slack, "the size of a buffer");
    void* p = mmap(nullptr, reserved_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("no memory for {}: {} bytes asked for ({})", purpose, bytes, std::strerror(errno));
    base_ = static_cast<std::byte*>(p);
    data_ = base_;
    if (slack != 0) {
      data_ = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<std::uintptr_t>(base_), kHuge));
      madvise(data_, mapped_, MADV_HUGEPAGE);
    }
  }
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;
  ~CpuBuffer() override { munmap(base_, reserved_); }
  std::byte* data() const override { return data_; }
  std::size_t size() const override { return size_; }

 private:
  std::byte* base_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t mapped_ = 0;
  std::size_t reserved_ = 0;
};

// A buffer smaller than a huge page: a piece of a larger one, which goes back to the system when its last piece is
// gone.
class CpuPiece final : public Buffer {
 public:
  CpuPiece(std::shared_ptr<CpuBuffer> whole, std::size_t offset, std::size_t bytes)
      : whole_(std::move(whole)), offset_(offset), size_(bytes) {}
  std::byte* data() const override { return whole_->data() + offset_; }
  std::size_t size() const override { return size_; }

 private:
  std::shared_ptr<CpuBuffer> whole_;
  std::size_t offset_ = 0;
  std::size_t size_ = 0;
};

class CpuDevice final : public Device {
 public:
  const DeviceInfo& info() const override {
    info_.kind = DeviceKind::cpu;
    info_.name = cpu_model();
    info_.memory_bytes = usable_memory_bytes();
    info_.threads = ThreadPool::instance().threads();
    info_.isa = std::string(name_of(active_isa()));
    return info_;
  }
  std::unique_ptr<Buffer> allocate(std::size_t bytes, const std::string& purpose) override {
    if (bytes < kLeastPiece || bytes >= kHuge) return std::make_unique<CpuBuffer>(bytes, purpose);
    const std::lock_guard lock(mutex_);
    if (!whole_ || used_ + bytes > whole_->size()) {
      whole_ = std::make_shared<CpuBuffer>(kPieces, purpose);
      used_ = 0;
    }
    auto piece = std::make_unique<CpuPiece>(whole_, used_, bytes);
    used_ = round_up(used_ + bytes, std::size_t{4096});
    if (used_ >= whole_->size()) whole_.reset();
    return piece;
  }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CpuStream>(); }

 private:
  // Most weights of a small model are below 2 MiB a site: they share huge pages, 16 MiB of address space at a time.
  static constexpr std::size_t kPieces = std::size_t{16} << 20;
  // Below, what a page table costs is not felt.
  static constexpr std::size_t kLeastPiece = std::size_t{64} << 10;

  mutable DeviceInfo info_;
  std::mutex mutex_;
  std::shared_ptr<CpuBuffer> whole_;  // what new pieces are taken from
  std::size_t used_ = 0;              // of it
};

}  // namespace

class CpuStream::CpuGraph final : public Graph {
 public:
  std::vector<Step> steps;
};

void CpuStream::parallel(CpuTask task) {
  if (capturing_) {
    recorded_.push_back({std::move(task), nullptr});
  } else {
    ThreadPool::instance().run(task);
  }
}

void CpuStream::serial(std::function<void()> task) {
  if (capturing_) {
    recorded_.push_back({nullptr, std::move(task)});
  } else {
    task();
  }
}

void CpuStream::copy_to_device(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void CpuStream::copy_to_host(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

void CpuStream::begin_capture() {
  recorded_.clear();
  capturing_ = true;
}

std::unique_ptr<Graph> CpuStream::end_capture() {
  auto graph = std::make_unique<CpuGraph>();
  graph->steps = std::move(recorded_);
  recorded_.clear();
  capturing_ = false;
  return graph;
}

void CpuStream::launch(const Graph& graph) {
  const auto& steps = static_cast<const CpuGraph&>(graph).steps;
  ThreadPool& pool = ThreadPool::instance();
  for (std::size_t first = 0; first < steps.size();) {
    if (steps[first].serial) {
      steps[first].serial();
      ++first;
      continue;
    }
    std::size_t last = first;
    while (last < steps.size() && steps[last].parallel) ++last;
    pool.run([&](int thread, int threads) {
      for (std::size_t i = first; i < last; ++i) {
        steps[i].parallel(thread, threads);
        if (i + 1 < last && threads > 1) pool.barrier();
      }
    });
    first = last;
  }
}

CpuStream& cpu_stream(Stream& stream) {
  auto* cpu = dynamic_cast<CpuStream*>(&stream);
  if (cpu == nullptr) fail("a CPU kernel was given the stream of another device");
  return *cpu;
}

Device& cpu_device() {
  static CpuDevice device;
  return device;
}

}  // namespace nibble
