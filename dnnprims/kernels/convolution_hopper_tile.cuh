// Tiles of convolutions of two spatial axes on Hopper: where they lie, how they are fetched and multiplied.
#pragma once
#include "convolution_hopper.cuh"

// A convolution; each number is given by the front end.
struct Phase {
  int positions, width;                          // pixels out of an image, of a row
  int stride_h, stride_w, top, left;             // top and left: what lies before the first window
  int dilation_h, dilation_w, taps_h, taps_w;    // of the walk over the input
  int first_tap, tap_row, tap_column;            // tap (r, s) is number first_tap + r tap_row + s tap_column of the filter
  int pixel_tiles, end;                          // end: tiles of this phase and of those before
};

// How the work of a tile is shared out. ROWS x 64 by COLUMNS are the sums of a consumer, which has BUFFERS for pieces.
template <int ROWS_, int COLUMNS_, int STAGES_, int BUFFERS_, bool PING_PONG_, bool SWAPPED_> struct Tiling {
  static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, STAGES = STAGES_, BUFFERS = BUFFERS_;
  static constexpr bool PING_PONG = PING_PONG_, SWAPPED = SWAPPED_;
  static constexpr int OWN_PIXELS = SWAPPED ? COLUMNS : 64 * ROWS;
  static constexpr int PIXELS = PING_PONG ? OWN_PIXELS : CONSUMERS * OWN_PIXELS;
  static constexpr int CHANNELS = SWAPPED ? 64 * ROWS : COLUMNS;
  static constexpr int LOADED = PIXELS < 256 ? PIXELS : 256;  // pixels that one copy brings
  static constexpr int PIXEL_BYTES = PIXELS * SWIZZLED_ROW, STAGE_BYTES = PIXEL_BYTES + CHANNELS * SWIZZLED_ROW;
};

// The block's shared memory: stages, pieces, barriers of the stages and of the pieces.
template <class Tile> struct Layout {
  u32 stages, pieces;
  Ring<Tile::STAGES> ring;
  DEVICE explicit Layout(const void* raw) {
    stages = (shared_address(raw) + 1023u) & ~1023u;
    pieces = stages + Tile::STAGES * Tile::STAGE_BYTES;
    ring.barriers = pieces + CONSUMERS * Tile::BUFFERS * PIECE_BYTES;
  }
  DEVICE u32 pixels(int stage) const { return stages + stage * Tile::STAGE_BYTES; }
  DEVICE u32 filters(int stage) const { return pixels(stage) + Tile::PIXEL_BYTES; }
  DEVICE u32 piece(int consumer, int turn) const { return pieces + (consumer * Tile::BUFFERS + turn) * PIECE_BYTES; }
  DEVICE u32 brought(int consumer, int turn) const {
    return ring.barriers + 8 * (2 * Tile::STAGES + consumer * Tile::BUFFERS + turn);
  }
};

// Where a tile lies, the `round`-th of this block: its phase, first pixel and first channel out. Quotients are unsigned,
// which takes half the time: the thread that asks for stages has little of it where products are short.
template <class Tile> struct Place {
  int phase, pixel, channel;
  template <class Params> DEVICE Place(const Params& p, int tile, int round) {
    int at = tile;
    phase = 0;
    if constexpr (Params::PHASES > 1) {
      if (p.mixed) {
        at = tile / Params::PHASES;
        phase = (tile + round) % Params::PHASES;
      } else {
        while (tile >= p.phases[phase].end) ++phase;
        if (phase > 0) at -= p.phases[phase - 1].end;
      }
    }
    const u32 row = (u32)at / (u32)p.channel_tiles;
    pixel = row * Tile::PIXELS;
    channel = (at - row * p.channel_tiles) * Tile::CHANNELS;
  }
};

// A pixel out, and the first pixel that its window sees.
struct Pixel {
  int n, h, w;
  DEVICE Pixel() : n(0), h(0), w(0) {}
  DEVICE Pixel(const Phase& f, int pixel) {
    n = (u32)pixel / (u32)f.positions;
    pixel -= n * f.positions;
    h = (u32)pixel / (u32)f.width;
    w = pixel - h * f.width;
  }
  DEVICE int top(const Phase& f) const { return h * f.stride_h - f.top; }
  DEVICE int left(const Phase& f) const { return w * f.stride_w - f.left; }
};

// What a block does next: a tile, and of its products those of the k-blocks from `first` to before `end`. Each tile has
// `splits` shares of them, which are all tiles' work one after the other.
struct Task {
  int tile, split, first, end;
  template <class Params> DEVICE static int count(const Params& p) {
    const int tiles = p.phases[Params::PHASES - 1].end;
    if constexpr (Params::SPLIT) return tiles * p.splits;
    return tiles;
  }
};
template <class Params> DEVICE Task task(const Params& p, int number) {
  if constexpr (Params::SPLIT) {
    const int tiles = p.phases[0].end, split = (u32)number / (u32)tiles;
    const int blocks = p.phases[0].taps_h * p.phases[0].taps_w * p.channel_blocks;
    return {number - split * tiles, split, (int)((i64)split * blocks / p.splits),
            (int)((i64)(split + 1) * blocks / p.splits)};
  }
  return {number, 0, 0, 0};  // all of them
}

