// Convolutions of few input channels by many filters at stride 2 on Hopper, as the first layer of a network is one.
//
// Forward   as convolution_hopper.cu
//
// Shapes    x (n, h, w, c), w (k, r, s, c), y (n, p, q, k) of T, float16 or bfloat16, dense; c at most 4, k a multiple of 8,
//           rows of x even and images multiples of 16 bytes; b of T, scale and shift of float; b, scale, shift and residual
//           may be null.
// Plan      with channels filled up to four, a pixel has 8 bytes, and windows at stride 2 lie 16 bytes apart: the windows of
//           a row of positions are the rows of an operand whose core matrices overlap, two pixels of the image from one to
//           the next, so that no window is ever copied. A row of taps is STEPS products of four pixels, from an even pixel
//           on; rows of one rest by the vertical stride follow each other, so that rows of positions do as well.
//           A block has 64 filters, which stay in shared memory. A tile is some rows of positions, 232 with what lies between
//           them. The rows of the image come as they lie; a warpgroup fills the pixels up; two consumers take tiles in
//           turn. The residual comes to where the results are put, by way of the L2, to which it is brought before.
// Numerics  products summed in float by the tensor cores in the order of taps and channels, the same bits each time. A sum
//           that is not finite is taken again over what lies in the window and in the image, in the order of taps.
// Cost      2 k r 16 STEPS flops a position; x is read (rows stride + r - stride) / (rows stride) times, y written once.
// Limits    sm_90a; a horizontal stride of 2; no dilation; 16-byte aligned arrays.
// Predicted 256x3x224x224 by 64 filters of 7x7, microseconds: 115 of memory (212 with a residual), 110 of products at their
//           full rate, 232 x 224 terms a position in place of 224 x 147.
// Measured  NVIDIA H200, 2026-11-28, L2 flushed between, microseconds (cuDNN 9 of the same run, convolution_first.cu): float16
//           195 (555, 324), bfloat16 193 (1762, 320); with bias, residual and relu 331 (1620, 719) and 335 (1994, 718); one image
//           14.5 (22.4, 22.1), 8 of 108x108 by 64 filters of 3x3 11.5 (17.5, 15.5). When two warps filled pixels up, one read
//           after the other, it was 353 (tensor cores 29 %, memory 28 %, issue slots 19 % busy). Now, by ncu: tensor cores
//           52 %, memory 50 %, shared memory 51 %, issue slots 35 %, L2 28 %: no unit is full, a tile takes 3,080 cycles, of
//           which its products are 1,624. Rows at multiples of 128 bytes in shared memory, and results waited for only where
//           they are put, gave nothing (201 beside 193). Pixels filled up five rows of one rest at once, in fewer instructions,
//           with registers that the consumers give up for it, were slower: 198 beside 196, with a residual 387 beside 333.
#include "convolution_hopper.cuh"

template <class T> struct ConvHopperFirstParams {
  const T* x;
  const T* w;
  T* y;
  Following<T> following;
  int tiles, tiles_down;            // tiles_down: in an image
  int height, width, channels;      // of an image
  int taps_h, taps_w, stride_h, top, left;
  int out_height, out_width, filters, channel_tiles;
  int rows, pitch;             // of a tile; units of 16 bytes from one row of it to the next
  int lead;                    // pixels that windows begin before their first tap: 0 or 1
  int plane_rows;              // rows of the image of one rest, in a patch
  int patch_bytes, raw_bytes;  // of a patch and of the rows that it is made of
  int backwards, relu;         // flags: taps lie backwards in memory; what follows ends in relu
};

struct FirstMaps {
  TensorMap y, residual;
};

constexpr int TILE_PIXELS = 232, OUT_BYTES = TILE_PIXELS * SWIZZLED_ROW, PATCHES = 3, RAWS = 4;
constexpr int UNIT = 16, STEP_BYTES = 64 * 32;  // of two pixels; of the filters for 16 terms

// Where a tile lies.
struct FirstPlace {
  int n, h;
  template <class T> DEVICE FirstPlace(const ConvHopperFirstParams<T>& p, int tile)
      : n(tile / p.tiles_down), h((tile - n * p.tiles_down) * p.rows) {}
};

