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
  u64 bytes = 0;
#pragma unroll
  for (int k = 0; k < VEC; ++k) bytes |= (u64)state.tap(k) << (8 * k);
  pack<u8, VEC> indices;
  indices.bits = (typename pack<u8, VEC>::whole)bytes;
  store<VEC>(p.indices, at, indices);
}
template <class T, int VEC> DEVICE void put(const PoolingForwardParams<T>& p, i64 at, const Total<T, VEC>& state) {
  put_blended<VEC>(p.y, at, state.sum, p.alpha, p.beta);
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

// What VEC windows hand back: their gradients, and which tap of each gets it.
template <class T, int VEC, bool PAIRED = sizeof(T) == 2 && VEC % 2 == 0> struct Handed {
  pack<T, VEC> dy;
  u32 taps;  // a byte each

  // Of no window: its tap is none of those that a kernel of known windows asks for.
  static DEVICE Handed nothing() { return {pack<T, VEC>{}, ~0u}; }
  static DEVICE Handed of(const pack<T, VEC>& dy, const pack<u8, VEC>& bytes) { return {dy, bytes.bits}; }
  DEVICE bool within(int count) const {
    bool all = true;
#pragma unroll
    for (int k = 0; k < VEC; ++k) all &= (taps >> (8 * k) & 255u) < (u32)count;
    return all;
  }
  // Adds what a tap gets, or, where it is the first of all, begins with it.
  template <bool FIRST> DEVICE void collect(acc_t<T> (&sum)[VEC], int tap) const {
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      const bool mine = (taps >> (8 * k) & 255u) == (u32)tap;
      if constexpr (FIRST) sum[k] = mine ? to_acc(dy.lane[k]) : acc_t<T>(0);
      else if (mine) sum[k] += to_acc(dy.lane[k]);
    }
  }
};

template <class T, int VEC> struct Handed<T, VEC, true> {
  pack<T, VEC> dy;
  u32 taps[VEC / 2];  // 16 bits each

  static DEVICE Handed nothing() {
    Handed none{};
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) none.taps[k] = 0x00ff00ffu;
    return none;
  }
  static DEVICE Handed of(const pack<T, VEC>& dy, const pack<u8, VEC>& bytes) {
    Handed from{dy, {}};
    const u64 all = bytes.bits;
    const u32 four[2] = {(u32)all, (u32)(all >> 32)};
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) from.taps[k] = k % 2 ? upper_bytes(four[k / 2]) : lower_bytes(four[k / 2]);
    return from;
  }
  DEVICE bool within(int count) const {
    u32 borrow = 0;
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) borrow |= taps[k] + in_both(0x8000 - count);
    return (borrow & 0x80008000u) == 0;
  }
  template <bool FIRST> DEVICE void collect(acc_t<T> (&sum)[VEC], int tap) const {
    const pairs<T, VEC> all = {dy};
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) {
      const u32 mine = all.word[k] & halves_equal(taps[k], in_both(tap));
      const acc_t<T> lower = lower_of(T{}, mine), upper = upper_of(T{}, mine);
      sum[2 * k] = FIRST ? lower : sum[2 * k] + lower;
      sum[2 * k + 1] = FIRST ? upper : sum[2 * k + 1] + upper;
    }
  }
};

template <int VEC, bool MAX, class T>
DEVICE Handed<T, VEC> handed(const T* dy, const u8* indices, i64 at) {
  pack<u8, VEC> bytes{};
  if constexpr (MAX) bytes = load<VEC>(indices, at);
  return Handed<T, VEC>::of(load<VEC>(dy, at), bytes);
}

// What an element gets of a window: all of its gradient or nothing, or its share.
template <bool MAX, bool FIRST, int VEC, class T, class A>
DEVICE void collect(A (&sum)[VEC], const Handed<T, VEC>& from, int tap, A share) {
  if constexpr (MAX) from.template collect<FIRST>(sum, tap);
  else {
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      const A part = to_acc(from.dy.lane[k]) * share;
      sum[k] = FIRST ? part : sum[k] + part;
    }
  }
}

