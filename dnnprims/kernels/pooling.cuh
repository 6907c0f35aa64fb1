// What the kernels of pooling have in common: the axes of an image, and what is kept of a window while it is walked.
#pragma once
#include "largest.cuh"

// In DEVICE_FLAGS of the checks.
#define POOLING_INDEX_OUT_OF_RANGE 3

// Threads of a block, and the blocks that a multiprocessor should have room for: left to itself ptxas spills.
constexpr int POOLING_BLOCK = 256;
constexpr int PACKED_BLOCKS = 4;
constexpr int ROWS_BLOCKS = 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int LINES_BLOCKS = 4;
#else
constexpr int LINES_BLOCKS = 5;
#endif

// Division of numbers below 2^31 by one that the host knows, as a product with 2^shift / divisor, rounded up (Granlund
// and Montgomery, "Division by invariant integers using multiplication", 1994).
struct Divisor {
  u32 multiplier, shift;
};
DEVICE u32 divided(u32 n, const Divisor& by) { return (u32)((u64)n * by.multiplier >> by.shift); }
// n / by, which n becomes; the rest is returned.
DEVICE int taken(u32& n, u32 extent, const Divisor& by) {
  const u32 whole = divided(n, by), here = n - whole * extent;
  n = whole;
  return (int)here;
}

// One axis: window o covers [o * stride - before, o * stride - before + window) of the image, and so none of its
// windows reaches further than `reach` = window / stride, rounded up, of those after it.
struct PoolAxis {
  int image, output, window, stride, before, reach;

  DEVICE int start(int o) const { return o * stride - before; }
  DEVICE bool has(int i) const { return i >= 0 && i < image; }
  DEVICE int nearest(int i) const { return min(max(i, 0), image - 1); }
  // The part of a window that lies in the image.
  DEVICE int first(int o) const { return max(start(o), 0); }
  DEVICE int last(int o) const { return min(start(o) + window, image); }
  // What a mean divides by.
  DEVICE int count(int o, bool padded) const { return padded ? window : last(o) - first(o); }
  DEVICE bool holds(int o) const { return start(o) >= 0 && start(o) + window <= image; }
  // The first of a window's taps that lies in the image.
  DEVICE int skipped(int o) const { return first(o) - start(o); }
};

// The sums of VEC windows so far.
template <class T, int VEC> struct Total {
  acc_t<T> sum[VEC];

  DEVICE Total() {
#pragma unroll
    for (int k = 0; k < VEC; ++k) sum[k] = acc_t<T>(0);
  }
  static DEVICE pack<T, VEC> nothing() { return pack<T, VEC>{}; }
  DEVICE void take(const pack<T, VEC>& v, int) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) sum[k] += to_acc(v.lane[k]);
  }
  DEVICE void add(const Total& other) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) sum[k] += other.sum[k];
  }
  DEVICE void divide(acc_t<T> by) {
    const acc_t<T> factor = acc_t<T>(1) / by;
#pragma unroll
    for (int k = 0; k < VEC; ++k) sum[k] *= factor;
  }
};

// Takes every tap of the window of output (o, q) that lies in the image, row by row; read(i, j) gives VEC elements of the
// image. BATCH of them are asked for at once, those past the window being nothing.
template <int BATCH, class State, class Read>
DEVICE void walk(State& state, const PoolAxis& h, const PoolAxis& w, int o, int q, const Read& read) {
  const int top = h.start(o), left = w.start(q), first = w.first(q), last = w.last(q), end = h.last(o);
  int i = h.first(o), j = first;
#pragma unroll 1
  while (i < end) {
    decltype(read(0, 0)) v[BATCH];
    int tap[BATCH];
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      tap[k] = (i - top) * w.window + j - left;
      if (i < end) v[k] = read(i, j);
      else v[k] = State::nothing();
      const bool turn = ++j == last;
      j = turn ? first : j;
      i += turn;
    }
#pragma unroll
    for (int k = 0; k < BATCH; ++k) state.take(v[k], tap[k]);
  }
}

// The same of WINDOW x WINDOW taps, of which none is skipped.
template <int WINDOW, class State, class Read> DEVICE void walk_all(State& state, int top, int left, const Read& read) {
#pragma unroll
  for (int r = 0; r < WINDOW; ++r) {
    decltype(read(0, 0)) row[WINDOW];
#pragma unroll
    for (int s = 0; s < WINDOW; ++s) row[s] = read(top + r, left + s);
#pragma unroll
    for (int s = 0; s < WINDOW; ++s) state.take(row[s], r * WINDOW + s);
  }
}

// Takes the window of output (o, q): one of known size without looking for edges, where it lies in the image.
template <int WINDOW, class State, class Read>
DEVICE void walk_window(State& state, const PoolAxis& h, const PoolAxis& w, int o, int q, const Read& read) {
  if constexpr (WINDOW > 0) {
    if (h.holds(o) & w.holds(q)) return walk_all<WINDOW>(state, h.start(o), w.start(q), read);
  }
  walk<4>(state, h, w, o, q, read);
}

// Pooling of images of two axes whose elements lie without gaps: in packs along the channels, or row by row.
struct Planes {
  i64 images;        // or planes, where channels come first
  PoolAxis h, w;
  int padded;        // whether a mean counts the padding
  int inner;         // packs along the channels, or planes of a block
  int across, down;  // pieces of work along a row and along a plane
  int height;        // rows of windows, or of tiles, of a thread, or of a block and a plane
  int dy_at, indices_at;  // bytes of shared memory in front of those
  Divisor by_inner, by_across, by_down;

  DEVICE int first_tap(int o, int q) const { return h.skipped(o) * w.window + w.skipped(q); }
  // What the mean of a window divides by.
  DEVICE int count(int o, int q) const { return h.count(o, padded != 0) * w.count(q, padded != 0); }
};

// ---- forward --------------------------------------------------------------------------------------------------------

template <class T> struct PoolingForwardParams {
  T* y;
  u8* indices;  // may be null
  const T* x;
  acc_t<T> alpha, beta;
  i64 size;  // pieces of work, or elements of x
  Planes pool;
};

// Elements VEC * at onwards of y, blended where that is asked for.
template <int VEC, class T, class A> DEVICE void put_blended(T* y, i64 at, const A (&result)[VEC], A alpha, A beta) {
  if (alpha == A(1) && beta == A(0)) store(y, at, rounded<T>(result));
  else store_blended<VEC>(y, at, result, alpha, beta);
}
// The same of elements that are moved.
template <int VEC, class T, class A> DEVICE void put_moved(T* y, i64 at, const pack<T, VEC>& v, A alpha, A beta) {
  if (alpha == A(1) && beta == A(0)) return store(y, at, v);
  A result[VEC];
  unpack(result, v);
  store_blended<VEC>(y, at, result, alpha, beta);
}

// VEC windows into their place: pack number `at` of y, and of the indices where they are wanted.
template <class T, int VEC> DEVICE void put(const PoolingForwardParams<T>& p, i64 at, Largest<T, VEC>& state) {
  state.settle();
  put_moved<VEC>(p.y, at, state.values(), p.alpha, p.beta);
  if (!p.indices) return;
  store<VEC>(p.indices, at, state.taps());
}
template <class T, int VEC> DEVICE void put(const PoolingForwardParams<T>& p, i64 at, const Total<T, VEC>& state) {
  put_blended<VEC>(p.y, at, state.sum, p.alpha, p.beta);
}
