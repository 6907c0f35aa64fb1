// Gradient of a convolution in its bias, and what a batch norm wants to know of a convolution: sums over images and positions.
//
//   db[k] = alpha sum_{n, o} dy[n, o, k] + beta db[k];  or  sums[0, k] = sum_{n, o} y[n, o, k], sums[1, k] that of y^2
//
// Shapes    bias_columns: dy as a matrix of `rows` positions by `channels`, channels side by side (NHWC). bias_planes: dy
//           (outer, channels, positions), positions side by side (NCHW). db of T; sums, in place of db where SUMS is 2, and dy
//           is y then, of acc_t<T>; parts: scratch, sums of acc_t<T> for each channel and split. VEC elements at once: 1, or 16 bytes where everything is a multiple of that.
// Plan      bias_columns   `lanes` threads of a block have neighbouring channels, the others other rows of the split.
//           bias_planes    a block sums planes of one channel, a share of the images; its threads go over all packs.
//           bias_fold      a warp a channel adds the splits, where there are several.
// Numerics  partial sums in acc_t<T>, folded in an order fixed by the shapes: the same bits each time.
// Cost      one read of dy. Not measured yet.
// Limits    fewer than 2^31 channels.
#include "reduce.cuh"
#include "vec.cuh"

constexpr int BLOCK = 256, AHEAD = 4;  // threads; loads in flight

template <class T> struct BiasParams {
  T* db;
  acc_t<T>* sums;
  acc_t<T>* parts;
  const T* dy;
  acc_t<T> alpha, beta;
  i64 channels, splits, lanes, rows, row_step, outer, outer_step, channel_step, positions;
};

// Sum number `row`, of channels and then of their squares.
template <int SUMS, class T> DEVICE void finish(const BiasParams<T>& p, i64 row, acc_t<T> sum) {
  if constexpr (SUMS == 1)
    p.db[row] = blend<T>(p.alpha, sum, p.beta, p.db + row);
  else
    p.sums[row] = sum;
}
template <int SUMS, class T> DEVICE void leave(const BiasParams<T>& p, i64 row, i64 split, acc_t<T> sum) {
  if (p.splits > 1)
    p.parts[row * p.splits + split] = sum;
  else
    finish<SUMS>(p, row, sum);
}

template <int SUMS, int VEC, class T> DEVICE void add(acc_t<T> (&sums)[SUMS][VEC], const pack<T, VEC>& v) {
#pragma unroll
  for (int k = 0; k < VEC; ++k) {
    const acc_t<T> one = to_acc(v.lane[k]);
    sums[0][k] += one;
    if constexpr (SUMS == 2) sums[1][k] = fma(one, one, sums[1][k]);
  }
}

template <class T, int VEC, int SUMS>
__global__ void __launch_bounds__(BLOCK) bias_columns(const BiasParams<T> p) {
  typedef acc_t<T> A;
  __shared__ A folded[SUMS * VEC][BLOCK];
  const int lanes = (int)p.lanes;
  const i64 channel = ((i64)blockIdx.x * lanes + threadIdx.x % lanes) * VEC, depth = BLOCK / lanes;
  const i64 per_split = quotient(p.rows + p.splits - 1, p.splits), begin = blockIdx.y * per_split;
  const i64 last = begin + per_split < p.rows ? begin + per_split : p.rows, end = channel < p.channels ? last : begin;
  const T* dy = p.dy + channel;
  A sums[SUMS][VEC] = {};
  i64 row = begin + threadIdx.x / lanes;
  for (; row + (AHEAD - 1) * depth < end; row += AHEAD * depth) {
    pack<T, VEC> v[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) v[j] = load<VEC>(dy + (row + j * depth) * p.row_step, 0);
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) add(sums, v[j]);
  }
  for (; row < end; row += depth) add(sums, load<VEC>(dy + row * p.row_step, 0));
#pragma unroll
  for (int k = 0; k < SUMS * VEC; ++k) folded[k][threadIdx.x] = sums[k / VEC][k % VEC];
  for (int half = BLOCK / 2; half >= lanes; half >>= 1) {
    __syncthreads();
    if (threadIdx.x < half) {
#pragma unroll
      for (int k = 0; k < SUMS * VEC; ++k) folded[k][threadIdx.x] += folded[k][threadIdx.x + half];
    }
  }
  if (threadIdx.x >= lanes || channel >= p.channels) return;
#pragma unroll
  for (int k = 0; k < SUMS * VEC; ++k)
    leave<SUMS>(p, k / VEC * p.channels + channel + k % VEC, blockIdx.y, folded[k][threadIdx.x]);
}

template <class T, int VEC, int SUMS>
__global__ void __launch_bounds__(BLOCK, 4) bias_planes(const BiasParams<T> p) {
  typedef acc_t<T> A;
  const i64 per_split = quotient(p.outer + p.splits - 1, p.splits), first = blockIdx.y * per_split;
  const i64 images = first + per_split < p.outer ? per_split : p.outer - first, packs = p.positions / VEC;
  const i64 end = images > 0 ? images * packs : 0;
  const T* dy = p.dy + (first * p.outer_step + (i64)blockIdx.x * p.channel_step);
  A sums[SUMS][VEC] = {};
  i64 i = threadIdx.x;
  for (; i + (AHEAD - 1) * BLOCK < end; i += AHEAD * BLOCK) {
    pack<T, VEC> v[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
      const i64 at = i + j * BLOCK, image = quotient(at, packs);
      v[j] = load<VEC>(dy + image * p.outer_step, at - image * packs);
    }
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) add(sums, v[j]);
  }
  for (; i < end; i += BLOCK) {
    const i64 image = quotient(i, packs);
    add(sums, load<VEC>(dy + image * p.outer_step, i - image * packs));
  }
#pragma unroll
  for (int s = 0; s < SUMS; ++s) {
    A sum = sums[s][0];
#pragma unroll
    for (int k = 1; k < VEC; ++k) sum += sums[s][k];
    if (s > 0) __syncthreads();  // `block_reduce` takes the same memory
    sum = block_reduce<BLOCK>(sum, Sum(), A(0));
    if (threadIdx.x == 0) leave<SUMS>(p, s * p.channels + blockIdx.x, blockIdx.y, sum);
  }
}

template <class T, int SUMS> __global__ void __launch_bounds__(BLOCK) bias_fold(const BiasParams<T> p) {
  const i64 row = ((i64)blockIdx.x * BLOCK + threadIdx.x) / 32;
  if (row >= SUMS * p.channels) return;
  acc_t<T> sum = 0;
#pragma unroll 4
  for (i64 k = threadIdx.x % 32; k < p.splits; k += 32) sum += p.parts[row * p.splits + k];
  sum = warp_reduce(sum, Sum());
  if (threadIdx.x % 32 == 0) finish<SUMS>(p, row, sum);
}
