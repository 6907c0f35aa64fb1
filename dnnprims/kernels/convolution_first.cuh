// Convolutions of few input channels: how what a tile of positions sees of an image comes to shared memory, and the terms
// of a filter as they lie there.
#pragma once
#include "convolution_fused.cuh"
#include "mma.cuh"

// Threads, positions of a tile side by side, filters of a block, and elements of a position of dy in shared memory.
constexpr int FIRST_BLOCK = 256, TILE_EXTENT = 16, FILTERS = 64, DY_PITCH = FILTERS + 8;

// Of numbers below 2^32, as the front end sees to.
DEVICE i64 whole(i64 a, i64 b) { return (u32)a / (u32)b; }

struct Steps {
  i64 outer, channel, h, w;
};

// In shared memory an image's rows have `pitch` elements, its pixels `pixel`, and a filter's row `row_terms` terms, of which
// one more comes first where `odd`. In global memory rows are those of `planes` planes, `per` elements a pixel.
enum { AS_THEY_LIE, SPREAD, ONE_BY_ONE };
struct Patch {
  i64 pixel, pitch, rows, row_terms, odd, planes, per, raw_pitch, way;
};

struct TilePlace {
  i64 n, h, w;
};
template <class P> DEVICE TilePlace tile_place(const P& p, i64 tile, int rows) {
  TilePlace at;
  at.w = split_off(tile, p.tiles_w) * TILE_EXTENT;
  at.h = split_off(tile, p.tiles_h) * rows;
  at.n = tile;
  return at;
}

// Term number `term` of a filter: its tap and channel, or none where it only fills up.
struct Term {
  i64 r, s, c;
  bool real;
};
template <class P> DEVICE Term term_of(const P& p, i64 term) {
  Term t;
  t.r = whole(term, p.patch.row_terms);
  const i64 at = term - t.r * p.patch.row_terms - p.patch.odd;
  t.s = at < 0 ? 0 : whole(at, p.patch.pixel);
  t.c = at - t.s * p.patch.pixel;
  t.real = t.r < p.taps.h && at >= 0 && t.s < p.taps.w && t.c < p.channels;
  return t;
}

// Asks for the rows of a tile as they lie in memory, a row a warp, from a multiple of 16 bytes on. The result is where the
// tile's first position begins in its row.
template <class P, class T> DEVICE i64 copy_rows(const P& p, const TilePlace& at, i64 pitch, T* to) {
  const i64 begin = (at.w * p.stride.w - p.padding.w) * p.patch.per, from = begin & ~(i64)7;
  const i64 top = at.h * p.stride.h - p.padding.h, length = p.source.w * p.patch.per;
  for (i64 line = threadIdx.x / 32; line < p.patch.planes * p.patch.rows; line += blockDim.x / 32) {
    const i64 plane = p.patch.planes == 1 ? 0 : whole(line, p.patch.rows), h = top + line - plane * p.patch.rows;
    const T* source = p.x + (at.n * p.x_steps.outer + plane * p.x_steps.channel + h * p.x_steps.h + from);
    T* here = to + line * pitch;
    for (i64 e = threadIdx.x % 32 * 8; e < pitch; e += 256) {
      if (within(h, p.source.h) && from + e >= 0 && from + e + 8 <= length) {
        copy_async(here + e, source + e);
      } else {
        pack<T, 8> v = {};
#pragma unroll
        for (int k = 0; k < 8; ++k)
          if (within(h, p.source.h) && within(from + e + k, length)) v.lane[k] = source[e + k];
        store<8>(here + e, 0, v);
      }
    }
  }
  return begin - from;
}

// A pixel to its place; of four channels those that are not there are zeros.
template <class P, class T> DEVICE void put_pixel(const P& p, const T (&v)[4], T* to) {
  pack<T, 2> low, high;
#pragma unroll
  for (int c = 0; c < 2; ++c) low.lane[c] = v[c], high.lane[c] = v[2 + c];
  store(to, 0, low);
  if (p.patch.pixel > 2) store(to, 1, high);
}
// Rows that came as they lay in memory to pixels of their own size.
template <class P, class T> DEVICE void spread_rows(const P& p, const T* raw, T* patch) {
  const i64 across = (TILE_EXTENT - 1) * p.stride.w + p.taps.w;
  const i64 channel = p.patch.planes == 1 ? 1 : p.patch.rows * p.patch.raw_pitch;
  for (i64 row = threadIdx.x / 32; row < p.patch.rows; row += blockDim.x / 32) {
    for (i64 w = threadIdx.x % 32; w < across; w += 32) {
      const T* from = raw + row * p.patch.raw_pitch + w * p.patch.per;
      T v[4] = {};
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < p.channels) v[c] = from[c * channel];
      put_pixel(p, v, patch + row * p.patch.pitch + w * p.patch.pixel);
    }
  }
}
// The same from global memory, of any steps.
template <class P, class T> DEVICE void copy_pixels(const P& p, const TilePlace& at, T* patch) {
  const i64 left = at.w * p.stride.w - p.padding.w, top = at.h * p.stride.h - p.padding.h;
  const i64 across = (TILE_EXTENT - 1) * p.stride.w + p.taps.w;
  for (i64 row = threadIdx.x / 32; row < p.patch.rows; row += blockDim.x / 32) {
    for (i64 w = threadIdx.x % 32; w < across; w += 32) {
      const T* x = p.x + (at.n * p.x_steps.outer + (top + row) * p.x_steps.h + (left + w) * p.x_steps.w);
      const bool there = within(top + row, p.source.h) && within(left + w, p.source.w);
      T v[4] = {};
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (there && c < p.channels) v[c] = x[c * p.x_steps.channel];
      put_pixel(p, v, patch + row * p.patch.pitch + w * p.patch.pixel);
    }
  }
}
