// Losses and their gradients: elementwise kinds (loss_kinds.cuh), cosine distance (cosine.cuh), softmax cross-entropy
// (cross_entropy.cuh) and nll (nll.cuh).
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
//   elementwise_loss            packs of 16 bytes, a few a thread, a sum a block; inputs are read and dx is written once.
//                               Compiled for the reduced loss, for the gradient, for both, and once for every option.
//   cross_entropy_aligned*      rows of whole packs against labels: cross_entropy_rows.cuh.
//   cross_entropy_in_registers  any other row in the registers of 8 or 32 threads or of a block: one read, one write. Those that
//                               do not start on 16 bytes are read by whole packs too, but for their first and last one.
//   cross_entropy_by_block      a block a row: maximum and sum in one read (Milakov and Gimelshein, "Online normalizer
//                               calculation for softmax", 2018), which leaves the row in shared memory for the gradient
//                               (parts.cuh). What has no room there is read again, first what the caches saw last.
//   cross_entropy_plain         a thread a row, the same passes: any layout and alignment.
//   cosine_rows                 a warp or a block a row, in registers where it fits: one read; else two to four, the
//                               later ones from the caches. Again with scales where a square overflows or vanishes.
//   nll_losses, nll_gradient    a thread a row; a thread a pack, of which one a row writes the loss, too.
//   sum_losses                  folds the losses of the rows or the sums of the blocks; twice where there are many.
//   label_weights               the divisor of the mean over labels that count, in up to 32 parts: reads the labels alone
//                               and comes first, so that the logits are still read once.
// Numerics: sums in A in a fixed order, no atomics: the same bits each time. lse - x_k is (max - x_k) + log1p(sum of
// the others), so that a loss near 0 keeps its digits, and p - 1 at the label is formed without cancellation. A NaN, a +inf
// or nothing but -inf in a row makes the row NaN. A label out of range is never used as an index: its loss is NaN, its
// gradient 0, and the flag says so.
// Cost, bytes an element: elementwise 2 sizeof(T) forward, 3 with gradient, and 5 to 10 flops (bce, bce_with_logits and
//   kl_div 20 to 30, about 150 in double); cross_entropy sizeof(T) forward, 2 with gradient, 3 where it is read twice, a
//   logarithm a row and one exponential an element in registers, else two; cosine 2 and 3 sizeof(T), 10 flops.
// Limits: in registers up to 8,192 classes of whole packs, and of other rows up to 4,096 (2,048 in double, 8,192 in 16-bit
//   types; 1,024 to 4,096 with dense coefficients), then a row of T wholly in shared memory up to 226 KiB.
// Measured on an NVIDIA H200, 2026-11-28, tools/bench.py --shapes key loss: forward and gradient in one pass, share of a
//   copy (4.295 TB/s), float32 / float16 / bfloat16:
//   cross_entropy at the head of cross_entropy_rows.cuh.
//   The elementwise kinds, 65,536 x 4096 of float32 and 131,072 x 4096, forward, backward and both; in parentheses the
//   least before there was a kernel for each purpose and a short way through exponential and logarithm:
//     mse, l1, huber   1.03 1.01 0.98 / 1.03 1.01 0.98 / 1.03 1.01 0.97  (0.90 0.74 0.73)
//     bce_with_logits  1.03 1.01 0.98 / 0.98 1.02 0.97 / 1.01 1.02 0.98  (0.17 0.48 0.23)
//     bce              1.03 1.01 0.97 / 0.96 1.01 0.97 / 0.95 1.01 0.97
//     kl_div           1.03 1.48 0.97 / 0.93 1.48 0.97 / 0.89 1.48 0.97  (backward reads one tensor of the two counted)
//     cosine           1.03 1.01 1.00 / 0.95 0.95 0.92 / 1.03 1.01 0.98;  both, rows of 64 to 1024 0.98 to 1.01 / - /
//                      0.86 to 0.99, of 16,384, which are read again, 0.71 / - / 0.75
//   Backward of l1, bce_with_logits and, in float32, mse and huber torch.compile takes 0.68 of that time: two thirds of the
//   bytes, that is one tensor read, which its forward pass must have written beside the loss. Both passes in one are 1.6
//   to 2.7 times as fast as its two.
//   Predicted and found: 21 instructions an element of bfloat16 for bce_with_logits forward, where an H200 has time for
//   28, instead of some 150. kl_div has 26 and bce 25, a logarithm of subnormal numbers among them. That both are slower
//   than the gradient alone is due to 16 packs a thread (steps.py) and to the fold.
#include "cosine.cuh"
#include "cross_entropy_long.cuh"
#include "loss_kinds.cuh"
#include "nll.cuh"

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

// What is wanted of a pass. ANYTHING is told at run time: losses unreduced, weights, a factor for each element, beta.
enum Wanted { ANYTHING = 0, LOSS = 1, SLOPE = 2, LOSS_AND_SLOPE = 3 };

// One element after the other, whatever their values.
template <int WANTED, class KIND, class T, class A>
DEVICE void loss_of_elements(const ElementwiseLossParams<T>& p, const KIND& kind, i64 first, int count, A factor,
                             A& total) {
  constexpr bool ANY = WANTED == ANYTHING;
#pragma unroll 1
  for (i64 i = first; i < first + count; ++i) {
    A loss, slope;
    kind.at(to_acc(p.x[i]), to_acc(p.target[i]), ANY ? p.losses || p.partials : WANTED & LOSS, loss, slope);
    if (ANY && p.weight) loss *= to_acc(p.weight[i]), slope *= to_acc(p.weight[i]);
    total += loss;
    if (ANY && p.dloss_stride) factor = p.alpha * p.dloss[i];
    if (ANY ? p.dx != nullptr : WANTED & SLOPE) p.dx[i] = blend(factor, slope, ANY ? p.beta : A(0), p.dx + i);
    if (ANY && p.losses) p.losses[i] = loss;
  }
}

