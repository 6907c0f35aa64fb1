// Softmax along an axis with other rows between the elements of one: `lanes` packs of neighbouring rows, over the whole
// axis, wait in a block between their uses, so that each element is read once, 16 bytes at a time: the first TILE_HELD packs
// of each thread in registers (backward: those of dy), the others in shared memory.
// Thread t has pack t, t + BLOCK, ... of the tile, all of them of the same VEC rows, as BLOCK is a multiple of lanes.
#pragma once
#include "held.cuh"
#include "parts.cuh"
#include "softmax.cuh"

constexpr int TILE_HELD = 4, TILE_THREADS = 1024;  // of all tiles of a multiprocessor

// The packs of this thread: where the first lies, by how much the others are apart, and how many the tile has for it.
template <int VEC, int BLOCK> struct TilePart {
  i64 first, step;
  int room, packs;   // of the tile, and those that are there
  int held, shared;  // packs in registers, and places in shared memory for the others
  DEVICE TilePart(i64 cols, i64 inner, int lanes) : step(BLOCK / lanes * inner), room((int)cols * lanes) {
    const i64 width = (i64)lanes * VEC, tiles = (inner + width - 1) / width, outer = quotient(blockIdx.x, tiles);
    const i64 row = (blockIdx.x - outer * tiles) * width + threadIdx.x % lanes * VEC;
    first = outer * cols * inner + threadIdx.x / lanes * inner + row;
    packs = row < inner ? room : 0;
    held = held_of<BLOCK, TILE_HELD>(packs);
    shared = room - held_of<BLOCK, TILE_HELD>(room);
  }
};

// Each of the VEC rows of this thread over all threads that share it; `room` has a place for each row of each warp. One
// thread of each row makes of the result what all of them get: finish(result).
template <int VEC, int BLOCK, class A, class Op, class Finish>
DEVICE void tile_reduce(A (&v)[VEC], Op op, A* room, int lanes, Finish finish) {
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
    room[threadIdx.x] = finish(all);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < VEC; ++i) v[i] = room[row + i];
}

template <class T, int VEC, int BLOCK>
__global__ void __launch_bounds__(BLOCK, TILE_THREADS / BLOCK) softmax_forward_tile(const SoftmaxForwardParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(T, kept);
  const bool log = p.algorithm == LOG;
  const TilePart<VEC, BLOCK> part(p.cols, p.inner, p.lanes);
  A* room = reinterpret_cast<A*>(kept + part.shared * VEC);
  Held<T, VEC, TILE_HELD> held;
  pack<T, VEC> peak = lowest_pack<T, VEC>();
  A top[VEC], sum[VEC], v[VEC];
#pragma unroll
  for (int i = 0; i < VEC; ++i) sum[i] = A(0);
  i64 at = part.first;
  each_held<BLOCK, TILE_HELD>(part.held, [&](int j, int) { held.packs[j] = load<VEC>(p.x + at, 0), at += part.step; });
  const int others = part.packs - part.held;
  fetch_parts<BLOCK>(others, [&](int k) { copy_async(kept + k * VEC, p.x + at), at += part.step; });
  each_held<BLOCK, TILE_HELD>(part.held, [&](int j, int) { raise(peak, held.packs[j]); });
  use_parts<BLOCK>(others, [&](int k) { raise(peak, load<VEC>(kept, k)); });
  unpack(top, peak);
  A own = A(0);  // maximum of row threadIdx.x of the tile
  tile_reduce<VEC, BLOCK>(top, Larger(), room, p.lanes, [&](A all) { return own = all; });
  const auto add = [&](const pack<T, VEC>& in) {
    unpack(v, in);
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      const A shifted = v[i] - top[i], power = Power<T>::of(shifted);
      sum[i] += power;
      v[i] = log ? shifted : power;
    }
    return keeps_powers<T> ? rounded<T, VEC>(v) : in;
  };
  each_held<BLOCK, TILE_HELD>(part.held, [&](int j, int) { held.packs[j] = add(held.packs[j]); });
