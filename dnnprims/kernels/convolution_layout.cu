// Copies of images and filters between layouts: planes of one channel, and channels side by side, padded by zeros.
//
// y[n, p, c] = x[n, p, c] for n < outer and c < channels, else zero, c < to_channels; p counts the spatial positions.
//
// Shapes    x and y of T. Steps of n, c and p are free; in the layout PLANES positions lie side by side (step 1), in the
//           other channels do. What lies side by side is read or written in packs of IN or OUT elements, of which its
//           extent and its other steps are multiples, and the address one of 16 bytes; 1 takes anything.
// Plan      a block a tile of 64 positions by 64 channels, which goes through shared memory as [position][channel]. A row
//           has a 4-byte word more than 64 elements, so that a column lies in different banks.
//           conv_whole_planes   where a plane's extent is no multiple of a pack: a block takes all positions of some channels,
//                               which are one run of packs, and go through shared memory likewise.
//           conv_group_filters  a thread an element: of filters (k, taps, group) those of blocks of 64 channels that hold
//           whole groups, y[k, tap, j] = w[k, tap, j mod group] where channel j is of the group of filter k, both mod 64,
//           else zero.
//           conv_own_filters    a thread an element: of filters (k, taps, channels) that see the channels of several
//           groups the part that their own is, y (k, taps, group), from k / filters_of_group * group mod channels on.
// Numerics  bits are copied.
// Cost      reads and writes every element once: predicted at the rate of a copy where both sides are packs. Measured on an
//           NVIDIA H200, 2026-11-28: planes of 56 x 56 bfloat16, images of 64 and 256 channels, 256 each, there and back in
//           257 us, 0.94 of the rate; planes of 14 x 14, by elements then, 0.47: 8 bytes at once take these since. By ncu
//           planes of 56 x 56 take 48 us a way, DRAM busy 78 % and L2 89 % of the time; of 28 x 28 26 us, 65 and 85 %; of
//           7 x 7, whole, 11 us, 23 and 50 %: one round of blocks, which waits for memory once (by elements 19 us). Whole
//           planes of 14 x 14 were no faster than by 8 bytes (20 us).
//           Beside the convolution itself they are much: bfloat16, 256 images, forward / data / filter, time over that with
//           channels last, first what the bytes alone come to at 4.2 TB/s, then what was measured:
//             3x3 64@56       2.16/2.16/2.04    2.24/2.23/2.06      3x3 64@224, 32   2.22/2.23/2.18    2.26/2.26/2.18
//             3x3 s2 128@56   2.29/1.84/2.35    2.36/1.92/2.71      3x3 128@28       1.58/1.56/1.57    1.72/1.68/1.74
//             3x3 s2 256@28   1.74/1.56/1.68    1.96/1.70/1.80      3x3 256@14       1.31/1.30/1.28    1.56/1.50/1.39
//             3x3 512@7       1.16/1.15/1.14    1.49/1.49/1.35      1x1 s2 1024@14   2.00/1.66/2.00    4.18/3.13/3.71
//           What is beyond the bytes are launches (images, filters, results; filters 3 to 6 us) and their ramps; in the last
//           line planes of 7 x 7 by elements, which are whole since. Nothing else reads planes: the copy engine wants
//           rows in steps of 16 bytes, and those of 28, 14 and 7 elements are not.
// Limits    fewer than 2^31 tiles.
#include "vec.cuh"

template <class T> struct ConvLayoutParams {
  T* y;
  const T* x;
  i64 outer, positions, channels, to_channels;
  i64 x_outer, x_channel, x_position;
  i64 y_outer, y_channel, y_position;
};

constexpr int SIDE = 64, THREADS = 256;

// The 64 x 64 elements of a tile in packs of VEC along one of its sides, and which of them a thread has in round `u`.
template <int VEC> struct Walk {
  static constexpr int ACROSS = SIDE / VEC, ROUNDS = SIDE * ACROSS / THREADS;
  static DEVICE int along(int u) { return (threadIdx.x + u * THREADS) % ACROSS * VEC; }
  static DEVICE int line(int u) { return (threadIdx.x + u * THREADS) / ACROSS; }
};

