// Convolutions of two spatial axes on Hopper, forward and in the data, as products of pixels and filters.
//
// Forward   y[n, p, q, k] = act(scale[k] (alpha1 sum_{r, s, c} x[n, h(p, r), w(q, s), c] w[k, r, s, c] + b[k]) +
//           shift[k] + alpha2 residual[n, p, q, k]) with h(p, r) = p stride - padding + r dilation, w(q, s) likewise
// Data      dx[n, h, w, c] = alpha1 sum_{k, r, s} dy[n, p, q, k] w[k, r, s, c] + b[c] + alpha2 dx[n, h, w, c] over all
//           that see (h, w): for pixels of one residue (h mod stride, w mod stride) this is a convolution of dy of
//           stride 1 with every stride-th tap backwards. Each residue is a phase; all are in the one launch.
//
// Shapes    x (n, h, w, c), w (k, r, s, c), y (n, p, q, k) of T, dense, channels multiples of 16 bytes; each described
//           by a tensor map. T is float16, bfloat16, or float, multiplied in TF32, to which the copy engine rounds. For
//           the data gradient w of float has k side by side, which the front end sees to: floats cannot be multiplied
//           across. b of T, scale and shift of float; b, scale, shift and residual may be null.
// Plan      persistent blocks, one a multiprocessor, of two consumer warpgroups and one thread of a third that asks the
//           copy engine for tiles. A stage is 64 channels of one tap: of pixels, gathered by the copy engine (im2col),
//           and of filters; for the data gradient filters are [64 k][64 c] boxes and multiplied across, so that no copy
//           of them is made. Two schedules: both consumers share a tile, or take tiles in turn ("ping-pong") so that
//           one's epilogue hides behind the other's products. Two assignments: pixels are the 64 rows of a product and
//           channels its up to 256 columns, or swapped, for few channels out. Phases of equal size are mixed, so that
//           tiles of many taps and of few run side by side. The residual, or the old result where beta blends it in, is
//           brought to where the result is put together, while the other consumer multiplies; tiles of 256 x 64 have room
//           for all of it. Groups of whole tiles of channels see their own channels in alone. Activations but the identity
//           and relu are instantiations of their own.
// Numerics  products summed in float by the tensor cores in the order of taps and channels, the same bits each time;
//           one rounding at the end. Padding is multiplied as zeros: an infinite weight over it makes a NaN.
// Cost      2 K C taps flops a pixel; x is read once for each tap, from the L2 but for the first time.
// Limits    sm_90a; 16-byte aligned arrays; 16-bit types for groups and such activations; strides to 8 and windows that the
//           copy engine can describe (ops/convolution/hopper.py).
// Measured on an NVIDIA H200, 2026-11-28, bfloat16, batch 256, L2 flushed between, microseconds, cuDNN 9 of the same
//   run in brackets: forward 3x3 128@28 84 (89), 256@14 80 (86), 512@7 79 (83), of stride 2 128@56 93 (94) and 256@28
//   82 (89), 1x1 of stride 2 1024-2048@14 74 (79); data 88 (94), 82 (83), 80 (82), 141 (146), 106 (115), 109 (113). 84
//   us are 705 TFLOP/s. Predicted: 3x3 at 128 channels reads each pixel nine times from the L2, which was 69 % busy
//   beside tensor cores that were 80 % busy in a profile of the design's first form; the clock, 1.6 GHz under load, has
//   the rest. TF32, 64 images: forward 128@28 51 (66), 256@14 51 (55), 512@7 54 (54), 64@56 76 (80), of stride 2 128@56 61
//   (65) and 256@28 54 (57), 1x1 of stride 2 1024-2048@14 52 (56); data with the copy of the filters 53 (69), 60 (62), 61
//   (62), 76 (82), 76 (90), 60 (69), 76 (78); 8 images 64@224 135 (134) and 132 (135), as
//   patches are for 16-bit types alone. Batch 8 of 128@28 is 15.0 (12.9): 49 tiles on 132
//   multiprocessors.
//   What limits large layers, by count: a stage of 128 x 128 is 32 KB written to shared memory and 48 KB of it read by the
//   products in 512 cycles of the tensor cores, 160 bytes a cycle where 128 pass: 80 % of their rate, which is what profiles
//   show. With a residual (bias, residual, relu; cuDNN's fused form in brackets) 128@28 105 (100), of stride 2 128@56 115
//   (113) and 1024-2048@14 95 (90), where without one it is 89, 106 and 76: the residual costs what its 51 MB take of memory,
//   12 us, and more shared memory; by ncu (1024-2048) tensor cores 66 %, L2 61 %, memory 28 %, issue slots 28 % busy. Bytes
//   alone forbid less than 1.30, 1.49 and 1.27 times the bare time for 1x1 of 64-64, 64-256 and 256-128@56. Tried in one run
//   with that, 128@28 and 1024-2048@14: pieces of both consumers in one ring of four buffers, which two threads of their own
//   carry, 105 and 93, but 95 and 83 without a residual; the residual brought to the L2 while the products run 110 and 96
//   (64-256@56 339 for 245); tiles that both consumers share, 256x128 113 and 128x256 100.
#include "convolution_hopper_tile.cuh"

