// An activation of several numbers at once, by the short way where that holds for all of them; F is a functor of
// activation.cuh.
#pragma once
#include "dtypes.cuh"

// result[k] = f(a[k], b[k]), one after the other. Each number comes to the front and its result goes to the back, so that
// registers are enough.
template <int VEC, class A, class F> DEVICE void in_turn(const A (&a)[VEC], const A (&b)[VEC], A (&result)[VEC], F f) {
  A first[VEC], second[VEC];
#pragma unroll
  for (int k = 0; k < VEC; ++k) first[k] = a[k], second[k] = b[k], result[k] = A(0);
#pragma unroll 1
  for (int i = 0; i < VEC; ++i) {
    const A found = f(first[0], second[0]);
#pragma unroll
    for (int k = 0; k + 1 < VEC; ++k) first[k] = first[k + 1], second[k] = second[k + 1], result[k] = result[k + 1];
    result[VEC - 1] = found;
  }
}

// Each by itself, where there is a long way in a loop that is not unrolled: its text is long and its case rare.
template <class F, class A, int VEC> DEVICE void forward_each(const F& f, const A (&x)[VEC], A (&y)[VEC]) {
  if constexpr (F::SHORT_FORWARD) {
    in_turn(x, x, y, [&](A v, A) { return f.forward(v); });
  } else {
#pragma unroll
    for (int k = 0; k < VEC; ++k) y[k] = f.forward(x[k]);
  }
}
template <class F, class A, int VEC>
DEVICE void backward_each(const F& f, const A (&dy)[VEC], const A (&saved)[VEC], A (&dx)[VEC]) {
  if constexpr (F::SHORT_BACKWARD) {
    in_turn(saved, dy, dx, [&](A v, A d) { return f.backward(d, v); });
  } else {
#pragma unroll
    for (int k = 0; k < VEC; ++k) dx[k] = f.backward(dy[k], saved[k]);
  }
}

// The short way where all numbers are usual.
template <class F, class A, int VEC> DEVICE void forward_all(const F& f, const A (&x)[VEC], A (&y)[VEC]) {
  if constexpr (F::SHORT_FORWARD) {
    bool usual = true;
#pragma unroll
    for (int k = 0; k < VEC; ++k) usual &= f.usual(x[k]);
    if (!usual) return forward_each(f, x, y);
#pragma unroll
    for (int k = 0; k < VEC; ++k) y[k] = f.usual_forward(x[k]);
  } else {
    forward_each(f, x, y);
  }
}
template <class F, class A, int VEC>
DEVICE void backward_all(const F& f, const A (&dy)[VEC], const A (&saved)[VEC], A (&dx)[VEC]) {
  if constexpr (F::SHORT_BACKWARD) {
    bool usual = true;
#pragma unroll
    for (int k = 0; k < VEC; ++k) usual &= f.usual(saved[k]);
    if (!usual) return backward_each(f, dy, saved, dx);
#pragma unroll
    for (int k = 0; k < VEC; ++k) dx[k] = f.usual_backward(dy[k], saved[k]);
  } else {
    backward_each(f, dy, saved, dx);
  }
}
