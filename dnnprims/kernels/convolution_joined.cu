// Convolutions of few input channels with fused multiply-adds: the first layer of a network in IEEE float32. A tap of three
// channels fills no slice of an implicit product, so that taps and channels are joined to one axis of them.
//
// The equations are those of convolution.cu. With j over (tap, channel), `at` the element that a position o sees there:
//   forward  y[o, k] = sum over j of x[at(o, j)] w[j, k]         rows o, terms j, columns k
//   filter   dw[k, j] = sum over o of dy[o, k] x[at(o, j)]       rows k, terms o, columns j
//   data     convolution_joined_data.cuh: what all rests of positions by the strides see of an output is one product.
//
// Shapes    as in convolution.cu: any steps, so that layouts and views are the same; one or two spatial axes, any groups
//           (data: one group), at most MOST_JOINED taps and channels; offsets in 32 bits, as the front end sees to.
// Plan      joined_forward   the tile of 64 x 64 of convolution_ffma.cuh. A thread has one row; offsets of all j are a table
//                            in shared memory. Filters are rearranged to (j, k) beforehand (implicit_repack).
//           joined_filter    likewise; a thread has one column, offsets of 128 positions are a table. Blocks share the
//                            positions, implicit_fold adds their sums in order.
// Numerics  one fused multiply-add a term, in ascending order of (tap, channel), or of positions within a split; splits
//           depend on shapes alone. What lies outside of the image is multiplied as 0; where that made a NaN of an infinite
//           factor, the sum is made anew without.
// Cost      2 K C / groups taps flops a position, rounded up to tiles of 64 filters and slices of 8 (filter: tiles of 64) j.
// Measured  NVIDIA H200, 2026-11-28, 64 images of 3x224x224, channels last, 7x7 of stride 2 to 64: forward / data / filter
//           550 / 608 / 620 us, where cuDNN 9.19 takes 751 / 1207 / 859 and implicit_ffma took 1356 / 10576 / 10177.
//           By ncu the multipliers are busy 54 / 61 / 51 % of the time; 79 / 74 / 75 % of the issue slots are taken, as 512
//           of 720 instructions of a slice multiply (data: 384 of 429). In the slots left warps are ready (1.3 / 2.0 / 1.3
//           wait for their turn) and the dispatcher is not (0.25 / 0.72 / 0.28 an instruction). Shared memory 52 %, DRAM 8 %.
//           Tried: two rows a thread forward, 128 x 64 a block (1024 of 1351 multiply): 554 us.
// Limits    offsets below 2^30 elements.
#include "convolution_joined_data.cuh"
#include "convolution_ffma.cuh"
#include "convolution_filter.cuh"
#include "convolution_gather.cuh"

constexpr int MOST_JOINED = 512;

// Of one j: its offset in a source, and how far it lies from tap 0 along both axes.
struct alignas(16) Joined {
  int offset, h, w;
};

// ---- forward --------------------------------------------------------------------------------------------------------

// Brings slices from memory to registers, and from there to shared memory.
template <class T> struct JoinedGatherer {
  typedef Tile<T, 64, 64> Place;
  static constexpr int DEPTH = Place::DEPTH, COLUMN_PACKS = Place::COLUMN_PACKS;
  Origin origin;
  T left[DEPTH];
  Four<T> right[COLUMN_PACKS];

  // The table up to the end of the last slice, whose rest nothing meets.
  static DEVICE void list(const ImplicitGatherParams<T>& p, const Walks& walks, int joined, Joined* all) {
    for (int j = threadIdx.x; j < joined + DEPTH; j += Place::THREADS) {
      const Tap tap = tap_of(j / p.terms, walks);
      const int h = tap.h * walks.h.hop, w = tap.w * walks.w.hop;
      const int from = h * p.h.source_step + w * p.w_axis.source_step + j % p.terms * p.source_channel;
      all[j] = j < joined ? Joined{from, h, w} : Joined{0, NOWHERE, NOWHERE};
    }
  }
  DEVICE void fetch(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, const Joined* all, int first, int joined,
                    int column_0) {
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
      const Joined here = all[first + k];
      const bool met = (u32)(origin.h + here.h) < (u32)p.h.source && (u32)(origin.w + here.w) < (u32)p.w_axis.source;
      left[k] = T(0);
      if (met) left[k] = s.source[origin.offset + here.offset];
    }
#pragma unroll
    for (int i = 0; i < COLUMN_PACKS; ++i) {
      const int index = i * Place::THREADS + threadIdx.x;
      const int term = first + index / (Place::WIDTH / 4), n = column_0 + index % (Place::WIDTH / 4) * 4;
      right[i] = four(s.w + term * p.w_term + n, 1, term < joined ? p.lines - n : 0, true);
    }
  }
  DEVICE void put(typename Place::Buffer& to) {
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) to.rows[k][threadIdx.x] = to_acc(left[k]);
#pragma unroll
    for (int i = 0; i < COLUMN_PACKS; ++i) {
      const int index = i * Place::THREADS + threadIdx.x;
      put_lines(to.columns, index / (Place::WIDTH / 4), index % (Place::WIDTH / 4) * 4, right[i]);
    }
  }
};

