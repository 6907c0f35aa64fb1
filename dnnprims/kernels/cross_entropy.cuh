// Softmax cross-entropy and negative log-likelihood. The maths, plan and numerics are told at the head of loss.cu.
#pragma once
#include "loss.cuh"
#include "math.cuh"

template <class T> struct CrossEntropyParams {
  acc_t<T>* losses;  // one per row; null when not wanted
  T* dx;             // null when not wanted
  int* flag;
  const T* x;
  const void* target;  // labels, one per row, or probabilities shaped as x
  const T* weight;     // one per class, or null
  const acc_t<T>* dloss;
  const acc_t<T>* divisor_at;  // null: divisor
  acc_t<T> alpha, beta, divisor;
  acc_t<T> keep, spread;  // label smoothing: share that the target keeps, share that each class gets
  i64 rows, classes, inner, dloss_stride, ignore_index;
  int label_bytes;  // 0: probabilities
};

// One row as its threads see it: where it lies, what it is compared with, what its gradient is multiplied by.
template <class T> struct EntropyRow {
  typedef acc_t<T> A;
  const CrossEntropyParams<T>& p;
  i64 row, start;
  Label label;
  A hot, factor;

  DEVICE EntropyRow(const CrossEntropyParams<T>& p, i64 row)
      : p(p), row(row), start(0), label{-1, row < p.rows, false}, hot(1), factor(0) {
    if (row >= p.rows) return;
    start = p.inner == 1 ? row * p.classes : row / p.inner * p.classes * p.inner + row % p.inner;
    if (p.label_bytes) label = read_label(p.target, row, p.label_bytes, p.classes, p.ignore_index);
    if (label.counted && p.label_bytes && p.weight) hot = to_acc(p.weight[label.index]);
    if (p.dx && label.counted)
      factor = gradient_factor(p.alpha, p.dloss, row * p.dloss_stride, p.divisor_at ? *p.divisor_at : p.divisor);
  }
  DEVICE bool here() const { return row < p.rows; }
  // Classes whose values matter.
  DEVICE i64 readable() const { return label.counted ? p.classes : 0; }
  // What class k's log-probability is multiplied by in the loss.
  DEVICE A coefficient(i64 k) const {
    const A share = p.label_bytes ? A(k == label.index) : to_acc(((const T*)p.target)[start + k * p.inner]);
    const A smooth = p.keep * share + p.spread;
    return p.weight ? to_acc(p.weight[k]) * smooth : smooth;
  }
  // d: x - top at the label; rest: sum of exp(x - top), less 1; sums: those of cross_entropy_row.
  template <bool DENSE> DEVICE A loss(A d, A rest, const A* sums) const {
    if (!label.counted) return label.bad ? limits<A>::nan() : A(0);
    const A log_sum = math<T>::log1p(rest);
    if constexpr (DENSE) return sums[2] + sums[3] * log_sum;
    // A weight of 0 takes no part, even against a log-probability of -inf.
    return hot == A(0) && log_sum == log_sum ? A(0) : hot * (log_sum - d);
  }
};

// Elements [first, first + VEC) of a row of `count`; those outside are -inf. `start + first` is a multiple of VEC.
template <int VEC, class T> DEVICE pack<T, VEC> load_row(const T* row, i64 first, i64 count, i64 step) {
  pack<T, VEC> v;
  if (VEC > 1 && first >= 0 && first + VEC <= count) return load<VEC>(row + first, 0);
#pragma unroll
  for (int l = 0; l < VEC; ++l) {
    const bool inside = first + l >= 0 && first + l < count;
    v.lane[l] = inside ? row[(first + l) * step] : from_acc<T>(-limits<acc_t<T>>::infinity());
  }
  return v;
}
template <int VEC, class T> DEVICE void store_row(T* row, i64 first, i64 count, i64 step, pack<T, VEC> v) {
  if (VEC > 1 && first >= 0 && first + VEC <= count) return store<VEC>(row + first, 0, v);
#pragma unroll
  for (int l = 0; l < VEC; ++l) {
    if (first + l >= 0 && first + l < count) row[(first + l) * step] = v.lane[l];
  }
}

