// Softmax along an axis with other rows between the elements of one: `lanes` packs of neighbouring rows, over the whole
// axis, wait in a block's shared memory between their uses, so that each element is read once, 16 bytes at a time.
// Thread t has pack t, t + BLOCK, ... of the tile, all of them of the same VEC rows, as BLOCK is a multiple of lanes.
#pragma once
#include "parts.cuh"
#include "softmax.cuh"

// The packs of this thread: where the first lies, by how much the others are apart, and how many the tile has for it.
template <int VEC, int BLOCK> struct TilePart {
  i64 first, step;
  int room, packs;
  DEVICE TilePart(i64 cols, i64 inner, int lanes) : step(BLOCK / lanes * inner), room((int)cols * lanes) {
    const i64 width = (i64)lanes * VEC, tiles = (inner + width - 1) / width, outer = quotient(blockIdx.x, tiles);
    const i64 row = (blockIdx.x - outer * tiles) * width + threadIdx.x % lanes * VEC;
    first = outer * cols * inner + threadIdx.x / lanes * inner + row;
    packs = row < inner ? room : 0;
  }
};

// Each of the VEC rows of this thread over all threads that share it; `room` has a place for each row of each warp.
template <int VEC, int BLOCK, class A, class Op> DEVICE void tile_reduce(A (&v)[VEC], Op op, A* room, int lanes) {
  const int row = (threadIdx.x & (lanes - 1)) * VEC, rows = lanes * VEC;
  for (int offset = lanes; offset < 32; offset <<= 1) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) v[i] = op(v[i], __shfl_xor_sync(0xffffffffu, v[i], offset));
  }
  __syncthreads();  // an earlier result has been read
  if ((threadIdx.x & 31) < lanes) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) room[(threadIdx.x >> 5) * rows + row + i] = v[i];
  }
  __syncthreads();
  if (threadIdx.x < rows) {
    A all = room[threadIdx.x];
#pragma unroll
    for (int w = 1; w < BLOCK / 32; ++w) all = op(all, room[w * rows + threadIdx.x]);
    room[threadIdx.x] = all;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < VEC; ++i) v[i] = room[row + i];
}

template <class T, int VEC, int BLOCK>
__global__ void __launch_bounds__(BLOCK) softmax_forward_tile(const SoftmaxForwardParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(T, kept);
  const bool log = p.algorithm == LOG;
  const TilePart<VEC, BLOCK> part(p.cols, p.inner, p.lanes);
  A* room = reinterpret_cast<A*>(kept + part.room * VEC);
  A top[VEC], sum[VEC], v[VEC];
#pragma unroll
  for (int i = 0; i < VEC; ++i) top[i] = -limits<A>::infinity(), sum[i] = A(0);
  i64 at = part.first;
  fetch_parts<BLOCK>(part.packs, [&](int k) { copy_async(kept + k * VEC, p.x + at), at += part.step; });
  use_parts<BLOCK>(part.packs, [&](int k) {
    unpack(v, load<VEC>(kept, k));
#pragma unroll
    for (int i = 0; i < VEC; ++i) top[i] = Larger()(top[i], v[i]);
  });
  tile_reduce<VEC, BLOCK>(top, Larger(), room, p.lanes);
#pragma unroll 2
  for (int k = threadIdx.x; k < part.packs; k += BLOCK) {
    unpack(v, load<VEC>(kept, k));
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      const A shifted = v[i] - top[i], power = Power<T>::of(shifted);
      sum[i] += power;
      v[i] = log ? shifted : power;
    }
    if constexpr (keeps_powers<T>) store<VEC>(kept, k, rounded<T>(v));
  }
  tile_reduce<VEC, BLOCK>(sum, Sum(), room, p.lanes);
#pragma unroll
  for (int i = 0; i < VEC; ++i) sum[i] = normalizer<T>(top[i], sum[i], p.algorithm);
  T* y = p.y + part.first;
#pragma unroll 2
  for (int k = threadIdx.x; k < part.packs; k += BLOCK, y += part.step) {
    unpack(v, load<VEC>(kept, k));
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      if constexpr (keeps_powers<T>) v[i] = log ? v[i] - sum[i] : v[i] * sum[i];
      else v[i] = normalized<T>(v[i], top[i], sum[i], log);
    }
    store_blended<VEC>(y, 0, v, p.alpha, p.beta);
  }
}

template <class T, int VEC, int BLOCK>
__global__ void __launch_bounds__(BLOCK) softmax_backward_tile(const SoftmaxBackwardParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(T, kept);
  const bool log = p.algorithm == LOG;
  const TilePart<VEC, BLOCK> part(p.cols, p.inner, p.lanes);
  T* kept_y = kept + part.room * VEC;
  A* room = reinterpret_cast<A*>(kept_y + part.room * VEC);
  A sum[VEC], v[VEC];
#pragma unroll
  for (int i = 0; i < VEC; ++i) sum[i] = A(0);
  i64 at = part.first;
  fetch_parts<BLOCK>(part.packs, [&](int k) {
    copy_async(kept + k * VEC, p.dy + at);
    copy_async(kept_y + k * VEC, p.y + at);
    at += part.step;
  });
  use_parts<BLOCK>(part.packs, [&](int k) {
    const pack<T, VEC> dy = load<VEC>(kept, k), y = load<VEC>(kept_y, k);
#pragma unroll
    for (int i = 0; i < VEC; ++i) sum[i] += backward_term(to_acc(dy.lane[i]), to_acc(y.lane[i]), log);
  });
  tile_reduce<VEC, BLOCK>(sum, Sum(), room, p.lanes);
  T* dx = p.dx + part.first;
#pragma unroll 2
  for (int k = threadIdx.x; k < part.packs; k += BLOCK, dx += part.step) {
    const pack<T, VEC> dy = load<VEC>(kept, k), y = load<VEC>(kept_y, k);
#pragma unroll
    for (int i = 0; i < VEC; ++i) v[i] = backward_result<T>(to_acc(dy.lane[i]), to_acc(y.lane[i]), sum[i], log);
    store_blended<VEC>(dx, 0, v, p.alpha, p.beta);
  }
}