// The block's shared memory: results, filters, patches, rows of the image, barriers.
template <class T> struct FirstLayout {
  u32 outs, filters, patches, raws, barriers;
  int patch_bytes, raw_bytes;
  DEVICE FirstLayout(const void* raw, const ConvHopperFirstParams<T>& p, int filter_bytes)
      : patch_bytes(p.patch_bytes), raw_bytes(p.raw_bytes) {
    outs = (shared_address(raw) + 1023u) & ~1023u;
    filters = outs + CONSUMERS * OUT_BYTES;
    patches = filters + filter_bytes;
    raws = patches + PATCHES * patch_bytes;
    barriers = raws + RAWS * raw_bytes;
  }
  DEVICE u32 out(int consumer) const { return outs + consumer * OUT_BYTES; }
  DEVICE u32 patch(int stage) const { return patches + stage * patch_bytes; }
  DEVICE u32 raw(int stage) const { return raws + stage * raw_bytes; }
  DEVICE Ring<PATCHES> of_patches() const { return {barriers}; }
  DEVICE u32 brought(int stage) const { return barriers + 8 * (2 * PATCHES + stage); }
  DEVICE u32 residual(int consumer) const { return brought(RAWS + consumer); }
  DEVICE u32 filters_there() const { return residual(CONSUMERS); }
  DEVICE void init() const {
    for (int stage = 0; stage < PATCHES; ++stage) {
      barrier_init(of_patches().full(stage), 1);
      barrier_init(of_patches().empty(stage), WARPGROUP / 32);
    }
    for (int stage = 0; stage < RAWS; ++stage) barrier_init(brought(stage), 1);
    for (int k = 0; k < CONSUMERS; ++k) barrier_init(residual(k), 1);
    barrier_init(filters_there(), 1);
    barriers_ready();
  }
};

// Rows of the image that a tile sees, from `first` on; of those, the ones from `begin` to before `end` are in the image.
struct Seen {
  int first, count, begin, end;
  template <class T> DEVICE Seen(const ConvHopperFirstParams<T>& p, const FirstPlace& place)
      : first(place.h * p.stride_h - p.top), count((p.rows - 1) * p.stride_h + p.taps_h), begin(max(first, 0)),
        end(max(begin, min(first + count, p.height))) {}
};

// The filters of the block, which have been brought as they lie, for each 16 terms as matrices of eight filters by eight terms.
template <class T, int STEPS>
DEVICE void place_filters(const T* from, T* to, const ConvHopperFirstParams<T>& p, int count) {
  const int terms = p.taps_h * STEPS * STEP_BYTES / (int)sizeof(T), taps = p.taps_h * p.taps_w;
  for (int i = threadIdx.x; i < terms; i += (CONSUMERS + 1) * WARPGROUP) {
    const int term = i % 8 + i / 512 % 2 * 8, filter = i / 8 % 64, step = i / 1024;
    const int c = term % 4, r = step / STEPS, s = step % STEPS * 4 + term / 4 - p.lead;
    const int tap = p.backwards ? taps - 1 - r * p.taps_w - s : r * p.taps_w + s;
    const bool real = c < p.channels && filter < count && s >= 0 && s < p.taps_w;
    to[i] = real ? from[(filter * taps + tap) * p.channels + c] : from_acc<T>(0.0f);
  }
}

// Where the first of the rows lies beside a multiple of 16 bytes, in memory and in what is brought.
template <class T> DEVICE int beside(const ConvHopperFirstParams<T>& p, const Seen& seen) {
  return seen.first * p.width * p.channels * (int)sizeof(T) & (UNIT - 1);
}
// Asks for the rows of a tile, and what is beside them: images are multiples of 16 bytes; has the residual brought to the L2.
template <class T>
DEVICE void fetch_rows(const FirstLayout<T>& at, const FirstMaps& maps, const ConvHopperFirstParams<T>& p, int filter,
                       int tile, int stage) {
  const FirstPlace place(p, tile);
  const Seen seen(p, place);
  const int row_bytes = p.width * p.channels * (int)sizeof(T);
  const int begin = seen.begin * row_bytes & ~(UNIT - 1), end = seen.end * row_bytes + UNIT - 1 & ~(UNIT - 1);
  const int bytes = seen.end > seen.begin ? end - begin : 0;
  barrier_expect(at.brought(stage), bytes);
  if (bytes > 0)
    load_bytes(at.raw(stage) + beside(p, seen) + (begin - seen.first * row_bytes),
               reinterpret_cast<const unsigned char*>(p.x) + (i64)place.n * p.height * row_bytes + begin, bytes,
               at.brought(stage));
  if (p.following.residual)
    for (int row = 0; row < p.rows; ++row) prefetch_patch(maps.residual, filter, 0, place.h + row, place.n);
}

