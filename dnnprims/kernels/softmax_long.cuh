// Softmax of rows that are longer than registers hold: a block per row, of which shared memory keeps the first p.kept packs
// between their uses, and the threads' registers the HELD packs of each thread that follow.
#pragma once
#include "held.cuh"
#include "parts.cuh"
#include "softmax.cuh"

template <class T, int VEC, int BLOCK, int HELD>
__global__ void __launch_bounds__(BLOCK, HELD > 0 ? 2 : long_rows_at_once<T, BLOCK>)
    softmax_forward_long(const SoftmaxForwardParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(T, kept);
  const bool log = p.algorithm == LOG;
  const T* x = p.x + (i64)blockIdx.x * p.cols;
  T* y = p.y + (i64)blockIdx.x * p.cols;
  const i64 packs = p.cols / VEC, rest = p.kept + HELD * BLOCK;
  Running<T> mine;
  pack<T, VEC> peak = lowest_pack<T, VEC>();
  A v[VEC];
  fetch_parts<BLOCK>(p.kept, [&](int k) { fetch<VEC>(kept, x, k); });
  Held<T, VEC, HELD> held;
  const T* x_held = x + (i64)p.kept * VEC;
  const int holds = held_of<BLOCK, HELD>(packs - p.kept);
  each_held<BLOCK, HELD>(holds, [&](int j, int k) { held.packs[j] = load<VEC>(x_held, k); });
  use_parts<BLOCK>(p.kept, [&](int k) { raise(peak, load<VEC>(kept, k)); });
  each_held<BLOCK, HELD>(holds, [&](int j, int) { raise(peak, held.packs[j]); });
  mine.top = largest(peak);
#pragma unroll 4
  for (i64 k = rest + threadIdx.x; k < packs; k += BLOCK) {
    unpack(v, load_again<VEC>(x, k));
    mine.add(v);
  }
  const A top = group_reduce<BLOCK>(mine.top, Larger(), -limits<A>::infinity());
  mine.sum = mine.below(top);
#pragma unroll 4
  for (int k = threadIdx.x; k < p.kept; k += BLOCK) {
    unpack(v, load<VEC>(kept, k));
    mine.sum += powers_below<T>(v, top, log);
    if constexpr (keeps_powers<T>) store<VEC>(kept, k, rounded<T>(v));
  }
  each_held<BLOCK, HELD>(holds, [&](int j, int) {
    unpack(v, held.packs[j]);
    mine.sum += powers_below<T>(v, top, log);
    if constexpr (keeps_powers<T>) held.packs[j] = rounded<T, VEC>(v);
  });
  const A norm = normalizer<T>(top, group_reduce<BLOCK>(mine.sum, Sum(), A(0)), p.algorithm);
  const auto put = [&](i64 k) {
    normalize(v, norm, log);
    store_blended<VEC>(y, k, v, p.alpha, p.beta);
  };
  // First what the caches saw last.
#pragma unroll 4
  for (i64 k = rest + threadIdx.x; k < packs; k += BLOCK) {
    unpack(v, load_last<VEC>(x, k));
    powers_below<T>(v, top, log);
    put(k);
  }
#pragma unroll 4
  for (int k = threadIdx.x; k < p.kept; k += BLOCK) {
    unpack(v, load<VEC>(kept, k));
    if constexpr (!keeps_powers<T>) powers_below<T>(v, top, log);
    put(k);
  }
  each_held<BLOCK, HELD>(holds, [&](int j, int k) {
    unpack(v, held.packs[j]);
    if constexpr (!keeps_powers<T>) powers_below<T>(v, top, log);
    put(p.kept + k);
  });
}

// A block that is given several rows asks for each pack of the next one as soon as that of this one has been used for the
// last time, so that a multiprocessor with room for one row reads while it writes.
template <class T, int VEC, int BLOCK, int HELD>
__global__ void __launch_bounds__(BLOCK, BLOCK > 512 ? 1 : 2) softmax_backward_long(const SoftmaxBackwardParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(T, kept);
  const bool log = p.algorithm == LOG;
  const i64 packs = p.cols / VEC, rest = p.kept + HELD * BLOCK, after = (i64)p.kept * VEC;
  const int holds = held_of<BLOCK, HELD>(packs - p.kept);
  T* kept_y = kept + after;
  Held<T, VEC, HELD> held, held_y;
  const T *dy = p.dy + (i64)blockIdx.x * p.cols, *y = p.y + (i64)blockIdx.x * p.cols;
  const auto ask = [&](int k) {
    fetch<VEC>(kept, dy, k);
    fetch<VEC>(kept_y, y, k);
  };
  const auto ask_held = [&](int j, int k) {
    held.packs[j] = load<VEC>(dy + after, k);
    held_y.packs[j] = load<VEC>(y + after, k);
  };
  fetch_parts<BLOCK>(p.kept, ask);
  each_held<BLOCK, HELD>(holds, ask_held);
#pragma unroll 1
  for (i64 row = blockIdx.x; row < p.rows; row += gridDim.x) {
    A sum = A(0), v[VEC], w[VEC];
    const auto add = [&](const pack<T, VEC>& dy, const pack<T, VEC>& y) {
      unpack(v, dy);
      unpack(w, y);
#pragma unroll
      for (int i = 0; i < VEC; ++i) sum += backward_term(v[i], w[i], log);
    };
    use_parts<BLOCK>(p.kept, [&](int k) { add(load<VEC>(kept, k), load<VEC>(kept_y, k)); });
    each_held<BLOCK, HELD>(holds, [&](int j, int) { add(held.packs[j], held_y.packs[j]); });
#pragma unroll 4
    for (i64 k = rest + threadIdx.x; k < packs; k += BLOCK) add(load_again<VEC>(dy, k), load_again<VEC>(y, k));
    sum = block_reduce<BLOCK>(sum, Sum(), A(0));
    T* dx = p.dx + row * p.cols;
    const auto put = [&](i64 k, const pack<T, VEC>& dy, const pack<T, VEC>& y) {
      unpack(v, dy);
      unpack(w, y);
#pragma unroll
      for (int i = 0; i < VEC; ++i) v[i] = backward_result<T>(v[i], w[i], sum, log);
      store_blended<VEC>(dx, k, v, p.alpha, p.beta);
    };
    // First what the caches saw last.
#pragma unroll 4
    for (i64 k = rest + threadIdx.x; k < packs; k += BLOCK) put(k, load_last<VEC>(dy, k), load_last<VEC>(y, k));
    const bool more = row + gridDim.x < p.rows;
    dy += gridDim.x * p.cols;
    y += gridDim.x * p.cols;
    exchange_parts<BLOCK>(p.kept, [&](int k) {
      put(k, load<VEC>(kept, k), load<VEC>(kept_y, k));
      if (more) ask(k);
    });
    each_held<BLOCK, HELD>(holds, [&](int j, int k) {
      put(p.kept + k, held.packs[j], held_y.packs[j]);
      if (more) ask_held(j, k);
    });
  }
}
