// Pooling of images of two axes with their channels last, in packs of channels.
#pragma once
#include "pooling_backward.cuh"

// Pack number `pack` of the channels; windows, or tiles of them, at `row` and `column` of image `image`.
struct Piece {
  int pack, column, row;
  i64 image;
  DEVICE Piece(i64 item, const Planes& c) {
    u32 rest = (u32)item;
    pack = taken(rest, c.inner, c.by_inner);
    column = taken(rest, c.across, c.by_across);
    row = taken(rest, c.down, c.by_down);
    image = rest;
  }
};

// The largest of the windows of known size of a thread: what it knows of a row serves both windows that have it, where they
// move by one less than their size.
template <int WINDOW, class T, int VEC>
DEVICE void largest_windows(const PoolingForwardParams<T>& p, const T* x, int q, int o, int end, i64 to) {
  typedef Largest<T, VEC> State;
  const Planes& c = p.pool;
  const int left = c.w.start(q), lead = c.w.skipped(q), line = c.w.image * c.inner;
  const bool shared = WINDOW > 2 && c.h.stride == WINDOW - 1;
  int column[WINDOW];
#pragma unroll
  for (int s = 0; s < WINDOW; ++s) column[s] = c.w.nearest(left + s) * c.inner;
  // What lies next to an edge stands for what lies beyond: no maximum, and no first one, changes by it.
  const auto read = [&](int i) {
    const int row = c.h.nearest(i) * line;
    pack<T, VEC> v[WINDOW];
#pragma unroll
    for (int s = 0; s < WINDOW; ++s) v[s] = load<VEC>(x, row + column[s]);
    State known(v[0], lead);
#pragma unroll
    for (int s = 1; s < WINDOW; ++s) known.take(v[s], s);
    return known;
  };
  State above = read(c.h.start(o));
#pragma unroll 1
  for (bool begun = true; o < end; ++o, to += c.w.output * c.inner, begun = shared) {
    const int top = c.h.start(o);
    if (!begun) above = read(top);
    State state = above;
    state.shift(c.h.skipped(o) * WINDOW);
#pragma unroll
    for (int r = 1; r < WINDOW; ++r) {
      above = read(top + r);
      state.merge(above, r * WINDOW);
    }
    put(p, to, state);
  }
}

// A thread has `height` windows, one below the other, so that the rows they share are still in the L1.
template <class T, int VEC, int WINDOW, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, PACKED_BLOCKS) pooling_forward_packed(const PoolingForwardParams<T> p) {
  const i64 item = global_thread();
  if (item >= p.size) return;
  const Planes& c = p.pool;
  const Piece piece(item, c);
  const T* x = p.x + (piece.image * c.h.image * c.w.image * c.inner + piece.pack) * VEC;
  const int q = piece.column, begin = piece.row * c.height, end = min(begin + c.height, c.h.output);
  i64 to = ((piece.image * c.h.output + begin) * c.w.output + q) * c.inner + piece.pack;
  if constexpr (MAX && WINDOW > 0) return largest_windows<WINDOW, T, VEC>(p, x, q, begin, end, to);
  const auto read = [&](int i, int j) { return load<VEC>(x, (i * c.w.image + j) * c.inner); };
#pragma unroll 1
  for (int o = begin; o < end; ++o, to += c.w.output * c.inner) {
    if constexpr (MAX) {
      Largest<T, VEC> state(c.first_tap(o, q), c.first_tap(o, q));
      walk<4>(state, c.h, c.w, o, q, read);
      put(p, to, state);
    } else {
      Total<T, VEC> state;
      if constexpr (WINDOW > 0) walk_window<WINDOW>(state, c.h, c.w, o, q, read);
      else walk<8>(state, c.h, c.w, o, q, read);
      state.divide((acc_t<T>)c.count(o, q));
      put(p, to, state);
    }
  }
}

