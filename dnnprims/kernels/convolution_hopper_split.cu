// Convolutions of two spatial axes on Hopper whose tiles are too few for all multiprocessors: their products are split.
//
// As convolution_hopper.cu, forward and in the data of stride 1. A tile's taps and channels in are dealt out to several
// blocks; each writes its sums to a slot of a workspace, and a second launch adds up the slots and does what follows.
//
// Shapes    as convolution_hopper.cu, float in TF32 among them; partials (splits, pixels, channels) of float.
// Plan      conv_hopper_partial_*   blocks as in convolution_hopper.cu, the two consumers share tiles of 128 x 128.
//           conv_hopper_finish      four elements a thread; threads of a block share the slots where there are many.
// Numerics  products summed in float by the tensor cores in the order of taps and channels of a split, then split by
//           split: the same bits each time; one rounding at the end.
// Cost      as convolution_hopper.cu, and 8 bytes of the L2 an element and split.
// Limits    as convolution_hopper.cu.
// Measured on an NVIDIA H200, 2026-11-28, bfloat16, batch 8, L2 flushed between, microseconds, without splitting and
//   cuDNN 9 of the same run in brackets: forward 512@7 15.5 (29.5, 16.5), 256@14 15.7 (19.7, 16.1), 256@28 of stride 2
//   15.9 (19.6, 15.2); data 512@7 15.1 (30.1, 15.2), 256@14 15.5 (20.0, 13.3).
//   TF32, one call after the other, forward, without splitting and cuDNN 9 in brackets: batch 1 832-128@7 of 5x5 9.4
//   (114, 22), 512-48@14 of 5x5 7.9 (71, 17), 512@7 8.5 (28, 17); batch 16 832-128@7 of 5x5 27 (121, 45). Over the 63 of
//   DeepBench's that are split 1.75 times as fast as whole, at least 1.03 but for 2x512-192@14 of 1x1, 6.5 (6.0, 6.1).
#include "convolution_hopper_tile.cuh"
#include "vec.cuh"

template <class T> struct ConvPartialParams {
  static constexpr int PHASES = 1;
  static constexpr bool SPLIT = true;
  static constexpr int K_BLOCK = CHUNK<T>;
  const T* x;
  const T* w;
  float* partials;
  i64 size;  // of a slot
  int channels, channel_tiles, channel_blocks, splits, pixels, matrix;
  Phase phases[1];
};

struct PartialMaps {
  TensorMap x[1], w;
};

typedef Tiling<1, 128, 6, 2, false, false> SplitTile;

// What `multiply_all` asks of a way out.
struct NoOutlet {
  const int consumer;
  DEVICE void bring_first(const Place<SplitTile>&) const {}
};

template <class T>
DEVICE void keep_sums(const ConvPartialParams<T>& p, const Place<SplitTile>& place, int split, int consumer,
                      const float (&sum)[1][64]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int pixel = place.pixel + consumer * 64 + warp * 16 + lane / 4, channel = place.channel + lane % 4 * 2;
  float* to = p.partials + split * p.size + (i64)pixel * p.channels + channel;
#pragma unroll
  for (int j = 0; j < 16; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (pixel + half * 8 >= p.pixels || channel + j * 8 >= p.channels) continue;
      keep_pair(to + half * 8 * p.channels + j * 8, sum[0][4 * j + 2 * half], sum[0][4 * j + 2 * half + 1]);
    }
}

template <class T, bool ACROSS> DEVICE void convolve_partly(const PartialMaps& maps, const ConvPartialParams<T>& p) {
  extern __shared__ unsigned char raw[];
  const Layout<SplitTile> at(raw);
  const int group = threadIdx.x / WARPGROUP, tasks = Task::count(p);
  if (threadIdx.x == 0) {
    at.ring.init(CONSUMERS * WARPGROUP / 32);
    barriers_ready();
  }
  __syncthreads();
  if (group == CONSUMERS) {
    fewer_registers<40>();
    if (threadIdx.x % WARPGROUP == 0) fetch<SplitTile, ACROSS>(at, maps, p);
    return;
  }
  more_registers<232>();
  u32 steps = 0;
  for (int number = blockIdx.x, round = 0; number < tasks; number += gridDim.x, ++round) {
    const Task job = task(p, number);
    const Place<SplitTile> place(p, job.tile, round);
    float sum[1][64];
    multiply_all<T, SplitTile, ACROSS>(at, Cursor<SplitTile::STAGES>(steps), job.end - job.first, NoOutlet{group}, place,
                                       sum);
    steps += job.end - job.first;
    keep_sums(p, place, job.split, group, sum);
  }
}

