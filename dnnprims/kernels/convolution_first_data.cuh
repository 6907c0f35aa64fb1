// Convolutions of few input channels: the gradient in data, whose plan convolution_first.cu tells.
//
// Along each axis positions stride * m + rest, of all rests, see outputs m + lead - j, each through a tap of its own,
// stride * j + rest + offset. What all rests and channels of m see is one product: they are its columns, at most 16.
#pragma once
#include "convolution_first.cuh"

// Floats of a position and a warp on their way out; the columns are spread over banks.
constexpr int COLUMN_PITCH = 24, DATA_STAGE = 2 * TILE_EXTENT * COLUMN_PITCH;
constexpr int TAP_WORDS = FILTERS / 16 * 128;  // of the filters at an output

template <class T> struct FirstDataParams {
  T* dx;
  const T* dy;
  const T* w;
  const T* b;
  acc_t<T> alpha, beta;
  i64 batch, channels, filters, tiles_h, tiles_w;
  Extent image, output, taps, stride, padding, lead, offset, reach;  // reach: most outputs seen
  Steps x_steps, y_steps, w_steps;
  i64 w_first, packed;
};

// The filters as `b` of the products: for each of the outputs seen and 16 filters 32 lanes by 4 words, two for each 8
// columns.
template <class T> DEVICE void read_taps(const FirstDataParams<T>& p, u32* to) {
  const int size = (int)(p.reach.h * p.reach.w) * TAP_WORDS, channels = (int)p.channels, across = (int)p.stride.w;
  for (int i = threadIdx.x; i < size; i += FIRST_BLOCK) {
    const int word = i % 4, lane = i / 4 % 32, seen = i / TAP_WORDS, column = lane / 4 + word / 2 * 8;
    const int filter = i / 128 % 4 * 16 + word % 2 * 8 + lane % 4 * 2, rest = column / channels;
    const i64 r = p.stride.h * (seen / (int)p.reach.w) + rest / across + p.offset.h;
    const i64 s = p.stride.w * (seen % (int)p.reach.w) + rest % across + p.offset.w;
    const bool real = rest < p.stride.h * p.stride.w && within(r, p.taps.h) && within(s, p.taps.w);
    pack<T, 2> both = {};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (!real || filter + k >= p.filters) continue;
      const Steps& steps = p.w_steps;
      both.lane[k] = p.w[p.w_first + (filter + k) * steps.outer + (column - rest * channels) * steps.channel + r * steps.h + s * steps.w];
    }
    to[i] = both.bits;
  }
}

// What a tile sees of dy, from its first outputs on; those outside are zeros.
template <class T> DEVICE void copy_seen(const FirstDataParams<T>& p, const TilePlace& at, T* to) {
  const i64 across = TILE_EXTENT + p.reach.w - 1, down = TILE_EXTENT + p.reach.h - 1;
  const i64 top = at.h + p.lead.h - (p.reach.h - 1), left = at.w + p.lead.w - (p.reach.w - 1);
  const Steps& steps = p.y_steps;
  for (i64 row = threadIdx.x / 32; row < down; row += FIRST_BLOCK / 32) {
    const bool there = within(top + row, p.output.h);
    const T* dy = p.dy + (at.n * steps.outer + (top + row) * steps.h + left * steps.w);
    T* here = to + row * across * DY_PITCH;
    if (p.packed) {
      for (i64 i = threadIdx.x % 32; i < across * 8; i += 32) {
        const i64 x = i / 8, eight = i % 8 * 8;
        if (there && within(left + x, p.output.w) && eight < p.filters) copy_async(here + x * DY_PITCH + eight, dy + (x * steps.w + eight));
        else store<8>(here + x * DY_PITCH + eight, 0, pack<T, 8>{});
      }
    } else {
#pragma unroll 4
      for (i64 i = threadIdx.x % 32; i < across * FILTERS; i += 32) {
        const i64 k = whole(i, across), x = i - k * across;
        const bool real = there && within(left + x, p.output.w) && k < p.filters;
        here[x * DY_PITCH + k] = real ? dy[x * steps.w + k * steps.channel] : T{};
      }
    }
  }
}

// The sum of one result, of nothing but what is there.
template <class T> DEVICE float gather(const FirstDataParams<T>& p, i64 n, i64 h, i64 w, i64 channel) {
  float sum = 0;
#pragma unroll 1
  for (i64 i = 0; i < p.taps.h * p.taps.w * p.filters; ++i) {
    i64 r = i;
    const i64 k = split_off(r, p.filters), s = split_off(r, p.taps.w);
    const i64 y = h + p.padding.h - r, x = w + p.padding.w - s, o = y / p.stride.h, q = x / p.stride.w;
    if (y < 0 || x < 0 || o * p.stride.h != y || q * p.stride.w != x || o >= p.output.h || q >= p.output.w) continue;
    const Steps &a = p.y_steps, &b = p.w_steps;
    const T dy = p.dy[n * a.outer + o * a.h + q * a.w + k * a.channel];
    const T v = p.w[p.w_first + k * b.outer + channel * b.channel + r * b.h + s * b.w];
    sum = fma_(to_acc(dy), to_acc(v), sum);
  }
  return sum;
}

