// Activations that pass x through a smooth gate: gelu, gelu_tanh, swish, mish, and their derivatives.
//
// Forward and derivative f' reduce to a tail: with z = -|t|, e = exp(z),
//   gelu       x Phi(x):             f(x) = x - |x| Phi(-|x|) for x > 0;   Phi(-a) = exp(-a^2 / 2) R(a), R a polynomial
//              f' = Phi + x phi = d for x < 0, 1 - d for x > 0;            d = exp(-a^2 / 2) (R(a) - a / sqrt(2 pi))
//   swish      x sigmoid(beta x);    f' as above with d = e (1 + e - |t|) / (1 + e)^2, t = beta x
//   gelu_tanh  x sigmoid(t), t = 2 sqrt(2 / pi) (x + 0.044715 x^3); in d, x t'(x) stands for |t|
//   mish       x u / (u + 2), u = e (e + 2), e = exp(x);  f' = e ((e + 2)(u + 2) + 4 x (1 + e)) / (u + 2)^2
// f' changes sign near the minimum of f, where these forms cancel: Precise has a polynomial about that root there, and so
// have the short ways for usual floats (UsualSlopes in usual.cuh), which write d with e = exp(-t) of either sign, and Quick,
// whose forms err by 5e-8 there where 2^-27 is allowed.
// (Hendrycks and Gimpel, "Gaussian error linear units", 2016; Ramachandran et al., "Searching for activation
// functions", 2017; Misra, "Mish", 2019.)
#pragma once
#include "math.cuh"

// |v| < `below` before a root and < `above` after it: where the polynomials about the roots hold.
template <class A> DEVICE bool within(A d, A below, A above) { return d > -below && d < above; }

