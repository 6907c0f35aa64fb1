// Pooling of any problem: a thread an element, elements any steps apart.
#pragma once
#include "pooling_backward.cuh"
#include "spatial.cuh"

struct PoolingProblem {
  i64 channels;
  Spatial image, output, window, stride, padding;
  Steps x, y, indices;
  int channels_last, padded, wide;  // flags: order of memory, what a mean counts, indices of int, not u8
};

// Positions of the image that a window along one axis has, of those of `extent`.
DEVICE i64 part(i64 o, i64 window, i64 stride, i64 padding, i64 extent) {
  const i64 start = o * stride - padding;
  return min(start + window, extent) - max(start, (i64)0);
}
// What the mean of the window of output o divides by.
DEVICE i64 divisor(const PoolingProblem& c, const Spatial& o) {
  if (c.padded) return c.window.d * c.window.h * c.window.w;
  return part(o.d, c.window.d, c.stride.d, c.padding.d, c.image.d) *
         part(o.h, c.window.h, c.stride.h, c.padding.h, c.image.h) *
         part(o.w, c.window.w, c.stride.w, c.padding.w, c.image.w);
}

template <class T> struct PoolingPlainForwardParams {
  T* y;
  void* indices;  // may be null
  const T* x;
  acc_t<T> alpha, beta;
  i64 size;  // elements of y
  PoolingProblem pool;
};

template <class T, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, 2) pooling_forward(const PoolingPlainForwardParams<T> p) {
  const i64 index = global_thread();
  if (index >= p.size) return;
  const PoolingProblem& c = p.pool;
  const Place y = place_of(index, c.channels, c.output, c.channels_last != 0);
  const T* x = p.x + y.outer * c.x.outer + y.channel * c.x.channel;
  acc_t<T> best = 0;
  i64 at = -1;
  Spatial i;
#pragma unroll 1
  for (i64 d = 0; d < c.window.d; ++d) {
    if (!sees(y.at.d, d, c.stride.d, 1, c.padding.d, c.image.d, i.d)) continue;
#pragma unroll 1
    for (i64 h = 0; h < c.window.h; ++h) {
      if (!sees(y.at.h, h, c.stride.h, 1, c.padding.h, c.image.h, i.h)) continue;
#pragma unroll 1
      for (i64 w = 0; w < c.window.w; ++w) {
        if (!sees(y.at.w, w, c.stride.w, 1, c.padding.w, c.image.w, i.w)) continue;
        const acc_t<T> v = to_acc(x[offset(c.x, i)]);
        if constexpr (!MAX) best += v;
        else if (at < 0 || surpasses(v, best)) {
          best = v;
          at = (d * c.window.h + h) * c.window.w + w;
        }
      }
    }
  }
  if constexpr (!MAX) best *= acc_t<T>(1) / (acc_t<T>)divisor(c, y.at);
  T* to = p.y + offset(c.y, y);
  *to = blend<T>(p.alpha, best, p.beta, to);
  if constexpr (MAX) {
    if (!p.indices) return;
    const i64 where = offset(c.indices, y);
    if (c.wide) static_cast<int*>(p.indices)[where] = (int)at;
    else static_cast<u8*>(p.indices)[where] = (u8)at;
  }
}

template <class T> struct PoolingPlainBackwardParams {
  T* dx;
  int* flag;
  const T* dy;
  const void* indices;
  acc_t<T> alpha, beta;
  i64 size;  // elements of dx
  PoolingProblem pool;
};

// The windows of an element are met from its last tap to its first, which is their own order.
template <class T, bool MAX>
__global__ void __launch_bounds__(POOLING_BLOCK, 2) pooling_backward(const PoolingPlainBackwardParams<T> p) {
  const i64 index = global_thread();
  if (index >= p.size) return;
  const PoolingProblem& c = p.pool;
  const Place x = place_of(index, c.channels, c.image, c.channels_last != 0);
  const T* dy = p.dy + x.outer * c.y.outer + x.channel * c.y.channel;
  const i64 first = x.outer * c.indices.outer + x.channel * c.indices.channel;
  const i64 taps = c.window.d * c.window.h * c.window.w;
  acc_t<T> sum = 0;
  Spatial o;
#pragma unroll 1
  for (i64 d = c.window.d - 1; d >= 0; --d) {
    if (!seen_by(x.at.d, d, c.stride.d, 1, c.padding.d, c.output.d, o.d)) continue;
#pragma unroll 1
    for (i64 h = c.window.h - 1; h >= 0; --h) {
      if (!seen_by(x.at.h, h, c.stride.h, 1, c.padding.h, c.output.h, o.h)) continue;
#pragma unroll 1
      for (i64 w = c.window.w - 1; w >= 0; --w) {
        if (!seen_by(x.at.w, w, c.stride.w, 1, c.padding.w, c.output.w, o.w)) continue;
        const acc_t<T> gradient = to_acc(dy[offset(c.y, o)]);
        if constexpr (MAX) {
          const i64 at = first + offset(c.indices, o);
          const i64 chosen = c.wide ? static_cast<const int*>(p.indices)[at] : static_cast<const u8*>(p.indices)[at];
          if (chosen < 0 || chosen >= taps) *p.flag = POOLING_INDEX_OUT_OF_RANGE;
          if (chosen == (d * c.window.h + h) * c.window.w + w) sum += gradient;
        } else {
          sum += gradient * (acc_t<T>(1) / (acc_t<T>)divisor(c, o));
        }
      }
    }
  }
  T* to = p.dx + offset(c.x, x);
  *to = blend<T>(p.alpha, sum, p.beta, to);
}
