// The ops of the CUDA back end, one file each (or one for a few small ones that belong together). All enqueue on the
// stream and may be captured; matrices are f32, f16 or bf16 with any stride, rows need not be aligned.
#pragma once

#include "core/cuda/cuda_device.h"
#include "ops/backend.h"

#include <cstddef>
#include <memory>
#include <span>

namespace nibble::cuda {

void embed(const EmbedArgs& args, CudaStream& stream);
void cut_patches(const PatchArgs& args, CudaStream& stream);
void place_patches(const PlaceArgs& args, CudaStream& stream);
void pad_rows(const MatrixRef& x, const std::int32_t* row_begin, std::int64_t sequences, std::int64_t length,
              const MatrixRef& y, CudaStream& stream);
void activation(ActivationKind kind, const MatrixRef& x, const MatrixRef& y, CudaStream& stream);
void mean(const MatrixRef& a, const MatrixRef& b, const MatrixRef& y, CudaStream& stream);
/// norm() where there is an addend, or where rows are whole, all of one type, and a few accesses of a warp.
void add_norm(const NormArgs& args, CudaStream& stream);
std::size_t self_attention_workspace(const SelfAttentionShape& shape);
void self_attention(const SelfAttentionArgs& args, const CudaDevice& device, CudaStream& stream);
void norm(const NormArgs& args, CudaStream& stream);
std::unique_ptr<PackedConvolution> pack_convolution(const ConvolutionShape& shape, std::span<const float> weight,
                                                    std::span<const float> bias, CudaDevice& device, Stream& stream);
std::size_t convolution_bytes(const ConvolutionShape& shape);
std::size_t convolution_workspace(const ConvolutionShape& shape);
void convolve(const PackedConvolution& packed, const ConvolveArgs& args, CudaStream& stream);
void instance_norm(const InstanceNormArgs& args, const CudaDevice& device, CudaStream& stream);
void trim_frames(const TrimArgs& args, CudaStream& stream);
void transpose(const MatrixRef& x, const MatrixRef& y, CudaStream& stream);
void rotary(const RotaryArgs& args, CudaStream& stream);
void gated_activation(ActivationKind kind, const MatrixRef& gate, const MatrixRef& up, const MatrixRef& y,
                      CudaStream& stream);
void add(const MatrixRef& a, const MatrixRef& b, const MatrixRef& y, CudaStream& stream);
void gather_rows(const MatrixRef& x, const std::int32_t* indices, const MatrixRef& y, CudaStream& stream);

std::size_t sample_workspace(std::int64_t rows, std::int64_t vocab);
void sample(const SampleArgs& args, CudaStream& stream);
void advance(const AdvanceArgs& args, CudaStream& stream);

/// Bytes of K (and as many of V) of one layer's cache, the scales of 8-bit types included; see kv_cache.h.
std::size_t kv_bytes(const KvView& shape);
void kv_store(const KvStoreArgs& args, CudaStream& stream);
std::size_t attention_workspace(std::int64_t rows, std::int64_t heads, const KvView& cache, const CudaDevice& device);
void attention(const AttentionArgs& args, const CudaDevice& device, CudaStream& stream);

}  // namespace nibble::cuda
