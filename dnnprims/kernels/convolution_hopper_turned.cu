// The gradient of convolutions in their filters on Hopper in TF32, as a product of x and dy summed over pixels.
//
// dw[k, r, s, c] = alpha sum_{n, p, q} dy[n, p, q, k] x[n, h(p, r), w(q, s), c] + beta dw[k, r, s, c]
//
// Shapes    x (n, h, w, c) of float, channels multiples of 4; dy (k, n p q), turned by the front end
//           (convolution_layout.cu): tensor cores take floats from shared memory only where what is summed over lies side
//           by side. Both described by tensor maps, dw as in convolution_hopper_filter.cu, whose fold adds up the slots.
// Plan      persistent blocks of two consumer warpgroups and one thread of a third that asks the copy engine for stages:
//           32 pixels of x in pieces of 64 channels of a tap, each gathered by itself, and of dy. x is multiplied from
//           registers, into which each thread takes its words of 32 pixels by 64 channels across. Rows of a product are
//           channels in an order such that no bank is met twice. The pixels are split, all tiles' alike.
// Numerics  factors rounded to TF32 by the copy engine; products summed in float by the tensor cores in the order of
//           pixels, then split by split: the same bits each time. Padding is multiplied as zeros.
// Cost      2 K C taps flops a pixel; x and dy are read once for each tile, from the L2 but for the first time; dy is
//           copied once before.
// Limits    sm_90a; as convolution_hopper.cu.
// Measured on an NVIDIA H200, 2026-11-28, 64 images, microseconds with the copy and the fold, cuDNN 9.19 of the same run in
//   brackets: 3x3 128@28 79 (107), 256@14 68 (107), 512@7 84 (93), 64@56 132 (163), of stride 2 128@56 85 (108), 256@28
//   69 (109), 1x1 of stride 2 1024-2048@14 72 (74); 8 images 64@224 242 (307), 128@28 33 (41), 512@7 31 (29).
//   Predicted for 128@28: copy 13, products 45, fold 7. By profile: 14, 51 (6.5 TB/s from the L2) and 7; for 64@56 25, 85
//   (7.6 TB/s: with 64 channels out each pixel of x is read nine times for 64 products) and 6. Where it is level: 512@7 has
//   72 tiles for 132 multiprocessors, which whole splits do not even out. With x turned as well, a copy for each column
//   of taps (tiled boxes that began off 16 bytes were an illegal instruction), 128@28 took 140 and 64@56 231: the copies
//   had half of it. mma.sync with cp.async (convolution_mma.cu) takes 163 and 474.
#include "convolution_hopper.cuh"

template <class T> struct ConvTurnedParams {
  const T* dy;
  const T* x;
  float* partials;             // (slots, padded_rows, padded_columns)
  i64 padded_rows, padded_columns;
  int positions, width, stride_h, stride_w, top, left, dilation_h, dilation_w, taps_h, taps_w;
  int flipped, matrix;         // flags: taps lie backwards in memory; x is a matrix of pixels and channels
  int channels, channel_blocks, pieces;  // in; of 64; with every tap
  int filters;                 // channels out
  int row_tiles, tiles, pixel_blocks, splits;
};

struct TurnedMaps {
  TensorMap dy, x;
};

constexpr int PIXELS = 32, HALF_BYTES = PIXELS * SWIZZLED_ROW, BOTH_BYTES = 2 * HALF_BYTES;  // of 32 channels, of 64

// PIECES of 64 channels of a tap by COLUMNS channels out are the sums of a consumer.
template <int PIECES_, int COLUMNS_, int STAGES_> struct TurnedTiling {
  static constexpr int PIECES = PIECES_, COLUMNS = COLUMNS_, STAGES = STAGES_, ALL = CONSUMERS * PIECES;
  static constexpr int X_BYTES = ALL * BOTH_BYTES, STAGE_BYTES = X_BYTES + COLUMNS * SWIZZLED_ROW;
};

