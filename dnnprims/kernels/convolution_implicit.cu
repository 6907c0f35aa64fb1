// Convolutions as matrix products whose left factor is gathered on the way to shared memory (implicit GEMM), with fused
// multiply-adds: float32 in IEEE arithmetic, float64, and what the tensor cores do not take.
//
// The equations are those of convolution.cu. Forward and data gradient are one kernel (convolution_implicit.cuh):
//   result[m, n] = sum over taps t and channels c of source[m at t, c] w[t, c, n]
// m over images and positions, n over the channels of the result. The filter gradient is
//   dw[k, t, c] = sum over images and positions o of dy[o, k] x[o at t, c]
//
// Shapes    as in convolution.cu: any steps, so that layouts and views are the same; offsets in 32 bits, as the front end
//           sees to.
// Plan      implicit_gather    a block makes ROWS x COLUMNS results, a thread 8 x 8 of them, 16 x 8 or 4 x 4. Slices of 8
//                              (16) channels of one tap pass through two buffers of shared memory, the next one in
//                              registers while one is multiplied. Loads take four elements along whichever axis of an
//                              operand has step 1. blockIdx.x the tiles, y groups, z residues and splits.
//           implicit_filter    likewise over slices of positions, for one tap; their offsets come from a table of
//                              128 positions in shared memory.
//           implicit_fold      adds the splits' sums in order and does what follows them. Where that is an activation
//                              other than relu it is left to conv_forward of convolution.cu, also of one split.
// Numerics  one fused multiply-add a term, taps outside and channels inside, in ascending order; splits are folded in
//           order. Both depend on shapes alone. What lies outside of the image is multiplied as 0; where that made a
//           NaN of an infinite weight, the block finds it (a NaN among the sums, and a weight that is not finite) and sums
//           anew without. The filter gradient leaves both factors out.
// Cost      2 K C / groups taps flops a position. From the caches, of each 64 (128) rows the weights and of each 64 (128)
//           columns the gathered rows.
// Measured  NVIDIA H200, 2026-11-28, float32, 64 images, channels last, us forward / data / filter, with cuDNN 9.19 beside:
//             3x3 64@56        449 / 447 / 451    428 / 298 / 592      3x3 128@28   439 / 432 / 375    219 / 216 / 265
//             3x3 s2 128@56    439 / 482 / 375    539 / 837 / 551      3x3 256@14   461 / 438 / 389    246 / 532 / 205
//             3x3 s2 256@28    464 / 468 / 389    498 / 593 / 546      3x3 512@7    466 / 450 / 433    515 / 578 / 195
//             1x1 s2 1024@14   411 / 412 / 359    465 / 588 / 399      (31 to 39 TFLOP/s; the multipliers' 67)
//           Behind with 3x3 and stride 1, where cuDNN does up to 76 TFLOP/s by direct count, more than the multipliers have:
//           it must save products by a transform (Winograd's), which would spread an infinity to its neighbours.
//           By ncu the multipliers are busy 53 to 61 % of the time and 73 to 79 % of the issue slots are taken: of a
//           slice's 660 instructions 512 multiply. In the other slots a warp is ready (0.8 to 1.4 wait for their turn) and
//           the dispatcher is not (0.2 to 0.3 an instruction). Shared memory 26 to 53 %, DRAM below 9 %. Besides, 392
//           blocks of 128 x 128 are 3 for each multiprocessor, the third alone.
//           Tried: 16 x 8 sums a thread in tiles of 128 x 128 (1024 of 1230 multiply): filter 390 for 375, forward 523 for
//           439, as 8 warps are all that a multiprocessor holds and 4 in the last round; in tiles of 128 x 64 with many
//           rounds 6 % faster, and taken there. Two and three splits to fill the last round: 485 and 530 for 439.
// Limits    offsets below 2^30 elements.
#include "convolution_ffma.cuh"
#include "convolution_filter.cuh"
#include "convolution_gather.cuh"

// ---- forward and data -----------------------------------------------------------------------------------------------

// Sixteen rows a thread where there are many rounds of blocks: so few warps are idle in a round that is not full.
template <class T, int ROWS, int COLUMNS> using GatherTile = Tile<T, ROWS, COLUMNS, (ROWS > COLUMNS ? 16 : 8)>;