// One element of the result.
template <class T> DEVICE void store_one(const FirstDataParams<T>& p, float v, i64 n, i64 h, i64 w, i64 channel) {
  const Steps& steps = p.x_steps;
  T* dx = p.dx + (n * steps.outer + h * steps.h + w * steps.w + channel * steps.channel);
  if (v - v != 0.0f) v = gather(p, n, h, w, channel);
  if (p.b) v += to_acc(p.b[channel]);
  *dx = blend<T>(p.alpha, v, p.beta, dx);
}

// A warp's sums of two rows of 16 positions, through its part of shared memory, so that neighbours in memory are stored
// together. `at` is the first position.
template <class T>
DEVICE void store_sums(const FirstDataParams<T>& p, const float (&sums)[2][2][4], float* stage, const TilePlace& at) {
  const int lane = threadIdx.x % 32, across = (int)p.stride.w, down = (int)p.stride.h, channels = (int)p.channels;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float pair[2] = {sums[i / 4][i / 2 % 2][i % 2 * 2], sums[i / 4][i / 2 % 2][i % 2 * 2 + 1]};
    store<2>(stage + (i / 4 * 16 + i % 2 * 8 + lane / 4) * COLUMN_PITCH + i / 2 % 2 * 8 + lane % 4 * 2, 0, rounded<float>(pair));
  }
  __syncwarp();
  const int wide = TILE_EXTENT * across;  // positions of a row of the image
  const bool channels_last = p.x_steps.channel == 1;
#pragma unroll 1
  for (int e = lane; e < wide * channels; e += 32) {
    const int channel = channels_last ? e % channels : e / wide, place = channels_last ? e / channels : e % wide;
    const int x = place / across, column = (place - x * across) * channels + channel;
    const i64 w = at.w * across + place;
    if (w >= p.image.w) continue;
#pragma unroll 1
    for (int y = 0; y < 2 * down; ++y) {
      const int row = y / down, rest = y - row * down;
      const i64 h = at.h * down + y;
      if (h >= p.image.h) break;
      store_one(p, stage[(row * 16 + x) * COLUMN_PITCH + rest * across * channels + column], at.n, h, w, channel);
    }
  }
  __syncwarp();
}

// Two rows of 16 positions by HALVES times 8 columns. A row of dy is read once for both: what was the tap of the first
// row of positions is, one row further, that of the second.
template <int HALVES, class T>
DEVICE void multiply_seen(const FirstDataParams<T>& p, const T* patch, const uint4* taps, float (&sums)[2][2][4]) {
  const int lane = threadIdx.x % 32, reach_h = (int)p.reach.h, reach_w = (int)p.reach.w, across = TILE_EXTENT + reach_w - 1;
  const T* last = patch + (threadIdx.x / 32 * 2 * across + lane % 16 + reach_w - 1) * DY_PITCH + lane / 16 * 8;
#pragma unroll 1
  for (int aside = 0; aside < reach_w; ++aside) {
    const T* from = last - aside * DY_PITCH;
    const uint4* f = taps + ((reach_h - 1) * reach_w + aside) * (TAP_WORDS / 4) + lane;
    uint4 before[FILTERS / 16];
#pragma unroll 1
    for (int row = 0; row <= reach_h; ++row, from += across * DY_PITCH, f -= reach_w * (TAP_WORDS / 4)) {
#pragma unroll
      for (int k = 0; k < FILTERS / 16; ++k) {
        u32 dy[4];
        read_matrices(dy, from + k * 16);
        if (row > 0) {
          add_product(sums[1][0], dy, before[k].x, before[k].y, T());
          if (HALVES > 1) add_product(sums[1][1], dy, before[k].z, before[k].w, T());
        }
        if (row < reach_h) {
          before[k] = f[k * 32];
          add_product(sums[0][0], dy, before[k].x, before[k].y, T());
          if (HALVES > 1) add_product(sums[0][1], dy, before[k].z, before[k].w, T());
        }
      }
    }
  }
}

template <class T> DEVICE void data_tiles(const FirstDataParams<T>& p) {
  DYNAMIC_SHARED(u32, shared);
  const int words = (int)(p.reach.h * p.reach.w) * TAP_WORDS;
  float* stage = reinterpret_cast<float*>(shared + words) + threadIdx.x / 32 * DATA_STAGE;
  T* patch = reinterpret_cast<T*>(shared + words + FIRST_BLOCK / 32 * DATA_STAGE);
  const uint4* taps = reinterpret_cast<const uint4*>(shared);
  const i64 tiles = p.batch * p.tiles_h * p.tiles_w;
  if ((i64)blockIdx.x < tiles) copy_seen(p, tile_place(p, blockIdx.x, TILE_EXTENT), patch);
  commit_copies();
  read_taps(p, shared);
#pragma unroll 1
  for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[2][2][4] = {};
    await_copies<0>();
    __syncthreads();
    if (p.stride.h * p.stride.w * p.channels > 8) multiply_seen<2>(p, patch, taps, sums);
    else multiply_seen<1>(p, patch, taps, sums);
    __syncthreads();
    if (tile + gridDim.x < tiles) copy_seen(p, tile_place(p, tile + gridDim.x, TILE_EXTENT), patch);
    commit_copies();
    TilePlace at = tile_place(p, tile, TILE_EXTENT);
    at.h += threadIdx.x / 32 * 2;
    store_sums(p, sums, stage, at);
  }
}

template <class T> __global__ void __launch_bounds__(FIRST_BLOCK, 2) first_data(const FirstDataParams<T> p) {
  if constexpr (TENSOR_CORES) data_tiles(p);
}