template <class A> struct PreciseGates {
  typedef series<A> S;
  typedef Precise<A> M;

  // What gelu and its derivative share at a = |x|: exp(-a^2 / 2), s = a / (a + 4) and r = (a + 4) R(a). The remainder
  // a - s (a + 4) puts s right without the rounding error of a + 4. r is worked out at s.hi; what s.lo adds to it matters
  // in the tail, for which its slope is taken to be that of a straight line.
  struct Normal {
    exponential<A> e;
    pair<A> s, r;
  };
  static DEVICE Normal normal(A a) {
    Normal v;
    A half = A(-0.5) * a, square = half * a;
    v.e = exp_parts(square, fma_(half, a, -square));
    A inverse = rough_reciprocal(a + A(4)), s = a * inverse;
    A remainder = fma_(-s, a, fma_(A(-4), s, a)) * inverse;
    v.s.hi = s + remainder;
    v.s.lo = remainder - (v.s.hi - s);
    A q = fma_(A(2), v.s.hi, A(-1)), tail = S::half_erfcx_tail(q);
    v.r.hi = fma_(q, tail, S::half_erfcx_first_hi());
    v.r.lo = fma_(q, tail, S::half_erfcx_first_hi() - v.r.hi) + fma_(A(2) * v.s.lo, tail, S::half_erfcx_first_lo());
    return v;
  }
  static DEVICE A gelu(A x) {
    A a = magnitude(x);
    Normal v = normal(a > ranges<A>::gelu ? ranges<A>::gelu : a);
    pair<A> w = times(v.s, v.r);
    A tail = scaled(fma_(w.hi, v.e.p, fma_(w.lo, v.e.p, w.lo)) + w.hi, v.e.n);
    return x < A(0) ? -tail : x - tail;
  }
  // R = (1 - s) r / 4
  static DEVICE A gelu_slope(A x) {
    A off = (x - S::gelu_root_hi()) - S::gelu_root_lo();
    if (within(off, A(0.65), A(0.45))) return off * S::gelu_slope(off);
    A a = magnitude(x);
    a = a > ranges<A>::gelu ? ranges<A>::gelu : a;
    Normal v = normal(a);
    A n = fma_(-S::normal_density_0(), a, (A(1) - v.s.hi) * (A(0.25) * v.r.hi));
    A d = scaled(fma_(n, v.e.p, n), v.e.n);
    return x < A(0) ? d : A(1) - d;
  }

  // d above, for |t| and for |x t'(x)|.
  static DEVICE A slope_from_tail(pair<A> t, pair<A> growth) {
    exponential<A> e = M::decay(t);
    pair<A> one = M::one_plus(e);
    A inverse = reciprocal(one.hi), gate = quotient(pair<A>{e.hi, e.lo}, one, inverse);
    A n = (one.hi - growth.hi) + (one.lo - growth.lo);
    A d = scaled(gate * quotient(pair<A>{n, A(0)}, one, inverse), e.n);
    return t.hi < A(0) ? d : A(1) - d;
  }
  static DEVICE A swish(A x, A beta) { return M::gated(x, M::product(beta, x)); }
  static DEVICE A swish_slope(A x, A beta) {
    pair<A> t = M::product(beta, x);
    A off = ((t.hi - S::swish_root_hi()) - S::swish_root_lo()) + t.lo;
    if (within(off, A(1), A(0.75))) return off * S::swish_slope(off);
    A a = magnitude(t.hi), most = -ranges<A>::floor;
    return slope_from_tail(t, a > most ? pair<A>{most, A(0)} : pair<A>{a, t.hi < A(0) ? -t.lo : t.lo});
  }

  // k1 x^2, and x (k0 + power k1 x^2): t for power 1, x t' for power 3. |x| <= 30: beyond, the gate is shut or open.
  static DEVICE pair<A> gelu_tanh_cubic(A x) {
    return times(pair<A>{S::gelu_tanh_cubic_hi(), S::gelu_tanh_cubic_lo()}, two_product(x, x));
  }
  static DEVICE pair<A> gelu_tanh_sum(A x, pair<A> cubic, A power) {
    pair<A> w = two_sum(S::gelu_tanh_linear_hi(), power * cubic.hi);
    w.lo += fma_(power, cubic.hi, -(power * cubic.hi)) + fma_(power, cubic.lo, S::gelu_tanh_linear_lo());
    return times(x, w);
  }
  static DEVICE A gelu_tanh(A x) {
    A near = clamped(x, A(-30), A(30));
    return M::gated(x, gelu_tanh_sum(near, gelu_tanh_cubic(near), A(1)));
  }
  static DEVICE A gelu_tanh_slope(A x) {
    A off = (x - S::gelu_tanh_root_hi()) - S::gelu_tanh_root_lo();
    if (within(off, A(0.75), A(0.45))) return off * S::gelu_tanh_slope(off);
    x = clamped(x, A(-30), A(30));
    pair<A> cubic = gelu_tanh_cubic(x);
    return slope_from_tail(gelu_tanh_sum(x, cubic, A(1)), gelu_tanh_sum(magnitude(x), cubic, A(3)));
  }

  // two = e + 2, n 2^k = u = e (e + 2), and d = u + 2; x in [floor, mish].
  struct Mish {
    exponential<A> e;
    pair<A> two, n, d;
  };
  static DEVICE Mish mish_parts(A x) {
    Mish v;
    v.e = exp_parts(x);
    pair<A> value = v.e.beside_one();
    v.two = two_sum(A(2), value.hi);
    v.two.lo += value.lo;
    v.n = times(pair<A>{v.e.hi, v.e.lo}, v.two);
    A s = power_of_two<A>(v.e.n < ranges<A>::least ? ranges<A>::least : v.e.n);
    v.d = two_sum(A(2), v.n.hi * s);
    v.d.lo = fma_(v.n.lo, s, v.d.lo);
    return v;
  }
  static DEVICE A mish(A x) {
    if (x > ranges<A>::mish) return x;
    A bounded = x < ranges<A>::floor ? ranges<A>::floor : x;
    Mish v = mish_parts(bounded);
    return scaled(quotient(times(bounded, v.n), v.d), v.e.n);
  }
  static DEVICE A mish_slope(A x) {
    A off = (x - S::mish_root_hi()) - S::mish_root_lo();
    if (within(off, A(0.9), A(0.7))) return off * S::mish_slope(off);
    x = clamped(x, ranges<A>::floor, ranges<A>::mish);
    Mish v = mish_parts(x);
    pair<A> one = two_sum(v.two.hi, A(-1));
    one.lo += v.two.lo;
    pair<A> rising = times(v.two, v.d), falling = times(A(4) * x, one);
    pair<A> n = two_sum(rising.hi, falling.hi);
    n.lo += rising.lo + falling.lo;
    A inverse = reciprocal(v.d.hi);
    return scaled(quotient(pair<A>{v.e.hi, v.e.lo}, v.d, inverse) * quotient(n, v.d, inverse), v.e.n);
  }
};

