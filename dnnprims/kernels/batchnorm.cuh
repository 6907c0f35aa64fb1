// What the kernels of batchnorm.cu share: who takes which columns and rows, what is known of a channel, and the activation.
#pragma once
#include "reduce.cuh"
#include "vec.cuh"

// Threads of a block at most; rows whose loads a thread has in flight: of x alone, of x and other arrays.
constexpr int NORM_BLOCK = 256, AHEAD = 8, AHEAD_OF_TWO = 4;
// Blocks that a multiprocessor shall hold at once (ops/batchnorm/kernels.py counts on them): as many as registers leave.
template <class T> constexpr int FORWARD_BLOCKS = sizeof(T) == 8 ? 2 : 3;
constexpr int BACKWARD_BLOCKS = 2;
template <class T> constexpr int CHANNEL_BLOCKS = sizeof(T) == 8 ? 2 : 4;

// How the matrix of `rows` images (or positions) and `channels` * `inner` columns is shared out. Columns come in units of
// whole channels; a unit is cut into `tiles`, a block has one of them. `width` threads lie side by side, with VEC
// neighbouring columns each, and `depth` of them below each other; the rows are cut into parts of fewer than 2^31. Parts and
// tiles of a channel together are its slots: each has a partial result there.
struct NormTiling {
  i64 rows, channels, inner, unit_channels, tiles, width, depth, rows_per_part;
  DEVICE i64 columns() const { return channels * inner; }
};

// The columns and rows of one thread. Block (x, y) has piece x of the columns and part y of the rows.
template <int VEC> struct NormPlace {
  i64 unit, tile, column;  // the first of VEC columns
  i64 first, step;         // the first pack, and how far below the next one lies
  int row, across;         // of those threads that lie below each other, and side by side
  int count;               // rows of this thread

  DEVICE NormPlace(const NormTiling& t, i64 part) {
    const int width = (int)t.width, depth = (int)t.depth;
    unit = blockIdx.x / (u32)t.tiles;
    tile = blockIdx.x - unit * t.tiles;
    row = (int)threadIdx.x / width;
    across = (int)threadIdx.x - row * width;
    const i64 unit_columns = t.unit_channels * t.inner, within = (tile * width + across) * VEC;
    column = unit * unit_columns + within;
    const i64 begin = part * t.rows_per_part, left = t.rows - begin < t.rows_per_part ? t.rows - begin : t.rows_per_part;
    const bool holds = row < depth && within < unit_columns && column < t.columns();
    count = holds && left > row ? ((int)left - row + depth - 1) / depth : 0;
    const i64 packs = (i64)((u64)t.columns() / VEC);
    first = (begin + row) * packs + (i64)((u64)column / VEC);
    step = depth * packs;
  }
};

// Rows `begin`, begin + by, ... of a thread, of which there are `rows`. Past them the first one is given again: to read it, to
// work on it and to write it another time costs less than a branch for each row.
template <int VEC>
DEVICE void packs_of_rows(const NormPlace<VEC>& at, int begin, int by, int rows, i64 (&from)[AHEAD_OF_TWO]) {
#pragma unroll
  for (int u = 0; u < AHEAD_OF_TWO; ++u) from[u] = at.first + (u < rows ? begin + by * u : begin) * at.step;
}

// The channel of each of the VEC columns from there on.
template <int VEC> DEVICE void channels_of(i64 column, i64 inner, i64 (&channel)[VEC]) {
  channel[0] = quotient(column, inner);
  i64 position = column - channel[0] * inner;
#pragma unroll
  for (int k = 1; k < VEC; ++k) {
    const bool next = ++position == inner;
    channel[k] = channel[k - 1] + next;
    if (next) position = 0;
  }
}
template <int VEC, class A> DEVICE void gather(const A* of_channels, const i64 (&channel)[VEC], A (&values)[VEC]) {
#pragma unroll
  for (int k = 0; k < VEC; ++k) values[k] = of_channels[channel[k]];
}

