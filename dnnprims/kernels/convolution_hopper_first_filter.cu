// The gradient of first layers in their filters on Hopper: few channels, windows two pixels apart.
//
// dw as convolution_hopper_filter.cu; sums for it, which first_fold (convolution_first_filter.cuh) adds up
//
// Shapes    x (n, h, w, c), dy (n, p, q, k) of T, float16 or bfloat16, dense; c at most 4, k a multiple of 8, rows of x
//           even and multiples of 16 bytes; dy described by a tensor map.
// Plan      with channels filled up to four, a pixel has 8 bytes, and windows at a stride of 2 lie 16 bytes apart: two
//           pixels of the windows of a row of positions are the rows of an operand that runs across them, whose matrices
//           overlap; down the rows of taps they are as far apart as rows of the image, so that one product has two pixels
//           of eight rows of taps, and four have all terms of 8 x 8 taps. No window is ever copied. A tile is some rows of
//           positions: dy comes by the copy engine as it is multiplied, the rows of the image as they lie, and two more
//           groups of warps fill their pixels up. Two consumers have every other row of positions, add up what
//           they have of all the block's tiles, and leave a slot of sums in the order of taps, channels and filters.
// Numerics  products summed in float by the tensor cores in the order of positions, the same bits each time. Padding, and
//           what fills up rows of positions, is multiplied as zeros.
// Cost      2 k 8 x 32 flops a position; dy is read once, x (rows stride + 7 - stride) / (rows stride) times.
// Predicted 256x3x224x224, 64 filters of 7x7 at stride 2: 111 us of products, of which each has 64 columns, 120 us of memory.
// Measured  NVIDIA H200, 2026-11-28, microseconds, cuDNN 9 through PyTorch 2.11 in brackets: bfloat16 164 (1131), float16 168
//           (552), where mma.sync of convolution_first_filter.cuh takes 355; of 32 images 32 (159), 8 19 (56), of one 14 (26).
//           With dy read from shared memory by each product 241. With dy in registers 226, with four warps that filled pixels
//           up instead of eight and waited for one pair after the other: time went with the rows they filled, 559 cycles
//           each; in tiles of two rows of positions, which see more rows, it was 308.
// Limits    sm_90a; a horizontal stride of 2, at most 8 x 8 taps, rows of at most 256 positions.
#include "convolution_hopper.cuh"

template <class T> struct ConvHopperFirstFilterParams {
  const T* x;
  const T* dy;
  float* parts;                                // (splits, taps, channels, filters)
  int tiles, tiles_down;                       // tiles_down: in an image
  int height, width, channels, filters;        // of an image; out
  int taps_h, taps_w, stride_h, top, left;     // left: pixels before the first window, with one more to be even
  int lead;                                    // pixels that windows begin before their first tap: 0 or 1
  int rows, columns, pitch;                    // of a tile, columns by the 16; units of 16 bytes of a row of the patch
  int seen;                                    // rows of the image that a tile sees
  int patch_bytes, raw_bytes;                  // of a patch and of the rows that it is made of
};

struct FirstFilterMaps {
  TensorMap dy;
};

constexpr int STAGES = 2, UNIT = 16, PAIRS = 4;
constexpr int MAKERS = 2 * WARPGROUP, SPREADERS = MAKERS / 32;  // threads and warps that make stages ready

