// Elementary functions in float and double, by explicit fma, so that a GPU and the emulator give the same bits.
//
// Two policies, chosen by the storage type as math<T>:
//   Precise<A>  float32 and float64 storage. About 1 ulp over the whole finite range; what is representable, subnormals
//               included, is neither flushed nor overflowed on the way.
//   Quick       16-bit storage. float with the approximate instructions, about 2^-18, below a hundredth of the ulp.
// The exponential is kept as (hi + lo) * 2^n with the power of two applied last, so that x * exp(-x) is still right
// where exp(-x) alone is subnormal; sums and products carry their rounding error into the one final quotient.
// The 56 instructions an element that a memory-bound float kernel has on an H200 are enough for each of these.
// NaN goes through every function. Clamps are written as selects because fminf and fmaxf drop NaN.
#pragma once
#include "series.cuh"

template <class A> struct ranges;
template <> struct ranges<float> {
  static constexpr int least = -126, most = 127;    // exponents of normal numbers
  static constexpr float floor = -174.0f;           // exp of it is 2^-251, and of its negative 2^251
  static constexpr float gelu = 15.0f, mish = 12.0f, softsign = 33554432.0f;  // from there on the limit is reached
};
template <> struct ranges<double> {
  static constexpr int least = -1022, most = 1023;
  static constexpr double floor = -1416.0;
  static constexpr double gelu = 39.0, mish = 24.0, softsign = 18014398509481984.0;
};
// exp(-40) is below the last bit of 1 in either accumulator.
constexpr int SATURATED = 40;

template <class A> DEVICE A clamped(A x, A low, A high) { return x < low ? low : x > high ? high : x; }
template <class A> DEVICE A magnitude(A x) { return x < A(0) ? -x : x + A(0); }
DEVICE float with_sign(float v, float sign) { return copysignf(v, sign); }
DEVICE double with_sign(double v, double sign) { return copysign(v, sign); }

// ---- sums and products with their rounding errors -------------------------------------------------------------------

template <class A> struct pair {
  A hi, lo;
};
// Any magnitudes (Knuth, TAOCP 2, 4.2.2).
template <class A> DEVICE pair<A> two_sum(A a, A b) {
  A s = a + b, t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}
template <class A> DEVICE pair<A> two_product(A a, A b) {
  A p = a * b;
  return {p, fma_(a, b, -p)};
}
template <class A> DEVICE pair<A> times(pair<A> a, pair<A> b) {
  pair<A> p = two_product(a.hi, b.hi);
  p.lo += fma_(a.hi, b.lo, a.lo * b.hi);
  return p;
}
template <class A> DEVICE pair<A> times(A a, pair<A> b) {
  pair<A> p = two_product(a, b.hi);
  p.lo = fma_(a, b.lo, p.lo);
  return p;
}
// 1 / d for a d in about [2^-100, 2^100]: what a division does there, without its test for the other cases.
DEVICE float reciprocal(float d) {
  float r = reciprocal_normal(d);
  return fmaf(r, fmaf(-d, r, 1.0f), r);
}
DEVICE double reciprocal(double d) { return 1.0 / d; }
// Enough for a quotient whose remainder is put right afterwards.
DEVICE float rough_reciprocal(float d) { return reciprocal_normal(d); }
DEVICE double rough_reciprocal(double d) { return 1.0 / d; }
// n / d with one rounding and little more; `inverse` is 1 / d.hi.
template <class A> DEVICE A quotient(pair<A> n, pair<A> d, A inverse) {
  A q = n.hi * inverse;
  A left = fma_(-q, d.hi, n.hi) + fma_(-q, d.lo, n.lo);
  return fma_(left, inverse, q);
}
template <class A> DEVICE A quotient(pair<A> n, pair<A> d) { return quotient(n, d, reciprocal(d.hi)); }

// ---- powers of two --------------------------------------------------------------------------------------------------

template <class A> DEVICE A power_of_two(int n);
template <> DEVICE float power_of_two<float>(int n) { return bits_to_float((u32)(n + 127) << 23); }
template <> DEVICE double power_of_two<double>(int n) { return bits_to_double((u64)(u32)(n + 1023) << 52); }

// v * 2^n, rounded once: the part beyond the normal exponents comes first and is exact.
template <class A> DEVICE A scaled(A v, int n) {
  int inside = n < ranges<A>::least ? ranges<A>::least : n > ranges<A>::most ? ranges<A>::most : n;
  return v * power_of_two<A>(n - inside) * power_of_two<A>(inside);
}

