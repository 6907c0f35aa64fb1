// Softmax cross-entropy against labels for the common layout: rows of whole packs, one after the other, each pack on 16
// bytes. No element is compared with the ends of its row then, and the label concerns one. The rest is told at the head
// of loss.cu.
//
// Plan:
//   cross_entropy_aligned       a row in the registers of 8, 16 or 32 threads or of a block; a grid that stays resident
//                               and asks for the next row before it works on one. The logarithms of the losses of as many
//                               rows as threads share one are taken together. One read, one write.
//   cross_entropy_aligned_long  a block a row, which shared memory keeps between its uses: maximum, sum, gradient.
// Cost: 16-bit types about 15 instructions an element and 150 a thread and row, where an H200 has time for 31 an element.
// Measured on an NVIDIA H200, 2026-11-28, tools/bench.py --shapes key loss: mean over the labels that count, share of a
//   copy (4.29 TB/s), float32 / float16 / bfloat16:
//     rows x classes     loss                  gradient              both in one pass
//     262,144 x 128      0.63 / 0.43 / 0.44    0.83 / 0.67 / 0.67    0.81 / 0.65 / 0.65
//     65,536 x 1024      0.80 / 0.65 / 0.64    0.90 / 0.85 / 0.85    0.89 / 0.82 / 0.82
//     32,768 x 4096      0.84 / 0.70 / 0.69    0.88 / 0.90 / 0.90    0.88 / 0.89 / 0.89
//     8,192 x 32,768     0.58 / 0.75 / 0.70    0.80 / 0.92 / 0.91    0.79 / 0.92 / 0.91
//     4,096 x 50,304     0.69 / 0.70 / 0.64    0.85 / 0.91 / 0.86    0.85 / 0.89 / 0.84
//   The kernels of general rows had 0.28 / 0.09 / 0.09 in one pass over 128 classes and 0.19 / 0.48 / 0.55 over 4,096.
//   Where the rest goes, both in one pass by ncu on an NVIDIA H200, 2026-11-28: microseconds of this kernel, its share of a
//   copy, instructions an element, issue slots used, warps of those that fit, peak of the memory.
//     262,144 x 128    bfloat16 42, 0.75, 26, 71 %, 44 %, 57 %     float32 72, 0.86, 38, 58 %, 36 %, 71 %
//     65,536 x 1024    bfloat16 71, 0.88, 19, 60 %, 30 %, 72 %     float32 135, 0.93, 31, 51 %, 24 %, 79 %
//     32,768 x 4096    bfloat16 136, 0.92, 19, 59 %, 30 %, 79 %    float32 281, 0.89, 31, 49 %, 25 %, 78 %
//     8,192 x 32,768   bfloat16 271, 0.92, 25, 77 %, 36 %, 80 %    float32 630, 0.79, 44, 58 %, 47 %, 70 %
//   The sum of the losses is a launch of one block, 3.6 us. Of 128 classes a thread has 16: some 230 instructions of its 400
//   are the row's. There a load is waited for 3.7 cycles an instruction while 1.9 warps more are ready than can issue: the
//   slots are short, not the loads. Of 32,768 float32 classes one row fits a multiprocessor, which loads nothing while it
//   writes.
#pragma once
#include "cross_entropy.cuh"

// The sums of a row below `top`: powers of what is less, in units of Power<T>, and how many are the maximum itself, each
// of which would add 1.
template <class T> struct Below {
  typedef acc_t<T> A;
  A top = -limits<A>::infinity(), sum = A(0), peaks = A(0);
  // Turns v into its powers.
  template <int VEC> DEVICE void add(A (&v)[VEC], A shift) {
    A more = A(0);
#pragma unroll
    for (int l = 0; l < VEC; ++l) {
      const A d = v[l] - shift;
      v[l] = Power<T>::of(d);
      if (d == A(0)) peaks += A(1);
      else more += v[l];
    }
    sum += more;
  }
  DEVICE void raise(A to) {
    sum = (sum + peaks * Power<T>::unit) * (Power<T>::of(top - to) * Power<T>::inverse_unit);
    peaks = A(0);
    top = to;
  }
  // Sum of exp(x - top) over the row, less 1.
  template <int LANES> DEVICE A rest() const {
    A sums[2] = {sum, peaks};
    group_reduce<LANES>(sums, Sum(), A(0));
    return fma_(sums[0], Power<T>::inverse_unit, sums[1] - A(1));
  }
};

template <class T, int VEC, class A> DEVICE void powers(A (&v)[VEC], A top) {
#pragma unroll
  for (int l = 0; l < VEC; ++l) v[l] = Power<T>::of(v[l] - top);
}

