// Convolutions of few input channels: the gradient in filters, whose plan convolution_first.cu tells.
#pragma once
#include "convolution_first.cuh"

constexpr int FILTER_ROWS = FIRST_BLOCK / 32, UNITS = 2;  // of a tile; of 16 terms, a warp's

template <class T> struct FirstFilterParams {
  T* dw;
  acc_t<T>* parts;
  const T* dy;
  const T* x;
  acc_t<T> alpha, beta;
  i64 batch, channels, filters, tiles_h, tiles_w;
  Extent source, result, taps, stride, padding;
  Steps x_steps, y_steps, w_steps;
  i64 w_first, packed, splits, groups;  // groups: warps side by side, each with UNITS units of terms
  Patch patch;
};

// The tile's positions of dy, a row a warp; those outside are zeros.
template <class T> DEVICE void copy_dy(const FirstFilterParams<T>& p, const TilePlace& at, T* to) {
  const i64 filter = (i64)blockIdx.y * FILTERS;
  const Steps& steps = p.y_steps;
  const T* dy = p.dy + (at.n * steps.outer + at.h * steps.h + at.w * steps.w + filter * steps.channel);
  const int rows = (int)(p.result.h - at.h), columns = (int)(p.result.w - at.w);
  if (p.packed) {
    const int row = threadIdx.x / 32, lane = threadIdx.x % 32, beside = lane / 8, eight = lane % 8 * 8;
    const bool real = row < rows && filter + eight < p.filters;
    dy += row * steps.h + beside * steps.w + eight, to += (row * TILE_EXTENT + beside) * DY_PITCH + eight;
#pragma unroll
    for (int i = 0; i < TILE_EXTENT; i += 4, dy += 4 * steps.w) {
      if (real && beside + i < columns) copy_async(to + i * DY_PITCH, dy);
      else store<8>(to + i * DY_PITCH, 0, pack<T, 8>{});
    }
  } else {
#pragma unroll 4
    for (int i = threadIdx.x; i < FILTER_ROWS * TILE_EXTENT * FILTERS; i += blockDim.x) {
      const int x = i % TILE_EXTENT, k = i / TILE_EXTENT % FILTERS, row = i / (TILE_EXTENT * FILTERS);
      const bool real = row < rows && x < columns && filter + k < p.filters;
      to[(row * TILE_EXTENT + x) * DY_PITCH + k] = real ? dy[row * steps.h + x * steps.w + k * steps.channel] : T{};
    }
  }
}

// What the block's tiles give one filter at one term, of nothing but what is in the image.
template <class T> DEVICE float sum_of_tiles(const FirstFilterParams<T>& p, i64 filter, const Term& term, i64 warp_row) {
  const i64 tiles = p.batch * p.tiles_h * p.tiles_w, warps = blockDim.x / 32, sharing = whole(warps, p.groups);
  float sum = 0;
#pragma unroll 1
  for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const TilePlace at = tile_place(p, tile, FILTER_ROWS);
#pragma unroll 1
    for (i64 i = 0; i < FILTER_ROWS * TILE_EXTENT; ++i) {
      const i64 y = i / TILE_EXTENT, h = at.h + y, w = at.w + i % TILE_EXTENT;
      const i64 row = h * p.stride.h - p.padding.h + term.r, column = w * p.stride.w - p.padding.w + term.s;
      if (y % sharing != warp_row || h >= p.result.h || w >= p.result.w) continue;
      if (!within(row, p.source.h) || !within(column, p.source.w)) continue;
      const T x = p.x[at.n * p.x_steps.outer + row * p.x_steps.h + column * p.x_steps.w + term.c * p.x_steps.channel];
      const T dy = p.dy[at.n * p.y_steps.outer + h * p.y_steps.h + w * p.y_steps.w + filter * p.y_steps.channel];
      sum = fma_(to_acc(dy), to_acc(x), sum);
    }
  }
  return sum;
}

// The products of one row of positions: 64 filters by the terms of a warp's units.
template <class T>
DEVICE void add_positions(const T* dy, const T* const (&terms)[UNITS], float (&sums)[4][2 * UNITS][4]) {
  const int lane = threadIdx.x % 32;
  u32 left[4][4], right[UNITS][4];
#pragma unroll
  for (int m = 0; m < 4; ++m)
    read_matrices_transposed(left[m], dy + (lane / 16 * 8 + lane % 8) * DY_PITCH + m * 16 + lane / 8 % 2 * 8);
#pragma unroll
  for (int u = 0; u < UNITS; ++u) read_matrices_transposed(right[u], terms[u]);
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int i = 0; i < 2 * UNITS; ++i)
      add_product(sums[m][i], left[m], right[i / 2][i % 2 * 2], right[i / 2][i % 2 * 2 + 1], T());
  }
}

// The block's share of a sum to where the fold finds it, found again without what is outside where it is not finite.
template <class T>
DEVICE void leave_part(const FirstFilterParams<T>& p, float sum, i64 filter, i64 number, i64 warp_row, i64 split) {
  const Term term = term_of(p, number);
  if (filter >= p.filters || !term.real) return;
  if (sum - sum != 0.0f) sum = sum_of_tiles(p, filter, term, warp_row);
  const i64 tap = (term.r * p.taps.w + term.s) * p.channels + term.c;
  p.parts[split * p.filters * p.channels * p.taps.h * p.taps.w + tap * p.filters + filter] = sum;
}

