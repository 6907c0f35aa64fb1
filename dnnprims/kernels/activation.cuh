// The activations as functors over a storage type T, for every kernel that applies one.
//
// Each is built from its parameters, `F{c0, c1}` in the order of the descriptor (in acc_t<T>), and has
//   forward(x)        y = f(x)
//   backward(dy, x)   dx = dy f'(x)
// and, where y tells f' as well, backward_from_output(dy, y); FromOutput<F> puts that in the place of backward.
// At a kink the derivative is that of the piece that contains the point; pieces that are constant give exactly 0
// whatever dy is. NaN in x or y reaches dx. T matters for accuracy (math<T>) and because y was rounded to T: a bound
// such as ceiling is compared with y as T holds it.
#pragma once
#include "activation_all.cuh"
#include "gates.cuh"

// dy where `passes`, 0 where `stops`, NaN where neither holds because v is NaN.
template <class A> DEVICE A masked(A dy, bool passes, bool stops, A v) { return passes ? dy : stops ? A(0) : v; }
// v as it comes back from storage.
template <class T> DEVICE acc_t<T> stored(acc_t<T> v) { return to_acc(from_acc<T>(v)); }

template <class F> struct FromOutput : F {
  static constexpr bool SHORT_BACKWARD = false;
  template <class A> DEVICE A backward(A dy, A y) const { return F::backward_from_output(dy, y); }
};

#define ACTIVATION_TYPES \
  typedef T storage;     \
  typedef acc_t<T> A;    \
  typedef math<T> M;     \
  A c0, c1;
#define ACTIVATION_MEMBERS                                             \
  static constexpr bool SHORT_FORWARD = false, SHORT_BACKWARD = false; \
  ACTIVATION_TYPES

// Members of the activations that have a short way in float: usual(x) tells where it holds, usual_forward(x) and
// usual_backward(dy, x) are that way, and forward and backward take it there. A kernel that has several numbers at hand
// asks for all of them at once.
#define ACTIVATION_MEMBERS_WITH_SHORT_WAY                                           \
  static constexpr bool SHORT_FORWARD = math<T>::SHORT, SHORT_BACKWARD = SHORT_FORWARD; \
  ACTIVATION_TYPES                                                                  \
  DEVICE A forward(A x) const {                                                     \
    if constexpr (SHORT_FORWARD)                                                    \
      if (usual(x)) return usual_forward(x);                                        \
    return any_forward(x);                                                          \
  }                                                                                 \
  DEVICE A backward(A dy, A x) const {                                              \
    if constexpr (SHORT_BACKWARD)                                                   \
      if (usual(x)) return usual_backward(dy, x);                                   \
    return any_backward(dy, x);                                                     \
  }

// ---- pieces of straight lines ---------------------------------------------------------------------------------------

