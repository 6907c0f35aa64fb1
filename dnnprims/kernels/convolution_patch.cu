// Convolutions of 3 x 3 taps over 64 channels on Hopper and their gradients: patches of the input stay in shared
// memory.
//
// Forward   y = act(scale (alpha1 conv(x, w) + b) + shift + alpha2 residual), as convolution_hopper.cu, of stride 1
// Data      dx = conv(dy, w backwards and transposed) + b
// Filter    sums of dy times x over some of the pixels, which conv_hopper_fold (convolution_hopper_filter.cu) adds up
//
// Shapes    x (n, h, w, 64), w (k, 3, 3, 64), y (n, p, q, k) of T, float16 or bfloat16, dense, k a multiple of 8; of
//           the data gradient y has the 64 channels. Channels below 64 are zeros that the copy engine adds.
// Plan      a block has 64 channels out, whose filters of all taps stay in shared memory. A tile is some rows and
//           columns of an image: the patch that it sees comes as one box, padding included, and tap (r, s) is the same
//           patch from pixel (r, s) on, 128 bytes a pixel: 36 products of 64 channels by 232 pixels without a barrier.
//           The two last columns of each row of the patch are multiplied for nothing and not stored. Two consumers take
//           tiles in turn; the result is put where the patch was. Where there is a residual, it comes a tile ahead to a
//           place of each consumer, where the result is put together, and patches are given back once multiplied. Groups that
//           make up blocks of 64 channels see their own block alone. Filter: of
//           three consumers each has a row of taps, whose three are one product of 192 columns: its 64-channel tiles
//           lie a pixel apart. Columns of dy that would meet pixels beside the patch are zeros.
// Numerics  as convolution_hopper.cu: in the order of taps and channels, the same bits each time; padding is zeros.
// Cost      2 K C 9 flops a pixel, and (columns + 2) / columns of it; x is read (rows + 2) / rows times for each 64
//           channels out, where convolution_hopper.cu reads it nine times from the L2: at 64 channels that is its
//           limit.
// Limits    sm_90a; stride and dilation 1; as convolution_hopper.cu.
// Measured on an NVIDIA H200, 2026-11-28, bfloat16, 64@56, L2 flushed between, microseconds, cuDNN 9 of the same run in
//   brackets: batch 256 forward 83.9 (130 to 139), data 84.1 (129), filter 93.7 (137), where convolution_hopper.cu
//   takes 135, 136 and 220; batch 8 11.8 (15.2), 11.7 (13.7). 84 us are 705 TFLOP/s, 3 % of it multiplied for nothing.
//   32 of 64@224: forward 163 (243), 725 TFLOP/s of the 800 that cuBLASLt reaches, in patches of 56 x 4 pixels; 169 in as many
//   of 112 x 2, two of which fit in place of three. In runs since 160 (241) and 164 (245), 1.5 times: by ncu
//   tensor cores are 89 % busy at 1.70 GHz, memory 53 %, the L2 33 %, issue slots 12 %; 55 rounds of tiles for 54.3, and 8 of
//   232 columns for nothing, are the rest. With bias, residual and relu 196 (279), 64@56 105 (165), with 128 channels out 192
//   (222); 211, 114 and 206 where the residual was asked for after the products, to the place of the patch: tensor cores
//   58 % busy, memory 54 %. x, residual and y are 617 MB, 147 us of a copy, beside the 160 of products; two patches are on
//   their way, for which three had room. No faster: the residual read ahead into registers (221 and 120: its lines go through
//   the L1, of which shared memory leaves 28 KB), or brought to the L2 when the patch is (211 and 117).
//   Behind copies of planes forward 364 (596), filter 366 (601): copies of x and y there and back are 196 us of that at the
//   rate of a copy. 32 groups of 128@56 157 (357), data 158 (404), where the plain kernel takes 7,700; of 256@28 93 (185), data
//   94 (199); of 1024@7 90 (46), data 91 (44). With swish in it 64@56 105 (188 in two launches).
//   compute-sanitizer counts the three tiles of 192 columns, which lie a pixel apart, as 6,144 bytes in a row, of which
//   2,304 are read: so much more shared memory is asked for, or it reports reads beyond it in conv_patch_filter.
#include "convolution_hopper.cuh"

template <class T> struct ConvPatchParams {
  const T* x;
  const T* w;
  T* y;
  Following<T> following;
  int rows, columns;                 // of a tile
  int tiles, tiles_down, tiles_across;  // tiles_down, tiles_across: in an image
  int top, left;                     // padding
  int stages, patch_bytes;           // of the ring; of a patch, a multiple of 1,024
  int channels, channel_tiles;       // out
  int backwards, relu, grouped;      // flags: taps lie backwards in memory; what follows ends in relu; channels out see
                                     // the same 64 channels in, and the filters have no others
};