// The block's shared memory: tiles of dy, patches, rows of the image, barriers.
struct FirstFilterLayout {
  u32 dys, patches, raws, barriers;
  int dy_bytes, patch_bytes, raw_bytes;
  template <class T>
  DEVICE FirstFilterLayout(const void* raw, const ConvHopperFirstFilterParams<T>& p)
      : dy_bytes(p.rows * p.columns * SWIZZLED_ROW), patch_bytes(p.patch_bytes), raw_bytes(p.raw_bytes) {
    dys = (shared_address(raw) + 1023u) & ~1023u;
    patches = dys + STAGES * dy_bytes;
    raws = patches + STAGES * patch_bytes;
    barriers = raws + STAGES * raw_bytes;
  }
  DEVICE u32 dy(int stage) const { return dys + stage * dy_bytes; }
  DEVICE u32 patch(int stage) const { return patches + stage * patch_bytes; }
  DEVICE u32 raw(int stage) const { return raws + stage * raw_bytes; }
  DEVICE Ring<STAGES> ring() const { return {barriers}; }
  DEVICE u32 brought(int stage) const { return barriers + 8 * (2 * STAGES + stage); }
  DEVICE void init() const {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(ring().full(stage), 1 + SPREADERS);
      barrier_init(ring().empty(stage), CONSUMERS * WARPGROUP / 32);
      barrier_init(brought(stage), 1);
    }
    barriers_ready();
  }
};

// Where a tile lies, and the rows of the image that it sees: `first` and on, in the image from `begin` to before `end`.
struct FirstFilterPlace {
  int n, h, first, begin, end;
  template <class T> DEVICE FirstFilterPlace(const ConvHopperFirstFilterParams<T>& p, int tile) {
    n = tile / p.tiles_down;
    h = (tile - n * p.tiles_down) * p.rows;
    first = h * p.stride_h - p.top;
    begin = max(first, 0);
    end = max(begin, min(first + p.seen, p.height));
  }
};

// Asks for the rows of the image that a tile sees.
template <class T>
DEVICE void fetch_rows(const FirstFilterLayout& at, const ConvHopperFirstFilterParams<T>& p, int tile, int stage) {
  const FirstFilterPlace place(p, tile);
  const int row = p.width * p.channels, bytes = (place.end - place.begin) * row * (int)sizeof(T);
  barrier_expect(at.brought(stage), bytes);
  if (bytes == 0) return;
  const T* from = p.x + ((i64)place.n * p.height + place.begin) * row;
  load_bytes(at.raw(stage) + (place.begin - place.first) * row * (int)sizeof(T), from, bytes, at.brought(stage));
}

// Two pixels, filled up to four channels each.
template <int CHANNELS> DEVICE uint4 two_pixels(u32 from) {
  const u32 a = load_word(from);
  if constexpr (CHANNELS == 1) return {a & 0xffffu, 0u, a >> 16, 0u};
  const u32 b = load_word(from + 4);
  if constexpr (CHANNELS == 2) return {a, 0u, b, 0u};
  const u32 c = load_word(from + 8);
  if constexpr (CHANNELS == 3) return {a, b & 0xffffu, b >> 16 | c << 16, c >> 16};
  return {a, b, c, load_word(from + 12)};
}

// The rows of an image that a tile sees, as pairs of pixels: a row a warp, four pairs a lane. What is not there is read from
// where something is, so that all loads are under way at once, and becomes zeros.
template <int CHANNELS, class T>
DEVICE void spread_rows(const ConvHopperFirstFilterParams<T>& p, const FirstFilterPlace& place, u32 raw, u32 patch) {
  constexpr int EACH = 4, PIXEL_BYTES = CHANNELS * sizeof(T);
  const int lane = threadIdx.x % 32, row_bytes = p.width * PIXEL_BYTES;
  for (int row = threadIdx.x / 32 % SPREADERS; row < p.seen; row += SPREADERS) {
    const bool inside = place.first + row >= place.begin && place.first + row < place.end;
    const u32 from = raw + row * row_bytes, to = patch + row * p.pitch * UNIT;
    for (int unit = lane; unit < p.pitch; unit += 32 * EACH) {
      uint4 v[EACH];
#pragma unroll
      for (int k = 0; k < EACH; ++k) {
        const int pixel = 2 * (unit + 32 * k) - p.left;
        v[k] = two_pixels<CHANNELS>(from + min(max(pixel, 0), p.width - 2) * PIXEL_BYTES);
      }
#pragma unroll
      for (int k = 0; k < EACH; ++k) {
        const int pixel = 2 * (unit + 32 * k) - p.left;
        if (!inside || pixel < 0 || pixel >= p.width) v[k] = uint4{0u, 0u, 0u, 0u};
        if (unit + 32 * k < p.pitch) store_pack(to + (unit + 32 * k) * UNIT, v[k]);
      }
    }
  }
}
template <class T>
DEVICE void spread(const ConvHopperFirstFilterParams<T>& p, const FirstFilterPlace& place, u32 raw, u32 patch) {
  if (p.channels == 3) spread_rows<3>(p, place, raw, patch);
  else if (p.channels == 4) spread_rows<4>(p, place, raw, patch);
  else if (p.channels == 2) spread_rows<2>(p, place, raw, patch);
  else spread_rows<1>(p, place, raw, patch);
}