template <class T> struct Identity {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return x; }
  DEVICE A backward(A dy, A) const { return dy; }
  DEVICE A backward_from_output(A dy, A) const { return dy; }
};
template <class T> struct Relu {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return x <= A(0) ? A(0) : x; }
  DEVICE A backward(A dy, A x) const { return masked(dy, x > A(0), x <= A(0), x); }
  DEVICE A backward_from_output(A dy, A y) const { return backward(dy, y); }
};
// c0 = ceiling
template <class T> struct ClippedRelu {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return clamped(x, A(0), c0); }
  DEVICE A backward(A dy, A x) const { return inside(dy, x, c0); }
  DEVICE A backward_from_output(A dy, A y) const { return inside(dy, y, stored<T>(c0)); }
  static DEVICE A inside(A dy, A v, A top) { return masked(dy, v > A(0) && v < top, v <= A(0) || v >= top, v); }
};
// c0 = slope. Only a slope >= 0 keeps the sign that backward_from_output looks at.
template <class T> struct LeakyRelu {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return x > A(0) ? x : c0 * x; }
  DEVICE A backward(A dy, A x) const { return x > A(0) ? dy : x <= A(0) ? c0 * dy : x; }
  DEVICE A backward_from_output(A dy, A y) const { return backward(dy, y); }
};
// c0 = threshold, c1 = value. From y where value <= threshold.
template <class T> struct Threshold {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return x <= c0 ? c1 : x; }
  DEVICE A backward(A dy, A x) const { return masked(dy, x > c0, x <= c0, x); }
  DEVICE A backward_from_output(A dy, A y) const {
    bool passes = y > c0 && y != stored<T>(c1);
    return masked(dy, passes, !passes && y == y, y);
  }
};
// c0 = lambd
template <class T> struct Softshrink {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return x > c0 ? x - c0 : x < -c0 ? x + c0 : x == x ? A(0) : x; }
  DEVICE A backward(A dy, A x) const { return masked(dy, magnitude(x) > c0, magnitude(x) <= c0, x); }
  DEVICE A backward_from_output(A dy, A y) const { return masked(dy, magnitude(y) > A(0), y == A(0), y); }
};
template <class T> struct Hardshrink {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return magnitude(x) <= c0 ? A(0) : x; }
  DEVICE A backward(A dy, A x) const { return masked(dy, magnitude(x) > c0, magnitude(x) <= c0, x); }
  DEVICE A backward_from_output(A dy, A y) const { return masked(dy, magnitude(y) > A(0), y == A(0), y); }
};
// c0 = slope, c1 = offset. That slope * x + offset rounds to 1 does not put x beyond the kink.
template <class T> struct HardSigmoid {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return clamped(fma_(c0, x, c1), A(0), A(1)); }
  DEVICE A backward(A dy, A x) const {
    bool inside = fma_(c0, x, c1) > A(0) && fma_(c0, x, c1 - A(1)) < A(0);
    return masked(c0 * dy, inside, !inside && x == x, x);
  }
  DEVICE A backward_from_output(A dy, A y) const {
    bool inside = y > A(0) && y < A(1);
    return masked(c0 * dy, inside, !inside && y == y, y);
  }
};
// c0 = low, c1 = high
template <class T> struct HardTanh {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return clamped(x, c0, c1); }
  DEVICE A backward(A dy, A x) const { return inside(dy, x, c0, c1); }
  DEVICE A backward_from_output(A dy, A y) const { return inside(dy, y, stored<T>(c0), stored<T>(c1)); }
  static DEVICE A inside(A dy, A v, A low, A high) {
    return masked(dy, v > low && v < high, v <= low || v >= high, v);
  }
};
template <class T> struct Abs {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return magnitude(x); }
  DEVICE A backward(A dy, A x) const { return x > A(0) ? dy : x < A(0) ? -dy : x == x ? A(0) : x; }
};

// ---- polynomials and roots ------------------------------------------------------------------------------------------

// x (x + 3) / 6 between -3 and 3, with the rounding errors of sum and product.
template <class T> struct HardSwish {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const {
    if constexpr (sizeof(T) == 2) return x <= A(-3) ? A(0) : x >= A(3) ? x : x * ((x + A(3)) * (A(1) / A(6)));
    const pair<A> n = times(x, two_sum(x, A(3)));
    const A within = quotient(n, pair<A>{A(6), A(0)}, A(1) / A(6));
    return x <= A(-3) ? A(0) : x >= A(3) ? x : within;
  }
  DEVICE A backward(A dy, A x) const {
    const A n = fma_(A(2), x, A(3)), q = n * (A(1) / A(6)), within = fma_(fma_(A(-6), q, n), A(1) / A(6), q);
    return x <= A(-3) ? A(0) : x >= A(3) ? dy : dy * within;
  }
};
template <class T> struct SquaredRelu {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return x <= A(0) ? A(0) : x * x; }
  DEVICE A backward(A dy, A x) const { return x <= A(0) ? A(0) : dy * (A(2) * x); }
};
template <class T> struct Square {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return x * x; }
  DEVICE A backward(A dy, A x) const { return dy * (A(2) * x); }
};
template <class T> struct Sqrt {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return sqrt(x); }
  // The root of a float is 0, infinite, NaN or far from subnormal: 1 ulp of it is the bare reciprocal's.
  DEVICE A backward(A dy, A x) const { return dy * (A(0.5) * rough_reciprocal(sqrt(x))); }
  DEVICE A backward_from_output(A dy, A y) const { return dy * (A(0.5) / y); }
};

// ---- exponentials ---------------------------------------------------------------------------------------------------

