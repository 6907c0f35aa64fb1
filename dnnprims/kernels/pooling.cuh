// What the kernels of pooling have in common: the axes of an image, and what is kept of a window while it is walked.
#pragma once
#include "largest.cuh"
#include "vec.cuh"

// In DEVICE_FLAGS of the checks.
#define POOLING_INDEX_OUT_OF_RANGE 3

// Threads of a block, and the blocks that a multiprocessor should have room for: left to itself ptxas spills.
constexpr int POOLING_BLOCK = 256;
constexpr int PACKED_BLOCKS = 2;
constexpr int ROWS_BLOCKS = 4;

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
  // The part of a window that lies in the image.
  DEVICE int first(int o) const { return max(start(o), 0); }
  DEVICE int last(int o) const { return min(start(o) + window, image); }
  // What a mean divides by.
  DEVICE int count(int o, bool padded) const { return padded ? window : last(o) - first(o); }
};

// The largest of each of VEC windows so far, and which tap it is: that of the window, row by row.
template <class T, int VEC> struct Largest {
  acc_t<T> best[VEC];
  int at[VEC];

  DEVICE explicit Largest(int first) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      best[k] = -limits<acc_t<T>>::infinity();
      at[k] = first;
    }
  }
  // What takes part in no window: it exceeds nothing.
  static DEVICE pack<T, VEC> nothing() {
    pack<T, VEC> v;
#pragma unroll
    for (int k = 0; k < VEC; ++k) v.lane[k] = from_acc<T>(-limits<acc_t<T>>::infinity());
    return v;
  }
  DEVICE void take(const pack<T, VEC>& v, int tap) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      const acc_t<T> one = to_acc(v.lane[k]);
      if (exceeds(one, best[k])) {
        best[k] = one;
        at[k] = tap;
      }
    }
  }
};

// The sums of VEC windows so far.
template <class T, int VEC> struct Total {
  acc_t<T> best[VEC];

  DEVICE explicit Total(int) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) best[k] = acc_t<T>(0);
  }
  static DEVICE pack<T, VEC> nothing() { return pack<T, VEC>{}; }
  DEVICE void take(const pack<T, VEC>& v, int) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) best[k] += to_acc(v.lane[k]);
  }
  DEVICE void divide(acc_t<T> by) {
    const acc_t<T> factor = acc_t<T>(1) / by;
#pragma unroll
    for (int k = 0; k < VEC; ++k) best[k] *= factor;
  }
};

template <class T, int VEC, bool MAX> struct state_of {
  typedef Total<T, VEC> type;
};
template <class T, int VEC> struct state_of<T, VEC, true> {
  typedef Largest<T, VEC> type;
};

// Takes every tap of the window of output (o, q), row by row; read(i, j) gives VEC elements of the image. WINDOW taps
// along both axes, or as many as the axes say where it is 0.
template <int WINDOW, class State, class Read>
DEVICE void walk(State& state, const PoolAxis& h, const PoolAxis& w, int o, int q, const Read& read) {
  const int top = h.start(o), left = w.start(q);
  if constexpr (WINDOW > 0) {
#pragma unroll
    for (int r = 0; r < WINDOW; ++r) {
      decltype(read(0, 0)) row[WINDOW];
#pragma unroll
      for (int s = 0; s < WINDOW; ++s) {
        row[s] = h.has(top + r) && w.has(left + s) ? read(top + r, left + s) : State::nothing();
      }
#pragma unroll
      for (int s = 0; s < WINDOW; ++s) state.take(row[s], r * WINDOW + s);
    }
  } else {
    const int first = w.first(q), last = w.last(q), end = h.last(o);
#pragma unroll 1
    for (int i = h.first(o); i < end; ++i) {
#pragma unroll 4
      for (int j = first; j < last; ++j) state.take(read(i, j), (i - top) * w.window + j - left);
    }
  }
}

// The state of a whole window, a mean divided already.
template <class T, int VEC, int WINDOW, bool MAX, class Read>
DEVICE typename state_of<T, VEC, MAX>::type pooled(
    const PoolAxis& h, const PoolAxis& w, bool padded, int o, int q, const Read& read) {
  typename state_of<T, VEC, MAX>::type state((h.first(o) - h.start(o)) * w.window + w.first(q) - w.start(q));
  walk<WINDOW>(state, h, w, o, q, read);
  if constexpr (!MAX) state.divide((acc_t<T>)(h.count(o, padded) * w.count(q, padded)));
  return state;
}

