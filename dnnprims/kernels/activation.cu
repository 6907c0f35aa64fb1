// Elementwise activations and their gradients.
//
//   activation_forward    y  = alpha * f(x) + beta * y
//   activation_backward   dx = alpha * dy f' + beta * dx,  f' from the input or from the output of the forward pass
//
// f and f' are functors of activation.cuh (F; FromOutput<F> reads y), which hold the maths and its sources.
// Pointers: y, x, dx, dy, saved of T. In activation_*_strided each has its own steps over the common extents.
// Plan: one pass. A thread takes one 16-byte vector (VEC elements; more per thread was slower); the one at the end
//   takes what is left one by one, so that any size runs in vectors. VEC = 1, always with BLEND, serves unaligned
//   pointers. The strided kernels take an element a thread, in the order of the destination's memory.
// Numerics: in acc_t<T>, rounded once. BLEND = false is alpha 1, beta 0: the result as it is, the old one never read.
//   Bounds (ulp): float32 and float64 forward 2, derivative 4; 16-bit types forward 0.51, derivative 1, over the whole
//   finite range. Any destination may be the very memory of an input: an element is read before it is written, by the
//   same thread.
// Cost: forward 2 sizeof(T) bytes an element, backward 3; a handful of instructions for lines, up to about 120 for the
//   derivative of a gate in float (math.cuh).
// Limits: 8 axes after merging in the strided kernels.
#include "activation.cuh"
#include "strided.cuh"
#include "vec.cuh"

template <class T> struct ActivationForwardParams {
  T* y;
  const T* x;
  acc_t<T> alpha, beta, c0, c1;
  i64 size;
};
template <class T> struct ActivationBackwardParams {
  T* dx;
  const T* dy;
  const T* saved;
  acc_t<T> alpha, beta, c0, c1;
  i64 size;
};
template <class T> struct ActivationForwardStridedParams {
  T* y;
  const T* x;
  acc_t<T> alpha, beta, c0, c1;
  i64 size;
  axes extent, y_step, x_step;
};
template <class T> struct ActivationBackwardStridedParams {
  T* dx;
  const T* dy;
  const T* saved;
  acc_t<T> alpha, beta, c0, c1;
  i64 size;
  axes extent, dx_step, dy_step, saved_step;
};

// What goes to memory in the place of `old`.
template <bool BLEND, class T, class A> DEVICE T finished(A alpha, A result, A beta, const T* old) {
  if constexpr (BLEND) return blend(alpha, result, beta, old);
  return from_acc<T>(result);
}

template <class T, class F, bool BLEND, int VEC>
__global__ void __launch_bounds__(256) activation_forward(const ActivationForwardParams<T> p) {
  const F f{p.c0, p.c1};
  const i64 i = global_thread(), first = i * VEC;
  if (first + VEC <= p.size) {
    const pack<T, VEC> x = load<VEC>(p.x, i);
    pack<T, VEC> y;
    if (BLEND && p.beta != acc_t<T>(0)) y = load<VEC>(p.y, i);
#pragma unroll
    for (int k = 0; k < VEC; ++k)
      y.lane[k] = finished<BLEND>(p.alpha, f.forward(to_acc(x.lane[k])), p.beta, &y.lane[k]);
    store<VEC>(p.y, i, y);
  } else if constexpr (VEC > 1) {
    for (i64 at = first; at < p.size; ++at)
      p.y[at] = finished<BLEND>(p.alpha, f.forward(to_acc(p.x[at])), p.beta, p.y + at);
  }
}

template <class T, class F, bool BLEND, int VEC>
__global__ void __launch_bounds__(256) activation_backward(const ActivationBackwardParams<T> p) {
  const F f{p.c0, p.c1};
  const i64 i = global_thread(), first = i * VEC;
  if (first + VEC <= p.size) {
    const pack<T, VEC> dy = load<VEC>(p.dy, i), saved = load<VEC>(p.saved, i);
    pack<T, VEC> dx;
    if (BLEND && p.beta != acc_t<T>(0)) dx = load<VEC>(p.dx, i);
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      const acc_t<T> result = f.backward(to_acc(dy.lane[k]), to_acc(saved.lane[k]));
      dx.lane[k] = finished<BLEND>(p.alpha, result, p.beta, &dx.lane[k]);
    }
    store<VEC>(p.dx, i, dx);
  } else if constexpr (VEC > 1) {
    for (i64 at = first; at < p.size; ++at) {
      const acc_t<T> result = f.backward(to_acc(p.dy[at]), to_acc(p.saved[at]));
      p.dx[at] = finished<BLEND>(p.alpha, result, p.beta, p.dx + at);
    }
  }
}

template <class T, class F>
__global__ void __launch_bounds__(256) activation_forward_strided(const ActivationForwardStridedParams<T> p) {
  const F f{p.c0, p.c1};
  const i64 i = global_thread();
  if (i >= p.size) return;
  const offsets<2> at = offsets_of(i, p.extent, p.y_step, p.x_step);
  T* y = p.y + at.in[0];
  *y = blend(p.alpha, f.forward(to_acc(p.x[at.in[1]])), p.beta, y);
}

template <class T, class F>
__global__ void __launch_bounds__(256) activation_backward_strided(const ActivationBackwardStridedParams<T> p) {
  const F f{p.c0, p.c1};
  const i64 i = global_thread();
  if (i >= p.size) return;
  const offsets<2> at = offsets_of(i, p.extent, p.dy_step, p.saved_step);
  T* dx = p.dx + offsets_of(i, p.extent, p.dx_step).in[0];
  *dx = blend(p.alpha, f.backward(to_acc(p.dy[at.in[0]]), to_acc(p.saved[at.in[1]])), p.beta, dx);
}
