// Depthwise convolutions, one filter for each channel, of channels that lie side by side (NHWC), and their gradients.
//
// The maths of convolution.cu with one channel in each group and one out of it:
// Forward   s[n, o, k] = sum_r x[n, o * stride - padding + r * dilation, k] w[k, r], then z and y as there
// Data      dx[n, i, k] = the same of dy: where the stride is 1 a forward convolution with the filter flipped
// Filter    dw[k, r] = alpha sum_{n, o} dy[n, o, k] x[n, o * stride - padding + r * dilation, k] + beta dw
//
// Shapes    x (n, h, w, k), y (n, p, q, k) of T, channels next to each other, other steps any multiple of VEC; w (k, r, s) of
//           T with any steps; b of T, scale and shift of acc_t<T>; parts: scratch, a partial sum of acc_t<T> for each tap,
//           channel and split.
// Plan      depthwise          square filters of 3 or 5 taps at stride 1 or 2, dense: `lanes` threads of a block have up to
//                              64 channels side by side, the others other strips of 4 positions, each of which goes down
//                              its rows with its filters in registers, the next row being on its way.
//           depthwise_any      any filter: a thread an element.
//           depthwise_filter   likewise down the rows, with a sum for each tap: a block's threads go over its share of the
//                              strips, fold the sums in shared memory, and leave a partial sum; depthwise_fold adds these.
//           depthwise_filter_any   a block a tap, its positions in shares.
// Numerics  fused multiply-adds in acc_t<T>, source row after source row, and folds in an order fixed by the shapes: the
//           same bits each time. What lies outside of the image is read as 0, which adds nothing but where the other factor
//           is infinite: sums that are not finite are made again, leaving out what is outside.
// Cost      2 taps flops an element, read and written once; what neighbouring strips share comes from the caches.
// Limits    two spatial axes at most, images below 2^31 in each extent.
#include "convolution_depthwise.cuh"
#include "reduce.cuh"

constexpr int BLOCK = 128, FILTER_BLOCK = 128;
// Blocks of a multiprocessor that registers must leave room for; left to itself, ptxas aims at more and spills.
template <class T, int TAPS> constexpr int RESIDENT = TAPS == 5 && sizeof(T) == 4 ? 2 : 3;

template <class T> struct DepthwiseParams {
  T* y;
  const T* x;
  const T* w;
  const T* b;
  const T* residual;
  const acc_t<T>* scale;
  const acc_t<T>* shift;
  acc_t<T> alpha1, alpha2, alpha, beta, c0, c1;
  i64 batch, channels, lanes, tiles_w, segments, walk, units;
  Extent source, result, taps, stride, dilation, padding, begin;
  Walk x_walk, y_walk, w_walk, residual_walk;
  i64 w_first, mode, bare;  // bare: the rounded sums are the results
};

template <class T, int VEC> struct Dressing {
  typedef acc_t<T> A;
  A b[VEC], scale[VEC], shift[VEC];
  // What is not there leaves every number as it is, -0 too.
  DEVICE Dressing(const DepthwiseParams<T>& p, i64 channel) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      b[k] = p.b ? to_acc(p.b[channel + k]) : A(-0.0);
      scale[k] = p.scale ? p.scale[channel + k] : A(1);
      shift[k] = p.shift ? p.shift[channel + k] : A(-0.0);
    }
  }
};

// N results of a row from column w on become those of their sums, as far as they are there.
template <class T, int VEC, bool FUSE, int N>
DEVICE void finish(const DepthwiseParams<T>& p, acc_t<T> (&sums)[N][VEC], i64 n, i64 h, i64 w, i64 channel) {
  typedef acc_t<T> A;
  T* y = p.y + (n * p.y_walk.outer + h * p.y_walk.h + w * p.y_walk.w + channel);
  const int step = (int)p.y_walk.w, first = (int)w, columns = (int)p.result.w;
  if (p.bare) {
#pragma unroll
    for (int q = 0; q < N; ++q)
      if (inside(first + q, columns)) store(y + q * step, 0, rounded<T>(sums[q]));
    return;
  }
  const Dressing<T, VEC> d(p, channel);
  A z[N * VEC];
#pragma unroll
  for (int i = 0; i < N * VEC; ++i)
    z[i] = (p.alpha1 * sums[i / VEC][i % VEC] + d.b[i % VEC]) * d.scale[i % VEC] + d.shift[i % VEC];
  if (p.residual) {
    const Walk& walk = p.residual_walk;
    const T* residual = p.residual + (n * walk.outer + h * walk.h + w * walk.w + channel);
#pragma unroll
    for (int q = 0; q < N; ++q) {
      pack<T, VEC> more = {};
      if (inside(first + q, columns)) more = load<VEC>(residual + q * walk.w, 0);
#pragma unroll
      for (int k = 0; k < VEC; ++k) z[q * VEC + k] += p.alpha2 * to_acc(more.lane[k]);
    }
  }
  if constexpr (FUSE) activate<T>(p.mode, p.c0, p.c1, z);
#pragma unroll
  for (int q = 0; q < N; ++q) {
    A result[VEC];
#pragma unroll
    for (int k = 0; k < VEC; ++k) result[k] = z[q * VEC + k];
    if (inside(first + q, columns)) store_blended<VEC>(y + q * step, 0, result, p.alpha, p.beta);
  }
}