struct PatchMaps {
  TensorMap x, w, y, residual;
};

constexpr int TAPS_ACROSS = 3, TAPS = TAPS_ACROSS * TAPS_ACROSS, PATCH_PIXELS = 232, TAP_BYTES = 64 * SWIZZLED_ROW;
constexpr int OUT_BYTES = PATCH_PIXELS * SWIZZLED_ROW;

// Where a tile of pixels lies.
struct PatchPlace {
  int n, h, w;
  template <class Params> DEVICE PatchPlace(const Params& p, int tile) {
    const int of_image = p.tiles_down * p.tiles_across;
    n = tile / of_image;
    tile -= n * of_image;
    h = tile / p.tiles_across;
    w = (tile - h * p.tiles_across) * p.columns;
    h *= p.rows;
  }
};

// The block's shared memory: filters, patches, where results are put beside a residual, barriers.
struct PatchLayout {
  u32 filters, patches, outs, barriers;
  int stages, patch_bytes;
  template <class T> DEVICE PatchLayout(const void* raw, const ConvPatchParams<T>& p)
      : stages(p.stages), patch_bytes(p.patch_bytes) {
    filters = (shared_address(raw) + 1023u) & ~1023u;
    patches = filters + TAPS * TAP_BYTES;
    outs = patches + stages * patch_bytes;
    barriers = outs + (p.following.residual ? CONSUMERS * OUT_BYTES : 0);
  }
  DEVICE u32 patch(int stage) const { return patches + stage * patch_bytes; }
  DEVICE u32 out(int consumer) const { return outs + consumer * OUT_BYTES; }
  DEVICE u32 full(int stage) const { return barriers + 8 * stage; }
  DEVICE u32 empty(int stage) const { return barriers + 8 * (stages + stage); }
  DEVICE u32 filters_there() const { return barriers + 8 * 2 * stages; }
  DEVICE u32 brought(int consumer) const { return filters_there() + 8 * (1 + consumer); }
  DEVICE void init() const {
    for (int stage = 0; stage < stages; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), 1);
    }
    for (int k = 0; k < 1 + CONSUMERS; ++k) barrier_init(filters_there() + 8 * k, 1);
    barriers_ready();
  }
};

// The thread that asks for the filters and for patches.
template <bool ACROSS, class T>
DEVICE void fetch(const PatchLayout& at, const PatchMaps& maps, const ConvPatchParams<T>& p, int channel, int first,
                  int step) {
  barrier_expect(at.filters_there(), TAPS * TAP_BYTES);
  for (int tap = 0; tap < TAPS; ++tap) {
    const int in_memory = p.backwards ? TAPS - 1 - tap : tap;
    const bool own = ACROSS && !p.grouped;
    load_box(at.filters + tap * TAP_BYTES, maps.w, own ? channel : 0, in_memory, own ? 0 : channel, at.filters_there());
  }
  const int bytes = (p.rows + TAPS_ACROSS - 1) * (p.columns + TAPS_ACROSS - 1) * SWIZZLED_ROW;
  int stage = 0;
  u32 parity = 1;
  for (int tile = first; tile < p.tiles; tile += step) {
    const PatchPlace place(p, tile);
    barrier_wait(at.empty(stage), parity);
    barrier_expect(at.full(stage), bytes);
    load_patch(at.patch(stage), maps.x, p.grouped ? channel : 0, place.w - p.left, place.h - p.top, place.n, at.full(stage));
    if (++stage == at.stages) stage = 0, parity ^= 1u;
  }
}

// All products of a patch that is there.
template <class T, bool ACROSS>
DEVICE void multiply_patch(u32 filters, u32 patch, int width, float (&sum)[PATCH_PIXELS / 2]) {
  const u64 w = ACROSS ? operand_across(filters) : operand(filters), x = operand(patch);
  products_fence();
#pragma unroll
  for (int r = 0; r < TAPS_ACROSS; ++r)
#pragma unroll
    for (int s = 0; s < TAPS_ACROSS; ++s)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        multiply<T, ACROSS, false>(sum, w + (r * TAPS_ACROSS + s) * (TAP_BYTES / 16) + k * (ACROSS ? 128 : 2),
                                   x + (r * width + s) * (SWIZZLED_ROW / 16) + k * 2, r | s | k);
  products_commit();
}