// One tile's share of the pixels, in blocks of 32.
struct Share {
  int group, row, slot, first, end;
  template <class T> DEVICE Share(const ConvTurnedParams<T>& p, int number) {
    slot = (u32)number / (u32)p.tiles;
    const int tile = number - slot * p.tiles;
    group = (u32)tile / (u32)p.row_tiles, row = tile - group * p.row_tiles;
    first = (i64)slot * p.pixel_blocks / p.splits, end = (i64)(slot + 1) * p.pixel_blocks / p.splits;
  }
};

// Which channels of which tap a piece of 64 is.
struct TapPiece {
  int channel, w_offset, h_offset;
  template <class T> DEVICE void set(const ConvTurnedParams<T>& p, int number) {
    const int piece = number < p.pieces ? number : p.pieces - 1, tap = (u32)piece / (u32)p.channel_blocks;
    const int r = (u32)tap / (u32)p.taps_w, s = tap - r * p.taps_w;
    channel = (piece - tap * p.channel_blocks) * 64;
    h_offset = (p.flipped ? p.taps_h - 1 - r : r) * p.dilation_h;
    w_offset = (p.flipped ? p.taps_w - 1 - s : s) * p.dilation_w;
  }
};

template <class Tile, class T>
DEVICE void fetch(u32 stages, const Ring<Tile::STAGES>& ring, const TurnedMaps& maps, const ConvTurnedParams<T>& p) {
  Cursor<Tile::STAGES> cursor(0);
  const int shares = p.tiles * p.splits;
  for (int number = blockIdx.x; number < shares; number += gridDim.x) {
    const Share share(p, number);
    TapPiece pieces[Tile::ALL];
#pragma unroll
    for (int j = 0; j < Tile::ALL; ++j) pieces[j].set(p, share.group * Tile::ALL + j);
    for (int block = share.first; block < share.end; ++block, cursor.next()) {
      const int pixel = block * PIXELS, n = (u32)pixel / (u32)p.positions, rest = pixel - n * p.positions;
      const int h = (u32)rest / (u32)p.width, w = rest - h * p.width;
      const int top = h * p.stride_h - p.top, left = w * p.stride_w - p.left;
      const u32 full = ring.full(cursor.stage), stage = stages + cursor.stage * Tile::STAGE_BYTES;
      barrier_wait(ring.empty(cursor.stage), cursor.parity ^ 1u);
      barrier_expect(full, Tile::STAGE_BYTES);
      load_tile(stage + Tile::X_BYTES, maps.dy, pixel, share.row * Tile::COLUMNS, full);
#pragma unroll
      for (int j = 0; j < 2 * Tile::ALL; ++j) {
        const TapPiece& piece = pieces[j / 2];
        const u32 to = stage + j * HALF_BYTES;
        // What lies past the last channel is not kept.
        const int channel = j % 2 == 1 && piece.channel + 32 < p.channels ? piece.channel + 32 : piece.channel;
        if (p.matrix)
          load_tile(to, maps.x, channel, pixel, full);
        else
          load_window(to, maps.x, channel, left, top, n, piece.w_offset, piece.h_offset, full);
      }
    }
  }
}

// Row 16 warp + 8 lower + lane / 4 of a product is this channel of a piece: of the words that a warp takes at a time, eight
// of four pixels each, none lie in one bank (chunks of four channels are exchanged by the pixel's lowest three bits).
struct RowChannel {
  int half, chunk, word;
  DEVICE explicit RowChannel(int lower) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    half = warp / 2, chunk = lane / 16 * 4 + warp % 2 * 2 + lower, word = lane / 4 % 4;
  }
  DEVICE int channel() const { return half * 32 + chunk * 4 + word; }
};