// The warps that make stages ready; one of their threads asks for dy and for rows of the image.
template <class T>
DEVICE void make_stages(const FirstFilterLayout& at, const FirstFilterMaps& maps, const ConvHopperFirstFilterParams<T>& p) {
  const bool speaker = threadIdx.x == CONSUMERS * WARPGROUP;
  const int filter = (int)blockIdx.y * 64, step = (int)gridDim.x;
  if (speaker)
    for (int k = 0; k < STAGES; ++k)
      if ((int)blockIdx.x + k * step < p.tiles) fetch_rows(at, p, (int)blockIdx.x + k * step, k);
  Cursor<STAGES> cursor(0);
  for (int tile = blockIdx.x; tile < p.tiles; tile += step, cursor.next()) {
    const FirstFilterPlace place(p, tile);
    const u32 full = at.ring().full(cursor.stage);
    barrier_wait(at.ring().empty(cursor.stage), cursor.parity ^ 1u);
    if (speaker) {
      barrier_expect(full, at.dy_bytes);
      load_patch(at.dy(cursor.stage), maps.dy, filter, 0, place.h, place.n, full);
    }
    barrier_wait(at.brought(cursor.stage), cursor.parity);
    spread(p, place, at.raw(cursor.stage), at.patch(cursor.stage));
    publish_shared();
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(full);
    named_sync(1, MAKERS);  // the rows have been read
    if (speaker && tile + STAGES * step < p.tiles) fetch_rows(at, p, tile + STAGES * step, cursor.stage);
  }
}

// Two pixels of eight rows of taps: columns 4 (2 r + pixel) + channel.
typedef float PairSums[PAIRS][32];

// Sixteen positions of dy and of x after the other, along a consumer's rows of a tile.
struct Walk {
  u32 dy;
  u64 x;
  int left;  // positions of the row
  template <class T> DEVICE Walk(const FirstFilterLayout& at, const ConvHopperFirstFilterParams<T>& p, int stage, int row) {
    const int down = p.pitch * UNIT;
    dy = at.dy(stage) + row * p.columns * SWIZZLED_ROW;
    x = operand_unswizzled(at.patch(stage) + row * p.stride_h * down, 8 * UNIT, down);
    left = p.columns;
  }
  template <class T> DEVICE void next(const ConvHopperFirstFilterParams<T>& p) {
    dy += 16 * SWIZZLED_ROW, x += 16;
    if ((left -= 16) > 0) return;
    left = p.columns;
    dy += (CONSUMERS - 1) * p.columns * SWIZZLED_ROW;
    x += CONSUMERS * p.stride_h * p.pitch - p.columns;
  }
};

// Their products. dy is taken to registers, from which four products have it: of shared memory they would read all that it
// can give.
template <class T>
DEVICE void multiply_positions(const ConvHopperFirstFilterParams<T>& p, Walk& walk, u32 (&dy)[4], int& keep, PairSums& sums) {
  const int lane = threadIdx.x % 32, position = lane / 16 * 8 + lane % 8, chunk = threadIdx.x / 32 % 4 * 2 + lane / 8 % 2;
  products_wait<1>();  // those before the last, which had these registers
  load_transposed_matrices(walk.dy + position * SWIZZLED_ROW + ((chunk ^ (position & 7)) << 4), dy);
  products_fence();
#pragma unroll
  for (int pair = 0; pair < PAIRS; ++pair) multiply_taken_across<T>(sums[pair], dy, walk.x + pair, keep);
  products_commit();
  keep = 1;
  walk.next(p);
}

