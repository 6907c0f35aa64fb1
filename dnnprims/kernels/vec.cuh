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

// The same of what is soon to be read again, so that the L2 should let go of other things first, and for the last time.
template <int VEC, class T> DEVICE pack<T, VEC> load_again(const T* p, i64 i) {
  if constexpr (sizeof(T) * VEC != 16) return load<VEC>(p, i);
  else return pack<T, VEC>{load_retained(reinterpret_cast<const uint4*>(p) + i)};
}
template <int VEC, class T> DEVICE pack<T, VEC> load_last(const T* p, i64 i) {
  if constexpr (sizeof(T) * VEC != 16) return load<VEC>(p, i);
  else return pack<T, VEC>{load_released(reinterpret_cast<const uint4*>(p) + i)};
}

// The elements of a pack as accumulators.
template <class T, int VEC, class A> DEVICE void unpack(A (&v)[VEC], const pack<T, VEC>& in) {
#pragma unroll
  for (int k = 0; k < VEC; ++k) v[k] = to_acc(in.lane[k]);
}
// VEC accumulators, rounded; two 16-bit numbers take one instruction.
template <class T, int VEC, class A> DEVICE pack<T, VEC> rounded(const A (&v)[VEC]) {
  pack<T, VEC> r;
  if constexpr (sizeof(T) == 2 && VEC == 8) {
    typedef rounding<T> R;
    r.bits = uint4{R::from(v[0], v[1]), R::from(v[2], v[3]), R::from(v[4], v[5]), R::from(v[6], v[7])};
  } else if constexpr (sizeof(T) == 2 && VEC == 4) {
    typedef rounding<T> R;
    r.bits = (u64)R::from(v[0], v[1]) | (u64)R::from(v[2], v[3]) << 32;
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
  A v[VEC];
#pragma unroll
  for (int k = 0; k < VEC; ++k) v[k] = alpha * result[k];
  if (beta != A(0)) {
    const pack<T, VEC> old = load<VEC>(y, i);
#pragma unroll
    for (int k = 0; k < VEC; ++k) v[k] += beta * to_acc(old.lane[k]);
  }
  store(y, i, rounded<T>(v));
}