// Tiles of maxima of 16 bits, in words of two numbers: what windows hand on stays as it is.
template <int WINDOW, int STRIDE, int VEC, class T>
DEVICE void hand_tiles(const PoolingBackwardParams<T>& p, const Piece& piece) {
  typedef Tile<T, VEC, WINDOW, STRIDE, true> Own;
  constexpr int REACH = Own::REACH;
  const Planes& c = p.pool;
  const int begin = piece.row * c.height, end = kept(REACH > 1 ? begin + c.height : begin + 1);
  const int b = kept(piece.column), j = c.w.start(b), line = c.w.image * c.inner;
  const i64 windows = piece.image * c.h.output * c.w.output * c.inner + piece.pack;
  const T* dy = kept(p.dy + windows * VEC);
  const u8* indices = kept(p.indices + windows * VEC);
  T* dx = kept(p.dx + (piece.image * c.h.image * line + piece.pack) * VEC);
  const auto read_row = [&](Own& tile, int u, int o) {
    const bool inside = (o >= 0) & (o < c.h.output);
#pragma unroll
    for (int v = 0; v < REACH; ++v) {
      const int q = b - REACH + 1 + v;
      tile.from[u][v].drop();
      if (!(inside & (q >= 0) & (q < c.w.output))) continue;
      tile.from[u][v] = handed<VEC, true>(dy, indices, (o * c.w.output + q) * c.inner);
      const bool own = u == REACH - 1 && v == REACH - 1;
      if (own && !tile.from[u][v].within(WINDOW * WINDOW)) *p.flag = POOLING_INDEX_OUT_OF_RANGE;
    }
  };
  Own tile{};
#pragma unroll
  for (int u = 0; u + 1 < REACH; ++u) read_row(tile, u, begin - REACH + 1 + u);
#pragma unroll 1
  for (int a = begin; a < end && c.h.start(a) < c.h.image; ++a) {
    read_row(tile, REACH - 1, a);
    const int i = c.h.start(a);
    tile.gather_words([&](int t, int s, const pack<T, VEC>& sum) {
      if (c.h.has(i + t) & c.w.has(j + s)) store(dx, (i + t) * line + (j + s) * c.inner, sum);
    });
    tile.go_down();
  }
}

// A thread has a tile of as many elements as the strides, or `height` of them, one below the other, which share windows.
template <class T, int VEC, int WINDOW, int STRIDE, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, PACKED_BLOCKS) pooling_backward_packed(const PoolingBackwardParams<T> p) {
  const i64 item = global_thread();
  if (item >= p.size) return;
  const Planes& c = p.pool;
  const Piece piece(item, c);
  if constexpr (MAX && WINDOW > 0 && sizeof(T) == 2) {
    if (p.alpha == acc_t<T>(1) && p.beta == acc_t<T>(0)) return hand_tiles<WINDOW, STRIDE, VEC>(p, piece);
  }
  const i64 windows = piece.image * c.h.output * c.w.output * c.inner + piece.pack;
  const T* dy = kept(p.dy + windows * VEC);
  const u8* indices = MAX ? kept(p.indices + windows * VEC) : nullptr;
  T* dx = kept(p.dx + (piece.image * c.h.image * c.w.image * c.inner + piece.pack) * VEC);
  const auto read = [&](int o, int q) { return handed<VEC, MAX>(dy, indices, (o * c.w.output + q) * c.inner); };
  const auto give = [&](int i, int j, const acc_t<T>(&sum)[VEC]) {
    if (c.h.has(i) & c.w.has(j)) put_blended<VEC>(dx, (i * c.w.image + j) * c.inner, sum, p.alpha, p.beta);
  };
  if constexpr (WINDOW > 0) {
    typedef Tile<T, VEC, WINDOW, STRIDE, MAX> Own;
    const int begin = kept(piece.row * c.height), b = kept(piece.column);
    Own tile;
#pragma unroll
    for (int u = 0; u + 1 < Own::REACH; ++u) tile.read_row(p, u, begin - Own::REACH + 1 + u, b, read);
#pragma unroll 1
    for (int a = begin; a < (Own::REACH > 1 ? begin + c.height : begin + 1) && c.h.start(a) < c.h.image; ++a) {
      tile.read_row(p, Own::REACH - 1, a, b, read);
      if constexpr (!MAX) tile.find_shares(c, a, b);
      tile.gather(c.h.start(a), c.w.start(b), give);
      tile.go_down();
    }
  } else gather_any<T, VEC, MAX>(p, piece.row, piece.column, read, give);
}
