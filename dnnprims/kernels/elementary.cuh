// Exponential and logarithm in float and double by explicit fma, so that a GPU and the emulator give the same bits,
// and the arithmetic with rounding errors that the functions of math.cuh are made of.
//
// The exponential is kept as (hi + lo) * 2^n with the power of two applied last, so that x * exp(-x) is still right
// where exp(-x) alone is subnormal; sums and products carry their rounding error into one final quotient.
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
DEVICE float magnitude(float x) { return fabsf(x); }
DEVICE double magnitude(double x) { return fabs(x); }
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
// exp(x) as a term of a sum, or as a share of one: within 4 u (relative), a third of the instructions. Where it
// overflows it may be NaN.
DEVICE float exp_of_term(float x) {
  x = x < ranges<float>::floor ? ranges<float>::floor : x;
  float t = x * series<float>::log2e();
  float left = fmaf(x, series<float>::log2e_lo(), fmaf(x, series<float>::log2e(), -t));
  float e = exp2_approx(t);
  return fmaf(e * left, series<float>::ln2_hi(), e);
}
DEVICE double exp_of_term(double x) { return exp_accurate(x); }
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
// x = m 2^n with m in [2/3, 4/3): log x = n ln 2 + f - f^2 / 2 + f^3 tail(f), f = m - 1. For a normal x and, with `below`
// to be taken off n, for one that was multiplied by a power of two.
template <class A> DEVICE A log_normal(A x, int below = 0) {
  typedef series<A> S;
  A n = A(split_exponent(x) - below), f = x - A(1), square = f * f;
  A tail = fma_(square * f, S::log_tail(f), n * S::ln2_lo());
  return fma_(n, S::ln2_hi(), fma_(A(-0.5), square, tail) + f);
}
template <class A> DEVICE A log_accurate(A x) {
  if (!(x > A(0) && x < limits<A>::infinity()))
    return x < A(0) ? limits<A>::nan() : x == A(0) ? -limits<A>::infinity() : x;
  if (x < power_of_two<A>(ranges<A>::least)) return log_normal(x * power_of_two<A>(64), 64);
  return log_normal(x);
}
// log(1 + x): the rounding error of the sum comes back as its share of the slope.
template <class A> DEVICE A log1p_accurate(A x) {
  pair<A> u = two_sum(A(1), x);
  if (!(u.hi > A(0) && u.hi < limits<A>::infinity())) return log_accurate(u.hi);
  return log_accurate(u.hi) + u.lo / u.hi;
}
