// The ops that combine two matrices element by element, or take one. Each element is read and written by one thread, so
// that y may be an input.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"

namespace nibble::cuda {
namespace {

struct Add {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

struct Mean {
  __device__ __forceinline__ float operator()(float a, float b) const { return (a + b) / 2; }
};

struct Gated {
  ActivationKind kind;

  __device__ __forceinline__ float operator()(float gate, float up) const { return activate(gate) * up; }

  __device__ __forceinline__ float activate(float x) const {
    switch (kind) {
      case ActivationKind::silu:
        return x / (1 + expf(-x));
      case ActivationKind::gelu: {
        constexpr float kSqrtHalf = 0.70710678f;
        return 0.5f * x * (1 + erff(x * kSqrtHalf));
      }
      case ActivationKind::gelu_tanh: {
        // 0.7978845608 = sqrt(2 / pi); the cubic term is that of the original approximation.
        constexpr float kSqrt2OverPi = 0.7978845608f;
        return 0.5f * x * (1 + tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
      }
      case ActivationKind::relu:
        return x > 0 ? x : 0;
      case ActivationKind::quick_gelu:
        return x / (1 + expf(-1.702f * x));
      case ActivationKind::tanh:
        return tanhf(x);
    }
    return x;
  }
};

template <int kWidth, typename Operation, typename A, typename B, typename Y>
__global__ void combine(Operation operation, Rows<const A> a, Rows<const B> b, Rows<Y> y, std::int64_t columns) {
  pdl_wait();
  pdl_launch();
  const std::int64_t column = column_unit() * kWidth;
  if (column >= columns) return;
  float left[kWidth];
  float right[kWidth];
  load(a.row(blockIdx.x) + column, left);
  load(b.row(blockIdx.x) + column, right);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) left[i] = operation(left[i], right[i]);
  store(y.row(blockIdx.x) + column, left);
}

struct Activated {
  Gated gated;
  __device__ __forceinline__ float operator()(float x, float) const { return gated.activate(x); }
};

template <typename Operation>
void enqueue(const Operation& operation, const MatrixRef& a, const MatrixRef& b, const MatrixRef& y,
             CudaStream& stream) {
  if (a.rows == 0 || a.columns == 0) return;
  with_width(takes_vectors(a) && takes_vectors(b) && takes_vectors(y), [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const RowGrid grid(a.rows, a.columns / kWidth);
    with_type(a.dtype, "an operand", [&](auto of_a) {
      with_type(b.dtype, "an operand", [&](auto of_b) {
        with_type(y.dtype, "y", [&](auto of_y) {
          using A = decltype(of_a);
          using B = decltype(of_b);
          using Y = decltype(of_y);
          launch(stream, grid.grid, grid.block, 0, Overlap::yes, combine<kWidth, Operation, A, B, Y>, operation,
                 Rows<const A>(a), Rows<const B>(b), Rows<Y>(y), a.columns);
        });
      });
    });
  });
}

}  // namespace

void gated_activation(ActivationKind kind, const MatrixRef& gate, const MatrixRef& up, const MatrixRef& y,
                      CudaStream& stream) {
  check_activation(gate, "gated_activation", "gate");
  check_shape(up, gate.rows, gate.columns, "gated_activation", "up");
  check_shape(y, gate.rows, gate.columns, "gated_activation", "y");
  enqueue(Gated{kind}, gate, up, y, stream);
}

void activation(ActivationKind kind, const MatrixRef& x, const MatrixRef& y, CudaStream& stream) {
  check_activation(x, "activation", "x");
  check_shape(y, x.rows, x.columns, "activation", "y");
  enqueue(Activated{{kind}}, x, x, y, stream);
}

void mean(const MatrixRef& a, const MatrixRef& b, const MatrixRef& y, CudaStream& stream) {
  check_activation(a, "mean", "a");
  check_shape(b, a.rows, a.columns, "mean", "b");
  check_shape(y, a.rows, a.columns, "mean", "y");
  enqueue(Mean{}, a, b, y, stream);
}

void add(const MatrixRef& a, const MatrixRef& b, const MatrixRef& y, CudaStream& stream) {
  check_activation(a, "add", "a");
  check_shape(b, a.rows, a.columns, "add", "b");
  check_shape(y, a.rows, a.columns, "add", "y");
  enqueue(Add{}, a, b, y, stream);
}

}  // namespace nibble::cuda
