// Softmax cross-entropy against labels for the common layout: rows of whole packs, one after the other, each pack on 16
// bytes. No element is compared with the ends of its row then, and the label concerns one. The rest is told at the head
// of loss.cu.
//
// Plan:
//   cross_entropy_aligned       a row in the registers of 4 to 32 threads or of a block. One read, one write.
//   cross_entropy_aligned_long  a block a row, which shared memory, and of some rows of float32 registers, keep between its
//                               uses: maximum, sum, gradient (cross_entropy_long.cuh).
// Cost: 16-bit types 17.5 instructions an element at 128 and 1,024 classes, where an H200 has time for 31.
// Measured on an NVIDIA H200, 2026-11-28, both in one pass over logits of a normal distribution, share of a copy (4.25
//   TB/s), float32 / float16 / bfloat16; in parentheses the kernels before these, in the same run:
//     rows x classes
//     262,144 x 128      0.84 / 0.75 / 0.74  (0.81 / - / 0.66)
//     65,536 x 1024      0.92 / 0.87 / 0.87  (0.89 / - / 0.82)
//     32,768 x 4096      0.94 / 0.91 / 0.91  (0.89 / - / 0.88)
//     8,192 x 32,768     0.96 / 0.93 / 0.93  (0.80 / - / 0.92)
//     4,096 x 50,304     0.91 / 0.93 / 0.93  (0.87 / - / 0.86)
//   Timed by a script on these kernels. tools/bench.py of the same day has 0.83 / 0.72 / 0.72 for the first line, 0.87 for
//   the last in float32, and the rest within 0.015.
//   Before, a resident grid asked for the next row before it worked on one, and counted the maxima of each row apart: 21
//   instructions an element, and loads of labels that were waited for as soon as they were asked for.
//   Where the rest goes, by ncu, bfloat16: 128 classes take this kernel 34.6 us, 0.91 of a copy, 55 % of the issue slots,
//   52 % of the warps (56 fit), DRAM 70 %, L2 88 %; an instruction waits 6.7 cycles for loads, 1.6 at the barrier behind
//   them. 1,024 classes take it 65.9 us, 0.96. The call takes 40.9 and 69.8 us: without the sum of the losses, a second
//   launch, 2.8 and 3.2 less. The rest is what events see of any launch: a copy of as many bytes takes 34.0 and 64.9 us,
//   0.92 and 0.97 of a large one. That is the mean over samples; the mean over labels that count, which tools/bench.py
//   times, takes 43.7 and 72.6: a launch in front counts them (label_weights), and each block adds up what that left before
//   it looks at its row. So 50,304 classes of float32 take 444 us, of samples 425.
//   50,304 classes of float32: one block of 1,024 threads a multiprocessor, 48 % of the warps, 50 % of the issue
//   slots, DRAM 79 %, L2 85 %, 2.2 cycles an instruction in the queue to shared memory and as many for loads; 4,096 rows are
//   31.03 for each multiprocessor, so that 3 % of the time is a last round of four rows.
//   Tried, microseconds at 128 and 1,024 classes of bfloat16, where two launches take 40 and 70:
//   The losses folded in the same launch, by the block that draws the last ticket from an integer counter: 45 and 80, this
//   kernel alone 42.8 by ncu. Before it draws, a block waits until its sum can be seen by all, and then for the ticket: a
//   third of its 4.5 us, while it holds its place. Without the first wait, which would be wrong, 43 and 75. Rows of 32,768
//   297 (268). So also elementwise: 526 (483) for bce_with_logits, as the fold takes registers, and 1 of 54 less for mse of
//   4096 x 4096 alone.
//   Resident blocks that take rows in turn 43 and 74, blocks of two or four turns the same; blocks of 64 or 256 threads
//   40 to 41 and 70; a fold of 256 threads, not 1,024, 40 and 71; the L2 asked for the rows of later blocks 42.5 and 71, of
//   32,768 classes 350 (268), as lines leave it before they are used.
//   The sum of those below the maximum formed again only where the label is that maximum: 40.4 and 69.6, but rows of 32,768
//   270 (268), and spills on sm_75.
//   Tried: grids that stay resident and ask ahead, into registers 0.72 at 128 and 0.84 at 1024 classes, into shared memory
//   0.59 and 0.77; eight threads a row of 128 classes 0.66; nine blocks a multiprocessor 0.74 and 0.75.
#pragma once
#include "cross_entropy.cuh"

