// What the implicit products of convolutions share: the walk over taps and positions, four elements at once, and what
// follows the sums.
//
// Forward and data gradient are one product: results at positions j gather from a source at j * scale + base + t * hop, t
// over taps. Forward scale, base and hop are stride, -padding and dilation. Of the data gradient the positions of one
// residue i = residue + stride * j see each `period`-th tap from the first that divides, and the source one step further
// for each j: a stride costs no product with zeros.
#pragma once
#include "vec.cuh"

// One spatial axis. `period` and `hop` are stride and dilation over their greatest common divisor; steps are in elements.
struct Axis {
  int result, source, taps, stride, dilation, padding, period, hop;
  int result_step, source_step, tap_step, residual_step;
};

// An axis as the positions of one residue walk it: `first` and `spread` give the results, the rest the source and taps.
struct Walk {
  int count, first, spread, base, scale, hop, taps, w_first, w_step;
};

DEVICE Walk walk_forward(const Axis& a) {
  return Walk{a.result, 0, 1, -a.padding, a.stride, a.dilation, a.taps, 0, a.tap_step};
}
DEVICE Walk walk_backward(const Axis& a, int residue) {
  const int count = (a.result - residue + a.stride - 1) / a.stride, from = residue + a.padding;
  int r = 0;
  while (r < a.period && (from - r * a.dilation) % a.stride != 0) ++r;
  const int taps = r < a.period ? (a.taps - r + a.period - 1) / a.period : 0;
  const int base = (from - r * a.dilation) / a.stride;
  return Walk{count, residue, a.stride, base, 1, -a.hop, taps, r * a.tap_step, a.period * a.tap_step};
}

// Three axes, and the residue of each: number `phase` of all combinations.
struct Walks {
  Walk d, h, w;
  DEVICE int taps() const { return d.taps * h.taps * w.taps; }
  DEVICE int positions() const { return d.count * h.count * w.count; }
  DEVICE int w_first() const { return d.w_first + h.w_first + w.w_first; }
};
DEVICE Walks walks_of(const Axis& d, const Axis& h, const Axis& w, bool backwards, int phase) {
  if (!backwards) return Walks{walk_forward(d), walk_forward(h), walk_forward(w)};
  const int at_w = phase % w.stride, rest = phase / w.stride;
  return Walks{walk_backward(d, rest / h.stride), walk_backward(h, rest % h.stride), walk_backward(w, at_w)};
}

struct Row {
  int image, d, h, w;
};
DEVICE Row row_of(int m, const Walks& walks) {
  Row row;
  row.w = m % walks.w.count, m /= walks.w.count;
  row.h = m % walks.h.count, m /= walks.h.count;
  row.d = m % walks.d.count, row.image = m / walks.d.count;
  return row;
}

struct Tap {
  int d, h, w;
};
DEVICE Tap tap_of(int index, const Walks& walks) {
  const int rest = index / walks.w.taps;
  return Tap{rest / walks.h.taps, rest % walks.h.taps, index % walks.w.taps};
}
DEVICE void advance(Tap& tap, const Walks& walks) {
  if (++tap.w < walks.w.taps) return;
  tap.w = 0;
  if (++tap.h < walks.h.taps) return;
  tap.h = 0, ++tap.d;
}
DEVICE int offset_of(const Tap& tap, const Walks& walks) {
  return tap.d * walks.d.w_step + tap.h * walks.h.w_step + tap.w * walks.w.w_step;
}

// Where a row meets its source under tap 0; `none` stands for a row beyond the last.
struct Origin {
  int offset, d, h, w;
};
constexpr int NOWHERE = -(1 << 30);
DEVICE Origin origin_of(const Row& row, const Walks& walks, const Axis& d, const Axis& h, const Axis& w, int outer) {
  Origin at;
  at.d = walks.d.base + row.d * walks.d.scale;
  at.h = walks.h.base + row.h * walks.h.scale;
  at.w = walks.w.base + row.w * walks.w.scale;
  at.offset = row.image * outer + at.d * d.source_step + at.h * h.source_step + at.w * w.source_step;
  return at;
}
// Whether the source has an element there, and its offset.
DEVICE bool meets(const Origin& at, const Tap& tap, const Walks& walks, const Axis& d, const Axis& h, const Axis& w,
                  int& offset) {
  const int by_d = tap.d * walks.d.hop, by_h = tap.h * walks.h.hop, by_w = tap.w * walks.w.hop;
  offset = at.offset + by_d * d.source_step + by_h * h.source_step + by_w * w.source_step;
  return (u32)(at.d + by_d) < (u32)d.source && (u32)(at.h + by_h) < (u32)h.source && (u32)(at.w + by_w) < (u32)w.source;
}