template <class T> struct Exp {
  ACTIVATION_MEMBERS_WITH_SHORT_WAY
  DEVICE bool usual(A x) const { return magnitude(x) < A(87); }
  DEVICE A usual_forward(A x) const { return Usual::exp(x); }
  DEVICE A usual_backward(A dy, A x) const { return dy * Usual::exp(x); }
  DEVICE A any_forward(A x) const { return M::exp(x); }
  DEVICE A any_backward(A dy, A x) const { return dy * M::exp(x); }
  DEVICE A backward_from_output(A dy, A y) const { return dy * y; }
};
template <class T> struct Log {
  static constexpr bool SHORT_FORWARD = sizeof(acc_t<T>) == sizeof(float), SHORT_BACKWARD = false;
  ACTIVATION_TYPES
  // In 16 bits all but what a float holds as subnormal.
  DEVICE bool usual(A x) const {
    if constexpr (sizeof(T) == 2) return !(magnitude(x) < A(1.2e-38));
    else return magnitude(x) > A(1.2e-38) && magnitude(x) < limits<A>::infinity();
  }
  DEVICE A usual_forward(A x) const { return M::log_usual(x); }
  DEVICE A forward(A x) const {
    if constexpr (SHORT_FORWARD)
      if (usual(x)) return usual_forward(x);
    return M::log(x);
  }
  DEVICE A backward(A dy, A x) const { return dy * (x < A(0) ? limits<A>::nan() : M::inverse(x)); }
};
// c0 = alpha. From y where alpha >= 0.
template <class T> struct Elu {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return x > A(0) ? x : M::scaled_expm1_below(c0, x); }
  DEVICE A backward(A dy, A x) const { return x > A(0) ? dy : dy * M::scaled_exp(c0, x); }
  DEVICE A backward_from_output(A dy, A y) const { return y > A(0) ? dy : dy * (y + c0); }
};
// c0 = alpha
template <class T> struct Celu {
  ACTIVATION_MEMBERS_WITH_SHORT_WAY
  DEVICE bool usual(A x) const { return magnitude(x) < A(80) * c0 && c0 > A(1e-6) && c0 < A(1e6); }
  DEVICE A usual_forward(A x) const {
    const pair<A> t = Usual::divided(x, c0);
    const A below = Usual::scaled_expm1(c0, t.hi, t.lo);
    return x > A(0) ? x : below;
  }
  DEVICE A usual_backward(A dy, A x) const {
    const pair<A> t = Usual::divided(x, c0);
    const A below = dy * Usual::power(t.hi, t.lo).value();
    return x > A(0) ? dy : below;
  }
  DEVICE A any_forward(A x) const {
    const pair<A> t = M::divided(x, c0);
    return x > A(0) ? x : M::scaled_expm1(c0, t.hi, t.lo);
  }
  DEVICE A any_backward(A dy, A x) const {
    const pair<A> t = M::divided(x, c0);
    return x > A(0) ? dy : dy * M::scaled_exp(A(1), t.hi, t.lo);
  }
  DEVICE A backward_from_output(A dy, A y) const { return y > A(0) ? dy : dy * ((y + c0) / c0); }
};
template <class T> struct Selu {
  ACTIVATION_MEMBERS
  typedef series<A> S;
  DEVICE A forward(A x) const {
    if (x > A(0)) return x * S::selu_scale_hi();
    return M::scaled_expm1_below(S::selu_scaled_alpha_hi(), x);
  }
  DEVICE A backward(A dy, A x) const {
    return dy * (x > A(0) ? S::selu_scale_hi() : M::scaled_exp(S::selu_scaled_alpha_hi(), x));
  }
  DEVICE A backward_from_output(A dy, A y) const {
    return dy * (y > A(0) ? S::selu_scale_hi() : (y + S::selu_scaled_alpha_hi()) + S::selu_scaled_alpha_lo());
  }
};
template <class T> struct Sigmoid {
  ACTIVATION_MEMBERS_WITH_SHORT_WAY
  DEVICE bool usual(A x) const { return magnitude(x) < A(80); }
  DEVICE A usual_forward(A x) const { return Usual::sigmoid(x); }
  DEVICE A usual_backward(A dy, A x) const { return dy * Usual::sigmoid_slope(x); }
  DEVICE A any_forward(A x) const { return M::sigmoid(x); }
  DEVICE A any_backward(A dy, A x) const { return dy * M::sigmoid_slope(x); }
  DEVICE A backward_from_output(A dy, A y) const { return dy * (y * (A(1) - y)); }
};
template <class T> struct LogSigmoid {
  ACTIVATION_MEMBERS_WITH_SHORT_WAY
  DEVICE bool usual(A x) const { return magnitude(x) < A(80); }
  DEVICE A usual_forward(A x) const { return Usual::log_sigmoid(x); }
  DEVICE A usual_backward(A dy, A x) const { return dy * Usual::sigmoid(-x); }
  DEVICE A any_forward(A x) const {
    return M::log_sigmoid(x);
  }
  DEVICE A any_backward(A dy, A x) const { return dy * M::sigmoid(-x); }
  DEVICE A backward_from_output(A dy, A y) const { return dy * -M::expm1(y); }
};
template <class T> struct Tanh {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return M::tanh(x); }
  DEVICE A backward(A dy, A x) const { return dy * M::tanh_slope(x); }
  DEVICE A backward_from_output(A dy, A y) const { return dy * ((A(1) - y) * (A(1) + y)); }
};
template <class T> struct Tanhshrink {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return M::tanhshrink(x); }
  DEVICE A backward(A dy, A x) const {
    const A t = M::tanh_closely(x);
    return dy * (t * t);
  }
};
template <class T> struct Softsign {
  ACTIVATION_MEMBERS
  DEVICE A forward(A x) const { return M::softsign(x); }
  DEVICE A backward(A dy, A x) const { return dy * M::softsign_slope(x); }
  DEVICE A backward_from_output(A dy, A y) const {
    const A r = A(1) - magnitude(y);
    return dy * (r * r);
  }
};
// c0 = beta, c1 = threshold, which the exact beta * x is compared with.
template <class T> struct Softplus {
  ACTIVATION_MEMBERS_WITH_SHORT_WAY
  DEVICE bool usual(A x) const { return magnitude(c0 * x) < A(80) && c0 > A(1e-6) && c0 < A(1e6); }
  DEVICE A usual_forward(A x) const { return usual_softplus(x); }
  DEVICE A usual_backward(A dy, A x) const { return usual_slope(dy, x); }
  DEVICE A any_forward(A x) const {
    const pair<A> t = M::product(c0, x);
    const A y = M::plus_softplus_tail(x > A(0) ? x : A(0), t, c0);
    return above(t) ? x : y;
  }
  DEVICE A any_backward(A dy, A x) const {
    const pair<A> t = M::product(c0, x);
    return above(t) ? dy : dy * M::sigmoid(t);
  }
  DEVICE bool above(pair<A> t) const { return t.hi > c1 || (t.hi == c1 && t.lo > A(0)); }
  DEVICE A usual_softplus(A x) const {
    // The usual beta takes no division.
    if (c0 == A(1)) {
      const A y = -Usual::log_sigmoid(-x);
      return x > c1 ? x : y;
    }
    const pair<A> t = Usual::product(c0, x);
    const A y = (x > A(0) ? x : A(0)) + Usual::ratio(Usual::softplus_tail(t), c0);
    return above(t) ? x : y;
  }
  DEVICE A usual_slope(A dy, A x) const {
    const pair<A> t = Usual::product(c0, x);
    return above(t) ? dy : dy * Usual::sigmoid(t);
  }
};

