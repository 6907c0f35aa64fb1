// Gradients of pooling: what windows hand back, and what an element, or a tile of them, gets.
#pragma once
#include "pooling.cuh"

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
    none.drop();
    return none;
  }
  // No tap gets anything.
  DEVICE void drop() {
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) taps[k] = 0x00ff00ffu;
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
  // Two gradients, or zeros where another tap gets them.
  DEVICE u32 handed_to(int tap, int k) const {
    const pairs<T, VEC> all = {dy};
    return all.word[k] & halves_equal(taps[k], in_both(tap));
  }
  template <bool FIRST> DEVICE void collect(acc_t<T> (&sum)[VEC], int tap) const {
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) {
      const u32 mine = handed_to(tap, k);
      const acc_t<T> lower = lower_of(T{}, mine), upper = upper_of(T{}, mine);
      sum[2 * k] = FIRST ? lower : sum[2 * k] + lower;
      sum[2 * k + 1] = FIRST ? upper : sum[2 * k + 1] + upper;
    }
  }
};

// Up to four words of two numbers added up, and rounded once.
template <class T> DEVICE u32 halves_total(const u32 (&v)[4], int count) {
  if (count == 1) return v[0];
  if (count == 2) return halves_sums(T{}, v[0], v[1]);
  acc_t<T> lower = lower_of(T{}, v[0]), upper = upper_of(T{}, v[0]);
#pragma unroll
  for (int k = 1; k < 4; ++k) {
    if (k < count) lower += lower_of(T{}, v[k]), upper += upper_of(T{}, v[k]);
  }
  return rounding<T>::from(lower, upper);
}

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
  // The same of words: an element of one window gets what that hands on, one of two windows their sum.
  template <class Give> DEVICE void gather_words(const Give& give) const {
#pragma unroll
    for (int t = 0; t < STRIDE; ++t) {
#pragma unroll
      for (int s = 0; s < STRIDE; ++s) {
        pairs<T, VEC> sum;
#pragma unroll
        for (int k = 0; k < VEC / 2; ++k) sum.word[k] = total(t, s, k);
        give(t, s, sum.whole);
      }
    }
  }
  DEVICE u32 total(int t, int s, int k) const {
    u32 parts[4] = {};
    int count = 0;
#pragma unroll
    for (int u = 0; u < REACH; ++u) {
#pragma unroll
      for (int v = 0; v < REACH; ++v) {
        const int r = t + (REACH - 1 - u) * STRIDE, c = s + (REACH - 1 - v) * STRIDE;
        if (r < WINDOW && c < WINDOW) parts[count++] = from[u][v].handed_to(r * WINDOW + c, k);
      }
    }
    return halves_total<T>(parts, count);
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
