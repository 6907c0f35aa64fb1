// Convolutions as matrix products whose left factor is gathered on the way to shared memory (implicit GEMM), on the
// tensor cores of sm_80 and later: float16, bfloat16, and float32 where TF32 is allowed.
//
// The equations and the walk over taps are those of convolution_implicit.cu, and so are shapes, splits and what follows.
//
// Shapes    channels side by side in packs of 16 bytes: images and outputs (n, d, h, w, c); weights with the channels that
//           are summed over side by side, for which the front end turns those of a data gradient.
// Plan      mma_gather    a block of 4 warps makes ROWS x COLUMNS results, a warp a quarter of them. Slices are 64 bytes of
//                         the channels of one tap; four of them are in flight (cp.async, which brings zeros for what lies
//                         outside). Chunks of 16 bytes are exchanged in shared memory so that neither copies nor
//                         ldmatrix meet a bank twice. Sums leave through shared memory.
//           mma_filter    likewise over slices of positions, both operands turned as they are loaded (ldmatrix.trans; of
//                         TF32 word by word).
// Numerics  float32 sums in the order of the tensor core within 32 bytes of channels, then taps outside and channels inside
//           in ascending order. TF32 factors are rounded to nearest. Infinite weights over padding as in
//           convolution_implicit.cu.
// Cost      as there, with 128 (64) rows and columns a block.
// Measured  NVIDIA H200, 2026-11-28, tools/bench.py, TF32, 64 images, channels last, us, cuDNN in brackets, forward, data and
//           filter: 128@28 3x3 139 (57), 143 (56), 163 (106); 256@14 3x3 153 (56), 156 (60), 170 (105); 64@56 3x3 177 (75),
//           184 (82), 474 (163); 256->128@56 1x1 163 (81), 242 (94), 154 (94). 16 to 107 TFLOP/s of the 413 of a product by
//           cuBLASLt. What keeps it there was not profiled: on Hopper others take these since.
// Limits    offsets below 2^30 elements.
#include "convolution_filter.cuh"
#include "convolution_gather.cuh"
#include "mma.cuh"

constexpr int THREADS = 128, STAGES = 4, LINE_BYTES = 64;  // of a slice, a row or column

// Chunk of 16 bytes of a line: lines of 64 bytes, two to a cycle of all banks.
DEVICE int chunk_at(int line, int chunk) { return line * LINE_BYTES + (chunk ^ (line >> 1 & 3)) * 16; }

// Warps and results of a block, and its sums in shared memory once the slices are done with.
template <int ROWS, int COLUMNS> struct Quarters {
  static constexpr int DOWN = ROWS / 2 / 16, ACROSS = COLUMNS / 2 / 8, PAD = 8, STRIDE = COLUMNS + PAD;
  static DEVICE int row() { return threadIdx.x / 64 * (ROWS / 2); }
  static DEVICE int column() { return threadIdx.x / 32 % 2 * (COLUMNS / 2); }
  static DEVICE void put(float* sums, const float (&sum)[DOWN][ACROSS][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
      for (int j = 0; j < ACROSS; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float* to = sums + (row() + 16 * i + lane / 4 + 8 * half) * STRIDE + column() + 8 * j + lane % 4 * 2;
          const float pair[2] = {sum[i][j][2 * half], sum[i][j][2 * half + 1]};
          store(to, 0, rounded<float>(pair));
        }
  }
  struct Same {
    DEVICE int operator()(int at) const { return at; }
  };
  template <class Finish>
  static DEVICE void hand_over(float* sums, const float (&sum)[DOWN][ACROSS][4], const Finish& finish, int rows,
                               int columns) {
    __syncthreads();
    put(sums, sum);
    __syncthreads();
    deliver<ROWS, COLUMNS, STRIDE, THREADS>(sums, finish, rows, columns, Same());
  }
};

template <class T> DEVICE void round_factors(u32* words, int count) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < count; ++i) words[i] = rounded_to_tf32(words[i]);
  }
}

// ---- forward and data -----------------------------------------------------------------------------------------------

