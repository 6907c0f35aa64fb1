// The gradient of depthwise convolutions in their filters: the kernels, whose plan convolution_depthwise.cu tells.
#pragma once
#include "convolution_depthwise_tile.cuh"
#include "reduce.cuh"

template <class T> struct DepthwiseFilterParams {
  T* dw;
  acc_t<T>* parts;
  const T* dy;
  const T* x;
  acc_t<T> alpha, beta;
  i64 batch, channels, lanes, strips, images, tiles_w, segments, walk, splits;
  Extent source, result, taps, stride, dilation, padding;
  Walk x_walk, y_walk, w_walk;
  i64 w_first;
};

DEVICE constexpr int max_of(int a, int b) { return a > b ? a : b; }

struct Strip {
  i64 n, w, begin, end;
  DEVICE Strip(i64 n, i64 w, i64 begin, i64 end) : n(n), w(w), begin(begin), end(end) {}
  // The strip of positions that is number `slot`.
  template <class P> DEVICE Strip(const P& p, i64 slot) : n(slot) {
    w = split_off(n, p.tiles_w) * COLUMNS;
    begin = split_off(n, p.segments) * p.walk;
    end = begin + p.walk < p.result.h ? begin + p.walk : p.result.h;
  }
};

// One tap over a strip, of nothing but what is in the image.
template <class T, int VEC>
DEVICE void tap_of_strip(const DepthwiseFilterParams<T>& p, i64 r, i64 s, i64 channel, const Strip& strip, int wide,
                         acc_t<T> (&sum)[VEC]) {
#pragma unroll 1
  for (i64 h = strip.begin; h < strip.end; ++h) {
    const i64 row = seen<false>(h, r, p.stride.h, p.dilation.h, p.padding.h, p.source.h);
#pragma unroll 1
    for (i64 w = strip.w; row >= 0 && w < strip.w + wide && w < p.result.w; ++w) {
      const i64 column = seen<false>(w, s, p.stride.w, p.dilation.w, p.padding.w, p.source.w);
      if (column < 0) continue;
      const T* dy = p.dy + offset(p.y_walk, strip.n, channel, h, w);
      const T* x = p.x + offset(p.x_walk, strip.n, channel, row, column);
      const pack<T, VEC> left = load<VEC>(dy, 0), right = load<VEC>(x, 0);
#pragma unroll
      for (int k = 0; k < VEC; ++k) sum[k] = fma_(to_acc(left.lane[k]), to_acc(right.lane[k]), sum[k]);
    }
  }
}
// The same over the thread's strips, and over those of its block's tiles.
template <class T>
DEVICE void add_tap(const DepthwiseFilterParams<T>& p, i64 r, i64 s, i64 channel, i64 slot, i64 step, acc_t<T> (&sum)[1]) {
#pragma unroll 1
  for (; slot < p.batch * p.segments * p.tiles_w; slot += step)
    tap_of_strip<T, 1>(p, r, s, channel, Strip(p, slot), COLUMNS, sum);
}
template <class T, int VEC, int WIDE>
DEVICE void add_tap(const DepthwiseFilterParams<T>& p, i64 r, i64 s, i64 channel, i64 tiles, acc_t<T> (&sum)[VEC]) {
#pragma unroll 1
  for (i64 index = blockIdx.x; index < tiles; index += p.splits) {
    const Tile tile(p, index, p.result.h, WIDE);
    const Strip strip(tile.n, tile.w + tile.strip * WIDE, tile.begin, tile.end);
    if (tile.n < p.batch) tap_of_strip<T, VEC>(p, r, s, channel, strip, WIDE, sum);
  }
}