// The windows that a tile of STRIDE x STRIDE elements has: those that begin no later than window (a, b) and later than the
// one before the tile. read(o, q) gives what a window hands back, give(i, j, sum) takes the gradient of an element.
template <class T, int VEC, int WINDOW, int STRIDE, bool MAX> struct Tile {
  static constexpr int REACH = (WINDOW + STRIDE - 1) / STRIDE;
  typedef acc_t<T> A;
  Handed<T, VEC> from[REACH][REACH];
  A share[REACH][REACH];  // of a mean

  // Windows of row o, which are row u of those of the tile.
  template <class Read> DEVICE void read_row(const PoolingBackwardParams<T>& p, int u, int o, int b, const Read& read) {
    const PoolAxis &h = p.pool.h, &w = p.pool.w;
#pragma unroll
    for (int v = 0; v < REACH; ++v) {
      const int q = b - REACH + 1 + v;
      const bool there = (o >= 0) & (o < h.output) & (q >= 0) & (q < w.output);
      if (there) from[u][v] = read(o, q);
      else from[u][v] = Handed<T, VEC>::nothing();
      const bool own = u == REACH - 1 && v == REACH - 1;
      if (MAX && own && there && !from[u][v].within(WINDOW * WINDOW)) *p.flag = POOLING_INDEX_OUT_OF_RANGE;
    }
  }
  // All alike but at the edges, where alone they are divided for.
  DEVICE void find_shares(const Planes& c, int a, int b) {
    const bool inside = c.padded || (c.h.holds(a - REACH + 1) & c.h.holds(a) & c.w.holds(b - REACH + 1) & c.w.holds(b));
#pragma unroll
    for (int u = 0; u < REACH; ++u) {
#pragma unroll
      for (int v = 0; v < REACH; ++v) {
        const int o = a - REACH + 1 + u, q = b - REACH + 1 + v;
        const bool there = (o >= 0) & (o < c.h.output) & (q >= 0) & (q < c.w.output);
        share[u][v] = A(1) / A(WINDOW * WINDOW);
        if (!inside) share[u][v] = there ? A(1) / (A)c.count(o, q) : A(0);
      }
    }
  }
  // For the tile below.
  DEVICE void go_down() {
#pragma unroll
    for (int u = 0; u + 1 < REACH; ++u) {
#pragma unroll
      for (int v = 0; v < REACH; ++v) from[u][v] = from[u + 1][v];
    }
  }
  template <class Give> DEVICE void gather(int i, int j, const Give& give) const {
#pragma unroll
    for (int t = 0; t < STRIDE; ++t) {
#pragma unroll
      for (int s = 0; s < STRIDE; ++s) {
        A sum[VEC] = {};
        bool first = true;
#pragma unroll
        for (int u = 0; u < REACH; ++u) {
#pragma unroll
          for (int v = 0; v < REACH; ++v) {
            const int r = t + (REACH - 1 - u) * STRIDE, c = s + (REACH - 1 - v) * STRIDE;
            if (r >= WINDOW || c >= WINDOW) continue;
            if (first) collect<MAX, true>(sum, from[u][v], r * WINDOW + c, share[u][v]);
            else collect<MAX, false>(sum, from[u][v], r * WINDOW + c, share[u][v]);
            first = false;
          }
        }
        give(i + t, j + s, sum);
      }
    }
  }
};

// One tile, of any window and stride.
template <class T, int VEC, bool MAX, class Read, class Give>
DEVICE void gather_any(const PoolingBackwardParams<T>& p, int a, int b, const Read& read, const Give& give) {
  const PoolAxis &h = p.pool.h, &w = p.pool.w;
  const bool there = a < h.output && b < w.output;
  const auto share = [&](int o, int q) { return acc_t<T>(1) / (acc_t<T>)p.pool.count(o, q); };
  const bool apart = h.reach == 1 && w.reach == 1;  // no element lies in two windows
  const Handed<T, VEC> own = there ? read(a, b) : Handed<T, VEC>::nothing();
  const acc_t<T> part = there ? share(a, b) : acc_t<T>(0);
  if (MAX && there && !own.within(h.window * w.window)) *p.flag = POOLING_INDEX_OUT_OF_RANGE;
#pragma unroll 1
  for (int t = 0; t < h.stride; ++t) {
#pragma unroll 1
    for (int s = 0; s < w.stride; ++s) {
      acc_t<T> sum[VEC] = {};
      if (apart) {
        if (there && t < h.window && s < w.window) collect<MAX, false>(sum, own, t * w.window + s, part);
        give(h.start(a) + t, w.start(b) + s, sum);
        continue;
      }
#pragma unroll 1
      for (int o = max(a - h.reach + 1, 0); o <= min(a, h.output - 1); ++o) {
        const int r = t + (a - o) * h.stride;
        if (r >= h.window) continue;
#pragma unroll 1
        for (int q = max(b - w.reach + 1, 0); q <= min(b, w.output - 1); ++q) {
          const int c = s + (b - q) * w.stride;
          if (c < w.window) collect<MAX, false>(sum, read(o, q), r * w.window + c, MAX ? acc_t<T>(0) : share(o, q));
        }
      }
      give(h.start(a) + t, w.start(b) + s, sum);
    }
  }
}