// f(z) = min(max(z, low), high): the identity, relu, clipped relu, hard tanh.
DEVICE float clamped(float z, float low, float high) { return min_or_nan(high, max_or_nan(low, z)); }
DEVICE double clamped(double z, double low, double high) { return z <= low ? low : z >= high ? high : z; }
// Its gradient, from z or from what f made of it; limits that are NaN are none, and a NaN lies between all limits.
template <class A> DEVICE A passed(A dy, A v, A low, A high) { return v <= low || v >= high ? A(0) : dy; }
template <class T> DEVICE acc_t<T> stored(acc_t<T> v) { return to_acc(from_acc<T>(v)); }

// The sums of N numbers over `team` neighbouring threads, a power of two; all threads of the block are here. A team is part of
// a warp, or WIDE: up to NORM_BLOCK threads, which the block then has. Loops are not unrolled: of a small tensor fetching
// code costs more than running it.
template <bool WIDE, int N, class A> DEVICE void team_sums(A (&v)[N], int team) {
#pragma unroll 1
  for (int offset = (team < 32 ? team : 32) / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] += __shfl_xor_sync(0xffffffffu, v[n], offset);
  }
  if constexpr (WIDE) {
    __shared__ A of_warps[N][NORM_BLOCK / 32];
    const int warp = (int)threadIdx.x / 32, warps = team / 32;
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (threadIdx.x % 32 == 0) of_warps[n][warp] = v[n];
    __syncthreads();
    if (warps > 1) {
#pragma unroll
      for (int n = 0; n < N; ++n) v[n] = A(0);
#pragma unroll 1
      for (int k = warp & ~(warps - 1), end = k + warps; k < end; ++k) {
#pragma unroll
        for (int n = 0; n < N; ++n) v[n] += of_warps[n][k];
      }
    }
    __syncthreads();
  }
}

// ---- what is known of elements, and merging it ------------------------------------------------------------------------

// How many elements, their mean, and the sum of squared deviations from it.
template <class A> struct Moments {
  A count, mean, squares;

  // All that the walks of a team come by: their mean about the first of them, so that equal ones give that itself, then
  // what is left of it beside their own deviations, should the first have lain far off.
  template <class Walk> static DEVICE Moments all_of(const Walk& walk, int team) {
    A early[2] = {A(0), A(0)}, late[2] = {A(0), A(0)};  // count and mean, what is left of the mean and squares
    const A middle = walk.front().mean;
#pragma unroll 1
    for (Walk at = walk; at.more(); at.next()) {
      const Moments one = at.get();
      early[0] += one.count;
      early[1] += (one.mean - middle) * one.count;
    }
    team_sums<Walk::WIDE>(early, team);
    const A mean = middle + early[1] / early[0];
#pragma unroll 1
    for (Walk at = walk; at.more(); at.next()) {
      const Moments one = at.get();
      const A apart = one.mean - mean;
      late[0] += apart * one.count;
      late[1] += one.squares + apart * (apart * one.count);
    }
    team_sums<Walk::WIDE>(late, team);
    return {early[0], mean + late[0] / early[0], late[1]};
  }
};

template <class A> DEVICE A running(A old, A now, double factor) {
  return factor == 1.0 ? now : fma(A(1.0 - factor), old, A(factor) * now);
}

// The running statistics of a channel, either of which may be null.
template <class A>
DEVICE void keep_running(A* mean, A* variance, i64 channel, const Moments<A>& all, bool unbiased, double factor) {
  if (factor == 0.0) return;
  const A divisor = unbiased && all.count > A(1) ? all.count - A(1) : all.count;
  if (mean) mean[channel] = running(mean[channel], all.mean, factor);
  if (variance) variance[channel] = running(variance[channel], all.squares / divisor, factor);
}

