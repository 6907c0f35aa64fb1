// float32 functions for usual arguments: where nothing on the way is subnormal or overflows, and x is no NaN. Which those
// are is said by the functors of activation.cuh, which take the way of math.cuh for all others.
//
// There the rounding errors of a few steps keep to 2 ulp (derivatives 4) without the pairs of elementary.cuh. What makes
// the difference:
//   - exp(x) is kept as scale (1 + part): its only error is that of `part`, 2^-26 of the whole, and it enters a sum or a
//     product with one fma;
//   - a quotient is put right by its remainder, into which errors of numerator and denominator go as well where they
//     would weigh more than half an ulp;
//   - a derivative has the distance from its zero as a factor (gelu), or near that is a polynomial in it, which is as narrow
//     as the rest allows;
//   - where a sum 1 + v is left to multiply with, v comes from small numbers, and its rounding hardly weighs (gelu).
// The polynomials here are of least weighted error (Remez), each coefficient rounded before those after it were fitted.
// Steps of the forward functions: gelu 37, gelu_tanh 30, mish 31.
#pragma once
#include "elementary.cuh"

struct Usual {
  typedef float A;
  typedef series<float> S;

  // exp(x + more) = scale (1 + part), |part| < 0.42; |x| < 87.
  struct Power {
    A part, scale;
    // 1 + exp with one rounding of weight. That of scale + 1 is none below 2^24.
    DEVICE A plus_one() const {
      const A moderate = fmaf(scale, part, scale + A(1)), large = fmaf(scale, part, A(1)) + scale;
      return scale < A(4096) ? moderate : large;
    }
    DEVICE A value() const { return fmaf(scale, part, scale); }
  };
  // x / ln 2 to the nearest integer n, as SHIFT + n; and 2^n of that.
  static constexpr A SHIFT = 12582912.0f;
  static DEVICE A shifted(A x) { return fmaf(x, S::log2e(), SHIFT); }
  static DEVICE A scale_of(A shifted, u32 one = 0x3f800000u) {
    return bits_to_float((float_to_bits(shifted) << 23) + one);
  }
  static DEVICE Power power_of(A r, A t) {
    // e^r = 1 + r + r^2 tail(r), 2^-26.8 of it, is enough here.
    const A part = fmaf(r * r, series<Sixteen>::exp_tail(r), r);
    return {part, scale_of(t)};
  }
  // The same with the longer polynomial, for where every ulp of the exponential counts.
  static DEVICE Power power_closely(A x) {
    const A t = shifted(x), k = t - SHIFT, r = fmaf(-k, S::ln2_lo(), fmaf(-k, S::ln2_hi(), x));
    return {fmaf(r * r, S::exp_tail(r), r), scale_of(t)};
  }
  static DEVICE Power power(A x) {
    const A t = shifted(x), k = t - SHIFT;
    return power_of(fmaf(-k, S::ln2_lo(), fmaf(-k, S::ln2_hi(), x)), t);
  }
  static DEVICE Power power(A x, A more) {
    const A t = shifted(x), k = t - SHIFT;
    return power_of(fmaf(-k, S::ln2_hi(), x) + fmaf(-k, S::ln2_lo(), more), t);
  }

  // 2^f - 1 for |f| <= 1 / 2: one rounding, and 2^-28.3 of 2^f.
  static DEVICE A part_of(A f) {
    const A tail = polynomial(f, 0.24022648f, 0.055503596f, 0.009618503f, 0.0013390997f, 1.5327828e-04f);
    return fmaf(f, A(0.6931472f), (f * f) * tail);
  }
  // exp(x) by the fraction of x / ln 2, as close as by the longer polynomial and an instruction less.
  static DEVICE Power binary_power(A x) {
    const A t = shifted(x), f = fmaf(x, S::log2e_lo(), fmaf(x, S::log2e(), SHIFT - t));
    return {part_of(f), scale_of(t)};
  }

  // n / d with one rounding.
  static DEVICE A ratio(A n, A d) {
    const A inverse = reciprocal_normal(d), q = n * inverse;
    return fmaf(fmaf(-q, d, n), inverse, q);
  }

