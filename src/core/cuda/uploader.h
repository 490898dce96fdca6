// Bytes from mapped files to the GPU: threads copy pieces into pinned slots of their own, and each slot is sent as soon
// as it is full. One thread through a mapping moves some 6 GB/s, eight with pinned slots come near the bus's rate.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

namespace nibble {

class Uploader {
 public:
  explicit Uploader(int device);
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  /// As Device::upload.
  void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
