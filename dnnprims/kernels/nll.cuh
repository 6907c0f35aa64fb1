// Negative log-likelihood: x are log-probabilities. The maths and numerics are told at the head of loss.cu.
#pragma once
#include "cross_entropy.cuh"

template <class T> DEVICE acc_t<T> nll_loss(const EntropyRow<T>& r) {
  typedef acc_t<T> A;
  if (!r.label.counted) return r.label.bad ? limits<A>::nan() : A(0);
  const A x = to_acc(r.p.x[r.start + r.label.index * r.p.inner]);
  // A weight of 0 takes no part, even against a log-probability of -inf.
  return r.hot == A(0) && x == x ? A(0) : -(r.hot * x);
}

// The losses alone: a thread a row.
template <class T> __global__ void __launch_bounds__(128) nll_losses(const CrossEntropyParams<T> p) {
  const EntropyRow<T> r(p, global_thread(), divisor_of(p));
  if (!r.here()) return;
  if (r.label.bad) *p.flag = BAD_LABEL;
  p.losses[r.row] = nll_loss(r);
}

// The gradient of elements [k, k + VEC) of a row, i the first of them over VEC; and the loss where it is wanted.
template <int VEC, class T> DEVICE void nll_elements(const EntropyRow<T>& r, i64 k, i64 i) {
  typedef acc_t<T> A;
  // One thread a row reads x, at the label, before it writes there: dx may be x.
  const i64 hot = r.label.counted ? r.label.index - k : -1;
  if (r.label.counted ? (u64)hot < (u64)VEC : k == 0) {
    if (r.p.losses) r.p.losses[r.row] = nll_loss(r);
    if (r.label.bad) *r.p.flag = BAD_LABEL;
  }
  A slopes[VEC];
#pragma unroll
  for (int l = 0; l < VEC; ++l) slopes[l] = l == hot ? -r.hot : A(0);
  store_gradient<VEC>(r.p.dx, i, slopes, r.factor, r.p.beta);
}

// Any layout: a thread an element.
template <class T> __global__ void __launch_bounds__(256) nll_gradient(const CrossEntropyParams<T> p) {
  const i64 i = global_thread();
  const acc_t<T> divisor = divisor_of(p);
  if (i >= p.rows * p.classes) return;
  // Divisions of 64 bits cost more than the store; few tensors need them.
  const i64 above = quotient(i, p.inner), outer = quotient(above, p.classes);
  nll_elements<1>(EntropyRow<T>(p, outer * p.inner + (i - above * p.inner), divisor), above - outer * p.classes, i);
}
// Rows of whole packs: LANES threads a row.
template <class T, int VEC, int LANES>
__global__ void __launch_bounds__(256) nll_gradient_packed(const CrossEntropyParams<T> p) {
  const i64 row = (i64)blockIdx.x * (256 / LANES) + threadIdx.x / LANES, packs = p.classes / VEC;
  const acc_t<T> divisor = divisor_of(p);
  if (row >= p.rows) return;
  const EntropyRow<T> r(p, row, divisor);
  for (i64 k = threadIdx.x % LANES; k < packs; k += LANES) nll_elements<VEC>(r, k * VEC, row * packs + k);
}
