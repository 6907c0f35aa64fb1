// Means of whole images, whose one window covers each of them.
#pragma once
#include "pooling_backward.cuh"

// Channels last: threads of a block side by side, each with a pack of channels, and those that share an image's positions.
constexpr int WHOLE_SIDE = 32, WHOLE_DOWN = POOLING_BLOCK / WHOLE_SIDE;
// The same backward, where nothing is added up.
constexpr int SPREAD_SIDE = 128, SPREAD_DOWN = POOLING_BLOCK / SPREAD_SIDE;
// Loads of a thread in flight, and packs of dx of a thread where channels come first.
constexpr int WHOLE_AHEAD = 8, WHOLE_PACKS = 4;

// Pack number `pack` of the channels of an image; `first` is the first of the positions that the thread has.
template <int SIDE> struct WholePiece {
  i64 item, base;  // of all packs of y, and of the packs of x at position 0
  int first, side, positions;
  DEVICE explicit WholePiece(const Planes& c) {
    side = (int)threadIdx.x % SIDE;
    first = (int)threadIdx.x / SIDE;
    positions = c.h.image * c.w.image;
    item = (i64)blockIdx.x * SIDE + side;
    u32 image = (u32)item;
    const int pack = taken(image, c.inner, c.by_inner);
    base = (i64)image * positions * c.inner + pack;
  }
};

template <class T, int VEC>
__global__ void __launch_bounds__(POOLING_BLOCK) pooling_forward_whole_packed(const PoolingForwardParams<T> p) {
  typedef acc_t<T> A;
  __shared__ A sums[WHOLE_DOWN][VEC][WHOLE_SIDE];
  const Planes& c = p.pool;
  const WholePiece<WHOLE_SIDE> piece(c);
  Total<T, VEC> state;
  if (piece.item < p.size) {
#pragma unroll 1
    for (int k = piece.first; k < piece.positions; k += WHOLE_AHEAD * WHOLE_DOWN) {
      pack<T, VEC> x[WHOLE_AHEAD] = {};
#pragma unroll
      for (int u = 0; u < WHOLE_AHEAD; ++u) {
        const int at = k + u * WHOLE_DOWN;
        if (at < piece.positions) x[u] = load<VEC>(p.x, piece.base + (i64)at * c.inner);
      }
#pragma unroll
      for (int u = 0; u < WHOLE_AHEAD; ++u) state.take(x[u], 0);
    }
  }
#pragma unroll
  for (int k = 0; k < VEC; ++k) sums[piece.first][k][piece.side] = state.sum[k];
  __syncthreads();
  if (piece.first > 0 || piece.item >= p.size) return;
#pragma unroll
  for (int k = 0; k < VEC; ++k) {
#pragma unroll
    for (int i = 1; i < WHOLE_DOWN; ++i) state.sum[k] += sums[i][k][piece.side];
  }
  state.divide((A)piece.positions);
  put(p, piece.item, state);
}

template <class T, int VEC>
__global__ void __launch_bounds__(POOLING_BLOCK) pooling_backward_whole_packed(const PoolingBackwardParams<T> p) {
  typedef acc_t<T> A;
  const Planes& c = p.pool;
  const WholePiece<SPREAD_SIDE> piece(c);
  if (piece.item >= p.size) return;
  const A share = A(1) / (A)piece.positions;
  A gradient[VEC];
  unpack(gradient, load<VEC>(p.dy, piece.item));
#pragma unroll
  for (int k = 0; k < VEC; ++k) gradient[k] *= share;
#pragma unroll 4
  for (int k = piece.first; k < piece.positions; k += SPREAD_DOWN)
    put_blended<VEC>(p.dx, piece.base + (i64)k * c.inner, gradient, p.alpha, p.beta);
}

// Channels first: a thread has some packs of dx, wherever planes end in them.
template <class T, int VEC>
__global__ void __launch_bounds__(POOLING_BLOCK) pooling_backward_whole_planes(const PoolingBackwardParams<T> p) {
  typedef acc_t<T> A;
  const int positions = p.pool.h.image * p.pool.w.image;
  const A share = A(1) / (A)positions;
#pragma unroll
  for (int u = 0; u < WHOLE_PACKS; ++u) {
    const i64 item = ((i64)blockIdx.x * WHOLE_PACKS + u) * POOLING_BLOCK + threadIdx.x, left = p.size - item * VEC;
    if (left <= 0) return;
    u32 plane = (u32)(item * VEC);
    int at = taken(plane, positions, p.pool.by_across);
    A gradient = to_acc(p.dy[plane]) * share, lanes[VEC];
#pragma unroll
    for (int k = 0; k < VEC; ++k, ++at) {
      if (at == positions && k < left) {
        at = 0;
        gradient = to_acc(p.dy[++plane]) * share;
      }
      lanes[k] = gradient;
    }
    if (left >= VEC) {
      put_blended<VEC>(p.dx, item, lanes, p.alpha, p.beta);
      continue;
    }
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      const A one[1] = {lanes[k]};
      if (k < left) put_blended<1>(p.dx, item * VEC + k, one, p.alpha, p.beta);
    }
  }
}