// Where the elements of a row are between the passes over them: in registers, or in memory and its caches.
// `each(f)` calls f(index of the first, pack) for the packs of this lane.
template <class T, int VEC, int PACKS, int LANES> struct RegisterRow {
  static constexpr bool AT_HAND = true;
  pack<T, VEC> held[PACKS];
  int origin;
  DEVICE RegisterRow(const EntropyRow<T>& r, int lane) : origin(lane * VEC - (int)(r.start % VEC)) {
    const int count = (int)r.readable();
#pragma unroll
    for (int q = 0; q < PACKS; ++q)
      held[q] = load_row<VEC>(r.p.x + r.start, origin + q * LANES * VEC, count, 1);
  }
  template <class F> DEVICE void each(F f) const {
#pragma unroll
    for (int q = 0; q < PACKS; ++q) f(origin + q * LANES * VEC, held[q]);
  }
};
template <class T, int VEC, int LANES> struct MemoryRow {
  static constexpr bool AT_HAND = false;
  const EntropyRow<T>& r;
  i64 origin;
  DEVICE MemoryRow(const EntropyRow<T>& r, int lane) : r(r), origin(lane * VEC - r.start % VEC) {}
  template <class F> DEVICE void each(F f) const {
    for (i64 first = origin; first < r.p.classes; first += LANES * VEC)
      f(first, load_row<VEC>(r.p.x + r.start, first, r.readable(), r.p.inner));
  }
};

template <int VEC, class T> DEVICE acc_t<T> largest(const pack<T, VEC>& v) {
  acc_t<T> top = to_acc(v.lane[0]);
#pragma unroll
  for (int l = 1; l < VEC; ++l) top = Larger()(top, to_acc(v.lane[l]));
  return top;
}
// sums[0]: exp(x - top) below the maximum; sums[1]: number of maxima, each of which would add exactly 1.
template <int VEC, class T, class A> DEVICE void add_exponentials(const pack<T, VEC>& v, A top, A* sums) {
#pragma unroll
  for (int l = 0; l < VEC; ++l) {
    const A d = to_acc(v.lane[l]) - top;
    sums[0] += d == A(0) ? A(0) : math<T>::exp(d);
    sums[1] += A(d == A(0));
  }
}
template <class T, class A> DEVICE void rescale(A* sums, A from, A to) {
  sums[0] = (sums[0] + sums[1]) * math<T>::exp(from - to);
  sums[1] = A(0);
}

// Loss and gradient of one row by LANES threads. DENSE: every class has a coefficient (probabilities, smoothing), else
// the label alone has.
template <int VEC, int LANES, bool DENSE, class T, class Elements>
DEVICE void cross_entropy_row(const EntropyRow<T>& r, int lane, const Elements& elements) {
  typedef acc_t<T> A;
  const CrossEntropyParams<T>& p = r.p;
  // Read before anything is written: dx may be x itself.
  const A picked = !DENSE && r.label.counted ? to_acc(p.x[r.start + r.label.index * p.inner]) : A(0);
  A top[1] = {-limits<A>::infinity()};
  // Sum of exp(x - top) below the maximum, number of maxima; DENSE: sum of a (top - x), sum of a.
  A sums[DENSE ? 4 : 2] = {};
  if constexpr (Elements::AT_HAND || DENSE) {
    elements.each([&](i64, const pack<T, VEC>& v) { top[0] = Larger()(top[0], largest(v)); });
    group_reduce<LANES>(top, Larger(), -limits<A>::infinity());
    elements.each([&](i64 first, const pack<T, VEC>& v) {
      add_exponentials(v, top[0], sums);
#pragma unroll
      for (int l = 0; DENSE && l < VEC; ++l) {
        if (first + l < 0 || first + l >= r.readable()) continue;
        const A a = r.coefficient(first + l);
        sums[DENSE ? 2 : 0] -= a == A(0) ? A(0) : a * (to_acc(v.lane[l]) - top[0]);
        sums[DENSE ? 3 : 0] += a;
      }
    });
  } else {
    // One read: the sum so far is scaled down whenever a larger maximum turns up.
    A mine = top[0];
    elements.each([&](i64, const pack<T, VEC>& v) {
      const A next = largest(v);
      if (next > mine) rescale<T>(sums, mine, next), mine = next;
      add_exponentials(v, mine == -limits<A>::infinity() ? A(0) : mine, sums);
    });
    top[0] = mine;
    group_reduce<LANES>(top, Larger(), -limits<A>::infinity());
    if (mine != top[0]) rescale<T>(sums, mine, top[0]);
  }
  group_reduce<LANES>(sums, Sum(), A(0));
  // Shuffles do not order memory: a neighbour must not write dx, which may be x, before `picked` is read. The barriers
  // of whole blocks do.
  if constexpr (LANES > 1 && LANES <= 32) __syncwarp();
  // Sum of exp(x - top), less 1. A row of -inf alone is NaN, whichever way its sum came about.
  const A rest = top[0] == -limits<A>::infinity() ? limits<A>::nan() : sums[0] + (sums[1] - A(1));
  if (lane == 0 && p.losses && r.here()) p.losses[r.row] = r.template loss<DENSE>(picked - top[0], rest, sums);
  if (lane == 0 && r.label.bad) *p.flag = BAD_LABEL;
  if (!p.dx || !r.here()) return;
  const A inverse = A(1) / (A(1) + rest);
  const A scale = DENSE ? r.factor : r.factor * r.hot * inverse;
  elements.each([&](i64 first, const pack<T, VEC>& v) {
    pack<T, VEC> g;
#pragma unroll
    for (int l = 0; l < VEC; ++l) {
      const i64 k = first + l;
      if (k < 0 || k >= p.classes) continue;
      A slope = math<T>::exp(to_acc(v.lane[l]) - top[0]);
      if constexpr (DENSE) {
        if (r.label.counted) slope = sums[3] * inverse * slope - r.coefficient(k);
      } else if (k == r.label.index) {
        slope = (slope - A(1)) - rest;  // exact where the label has nearly all of the probability
      }
      const T* old = p.dx + r.start + k * p.inner;
      g.lane[l] = blend(r.label.counted ? scale : A(0), r.label.counted ? slope : A(0), p.beta, old);
    }
    store_row<VEC>(p.dx + r.start, first, p.classes, p.inner, g);
  });
}

