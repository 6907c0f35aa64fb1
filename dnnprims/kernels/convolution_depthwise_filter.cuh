// The gradient of depthwise convolutions in their filters: the kernels, whose plan convolution_depthwise.cu tells.
#pragma once
#include "convolution_depthwise.cuh"
#include "reduce.cuh"

template <class T> struct DepthwiseFilterParams {
  T* dw;
  acc_t<T>* parts;
  const T* dy;
  const T* x;
  acc_t<T> alpha, beta;
  i64 batch, channels, lanes, tiles_w, segments, walk, splits;
  Extent source, result, taps, stride, dilation, padding;
  Walk x_walk, y_walk, w_walk;
  i64 w_first;
};

DEVICE constexpr int max_of(int a, int b) { return a > b ? a : b; }

// The strip of positions that is number `slot`.
template <class T> struct Strip {
  i64 n, w, begin, end;
  DEVICE Strip(const DepthwiseFilterParams<T>& p, i64 slot) {
    n = slot;
    w = split_off(n, p.tiles_w) * COLUMNS;
    begin = split_off(n, p.segments) * p.walk;
    end = begin + p.walk < p.result.h ? begin + p.walk : p.result.h;
  }
};

// One tap over the thread's strips, of nothing but what is in the image.
template <class T, int VEC>
DEVICE void add_tap(const DepthwiseFilterParams<T>& p, i64 r, i64 s, i64 channel, i64 slot, i64 step, acc_t<T> (&sum)[VEC]) {
#pragma unroll 1
  for (; slot < p.batch * p.segments * p.tiles_w; slot += step) {
    const Strip<T> strip(p, slot);
#pragma unroll 1
    for (i64 h = strip.begin; h < strip.end; ++h) {
      const i64 row = seen<false>(h, r, p.stride.h, p.dilation.h, p.padding.h, p.source.h);
#pragma unroll 1
      for (i64 w = strip.w; row >= 0 && w < strip.w + COLUMNS && w < p.result.w; ++w) {
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
}

// What a row of x adds for the rows of dy that see it: `given` has them, the oldest one first.
template <class See, class T, int VEC, int TAPS, int STRIDE>
DEVICE void add_row_to_filter(const pack<T, VEC>* row, int a, const acc_t<T> (&given)[See::OPEN][COLUMNS][VEC],
                              acc_t<T> (&sums)[TAPS][TAPS][VEC]) {
#pragma unroll
  for (int b = 0; b < See::SPAN; ++b) {
    acc_t<T> v[VEC];
    unpack(v, row[b * BLOCK]);
#pragma unroll
    for (int i = 0; i < See::OPEN * COLUMNS; ++i) {
      const int e = i / COLUMNS, x = i % COLUMNS, r = See::row_tap(e, a), s = See::column_tap(x, b);
      if (r >= TAPS || s < 0 || s >= TAPS) continue;
#pragma unroll
      for (int k = 0; k < VEC; ++k) sums[r][s][k] = fma_(v[k], given[e][x][k], sums[r][s][k]);
    }
  }
}

// Rows of x and of dy that have places: each row of dy is asked for with the first row of x that it sees last.
template <class T, int VEC, int TAPS, int STRIDE> struct Rows {
  typedef Sight<TAPS, STRIDE, false> See;
  static constexpr int AHEAD = ROWS<T, VEC, See::SPAN + COLUMNS> - 1;
  typedef Reader<T, VEC, See::SPAN, AHEAD + 1> Source;
  typedef Reader<T, VEC, COLUMNS, AHEAD / STRIDE + 2> Given;
};

// A strip of dy with what it sees of x.
template <class T, int VEC, int TAPS, int STRIDE>
DEVICE void add_strip(const DepthwiseFilterParams<T>& p, pack<T, VEC>* room, const Strip<T>& strip, i64 channel,
                      acc_t<T> (&sums)[TAPS][TAPS][VEC]) {
  typedef Sight<TAPS, STRIDE, false> See;
  typedef Rows<T, VEC, TAPS, STRIDE> Taken;
  constexpr int AHEAD = Taken::AHEAD;
  const i64 begin = strip.begin - See::LEAD;
  typename Taken::Source x(
      room, p.x + offset(p.x_walk, strip.n, channel), p.x_walk, p.source, See::coming(begin, p.padding.h),
      See::column(strip.w, p.padding.w), (strip.end - begin) * STRIDE);
  typename Taken::Given dy(
      room + Taken::Source::PLACES, p.dy + offset(p.y_walk, strip.n, channel), p.y_walk, p.result, strip.begin, strip.w,
      strip.end - strip.begin);
  acc_t<T> given[See::OPEN][COLUMNS][VEC];
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
      if (a == 0) {
#pragma unroll
        for (int e = 0; e + 1 < See::OPEN; ++e) copy(given[e], given[e + 1]);
        const pack<T, VEC>* arrived = dy.take();
#pragma unroll
        for (int q = 0; q < COLUMNS; ++q) unpack(given[See::LEAD][q], arrived[q * BLOCK]);
      }
      add_row_to_filter<See, T, VEC, TAPS, STRIDE>(x.take(), a, given, sums);
    }
  }
  await_copies<0>();  // the places are free again
}

template <class T, int VEC, int TAPS, int STRIDE>
__global__ void __launch_bounds__(BLOCK, RESIDENT<T, TAPS>) depthwise_filter(const DepthwiseFilterParams<T> p) {
  typedef acc_t<T> A;
  constexpr int ALL = TAPS * TAPS, ROW = BLOCK * VEC;
  typedef Rows<T, VEC, TAPS, STRIDE> Taken;
  constexpr int PLACES = Taken::Source::PLACES + Taken::Given::PLACES;
  constexpr int BYTES = max_of(PLACES * (int)sizeof(pack<T, VEC>), ALL * ROW * (int)sizeof(A));
  __shared__ __align__(16) unsigned char raw[BYTES];
  A* folded = reinterpret_cast<A*>(raw);
  const int lanes = (int)p.lanes, width = lanes * VEC;
  const i64 first = (i64)blockIdx.y * width, channel = first + threadIdx.x % lanes * VEC;
  const i64 slots = channel < p.channels ? p.batch * p.segments * p.tiles_w : 0, step = p.splits * (BLOCK / lanes);
  const i64 mine = (i64)blockIdx.x * (BLOCK / lanes) + threadIdx.x / lanes;
  A sums[TAPS][TAPS][VEC] = {};
#pragma unroll 1
  for (i64 slot = mine; slot < slots; slot += step) {
    add_strip<T, VEC, TAPS, STRIDE>(p, reinterpret_cast<pack<T, VEC>*>(raw), Strip<T>(p, slot), channel, sums);
  }
  __syncthreads();
  bool well = true;
#pragma unroll
  for (int r = 0; r < TAPS; ++r) well &= finite(sums[r]);
#pragma unroll
  for (int i = 0; i < ALL; ++i) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) folded[i * ROW + threadIdx.x * VEC + k] = sums[i / TAPS][i % TAPS][k];
  }
