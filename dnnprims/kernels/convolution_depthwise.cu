// Depthwise convolutions, one filter for each channel, and their gradients.
//
// The maths of convolution.cu with one channel in each group and one out of it:
// Forward   s[n, o, k] = sum_r x[n, o * stride - padding + r * dilation, k] w[k, r], then z and y as there
// Data      dx[n, i, k] = the same of dy: where the stride is 1 a forward convolution with the filter flipped
// Filter    dw[k, r] = alpha sum_{n, o} dy[n, o, k] x[n, o * stride - padding + r * dilation, k] + beta dw
//
// Shapes    x (n, k, h, w), y (n, k, p, q) of T, any steps; where VEC channels are taken at once they lie side by side and
//           the other steps are multiples of VEC. w (k, r, s) of T with any steps; b of T, scale and shift of acc_t<T>;
//           parts: scratch, a partial sum of acc_t<T> for each tap, channel and split.
// Plan      depthwise          square filters of 3 or 5 taps at stride 1 or 2, dense: `lanes` threads of a block have up to
//                              64 channels side by side, the others other strips of 4 positions, each of which goes down
//                              its rows with its filters in registers; the next rows are on their way to shared memory.
//           depthwise_tile     likewise, of narrow images and of 5 taps a side: the strips of a block lie side by side, in
//                              several images where these are narrow, and go down together; each chunk of what they see
//                              is copied to shared memory once for all of them.
//           depthwise_any      any filter: a thread an element.
//           depthwise_filter_tile, depthwise_filter   as the tiles and, where channels do not lie side by side, the strips,
//                              with a sum for each tap: a block's threads go over its share, fold their sums in shared
//                              memory, and leave a partial sum; depthwise_fold adds these.
//           depthwise_filter_any   a block a tap, its positions in shares.
// Numerics  fused multiply-adds in acc_t<T>, source row after source row, and folds in an order fixed by the shapes: the
//           same bits each time. What lies outside of the image is read as 0, which adds nothing but where the other factor
//           is infinite: results of filters that are not finite, and sums of gradients that are not, are made again, leaving
//           out what is outside.
// Cost      2 taps flops an element, read and written once; what neighbouring strips share comes from the caches.
// Predicted 12 instructions an element of a forward 3x3 (9 products, 1.5 conversions, the rest copies and stores): 0.6 of the
//           issue slots at the rate of a copy, so that bytes on their way decide; 30 of a 5x5, which decide.
// Measured  NVIDIA H200, 2026-11-28, bfloat16 NHWC, batch 256, us of a call, forward / data / filter, and cuDNN through PyTorch
//           2.11 (channels_last), whose figures are another run's; in brackets what a copy of as many bytes takes:
//           3x3  64@112              226 /     / 217     323 / 647 / 381     (193)
//           3x3  128@56              134 /     / 125     168 / 326 / 215     (97)
//           3x3  128@56 stride 2      82 / 88 / 86        84 / 323 / 121     (60)
//           3x3  512@14               41 / 42 / 54        49 / 86 / 81       (24)
//           3x3  512@7                22 / 25 / 29
//           5x5  240@28              117 / 118 / 121     197 / 329 / 183     (45)
//           5x5  672@14               92 / 90 / 108      141 / 231 / 177     (32)
//           5x5  240@28 stride 2      73 / 83 / 78
//           Data at 64@112 and 128@56 are those of the kernel of forward and were not timed.
//           At stride 2 cuDNN's forward is at 0.71 of a copy: 1.5 times its speed is beyond one.
//           ncu, strips forward 64@112, with stores of more instructions (237 us): L2 83 %, memory 74 %, issue slots 66 % of 23
//           instructions an element, 11 warps on a multiprocessor for 150 registers. Tiles there: memory 68 %, L2 79 %, issue
//           slots 61 %, 255 us, and as many with 24 % fewer instructions, two rows for a barrier in place of one and 3 or 4
//           rows ahead; every byte they see is looked up in the L2 2.5 times (strips 1.6, gradients 1.5), for which no cause
//           was found. Tiles of 5x5: issue slots 72 to 76 %, L2 56 %, memory 39 %: instructions, of which 3 in 4 are products.
//           Tiles of gradients 64@112: L2 86 %, memory 76 %. 8 positions of a thread take as long where they come out even, 6
//           longer (149 at 128@56), four channels by four positions 275; blocks of 128 threads 257, of gradients 264.
// Limits    two spatial axes at most, images below 2^31 in each extent.
#include "convolution_depthwise_filter.cuh"

