// A whole fully connected layer in one launch on Hopper: y = act(x w^T + b), and z = x w^T + b where it is kept.
//
// x (m, k), w (n, k), y and z (m, n), row-major, of type T, each described by a tensor map; b (n) of T, or null; z may be
// null. float32 is multiplied in TF32. Its gradients are fc.cu's and the products'.
//
// Plan: persistent blocks, one a multiprocessor, of two consumer warpgroups and one thread of a third that asks the copy
//   engine for tiles. A stage is 128 bytes along k of 128 rows of x and of w; STAGES are on their way. The consumers take
//   tiles of 128 x 128 in turn ("ping-pong"): while one multiplies, the other adds the bias, applies the activation and
//   stores, so that the activation costs time of its own only where it takes longer than a product. Tiles go in groups of
//   `group` tiles of rows, so that what is read again is in the L2.
// Numerics: products summed in float by the tensor cores in the order of k; the activation takes the sum before it is
//   rounded, the result is rounded once. z is the same sum, rounded. The order depends on k alone: the same bits each time.
//   The copy engine rounds float32 to TF32 on its way.
// Cost: 2 m n k flops. Bytes: each tile of x is read n / 128 times, of w m / 128 times, mostly from the L2; y once.
// Limits: sm_90a; 16-byte aligned arrays and rows; extents below 2^31.
// Measured on an NVIDIA H200, 2026-11-28, z of a spread of 1, beside cuBLASLt (relu: its epilogue; else its product and
//   fc.cu's pass), in microseconds, rows x in x out, L2 flushed between:
//     bfloat16 swish   8192x784x2048 54 / 66     16384x1024x4096 201 / 258   24000x512x2816 135 / 180
//     bfloat16 relu    8192x784x2048 52.6 / 52.0 7000x4096x4096 321 / 294    48000x2048x1024 296 / 275
//     float16 tanh     16384x1024x4096 214 / 261 4096x4096x16384 802 / 870
//     tf32 tanh        8192x784x2048 102 / 118   16384x1024x4096 425 / 485   7133x2560x2560 268 / 288
//   Predicted for a pass that is hidden: the product's time. Where it falls short: two products of 64 x 128 read
//   160 bytes of shared memory a cycle, copies included, of which there are 128, so the tensor cores idle a fifth of the
//   time. With k of 4,096 and more that makes up for the pass: 8192x8192x8192 of bfloat16 with swish 1496 / 1443.
//   Beside the library's epilogue, which hides the activation as well, that is the whole difference: relu 24000x1536x4608
//   501 / 453; so the front end takes that where there is one (ops/fc/hopper.py).
//   A wave that is not full leaves multiprocessors idle (ops/fc/hopper.py): 1500x1024x3072, 288 tiles, 30 / 28. Fewer
//   tiles than multiprocessors lose to the library's smaller tiles and shared sums: 512x512x512 relu 5.4 / 3.5,
//   128x4096x4096 28 / 18. Sharing k out in clusters of 2 to 8 blocks was tried for those: 128x4096x4096 26 to 41
//   against 19 (clusters of 4 blocks with all shared memory fit 30 times, not 32).
//   Outputs whose rows are off 16 bytes, for which cuBLASLt has slow kernels alone: bfloat16 relu 9124x2048x5124 304 / 767,
//   700x2048x5124 37 / 71, 8457x1760x35 24 / 49. Rows of k off 128 bytes make a box of the copy engine take two lines for
//   one: 7000x1760x1760 relu 81 / 67 (58 at 750 TFLOP/s; 7000x2048x2048 82 for 78).
//   In a loop over pieces that is not unrolled, as float32 has it, bfloat16 16384x1024x4096 took 228 with swish and 201
//   with relu.
#include "activation.cuh"
#include "hopper.cuh"
#include "vec.cuh"

template <class T> struct FcHopperParams {
  const T* x;
  const T* w;
  T* y;
  T* z;
  const T* bias;
  acc_t<T> c0, c1;
  i64 rows, columns, k_blocks, row_tiles, column_tiles, group;
  // Whether the copy engine takes y and z: their rows begin on multiples of 16 bytes.
  DEVICE bool mapped() const { return columns % (16 / (int)sizeof(T)) == 0; }
};