// A consumer's rows of positions of all the block's tiles.
template <class T>
DEVICE void sum_tiles(const FirstFilterLayout& at, const ConvHopperFirstFilterParams<T>& p, int consumer, PairSums& sums) {
  Cursor<STAGES> cursor(0);
  const int steps = (p.rows - consumer + CONSUMERS - 1) / CONSUMERS * (p.columns / 16);
  int keep = 0;
  u32 dy[2][4];
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x, cursor.next()) {
    barrier_wait(at.ring().full(cursor.stage), cursor.parity);
    Walk walk(at, p, cursor.stage, consumer);
    for (int step = 0; step < steps; step += 2) {
      multiply_positions(p, walk, dy[0], keep, sums);
      if (step + 1 < steps) multiply_positions(p, walk, dy[1], keep, sums);
    }
    products_wait<0>();
    at.ring().give_back(cursor.stage);
  }
}

// The sums of both consumers to the block's slot.
template <class T>
DEVICE void leave_sums(const ConvHopperFirstFilterParams<T>& p, u32 room, int consumer, PairSums& sums) {
  constexpr int BOTH = CONSUMERS * WARPGROUP;
  const int own = threadIdx.x % WARPGROUP, lane = own % 32;
  named_sync(2, BOTH);  // nobody multiplies what lies there
  if (consumer == 1)
#pragma unroll
    for (int i = 0; i < PAIRS * 16; ++i) {
      const int at = 2 * i % 32;
      store_pair(room + (i * WARPGROUP + own) * 8, sums[i / 16][at], sums[i / 16][at + 1]);
    }
  named_sync(2, BOTH);
  if (consumer == 1) return;
  const i64 size = (i64)p.taps_h * p.taps_w * p.channels * p.filters;
  const int filter = (int)blockIdx.y * 64 + own / 32 * 16 + lane / 4;
  float* to = p.parts + (i64)blockIdx.x * size + filter;
#pragma unroll
  for (int i = 0; i < PAIRS * 16; ++i) {
    float other[2];
    load_pair(room + (i * WARPGROUP + own) * 8, other[0], other[1]);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int term = lane % 4 * 2 + k, r = i % 16 / 2, s = i / 16 * 2 + term / 4 - p.lead, c = term % 4;
      const int more = i % 2 * 8;
      if (r < p.taps_h && s >= 0 && s < p.taps_w && c < p.channels && filter + more < p.filters)
        to[((r * p.taps_w + s) * p.channels + c) * (i64)p.filters + more] = sums[i / 16][2 * i % 32 + k] + other[k];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(CONSUMERS * WARPGROUP + MAKERS, 1)
    conv_hopper_first_filter(const __grid_constant__ FirstFilterMaps maps, const ConvHopperFirstFilterParams<T> p) {
  extern __shared__ unsigned char raw[];
  const FirstFilterLayout at(raw, p);
  const int group = threadIdx.x / WARPGROUP;
  if (threadIdx.x == 0) at.init();
  // Products reach past the last row of a patch; of what comes of that nothing is kept.
  for (u32 i = threadIdx.x * UNIT; i < STAGES * p.patch_bytes; i += blockDim.x * UNIT)
    store_pack(at.patches + i, uint4{0u, 0u, 0u, 0u});
  publish_shared();
  __syncthreads();
  if (group >= CONSUMERS) {
    fewer_registers<40>();
    make_stages(at, maps, p);
    return;
  }
  more_registers<208>();
  PairSums sums;
  sum_tiles(at, p, group, sums);
  leave_sums(p, at.dys, group, sums);
}