  static DEVICE A exp(A x) {
    const A t = shifted(x), k = t - SHIFT;
    const A r = fmaf(-k, S::ln2_lo(), fmaf(-k, S::ln2_hi(), x));
    const A m = fmaf(r, fmaf(r, series<Sixteen>::exp_tail(r), A(1)), A(1));
    return bits_to_float(float_to_bits(m) + (float_to_bits(t) << 23));
  }
  static DEVICE A sigmoid(A x) { return reciprocal(power(-x).plus_one()); }
  static DEVICE A sigmoid(pair<A> t) { return reciprocal(power(-t.hi, -t.lo).plus_one()); }
  // e / (1 + e)^2, e = exp(-|x|)
  static DEVICE A sigmoid_slope(A x) {
    const A e = power(-magnitude(x)).value();
    return ratio(e, fmaf(e, e, fmaf(A(2), e, A(1))));
  }
  // x / d for a d in about [2^-100, 2^100]
  static DEVICE pair<A> divided(A x, A d) {
    const A inverse = reciprocal(d), q = x * inverse;
    return {q, fmaf(-q, d, x) * inverse};
  }
  static DEVICE pair<A> product(A a, A x) { return two_product(a, x); }
  // x / (1 + exp(-t))
  static DEVICE A gated(A x, pair<A> t) { return ratio(x, power(-t.hi, -t.lo).plus_one()); }
  static DEVICE A gated(A x) { return ratio(x, power(-x).plus_one()); }

  // log(1 + exp(-|t|))
  static DEVICE A softplus_tail(pair<A> t) {
    const A z = -magnitude(t.hi), more = t.hi < A(0) ? t.lo : -t.lo;
    const A e = power(z, more).value();
    return fmaf(e * e, S::log1p_tail(e - A(0.5)), e);
  }
  static DEVICE A log_sigmoid(A x) {
    const A e = power(-magnitude(x)).value();
    return (x < A(0) ? x : A(0)) - fmaf(e * e, S::log1p_tail(e - A(0.5)), e);
  }
  // factor (exp(x + more) - 1)
  static DEVICE A scaled_expm1(A factor, A x, A more = A(0)) {
    const Power e = power(x, more);
    const A s = factor * e.scale;
    return fmaf(s, e.part, s - factor);
  }

  // With t = exp(-2 |x|) - 1: tanh |x| = -t / (2 + t), for any x. The longer polynomial counts here, where t is small.
  static DEVICE A tanh(A x) {
    const Power e = power_closely(max_or_nan(A(-2) * magnitude(x), A(-40)));
    return with_sign(ratio(fmaf(e.scale, e.part, e.scale - A(1)), fmaf(e.scale, e.part, e.scale + A(1))), x);
  }

  // x - tanh x: for |x| < 0.95 the cube times a polynomial, else |x| - 1 + 2 / (1 + exp(2 |x|)). For any x.
  static DEVICE A tanhshrink(A x) {
    const pair<A> square = two_product(x, x), cube = times(x, square);
    const A tail = square.hi * polynomial(square.hi, -0.1333343f, 0.05398355f, -0.021959167f, 0.009098228f,
                                          -0.0038449448f, 0.0014296734f, -3.0093858e-04f);
    const A near = fmaf(cube.hi, A(1) / A(3), fmaf(cube.hi, tail, cube.lo * (A(1) / A(3))));
    const A a = magnitude(x);
    const Power e = power(min_or_nan(a + a, A(60)));
    const A far = fmaf(A(2), reciprocal(fmaf(e.scale, e.part, e.scale + A(1))), a - A(1));
    return a < A(0.95) ? near : with_sign(far, x);
  }

  // x u / (u + 2) with u = e (e + 2), e = exp(x); -15 < x < 40. With e = scale (1 + part) the scale leaves u, which then
  // has one rounding of weight; that and the one of d = u + 2 come back in the remainder. Without the first, one of all
  // floats, -10.0481567, errs by 2.005 ulp, on an NVIDIA H200 and in a model on the CPU, which has 1.54 at most with it.
  static DEVICE A mish(A x) {
    const Power e = binary_power(x);
    const A rising = fmaf(e.scale, e.part, fmaf(A(2), e.scale, A(2))), most = e.scale + A(2);
    const A u = fmaf(e.part, rising, most), u_lo = fmaf(e.part, rising, most - u);
    const A d = fmaf(e.scale, u, A(2)), d_lo = fmaf(e.scale, u, A(2) - d);
    const A inverse = reciprocal_normal(d), q = u * inverse, scaled_x = x * e.scale;
    return fmaf(scaled_x, q, (scaled_x * inverse) * (fmaf(-q, d_lo, fmaf(-q, d, u)) + u_lo));
  }