constexpr int TILE = 128, STAGES = 6, OPERAND_BYTES = TILE * SWIZZLED_ROW, STAGE_BYTES = 2 * OPERAND_BYTES;
// What leaves at once: 64 rows of 128 bytes. A consumer has two of them on their way.
constexpr int PIECE_ROWS = 64, PIECE_BYTES = PIECE_ROWS * SWIZZLED_ROW, CONSUMERS = 2;
template <class T> constexpr int PIECE_COLUMNS = SWIZZLED_ROW / sizeof(T);
template <class T> constexpr int PIECE_VALUES = PIECE_COLUMNS<T> / 2;  // of a thread

// The block's shared memory: stages, pieces, and two barriers a stage.
struct Layout {
  u32 stages, pieces, barriers;
  DEVICE explicit Layout(const void* raw) {
    stages = (shared_address(raw) + 1023u) & ~1023u;
    pieces = stages + STAGES * STAGE_BYTES;
    barriers = pieces + CONSUMERS * 2 * PIECE_BYTES;
  }
  DEVICE u32 x(int stage) const { return stages + stage * STAGE_BYTES; }
  DEVICE u32 w(int stage) const { return x(stage) + OPERAND_BYTES; }
  DEVICE u32 full(int stage) const { return barriers + 8 * stage; }
  DEVICE u32 empty(int stage) const { return barriers + 8 * (STAGES + stage); }
};

// A place in the ring of stages.
struct Cursor {
  int stage;
  u32 parity;
  DEVICE explicit Cursor(i64 steps) : stage((int)(steps % STAGES)), parity((u32)(steps / STAGES & 1)) {}
  DEVICE void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1u;
  }
};

// Where a tile lies: groups of rows one after the other, in each the tiles of rows first.
struct TileAt {
  int row, column;
  template <class T> DEVICE TileAt(const FcHopperParams<T>& p, i64 tile) {
    const i64 of_group = p.group * p.column_tiles, group = tile / of_group, first = group * p.group;
    const i64 rows = p.row_tiles - first < p.group ? p.row_tiles - first : p.group, at = tile - group * of_group;
    row = (int)(first + at % rows) * TILE;
    column = (int)(at / rows) * TILE;
  }
};

DEVICE void init_barriers(const Layout& at) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(at.full(stage), 1);
      barrier_init(at.empty(stage), WARPGROUP / 32);
    }
    barriers_ready();
  }
  __syncthreads();
}

// The thread that asks for tiles, always as far ahead as there are stages.
template <class T>
DEVICE void fetch_tiles(const Layout& at, const TensorMap& x, const TensorMap& w, const FcHopperParams<T>& p) {
  Cursor cursor(0);
  for (i64 tile = blockIdx.x; tile < p.row_tiles * p.column_tiles; tile += gridDim.x) {
    const TileAt place(p, tile);
    for (int block = 0; block < (int)p.k_blocks; ++block, cursor.next()) {
      barrier_wait(at.empty(cursor.stage), cursor.parity ^ 1u);
      barrier_expect(at.full(cursor.stage), STAGE_BYTES);
      load_tile(at.x(cursor.stage), x, block * PIECE_COLUMNS<T>, place.row, at.full(cursor.stage));
      load_tile(at.w(cursor.stage), w, block * PIECE_COLUMNS<T>, place.column, at.full(cursor.stage));
    }
  }
}

// Adds up the products of one block along k, in steps of 32 bytes.
template <class T>
DEVICE void multiply_block(const Layout& at, const Cursor& cursor, int keep, float (&sum)[2][64]) {
  barrier_wait(at.full(cursor.stage), cursor.parity);
  const u64 x = operand(at.x(cursor.stage)), w = operand(at.w(cursor.stage));
  products_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int half = 0; half < 2; ++half) multiply_64x128<T>(sum[half], x + half * 512 + k * 2, w + k * 2, keep | k);
  products_commit();
}

DEVICE void give_back(const Layout& at, int stage) {
  if (threadIdx.x % 32 == 0) barrier_arrive(at.empty(stage));
}