// x to the nearest integer, as that integer and as a number: it lands in the last bits of a large one.
DEVICE float nearest_integer(float x, float factor, int& n) {
  float t = fmaf(x, factor, 12582912.0f);
  n = (int)(float_to_bits(t) - 0x4b400000u);
  return t - 12582912.0f;
}
DEVICE double nearest_integer(double x, double factor, int& n) {
  double t = fma(x, factor, 6755399441055744.0);
  n = (int)(u32)double_to_bits(t);
  return t - 6755399441055744.0;
}

// ---- exponential and logarithm --------------------------------------------------------------------------------------

// (hi + lo) * 2^n = (1 + p) * 2^n = exp(x + more), |p| < 0.42, with a relative error near 2^-25 (2^-54).
template <class A> struct exponential {
  A hi, lo, p;
  int n;
  // The value where it matters beside 1; too large by far, yet nothing beside 1, below the normal numbers.
  DEVICE pair<A> beside_one() const {
    A s = power_of_two<A>(n < ranges<A>::least ? ranges<A>::least : n);
    return {hi * s, lo * s};
  }
  DEVICE A value() const { return scaled(hi, n); }
};

// |x| <= -floor: r = x - n ln 2, exp(r) = 1 + r + r^2 tail(r).
template <class A> DEVICE exponential<A> exp_parts(A x, A more = A(0)) {
  typedef series<A> S;
  exponential<A> e;
  A k = nearest_integer(x, S::log2e(), e.n);
  A r = fma_(-k, S::ln2_hi(), x) + fma_(-k, S::ln2_lo(), more);
  e.p = fma_(r * r, S::exp_tail(r), r);
  e.hi = A(1) + e.p;
  e.lo = e.p - (e.hi - A(1));
  return e;
}

// exp(x) - 1 with its error; x up to SATURATED.
template <class A> DEVICE pair<A> expm1_parts(A x, A more = A(0)) {
  typedef series<A> S;
  int n;
  x = x < A(-80) ? A(-80) : x;
  A k = nearest_integer(x, S::log2e(), n);
  A r = fma_(-k, S::ln2_hi(), x) + fma_(-k, S::ln2_lo(), more);
  A square = r * r, tail = S::exp_tail(r);
  A p = fma_(square, tail, r), p_lo = fma_(square, tail, r - p);
  A s = power_of_two<A>(n), base = s - A(1);
  A hi = fma_(p, s, base);
  return {hi, fma_(p, s, base - hi) + p_lo * s};
}

template <class A> DEVICE A exp_accurate(A x) {
  return exp_parts(clamped(x, ranges<A>::floor, -ranges<A>::floor)).value();
}
template <class A> DEVICE A expm1_accurate(A x) {
  if (x > A(SATURATED)) return exp_accurate(x);
  return expm1_parts(x).hi;
}

DEVICE int split_exponent(float& x) {
  int n = (int)(float_to_bits(x) - 0x3f2aaaabu) >> 23;
  x = bits_to_float(float_to_bits(x) - ((u32)n << 23));
  return n;
}
DEVICE int split_exponent(double& x) {
  int n = (int)((i64)(double_to_bits(x) - 0x3fe5555555555555ull) >> 52);
  x = bits_to_double(double_to_bits(x) - ((u64)(i64)n << 52));
  return n;
}
// x = m 2^n with m in [2/3, 4/3): log x = n ln 2 + f - f^2 / 2 + f^3 tail(f), f = m - 1.
template <class A> DEVICE A log_accurate(A x) {
  typedef series<A> S;
  if (!(x > A(0) && x < limits<A>::infinity()))
    return x < A(0) ? limits<A>::nan() : x == A(0) ? -limits<A>::infinity() : x;
  int below = 0;
  if (x < power_of_two<A>(ranges<A>::least)) {
    x *= power_of_two<A>(64);
    below = 64;
  }
  A n = A(split_exponent(x) - below), f = x - A(1), square = f * f;
  A tail = fma_(square * f, S::log_tail(f), n * S::ln2_lo());
  return fma_(n, S::ln2_hi(), fma_(A(-0.5), square, tail) + f);
}
// log(1 + x): the rounding error of the sum comes back as its share of the slope.
template <class A> DEVICE A log1p_accurate(A x) {
  pair<A> u = two_sum(A(1), x);
  if (!(u.hi > A(0) && u.hi < limits<A>::infinity())) return log_accurate(u.hi);
  return log_accurate(u.hi) + u.lo / u.hi;
}

// ---- float32 and float64 --------------------------------------------------------------------------------------------

