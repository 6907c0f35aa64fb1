// Pooling of images of two axes with their channels first: rows of a plane, or whole planes, in shared memory, where they
// begin wherever they do, but come from and go to memory 16 bytes at a time.
#pragma once
#include "pooling_backward.cuh"

// The part of a block: `planes` planes from `first` on, and of each the windows, or tiles, of `rows` rows from `row` on.
struct Part {
  i64 first;
  int planes, row, rows;
  DEVICE explicit Part(const Planes& c) {
    u32 block = blockIdx.x;
    row = taken(block, c.down, c.by_down) * c.height;
    first = (i64)block * c.inner;
    planes = c.images - first < c.inner ? (int)(c.images - first) : c.inner;
  }
};

// Where a thread's piece of work lies in the part of its block.
struct Spot {
  int column, row, plane;
  DEVICE Spot(int piece, const Planes& c) {
    u32 rest = piece;
    column = taken(rest, c.across, c.by_across);
    row = taken(rest, c.height, c.by_inner);
    plane = rest;
  }
};

// Elements [first, last) in shared memory: element i is tile[i - first + skew], so that packs stay packs.
template <class T, int VEC> struct Span {
  T* tile;
  i64 first, last, pack;
  int skew, packs;

  DEVICE Span(T* tile, i64 first, i64 last) : tile(tile), first(first), last(last), pack(first / VEC) {
    skew = (int)(first - pack * VEC);
    packs = (int)((last + VEC - 1) / VEC - pack);
  }
  // From x, which has `size` elements: asked for, not yet there.
  DEVICE void fetch(const T* x, i64 size) const {
    for (int k = threadIdx.x; k < packs; k += POOLING_BLOCK) {
      const i64 at = (pack + k) * VEC;
      if (at + VEC <= size) {
        copy_async(tile + k * VEC, x + at);
        continue;
      }
#pragma unroll 1
      for (int e = 0; at + e < last; ++e) tile[k * VEC + e] = x[at + e];
    }
  }
  // To y, which has something else before and behind it.
  DEVICE void hand_out(T* y) const {
    __syncthreads();
    for (int k = threadIdx.x; k < packs; k += POOLING_BLOCK) {
      const i64 at = (pack + k) * VEC;
      if (at >= first && at + VEC <= last) {
        store<VEC>(y, pack + k, load<VEC>(tile, k));
        continue;
      }
#pragma unroll 1
      for (int e = 0; e < VEC; ++e) {
        if (at + e >= first && at + e < last) y[at + e] = tile[k * VEC + e];
      }
    }
  }
};

DEVICE void await_spans() {
  commit_copies();
  await_copies<0>();
  __syncthreads();
}

// Takes what the window of output (o, q) has of the plane x, row by row.
template <class T, class State> DEVICE void scan(State& state, const T* x, const Planes& c, int o, int q) {
  const int first = c.w.first(q), last = c.w.last(q), end = c.h.last(o);
  int tap = c.h.skipped(o) * c.w.window - c.w.start(q);  // of the column 0
#pragma unroll 1
  for (int i = c.h.first(o); i < end; ++i, tap += c.w.window) {
    const T* row = x + i * c.w.image;
#pragma unroll 4
    for (int j = first; j < last; ++j) state.take(load<1>(row, j), tap + j);
  }
}

template <class T, int VEC, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, ROWS_BLOCKS) pooling_forward_rows(const PoolingForwardParams<T> p) {
  DYNAMIC_SHARED(T, tile);
  const Planes& c = p.pool;
  const Part part(c);
  const int end = min(part.row + c.height, c.h.output);
  const int top = c.inner > 1 ? 0 : c.h.first(part.row), bottom = c.inner > 1 ? c.h.image : c.h.last(end - 1);
  const i64 last = part.first + part.planes - 1;
  const Span<T, VEC> span(tile, (part.first * c.h.image + top) * c.w.image, (last * c.h.image + bottom) * c.w.image);
  span.fetch(p.x, p.size);
  await_spans();
  const int pieces = part.planes * c.height * c.across;
  for (int k = threadIdx.x; k < pieces; k += POOLING_BLOCK) {
    const Spot spot(k, c);
    const int q = spot.column;
    const T* x = tile + span.skew + (spot.plane * c.h.image - top) * c.w.image;
    const i64 to = (part.first + spot.plane) * c.h.output * c.w.output + q;
    const int o = part.row + spot.row;
    if (o >= end) continue;
    if constexpr (MAX) {
      Largest<T, 1> state(c.first_tap(o, q), 0);
      scan(state, x, c, o, q);
      put(p, to + o * c.w.output, state);
    } else {
      Total<T, 1> state;
      scan(state, x, c, o, q);
      state.divide((acc_t<T>)c.count(o, q));
      put(p, to + o * c.w.output, state);
    }
  }
}

template <class T, int VEC, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, ROWS_BLOCKS) pooling_backward_rows(const PoolingBackwardParams<T> p) {
  DYNAMIC_SHARED(T, tile);
  u8* bytes = reinterpret_cast<u8*>(tile);
  const Planes& c = p.pool;
  const Part part(c);
  const i64 last = part.first + part.planes - 1;
  // Windows that any tile of the block lies in.
  const int above = c.inner > 1 ? 0 : max(part.row - c.h.reach + 1, 0);
  const int below = c.inner > 1 ? c.h.output : min(part.row + c.height, c.h.output);
  const i64 first_window = (part.first * c.h.output + above) * c.w.output;
  const i64 last_window = max((last * c.h.output + below) * c.w.output, first_window);
  const i64 windows = c.images * c.h.output * c.w.output;
  const Span<T, VEC> dy(reinterpret_cast<T*>(bytes + c.dy_at), first_window, last_window);
  const Span<u8, 16> indices(bytes + c.indices_at, first_window, last_window);
  dy.fetch(p.dy, windows);
  if constexpr (MAX) indices.fetch(p.indices, windows);
  await_spans();
  const int top = max(c.h.start(part.row), 0), bottom = min(c.h.start(part.row + c.height), c.h.image);
  const Span<T, VEC> dx(tile, (part.first * c.h.image + top) * c.w.image, (last * c.h.image + bottom) * c.w.image);
  const int pieces = part.planes * c.height * c.across;
  for (int k = threadIdx.x; k < pieces; k += POOLING_BLOCK) {
    const Spot spot(k, c);
    const int from = (spot.plane * c.h.output - above) * c.w.output, at = (spot.plane * c.h.image - top) * c.w.image;
    const auto read = [&](int o, int q) {
      const int number = from + o * c.w.output + q;
      pack<u8, 1> tap{};
      if constexpr (MAX) tap = load<1>(indices.tile, indices.skew + number);
      return Handed<T, 1>::of(load<1>(dy.tile, dy.skew + number), tap);
    };
    const auto give = [&](int i, int j, const acc_t<T>(&sum)[1]) {
      if ((i < top) | (i >= bottom) | !c.w.has(j)) return;
      const int here = at + i * c.w.image + j;
      const bool moved = p.alpha == acc_t<T>(1) && p.beta == acc_t<T>(0);
      tile[dx.skew + here] = moved ? from_acc<T>(sum[0]) : blend<T>(p.alpha, sum[0], p.beta, p.dx + dx.first + here);
    };
    gather_any<T, 1, MAX>(p, part.row + spot.row, spot.column, read, give);
  }
  dx.hand_out(p.dx);
}