template <class T, bool IN_PLANES, bool OUT_PLANES, int IN, int OUT>
__global__ void __launch_bounds__(THREADS) conv_layout(const ConvLayoutParams<T> p) {
  typedef Walk<IN> In;
  typedef Walk<OUT> Out;
  __shared__ T tile[SIDE][SIDE + (sizeof(T) < 4 ? 4 / sizeof(T) : 1)];
  const i64 across = (p.to_channels + SIDE - 1) / SIDE, down = (p.positions + SIDE - 1) / SIDE;
  const i64 row = quotient(blockIdx.x, across), n = quotient(row, down);
  const i64 first_channel = (blockIdx.x - row * across) * SIDE, first_position = (row - n * down) * SIDE;
#pragma unroll
  for (int u = 0; u < In::ROUNDS; ++u) {
    const int position = IN_PLANES ? In::along(u) : In::line(u), channel = IN_PLANES ? In::line(u) : In::along(u);
    const i64 at = first_position + position, c = first_channel + channel;
    pack<T, IN> v = {};
    if (n < p.outer && at < p.positions && c < p.channels)
      v = load<IN>(p.x + n * p.x_outer + c * p.x_channel + at * p.x_position, 0);
#pragma unroll
    for (int j = 0; j < IN; ++j) tile[position + (IN_PLANES ? j : 0)][channel + (IN_PLANES ? 0 : j)] = v.lane[j];
  }
  __syncthreads();
#pragma unroll
  for (int u = 0; u < Out::ROUNDS; ++u) {
    const int position = OUT_PLANES ? Out::along(u) : Out::line(u), channel = OUT_PLANES ? Out::line(u) : Out::along(u);
    const i64 at = first_position + position, c = first_channel + channel;
    if (at >= p.positions || c >= p.to_channels) continue;
    pack<T, OUT> v;
#pragma unroll
    for (int j = 0; j < OUT; ++j) v.lane[j] = tile[position + (OUT_PLANES ? j : 0)][channel + (OUT_PLANES ? 0 : j)];
    store<OUT>(p.y + n * p.y_outer + c * p.y_channel + at * p.y_position, 0, v);
  }
}

template <class T> struct ConvWholePlanesParams {
  T* y;
  const T* x;
  i64 chunks, chunk, positions;  // chunks of channels of an image
  i64 planes_outer, last_outer, last_position;
};

// One after the other along a run of planes: the channel and position of each element, from number `at` on.
struct InRun {
  int channel, position, positions;
  DEVICE InRun(int at, int positions) : channel(at / positions), position(at % positions), positions(positions) {}
  DEVICE void next() {
    if (++position == positions) position = 0, ++channel;
  }
};

template <class T, bool INTO> __global__ void __launch_bounds__(THREADS) conv_whole_planes(const ConvWholePlanesParams<T> p) {
  constexpr int LANES = 16 / sizeof(T), GAP = sizeof(T) < 4 ? 4 / sizeof(T) : 1;
  DYNAMIC_SHARED(T, tile);
  const int positions = (int)p.positions, chunk = (int)p.chunk, pitch = chunk + GAP, size = positions * chunk;
  const i64 n = quotient(blockIdx.x, p.chunks), first = (blockIdx.x - n * p.chunks) * chunk;
  const i64 run = n * p.planes_outer + first * positions, last = n * p.last_outer + first;
  const int across = chunk / LANES;
#pragma unroll 2
  for (int i = threadIdx.x; i < size / LANES; i += THREADS) {
    const int position = i / across, channel = (i - position * across) * LANES;
    const pack<T, LANES> v = load<LANES>(INTO ? p.x + run + i * LANES : p.x + last + position * p.last_position + channel, 0);
    InRun at(i * LANES, positions);
#pragma unroll
    for (int j = 0; j < LANES; ++j, at.next())
      tile[INTO ? at.position * pitch + at.channel : position * pitch + channel + j] = v.lane[j];
  }
  __syncthreads();
#pragma unroll 2
  for (int i = threadIdx.x; i < size / LANES; i += THREADS) {
    const int position = i / across, channel = (i - position * across) * LANES;
    InRun at(i * LANES, positions);
    pack<T, LANES> v;
#pragma unroll
    for (int j = 0; j < LANES; ++j, at.next())
      v.lane[j] = tile[INTO ? position * pitch + channel + j : at.position * pitch + at.channel];
    store<LANES>(INTO ? p.y + last + position * p.last_position + channel : p.y + run + i * LANES, 0, v);
  }
}

template <class T> struct ConvGroupFiltersParams {
  T* y;
  const T* w;
  i64 size, taps, group;
};

template <class T> __global__ void __launch_bounds__(THREADS) conv_group_filters(const ConvGroupFiltersParams<T> p) {
  const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x, row = i / SIDE;
  if (i >= p.size) return;
  const i64 channel = i % SIDE, filter = quotient(row, p.taps) % SIDE, group = quotient(channel, p.group);
  p.y[i] = group == quotient(filter, p.group) ? p.w[row * p.group + channel - group * p.group] : from_acc<T>(acc_t<T>(0));
}

template <class T> struct ConvOwnFiltersParams {
  T* y;
  const T* w;
  i64 size, taps, channels, group, filters_of_group;
};

template <class T> __global__ void __launch_bounds__(THREADS) conv_own_filters(const ConvOwnFiltersParams<T> p) {
  const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x, row = quotient(i, p.group);
  if (i >= p.size) return;
  const i64 first = quotient(quotient(row, p.taps), p.filters_of_group) * p.group % p.channels;
  p.y[i] = p.w[row * p.channels + first + (i - row * p.group)];
}
