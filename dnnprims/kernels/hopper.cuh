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

// ---- clusters -------------------------------------------------------------------------------------------------------

// Until all threads of the cluster that have not left are here, and what they wrote can be seen.
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Four floats that another block of the cluster has where this one has `from` in shared memory.
DEVICE void load_of_cluster(u32 from, int block, float (&v)[4]) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(from), "r"(block));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3]) : "r"(there) : "memory");
}

// ---- copies of tiles ------------------------------------------------------------------------------------------------

// So many bytes, a multiple of 16 as both addresses are.
DEVICE void load_bytes(u32 to, const void* from, int bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier) : "memory");
}
// The box at (column, row) to shared memory; what lies outside the tensor comes as zeros and counts as brought.
DEVICE void load_tile(u32 to, const TensorMap& map, int column, int row, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
// The box at (column, row, plane), likewise.
DEVICE void load_box(u32 to, const TensorMap& map, int column, int row, int plane, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(plane), "r"(barrier) : "memory");
}
// The box at (channel, w, h, n), likewise.
DEVICE void load_patch(u32 to, const TensorMap& map, int channel, int w, int h, int n, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::
          "r"(to), "l"(&map), "r"(channel), "r"(w), "r"(h), "r"(n), "r"(barrier) : "memory");
}
// The same boxes to the L2 alone.
DEVICE void prefetch_patch(const TensorMap& map, int channel, int w, int h, int n) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];" ::"l"(&map), "r"(channel), "r"(w),
               "r"(h), "r"(n) : "memory");
}
// Channels from `channel` on of as many pixels as the map says, as the tap at (w_offset, h_offset) of a filter sees them
// whose first tap lies at (w, h) of image n: those of the following positions of the filter, row by row and image by image.
// What lies outside of an image comes as zeros.
DEVICE void load_window(u32 to, const TensorMap& map, int channel, int w, int h, int n, int w_offset, int h_offset,
                        u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6], {%7, %8};" ::"r"(to), "l"(&map), "r"(channel), "r"(w), "r"(h), "r"(n), "r"(barrier), "h"((u16)w_offset),
      "h"((u16)h_offset) : "memory");
}
// The box at (column, row) from shared memory, as a group of its own; what lies outside the tensor is left out.
DEVICE void store_tile(const TensorMap& map, int column, int row, u32 from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column),
               "r"(row), "r"(from) : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Channels from `channel` on of the pixels from (w, h) of image n on, row by row and image by image, likewise.
DEVICE void store_window(const TensorMap& map, int channel, int w, int h, int n, u32 from) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.im2col_no_offs.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(
                   &map), "r"(channel), "r"(w), "r"(h), "r"(n), "r"(from) : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// The box at (channel, w, h, n) from shared memory, in the group that the next stores_commit ends.
DEVICE void store_patch(const TensorMap& map, int channel, int w, int h, int n, u32 from) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(&map),
               "r"(channel), "r"(w), "r"(h), "r"(n), "r"(from) : "memory");
}
DEVICE void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
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

// x above 0, 0 below, NaN where x is.
DEVICE float positive_part(float x) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(0.0f));
  return y;
}

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
// The same of matrices that lie transposed in memory: the lane has numbers of column l / 4.
DEVICE void store_transposed_matrices(u32 row, u32 first, u32 second, u32 third, u32 fourth) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(first),
               "r"(second), "r"(third), "r"(fourth) : "memory");
}
DEVICE void store_two_transposed_matrices(u32 row, u32 first, u32 second) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(row), "r"(first), "r"(second)
               : "memory");
}
// What these have stored.
DEVICE void load_matrices(u32 row, u32 (&into)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3]) : "r"(row) : "memory");
}
DEVICE void load_transposed_matrices(u32 row, u32 (&into)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3]) : "r"(row) : "memory");
}
DEVICE void store_pack(u32 to, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
DEVICE void store_pair(u32 to, float first, float second) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(first), "f"(second) : "memory");
}