// Sums of dz and of dz (x - mean).
template <class A> struct Sums {
  A dz, product;

  template <class Walk> static DEVICE Sums all_of(const Walk& walk, int team) {
    A sums[2] = {A(0), A(0)};
#pragma unroll 1
    for (Walk at = walk; at.more(); at.next()) {
      const Sums one = at.get();
      sums[0] += one.dz;
      sums[1] += one.product;
    }
    team_sums<Walk::WIDE>(sums, team);
    return {sums[0], sums[1]};
  }
};

// Over the slots of a channel, every `team`th of them.
template <class Part> struct SlotWalk {
  static constexpr bool WIDE = true;
  const Part* slots;
  i64 at, end;
  int team;
  DEVICE bool more() const { return at < end; }
  DEVICE void next() { at += team; }
  DEVICE Part get() const { return slots[at]; }
  DEVICE Part front() const { return end > 0 ? slots[0] : Part{}; }
};

// Over what the threads of a block have of a channel: `columns` entries from each row of threads, every `team`th of them.
template <class Part> struct EntryWalk {
  static constexpr bool WIDE = false;
  const Part* entries;
  int across, columns, rows, team, row, column;
  DEVICE void settle() {
    while (column >= columns) column -= columns, ++row;
  }
  DEVICE bool more() const { return row < rows; }
  DEVICE void next() {
    column += team;
    settle();
  }
  DEVICE Part get() const { return entries[row * across + column]; }
  DEVICE Part front() const { return entries[0]; }
};

// What the threads of a block have of its one channel, the columns of each merged: for thread 0.
template <int VEC, class Part>
DEVICE Part merge_block(const NormTiling& t, const NormPlace<VEC>& at, const Part& known) {
  __shared__ Part entries[NORM_BLOCK];
  const int width = (int)t.width, depth = (int)t.depth;
  if (at.row < depth) entries[at.row * width + at.across] = known;
  __syncthreads();
  EntryWalk<Part> walk{entries, width, width, depth, 32, 0, (int)threadIdx.x % 32};
  walk.settle();
  return Part::all_of(walk, 32);
}

// Merge what the threads of a block have in its VEC columns each (`own`), and store it in the slot of each channel. Columns
// of a thread that belong to one channel have been merged into the first before, where `alike`.
template <int VEC, class Part>
DEVICE void store_slots(Part* slots, const NormTiling& t, const NormPlace<VEC>& at, const Part (&own)[VEC], bool alike) {
  __shared__ Part entries[NORM_BLOCK * VEC];
  const int width = (int)t.width, depth = (int)t.depth, across = alike ? width : width * VEC;
  if (at.row < depth) {
#pragma unroll
    for (int k = 0; k < VEC; ++k)
      if (k == 0 || !alike) entries[at.row * across + (alike ? at.across : at.across * VEC + k)] = own[k];
  }
  __syncthreads();
  const i64 first = at.unit * t.unit_channels, span = width * VEC, left = t.inner - at.tile * span;
  const i64 held = t.channels - first < t.unit_channels ? t.channels - first : t.unit_channels;
  const i64 within = t.tiles == 1 ? t.inner : left < span ? left : span;
  const int channels = (int)held, each = alike ? (int)within / VEC : (int)within;
  int team = 32;
  while (team > 1 && team * channels > (int)blockDim.x) team /= 2;
  const int teams = (int)blockDim.x / team, member = (int)threadIdx.x % team;
#pragma unroll 1
  for (int base = 0; base < channels; base += teams) {
    const int channel = base + (int)threadIdx.x / team;
    const bool holds = channel < channels;
    EntryWalk<Part> walk{entries + (holds ? channel * each : 0), across, each, holds ? depth : 0, team, 0, member};
    walk.settle();
    const Part all = Part::all_of(walk, team);
    if (member == 0 && holds) slots[((first + channel) * gridDim.y + blockIdx.y) * t.tiles + at.tile] = all;
  }
}