// Two pixels, filled up to four channels each.
template <int CHANNELS> DEVICE uint4 two_pixels(const unsigned char* from) {
  const u32* v = reinterpret_cast<const u32*>(from);
  if constexpr (CHANNELS == 1) return {v[0] & 0xffffu, 0u, v[0] >> 16, 0u};
  else if constexpr (CHANNELS == 2) return {v[0], 0u, v[1], 0u};
  else if constexpr (CHANNELS == 3) return {v[0], v[1] & 0xffffu, v[1] >> 16 | v[2] << 16, v[2] >> 16};
  else return {v[0], v[1], v[2], v[3]};
}

// A patch from the rows that have been brought; each thread has pixels of all of them, of which it reads four rows at once.
template <int CHANNELS, class T>
DEVICE void spread_tile(const ConvHopperFirstParams<T>& p, const Seen& seen, const unsigned char* raw, u32 patch) {
  constexpr int AT_ONCE = 4;
  const int row_bytes = p.width * CHANNELS * (int)sizeof(T), row = p.pitch * UNIT, plane = p.plane_rows * row;
  for (int unit = threadIdx.x % WARPGROUP; unit < p.pitch; unit += WARPGROUP) {
    const int pixel = 2 * unit - p.left - p.lead;
    const bool within = pixel >= 0 && pixel < p.width;
    const unsigned char* from = raw + pixel * CHANNELS * (int)sizeof(T);
    u32 to = patch + unit * UNIT;
    for (int i = 0, rest = 0; i < seen.count; i += AT_ONCE, from += AT_ONCE * row_bytes) {
      uint4 v[AT_ONCE] = {};
#pragma unroll
      for (int k = 0; k < AT_ONCE; ++k)
        if (within && seen.first + i + k >= seen.begin && seen.first + i + k < seen.end)
          v[k] = two_pixels<CHANNELS>(from + k * row_bytes);
#pragma unroll
      for (int k = 0; k < AT_ONCE; ++k) {
        if (i + k < seen.count) store_pack(to, v[k]);
        to += plane;
        if (++rest == p.stride_h) rest = 0, to += row - p.stride_h * plane;
      }
    }
  }
}

// The warpgroup that makes patches of rows; one of its threads asks for rows, always as far ahead as there is room.
template <class T>
DEVICE void spread_rows(const FirstLayout<T>& at, const FirstMaps& maps, const unsigned char* shared,
                        const ConvHopperFirstParams<T>& p, int filter, int first, int step) {
  const bool asks = threadIdx.x % WARPGROUP == 0;
  for (int k = 0; asks && k < RAWS; ++k)
    if (first + k * step < p.tiles) fetch_rows(at, maps, p, filter, first + k * step, k);
  Cursor<RAWS> from(0);
  Cursor<PATCHES> to(0);
  for (int tile = first; tile < p.tiles; tile += step, from.next(), to.next()) {
    const Seen seen(p, FirstPlace(p, tile));
    const unsigned char* raw = shared + (at.raw(from.stage) - shared_address(shared)) + beside(p, seen);
    const u32 patch = at.patch(to.stage);
    barrier_wait(at.brought(from.stage), from.parity);
    barrier_wait(at.of_patches().empty(to.stage), to.parity ^ 1u);
    if (p.channels == 3) spread_tile<3>(p, seen, raw, patch);
    else if (p.channels == 4) spread_tile<4>(p, seen, raw, patch);
    else if (p.channels == 2) spread_tile<2>(p, seen, raw, patch);
    else spread_tile<1>(p, seen, raw, patch);
    publish_shared();
    named_sync(3, WARPGROUP);
    if (!asks) continue;
    barrier_arrive(at.of_patches().full(to.stage));
    if (tile + RAWS * step < p.tiles) fetch_rows(at, maps, p, filter, tile + RAWS * step, from.stage);
  }
}

