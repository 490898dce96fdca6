#include "ops/backend.h"

#include "core/error.h"

namespace nibble {
namespace {

[[noreturn]] void fail_without(std::string_view op) {
  fail("this device has no {}, so encoders do not run on it: use --device cpu", op);
}

}  // namespace

std::size_t Backend::self_attention_workspace(const SelfAttentionShape&) const {
  fail_without("attention without a cache");
}

void Backend::self_attention(const SelfAttentionArgs&, Stream&) { fail_without("attention without a cache"); }

void Backend::activation(ActivationKind, const MatrixRef&, const MatrixRef&, Stream&) {
  fail_without("activation by itself");
}

void Backend::pad_rows(const MatrixRef&, const std::int32_t*, std::int64_t, std::int64_t, const MatrixRef&, Stream&) {
  fail_without("padding of packed rows");
}
void Backend::mean(const MatrixRef&, const MatrixRef&, const MatrixRef&, Stream&) { fail_without("mean of two heads"); }

void Backend::cut_patches(const PatchArgs&, Stream&) { fail_without("patches of images"); }

void Backend::place_patches(const PlaceArgs&, Stream&) { fail_without("patches of images"); }

std::unique_ptr<PackedConvolution> Backend::pack_convolution(const ConvolutionShape&, std::span<const float>,
                                                             std::span<const float>, Stream&) {
  fail_without("convolution over time");
}

std::size_t Backend::convolution_bytes(const ConvolutionShape&) const { fail_without("convolution over time"); }

std::size_t Backend::convolution_workspace(const ConvolutionShape&) const { fail_without("convolution over time"); }

void Backend::convolve(const PackedConvolution&, const ConvolveArgs&, Stream&) {
  fail_without("convolution over time");
}

void Backend::instance_norm(const InstanceNormArgs&, Stream&) { fail_without("norm over time"); }

void Backend::transpose(const MatrixRef&, const MatrixRef&, Stream&) { fail_without("transposing of spectrograms"); }

void Backend::trim_frames(const TrimArgs&, Stream&) { fail_without("trimming of frames"); }

}  // namespace nibble
