// Convolutions of few input channels by many filters, as the first layer of a network has them, on the tensor cores.
//
// The maths is that of convolution.cu, for one group, two spatial axes and no dilation.
//
// Shapes    x (n, c, h, w) of T, any steps; w (k, c, r, s) likewise; y (n, k, p, q), residual alike; b of T, scale and shift
//           of float. T is float16 or bfloat16.
// Plan      first_forward     a block of 8 warps makes tiles of 16 x 16 positions of 64 filters, one after the other. What a
//                             tile sees of an image is copied to shared memory once, the next one's while this one is
//                             multiplied. There the terms of a filter's row, its taps and their channels, lie side by side,
//                             for every position of the tile: the left factor of the product is read right from the patch,
//                             pair by pair, by a table of offsets. Each row is made even, so that no pair spans two;
//                             where neighbouring positions would begin at odd elements each pixel is made even instead.
//                             The filters stay in shared memory as the tensor cores take them. A warp has 2 rows of 16
//                             positions; its sums go through shared memory on their way to 16-byte stores.
//           first_filter      likewise over tiles of 16 x 16 positions, of 8 x 16 where they are few: the product of 64
//                             filters' dy and the terms of the patch over the positions, both read transposed, for which
//                             positions must begin at 16 bytes. A warp has 32 terms, and where a block has too few warps
//                             for all terms, other blocks have the rest; where terms are few, rows of positions are shared
//                             out and their sums added up. Each block leaves its sums, which first_fold adds in order.
//           first_data        positions of the same rest by the stride see the same taps. A block copies what 16 x 16 of each
//                             rest see of dy, 64 filters a position, and what all their rests and channels, 16 at most,
//                             take of it is one product for each tap; a warp has two rows of positions, for which a row
//                             of dy is read once. The filters stay in shared memory, through which the sums go on their
//                             way out, so that neighbours of a row are stored together.
// Numerics  sums in float by the tensor cores, in an order fixed by the shapes. Terms that only fill up have zeros for
//           filters; a NaN that they, or what lies outside of the image, may have made is found and summed again without.
//           dw likewise.
// Cost      2 k (c r s, filled up to a multiple of 16) flops a position. x is read once, with the edges of tiles, y written.
// Predicted 256x3x224x224, 64 filters of 7x7 at stride 2: 0.11 ms of memory, 0.11 ms of products at 600 TFLOP/s.
// Measured  NVIDIA H200, 2026-11-28, NHWC, forward / data / filter, ms (cuDNN through PyTorch 2.11 in the same run):
//           bfloat16 forward 0.319 (1.777), filter 0.356 (1.131), float16 filter 0.358 (0.552), data 0.628 (3.17); of one image
//           data 0.029 (0.045). 5x20 over one channel, 32 images of 161x700 to 32 filters: filter 0.216 (0.591).
//           Data took 2.75 with each rest's channels filled up to 8 columns and sums stored one by one (9,390 instructions a
//           warp and tile, a third of them on the way out). What holds forward is copies and their addresses: by ncu,
//           with offsets of 64 bits, 0.357, tensor cores 29 %, issue slots 56 % busy, and 460 of a warp's 1,825
//           instructions for a tile were products and their loads. Filter: 0.393 in tiles of 8 rows, all of whose blocks and
//           shares of rows left sums of their own. In tiles of 16 by ncu tensor cores 42 %, which mma.sync does not fill,
//           issue slots 43 %, memory 30 % and shared memory 57 % busy; of the 8.3 cycles between instructions of one of 16
//           warps 2.5 are for the result of the last, 1.3 for barriers, 0.8 for the tensor cores. On Hopper
//           convolution_hopper_first_filter.cu has products of a warpgroup instead.
// Limits    16-bit types; sm_80 for speed.
#include "convolution_first_data.cuh"
#include "convolution_first_filter.cuh"

constexpr int STAGE_PITCH = FILTERS + 8, STAGE = TILE_EXTENT * STAGE_PITCH;  // of a warp, in floats
constexpr int STEP_WORDS = FILTERS * 16 / 2;                                 // of all filters, for 16 terms

