// Compiles the kernel dialect as plain C++: qualifiers, built-in variables, vector types, intrinsics and
// overloads of the mathematical functions that NVRTC knows without a header. emulator_schedule.h runs what
// was compiled.
//
// The C headers alone are included (compile with -nostdinc++): the C++ ones take longer to read than a family
// of kernels. The approximate instructions are exact here, so their error shows on a GPU alone.
#pragma once
#include "emulator_schedule.h"

#define EMULATOR_VECTOR(name, scalar) \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; }; \
  struct alignas(sizeof(scalar) < 4 ? 4 * sizeof(scalar) : 16) name##4 { scalar x, y, z, w; }; \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
EMULATOR_VECTOR(char, signed char)
EMULATOR_VECTOR(uchar, unsigned char)
EMULATOR_VECTOR(short, short)
EMULATOR_VECTOR(ushort, unsigned short)
EMULATOR_VECTOR(int, int)
EMULATOR_VECTOR(uint, unsigned)
EMULATOR_VECTOR(longlong, long long)
EMULATOR_VECTOR(ulonglong, unsigned long long)
EMULATOR_VECTOR(float, float)
EMULATOR_VECTOR(double, double)

// ---- half precision ---------------------------------------------------------------------------------------

namespace emulator {

template <class To, class From> To same_bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "as many bits as before");
  To r;
  memcpy(&r, &v, sizeof r);
  return r;
}
inline float half_bits_to_float(unsigned short h) {
  u32 sign = (u32)(h & 0x8000) << 16, magnitude = h & 0x7fff;
  if (magnitude > 0x7c00) return same_bits<float>(sign | 0x7fc00000u | magnitude << 13);
  if (magnitude == 0x7c00) return same_bits<float>(sign | 0x7f800000u);
  if (magnitude < 0x0400) return (sign ? -1.0f : 1.0f) * ((float)magnitude * 0x1p-24f);
  return same_bits<float>(sign | ((magnitude << 13) + (112u << 23)));
}
// To nearest, ties to even; a NaN becomes the canonical one, as the instruction has it.
inline unsigned short float_to_half_bits(float v) {
  u32 bits = same_bits<u32>(v), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00);  // from 65520 on
  // Below 2^-14 the spacing is 2^-24, that of floats from 0.5 on: the addition rounds.
  if (magnitude < 0x38800000u)
    return (unsigned short)(sign | (same_bits<u32>(same_bits<float>(magnitude) + 0.5f) - 0x3f000000u));
  return (unsigned short)(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1) - (112u << 23)) >> 13));
}

}  // namespace emulator

// ---- qualifiers and built-in variables --------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __constant__ static
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emulator::shared_memory)

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define warpSize 32

// ---- barriers and warp collectives ------------------------------------------------------------------------

#define EMULATOR_SITE emulator::Site site = emulator::Site::here()
inline void __syncthreads(EMULATOR_SITE) { emulator::barrier(false, "__syncthreads", site); }
inline int __syncthreads_count(int p, EMULATOR_SITE) {
  return (int)emulator::barrier(p, "__syncthreads_count", site);
}
inline int __syncthreads_or(int p, EMULATOR_SITE) {
  return emulator::barrier(p, "__syncthreads_or", site) != 0;
}
inline int __syncthreads_and(int p, EMULATOR_SITE) {
  return emulator::barrier(p, "__syncthreads_and", site) == emulator::thread_count;
}
inline void __syncwarp(unsigned mask = ~0u, EMULATOR_SITE) { emulator::meet(mask, 0, "__syncwarp", site); }

template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32, EMULATOR_SITE) {
  int lane = (int)emulator::current->lane;
  return emulator::exchange(mask, v, (lane & -width) | (source & (width - 1)), "__shfl_sync", site);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int flip, int width = 32, EMULATOR_SITE) {
  int lane = (int)emulator::current->lane, source = lane ^ flip;
  if (source > (lane | (width - 1))) source = lane;
  return emulator::exchange(mask, v, source, "__shfl_xor_sync", site);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATOR_SITE) {
  int lane = (int)emulator::current->lane, source = lane + (int)delta;
  if (source > (lane | (width - 1))) source = lane;
  return emulator::exchange(mask, v, source, "__shfl_down_sync", site);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATOR_SITE) {
  int lane = (int)emulator::current->lane, source = lane - (int)delta;
  if (source < (lane & -width)) source = lane;
  return emulator::exchange(mask, v, source, "__shfl_up_sync", site);
}
inline unsigned __ballot_sync(unsigned mask, int p, EMULATOR_SITE) {
  return emulator::ballot(mask, p, "__ballot_sync", site);
}
inline int __any_sync(unsigned mask, int p, EMULATOR_SITE) {
  return emulator::ballot(mask, p, "__any_sync", site) != 0;
}
inline int __all_sync(unsigned mask, int p, EMULATOR_SITE) {
  return emulator::ballot(mask, !p, "__all_sync", site) == 0;
}
inline unsigned __activemask() { return emulator::current->warp->lanes & ~emulator::current->warp->exited; }
inline void __trap(EMULATOR_SITE) { emulator::refuse("__trap", site, "gives up"); }

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// ---- memory -----------------------------------------------------------------------------------------------

#define EMULATOR_LOAD(name) \
  template <class T> inline T name(const T* p) { return *p; }
#define EMULATOR_STORE(name) \
  template <class T> inline void name(T* p, T v) { *p = v; }