DEVICE void load_pair(u32 from, float& first, float& second) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(first), "=f"(second) : "r"(from) : "memory");
}
// Of four lanes' pairs of numbers 0 to 3, each pair 32 bits, lane l comes to have all four pairs of number l.
DEVICE void transpose_pairs(u32 (&v)[4]) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  const u32 first = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 1), second = __shfl_xor_sync(~0u, odd ? v[2] : v[3], 1);
  if (odd) v[0] = first, v[2] = second;
  else v[1] = first, v[3] = second;
  const u32 third = __shfl_xor_sync(~0u, upper ? v[0] : v[2], 2), fourth = __shfl_xor_sync(~0u, upper ? v[1] : v[3], 2);
  if (upper) v[0] = third, v[1] = fourth;
  else v[2] = third, v[3] = fourth;
}
// Of two lanes' pairs of floats of numbers 0 and 1 the even lane comes to have both pairs of number 0, the odd one of 1.
DEVICE void transpose_floats(float (&v)[4]) {
  const bool odd = threadIdx.x & 1;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float other = __shfl_xor_sync(~0u, odd ? v[i] : v[2 + i], 1);
    if (odd) v[i] = other;
    else v[2 + i] = other;
  }
}
DEVICE u32 load_word(u32 from) {
  u32 word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
  return word;
}
// Two neighbours in global memory. As a union they would be read before a product is done, which ptxas then serialises.
DEVICE void keep_pair(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = float2{first, second};
}

DEVICE void keep_four(float* to, const float (&v)[4]) {
  *reinterpret_cast<float4*>(to) = float4{v[0], v[1], v[2], v[3]};
}

// ---- products of a warpgroup ----------------------------------------------------------------------------------------

