// A whole fully connected layer of few rows in one launch: y = act(x w^T + b), and z = x w^T + b where it is kept.
//
// x (rows, k), w (outs, k), y and z (rows, outs), row-major, of type T; b (outs) of T, or null; z may be null. float32 is
// multiplied in TF32. Its gradients are fc.cu's and the products'. A layer of few outputs is the same with x and w in each
// other's places: y, z and b are walked by the steps that the front end gives.
//
// Plan: a block makes OUTS outputs of all rows, each of its warps from every WARPS-th piece of k. w is read once and by one
//   block, so it goes from memory to the registers of the tensor cores and not through shared memory: a product takes its
//   k in any order, as long as both factors take the same, so a thread has 16 bytes of each of its rows, AHEAD pieces of
//   which are under way at once. The sums of the warps meet in shared memory; a thread there adds those of an output, the
//   bias, and applies the activation, whose choice is a branch, for outputs are few.
// Numerics: products summed in float by the tensor cores within a warp, then in the order of warps; the activation takes the
//   sum before it is rounded, the result is rounded once. z is the same sum, rounded. The order depends on the shape alone:
//   the same bits each time. TF32 factors are rounded to nearest.
// Cost: bytes of w once, of x once a block (from the L2 or nearer), of y once.
// Limits: sm_80 and later; 16-byte aligned arrays, rows of k that are multiples of 16 bytes; up to ROWS rows.
// Measured on an NVIDIA H200, 2026-11-28: ops/fc/few_rows.py has the table. Predicted for 16x2048x2048 of bfloat16 from the
//   L2: 1 us for the launch and 17 MB at 5.5 TB/s, 4.0; it took 3.4 (PyTorch's linear and tanh 6.3). Where it falls short is
//   x, which every block reads again: 32x2560x2560 reads 13 MB of w and 26 of x and took 8.2 (7.3), 64x2048x2048 9.7 (6.7).
//   Tried: 32 outputs of a block, 32x2048x2048 9.2 for 6.5 with as many warps, half of the loads under way; 4 warps,
//   1x2560x7680 16.1 for 17.2, 16x2048x2048 7.1 for 4.8; 16 warps 3.4 there, but with more blocks than multiprocessors
//   16x1024x3072 4.5 for 3.2; w past the L1: no difference.
#include "activation.cuh"
#include "mma.cuh"
#include "vec.cuh"

template <class T> struct FcFewRowsParams {
  T* y;
  T* z;
  const T* x;
  const T* w;
  const T* bias;
  acc_t<T> c0, c1;
  i64 rows, outs, k, mode;
  // Elements of y and z, and of b, from a row to the next, and from an output to the next.
  i64 y_row, y_out, bias_row, bias_out;
};

// The activations that the front end fuses.
enum { IDENTITY, RELU, SIGMOID, TANH, SWISH, GELU, GELU_TANH };

template <class F> DEVICE float apply(const F& f, float z) {
  const float from[1] = {z};
  float to[1];
  forward_all(f, from, to);
  return to[0];
}
template <class T> DEVICE float activate(const FcFewRowsParams<T>& p, float z) {
  switch (p.mode) {
    case RELU: return apply(Relu<T>{p.c0, p.c1}, z);
    case SIGMOID: return apply(Sigmoid<T>{p.c0, p.c1}, z);
    case TANH: return apply(Tanh<T>{p.c0, p.c1}, z);
    case SWISH: return apply(Swish<T>{p.c0, p.c1}, z);
    case GELU: return apply(Gelu<T>{p.c0, p.c1}, z);
    case GELU_TANH: return apply(GeluTanh<T>{p.c0, p.c1}, z);
  }
  return z;
}

constexpr int OUTS = 16;

