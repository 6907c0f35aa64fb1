// The elementwise losses and their slopes, a struct for each kind. What they compute is told at the head of loss.cu.
//
// A kind is made of its parameter c. `at` gives loss and slope at (x, t) for any numbers; the loss only when `wanted`,
// slopes are cheap. Where SHORT, `usual_at` gives both in fewer instructions, where unusual(x, t) is at most
// usual_limit or NaN. Errors of the short ways, in u = 2^-24 of the sizes of the terms: an exponential 5, from |x| = 16
// on up to 9; log(1 + e) 4, log(1 - s) 5; the hardware's logarithm 6. The bounds of a loss and of a slope are 11.
#pragma once
#include "loss.cuh"
#include "math.cuh"

// `size` with the sign of d; d itself where it is 0 or NaN.
template <class A> DEVICE A sign_of(A size, A d) { return fabs(d) > A(0) ? with_sign(size, d) : d; }

// exp(x) for |x| <= 87: what the rounding of x / ln 2 left out comes back as its share of the slope.
DEVICE float exp_of_usual(float x) {
  const float t = x * 1.442695f, e = exp2_normal(t);
  return fmaf(e, fmaf(t, -0.6931472f, x), e);
}
// log1p(e) / e on [0, 1] and log1p(-s) / -s on [0, 1 / 2], interpolated at Chebyshev nodes: 2^-23.4 and 2^-22.3.
DEVICE float log1p_ratio(float e) {
  return polynomial(e, 0.99999994f, -0.49999446f, 0.3331812f, -0.24835399f, 0.19076881f, -0.13602248f, 0.0775161f,
                    -0.029074065f, 0.0051261024f);
}
DEVICE float log1m_ratio(float s) {
  return polynomial(s, 0.9999999f, 0.5000322f, 0.33200684f, 0.27047703f, 0.048358057f, 0.7545884f, -1.036039f,
                    1.158614f);
}
// log(s) for s up to 1 / 2, where the instruction is good relatively. No float16 is a subnormal float.
template <class T> DEVICE float log_of_half(float s) { return log2_approx(s) * 0.6931472f; }
template <> DEVICE float log_of_half<float16>(float s) { return log2_normal(s) * 0.6931472f; }

// What a kind is made of, and that it has no short way.
template <class T> struct LossKind {
  typedef acc_t<T> A;
  static constexpr bool SHORT = false;
  A c;
  DEVICE LossKind(A c) : c(c) {}
};