template <class T> __global__ void __launch_bounds__(64, 6) joined_forward(const ImplicitGatherParams<T> p) {
  typedef JoinedGatherer<T> Gatherer;
  typedef typename Gatherer::Place Place;
  constexpr int DEPTH = Place::DEPTH, SIDE = 64;
  static_assert(Place::THREADS == SIDE, "a thread has a row");
  __shared__ typename Place::Shared shared;
  __shared__ Joined all[MOST_JOINED + DEPTH];
  __shared__ int result_at[SIDE], residual_at[SIDE];
  const auto s = slices_of<T, DEPTH>(p);
  const int tile = blockIdx.x / p.column_tiles, joined = s.walks.taps() * p.terms;
  const int row_0 = tile * SIDE, column_0 = ((int)blockIdx.x - tile * p.column_tiles) * SIDE;
  Gatherer gatherer;
  Gatherer::list(p, s.walks, joined, all);
  locate_rows<SIDE, SIDE>(p, s, row_0, result_at, residual_at);
  const int m = row_0 + (int)threadIdx.x;
  gatherer.origin = Origin{0, NOWHERE, NOWHERE, NOWHERE};
  if (m < s.rows) gatherer.origin = origin_of(row_of(m, s.walks), s.walks, p.d, p.h, p.w_axis, p.source_outer);
  __syncthreads();
  gatherer.fetch(p, s, all, 0, joined, column_0);
  gatherer.put(shared.buffer[0]);
  __syncthreads();
  acc_t<T> sum[Place::DOWN][Place::ACROSS] = {};
#pragma unroll 1
  for (int at = 0; at < joined; at += DEPTH) {
    const int here = at / DEPTH & 1;
    const bool more = at + DEPTH < joined;
    if (more) gatherer.fetch(p, s, all, at + DEPTH, joined, column_0);
    Place::multiply(sum, shared.buffer[here]);
    if (more) gatherer.put(shared.buffer[here ^ 1]);
    __syncthreads();
  }
  const bool doubtful = is_doubtful<SIDE, SIDE>(p, s, column_0, any_nan(sum));
  const auto finish = finish_of(p, s, result_at, residual_at, row_0, column_0, doubtful);
  hand_over<Place>(shared, sum, finish, s.rows - row_0, p.lines - column_0);
}

// ---- filter ---------------------------------------------------------------------------------------------------------

// Offsets of a position in dy and, under tap 0, in x, and where in the image that lies.
struct alignas(16) Seen {
  int y, x, h, w;
};
template <class T> DEVICE Seen seen_from(const ImplicitFilterParams<T>& p, int index, int end) {
  if (index >= end) return Seen{0, 0, NOWHERE, NOWHERE};
  const int w = index % p.w_axis.output, by_w = index / p.w_axis.output, h = by_w % p.h.output, image = by_w / p.h.output;
  const int i_h = h * p.h.stride - p.h.padding, i_w = w * p.w_axis.stride - p.w_axis.padding;
  return Seen{image * p.y_outer + h * p.h.y_step + w * p.w_axis.y_step,
              image * p.x_outer + i_h * p.h.x_step + i_w * p.w_axis.x_step, i_h, i_w};
}
// Column number j: channels innermost where they are in the filter's memory, else taps.
template <class T> DEVICE Joined column_of(const ImplicitFilterParams<T>& p, int j) {
  if (j >= p.taps * p.columns) return Joined{0, NOWHERE, NOWHERE};
  const int tap = p.w_channel == 1 ? j / p.columns : j % p.taps, c = p.w_channel == 1 ? j % p.columns : j / p.taps;
  const int h = tap / p.w_axis.taps * p.h.dilation, w = tap % p.w_axis.taps * p.w_axis.dilation;
  return Joined{h * p.h.x_step + w * p.w_axis.x_step + c * p.x_channel, h, w};
}
template <class T> DEVICE bool meets(const ImplicitFilterParams<T>& p, const Seen& at, const Joined& j) {
  return (u32)(at.h + j.h) < (u32)p.h.image && (u32)(at.w + j.w) < (u32)p.w_axis.image;
}