// What a warp adds up: OUTS outputs of ROWS rows, in the tensor cores' order (mma.cuh), outputs down and rows across.
template <class T, int ROWS> struct Products {
  // Elements of a thread's 16 bytes, of a piece of four threads, and pieces that are asked for at once.
  static constexpr int LANES = 16 / sizeof(T), PIECE = 4 * LANES, AHEAD = 256 / (ROWS + OUTS) > 4 ? 4 : 2;
  static constexpr int DOWN = OUTS / 8, ACROSS = ROWS / 8;
  float sum[DOWN / 2][ACROSS][4] = {};

  // 16 bytes of row `first + row` from this thread's place in the piece at `k` on, zeros beyond the extents.
  static DEVICE void fetch(u32 (&v)[4], const T* from, i64 row, i64 rows, i64 k, i64 extent) {
    const i64 own = k + threadIdx.x % 4 * LANES;
    pack<T, LANES> read;
    read.bits = uint4{0, 0, 0, 0};
    if (row < rows && own < extent) read = load<LANES>(from + row * extent + own, 0);
    v[0] = read.bits.x, v[1] = read.bits.y, v[2] = read.bits.z, v[3] = read.bits.w;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = rounded_to_tf32(v[i]);
    }
  }
  // Adds AHEAD pieces from k on.
  DEVICE void add(const FcFewRowsParams<T>& p, i64 first, i64 k) {
    const int group = threadIdx.x % 32 / 4;
    u32 w[AHEAD][DOWN][4], x[AHEAD][ACROSS][4];
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
#pragma unroll
      for (int i = 0; i < DOWN; ++i) fetch(w[a][i], p.w, first + 8 * i + group, p.outs, k + a * PIECE, p.k);
#pragma unroll
      for (int j = 0; j < ACROSS; ++j) fetch(x[a][j], p.x, 8 * j + group, p.rows, k + a * PIECE, p.k);
    }
#pragma unroll
    for (int a = 0; a < AHEAD; ++a)
#pragma unroll
      for (int half = 0; half < 4; half += 2)
#pragma unroll
        for (int i = 0; i < DOWN; i += 2) {
          const u32 factor[4] = {w[a][i][half], w[a][i + 1][half], w[a][i][half + 1], w[a][i + 1][half + 1]};
#pragma unroll
          for (int j = 0; j < ACROSS; ++j) add_product(sum[i / 2][j], factor, x[a][j][half], x[a][j][half + 1], T());
        }
  }
};

// Sums of the warps on their way to the threads that add them; rows are padded, so that few stores meet at a bank.
template <int ROWS, int WARPS> struct Meeting {
  static constexpr int PAD = 4;
  float sums[WARPS][OUTS][ROWS + PAD];
  template <class T> DEVICE void put(const Products<T, ROWS>& own) {
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < OUTS / 16; ++i)
#pragma unroll
      for (int j = 0; j < ROWS / 8; ++j)
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[warp][16 * i + v / 2 * 8 + group][8 * j + pair + v % 2] = own.sum[i][j][v];
  }
  DEVICE float total(int out, int row) const {
    float all = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) all += sums[warp][out][row];
    return all;
  }
};

template <class T, int ROWS, int WARPS>
__global__ void __launch_bounds__(32 * WARPS, 16 / WARPS) fc_forward_few_rows(const FcFewRowsParams<T> p) {
  __shared__ Meeting<ROWS, WARPS> meeting;
  if constexpr (TENSOR_CORES) {
    typedef Products<T, ROWS> P;
    const i64 first = (i64)blockIdx.x * OUTS;
    const int step = P::AHEAD * P::PIECE;
    P products;
    for (i64 k = threadIdx.x / 32 * step; k < p.k; k += WARPS * step) products.add(p, first, k);
    meeting.put(products);
    __syncthreads();
    for (int i = threadIdx.x; i < OUTS * ROWS; i += 32 * WARPS) {
      const int own = i % OUTS, row = i / OUTS;
      const i64 out = first + own, at = row * p.y_row + out * p.y_out;
      if (row >= p.rows || out >= p.outs) continue;
      const float z = meeting.total(own, row) + (p.bias ? to_acc(p.bias[row * p.bias_row + out * p.bias_out]) : 0.0f);
      if (p.z) p.z[at] = from_acc<T>(z);
      p.y[at] = from_acc<T>(activate(p, z));
    }
  }
}
