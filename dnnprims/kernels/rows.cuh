// What softmax and cross-entropy share: exponentials below the maximum of a row, and reductions over its threads.
#pragma once
#include "math.cuh"
#include "reduce.cuh"
#include "vec.cuh"

// The larger of two; a NaN is dropped here, because it comes back in the sum of exponentials.
struct Larger {
  DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
  DEVICE double operator()(double a, double b) const { return fmax(a, b); }
};
template <int VEC, class A> DEVICE A largest(const A (&v)[VEC]) {
  A top = v[0];
#pragma unroll
  for (int l = 1; l < VEC; ++l) top = Larger()(top, v[l]);
  return top;
}
// Two 16-bit numbers at a time, as they are stored.
DEVICE u32 larger_of_two(float16, u32 a, u32 b) { return larger_halves(a, b); }
DEVICE u32 larger_of_two(bfloat16, u32 a, u32 b) { return larger_bfloat16s(a, b); }
// Lifts each element of `top` to that of `in`, where that is larger.
template <class T, int VEC> DEVICE void raise(pack<T, VEC>& top, const pack<T, VEC>& in) {
  if constexpr (sizeof(T) == 2 && VEC == 8) {
    top.bits.x = larger_of_two(T(), top.bits.x, in.bits.x);
    top.bits.y = larger_of_two(T(), top.bits.y, in.bits.y);
    top.bits.z = larger_of_two(T(), top.bits.z, in.bits.z);
    top.bits.w = larger_of_two(T(), top.bits.w, in.bits.w);
  } else {
#pragma unroll
    for (int l = 0; l < VEC; ++l) top.lane[l] = from_acc<T>(Larger()(to_acc(top.lane[l]), to_acc(in.lane[l])));
  }
}
template <class T, int VEC> DEVICE pack<T, VEC> lowest_pack() {
  pack<T, VEC> v;
#pragma unroll
  for (int l = 0; l < VEC; ++l) v.lane[l] = from_acc<T>(-limits<acc_t<T>>::infinity());
  return v;
}
template <class T, int VEC> DEVICE acc_t<T> largest(const pack<T, VEC>& in) {
  acc_t<T> v[VEC];
  if constexpr (sizeof(T) == 2 && VEC == 8) {
    pack<T, 2> top;
    top.bits = larger_of_two(T(), larger_of_two(T(), in.bits.x, in.bits.y), larger_of_two(T(), in.bits.z, in.bits.w));
    return Larger()(to_acc(top.lane[0]), to_acc(top.lane[1]));
  } else {
    unpack(v, in);
    return largest(v);
  }
}
// A register holds two bfloat16: each of them is the upper half of its float.
template <int VEC> DEVICE void unpack(float (&v)[VEC], const pack<bfloat16, VEC>& in) {
  if constexpr (VEC == 8) {
    const u32 both[4] = {in.bits.x, in.bits.y, in.bits.z, in.bits.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      v[2 * k] = bits_to_float(both[k] << 16);
      v[2 * k + 1] = bits_to_float(both[k] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int k = 0; k < VEC; ++k) v[k] = to_acc(in.lane[k]);
  }
}
// What to subtract: where nothing but -inf is, anything finite, so that exp(-inf) is 0 and not NaN.
template <class A> DEVICE A base_of(A top) { return top == -limits<A>::infinity() ? A(0) : top; }

// of(d) = unit * exp(d) for d <= 0, within 4 u, for 16-bit types within 2^-20; of(0) is unit. There the bare instruction
// does, which knows normal numbers alone: with this unit that is all that a float holds, its subnormal numbers too.
template <class T> struct Power {
  typedef acc_t<T> A;
  static constexpr A unit = 1, inverse_unit = 1;
  static DEVICE A of(A d) { return math<T>::exp_term(d); }
};
struct QuickPower {
  static constexpr float unit = 16777216.0f, inverse_unit = 1.0f / 16777216.0f;
  static DEVICE float of(float d) { return exp2_normal(fmaf(d, series<float>::log2e(), 24.0f)); }
};
template <> struct Power<float16> : QuickPower {};
template <> struct Power<bfloat16> : QuickPower {};

// A maximum and the sum of the powers below it, over the elements met so far.
template <class T> struct Running {
  typedef acc_t<T> A;
  A top = -limits<A>::infinity(), sum = A(0);
  template <int N> DEVICE void add(const A (&v)[N]) {
    const A peak = largest(v);
    if (peak > top) {
      sum *= Power<T>::of(top - peak) * Power<T>::inverse_unit;
      top = peak;
    }
    const A shift = base_of(top);
    A more = Power<T>::of(v[0] - shift);
#pragma unroll
    for (int i = 1; i < N; ++i) more += Power<T>::of(v[i] - shift);
    sum += more;
  }
  // The sum as it counts below another maximum.
  DEVICE A below(A other) const { return sum * (Power<T>::of(top - base_of(other)) * Power<T>::inverse_unit); }
};

// Packs lane, lane + LANES, ... of a row that has `packs`, as they are stored; -inf beyond it.
template <int LANES, class T, int VEC, int PACKS>
DEVICE void load_packs(pack<T, VEC> (&in)[PACKS], const T* row, int lane, int packs) {
#pragma unroll
  for (int q = 0; q < PACKS; ++q) {
    in[q] = lowest_pack<T, VEC>();
    if (q * LANES < packs - lane) in[q] = load<VEC>(row + lane * VEC, q * LANES);
  }
}
// Their elements, and the largest of them.
template <class T, int VEC, int PACKS, class A>
DEVICE A unpack_packs(A (&v)[PACKS][VEC], const pack<T, VEC> (&in)[PACKS]) {
  pack<T, VEC> top = in[0];
#pragma unroll
  for (int q = 0; q < PACKS; ++q) {
    unpack(v[q], in[q]);
    if (q > 0) raise(top, in[q]);
  }
  return largest(top);
}

// Blocks that keep rows in shared memory: so many of the shorter ones, of 512 threads, have registers together.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int LONG_ROW_THREADS = 1024;  // no more have place there
#else
constexpr int LONG_ROW_THREADS = 1536;
#endif
template <class T, int BLOCK>
constexpr int long_rows_at_once = sizeof(T) > 4 || BLOCK > 512 ? 1 : LONG_ROW_THREADS / BLOCK;

// N reductions at once over LANES neighbouring threads (a power of two up to 32, or the whole block), with one barrier.
// There is no trailing barrier: between two calls of an instantiation there is to be a barrier, such as that of another.
template <int LANES, int N, class A, class Op> DEVICE void group_reduce(A (&v)[N], Op op, A identity) {
  constexpr int WIDTH = LANES < 32 ? LANES : 32;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset >>= 1) v[n] = op(v[n], __shfl_xor_sync(0xffffffffu, v[n], offset));
  }
  if constexpr (LANES > 32) {
    constexpr int WARPS = LANES / 32;
    __shared__ A partial[N][WARPS];
    if ((threadIdx.x & 31) == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) partial[n][threadIdx.x >> 5] = v[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      v[n] = partial[n][threadIdx.x & (WARPS - 1)];
#pragma unroll
      for (int offset = WARPS / 2; offset > 0; offset >>= 1) v[n] = op(v[n], __shfl_xor_sync(0xffffffffu, v[n], offset));
    }
  }
}
template <int LANES, class A, class Op> DEVICE A group_reduce(A v, Op op, A identity) {
  A all[1] = {v};
  group_reduce<LANES>(all, op, identity);
  return all[0];
}
