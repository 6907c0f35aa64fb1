// What a fully connected layer needs around its matrix products: y = act(x w^T + b) and its gradients.
//
// Forward   z = x w^T + b, y = act(z).   Backward   dz = act'(z) dy, dx = dz w, dw = dz^T x, db[j] = sum_i dz[i, j].
// The products are cuBLASLt's or gemm.cu's. Here:
//   fc_activation_forward   y = alpha * act(z) + beta * y, for activations that the product's epilogue cannot apply
//   fc_gradient             dz = act'(z) dy, and the sums of its columns: db[j] = sum_i dz[i, j]
//   fc_fold                 adds the partial sums of fc_gradient
//   fc_transpose            y = x^T, for products in TF32, for which Hopper wants x and w along their sums
//
// z, y, dy, dz, saved are (rows, columns), row-major, of type T; db (columns) of T; partial (chunks, columns) of acc_t<T>.
// `saved` is what the activation is differentiated from: its input z, its output y (Act is FromOutput<...>), or null for
// the identity.
//
// Plan: fc_activation_forward gives each thread VEC neighbours, or VEC single elements (share.cuh). fc_gradient cuts the
// columns into strips of 32 * VEC and the rows into chunks; a block of 256 threads owns one strip of one chunk, 32
// threads side by side, 8 rows deep, and each thread has the loads of 2 or 4 rows in flight. Its 8 sums per column meet
// in shared memory. With a single chunk they are db, else fc_fold adds the chunks. Either output may be null and is then
// left out. fc_transpose takes a tile of 64 x 64 through shared memory for each block. Every array is passed over once.
// Numerics: computed and summed in acc_t<T>; the sums take dz before it is rounded to T. The order of summation depends
// on the shape alone, so results are the same bits on every run. A NaN in dy or saved reaches dz and db.
// Cost, for n elements of z: forward 2 n sizeof(T) bytes, gradient 3 n sizeof(T) and the partial sums; an activation's
// flops (activation.cu) and one addition an element. Bound by memory.
// Limits: fc_gradient with VEC > 1 wants 16-byte aligned arrays and columns divisible by VEC; up to 65,535 chunks.
// fc_transpose wants 16-byte aligned arrays, columns and stride divisible by VEC, and up to 2^31 tiles.
// Measured on an NVIDIA H200, 2026-11-28, tools/bench.py --shapes key fc: whole layers, products included (rows x in x out,
// TFLOP/s). fc_forward swish, where this pass follows the product: float32 16384x1024x4096 47.6, 8192x8192x8192 50.9;
// bfloat16 128x4096x4096 231. fc_backward relu: 16384x1024x4096 float32 50.4, bfloat16 635; 8192x8192x8192 bfloat16 782.
// Where the time of fc_backward relu goes, by CUPTI, 2026-11-28, 16384x1024x4096, microseconds of fc_gradient, fc_fold, dx, dw:
// bfloat16 99.6, 2.1, 171, 157; float32 192, 2.1, 2725, 2870 (timed alone 2912, and 2537 by what algorithms.py asks for).
// Small layers, whose data stay in the L2, in microseconds beside PyTorch's product, which takes as long, and its pass: tanh
// of bfloat16 64x1024x3072 5.40 / 5.27, 64x2048x2048 6.71 / 6.57, 512x512x512 4.87 / 4.75, 32x1536x4608 6.27 / 6.13: 1.34 a
// pass for 1.20. In trials blocks of 256 threads took 0.07 off; of 128 with one pack each no more, nor a launch that waits
// for the product's end.
// A training step of 784-2048-2048-10 in bfloat16 as a graph beside PyTorch's, by CUPTI: batch 128 72.9 us / 98.5, 1,024
// 119 / 169, 8,192 493 / 608. Of the last the products of the wide layers are 345, the same kernels as PyTorch's but for
// the epilogue; fc_gradient 2 x 23 for 100 MB, sgd 20 for 81 MB, the last layer 60, dx and dw of it 43. At 128 the update
// is 20, seven products 35, and what is left chains of launches of 1.1 each. Tried: dx, dw and fc_fold as branches of the
// graph, 75.5 for 72.8 at 128, 121.2 for 123.5 at 1,024, 500 for 508 at 8,192: two edges more cost what they hide;
// fc_gradient from the last rows to the first, which the L2 still has: 72.3, 123.1, 506.5.
// PyTorch's two passes over z take 89.5 + 47.7 and 181 + 78, and its products as long: the sums in the pass are the gain.
// TF32, 2026-11-28, fc_backward relu beside PyTorch 2.11, without fc_transpose and with cuBLASLt's own order of algorithms,
// and with both as they are: 8192x784x2048 1.09, 1.44 times faster; 16384x1024x4096 1.06, 1.33; 8192x8192x8192 1.01, 1.31;
// 4096x4096x16384 1.02, 1.33. What is left are the products and fc_gradient, which moves 4.0 to 4.2 TB/s.
#include "activation.cuh"
#include "share.cuh"