template <class T>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    conv_hopper_partial_forward(const __grid_constant__ PartialMaps maps, const __grid_constant__ ConvPartialParams<T> p) {
  convolve_partly<T, false>(maps, p);
}

template <class T>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    conv_hopper_partial_data(const __grid_constant__ PartialMaps maps, const __grid_constant__ ConvPartialParams<T> p) {
  convolve_partly<T, sizeof(T) == 2>(maps, p);
}

template <class T> struct ConvFinishParams {
  T* y;
  const float* partials;
  const T* residual;
  const T* b;
  const float* scale;
  const float* shift;
  acc_t<T> alpha1, alpha2;
  i64 size, channels, splits, relu;
};

constexpr int FINISH_BLOCK = 256, FINISH_VEC = 4;

// v op= the number of each channel
template <class T, class Op> DEVICE void with_channels(float (&v)[FINISH_VEC], const T* from, i64 channel, Op op) {
  if (from == nullptr) return;
#pragma unroll
  for (int k = 0; k < FINISH_VEC; ++k) v[k] = op(v[k], to_acc(from[channel + k]));
}
struct Plus {
  DEVICE float operator()(float a, float b) const { return a + b; }
};
struct Times {
  DEVICE float operator()(float a, float b) const { return a * b; }
};

template <class T> DEVICE void finish(const ConvFinishParams<T>& p, i64 index, float (&v)[FINISH_VEC]) {
  const i64 channel = index - quotient(index, p.channels) * p.channels;
#pragma unroll
  for (int k = 0; k < FINISH_VEC; ++k) v[k] *= p.alpha1;
  with_channels(v, p.b, channel, Plus());
  with_channels(v, p.scale, channel, Times());
  with_channels(v, p.shift, channel, Plus());
  if (p.residual) {
    const pack<T, FINISH_VEC> more = load<FINISH_VEC>(p.residual + index, 0);
#pragma unroll
    for (int k = 0; k < FINISH_VEC; ++k) v[k] += p.alpha2 * to_acc(more.lane[k]);
  }
  if (p.relu)
#pragma unroll
    for (int k = 0; k < FINISH_VEC; ++k) v[k] = positive_part(v[k]);
  store(p.y + index, 0, rounded<T>(v));
}

// SHARING threads add up the slots of FINISH_VEC elements: every SHARING-th each, then those sums in their order.
template <class T, int SHARING>
__global__ void __launch_bounds__(FINISH_BLOCK) conv_hopper_finish(const ConvFinishParams<T> p) {
  constexpr int ACROSS = FINISH_BLOCK / SHARING;
  __shared__ pack<float, FINISH_VEC> shared[SHARING][ACROSS];
  const int lane = threadIdx.x % ACROSS, part = threadIdx.x / ACROSS;
  const i64 index = ((i64)blockIdx.x * ACROSS + lane) * FINISH_VEC;
  float sum[FINISH_VEC] = {};
  if (index < p.size)
#pragma unroll 4
    for (i64 slot = part; slot < p.splits; slot += SHARING) {
      const pack<float, FINISH_VEC> more = load<FINISH_VEC>(p.partials + slot * p.size + index, 0);
#pragma unroll
      for (int k = 0; k < FINISH_VEC; ++k) sum[k] += more.lane[k];
    }
  if constexpr (SHARING > 1) {
#pragma unroll
    for (int k = 0; k < FINISH_VEC; ++k) shared[part][lane].lane[k] = sum[k];
    __syncthreads();
    if (part > 0) return;
    for (int other = 1; other < SHARING; ++other)
#pragma unroll
      for (int k = 0; k < FINISH_VEC; ++k) sum[k] += shared[other][lane].lane[k];
  }
  if (index < p.size) finish(p, index, sum);
}