template <class A> struct Precise {
  typedef series<A> S;
  static DEVICE A exp(A x) { return exp_accurate(x); }
  static DEVICE A expm1(A x) { return expm1_accurate(x); }
  static DEVICE A log(A x) { return log_accurate(x); }
  static DEVICE A log1p(A x) { return log1p_accurate(x); }
  // factor * exp(x + more), subnormal where that is.
  static DEVICE A scaled_exp(A factor, A x, A more = A(0)) {
    exponential<A> e = exp_parts(clamped(x, ranges<A>::floor, -ranges<A>::floor), more);
    return scaled(factor * e.hi, e.n);
  }
  // factor * (exp(x + more) - 1)
  static DEVICE A scaled_expm1(A factor, A x, A more = A(0)) {
    if (x > A(SATURATED)) return scaled_exp(factor, x, more);
    pair<A> t = expm1_parts(x, more);
    return fma_(factor, t.hi, factor * t.lo);
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
  static DEVICE A tanh(A x) {
    pair<A> t = expm1_parts(A(-2) * magnitude(x));
    A hi = A(2) + t.hi;
    return with_sign(quotient(pair<A>{-t.hi, -t.lo}, pair<A>{hi, (t.hi - (hi - A(2))) + t.lo}), x);
  }
  static DEVICE A tanh_slope(A x) { return bell(A(4), A(2) * x); }
  // x - tanh x
  static DEVICE A tanhshrink(A x) {
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

struct Quick {
  typedef float A;
  typedef series<Quick> S;
  static DEVICE A exp(A x) { return exp2_approx(x * series<float>::log2e()); }
  static DEVICE A log(A x) { return log_accurate(x); }
  static DEVICE A log1p(A x) { return log1p_accurate(x); }
  static DEVICE A expm1(A x) {
    if (x > A(SATURATED)) return exp(x);
    int n;
    x = x < A(-80) ? A(-80) : x;
    A k = nearest_integer(x, series<float>::log2e(), n);
    A r = fmaf(-k, series<float>::ln2_lo(), fmaf(-k, series<float>::ln2_hi(), x));
    A s = power_of_two<float>(n);
    return fmaf(fmaf(r * r, S::exp_tail(r), r), s, s - A(1));
  }
  static DEVICE A scaled_exp(A factor, A x, A = A(0)) { return factor * exp(x); }
  // exp(40) apart, for a factor below 1 and a result near the largest number
  static DEVICE A scaled_expm1(A factor, A x, A = A(0)) {
    return x > A(SATURATED) ? factor * exp(x - A(SATURATED)) * A(2.3538526683701998e17) : factor * expm1(x);
  }
  static DEVICE pair<A> divided(A x, A d) { return {x / d, A(0)}; }
  static DEVICE pair<A> product(A a, A x) { return {a * x, A(0)}; }

  static DEVICE A decay(A t) { return exp(-magnitude(t)); }
  // With t < -120 the gate is 0 for any x, infinite ones too.
  static DEVICE A gated(A x, pair<A> t) {
    A e = decay(t.hi);
    A v = x * ((t.hi < A(0) ? e : A(1)) * reciprocal_normal(A(1) + e));
    return t.hi < A(-120) ? with_sign(A(0), x) : v;
  }
  static DEVICE A sigmoid(pair<A> t) { return sigmoid(t.hi); }
  static DEVICE A sigmoid(A x) {
    A e = decay(x);
    return (x < A(0) ? e : A(1)) * reciprocal_normal(A(1) + e);
  }
  static DEVICE A sigmoid_slope(A x) {
    A e = decay(x), r = reciprocal_normal(A(1) + e);
    return e * r * r;
  }
  static DEVICE A softplus_tail(A x) {
    A e = decay(x);
    return fmaf(e * e, S::log1p_tail(e - A(0.5)), e);
  }
  static DEVICE A plus_softplus_tail(A v, pair<A> t, A divisor) { return v + softplus_tail(t.hi) / divisor; }
  static DEVICE A log_sigmoid(A x) { return (x < A(0) ? x : A(0)) - softplus_tail(x); }
  static DEVICE A tanh(A x) {
    A t = expm1(A(-2) * magnitude(x));
    return with_sign(-t * reciprocal_normal(A(2) + t), x);
  }
  static DEVICE A tanh_slope(A x) { return A(4) * sigmoid_slope(A(2) * x); }
  static DEVICE A tanhshrink(A x) {
    A a = magnitude(x);
    A w = x * x;
    if (a < A(1)) return x * w * fmaf(w, S::tanhshrink_tail(w), S::tanhshrink_first_hi());
    A e = decay(A(2) * a);
    return with_sign((a - A(1)) + A(2) * e * reciprocal_normal(A(1) + e), x);
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
  typedef Quick type;
};
template <> struct math_policy<float> {
  typedef Precise<float> type;
};
template <> struct math_policy<double> {
  typedef Precise<double> type;
};
template <class T> using math = typename math_policy<T>::type;
