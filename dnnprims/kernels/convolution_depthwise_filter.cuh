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
DEVICE void add_row_to_filter(const pack<T, VEC> (&row)[See::SPAN], int a, const acc_t<T> (&given)[See::OPEN][COLUMNS][VEC],
                              acc_t<T> (&sums)[TAPS][TAPS][VEC]) {
#pragma unroll
  for (int b = 0; b < See::SPAN; ++b) {
    acc_t<T> v[VEC];
    unpack(v, row[b]);
#pragma unroll
    for (int i = 0; i < See::OPEN * COLUMNS; ++i) {
      const int e = i / COLUMNS, x = i % COLUMNS, r = See::row_tap(e, a), s = See::column_tap(x, b);
      if (r >= TAPS || s < 0 || s >= TAPS) continue;
#pragma unroll
      for (int k = 0; k < VEC; ++k) sums[r][s][k] = fma_(v[k], given[e][x][k], sums[r][s][k]);
    }
  }
}

// A strip of dy with what it sees of x.
template <class T, int VEC, int TAPS, int STRIDE>
DEVICE void add_strip(const DepthwiseFilterParams<T>& p, const Strip<T>& strip, i64 channel, acc_t<T> (&sums)[TAPS][TAPS][VEC]) {
  typedef Sight<TAPS, STRIDE, false> See;
  Reader<T, VEC, See::SPAN> x(
      p.x + offset(p.x_walk, strip.n, channel), p.x_walk, p.source,
      See::coming(strip.begin - See::LEAD, p.padding.h), See::column(strip.w, p.padding.w));
  Reader<T, VEC, COLUMNS> dy(p.dy + offset(p.y_walk, strip.n, channel), p.y_walk, p.result, strip.begin, strip.w);
  acc_t<T> given[See::OPEN][COLUMNS][VEC];
#pragma unroll
  for (int e = 0; e < See::OPEN; ++e) clear(given[e]);
  pack<T, VEC> rows[STRIDE][See::SPAN], next[STRIDE][See::SPAN] = {}, arriving[COLUMNS] = {};
#pragma unroll 1
  for (i64 u = strip.begin - See::LEAD - 1; u < strip.end; ++u) {  // as above
#pragma unroll
    for (int e = 0; e + 1 < See::OPEN; ++e) copy(given[e], given[e + 1]);
#pragma unroll
    for (int q = 0; q < COLUMNS; ++q) unpack(given[See::LEAD][q], arriving[q]);
    dy.read(arriving, u + 1 + See::LEAD < strip.end);
#pragma unroll
    for (int a = 0; a < STRIDE; ++a) {
#pragma unroll
      for (int b = 0; b < See::SPAN; ++b) rows[a][b] = next[a][b];
      x.read(next[a], u + 1 < strip.end);
    }
#pragma unroll
    for (int a = 0; a < STRIDE; ++a) add_row_to_filter<See, T, VEC, TAPS, STRIDE>(rows[a], a, given, sums);
  }
}

template <class T, int VEC, int TAPS, int STRIDE>
__global__ void __launch_bounds__(FILTER_BLOCK, RESIDENT<T, TAPS>) depthwise_filter(const DepthwiseFilterParams<T> p) {
  typedef acc_t<T> A;
  constexpr int ALL = TAPS * TAPS, ROW = FILTER_BLOCK * VEC;
  __shared__ A folded[ALL * ROW];
  const int lanes = (int)p.lanes, width = lanes * VEC;
  const i64 first = (i64)blockIdx.y * width, channel = first + threadIdx.x % lanes * VEC;
  const i64 slots = channel < p.channels ? p.batch * p.segments * p.tiles_w : 0, step = p.splits * (FILTER_BLOCK / lanes);
  const i64 mine = (i64)blockIdx.x * (FILTER_BLOCK / lanes) + threadIdx.x / lanes;
  A sums[TAPS][TAPS][VEC] = {};
#pragma unroll 1
  for (i64 slot = mine; slot < slots; slot += step) {
    add_strip<T, VEC, TAPS, STRIDE>(p, Strip<T>(p, slot), channel, sums);
  }
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
  for (int i = threadIdx.x; i < ALL * width * SHARE; i += FILTER_BLOCK) {
    const int tap = i / SHARE / width, c = i / SHARE % width;
    A sum = 0;
    for (int at = c + i % SHARE * width; at < ROW; at += width * SHARE) sum += folded[tap * ROW + at];
    if constexpr (SHARE > 1) sum = warp_reduce(sum, Sum());
    if (first + c < p.channels && i % SHARE == 0) p.parts[(tap * p.channels + first + c) * p.splits + blockIdx.x] = sum;
  }
}

template <class T> __global__ void __launch_bounds__(FILTER_BLOCK) depthwise_filter_any(const DepthwiseFilterParams<T> p) {
  __shared__ acc_t<T> folded[FILTER_BLOCK];
  const int lanes = (int)p.lanes;
  const i64 channel = (i64)blockIdx.y * lanes + threadIdx.x % lanes, tap = blockIdx.z;
  const i64 mine = (i64)blockIdx.x * (FILTER_BLOCK / lanes) + threadIdx.x / lanes;
  const i64 step = p.splits * (FILTER_BLOCK / lanes), r = quotient(tap, p.taps.w);
  acc_t<T> sum[1] = {};
  if (channel < p.channels) add_tap<T, 1>(p, r, tap - r * p.taps.w, channel, mine, step, sum);
  folded[threadIdx.x] = sum[0];
  __syncthreads();
  if (threadIdx.x >= lanes || channel >= p.channels) return;
  for (int at = threadIdx.x + lanes; at < FILTER_BLOCK; at += lanes) sum[0] += folded[at];
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
