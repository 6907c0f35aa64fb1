// Every inline PTX instruction of this library, one function each, with its twin for the emulator.
#pragma once

#define DEVICE __device__ __forceinline__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_to_bits(float v) { return __float_as_uint(v); }
DEVICE double bits_to_double(u64 bits) { return __longlong_as_double((i64)bits); }
DEVICE u64 double_to_bits(double v) { return (u64)__double_as_longlong(v); }

// Rounding of a float to bfloat16 in integer arithmetic, to nearest even, with every NaN made quiet. The only path
// below sm_80 and on the emulator.
DEVICE u32 bfloat16_bits_by_integers(float v) {
  u32 bits = float_to_bits(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

// The larger and the smaller of two, NaN where `a` is. Of two zeros `a` is taken, where the instruction takes the one that
// is larger or smaller by its sign: no `b` here is +0 for the one, or -0 for the other.
DEVICE float larger_by_select(float a, float b) { return a != a || a >= b ? a : b; }
DEVICE float smaller_by_select(float a, float b) { return a != a || a <= b ? a : b; }

// Both halves of a word, set or not.
DEVICE u32 halves_where(bool low, bool high) { return (low ? 0xffffu : 0u) | (high ? 0xffff0000u : 0u); }
// Whether a number replaces the largest so far: it is larger, or the first NaN.
template <class A> DEVICE bool surpasses(A v, A best) { return !(v <= best) & (best == best); }

#if defined(DNNPRIMS_EMULATOR)

DEVICE float half_bits_to_float(u16 h) { return emulator::half_bits_to_float(h); }
DEVICE u16 float_to_half_bits(float v) { return emulator::float_to_half_bits(v); }
DEVICE u16 float_to_bfloat16_bits(float v) { return (u16)bfloat16_bits_by_integers(v); }
DEVICE u32 floats_to_half_bits(float a, float b) { return float_to_half_bits(a) | (u32)float_to_half_bits(b) << 16; }
DEVICE u32 floats_to_bfloat16_bits(float a, float b) {
  return float_to_bfloat16_bits(a) | (u32)float_to_bfloat16_bits(b) << 16;
}
DEVICE float max_or_nan(float a, float b) { return larger_by_select(a, b); }
DEVICE float min_or_nan(float a, float b) { return smaller_by_select(a, b); }
// Which halves are equal numbers of float16, and which of `v` exceed those of `best`.
DEVICE u32 halves_equal(u32 a, u32 b) { return halves_where(((a ^ b) & 0xffffu) == 0, ((a ^ b) >> 16) == 0); }
DEVICE u32 float16_exceeding(u32 v, u32 best) {
  return halves_where(surpasses(half_bits_to_float((u16)v), half_bits_to_float((u16)best)),
                      surpasses(half_bits_to_float((u16)(v >> 16)), half_bits_to_float((u16)(best >> 16))));
}
DEVICE u32 bfloat16_exceeding(u32 v, u32 best) {
  return halves_where(surpasses(bits_to_float(v << 16), bits_to_float(best << 16)),
                      surpasses(bits_to_float(v & 0xffff0000u), bits_to_float(best & 0xffff0000u)));
}
DEVICE u32 float16_sums(u32 a, u32 b) {
  return floats_to_half_bits(half_bits_to_float((u16)a) + half_bits_to_float((u16)b),
                             half_bits_to_float((u16)(a >> 16)) + half_bits_to_float((u16)(b >> 16)));
}
DEVICE u32 bfloat16_sums(u32 a, u32 b) {
  return floats_to_bfloat16_bits(bits_to_float(a << 16) + bits_to_float(b << 16),
                                 bits_to_float(a & 0xffff0000u) + bits_to_float(b & 0xffff0000u));
}
DEVICE void keep_here(u32&) {}
DEVICE void keep_here(unsigned char*&) {}
template <class V> DEVICE V kept(V v) { return v; }
DEVICE u32 lower_halves(u32 a, u32 b) { return (a & 0xffffu) | b << 16; }
DEVICE u32 upper_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }
DEVICE u32 next_halves(u32 a, u32 b) { return a >> 16 | b << 16; }
DEVICE u32 lower_bytes(u32 v) { return (v & 0xffu) | (v & 0xff00u) << 8; }
DEVICE u32 halves_as_bytes(u32 a, u32 b) {
  return (a & 0xffu) | (a >> 8 & 0xff00u) | (b & 0xffu) << 16 | (b & 0xff0000u) << 8;
}
DEVICE u32 upper_bytes(u32 v) { return lower_bytes(v >> 16); }
// The approximate functions: the emulator has the exact ones, so their error is measured on a GPU alone.
DEVICE float exp2_approx(float v) { return exp2f(v); }
DEVICE float exp2_normal(float v) { return v < -126.0f ? 0.0f : exp2f(v); }
DEVICE float log2_approx(float v) { return log2f(v); }
DEVICE float log2_normal(float v) { return log2f(v); }
DEVICE float reciprocal_approx(float v) { return 1.0f / v; }
DEVICE float rsqrt_approx(float v) { return 1.0f / sqrtf(v); }
DEVICE float flushed(float v) { return fabsf(v) < 1.17549435e-38f ? copysignf(0.0f, v) : v; }
DEVICE float reciprocal_normal(float v) { return flushed(1.0f / flushed(v)); }
DEVICE void copy_async(void* to, const void* from) { *(uint4*)to = *(const uint4*)from; }
template <int BYTES = 16> DEVICE void copy_async_or_zeros(void* to, const void* from, bool there) {
  for (int i = 0; i < BYTES / 4; ++i) ((u32*)to)[i] = there ? ((const u32*)from)[i] : 0u;
}
DEVICE void commit_copies() {}
template <int PENDING> DEVICE void await_copies() {}
DEVICE uint4 load_retained(const uint4* p) { return *p; }
DEVICE uint4 load_released(const uint4* p) { return *p; }

#else

// Dynamic shared memory as an array of T; bytes underneath, so that instantiations may differ in T.
#define DYNAMIC_SHARED(T, name)                               \
  extern __shared__ __align__(16) unsigned char name##_raw[]; \
  T* name = reinterpret_cast<T*>(name##_raw)

DEVICE float half_bits_to_float(u16 h) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
  return v;
}
DEVICE u16 float_to_half_bits(float v) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
}
DEVICE u16 float_to_bfloat16_bits(float v) {
#if __CUDA_ARCH__ >= 800
  u16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
#else
  return (u16)bfloat16_bits_by_integers(v);
#endif
}
// Two at once, the first in the lower half: the instruction for one writes a whole register, too.
#if __CUDA_ARCH__ >= 800
DEVICE u32 floats_to_half_bits(float a, float b) {
  u32 both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
  return both;
}
DEVICE u32 floats_to_bfloat16_bits(float a, float b) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
  return both;
}
#else
DEVICE u32 floats_to_half_bits(float a, float b) { return float_to_half_bits(a) | (u32)float_to_half_bits(b) << 16; }
DEVICE u32 floats_to_bfloat16_bits(float a, float b) {
  return float_to_bfloat16_bits(a) | (u32)float_to_bfloat16_bits(b) << 16;
}
#endif
DEVICE float max_or_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
#else
  return larger_by_select(a, b);
