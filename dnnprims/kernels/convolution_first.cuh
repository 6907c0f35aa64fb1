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
  const i64 top = at.h * p.stride.h - p.padding.h, rows = p.patch.rows;
  const int length = (int)(p.source.w * p.patch.per), height = (int)p.source.h, warps = blockDim.x / 32, warp = threadIdx.x / 32;
#pragma unroll 1
  for (int e = threadIdx.x % 32 * 8; e < (int)pitch; e += 256) {
    const int left = (int)from + e;
    const bool whole = left >= 0 && left + 8 <= length;
#pragma unroll 1
    for (i64 plane = 0; plane < p.patch.planes; ++plane) {
      const T* source = p.x + (at.n * p.x_steps.outer + plane * p.x_steps.channel + (top + warp) * p.x_steps.h + left);
      T* here = to + ((plane * rows + warp) * pitch + e);
      int h = (int)top + warp;
#pragma unroll 1
      for (int row = warp; row < (int)rows; row += warps) {
        const bool there = inside(h, height);
        if (whole && there) {
          copy_async(here, source);
        } else {
          pack<T, 8> v = {};
#pragma unroll
          for (int k = 0; k < 8; ++k)
            if (there && inside(left + k, length)) v.lane[k] = source[k];
          store<8>(here, 0, v);
        }
        source += warps * p.x_steps.h, here += warps * pitch, h += warps;
      }
    }
  }
  return begin - from;
}

// A pixel to its place; of four channels those that are not there are zeros.
template <class T> DEVICE void put_pixel(int pixel, const T (&v)[4], T* to) {
  pack<T, 2> low, high;
#pragma unroll
  for (int c = 0; c < 2; ++c) low.lane[c] = v[c], high.lane[c] = v[2 + c];
  store(to, 0, low);
  if (pixel > 2) store(to, 1, high);
}
// Pixels of three channels that lie side by side to pixels of four, two by two.
template <class P, class T> DEVICE void spread_threes(const P& p, const T* raw, T* patch, int across) {
  const int rows = (int)p.patch.rows, pitch = (int)p.patch.pitch, raw_pitch = (int)p.patch.raw_pitch;
#pragma unroll 1
  for (int row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) {
#pragma unroll 1
    for (int w = threadIdx.x % 32 * 2; w < across; w += 64) {
      const T* first = raw + (row * raw_pitch + w * 3);
      const T* second = w + 1 < across ? first + 3 : first;  // past the last pixel anything will do
      pack<T, 8> v = {};
#pragma unroll
      for (int c = 0; c < 3; ++c) v.lane[c] = first[c], v.lane[4 + c] = second[c];
      store<8>(patch + (row * pitch + w * 4), 0, v);
    }
  }
}
// Rows that came as they lay in memory to pixels of their own size.
template <class P, class T> DEVICE void spread_rows(const P& p, const T* raw, T* patch) {
  const int rows = (int)p.patch.rows, pitch = (int)p.patch.pitch, raw_pitch = (int)p.patch.raw_pitch;
  const int pixel = (int)p.patch.pixel, per = (int)p.patch.per, channels = (int)p.channels;
  const int across = (TILE_EXTENT - 1) * (int)p.stride.w + (int)p.taps.w, step = p.patch.planes == 1 ? 1 : rows * raw_pitch;
  if (channels == 3 && pixel == 4 && step == 1) return spread_threes(p, raw, patch, across);
#pragma unroll 1
  for (int row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) {
#pragma unroll 1
    for (int w = threadIdx.x % 32; w < across; w += 32) {
      const T* from = raw + (row * raw_pitch + w * per);
      T v[4] = {};
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < channels) v[c] = from[c * step];
      put_pixel(pixel, v, patch + (row * pitch + w * pixel));
    }
  }
}
// The same from global memory, of any steps.
template <class P, class T> DEVICE void copy_pixels(const P& p, const TilePlace& at, T* patch) {
  const i64 left = at.w * p.stride.w - p.padding.w, top = at.h * p.stride.h - p.padding.h;
  const i64 across = (TILE_EXTENT - 1) * p.stride.w + p.taps.w;
#pragma unroll 1
  for (i64 w = threadIdx.x % 32; w < across; w += 32) {
#pragma unroll 4
    for (i64 row = threadIdx.x / 32; row < p.patch.rows; row += FIRST_BLOCK / 32) {
      const T* x = p.x + (at.n * p.x_steps.outer + (top + row) * p.x_steps.h + (left + w) * p.x_steps.w);
      const bool there = within(top + row, p.source.h) && within(left + w, p.source.w);
      T v[4] = {};
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (there && c < p.channels) v[c] = x[c * p.x_steps.channel];
      put_pixel((int)p.patch.pixel, v, patch + row * p.patch.pitch + w * p.patch.pixel);
    }
  }
}
