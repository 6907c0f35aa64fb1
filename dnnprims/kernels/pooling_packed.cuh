// Pooling of images of two axes with their channels last, in packs of channels.
#pragma once
#include "pooling.cuh"

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

// A thread has `height` windows, one below the other, so that the rows they share are still in the L1. The few windows
// that reach over an edge take the way of any window.
template <class T, int VEC, int WINDOW, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, PACKED_BLOCKS) pooling_forward_packed(const PoolingForwardParams<T> p) {
  const i64 item = global_thread();
  if (item >= p.size) return;
  const Planes& c = p.pool;
  const Piece piece(item, c);
  const T* x = p.x + (piece.image * c.h.image * c.w.image * c.inner + piece.pack) * VEC;
  const auto read = [&](int i, int j) { return load<VEC>(x, (i * c.w.image + j) * c.inner); };
  const int q = piece.column, end = min((piece.row + 1) * c.height, c.h.output);
  i64 to = ((piece.image * c.h.output + piece.row * c.height) * c.w.output + q) * c.inner + piece.pack;
#pragma unroll 1
  for (int o = piece.row * c.height; o < end; ++o, to += c.w.output * c.inner) {
    if constexpr (MAX) {
      Largest<T, VEC> state(c.first_tap(o, q), c.first_tap(o, q));
      walk_window<WINDOW>(state, c.h, c.w, o, q, read);
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

// A thread has a tile of as many elements as the strides, or `height` of them, one below the other, which share windows.
template <class T, int VEC, int WINDOW, int STRIDE, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, PACKED_BLOCKS) pooling_backward_packed(const PoolingBackwardParams<T> p) {
  const i64 item = global_thread();
  if (item >= p.size) return;
  const Planes& c = p.pool;
  const Piece piece(item, c);
  const i64 from = piece.image * c.h.output * c.w.output * c.inner + piece.pack;
  const i64 to = piece.image * c.h.image * c.w.image * c.inner + piece.pack;
  const auto read = [&](int o, int q) {
    return handed<VEC, MAX>(p.dy, p.indices, from + (o * c.w.output + q) * c.inner);
  };
  const auto give = [&](int i, int j, const acc_t<T>(&sum)[VEC]) {
    if (c.h.has(i) & c.w.has(j)) put_blended<VEC>(p.dx, to + (i * c.w.image + j) * c.inner, sum, p.alpha, p.beta);
  };
  if constexpr (WINDOW > 0) {
    typedef Tile<T, VEC, WINDOW, STRIDE, MAX> Own;
    const int begin = piece.row * c.height, b = piece.column;
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
