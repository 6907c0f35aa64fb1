// Reductions over a warp and over a block, in a fixed order, so that the same inputs give the same bits.
// An operation has `A operator()(A, A) const`; the result reaches every thread.
#pragma once
#include "dtypes.cuh"

struct Sum {
  template <class A> DEVICE A operator()(A a, A b) const { return a + b; }
};
struct Product {
  template <class A> DEVICE A operator()(A a, A b) const { return a * b; }
};
// A NaN on either side wins.
struct Max {
  template <class A> DEVICE A operator()(A a, A b) const { return (a > b || a != a) ? a : b; }
};
struct Min {
  template <class A> DEVICE A operator()(A a, A b) const { return (a < b || a != a) ? a : b; }
};

template <class Op, class A> DEVICE A warp_reduce(A v, Op op) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// BLOCK: threads of the block, a multiple of 32, all of them here. `identity` is neutral for op. The trailing barrier
// lets the caller reduce again at once.
template <int BLOCK, class Op, class A> DEVICE A block_reduce(A v, Op op, A identity) {
  v = warp_reduce(v, op);
  if (BLOCK == 32) return v;
  __shared__ A partial[BLOCK / 32];
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = v;
  __syncthreads();
  v = warp_reduce((threadIdx.x & 31) < BLOCK / 32 ? partial[threadIdx.x & 31] : identity, op);
  __syncthreads();
  return v;
}