// ---- four elements --------------------------------------------------------------------------------------------------

template <class T> struct Four {
  T lane[4];
};
// The first `left` of four elements `step` apart, zeros beyond; `packed` where they lie together and are aligned, and are
// all there or none.
template <class T> DEVICE Four<T> four(const T* p, int step, int left, bool packed) {
  Four<T> v = {};
  if (packed) {
    if (left > 0) {
      constexpr int VEC = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
      for (int i = 0; i < 4 / VEC; ++i) {
        const pack<T, VEC> in = load<VEC>(p, i);
#pragma unroll
        for (int k = 0; k < VEC; ++k) v.lane[i * VEC + k] = in.lane[k];
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < left) v.lane[i] = p[(i64)i * step];
  }
  return v;
}
template <class T> DEVICE void store_four(T* p, const acc_t<T> (&v)[4]) {
  constexpr int VEC = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
  for (int i = 0; i < 4 / VEC; ++i) {
    acc_t<T> part[VEC];
#pragma unroll
    for (int k = 0; k < VEC; ++k) part[k] = v[i * VEC + k];
    store(p, i, rounded<T>(part));
  }
}
// Four from shared memory, in accesses of 16 bytes.
template <class A> DEVICE void take_four(A* v, const A* from) {
  constexpr int VEC = 16 / sizeof(A);
#pragma unroll
  for (int i = 0; i < 4 / VEC; ++i) {
    const pack<A, VEC> in = load<VEC>(from, i);
#pragma unroll
    for (int k = 0; k < VEC; ++k) v[i * VEC + k] = in.lane[k];
  }
}

// ---- what follows the sums ------------------------------------------------------------------------------------------

template <class T> struct After {
  const T* b;
  const T* residual;
  const acc_t<T>* scale;
  const acc_t<T>* shift;
};
template <class T> struct Factors {
  acc_t<T> alpha1, alpha2, alpha, beta;
};

// z of a sum: scale (alpha1 s + b) + shift + alpha2 residual.
template <class T>
DEVICE acc_t<T> followed(acc_t<T> s, const After<T>& after, const Factors<T>& by, int channel, i64 residual) {
  acc_t<T> z = by.alpha1 * s;
  if (after.b) z += to_acc(after.b[channel]);
  if (after.scale) z *= after.scale[channel];
  if (after.shift) z += after.shift[channel];
  if (after.residual) z += by.alpha2 * to_acc(after.residual[residual]);
  return z;
}

// Hands the sums of a block, in shared memory, to `finish`: four of a row or one at a time, neighbours in memory by
// neighbouring threads. Row i of them is row `row_of(i)` of the tile.
template <int ROWS, int COLUMNS, int STRIDE, int THREADS, class A, class Finish, class RowOf>
DEVICE void deliver(const A* sums, const Finish& finish, int rows, int columns, const RowOf& row_of) {
  if (finish.packed) {
#pragma unroll 1
    for (int at = threadIdx.x; at < ROWS * COLUMNS / 4; at += THREADS) {
      const int from = at / (COLUMNS / 4), column = at % (COLUMNS / 4) * 4, row = row_of(from);
      A four[4];
      take_four(four, sums + from * STRIDE + column);
      if (row < rows && column < columns) finish.all(four, row, column);
    }
  } else {
#pragma unroll 1
    for (int at = threadIdx.x; at < ROWS * COLUMNS; at += THREADS) {
      const int from = finish.along_rows ? at % ROWS : at / COLUMNS, row = row_of(from);
      const int column = finish.along_rows ? at / ROWS : at % COLUMNS;
      if (row < rows && column < columns) finish.one(sums[from * STRIDE + column], row, column);
    }
  }
}
