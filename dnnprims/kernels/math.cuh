// Functions for activations and losses. Two policies, chosen by the storage type as math<T>:
//   Precise<A>  float32 and float64 storage. Within 2 ulp over the whole finite range; what is representable,
//               subnormals included, is neither flushed nor overflowed on the way. Most floats take the short way of
//               usual.cuh instead.
//   Quick<T>    16-bit storage. float with the approximate instructions, about 2^-18, below a hundredth of the ulp.
// Where memory is the limit an H200 has time for about 60 instructions a float and 30 a 16-bit number, of which a third
// is lost to waiting. The smooth functions take 10 to 25 in Quick, conversions, load and store included.
#pragma once
#include "usual.cuh"

// ---- float32 and float64 --------------------------------------------------------------------------------------------

template <class A> struct Precise {
  typedef series<A> S;
  // Whether functors have a short way for usual arguments (usual.cuh).
  static constexpr bool SHORT = sizeof(A) == sizeof(float);
  static DEVICE A exp(A x) { return exp_accurate(x); }
  static DEVICE A exp_term(A x) { return exp_of_term(x); }
  static DEVICE A expm1(A x) { return expm1_accurate(x); }
  static DEVICE A log(A x) { return log_accurate(x); }
  static DEVICE A log1p(A x) { return log1p_accurate(x); }
  // For normal numbers and those below 0.
  static DEVICE A log_usual(A x) { return x < A(0) ? limits<A>::nan() : log_normal(x); }
  static DEVICE A inverse(A x) { return A(1) / x; }
  // factor * exp(x + more), subnormal where that is.
  static DEVICE A scaled_exp(A factor, A x, A more = A(0)) {
    exponential<A> e = exp_parts(clamped(x, ranges<A>::floor, -ranges<A>::floor), more);
    return scaled(factor * e.hi, e.n);
  }
  // factor * (exp(x + more) - 1), for x <= 0 and for any x
  static DEVICE A scaled_expm1_below(A factor, A x, A more = A(0)) {
    if constexpr (SHORT) return Usual::scaled_expm1(factor, max_or_nan(x, A(-80)), more);
    pair<A> t = expm1_parts(x, more);
    return fma_(factor, t.hi, factor * t.lo);
  }
  static DEVICE A scaled_expm1(A factor, A x, A more = A(0)) {
    if (x > A(SATURATED)) return scaled_exp(factor, x, more);
    return scaled_expm1_below(factor, x, more);
  }
  // numerator / d as a pair whose hi is the rounded quotient; used for x / alpha before an exponential.
  static DEVICE pair<A> divided(A x, A d) {
    A inverse = A(1) / d, q = x * inverse;
    return {q, magnitude(q) < A(1e6) ? fma_(-q, d, x) * inverse : A(0)};
  }
  // a * x before an exponential: beyond 10^6 the error does not matter, and at infinity there is none.
  static DEVICE pair<A> product(A a, A x) {
    A p = a * x;
    return {p, magnitude(p) < A(1e6) ? fma_(a, x, -p) : A(0)};
  }

  // exp(-|t|), bounded.
  static DEVICE exponential<A> decay(pair<A> t) {
    A z = -magnitude(t.hi), more = t.hi < A(0) ? t.lo : -t.lo;
    return z < ranges<A>::floor ? exp_parts(ranges<A>::floor) : exp_parts(z, more);
  }
  static DEVICE pair<A> one_plus(exponential<A> e) {
    pair<A> v = e.beside_one();
    A hi = A(1) + v.hi;
    return {hi, (v.hi - (hi - A(1))) + v.lo};
  }

  // x / (1 + exp(-t))
  static DEVICE A gated(A x, pair<A> t) {
    if (t.hi > A(SATURATED)) return x;
    if (t.hi < ranges<A>::floor) return with_sign(A(0), x);
    exponential<A> e = decay(t);
    bool below = t.hi < A(0);
    pair<A> n = {x, A(0)};
    if (below) n = times(x, pair<A>{e.hi, e.lo});
    return scaled(quotient(n, one_plus(e)), below ? e.n : 0);
  }
  static DEVICE A sigmoid(pair<A> t) { return gated(A(1), t); }
  static DEVICE A sigmoid(A x) { return gated(A(1), {x, A(0)}); }
  // factor * e / (1 + e)^2, e = exp(-|x|)
  static DEVICE A bell(A factor, A x) {
    exponential<A> e = decay({x, A(0)});
    pair<A> d = one_plus(e);
    A inverse = reciprocal(d.hi);
    return scaled(factor * quotient(pair<A>{e.hi, e.lo}, d, inverse) * inverse, e.n);
  }
  static DEVICE A sigmoid_slope(A x) { return bell(A(1), x); }

  // (v + log(1 + exp(-|t|)) / divisor) for v of the sign of the divisor or 0
  static DEVICE A plus_softplus_tail(A v, pair<A> t, A divisor) {
    exponential<A> e = decay(t);
    A beside = e.beside_one().hi, more = beside * S::log1p_tail(beside - A(0.5));
    more = fma_(e.hi, more, e.lo);
    pair<A> tail = two_sum(e.hi, more);
    A q = tail.hi, left = tail.lo;
    if (divisor != A(1)) {
      A inverse = A(1) / divisor;
      q = tail.hi * inverse;
      left = (fma_(-q, divisor, tail.hi) + tail.lo) * inverse;
    }
    pair<A> sum = two_sum(v, scaled(q, e.n));
    return sum.hi + (sum.lo + (e.n < ranges<A>::least ? A(0) : left * power_of_two<A>(e.n)));
  }
  static DEVICE A log_sigmoid(A x) {
    if (x < ranges<A>::floor) return x;
    return -plus_softplus_tail(x < A(0) ? -x : A(0), {x, A(0)}, A(1));
  }

  // With t = exp(-2 |x|) - 1: tanh |x| = -t / (2 + t)
  static DEVICE A tanh_closely(A x) {
    pair<A> t = expm1_parts(A(-2) * magnitude(x));
    A hi = A(2) + t.hi;
    return with_sign(quotient(pair<A>{-t.hi, -t.lo}, pair<A>{hi, (t.hi - (hi - A(2))) + t.lo}), x);
  }
  static DEVICE A tanh(A x) {
    if constexpr (SHORT) return Usual::tanh(x);
    else return tanh_closely(x);
  }
  static DEVICE A tanh_slope(A x) { return bell(A(4), A(2) * x); }
  // x - tanh x
  static DEVICE A tanhshrink(A x) {
    if constexpr (SHORT) return Usual::tanhshrink(x);
    A a = magnitude(x);
    if (a < A(1)) {
      pair<A> square = two_product(x, x), cube = times(x, square);
      A w = square.hi, tail = S::tanhshrink_tail(w), first = S::tanhshrink_first_hi(), p = fma_(w, tail, first);
      A p_lo = fma_(w, tail, first - p) + S::tanhshrink_first_lo();
      return fma_(cube.hi, p, fma_(cube.hi, p_lo, cube.lo * p));
    }
    exponential<A> e = decay({A(2) * x, A(0)});
    pair<A> v = e.beside_one();
    return with_sign((a - A(1)) + quotient(pair<A>{A(2) * v.hi, A(2) * v.lo}, one_plus(e)), x);
  }
  static DEVICE A softsign(A x) {
    A a = magnitude(x);
    if (a > ranges<A>::softsign) return with_sign(A(1), x);
    return quotient(pair<A>{x, A(0)}, two_sum(A(1), a));
  }
  static DEVICE A softsign_slope(A x) {
    A a = magnitude(x), most = power_of_two<A>(ranges<A>::most);
    pair<A> d = two_sum(A(1), a > most ? most : a);
    A r = quotient(pair<A>{A(1), A(0)}, d, A(1) / d.hi);
    return r * r;
  }
};