// Asks for the residual of a tile, once nothing is on its way out of where it goes.
template <class T>
DEVICE void bring(const PatchMaps& maps, const ConvPatchParams<T>& p, int tile, int channel, u32 to, u32 barrier) {
  const PatchPlace place(p, tile);
  const int width = p.columns + TAPS_ACROSS - 1;
  stores_read<0>();
  barrier_expect(barrier, p.rows * p.columns * SWIZZLED_ROW);
  for (int row = 0; row < p.rows; ++row)
    load_patch(to + row * width * SWIZZLED_ROW, maps.residual, channel, place.w, place.h + row, place.n, barrier);
}

template <class T, bool ACROSS, class Act>
DEVICE void convolve(const PatchMaps& maps, const ConvPatchParams<T>& p) {
  constexpr int BOTH = CONSUMERS * WARPGROUP;
  extern __shared__ unsigned char raw[];
  const PatchLayout at(raw, p);
  const int group = threadIdx.x / WARPGROUP, width = p.columns + TAPS_ACROSS - 1;
  const int channel = (int)(blockIdx.x % p.channel_tiles) * 64;
  const int step = (int)(gridDim.x / p.channel_tiles), first = (int)(blockIdx.x / p.channel_tiles);
  const bool speaker = threadIdx.x % WARPGROUP == 0;
  if (threadIdx.x == 0) at.init();
  __syncthreads();
  if (group == CONSUMERS) {
    fewer_registers<40>();
    if (speaker) fetch<ACROSS>(at, maps, p, channel, first, step);
    return;
  }
  more_registers<232>();
  const Then<T, Act> then{p.following, p.relu != 0};
  barrier_wait(at.filters_there(), 0);
  // Barrier 4 + g lets consumer g multiply; the other one opens it. The first tile is consumer 0's.
  if (group == 1) named_arrive(4, BOTH);
  u32 brought = 0;
  int turn = group;
  const int own = first + group * step;
  if (then.residual && speaker && own < p.tiles) bring(maps, p, own, channel, at.out(group), at.brought(group));
  for (int tile = own; tile < p.tiles; tile += CONSUMERS * step, turn += CONSUMERS) {
    const int stage = turn % at.stages;
    const u32 patch = at.patch(stage), out = then.residual ? at.out(group) : patch;
    const PatchPlace place(p, tile);
    float sum[PATCH_PIXELS / 2];
    named_sync(4 + group, BOTH);
    barrier_wait(at.full(stage), turn / at.stages & 1);
    multiply_patch<T, ACROSS>(at.filters, patch, width, sum);
    named_arrive(4 + (group ^ 1), BOTH);
    products_wait<0>();
    named_sync(1 + group, WARPGROUP);  // all are done with the patch
    if (then.residual) {
      if (speaker) barrier_arrive(at.empty(stage));
      barrier_wait(at.brought(group), brought);
      brought ^= 1u;
    }
    follow<T, true>(then, out, channel, p.channels, sum);
    put_piece<T, true>(out, sum);
    publish_shared();
    named_sync(1 + group, WARPGROUP);
    if (speaker) {
      for (int row = 0; row < p.rows; ++row)
        store_patch(maps.y, channel, place.w, place.h + row, place.n, out + row * width * SWIZZLED_ROW);
      stores_commit();
      const int next = tile + CONSUMERS * step;
      if (!then.residual) {
        stores_read<0>();
        barrier_arrive(at.empty(stage));
      } else if (next < p.tiles) {
        bring(maps, p, next, channel, out, at.brought(group));
      }
    }
  }
  if (speaker) stores_done();
}

template <class T, class Act = Identity<T>>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    conv_patch_forward(const __grid_constant__ PatchMaps maps, const ConvPatchParams<T> p) {
  convolve<T, false, Act>(maps, p);
}

template <class T>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    conv_patch_data(const __grid_constant__ PatchMaps maps, const ConvPatchParams<T> p) {
  convolve<T, true, Identity<T>>(maps, p);
}

// ---- filter ---------------------------------------------------------------------------------------------------------

template <class T> struct ConvPatchFilterParams {
  const T* dy;
  const T* x;
  float* partials;  // (splits, padded_rows, padded_columns)
  i64 padded_rows, padded_columns;
  int rows, columns;                    // of a tile
  int tiles, tiles_down, tiles_across;  // tiles_down, tiles_across: in an image
  int top, left;                        // padding
  int patch_bytes;                      // of x, a multiple of 1,024
  int row_tiles, channel_blocks;        // of 64 channels out, of 64 channels in
  int backwards;                        // flag: taps lie backwards in memory
};

struct PatchFilterMaps {
  TensorMap dy, x;
};

constexpr int FILTER_CONSUMERS = TAPS_ACROSS, FILTER_STAGES = 3, SUMMED_PIXELS = 176;
constexpr int SUMMED_BYTES = SUMMED_PIXELS * SWIZZLED_ROW;