// Brings slices from memory to registers, and from there to shared memory.
template <class T, int ROWS, int COLUMNS> struct Gatherer {
  typedef GatherTile<T, ROWS, COLUMNS> Place;
  static constexpr int DEPTH = Place::DEPTH, ROW_PACKS = Place::ROW_PACKS, COLUMN_PACKS = Place::COLUMN_PACKS;
  Origin origin[ROW_PACKS];
  int now[ROW_PACKS];
  bool met[ROW_PACKS];
  Four<T> left[ROW_PACKS], right[COLUMN_PACKS];
  Tap tap;
  int channel, w_now;

  static DEVICE int index(int i) { return i * Place::THREADS + threadIdx.x; }
  static DEVICE int row(int i, bool along) { return along ? index(i) / (DEPTH / 4) : index(i) % ROWS; }
  static DEVICE int row_term(int i, bool along) { return 4 * (along ? index(i) % (DEPTH / 4) : index(i) / ROWS); }
  // Along terms a pack has one column and four terms, else one term and four columns.
  static DEVICE int column(int i, bool along) {
    return along ? index(i) / (DEPTH / 4) : index(i) % (COLUMNS / 4) * 4;
  }
  static DEVICE int column_term(int i, bool along) {
    return along ? index(i) % (DEPTH / 4) * 4 : index(i) / (COLUMNS / 4);
  }
  DEVICE void start(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, int row_0) {
#pragma unroll
    for (int i = 0; i < ROW_PACKS; ++i) {
      const int m = row_0 + row(i, p.source_along_terms);
      origin[i] = Origin{0, NOWHERE, NOWHERE, NOWHERE};
      if (m < s.rows) origin[i] = origin_of(row_of(m, s.walks), s.walks, p.d, p.h, p.w_axis, p.source_outer);
    }
    if (s.begin < s.end) tap = tap_of(s.begin / s.chunks, s.walks), channel = s.begin % s.chunks * DEPTH;
    aim(p, s);
  }
  DEVICE void aim(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s) {
#pragma unroll
    for (int i = 0; i < ROW_PACKS; ++i) met[i] = meets(origin[i], tap, s.walks, p.d, p.h, p.w_axis, now[i]);
    w_now = offset_of(tap, s.walks);
  }
  DEVICE void fetch(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, int column_0) {
#pragma unroll
    for (int i = 0; i < ROW_PACKS; ++i) {
      const int c = channel + row_term(i, p.source_along_terms);
      const T* from = s.source + now[i] + (i64)c * p.source_channel;
      left[i] = four(from, p.source_channel, met[i] ? p.terms - c : 0, p.source_packed);
    }
#pragma unroll
    for (int i = 0; i < COLUMN_PACKS; ++i) {
      const int c = channel + column_term(i, p.w_along_terms), n = column_0 + column(i, p.w_along_terms);
      const T* from = s.w + w_now + (i64)c * p.w_term + (i64)n * p.w_line;
      const int terms = p.terms - c, lines = p.lines - n, least = min(terms, lines);
      const int left_over = least <= 0 ? 0 : p.w_along_terms ? terms : lines;
      right[i] = four(from, p.w_along_terms ? p.w_term : p.w_line, left_over, p.w_packed);
    }
  }
  DEVICE void move_on(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s) {
    channel += DEPTH;
    if (channel < p.terms) return;
    channel = 0;
    advance(tap, s.walks);
    aim(p, s);
  }
  DEVICE void put(const ImplicitGatherParams<T>& p, typename Place::Buffer& to) {
#pragma unroll
    for (int i = 0; i < ROW_PACKS; ++i)
      put_terms(to.rows, row_term(i, p.source_along_terms), row(i, p.source_along_terms), left[i]);
#pragma unroll
    for (int i = 0; i < COLUMN_PACKS; ++i) {
      const int term = column_term(i, p.w_along_terms), line = column(i, p.w_along_terms);
      if (p.w_along_terms) put_terms(to.columns, term, line, right[i]);
      else put_lines(to.columns, term, line, right[i]);
    }
  }
};