template <class T, int VEC, class A> DEVICE void powers(A (&v)[VEC], A top) {
#pragma unroll
  for (int l = 0; l < VEC; ++l) v[l] = Power<T>::of(v[l] - top);
}

// What the gradient at an element other than the label is, over its power; 0 throughout a row that does not count.
template <class T, class A> DEVICE A slope_of_power(bool counted, A factor, A rest) {
  return counted ? factor * reciprocal(A(1) + rest) * Power<T>::inverse_unit : A(0);
}
// A row's label as memory holds it: asked for beside the row, and looked at when that has come.
template <class T> struct RawLabel {
  u32 low = 0, high = 0;
  DEVICE void ask(const CrossEntropyParams<T>& p, i64 row) {
    const u32* words = (const u32*)p.target;
    const bool wide = p.label_bytes == 8;
    low = words[row << wide];
    if (wide) high = words[2 * row + 1];
  }
  DEVICE i64 value(const CrossEntropyParams<T>& p) const {
    return p.label_bytes == 8 ? (i64)((u64)high << 32 | low) : (i64)(int)low;
  }
};
// The class that a label names in the row at `x`: which, its logit and weight. Of a row without one, class 0.
template <class T> struct HotClass {
  typedef acc_t<T> A;
  bool counted, bad;
  i64 at;
  T logit, factor;  // as memory holds them: asked for early, used late
  DEVICE HotClass(const CrossEntropyParams<T>& p, const T* x, bool here, i64 label) {
    const bool inside = (u64)label < (u64)p.classes, ignored = label == p.ignore_index;
    counted = here && inside && !ignored;
    bad = here && !inside && !ignored;
    at = counted ? label : 0;
    logit = x[at];
    if (p.weight) factor = p.weight[at];
  }
  DEVICE A x() const { return to_acc(logit); }
  DEVICE A weight(const CrossEntropyParams<T>& p) const { return p.weight ? to_acc(factor) : A(1); }
};
// The gradient at the label, written over what that of the other elements left there: exact where the label has nearly
// all of the probability. For the thread that writes the label's pack; made before that is written.
template <class T> struct LabelGradient {
  typedef acc_t<T> A;
  T* at;  // null: not this thread
  A old;
  DEVICE LabelGradient(T* at, A beta) : at(at), old(at && beta != A(0) ? beta * to_acc(*at) : A(0)) {}
  DEVICE void write(A slope, A below_top, A rest) const {
    const A unit = Power<T>::unit;
    if (at) *at = from_acc<T>(slope * ((Power<T>::of(below_top) - unit) - rest * unit) + old);
  }
};

// d: x - top at the label.
template <class T, class A> DEVICE A loss_of_row(const HotClass<T>& hot, A weight, A d, A rest) {
  if (!hot.counted) return hot.bad ? limits<A>::nan() : A(0);
  const A log_sum = rest >= A(1) ? math<T>::log_usual(A(1) + rest) : math<T>::log1p(rest);
  // A weight of 0 takes no part, even against a log-probability of -inf.
  return weight == A(0) && log_sum == log_sum ? A(0) : weight * (log_sum - d);
}

// Sum of exp(x - top) over a row, less 1. `sum` is that of this thread's powers, over which `each` runs once more where
// those below the maximum are few, so that their own sum keeps its digits. That depends on the row alone, and all of a
// warp go either way: no row's bits depend on another's.
template <int LANES, class T, int VEC, class A, class Each> DEVICE A rest_of_row(A sum, Each&& each) {
  const A unit = Power<T>::unit;
  sum = group_reduce<LANES>(sum, Sum(), A(0));
  const bool many = sum >= A(2) * unit;
  const A rest = fma_(sum, Power<T>::inverse_unit, A(-1));
  if (!__any_sync(0xffffffffu, !many)) return rest;
  A parts[2] = {};  // the sum of what is less than the maximum; how many are the maximum
  each([&](const A(&v)[VEC]) {
#pragma unroll
    for (int l = 0; l < VEC; ++l) {
      if (v[l] == unit) parts[1] += A(1);
      else parts[0] += v[l];
    }
  });
  group_reduce<LANES>(parts, Sum(), A(0));
  return many ? rest : fma_(parts[0], Power<T>::inverse_unit, parts[1] - A(1));
}
template <int VEC, class A> DEVICE A sum_of(const A (&v)[VEC]) {
  A sum = v[0];
#pragma unroll
  for (int l = 1; l < VEC; ++l) sum += v[l];
  return sum;
}

