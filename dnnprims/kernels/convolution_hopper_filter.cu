// The gradient of convolutions in their filters on Hopper, as a product of dy and x summed over pixels.
//
// dw[k, r, s, c] = alpha sum_{n, p, q} dy[n, p, q, k] x[n, h(p, r), w(q, s), c] + beta dw[k, r, s, c]
//
// Shapes    x (n, h, w, c), dy (n, p, q, k), dw (k, r, s, c) of T, float16 or bfloat16, dense, channels multiples of 8;
//           x and dy described by tensor maps.
// Plan      conv_hopper_filter persistent blocks of two consumer warpgroups and one thread of a third that asks the
//                                copy engine for stages: 64 pixels of dy and of x, both multiplied across. Columns are
//                                pieces of 64 channels of a tap, each gathered by itself. The pixels are split, so that
//                                all multiprocessors have work. Splits are aligned: all tiles are at the same pixels at
//                                one time, which come from the L2 then; or, where all of x and dy lies in the L2 and
//                                aligned ones would leave multiprocessors idle, even: one range of tiles and pixels a
//                                block. Sums go to a workspace, one slot a split.
//           conv_hopper_fold     adds up the slots, in their order: threads of a block share them where there are many.
// Numerics  products summed in float by the tensor cores in the order of pixels, then split by split: the same bits
//           each time; one rounding at the end. Padding is multiplied as zeros.
// Cost      2 K C taps flops a pixel; x and dy are read once for each tile, from the L2 but for the first time.
// Limits    sm_90a; as convolution_hopper.cu.
// Measured on an NVIDIA H200, 2026-11-28, bfloat16, batch 256, L2 flushed between, microseconds with the fold, cuDNN 9
//   of the same run in brackets: 3x3 128@28 86 (104), 256@14 88 (104), 512@7 101 (88), of stride 2 128@56 90 (106) and
//   256@28 90 (106), 1x1 of stride 2 1024-2048@14 81 (74). Where it falls short the result is large beside the sum:
//   512@7 writes and reads three slots of 9 MB, and its 72 tiles share 132 multiprocessors unevenly in whole splits
//   (128 us), evenly in ranges that no longer meet in the L2. Batch 8: 16 to 22 (13 to 20), of which the second launch
//   has 3 to 4.
#include "convolution_hopper.cuh"
#include "vec.cuh"

template <class T> struct ConvHopperFilterParams {
  const T* dy;
  const T* x;
  float* partials;             // (slots, padded_rows, padded_columns)
  i64 padded_rows, padded_columns;
  int positions, width, stride_h, stride_w, top, left, dilation_h, dilation_w, taps_h, taps_w;
  int flipped, matrix, even;   // flags: taps lie backwards in memory; x is a matrix of pixels and channels; even splits
  int channel_blocks, pieces;  // of 64 channels in; with every tap
  int filters;                 // channels out
  int row_tiles, tiles, splits, pixel_blocks;
};

// 64 by COLUMNS are the sums of a consumer, one below the other's.
template <int COLUMNS_, int STAGES_> struct FilterTiling {
  static constexpr int COLUMNS = COLUMNS_, STAGES = STAGES_, ROWS = CONSUMERS * 64;
  static constexpr int ROW_BYTES = ROWS * SWIZZLED_ROW, STAGE_BYTES = ROW_BYTES + COLUMNS * SWIZZLED_ROW;
};

struct FilterMaps {
  TensorMap dy, x;
};

// The block whose even range holds a unit: tile by tile, and of each its blocks of pixels, units are dealt out so that
// block b begins at b units / blocks.
DEVICE i64 holder(i64 unit, i64 units, i64 blocks) { return ((unit + 1) * blocks - 1) / units; }

// One tile's share of the pixels, in blocks of 64.
struct Share {
  int row, column, slot, first, end;
  template <class T> DEVICE void of_tile(const ConvHopperFilterParams<T>& p, int tile) {
    column = tile / p.row_tiles;
    row = tile - column * p.row_tiles;
  }
};