// A row in the registers of LANES threads; rows of less than a block share one of 128 threads.
template <int LANES> constexpr int entropy_block = LANES > 128 ? LANES : 128;
template <class T, int VEC, int PACKS, int LANES, bool DENSE>
__global__ void __launch_bounds__(entropy_block<LANES>) cross_entropy_in_registers(const CrossEntropyParams<T> p) {
  const EntropyRow<T> r(p, (i64)blockIdx.x * (entropy_block<LANES> / LANES) + threadIdx.x / LANES);
  const int lane = threadIdx.x % LANES;
  const RegisterRow<T, VEC, PACKS, LANES> elements(r, lane);
  cross_entropy_row<VEC, LANES, DENSE>(r, lane, elements);
}
// Any length: a block a row, which the second and third pass find in the caches.
template <class T, int VEC, bool DENSE>
__global__ void __launch_bounds__(512) cross_entropy_in_cache(const CrossEntropyParams<T> p) {
  const EntropyRow<T> r(p, blockIdx.x);
  const MemoryRow<T, VEC, 512> elements(r, threadIdx.x);
  cross_entropy_row<VEC, 512, DENSE>(r, threadIdx.x, elements);
}
// Any layout: a thread a row; neighbouring threads read neighbouring elements where inner is large.
template <class T, bool DENSE>
__global__ void __launch_bounds__(128) cross_entropy_plain(const CrossEntropyParams<T> p) {
  const EntropyRow<T> r(p, global_thread());
  const MemoryRow<T, 1, 1> elements(r, 0);
  cross_entropy_row<1, 1, DENSE>(r, 0, elements);
}

// nll: x are log-probabilities. A thread a row.
template <class T> __global__ void __launch_bounds__(128) nll_losses(const CrossEntropyParams<T> p) {
  typedef acc_t<T> A;
  const EntropyRow<T> r(p, global_thread());
  if (!r.here()) return;
  if (r.label.bad) *p.flag = BAD_LABEL;
  A loss = r.label.bad ? limits<A>::nan() : A(0);
  if (r.label.counted) {
    const A x = to_acc(p.x[r.start + r.label.index * p.inner]);
    loss = r.hot == A(0) && x == x ? A(0) : -(r.hot * x);
  }
  p.losses[r.row] = loss;
}
// A thread an element.
template <class T> __global__ void __launch_bounds__(256) nll_gradient(const CrossEntropyParams<T> p) {
  typedef acc_t<T> A;
  const i64 i = global_thread(), size = p.rows * p.classes;
  if (i >= size) return;
  // Divisions of 64 bits cost more than the store; few tensors need them.
  i64 outer, k, s;
  if (size < 0x80000000ll) {
    const u32 above = (u32)i / (u32)p.inner;
    outer = above / (u32)p.classes, k = above % (u32)p.classes, s = (u32)i % (u32)p.inner;
  } else {
    outer = i / p.inner / p.classes, k = i / p.inner % p.classes, s = i % p.inner;
  }
  const EntropyRow<T> r(p, outer * p.inner + s);
  if (r.label.bad && k == 0) *p.flag = BAD_LABEL;
  p.dx[i] = blend(r.factor, r.label.counted && k == r.label.index ? -r.hot : A(0), p.beta, p.dx + i);
}