// The sums of a split, without gaps; those in doubt are made anew of what lies inside.
template <class T> struct JoinedFinish {
  typedef acc_t<T> A;
  const ImplicitFilterParams<T>& p;
  const T *dy, *x;
  A* partial;
  int row_0, column_0, begin, end;
  bool packed, along_rows;

  DEVICE A mended(int row, int column) const {
    const Joined j = column_of(p, column_0 + column);
    A sum = 0;
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      const Seen at = seen_from(p, i, end);
      if (meets(p, at, j)) sum = fma(to_acc(dy[at.y + (row_0 + row) * p.y_channel]), to_acc(x[at.x + j.offset]), sum);
    }
    return sum;
  }
  DEVICE void one(A sum, int row, int column) const {
    partial[(i64)row * p.w_outer + column] = sum != sum ? mended(row, column) : sum;
  }
  DEVICE void all(const A (&sum)[4], int row, int column) const { store_four(partial + (i64)row * p.w_outer + column, sum); }
};

template <class T> __global__ void __launch_bounds__(64, 6) joined_filter(const ImplicitFilterParams<T> p) {
  typedef Tile<T, 64, 64> Place;
  constexpr int DEPTH = Place::DEPTH, SIDE = 64, THREADS = Place::THREADS, ROW_PACKS = Place::ROW_PACKS;
  static_assert(THREADS == SIDE, "a thread has a column");
  __shared__ typename Place::Shared shared;
  __shared__ Seen table[TABLE];
  const int group = blockIdx.y, row_0 = blockIdx.x / p.column_tiles * SIDE, column_0 = blockIdx.x % p.column_tiles * SIDE;
  const int begin = blockIdx.z * p.per_split, end = min(begin + p.per_split, p.positions);
  const T* dy = p.dy + (i64)group * p.lines * p.y_channel;
  const T* x = p.x + (i64)group * p.columns * p.x_channel;
  const Joined own = column_of(p, column_0 + (int)threadIdx.x);
  const int slices = (end - begin + DEPTH - 1) / DEPTH;
  Four<T> left[ROW_PACKS];
  T right[DEPTH];
  acc_t<T> sum[Place::DOWN][Place::ACROSS] = {};
#pragma unroll 1
  for (int at = -1; at < slices; ++at) {
    const int next = at + 1, offset = next * DEPTH % TABLE;
    if (next < slices) {
      if (offset == 0) {
        for (int i = threadIdx.x; i < TABLE; i += THREADS) table[i] = seen_from(p, begin + next * DEPTH + i, end);
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < ROW_PACKS; ++i) {
        const int index = i * THREADS + threadIdx.x;
        const int term = p.y_along_channels ? index / (SIDE / 4) : index % DEPTH;
        const int line = row_0 + 4 * (p.y_along_channels ? index % (SIDE / 4) : index / DEPTH);
        const Seen here = table[offset + term];
        left[i] = four(dy + here.y + (i64)line * p.y_channel, p.y_channel, here.h == NOWHERE ? 0 : p.lines - line, p.y_packed);
      }
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) {
        const Seen here = table[offset + k];
        right[k] = T(0);
        if (meets(p, here, own)) right[k] = x[here.x + own.offset];
      }
    }
    if (at >= 0) Place::multiply(sum, shared.buffer[at & 1]);
    if (next < slices) {
      typename Place::Buffer& to = shared.buffer[next & 1];
#pragma unroll
      for (int i = 0; i < ROW_PACKS; ++i) {
        const int index = i * THREADS + threadIdx.x;
        const int term = p.y_along_channels ? index / (SIDE / 4) : index % DEPTH;
        put_lines(to.rows, term, 4 * (p.y_along_channels ? index % (SIDE / 4) : index / DEPTH), left[i]);
      }
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) to.columns[k][threadIdx.x] = to_acc(right[k]);
    }
    __syncthreads();
  }
  const bool doubtful = __syncthreads_or(any_nan(sum)) != 0;
  acc_t<T>* to = p.partial + blockIdx.z * p.partial_size + ((i64)group * p.lines + row_0) * p.w_outer + column_0;
  const JoinedFinish<T> finish{p, dy, x, to, row_0, column_0, begin, end, p.w_packed && !doubtful, false};
  hand_over<Place>(shared, sum, finish, p.lines - row_0, p.taps * p.columns - column_0);
}