// ---- gates ----------------------------------------------------------------------------------------------------------

template <class T> struct Gelu {
  ACTIVATION_MEMBERS_WITH_SHORT_WAY
  DEVICE bool usual(A x) const { return magnitude(x) < A(8.6); }
  DEVICE A usual_forward(A x) const { return Usual::gelu(x); }
  DEVICE A usual_backward(A dy, A x) const { return dy * UsualSlopes::gelu(x); }
  DEVICE A any_forward(A x) const { return gates<T>::gelu(x); }
  DEVICE A any_backward(A dy, A x) const { return dy * gates<T>::gelu_slope(x); }
};
template <class T> struct GeluTanh {
  ACTIVATION_MEMBERS_WITH_SHORT_WAY
  DEVICE bool usual(A x) const { return magnitude(x) < A(8.6); }
  DEVICE A usual_forward(A x) const { return Usual::gelu_tanh(x); }
  DEVICE A usual_backward(A dy, A x) const { return dy * UsualSlopes::gelu_tanh(x); }
  DEVICE A any_forward(A x) const { return gates<T>::gelu_tanh(x); }
  DEVICE A any_backward(A dy, A x) const { return dy * gates<T>::gelu_tanh_slope(x); }
};
// c0 = beta
template <class T> struct Swish {
  ACTIVATION_MEMBERS_WITH_SHORT_WAY
  DEVICE bool usual(A x) const { return magnitude(c0 * x) < A(40); }
  DEVICE A usual_forward(A x) const { return Usual::gated(x, Usual::product(c0, x)); }
  DEVICE A usual_backward(A dy, A x) const { return dy * UsualSlopes::swish(Usual::product(c0, x)); }
  DEVICE A any_forward(A x) const { return gates<T>::swish(x, c0); }
  DEVICE A any_backward(A dy, A x) const { return dy * gates<T>::swish_slope(x, c0); }
};
template <class T> struct Mish {
  ACTIVATION_MEMBERS_WITH_SHORT_WAY
  DEVICE bool usual(A x) const { return magnitude(x) < A(15); }
  DEVICE A usual_forward(A x) const { return Usual::mish(x); }
  DEVICE A usual_backward(A dy, A x) const { return dy * UsualSlopes::mish(x); }
  DEVICE A any_forward(A x) const { return gates<T>::mish(x); }
  DEVICE A any_backward(A dy, A x) const { return dy * gates<T>::mish_slope(x); }
};