template <class T> struct FirstParams {
  T* y;
  const T* x;
  const T* w;
  const T* b;
  const T* residual;
  const acc_t<T>* scale;
  const acc_t<T>* shift;
  acc_t<T> alpha1, alpha2, alpha, beta, c0, c1;
  i64 batch, channels, filters, tiles_h, tiles_w;
  Extent source, result, taps, stride, padding;
  Steps x_steps, y_steps, w_steps, residual_steps;
  i64 w_first, mode, bare, packed, k_steps;  // bare: the rounded sums are the results; steps of 16 terms
  Patch patch;
};

// ---- forward --------------------------------------------------------------------------------------------------------

// The filters of the block as `b` of the products: for each 16 terms 4 pairs of 8 filters, each of 32 lanes by 4 words.
template <class T> DEVICE void read_filters(const FirstParams<T>& p, u32* to) {
  const i64 first = (i64)blockIdx.y * FILTERS, words = p.k_steps * STEP_WORDS;
  for (i64 i = threadIdx.x; i < words; i += FIRST_BLOCK) {
    const i64 word = i % 4, lane = i / 4 % 32, pair = i / 128 % 4, step = i / 512;
    const i64 filter = first + (pair * 2 + word / 2) * 8 + lane / 4, term = step * 16 + word % 2 * 8 + lane % 4 * 2;
    pack<T, 2> both = {};
    for (int half = 0; half < 2; ++half) {
      const Term t = term_of(p, term + half);
      if (!t.real || filter >= p.filters) continue;
      const Steps& steps = p.w_steps;
      const T* from = p.w + (p.w_first + filter * steps.outer + t.c * steps.channel + t.r * steps.h + t.s * steps.w);
      both.lane[half] = *from;
    }
    to[i] = both.bits;
  }
}
// Where the pairs of terms lie in a patch, in bytes from where a position begins.
template <class T> DEVICE void place_terms(const FirstParams<T>& p, int* to) {
  for (i64 i = threadIdx.x; i < p.k_steps * 8; i += FIRST_BLOCK) {
    const i64 r = whole(2 * i, p.patch.row_terms), at = 2 * i - r * p.patch.row_terms;
    to[i] = r < p.taps.h ? (int)((r * p.patch.pitch + at) * 2) : 0;
  }
}

// The sum of one result, of nothing but what is in the image.
template <class T> DEVICE float sum_within(const FirstParams<T>& p, i64 n, i64 h, i64 w, i64 filter) {
  float sum = 0;
#pragma unroll 1
  for (i64 i = 0; i < p.taps.h * p.taps.w * p.channels; ++i) {
    i64 r = i;
    const i64 c = split_off(r, p.channels), s = split_off(r, p.taps.w);
    const i64 row = h * p.stride.h - p.padding.h + r, column = w * p.stride.w - p.padding.w + s;
    if (!within(row, p.source.h) || !within(column, p.source.w)) continue;
    const T x = p.x[n * p.x_steps.outer + row * p.x_steps.h + column * p.x_steps.w + c * p.x_steps.channel];
    const T v = p.w[p.w_first + filter * p.w_steps.outer + r * p.w_steps.h + s * p.w_steps.w + c * p.w_steps.channel];
    sum = fma_(to_acc(x), to_acc(v), sum);
  }
  return sum;
}

DEVICE bool finite(const float (&v)[8]) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < 8; ++k) sum = fma_(v[k], 0.0f, sum);
  return sum == 0.0f;
}

// What eight neighbouring filters add and multiply by; what is not there leaves every number as it is, -0 too.
template <class T> struct Dressing {
  float b[8], scale[8], shift[8];
  DEVICE Dressing(const FirstParams<T>& p, i64 filter) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const bool real = filter + k < p.filters;
      b[k] = p.b && real ? to_acc(p.b[filter + k]) : -0.0f;
      scale[k] = p.scale && real ? p.scale[filter + k] : 1.0f;
      shift[k] = p.shift && real ? p.shift[filter + k] : -0.0f;
    }
  }
};