// The slice of a stage: rows, then columns, 64 bytes each.
template <class T, int ROWS, int COLUMNS>
DEVICE void multiply_lines(float (&sum)[Quarters<ROWS, COLUMNS>::DOWN][Quarters<ROWS, COLUMNS>::ACROSS][4],
                           const u8* stage) {
  typedef Quarters<ROWS, COLUMNS> Place;
  const int lane = threadIdx.x % 32;
  const int row = Place::row() + lane % 16, column = Place::column() + lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < LINE_BYTES / 32; ++k) {
    u32 left[Place::DOWN][4], right[Place::ACROSS / 2][4];
#pragma unroll
    for (int i = 0; i < Place::DOWN; ++i) {
      read_matrices(left[i], stage + chunk_at(row + 16 * i, 2 * k + lane / 16));
      round_factors<T>(left[i], 4);
    }
#pragma unroll
    for (int j = 0; j < Place::ACROSS / 2; ++j) {
      read_matrices(right[j], stage + ROWS * LINE_BYTES + chunk_at(column + 16 * j, 2 * k + lane / 8 % 2));
      round_factors<T>(right[j], 4);
    }
#pragma unroll
    for (int i = 0; i < Place::DOWN; ++i)
#pragma unroll
      for (int j = 0; j < Place::ACROSS; ++j)
        add_product(sum[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1], T());
  }
}

// Brings slices to shared memory: a thread has one chunk of each 32nd row and column.
template <class T, int ROWS, int COLUMNS> struct LineCopier {
  static constexpr int LANES = 16 / sizeof(T), DEPTH = LINE_BYTES / sizeof(T);
  static constexpr int EACH_ROWS = ROWS / 32, EACH_COLUMNS = COLUMNS / 32;
  int now[EACH_ROWS];  // offset of the row in the source under the tap, NOWHERE outside
  Tap tap;
  int channel, w_now;

  static DEVICE int line(int i) { return i * 32 + threadIdx.x / 4; }
  DEVICE void start(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, const Origin* origins) {
    tap = tap_of(s.begin / s.chunks, s.walks), channel = s.begin % s.chunks * DEPTH;
    aim(p, s, origins);
  }
  DEVICE void aim(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, const Origin* origins) {
#pragma unroll
    for (int i = 0; i < EACH_ROWS; ++i) {
      int offset;
      now[i] = meets(origins[line(i)], tap, s.walks, p.d, p.h, p.w_axis, offset) ? offset : NOWHERE;
    }
    w_now = offset_of(tap, s.walks);
  }
  DEVICE void bring(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, u8* stage, int column_0) const {
    const int chunk = threadIdx.x % 4, c = channel + chunk * LANES;
#pragma unroll
    for (int i = 0; i < EACH_ROWS; ++i) {
      const bool there = now[i] != NOWHERE && c < p.terms;
      copy_async_or_zeros(stage + chunk_at(line(i), chunk), there ? s.source + now[i] + c : s.source, there);
    }
#pragma unroll
    for (int i = 0; i < EACH_COLUMNS; ++i) {
      const int n = column_0 + line(i);
      const bool there = n < p.lines && c < p.terms;
      const T* from = there ? s.w + w_now + (i64)n * p.w_line + c : s.w;
      copy_async_or_zeros(stage + ROWS * LINE_BYTES + chunk_at(line(i), chunk), from, there);
    }
  }
  DEVICE void move_on(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, const Origin* origins) {
    channel += DEPTH;
    if (channel < p.terms) return;
    channel = 0;
    advance(tap, s.walks);
    aim(p, s, origins);
  }
};

