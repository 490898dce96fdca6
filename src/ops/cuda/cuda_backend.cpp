// The CUDA back end, and what the library hands to the program that loads it.
#include "core/cuda/cuda_device.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda_entry.h"

#include <string>

namespace nibble {
namespace {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int index) : device_(index) {}

  Device& device() override { return device_; }
  BackendTraits traits() const override {
    return {.compute_activations = true,
            .joins_parts = true,
            .fuses_store = true,
            .self_attention = true,
            .images = true,
            .fuses_add_norm = true,
            .audio = true,
            .aligned_frames = true,
            .fuses_instance_norm = true};
  }

  void embed(const EmbedArgs& args, Stream& stream) override { cuda::embed(args, cuda_stream(stream)); }
  void norm(const NormArgs& args, Stream& stream) override {
    if (args.addend.data != nullptr) {
      cuda::add_norm(args, cuda_stream(stream));
    } else {
      cuda::norm(args, cuda_stream(stream));
    }
  }
  void rotary(const RotaryArgs& args, Stream& stream) override { cuda::rotary(args, cuda_stream(stream)); }

  std::size_t kv_bytes(const KvView& shape) const override { return cuda::kv_bytes(shape); }
  void kv_store(const KvStoreArgs& args, Stream& stream) override { cuda::kv_store(args, cuda_stream(stream)); }
  std::size_t attention_workspace(std::int64_t rows, std::int64_t heads, const KvView& cache) const override {
    return cuda::attention_workspace(rows, heads, cache, device_);
  }
  void attention(const AttentionArgs& args, Stream& stream) override {
    cuda::attention(args, device_, cuda_stream(stream));
  }

  std::size_t self_attention_workspace(const SelfAttentionShape& shape) const override {
    return cuda::self_attention_workspace(shape);
  }
  void self_attention(const SelfAttentionArgs& args, Stream& stream) override {
    cuda::self_attention(args, device_, cuda_stream(stream));
  }

  void activation(ActivationKind kind, const MatrixRef& x, const MatrixRef& y, Stream& stream) override {
    cuda::activation(kind, x, y, cuda_stream(stream));
  }
  void gated_activation(ActivationKind kind, const MatrixRef& gate, const MatrixRef& up, const MatrixRef& y,
                        Stream& stream) override {
    cuda::gated_activation(kind, gate, up, y, cuda_stream(stream));
  }
  void add(const MatrixRef& a, const MatrixRef& b, const MatrixRef& y, Stream& stream) override {
    cuda::add(a, b, y, cuda_stream(stream));
  }
  void mean(const MatrixRef& a, const MatrixRef& b, const MatrixRef& y, Stream& stream) override {
    cuda::mean(a, b, y, cuda_stream(stream));
  }
  void cut_patches(const PatchArgs& args, Stream& stream) override { cuda::cut_patches(args, cuda_stream(stream)); }
  void place_patches(const PlaceArgs& args, Stream& stream) override { cuda::place_patches(args, cuda_stream(stream)); }
  void pad_rows(const MatrixRef& x, const std::int32_t* row_begin, std::int64_t sequences, std::int64_t length,
                const MatrixRef& y, Stream& stream) override {
    cuda::pad_rows(x, row_begin, sequences, length, y, cuda_stream(stream));
  }
  std::unique_ptr<PackedConvolution> pack_convolution(const ConvolutionShape& shape, std::span<const float> weight,
                                                      std::span<const float> bias, Stream& stream) override {
    return cuda::pack_convolution(shape, weight, bias, device_, stream);
  }
  std::size_t convolution_bytes(const ConvolutionShape& shape) const override { return cuda::convolution_bytes(shape); }
  std::size_t convolution_workspace(const ConvolutionShape& shape) const override {
    return cuda::convolution_workspace(shape);
  }
  void convolve(const PackedConvolution& packed, const ConvolveArgs& args, Stream& stream) override {
    cuda::convolve(packed, args, cuda_stream(stream));
  }
  void instance_norm(const InstanceNormArgs& args, Stream& stream) override {
    cuda::instance_norm(args, device_, cuda_stream(stream));
  }
  void trim_frames(const TrimArgs& args, Stream& stream) override { cuda::trim_frames(args, cuda_stream(stream)); }
  void transpose(const MatrixRef& x, const MatrixRef& y, Stream& stream) override {
    cuda::transpose(x, y, cuda_stream(stream));
  }
  void gather_rows(const MatrixRef& x, const std::int32_t* indices, const MatrixRef& y, Stream& stream) override {
    cuda::gather_rows(x, indices, y, cuda_stream(stream));
  }

  std::size_t sample_workspace(std::int64_t rows, std::int64_t vocab) const override {
    return cuda::sample_workspace(rows, vocab);
  }
  void sample(const SampleArgs& args, Stream& stream) override { cuda::sample(args, cuda_stream(stream)); }
  void advance(const AdvanceArgs& args, Stream& stream) override { cuda::advance(args, cuda_stream(stream)); }

 private:
  CudaDevice device_;
};

int count_devices(std::string& why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    why = std::string("CUDA cannot start: ") + cudaGetErrorString(status);
    return 0;
  }
  if (count == 0) why = "CUDA sees no GPU (CUDA_VISIBLE_DEVICES may hide it)";
  return count;
}

std::unique_ptr<Backend> open_device(int index) { return std::make_unique<CudaBackend>(index); }

}  // namespace
}  // namespace nibble

extern "C" const nibble::CudaEntry* nibble_cuda_entry() {
  static const nibble::CudaEntry entry{NIBBLE_VERSION, nibble::count_devices, nibble::open_device, nibble::cuda_bus};
  return &entry;
}
