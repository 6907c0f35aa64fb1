// The gradient of convolutions in their filters on Hopper, as a product of dy and x summed over pixels.
//
// dw[k, r, s, c] = alpha sum_{n, p, q} dy[n, p, q, k] x[n, h(p, r), w(q, s), c] + beta dw[k, r, s, c]
//
// Shapes    x (n, h, w, c), dy (n, p, q, k), dw (k, r, s, c) of T, float16 or bfloat16, dense, channels multiples of 8;
//           x and dy described by tensor maps. Of groups dw is (k, r, s, channels of the groups of a tile of rows).
// Plan      conv_hopper_filter persistent blocks of two consumer warpgroups and one thread of a third that asks the
//                                copy engine for stages: 64 pixels of dy and of x, both multiplied across. Columns are
//                                pieces of 64 channels of a tap, each gathered by itself. As many tiles as fill all
//                                multiprocessors evenly are whole: one block sums all pixels and writes dw. Of the others
//                                the pixels are split, so that all multiprocessors have work: all tiles are at the same
//                                pixels at one time, which come from the L2 then. The splits of a tile are a cluster of up
//                                to 8 blocks that read each other's sums in shared memory, and each writes a part of dw;
//                                or, where clusters would leave multiprocessors idle, sums go to a workspace, one slot a
//                                split.
//           conv_hopper_fold     adds up the slots, in their order: threads of a block share them where there are many.
// Numerics  products summed in float by the tensor cores in the order of pixels, then split by split: the same bits
//           each time; one rounding at the end. Padding is multiplied as zeros.
// Cost      2 K C taps flops a pixel; x and dy are read once for each tile, from the L2 but for the first time.
// Limits    sm_90a; as convolution_hopper.cu.
// Measured on an NVIDIA H200, 2026-11-28, bfloat16, microseconds, cuDNN 9 of the same run in brackets. L2 flushed between:
//   batch 256 3x3 128@28 87 (105), 256@14 89 (103), 512@7 86 (87), 1x1 of stride 2 1024-2048@14 74 (74); batch 32
//   256@14 21 (24), 512@7 23 (24). One call after the other: batch 8 256@14 8.9 (8.4), 512@7 8.6 (9.7), 128@28 10.4
//   (13.8), 1024-2048@14 8.1 (8.1); batch 1 512@7 6.0 (6.2), 128@56 of stride 2 5.4 (5.7), 256@28 of stride 2 5.4 (5.9).
//   With slots and a second launch for each of them 512@7 took 101 at batch 256, batch 8 11 to 12, batch 1 9 to 12: the
//   second launch takes 3 to 4, and a slot is written at 12 bytes a cycle. Pairs of 16-bit results, 16 bytes of a row by
//   four lanes, were written at 6 bytes a cycle: 512@7 of batch 1 9.1. Where it is level with cuDNN, 512@7 at batch 256,
//   tensor cores do what they do elsewhere (670 TFLOP/s), one tile of 144 a block and the last 12 in 11 splits.
#include "convolution_hopper.cuh"
#include "vec.cuh"

template <class T> struct ConvHopperFilterParams {
  T* dw;
  const T* dy;
  const T* x;
  float* partials;  // (splits, padded_rows, padded_columns), of the columns from first_column on
  acc_t<T> alpha, beta;
  i64 padded_rows, padded_columns, first_column, row_size;  // row_size: elements of a filter
  int positions, width, stride_h, stride_w, top, left, dilation_h, dilation_w, taps_h, taps_w;
  int flipped, matrix;         // flags: taps lie backwards in memory; x is a matrix of pixels and channels
  int channel_blocks, pieces;  // of 64 channels in; with every tap
  int channels, filters;       // in, that a tile of rows sees, and out
  int row_channels;            // channels in from a tile of rows to the next; 0 where all rows see all of them
  int row_tiles, tiles, whole, splits, clustered, pixel_blocks;
};

// 64 by COLUMNS are the sums of a consumer, one below the other's.
template <int COLUMNS_, int STAGES_> struct FilterTiling {
  static constexpr int COLUMNS = COLUMNS_, STAGES = STAGES_, ROWS = CONSUMERS * 64;
  static constexpr int ROW_BYTES = ROWS * SWIZZLED_ROW, STAGE_BYTES = ROW_BYTES + COLUMNS * SWIZZLED_ROW;
  static constexpr int SUM_PITCH = COLUMNS + 8;  // floats of a row of sums that the blocks of a cluster share
};

