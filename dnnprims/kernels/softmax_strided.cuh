// Softmax along an axis with other rows between the elements of one: any step, any alignment.
#pragma once
#include "softmax.cuh"

constexpr int STRIDED_BLOCK = 256, AHEAD = 4;  // elements in flight per thread

// The part of this thread: a row, where its elements lie, and which of them are its own.
struct StridedPart {
  i64 row, first, step, begin, stride, end;
  int lanes;
  DEVICE StridedPart(i64 rows, i64 cols, i64 inner, int row_lanes) : lanes(row_lanes) {
    row = (i64)blockIdx.x * lanes + threadIdx.x % lanes;
    first = row / inner * inner * cols + row % inner;
    step = inner;
    begin = threadIdx.x / lanes;
    stride = STRIDED_BLOCK / lanes;
    end = row < rows ? cols : 0;
  }
  DEVICE i64 at(i64 k) const { return first + k * step; }
};

template <class T> __global__ void __launch_bounds__(STRIDED_BLOCK) softmax_forward_strided(const SoftmaxForwardParams<T> p) {
  typedef acc_t<T> A;
  __shared__ A tops[STRIDED_BLOCK], sums[STRIDED_BLOCK];
  const bool log = p.algorithm == LOG;
  const StridedPart part(p.rows, p.cols, p.inner, p.lanes);
  Running<T> mine;
  for (i64 k = part.begin; k < part.end; k += AHEAD * part.stride) {
    A v[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const i64 at = k + i * part.stride;
      v[i] = at < part.end ? to_acc(p.x[part.at(at)]) : -limits<A>::infinity();
    }
    mine.add(v);
  }
  tops[threadIdx.x] = mine.top;
  sums[threadIdx.x] = mine.sum;
  __syncthreads();
  A top = mine.top, sum = A(0);
  for (int i = threadIdx.x % part.lanes; i < STRIDED_BLOCK; i += part.lanes) top = Larger()(top, tops[i]);
  for (int i = threadIdx.x % part.lanes; i < STRIDED_BLOCK; i += part.lanes) {
    mine.top = tops[i];
    mine.sum = sums[i];
    sum += mine.below(top);
  }
  const A norm = normalizer<T>(top, sum, p.algorithm);
#pragma unroll 4
  for (i64 k = part.begin; k < part.end; k += part.stride) {
    const i64 at = part.at(k);
    p.y[at] = blend(p.alpha, normalized<T>(to_acc(p.x[at]), top, norm, log), p.beta, p.y + at);
  }
}

template <class T> __global__ void __launch_bounds__(STRIDED_BLOCK) softmax_backward_strided(const SoftmaxBackwardParams<T> p) {
  typedef acc_t<T> A;
  __shared__ A sums[STRIDED_BLOCK];
  const bool log = p.algorithm == LOG;
  const StridedPart part(p.rows, p.cols, p.inner, p.lanes);
  A sum = A(0);
#pragma unroll 4
  for (i64 k = part.begin; k < part.end; k += part.stride)
    sum += backward_term(to_acc(p.dy[part.at(k)]), to_acc(p.y[part.at(k)]), log);
  sums[threadIdx.x] = sum;
  __syncthreads();
  sum = A(0);
  for (int i = threadIdx.x % part.lanes; i < STRIDED_BLOCK; i += part.lanes) sum += sums[i];
#pragma unroll 4
  for (i64 k = part.begin; k < part.end; k += part.stride) {
    const i64 at = part.at(k);
    p.dx[at] = blend(p.alpha, backward_result<T>(to_acc(p.dy[at]), to_acc(p.y[at]), sum, log), p.beta, p.dx + at);
  }
}
