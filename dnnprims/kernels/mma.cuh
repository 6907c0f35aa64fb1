// Matrix products of a warp on the tensor cores, and how their operands come from shared memory.
//
// Of 16 x 16 times 16 x 8: lane l has in `a` the pairs of row l / 4 (0, 2) and that + 8 (1, 3) from column 2 (l % 4) (0, 1)
// and that + 8 (2, 3); in `b` the pairs of column l / 4 likewise; in `d` the pairs of row l / 4 and that + 8 from column
// 2 (l % 4) on. A pair of 16-bit numbers is one word, the first in the lower half.
//
// The emulator does the same by shuffles. Below sm_80 there is neither: kernels ask TENSOR_CORES and do nothing.
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

DEVICE void add_product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void add_product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, float16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
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

template <class T> DEVICE void add_product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, T type) {
  const int lane = threadIdx.x % 32;
  for (int k = 0; k < 4; ++k) {
    u32 rows[4], columns[2][2];
    for (int i = 0; i < 4; ++i) rows[i] = __shfl_sync(0xffffffffu, a[i], lane / 4 * 4 + k);
    for (int i = 0; i < 2; ++i) {
      columns[i][0] = __shfl_sync(0xffffffffu, b0, (lane % 4 * 2 + i) * 4 + k);
      columns[i][1] = __shfl_sync(0xffffffffu, b1, (lane % 4 * 2 + i) * 4 + k);
    }
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < 2; ++half) {
        const u32 left = rows[i / 2 + 2 * half], right = columns[i % 2][half];
        d[i] += low_half(left, type) * low_half(right, type);
        d[i] += high_half(left, type) * high_half(right, type);
      }
    }
  }
}
DEVICE void read_matrices(u32 (&v)[4], const void* row) {
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) v[i] = ((const u32*)__shfl_sync(0xffffffffu, (u64)row, i * 8 + lane / 4))[lane % 4];
}
DEVICE void read_matrices_transposed(u32 (&v)[4], const void* row) {
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const u16* first = (const u16*)__shfl_sync(0xffffffffu, (u64)row, i * 8 + lane % 4 * 2);
    const u16* second = (const u16*)__shfl_sync(0xffffffffu, (u64)row, i * 8 + lane % 4 * 2 + 1);
    v[i] = first[lane / 4] | (u32)second[lane / 4] << 16;
  }
}

#endif
