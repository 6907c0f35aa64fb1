// Losses and their gradients: elementwise kinds, cosine distance, softmax cross-entropy (cross_entropy.cuh) and nll.
//
// Maths, with d = x - t (x the prediction, t the target), c the kind's parameter:
//   mse               d^2                                        2 d
//   l1                |d|                                        sign d, 0 at 0
//   huber             d^2 / 2, beyond c: c (|d| - c / 2)         d, beyond c: c sign d   (Huber 1964)
//   smooth_l1         d^2 / (2 c), beyond c: |d| - c / 2         d / c, beyond c: sign d (Girshick 2015)
//   bce               -t log x - (1 - t) log(1 - x)              (x - t) / (x (1 - x))
//   bce_with_logits   (1 - t) x^+ - t x^- + log(1 + e^-|x|)      (1 - t) s(x) - t s(-x), s the logistic function
//   kl_div            t (log t - x), 0 where t is 0              -t     (log_target: e^t (t - x) and -e^t)
//   hinge             max(0, c - t x)                            -t where c - t x > 0
//   cosine            1 - x.t / (|x| |t|) for each row           (cos x/|x| - t/|t|) / |x|, both 0 for a row of zeros
//   cross_entropy     sum_k a_k (lse(x) - x_k) for each row      p_k sum(a) - a_k, p = softmax(x)
//                     a_k = w_k (keep [k == label] + spread), or w_k (keep t_k + spread) for probabilities t
//   nll               -w_label x_label                           -w_label at the label
//   The gradient is multiplied by alpha * dloss / divisor; dx = that + beta * dx.
// Pointers: x, dx of T, dense; the target of T, or labels int32 / int64, one per row; weights of T; losses, dloss and
// sums of the accumulator A. For cross_entropy a row runs over the classes with step `inner`. dx may be x itself.
// Plan:
//   elementwise_loss            packs of 16 bytes, a grid that stays resident; each input is read and dx written once.
//   cross_entropy_in_registers  a row in the registers of 8 or 32 threads or of a block: one read, one write. Rows that
//                               do not start on 16 bytes are read by whole packs too, but for their first and last one.
//   cross_entropy_by_block      a block a row: maximum and sum in one read (Milakov and Gimelshein, "Online normalizer
//                               calculation for softmax", 2018), which leaves the row in shared memory for the gradient
//                               (parts.cuh). What has no room there is read again, first what the caches saw last.
//   cross_entropy_plain         a thread a row, the same passes: any layout and alignment.
//   cosine_rows                 a warp or a block a row; three reads, the later ones from the caches.
//   sum_losses                  folds the losses of the rows or the sums of the blocks; twice where there are many.
//   label_weights               the divisor of the mean over labels that count: reads the labels alone and comes first,
//                               so that the logits are still read once.
// Numerics: sums in A in a fixed order, no atomics: the same bits each time. lse - x_k is (max - x_k) + log1p(sum of
// the others), so that a loss near 0 keeps its digits, and p - 1 at the label is formed without cancellation. A NaN, a +inf
// or nothing but -inf in a row makes the row NaN. A label out of range is never used as an index: its loss is NaN, its
// gradient 0, and the flag says so.
// Cost, bytes an element: elementwise 2 sizeof(T) forward, 3 with gradient, and 5 to 10 flops (bce, bce_with_logits and
//   kl_div about 60); cross_entropy sizeof(T) forward, 2 with gradient, 3 where it is read twice, a logarithm a row and
//   one exponential an element in registers, else two; cosine 2 and 3 sizeof(T), 10 flops.
// Limits: in registers up to 16,384 classes (8,192 in double; 1,024 to 4,096 with dense coefficients), then a row of T
//   wholly in shared memory up to 226 KiB.
// Measured on an NVIDIA H200, 2026-11-28, tools/bench.py --shapes key loss: forward and gradient in one pass, share of a
//   copy (4.295 TB/s), float32 / float16 / bfloat16:
//     mse             65,536 x 4096 0.87 (float32), 131,072 x 4096 0.89 / 0.77
//     cross_entropy   262,144 x 128   0.28 / 0.09 / 0.09      65,536 x 1024    0.75 / 0.41 / 0.46
//                     32,768 x 4096   0.19 / 0.48 / 0.55      8,192 x 32,768   0.71 / 0.59 / 0.57
//                     4,096 x 50,304  0.78 / 0.62 / 0.60
//   The comparison of each element with the ends of its row and with its label, in 64 bits and twice, was most of the time
//   before (0.45, 0.40, 0.39 and 0.38, 0.24, 0.24 of float32 and bfloat16 at 1024, 32,768 and 50,304): now it is one for
//   each pack. Supposed where it falls short: 128 classes leave lanes of a warp idle; 4,096 of float32 take a block of 512
//   threads with 78 registers, one to a multiprocessor; the 16-bit types have twice as many elements a byte.
#include "cross_entropy.cuh"