// ---- 16-bit storage -------------------------------------------------------------------------------------------------

// bfloat16 has numbers below the normal ones of float: what may be one of them is kept 2^UP times as large on the way.
template <class T> struct sixteen_bits {
  static constexpr float UP = 64.0f, DOWN = 5.421010862427522e-20f;
};
template <> struct sixteen_bits<float16> {
  static constexpr float UP = 0.0f, DOWN = 1.0f;
};

template <class T> struct Quick {
  typedef float A;
  typedef series<Sixteen> S;
  static constexpr bool SHORT = false;
  static DEVICE A exp(A x) { return exp2_approx(x * series<float>::log2e()); }
  static DEVICE A exp_term(A x) { return exp(x); }
  static DEVICE A log(A x) { return log_accurate(x); }
  static DEVICE A log1p(A x) { return log1p_accurate(x); }
  // For any x that is no subnormal number. The instruction errs by 2^-22 near 1, where the logarithm is small.
  static DEVICE A log_usual(A x) {
    const A f = x - A(1), far = log2_normal(x) * series<float>::ln2_hi();
    const A near = fmaf(f * f, fmaf(f, S::log_tail(f), A(-0.5)), f);
    return magnitude(f) < A(0.333) ? near : far;
  }
  static DEVICE A inverse(A x) { return reciprocal_approx(x); }
  static DEVICE A expm1(A x) { return scaled_expm1(A(1), x); }
  static DEVICE A scaled_exp(A factor, A x, A = A(0)) { return factor * exp(x); }
  // factor (e^x - 1), which cancels near 0. e^(x / 2) twice, for a factor below 1 and a result near the largest number.
  static DEVICE A scaled_expm1(A factor, A x, A = A(0)) {
    const A root = exp2_normal(x * (A(0.5) * series<float>::log2e())), near = x * fmaf(x, S::expm1_tail(x), A(1));
    return magnitude(x) < A(0.36) ? factor * near : fmaf(factor * root, root, -factor);
  }
  static DEVICE A scaled_expm1_below(A factor, A x, A = A(0)) { return scaled_expm1(factor, x); }
  static DEVICE pair<A> divided(A x, A d) { return {x * reciprocal_approx(d), A(0)}; }
  static DEVICE pair<A> product(A a, A x) { return {a * x, A(0)}; }

  static constexpr float UP = sixteen_bits<T>::UP, DOWN = sixteen_bits<T>::DOWN;

  // exp(-|t|) 2^UP
  static DEVICE A raised_decay(A t) { return exp2_normal(fmaf(magnitude(t), -series<float>::log2e(), UP)); }
  static DEVICE A decay(A t) { return raised_decay(t) * DOWN; }
  // 1 / (1 + 2^-t)
  static DEVICE A gate(A t) { return reciprocal_normal(exp2_normal(-t - UP) + DOWN) * DOWN; }
  static DEVICE A gated(A x, pair<A> t) { return shut(x, gate(t.hi * series<float>::log2e())); }
  // x times a gate; with a gate of 0 that is 0 for any x, infinite ones too.
  static DEVICE A shut(A x, A gate) { return gate == A(0) ? with_sign(A(0), x) : x * gate; }
  static DEVICE A sigmoid(pair<A> t) { return sigmoid(t.hi); }
  static DEVICE A sigmoid(A x) {
    return reciprocal_normal(exp2_normal(fmaf(x, -series<float>::log2e(), -UP)) + DOWN) * DOWN;
  }
  static DEVICE A sigmoid_slope(A x) {
    const A e = decay(x), r = reciprocal_normal(A(1) + e);
    return e * r * r;
  }
  static DEVICE A softplus_tail(A x) {
    const A e = decay(x);
    return fmaf(e * e, S::log1p_tail(e), e);
  }
  static DEVICE A plus_softplus_tail(A v, pair<A> t, A divisor) {
    return v + softplus_tail(t.hi) * reciprocal_approx(divisor);
  }
  static DEVICE A log_sigmoid(A x) { return (x < A(0) ? x : A(0)) - softplus_tail(x); }
  static DEVICE A tanh(A x) {
    const A e = exp2_normal(x * (A(2) * series<float>::log2e())), w = x * x;
    const A far = fmaf(A(-2), reciprocal_normal(e + A(1)), A(1)), near = x * fmaf(w, S::tanh_tail(w), A(1));
    return magnitude(x) < A(0.6) ? near : far;
  }
  static DEVICE A tanh_slope(A x) { return A(4) * sigmoid_slope(A(2) * x); }
  static DEVICE A tanh_closely(A x) { return tanh(x); }
  static DEVICE A tanhshrink(A x) {
    const A a = magnitude(x), w = x * x, e = decay(A(2) * a);
    const A near = x * w * fmaf(w, S::tanhshrink_tail(w), S::tanhshrink_first_hi());
    const A far = with_sign(fmaf(A(2) * e, reciprocal_normal(A(1) + e), a - A(1)), x);
    return a < A(1) ? near : far;
  }
  static DEVICE A softsign(A x) {
    A a = magnitude(x);
    return a > ranges<float>::softsign ? with_sign(A(1), x) : x * reciprocal_normal(A(1) + a);
  }
  static DEVICE A softsign_slope(A x) {
    A r = reciprocal_normal(A(1) + magnitude(x));
    return r * r;
  }
};

template <class T> struct math_policy {
  typedef Quick<T> type;
};
template <> struct math_policy<float> {
  typedef Precise<float> type;
};
template <> struct math_policy<double> {
  typedef Precise<double> type;
};
template <class T> using math = typename math_policy<T>::type;
