// Convolutions of one, two and three spatial axes, and their gradients: the plain direct way, for any problem.
//
// With i(o, r) = o * stride - padding + r * dilation along each spatial axis, K channels out and C in, in groups:
// Forward   s[n, k, o] = sum_{c, r} x[n, c, i(o, r)] w[k, c, r], c of the group of k, positions outside left out
//           z = scale[k] (alpha1 s + b[k]) + shift[k] + alpha2 residual,  y = alpha act(z) + beta y
// Data      dx[n, c, i] = alpha (sum_{k, o, r: i(o, r) = i} dy[n, k, o] w[k, c, r] + b[c]) + beta dx
// Filter    dw[k, c, r] = alpha sum_{n, o} dy[n, k, o] x[n, c, i(o, r)] + beta dw
// Bias      db[k] = alpha sum_{n, o} dy[n, k, o] + beta db
// b, scale, shift and residual may be null. The data gradient is the transposed convolution, to which b belongs. The
// convolution of mathematics, which flips the filter, is the same with steps backwards from the last tap.
//
// Shapes    x (n, c, d, h, w), y (n, k, o, p, q), w (k, c / groups, t, r, s) of T, any steps each, so that NCHW, NHWC and
//           strided views are the same to the kernels; axes that a problem lacks have one element. b of T, scale and shift
//           of acc_t<T>, all dense.
// Plan      conv_forward, conv_backward_data    a thread an element of the result, in the order of its memory; taps are
//                                               the outer loops, channels the inner one. Asked for no more than two blocks
//                                               on a multiprocessor: left to itself, ptxas aims at four and spills.
//                                               conv_forward also finishes the sums that another kernel has left.
//           conv_backward_filter                a block an element of dw: its threads share the positions.
//           conv_backward_bias                  a block a channel, likewise.
// Numerics  summed in acc_t<T>, one after the other in the order of the loops, those of a block folded by reduce.cuh: the
//           same bits each time. z is not rounded before the activation; one rounding at the end. What lies outside of the
//           image is skipped, so that an infinite weight never meets padding.
// Cost      2 K C / groups taps flops for each position, in each direction but the bias's. Every element of x, w or dy is
//           read once for each product that it is in; only caches spare memory. Bound by loads and by the arithmetic of
//           their addresses, far from the arithmetic of products: what is there to be right, not fast. NVIDIA H200,
//           2026-11-28: 256 images of 256@14, 3x3, bfloat16, data: 14.6 ms, 4 TFLOP/s.
// Limits    fewer than 2^31 elements of dw, and channels of db; fewer than 2^39 elements of y or dx.
#include "activation.cuh"
#include "reduce.cuh"
#include "spatial.cuh"
#include "vec.cuh"

struct Problem {
  i64 batch, groups, in_per_group, out_per_group;
  Spatial image, output, taps, stride, dilation, padding;
  Steps x, w, y;
  i64 w_first;  // offset of the tap that comes first
  int channels_last;  // order of memory of the images, for the walk over results
};

// sum of a[k * a_step] b[k * b_step] over channels
template <class T> DEVICE acc_t<T> dot(const T* a, i64 a_step, const T* b, i64 b_step, i64 count, acc_t<T> sum) {
  for (i64 k = 0; k < count; ++k) sum += to_acc(a[k * a_step]) * to_acc(b[k * b_step]);
  return sum;
}

// ---- forward --------------------------------------------------------------------------------------------------------

template <class T> struct ConvForwardParams {
  T* y;
  const T* x;
  const T* w;
  const T* b;
  const T* residual;
  const acc_t<T>* scale;
  const acc_t<T>* shift;
  const acc_t<T>* partial;  // sums of another kernel's splits, in the order of y, or null
  acc_t<T> alpha1, alpha2, alpha, beta, c0, c1;
  i64 size, splits;  // elements of y
  Steps residual_steps;
  Problem conv;
};

template <class T> DEVICE acc_t<T> correlate(const T* x, const T* w, const Problem& c, const Spatial& o) {
  acc_t<T> sum = 0;
  Spatial i;
#pragma unroll 1
  for (i64 d = 0; d < c.taps.d; ++d) {
    if (!sees(o.d, d, c.stride.d, c.dilation.d, c.padding.d, c.image.d, i.d)) continue;
#pragma unroll 1
    for (i64 h = 0; h < c.taps.h; ++h) {
      if (!sees(o.h, h, c.stride.h, c.dilation.h, c.padding.h, c.image.h, i.h)) continue;
#pragma unroll 1
      for (i64 s = 0; s < c.taps.w; ++s) {
        if (!sees(o.w, s, c.stride.w, c.dilation.w, c.padding.w, c.image.w, i.w)) continue;
        const Spatial tap = {d, h, s};
        sum = dot(x + offset(c.x, i), c.x.channel, w + offset(c.w, tap), c.w.channel, c.in_per_group, sum);
      }
    }
  }
  return sum;
}

template <class T> DEVICE acc_t<T> folded(const acc_t<T>* partial, i64 splits, i64 size) {
  acc_t<T> sum = 0;
  for (i64 split = 0; split < splits; ++split) sum += partial[split * size];
  return sum;
}