template <class T, int STEPS>
DEVICE void multiply_tile(const ConvHopperFirstParams<T>& p, u32 filters, u32 patch, float (&sum)[TILE_PIXELS / 2]) {
  u64 w = operand_unswizzled(filters, 64 * UNIT, 8 * UNIT);
  const int row = p.pitch * UNIT, plane = p.plane_rows * row;
  for (int r = 0, rest = 0; r < p.taps_h; ++r) {
    const u64 x = operand_unswizzled(patch, UNIT, 8 * UNIT);
    products_fence();
#pragma unroll
    for (int k = 0; k < STEPS; ++k, w += STEP_BYTES / 16) multiply<T, false, false>(sum, w, x + k * 2, r | k);
    products_commit();
    patch += plane;
    if (++rest == p.stride_h) rest = 0, patch += row - p.stride_h * plane;
  }
}

// Which of the sums are not finite.
struct NotFinite {
  u32 marks[4] = {};
  template <int COUNT> DEVICE explicit NotFinite(const float (&sum)[COUNT]) {
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) all = fma_(sum[i], 0.0f, all);
    if (all == 0.0f) return;
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      if (!(sum[i] * 0.0f == 0.0f)) marks[i / 32] |= 1u << i % 32;
  }
  DEVICE bool any() const { return marks[0] | marks[1] | marks[2] | marks[3]; }
  DEVICE bool next() {
    const bool marked = marks[0] & 1u;
#pragma unroll
    for (int k = 0; k < 3; ++k) marks[k] = marks[k] >> 1 | marks[k + 1] << 31;
    marks[3] >>= 1;
    return marked;
  }
};

// One result, of nothing but what is in the window and in the image.
template <class T, class Act>
DEVICE T result_within(const ConvHopperFirstParams<T>& p, const Then<T, Act>& then, int n, int h, int w, int filter) {
  float v = 0.0f;
#pragma unroll 1
  for (int i = 0; i < p.taps_h * p.taps_w * p.channels; ++i) {
    const int tap = i / p.channels, r = tap / p.taps_w, taps = p.taps_h * p.taps_w, c = i - tap * p.channels;
    const int row = h * p.stride_h - p.top + r, column = w * 2 - p.left + tap - r * p.taps_w;
    if (row < 0 || row >= p.height || column < 0 || column >= p.width) continue;
    const i64 own = (i64)filter * taps + (p.backwards ? taps - 1 - tap : tap);
    v = fma_(to_acc(p.x[(((i64)n * p.height + row) * p.width + column) * p.channels + c]), to_acc(p.w[own * p.channels + c]),
             v);
  }
  v *= then.alpha1;
  if (then.b) v += to_acc(then.b[filter]);
  if (then.scale) v *= then.scale[filter];
  if (then.shift) v += then.shift[filter];
  if (then.residual)
    v += then.alpha2 * to_acc(p.following.residual[(((i64)n * p.out_height + h) * p.out_width + w) * p.filters + filter]);
  return from_acc<T>(then.act.forward(then.relu ? positive_part(v) : v));
}

// What is wrong among the results of a tile, put right where they lie.
template <class T, class Act>
DEVICE void mend(const ConvHopperFirstParams<T>& p, const Then<T, Act>& then, const FirstPlace& place, int filter_0,
                 NotFinite& wrong, unsigned char* out) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll 1
  for (int i = 0; i < TILE_PIXELS / 2; ++i) {
    if (!wrong.next()) continue;
    const int pixel = i / 4 * 8 + lane % 4 * 2 + i % 2, own = warp * 16 + i / 2 % 2 * 8 + lane / 4;
    const int row = pixel / p.pitch, w = pixel - row * p.pitch, h = place.h + row;
    if (row >= p.rows || w >= p.out_width || h >= p.out_height || filter_0 + own >= p.filters) continue;
    unsigned char* to = out + pixel * SWIZZLED_ROW + ((own / 8 ^ (pixel & 7)) << 4) + own % 8 * 2;
    *reinterpret_cast<T*>(to) = result_within(p, then, place.n, h, w, filter_0 + own);
  }
}