template <class T, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(THREADS, 2) mma_gather(const ImplicitGatherParams<T> p) {
  if constexpr (!TENSOR_CORES) return;
  typedef Quarters<ROWS, COLUMNS> Place;
  typedef LineCopier<T, ROWS, COLUMNS> Copier;
  constexpr int STAGE_BYTES = (ROWS + COLUMNS) * LINE_BYTES;
  DYNAMIC_SHARED(u8, shared);
  __shared__ Origin origins[ROWS];
  __shared__ int result_at[ROWS], residual_at[ROWS];
  const auto s = slices_of<T, Copier::DEPTH>(p);
  const int tile = blockIdx.x / p.column_tiles;
  const int row_0 = tile * ROWS, column_0 = ((int)blockIdx.x - tile * p.column_tiles) * COLUMNS;
  if (row_0 >= s.rows) return;
  locate_rows<ROWS, THREADS>(p, s, row_0, result_at, residual_at);
  for (int i = threadIdx.x; i < ROWS; i += THREADS) {
    origins[i] = Origin{0, NOWHERE, NOWHERE, NOWHERE};
    if (row_0 + i < s.rows)
      origins[i] = origin_of(row_of(row_0 + i, s.walks), s.walks, p.d, p.h, p.w_axis, p.source_outer);
  }
  __syncthreads();
  float sum[Place::DOWN][Place::ACROSS][4] = {};
  const int slices = s.end - s.begin;
  if (slices > 0) {
    Copier copier;
    copier.start(p, s, origins);
#pragma unroll 1
    for (int at = 1 - STAGES; at < slices; ++at) {
      if (at >= 0) {
        await_copies<STAGES - 2>();
        __syncthreads();
      }
      const int next = at + STAGES - 1;
      if (next < slices) {
        copier.bring(p, s, shared + next % STAGES * STAGE_BYTES, column_0);
        if (next + 1 < slices) copier.move_on(p, s, origins);
      }
      commit_copies();
      if (at >= 0) multiply_lines<T, ROWS, COLUMNS>(sum, shared + at % STAGES * STAGE_BYTES);
    }
  }
  bool not_a_number = false;
#pragma unroll
  for (int i = 0; i < Place::DOWN; ++i)
#pragma unroll
    for (int j = 0; j < Place::ACROSS; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) not_a_number |= sum[i][j][k] != sum[i][j][k];
  const bool doubtful = is_doubtful<COLUMNS, THREADS>(p, s, column_0, not_a_number);
  const auto finish = finish_of(p, s, result_at, residual_at, row_0, column_0, doubtful);
  Place::hand_over(reinterpret_cast<float*>(shared), sum, finish, s.rows - row_0, p.lines - column_0);
}

// ---- filter ---------------------------------------------------------------------------------------------------------

// The slice of a stage: positions of dy, then of x, WIDTH channels each. Chunks are exchanged so that eight positions of
// one chunk (of TF32: four positions of two chunks) meet all banks.
template <class T, int WIDTH> DEVICE int place_at(int position, int chunk) {
  const int exchanged = sizeof(T) == 2 ? position & 7 : (position & 3) * 2;
  return position * WIDTH * (int)sizeof(T) + (chunk ^ exchanged) * 16;
}
// The fragments of 16 channels and 32 bytes of positions: of the left factor, or of two right ones.
template <class T, int WIDTH> DEVICE void load_left(u32 (&to)[4], const u8* stage, int position, int channel) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
    read_matrices_transposed(to, stage + place_at<T, WIDTH>(position + lane % 8 + lane / 16 * 8, channel / 8 + lane / 8 % 2));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = position + lane % 4 + i / 2 * 4, c = channel + lane / 4 + i % 2 * 8;
      to[i] = rounded_to_tf32(*(const u32*)(stage + place_at<T, WIDTH>(at, c / 4) + c % 4 * 4));
    }
  }
}
template <class T, int WIDTH> DEVICE void load_right(u32 (&to)[4], const u8* stage, int position, int channel) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
    read_matrices_transposed(to, stage + place_at<T, WIDTH>(position + lane % 16, channel / 8 + lane / 16));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = position + lane % 4 + i % 2 * 4, c = channel + lane / 4 + i / 2 * 8;
      to[i] = rounded_to_tf32(*(const u32*)(stage + place_at<T, WIDTH>(at, c / 4) + c % 4 * 4));
    }
  }
}