template <class T> struct FcActivationParams {
  T* y;
  const T* z;
  acc_t<T> alpha, beta, c0, c1;
  i64 count;
  int packs;  // whether all arrays are 16-byte aligned
};

template <class T, class Act, int VEC>
__global__ void __launch_bounds__(SHARE_WIDE) fc_activation_forward(const FcActivationParams<T> p) {
  const Act act{p.c0, p.c1};
  const Share<VEC> share(p.count, p.packs != 0);
  pack<T, VEC> packs[SHARE_PACKS];
  share.load(p.z, packs);
#pragma unroll
  for (int j = 0; j < SHARE_PACKS; ++j) {
    if (!share.holds(j)) break;
    acc_t<T> z[VEC], y[VEC];
    unpack(z, packs[j]);
    forward_all(act, z, y);
    share.store_blended(p.y, j, y, p.alpha, p.beta);
  }
}

template <class T> struct FcGradientParams {
  T* dz;
  T* db;
  acc_t<T>* partial;
  const T* dy;
  const T* saved;
  acc_t<T> alpha, beta, c0, c1;
  i64 rows, columns, rows_per_chunk;
};

constexpr int LANES = 32, DEPTH = 8;

// One row's worth of this thread: the gradients of VEC columns, added to `sum`.
template <class T, class Act, int VEC>
DEVICE void fc_gradient_of_pack(const FcGradientParams<T>& p, i64 at, pack<T, VEC> dy, pack<T, VEC> saved, acc_t<T>* sum) {
  const Act act{p.c0, p.c1};
  pack<T, VEC> dz;
#pragma unroll
  for (int j = 0; j < VEC; ++j) {
    acc_t<T> gradient = act.backward(to_acc(dy.lane[j]), to_acc(saved.lane[j]));
    sum[j] += gradient;
    dz.lane[j] = from_acc<T>(gradient);
  }
  if (p.dz) store<VEC>(p.dz, at, dz);
}

// float64 asks for no more than two blocks on a multiprocessor: left to itself, ptxas aims at four and spills.
template <class T, class Act, int VEC>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 2 : 0) fc_gradient(const FcGradientParams<T> p) {
  typedef acc_t<T> A;
  constexpr int IN_FLIGHT = VEC > 4 ? 2 : 4;  // more would only unroll heavy activations past the instruction cache
  __shared__ A sums[DEPTH][LANES * VEC];
  int lane = threadIdx.x % LANES, depth = threadIdx.x / LANES;
  i64 packs = p.columns / VEC, column = (i64)blockIdx.x * LANES + lane;
  i64 first = (i64)blockIdx.y * p.rows_per_chunk, last = first + p.rows_per_chunk;
  if (last > p.rows) last = p.rows;
  A sum[VEC] = {};
  if (column < packs)
    for (i64 row = first + depth; row < last; row += DEPTH * IN_FLIGHT) {
      pack<T, VEC> dy[IN_FLIGHT], saved[IN_FLIGHT];
#pragma unroll
      for (int u = 0; u < IN_FLIGHT; ++u)
        if (row + u * DEPTH < last) {
          i64 at = (row + u * DEPTH) * packs + column;
          dy[u] = load<VEC>(p.dy, at);
          saved[u] = p.saved ? load<VEC>(p.saved, at) : dy[u];
        }
#pragma unroll
      for (int u = 0; u < IN_FLIGHT; ++u)
        if (row + u * DEPTH < last)
          fc_gradient_of_pack<T, Act, VEC>(p, (row + u * DEPTH) * packs + column, dy[u], saved[u], sum);
    }
  if (!p.db && !p.partial) return;
#pragma unroll
  for (int j = 0; j < VEC; ++j) sums[depth][lane * VEC + j] = sum[j];
  __syncthreads();
  i64 own = (i64)blockIdx.x * LANES * VEC + threadIdx.x;
  if (threadIdx.x >= LANES * VEC || own >= p.columns) return;
  A total = sums[0][threadIdx.x];
#pragma unroll
  for (int d = 1; d < DEPTH; ++d) total += sums[d][threadIdx.x];
  if (p.partial) p.partial[blockIdx.y * p.columns + own] = total;
  else p.db[own] = blend(p.alpha, total, p.beta, p.db + own);
}