// f(v[q]) for each pack.
template <int VEC, int PACKS, class A> struct EachPack {
  const A (&v)[PACKS][VEC];
  template <class F> DEVICE void operator()(F f) const {
#pragma unroll
    for (int q = 0; q < PACKS; ++q) f(v[q]);
  }
};
// The gradient of a row, whose powers are in v.
template <int LANES, class T, int VEC, int PACKS, class A>
DEVICE void put_row(T* dx, int lane, int packs, A (&v)[PACKS][VEC], bool counted, A slope, A beta) {
  // Asked of the warp, so that the usual one does not select.
  if (__any_sync(0xffffffffu, !counted)) {
#pragma unroll
    for (int q = 0; q < PACKS; ++q)
#pragma unroll
      for (int l = 0; l < VEC; ++l) v[q][l] = counted ? v[q][l] : A(0);
  }
#pragma unroll
  for (int q = 0; q < PACKS; ++q)
    if (q * LANES < packs - lane) store_blended<VEC>(dx + lane * VEC, q * LANES, v[q], slope, beta);
}

// A row in the registers of LANES threads: a part of a warp, or a block. RESIDENT blocks share a multiprocessor.
template <class T, int VEC, int PACKS, int LANES, int RESIDENT>
__global__ void __launch_bounds__(entropy_block<LANES>, RESIDENT)
    cross_entropy_aligned(const CrossEntropyParams<T> p) {
  typedef acc_t<T> A;
  constexpr int BLOCK = entropy_block<LANES>, GROUPS = BLOCK / LANES;
  const int lane = threadIdx.x % LANES;
  const i64 row = (i64)blockIdx.x * GROUPS + threadIdx.x / LANES;
  const bool here = row < p.rows;
  const i64 at = here ? row * p.classes : 0;
  const int packs = here ? (int)(p.classes / VEC) : 0;
  pack<T, VEC> in[PACKS];
  load_packs<LANES>(in, p.x + at, lane, packs);
  RawLabel<T> label;
  if (here) label.ask(p, row);
  const A divisor = divisor_of(p);
  const HotClass<T> hot(p, p.x + at, here, label.value(p));
  A v[PACKS][VEC], sum = A(0);
  const A top = group_reduce<LANES>(unpack_packs(v, in), Larger(), -limits<A>::infinity());
#pragma unroll
  for (int q = 0; q < PACKS; ++q) powers<T>(v[q], top), sum += sum_of(v[q]);
  const A rest = rest_of_row<LANES, T, VEC>(sum, EachPack<VEC, PACKS, A>{v});
  const A d = hot.x() - top, weight = hot.weight(p);
  if (p.dx) {
    const A factor = here ? gradient_factor(p.alpha, p.dloss, row * p.dloss_stride, divisor) : A(0);
    const A slope = slope_of_power<T>(hot.counted, factor * weight, rest);
    T* dx = p.dx + at;
    // Shuffles do not order memory, as barriers do: dx may be x, of which the label's logit has been read.
    if constexpr (LANES <= 32) __syncwarp();
    const bool owner = hot.counted && (int)hot.at / VEC % LANES == lane;
    const LabelGradient<T> at_label(owner ? dx + hot.at : nullptr, p.beta);
    put_row<LANES>(dx, lane, packs, v, hot.counted || !here, slope, p.beta);
    at_label.write(slope, d, rest);
  }
  A loss = A(0);
  if (lane == 0 && here) {
    loss = loss_of_row(hot, weight, d, rest);
    if (p.losses) p.losses[row] = loss;
    if (hot.bad) *p.flag = BAD_LABEL;
  }
  if (!p.partials) return;
  if constexpr (GROUPS > 1) loss = block_reduce<BLOCK>(loss, Sum(), A(0));
  if (threadIdx.x == 0) p.partials[blockIdx.x] = loss;
}