template <class T, int PHASES_> struct ConvHopper {
  static constexpr int PHASES = PHASES_;
  static constexpr bool SPLIT = false;
  static constexpr int K_BLOCK = CHUNK<T>;
  const T* x[PHASES];
  T* y[PHASES];
  const T* w;
  Following<T> following;
  int channels;        // out
  int channel_tiles;   // out
  int channel_blocks;  // in, of 64
  int group;           // channels, out and in, that see each other, whole tiles of them; 0 where all do
  int relu, mixed;     // flags: what follows ends in relu; phases take turns
  int matrix, dense;   // flags: the input, the result is a matrix of pixels and channels
  Phase phases[PHASES];
};
// As the host names them: one phase, and those of strides up to 2.
constexpr int DATA_PHASES = 4;
template <class T> using ConvHopperParams = ConvHopper<T, 1>;
template <class T> using ConvHopperDataParams = ConvHopper<T, DATA_PHASES>;

template <int PHASES> struct ConvMaps {
  TensorMap x[PHASES], y[PHASES], w, residual;
};

// One consumer's way out: pieces in buffers in turn, into which the residual has been brought where there is one.
template <class T, class Tile, class Act, int PHASES> struct Outlet {
  static constexpr int VALUES = PIECE_VALUES<T>, PIECES = Tile::ROWS * Tile::COLUMNS / 2 / VALUES;  // of a tile
  static constexpr int ACROSS = PIECES / Tile::ROWS;                                                 // along the columns
  static constexpr int DOWN = Tile::OWN_PIXELS / PIECE;                                              // along the pixels
  static constexpr int BUFFERS = Tile::BUFFERS;
  static_assert(PIECES % BUFFERS == 0, "a tile begins with the first buffer");
  const Layout<Tile>& at;
  const ConvMaps<PHASES>& maps;
  const ConvHopper<T, PHASES>& p;
  const Then<T, Act> then;
  const int consumer;
  u32 count = 0;      // of pieces so far
  Pixel pixels[DOWN];  // of the tile at hand, where they are wanted

  DEVICE Outlet(const Layout<Tile>& at, const ConvMaps<PHASES>& maps, const ConvHopper<T, PHASES>& p, int consumer)
      : at(at), maps(maps), p(p), consumer(consumer), then(p.following, p.relu != 0) {}
  DEVICE bool speaker() const { return threadIdx.x % WARPGROUP == 0; }
  static DEVICE int down(int k) { return Tile::SWAPPED ? k % ACROSS : k / ACROSS; }
  DEVICE int channel(const Place<Tile>& place, int k) const {
    return place.channel + (Tile::SWAPPED ? k / ACROSS : k % ACROSS) * CHUNK<T>;
  }
  DEVICE int pixel(const Place<Tile>& place, int k) const {
    return place.pixel + (Tile::PING_PONG ? 0 : consumer * Tile::OWN_PIXELS) + down(k) * PIECE;
  }
  // Before the products, behind which this takes no time.
  DEVICE void find_pixels(const Place<Tile>& place) {
    if (PHASES > 1 && !p.dense)
#pragma unroll
      for (int i = 0; i < DOWN; ++i)
        pixels[i] = Pixel(p.phases[place.phase], pixel(place, Tile::SWAPPED ? i : i * ACROSS));
  }
  // Asks for the residual of piece k of a tile, once nothing is on its way out of its buffer.
  DEVICE void bring(const Place<Tile>& place, int k) const {
    if (!then.residual || !speaker()) return;
    stores_read<0>();
    const u32 to = at.piece(consumer, k % BUFFERS), barrier = at.brought(consumer, k % BUFFERS);
    const Pixel& from = pixels[down(k)];
    barrier_expect(barrier, PIECE_BYTES);
    if (PHASES == 1 || p.dense)
      load_tile(to, maps.residual, channel(place, k), pixel(place, k), barrier);
    else  // the old result
      load_window(to, maps.y[place.phase], channel(place, k), from.w, from.h, from.n, 0, 0, barrier);
  }
  // Of a tile, what there are buffers for.
  DEVICE void bring_first(const Place<Tile>& place) const {
#pragma unroll
    for (int k = 0; k < BUFFERS; ++k) bring(place, k);
  }
  DEVICE void store(const Place<Tile>& place, int k) const {
    const Pixel& to = pixels[down(k)];
    if (PHASES == 1 || p.dense)
      store_tile(maps.y[0], channel(place, k), pixel(place, k), at.piece(consumer, k % BUFFERS));
    else
      store_window(maps.y[place.phase], channel(place, k), to.w, to.h, to.n, at.piece(consumer, k % BUFFERS));
  }
  // Piece k of a tile.
  DEVICE void send(const Place<Tile>& place, int k, float (&v)[VALUES]) {
    const u32 piece = at.piece(consumer, k % BUFFERS);
    if (then.residual) {
      barrier_wait(at.brought(consumer, k % BUFFERS), count / BUFFERS & 1u);
    } else {
      if (speaker()) stores_read<BUFFERS - 1>();
      named_sync(1 + consumer, WARPGROUP);
    }
    ++count;
    follow<T, Tile::SWAPPED>(then, piece, channel(place, k), p.channels, v);
    put_piece<T, Tile::SWAPPED>(piece, v);
    publish_shared();
    named_sync(1 + consumer, WARPGROUP);
    if (speaker()) store(place, k);
    if (k + BUFFERS < PIECES) bring(place, k + BUFFERS);
  }
  // All pieces of a tile; zeros where no tap sees its pixels. Those are not put among the sums: ptxas would not let products
  // overlap that others have written to.
  DEVICE void send_all(const Place<Tile>& place, bool seen, const float (&sum)[Tile::ROWS][Tile::COLUMNS / 2]) {
#pragma unroll
    for (int k = 0; k < PIECES; ++k) {
      float v[VALUES];
#pragma unroll
      for (int i = 0; i < VALUES; ++i) v[i] = PHASES == 1 || seen ? sum[k / ACROSS][k % ACROSS * VALUES + i] : 0.0f;
      send(place, k, v);
    }
  }
};

