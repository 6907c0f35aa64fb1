// What the kernels of all losses share: the reductions over the threads of a row and the fold of many losses into one.
#pragma once
#include "rows.cuh"

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

// A divisor that the labels decide comes in parts, no more than a warp has threads. To be called by whole warps.
constexpr int MOST_DIVISOR_PARTS = 32;
template <class A> DEVICE A divisor_of(const A* at, int parts, A divisor) {
  if (!at) return divisor;
  const int lane = threadIdx.x & 31;
  return warp_reduce(lane < parts ? at[lane] : A(0), Sum());
}

// Threads of a block that folds, and numbers that each has in flight.
constexpr int FOLD_BLOCK = 1024, FOLD_AHEAD = 8, LABELS_AHEAD = 4;

// out[block] = the block's share of the sum of in[0 .. count) / divisor.
template <class T> struct SumLossesParams {
  acc_t<T>* out;
  const acc_t<T>* in;
  const acc_t<T>* divisor_at;  // null: divisor
  acc_t<T> divisor;
  i64 count;
  int divisor_parts;
};
template <class T> __global__ void __launch_bounds__(FOLD_BLOCK) sum_losses(const SumLossesParams<T> p) {
  typedef acc_t<T> A;
  const i64 stride = (i64)gridDim.x * FOLD_BLOCK;
  A total = 0;
  for (i64 i = global_thread(); i < p.count; i += FOLD_AHEAD * stride) {
    A v[FOLD_AHEAD];
#pragma unroll
    for (int n = 0; n < FOLD_AHEAD; ++n) v[n] = i + n * stride < p.count ? p.in[i + n * stride] : A(0);
#pragma unroll
    for (int n = 0; n < FOLD_AHEAD; ++n) total += v[n];
  }
  const A divisor = divisor_of(p.divisor_at, p.divisor_parts, p.divisor);
  total = block_reduce<FOLD_BLOCK>(total, Sum(), A(0));
  if (threadIdx.x == 0) p.out[blockIdx.x] = total / divisor;
}

// out[block] = the block's share of the sum of the weights (1 without) of the labels that count.
template <class T> struct LabelWeightsParams {
  acc_t<T>* out;
  const void* target;
  const T* weight;
  i64 rows, classes, ignore_index;
  int label_bytes;
};
template <class T> __global__ void __launch_bounds__(FOLD_BLOCK) label_weights(const LabelWeightsParams<T> p) {
  typedef acc_t<T> A;
  const i64 stride = (i64)gridDim.x * FOLD_BLOCK;
  A total = 0;
  for (i64 i = global_thread(); i < p.rows; i += LABELS_AHEAD * stride) {
    Label label[LABELS_AHEAD];
#pragma unroll
    for (int n = 0; n < LABELS_AHEAD; ++n) {
      const i64 at = i + n * stride;
      label[n] = at < p.rows ? read_label(p.target, at, p.label_bytes, p.classes, p.ignore_index) : Label{0, false, false};
    }
#pragma unroll
    for (int n = 0; n < LABELS_AHEAD; ++n)
      if (label[n].counted) total += p.weight ? to_acc(p.weight[label[n].index]) : A(1);
  }
  total = block_reduce<FOLD_BLOCK>(total, Sum(), A(0));
  if (threadIdx.x == 0) p.out[blockIdx.x] = total;
}