// What a row of x adds for the rows of dy that see it: `given` has them, the oldest one first.
template <class See, int STEP, class T, int VEC, int TAPS>
DEVICE void add_row_to_filter(const pack<T, VEC>* row, int a, const acc_t<T> (&given)[See::OPEN][See::WIDE][VEC],
                              acc_t<T> (&sums)[TAPS][TAPS][VEC]) {
#pragma unroll
  for (int b = 0; b < See::SPAN; ++b) {
    acc_t<T> v[VEC];
    take<T>(v, row[b * STEP]);
#pragma unroll
    for (int i = 0; i < See::OPEN * See::WIDE; ++i) {
      const int e = i / See::WIDE, x = i % See::WIDE, r = See::row_tap(e, a), s = See::column_tap(x, b);
      if (r >= TAPS || s < 0 || s >= TAPS) continue;
#pragma unroll
      for (int k = 0; k < VEC; ++k) sums[r][s][k] = fma_(v[k], given[e][x][k], sums[r][s][k]);
    }
  }
}

// A row of dy arrives, and the others move on.
template <int STEP, class T, int VEC, int WIDE, int OPEN>
DEVICE void give_row(acc_t<T> (&given)[OPEN][WIDE][VEC], const pack<T, VEC>* arrived) {
#pragma unroll
  for (int e = 0; e + 1 < OPEN; ++e) copy(given[e], given[e + 1]);
#pragma unroll
  for (int q = 0; q < WIDE; ++q) take<T>(given[OPEN - 1][q], arrived[q * STEP]);
}

// The part of a block with what it sees of x. Each row of dy is asked for with the first row of x that it sees last.
template <class T, int VEC, int WIDE, int TAPS, int STRIDE>
DEVICE void add_tile(const DepthwiseFilterParams<T>& p, unsigned char* room, const Tile& tile, i64 channel,
                     acc_t<T> (&sums)[TAPS][TAPS][VEC]) {
  constexpr int RING = FILTER_RING, TURNS = TAPS == 3 && STRIDE == 1 && sizeof(T) == 2 ? 3 : 1;
  typedef Sight<TAPS, STRIDE, false, WIDE> See;
  typedef TileRows<T, VEC, See::SPAN, See::ADVANCE, RING> Source;
  typedef TileRows<T, VEC, WIDE, WIDE, RING> Given;
  const i64 channels = p.channels - channel, images = p.batch - tile.first;
  const int begin = tile.begin - See::LEAD, steps = tile.end - begin;
  Source x(room, tile, p.x + offset(p.x_walk, tile.first, channel), p.x_walk, p.source, channels, images,
           See::coming(begin, p.padding.h), See::column(tile.w, p.padding.w), steps * STRIDE);
  Given dy(room + RING * x.bytes, tile, p.dy + offset(p.y_walk, tile.first, channel), p.y_walk, p.result, channels,
           images, tile.begin, tile.w, steps - See::LEAD);
  acc_t<T> given[See::OPEN][WIDE][VEC];
#pragma unroll
  for (int e = 0; e < See::OPEN; ++e) clear(given[e]);
#pragma unroll
  for (int row = 0; row < RING - 1; ++row) {
    if (row % STRIDE == 0) dy.ask();
    x.ask(), commit_copies();
  }
#pragma unroll TURNS
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int a = 0; a < STRIDE; ++a) {
      await_rows<RING - 2>();
      if ((a + RING - 1) % STRIDE == 0) dy.ask();
      x.ask(), commit_copies();
      if (a == 0) give_row<Given::STEP, T>(given, dy.take((RING - 1) / STRIDE + 1));
      add_row_to_filter<See, Source::STEP, T>(x.take(), a, given, sums);
    }
  }
  await_copies<0>(), __syncthreads();  // the places are free again
}