// The source position of a tap, or a negative number where there is none.
template <bool DATA> DEVICE i64 seen(i64 position, i64 tap, i64 stride, i64 dilation, i64 padding, i64 extent) {
  if (!DATA) {
    const i64 i = position * stride - padding + tap * dilation;
    return i < extent ? i : -1;
  }
  const i64 from = position + padding - tap * dilation;
  if (from < 0) return -1;
  const i64 o = quotient(from, stride);
  return o * stride == from && o < extent ? o : -1;
}

// The sum of one result, tap by tap, of nothing but what is in the image.
template <class T, int VEC, bool DATA>
DEVICE void gather(const DepthwiseParams<T>& p, i64 n, i64 h, i64 w, i64 channel, acc_t<T> (&sum)[1][VEC]) {
#pragma unroll
  for (int k = 0; k < VEC; ++k) sum[0][k] = 0;
#pragma unroll 1
  for (i64 r = 0; r < p.taps.h; ++r) {
    const i64 row = seen<DATA>(h, r, p.stride.h, p.dilation.h, p.padding.h, p.source.h);
    if (row < 0) continue;
#pragma unroll 1
    for (i64 s = 0; s < p.taps.w; ++s) {
      const i64 column = seen<DATA>(w, s, p.stride.w, p.dilation.w, p.padding.w, p.source.w);
      if (column < 0) continue;
      const T* x = p.x + (n * p.x_walk.outer + row * p.x_walk.h + column * p.x_walk.w + channel);
      const T* tap = p.w + (p.w_first + channel * p.w_walk.outer + r * p.w_walk.h + s * p.w_walk.w);
      const pack<T, VEC> v = load<VEC>(x, 0);
#pragma unroll
      for (int k = 0; k < VEC; ++k) sum[0][k] = fma_(to_acc(v.lane[k]), to_acc(tap[k * p.w_walk.outer]), sum[0][k]);
    }
  }
}

// The filters of a block's channels in shared memory, tap by tap, from where each thread takes its own.
template <class T, int VEC, int TAPS>
DEVICE void read_filters(const DepthwiseParams<T>& p, int lanes, acc_t<T> (&w)[TAPS][TAPS][VEC]) {
  constexpr int ALL = TAPS * TAPS, PITCH = MOST_WIDTH + VEC;
  __shared__ acc_t<T> filters[ALL * PITCH];
  const i64 first = (i64)blockIdx.y * lanes * VEC;
  for (int i = threadIdx.x; i < ALL * lanes * VEC; i += BLOCK) {
    const int channel = i / ALL, tap = i % ALL;
    if (first + channel >= p.channels) continue;
    const T* from = p.w + (p.w_first + (first + channel) * p.w_walk.outer);
    filters[tap * PITCH + channel] = to_acc(from[tap / TAPS * p.w_walk.h + tap % TAPS * p.w_walk.w]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < ALL; ++i) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) w[i / TAPS][i % TAPS][k] = filters[i * PITCH + threadIdx.x % lanes * VEC + k];
  }
}

// The same of each of N results of a row, one after the other.
template <class T, int VEC, bool DATA, int N>
DEVICE void gather_row(const DepthwiseParams<T>& p, i64 n, i64 h, i64 w, i64 channel, acc_t<T> (&sums)[N][VEC]) {
#pragma unroll 1
  for (int i = 0; i < N; ++i) {
    acc_t<T> found[1][VEC];
    clear(found);
    if (within(w + i, p.result.w)) gather<T, VEC, DATA>(p, n, h, w + i, channel, found);
#pragma unroll
    for (int q = 0; q + 1 < N; ++q) {
#pragma unroll
      for (int k = 0; k < VEC; ++k) sums[q][k] = sums[q + 1][k];
    }
#pragma unroll
    for (int k = 0; k < VEC; ++k) sums[N - 1][k] = found[0][k];
  }
}

// What a row that comes adds to the rows that are open.
template <class See, class T, int VEC, int TAPS>
DEVICE void add_row(const pack<T, VEC> (&row)[See::SPAN], int a, const acc_t<T> (&filter)[TAPS][TAPS][VEC],
                    acc_t<T> (&open)[See::OPEN][COLUMNS][VEC]) {
#pragma unroll
  for (int b = 0; b < See::SPAN; ++b) {
    acc_t<T> v[VEC];
    unpack(v, row[b]);
#pragma unroll
    for (int i = 0; i < See::OPEN * COLUMNS; ++i) {
      const int e = i / COLUMNS, x = i % COLUMNS, r = See::row_tap(e, a), s = See::column_tap(x, b);
      if (r < 0 || r >= TAPS || s < 0 || s >= TAPS) continue;
#pragma unroll
      for (int k = 0; k < VEC; ++k) open[e][x][k] = fma_(v[k], filter[r][s][k], open[e][x][k]);
    }
  }
}

