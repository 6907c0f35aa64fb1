// Elementwise activations and their gradients.
//
//   activation_forward    y  = alpha * f(x) + beta * y
//   activation_backward   dx = alpha * dy f' + beta * dx,  f' from the input or from the output of the forward pass
//
// f and f' are functors of activation.cuh (F; FromOutput<F> reads y), which hold the maths and its sources.
// Pointers: y, x, dx, dy, saved of T. In activation_*_strided each has its own steps over the common extents.
// Maths: f and f' of each mode are listed with activation_forward of the Python interface.
// Plan: one pass. A thread takes PACKS 16-byte vectors (VEC elements each), all loaded before any is worked on: two where
//   there is much to compute, else one (TWO_PACKS of ops/activation/kernels.py, with what it was chosen by). A last block
//   that has no whole ones, and every block where a pointer is unaligned, takes single elements instead (share.cuh), so that
//   each functor is compiled once for any size and alignment. The strided kernels take an element a thread, in the order of
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
// Measured on an NVIDIA H200, 2026-11-28, in turn with a copy (504 to 511 us) and PyTorch in one process, 1 GiB of input and
//   output, x of deviation 2, medians of 11 rounds; share of the copy, PyTorch's in parentheses. Of three builds before this
//   one, which was not timed by itself: gelu of 36 steps; of 37, as here, with another way to the last elements; and that of
//   37 with its blocks in reverse.
//     float32    gelu 1.008, 0.991, 1.004 (1.003 to 1.012). gelu_tanh 1.008 (1.006), mish 0.999 and 1.003 (0.97), tanhshrink
//                1.002, relu 0.998 and 1.000 (1.004). Backward gelu 1.03, gelu_tanh 1.028 and 1.016 (1.024), mish 1.03
//     16 bits    (built as before) hard_tanh 0.997 (1.008), exp 0.998 (1.005); backward relu 1.025 (1.027), swish 1.024 (1.026)
//   tools/bench.py had 0.86 for gelu before, 0.92 for gelu_tanh backward, 0.95 for tanhshrink. Why, as far as it was seen: ncu
//   of an older gelu of 46 instructions gave 75 / 56 / 79 % of issue slots, FMA pipe and memory, none of them full; of this one
//   there is no profile. By changing one thing at a time, in bare kernels with no blending and no last elements:
//     - Short ways of gelu and gelu_tanh that ended at |x| = 7, beyond which (by the normal distribution) 6 % of the packs
//       of a warp have a number: 0.882 with that end, 0.924 with one at 13 and the same steps. They end at 8.6 here.
//     - Steps: 0.998 with 33 in place of 42, of coefficients that were not right. Here gelu has 37, mish 28 for 34 (31 since).
//     - By its machine code gelu takes 45 instructions an element in all; WholeShare saves 2 to 3 of them.
//   Tried with those 33 steps, one run: blocks of 128 with two packs a thread 0.998, of 256 0.966, with one 0.941, of 512
//   0.919; two packs ahead of four 0.994, of eight 0.978; resident blocks with one, two or four packs ahead 0.90, 0.93,
//   0.88; a ring of bulk copies for each warp 0.92; hints that nothing is read again 0.91. Coefficients from a table in shared
//   memory, eight copies side by side against conflicts (timed with an empty table): 0.88.
//   Launch shapes of these kernels, NVIDIA H200, 2026-11-28, 31 rounds in turn with PyTorch, of its rate, threads x packs:
//                                     128 x 2  256 x 1  512 x 1  256 x 2  128 x 4  128 x 1
//     forward   float16 exp, 2^29       0.991    1.001    0.979    0.965    0.967    0.788
//               float32 exp, 2^28       1.003    1.012    0.984    0.979    0.974    0.795
//               float32 gelu, 2^28      0.977    0.857    0.839    0.978    0.975    0.790
//               float32 gelu, 10^7      0.934    0.838    0.828    0.929    0.943    0.777
//     backward  float16 relu, 2^29      0.997    1.000    0.997    0.994    0.993    1.000
//               float32 relu, 2^28      1.000    1.004    1.001    0.996    0.995    1.003
//               float16 relu, 10^7      0.973    1.000    1.000    0.993    0.985    0.996
//   128 x 2 at 10^7 is without the last block in packs (share.cuh): with it 0.987 and 0.995. Stores that leave the L2 first
//   lose up to 1 % forward with one pack, loads 2 to 5 %; a launch that waits for the one in front is the same within 0.1 %.
//   What stays short: float32 gelu of 10^7 0.94 and of 10^6 0.90, in no shape above 0.943 and 0.91; float32 relu of 10^7 0.990
//   to 0.999 with one pack for 1.001 with two; swish backward 0.991 in float16 (bfloat16 1.023); 16-bit log backward
//   0.994, at 733 us as relu's, where PyTorch takes 729 for it and 734 for relu's.
//   Blocks in reverse: relu backward of 10^7 float16 17.3 us for 17.9 before the last block took packs; float16 gelu had
//   0.93 of a copy then, for 0.99 before, with 36 registers for 32; which of the two it was is not known. Not adopted.
//   In the L2, microseconds (PyTorch), first and third build: gelu of 10^5 float32 1.44, 1.48 (1.83); of 10^6 2.76, 2.95
//   (2.66), slower than PyTorch; its derivative of 10^6 2.76, 2.56 (3.2 to 3.4). gelu of 10^7, not in the L2, 23.3 (22.0).
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