// One product of 128 x 128 over all of k. A stage is given back once the products of the next are under way; the last one,
// which is returned, is not yet.
template <class T> DEVICE int multiply(const Layout& at, Cursor cursor, int k_blocks, float (&sum)[2][64]) {
  int before = 0;
  for (int block = 0; block < k_blocks; ++block, cursor.next()) {
    multiply_block<T>(at, cursor, block, sum);
    if (block > 0) {
      products_wait<1>();
      give_back(at, before);
    }
    before = cursor.stage;
  }
  return before;
}

// This thread's part of a piece of 64 rows, swizzled.
template <class T> DEVICE void put_piece(u32 piece, const float (&v)[PIECE_VALUES<T>]) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 % 4 * 16;
  if constexpr (sizeof(T) == 2) {
    const int matrix = lane / 8, row = first + (matrix & 1) * 8 + lane % 8;
#pragma unroll
    for (int j = 0; j < 8; j += 2)
      store_matrices(piece + row * SWIZZLED_ROW + (((j + matrix / 2) ^ (row & 7)) << 4), two<T>(v[4 * j], v[4 * j + 1]),
                     two<T>(v[4 * j + 2], v[4 * j + 3]), two<T>(v[4 * j + 4], v[4 * j + 5]),
                     two<T>(v[4 * j + 6], v[4 * j + 7]));
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first + half * 8 + lane / 4, chunk = 2 * j + lane % 4 / 2;
        store_pair(piece + row * SWIZZLED_ROW + ((chunk ^ (row & 7)) << 4) + lane % 2 * 8, v[4 * j + 2 * half],
                   v[4 * j + 2 * half + 1]);
      }
  }
}

// A piece to rows that the copy engine does not take: a warp stores a row of it at once.
template <class T> DEVICE void copy_piece(const FcHopperParams<T>& p, T* to, u32 piece, int column, int row) {
  constexpr int EACH = 4 / sizeof(T);
  const int lane = threadIdx.x % 32, own = column + lane * EACH;
  if (own >= p.columns) return;
  for (int r = threadIdx.x / 32 % 4; r < PIECE_ROWS && row + r < p.rows; r += 4) {
    pack<T, EACH> v;
    v.bits = load_word(piece + r * SWIZZLED_ROW + ((lane / 4 ^ (r & 7)) << 4) + lane % 4 * 4);
    const i64 at = ((i64)row + r) * p.columns + own;
    if (p.columns % EACH == 0) {
      store(to, at / EACH, v);
    } else {
      to[at] = v.lane[0];
      if (own + 1 < p.columns) to[at + 1] = v.lane[EACH - 1];
    }
  }
}

// Sends pieces on their way from two buffers in turn.
struct Outlet {
  u32 buffers;
  int consumer, turn;
  template <class T>
  DEVICE void send(const FcHopperParams<T>& p, const TensorMap& map, T* to, const float (&v)[PIECE_VALUES<T>], int column,
                   int row) {
    const u32 piece = buffers + turn * PIECE_BYTES;
    const bool speaker = threadIdx.x % WARPGROUP == 0;
    turn ^= 1;
    if (speaker) stores_read<1>();
    named_sync(1 + consumer, WARPGROUP);
    put_piece<T>(piece, v);
    publish_shared();
    named_sync(1 + consumer, WARPGROUP);
    if (!p.mapped())
      copy_piece(p, to, piece, column, row);
    else if (speaker)
      store_tile(map, column, row, piece);
  }
};

// The bias of this thread's columns among COLUMNS.
template <class T, int COLUMNS> struct Bias {
  pack<T, 2> pairs[COLUMNS / 8];
  DEVICE Bias(const FcHopperParams<T>& p, int column) {
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
      const i64 own = column + 8 * j + threadIdx.x % 4 * 2;
      pairs[j].bits = 0;
      if (!p.bias || own >= p.columns) continue;
      if (own + 1 < p.columns)
        pairs[j] = load<2>(p.bias, own / 2);
      else
        pairs[j].lane[0] = p.bias[own];
    }
  }
  // To the piece whose pairs begin at `first`.
  DEVICE void add(float (&v)[PIECE_VALUES<T>], int first) const {
#pragma unroll
    for (int i = 0; i < PIECE_VALUES<T>; ++i) v[i] += to_acc(pairs[first + i / 4].lane[i & 1]);
  }
};