#pragma unroll 2
  for (int k = threadIdx.x; k < others; k += BLOCK) {
    const pack<T, VEC> left = add(load<VEC>(kept, k));
    if constexpr (keeps_powers<T>) store<VEC>(kept, k, left);
  }
  tile_reduce<VEC, BLOCK>(sum, Sum(), room, p.lanes, [&](A all) { return normalizer<T>(own, all, p.algorithm); });
  T* y = p.y + part.first;
  const auto put = [&](const pack<T, VEC>& in) {
    unpack(v, in);
    // Asked once a pack, so that no element selects.
    if (log) {
#pragma unroll
      for (int i = 0; i < VEC; ++i) v[i] = (keeps_powers<T> ? v[i] : v[i] - top[i]) - sum[i];
    } else {
#pragma unroll
      for (int i = 0; i < VEC; ++i) v[i] = (keeps_powers<T> ? v[i] : Power<T>::of(v[i] - top[i])) * sum[i];
    }
    store_blended<VEC>(y, 0, v, p.alpha, p.beta);
    y += part.step;
  };
  each_held<BLOCK, TILE_HELD>(part.held, [&](int j, int) { put(held.packs[j]); });
#pragma unroll 2
  for (int k = threadIdx.x; k < others; k += BLOCK) put(load<VEC>(kept, k));
}

template <class T, int VEC, int BLOCK>
__global__ void __launch_bounds__(BLOCK, TILE_THREADS / BLOCK) softmax_backward_tile(const SoftmaxBackwardParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(T, kept_y);
  const bool log = p.algorithm == LOG;
  const TilePart<VEC, BLOCK> part(p.cols, p.inner, p.lanes);
  T* kept = kept_y + part.room * VEC;
  A* room = reinterpret_cast<A*>(kept + part.shared * VEC);
  Held<T, VEC, TILE_HELD> held;
  A sum[VEC], v[VEC], w[VEC];
#pragma unroll
  for (int i = 0; i < VEC; ++i) sum[i] = A(0);
  i64 at = part.first;
  each_held<BLOCK, TILE_HELD>(part.held, [&](int j, int k) {
    held.packs[j] = load<VEC>(p.dy + at, 0);
    copy_async(kept_y + k * VEC, p.y + at);
    at += part.step;
  });
  // The first part of the others takes these along.
  const int others = part.packs - part.held, first = TILE_HELD * BLOCK;
  fetch_parts<BLOCK>(others, [&](int k) {
    copy_async(kept + k * VEC, p.dy + at);
    copy_async(kept_y + (first + k) * VEC, p.y + at);
    at += part.step;
  });
  const auto add = [&](const pack<T, VEC>& dy, int k) {
    unpack(v, dy);
    if (!log) {
      unpack(w, load<VEC>(kept_y, k));
#pragma unroll
      for (int i = 0; i < VEC; ++i) v[i] *= w[i];
    }
#pragma unroll
    for (int i = 0; i < VEC; ++i) sum[i] += v[i];
  };
  use_parts<BLOCK>(others, [&](int k) { add(load<VEC>(kept, k), first + k); });
  each_held<BLOCK, TILE_HELD>(part.held, [&](int j, int k) { add(held.packs[j], k); });
  tile_reduce<VEC, BLOCK>(sum, Sum(), room, p.lanes, [](A all) { return all; });
  T* dx = p.dx + part.first;
  const auto put = [&](const pack<T, VEC>& dy, int k) {
    unpack(v, dy);
    unpack(w, load<VEC>(kept_y, k));
    if (log) {
#pragma unroll
      for (int i = 0; i < VEC; ++i) v[i] = backward_result<T>(v[i], w[i], sum[i], true);
    } else {
#pragma unroll
      for (int i = 0; i < VEC; ++i) v[i] = backward_result<T>(v[i], w[i], sum[i], false);
    }
    store_blended<VEC>(dx, 0, v, p.alpha, p.beta);
    dx += part.step;
  };
  each_held<BLOCK, TILE_HELD>(part.held, [&](int j, int k) { put(held.packs[j], k); });
#pragma unroll 2
  for (int k = threadIdx.x; k < others; k += BLOCK) put(load<VEC>(kept, k), first + k);
}
