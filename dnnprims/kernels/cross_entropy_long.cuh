// Softmax cross-entropy of rows of whole packs that are longer than registers hold: a block a row. The rest is told in
// cross_entropy_rows.cuh.
#pragma once
#include "cross_entropy_rows.cuh"
#include "held.cuh"

// A row of a block between its uses: shared memory keeps its first packs, the threads' registers HELD packs of each that
// follow, and the others are read again. What has the room for them is kept as powers.
template <class T, int VEC, int BLOCK, int HELD> struct LongRow {
  typedef acc_t<T> A;
  static constexpr bool KEEPS_POWERS = sizeof(T) == sizeof(A);
  T* room;
  int kept, holds;
  i64 packs;
  const T* x;
  Held<T, VEC, HELD> held;
  A top;

  DEVICE LongRow(const T* x, T* room, int kept, i64 packs)
      : room(room), kept(kept), holds(held_of<BLOCK, HELD>(packs - kept)), packs(packs), x(x) {
    fetch_parts<BLOCK>(kept, [&](int k) { fetch<VEC>(room, x, k); });
    each_held<BLOCK, HELD>(holds, [&](int j, int k) { held.packs[j] = load<VEC>(x + (i64)kept * VEC, k); });
  }
  DEVICE i64 first_beyond() const { return kept + HELD * BLOCK + (int)threadIdx.x; }
  // The sum of this thread's powers that are kept nowhere, with the maximum found.
  DEVICE A find_top() {
    Running<T> mine;
    pack<T, VEC> peak = lowest_pack<T, VEC>();
    A v[VEC];
    use_parts<BLOCK>(kept, [&](int k) { raise(peak, load<VEC>(room, k)); });
    each_held<BLOCK, HELD>(holds, [&](int j, int) { raise(peak, held.packs[j]); });
    mine.top = largest(peak);
#pragma unroll 4
    for (i64 k = first_beyond(); k < packs; k += BLOCK) {
      unpack(v, load_again<VEC>(x, k));
      mine.add(v);
    }
    top = group_reduce<BLOCK>(mine.top, Larger(), -limits<A>::infinity());
    return mine.below(top);
  }
  // That of the others.
  DEVICE A sum_kept() {
    A sum = A(0), v[VEC];
#pragma unroll 4
    for (int k = threadIdx.x; k < kept; k += BLOCK) {
      unpack(v, load<VEC>(room, k));
      powers<T>(v, top);
      sum += sum_of(v);
      if constexpr (KEEPS_POWERS) store<VEC>(room, k, rounded<T>(v));
    }
    each_held<BLOCK, HELD>(holds, [&](int j, int) {
      unpack(v, held.packs[j]);
      powers<T>(v, top);
      sum += sum_of(v);
      if constexpr (KEEPS_POWERS) held.packs[j] = rounded<T, VEC>(v);
    });
    return sum;
  }
  // f(k, powers of pack k) for the packs of this thread; first what the caches saw last.
  template <class F> DEVICE void each(F f) const {
    A v[VEC];
#pragma unroll 4
    for (i64 k = first_beyond(); k < packs; k += BLOCK) {
      unpack(v, load_last<VEC>(x, k));
      powers<T>(v, top);
      f(k, v);
    }
#pragma unroll 4
    for (int k = threadIdx.x; k < kept; k += BLOCK) {
      unpack(v, load<VEC>(room, k));
      if constexpr (!KEEPS_POWERS) powers<T>(v, top);
      f((i64)k, v);
    }
    each_held<BLOCK, HELD>(holds, [&](int j, int k) {
      unpack(v, held.packs[j]);
      if constexpr (!KEEPS_POWERS) powers<T>(v, top);
      f((i64)(kept + k), v);
    });
  }
  template <class F> DEVICE void operator()(F f) const {
    each([&](i64, const A(&v)[VEC]) { f(v); });
  }
  // The thread that puts a pack.
  DEVICE int owner(i64 pack) const { return (int)((pack < kept ? pack : pack - kept) % BLOCK); }
};

template <class T, int BLOCK> constexpr int entropy_rows_at_once = sizeof(T) > 4 || BLOCK > 512 ? 1 : 1024 / BLOCK;
template <class T, int VEC, int BLOCK, int HELD>
__global__ void __launch_bounds__(BLOCK, entropy_rows_at_once<T, BLOCK>)
    cross_entropy_aligned_long(const CrossEntropyParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(T, room);
  const i64 row = blockIdx.x;
  const T* x = p.x + row * p.classes;
  LongRow<T, VEC, BLOCK, HELD> elements(x, room, p.kept, p.classes / VEC);
  RawLabel<T> label;
  label.ask(p, row);
  const A divisor = divisor_of(p);
  A sum = elements.find_top();
  // Read before anything is written: dx may be x itself.
  const HotClass<T> hot(p, x, true, label.value(p));
  sum += elements.sum_kept();
  A rest = rest_of_row<BLOCK, T, VEC>(sum, elements);
  if (elements.top == -limits<A>::infinity()) rest = limits<A>::nan();
  const A d = hot.x() - elements.top, weight = hot.weight(p);
  T* dx = p.dx + row * p.classes;
  if (p.dx && !hot.counted) {
    const A nothing[VEC] = {};
    for (i64 k = threadIdx.x; k < elements.packs; k += BLOCK) store_blended<VEC>(dx, k, nothing, A(0), p.beta);
  } else if (p.dx) {
    const bool owner = (int)threadIdx.x == elements.owner(hot.at / VEC);
    const LabelGradient<T> at_label(owner ? dx + hot.at : nullptr, p.beta);
    const A factor = gradient_factor(p.alpha, p.dloss, row * p.dloss_stride, divisor);
    const A slope = slope_of_power<T>(true, factor * weight, rest);
    elements.each([&](i64 k, const A(&v)[VEC]) { store_blended<VEC>(dx, k, v, slope, p.beta); });
    at_label.write(slope, d, rest);
  }
  if (threadIdx.x != 0) return;
  const A loss = loss_of_row(hot, weight, d, rest);
  if (p.losses) p.losses[row] = loss;
  if (p.partials) p.partials[row] = loss;
  if (hot.bad) *p.flag = BAD_LABEL;
}
