// What every test on a GPU begins with: NIBBLE_NEEDS_GPU() skips it, with the reason, where none can be used.
#pragma once

#include "core/device.h"
#include "ops/backend.h"
#include "ops/cuda_loader.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace nibble::test {

/// The back end of GPU 0, one for the process: a context takes a quarter of a second to make.
inline Backend& gpu() {
  static const std::unique_ptr<Backend> backend = make_cuda_backend(0);
  return *backend;
}

/// Values in device memory.
template <typename T>
class OnDevice {
 public:
  OnDevice(Stream& stream, std::span<const T> values)
      : stream_(&stream), count_(values.size()), buffer_(gpu().device().allocate(values.size_bytes(), "a test")) {
    stream.copy_to_device(buffer_->data(), values.data(), values.size_bytes());
    stream.synchronize();
  }
  T* data() const { return reinterpret_cast<T*>(buffer_->data()); }
  std::size_t size() const { return count_; }
  std::vector<T> read() const {
    std::vector<T> out(count_);
    stream_->copy_to_host(out.data(), buffer_->data(), count_ * sizeof(T));
    stream_->synchronize();
    return out;
  }

 private:
  Stream* stream_;
  std::size_t count_;
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace nibble::test

#define NIBBLE_NEEDS_GPU()                                                          \
  if (std::string why; ::nibble::cuda_device_count(&why) == 0) GTEST_SKIP() << why; \
  static_assert(true)