template <class T>
DEVICE void fetch_both(u32 stages, const Ring<FILTER_STAGES>& ring, const PatchFilterMaps& maps,
                       const ConvPatchFilterParams<T>& p, int row, int block, int first, int step) {
  const int width = p.columns + TAPS_ACROSS - 1;
  const int bytes = ((p.rows + TAPS_ACROSS - 1) * width + p.rows * p.columns) * SWIZZLED_ROW;
  Cursor<FILTER_STAGES> cursor(0);
  for (int tile = first; tile < p.tiles; tile += step, cursor.next()) {
    const PatchPlace place(p, tile);
    const u32 full = ring.full(cursor.stage), dy = stages + cursor.stage * (SUMMED_BYTES + p.patch_bytes);
    barrier_wait(ring.empty(cursor.stage), cursor.parity ^ 1u);
    barrier_expect(full, bytes);
    for (int r = 0; r < p.rows; ++r)
      load_patch(dy + r * width * SWIZZLED_ROW, maps.dy, row * 64, place.w, place.h + r, place.n, full);
    load_patch(dy + SUMMED_BYTES, maps.x, block * 64, place.w - p.left, place.h - p.top, place.n, full);
  }
}

// The sums of one row of taps to their slot.
template <class T>
DEVICE void keep_sums(const ConvPatchFilterParams<T>& p, int row, int block, int split, int taps,
                      const float (&sum)[TAPS_ACROSS * 32]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const i64 own = (i64)split * p.padded_rows + row * 64 + warp * 16 + lane / 4;
  float* to = p.partials + own * p.padded_columns + block * 64 + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < TAPS_ACROSS * 8; ++j) {
    const int tap = taps * TAPS_ACROSS + j / 8, in_memory = p.backwards ? TAPS - 1 - tap : tap;
    float* at = to + in_memory * p.channel_blocks * 64 + j % 8 * 8;
    keep_pair(at, sum[4 * j], sum[4 * j + 1]);
    keep_pair(at + 8 * p.padded_columns, sum[4 * j + 2], sum[4 * j + 3]);
  }
}

template <class T>
__global__ void __launch_bounds__((FILTER_CONSUMERS + 1) * WARPGROUP, 1)
    conv_patch_filter(const __grid_constant__ PatchFilterMaps maps, const ConvPatchFilterParams<T> p) {
  extern __shared__ unsigned char raw[];
  const u32 apart = (1024u - (shared_address(raw) & 1023u)) & 1023u, stages = shared_address(raw) + apart;
  const int stage_bytes = SUMMED_BYTES + p.patch_bytes, group = threadIdx.x / WARPGROUP;
  const Ring<FILTER_STAGES> ring{stages + FILTER_STAGES * stage_bytes};
  const int of_split = p.row_tiles * p.channel_blocks, splits = (int)(gridDim.x / of_split);
  const int split = (int)(blockIdx.x / of_split), rest = (int)(blockIdx.x % of_split);
  const int row = rest % p.row_tiles, block = rest / p.row_tiles;
  // What is not brought must be zeros: of dy it is multiplied, of x it is multiplied with those.
  for (int i = threadIdx.x * 16; i < FILTER_STAGES * stage_bytes; i += blockDim.x * 16)
    *reinterpret_cast<uint4*>(raw + apart + i) = uint4{0, 0, 0, 0};
  publish_shared();
  if (threadIdx.x == 0) {
    ring.init(FILTER_CONSUMERS * WARPGROUP / 32);
    barriers_ready();
  }
  __syncthreads();
  if (group == FILTER_CONSUMERS) {
    fewer_registers<32>();
    if (threadIdx.x % WARPGROUP == 0) fetch_both(stages, ring, maps, p, row, block, split, splits);
    return;
  }
  more_registers<160>();
  const int width = p.columns + TAPS_ACROSS - 1;
  Cursor<FILTER_STAGES> cursor(0);
  float sum[TAPS_ACROSS * 32];
  int before = -1;
  for (int tile = split; tile < p.tiles; tile += splits, cursor.next()) {
    barrier_wait(ring.full(cursor.stage), cursor.parity);
    const u32 at = stages + cursor.stage * stage_bytes;
    const u64 dy = operand_across(at);
    const u64 x = operand_across(at + SUMMED_BYTES + group * width * SWIZZLED_ROW, SWIZZLED_ROW);
    products_fence();
#pragma unroll
    for (int k = 0; k < SUMMED_PIXELS / 16; ++k) multiply<T, true, true>(sum, dy + k * 128, x + k * 128, (before + 1) | k);
    products_commit();
    if (before >= 0) {
      products_wait<1>();
      ring.give_back(before);
    }
    before = cursor.stage;
  }
  products_wait<0>();
  keep_sums(p, row, block, split, group, sum);
}