// Words of a thread in a stage, for each 8 pixels: rows and 8 further down, of pixel lane % 4, then of the fourth from it.
template <int PIECES> struct Taken {
  u32 words[PIECES][4][4];
  DEVICE void take(u32 from) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowChannel at(i % 2);
      const int pixel = threadIdx.x % 4 + i / 2 * 4;
      const u32 first = from + at.half * HALF_BYTES + pixel * SWIZZLED_ROW + ((at.chunk ^ pixel) << 4) + at.word * 4;
#pragma unroll
      for (int j = 0; j < PIECES; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k) words[j][k][i] = load_word(first + j * BOTH_BYTES + k * 8 * SWIZZLED_ROW);
    }
  }
};

// Adds up a stage's products; the words are read until those are done.
template <class Tile>
DEVICE void multiply_stage(u32 stage, int consumer, int keep, Taken<Tile::PIECES>& taken,
                           float (&sum)[Tile::PIECES][Tile::COLUMNS / 2]) {
  taken.take(stage + consumer * Tile::PIECES * BOTH_BYTES);
  const u64 dy = operand(stage + Tile::X_BYTES);
  products_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int j = 0; j < Tile::PIECES; ++j) multiply_taken(sum[j], taken.words[j][k], dy + k * 2, keep | k);
  products_commit();
}

// All products of a share, two stages in turn. A stage is given back once the products of the next are under way.
template <class Tile>
DEVICE void multiply_all(u32 stages, const Ring<Tile::STAGES>& ring, Cursor<Tile::STAGES> cursor, int blocks,
                         int consumer, float (&sum)[Tile::PIECES][Tile::COLUMNS / 2]) {
  Taken<Tile::PIECES> taken[2];
  int before = 0;
  for (int block = 0; block < blocks; block += 2) {
#pragma unroll
    for (int turn = 0; turn < 2; ++turn) {
      if (block + turn >= blocks) break;
      barrier_wait(ring.full(cursor.stage), cursor.parity);
      multiply_stage<Tile>(stages + cursor.stage * Tile::STAGE_BYTES, consumer, block + turn, taken[turn], sum);
      if (block + turn > 0) {
        products_wait<1>();
        ring.give_back(before);
      }
      before = cursor.stage;
      cursor.next();
    }
  }
  products_wait<0>();
  ring.give_back(before);
}

// A consumer's sums of a share to its slot.
template <class Tile, class T>
DEVICE void keep_sums(const ConvTurnedParams<T>& p, const Share& share, int consumer,
                      const float (&sum)[Tile::PIECES][Tile::COLUMNS / 2]) {
  const i64 row = (i64)share.row * Tile::COLUMNS + threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < Tile::PIECES; ++j) {
    const i64 piece = (i64)share.group * Tile::ALL + consumer * Tile::PIECES + j;
    if (piece >= p.pieces) continue;
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const i64 column = piece * 64 + RowChannel(lower).channel();
      float* to = p.partials + (share.slot * p.padded_rows + row) * p.padded_columns + column;
#pragma unroll
      for (int i = 0; i < Tile::COLUMNS / 4; ++i) {
        const int k = i / 2 * 8 + i % 2;
        if (row + k < p.filters) to[k * p.padded_columns] = sum[j][i / 2 * 4 + lower * 2 + i % 2];
      }
    }
  }
}

template <class T, int PIECES, int COLUMNS, int STAGES>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    conv_hopper_turned(const __grid_constant__ TurnedMaps maps, const ConvTurnedParams<T> p) {
  typedef TurnedTiling<PIECES, COLUMNS, STAGES> Tile;
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
  float sum[PIECES][COLUMNS / 2];
  u32 steps = 0;
  const int shares = p.tiles * p.splits;
  for (int number = blockIdx.x; number < shares; number += gridDim.x) {
    const Share share(p, number);
    const int blocks = share.end - share.first;
    multiply_all<Tile>(stages, ring, Cursor<STAGES>(steps), blocks, group, sum);
    steps += blocks;
    keep_sums<Tile>(p, share, group, sum);
  }
}