constexpr int MOST_CLUSTERED = 8;  // splits of a tile whose blocks are a cluster

struct FilterMaps {
  TensorMap dy, x;
};

// One tile's share of the pixels, in blocks of 64: all of them where the slot is below 0.
struct Share {
  int row, column, slot, first, end;
};

// The first tiles whole, the others split by split. The splits of a tile are one cluster where `clustered`.
template <class T> DEVICE bool share_of(const ConvHopperFilterParams<T>& p, int number, Share& share) {
  const int split_tiles = p.tiles - p.whole, rest = number - p.whole;
  if (rest >= split_tiles * p.splits) return false;
  int tile = number;
  share.slot = -1, share.first = 0, share.end = p.pixel_blocks;
  if (rest >= 0) {
    share.slot = p.clustered ? rest % p.splits : rest / split_tiles;
    tile = p.whole + (p.clustered ? rest / p.splits : rest - share.slot * split_tiles);
    share.first = (int)((i64)share.slot * p.pixel_blocks / p.splits);
    share.end = (int)((i64)(share.slot + 1) * p.pixel_blocks / p.splits);
  }
  share.column = tile / p.row_tiles;
  share.row = tile - share.column * p.row_tiles;
  return true;
}

// Which channels of which tap a piece of 64 columns is.
struct ColumnPiece {
  int channel, w_offset, h_offset;
  template <class T> DEVICE void set(const ConvHopperFilterParams<T>& p, int row, int number) {
    const int piece = number < p.pieces ? number : p.pieces - 1, tap = piece / p.channel_blocks;
    const int r = tap / p.taps_w, s = tap % p.taps_w;
    channel = row * p.row_channels + (piece - tap * p.channel_blocks) * CHUNK<T>;
    h_offset = (p.flipped ? p.taps_h - 1 - r : r) * p.dilation_h;
    w_offset = (p.flipped ? p.taps_w - 1 - s : s) * p.dilation_w;
  }
};