#pragma unroll 1
  for (int i = 0; !well && i < ALL; ++i) {
    A sum[VEC] = {};
    add_tap<T, VEC>(p, i / TAPS, i % TAPS, channel, mine, step, sum);
#pragma unroll
    for (int k = 0; k < VEC; ++k) folded[i * ROW + threadIdx.x * VEC + k] = sum[k];
  }
  __syncthreads();
  // As many threads for each tap and channel as go into it evenly, up to a warp.
  constexpr int SHARE = VEC == 1 ? 32 : 1;
  for (int i = threadIdx.x; i < ALL * width * SHARE; i += BLOCK) {
    const int tap = i / SHARE / width, c = i / SHARE % width;
    A sum = 0;
    for (int at = c + i % SHARE * width; at < ROW; at += width * SHARE) sum += folded[tap * ROW + at];
    if constexpr (SHARE > 1) sum = warp_reduce(sum, Sum());
    if (first + c < p.channels && i % SHARE == 0) p.parts[(tap * p.channels + first + c) * p.splits + blockIdx.x] = sum;
  }
}

template <class T> __global__ void __launch_bounds__(BLOCK) depthwise_filter_any(const DepthwiseFilterParams<T> p) {
  __shared__ acc_t<T> folded[BLOCK];
  const int lanes = (int)p.lanes;
  const i64 channel = (i64)blockIdx.y * lanes + threadIdx.x % lanes, tap = blockIdx.z;
  const i64 mine = (i64)blockIdx.x * (BLOCK / lanes) + threadIdx.x / lanes;
  const i64 step = p.splits * (BLOCK / lanes), r = quotient(tap, p.taps.w);
  acc_t<T> sum[1] = {};
  if (channel < p.channels) add_tap<T, 1>(p, r, tap - r * p.taps.w, channel, mine, step, sum);
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