template <class T, int ROWS, int COLUMNS>
DEVICE void multiply_positions(float (&sum)[Quarters<ROWS, COLUMNS>::DOWN][Quarters<ROWS, COLUMNS>::ACROSS][4],
                               const u8* stage) {
  typedef Quarters<ROWS, COLUMNS> Place;
  constexpr int DEPTH = LINE_BYTES / sizeof(T);
  const u8* right_stage = stage + ROWS * LINE_BYTES;
#pragma unroll
  for (int k = 0; k < DEPTH; k += DEPTH / 2) {
    u32 left[Place::DOWN][4], right[Place::ACROSS / 2][4];
#pragma unroll
    for (int i = 0; i < Place::DOWN; ++i) load_left<T, ROWS>(left[i], stage, k, Place::row() + 16 * i);
#pragma unroll
    for (int j = 0; j < Place::ACROSS / 2; ++j) load_right<T, COLUMNS>(right[j], right_stage, k, Place::column() + 16 * j);
#pragma unroll
    for (int i = 0; i < Place::DOWN; ++i)
#pragma unroll
      for (int j = 0; j < Place::ACROSS; ++j)
        add_product(sum[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1], T());
  }
}

// Chunks of one operand's positions: WIDTH channels from `channel` on, of which there are `channels`.
template <class T, int WIDTH>
DEVICE void bring_positions(u8* stage, const T* from, const Position* table, bool of_x, int channel, int channels) {
  constexpr int DEPTH = LINE_BYTES / sizeof(T), LANES = 16 / sizeof(T), CHUNKS = WIDTH / LANES;
#pragma unroll
  for (int i = 0; i < DEPTH * CHUNKS / THREADS; ++i) {
    const int at = i * THREADS + threadIdx.x, position = at / CHUNKS, chunk = at % CHUNKS;
    const Position here = table[position];
    const int c = channel + chunk * LANES;
    const bool there = here.x != NOWHERE && c < channels;
    copy_async_or_zeros(stage + place_at<T, WIDTH>(position, chunk), there ? from + (of_x ? here.x : here.y) + c : from, there);
  }
}

template <class T, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(THREADS, 2) mma_filter(const ImplicitFilterParams<T> p) {
  if constexpr (!TENSOR_CORES) return;
  typedef Quarters<ROWS, COLUMNS> Place;
  constexpr int STAGE_BYTES = (ROWS + COLUMNS) * LINE_BYTES, DEPTH = LINE_BYTES / sizeof(T);
  DYNAMIC_SHARED(u8, shared);
  __shared__ Position table[TABLE];
  const FilterTile tile = filter_tile_of(p, ROWS, COLUMNS);
  const T* dy = p.dy + (i64)tile.group * p.lines * p.y_channel;
  const T* x = p.x + (i64)tile.group * p.columns * p.x_channel;
  const int slices = (tile.end - tile.begin + DEPTH - 1) / DEPTH;
  float sum[Place::DOWN][Place::ACROSS][4] = {};
#pragma unroll 1
  for (int at = 1 - STAGES; at < slices; ++at) {
    if (at >= 0) {
      await_copies<STAGES - 2>();
      __syncthreads();
    }
    const int next = at + STAGES - 1, offset = next * DEPTH % TABLE;
    if (next < slices) {
      if (offset == 0) {
        __syncthreads();
        for (int i = threadIdx.x; i < TABLE; i += THREADS)
          table[i] = position_of(p, tile.tap, tile.begin + next * DEPTH + i, tile.end);
        __syncthreads();
      }
      u8* stage = shared + next % STAGES * STAGE_BYTES;
      bring_positions<T, ROWS>(stage, dy, table + offset, false, tile.row_0, p.lines);
      bring_positions<T, COLUMNS>(stage + ROWS * LINE_BYTES, x, table + offset, true, tile.column_0, p.columns);
    }
    commit_copies();
    if (at >= 0) multiply_positions<T, ROWS, COLUMNS>(sum, shared + at % STAGES * STAGE_BYTES);
  }
  await_copies<0>();
  const FilterFinish<T> finish = filter_finish_of(p, tile);
  Place::hand_over(reinterpret_cast<float*>(shared), sum, finish, p.lines - tile.row_0, p.columns - tile.column_0);
}