// The thread that asks for stages, always as far ahead as there are.
template <class Tile, bool ACROSS, class Maps, class Params>
DEVICE void fetch(const Layout<Tile>& at, const Maps& maps, const Params& p) {
  constexpr int LOADS = Tile::PIXELS / Tile::LOADED;
  Cursor<Tile::STAGES> cursor(0);
  const int tasks = Task::count(p), matrix = p.matrix, channel_blocks = p.channel_blocks;
  for (int number = blockIdx.x, round = 0; number < tasks; number += gridDim.x, ++round) {
    const Task job = task(p, number);
    const Place<Tile> place(p, job.tile, round);
    const Phase f = p.phases[place.phase];
    const TensorMap& map = maps.x[place.phase];
    int n[LOADS], top[LOADS], left[LOADS];
    if (!matrix)
#pragma unroll
      for (int i = 0; i < LOADS; ++i) {
        const Pixel pixel(f, place.pixel + i * Tile::LOADED);
        n[i] = pixel.n, top[i] = pixel.top(f), left[i] = pixel.left(f);
      }
    // Of filters, boxes that nothing is in are not asked for: of the channels out those there are, across by the 64.
    const int there = p.channels - place.channel, boxes = there < Tile::CHANNELS ? (there + 63) / 64 : Tile::CHANNELS / 64;
    const int filters = ACROSS ? boxes * 64 : p.channels < Tile::CHANNELS ? p.channels : Tile::CHANNELS;
    const int bytes = Tile::PIXEL_BYTES + filters * SWIZZLED_ROW;
    int r = 0, s = 0, block = 0, end = f.taps_h * f.taps_w * channel_blocks;
    if constexpr (Params::SPLIT) {
      const int tap = job.first / channel_blocks;
      r = tap / f.taps_w, s = tap - r * f.taps_w, block = job.first - tap * channel_blocks;
      end = job.end - job.first;
    }
    int base = 0;  // the first channel in that this tile sees
    if constexpr (!Params::SPLIT)
      if (p.group > 0) base = (u32)place.channel / (u32)p.group * p.group;
    for (int step = 0; step < end; ++step, cursor.next()) {
      const u32 full = at.ring.full(cursor.stage);
      const int tap = f.first_tap + r * f.tap_row + s * f.tap_column, c = block * Params::K_BLOCK;
      barrier_wait(at.ring.empty(cursor.stage), cursor.parity ^ 1u);
      barrier_expect(full, bytes);
#pragma unroll
      for (int i = 0; i < LOADS; ++i) {
        const u32 to = at.pixels(cursor.stage) + i * Tile::LOADED * SWIZZLED_ROW;
        if (matrix)
          load_tile(to, map, base + c, place.pixel + i * Tile::LOADED, full);
        else
          load_window(to, map, base + c, left[i], top[i], n[i], s * f.dilation_w, r * f.dilation_h, full);
      }
      if constexpr (ACROSS) {
#pragma unroll
        for (int i = 0; i < Tile::CHANNELS / 64; ++i)
          if (i < boxes)
            load_box(at.filters(cursor.stage) + i * 64 * SWIZZLED_ROW, maps.w, place.channel - base + i * 64, tap,
                     base + c, full);
      } else {
        load_box(at.filters(cursor.stage), maps.w, c, tap, place.channel, full);
      }
      if (++block == channel_blocks) {
        block = 0;
        if (++s == f.taps_w) s = 0, ++r;
      }
    }
  }
}

// Adds up the products of one stage, in steps of 32 bytes of channels in.
template <class T, class Tile, bool ACROSS>
DEVICE void multiply_stage(const Layout<Tile>& at, const Cursor<Tile::STAGES>& cursor, int consumer, int keep,
                           float (&sum)[Tile::ROWS][Tile::COLUMNS / 2]) {
  constexpr int STEP = ACROSS ? 128 : 2;
  barrier_wait(at.ring.full(cursor.stage), cursor.parity);
  const int shared = Tile::PING_PONG ? 0 : consumer * Tile::OWN_PIXELS * SWIZZLED_ROW;
  const u64 x = operand(at.pixels(cursor.stage) + shared);
  const u64 w = ACROSS ? operand_across(at.filters(cursor.stage)) : operand(at.filters(cursor.stage));
  products_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int row = 0; row < Tile::ROWS; ++row)
      if constexpr (Tile::SWAPPED)
        multiply<T, ACROSS, false>(sum[row], w + row * 512 + k * STEP, x + k * 2, keep | k);
      else
        multiply<T, false, ACROSS>(sum[row], x + row * 512 + k * 2, w + k * STEP, keep | k);
  products_commit();
}

// All products of a tile. A stage is given back once the products of the next are under way. What the tile ends in is asked
// for while the other consumer multiplies, or, where both do at once, behind the first products.
template <class T, class Tile, bool ACROSS, class Out>
DEVICE void multiply_all(const Layout<Tile>& at, Cursor<Tile::STAGES> cursor, int blocks, const Out& outlet,
                         const Place<Tile>& place, float (&sum)[Tile::ROWS][Tile::COLUMNS / 2]) {
  constexpr int BOTH = CONSUMERS * WARPGROUP;
  const int consumer = outlet.consumer;
  int before = 0;
  if (Tile::PING_PONG || blocks == 0) outlet.bring_first(place);
  if (Tile::PING_PONG) named_sync(4 + consumer, BOTH);
  for (int block = 0; block < blocks; ++block, cursor.next()) {
    multiply_stage<T, Tile, ACROSS>(at, cursor, consumer, block, sum);
    if (block > 0) {
      products_wait<1>();
      at.ring.give_back(before);
    } else if (!Tile::PING_PONG) {
      outlet.bring_first(place);
    }
    before = cursor.stage;
  }
  if (Tile::PING_PONG) named_arrive(4 + (consumer ^ 1), BOTH);
  products_wait<0>();
  if (blocks > 0) at.ring.give_back(before);
}

