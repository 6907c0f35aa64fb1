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
// Predicted: an H200 has time for about 60 instructions a float forward and 90 backward, half of that in 16 bits; up to two
//   thirds of them memory should stay the limit.
// Measured on an NVIDIA H200, 2026-11-28, tools/bench.py --shapes key activation, 1 GiB of input and output; share of a
//   copy (4.30 TB/s), forward / backward. All of 29 modes in three types have 0.97 or more, 0.98 / 1.01 mostly, but for
//     float32    gelu 0.78 / 1.02, tanhshrink 0.88 / 1.02, softplus 0.94 / 1.02, gelu_tanh 0.96 / 0.93, mish 0.96 / 0.96
//     16 bits    log 0.89 and 0.87 / 1.02
//   Where it falls short arithmetic is the limit, by ncu on an NVIDIA H200, 2026-11-28, 1 GiB of input and output,
//   microseconds, instructions an element, issue slots used, peak of the FMA pipe and of the memory:
//     float32 gelu 606, 60, 82 %, 67 %, 73 %        tanhshrink 573, 53, 77 %, 61 %, 77 %
//     float32 gelu_tanh backward 774, 70, 74 %, 60 %, 86 %
//   with more warps ready than can issue (8.6 of gelu, of each). All slots would take 500 us for gelu, a copy takes as long:
//   0.97 wants 50 instructions, where 44 were tried and missed 2 ulp (2.5); its sums keep pairs. For the same reason gelu of
//   up to 10 million float32, which lie in the L2, takes up to twice the time of PyTorch, whose sums keep none: 10^6 use
//   63 % of the slots, 57 % of the time, the rest is the start and the end of the launch.
//   Since then mended: softplus spent 49 on its division by beta, which 1 needs not (34); log in 16 bits branched at each
//   element, 28, now 18 (bfloat16 513 us, 0.86 of the memory's peak).
//   And float32 (usual.cuh), timed in turn with PyTorch and a copy in one process, 2026-11-28, share of the copy in up
//   to three runs (the kernels differed in their addresses): tanhshrink 44 instructions, 0.96 to 0.97; mish 43, 0.95
//   to 0.98, backward 64, 1.01; gelu_tanh 42, 0.96 to 0.98, backward 70, 0.97 to 0.985; gelu backward 41. gelu with 46
//   had 0.95 (0.95 of PyTorch) and erred by 2.1 ulp; the one here has 51 by its machine code: 0.86 (0.87).
//   ncu of these, issue slots / FMA pipe / memory in % of peak: gelu of 46 instructions 75 / 56 / 79, tanhshrink 73 /
//   55 / 81, mish 72 / 54 / 81, gelu_tanh 70 / 50 / 82, backward 76 / 62 / 83, with 86 % of all warps there (backward
//   66). Neither limit is reached: a warp has loads under way or arithmetic, never both. Tried: one pack a thread of
//   blocks of 128 (0.79 of a copy for relu: 524,288 blocks in 634 us), blocks of 256 with two packs (gelu +1.5 %,
//   hard_tanh of bfloat16 -1.5 %, gelu_tanh backward -1 %).
//   Beside PyTorch past the L2, 15 rounds in turn: relu of float32 1.000; hard_tanh of bfloat16 0.988 to 0.998 and
//   swish backward of float16 0.991 to 0.997, with their 10th to 90th percentiles apart: half a percent is real. One
//   pack a thread of blocks of 256 gave hard_tanh 1.007 and took a tenth from swish backward. The derivatives of gates
//   in 16 bits have 1.02 to 1.04 of a copy with their expansions.
//   Data in the L2, microseconds beside PyTorch's: 10^6 of float32 relu 1.9 / 2.1, gelu backward 2.7 / 3.1, gelu with
//   46 instructions 2.7 / 2.4; 10^5 of gelu 1.3 / 1.6; 10^7 of gelu 21.5 / 20.7, its derivative 29.1 / 29.3, relu
//   backward of float16 15.2 / 14.5 (14.5 with one pack a thread of blocks of 256).
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
__global__ void __launch_bounds__(SHARE_WIDE) activation_forward(const ActivationForwardParams<T> p) {
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
__global__ void __launch_bounds__(SHARE_WIDE) activation_backward(const ActivationBackwardParams<T> p) {
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
