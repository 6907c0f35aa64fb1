// Softmax cross-entropy. The maths, plan and numerics are told at the head of loss.cu.
#pragma once
#include "loss.cuh"
#include "math.cuh"
#include "parts.cuh"

template <class T> struct CrossEntropyParams {
  acc_t<T>* losses;    // one per row; null when not wanted
  acc_t<T>* partials;  // sums of the losses of blocks, instead; cross_entropy_aligned* alone
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
  int kept;         // packs of a row that a block keeps in shared memory
  int divisor_parts;
};
template <class T> DEVICE acc_t<T> divisor_of(const CrossEntropyParams<T>& p) {
  return p.dx ? divisor_of(p.divisor_at, p.divisor_parts, p.divisor) : acc_t<T>(1);
}

// One row as its threads see it: where it lies, what it is compared with, what its gradient is multiplied by.
template <class T> struct EntropyRow {
  typedef acc_t<T> A;
  const CrossEntropyParams<T>& p;
  i64 row, start;
  Label label;
  A hot, factor;

  DEVICE EntropyRow(const CrossEntropyParams<T>& p, i64 row, A divisor)
      : p(p), row(row), start(0), label{-1, row < p.rows, false}, hot(1), factor(0) {
    if (row >= p.rows) return;
    start = p.inner == 1 ? row * p.classes : row / p.inner * p.classes * p.inner + row % p.inner;
    if (p.label_bytes) label = read_label(p.target, row, p.label_bytes, p.classes, p.ignore_index);
    if (label.counted && p.label_bytes && p.weight) hot = to_acc(p.weight[label.index]);
    if (p.dx && label.counted) factor = gradient_factor(p.alpha, p.dloss, row * p.dloss_stride, divisor);
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

// Whether the elements [first, first + VEC) all belong to a row of `count`, so that one access may take them.
template <int VEC, class I> DEVICE bool whole(I first, i64 count) {
  return VEC > 1 && first >= 0 && first + VEC <= count;
}
// Elements [first, first + VEC) of a row of `count`; those outside are -inf. `start + first` is a multiple of VEC.
template <int VEC, class T, class I> DEVICE pack<T, VEC> load_row(const T* row, I first, i64 count, i64 step) {
  pack<T, VEC> v;
  if (whole<VEC>(first, count)) return load<VEC>(row + first, 0);
#pragma unroll
  for (int l = 0; l < VEC; ++l) {
    const bool inside = first + l >= 0 && first + l < count;
    v.lane[l] = inside ? row[(first + l) * step] : from_acc<T>(-limits<acc_t<T>>::infinity());
  }
  return v;
}
// Where the elements of a row are between the passes over them. `read(f)` is the first pass, `each(f)` a later one; both
// call f(index of the first, VEC values) for the packs of this lane. In registers the values stay as f leaves them.
template <class T, int VEC, int PACKS, int LANES> struct RegisterRow {
  typedef acc_t<T> A;
  typedef int I;
  static constexpr bool AT_HAND = true;
  A held[PACKS][VEC];
  int origin;
  DEVICE RegisterRow(const EntropyRow<T>& r, int lane) : origin(lane * VEC - (int)(r.start % VEC)) {
    const int count = (int)r.readable();
#pragma unroll
    for (int q = 0; q < PACKS; ++q) {
      const pack<T, VEC> v = load_row<VEC>(r.p.x + r.start, origin + q * LANES * VEC, count, 1);
#pragma unroll
      for (int l = 0; l < VEC; ++l) held[q][l] = to_acc(v.lane[l]);
    }
  }
  template <class F> DEVICE void each(F f) {
#pragma unroll
    for (int q = 0; q < PACKS; ++q) f(origin + q * LANES * VEC, held[q]);
  }
  template <class F> DEVICE void read(F f) { each(f); }
};
// In memory; from the first pass on, the first p.kept packs of a block's row in shared memory.
template <class T, int VEC, int LANES> struct MemoryRow {
  typedef acc_t<T> A;
  typedef i64 I;
  static constexpr bool AT_HAND = false, SHARES = LANES > 32;
  const EntropyRow<T>& r;
  int lane, before, kept;  // before: elements of the first pack that lie before the row
  i64 packs;
  T* room;
  DEVICE MemoryRow(const EntropyRow<T>& r, int lane, T* room) : r(r), lane(lane), room(room) {
    before = (int)(r.start % VEC);
    packs = (r.p.classes + before + VEC - 1) / VEC;
    kept = packs < r.p.kept ? (int)packs : r.p.kept;
  }
  DEVICE pack<T, VEC> from_memory(i64 k) const {
    return load_row<VEC>(r.p.x + r.start, k * VEC - before, r.readable(), r.p.inner);
  }
  template <class F> DEVICE void give(F f, i64 k, const pack<T, VEC>& v) const {
    A values[VEC];
#pragma unroll
    for (int l = 0; l < VEC; ++l) values[l] = to_acc(v.lane[l]);
    f(k * VEC - before, values);
  }
  template <class F> DEVICE void read(F f) const {
    if constexpr (SHARES) {
      fetch_parts<LANES>(kept, [&](int k) {
        if (sizeof(T) * VEC == 16 && whole<VEC>((i64)k * VEC - before, r.readable()))
          copy_async(room + (i64)k * VEC, r.p.x + r.start + ((i64)k * VEC - before));
        else
          store<VEC>(room, k, from_memory(k));
      });
      use_parts<LANES>(kept, [&](int k) { give(f, k, load<VEC>(room, k)); });
    }
    each_beyond(f);
  }
  template <class F> DEVICE void each_beyond(F f) const {
#pragma unroll 1
    for (i64 k = (SHARES ? kept : 0) + lane; k < packs; k += LANES) give(f, k, from_memory(k));
  }
  // First what the caches saw last.
  template <class F> DEVICE void each(F f) const {
    each_beyond(f);
    if constexpr (SHARES) {
#pragma unroll 1
      for (int k = lane; k < kept; k += LANES) give(f, k, load<VEC>(room, k));
    }
  }
};

// sums[0]: exp(x - top) below the maximum; sums[1]: number of maxima, each of which would add exactly 1.
template <class T, class A> DEVICE A add_exponential(A d, A* sums) {
  const A power = math<T>::exp_term(d);
  sums[0] += d == A(0) ? A(0) : power;
  sums[1] += A(d == A(0));
  return power;
}
template <class T, class A> DEVICE void rescale(A* sums, A from, A to) {
  sums[0] = (sums[0] + sums[1]) * math<T>::exp_term(from - to);
  sums[1] = A(0);
}

// Maximum and sums of a row. DENSE: sums[2] is the sum of a (x - top), less its sign; sums[3] that of a.
template <int VEC, int LANES, bool DENSE, class T, class A, class Elements, int N>
DEVICE void entropy_sums(const EntropyRow<T>& r, Elements& elements, A (&top)[1], A (&sums)[N]) {
  typedef typename Elements::I I;
  if constexpr (Elements::AT_HAND || DENSE) {
    elements.read([&](I, const A(&v)[VEC]) { top[0] = Larger()(top[0], largest(v)); });
    group_reduce<LANES>(top, Larger(), -limits<A>::infinity());
    const A shift = base_of(top[0]);
    elements.each([&](I first, A(&v)[VEC]) {
#pragma unroll
      for (int l = 0; l < VEC; ++l) {
        const A d = v[l] - shift;
        v[l] = add_exponential<T>(d, sums);
        if constexpr (DENSE) {
          if (first + l < 0 || first + l >= r.readable()) continue;
          const A a = r.coefficient(first + l);
          sums[2] -= a == A(0) ? A(0) : a * d;
          sums[3] += a;
        }
      }
    });
  } else {
    // One read: the sum so far is scaled down whenever a larger maximum turns up.
    A mine = top[0];
    elements.read([&](I, const A(&v)[VEC]) {
      const A next = largest(v);
      if (next > mine) rescale<T>(sums, mine, next), mine = next;
      const A shift = base_of(mine);
#pragma unroll
      for (int l = 0; l < VEC; ++l) add_exponential<T>(v[l] - shift, sums);
    });
    top[0] = mine;
    group_reduce<LANES>(top, Larger(), -limits<A>::infinity());
    if (mine != top[0]) rescale<T>(sums, mine, top[0]);
  }
  group_reduce<LANES>(sums, Sum(), A(0));
}

// Loss and gradient of one row by LANES threads. DENSE: every class has a coefficient (probabilities, smoothing), else
// the label alone has.
template <int VEC, int LANES, bool DENSE, class T, class Elements>
DEVICE void cross_entropy_row(const EntropyRow<T>& r, int lane, Elements& elements) {
  typedef acc_t<T> A;
  typedef typename Elements::I I;
  const CrossEntropyParams<T>& p = r.p;
  // Read before anything is written: dx may be x itself.
  const A picked = !DENSE && r.label.counted ? to_acc(p.x[r.start + r.label.index * p.inner]) : A(0);
  A top[1] = {-limits<A>::infinity()}, sums[DENSE ? 4 : 2] = {};
  entropy_sums<VEC, LANES, DENSE>(r, elements, top, sums);
  // Shuffles do not order memory: a neighbour must not write dx, which may be x, before `picked` is read. The barriers
  // of whole blocks do.
  if constexpr (LANES > 1 && LANES <= 32) __syncwarp();
  // Sum of exp(x - top), less 1. A row of -inf alone is NaN, whichever way its sum came about.
  const A rest = top[0] == -limits<A>::infinity() ? limits<A>::nan() : sums[0] + (sums[1] - A(1));
  if (lane == 0 && p.losses && r.here()) p.losses[r.row] = r.template loss<DENSE>(picked - top[0], rest, sums);
  if (lane == 0 && r.label.bad) *p.flag = BAD_LABEL;
  if (!p.dx || !r.here()) return;
  const A inverse = A(1) / (A(1) + rest);
  const A scale = !r.label.counted ? A(0) : DENSE ? r.factor : r.factor * r.hot * inverse;
  const A shift = base_of(top[0]);
  elements.each([&](I first, A(&v)[VEC]) {
    if constexpr (!Elements::AT_HAND) {
#pragma unroll
      for (int l = 0; l < VEC; ++l) v[l] = math<T>::exp_term(v[l] - shift);
    }
    if constexpr (DENSE) {
#pragma unroll
      for (int l = 0; l < VEC; ++l) {
        if (!r.label.counted || first + l < 0 || first + l >= p.classes) continue;
        v[l] = sums[3] * inverse * v[l] - r.coefficient(first + l);
      }
    }
    if (first >= p.classes || first + VEC <= 0) return;
    const bool apart = DENSE || (u64)(r.label.index - first) >= (u64)VEC;
    if (apart && whole<VEC>(first, p.classes)) return store_blended<VEC>(p.dx + r.start + first, 0, v, scale, p.beta);
    // The pack of the label and those at the ends of the row, one element after the other.
    for (int l = 0; l < VEC; ++l) {
      const I k = first + l;
      if (k < 0 || k >= p.classes) continue;
      A slope = v[0];
#pragma unroll
      for (int i = 1; i < VEC; ++i) slope = i == l ? v[i] : slope;
      // Exact where the label has nearly all of the probability.
      if (!DENSE && r.label.counted && k == r.label.index) slope = (slope - A(1)) - rest;
      T* at = p.dx + r.start + k * p.inner;
      *at = blend(scale, slope, p.beta, at);
    }
  });
}

// A row in the registers of LANES threads; rows of less than a block share one of 128 threads.
template <int LANES> constexpr int entropy_block = LANES > 128 ? LANES : 128;
template <class T, int VEC, int PACKS, int LANES, bool DENSE>
__global__ void __launch_bounds__(entropy_block<LANES>) cross_entropy_in_registers(const CrossEntropyParams<T> p) {
  const EntropyRow<T> r(p, (i64)blockIdx.x * (entropy_block<LANES> / LANES) + threadIdx.x / LANES, divisor_of(p));
  const int lane = threadIdx.x % LANES;
  RegisterRow<T, VEC, PACKS, LANES> elements(r, lane);
  cross_entropy_row<VEC, LANES, DENSE>(r, lane, elements);
}
// A block a row, as much of it in shared memory as there is room. Two short ones share a multiprocessor, if they have the
// registers for it.
template <class T, int BLOCK, bool DENSE> constexpr int rows_at_once = DENSE || sizeof(T) > 4 ? 1 : 1024 / BLOCK;
template <class T, int VEC, int BLOCK, bool DENSE>
__global__ void __launch_bounds__(BLOCK, rows_at_once<T, BLOCK, DENSE>)
    cross_entropy_by_block(const CrossEntropyParams<T> p) {
  DYNAMIC_SHARED(T, room);
  const EntropyRow<T> r(p, blockIdx.x, divisor_of(p));
  MemoryRow<T, VEC, BLOCK> elements(r, threadIdx.x, room);
  cross_entropy_row<VEC, BLOCK, DENSE>(r, threadIdx.x, elements);
}
// Any layout: a thread a row; neighbouring threads read neighbouring elements where inner is large.
template <class T, bool DENSE>
__global__ void __launch_bounds__(128) cross_entropy_plain(const CrossEntropyParams<T> p) {
  const EntropyRow<T> r(p, global_thread(), divisor_of(p));
  MemoryRow<T, 1, 1> elements(r, 0, nullptr);
  cross_entropy_row<1, 1, DENSE>(r, 0, elements);
}
