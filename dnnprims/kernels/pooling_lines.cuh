// Maxima of images of two axes with their channels first, whose rows are whole packs: windows of WINDOW x WINDOW, 2 or 3,
// that move by 2, with WINDOW - 2 elements of padding in front. A pack of a row then has the last columns of half as many
// windows, and but the first column of the first.
#pragma once
#include "pooling.cuh"

// Pack number `column` of a row; `row` counts what a thread has of a plane.
struct LinePiece {
  int column, row;
  i64 plane;
  DEVICE LinePiece(i64 item, const Planes& c) {
    u32 rest = (u32)item;
    column = taken(rest, c.across, c.by_across);
    row = taken(rest, c.down, c.by_down);
    plane = rest;
  }
};

// A thread has VEC / 2 windows side by side, and `height` rows of them.
template <class T, int VEC, int WINDOW>
__global__ void __launch_bounds__(POOLING_BLOCK, LINES_BLOCKS) pooling_forward_lines(const PoolingForwardParams<T> p) {
  constexpr int HALF = VEC / 2, LEFT = WINDOW - 2;
  const i64 item = global_thread();
  if (item >= p.size) return;
  const Planes& c = p.pool;
  const LinePiece piece(item, c);
  const T* x = p.x + (piece.plane * c.h.image * c.across + piece.column) * VEC;
  const int end = min((piece.row + 1) * c.height, c.h.output);
#pragma unroll 1
  for (int o = piece.row * c.height; o < end; ++o) {
    pack<T, VEC> row[WINDOW];
    T left[WINDOW];
#pragma unroll
    for (int r = 0; r < WINDOW; ++r) {
      const int i = c.h.start(o) + r;
      row[r] = Largest<T, VEC>::nothing();
      left[r] = row[r].lane[0];
      if (c.h.has(i)) {
        row[r] = load<VEC>(x, i * c.across);
        if (LEFT > 0 && piece.column > 0) left[r] = x[i * c.w.image - 1];
      }
    }
    const int first = c.h.skipped(o) * WINDOW;
    Largest<T, HALF> state(first, first);
    if (LEFT > 0 && piece.column == 0) ++state.at[0];  // the first window of a row has no first column
#pragma unroll
    for (int r = 0; r < WINDOW; ++r) {
#pragma unroll
      for (int s = 0; s < WINDOW; ++s) {
        pack<T, HALF> taps;
#pragma unroll
        for (int k = 0; k < HALF; ++k) taps.lane[k] = 2 * k + s < LEFT ? left[r] : row[r].lane[2 * k + s - LEFT];
        state.take(taps, r * WINDOW + s);
      }
    }
    put(p, (piece.plane * c.h.output + o) * c.across + piece.column, state);
  }
}

// A thread has a pack of each of two rows, and the windows that end in them.
template <class T, int VEC, int WINDOW>
__global__ void __launch_bounds__(POOLING_BLOCK, LINES_BLOCKS) pooling_backward_lines(const PoolingBackwardParams<T> p) {
  constexpr int HALF = VEC / 2, REACH = WINDOW - 1, LEFT = WINDOW - 2;
  typedef acc_t<T> A;
  const i64 item = global_thread();
  if (item >= p.size) return;
  const Planes& c = p.pool;
  const LinePiece piece(item, c);
  A dy[REACH][HALF + LEFT];
  u32 tap[REACH][HALF + LEFT];
#pragma unroll
  for (int u = 0; u < REACH; ++u) {
#pragma unroll
    for (int k = 0; k < HALF + LEFT; ++k) {
      dy[u][k] = A(0);
      tap[u][k] = 255;
    }
    const int o = piece.row + u;
    if (o >= c.h.output) continue;
    const i64 at = (piece.plane * c.h.output + o) * c.across + piece.column;
    const pack<T, HALF> here = load<HALF>(p.dy, at);
    const u32 bytes = load<HALF>(p.indices, at).bits;
    bool within = true;
#pragma unroll
    for (int k = 0; k < HALF; ++k) {
      dy[u][k] = to_acc(here.lane[k]);
      tap[u][k] = bytes >> (8 * k) & 255u;
      within &= tap[u][k] < WINDOW * WINDOW;
    }
    if (u == 0 && !within) *p.flag = POOLING_INDEX_OUT_OF_RANGE;
    if (LEFT > 0 && piece.column + 1 < c.across) {
      dy[u][HALF + LEFT - 1] = to_acc(p.dy[(at + 1) * HALF]);
      tap[u][HALF + LEFT - 1] = p.indices[(at + 1) * HALF];
    }
  }
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    A sum[VEC] = {};
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
#pragma unroll
      for (int u = 0; u < REACH; ++u) {
#pragma unroll
        for (int v = 0; v < REACH; ++v) {
          const int r = t + LEFT - 2 * u, s = j % 2 + LEFT - 2 * v;
          if (r < 0 || s < 0) continue;
          const bool mine = tap[u][j / 2 + v] == (u32)(r * WINDOW + s);
          sum[j] += mine ? dy[u][j / 2 + v] : A(0);
        }
      }
    }
    const int i = 2 * piece.row + t;
    if (i >= c.h.image) continue;
    put_blended<VEC>(p.dx, (piece.plane * c.h.image + i) * c.across + piece.column, sum, p.alpha, p.beta);
  }
}