// Where the pieces of a tile go, and what is done to them.
template <class T, class Act> struct Finish {
  static constexpr int ACROSS = TILE / PIECE_COLUMNS<T>, PIECES = 2 * ACROSS, VALUES = PIECE_VALUES<T>;
  Outlet& outlet;
  const TensorMap &y, &z;
  const FcHopperParams<T>& p;
  TileAt place;
  DEVICE int column(int piece) const { return place.column + piece % ACROSS * PIECE_COLUMNS<T>; }
  DEVICE int row(int piece) const { return place.row + piece / ACROSS * PIECE_ROWS; }
  static DEVICE void take(float (&v)[VALUES], const float (&sum)[2][64], int piece) {
#pragma unroll
    for (int i = 0; i < VALUES; ++i) v[i] = sum[piece / ACROSS][piece % ACROSS * VALUES + i];
  }
  DEVICE void put(int piece, const float (&v)[VALUES]) const {
    const Act act{p.c0, p.c1};
    if (p.z) outlet.send(p, z, p.z, v, column(piece), row(piece));
    float result[VALUES];
    forward_all(act, v, result);
    outlet.send(p, y, p.y, result, column(piece), row(piece));
  }
};

// Bias, activation and stores of a tile, piece by piece, once its products are done; `release` is called then. In 16 bits
// the bias is asked for while they are under way.
template <class T, class Act, class Release>
DEVICE void finish(const Finish<T, Act>& to, const float (&sum)[2][64], Release release) {
  typedef Finish<T, Act> F;
  if constexpr (sizeof(T) == 2) {
    const Bias<T, TILE> bias(to.p, to.place.column);
    products_wait<0>();
    release();
#pragma unroll
    for (int piece = 0; piece < F::PIECES; ++piece) {
      float v[F::VALUES];
      F::take(v, sum, piece);
      bias.add(v, piece % F::ACROSS * (F::VALUES / 4));
      to.put(piece, v);
    }
  } else {
    // Not unrolled, so that an activation of 50 instructions is compiled once and not 128 times: a piece's sums, whose
    // registers have no index, are copied under a branch that all threads share.
    products_wait<0>();
    release();
#pragma unroll 1
    for (int piece = 0; piece < F::PIECES; ++piece) {
      const Bias<T, PIECE_COLUMNS<T>> bias(to.p, to.column(piece));
      float v[F::VALUES];
#pragma unroll
      for (int k = 0; k < F::PIECES; ++k)
        if (piece == k) F::take(v, sum, k);
      bias.add(v, 0);
      to.put(piece, v);
    }
  }
}

template <class T, class Act>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    fc_forward_ping_pong(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,
                         const __grid_constant__ TensorMap y, const __grid_constant__ TensorMap z,
                         const FcHopperParams<T> p) {
  extern __shared__ unsigned char raw[];
  const Layout at(raw);
  const int group = threadIdx.x / WARPGROUP, k_blocks = (int)p.k_blocks;
  const i64 tiles = p.row_tiles * p.column_tiles;
  init_barriers(at);
  if (group == CONSUMERS) {
    fewer_registers<40>();
    if (threadIdx.x % WARPGROUP == 0) fetch_tiles(at, x, w, p);
    return;
  }
  more_registers<232>();
  // Barrier 4 + g lets consumer g multiply; the other one opens it. The first tile is consumer 0's.
  Outlet outlet{at.pieces + group * 2 * PIECE_BYTES, group, 0};
  if (group == 1) named_arrive(4, CONSUMERS * WARPGROUP);
  i64 turn = 0;
  for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x, ++turn) {
    if ((turn & 1) != group) continue;
    float sum[2][64];
    named_sync(4 + group, CONSUMERS * WARPGROUP);
    const int last = multiply<T>(at, Cursor(turn * k_blocks), k_blocks, sum);
    named_arrive(4 + (group ^ 1), CONSUMERS * WARPGROUP);
    finish(Finish<T, Act>{outlet, y, z, p, TileAt(p, tile)}, sum, [&] { give_back(at, last); });
  }
  if (threadIdx.x % WARPGROUP == 0) stores_done();
}
