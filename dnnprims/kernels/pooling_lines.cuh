// Maxima, or means, of images of two axes with their channels first, whose rows are whole packs: windows of WINDOW x WINDOW, 2 or 3,
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

// Every second element of a row from number `from`, -1 to 1, on; `left` is the one in front of it.
template <class T, int VEC> DEVICE pack<T, VEC / 2> every_second(const pack<T, VEC>& row, T left, int from) {
  pack<T, VEC / 2> taken;
  if constexpr (sizeof(T) == 2 && VEC == 8) {
    const pairs<T, VEC> in = {row};
    pairs<T, VEC / 2> out;
#pragma unroll
    for (int k = 0; k < VEC / 4; ++k) {
      const u32 before = k > 0 ? in.word[2 * k - 1] : (u32)left.bits << 16;
      out.word[k] = from < 0    ? upper_halves(before, in.word[2 * k])
                    : from == 0 ? lower_halves(in.word[2 * k], in.word[2 * k + 1])
                                : upper_halves(in.word[2 * k], in.word[2 * k + 1]);
    }
    taken = out.whole;
  } else {
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) taken.lane[k] = 2 * k + from < 0 ? left : row.lane[2 * k + from];
  }
  return taken;
}

// What means of row `o` of the windows are multiplied by: of the first column and of the others. No division: a row of
// threads has the first column wherever it is, so that every warp would wait for one.
template <class A, int WINDOW> struct LineShares {
  A first, others;
  DEVICE LineShares(const Planes& c, int o, bool is_first) {
    const int rows = c.h.count(o, c.padded != 0), columns = WINDOW - (is_first && !c.padded ? WINDOW - 2 : 0);
    first = others = A(0);
#pragma unroll
    for (int k = 1; k <= WINDOW; ++k) {
      if (rows == k) {
        others = A(1) / A(k * WINDOW);
        first = columns == WINDOW ? others : A(1) / A(k * 2);
      }
    }
  }
};

// Row i of the image, as far as windows side by side have it: what is kept of their WINDOW columns each.
template <class T, int VEC, int WINDOW, bool MAX> struct Line;
template <class T, int VEC, int WINDOW> struct Line<T, VEC, WINDOW, true> {
  typedef Largest<T, VEC / 2> State;
  static DEVICE pack<T, VEC> nothing() { return Largest<T, VEC>::nothing(); }
  static DEVICE State of(const pack<T, VEC>& row, T left, bool is_first) {
    State line(0, 0);
    if (WINDOW > 2 && is_first) ++line.at[0];  // the first window of a row has no first column
#pragma unroll
    for (int s = 0; s < WINDOW; ++s) line.take(every_second(row, left, s - WINDOW + 2), s);
    return line;
  }
};
template <class T, int VEC, int WINDOW> struct Line<T, VEC, WINDOW, false> {
  typedef Total<T, VEC / 2> State;
  static DEVICE pack<T, VEC> nothing() { return pack<T, VEC>{}; }
  static DEVICE State of(const pack<T, VEC>& row, T left, bool) {
    constexpr int LEFT = WINDOW - 2;
    acc_t<T> v[VEC + LEFT];
    if (LEFT > 0) v[0] = to_acc(left);
#pragma unroll
    for (int k = 0; k < VEC; ++k) v[k + LEFT] = to_acc(row.lane[k]);
    State line;
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) {
      line.sum[k] = v[2 * k];
#pragma unroll
      for (int s = 1; s < WINDOW; ++s) line.sum[k] += v[2 * k + s];
    }
    return line;
  }
};

// A thread has VEC / 2 windows side by side, and `height` rows of them; what it knows of a row serves both windows that
// have it.
template <class T, int VEC, int WINDOW, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, LINES_BLOCKS) pooling_forward_lines(const PoolingForwardParams<T> p) {
  constexpr int HALF = VEC / 2, LEFT = WINDOW - 2;
  typedef Line<T, VEC, WINDOW, MAX> Of;
  typedef typename Of::State State;
  const i64 item = global_thread();
  if (item >= p.size) return;
  const Planes& c = p.pool;
  const LinePiece piece(item, c);
  const bool is_first = piece.column == 0;
  const T* x = p.x + (piece.plane * c.h.image * c.across + piece.column) * VEC;
  const auto read = [&](int i) {
    pack<T, VEC> row = Of::nothing();
    T left = row.lane[0];
    if (c.h.has(i)) {
      row = load<VEC>(x, i * c.across);
      if (LEFT > 0 && !is_first) left = x[i * c.w.image - 1];
    }
    return Of::of(row, left, is_first);
  };
  int o = piece.row * c.height;
  const int end = min(o + c.height, c.h.output);
  i64 to = (piece.plane * c.h.output + o) * c.across + piece.column;
  State above = read(c.h.start(o));
#pragma unroll 1
  for (; o < end; ++o, to += c.across) {
    const int top = c.h.start(o);
    if (LEFT == 0) above = read(top);
    const State below = read(top + 1);
    State last = below;
    if (LEFT > 0) last = read(top + 2);
    if constexpr (MAX) {
      const int first = c.h.skipped(o) * WINDOW;
      State state(first, first);
      if (LEFT > 0 && is_first) ++state.at[0];
      state.merge(above, 0);
      state.merge(below, WINDOW);
      if (LEFT > 0) state.merge(last, 2 * WINDOW);
      put(p, to, state);
    } else {
      const LineShares<acc_t<T>, WINDOW> share(c, o, is_first);
      State state = above;
#pragma unroll
      for (int k = 0; k < HALF; ++k) {
        state.sum[k] += below.sum[k];
        if (LEFT > 0) state.sum[k] += last.sum[k];
        state.sum[k] *= k == 0 ? share.first : share.others;
      }
      put(p, to, state);
    }
    above = last;
  }
}