template <class T, int VEC, int TAPS, int STRIDE, bool DATA>
__global__ void __launch_bounds__(BLOCK, RESIDENT<T, TAPS>) depthwise(const DepthwiseParams<T> p) {
  typedef acc_t<T> A;
  typedef Sight<TAPS, STRIDE, DATA> See;
  const int lanes = (int)p.lanes;
  A filter[TAPS][TAPS][VEC];
  read_filters<T, VEC>(p, lanes, filter);
  const i64 channel = ((i64)blockIdx.y * lanes + threadIdx.x % lanes) * VEC;
  i64 n = (i64)blockIdx.x * (BLOCK / lanes) + threadIdx.x / lanes;
  const i64 w = split_off(n, p.tiles_w) * COLUMNS + p.begin.w, first = split_off(n, p.segments) * p.walk + p.begin.h;
  if (n >= p.batch || channel >= p.channels) return;
  const i64 end = first + p.walk < p.units + p.begin.h ? first + p.walk : p.units + p.begin.h;
  A open[See::OPEN][COLUMNS][VEC];
#pragma unroll
  for (int e = 0; e < See::OPEN; ++e) clear(open[e]);
  const i64 begin = first - See::LEAD, column = See::column(w, p.padding.w);
  Reader<T, VEC, See::SPAN> reader(
      p.x + (n * p.x_walk.outer + channel), p.x_walk, p.source, See::coming(begin, p.padding.h), column);
  pack<T, VEC> rows[See::COME][See::SPAN], next[See::COME][See::SPAN] = {};
#pragma unroll 1
  for (i64 u = begin - 1; u < end; ++u) {  // one step more, in which the first rows are asked for
#pragma unroll
    for (int a = 0; a < See::COME; ++a) {
#pragma unroll
      for (int b = 0; b < See::SPAN; ++b) rows[a][b] = next[a][b];
      reader.read(next[a], u + 1 < end);
    }
    if (u < begin) continue;
#pragma unroll
    for (int a = 0; a < See::COME; ++a) add_row<See, T>(rows[a], a, filter, open);
#pragma unroll
    for (int y = 0; y < See::DONE; ++y) {
      const i64 h = See::done(u, p.padding.h) + y;
      if (u < first || !within(h, p.result.h)) continue;
      if (!finite(open[y])) gather_row<T, VEC, DATA>(p, n, h, w, channel, open[y]);
      finish<T, VEC, !DATA>(p, open[y], n, h, w, channel);
    }
#pragma unroll
    for (int e = 0; e < See::OPEN; ++e) {
      if (e + See::DONE < See::OPEN) copy(open[e], open[e + See::DONE < See::OPEN ? e + See::DONE : e]);
      else clear(open[e]);
    }
  }
}

template <class T, bool DATA> __global__ void __launch_bounds__(BLOCK) depthwise_any(const DepthwiseParams<T> p) {
  const i64 row = quotient(global_thread(), p.channels), channel = global_thread() - row * p.channels;
  const i64 line = quotient(row, p.result.w), w = row - line * p.result.w;
  const i64 n = quotient(line, p.result.h), h = line - n * p.result.h;
  if (n >= p.batch) return;
  acc_t<T> sum[1][1];
  gather<T, 1, DATA>(p, n, h, w, channel, sum);
  finish<T, 1, !DATA>(p, sum, n, h, w, channel);
}

// ---- filter ---------------------------------------------------------------------------------------------------------

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
        const T* dy = p.dy + (strip.n * p.y_walk.outer + h * p.y_walk.h + w * p.y_walk.w + channel);
        const T* x = p.x + (strip.n * p.x_walk.outer + row * p.x_walk.h + column * p.x_walk.w + channel);
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
      p.x + (strip.n * p.x_walk.outer + channel), p.x_walk, p.source,
      See::coming(strip.begin - See::LEAD, p.padding.h), See::column(strip.w, p.padding.w));
  Reader<T, VEC, COLUMNS> dy(p.dy + (strip.n * p.y_walk.outer + channel), p.y_walk, p.result, strip.begin, strip.w);
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
  for (int i = threadIdx.x; i < ALL * width; i += FILTER_BLOCK) {
    const int tap = i / width, c = i % width;
    if (first + c >= p.channels) continue;
    A sum = 0;
    for (int at = c; at < ROW; at += width) sum += folded[tap * ROW + at];
    p.parts[(tap * p.channels + first + c) * p.splits + blockIdx.x] = sum;
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
  T* at = p.dw + (p.w_first + channel * p.w_walk.outer + r * p.w_walk.h + s * p.w_walk.w);
  if (threadIdx.x % 32 == 0) *at = blend<T>(p.alpha, sum, p.beta, at);
}