// Pooling of images of two axes whose elements lie without gaps: in packs along the channels, or row by row.
struct Planes {
  i64 images;        // or planes, where channels come first
  PoolAxis h, w;
  int padded;        // whether a mean counts the padding
  int inner;         // packs along the channels, or planes of a block
  int across, down;  // pieces of work along a row and along a plane
  int height;        // rows of windows, or of tiles, of a piece
  Divisor by_inner, by_across, by_down;
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

// VEC windows into their place: pack number `at` of y, and of the indices where they are wanted.
template <class T, int VEC> DEVICE void put(const PoolingForwardParams<T>& p, i64 at, const Largest<T, VEC>& state) {
  store_blended<VEC>(p.y, at, state.best, p.alpha, p.beta);
  if (!p.indices) return;
  u64 bytes = 0;
#pragma unroll
  for (int k = 0; k < VEC; ++k) bytes |= (u64)state.at[k] << (8 * k);
  pack<u8, VEC> indices;
  indices.bits = (typename pack<u8, VEC>::whole)bytes;
  store<VEC>(p.indices, at, indices);
}
template <class T, int VEC> DEVICE void put(const PoolingForwardParams<T>& p, i64 at, const Total<T, VEC>& state) {
  store_blended<VEC>(p.y, at, state.best, p.alpha, p.beta);
}

// ---- backward -------------------------------------------------------------------------------------------------------

template <class T> struct PoolingBackwardParams {
  T* dx;
  int* flag;
  const T* dy;
  const u8* indices;
  acc_t<T> alpha, beta;
  i64 size;  // pieces of work, or elements of dx
  Planes pool;
};

// What VEC windows hand back: their gradients, and a byte each that tells which tap gets it.
template <class T, int VEC> struct Handed {
  pack<T, VEC> dy;
  u64 bytes;
  DEVICE int tap(int k) const { return (int)(bytes >> (8 * k) & 255); }
};

template <int VEC, bool MAX, class T> DEVICE Handed<T, VEC> handed(const PoolingBackwardParams<T>& p, i64 at) {
  Handed<T, VEC> from{load<VEC>(p.dy, at), 0};
  if constexpr (MAX) from.bytes = load<VEC>(p.indices, at).bits;
  return from;
}
// The same of no window: its tap is none of those that a kernel of WINDOW taps asks for.
template <class T, int VEC> DEVICE Handed<T, VEC> nothing_handed() { return {pack<T, VEC>{}, ~(u64)0}; }

template <class T, int VEC> DEVICE void refuse_foreign_taps(const Handed<T, VEC>& from, int taps, int* flag) {
  bool within = true;
#pragma unroll
  for (int k = 0; k < VEC; ++k) within = within && from.tap(k) < taps;
  if (!within) *flag = POOLING_INDEX_OUT_OF_RANGE;
}

template <int VEC, class T, class A> DEVICE void collect(A (&sum)[VEC], const Handed<T, VEC>& from, int tap) {
#pragma unroll
  for (int k = 0; k < VEC; ++k) {
    if (from.tap(k) == tap) sum[k] += to_acc(from.dy.lane[k]);
  }
}
template <int VEC, class T, class A> DEVICE void collect_share(A (&sum)[VEC], const Handed<T, VEC>& from, A share) {
#pragma unroll
  for (int k = 0; k < VEC; ++k) sum[k] += to_acc(from.dy.lane[k]) * share;
}

// Gathers what a tile of STRIDE x STRIDE elements gets: those whose windows begin no later than window (a, b) and later
// than the one before it. read(o, q) gives what a window hands back, give(i, j, sum) takes the gradient of an element.
template <class T, int VEC, int WINDOW, int STRIDE, class Read, class Give>
DEVICE void gather_known(
    const PoolingBackwardParams<T>& p, int a, int b, const Read& read, const Give& give) {
  constexpr int REACH = (WINDOW + STRIDE - 1) / STRIDE;
  const PoolAxis &h = p.pool.h, &w = p.pool.w;
  Handed<T, VEC> from[REACH][REACH];
#pragma unroll
  for (int u = 0; u < REACH; ++u) {
#pragma unroll
    for (int v = 0; v < REACH; ++v) {
      const int o = a - u, q = b - v;
      const bool there = o >= 0 && o < h.output && q >= 0 && q < w.output;
      from[u][v] = there ? read(o, q) : nothing_handed<T, VEC>();
      if (u + v == 0 && there) refuse_foreign_taps(from[0][0], WINDOW * WINDOW, p.flag);
    }
  }
#pragma unroll
  for (int t = 0; t < STRIDE; ++t) {
#pragma unroll
    for (int s = 0; s < STRIDE; ++s) {
      acc_t<T> sum[VEC] = {};
#pragma unroll
      for (int u = REACH - 1; u >= 0; --u) {
#pragma unroll
        for (int v = REACH - 1; v >= 0; --v) {
          const int r = t + u * STRIDE, c = s + v * STRIDE;
          if (r < WINDOW && c < WINDOW) collect(sum, from[u][v], r * WINDOW + c);
        }
      }
      give(h.start(a) + t, w.start(b) + s, sum);
    }
  }
}

// The same for any window and stride.
template <class T, int VEC, bool MAX, class Read, class Give>
DEVICE void gather_any(const PoolingBackwardParams<T>& p, int a, int b, const Read& read, const Give& give) {
  const PoolAxis &h = p.pool.h, &w = p.pool.w;
  const bool padded = p.pool.padded != 0;
  if constexpr (MAX) {
    if (a < h.output && b < w.output) refuse_foreign_taps(read(a, b), h.window * w.window, p.flag);
  }
#pragma unroll 1
  for (int t = 0; t < h.stride; ++t) {
#pragma unroll 1
    for (int s = 0; s < w.stride; ++s) {
      acc_t<T> sum[VEC] = {};
#pragma unroll 1
      for (int o = max(a - h.reach + 1, 0); o <= min(a, h.output - 1); ++o) {
        const int r = t + (a - o) * h.stride;
        if (r >= h.window) continue;
#pragma unroll 1
        for (int q = max(b - w.reach + 1, 0); q <= min(b, w.output - 1); ++q) {
          const int c = s + (b - q) * w.stride;
          if (c >= w.window) continue;
          if constexpr (MAX) collect(sum, read(o, q), r * w.window + c);
          else collect_share(sum, read(o, q), acc_t<T>(1) / (acc_t<T>)(h.count(o, padded) * w.count(q, padded)));
        }
      }
      give(h.start(a) + t, w.start(b) + s, sum);
    }
  }
}

template <class T, int VEC, int WINDOW, int STRIDE, bool MAX, class Read, class Give>
DEVICE void gather(const PoolingBackwardParams<T>& p, int a, int b, const Read& read, const Give& give) {
  if constexpr (WINDOW > 0) gather_known<T, VEC, WINDOW, STRIDE>(p, a, b, read, give);
  else gather_any<T, VEC, MAX>(p, a, b, read, give);
}