template <class T> struct ElementwiseLossParams {
  acc_t<T>* losses;    // unreduced; null when not wanted
  acc_t<T>* partials;  // one sum per block; null when not wanted
  T* dx;               // null when not wanted
  const T* x;
  const T* target;
  const T* weight;  // as x, or null
  const acc_t<T>* dloss;
  acc_t<T> alpha, beta, divisor, parameter;
  i64 size, dloss_stride;
};

// A kind: loss and slope at (x, t) with the kind's parameter c. `wanted` tells whether the loss is; slopes are cheap.
template <class A> DEVICE A signed_as(A size, A d) { return d > A(0) ? size : d < A(0) ? -size : d; }
struct Mse {
  template <class A> static DEVICE void at(A x, A t, A, bool, A& loss, A& slope) {
    const A d = x - t;
    loss = d * d, slope = A(2) * d;
  }
};
struct L1 {
  template <class A> static DEVICE void at(A x, A t, A, bool, A& loss, A& slope) {
    const A d = x - t;
    loss = fabs(d), slope = signed_as(A(1), d);
  }
};
struct Huber {
  template <class A> static DEVICE void at(A x, A t, A c, bool, A& loss, A& slope) {
    const A d = x - t, size = fabs(d);
    loss = size <= c ? A(0.5) * d * d : c * (size - A(0.5) * c);
    slope = size <= c ? d : signed_as(c, d);
  }
};
struct SmoothL1 {
  template <class A> static DEVICE void at(A x, A t, A c, bool, A& loss, A& slope) {
    const A d = x - t, size = fabs(d);
    loss = size <= c ? A(0.5) * d * (d / c) : size - A(0.5) * c;
    slope = size <= c ? d / c : signed_as(A(1), d);
  }
};
// Logarithms are kept from -100 on and the slope's denominator from 1e-12 on; x outside of [0, 1] is NaN.
struct Bce {
  template <class A> static DEVICE A clamped(A v) { return v < A(-100) ? A(-100) : v; }
  template <class A> static DEVICE void at(A x, A t, A, bool wanted, A& loss, A& slope) {
    const A rest = A(1) - x, span = x * rest;
    loss = wanted ? -(t * clamped(Precise<A>::log(x)) + (A(1) - t) * clamped(Precise<A>::log1p(-x))) : A(0);
    slope = span < A(0) ? limits<A>::nan() : (x - t) / (span > A(1e-12) ? span : A(1e-12));
  }
};
struct BceWithLogits {
  template <class A> static DEVICE void at(A x, A t, A, bool wanted, A& loss, A& slope) {
    const A e = Precise<A>::exp(-fabs(x)), near = A(1) / (A(1) + e), far = e * near;
    const A pull = x >= A(0) ? A(1) - t : -t;
    loss = wanted ? (pull == A(0) ? A(0) : pull * x) + Precise<A>::log1p(e) : A(0);
    slope = x >= A(0) ? (A(1) - t) * near - t * far : (A(1) - t) * far - t * near;
  }
};
struct KlDiv {
  template <class A> static DEVICE void at(A x, A t, A, bool wanted, A& loss, A& slope) {
    loss = !wanted || (t == A(0) && x == x) ? A(0) : t * (Precise<A>::log(t) - x);
    slope = -t;
  }
};
struct KlDivLogTarget {
  template <class A> static DEVICE void at(A x, A t, A, bool, A& loss, A& slope) {
    const A e = Precise<A>::exp(t);
    loss = e == A(0) && x == x ? A(0) : e * (t - x);
    slope = -e;
  }
};
struct Hinge {
  template <class A> static DEVICE void at(A x, A t, A c, bool, A& loss, A& slope) {
    const A gap = c - t * x;
    loss = gap <= A(0) ? A(0) : gap;
    slope = gap <= A(0) ? A(0) : gap == gap ? -t : gap;
  }
};