template <class T> struct QuickGates {
  typedef float A;
  typedef series<Sixteen> S;
  typedef Quick<T> M;
  static constexpr float UP = M::UP, DOWN = M::DOWN;

  // exp(-a^2 / 2) 2^64
  static DEVICE A raised_density(A a) { return exp2_normal(fmaf(a * (A(-0.5) * series<float>::log2e()), a, UP)); }
  static DEVICE A gelu(A x) {
    const A a = min_or_nan(magnitude(x), A(20)), s = a * reciprocal_normal(a + A(3));
    const A tail = raised_density(a) * (s * S::half_erfcx(s));
    return fmaf(tail, -DOWN, max_or_nan(x, -A(0)));
  }
  // f' at `off` from its root, where `slope` is f' / off; else what is known.
  static DEVICE A about_root(A off, A slope, A otherwise) { return magnitude(off) < A(0.125) ? off * slope : otherwise; }
  // As in UsualSlopes.
  static DEVICE A gelu_slope(A x) {
    const A a = min_or_nan(magnitude(x), A(20)), k = S::gelu_tail_slope(a * reciprocal_normal(a + A(3)));
    return UsualSlopes::gelu_of_tail(x, UsualSlopes::from_root(a, k) * raised_density(a) * DOWN);
  }
  // d of the top of this file, with e = exp(-|t|) 2^UP and |x t'(x)|.
  static DEVICE A slope_from_tail(A x, A e, A growth) {
    const A one = fmaf(e, DOWN, A(1)), r = reciprocal_normal(one);
    const A d = e * (one - growth) * (r * r) * DOWN;
    return x < A(0) ? d : A(1) - d;
  }
  static DEVICE A swish(A x, A beta) { return M::shut(x, M::gate(x * (beta * series<float>::log2e()))); }
  static DEVICE A swish_slope(A x, A beta) {
    const A t = max_or_nan(min_or_nan(beta * x, A(200)), A(-200));
    // beta x - root without the rounding of the product.
    const A off = fmaf(beta, x, -series<float>::swish_root_hi()) - series<float>::swish_root_lo();
    return about_root(off, S::swish_slope(off), slope_from_tail(t, M::raised_decay(t), magnitude(t)));
  }
  static DEVICE A gelu_tanh(A x) {
    const A linear = series<float>::gelu_tanh_linear_hi() * series<float>::log2e();
    const A cubic = series<float>::gelu_tanh_cubic_hi() * series<float>::log2e();
    const A near = max_or_nan(x, A(-30));
    return near * M::gate(near * fmaf(cubic, near * near, linear));
  }
  static DEVICE A gelu_tanh_slope(A x) {
    const A linear = series<float>::gelu_tanh_linear_hi(), cubic = series<float>::gelu_tanh_cubic_hi();
    const A a = min_or_nan(magnitude(x), A(30)), square = a * a;
    const A each = fmaf(-cubic * series<float>::log2e(), square, -linear * series<float>::log2e());
    const A far = slope_from_tail(x, exp2_normal(fmaf(a, each, UP)), a * fmaf(A(3) * cubic, square, linear));
    const A off = (x - series<float>::gelu_tanh_root_hi()) - series<float>::gelu_tanh_root_lo();
    return about_root(off, S::gelu_tanh_slope(off), far);
  }
  // u = e (e + 2) 2^64
  static DEVICE A mish(A x) {
    const A near = max_or_nan(x, A(-200)), e = exp2_normal(fmaf(min_or_nan(near, A(16)), series<float>::log2e(), UP));
    const A u = e * fmaf(e, DOWN, A(2));
    return near * (u * reciprocal_normal(fmaf(u, DOWN, A(2))) * DOWN);
  }
  static DEVICE A mish_slope(A x) {
    x = max_or_nan(min_or_nan(x, A(12)), A(-120));
    A e = M::exp(x), two = e + A(2), d = fmaf(e, two, A(2)), r = reciprocal_normal(d);
    const A off = (x - series<float>::mish_root_hi()) - series<float>::mish_root_lo();
    return about_root(off, S::mish_slope(off), e * (fmaf(A(4) * x, A(1) + e, two * d) * r) * r);
  }
};

template <class T> struct gates_policy {
  typedef QuickGates<T> type;
};
template <> struct gates_policy<float> {
  typedef PreciseGates<float> type;
};
template <> struct gates_policy<double> {
  typedef PreciseGates<double> type;
};
template <class T> using gates = typename gates_policy<T>::type;