// The shares of this block, one after the other.
struct Shares {
  i64 at, end;
  template <class T> DEVICE explicit Shares(const ConvHopperFilterParams<T>& p) {
    const i64 units = (i64)p.tiles * p.pixel_blocks;
    at = p.even ? blockIdx.x * units / gridDim.x : blockIdx.x;
    end = p.even ? (blockIdx.x + 1) * units / gridDim.x : (i64)p.tiles * p.splits;
  }
  template <class T> DEVICE bool next(const ConvHopperFilterParams<T>& p, Share& share) {
    if (at >= end) return false;
    if (p.even) {
      const int tile = at / p.pixel_blocks;
      const i64 begin = (i64)tile * p.pixel_blocks, stop = begin + p.pixel_blocks < end ? begin + p.pixel_blocks : end;
      share.of_tile(p, tile);
      share.slot = blockIdx.x - holder(begin, (i64)p.tiles * p.pixel_blocks, gridDim.x);
      share.first = at - begin, share.end = stop - begin;
      at = stop;
    } else {
      const i64 slot = at / p.tiles;
      share.of_tile(p, at - slot * p.tiles);
      share.slot = slot;
      share.first = slot * p.pixel_blocks / p.splits, share.end = (slot + 1) * p.pixel_blocks / p.splits;
      at += gridDim.x;
    }
    return true;
  }
};

// Which channels of which tap a piece of 64 columns is.
struct ColumnPiece {
  int channel, w_offset, h_offset;
  template <class T> DEVICE void set(const ConvHopperFilterParams<T>& p, int number) {
    const int piece = number < p.pieces ? number : p.pieces - 1, tap = piece / p.channel_blocks;
    const int r = tap / p.taps_w, s = tap % p.taps_w;
    channel = (piece - tap * p.channel_blocks) * CHUNK<T>;
    h_offset = (p.flipped ? p.taps_h - 1 - r : r) * p.dilation_h;
    w_offset = (p.flipped ? p.taps_w - 1 - s : s) * p.dilation_w;
  }
};

template <class Tile, class T>
DEVICE void fetch(u32 stages, const Ring<Tile::STAGES>& ring, const FilterMaps& maps,
                  const ConvHopperFilterParams<T>& p) {
  Cursor<Tile::STAGES> cursor(0);
  Shares shares(p);
  Share share;
  while (shares.next(p, share)) {
    ColumnPiece pieces[Tile::COLUMNS / 64];
#pragma unroll
    for (int j = 0; j < Tile::COLUMNS / 64; ++j) pieces[j].set(p, share.column * (Tile::COLUMNS / 64) + j);
    for (int block = share.first; block < share.end; ++block, cursor.next()) {
      const int pixel = block * 64, n = (u32)pixel / (u32)p.positions, rest = pixel - n * p.positions;
      const int h = (u32)rest / (u32)p.width, w = rest - h * p.width;
      const int top = h * p.stride_h - p.top, left = w * p.stride_w - p.left;
      const u32 full = ring.full(cursor.stage), rows = stages + cursor.stage * Tile::STAGE_BYTES;
      barrier_wait(ring.empty(cursor.stage), cursor.parity ^ 1u);
      barrier_expect(full, Tile::STAGE_BYTES);
#pragma unroll
      for (int i = 0; i < Tile::ROWS / 64; ++i)
        load_tile(rows + i * 64 * SWIZZLED_ROW, maps.dy, share.row * Tile::ROWS + i * 64, pixel, full);
#pragma unroll
      for (int j = 0; j < Tile::COLUMNS / 64; ++j) {
        const u32 to = rows + Tile::ROW_BYTES + j * 64 * SWIZZLED_ROW;
        if (p.matrix)
          load_tile(to, maps.x, pieces[j].channel, pixel, full);
        else
          load_window(to, maps.x, pieces[j].channel, left, top, n, pieces[j].w_offset, pieces[j].h_offset, full);
      }
    }
  }
}

// A consumer's sums of a share to its slot.
template <class Tile, class T>
DEVICE void keep_sums(const ConvHopperFilterParams<T>& p, const Share& share, int consumer,
                      const float (&sum)[Tile::COLUMNS / 2]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const i64 row = share.row * Tile::ROWS + consumer * 64 + warp * 16 + lane / 4;
  const i64 column = share.column * Tile::COLUMNS + lane % 4 * 2;
  float* to = p.partials + (share.slot * p.padded_rows + row) * p.padded_columns + column;
#pragma unroll
  for (int j = 0; j < Tile::COLUMNS / 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + half * 8 >= p.filters || column + j * 8 >= p.pieces * 64) continue;
      keep_pair(to + half * 8 * p.padded_columns + j * 8, sum[4 * j + 2 * half], sum[4 * j + 2 * half + 1]);
    }
}

// All products of a share. A stage is given back once the products of the next are under way.
template <class T, class Tile>
DEVICE void multiply_all(u32 stages, const Ring<Tile::STAGES>& ring, Cursor<Tile::STAGES> cursor, int blocks,
                         int consumer, float (&sum)[Tile::COLUMNS / 2]) {
  int before = 0;
  for (int block = 0; block < blocks; ++block, cursor.next()) {
    barrier_wait(ring.full(cursor.stage), cursor.parity);
    const u32 tile = stages + cursor.stage * Tile::STAGE_BYTES;
    const u64 dy = operand_across(tile + consumer * 64 * SWIZZLED_ROW), x = operand_across(tile + Tile::ROW_BYTES);
    products_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply<T, true, true>(sum, dy + k * 128, x + k * 128, block | k);
    products_commit();
    if (block > 0) {
      products_wait<1>();
      ring.give_back(before);
    }
    before = cursor.stage;
  }
  products_wait<0>();
  ring.give_back(before);
}