template <class T, int VEC, int WIDE, int TAPS, int STRIDE>
__global__ void __launch_bounds__(MOST_THREADS<TAPS>, TILE_RESIDENT<TAPS>)
    depthwise_filter_tile(const DepthwiseFilterParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(unsigned char, room);  // of the sums of a row of taps, in the end
  A* folded = reinterpret_cast<A*>(room);
  const int lanes = (int)p.lanes, width = lanes * VEC, row = (int)blockDim.x * VEC;
  const i64 first = (i64)blockIdx.y * width, channel = first + threadIdx.x % lanes * VEC;
  const i64 tiles = quotient(p.batch + p.images - 1, p.images) * p.segments * p.tiles_w;
  A sums[TAPS][TAPS][VEC] = {};
#pragma unroll 1
  for (i64 index = blockIdx.x; index < tiles; index += p.splits) {
    add_tile<T, VEC, WIDE, TAPS, STRIDE>(p, room, Tile(p, index, p.result.h, WIDE), first, sums);
  }
  const bool well = all_finite(sums);
#pragma unroll
  for (int r = 0; r < TAPS; ++r) {
#pragma unroll
    for (int i = 0; i < TAPS * VEC; ++i) folded[i / VEC * row + threadIdx.x * VEC + i % VEC] = sums[r][i / VEC][i % VEC];
#pragma unroll 1
    for (int s = 0; !well && channel < p.channels && s < TAPS; ++s) {
      A sum[VEC] = {};
      add_tap<T, VEC, WIDE>(p, r, s, channel, tiles, sum);
#pragma unroll
      for (int k = 0; k < VEC; ++k) folded[s * row + threadIdx.x * VEC + k] = sum[k];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TAPS * width; i += blockDim.x) {
      const int s = i / width, c = i - s * width;
      A sum = 0;
      for (int at = c; at < row; at += width) sum += folded[s * row + at];
      if (first + c < p.channels) p.parts[((r * TAPS + s) * p.channels + first + c) * p.splits + blockIdx.x] = sum;
    }
    __syncthreads();
  }
}

// Rows of x and of dy that have places of the thread's own: each row of dy is asked for as in a tile.
template <class T, int TAPS, int STRIDE> struct Rows {
  typedef Sight<TAPS, STRIDE, false> See;
  static constexpr int AHEAD = ROWS<T, 1, See::SPAN + COLUMNS> - 1;
  typedef Reader<T, 1, See::SPAN, AHEAD + 1> Source;
  typedef Reader<T, 1, COLUMNS, AHEAD / STRIDE + 2> Given;
};

// A strip of dy with what it sees of x.
template <class T, int TAPS, int STRIDE>
DEVICE void add_strip(const DepthwiseFilterParams<T>& p, pack<T, 1>* room, const Strip& strip, i64 channel,
                      acc_t<T> (&sums)[TAPS][TAPS][1]) {
  typedef Sight<TAPS, STRIDE, false> See;
  typedef Rows<T, TAPS, STRIDE> Taken;
  constexpr int AHEAD = Taken::AHEAD;
  const i64 begin = strip.begin - See::LEAD;
  typename Taken::Source x(
      room, p.x + offset(p.x_walk, strip.n, channel), p.x_walk, p.source, See::coming(begin, p.padding.h),
      See::column(strip.w, p.padding.w), (strip.end - begin) * STRIDE);
  typename Taken::Given dy(
      room + Taken::Source::PLACES, p.dy + offset(p.y_walk, strip.n, channel), p.y_walk, p.result, strip.begin, strip.w,
      strip.end - strip.begin);
  acc_t<T> given[See::OPEN][COLUMNS][1];
#pragma unroll
  for (int e = 0; e < See::OPEN; ++e) clear(given[e]);
#pragma unroll
  for (int row = 0; row < AHEAD; ++row) {
    if (row % STRIDE == 0) dy.ask();
    x.ask(), commit_copies();
  }
#pragma unroll 1
  for (i64 u = begin; u < strip.end; ++u) {
#pragma unroll
    for (int a = 0; a < STRIDE; ++a) {
      if ((a + AHEAD) % STRIDE == 0) dy.ask();
      x.ask(), commit_copies(), await_copies<AHEAD>();
      if (a == 0) give_row<BLOCK, T>(given, dy.take());
      add_row_to_filter<See, BLOCK, T>(x.take(), a, given, sums);
    }
  }
  await_copies<0>();  // the places are free again
}

