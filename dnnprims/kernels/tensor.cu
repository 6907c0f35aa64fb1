// Small tensor operations: set, scale, add with broadcasting, cast.
//
//   set    y = value, cast to T            scale  y = alpha * y
//   add    c = alpha * a + beta * c        a broadcast to c; with beta 0 the old c is never read
//   cast   y = x in another element type
// Pointers: y, c of T, a of T, x of the source type S; up to 8 axes with any steps.
// Plan: *_packed walks contiguous memory (or memory that all operands share the order of), 16 bytes a thread;
//   *_strided takes any steps: VEC elements a thread where the last axis lies densely, else one.
// Numerics: alpha and beta in the accumulator of T, one rounding at the end. A cast rounds once, to nearest even; to an
//   integer it cuts the fraction off, the ends of the range take what lies beyond them, and NaN becomes 0.
// Cost: one read and one write of each element (set: the write alone; add: both operands and the write); 0 to 3
//   flops, and in the strided kernels a division for each axis but the outermost.
// Limits: none on shape or alignment (VEC is 1 where 16-byte accesses are not possible).
#include "strided.cuh"
#include "vec.cuh"

template <class T> struct SetParams {
  T* y;
  double value;
  i64 size;
  axes extent, step;
};
template <class T> struct ScaleParams {
  T* y;
  double alpha;
  i64 size;
  axes extent, step;
};
template <class T> struct AddParams {
  T* c;
  const T* a;
  acc_t<T> alpha, beta;
  i64 size;
  axes extent, c_step, a_step;
};
template <class T> struct CastParams {
  T* y;
  const void* x;
  i64 size;
  axes extent, y_step, x_step;
};

// Elements from VEC * i on that are there.
template <int VEC> DEVICE int present(i64 size, i64 i) {
  const i64 left = size - i * VEC;
  return left < VEC ? (left > 0 ? (int)left : 0) : VEC;
}

// ---- conversions -------------------------------------------------------------------------------------------------------

template <class T> constexpr bool integral = false;
template <> constexpr bool integral<int> = true;
template <> constexpr bool integral<i64> = true;
template <> constexpr bool integral<u8> = true;

template <class T> struct range;
template <> struct range<int> {
  static constexpr i64 low = -0x80000000ll, high = 0x7fffffffll;
};
template <> struct range<i64> {
  static constexpr i64 low = -0x7fffffffffffffffll - 1, high = 0x7fffffffffffffffll;
};
template <> struct range<u8> {
  static constexpr i64 low = 0, high = 255;
};

// A float on the way to a 16-bit type, rounded to odd: the second rounding is then as if it were the only one.
DEVICE float narrow_to_odd(double v) {
  const float near = (float)v;
  const u32 bits = float_to_bits(near);
  const double back = near;
  if (back == v || v != v || (bits & 1)) return near;
  return bits_to_float((back < 0 ? -back : back) < (v < 0 ? -v : v) ? bits + 1 : bits - 1);
}
// The 24 leading bits with all others folded into the last one: exact in float.
DEVICE float narrow_to_odd(i64 v) {
  u64 magnitude = v < 0 ? 0 - (u64)v : (u64)v;
  float scale = 1.0f;
  while (magnitude >> 24) {
    magnitude = (magnitude >> 1) | (magnitude & 1);
    scale *= 2.0f;
  }
  const float rounded = (float)(i64)magnitude * scale;
  return v < 0 ? -rounded : rounded;
}
DEVICE float narrow_to_odd(float v) { return v; }

template <class T, class A> DEVICE T to_integer(A v) {
  if constexpr (integral<A>) {
    return (T)(v < range<T>::low ? range<T>::low : v > range<T>::high ? range<T>::high : v);
  } else {
    // high + 1 is a power of two, so that both ends are exact in A
    const A end = (A)(range<T>::high / 2 + 1) * A(2);
    if (v != v) return T(0);
    return v <= (A)range<T>::low ? (T)range<T>::low : v >= end ? (T)range<T>::high : (T)v;
  }
}
template <class T, class S> DEVICE T convert(S v) {
  if constexpr (integral<T>) {
    return to_integer<T>(to_acc(v));
  } else if constexpr (sizeof(T) == 2) {
    return from_acc<T>(narrow_to_odd(to_acc(v)));
  } else {
    return (T)to_acc(v);
  }
}

// ---- set ------------------------------------------------------------------------------------------------------------