template <class Tile, class T>
DEVICE void fetch(u32 stages, const Ring<Tile::STAGES>& ring, const FilterMaps& maps,
                  const ConvHopperFilterParams<T>& p) {
  Cursor<Tile::STAGES> cursor(0);
  Share share;
  for (int number = blockIdx.x; share_of(p, number, share); number += gridDim.x) {
    // Boxes of dy that nothing is in are not asked for.
    const int left = p.filters - share.row * Tile::ROWS, boxes = left > 64 ? Tile::ROWS / 64 : 1;
    const int bytes = Tile::STAGE_BYTES - Tile::ROW_BYTES + boxes * 64 * SWIZZLED_ROW;
    ColumnPiece pieces[Tile::COLUMNS / 64];
#pragma unroll
    for (int j = 0; j < Tile::COLUMNS / 64; ++j) pieces[j].set(p, share.row, share.column * (Tile::COLUMNS / 64) + j);
    for (int block = share.first; block < share.end; ++block, cursor.next()) {
      const int pixel = block * 64, n = (u32)pixel / (u32)p.positions, rest = pixel - n * p.positions;
      const int h = (u32)rest / (u32)p.width, w = rest - h * p.width;
      const int top = h * p.stride_h - p.top, left = w * p.stride_w - p.left;
      const u32 full = ring.full(cursor.stage), rows = stages + cursor.stage * Tile::STAGE_BYTES;
      barrier_wait(ring.empty(cursor.stage), cursor.parity ^ 1u);
      barrier_expect(full, bytes);
#pragma unroll
      for (int i = 0; i < Tile::ROWS / 64; ++i)
        if (i < boxes) load_tile(rows + i * 64 * SWIZZLED_ROW, maps.dy, share.row * Tile::ROWS + i * 64, pixel, full);
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

// A consumer's sums of a share to its slot. Lanes exchange pairs, so that four of them write 64 bytes of a row.
template <class Tile, class T>
DEVICE void keep_sums(const ConvHopperFilterParams<T>& p, const Share& share, int consumer,
                      const float (&sum)[Tile::COLUMNS / 2]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const i64 row = share.row * Tile::ROWS + consumer * 64 + warp * 16 + lane / 4;
  const i64 column = share.column * Tile::COLUMNS + lane % 2 * 8 + lane % 4 / 2 * 4;
  float* to = p.partials + (share.slot * p.padded_rows + row) * p.padded_columns + (column - p.first_column);
#pragma unroll
  for (int j = 0; j < Tile::COLUMNS / 8; j += 2)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 4 * j + 2 * half;
      float four[4] = {sum[i], sum[i + 1], sum[i + 4], sum[i + 5]};
      transpose_floats(four);
      if (row + half * 8 < p.filters && column + j * 8 < p.pieces * 64)
        keep_four(to + half * 8 * p.padded_columns + j * 8, four);
    }
}

// Where a piece of 64 columns lies in a row of dw, and how many of them are there.
struct FilterPiece {
  i64 at;
  int there;
  template <class P> DEVICE FilterPiece(const P& p, int piece) {
    const int tap = (u32)piece / (u32)p.channel_blocks, first = (piece - tap * p.channel_blocks) * 64;
    at = (i64)tap * p.channels + first;
    there = piece < p.pieces ? p.channels - first : 0;
  }
};

// Pairs of each 8 of 32 columns, those that are there, to dw.
template <class T>
DEVICE void write_pairs(const ConvHopperFilterParams<T>& p, T* to, int columns, const float (&pairs)[4][2]) {
  u32 eight[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) eight[k] = two<T>(p.alpha * pairs[k][0], p.alpha * pairs[k][1]);
  transpose_pairs(eight);
  const int lane = threadIdx.x % 4;
  if (lane * 8 < columns) *reinterpret_cast<uint4*>(to) = uint4{eight[0], eight[1], eight[2], eight[3]};
}
template <class T>
DEVICE void blend_pairs(const ConvHopperFilterParams<T>& p, T* to, int columns, const float (&pairs)[4][2]) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (k * 8 < columns) store_blended<2>(to + k * 8, 0, pairs[k], p.alpha, p.beta);
}

// A consumer's sums of a whole tile to dw, likewise; pair by pair where they are added to what is there.
template <class Tile, class T>
DEVICE void write_sums(const ConvHopperFilterParams<T>& p, const Share& share, int consumer,
                       const float (&sum)[Tile::COLUMNS / 2]) {
  const int lane = threadIdx.x % 32, row = share.row * Tile::ROWS + consumer * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
  const bool blended = p.beta != 0.0f;
#pragma unroll
  for (int piece = 0; piece < Tile::COLUMNS / 64; ++piece) {
    const FilterPiece place(p, share.column * (Tile::COLUMNS / 64) + piece);
    T* to = p.dw + (row * p.row_size + place.at);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = i % 2, first = piece * 8 + i / 2 * 4;
      T* there = to + (8 * half * p.row_size + i / 2 * 32);
      float pairs[4][2];
#pragma unroll
      for (int k = 0; k < 8; ++k) pairs[k / 2][k % 2] = sum[4 * (first + k / 2) + 2 * half + k % 2];
      const int columns = row + 8 * half < p.filters ? place.there - i / 2 * 32 : 0;
      if (blended)
        blend_pairs(p, there + lane % 4 * 2, columns, pairs);
      else
        write_pairs(p, there + lane % 4 * 8, columns, pairs);
    }
  }
}

