// Loads and stores of VEC elements at once. VEC is 1 (any alignment) or what fills 16 bytes (16-byte aligned).
#pragma once
#include "dtypes.cuh"

template <int BYTES> struct word;
template <> struct word<1> {
  typedef u8 type;
};
template <> struct word<2> {
  typedef u16 type;
};
template <> struct word<4> {
  typedef u32 type;
};
template <> struct word<8> {
  typedef u64 type;
};
template <> struct word<16> {
  typedef uint4 type;
};

template <class T, int VEC> union pack {
  typedef typename word<sizeof(T) * VEC>::type whole;
  whole bits;
  T lane[VEC];
};

// Element VEC * i onwards.
template <int VEC, class T> DEVICE pack<T, VEC> load(const T* p, i64 i) {
  pack<T, VEC> v;
  v.bits = reinterpret_cast<const typename pack<T, VEC>::whole*>(p)[i];
  return v;
}
template <int VEC, class T> DEVICE void store(T* p, i64 i, pack<T, VEC> v) {
  reinterpret_cast<typename pack<T, VEC>::whole*>(p)[i] = v.bits;
}

// VEC accumulators, rounded; two 16-bit numbers take one instruction.
template <class T, int VEC, class A> DEVICE pack<T, VEC> rounded(const A (&v)[VEC]) {
  pack<T, VEC> r;
  if constexpr (sizeof(T) == 2 && VEC == 8) {
    typedef rounding<T> R;
    r.bits = uint4{R::from(v[0], v[1]), R::from(v[2], v[3]), R::from(v[4], v[5]), R::from(v[6], v[7])};
  } else {
#pragma unroll
    for (int k = 0; k < VEC; ++k) r.lane[k] = from_acc<T>(v[k]);
  }
  return r;
}

// alpha * result + beta * old, the old value untouched when beta is 0.
template <class T, class A> DEVICE T blend(A alpha, A result, A beta, const T* old) {
  A v = alpha * result;
  if (beta != A(0)) v += beta * to_acc(*old);
  return from_acc<T>(v);
}

// Elements VEC * i onwards of y become alpha * result + beta * y.
template <int VEC, class T, class A> DEVICE void store_blended(T* y, i64 i, const A (&result)[VEC], A alpha, A beta) {
  pack<T, VEC> v;
  if (beta != A(0)) v = load<VEC>(y, i);
#pragma unroll
  for (int k = 0; k < VEC; ++k) v.lane[k] = blend(alpha, result[k], beta, &v.lane[k]);
  store(y, i, v);
}