// Eight filters at one position.
template <class T>
DEVICE void finish(const FirstParams<T>& p, const Dressing<T>& d, float (&z)[8], const TilePlace& at, i64 filter) {
  if (!finite(z)) {
#pragma unroll 1
    for (int i = 0; i < 8; ++i) {
      const float found = filter + i < p.filters ? sum_within(p, at.n, at.h, at.w, filter + i) : 0.0f;
#pragma unroll
      for (int k = 0; k + 1 < 8; ++k) z[k] = z[k + 1];
      z[7] = found;
    }
  }
#pragma unroll
  for (int k = 0; k < 8; ++k) z[k] = (p.alpha1 * z[k] + d.b[k]) * d.scale[k] + d.shift[k];
  if (p.residual) {
    const Steps& steps = p.residual_steps;
    const T* from = p.residual + (at.n * steps.outer + at.h * steps.h + at.w * steps.w + filter * steps.channel);
#pragma unroll
    for (int k = 0; k < 8; ++k)
      if (filter + k < p.filters) z[k] += p.alpha2 * to_acc(from[k * steps.channel]);
  }
  activate<T>(p.mode, p.c0, p.c1, z);
  T* y = p.y + (at.n * p.y_steps.outer + at.h * p.y_steps.h + at.w * p.y_steps.w + filter * p.y_steps.channel);
  if (p.packed) return store_blended<8>(y, 0, z, p.alpha, p.beta);
#pragma unroll
  for (int k = 0; k < 8; ++k)
    if (filter + k < p.filters) y[k * p.y_steps.channel] = blend<T>(p.alpha, z[k], p.beta, y + k * p.y_steps.channel);
}

// Sums of 16 positions of a row where they are the results: 8 filters by each of 32 lanes, four times. False where one is
// not finite, before anything is stored.
template <class T> DEVICE bool store_bare(const FirstParams<T>& p, const float* stage, const TilePlace& at, i64 filter) {
  const int lane = threadIdx.x % 32;
  pack<T, 8> rows[4];
  bool well = true;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const pack<float, 4>* from = reinterpret_cast<const pack<float, 4>*>(stage + (i * 4 + lane / 8) * STAGE_PITCH + lane % 8 * 8);
    const pack<float, 4> low = from[0], high = from[1];
    float z[8];
#pragma unroll
    for (int k = 0; k < 4; ++k) z[k] = low.lane[k], z[4 + k] = high.lane[k];
    well &= finite(z);
    rows[i] = rounded<T>(z);
  }
  if (!well) return false;
  // Counted in packs: of a pointer between them the compiler would make four stores each.
  const i64 first = at.n * p.y_steps.outer + at.h * p.y_steps.h + (at.w + lane / 8) * p.y_steps.w + filter;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (at.w + i * 4 + lane / 8 < p.result.w) store<8>(p.y, (first + i * 4 * p.y_steps.w) / 8, rows[i]);
  return true;
}

// The sums of 16 positions of a row and all filters of the block, through the warp's part of shared memory.
template <class T> DEVICE void finish_row(const FirstParams<T>& p, const float (&sums)[8][4], float* stage, TilePlace at) {
  const int lane = threadIdx.x % 32;
  if (at.h >= p.result.h) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float* to = stage + lane / 4 * STAGE_PITCH + i * 8 + lane % 4 * 2;
    const float above[2] = {sums[i][0], sums[i][1]}, below[2] = {sums[i][2], sums[i][3]};
    store<2>(to, 0, rounded<float>(above));
    store<2>(to + 8 * STAGE_PITCH, 0, rounded<float>(below));
  }
  __syncwarp();
  const i64 left = at.w, filter = (i64)blockIdx.y * FILTERS + (p.packed ? lane % 8 : lane / 16) * 8;
  const bool real = filter < p.filters, done = p.bare && p.packed && (!real || store_bare(p, stage, at, filter));
#pragma unroll 1
  for (int half = 0; !done && half < (p.packed ? 1 : 4); ++half) {
    const i64 eight = filter + half * 16;
    if (eight >= p.filters) break;
    const Dressing<T> dressing(p, eight);
#pragma unroll 1
    for (int i = 0; i < (p.packed ? 4 : 1); ++i) {
      const i64 x = p.packed ? i * 4 + lane / 8 : lane % TILE_EXTENT;
      at.w = left + x;
      if (at.w >= p.result.w) continue;
      const float* from = stage + x * STAGE_PITCH + (eight - (i64)blockIdx.y * FILTERS);
      float z[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) z[k] = from[k];
      finish(p, dressing, z, at, eight);
    }
  }
  __syncwarp();
}

DEVICE u32 pair_at(const u8* p) { return *reinterpret_cast<const u32*>(p); }

