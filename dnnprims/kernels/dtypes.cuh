// Storage types T, the accumulator A of each, and the conversions between them: to_acc(v) and from_acc<T>(a).
// The 16-bit types are plain bits, so that no header of the toolkit is needed and the emulator shares the text.
#pragma once
#include "ptx.cuh"

struct float16 {
  u16 bits;
};
struct bfloat16 {
  u16 bits;
};

template <class T> struct accumulator {
  typedef float type;
};
template <> struct accumulator<double> {
  typedef double type;
};
template <> struct accumulator<int> {
  typedef i64 type;
};
template <> struct accumulator<i64> {
  typedef i64 type;
};
template <> struct accumulator<u8> {
  typedef i64 type;
};
template <class T> using acc_t = typename accumulator<T>::type;

DEVICE float to_acc(float v) { return v; }
DEVICE double to_acc(double v) { return v; }
DEVICE float to_acc(float16 v) { return half_bits_to_float(v.bits); }
DEVICE float to_acc(bfloat16 v) { return bits_to_float((u32)v.bits << 16); }
DEVICE i64 to_acc(int v) { return v; }
DEVICE i64 to_acc(i64 v) { return v; }
DEVICE i64 to_acc(u8 v) { return v; }

template <class T> struct rounding {
  template <class A> static DEVICE T from(A v) { return (T)v; }
};
template <> struct rounding<float16> {
  static DEVICE float16 from(float v) { return float16{float_to_half_bits(v)}; }
  static DEVICE u32 from(float a, float b) { return floats_to_half_bits(a, b); }
};
template <> struct rounding<bfloat16> {
  static DEVICE bfloat16 from(float v) { return bfloat16{float_to_bfloat16_bits(v)}; }
  static DEVICE u32 from(float a, float b) { return floats_to_bfloat16_bits(a, b); }
};
template <class T, class A> DEVICE T from_acc(A v) { return rounding<T>::from(v); }

// Limits of the accumulators; NVRTC has no INFINITY.
template <class A> struct limits;
template <> struct limits<float> {
  static DEVICE float infinity() { return bits_to_float(0x7f800000u); }
  static DEVICE float nan() { return bits_to_float(0x7fc00000u); }
};
template <> struct limits<double> {
  static DEVICE double infinity() { return bits_to_double(0x7ff0000000000000ull); }
  static DEVICE double nan() { return bits_to_double(0x7ff8000000000000ull); }
};

// 64-bit index of this thread in a one-dimensional grid.
DEVICE i64 global_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }

// Quotient of non-negative numbers; the 32-bit division is several times cheaper and nearly always enough.
DEVICE i64 quotient(i64 a, i64 b) {
  if (((u64)a | (u64)b) >> 32 == 0) return (i64)((u32)a / (u32)b);
  return a / b;
}
