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

}  // namespace nibble