  // exp(-t) for t = x (k0 + k1 x^2), over ln 2 and with k0 + k1 x^2 as a pair: k0 is near + rest with a `near` of 12 bits,
  // which w - near leaves exact.
  static constexpr float linear = 2.3022082f, linear_near = 2.3017578f, linear_rest = 4.5038565e-04f;
  static constexpr float cubic = 0.10294324f, cubic_lo = -2.0161985e-09f;
  static DEVICE Power gelu_tanh_decay(A x, u32 one = 0x3f800000u) {
    const A square = x * x, w = fmaf(cubic, square, linear);
    A w_lo = fmaf(cubic, square, linear_near - w) + fmaf(cubic_lo, square, linear_rest);
    w_lo = fmaf(cubic, fmaf(x, x, -square), w_lo);
    const A t = fmaf(-x, w, SHIFT);
    return {part_of(fmaf(-x, w_lo, fmaf(-x, w, SHIFT - t))), scale_of(t, one)};
  }
  static DEVICE A gelu_tanh(A x) { return ratio(x, gelu_tanh_decay(x).plus_one()); }

  // exp(-x^2 / 2), |x| < 13: from r = x^2 + 2 k ln 2 with the tail of `power_of` at -r / 2. Two instructions less than
  // `power` and 2^-26 worse.
  static DEVICE Power density(A x) {
    const A square = x * x, t = fmaf(square, A(-0.5) * S::log2e(), SHIFT), k = t - SHIFT;
    const A r = fmaf(k, A(2) * S::ln2_hi(), square) + fmaf(k, A(2) * S::ln2_lo(), fmaf(x, x, -square));
    const A tail = polynomial(r, 0.125f, -0.16666576f / 8, 0.04166654f / 16, -0.008363255f / 32, 0.0013927493f / 64);
    return {r * fmaf(r, tail, A(-0.5)), scale_of(t)};
  }
  // With a = |x| < 8.6, s = a / (a + c): a Phi(-a) = exp(-a^2 / 2) / 2 s (1 + u), u of s within 2^-27.6 of 1 + u, which
  // also makes good that ln 2 is one float here. (1 + u)(1 + part) = 1 + v, so that s and the last sum alone have
  // roundings of weight. c and the last bits of the coefficients are the best of some 250 that were tried for the largest error
  // in a model on the CPU: most come to 1.96 to 2.05 ulp, these to 1.936, on an NVIDIA H200 too (all floats). Another that the
  // model gave 1.99, whose remainder of s forgot part of what a + c lost, had 2.03 there: change nothing without a sweep.
  static DEVICE A gelu(A x) {
    constexpr A c = 1.744140625f;
    const A a = magnitude(x), d = a + c, inverse = reciprocal_normal(d), rough = a * inverse;
    const A s = fmaf(fmaf(-rough, (c - d) + a, fmaf(-rough, d, a)), inverse, rough);
    const A u = fmaf(s, polynomial(s, -0.68304658f, -0.45729741f, -0.041546397f, 0.14108244f, 0.021987818f, 0.38870037f,
                                   -0.76598167f, 1.0471423f, -0.87745428f, 0.28024486f), c - A(1));
    const A half = A(-0.5) * x, square = half * x, t = shifted(square), k = t - SHIFT;
    const A r = fmaf(k, A(-0.6931472), square) + fmaf(half, x, -square);
    const A part = fmaf(r * r, S::exp_tail(r), r), v = fmaf(u, part, part) + u;
    return fmaf(-scale_of(t, 0x3f000000u), fmaf(s, v, s), max_or_nan(x, -A(0)));
  }
};

// Derivatives of the gates for usual arguments. Near their zero each is a polynomial in the distance from it, times that.
struct UsualSlopes {
  typedef float A;
  typedef series<float> S;
  typedef Usual U;