template <class T, class Tile, bool ACROSS, class Act, int PHASES>
DEVICE void convolve(const ConvMaps<PHASES>& maps, const ConvHopper<T, PHASES>& p) {
  extern __shared__ unsigned char raw[];
  const Layout<Tile> at(raw);
  const int group = threadIdx.x / WARPGROUP, tiles = p.phases[PHASES - 1].end;
  if (threadIdx.x == 0) {
    at.ring.init((Tile::PING_PONG ? 1 : CONSUMERS) * WARPGROUP / 32);
    for (int k = 0; k < CONSUMERS * Tile::BUFFERS; ++k) barrier_init(at.brought(k / Tile::BUFFERS, k % Tile::BUFFERS), 1);
    barriers_ready();
  }
  __syncthreads();
  if (group == CONSUMERS) {
    fewer_registers<40>();
    if (threadIdx.x % WARPGROUP == 0) fetch<Tile, ACROSS>(at, maps, p);
    return;
  }
  more_registers<232>();
  // Barrier 4 + g lets consumer g multiply; the other one opens it. The first tile is consumer 0's.
  if (Tile::PING_PONG && group == 1) named_arrive(4, CONSUMERS * WARPGROUP);
  Outlet<T, Tile, Act, PHASES> outlet(at, maps, p, group);
  u32 steps = 0;
  for (int tile = blockIdx.x, round = 0; tile < tiles; tile += gridDim.x, ++round) {
    const Place<Tile> place(p, tile, round);
    const Phase& f = p.phases[place.phase];
    const int blocks = f.taps_h * f.taps_w * p.channel_blocks;
    const Cursor<Tile::STAGES> cursor(steps);
    steps += blocks;
    if (Tile::PING_PONG && round % 2 != group) continue;
    outlet.find_pixels(place);
    float sum[Tile::ROWS][Tile::COLUMNS / 2];
    multiply_all<T, Tile, ACROSS>(at, cursor, blocks, outlet, place, sum);
    outlet.send_all(place, blocks > 0, sum);
  }
  if (threadIdx.x % WARPGROUP == 0) stores_done();
}

template <class T, int ROWS, int COLUMNS, int STAGES, int BUFFERS, bool PING_PONG, bool SWAPPED, class Act = Identity<T>>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    conv_hopper_forward(const __grid_constant__ ConvMaps<1> maps, const __grid_constant__ ConvHopperParams<T> p) {
  convolve<T, Tiling<ROWS, COLUMNS, STAGES, BUFFERS, PING_PONG, SWAPPED>, false, Act>(maps, p);
}

template <class T, int ROWS, int COLUMNS, int STAGES, int BUFFERS, bool PING_PONG, bool SWAPPED>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    conv_hopper_data(const __grid_constant__ ConvMaps<DATA_PHASES> maps,
                     const __grid_constant__ ConvHopperDataParams<T> p) {
  convolve<T, Tiling<ROWS, COLUMNS, STAGES, BUFFERS, PING_PONG, SWAPPED>, sizeof(T) == 2, Identity<T>>(maps, p);
}