template <class T> struct FcFoldParams {
  T* db;
  T* rest;  // what columns from `first_of_rest` on are the sums of
  const acc_t<T>* partial;
  acc_t<T> alpha, beta;
  i64 chunks, columns, first_of_rest;
};

template <class T> __global__ void __launch_bounds__(256) fc_fold(const FcFoldParams<T> p) {
  typedef acc_t<T> A;
  __shared__ A sums[DEPTH][LANES];
  int lane = threadIdx.x % LANES, depth = threadIdx.x / LANES;
  i64 column = (i64)blockIdx.x * LANES + lane;
  A sum = A(0);
  if (column < p.columns)
    for (i64 chunk = depth; chunk < p.chunks; chunk += DEPTH) sum += p.partial[chunk * p.columns + column];
  sums[depth][lane] = sum;
  __syncthreads();
  if (depth != 0 || column >= p.columns) return;
#pragma unroll
  for (int d = 1; d < DEPTH; ++d) sum += sums[d][lane];
  T* to = column < p.first_of_rest ? p.db + column : p.rest + (column - p.first_of_rest);
  *to = blend(p.alpha, sum, p.beta, to);
}

template <class T> struct FcTransposeParams {
  T* y;        // (columns, stride), stride >= rows
  const T* x;  // (rows, columns)
  i64 rows, columns, stride;
};

constexpr int SIDE = 64;

// Rows of a tile that are past the last one are zeros in it; in y they lie within the stride.
template <class T> __global__ void __launch_bounds__(256) fc_transpose(const FcTransposeParams<T> p) {
  constexpr int VEC = 16 / sizeof(T), ACROSS = SIDE / VEC, DOWN = 256 / ACROSS, EACH = SIDE / DOWN;
  __shared__ T tile[SIDE][SIDE + 1];  // one more, so that a column's elements lie in different banks
  i64 tiles_across = (p.columns + SIDE - 1) / SIDE;
  i64 top = blockIdx.x / tiles_across * SIDE, left = blockIdx.x % tiles_across * SIDE;
  int at = threadIdx.x % ACROSS * VEC, line = threadIdx.x / ACROSS;
  pack<T, VEC> v[EACH] = {};
#pragma unroll
  for (int u = 0; u < EACH; ++u) {
    i64 row = top + line + u * DOWN;
    if (row < p.rows && left + at < p.columns) v[u] = load<VEC>(p.x, (row * p.columns + left + at) / VEC);
  }
#pragma unroll
  for (int u = 0; u < EACH; ++u)
#pragma unroll
    for (int j = 0; j < VEC; ++j) tile[line + u * DOWN][at + j] = v[u].lane[j];
  __syncthreads();
#pragma unroll
  for (int u = 0; u < EACH; ++u) {
    i64 column = left + line + u * DOWN;
#pragma unroll
    for (int j = 0; j < VEC; ++j) v[u].lane[j] = tile[at + j][line + u * DOWN];
    if (column < p.columns && top + at < p.rows) store<VEC>(p.y, (column * p.stride + top + at) / VEC, v[u]);
  }
}