template <class T, int TAPS, int STRIDE>
__global__ void __launch_bounds__(BLOCK, RESIDENT<T, TAPS>) depthwise_filter(const DepthwiseFilterParams<T> p) {
  typedef acc_t<T> A;
  constexpr int ALL = TAPS * TAPS;
  typedef Rows<T, TAPS, STRIDE> Taken;
  constexpr int PLACES = Taken::Source::PLACES + Taken::Given::PLACES;
  constexpr int BYTES = max_of(PLACES * (int)sizeof(T), ALL * BLOCK * (int)sizeof(A));
  __shared__ __align__(16) unsigned char raw[BYTES];
  A* folded = reinterpret_cast<A*>(raw);
  const i64 channel = blockIdx.y, slots = p.batch * p.segments * p.tiles_w, step = p.splits * BLOCK;
  const i64 mine = global_thread();
  A sums[TAPS][TAPS][1] = {};
#pragma unroll 1
  for (i64 slot = mine; slot < slots; slot += step) {
    add_strip<T, TAPS, STRIDE>(p, reinterpret_cast<pack<T, 1>*>(raw), Strip(p, slot), channel, sums);
  }
  __syncthreads();
  const bool well = all_finite(sums);
#pragma unroll
  for (int i = 0; i < ALL; ++i) folded[i * BLOCK + threadIdx.x] = sums[i / TAPS][i % TAPS][0];
#pragma unroll 1
  for (int i = 0; !well && i < ALL; ++i) {
    A sum[1] = {};
    add_tap<T>(p, i / TAPS, i % TAPS, channel, mine, step, sum);
    folded[i * BLOCK + threadIdx.x] = sum[0];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < ALL * 32; i += BLOCK) {
    A sum = 0;
    for (int at = i % 32; at < BLOCK; at += 32) sum += folded[i / 32 * BLOCK + at];
    sum = warp_reduce(sum, Sum());
    if (i % 32 == 0) p.parts[(i / 32 * p.channels + channel) * p.splits + blockIdx.x] = sum;
  }
}

template <class T> __global__ void __launch_bounds__(BLOCK) depthwise_filter_any(const DepthwiseFilterParams<T> p) {
  __shared__ acc_t<T> folded[BLOCK];
  const int lanes = (int)p.lanes;
  const i64 channel = (i64)blockIdx.y * lanes + threadIdx.x % lanes, tap = blockIdx.z;
  const i64 mine = (i64)blockIdx.x * (BLOCK / lanes) + threadIdx.x / lanes;
  const i64 step = p.splits * (BLOCK / lanes), r = quotient(tap, p.taps.w);
  acc_t<T> sum[1] = {};
  if (channel < p.channels) add_tap<T>(p, r, tap - r * p.taps.w, channel, mine, step, sum);
  folded[threadIdx.x] = sum[0];
  __syncthreads();
  if (threadIdx.x >= lanes || channel >= p.channels) return;
  for (int at = threadIdx.x + lanes; at < BLOCK; at += lanes) sum[0] += folded[at];
  p.parts[(tap * p.channels + channel) * p.splits + blockIdx.x] = sum[0];
}

// A warp for each tap of each channel.
template <class T> __global__ void __launch_bounds__(BLOCK) depthwise_fold(const DepthwiseFilterParams<T> p) {
  const i64 index = quotient(global_thread(), 32), tap = quotient(index, p.channels), channel = index - tap * p.channels;
  if (tap >= p.taps.h * p.taps.w) return;
  const acc_t<T>* parts = p.parts + index * p.splits;
  acc_t<T> sum = 0;
#pragma unroll 4
  for (i64 k = threadIdx.x % 32; k < p.splits; k += 32) sum += parts[k];
  sum = warp_reduce(sum, Sum());
  const i64 r = quotient(tap, p.taps.w), s = tap - r * p.taps.w;
  T* at = p.dw + (p.w_first + offset(p.w_walk, 0, channel, r, s));
  if (threadIdx.x % 32 == 0) *at = blend<T>(p.alpha, sum, p.beta, at);
}