template <class T, class Act> __global__ void __launch_bounds__(256, 2) conv_forward(const ConvForwardParams<T> p) {
  const i64 index = global_thread();
  if (index >= p.size) return;
  const Problem& c = p.conv;
  const Place y = place_of(index, c.groups * c.out_per_group, c.output, c.channels_last != 0);
  const i64 k = y.channel, first = quotient(k, c.out_per_group) * c.in_per_group;
  const T* x = p.x + y.outer * c.x.outer + first * c.x.channel;
  acc_t<T> z = p.partial ? folded<T>(p.partial + index, p.splits, p.size)
                         : correlate(x, p.w + c.w_first + k * c.w.outer, c, y.at);
  z *= p.alpha1;
  if (p.b) z += to_acc(p.b[k]);
  if (p.scale) z *= p.scale[k];
  if (p.shift) z += p.shift[k];
  if (p.residual) z += p.alpha2 * to_acc(p.residual[offset(p.residual_steps, y)]);
  const Act act{p.c0, p.c1};
  T* at = p.y + offset(c.y, y);
  *at = blend<T>(p.alpha, act.forward(z), p.beta, at);
}

// ---- data -----------------------------------------------------------------------------------------------------------

template <class T> struct ConvDataParams {
  T* dx;
  const T* dy;
  const T* w;
  const T* b;
  acc_t<T> alpha, beta;
  i64 size;  // elements of dx
  Problem conv;
};

template <class T> DEVICE acc_t<T> gather(const T* dy, const T* w, const Problem& c, const Spatial& i) {
  acc_t<T> sum = 0;
  Spatial o;
#pragma unroll 1
  for (i64 d = 0; d < c.taps.d; ++d) {
    if (!seen_by(i.d, d, c.stride.d, c.dilation.d, c.padding.d, c.output.d, o.d)) continue;
#pragma unroll 1
    for (i64 h = 0; h < c.taps.h; ++h) {
      if (!seen_by(i.h, h, c.stride.h, c.dilation.h, c.padding.h, c.output.h, o.h)) continue;
#pragma unroll 1
      for (i64 s = 0; s < c.taps.w; ++s) {
        if (!seen_by(i.w, s, c.stride.w, c.dilation.w, c.padding.w, c.output.w, o.w)) continue;
        const Spatial tap = {d, h, s};
        sum = dot(dy + offset(c.y, o), c.y.channel, w + offset(c.w, tap), c.w.outer, c.out_per_group, sum);
      }
    }
  }
  return sum;
}

template <class T> __global__ void __launch_bounds__(256, 2) conv_backward_data(const ConvDataParams<T> p) {
  const i64 index = global_thread();
  if (index >= p.size) return;
  const Problem& c = p.conv;
  const Place x = place_of(index, c.groups * c.in_per_group, c.image, c.channels_last != 0);
  const i64 group = quotient(x.channel, c.in_per_group), first = group * c.out_per_group;
  const T* dy = p.dy + x.outer * c.y.outer + first * c.y.channel;
  const T* w = p.w + c.w_first + first * c.w.outer + (x.channel - group * c.in_per_group) * c.w.channel;
  acc_t<T> sum = gather(dy, w, c, x.at);
  if (p.b) sum += to_acc(p.b[x.channel]);
  T* at = p.dx + offset(c.x, x);
  *at = blend<T>(p.alpha, sum, p.beta, at);
}

// ---- filter and bias ------------------------------------------------------------------------------------------------

constexpr int REDUCING = 128;  // threads that share the positions of one sum

template <class T> struct ConvFilterParams {
  T* dw;
  const T* dy;
  const T* x;
  acc_t<T> alpha, beta;
  Problem conv;
};

template <class T> __global__ void __launch_bounds__(REDUCING) conv_backward_filter(const ConvFilterParams<T> p) {
  const Problem& c = p.conv;
  const Place w = place_of(blockIdx.x, c.in_per_group, c.taps, false);
  const i64 first = quotient(w.outer, c.out_per_group) * c.in_per_group;
  const T* x = p.x + (first + w.channel) * c.x.channel;
  const T* dy = p.dy + w.outer * c.y.channel;
  const i64 positions = c.batch * c.output.d * c.output.h * c.output.w;
  acc_t<T> sum = 0;
  for (i64 position = threadIdx.x; position < positions; position += REDUCING) {
    const Place y = place_of(position, 1, c.output, true);
    Spatial i;
    if (!sees(y.at.d, w.at.d, c.stride.d, c.dilation.d, c.padding.d, c.image.d, i.d)) continue;
    if (!sees(y.at.h, w.at.h, c.stride.h, c.dilation.h, c.padding.h, c.image.h, i.h)) continue;
    if (!sees(y.at.w, w.at.w, c.stride.w, c.dilation.w, c.padding.w, c.image.w, i.w)) continue;
    const T left = dy[y.outer * c.y.outer + offset(c.y, y.at)], right = x[y.outer * c.x.outer + offset(c.x, i)];
    sum += to_acc(left) * to_acc(right);
  }
  sum = block_reduce<REDUCING>(sum, Sum(), acc_t<T>(0));
  T* at = p.dw + c.w_first + offset(c.w, w);
  if (threadIdx.x == 0) *at = blend<T>(p.alpha, sum, p.beta, at);
}

template <class T> struct ConvBiasParams {
  T* db;
  const T* dy;
  acc_t<T> alpha, beta;
  i64 batch;
  Spatial output;
  Steps y;
};

template <class T> __global__ void __launch_bounds__(REDUCING) conv_backward_bias(const ConvBiasParams<T> p) {
  const T* dy = p.dy + (i64)blockIdx.x * p.y.channel;
  const i64 positions = p.batch * p.output.d * p.output.h * p.output.w;
  acc_t<T> sum = 0;
  for (i64 position = threadIdx.x; position < positions; position += REDUCING) {
    const Place y = place_of(position, 1, p.output, true);
    sum += to_acc(dy[y.outer * p.y.outer + offset(p.y, y.at)]);
  }
  sum = block_reduce<REDUCING>(sum, Sum(), acc_t<T>(0));
  T* at = p.db + blockIdx.x;
  if (threadIdx.x == 0) *at = blend<T>(p.alpha, sum, p.beta, at);
}
