// Convolutions of few input channels: the gradient in filters, whose plan convolution_first.cu tells.
#pragma once
#include "convolution_first.cuh"

constexpr int UNITS = 2, WARP_SUMS = UNITS * 16 * 16;  // of 16 terms, a warp's; of those terms and 16 filters

template <class T> struct FirstFilterParams {
  T* dw;
  acc_t<T>* parts;
  const T* dy;
  const T* x;
  acc_t<T> alpha, beta;
  i64 batch, channels, filters, tiles_h, tiles_w;
  Extent source, result, taps, stride, padding;
  Steps x_steps, y_steps, w_steps;
  i64 w_first, packed, splits, groups, rows;  // groups: warps side by side, each with UNITS units of terms; rows: of a tile
  Patch patch;
};

// The tile's positions of dy, rows by warps; those outside are zeros.
template <class T> DEVICE void copy_dy(const FirstFilterParams<T>& p, const TilePlace& at, T* to) {
  const i64 filter = (i64)blockIdx.y * FILTERS;
  const Steps& steps = p.y_steps;
  const T* dy = p.dy + (at.n * steps.outer + at.h * steps.h + at.w * steps.w + filter * steps.channel);
  const int rows = (int)(p.result.h - at.h), columns = (int)(p.result.w - at.w);
  if (p.packed) {
    const int lane = threadIdx.x % 32, beside = lane / 8, eight = lane % 8 * 8;
    dy += beside * steps.w + eight, to += beside * DY_PITCH + eight;
#pragma unroll 1
    for (int row = threadIdx.x / 32; row < p.rows; row += FIRST_BLOCK / 32) {
      const bool real = row < rows && filter + eight < p.filters;
      const T* from = dy + row * steps.h;
      T* place = to + row * TILE_EXTENT * DY_PITCH;
#pragma unroll
      for (int i = 0; i < TILE_EXTENT; i += 4, from += 4 * steps.w) {
        if (real && beside + i < columns) copy_async(place + i * DY_PITCH, from);
        else store<8>(place + i * DY_PITCH, 0, pack<T, 8>{});
      }
    }
  } else {
#pragma unroll 4
    for (int i = threadIdx.x; i < p.rows * TILE_EXTENT * FILTERS; i += blockDim.x) {
      const int x = i % TILE_EXTENT, k = i / TILE_EXTENT % FILTERS, row = i / (TILE_EXTENT * FILTERS);
      const bool real = row < rows && x < columns && filter + k < p.filters;
      to[(row * TILE_EXTENT + x) * DY_PITCH + k] = real ? dy[row * steps.h + x * steps.w + k * steps.channel] : T{};
    }
  }
}

