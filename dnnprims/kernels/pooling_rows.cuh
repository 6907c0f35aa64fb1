// Pooling of images of two axes with their channels first: rows of a plane, or whole planes, in shared memory, where they
// begin wherever they do, but come from and go to memory 16 bytes at a time.
#pragma once
#include "pooling.cuh"

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
  // From x, which has `size` elements.
  DEVICE void fetch(const T* x, i64 size) const {
    for (int k = threadIdx.x; k < packs; k += POOLING_BLOCK) {
      const i64 at = (pack + k) * VEC;
      if (at + VEC <= size) copy_async(tile + k * VEC, x + at);
      else for (int e = 0; at + e < last; ++e) tile[k * VEC + e] = x[at + e];
    }
    commit_copies();
    await_copies<0>();
    __syncthreads();
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
      for (int e = 0; e < VEC; ++e) {
        if (at + e >= first && at + e < last) y[at + e] = tile[k * VEC + e];
      }
    }
  }
};

template <class T, int VEC, int WINDOW, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, ROWS_BLOCKS) pooling_forward_rows(const PoolingForwardParams<T> p) {
  DYNAMIC_SHARED(T, tile);
  const Planes& c = p.pool;
  const Part part(c);
  const int rows = min(c.height, c.h.output - part.row);
  const int top = c.inner > 1 ? 0 : c.h.first(part.row);
  const int bottom = c.inner > 1 ? c.h.image : c.h.last(part.row + rows - 1);
  const i64 last = part.first + part.planes - 1;
  const Span<T, VEC> span(tile, (part.first * c.h.image + top) * c.w.image, (last * c.h.image + bottom) * c.w.image);
  span.fetch(p.x, p.size);
  const i64 to = (part.first * c.h.output + part.row) * c.w.output;
  const int pieces = part.planes * rows * c.across;
  for (int k = threadIdx.x; k < pieces; k += POOLING_BLOCK) {
    const Spot spot(k, c);
    const T* x = tile + span.skew + (spot.plane * c.h.image - top) * c.w.image;
    const auto read = [&](int i, int j) { return load<1>(x, i * c.w.image + j); };
    put(p, to + k, pooled<T, 1, WINDOW, MAX>(c.h, c.w, c.padded != 0, part.row + spot.row, spot.column, read));
  }
}

template <class T, int VEC, int WINDOW, int STRIDE, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, ROWS_BLOCKS) pooling_backward_rows(const PoolingBackwardParams<T> p) {
  DYNAMIC_SHARED(T, tile);
  const Planes& c = p.pool;
  const Part part(c);
  const int top = max(c.h.start(part.row), 0), bottom = min(c.h.start(part.row + c.height), c.h.image);
  const i64 last = part.first + part.planes - 1;
  const Span<T, VEC> span(tile, (part.first * c.h.image + top) * c.w.image, (last * c.h.image + bottom) * c.w.image);
  const int pieces = part.planes * c.height * c.across;
  for (int k = threadIdx.x; k < pieces; k += POOLING_BLOCK) {
    const Spot spot(k, c);
    const i64 from = (part.first + spot.plane) * c.h.output * c.w.output;
    const int at = span.skew + (spot.plane * c.h.image - top) * c.w.image;
    const auto read = [&](int o, int q) { return handed<1, MAX>(p, from + o * c.w.output + q); };
    const auto give = [&](int i, int j, const acc_t<T>(&sum)[1]) {
      if (i < top || i >= bottom || !c.w.has(j)) return;
      const int here = at + i * c.w.image + j;
      tile[here] = blend<T>(p.alpha, sum[0], p.beta, p.dx + span.first + (here - span.skew));
    };
    gather<T, 1, WINDOW, STRIDE, MAX>(p, part.row + spot.row, spot.column, read, give);
  }
  span.hand_out(p.dx);
}
