// Norm, clipping and scaling of lists of gradients.
//
//   norm = sqrt(sum of x^2 over all elements of all tensors)
//   clipping: x *= min(1, max_norm / (norm + epsilon)) (Pascanu, Mikolov and Bengio 2013)
//   scaling: x *= scale, and a flag when an element stored is infinite or NaN (loss scaling, Micikevicius et al. 2018)
//
// Pointers: table, i64: address of every operand; rows, i32 (chunks, 4): the chunks (tensor_lists.cuh); partials, float64,
//   one per block; norm, A: 0-d, A float64 where one of the arrays is, else float32; scalar: null or a float32 or float64
//   scalar; flag: null or an i32 scalar. The arrays in the table are T.
// Plan: the norm in two launches: so many blocks that the device is full take the shares of the chunks in turn, and one
//   block folds their sums. Scaling is one launch and one pass, a share for each block; every thread derives the
//   coefficient from the norm, so the host never waits. A block that would multiply by 1 leaves without touching its share,
//   unless it has to look for infinities.
// Numerics: squares and sums in float64, in an order fixed by the shapes. The square of a float32, float16 or bfloat16 is
//   exact there and cannot overflow; for float64 the norm is infinite from about 1.3e154 on. A NaN element makes the norm
//   NaN, and that makes every clipped element NaN; an infinite norm makes the finite ones 0.
// Cost, bytes per element: norm sizeof(T), scaling 2 sizeof(T); flops: 2 in float64, and 1.
// Measured on an NVIDIA H200, 2026-11-28, 32 tensors of 16,777,216: norm, tools/bench.py: float32 4.35 TB/s, 1.01 of a
//   copy, bfloat16 4.11 TB/s, 0.96. Scaling, ncu, 134,217,728 of bfloat16: 0.129 ms, 4.17 TB/s; with one pack of a thread in
//   flight 0.84 of a copy: three look-ups come before the first load, and want more bytes behind each.
// Limits: chunks are counted in 32 bits, elements in 64.
#include "tensor_lists.cuh"
#include "reduce.cuh"

template <class T> struct NormPartialsParams {
  double* partials;
  const i64* table;
  const int* rows;
  i64 first_partial, shares;
  int arrays, elements, share;
};

template <class T> struct NormFoldParams {
  acc_t<T>* norm;
  const double* partials;
  i64 count;
};

template <class T> struct ScaleArraysParams {
  int* flag;
  const i64* table;
  const int* rows;
  const void* scalar_address;
  double scale, max_norm, epsilon;
  int scalar_wide, clip, arrays, elements, share;
};

template <int VEC, class T> DEVICE double sum_of_squares(const T* x, int groups, double sum) {
#pragma unroll 4
  for (int i = threadIdx.x; i < groups; i += blockDim.x) {
    pack<T, VEC> v = load<VEC>(x, i);
#pragma unroll
    for (int lane = 0; lane < VEC; ++lane) {
      double wide = to_acc(v.lane[lane]);
      sum = fma(wide, wide, sum);
    }
  }
  return sum;
}

template <class T> __global__ void __launch_bounds__(256) norm_partials(const NormPartialsParams<T> p) {
  constexpr int VEC = 16 / (int)sizeof(T);
  double sum = 0.0;
  for (i64 at = blockIdx.x; at < p.shares; at += gridDim.x) {
    Chunk chunk = chunk_at(p.rows, at, p.elements, p.share);
    const T* x = array_at<const T>(p.table, p.arrays, chunk);
    int groups = chunk.packs ? chunk.count / VEC : 0, done = groups * VEC;
    sum = sum_of_squares<VEC>(x, groups, sum);
    sum = sum_of_squares<1>(x + done, chunk.count - done, sum);
  }
  sum = block_reduce<256>(sum, Sum(), 0.0);
  if (threadIdx.x == 0) p.partials[p.first_partial + blockIdx.x] = sum;
}

template <class T> __global__ void __launch_bounds__(256) norm_fold(const NormFoldParams<T> p) {
  double sum = 0.0;
#pragma unroll 4
  for (i64 i = threadIdx.x; i < p.count; i += blockDim.x) sum += p.partials[i];
  sum = block_reduce<256>(sum, Sum(), 0.0);
  if (threadIdx.x == 0) *p.norm = (acc_t<T>)sqrt(sum);
}

// A difference with itself is 0 for finite values alone.
template <class A> DEVICE bool finite(A v) { return v - v == A(0); }

constexpr int AHEAD = 2;  // loads in flight per thread

template <int VEC, class T> DEVICE bool scale_pack(T* x, int i, pack<T, VEC> v, acc_t<T> coefficient) {
  bool all_finite = true;
#pragma unroll
  for (int lane = 0; lane < VEC; ++lane) {
    v.lane[lane] = from_acc<T>(coefficient * to_acc(v.lane[lane]));
    all_finite = all_finite && finite(to_acc(v.lane[lane]));
  }
  store<VEC>(x, i, v);
  return all_finite;
}

template <int VEC, class T> DEVICE bool scale_groups(T* x, int groups, acc_t<T> coefficient) {
  bool all_finite = true;
  for (int i = threadIdx.x; i < groups; i += AHEAD * (int)blockDim.x) {
    pack<T, VEC> v[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; ++j)
      if (i + j * (int)blockDim.x < groups) v[j] = load<VEC>(x, i + j * (int)blockDim.x);
#pragma unroll
    for (int j = 0; j < AHEAD; ++j)
      if (i + j * (int)blockDim.x < groups)
        all_finite = scale_pack<VEC>(x, i + j * (int)blockDim.x, v[j], coefficient) && all_finite;
  }
  return all_finite;
}

template <class T> __global__ void __launch_bounds__(256) scale_arrays(const ScaleArraysParams<T> p) {
  constexpr int VEC = 16 / (int)sizeof(T);
  double scale = scalar_or(p.scalar_address, p.scalar_wide, p.scale);
  if (p.clip) {
    scale = p.max_norm / (scale + p.epsilon);
    if (scale >= 1.0) return;
  }
  Chunk chunk = chunk_at(p.rows, blockIdx.x, p.elements, p.share);
  T* x = array_at<T>(p.table, p.arrays, chunk);
  int groups = chunk.packs ? chunk.count / VEC : 0, done = groups * VEC;
  bool all_finite = scale_groups<VEC>(x, groups, (acc_t<T>)scale);
  all_finite = scale_groups<1>(x + done, chunk.count - done, (acc_t<T>)scale) && all_finite;
  if (p.flag && !all_finite) *p.flag = 1;
}