// What ANYTHING may do with the losses and slopes of pack i.
template <int W, class T, class A>
DEVICE void store_pack(const ElementwiseLossParams<T>& p, i64 i, A factor, A (&losses)[W], A (&slopes)[W]) {
  constexpr int LANES = W * sizeof(A) > 16 ? 16 / sizeof(A) : W;
  if (p.dx) {
    if (p.dloss_stride) {
#pragma unroll
      for (int l = 0; l < W; ++l) slopes[l] *= p.alpha * p.dloss[i * W + l];
      factor = A(1);
    }
    store_gradient<W>(p.dx, i, slopes, factor, p.beta);
  }
  if (!p.losses) return;
#pragma unroll
  for (int q = 0; q < W / LANES; ++q) {
    pack<A, LANES> v;
#pragma unroll
    for (int l = 0; l < LANES; ++l) v.lane[l] = losses[q * LANES + l];
    store<LANES>(p.losses, i * (W / LANES) + q, v);
  }
}

// Pack i; false, and nothing is done, where a kind's short way does not hold for all of its numbers.
template <int WANTED, int W, class KIND, class T, class A>
DEVICE bool loss_of_pack(const ElementwiseLossParams<T>& p, const KIND& kind, i64 i, const pack<T, W>& xs,
                         const pack<T, W>& ts, A factor, A& total) {
  constexpr bool ANY = WANTED == ANYTHING;
  A losses[W], slopes[W];
  if constexpr (KIND::SHORT) {
    A most = 0;
#pragma unroll
    for (int l = 0; l < W; ++l) most = Larger()(most, KIND::unusual(to_acc(xs.lane[l]), to_acc(ts.lane[l])));
    if (!(most <= KIND::usual_limit)) return false;
  }
#pragma unroll
  for (int l = 0; l < W; ++l) {
    const A x = to_acc(xs.lane[l]), t = to_acc(ts.lane[l]);
    const bool wanted = ANY ? p.losses || p.partials : WANTED & LOSS;
    if constexpr (KIND::SHORT)
      kind.usual_at(x, t, wanted, losses[l], slopes[l]);
    else
      kind.at(x, t, wanted, losses[l], slopes[l]);
  }
  if (ANY && p.weight) {
    const pack<T, W> w = load<W>(p.weight, i);
#pragma unroll
    for (int l = 0; l < W; ++l) losses[l] *= to_acc(w.lane[l]), slopes[l] *= to_acc(w.lane[l]);
  }
#pragma unroll
  for (int l = 0; l < W; ++l) total += losses[l];
  if constexpr (ANY)
    store_pack(p, i, factor, losses, slopes);
  else if constexpr (WANTED & SLOPE)
    store_gradient<W>(p.dx, i, slopes, factor, A(0));
  return true;
}

// Packs of each array that a thread asks for before it uses the first. Sums take long enough for two to pay; double has
// not the registers.
template <class T, int WANTED> constexpr int AT_ONCE = WANTED & LOSS && sizeof(T) < 8 ? 2 : 1;

template <class T, int VEC, template <class> class KIND, int WANTED>
__global__ void __launch_bounds__(256) elementwise_loss(const ElementwiseLossParams<T> p) {
  typedef acc_t<T> A;
  constexpr bool ANY = WANTED == ANYTHING;
  const KIND<T> kind(p.parameter);
  const bool sloping = ANY ? p.dx && !p.dloss_stride : WANTED & SLOPE;
  A total = 0, factor = sloping ? gradient_factor(p.alpha, p.dloss, 0, p.divisor) : A(0);
  // Packs, then the elements that fill none.
  const i64 packs = p.size / VEC, items = packs + p.size % VEC, stride = (i64)gridDim.x * 256;
#pragma unroll 1
  for (i64 first = global_thread(); first < items; first += AT_ONCE<T, WANTED> * stride) {
    pack<T, VEC> x[AT_ONCE<T, WANTED>], t[AT_ONCE<T, WANTED>];
#pragma unroll
    for (int k = 0; k < AT_ONCE<T, WANTED>; ++k) {
      const i64 i = first + k * stride;
      if (i < packs) x[k] = load<VEC>(p.x, i), t[k] = load<VEC>(p.target, i);
    }
#pragma unroll
    for (int k = 0; k < AT_ONCE<T, WANTED>; ++k) {
      const i64 i = first + k * stride;
      if (i < packs && loss_of_pack<WANTED>(p, kind, i, x[k], t[k], factor, total)) continue;
      if (i >= items) break;
      const bool whole = i < packs;
      loss_of_elements<WANTED>(p, kind, whole ? i * VEC : i + packs * (VEC - 1), whole ? VEC : 1, factor, total);
    }
  }
  if (ANY ? !p.partials : !(WANTED & LOSS)) return;
  total = block_reduce<256>(total, Sum(), A(0));
  // A single block leaves nothing to fold.
  if (threadIdx.x == 0) p.partials[blockIdx.x] = gridDim.x == 1 ? total / p.divisor : total;
}