template <class T, int COLUMNS, int STAGES>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    conv_hopper_filter(const __grid_constant__ FilterMaps maps, const ConvHopperFilterParams<T> p) {
  typedef FilterTiling<COLUMNS, STAGES> Tile;
  extern __shared__ unsigned char raw[];
  const u32 stages = (shared_address(raw) + 1023u) & ~1023u;
  const Ring<STAGES> ring{stages + STAGES * Tile::STAGE_BYTES};
  const int group = threadIdx.x / WARPGROUP;
  if (threadIdx.x == 0) {
    ring.init(CONSUMERS * WARPGROUP / 32);
    barriers_ready();
  }
  __syncthreads();
  if (group == CONSUMERS) {
    fewer_registers<40>();
    if (threadIdx.x % WARPGROUP == 0) fetch<Tile>(stages, ring, maps, p);
    return;
  }
  more_registers<232>();
  float sum[COLUMNS / 2];
  u32 steps = 0;
  Shares shares(p);
  Share share;
  while (shares.next(p, share)) {
    const int blocks = share.end - share.first;
    multiply_all<T, Tile>(stages, ring, Cursor<STAGES>(steps), blocks, group, sum);
    steps += blocks;
    keep_sums<Tile>(p, share, group, sum);
  }
}

template <class T> struct ConvHopperFoldParams {
  T* dw;
  const float* partials;
  acc_t<T> alpha, beta;
  i64 size, row_size, channels, channel_blocks;  // elements of dw, of one filter; channels in, and blocks of 64
  i64 slots, padded_rows, padded_columns;
  i64 even;                                      // flag, and for it
  i64 tile_rows, tile_columns, row_tiles, pixel_blocks, units, blocks;
};

// How many slots of an element have been filled.
template <class T> DEVICE i64 slots_of(const ConvHopperFoldParams<T>& p, i64 row, i64 column) {
  if (!p.even) return p.slots;
  const i64 tile = column / p.tile_columns * p.row_tiles + row / p.tile_rows, first = tile * p.pixel_blocks;
  return holder(first + p.pixel_blocks - 1, p.units, p.blocks) - holder(first, p.units, p.blocks) + 1;
}

constexpr int FOLD_BLOCK = 256, FOLD_VEC = 4;

// SHARING threads add up the slots of FOLD_VEC elements: every SHARING-th each, then those sums in their order.
template <class T, int SHARING>
__global__ void __launch_bounds__(FOLD_BLOCK) conv_hopper_fold(const ConvHopperFoldParams<T> p) {
  constexpr int ACROSS = FOLD_BLOCK / SHARING;
  __shared__ pack<float, FOLD_VEC> shared[SHARING][ACROSS];
  const int lane = threadIdx.x % ACROSS, part = threadIdx.x / ACROSS;
  const i64 index = ((i64)blockIdx.x * ACROSS + lane) * FOLD_VEC, row = quotient(index, p.row_size);
  float sum[FOLD_VEC] = {};
  if (index < p.size) {
    const i64 rest = index - row * p.row_size, tap = quotient(rest, p.channels), c = rest - tap * p.channels;
    const i64 column = tap * p.channel_blocks * CHUNK<T> + c, slots = slots_of(p, row, column);
    const float* from = p.partials + row * p.padded_columns + column;
#pragma unroll 4
    for (i64 slot = part; slot < slots; slot += SHARING) {
      const pack<float, FOLD_VEC> more = load<FOLD_VEC>(from + slot * p.padded_rows * p.padded_columns, 0);
#pragma unroll
      for (int k = 0; k < FOLD_VEC; ++k) sum[k] += more.lane[k];
    }
  }
  if constexpr (SHARING > 1) {
#pragma unroll
    for (int k = 0; k < FOLD_VEC; ++k) shared[part][lane].lane[k] = sum[k];
    __syncthreads();
    if (part > 0) return;
    for (int other = 1; other < SHARING; ++other)
#pragma unroll
      for (int k = 0; k < FOLD_VEC; ++k) sum[k] += shared[other][lane].lane[k];
  }
  if (index >= p.size) return;
  store_blended<FOLD_VEC>(p.dw + index, 0, sum, p.alpha, p.beta);
}