template <class T> DEVICE void filter_tiles(const FirstFilterParams<T>& p) {
  DYNAMIC_SHARED(T, dy);
  constexpr int DY = FILTER_ROWS * TILE_EXTENT * DY_PITCH;
  T* patch = dy + 2 * DY;
  T* raw = patch + p.patch.rows * p.patch.pitch;
  const int lane = threadIdx.x % 32;
  const i64 warp = threadIdx.x / 32, group = warp % p.groups, warp_row = whole(warp, p.groups);
  const i64 sharing = whole(blockDim.x / 32, p.groups), across = p.stride.w * p.patch.pixel;
  const i64 down = p.stride.h * p.patch.pitch, tiles = p.batch * p.tiles_h * p.tiles_w, units = p.patch.row_terms / 16;
  const T* terms[UNITS];
#pragma unroll
  for (int u = 0; u < UNITS; ++u) {
    const i64 unit = group * UNITS + u, r = whole(unit, units), column = (unit - r * units) * 16 + lane / 16 * 8;
    terms[u] = patch + (r < p.taps.h ? r * p.patch.pitch + column : 0) + lane % 16 * across + warp_row * down;
  }
  float sums[4][2 * UNITS][4] = {};
  const bool spread = p.patch.way == SPREAD;
  i64 shift = 0;
  int here = 1;
#pragma unroll 1
  for (i64 tile = (i64)blockIdx.x - gridDim.x; tile < tiles; tile += gridDim.x, here ^= 1) {
    if (tile >= 0) {
      await_copies<0>();
      __syncthreads();
      if (spread) spread_rows(p, raw + shift, patch);
      else copy_pixels(p, tile_place(p, tile, FILTER_ROWS), patch);
      __syncthreads();
    }
    if (tile + gridDim.x < tiles) {
      const TilePlace next = tile_place(p, tile + gridDim.x, FILTER_ROWS);
      copy_dy(p, next, dy + (here ^ 1) * DY);
      if (spread) shift = copy_rows(p, next, p.patch.raw_pitch, raw);
    }
    commit_copies();
    const T* row = dy + (here * DY + warp_row * TILE_EXTENT * DY_PITCH);
    const T* now[UNITS] = {terms[0], terms[1]};
#pragma unroll 1
    for (int y = tile < 0 || warp_row >= sharing ? FILTER_ROWS : (int)warp_row; y < FILTER_ROWS; y += (int)sharing) {
      add_positions(row, now, sums);
      row += sharing * TILE_EXTENT * DY_PITCH;
#pragma unroll
      for (int u = 0; u < UNITS; ++u) now[u] += sharing * down;
    }
  }
  __syncthreads();
  if (warp_row >= sharing) return;  // this warp has copied only
  // 16 filters at a time go through the warp's part of shared memory, so that what is left lies side by side.
  float* stage = reinterpret_cast<float*>(dy) + warp * 32 * UNITS * 8;
  const i64 split = blockIdx.x * sharing + warp_row;
#pragma unroll 1
  for (int m = 0; m < 4; ++m) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8 * UNITS; ++i) {
      const int term = i / 4 * 8 + lane % 4 * 2 + i % 2, filter = lane / 4 + i % 4 / 2 * 8;
      stage[term * 16 + filter] = sums[0][i / 4][i % 4];
    }
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < 32 * UNITS * 8; i += 32) {
      const i64 filter = (i64)blockIdx.y * FILTERS + m * 16 + i % 16;
      leave_part(p, stage[i], filter, group * UNITS * 16 + i / 16, warp_row, split);
    }
#pragma unroll
    for (int i = 0; i < 24 * UNITS; ++i)
      sums[i / (8 * UNITS)][i / 4 % (2 * UNITS)][i % 4] = sums[i / (8 * UNITS) + 1][i / 4 % (2 * UNITS)][i % 4];
  }
}

template <class T> __global__ void __launch_bounds__(FIRST_BLOCK, 2) first_filter(const FirstFilterParams<T> p) {
  if constexpr (TENSOR_CORES) filter_tiles(p);
}

// A block folds the splits of 32 sums, 8 threads each.
template <class T> __global__ void __launch_bounds__(FIRST_BLOCK) first_fold(const FirstFilterParams<T> p) {
  __shared__ float folded[FIRST_BLOCK / 32][32];
  const i64 size = p.filters * p.channels * p.taps.h * p.taps.w, index = (i64)blockIdx.x * 32 + threadIdx.x % 32;
  float sum = 0;
  if (index < size) {
#pragma unroll 8
    for (i64 k = threadIdx.x / 32; k < p.splits; k += FIRST_BLOCK / 32) sum += p.parts[k * size + index];
  }
  folded[threadIdx.x / 32][threadIdx.x % 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32 || index >= size) return;
  for (int k = 1; k < FIRST_BLOCK / 32; ++k) sum += folded[k][threadIdx.x];
  i64 r = index;
  const i64 filter = split_off(r, p.filters), c = split_off(r, p.channels), s = split_off(r, p.taps.w);
  T* at = p.dw + (p.w_first + filter * p.w_steps.outer + c * p.w_steps.channel + r * p.w_steps.h + s * p.w_steps.w);
  *at = blend<T>(p.alpha, sum, p.beta, at);
}