EMULATOR_LOAD(__ldg) EMULATOR_LOAD(__ldca) EMULATOR_LOAD(__ldcg) EMULATOR_LOAD(__ldcs) EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
EMULATOR_STORE(__stwb) EMULATOR_STORE(__stcg) EMULATOR_STORE(__stcs) EMULATOR_STORE(__stwt)

// Integers only: sums of floats in the order of arrival are not repeatable.
#define EMULATOR_ATOMIC(name, updated)                                   \
  template <class T> inline T name(T* p, decltype(T() + T()) v) {        \
    static_assert(T(0.5f) == T(0), "atomics on floats are not allowed"); \
    T old = *p;                                                          \
    *p = T(updated);                                                     \
    return old;                                                          \
  }
EMULATOR_ATOMIC(atomicAdd, old + v)
EMULATOR_ATOMIC(atomicSub, old - v)
EMULATOR_ATOMIC(atomicMax, T(v) > old ? T(v) : old)
EMULATOR_ATOMIC(atomicMin, T(v) < old ? T(v) : old)
EMULATOR_ATOMIC(atomicExch, v)
EMULATOR_ATOMIC(atomicAnd, old & v)
EMULATOR_ATOMIC(atomicOr, old | v)
EMULATOR_ATOMIC(atomicXor, old ^ v)
template <class T> inline T atomicCAS(T* p, decltype(T() + T()) expected, decltype(T() + T()) v) {
  T old = *p;
  if (old == T(expected)) *p = T(v);
  return old;
}

// ---- bits and integers ------------------------------------------------------------------------------------

inline unsigned __float_as_uint(float v) { return emulator::same_bits<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return emulator::same_bits<float>(v); }
inline int __float_as_int(float v) { return emulator::same_bits<int>(v); }
inline float __int_as_float(int v) { return emulator::same_bits<float>(v); }
inline long long __double_as_longlong(double v) { return emulator::same_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return emulator::same_bits<double>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}

// ---- floating point ---------------------------------------------------------------------------------------

#define EMULATOR_MATH1(name) \
  inline float name(float v) { return name##f(v); }
#define EMULATOR_MATH2(name) \
  inline float name(float a, float b) { return name##f(a, b); }
EMULATOR_MATH1(exp) EMULATOR_MATH1(exp2) EMULATOR_MATH1(expm1) EMULATOR_MATH1(log) EMULATOR_MATH1(log2)
EMULATOR_MATH1(log10) EMULATOR_MATH1(log1p) EMULATOR_MATH1(sqrt) EMULATOR_MATH1(cbrt) EMULATOR_MATH1(sin)
EMULATOR_MATH1(cos) EMULATOR_MATH1(tan) EMULATOR_MATH1(asin) EMULATOR_MATH1(acos) EMULATOR_MATH1(atan)
EMULATOR_MATH1(sinh) EMULATOR_MATH1(cosh) EMULATOR_MATH1(tanh) EMULATOR_MATH1(asinh) EMULATOR_MATH1(acosh)
EMULATOR_MATH1(atanh) EMULATOR_MATH1(erf) EMULATOR_MATH1(erfc) EMULATOR_MATH1(lgamma) EMULATOR_MATH1(tgamma)
EMULATOR_MATH1(fabs) EMULATOR_MATH1(floor) EMULATOR_MATH1(ceil) EMULATOR_MATH1(trunc) EMULATOR_MATH1(round)
EMULATOR_MATH1(rint) EMULATOR_MATH1(nearbyint)
EMULATOR_MATH2(pow) EMULATOR_MATH2(fmod) EMULATOR_MATH2(fmax) EMULATOR_MATH2(fmin) EMULATOR_MATH2(atan2)
EMULATOR_MATH2(hypot) EMULATOR_MATH2(copysign) EMULATOR_MATH2(remainder) EMULATOR_MATH2(fdim)
EMULATOR_MATH2(nextafter)
inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
inline float ldexp(float v, int e) { return ldexpf(v, e); }
inline float frexp(float v, int* e) { return frexpf(v, e); }
inline float pow(float v, int n) { return powf(v, (float)n); }
inline double pow(double v, int n) { return pow(v, (double)n); }
inline float abs(float v) { return fabsf(v); }
inline double abs(double v) { return fabs(v); }
inline long long abs(long long v) { return llabs(v); }
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline float rsqrt(float v) { return rsqrtf(v); }
inline double rsqrt(double v) { return 1.0 / sqrt(v); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float v) { return sqrtf(v); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline int __float2int_rn(float v) { return (int)rintf(v); }
inline int __float2int_rz(float v) { return (int)v; }
inline int __double2int_rn(double v) { return (int)rint(v); }

#define EMULATOR_EXTREMES(T, smaller, larger)             \
  inline T min(T a, T b) { return smaller; }              \
  inline T max(T a, T b) { return larger; }
EMULATOR_EXTREMES(int, a < b ? a : b, a > b ? a : b)
EMULATOR_EXTREMES(unsigned, a < b ? a : b, a > b ? a : b)
EMULATOR_EXTREMES(long long, a < b ? a : b, a > b ? a : b)
EMULATOR_EXTREMES(unsigned long long, a < b ? a : b, a > b ? a : b)
EMULATOR_EXTREMES(float, fminf(a, b), fmaxf(a, b))
EMULATOR_EXTREMES(double, fmin(a, b), fmax(a, b))