template <class T> struct Mse : LossKind<T> {
  typedef acc_t<T> A;
  using LossKind<T>::LossKind;
  DEVICE void at(A x, A t, bool, A& loss, A& slope) const {
    const A d = x - t;
    loss = d * d, slope = A(2) * d;
  }
};
template <class T> struct L1 : LossKind<T> {
  typedef acc_t<T> A;
  using LossKind<T>::LossKind;
  DEVICE void at(A x, A t, bool, A& loss, A& slope) const {
    const A d = x - t;
    loss = fabs(d), slope = sign_of(A(1), d);
  }
};
template <class T> struct Huber : LossKind<T> {
  typedef acc_t<T> A;
  using LossKind<T>::LossKind;
  DEVICE void at(A x, A t, bool, A& loss, A& slope) const {
    const A d = x - t, size = fabs(d);
    const bool beyond = size > this->c;
    loss = beyond ? this->c * (size - A(0.5) * this->c) : A(0.5) * d * d;
    slope = beyond ? with_sign(this->c, d) : d;
  }
};
// d / c as two products: the quotient takes a dozen instructions. The first is by a power of two, exact wherever the
// result is no subnormal number; with it 1 / c is a normal one for every c.
template <class T> struct SmoothL1 : LossKind<T> {
  typedef acc_t<T> A;
  A power, inverse;
  DEVICE SmoothL1(A c) : LossKind<T>(c) {
    power = power_of_two<A>(c < A(0x1p-64) ? ranges<A>::most / 2 : c > A(0x1p64) ? -(ranges<A>::most / 2) : 0);
    inverse = A(1) / (c * power);
  }
  DEVICE void at(A x, A t, bool, A& loss, A& slope) const {
    const A d = x - t, size = fabs(d), share = (d * power) * inverse;
    const bool beyond = size > this->c;
    loss = beyond ? size - A(0.5) * this->c : A(0.5) * d * share;
    slope = beyond ? with_sign(A(1), d) : share;
  }
};
// Logarithms are kept from -100 on and the slope's denominator from 1e-12 on; x outside of [0, 1] is NaN.
template <class T> struct Bce : LossKind<T> {
  typedef acc_t<T> A;
  using LossKind<T>::LossKind;
  static constexpr bool SHORT = sizeof(A) == 4;
  static constexpr float usual_limit = 0.0f;
  static DEVICE A clamped(A v) { return v < A(-100) ? A(-100) : v; }
  static DEVICE A span(A x) {
    const A v = x * (A(1) - x);
    return v < A(0) ? limits<A>::nan() : v > A(1e-12) ? v : A(1e-12);
  }
  DEVICE void at(A x, A t, bool wanted, A& loss, A& slope) const {
    loss = wanted ? -(t * clamped(Precise<A>::log(x)) + (A(1) - t) * clamped(Precise<A>::log1p(-x))) : A(0);
    slope = (x - t) / span(x);
  }
  static DEVICE A unusual(A, A) { return A(0); }
  // The smaller of x and 1 - x is s: exact where it is 1 - x. Negative for an x outside.
  DEVICE void usual_at(A x, A t, bool, A& loss, A& slope) const {
    const A rest = A(1) - x, s = fminf(x, rest);
    const bool lower = x <= rest;
    const A of_s = lower ? t : A(1) - t, of_other = lower ? A(1) - t : t;
    loss = fmaf(of_other, s * log1m_ratio(s), -(of_s * max_or_nan(log_of_half<T>(s), A(-100))));
    slope = (x - t) * reciprocal_normal(span(x));
  }
};
template <class T> struct BceWithLogits : LossKind<T> {
  typedef acc_t<T> A;
  using LossKind<T>::LossKind;
  static constexpr bool SHORT = sizeof(A) == 4;
  static constexpr float usual_limit = 87.0f;
  DEVICE void at(A x, A t, bool wanted, A& loss, A& slope) const {
    const A e = Precise<A>::exp(-fabs(x)), near = A(1) / (A(1) + e), far = e * near;
    const A pull = x >= A(0) ? A(1) - t : -t;
    loss = wanted ? (pull == A(0) ? A(0) : pull * x) + Precise<A>::log1p(e) : A(0);
    slope = x >= A(0) ? (A(1) - t) * near - t * far : (A(1) - t) * far - t * near;
  }
  static DEVICE A unusual(A x, A) { return fabs(x); }
  // x^+ - t x is rounded once, so that nothing cancels.
  DEVICE void usual_at(A x, A t, bool, A& loss, A& slope) const {
    const A e = exp_of_usual(-fabs(x)), rest = A(1) - t;
    loss = fmaf(e, log1p_ratio(e), fmaf(-x, t, fmaxf(x, A(0))));
    const A near = x >= A(0) ? rest : -t, far = x >= A(0) ? -t : rest;
    slope = fmaf(far, e, near) * reciprocal_normal(A(1) + e);
  }
};
template <class T> struct KlDiv : LossKind<T> {
  typedef acc_t<T> A;
  using LossKind<T>::LossKind;
  static constexpr bool SHORT = sizeof(A) == 4;
  static constexpr float usual_limit = 1.0f;
  DEVICE void at(A x, A t, bool wanted, A& loss, A& slope) const {
    loss = !wanted || (t == A(0) && x == x) ? A(0) : t * (Precise<A>::log(t) - x);
    slope = -t;
  }
  static DEVICE A unusual(A, A t) { return t; }
  DEVICE void usual_at(A x, A t, bool, A& loss, A& slope) const {
    // log t is the sum of two, of which one is 0: a choice would be a branch.
    const bool upper = t >= A(0.5);
    const A s = upper ? A(1) - t : A(0), log = fmaf(-s, log1m_ratio(s), log_of_half<T>(upper ? A(1) : t));
    loss = t == A(0) && x == x ? A(0) : t * (log - x);
    slope = -t;
  }
};
template <class T> struct KlDivLogTarget : LossKind<T> {
  typedef acc_t<T> A;
  using LossKind<T>::LossKind;
  static constexpr bool SHORT = sizeof(A) == 4;
  static constexpr float usual_limit = 87.0f;
  DEVICE void at(A x, A t, bool, A& loss, A& slope) const {
    const A e = Precise<A>::exp(t);
    loss = e == A(0) && x == x ? A(0) : e * (t - x);
    slope = -e;
  }
  static DEVICE A unusual(A, A t) { return fabs(t); }
  DEVICE void usual_at(A x, A t, bool, A& loss, A& slope) const {
    const A e = exp_of_usual(t);
    loss = e * (t - x);
    slope = -e;
  }
};
template <class T> struct Hinge : LossKind<T> {
  typedef acc_t<T> A;
  using LossKind<T>::LossKind;
  DEVICE void at(A x, A t, bool, A& loss, A& slope) const {
    const A gap = this->c - t * x;
    loss = gap <= A(0) ? A(0) : gap;
    slope = gap <= A(0) ? A(0) : gap == gap ? -t : gap;
  }
};
