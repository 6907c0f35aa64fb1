// Cosine distance of rows. The maths is told at the head of loss.cu.
#pragma once
#include "cross_entropy.cuh"

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
// Whether a sum of squares shows that none overflowed, and that those that vanished do not matter.
DEVICE bool is_safe(float sum) { return sum > 0x1p-80f && sum < 0x1p120f; }
DEVICE bool is_safe(double sum) { return sum > 0x1p-700 && sum < 0x1p1000; }

// What a thread has of a row and of its target: PACKS packs in registers, or with 0 any number, read at each pass.
template <class T, int VEC, int PACKS, int LANES> struct CosinePacks {
  static constexpr int HELD = PACKS > 0 ? PACKS : 1;
  pack<T, VEC> x[HELD], t[HELD];
  const T *from, *target;
  i64 packs;
  int lane;
  DEVICE CosinePacks(const CosineParams<T>& p, i64 row, int lane) : lane(lane) {
    from = p.x + row * p.length, target = p.target + row * p.length;
    packs = row < p.rows ? p.length / VEC : 0;
    if constexpr (PACKS > 0) {
#pragma unroll
      for (int q = 0; q < PACKS; ++q)
        if (k_of(q) < packs) x[q] = load<VEC>(from, k_of(q)), t[q] = load<VEC>(target, k_of(q));
    }
  }
  DEVICE int k_of(int q) const { return lane + q * LANES; }
  template <class F> DEVICE void each(F f) const {
    if constexpr (PACKS > 0) {
#pragma unroll
      for (int q = 0; q < PACKS; ++q)
        if (k_of(q) < packs) f(k_of(q), x[q], t[q]);
    } else {
#pragma unroll 2
      for (i64 k = lane; k < packs; k += LANES) f(k, load<VEC>(from, k), load<VEC>(target, k));
    }
  }
};

// x.t, x.x and t.t, x times `by` and t times `target_by`.
template <int VEC, int LANES, class T, class A, class Row>
DEVICE void cosine_sums(const Row& row, A by, A target_by, A (&sums)[3]) {
  sums[0] = sums[1] = sums[2] = A(0);
  row.each([&](i64, const pack<T, VEC>& x, const pack<T, VEC>& t) {
#pragma unroll
    for (int l = 0; l < VEC; ++l) {
      const A u = by * to_acc(x.lane[l]), v = target_by * to_acc(t.lane[l]);
      sums[0] = fma_(u, v, sums[0]), sums[1] = fma_(u, u, sums[1]), sums[2] = fma_(v, v, sums[2]);
    }
  });
  group_reduce<LANES>(sums, Sum(), A(0));
}

// The largest magnitudes of both.
template <int VEC, int LANES, class T, class A, class Row> DEVICE void cosine_tops(const Row& row, A (&top)[2]) {
  top[0] = top[1] = A(0);
  row.each([&](i64, const pack<T, VEC>& x, const pack<T, VEC>& t) {
#pragma unroll
    for (int l = 0; l < VEC; ++l) {
      top[0] = Larger()(top[0], A(fabs(to_acc(x.lane[l]))));
      top[1] = Larger()(top[1], A(fabs(to_acc(t.lane[l]))));
    }
  });
  group_reduce<LANES>(top, Larger(), A(0));
}

template <class T, int VEC, int PACKS, int LANES>
__global__ void __launch_bounds__(entropy_block<LANES>) cosine_rows(const CosineParams<T> p) {
  typedef acc_t<T> A;
  const i64 row = (i64)blockIdx.x * (entropy_block<LANES> / LANES) + threadIdx.x / LANES;
  const int lane = threadIdx.x % LANES;
  const CosinePacks<T, VEC, PACKS, LANES> packs(p, row, lane);
  A by = A(1), target_by = A(1), sums[3];
  // Once, or seldom again with scales, for whoever shares the shuffles and the barriers. The barrier within the maximum
  // lies between the two uses of the room for the sums.
#pragma unroll 1
  for (bool again = false;; again = true) {
    cosine_sums<VEC, LANES, T>(packs, by, target_by, sums);
    const bool unsafe = !is_safe(sums[1]) || !is_safe(sums[2]);
    if (again || !(LANES < 32 ? __any_sync(0xffffffffu, unsafe) : unsafe)) break;
    A top[2];
    cosine_tops<VEC, LANES, T>(packs, top);
    if (unsafe) by = safe_scale(top[0]), target_by = safe_scale(top[1]);
  }
  if (row >= p.rows) return;
  const bool zero = sums[1] == A(0) || sums[2] == A(0);
  const A inverse = zero ? A(0) : A(1) / A(sqrt(sums[1])), target_inverse = zero ? A(0) : A(1) / A(sqrt(sums[2]));
  const A cosine = zero ? A(0) : sums[0] * inverse * target_inverse;
  if (p.losses && lane == 0) p.losses[row] = A(1) - cosine;
  if (!p.dx) return;
  const A factor = gradient_factor(p.alpha, p.dloss, row * p.dloss_stride, p.divisor);
  packs.each([&](i64 k, const pack<T, VEC>& x, const pack<T, VEC>& t) {
    A slopes[VEC];
#pragma unroll
    for (int l = 0; l < VEC; ++l) {
      const A u = by * to_acc(x.lane[l]) * inverse, v = target_by * to_acc(t.lane[l]) * target_inverse;
      slopes[l] = zero ? A(0) : fma_(cosine, u, -v) * inverse * by;
    }
    store_gradient<VEC>(p.dx + row * p.length, k, slopes, factor, p.beta);
  });
}
