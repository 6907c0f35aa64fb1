// Matrix products of a warp on the tensor cores, how their operands come to shared memory, and from there.
//
// Of 16 x 16 times 16 x 8: lane l has in `a` the pairs of row l / 4 (0, 2) and that + 8 (1, 3) from column 2 (l % 4) (0, 1)
// and that + 8 (2, 3); in `b` the pairs of column l / 4 likewise; in `d` the pairs of row l / 4 and that + 8 from column
// 2 (l % 4) on. A pair of 16-bit numbers is one word, the first in the lower half. Of TF32 a word is one number, and the
// product one of 16 x 8 times 8 x 8.
//
// The emulator does the same with the words of all lanes. Below sm_80 there is neither: kernels ask TENSOR_CORES and do
// nothing.
#pragma once
#include "dtypes.cuh"

DEVICE float low_half(u32 pair, float16) { return half_bits_to_float((u16)pair); }
DEVICE float high_half(u32 pair, float16) { return half_bits_to_float((u16)(pair >> 16)); }
DEVICE float low_half(u32 pair, bfloat16) { return bits_to_float(pair << 16); }
DEVICE float high_half(u32 pair, bfloat16) { return bits_to_float(pair & 0xffff0000u); }

#if defined(DNNPRIMS_EMULATOR) || __CUDA_ARCH__ >= 800
constexpr bool TENSOR_CORES = true;
#else
constexpr bool TENSOR_CORES = false;
#endif

#if !defined(DNNPRIMS_EMULATOR)

#define ADD_PRODUCT(shape_and_types)                                                                             \
  asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                        \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
DEVICE void add_product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bfloat16) {
  ADD_PRODUCT("m16n8k16.row.col.f32.bf16.bf16.f32");
}
DEVICE void add_product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, float16) {
  ADD_PRODUCT("m16n8k16.row.col.f32.f16.f16.f32");
}
// In TF32.
DEVICE void add_product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, float) {
  ADD_PRODUCT("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef ADD_PRODUCT
// To the 11 bits of TF32, to nearest, ties away from zero.
DEVICE u32 rounded_to_tf32(u32 bits) {
  u32 r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(bits_to_float(bits)));
  return r;
}
// Four matrices of 8 rows of 16 bytes, lane l giving the address of row l % 8 of matrix l / 8: lane l gets a pair of row
// l / 4 of each; transposed, the pair of column l / 4 from row 2 (l % 4) on.
DEVICE void read_matrices(u32 (&v)[4], const void* row) {
  const u32 at = (u32)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(at)
               : "memory");
}
DEVICE void read_matrices_transposed(u32 (&v)[4], const void* row) {
  const u32 at = (u32)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(at)
               : "memory");
}

#else

// The products of two words.
template <class T> DEVICE float word_product(u32 left, u32 right, float sum, T type) {
  sum += low_half(left, type) * low_half(right, type);
  return sum + high_half(left, type) * high_half(right, type);
}
DEVICE float word_product(u32 left, u32 right, float sum, float) {
  return sum + bits_to_float(left) * bits_to_float(right);
}
template <class T>
DEVICE void add_product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, T type,
                        emulator::Site site = emulator::Site::here()) {
  const u64 own[3] = {a[0] | (u64)a[1] << 32, a[2] | (u64)a[3] << 32, b0 | (u64)b1 << 32};
  u64 all[3][32];
  for (int i = 0; i < 3; ++i) memcpy(all[i], emulator::meet(~0u, own[i], "add_product", site), sizeof all[i]);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i)
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < 4; ++k) {
        const u64 left = all[half][lane / 4 * 4 + k] >> 32 * (i / 2);
        const u64 right = all[2][(lane % 4 * 2 + i % 2) * 4 + k] >> 32 * half;
        d[i] = word_product((u32)left, (u32)right, d[i], type);
      }
}
DEVICE u32 rounded_to_tf32(u32 bits) { return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu; }
DEVICE void read_matrices(u32 (&v)[4], const void* row, emulator::Site site = emulator::Site::here()) {
  const emulator::u64* rows = emulator::meet(~0u, (emulator::u64)row, "read_matrices", site);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) v[i] = ((const u32*)rows[i * 8 + lane / 4])[lane % 4];
}
DEVICE void read_matrices_transposed(u32 (&v)[4], const void* row, emulator::Site site = emulator::Site::here()) {
  const emulator::u64* rows = emulator::meet(~0u, (emulator::u64)row, "read_matrices_transposed", site);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const emulator::u64* pair = rows + i * 8 + lane % 4 * 2;
    v[i] = ((const u16*)pair[0])[lane / 4] | (u32)((const u16*)pair[1])[lane / 4] << 16;
  }
}

#endif