template <class T, int VEC> __global__ void __launch_bounds__(256) set_packed(const SetParams<T> p) {
  const i64 i = global_thread();
  const int count = present<VEC>(p.size, i);
  const T value = convert<T>(p.value);
  pack<T, VEC> v;
#pragma unroll
  for (int k = 0; k < VEC; ++k) v.lane[k] = value;
  if (count == VEC) return store(p.y, i, v);
  for (int k = 0; k < count; ++k) p.y[i * VEC + k] = value;
}

template <class T> __global__ void __launch_bounds__(256) set_strided(const SetParams<T> p) {
  const i64 i = global_thread();
  if (i < p.size) p.y[offsets_of(i, p.extent, p.step).in[0]] = convert<T>(p.value);
}

// ---- scale ----------------------------------------------------------------------------------------------------------

template <class T, int VEC> __global__ void __launch_bounds__(256) scale_packed(const ScaleParams<T> p) {
  const i64 i = global_thread();
  const int count = present<VEC>(p.size, i);
  const acc_t<T> alpha = (acc_t<T>)p.alpha;
  if (count == VEC) {
    pack<T, VEC> v = load<VEC>(p.y, i);
#pragma unroll
    for (int k = 0; k < VEC; ++k) v.lane[k] = from_acc<T>(alpha * to_acc(v.lane[k]));
    return store(p.y, i, v);
  }
  for (i64 at = i * VEC; at < i * VEC + count; ++at) p.y[at] = from_acc<T>(alpha * to_acc(p.y[at]));
}

template <class T> __global__ void __launch_bounds__(256) scale_strided(const ScaleParams<T> p) {
  const i64 i = global_thread();
  if (i >= p.size) return;
  const i64 at = offsets_of(i, p.extent, p.step).in[0];
  p.y[at] = from_acc<T>((acc_t<T>)p.alpha * to_acc(p.y[at]));
}

// ---- add ------------------------------------------------------------------------------------------------------------

template <class T, int VEC> __global__ void __launch_bounds__(256) add_packed(const AddParams<T> p) {
  const i64 i = global_thread();
  const int count = present<VEC>(p.size, i);
  if (count == VEC) {
    const pack<T, VEC> a = load<VEC>(p.a, i);
    acc_t<T> v[VEC];
#pragma unroll
    for (int k = 0; k < VEC; ++k) v[k] = to_acc(a.lane[k]);
    return store_blended<VEC>(p.c, i, v, p.alpha, p.beta);
  }
  for (i64 at = i * VEC; at < i * VEC + count; ++at) p.c[at] = blend(p.alpha, to_acc(p.a[at]), p.beta, p.c + at);
}

// With VEC > 1 the last axis has step 1 in c and 0 or 1 in a, and every other step is a multiple of VEC.
template <class T, int VEC> __global__ void __launch_bounds__(256) add_strided(const AddParams<T> p) {
  const i64 i = global_thread();
  if (i * VEC >= p.size) return;
  const offsets<2> at = offsets_of(i * VEC, p.extent, p.c_step, p.a_step);
  acc_t<T> v[VEC];
  if (VEC > 1 && p.a_step.of[MAX_AXES - 1] != 0) {
    const pack<T, VEC> a = load<VEC>(p.a + at.in[1], 0);
#pragma unroll
    for (int k = 0; k < VEC; ++k) v[k] = to_acc(a.lane[k]);
  } else {
    const acc_t<T> a = to_acc(p.a[at.in[1]]);
#pragma unroll
    for (int k = 0; k < VEC; ++k) v[k] = a;
  }
  store_blended<VEC>(p.c + at.in[0], 0, v, p.alpha, p.beta);
}

// ---- cast -----------------------------------------------------------------------------------------------------------

template <class T, class S, int VEC> __global__ void __launch_bounds__(256) cast_packed(const CastParams<T> p) {
  const i64 i = global_thread();
  const int count = present<VEC>(p.size, i);
  const S* x = static_cast<const S*>(p.x);
  if (count == VEC) {
    const pack<S, VEC> from = load<VEC>(x, i);
    pack<T, VEC> to;
#pragma unroll
    for (int k = 0; k < VEC; ++k) to.lane[k] = convert<T>(from.lane[k]);
    return store(p.y, i, to);
  }
  for (i64 at = i * VEC; at < i * VEC + count; ++at) p.y[at] = convert<T>(x[at]);
}

template <class T, class S> __global__ void __launch_bounds__(256) cast_strided(const CastParams<T> p) {
  const i64 i = global_thread();
  if (i >= p.size) return;
  const offsets<2> at = offsets_of(i, p.extent, p.y_step, p.x_step);
  p.y[at.in[0]] = convert<T>(static_cast<const S*>(p.x)[at.in[1]]);
}