// The sums of the blocks of a cluster, each of which has left its own in shared memory at `sums`: each adds up every so
// many elements of all, in the order of the blocks, and writes them to dw.
template <class Tile, class T>
DEVICE void add_cluster(const ConvHopperFilterParams<T>& p, const Share& share, u32 sums) {
  constexpr int ACROSS = Tile::COLUMNS / 4;
#pragma unroll 1
  for (int i = share.slot * CONSUMERS * WARPGROUP + threadIdx.x; i < Tile::ROWS * ACROSS; i += p.splits * CONSUMERS * WARPGROUP) {
    const int row = i / ACROSS, column = i % ACROSS * 4;
    const u32 from = sums + (row * Tile::SUM_PITCH + column) * 4;
    float more[MOST_CLUSTERED][4];
#pragma unroll
    for (int block = 0; block < MOST_CLUSTERED; ++block)
      if (block < p.splits) load_of_cluster(from, block, more[block]);
    float sum[4] = {more[0][0], more[0][1], more[0][2], more[0][3]};
#pragma unroll
    for (int block = 1; block < MOST_CLUSTERED; ++block)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (block < p.splits) sum[k] += more[block][k];
    const FilterPiece place(p, share.column * (Tile::COLUMNS / 64) + column / 64);
    const i64 filter = share.row * Tile::ROWS + row;
    if (filter < p.filters && column % 64 < place.there)
      store_blended<4>(p.dw + (filter * p.row_size + place.at + column % 64), 0, sum, p.alpha, p.beta);
  }
}

// A consumer's sums to the shared memory that the stages have left, and all of the cluster's from there.
template <class Tile, class T>
DEVICE void share_sums(const ConvHopperFilterParams<T>& p, const Share& share, u32 stages, int consumer,
                       const float (&sum)[Tile::COLUMNS / 2]) {
  const int lane = threadIdx.x % 32, row = consumer * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
  named_sync(1, CONSUMERS * WARPGROUP);  // the other consumer's products have read the stages
  const u32 to = stages + (row * Tile::SUM_PITCH + lane % 4 * 2) * 4;
#pragma unroll
  for (int j = 0; j < Tile::COLUMNS / 8; ++j) {
    store_pair(to + j * 32, sum[4 * j], sum[4 * j + 1]);
    store_pair(to + (8 * Tile::SUM_PITCH + j * 8) * 4, sum[4 * j + 2], sum[4 * j + 3]);
  }
  cluster_sync();
  add_cluster<Tile>(p, share, stages);
  cluster_sync();  // nobody leaves while others read
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
  Share share;
  for (int number = blockIdx.x; share_of(p, number, share); number += gridDim.x) {
    const int blocks = share.end - share.first;
    multiply_all<T, Tile>(stages, ring, Cursor<STAGES>(steps), blocks, group, sum);
    steps += blocks;
    if (share.slot < 0)
      write_sums<Tile>(p, share, group, sum);
    else if (p.clustered)
      share_sums<Tile>(p, share, stages, group, sum);
    else
      keep_sums<Tile>(p, share, group, sum);
  }
}

template <class T> struct ConvHopperFoldParams {
  T* dw;
  const float* partials;
  acc_t<T> alpha, beta;
  i64 slots, padded_rows, padded_columns, first_column, row_size;
  int channels, filters, channel_blocks, pieces;  // as of the sums
  int whole, tile_rows, tile_columns, row_tiles;  // tiles that are done already, and what a tile is
};

constexpr int FOLD_BLOCK = 256, FOLD_VEC = 4;

// SHARING threads add up the slots of FOLD_VEC elements: every SHARING-th each, then those sums in their order.
template <class T, int SHARING>
__global__ void __launch_bounds__(FOLD_BLOCK) conv_hopper_fold(const ConvHopperFoldParams<T> p) {
  constexpr int ACROSS = FOLD_BLOCK / SHARING;
  __shared__ pack<float, FOLD_VEC> shared[SHARING][ACROSS];
  const int lane = threadIdx.x % ACROSS, part = threadIdx.x / ACROSS;
  const i64 index = ((i64)blockIdx.x * ACROSS + lane) * FOLD_VEC, row = quotient(index, p.padded_columns);
  const i64 column = index - row * p.padded_columns + p.first_column;
  const i64 tile = (u32)column / (u32)p.tile_columns * p.row_tiles + (u32)row / (u32)p.tile_rows;
  const FilterPiece place(p, column / 64);
  const bool real = tile >= p.whole && row < p.filters && column % 64 < place.there;
  float sum[FOLD_VEC] = {};
  if (real) {
    const float* from = p.partials + index;
#pragma unroll 4
    for (i64 slot = part; slot < p.slots; slot += SHARING) {
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
  if (real) store_blended<FOLD_VEC>(p.dw + (row * p.row_size + place.at + column % 64), 0, sum, p.alpha, p.beta);
}