template <class T, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(GatherTile<T, ROWS, COLUMNS>::THREADS, GatherTile<T, ROWS, COLUMNS>::BLOCKS)
    implicit_gather(const ImplicitGatherParams<T> p) {
  typedef GatherTile<T, ROWS, COLUMNS> Place;
  typedef acc_t<T> A;
  __shared__ typename Place::Shared shared;
  __shared__ int result_at[ROWS], residual_at[ROWS];
  const auto s = slices_of<T, Place::DEPTH>(p);
  const int tile = blockIdx.x / p.column_tiles;
  const int row_0 = tile * ROWS, column_0 = ((int)blockIdx.x - tile * p.column_tiles) * COLUMNS;
  if (row_0 >= s.rows) return;
  locate_rows<ROWS, Place::THREADS>(p, s, row_0, result_at, residual_at);
  A sum[Place::DOWN][Place::ACROSS] = {};
  if (s.begin < s.end) {
    Gatherer<T, ROWS, COLUMNS> gatherer;
    gatherer.start(p, s, row_0);
    gatherer.fetch(p, s, column_0);
    gatherer.put(p, shared.buffer[0]);
    __syncthreads();
#pragma unroll 1
    for (int at = s.begin; at < s.end; ++at) {
      const int here = (at - s.begin) & 1;
      if (at + 1 < s.end) gatherer.move_on(p, s), gatherer.fetch(p, s, column_0);
      Place::multiply(sum, shared.buffer[here]);
      if (at + 1 < s.end) gatherer.put(p, shared.buffer[here ^ 1]);
      __syncthreads();
    }
  } else {
    __syncthreads();
  }
  const bool doubtful = is_doubtful<COLUMNS, Place::THREADS>(p, s, column_0, any_nan(sum));
  const auto finish = finish_of(p, s, result_at, residual_at, row_0, column_0, doubtful);
  hand_over<Place>(shared, sum, finish, s.rows - row_0, p.lines - column_0);
}

// ---- filter ---------------------------------------------------------------------------------------------------------

template <class T, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(Tile<T, ROWS, COLUMNS>::THREADS, Tile<T, ROWS, COLUMNS>::BLOCKS)
    implicit_filter(const ImplicitFilterParams<T> p) {
  typedef Tile<T, ROWS, COLUMNS> Place;
  typedef acc_t<T> A;
  constexpr int DEPTH = Place::DEPTH, THREADS = Place::THREADS;
  constexpr int ROW_PACKS = Place::ROW_PACKS, COLUMN_PACKS = Place::COLUMN_PACKS;
  __shared__ typename Place::Shared shared;
  __shared__ Position table[TABLE];
  const FilterTile tile = filter_tile_of(p, ROWS, COLUMNS);
  const T* dy = p.dy + (i64)tile.group * p.lines * p.y_channel;
  const T* x = p.x + (i64)tile.group * p.columns * p.x_channel;
  const int slices = (tile.end - tile.begin + DEPTH - 1) / DEPTH;
  Four<T> left[ROW_PACKS], right[COLUMN_PACKS];
  A sum[Place::DOWN][Place::ACROSS] = {};
#pragma unroll 1
  for (int at = -1; at < slices; ++at) {
    const int next = at + 1, offset = next * DEPTH % TABLE;
    if (next < slices) {
      if (offset == 0) {
        for (int i = threadIdx.x; i < TABLE; i += THREADS)
          table[i] = position_of(p, tile.tap, tile.begin + next * DEPTH + i, tile.end);
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < ROW_PACKS; ++i) {
        const int index = i * THREADS + threadIdx.x;
        const int term = p.y_along_channels ? index / (ROWS / 4) : index % DEPTH;
        const int line = tile.row_0 + 4 * (p.y_along_channels ? index % (ROWS / 4) : index / DEPTH);
        const Position here = table[offset + term];
        const T* from = dy + here.y + (i64)line * p.y_channel;
        left[i] = four(from, p.y_channel, here.x == NOWHERE ? 0 : p.lines - line, p.y_packed);
      }
#pragma unroll
      for (int i = 0; i < COLUMN_PACKS; ++i) {
        const int index = i * THREADS + threadIdx.x;
        const int term = p.x_along_channels ? index / (COLUMNS / 4) : index % DEPTH;
        const int column = tile.column_0 + 4 * (p.x_along_channels ? index % (COLUMNS / 4) : index / DEPTH);
        const Position here = table[offset + term];
        const T* from = x + here.x + (i64)column * p.x_channel;
        right[i] = four(from, p.x_channel, here.x == NOWHERE ? 0 : p.columns - column, p.x_packed);
      }
    }
    if (at >= 0) Place::multiply(sum, shared.buffer[at & 1]);
    if (next < slices) {
      typename Place::Buffer& to = shared.buffer[next & 1];
#pragma unroll
      for (int i = 0; i < ROW_PACKS; ++i) {
        const int index = i * THREADS + threadIdx.x;
        const int term = p.y_along_channels ? index / (ROWS / 4) : index % DEPTH;
        put_lines(to.rows, term, 4 * (p.y_along_channels ? index % (ROWS / 4) : index / DEPTH), left[i]);
      }
#pragma unroll
      for (int i = 0; i < COLUMN_PACKS; ++i) {
        const int index = i * THREADS + threadIdx.x;
        const int term = p.x_along_channels ? index / (COLUMNS / 4) : index % DEPTH;
        put_lines(to.columns, term, 4 * (p.x_along_channels ? index % (COLUMNS / 4) : index / DEPTH), right[i]);
      }
    }
    __syncthreads();
  }
  const FilterFinish<T> finish = filter_finish_of(p, tile);
  hand_over<Place>(shared, sum, finish, p.lines - tile.row_0, p.columns - tile.column_0);
}