// What the windows that end in two rows of a pack hand back: gradients, and which tap of each gets it.
template <class T, int VEC, int WINDOW> struct LineWindows {
  static constexpr int HALF = VEC / 2, REACH = WINDOW - 1, LEFT = WINDOW - 2;
  typedef acc_t<T> A;
  A dy[REACH][HALF + LEFT];
  u32 tap[REACH][HALF + LEFT];

  DEVICE LineWindows() {
#pragma unroll
    for (int u = 0; u < REACH; ++u) {
#pragma unroll
      for (int k = 0; k < HALF + LEFT; ++k) {
        dy[u][k] = A(0);
        tap[u][k] = 255;
      }
    }
  }
  // Those of row `u`, whose first is number HALF * at of all; `more` where the row has another behind them.
  DEVICE void read_chosen(const PoolingBackwardParams<T>& p, int u, i64 at, bool more) {
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
    if (!more) return;
    dy[u][HALF + LEFT - 1] = to_acc(p.dy[(at + 1) * HALF]);
    tap[u][HALF + LEFT - 1] = p.indices[(at + 1) * HALF];
  }
  DEVICE void read_means(const PoolingBackwardParams<T>& p, int u, i64 at, bool more, const LineShares<A, WINDOW>& share) {
    const pack<T, HALF> here = load<HALF>(p.dy, at);
#pragma unroll
    for (int k = 0; k < HALF; ++k) dy[u][k] = to_acc(here.lane[k]) * (k == 0 ? share.first : share.others);
    if (more) dy[u][HALF + LEFT - 1] = to_acc(p.dy[(at + 1) * HALF]) * share.others;
  }
  // What elements j, of the two rows' row t, get.
  template <bool MAX> DEVICE void gather(A (&sum)[VEC], int t) const {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      bool first = true;
#pragma unroll
      for (int u = 0; u < REACH; ++u) {
#pragma unroll
        for (int v = 0; v < REACH; ++v) {
          const int r = t + LEFT - 2 * u, s = j % 2 + LEFT - 2 * v;
          if (r < 0 || s < 0) continue;
          const bool mine = !MAX || tap[u][j / 2 + v] == (u32)(r * WINDOW + s);
          if (first) sum[j] = mine ? dy[u][j / 2 + v] : A(0);
          else if (mine) sum[j] += dy[u][j / 2 + v];
          first = false;
        }
      }
    }
  }
};

// A thread has a pack of each of two rows, and the windows that end in them.
template <class T, int VEC, int WINDOW, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, LINES_BLOCKS) pooling_backward_lines(const PoolingBackwardParams<T> p) {
  typedef LineWindows<T, VEC, WINDOW> Windows;
  const i64 item = global_thread();
  if (item >= p.size) return;
  const Planes& c = p.pool;
  const LinePiece piece(item, c);
  const bool more = Windows::LEFT > 0 && piece.column + 1 < c.across;
  Windows from;
#pragma unroll
  for (int u = 0; u < Windows::REACH; ++u) {
    const int o = piece.row + u;
    if (o >= c.h.output) continue;
    const i64 at = (piece.plane * c.h.output + o) * c.across + piece.column;
    if constexpr (MAX) from.read_chosen(p, u, at, more);
    else from.read_means(p, u, at, more, LineShares<acc_t<T>, WINDOW>(c, o, piece.column == 0));
  }
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const int i = 2 * piece.row + t;
    acc_t<T> sum[VEC];
    from.template gather<MAX>(sum, t);
    if (i < c.h.image)
      put_blended<VEC>(p.dx, (piece.plane * c.h.image + i) * c.across + piece.column, sum, p.alpha, p.beta);
  }
}
