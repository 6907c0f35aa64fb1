// All gradients of a fully connected layer of few outputs and no activation, in one pass over its input.
//
// dx = dy w, dw = dy^T x, db[j] = sum_i dy[i, j]: dy (rows, outs), x and dx (rows, k), w and dw (outs, k), db (outs), of
// type T, row-major; partial, null with one chunk, (chunks, those of dw and of db that are asked for) of acc_t<T>. dx, dw
// and db may be null; without dw x is not read, without dx w is not.
//
// Plan: a block owns COLUMNS columns of k and a chunk of rows, whose dy it keeps in shared memory; a thread has VEC columns,
//   their weights and their sums of dw in registers, and takes EACH rows at once: x is read once and dx written once. Sums
//   of the warps meet in shared memory; with several chunks they go to `partial`, which fc.cu's fc_fold adds. The blocks
//   of the first columns sum dy for db.
// Numerics: in acc_t<T>, fused; a thread's rows in order, then warps, then chunks. The order depends on the shape alone.
// Cost: 4 rows k outs flops; bytes of x, dx, w, dw, dy once, and partial sums of some 4 % of x.
// Measured on an NVIDIA H200, 2026-11-28, microseconds of a CUDA graph of the call, L2 flushed before, beside cuBLASLt's
//   products and fc.cu's pass, rows x in x out: bfloat16 128x2048x10 10.9 / 13.9, 1024x2048x10 13.6 / 21.4, 8192x2048x10
//   40.2 / 51.0, 65536x256x4 28.6 / 57.6; float32 1024x2048x10 14.9 / 28.4, 8192x2048x10 50.8 / 104.4. Predicted for
//   8192x2048x10 of bfloat16, which moves 67 MB: 16 for the bytes. Where it falls short: 80 multiplications and some 60
//   other instructions for four elements of a row are 20 us of issue, and registers leave three warps a scheduler.
//   Tried: 12 outputs for 10, and two launches for the sums: 43.1, and 14.1 for 128 rows in one chunk.
// Limits: up to OUTS outputs; rows of k that are multiples of VEC elements, aligned to as many; float64 not.
#include "reduce.cuh"
#include "vec.cuh"

template <class T> struct FcFewOutputsParams {
  T* dx;
  T* dw;
  T* db;
  acc_t<T>* partial;
  const T* dy;
  const T* x;
  const T* w;
  acc_t<T> beta;
  i64 rows, k, outs, rows_per_chunk;
  // Sums of a chunk, and where those for db begin.
  DEVICE i64 first_of_db() const { return dw ? outs * k : 0; }
  DEVICE i64 sums() const { return first_of_db() + (db ? outs : 0); }
};

constexpr int VEC = 4, LANES = 32, WARPS = 4, THREADS = LANES * WARPS, COLUMNS = LANES * VEC, MOST_ROWS = 512;
static_assert(THREADS == COLUMNS);  // a thread adds what the warps have of one column
template <class T> constexpr int EACH = 16 / sizeof(T);

// The sum that belongs to `to`, number `at` of a chunk's.
template <class T> DEVICE void put_sum(const FcFewOutputsParams<T>& p, T* to, i64 at, acc_t<T> sum) {
  if (p.partial)
    p.partial[(i64)blockIdx.y * p.sums() + at] = sum;
  else
    *to = blend(acc_t<T>(1), sum, p.beta, to);
}

// What a thread has of its columns: weights, and sums over its rows.
template <class T, int OUTS> struct OwnColumns {
  typedef acc_t<T> A;
  pack<T, VEC> w[OUTS];
  A sum[OUTS][VEC];

  DEVICE OwnColumns(const FcFewOutputsParams<T>& p, i64 column) {
#pragma unroll
    for (int o = 0; o < OUTS; ++o) {
      w[o] = pack<T, VEC>{};
      if (p.dx && o < p.outs && column < p.k) w[o] = load<VEC>(p.w, (o * p.k + column) / VEC);
#pragma unroll
      for (int v = 0; v < VEC; ++v) sum[o][v] = A(0);
    }
  }
  // One row: adds to the sums, and returns its dx.
  DEVICE pack<T, VEC> take(const A (&dy)[OUTS], pack<T, VEC> row) {
    A x[VEC], dx[VEC] = {};
    unpack(x, row);
#pragma unroll
    for (int o = 0; o < OUTS; ++o) {
      A weights[VEC];
      unpack(weights, w[o]);
#pragma unroll
      for (int v = 0; v < VEC; ++v) {
        sum[o][v] = fma(dy[o], x[v], sum[o][v]);
        dx[v] = fma(dy[o], weights[v], dx[v]);
      }
    }
    return rounded<T>(dx);
  }
};

template <class T, int OUTS>
__global__ void __launch_bounds__(THREADS, 3) fc_backward_few_outputs(const FcFewOutputsParams<T> p) {
  typedef acc_t<T> A;
  __shared__ A dy[MOST_ROWS][OUTS], sums[WARPS][COLUMNS];
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const i64 first = (i64)blockIdx.y * p.rows_per_chunk, column = ((i64)blockIdx.x * LANES + lane) * VEC;
  const i64 left = p.rows - first, count = left < p.rows_per_chunk ? left : p.rows_per_chunk;
  for (i64 i = threadIdx.x; i < count * OUTS; i += THREADS) {
    const i64 row = i / OUTS, o = i % OUTS;
    dy[row][o] = o < p.outs ? to_acc(p.dy[(first + row) * p.outs + o]) : A(0);
  }
  __syncthreads();
  OwnColumns<T, OUTS> own(p, column);
  if (column < p.k)
    for (int row = warp * EACH<T>; row < count; row += WARPS * EACH<T>) {
      pack<T, VEC> x[EACH<T>] = {};
      const i64 at = ((first + row) * p.k + column) / VEC, step = p.k / VEC;
#pragma unroll
      for (int u = 0; u < EACH<T>; ++u)
        if (p.dw && row + u < count) x[u] = load<VEC>(p.x, at + u * step);
#pragma unroll
      for (int u = 0; u < EACH<T>; ++u) {
        if (row + u >= count) break;
        const pack<T, VEC> dx = own.take(dy[row + u], x[u]);
        if (p.dx) store<VEC>(p.dx, at + u * step, dx);
      }
    }
  const i64 mine = (i64)blockIdx.x * COLUMNS + threadIdx.x;
#pragma unroll
  for (int o = 0; o < OUTS; ++o) {
    if (!p.dw || o >= p.outs) break;
    __syncthreads();
#pragma unroll
    for (int v = 0; v < VEC; ++v) sums[warp][lane * VEC + v] = own.sum[o][v];
    __syncthreads();
    if (mine >= p.k) continue;
    A total = sums[0][threadIdx.x];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) total += sums[i][threadIdx.x];
    put_sum(p, p.dw + o * p.k + mine, o * p.k + mine, total);
  }
  if (!p.db || blockIdx.x != 0) return;
  // A warp sums outputs in turn, its lanes the rows.
  for (int o = warp; o < p.outs; o += WARPS) {
    A sum = A(0);
    for (int row = lane; row < count; row += LANES) sum += dy[row][o];
    sum = warp_reduce(sum, Sum());
    if (lane == 0) put_sum(p, p.db + o, p.first_of_db() + o, sum);
  }
}
