// Elementwise activations and their gradients.
//
//   activation_forward    y  = alpha * f(x) + beta * y
//   activation_backward   dx = alpha * dy f' + beta * dx,  f' from the input or from the output of the forward pass
//
// f and f' are functors of activation.cuh (F; FromOutput<F> reads y), which hold the maths and its sources.
// Pointers: y, x, dx, dy, saved of T. In activation_*_strided each has its own steps over the common extents.
// Maths: f and f' of each mode are listed with activation_forward of the Python interface.
// Plan: one pass. A thread takes two 16-byte vectors (VEC elements each), both loaded before either is worked on. The
//   last block, and every block where a pointer is unaligned, takes single elements instead (share.cuh), so that each
//   functor is compiled once for any size and alignment. The strided kernels take an element a thread, in the order of
//   the destination's memory.
// Numerics: in acc_t<T>, rounded once. No thread sees another's element: the same bits each time. With beta 0 the old
//   destination is never read.
//   Bounds (ulp): float32 and float64 forward 2, derivative 4; 16-bit types forward 0.51, derivative 1, over the whole
//   finite range. Any destination may be the very memory of an input: an element is read before it is written, by the
//   same thread.
// Cost: forward 2 sizeof(T) bytes an element, backward 3; a handful of instructions for lines, up to 70 for the derivative
//   of a gate in float (usual.cuh), half of that in 16 bits.
// Limits: 8 axes after merging in the strided kernels; 2^31 blocks, which is more than fits any memory.
// Measured on an NVIDIA H200, 2026-11-23, tools/bench.py, before the short ways of usual.cuh and two
//   packs a thread; TB/s and share of a copy (4.298 TB/s), forward / backward:
//                134,217,728 float32            268,435,456 bfloat16
//     relu       4.24 0.99 / 4.33 1.01          4.24 0.99 / 4.34 1.01
//     sigmoid    3.16 0.73 / 4.33 1.01          4.07 0.95 / 4.33 1.01
//     tanh       3.82 0.89 / 4.33 1.01          3.02 0.70 / 4.33 1.01
//     gelu       3.14 0.73 / 3.98 0.93          2.99 0.70 / 3.75 0.87
//     gelu_tanh  2.49 0.58 / 2.75 0.64          3.25 0.76 / 3.90 0.91
//     swish      3.00 0.70 / 3.63 0.84          3.78 0.88 / 4.19 0.97
//     mish       3.00 0.70 / 2.93 0.68          3.56 0.83 / 4.34 1.01
//     softplus   2.64 0.61 / 3.91 0.91          2.67 0.62 / 4.36 1.01
//   Supposed where it falls short: the arithmetic, not memory, is the limit. The forward pass moves 2 numbers for a
//   function's instructions, the backward pass 3, and float32 pays for its 2 ulp (math.cuh).
#include "activation.cuh"
#include "share.cuh"
#include "strided.cuh"

template <class T> struct ActivationForwardParams {
  T* y;
  const T* x;
  acc_t<T> alpha, beta, c0, c1;
  i64 size;
  int packs;  // whether all arrays are 16-byte aligned
};
template <class T> struct ActivationBackwardParams {
  T* dx;
  const T* dy;
  const T* saved;
  acc_t<T> alpha, beta, c0, c1;
  i64 size;
  int packs;  // whether all arrays are 16-byte aligned
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

template <class T, class F, int VEC>
__global__ void __launch_bounds__(SHARE_BLOCK) activation_forward(const ActivationForwardParams<T> p) {
  const F f{p.c0, p.c1};
  const Share<VEC> share(p.size, p.packs != 0);
  pack<T, VEC> packs[SHARE_PACKS];
  share.load(p.x, packs);
#pragma unroll
  for (int j = 0; j < SHARE_PACKS; ++j) {
    if (!share.holds(j)) break;
    acc_t<T> x[VEC], y[VEC];
    unpack(x, packs[j]);
    forward_all(f, x, y);
    share.store_blended(p.y, j, y, p.alpha, p.beta);
  }
}

template <class T, class F, int VEC>
__global__ void __launch_bounds__(SHARE_BLOCK) activation_backward(const ActivationBackwardParams<T> p) {
  const F f{p.c0, p.c1};
  const Share<VEC> share(p.size, p.packs != 0);
  pack<T, VEC> gradients[SHARE_PACKS], packs[SHARE_PACKS];
  share.load(p.dy, p.saved, gradients, packs);
#pragma unroll
  for (int j = 0; j < SHARE_PACKS; ++j) {
    if (!share.holds(j)) break;
    acc_t<T> dy[VEC], saved[VEC], dx[VEC];
    unpack(dy, gradients[j]);
    unpack(saved, packs[j]);
    backward_all(f, dy, saved, dx);
    share.store_blended(p.dx, j, dx, p.alpha, p.beta);
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