// What the gradient at an element other than the label is, over its power; 0 throughout a row that does not count.
template <class T, class A> DEVICE A slope_of_power(bool counted, A factor, A rest) {
  return counted ? factor * reciprocal(A(1) + rest) * Power<T>::inverse_unit : A(0);
}
// The class that a label names: which, its logit and weight. Of a row without one, class 0.
template <class T> struct HotClass {
  typedef acc_t<T> A;
  bool counted, bad;
  i64 at;
  A x, weight;
  DEVICE HotClass(const CrossEntropyParams<T>& p, i64 row, Label label)
      : counted(label.counted), bad(label.bad), at(counted ? label.index : 0), x(0), weight(1) {
    if (counted) x = to_acc(p.x[row * p.classes + at]);
    if (counted && p.weight) weight = to_acc(p.weight[at]);
  }
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

// The losses of up to one row a thread, that wait for one logarithm for all of them.
template <class T> struct WaitingLoss {
  typedef acc_t<T> A;
  A rest = A(0), d = A(0), weight = A(0), total = A(0);
  i64 row = -1;
  DEVICE void take(i64 number, const HotClass<T>& hot, A below_top, A row_rest) {
    rest = hot.counted ? row_rest : hot.bad ? limits<A>::nan() : A(0);
    d = hot.counted ? below_top : A(0);
    weight = hot.weight;
    row = number;
  }
  DEVICE void settle(A* losses) {
    const A log_sum = math<T>::log1p(rest);
    // A weight of 0 takes no part, even against a log-probability of -inf.
    const A loss = weight == A(0) && log_sum == log_sum ? A(0) : weight * (log_sum - d);
    if (losses && row >= 0) losses[row] = loss;
    if (row >= 0) total += loss;
    row = -1;
  }
};

template <class T> DEVICE Label label_of(const CrossEntropyParams<T>& p, i64 row) {
  if (row >= p.rows) return Label{0, false, false};
  return read_label(p.target, row, p.label_bytes, p.classes, p.ignore_index);
}

// The gradient of a row, whose powers are in v.
template <int LANES, class T, int VEC, int PACKS, class A>
DEVICE void put_row(T* dx, int lane, int packs, A (&v)[PACKS][VEC], bool counted, A slope, A beta) {
  if (!counted) {
#pragma unroll
    for (int q = 0; q < PACKS; ++q)
#pragma unroll
      for (int l = 0; l < VEC; ++l) v[q][l] = A(0);
  }
#pragma unroll
  for (int q = 0; q < PACKS; ++q)
    if (q * LANES < packs - lane) store_blended<VEC>(dx + lane * VEC, q * LANES, v[q], slope, beta);
}

// A row in the registers of LANES threads: a part of a warp, or a block. RESIDENT blocks share a multiprocessor, and the
// grid has no more than that: each group takes one row after the other, and asks for the next before it works on one.
template <class T, int VEC, int PACKS, int LANES, int RESIDENT>
__global__ void __launch_bounds__(entropy_block<LANES>, RESIDENT)
    cross_entropy_aligned(const CrossEntropyParams<T> p) {
  typedef acc_t<T> A;
  constexpr int BLOCK = entropy_block<LANES>, GROUPS = BLOCK / LANES;
  const int lane = threadIdx.x % LANES, packs = (int)(p.classes / VEC);
  const i64 stride = (i64)gridDim.x * GROUPS;
  i64 row = (i64)blockIdx.x * GROUPS + threadIdx.x / LANES;
  pack<T, VEC> in[PACKS];
  load_packs<LANES>(in, p.x + row * p.classes, lane, row < p.rows ? packs : 0);
  Label label = label_of(p, row);
  const A divisor = divisor_of(p);
  A factor = p.dx ? gradient_factor(p.alpha, p.dloss, 0, divisor) : A(0);
  WaitingLoss<T> waiting;
  int turn = 0;
  for (i64 base = (i64)blockIdx.x * GROUPS; base < p.rows; base += stride, row += stride) {
    const bool here = row < p.rows;
    const HotClass<T> hot(p, row, label);
    A v[PACKS][VEC];
    const A mine = unpack_packs(v, in);
    load_packs<LANES>(in, p.x + (row + stride) * p.classes, lane, row + stride < p.rows ? packs : 0);
    label = label_of(p, row + stride);
    Below<T> below;
    below.top = group_reduce<LANES>(mine, Larger(), -limits<A>::infinity());
#pragma unroll
    for (int q = 0; q < PACKS; ++q) below.add(v[q], below.top);
    const A rest = below.template rest<LANES>(), d = hot.x - below.top;
    if (lane == turn && here) {
      waiting.take(row, hot, d, rest);
      if (hot.bad) *p.flag = BAD_LABEL;
    }
    if (++turn == LANES) waiting.settle(p.losses), turn = 0;
    if (!p.dx) continue;
    if (p.dloss_stride && here) factor = gradient_factor(p.alpha, p.dloss, row * p.dloss_stride, divisor);
    const A slope = slope_of_power<T>(hot.counted, factor * hot.weight, rest);
    T* dx = p.dx + row * p.classes;
    // Shuffles do not order memory, as barriers do: dx may be x, of which the label's logit has been read.
    if constexpr (LANES <= 32) __syncwarp();
    const bool owner = hot.counted && (int)hot.at / VEC % LANES == lane;
    const LabelGradient<T> at_label(owner ? dx + hot.at : nullptr, p.beta);
    put_row<LANES>(dx, lane, here ? packs : 0, v, hot.counted, slope, p.beta);
    at_label.write(slope, d, rest);
  }
  waiting.settle(p.losses);
  if (!p.partials) return;
  const A total = group_reduce<BLOCK>(waiting.total, Sum(), A(0));
  if (threadIdx.x == 0) p.partials[blockIdx.x] = total;
}

// The loss of the block's row.
template <class T, class A> DEVICE void keep_loss(const EntropyRow<T>& r, A below_top, A rest) {
  if (threadIdx.x != 0) return;
  const A loss = r.template loss<false>(below_top, rest, nullptr);
  if (r.p.losses) r.p.losses[r.row] = loss;
  if (r.p.partials) r.p.partials[r.row] = loss;
  if (r.label.bad) *r.p.flag = BAD_LABEL;
}
// Maximum and sums over the packs that shared memory keeps, of which the powers stay where they have the room, and over
// those it does not.
template <int VEC, int BLOCK, class T>
DEVICE void sums_of_long_row(Below<T>& below, T* room, const T* x, int kept, i64 packs) {
  typedef acc_t<T> A;
  A v[VEC];
  use_parts<BLOCK>(kept, [&](int k) {
    unpack(v, load<VEC>(room, k));
    below.top = Larger()(below.top, largest(v));
  });
#pragma unroll 4
  for (i64 k = kept + threadIdx.x; k < packs; k += BLOCK) {
    unpack(v, load_again<VEC>(x, k));
    const A next = largest(v);
    if (next > below.top) below.raise(next);
    below.add(v, base_of(below.top));
  }
  const A top = group_reduce<BLOCK>(below.top, Larger(), -limits<A>::infinity());
  if (below.top != top) below.raise(top);
#pragma unroll 4
  for (int k = threadIdx.x; k < kept; k += BLOCK) {
    unpack(v, load<VEC>(room, k));
    below.add(v, top);
    if constexpr (sizeof(T) == sizeof(A)) store<VEC>(room, k, rounded<T>(v));
  }
}

// A block a row, of which shared memory keeps the first p.kept packs until the gradient is formed.
template <class T, int BLOCK> constexpr int entropy_rows_at_once = sizeof(T) > 4 || BLOCK > 512 ? 1 : 1024 / BLOCK;
template <class T, int VEC, int BLOCK>
__global__ void __launch_bounds__(BLOCK, entropy_rows_at_once<T, BLOCK>)
    cross_entropy_aligned_long(const CrossEntropyParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(T, room);
  const i64 packs = p.classes / VEC;
  const T* x = p.x + (i64)blockIdx.x * p.classes;
  fetch_parts<BLOCK>(p.kept, [&](int k) { fetch<VEC>(room, x, k); });
  const EntropyRow<T> r(p, blockIdx.x, divisor_of(p));
  const bool counted = r.label.counted;
  // Read before anything is written: dx may be x itself.
  const A hot = counted ? to_acc(x[r.label.index]) : A(0);
  Below<T> below;
  sums_of_long_row<VEC, BLOCK>(below, room, x, p.kept, packs);
  A rest = below.template rest<BLOCK>(), v[VEC];
  if (below.top == -limits<A>::infinity()) rest = limits<A>::nan();
  keep_loss(r, hot - below.top, rest);
  if (!p.dx) return;
  T* dx = p.dx + r.start;
  const i64 pack = r.label.index / VEC, owner = (pack < p.kept ? pack : pack - p.kept) % BLOCK;
  const LabelGradient<T> at_label(counted && threadIdx.x == owner ? dx + r.label.index : nullptr, p.beta);
  const A slope = slope_of_power<T>(counted, r.factor * r.hot, rest), top = below.top;
  const auto put = [&](i64 k) {
    if (!counted) {
#pragma unroll
      for (int l = 0; l < VEC; ++l) v[l] = A(0);
    }
    store_blended<VEC>(dx, k, v, slope, p.beta);
  };
  // First what the caches saw last.
#pragma unroll 4
  for (i64 k = p.kept + threadIdx.x; k < packs; k += BLOCK) {
    unpack(v, load_last<VEC>(x, k));
    powers<T>(v, top);
    put(k);
  }
#pragma unroll 4
  for (int k = threadIdx.x; k < p.kept; k += BLOCK) {
    unpack(v, load<VEC>(room, k));
    if constexpr (sizeof(T) != sizeof(A)) powers<T>(v, top);
    put(k);
  }
  at_label.write(slope, hot - top, rest);
}