// An operand whose rows run along k, 128 bytes of them a row: type 1 (128-byte swizzle), 1,024 bytes from 8 rows to the
// next 8. Steps of 32 bytes along k add 2.
DEVICE u64 operand(u32 tile) { return (u64)((tile & 0x3ffffu) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

// An operand whose rows run across k, 64 numbers of 16 bits a row: 64 rows of k are a tile, `apart` bytes from one tile of
// 64 numbers to the next. Steps of 16 rows along k add 128.
DEVICE u64 operand_across(u32 tile, u32 apart = 64 * SWIZZLED_ROW) {
  return (u64)((tile & 0x3ffffu) >> 4) | (u64)(apart >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

// An operand without a swizzle: matrices of 8 rows by 16 bytes of k, 128 bytes each, `along` bytes from one to the next
// along k and `across` bytes to the next eight rows.
DEVICE u64 operand_unswizzled(u32 tile, u32 along, u32 across) {
  return (u64)((tile & 0x3ffffu) >> 4) | (u64)(along >> 4) << 16 | (u64)(across >> 4) << 32;
}

DEVICE void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define SUMS_8(i)                                                                                             \
  "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]), \
      "+f"(sum[i + 6]), "+f"(sum[i + 7])
#define SUMS_32(i) SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24)
#define DECADE(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define NAMES_30 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " DECADE(1) DECADE(2)
#define NAMES_60 NAMES_30 DECADE(3) DECADE(4) DECADE(5)
#define NAMES_90 NAMES_60 DECADE(6) DECADE(7) DECADE(8)
#define NAMES_120 NAMES_90 DECADE(9) DECADE(10) DECADE(11)
// sum = A B (+ sum where `keep`): names of the sums, then those of a, b, keep and what follows.
#define PRODUCT(shape_and_types, names, a_name, b_name, keep_name, ending, ...)                                        \
  asm volatile("{ .reg .pred keep; setp.ne.b32 keep, " keep_name                                                       \
               ", 0; wgmma.mma_async.sync.aligned." shape_and_types " {" names "}, " a_name ", " b_name                \
               ", keep, 1, 1" ending "; }"                                                                             \
               : __VA_ARGS__)
#define PRODUCT_64X128(shape_and_types, ending)                                                                        \
  PRODUCT(shape_and_types, NAMES_60 "%60, %61, %62, %63", "%64", "%65", "%66", ending, SUMS_32(0), SUMS_32(32)         \
          : "l"(a), "l"(b), "r"(keep))

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

// The same with 64, 128, 192, 232 or 256 rows of B; A_ACROSS and B_ACROSS where an operand runs across k.
// Floats are multiplied in TF32, and cannot run across.
template <class T> constexpr bool IS_BFLOAT16 = false;
template <> constexpr bool IS_BFLOAT16<bfloat16> = true;
#define PRODUCT_16(n, names, a_name, b_name, keep_name, a_across, b_across, ...)                                       \
  if constexpr (IS_BFLOAT16<T>)                                                                                        \
    PRODUCT("m64n" n "k16.f32.bf16.bf16", names, a_name, b_name, keep_name, ", " a_across ", " b_across, __VA_ARGS__   \
            : "l"(a), "l"(b), "r"(keep), "n"((int)A_ACROSS), "n"((int)B_ACROSS));                                      \
  else if constexpr (sizeof(T) == 4)                                                                                   \
    PRODUCT("m64n" n "k8.f32.tf32.tf32", names, a_name, b_name, keep_name, "", __VA_ARGS__                             \
            : "l"(a), "l"(b), "r"(keep));                                                                              \
  else                                                                                                                 \
    PRODUCT("m64n" n "k16.f32.f16.f16", names, a_name, b_name, keep_name, ", " a_across ", " b_across, __VA_ARGS__     \
            : "l"(a), "l"(b), "r"(keep), "n"((int)A_ACROSS), "n"((int)B_ACROSS))

template <class T, bool A_ACROSS, bool B_ACROSS> DEVICE void multiply(float (&sum)[32], u64 a, u64 b, int keep) {
  PRODUCT_16("64", NAMES_30 "%30, %31", "%32", "%33", "%34", "%35", "%36", SUMS_32(0));
}
template <class T, bool A_ACROSS, bool B_ACROSS> DEVICE void multiply(float (&sum)[64], u64 a, u64 b, int keep) {
  PRODUCT_16("128", NAMES_60 "%60, %61, %62, %63", "%64", "%65", "%66", "%67", "%68", SUMS_32(0), SUMS_32(32));
}
template <class T, bool A_ACROSS, bool B_ACROSS> DEVICE void multiply(float (&sum)[96], u64 a, u64 b, int keep) {
  PRODUCT_16("192", NAMES_90 "%90, %91, %92, %93, %94, %95", "%96", "%97", "%98", "%99", "%100", SUMS_32(0),
             SUMS_32(32), SUMS_32(64));
}
template <class T, bool A_ACROSS, bool B_ACROSS> DEVICE void multiply(float (&sum)[116], u64 a, u64 b, int keep) {
  PRODUCT_16("232", NAMES_90 DECADE(9) DECADE(10) "%110, %111, %112, %113, %114, %115", "%116", "%117", "%118", "%119",
             "%120", SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_8(96), SUMS_8(104), "+f"(sum[112]), "+f"(sum[113]),
             "+f"(sum[114]), "+f"(sum[115]));
}
template <class T, bool A_ACROSS, bool B_ACROSS> DEVICE void multiply(float (&sum)[128], u64 a, u64 b, int keep) {
  PRODUCT_16("256", NAMES_120 "%120, %121, %122, %123, %124, %125, %126, %127", "%128", "%129", "%130", "%131", "%132",
             SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96));
}

// The same of 16-bit numbers with 64 rows of A in registers, as mma.cuh has those of a warp, and B across k.
template <class T> DEVICE void multiply_taken_across(float (&sum)[32], const u32 (&a)[4], u64 b, int keep) {
  if constexpr (IS_BFLOAT16<T>)
    PRODUCT("m64n64k16.f32.bf16.bf16", NAMES_30 "%30, %31", "{%32, %33, %34, %35}", "%36", "%37", ", 1", SUMS_32(0)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
  else
    PRODUCT("m64n64k16.f32.f16.f16", NAMES_30 "%30, %31", "{%32, %33, %34, %35}", "%36", "%37", ", 1", SUMS_32(0)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

// The same in TF32 with 64 rows of A in registers: of 8 columns a thread has lane % 4 and the fourth from it, each of rows
// 16 warp + lane / 4 and 8 further down, which differ first.
#define PRODUCT_TAKEN(n, names, a_names, b_name, keep_name, ...)                                                       \
  PRODUCT("m64n" n "k8.f32.tf32.tf32", names, "{" a_names "}", b_name, keep_name, "", __VA_ARGS__                      \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep))
DEVICE void multiply_taken(float (&sum)[32], const u32 (&a)[4], u64 b, int keep) {
  PRODUCT_TAKEN("64", NAMES_30 "%30, %31", "%32, %33, %34, %35", "%36", "%37", SUMS_32(0));
}
DEVICE void multiply_taken(float (&sum)[64], const u32 (&a)[4], u64 b, int keep) {
  PRODUCT_TAKEN("128", NAMES_60 "%60, %61, %62, %63", "%64, %65, %66, %67", "%68", "%69", SUMS_32(0), SUMS_32(32));
}
DEVICE void multiply_taken(float (&sum)[128], const u32 (&a)[4], u64 b, int keep) {
  PRODUCT_TAKEN("256", NAMES_120 "%120, %121, %122, %123, %124, %125, %126, %127", "%128, %129, %130, %131", "%132",
                "%133", SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96));
}