// ---- the splits' sums -----------------------------------------------------------------------------------------------

struct FoldSteps {
  i64 outer, channel, d, h, w;
};
template <class T> struct ImplicitFoldParams {
  T* result;
  const acc_t<T>* partial;
  After<T> after;
  Factors<T> by;
  i64 size, splits, first;  // elements of the result, offset of the first one
  i64 channels, extent_d, extent_h, extent_w;
  FoldSteps result_steps, residual_steps;
  int channels_last, relu;
};

DEVICE i64 taken_from(i64& index, i64 extent) {
  const i64 outer = quotient(index, extent), here = index - outer * extent;
  index = outer;
  return here;
}
DEVICE i64 offset(const FoldSteps& steps, i64 outer, i64 channel, i64 d, i64 h, i64 w) {
  return outer * steps.outer + channel * steps.channel + d * steps.d + h * steps.h + w * steps.w;
}

// In order; many are asked for at a time, as elements are often too few for their threads to hide the way to memory: 256
// splits of 64 x 64 to 128 x 256 elements took 14 to 18 us less so (NVIDIA H200, 2026-11-28).
template <class A> DEVICE A sum_of_splits(const A* part, i64 step, i64 splits) {
  constexpr int AHEAD = 16;
  A sum = 0;
  i64 split = 0;
#pragma unroll 1
  for (; split + AHEAD <= splits; split += AHEAD) {
    A some[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) some[i] = part[(split + i) * step];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) sum += some[i];
  }
  for (; split < splits; ++split) sum += part[split * step];
  return sum;
}

template <class T> __global__ void __launch_bounds__(256) implicit_fold(const ImplicitFoldParams<T> p) {
  const i64 index = global_thread();
  if (index >= p.size) return;
  const acc_t<T> sum = sum_of_splits(p.partial + index, p.size, p.splits);
  i64 rest = index, channel = 0;
  if (p.channels_last) channel = taken_from(rest, p.channels);
  const i64 w = taken_from(rest, p.extent_w), h = taken_from(rest, p.extent_h), d = taken_from(rest, p.extent_d);
  if (!p.channels_last) channel = taken_from(rest, p.channels);
  const i64 residual = offset(p.residual_steps, rest, channel, d, h, w);
  acc_t<T> z = followed(sum, p.after, p.by, (int)channel, residual);
  if (p.relu) z = z <= acc_t<T>(0) ? acc_t<T>(0) : z;
  T* at = p.result + p.first + offset(p.result_steps, rest, channel, d, h, w);
  *at = blend<T>(p.by.alpha, z, p.by.beta, at);
}

// ---- filters with channels of the result together -------------------------------------------------------------------

template <class T> struct ImplicitRepackParams {
  T* packed;
  const T* w;
  i64 size, taps_d, taps_h, taps_w, terms, lines, lines_padded;
  i64 step_group, step_d, step_h, step_w, step_term, step_line, first;
};

// packed[group, tap, term, line] of w, lines up to a multiple of four.
template <class T> __global__ void __launch_bounds__(256) implicit_repack(const ImplicitRepackParams<T> p) {
  const i64 index = global_thread();
  if (index >= p.size) return;
  i64 rest = index;
  const i64 line = taken_from(rest, p.lines_padded), term = taken_from(rest, p.terms);
  const i64 w = taken_from(rest, p.taps_w), h = taken_from(rest, p.taps_h), d = taken_from(rest, p.taps_d);
  const i64 from = p.first + rest * p.step_group + d * p.step_d + h * p.step_h + w * p.step_w;
  T v = {};
  if (line < p.lines) v = p.w[from + term * p.step_term + line * p.step_line];
  p.packed[index] = v;
}
