// What all of softmax's kernels share. The maths, plan and numerics are told at the head of softmax.cu.
#pragma once
#include "rows.cuh"

constexpr int ACCURATE = 0, FAST = 1, LOG = 2;

template <class T> struct SoftmaxForwardParams {
  T* y;
  const T* x;
  acc_t<T> alpha, beta;
  i64 rows, cols, inner;
  int algorithm, lanes;
  int kept;  // packs of a row that *_long keeps in shared memory
};
template <class T> struct SoftmaxBackwardParams {
  T* dx;
  const T* dy;
  const T* y;
  acc_t<T> alpha, beta;
  i64 rows, cols, inner;
  int algorithm, lanes;
  int kept;  // packs of a row that *_long keeps in shared memory
};

// What takes an element's part to its result: the factor 1 / sum, or the logarithm of the sum of exponentials. NaN where
// the sum left the range of the accumulator; `fast` is held to that of the exponentials themselves.
template <class T> DEVICE acc_t<T> normalizer(acc_t<T> top, acc_t<T> sum, int algorithm) {
  typedef acc_t<T> A;
  const A exponentials = sum * Power<T>::inverse_unit;
  const A checked = algorithm == FAST ? exponentials * math<T>::exp_term(top) : exponentials;
  if (!(checked > A(0) && checked < limits<A>::infinity())) return limits<A>::nan();
  return algorithm == LOG ? math<T>::log(exponentials) : A(1) / sum;
}
template <class T, class A> DEVICE A normalized(A x, A top, A norm, bool log) {
  return log ? (x - top) - norm : Power<T>::of(x - top) * norm;
}
// What has the room for them is kept as the first step left it.
template <class T> constexpr bool keeps_powers = sizeof(T) == sizeof(acc_t<T>);

// The same in two steps. The first leaves x - top for the logarithm, else the powers, and returns their sum.
template <class T, int VEC, class A> DEVICE A powers_below(A (&v)[VEC], A top, bool log) {
  A sum = A(0);
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    const A shifted = v[i] - top, power = Power<T>::of(shifted);
    sum += power;
    v[i] = log ? shifted : power;
  }
  return sum;
}
template <int VEC, class A> DEVICE void normalize(A (&v)[VEC], A norm, bool log) {
#pragma unroll
  for (int i = 0; i < VEC; ++i) v[i] = log ? v[i] - norm : v[i] * norm;
}

template <class A> DEVICE A backward_term(A dy, A y, bool log) { return log ? dy : dy * y; }
template <class T, class A> DEVICE A backward_result(A dy, A y, A sum, bool log) {
  return log ? dy - math<T>::exp_term(y) * sum : y * (dy - sum);
}