// Elements [W i, W i + W).
template <int W, class KIND, class T>
DEVICE void loss_of_pack(const ElementwiseLossParams<T>& p, i64 i, acc_t<T> factor, acc_t<T>& total) {
  typedef acc_t<T> A;
  constexpr int LANES = W * sizeof(A) > 16 ? 16 / sizeof(A) : W;
  const bool wanted = p.losses || p.partials;
  const pack<T, W> x = load<W>(p.x, i), t = load<W>(p.target, i);
  pack<T, W> w = x, dx;
  if (p.weight) w = load<W>(p.weight, i);
  A losses[W];
#pragma unroll
  for (int l = 0; l < W; ++l) {
    A slope;
    KIND::at(to_acc(x.lane[l]), to_acc(t.lane[l]), p.parameter, wanted, losses[l], slope);
    if (p.weight) losses[l] *= to_acc(w.lane[l]), slope *= to_acc(w.lane[l]);
    total += losses[l];
    if (!p.dx) continue;
    if (p.dloss_stride) factor = p.alpha * p.dloss[i * W + l];
    dx.lane[l] = blend(factor, slope, p.beta, p.dx + i * W + l);
  }
  if (p.dx) store<W>(p.dx, i, dx);
  if (!p.losses) return;
#pragma unroll
  for (int q = 0; q < W / LANES; ++q) {
    pack<A, LANES> v;
#pragma unroll
    for (int l = 0; l < LANES; ++l) v.lane[l] = losses[q * LANES + l];
    store<LANES>(p.losses, i * (W / LANES) + q, v);
  }
}

template <class T, int VEC, class KIND>
__global__ void __launch_bounds__(256, 4) elementwise_loss(const ElementwiseLossParams<T> p) {
  typedef acc_t<T> A;
  const i64 packs = p.size / VEC, stride = (i64)gridDim.x * 256;
  A total = 0, factor = p.dx && !p.dloss_stride ? gradient_factor(p.alpha, p.dloss, 0, p.divisor) : A(0);
#pragma unroll 1
  for (i64 i = global_thread(); i < packs; i += stride) loss_of_pack<VEC, KIND>(p, i, factor, total);
  for (i64 i = packs * VEC + global_thread(); i < p.size; i += stride) loss_of_pack<1, KIND>(p, i, factor, total);
  if (!p.partials) return;
  total = block_reduce<256>(total, Sum(), A(0));
  // A single block leaves nothing to fold.
  if (threadIdx.x == 0) p.partials[blockIdx.x] = gridDim.x == 1 ? total / p.divisor : total;
}

template <class T> struct CosineParams {
  acc_t<T>* losses;  // one per row; null when not wanted
  T* dx;             // null when not wanted
  const T* x;
  const T* target;
  const acc_t<T>* dloss;
  acc_t<T> alpha, beta, divisor;
  i64 rows, length, dloss_stride;
};

// Power of two that brings a row whose largest magnitude is `top` to where squares neither overflow nor vanish.
DEVICE float safe_scale(float top) { return top > 0x1p40f ? 0x1p-90f : top < 0x1p-40f ? 0x1p90f : 1.0f; }
DEVICE double safe_scale(double top) { return top > 0x1p350 ? 0x1p-700 : top < 0x1p-350 ? 0x1p700 : 1.0; }

template <class T, int LANES>
__global__ void __launch_bounds__(entropy_block<LANES>) cosine_rows(const CosineParams<T> p) {
  typedef acc_t<T> A;
  const i64 row = (i64)blockIdx.x * (entropy_block<LANES> / LANES) + threadIdx.x / LANES;
  const int lane = threadIdx.x % LANES;
  const bool here = row < p.rows;
  const i64 length = here ? p.length : 0, start = row * p.length;
  const T *x = p.x + start, *target = p.target + start;
  A top[2] = {A(0), A(0)};
  for (i64 k = lane; k < length; k += LANES)
    top[0] = Larger()(top[0], A(fabs(to_acc(x[k])))), top[1] = Larger()(top[1], A(fabs(to_acc(target[k]))));
  group_reduce<LANES>(top, Larger(), A(0));
  const A by = safe_scale(top[0]), target_by = safe_scale(top[1]);
  A sums[3] = {A(0), A(0), A(0)};
  for (i64 k = lane; k < length; k += LANES) {
    const A u = by * to_acc(x[k]), v = target_by * to_acc(target[k]);
    sums[0] += u * v, sums[1] += u * u, sums[2] += v * v;
  }
  group_reduce<LANES>(sums, Sum(), A(0));
  if (!here) return;
  const bool zero = sums[1] == A(0) || sums[2] == A(0);
  const A norm = sqrt(sums[1]), target_norm = sqrt(sums[2]);
  const A cosine = zero ? A(0) : sums[0] / norm / target_norm;
  if (p.losses && lane == 0) p.losses[row] = A(1) - cosine;
  if (!p.dx) return;
  const A factor = gradient_factor(p.alpha, p.dloss, row * p.dloss_stride, p.divisor);
  for (i64 k = lane; k < length; k += LANES) {
    const A u = by * to_acc(x[k]) / norm, v = target_by * to_acc(target[k]) / target_norm;
    p.dx[start + k] = blend(factor, zero ? A(0) : (cosine * u - v) / norm * by, p.beta, p.dx + start + k);
  }
}
