// Plain matrix product, the fallback of cuBLASLt and its second opinion: any extents, strides and alignment.
//
//   C[i, j] = alpha * sum_p op(A)[i, p] op(B)[p, j] + beta * C[i, j] + bias[j]
//
// c (m, n) rows c_row apart; a, b: element (i, p) at a[i * a_row + p * a_column], (p, j) at b[p * b_row + j * b_column], so a
// transposed operand is another pair of strides; bias (n) or null. All of type T, products and sums in acc_t<T>.
//
// Forward and backward of a layer are both this product, with other strides; there is nothing to differentiate here.
//
// Plan: a block makes one 64 x 64 tile of C, each of 256 threads 4 x 4 of it, spaced 16 apart so that a warp's stores
// to C are contiguous. Slices of 16 along k pass through shared memory; threads read the operand along whichever axis has
// stride 1, so that both transposes load coalesced. One pass over C; A is read n/64 times, B m/64 times.
// Numerics: one fused multiply-add per term in ascending order of k, one rounding to T at the end; k = 0 gives
// beta * C + bias. Deterministic: no order depends on the schedule. beta = 0 never reads C, alpha never skips a term, so
// NaN and infinity in A or B reach C.
// Cost: 2 m n k flops, at a fraction of the tensor cores' rate; meant for correctness, not for the hot path. Bytes: those
// of C, and from the caches sizeof(T) (m k n + n k m) / 64.
// Limits: 2^31 tiles of C.
#include "dtypes.cuh"

template <class T> struct GemmParams {
  T* c;
  const T* a;
  const T* b;
  const T* bias;
  acc_t<T> alpha, beta;
  i64 m, n, k;
  i64 a_row, a_column, b_row, b_column, c_row;
};

constexpr int TILE = 64, SLICE = 16, THREADS = 256, SIDE = 16, EACH = TILE / SIDE;

// Copies 64 lines of 16 terms into tile[term][line], zeros beyond the edges. Line l, term t at p[l * line + t * term].
template <class T, class A>
DEVICE void stage(A (*tile)[TILE + 1], const T* p, i64 line, i64 term, i64 lines, i64 terms) {
  bool along_terms = term == 1;
#pragma unroll
  for (int step = 0; step < TILE * SLICE / THREADS; ++step) {
    int at = step * THREADS + threadIdx.x;
    int l = along_terms ? at / SLICE : at % TILE;
    int t = along_terms ? at % SLICE : at / TILE;
    tile[t][l] = l < lines && t < terms ? to_acc(p[l * line + t * term]) : A(0);
  }
}

template <class T> __global__ void __launch_bounds__(256) gemm_tiled(const GemmParams<T> p) {
  typedef acc_t<T> A;
  __shared__ A a_tile[SLICE][TILE + 1];
  __shared__ A b_tile[SLICE][TILE + 1];
  i64 tiles_across = (p.n + TILE - 1) / TILE;
  i64 row = blockIdx.x / tiles_across * TILE, column = blockIdx.x % tiles_across * TILE;
  int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
  A sum[EACH][EACH] = {};
  for (i64 k = 0; k < p.k; k += SLICE) {
    stage(a_tile, p.a + row * p.a_row + k * p.a_column, p.a_row, p.a_column, p.m - row, p.k - k);
    stage(b_tile, p.b + column * p.b_column + k * p.b_row, p.b_column, p.b_row, p.n - column, p.k - k);
    __syncthreads();
    // A slice that sticks out over the end of k holds zeros there; they are skipped, because 0 * infinity is not 0.
    int terms = p.k - k < SLICE ? (int)(p.k - k) : SLICE;
    for (int t = 0; t < terms; ++t) {
      A left[EACH], right[EACH];
#pragma unroll
      for (int i = 0; i < EACH; ++i) left[i] = a_tile[t][y + i * SIDE], right[i] = b_tile[t][x + i * SIDE];
#pragma unroll
      for (int i = 0; i < EACH; ++i)
#pragma unroll
        for (int j = 0; j < EACH; ++j) sum[i][j] = fma(left[i], right[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < EACH; ++i)
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      i64 r = row + y + i * SIDE, c = column + x + j * SIDE;
      if (r >= p.m || c >= p.n) continue;
      A v = p.alpha * sum[i][j];
      if (p.beta != A(0)) v += p.beta * to_acc(p.c[r * p.c_row + c]);
      if (p.bias) v += to_acc(p.bias[c]);
      p.c[r * p.c_row + c] = from_acc<T>(v);
    }
}
