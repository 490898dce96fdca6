// oneDNN's engine and stream for the CPU: one of each for all that calls it. It uses the thread pool's threads, so
// nothing of it may run inside a parallel region (CpuStream::serial).
#pragma once

#include <dnnl.hpp>

namespace nibble {

inline const dnnl::engine& library_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

inline dnnl::stream& library_stream() {
  static dnnl::stream stream(library_engine());
  return stream;
}

}  // namespace nibble