// Two rows of 16 positions by all filters of the block, over all terms; `terms` has bytes from where a position begins,
// `right` and `down` are those to the position 8 further and to the next row.
template <class T>
DEVICE void multiply(int steps, const int* terms, const uint4* filters, const u8* first, int right, int down,
                     float (&sums)[2][8][4]) {
  const int lane = threadIdx.x % 32;
  const u8 *second = first + right, *third = first + down, *fourth = third + right;
  terms += lane % 4, filters += lane;
#pragma unroll 1
  for (int step = 0; step < steps; ++step, terms += 8, filters += 128) {
    const int low = terms[0], high = terms[4];
    const u32 above[4] = {pair_at(first + low), pair_at(second + low), pair_at(first + high), pair_at(second + high)};
    const u32 below[4] = {pair_at(third + low), pair_at(fourth + low), pair_at(third + high), pair_at(fourth + high)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 f = filters[i * 32];
      add_product(sums[0][2 * i], above, f.x, f.y, T());
      add_product(sums[0][2 * i + 1], above, f.z, f.w, T());
      add_product(sums[1][2 * i], below, f.x, f.y, T());
      add_product(sums[1][2 * i + 1], below, f.z, f.w, T());
    }
  }
}

template <class T>
DEVICE void forward_tile(const FirstParams<T>& p, TilePlace at, const T* patch, const int* terms, const u32* filters, float* stage) {
  const i64 across = p.stride.w * p.patch.pixel, down = p.stride.h * p.patch.pitch, row = threadIdx.x / 32 * 2;
  const u8* first = reinterpret_cast<const u8*>(patch + row * down + threadIdx.x % 32 / 4 * across);
  float sums[2][8][4] = {};
  const uint4* quads = reinterpret_cast<const uint4*>(filters);
  multiply<T>((int)p.k_steps, terms, quads, first, (int)(16 * across), (int)(2 * down), sums);
  at.h += row;
#pragma unroll 1
  for (int i = 0; i < 2; ++i, ++at.h) {
    finish_row(p, sums[0], stage, at);
#pragma unroll
    for (int k = 0; k < 32; ++k) sums[0][k / 4][k % 4] = sums[1][k / 4][k % 4];
  }
}

template <class T> DEVICE void forward_tiles(const FirstParams<T>& p) {
  DYNAMIC_SHARED(u32, shared);
  float* stage = reinterpret_cast<float*>(shared + p.k_steps * STEP_WORDS) + threadIdx.x / 32 * STAGE;
  // Two patches, or one and the rows that it is spread from.
  T* patches = reinterpret_cast<T*>(shared + p.k_steps * STEP_WORDS + FIRST_BLOCK / 32 * STAGE);
  const i64 size = p.patch.rows * p.patch.pitch, other = p.patch.planes * p.patch.rows * p.patch.raw_pitch;
  int* terms = reinterpret_cast<int*>(patches + size + other);
  read_filters(p, shared);
  place_terms(p, terms);
  const bool spread = p.patch.way == SPREAD, raw = p.patch.way != ONE_BY_ONE;
  const i64 tiles = p.batch * p.tiles_h * p.tiles_w, pitch = p.patch.raw_pitch;
  i64 next = 0;
  int here = 0;  // of the two patches
#pragma unroll 1
  for (i64 tile = (i64)blockIdx.x - gridDim.x; tile < tiles; tile += gridDim.x) {
    i64 begin = next - p.patch.odd;
    if (tile >= 0) {
      await_copies<0>();
      __syncthreads();
    }
    if (tile >= 0 && (spread || !raw)) {
      if (spread) spread_rows(p, patches + size + next, patches);
      else copy_pixels(p, tile_place(p, tile, TILE_EXTENT), patches);
      __syncthreads();
      begin = 0, here = 0;
    }
    if (raw && tile + gridDim.x < tiles)
      next = copy_rows(p, tile_place(p, tile + gridDim.x, TILE_EXTENT), pitch, patches + (here ^ 1) * size);
    commit_copies();
    if (tile >= 0) forward_tile(p, tile_place(p, tile, TILE_EXTENT), patches + here * size + begin, terms, shared, stage);
    here ^= 1;
  }
}

template <class T> __global__ void __launch_bounds__(FIRST_BLOCK, 2) first_forward(const FirstParams<T> p) {
  if constexpr (TENSOR_CORES) forward_tiles(p);
}
