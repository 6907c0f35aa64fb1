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
// Cost: forward 2 sizeof(T) bytes an element, backward 3; a handful of instructions for lines, up to 66 for the derivative
//   of a gate in float (usual.cuh), half of that in 16 bits.
// Limits: 8 axes after merging in the strided kernels; 2^31 blocks, which is more than fits any memory.
// Predicted: an H200 has time for about 60 instructions a float forward and 90 backward, half of that in 16 bits; up to two
//   thirds of them memory should stay the limit.
// Measured on an NVIDIA H200, 2026-11-28, in turn with a copy (505 to 511 us) and PyTorch in one process, 1 GiB of input and
//   output, x of deviation 2; share of the copy, PyTorch's in parentheses:
//     float32    gelu 1.00 (1.00), gelu_tanh 1.01 (1.01), mish 1.00 (0.97), tanhshrink 1.00, relu 1.00 (1.00);
//                backward gelu 1.03, gelu_tanh 1.02 to 1.03 (1.02), mish 1.03
//     16 bits    hard_tanh 0.997 (1.008), exp 0.998 (1.005); backward relu 1.025 (1.027), swish 1.024 (1.025)
//   Before, gelu had 0.86, gelu_tanh backward 0.92, tanhshrink 0.95. Their causes, by ncu 75 / 56 / 79 % of issue slots, FMA
//   pipe and memory for gelu: neither full, for a warp has loads under way or arithmetic, never both, so that some 43
//   instructions an element are what memory hides, and they took 51 and more.
//     - The short ways of gelu and gelu_tanh ended at |x| = 7, beyond which 6 % of the warps' packs have a number: alone
//       0.88 to 0.92. They end at 8.6.
//     - Fewer steps (usual.cuh): gelu 37, mish 28 in place of 42 and 34. With 33 and as much around them gelu had 0.998.
//     - What is no mathematics took 9 to 10 instructions an element, now 7 where arithmetic holds a kernel up (WholeShare).
//   Tried at gelu, share of the copy with 33 steps: blocks of 128 with two packs a thread 0.998, of 256 0.966, with one
//   0.941, of 512 0.919; two packs ahead of four 0.994, of eight 0.978; resident blocks with one, two or four packs ahead
//   0.90, 0.93, 0.88; a ring of bulk copies for each warp 0.92; hints that nothing is read again 0.91. Coefficients by
//   table from shared memory, eight copies side by side against conflicts, 14 instructions an element: 0.88.
//   Blocks in reverse, so that the last one, which has no whole packs, begins first: relu backward of 10^7 float16, not in the
//   L2, 17.3 us (PyTorch 17.5) for 17.9, but gelu of 10^6 float32 2.95 for 2.76; float16 gelu had 0.93 of a copy in such a
//   build, which also had more registers, and was not looked at alone.
//   16 bits past the L2: one pack a thread in blocks of 256 has 1.004 to 1.009 forward where this has 0.997, in blocks of
//   512 0.996, of 1024 0.966; loads that pass by the L1 lose 2 to 4 %, streaming ones 0 to 4 %.
//   In the L2, microseconds (PyTorch): gelu of 10^5 float32 1.4 (1.8), of 10^6 2.8 (2.7), its derivative of 10^6 2.8 (3.2).
//   Of 10^6 the arithmetic is 1.3, the rest the start and the end of the launch.
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

// Where arithmetic holds a kernel up: the modes with a short way in float, and tanhshrink.
template <class F> constexpr bool laden_forward = F::SHORT_FORWARD && sizeof(typename F::storage) == sizeof(float);
template <> constexpr bool laden_forward<Tanhshrink<float>> = true;
template <class F> constexpr bool laden_backward = F::SHORT_BACKWARD && sizeof(typename F::storage) == sizeof(float);

template <int VEC, class F, class T> DEVICE void forward_laden(const F& f, const ActivationForwardParams<T>& p) {
  acc_t<T> x[VEC], y[VEC];
  const WholeShare<VEC> whole;
  if (whole.applies(p.size, p.packs != 0)) {
    const pack<T, VEC> packs[SHARE_PACKS] = {whole.load(p.x, 0), whole.load(p.x, 1)};
#pragma unroll
    for (int j = 0; j < SHARE_PACKS; ++j) {
      if (!whole.holds(j)) break;
      unpack(x, packs[j]);
      forward_all(f, x, y);
      whole.store_blended(p.y, j, y, p.alpha, p.beta);
    }
  } else {
    const Share<VEC> share(p.size, false);
#pragma unroll 1
    for (int j = 0; j < SHARE_PACKS && share.holds(j); ++j) {
      unpack(x, share.single(p.x, j));
      forward_each(f, x, y);
      share.store_blended(p.y, j, y, p.alpha, p.beta);
    }
  }
}
template <class T, class F, int VEC>
__global__ void __launch_bounds__(SHARE_WIDE) activation_forward(const ActivationForwardParams<T> p) {
  const F f{p.c0, p.c1};
  if constexpr (laden_forward<F>) {
    forward_laden<VEC>(f, p);
  } else {
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
}

template <int VEC, class F, class T> DEVICE void backward_laden(const F& f, const ActivationBackwardParams<T>& p) {
  acc_t<T> dy[VEC], saved[VEC], dx[VEC];
  const WholeShare<VEC> whole;
  if (whole.applies(p.size, p.packs != 0)) {
    pack<T, VEC> gradients[SHARE_PACKS], packs[SHARE_PACKS];
#pragma unroll
    for (int j = 0; j < SHARE_PACKS; ++j) gradients[j] = whole.load(p.dy, j), packs[j] = whole.load(p.saved, j);
#pragma unroll
    for (int j = 0; j < SHARE_PACKS; ++j) {
      if (!whole.holds(j)) break;
      unpack(dy, gradients[j]);
      unpack(saved, packs[j]);
      backward_all(f, dy, saved, dx);
      whole.store_blended(p.dx, j, dx, p.alpha, p.beta);
    }
  } else {
    const Share<VEC> share(p.size, false);
#pragma unroll 1
    for (int j = 0; j < SHARE_PACKS && share.holds(j); ++j) {
      unpack(dy, share.single(p.dy, j));
      unpack(saved, share.single(p.saved, j));
      backward_each(f, dy, saved, dx);
      share.store_blended(p.dx, j, dx, p.alpha, p.beta);
    }
  }
}
template <class T, class F, int VEC>
__global__ void __launch_bounds__(SHARE_WIDE) activation_backward(const ActivationBackwardParams<T> p) {
  const F f{p.c0, p.c1};
  if constexpr (laden_backward<F>) {
    backward_laden<VEC>(f, p);
  } else {
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
