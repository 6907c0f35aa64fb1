// Convolutions of few input channels: the gradient in data, whose plan convolution_first.cu tells.
//
// Along each axis position i, with i + padding = stride * m + rest, sees output m - j through tap rest + stride * j. So all
// rests at m see the same outputs, each through taps of its own.
#pragma once
#include "convolution_first.cuh"

constexpr int RESTS = 4;  // most of both axes together

template <class T> struct FirstDataParams {
  T* dx;
  const T* dy;
  const T* w;
  const T* b;
  acc_t<T> alpha, beta;
  i64 batch, channels, filters, tiles_h, tiles_w;
  Extent image, output, taps, stride, padding, first, reach;  // first m; most outputs seen
  Steps x_steps, y_steps, w_steps;
  i64 w_first, packed;
};

// The filters as `b` of the products: for each of the outputs seen and 16 filters, for each rest 32 lanes by 2 words.
template <class T> DEVICE void read_taps(const FirstDataParams<T>& p, u32* to) {
  const i64 rests = p.stride.h * p.stride.w, size = p.reach.h * p.reach.w * 4 * rests * 64;
  for (i64 i = threadIdx.x; i < size; i += FIRST_BLOCK) {
    i64 j = i / 64;
    const i64 rest = split_off(j, rests), sixteen = j % 4, seen = j / 4, channel = i % 64 / 8;
    const i64 filter = sixteen * 16 + i % 2 * 8 + i % 8 / 2 * 2;
    const i64 r = whole(rest, p.stride.w) + p.stride.h * whole(seen, p.reach.w);
    const i64 s = rest % p.stride.w + p.stride.w * (seen % p.reach.w);
    pack<T, 2> both = {};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (r >= p.taps.h || s >= p.taps.w || channel >= p.channels || filter + k >= p.filters) continue;
      const Steps& steps = p.w_steps;
      both.lane[k] = p.w[p.w_first + (filter + k) * steps.outer + channel * steps.channel + r * steps.h + s * steps.w];
    }
    to[i] = both.bits;
  }
}

// What a tile sees of dy, from its first outputs on; those outside are zeros.
template <class T> DEVICE void copy_seen(const FirstDataParams<T>& p, const TilePlace& at, T* to) {
  const i64 across = TILE_EXTENT + p.reach.w - 1, down = TILE_EXTENT + p.reach.h - 1;
  const i64 top = at.h + p.first.h - (p.reach.h - 1), left = at.w + p.first.w - (p.reach.w - 1);
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

// Sums of a warp's two rows of 16 positions of one rest.
template <class T>
DEVICE void store_rest(const FirstDataParams<T>& p, const float (&sums)[2][4], const TilePlace& at, i64 rest_h, i64 rest_w) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const float sum = i < 4 ? (i < 2 ? (i == 0 ? sums[0][0] : sums[0][1]) : (i == 2 ? sums[0][2] : sums[0][3]))
                            : (i < 6 ? (i == 4 ? sums[1][0] : sums[1][1]) : (i == 6 ? sums[1][2] : sums[1][3]));
    const i64 m_h = p.first.h + at.h + i / 4, m_w = p.first.w + at.w + lane / 4 + i / 2 % 2 * 8;
    const i64 h = m_h * p.stride.h + rest_h - p.padding.h, w = m_w * p.stride.w + rest_w - p.padding.w;
    const i64 channel = lane % 4 * 2 + i % 2;
    if (channel >= p.channels || !within(h, p.image.h) || !within(w, p.image.w)) continue;
    const Steps& steps = p.x_steps;
    T* dx = p.dx + (at.n * steps.outer + h * steps.h + w * steps.w + channel * steps.channel);
    float v = sum - sum == 0.0f ? sum : gather(p, at.n, h, w, channel);
    if (p.b) v += to_acc(p.b[channel]);
    *dx = blend<T>(p.alpha, v, p.beta, dx);
  }
}

template <class T> DEVICE void multiply_seen(const FirstDataParams<T>& p, const T* patch, const uint2* taps, float (&sums)[RESTS][2][4]) {
  const int lane = threadIdx.x % 32, rests = (int)(p.stride.h * p.stride.w);
  const i64 across = TILE_EXTENT + p.reach.w - 1, row = threadIdx.x / 32 * 2;
  const T* last = patch + ((row + p.reach.h - 1) * across + lane % 16 + p.reach.w - 1) * DY_PITCH + lane / 16 * 8;
#pragma unroll 1
  for (i64 seen = 0; seen < p.reach.h * p.reach.w; ++seen) {
    const i64 up = whole(seen, p.reach.w), aside = seen - up * p.reach.w;
    const T* first = last - (up * across + aside) * DY_PITCH;
#pragma unroll 2
    for (int k = 0; k < FILTERS / 16; ++k) {
      u32 above[4], below[4];
      read_matrices(above, first + k * 16);
      read_matrices(below, first + across * DY_PITCH + k * 16);
#pragma unroll
      for (int rest = 0; rest < RESTS; ++rest) {
        if (rest >= rests) break;
        const uint2 f = taps[((seen * 4 + k) * rests + rest) * 32 + lane];
        add_product(sums[rest][0], above, f.x, f.y, T());
        add_product(sums[rest][1], below, f.x, f.y, T());
      }
    }
  }
}

template <class T> DEVICE void data_tiles(const FirstDataParams<T>& p) {
  DYNAMIC_SHARED(u32, shared);
  const i64 rests = p.stride.h * p.stride.w, words = p.reach.h * p.reach.w * 4 * rests * 64;
  const i64 size = (TILE_EXTENT + p.reach.h - 1) * (TILE_EXTENT + p.reach.w - 1) * DY_PITCH;
  T* patches = reinterpret_cast<T*>(shared + words);
  read_taps(p, shared);
  const i64 tiles = p.batch * p.tiles_h * p.tiles_w;
  int here = 0;
#pragma unroll 1
  for (i64 tile = (i64)blockIdx.x - gridDim.x; tile < tiles; tile += gridDim.x, here ^= 1) {
    if (tile >= 0) {
      await_copies<0>();
      __syncthreads();
    }
    if (tile + gridDim.x < tiles) copy_seen(p, tile_place(p, tile + gridDim.x, TILE_EXTENT), patches + (here ^ 1) * size);
    commit_copies();
    if (tile < 0) continue;
    float sums[RESTS][2][4] = {};
    multiply_seen(p, patches + here * size, reinterpret_cast<const uint2*>(shared), sums);
    TilePlace at = tile_place(p, tile, TILE_EXTENT);
    at.h += threadIdx.x / 32 * 2;
#pragma unroll 1
    for (i64 rest = 0; rest < rests; ++rest) {
      store_rest(p, sums[0], at, whole(rest, p.stride.w), rest % p.stride.w);
#pragma unroll
      for (int i = 0; i < (RESTS - 1) * 8; ++i) sums[i / 8][i / 4 % 2][i % 4] = sums[i / 8 + 1][i / 4 % 2][i % 4];
    }
  }
}

template <class T> __global__ void __launch_bounds__(FIRST_BLOCK, 1) first_data(const FirstDataParams<T> p) {
  if constexpr (TENSOR_CORES) data_tiles(p);
}