template <class T, int STEPS, class Act>
DEVICE void consume(const FirstLayout<T>& at, const FirstMaps& maps, unsigned char* shared,
                    const ConvHopperFirstParams<T>& p, int filter, int group, int first, int step) {
  constexpr int BOTH = CONSUMERS * WARPGROUP;
  const Then<T, Act> then{p.following, p.relu != 0};
  const u32 out = at.out(group);
  const bool speaker = threadIdx.x % WARPGROUP == 0;
  // Barrier 4 + g lets consumer g multiply; the other one opens it. The first tile is consumer 0's.
  if (group == 1) named_arrive(4, BOTH);
  int turn = group;
  for (int tile = first + group * step; tile < p.tiles; tile += CONSUMERS * step, turn += CONSUMERS) {
    const int stage = turn % PATCHES;
    const FirstPlace place(p, tile);
    if (speaker) {  // once nothing is on its way out any more
      stores_read<0>();
      if (then.residual) barrier_expect(at.residual(group), p.rows * p.out_width * SWIZZLED_ROW);
      for (int row = 0; then.residual && row < p.rows; ++row)
        load_patch(out + row * p.pitch * SWIZZLED_ROW, maps.residual, filter, 0, place.h + row, place.n, at.residual(group));
    }
    float sum[TILE_PIXELS / 2];
    named_sync(4 + group, BOTH);
    barrier_wait(at.of_patches().full(stage), turn / PATCHES & 1);
    multiply_tile<T, STEPS>(p, at.filters, at.patch(stage), sum);
    named_arrive(4 + (group ^ 1), BOTH);
    products_wait<0>();
    at.of_patches().give_back(stage);
    NotFinite wrong(sum);
    if (then.residual) barrier_wait(at.residual(group), turn / CONSUMERS & 1);
    follow<T, true>(then, out, filter, p.filters, sum);
    put_piece<T, true>(out, sum);
    __syncwarp();
    if (wrong.any()) mend(p, then, place, filter, wrong, shared + (out - shared_address(shared)));
    publish_shared();
    named_sync(1 + group, WARPGROUP);
    if (!speaker) continue;
    for (int row = 0; row < p.rows; ++row)
      store_patch(maps.y, filter, 0, place.h + row, place.n, out + row * p.pitch * SWIZZLED_ROW);
    stores_commit();
  }
  if (speaker) stores_done();
}

template <class T, int STEPS, class Act = Identity<T>>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    conv_hopper_first(const __grid_constant__ FirstMaps maps, const __grid_constant__ ConvHopperFirstParams<T> p) {
  extern __shared__ unsigned char raw[];
  const FirstLayout<T> at(raw, p, p.taps_h * STEPS * STEP_BYTES);
  const int group = threadIdx.x / WARPGROUP, filter = (int)(blockIdx.x % p.channel_tiles) * 64;
  const int step = (int)(gridDim.x / p.channel_tiles), first = (int)(blockIdx.x / p.channel_tiles);
  const int count = min(64, p.filters - filter), filter_terms = p.taps_h * p.taps_w * p.channels;
  if (threadIdx.x == 0) {
    at.init();
    barrier_expect(at.filters_there(), count * filter_terms * (int)sizeof(T));
    load_bytes(at.outs, p.w + (i64)filter * filter_terms, count * filter_terms * (int)sizeof(T), at.filters_there());
  }
  __syncthreads();
  barrier_wait(at.filters_there(), 0);
  unsigned char* const outs = raw + (at.outs - shared_address(raw));
  place_filters<T, STEPS>(reinterpret_cast<const T*>(outs), reinterpret_cast<T*>(outs + (at.filters - at.outs)), p, count);
  // Products reach past the last row of a patch; of what comes of that nothing is kept, but it should not look wrong.
  for (u32 i = threadIdx.x * UNIT; i < PATCHES * p.patch_bytes; i += blockDim.x * UNIT)
    store_pack(at.patches + i, uint4{0u, 0u, 0u, 0u});
  publish_shared();
  __syncthreads();
  if (group == CONSUMERS) {
    fewer_registers<56>();
    spread_rows(at, maps, raw, p, filter, first, step);
    return;
  }
  more_registers<224>();
  consume<T, STEPS, Act>(at, maps, raw, p, filter, group, first, step);
}