  // With e = exp(-t), (1 + e (1 + x t'(x))) / (1 + e)^2; `growth` is 1 + x t'.
  static DEVICE A swish(pair<A> t) {
    const A off = ((t.hi - S::swish_root_hi()) - S::swish_root_lo()) + t.lo;
    const A e = U::power(-t.hi, -t.lo).value();
    const A far = U::ratio(fmaf(e, A(1) + t.hi, fmaf(e, t.lo, A(1))), fmaf(e, e, fmaf(A(2), e, A(1))));
    // 2^-28.3
    const A near = off * polynomial(off, 0.2178117f, 0.1466488f, 0.018874874f, -0.01522229f, -0.0066080946f,
                                    1.2309887e-04f, 8.1227644e-04f, 1.90776e-04f, -8.351768e-05f);
    return off > A(-0.4) && off < A(0.75) ? near : far;
  }
  // With e 2^-32 for e, so that its square is a number for |x| < 8.6. 3.83 ulp in a model on the CPU (3.58 before); not yet
  // swept on a GPU.
  static DEVICE A gelu_tanh(A x) {
    constexpr A unit = 2.3283064e-10f, square_unit = unit * unit;
    const A off = (x - S::gelu_tanh_root_hi()) - S::gelu_tanh_root_lo();
    const U::Power power = U::gelu_tanh_decay(x, 0x2f800000u);
    const A e = power.value(), e_lo = fmaf(power.scale, power.part, power.scale - e);
    const A growth = fmaf(x, (unit * A(0.21406444881780075)) * (x * x), fmaf(unit * S::gelu_tanh_linear_hi(), x, unit));
    const A p = e * growth, n = p + square_unit, n_lo = (square_unit - (n - p)) + fmaf(e, growth, -p);
    const A more = fmaf(A(2) * unit, e, square_unit), d = fmaf(e, e, more), inverse = reciprocal_normal(d), q = n * inverse;
    // What n, d and e lost, in n.
    A rest = fmaf(-q, fmaf(e, e, more - d), fmaf(-q, d, n)) + n_lo;
    rest = fmaf(e_lo, fmaf(-q, fmaf(A(2), e, A(2) * unit), growth), rest);
    const A far = fmaf(rest, inverse, q);
    // 2^-27.5
    const A near = off * polynomial(off, 0.4304001f, 0.38751838f, -0.015782794f, -0.11393631f, -0.016619783f,
                                    0.01941978f, 0.005198809f);
    return magnitude(off) < A(0.25) ? near : far;
  }
  // e ((e + 2)(u + 2) + 4 x (1 + e)) / (u + 2)^2 with u = e (e + 2); |x| < 15.
  static DEVICE A mish(A x) {
    const A off = (x - S::mish_root_hi()) - S::mish_root_lo();
    const U::Power power = U::power(x);
    const A e = power.value(), two = e + A(2), two_lo = (A(2) - two) + e, d = fmaf(e, two, A(2));
    const A d_lo = fmaf(e, two, A(2) - d) + e * two_lo;
    const A four = A(4) * x, falling = fmaf(four, e, four), falling_lo = fmaf(four, e, four - falling);
    const A n = fmaf(two, d, falling), n_lo = fmaf(two_lo, d, falling_lo);
    const A inverse = reciprocal_normal(d), q = n * inverse, g = e * inverse;
    const A quotient = fmaf(fmaf(-q, d, n) + fmaf(-q, d_lo, n_lo), inverse, q);
    const A far = quotient * fmaf(fmaf(-g, d_lo, fmaf(-g, d, e)), inverse, g);
    // 2^-28.8
    const A near = off * polynomial(off, 0.26694793f, 0.20473127f, 0.041907746f, -0.020272003f, -0.015819332f,
                                    -0.003359689f, 0.0010770909f, 9.990338e-04f, 2.9623683e-04f, -1.0303718e-04f,
                                    -4.5850637e-05f);
    return off > A(-0.4) && off < A(1.05) ? near : far;
  }
  // Phi + x phi is d for x < 0 and 1 - d for x > 0, d = exp(-a^2 / 2) (a - root) k: no sum cancels, and s = a / (a + 4) need
  // not be right to the last bit where k, 2^-25.3 of it, hardly changes. For |x| < 8.6.
  static DEVICE A gelu(A x) {
    const A a = magnitude(x), q = fmaf(a, reciprocal_normal(a + A(4)), A(-0.375));
    const A k = polynomial(q, -0.49230927f, 0.2789813f, -0.34142727f, 0.30907354f, -0.1837682f, 0.041325893f,
                           0.029661031f, -0.018560322f);
    const U::Power e = U::density(x);
    const A n = from_root(a, k);
    return gelu_of_tail(x, fmaf(n, e.part, n) * e.scale);
  }
  // (a - root) k, to which the root's own rounding error adds with the k of its place.
  static DEVICE A from_root(A a, A k) {
    return fmaf(a + S::gelu_root_hi(), k, A(-0.57240617f) * S::gelu_root_lo());
  }
  static DEVICE A gelu_of_tail(A x, A d) { return x < A(0) ? d : A(1) - d; }
};
