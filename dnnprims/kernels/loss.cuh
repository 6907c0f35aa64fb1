// What the kernels of all losses share: the reductions over the threads of a row and the fold of many losses into one.
#pragma once
#include "reduce.cuh"
#include "vec.cuh"

// The larger of two; a NaN is dropped, because it comes back in the sum that follows.
struct Larger {
  DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
  DEVICE double operator()(double a, double b) const { return fmax(a, b); }
};

// N reductions at once over LANES neighbouring threads (a power of two up to 32, or the whole block), with one barrier.
// There is no trailing barrier: a kernel may call each instantiation once.
template <int LANES, int N, class A, class Op> DEVICE void group_reduce(A (&v)[N], Op op, A identity) {
  constexpr int WIDTH = LANES < 32 ? LANES : 32;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset >>= 1) v[n] = op(v[n], __shfl_xor_sync(0xffffffffu, v[n], offset));
  }
  if constexpr (LANES > 32) {
    __shared__ A partial[N][LANES / 32];
    const int lane = threadIdx.x & 31;
    if (lane == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) partial[n][threadIdx.x >> 5] = v[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = warp_reduce(lane < LANES / 32 ? partial[n][lane] : identity, op);
  }
}

// What the gradient of a reduced loss is multiplied by. A divisor of 0 (no sample, or no label that counts) gives 0.
template <class A> DEVICE A gradient_factor(A alpha, const A* dloss, i64 at, A divisor) {
  if (divisor == A(0)) return A(0);
  return (dloss ? alpha * dloss[at] : alpha) / divisor;
}

// Elements W i onwards of dx become factor * slope + beta * dx.
template <int W, class T, class A> DEVICE void store_gradient(T* dx, i64 i, A (&slopes)[W], A factor, A beta) {
#pragma unroll
  for (int l = 0; l < W; ++l) slopes[l] *= factor;
  if (beta != A(0)) {
    const pack<T, W> old = load<W>(dx, i);
#pragma unroll
    for (int l = 0; l < W; ++l) slopes[l] += beta * to_acc(old.lane[l]);
  }
  store<W>(dx, i, rounded<T>(slopes));
}

// A label of the device's memory, which nobody has checked. Neither an ignored nor a bad one counts.
struct Label {
  i64 index;
  bool counted, bad;
};
DEVICE Label read_label(const void* target, i64 at, int bytes, i64 classes, i64 ignore_index) {
  const i64 index = bytes == 4 ? (i64)((const int*)target)[at] : ((const i64*)target)[at];
  const bool inside = index >= 0 && index < classes, ignored = index == ignore_index;
  return Label{index, inside && !ignored, !inside && !ignored};
}
constexpr int BAD_LABEL = 1;  // code in the handle's flag

// out[block] = the block's share of the sum of in[0 .. count) / divisor.
template <class T> struct SumLossesParams {
  acc_t<T>* out;
  const acc_t<T>* in;
  const acc_t<T>* divisor_at;  // null: divisor
  acc_t<T> divisor;
  i64 count;
};
template <class T> __global__ void __launch_bounds__(512) sum_losses(const SumLossesParams<T> p) {
  typedef acc_t<T> A;
  A total = 0;
  // Eight loads at once: what one block folds is a matter of latency.
#pragma unroll 8
  for (i64 i = global_thread(); i < p.count; i += (i64)gridDim.x * 512) total += p.in[i];
  total = block_reduce<512>(total, Sum(), A(0));
  if (threadIdx.x == 0) p.out[blockIdx.x] = total / (p.divisor_at ? *p.divisor_at : p.divisor);
}

// out[block] = the block's share of the sum of the weights (1 without) of the labels that count.
template <class T> struct LabelWeightsParams {
  acc_t<T>* out;
  const void* target;
  const T* weight;
  i64 rows, classes, ignore_index;
  int label_bytes;
};
template <class T> __global__ void __launch_bounds__(512) label_weights(const LabelWeightsParams<T> p) {
  typedef acc_t<T> A;
  A total = 0;
  for (i64 i = global_thread(); i < p.rows; i += (i64)gridDim.x * 512) {
    const Label label = read_label(p.target, i, p.label_bytes, p.classes, p.ignore_index);
    if (label.counted) total += p.weight ? to_acc(p.weight[label.index]) : A(1);
  }
  total = block_reduce<512>(total, Sum(), A(0));
  if (threadIdx.x == 0) p.out[blockIdx.x] = total;
}
