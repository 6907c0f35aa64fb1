// Maxima, or means, of images of two axes with their channels first, whose rows are whole packs: windows of WINDOW x WINDOW, 2 or 3,
// that move by 2, with WINDOW - 2 elements of padding in front. A pack of a row then has the last columns of half as many
// windows, and but the first column of the first.
#pragma once
#include "pooling_backward.cuh"

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

// What means of windows that have `rows` rows in the image are multiplied by: of the first column and of the others. No
// division: a row of threads has the first column wherever it is, so that every warp would wait for one.
template <class A, int WINDOW> struct LineShares {
  A first, others;
  DEVICE LineShares(const Planes& c, int rows, bool is_first) {
    const int columns = WINDOW - (is_first && !c.padded ? WINDOW - 2 : 0);
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
    State line(every_second(row, left, 2 - WINDOW), 0);
    if (WINDOW > 2 && is_first) ++line.at[0];  // the first window of a row has no first column
#pragma unroll
    for (int s = 1; s < WINDOW; ++s) line.take(every_second(row, left, s - WINDOW + 2), s);
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

// A pack of a row, and the element in front of it.
template <class T, int VEC> struct LineRow {
  pack<T, VEC> here;
  T left;
};

// A thread has VEC / 2 windows side by side, and `height` rows of them; what it knows of a row serves both windows that
// have it.
template <class T, int VEC, int WINDOW, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, MAX ? LINES_BLOCKS : PACKED_BLOCKS) pooling_forward_lines(const PoolingForwardParams<T> p) {
  constexpr int HALF = VEC / 2, LEFT = WINDOW - 2;
  typedef Line<T, VEC, WINDOW, MAX> Of;
  typedef typename Of::State State;
  typedef LineRow<T, VEC> Row;
  const i64 item = global_thread();
  if (item >= p.size) return;
  const Planes& c = p.pool;
  const LinePiece piece(item, c);
  const bool is_first = piece.column == 0;
  const T* x = p.x + (piece.plane * c.h.image * c.across + piece.column) * VEC;
  // What lies next to an edge stands for what lies beyond: no maximum, and no first one, changes by it.
  const auto fetch = [&](int i) {
    Row row = {Of::nothing(), Of::nothing().lane[0]};
    if (MAX) i = c.h.nearest(i);
    const bool there = MAX || c.h.has(i);
    if (there) row.here = load<VEC>(x, i * c.across);
    if (LEFT > 0 && (MAX || (there & !is_first))) row.left = x[i * c.w.image - (is_first ? 0 : 1)];
    return row;
  };
  const auto known = [&](const Row& row) { return Of::of(row.here, row.left, is_first); };
  int o = piece.row * c.height;
  const int end = min(o + c.height, c.h.output);
  i64 to = (piece.plane * c.h.output + o) * c.across + piece.column;
  Row upper = fetch(c.h.start(o) + LEFT), lower = fetch(c.h.start(o) + LEFT + 1);
  const LineShares<acc_t<T>, WINDOW> whole(c, WINDOW, is_first);
  State above = known(LEFT > 0 ? fetch(c.h.start(o)) : upper);
#pragma unroll 1
  for (; o < end; ++o, to += c.across) {
    const State middle = known(upper), last = known(lower);
    if (o + 1 < end) {  // asked for before these are put together
      upper = fetch(c.h.start(o + 1) + LEFT);
      lower = fetch(c.h.start(o + 1) + LEFT + 1);
    }
    State state = LEFT > 0 ? above : middle;
    if constexpr (MAX) {
      state.shift(c.h.skipped(o) * WINDOW);
      if (LEFT > 0) state.merge(middle, WINDOW);
      state.merge(last, (WINDOW - 1) * WINDOW);
    } else {
      LineShares<acc_t<T>, WINDOW> share = whole;
      const int rows = c.h.count(o, c.padded != 0);
      if (rows != WINDOW) share = LineShares<acc_t<T>, WINDOW>(c, rows, is_first);
      if (LEFT > 0) state.add(middle);
      state.add(last);
#pragma unroll
      for (int k = 0; k < HALF; ++k) state.sum[k] *= k == 0 ? share.first : share.others;
    }
    put(p, to, state);
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

// The same of words of two windows side by side, for maxima of 16 bits: what is handed on stays as it is.
template <class T, int VEC, int WINDOW> struct LineWords {
  static constexpr int HALF = VEC / 2, REACH = WINDOW - 1, LEFT = WINDOW - 2;
  Handed<T, HALF> from[REACH][REACH];  // by row, and from this window on or from the next

  DEVICE LineWords() {
#pragma unroll
    for (int u = 0; u < REACH; ++u) {
#pragma unroll
      for (int v = 0; v < REACH; ++v) from[u][v] = Handed<T, HALF>::nothing();
    }
  }
  DEVICE void read(const PoolingBackwardParams<T>& p, int u, i64 at, bool more) {
    from[u][0] = handed<HALF, true>(p.dy, p.indices, at);
    if (u == 0 && !from[u][0].within(WINDOW * WINDOW)) *p.flag = POOLING_INDEX_OUT_OF_RANGE;
    if (LEFT == 0) return;
    u32 dy = 0, tap = 255;
    if (more) dy = p.dy[(at + 1) * HALF].bits, tap = p.indices[(at + 1) * HALF];
    const pairs<T, HALF> here = {from[u][0].dy};
    pairs<T, HALF> next;
#pragma unroll
    for (int k = 0; k < HALF / 2; ++k) {
      const bool last = k + 1 == HALF / 2;
      next.word[k] = next_halves(here.word[k], last ? dy : here.word[k + 1]);
      from[u][LEFT].taps[k] = next_halves(from[u][0].taps[k], last ? tap : from[u][0].taps[k + 1]);
    }
    from[u][LEFT].dy = next.whole;
  }
  // Row t of the two, of which every second element is in a window more.
  DEVICE pack<T, VEC> gather(int t) const {
    pairs<T, VEC> row;
#pragma unroll
    for (int k = 0; k < HALF / 2; ++k) {
      const u32 even = total(t, 0, k), odd = total(t, 1, k);
      row.word[2 * k] = lower_halves(even, odd);
      row.word[2 * k + 1] = upper_halves(even, odd);
    }
    return row.whole;
  }
  DEVICE u32 total(int t, int j, int k) const {
    u32 parts[4] = {};
    int count = 0;
#pragma unroll
    for (int u = 0; u < REACH; ++u) {
#pragma unroll
      for (int v = 0; v < REACH; ++v) {
        const int r = t + LEFT - 2 * u, s = j + LEFT - 2 * v;
        if (r >= 0 && s >= 0) parts[count++] = from[u][v].handed_to(r * WINDOW + s, k);
      }
    }
    return halves_total<T>(parts, count);
  }
};

template <class T, int VEC, int WINDOW>
DEVICE void hand_words(const PoolingBackwardParams<T>& p, const LinePiece& piece, bool more) {
  const Planes& c = p.pool;
  LineWords<T, VEC, WINDOW> from;
#pragma unroll
  for (int u = 0; u < WINDOW - 1; ++u) {
    if (piece.row + u < c.h.output)
      from.read(p, u, (piece.plane * c.h.output + piece.row + u) * c.across + piece.column, more);
  }
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const int i = 2 * piece.row + t;
    if (i < c.h.image) store(p.dx, (piece.plane * c.h.image + i) * c.across + piece.column, from.gather(t));
  }
}

// A thread has a pack of each of two rows, and the windows that end in them.
template <class T, int VEC, int WINDOW, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, LINES_BLOCKS) pooling_backward_lines(const PoolingBackwardParams<T> p) {
  typedef LineWindows<T, VEC, WINDOW> Windows;
  const i64 item = global_thread();
  if (item >= p.size) return;
  const Planes& c = p.pool;
  const LinePiece piece(item, c);
  const bool more = Windows::LEFT > 0 && piece.column + 1 < c.across;
  if constexpr (MAX && sizeof(T) == 2) {
    if (p.alpha == acc_t<T>(1) && p.beta == acc_t<T>(0)) return hand_words<T, VEC, WINDOW>(p, piece, more);
  }
  Windows from;
#pragma unroll
  for (int u = 0; u < Windows::REACH; ++u) {
    const int o = piece.row + u;
    if (o >= c.h.output) continue;
    const i64 at = (piece.plane * c.h.output + o) * c.across + piece.column;
    if constexpr (MAX) from.read_chosen(p, u, at, more);
    else from.read_means(p, u, at, more, LineShares<acc_t<T>, WINDOW>(c, c.h.count(o, c.padded != 0), piece.column == 0));
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