// What the block's tiles give one filter at one term, of nothing but what is in the image.
template <class T> DEVICE float sum_of_tiles(const FirstFilterParams<T>& p, i64 filter, const Term& term) {
  const i64 tiles = p.batch * p.tiles_h * p.tiles_w;
  float sum = 0;
#pragma unroll 1
  for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const TilePlace at = tile_place(p, tile, (int)p.rows);
#pragma unroll 1
    for (i64 i = 0; i < p.rows * TILE_EXTENT; ++i) {
      const i64 h = at.h + i / TILE_EXTENT, w = at.w + i % TILE_EXTENT;
      const i64 row = h * p.stride.h - p.padding.h + term.r, column = w * p.stride.w - p.padding.w + term.s;
      if (h >= p.result.h || w >= p.result.w || !within(row, p.source.h) || !within(column, p.source.w)) continue;
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

// Where the sums of the block's terms begin among the parts, a term a thread; below 0 for those that only fill up.
template <class T> DEVICE void place_sums(const FirstFilterParams<T>& p, i64 first, int* to) {
  const Term term = term_of(p, first + threadIdx.x);
  const i64 tap = (term.r * p.taps.w + term.s) * p.channels + term.c;
  to[threadIdx.x] = term.real ? (int)(tap * p.filters) : -1;
}

// The block's sums of 16 filters, those of the warps that share its rows in their order, to where the fold finds them. One
// that is not finite is found again without what is outside.
template <class T>
DEVICE void leave_parts(const FirstFilterParams<T>& p, const float* stage, const int* places, i64 first, i64 filter) {
  const i64 sharing = whole(blockDim.x / 32, p.groups), size = p.filters * p.channels * p.taps.h * p.taps.w;
  float* to = p.parts + (i64)blockIdx.x * size;
#pragma unroll 4
  for (int i = threadIdx.x; i < (int)p.groups * WARP_SUMS; i += FIRST_BLOCK) {
    const int place = places[i / 16];
    const i64 k = filter + i % 16;
    if (place < 0 || k >= p.filters) continue;
    float sum = stage[i];
    for (int share = 1; share < (int)sharing; ++share) sum += stage[share * (int)p.groups * WARP_SUMS + i];
    if (sum - sum != 0.0f) sum = sum_of_tiles(p, k, term_of(p, first + i / 16));
    to[place + k] = sum;
  }
}

template <class T> DEVICE void filter_tiles(const FirstFilterParams<T>& p) {
  DYNAMIC_SHARED(T, dy);
  const int dy_size = (int)p.rows * TILE_EXTENT * DY_PITCH;
  T* patch = dy + 2 * dy_size;
  T* raw = patch + p.patch.rows * p.patch.pitch;
  const int lane = threadIdx.x % 32;
  const i64 warp = threadIdx.x / 32, group = warp % p.groups, warp_row = whole(warp, p.groups);
  const i64 first_term = blockIdx.z * p.groups * UNITS * 16;
  const i64 sharing = whole(blockDim.x / 32, p.groups), across = p.stride.w * p.patch.pixel;
  const i64 down = p.stride.h * p.patch.pitch, tiles = p.batch * p.tiles_h * p.tiles_w, units = p.patch.row_terms / 16;
  const T* terms[UNITS];
#pragma unroll
  for (int u = 0; u < UNITS; ++u) {
    const i64 unit = first_term / 16 + group * UNITS + u, r = whole(unit, units), column = (unit - r * units) * 16 + lane / 16 * 8;
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
      else copy_pixels(p, tile_place(p, tile, (int)p.rows), patch);
      __syncthreads();
    }
    if (tile + gridDim.x < tiles) {
      const TilePlace next = tile_place(p, tile + gridDim.x, (int)p.rows);
      copy_dy(p, next, dy + (here ^ 1) * dy_size);
      if (spread) shift = copy_rows(p, next, p.patch.raw_pitch, raw);
    }
    commit_copies();
    const T* row = dy + (here * dy_size + warp_row * TILE_EXTENT * DY_PITCH);
    const T* now[UNITS] = {terms[0], terms[1]};
#pragma unroll 1
    for (int y = tile < 0 || warp_row >= sharing ? (int)p.rows : (int)warp_row; y < p.rows; y += (int)sharing) {
      add_positions(row, now, sums);
      row += sharing * TILE_EXTENT * DY_PITCH;
#pragma unroll
      for (int u = 0; u < UNITS; ++u) now[u] += sharing * down;
    }
  }
  // 16 filters at a time go through shared memory, so that what is left lies side by side.
  float* stage = reinterpret_cast<float*>(dy);
  int* places = reinterpret_cast<int*>(stage + FIRST_BLOCK / 32 * WARP_SUMS);
  __syncthreads();
  place_sums(p, first_term, places);
#pragma unroll 1
  for (int m = 0; m < 4; ++m) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8 * UNITS; ++i) {
      const int term = i / 4 * 8 + lane % 4 * 2 + i % 2, filter = lane / 4 + i % 4 / 2 * 8;
      stage[warp * WARP_SUMS + term * 16 + filter] = sums[0][i / 4][i % 4];
    }
    __syncthreads();
    leave_parts(p, stage, places, first_term, (i64)blockIdx.y * FILTERS + m * 16);
#pragma unroll
    for (int i = 0; i < 24 * UNITS; ++i)
      sums[i / (8 * UNITS)][i / 4 % (2 * UNITS)][i % 4] = sums[i / (8 * UNITS) + 1][i / 4 % (2 * UNITS)][i % 4];
  }
}

template <class T> __global__ void __launch_bounds__(FIRST_BLOCK, 2) first_filter(const FirstFilterParams<T> p) {
  if constexpr (TENSOR_CORES) filter_tiles(p);
}

constexpr int FOLD_SUMS = 16, FOLD_SHARES = FIRST_BLOCK / FOLD_SUMS;  // of a block; threads that share one

// A block folds the splits of 16 sums, 16 threads each.
template <class T> __global__ void __launch_bounds__(FIRST_BLOCK) first_fold(const FirstFilterParams<T> p) {
  __shared__ float folded[FOLD_SHARES][FOLD_SUMS];
  const int place = threadIdx.x % FOLD_SUMS, share = threadIdx.x / FOLD_SUMS;
  const i64 size = p.filters * p.channels * p.taps.h * p.taps.w, index = (i64)blockIdx.x * FOLD_SUMS + place;
  float sum = 0;
  if (index < size) {
#pragma unroll 8
    for (i64 k = share; k < p.splits; k += FOLD_SHARES) sum += p.parts[k * size + index];
  }
  folded[share][place] = sum;
  __syncthreads();
  if (share > 0 || index >= size) return;
#pragma unroll
  for (int k = 1; k < FOLD_SHARES; ++k) sum += folded[k][place];
  i64 r = index;
  const i64 filter = split_off(r, p.filters), c = split_off(r, p.channels), s = split_off(r, p.taps.w);
  T* at = p.dw + (p.w_first + filter * p.w_steps.outer + c * p.w_steps.channel + r * p.w_steps.h + s * p.w_steps.w);
  *at = blend<T>(p.alpha, sum, p.beta, at);
}