template <int VEC, int PACKS, class F, class T> DEVICE void forward_laden(const F& f, const ActivationForwardParams<T>& p) {
  acc_t<T> x[VEC], y[VEC];
  const WholeShare<VEC, PACKS> whole(p.size);
  if (whole.applies(p.packs != 0)) {
    pack<T, VEC> packs[PACKS];
#pragma unroll
    for (int j = 0; j < PACKS; ++j) packs[j] = whole.load(p.x, j);
#pragma unroll
    for (int j = 0; j < PACKS; ++j) {
      if (!whole.holds(j)) break;
      unpack(x, packs[j]);
      forward_all(f, x, y);
      whole.store_blended(p.y, j, y, p.alpha, p.beta);
    }
  } else {
    const Share<VEC, PACKS> share(p.size, false);
#pragma unroll 1
    for (int j = 0; j < PACKS && share.holds(j); ++j) {
      unpack(x, share.single(p.x, j));
      forward_each(f, x, y);
      share.store_blended(p.y, j, y, p.alpha, p.beta);
    }
  }
}
template <class T, class F, int VEC, int PACKS>
__global__ void __launch_bounds__(SHARE_WIDE) activation_forward(const ActivationForwardParams<T> p) {
  const F f{p.c0, p.c1};
  if constexpr (laden_forward<F>) {
    forward_laden<VEC, PACKS>(f, p);
  } else {
    const Share<VEC, PACKS> share(p.size, p.packs != 0);
    pack<T, VEC> packs[PACKS];
    share.load(p.x, packs);
#pragma unroll
    for (int j = 0; j < PACKS; ++j) {
      if (!share.holds(j)) break;
      acc_t<T> x[VEC], y[VEC];
      unpack(x, packs[j]);
      forward_all(f, x, y);
      share.store_blended(p.y, j, y, p.alpha, p.beta);
    }
  }
}

template <int VEC, int PACKS, class F, class T> DEVICE void backward_laden(const F& f, const ActivationBackwardParams<T>& p) {
  acc_t<T> dy[VEC], saved[VEC], dx[VEC];
  const WholeShare<VEC, PACKS> whole(p.size);
  if (whole.applies(p.packs != 0)) {
    pack<T, VEC> gradients[PACKS], packs[PACKS];
#pragma unroll
    for (int j = 0; j < PACKS; ++j) gradients[j] = whole.load(p.dy, j), packs[j] = whole.load(p.saved, j);
#pragma unroll
    for (int j = 0; j < PACKS; ++j) {
      if (!whole.holds(j)) break;
      unpack(dy, gradients[j]);
      unpack(saved, packs[j]);
      backward_all(f, dy, saved, dx);
      whole.store_blended(p.dx, j, dx, p.alpha, p.beta);
    }
  } else {
    const Share<VEC, PACKS> share(p.size, false);
#pragma unroll 1
    for (int j = 0; j < PACKS && share.holds(j); ++j) {
      unpack(dy, share.single(p.dy, j));
      unpack(saved, share.single(p.saved, j));
      backward_each(f, dy, saved, dx);
      share.store_blended(p.dx, j, dx, p.alpha, p.beta);
    }
  }
}
template <class T, class F, int VEC, int PACKS>
__global__ void __launch_bounds__(SHARE_WIDE) activation_backward(const ActivationBackwardParams<T> p) {
  const F f{p.c0, p.c1};
  if constexpr (laden_backward<F>) {
    backward_laden<VEC, PACKS>(f, p);
  } else {
    const Share<VEC, PACKS> share(p.size, p.packs != 0);
    pack<T, VEC> gradients[PACKS], packs[PACKS];
    share.load(p.dy, p.saved, gradients, packs);
#pragma unroll
    for (int j = 0; j < PACKS; ++j) {
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