template <class T> struct DepthwiseParams {
  T* y;
  const T* x;
  const T* w;
  const T* b;
  const T* residual;
  const acc_t<T>* scale;
  const acc_t<T>* shift;
  acc_t<T> alpha1, alpha2, alpha, beta, c0, c1;
  i64 batch, channels, lanes, strips, images, tiles_w, segments, walk, units;
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

// N results of a row from column w on, at y, become those of their sums, as far as they are there.
template <class T, int VEC, bool FUSE, int N>
DEVICE void finish(const DepthwiseParams<T>& p, acc_t<T> (&sums)[N][VEC], T* y, i64 n, i64 h, i64 w, i64 channel) {
  typedef acc_t<T> A;
  const int step = (int)p.y_walk.w, first = (int)w, columns = (int)p.result.w;
  if (p.bare) return store_row<T>(y, step, first, columns, sums);
  const Dressing<T, VEC> d(p, channel);
  A z[N * VEC];
#pragma unroll
  for (int i = 0; i < N * VEC; ++i)
    z[i] = (p.alpha1 * sums[i / VEC][i % VEC] + d.b[i % VEC]) * d.scale[i % VEC] + d.shift[i % VEC];
  if (p.residual) {
    const T* residual = p.residual + offset(p.residual_walk, n, channel, h, w);
#pragma unroll
    for (int q = 0; q < N; ++q) {
      pack<T, VEC> more = {};
      if (inside(first + q, columns)) more = load<VEC>(residual + q * p.residual_walk.w, 0);
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
      const T* x = p.x + offset(p.x_walk, n, channel, row, column);
      const T* tap = p.w + (p.w_first + offset(p.w_walk, 0, channel, r, s));
      const pack<T, VEC> v = load<VEC>(x, 0);
#pragma unroll
      for (int k = 0; k < VEC; ++k) sum[0][k] = fma_(to_acc(v.lane[k]), to_acc(tap[k * p.w_walk.channel]), sum[0][k]);
    }
  }
}

// The filters of a thread's channels, by way of shared memory.
template <class T, int VEC, int TAPS>
DEVICE void read_filters(const DepthwiseParams<T>& p, int lanes, acc_t<T> (&w)[TAPS][TAPS][VEC]) {
  constexpr int ALL = TAPS * TAPS, WIDTH = PITCH / (int)sizeof(T) + VEC;
  __shared__ acc_t<T> filters[ALL * WIDTH];
  const i64 first = (i64)blockIdx.y * lanes * VEC;
  for (int i = threadIdx.x; i < ALL * lanes * VEC; i += blockDim.x) {
    const int channel = i / ALL, tap = i % ALL;
    if (first + channel >= p.channels) continue;
    const T* from = p.w + (p.w_first + offset(p.w_walk, 0, first + channel));
    filters[tap * WIDTH + channel] = to_acc(from[tap / TAPS * p.w_walk.h + tap % TAPS * p.w_walk.w]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < ALL; ++i) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) w[i / TAPS][i % TAPS][k] = filters[i * WIDTH + threadIdx.x % lanes * VEC + k];
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
template <class See, int STEP, class T, int VEC, int TAPS>
DEVICE void add_row(const pack<T, VEC>* row, int a, const acc_t<T> (&filter)[TAPS][TAPS][VEC],
                    acc_t<T> (&open)[See::OPEN][See::WIDE][VEC]) {
#pragma unroll
  for (int b = 0; b < See::SPAN; ++b) {
    acc_t<T> v[VEC];
    take<T>(v, row[b * STEP]);
#pragma unroll
    for (int i = 0; i < See::OPEN * See::WIDE; ++i) {
      const int e = i / See::WIDE, x = i % See::WIDE, r = See::row_tap(e, a), s = See::column_tap(x, b);
      if (r < 0 || r >= TAPS || s < 0 || s >= TAPS) continue;
#pragma unroll
      for (int k = 0; k < VEC; ++k) open[e][x][k] = fma_(v[k], filter[r][s][k], open[e][x][k]);
    }
  }
}

// The rounded or dressed results of a row, and the rows that are open move on.
template <class See, class T, int VEC, int TAPS, bool DATA>
DEVICE void finish_rows(const DepthwiseParams<T>& p, acc_t<T> (&open)[See::OPEN][See::WIDE][VEC], bool done, bool well, T*& y,
                        int& h, i64 n, i64 w, i64 channel) {
#pragma unroll
  for (int e = 0; e < See::DONE; ++e, ++h, y += p.y_walk.h) {
    if (!done || !inside(h, (int)p.result.h)) continue;
    if (!well) gather_row<T, VEC, DATA>(p, n, h, w, channel, open[e]);
    finish<T, VEC, !DATA>(p, open[e], y, n, h, w, channel);
  }
#pragma unroll
  for (int e = 0; e < See::OPEN; ++e) {
    if (e + See::DONE < See::OPEN) copy(open[e], open[e + See::DONE < See::OPEN ? e + See::DONE : e]);
    else clear(open[e]);
  }
}
template <class T, int VEC, int WIDE, int TAPS, int STRIDE, bool DATA>
__global__ void __launch_bounds__(MOST_THREADS<TAPS>, TILE_RESIDENT<TAPS>) depthwise_tile(const DepthwiseParams<T> p) {
  typedef Sight<TAPS, STRIDE, DATA, WIDE> See;
  typedef TileRows<T, VEC, See::SPAN, See::ADVANCE, IMAGE_RING> Rows;
  DYNAMIC_SHARED(unsigned char, room);
  const Tile tile(p, blockIdx.x, p.units, WIDE);
  const int first = (int)blockIdx.y * tile.lanes * VEC, channel = first + tile.lane * VEC;
  const int begin = tile.begin + (int)p.begin.h - See::LEAD, left = tile.w + (int)p.begin.w;
  const int steps = tile.end - tile.begin;
  Rows rows(room, tile, p.x + offset(p.x_walk, tile.first, first), p.x_walk, p.source, p.channels - first,
            p.batch - tile.first, See::coming(begin, p.padding.h), See::column(left, p.padding.w),
            (steps + See::LEAD) * See::COME);
#pragma unroll 1
  for (int row = 0; row < IMAGE_RING - AT_ONCE; row += AT_ONCE) rows.ask(), rows.ask(), commit_copies();
  acc_t<T> filter[TAPS][TAPS][VEC], open[See::OPEN][WIDE][VEC];
  read_filters<T, VEC>(p, tile.lanes, filter);
#pragma unroll
  for (int e = 0; e < See::OPEN; ++e) clear(open[e]);
  const bool well = all_finite(filter), mine = tile.n < p.batch && channel < p.channels;
  const int w = left + tile.strip * WIDE;
  int h = (int)See::done(begin, p.padding.h);
  T* y = p.y + offset(p.y_walk, tile.n, channel, h, w);
#pragma unroll 1
  for (int step = -See::LEAD, row = 0; step < steps; ++step) {
#pragma unroll
    for (int a = 0; a < See::COME; ++a, row ^= 1) {
      if (row == 0) await_rows<IMAGE_RING / AT_ONCE - 2>(), rows.ask(), rows.ask(), commit_copies();
      add_row<See, Rows::STEP, T>(rows.take(IMAGE_RING - row), a, filter, open);
    }
    finish_rows<See, T, VEC, TAPS, DATA>(p, open, mine && step >= 0, well, y, h, tile.n, w, channel);
  }
}

template <class T, int VEC, int TAPS, int STRIDE, bool DATA>
__global__ void __launch_bounds__(BLOCK, RESIDENT<T, TAPS>) depthwise(const DepthwiseParams<T> p) {
  typedef Sight<TAPS, STRIDE, DATA> See;
  __shared__ pack<T, VEC> room[ROWS<T, VEC, See::SPAN> * See::SPAN * BLOCK];
  const int lanes = (int)p.lanes;
  i64 n = (i64)blockIdx.x * (BLOCK / lanes) + threadIdx.x / lanes;
  const i64 w = split_off(n, p.tiles_w) * COLUMNS + p.begin.w, first = split_off(n, p.segments) * p.walk + p.begin.h;
  const i64 channel = VEC == 1 ? split_off(n, p.channels) : ((i64)blockIdx.y * lanes + threadIdx.x % lanes) * VEC;
  const bool mine = n < p.batch && channel < p.channels;
  const i64 end = first + p.walk < p.units + p.begin.h ? first + p.walk : p.units + p.begin.h;
  const i64 begin = first - See::LEAD, column = See::column(w, p.padding.w);
  constexpr int AHEAD = ROWS<T, VEC, See::SPAN> - 1;
  Reader<T, VEC, See::SPAN, AHEAD + 1> reader(
      room, p.x + offset(p.x_walk, n, channel), p.x_walk, p.source, See::coming(begin, p.padding.h), column,
      mine ? (end - begin) * See::COME : 0);
#pragma unroll 1
  for (int row = 0; row < AHEAD; ++row) reader.ask(), commit_copies();
  acc_t<T> filter[TAPS][TAPS][VEC], open[See::OPEN][COLUMNS][VEC];
  if constexpr (VEC > 1) read_filters<T, VEC>(p, lanes, filter);
  if (!mine) return;
  if constexpr (VEC == 1) {
#pragma unroll
    for (int i = 0; i < TAPS * TAPS; ++i)
      filter[i / TAPS][i % TAPS][0] = to_acc(p.w[p.w_first + offset(p.w_walk, 0, channel, i / TAPS, i % TAPS)]);
  }
#pragma unroll
  for (int e = 0; e < See::OPEN; ++e) clear(open[e]);
  const bool well = all_finite(filter);
  int h = (int)See::done(begin, p.padding.h);
  T* y = p.y + offset(p.y_walk, n, channel, h, w);
#pragma unroll 1
  for (int step = -See::LEAD, steps = (int)(end - first); step < steps; ++step) {
#pragma unroll
    for (int a = 0; a < See::COME; ++a) {
      reader.ask(), commit_copies(), await_copies<AHEAD>();
      add_row<See, BLOCK, T>(reader.take(), a, filter, open);
    }
    finish_rows<See, T, VEC, TAPS, DATA>(p, open, step >= 0, well, y, h, n, w, channel);
  }
}

// As split_off, of numbers of any size.
DEVICE i64 rest_of(i64& index, i64 extent) {
  const i64 outer = quotient(index, extent), here = index - outer * extent;
  index = outer;
  return here;
}
template <class T, bool DATA> __global__ void __launch_bounds__(BLOCK) depthwise_any(const DepthwiseParams<T> p) {
  i64 index = global_thread(), channel;
  if (p.y_walk.channel == 1) channel = rest_of(index, p.channels);
  const i64 w = rest_of(index, p.result.w), h = rest_of(index, p.result.h);
  if (p.y_walk.channel != 1) channel = rest_of(index, p.channels);
  const i64 n = index;
  if (n >= p.batch) return;
  acc_t<T> sum[1][1];
  gather<T, 1, DATA>(p, n, h, w, channel, sum);
  finish<T, 1, !DATA>(p, sum, p.y + offset(p.y_walk, n, channel, h, w), n, h, w, channel);
}
