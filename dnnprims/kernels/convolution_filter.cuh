// The filter gradient as an implicit product: parameters, where a position lies, and what becomes of a block's sums.
#pragma once
#include "convolution_implicit.cuh"

struct FilterAxis {
  int output, image, taps, stride, dilation, padding, y_step, x_step, w_step;
};
template <class T> struct ImplicitFilterParams {
  T* dw;
  const T* dy;
  const T* x;
  acc_t<T>* partial;
  acc_t<T> alpha, beta;
  i64 partial_size;
  int images, lines, columns, column_tiles, taps, positions;  // positions of all images
  int per_split, y_outer, y_channel, x_outer, x_channel, w_outer, w_channel, w_first;
  FilterAxis d, h, w_axis;
  int y_packed, y_along_channels, x_packed, x_along_channels, w_packed;
};

constexpr int TABLE = 128;  // positions whose offsets are known at a time
// Offsets of a position in dy and, under the block's tap, in x; `x` is NOWHERE where it lies outside of the image.
struct Position {
  int y, x;
};
template <class T> DEVICE Position position_of(const ImplicitFilterParams<T>& p, const Tap& tap, int index, int end) {
  if (index >= end) return Position{0, NOWHERE};
  const int w = index % p.w_axis.output, by_w = index / p.w_axis.output, h = by_w % p.h.output;
  const int by_h = by_w / p.h.output, d = by_h % p.d.output, image = by_h / p.d.output;
  const int i_d = d * p.d.stride - p.d.padding + tap.d * p.d.dilation;
  const int i_h = h * p.h.stride - p.h.padding + tap.h * p.h.dilation;
  const int i_w = w * p.w_axis.stride - p.w_axis.padding + tap.w * p.w_axis.dilation;
  if ((u32)i_d >= (u32)p.d.image || (u32)i_h >= (u32)p.h.image || (u32)i_w >= (u32)p.w_axis.image)
    return Position{0, NOWHERE};
  return Position{image * p.y_outer + d * p.d.y_step + h * p.h.y_step + w * p.w_axis.y_step,
                  image * p.x_outer + i_d * p.d.x_step + i_h * p.h.x_step + i_w * p.w_axis.x_step};
}

template <class T> struct FilterFinish {
  typedef acc_t<T> A;
  const ImplicitFilterParams<T>& p;
  A* partial;
  i64 first;
  bool packed, along_rows;
  DEVICE void one(A sum, int row, int column) const {
    const i64 at = first + (i64)row * p.w_outer + (i64)column * p.w_channel;
    if (partial) partial[at] = sum;
    else p.dw[at] = blend<T>(p.alpha, sum, p.beta, p.dw + at);
  }
  DEVICE void all(const A (&sum)[4], int row, int column) const {
    store_four(partial + first + (i64)row * p.w_outer + column, sum);
  }
};

// The tap, channels and positions of a block.
struct FilterTile {
  Tap tap;
  int group, row_0, column_0, begin, end;
};
template <class T> DEVICE FilterTile filter_tile_of(const ImplicitFilterParams<T>& p, int rows, int columns) {
  const int tile = blockIdx.x / p.taps, tap = (int)blockIdx.x - tile * p.taps, across = tap / p.w_axis.taps;
  FilterTile t;
  t.tap = Tap{across / p.h.taps, across % p.h.taps, tap % p.w_axis.taps};
  t.group = blockIdx.y, t.row_0 = tile / p.column_tiles * rows, t.column_0 = tile % p.column_tiles * columns;
  t.begin = blockIdx.z * p.per_split, t.end = min(t.begin + p.per_split, p.positions);
  return t;
}
template <class T> DEVICE FilterFinish<T> filter_finish_of(const ImplicitFilterParams<T>& p, const FilterTile& t) {
  const i64 first = p.w_first + (i64)t.tap.d * p.d.w_step + (i64)t.tap.h * p.h.w_step + (i64)t.tap.w * p.w_axis.w_step;
  const i64 to = first + ((i64)t.group * p.lines + t.row_0) * p.w_outer + (i64)t.column_0 * p.w_channel;
  acc_t<T>* partial = p.partial ? p.partial + blockIdx.z * p.partial_size : nullptr;
  return FilterFinish<T>{p, partial, to, partial && p.w_packed, p.w_channel != 1};
}
