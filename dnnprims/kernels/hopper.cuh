// The instructions of Hopper (sm_90a) that kernels are built from: barriers in shared memory, tensor maps, and matrix
// products of a warpgroup. There is no twin for the emulator: each kernel that needs them has a portable one beside it.
//
// Shared memory is named by its 32-bit address. Tiles are kept as rows of 128 bytes in the 128-byte swizzle: the 16-byte
// chunk c of row r lies at chunk c ^ (r & 7), and a tile starts on a multiple of 1,024 bytes.
#pragma once
#include "dtypes.cuh"

constexpr int WARPGROUP = 128, SWIZZLED_ROW = 128;

// A tensor in global memory as the copy engine sees it, encoded by the host for one address.
struct alignas(64) TensorMap {
  u64 words[16];
};

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// ---- barriers in shared memory --------------------------------------------------------------------------------------

DEVICE void barrier_init(u32 barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes the barriers of this block known to the copy engine.
DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// One arrival, and `bytes` that the copy engine is going to bring.
DEVICE void barrier_expect(u32 barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Until the phase of this parity is over.
DEVICE void barrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n"
      "}" ::"r"(barrier), "r"(parity) : "memory");
}
// The hardware's barriers 1 to 15, among `threads` of the block.
DEVICE void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- copies of tiles ------------------------------------------------------------------------------------------------

// The box at (column, row) to shared memory; what lies outside the tensor comes as zeros and counts as brought.
DEVICE void load_tile(u32 to, const TensorMap& map, int column, int row, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
// The box at (column, row) from shared memory, as a group of its own; what lies outside the tensor is left out.
DEVICE void store_tile(const TensorMap& map, int column, int row, u32 from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column),
               "r"(row), "r"(from) : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until all stores of this thread but the last PENDING have read their source; `stores_done` until they are in memory.
template <int PENDING> DEVICE void stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
DEVICE void stores_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// Makes what threads wrote to shared memory visible to the copy engine.
DEVICE void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- registers ------------------------------------------------------------------------------------------------------

// A warpgroup hands registers back, or takes them, to have COUNT a thread.
template <int COUNT> DEVICE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> DEVICE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// Two numbers in 16 bits each, the first in the lower half.
template <class T> DEVICE u32 two(float low, float high);
template <> DEVICE u32 two<bfloat16>(float low, float high) {
  u32 bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
template <> DEVICE u32 two<float16>(float low, float high) {
  u32 bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
// Four 8 x 8 matrices of 16-bit numbers: lane l gives the address of row l % 8 of matrix l / 8, and holds of each the
// numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
DEVICE void store_matrices(u32 row, u32 first, u32 second, u32 third, u32 fourth) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(first), "r"(second),
               "r"(third), "r"(fourth) : "memory");
}
DEVICE void store_pair(u32 to, float first, float second) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(first), "f"(second) : "memory");
}

// ---- products of a warpgroup ----------------------------------------------------------------------------------------

// An operand whose rows run along k, 128 bytes of them a row: type 1 (128-byte swizzle), 1,024 bytes from 8 rows to the
// next 8. Steps of 32 bytes along k add 2.
DEVICE u64 operand(u32 tile) { return (u64)((tile & 0x3ffffu) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

DEVICE void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define SUMS_8(i)                                                                                             \
  "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]), \
      "+f"(sum[i + 6]), "+f"(sum[i + 7])
#define SUMS_64 SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24), SUMS_8(32), SUMS_8(40), SUMS_8(48), SUMS_8(56)
#define NAMES_64                                                                                     \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "  \
  "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "  \
  "%59, %60, %61, %62, %63}"
#define PRODUCT_64X128(shape_and_types, ending)                                                                       \
  asm volatile("{ .reg .pred keep; setp.ne.b32 keep, %66, 0; wgmma.mma_async.sync.aligned." shape_and_types " "      \
               NAMES_64 ", %64, %65, keep, 1, 1" ending "; }"                                                         \
               : SUMS_64 : "l"(a), "l"(b), "r"(keep))

// sum = A B^T (+ sum where `keep`) over 32 bytes of k: 64 rows of A, 128 of B. Of the sums, a thread has numbers
// 4 j .. 4 j + 3: columns 8 j + 2 (lane % 4) and the next, of rows 16 warp + lane / 4 and 8 further down.
template <class T> DEVICE void multiply_64x128(float (&sum)[64], u64 a, u64 b, int keep);
template <> DEVICE void multiply_64x128<bfloat16>(float (&sum)[64], u64 a, u64 b, int keep) {
  PRODUCT_64X128("m64n128k16.f32.bf16.bf16", ", 0, 0");
}
template <> DEVICE void multiply_64x128<float16>(float (&sum)[64], u64 a, u64 b, int keep) {
  PRODUCT_64X128("m64n128k16.f32.f16.f16", ", 0, 0");
}
// In TF32.
template <> DEVICE void multiply_64x128<float>(float (&sum)[64], u64 a, u64 b, int keep) {
  PRODUCT_64X128("m64n128k8.f32.tf32.tf32", "");
}
#undef PRODUCT_64X128
#undef NAMES_64
#undef SUMS_64
#undef SUMS_8