#endif
}
DEVICE float min_or_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
#else
  return smaller_by_select(a, b);
#endif
}
// Which halves are equal numbers of float16, small integers among the subnormal ones; and which of `v` exceed those of
// `best`. Two instructions compare two numbers, and leave a mask in place of a predicate.
DEVICE u32 halves_equal(u32 a, u32 b) {
  u32 r;
  asm("set.eq.u32.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEVICE u32 float16_exceeding(u32 v, u32 best) {
  u32 above, number;
  asm("set.gtu.u32.f16x2 %0, %1, %2;" : "=r"(above) : "r"(v), "r"(best));
  asm("set.num.u32.f16x2 %0, %1, %1;" : "=r"(number) : "r"(best));
  return above & number;
}
DEVICE u32 bfloat16_exceeding(u32 v, u32 best) {
#if __CUDA_ARCH__ >= 900
  u32 above, number;
  asm("set.gtu.u32.bf16x2 %0, %1, %2;" : "=r"(above) : "r"(v), "r"(best));
  asm("set.num.u32.bf16x2 %0, %1, %1;" : "=r"(number) : "r"(best));
  return above & number;
#else
  return halves_where(surpasses(bits_to_float(v << 16), bits_to_float(best << 16)),
                      surpasses(bits_to_float(v & 0xffff0000u), bits_to_float(best & 0xffff0000u)));
#endif
}
// The sums of both halves, rounded once.
DEVICE u32 float16_sums(u32 a, u32 b) {
  u32 r;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEVICE u32 bfloat16_sums(u32 a, u32 b) {
#if __CUDA_ARCH__ >= 900
  u32 r;
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
#else
  return floats_to_bfloat16_bits(bits_to_float(a << 16) + bits_to_float(b << 16),
                                 bits_to_float(a & 0xffff0000u) + bits_to_float(b & 0xffff0000u));
#endif
}
// The lower halves of two words, or the upper ones, as one word.
DEVICE u32 lower_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
DEVICE u32 upper_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }
// The upper half of one word and the lower one of the next.
DEVICE u32 next_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5432); }
// The two lower bytes of a word, or the two upper ones, as halves.
DEVICE u32 lower_bytes(u32 v) { return __byte_perm(v, 0, 0x4140); }
DEVICE u32 upper_bytes(u32 v) { return __byte_perm(v, 0, 0x4342); }
// The lower bytes of the four halves of two words.
DEVICE u32 halves_as_bytes(u32 a, u32 b) { return __byte_perm(a, b, 0x6420); }
// A value that is to be computed before this, and not in the branch behind it in which alone it is used.
DEVICE void keep_here(u32& v) { asm volatile("" : "+r"(v)); }
// The same of an address in shared memory that is copied to.
DEVICE void keep_here(unsigned char*& v) { asm volatile("" : "+l"(v)); }
// An address, or a number, that stays in its registers, in place of being worked out again at each use.
template <class P> DEVICE P* kept(P* p) {
  asm volatile("" : "+l"(p));
  __builtin_assume(__isGlobal(p));
  return p;
}
DEVICE int kept(int v) {
  asm volatile("" : "+r"(v));
  return v;
}
// Without .ftz these keep subnormals. Largest errors by the PTX manual: exp2 2 ulp, log2 absolute 2^-22 near 1 and
// 2 ulp elsewhere, reciprocal 1 ulp, reciprocal square root relative 2^-22.9.
DEVICE float exp2_approx(float v) {
  float r;
  asm("ex2.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
// The bare instruction, of which the other takes four: results below the normal numbers are 0.
DEVICE float exp2_normal(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
DEVICE float log2_approx(float v) {
  float r;
  asm("lg2.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
// The bare instruction, to which subnormal numbers are 0.
DEVICE float log2_normal(float v) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
DEVICE float reciprocal_approx(float v) {
  float r;
  asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
// The bare instruction, right to 1 ulp where v and its reciprocal are normal numbers; others count as 0.
DEVICE float reciprocal_normal(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
DEVICE float rsqrt_approx(float v) {
  float r;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
// 16 bytes from global to shared memory with no register between. The thread that asked sees them once all its commits
// but the last PENDING are done.
#if __CUDA_ARCH__ >= 800
DEVICE void copy_async(void* to, const void* from) {
  const u32 address = (u32)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
// The same of 4, 8 or 16 bytes, and zeros where there is nothing; only 16 bytes pass by the L1.
template <int BYTES = 16> DEVICE void copy_async_or_zeros(void* to, const void* from, bool there) {
  const u32 address = (u32)__cvta_generic_to_shared(to), bytes = there ? BYTES : 0;
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from), "r"(bytes), "n"(BYTES) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void await_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
// Loads that tell the L2 whether what they read will be wanted again.
DEVICE uint4 load_by_policy(const uint4* p, u64 policy) {
  uint4 v;
  asm volatile("ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p), "l"(policy)
               : "memory");
  return v;
}
DEVICE uint4 load_retained(const uint4* p) {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return load_by_policy(p, policy);
}
DEVICE uint4 load_released(const uint4* p) {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return load_by_policy(p, policy);
}
#else
DEVICE void copy_async(void* to, const void* from) { *(uint4*)to = *(const uint4*)from; }
template <int BYTES = 16> DEVICE void copy_async_or_zeros(void* to, const void* from, bool there) {
  for (int i = 0; i < BYTES / 4; ++i) ((u32*)to)[i] = there ? ((const u32*)from)[i] : 0u;
}
DEVICE void commit_copies() {}
template <int PENDING> DEVICE void await_copies() {}
DEVICE uint4 load_retained(const uint4* p) { return *p; }
DEVICE uint4 load_released(const uint4* p) { return *p; }
#endif

#endif

// The larger of each of two 16-bit numbers; of a number and a NaN the number.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
DEVICE u32 larger_halves(u32 a, u32 b) {
  u32 both;
  asm("max.f16x2 %0, %1, %2;" : "=r"(both) : "r"(a), "r"(b));
  return both;
}
DEVICE u32 larger_bfloat16s(u32 a, u32 b) {
  u32 both;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(both) : "r"(a), "r"(b));
  return both;
}
#else
DEVICE bool beyond_or_alone(float a, float b) { return a > b || b != b; }
DEVICE u32 halves_of(u32 a, u32 b, bool low, bool high) { return ((low ? a : b) & 0xffffu) | ((high ? a : b) & 0xffff0000u); }
DEVICE u32 larger_halves(u32 a, u32 b) {
  const bool low = beyond_or_alone(half_bits_to_float((u16)a), half_bits_to_float((u16)b));
  return halves_of(a, b, low, beyond_or_alone(half_bits_to_float((u16)(a >> 16)), half_bits_to_float((u16)(b >> 16))));
}
DEVICE u32 larger_bfloat16s(u32 a, u32 b) {
  const bool low = beyond_or_alone(bits_to_float(a << 16), bits_to_float(b << 16));
  return halves_of(a, b, low, beyond_or_alone(bits_to_float(a & 0xffff0000u), bits_to_float(b & 0xffff0000u)));
}
#endif
