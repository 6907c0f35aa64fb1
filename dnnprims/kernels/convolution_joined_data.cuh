// Convolutions of few input channels with fused multiply-adds: the gradient in data, whose numerics convolution_joined.cu tells.
//
// Along each axis positions stride * m + rest, of all rests, see outputs m + lead - j, each through a tap of its own,
// stride * j + rest + offset, or none. What all rests and channels of m see is one product: they are its columns, of which a
// thread has all, for ROWS m that lie above each other:
//   dx[m, column] = sum over j and filters k of dy[m + lead - j, k] taps[j, k, column]
//
// Plan      joined_taps   puts the filters in order: (eights of filters, j, filter, column), with zeros where there is no tap.
//           joined_data   a block has 16 x 32 m. Of eight filters at a time the outputs that they see and the taps pass
//                         through shared memory; other blocks multiply meanwhile.
// Limits    one group, no dilation, at most 16 columns.
#pragma once
#include "convolution_implicit.cuh"

constexpr int DATA_BLOCK = 128, DATA_ROWS = 4, TILE_H = DATA_BLOCK / 32 * DATA_ROWS, TILE_W = 32;
// Filters at a time, and elements of an output in shared memory: consecutive ones lie in different banks.
constexpr int EIGHT = 8, OUTPUT_PITCH = 12;

struct Pair {
  int h, w;
};
struct ImageSteps {
  int outer, channel, h, w;
};
template <class T> struct JoinedDataParams {
  T* dx;
  const T* dy;
  const T* w;
  const T* b;
  T* ordered;  // the filters, by joined_taps
  acc_t<T> alpha, beta;
  int batch, channels, filters, tiles_h, tiles_w;
  Pair image, output, taps, stride, padding, lead, offset, reach;  // reach: most outputs seen
  ImageSteps x_steps, y_steps, w_steps;
  int w_first, packed;
};

template <class T, int PACKS> __global__ void __launch_bounds__(256) joined_taps(const JoinedDataParams<T> p) {
  constexpr int COLUMNS = 4 * PACKS;
  const int seen = p.reach.h * p.reach.w, size = (p.filters + EIGHT - 1) / EIGHT * seen * EIGHT * COLUMNS;
  const i64 index = global_thread();
  if (index >= size) return;
  const int i = (int)index, column = i % COLUMNS, one = i / COLUMNS % EIGHT, by_eight = i / (COLUMNS * EIGHT);
  const int j = by_eight % seen, k = by_eight / seen * EIGHT + one, rest = column / p.channels;
  const int r = p.stride.h * (j / p.reach.w) + rest / p.stride.w + p.offset.h;
  const int s = p.stride.w * (j % p.reach.w) + rest % p.stride.w + p.offset.w;
  const bool real = rest < p.stride.h * p.stride.w && (u32)r < (u32)p.taps.h && (u32)s < (u32)p.taps.w && k < p.filters;
  const ImageSteps& by = p.w_steps;
  T v = T(0);
  if (real) v = p.w[p.w_first + k * by.outer + (column - rest * p.channels) * by.channel + r * by.h + s * by.w];
  p.ordered[i] = v;
}

// What a tile sees of eight filters of dy, from output (top, left) on; those outside are zeros.
template <class T> DEVICE void bring_outputs(const JoinedDataParams<T>& p, int n, int top, int left, int k_0, T* to) {
  const int across = TILE_W + p.reach.w - 1, down = TILE_H + p.reach.h - 1;
  const ImageSteps& by = p.y_steps;
  for (int row = threadIdx.x / 32; row < down; row += DATA_BLOCK / 32) {
    const bool there = (u32)(top + row) < (u32)p.output.h;
    const T* dy = p.dy + (i64)(n * by.outer + (top + row) * by.h + left * by.w);
    T* here = to + row * across * OUTPUT_PITCH;
    if (p.packed) {
      for (int i = threadIdx.x % 32; i < across * 2; i += 32) {
        const int x = i / 2, k = k_0 + i % 2 * 4;
        const bool real = there && (u32)(left + x) < (u32)p.output.w && k < p.filters;
        copy_async_or_zeros(here + x * OUTPUT_PITCH + i % 2 * 4, real ? dy + (x * by.w + k) : p.dy, real);
      }
    } else {
      for (int i = threadIdx.x % 32; i < across * EIGHT; i += 32) {
        const int k = i / across, x = i - k * across;
        const bool real = there && (u32)(left + x) < (u32)p.output.w && k_0 + k < p.filters;
        here[x * OUTPUT_PITCH + k] = real ? dy[x * by.w + (k_0 + k) * by.channel] : T(0);
      }
    }
  }
}

// The sum of one element, of nothing but what is there.
template <class T> DEVICE acc_t<T> sum_of_data(const JoinedDataParams<T>& p, int n, int h, int w, int channel) {
  acc_t<T> sum = 0;
#pragma unroll 1
  for (int i = 0; i < p.taps.h * p.taps.w; ++i) {
    const int r = i / p.taps.w, s = i - r * p.taps.w, y = h + p.padding.h - r, x = w + p.padding.w - s;
    const int o = y / p.stride.h, q = x / p.stride.w;
    if (y < 0 || x < 0 || o * p.stride.h != y || q * p.stride.w != x || o >= p.output.h || q >= p.output.w) continue;
    const T* dy = p.dy + (n * p.y_steps.outer + o * p.y_steps.h + q * p.y_steps.w);
    const T* v = p.w + (p.w_first + channel * p.w_steps.channel + r * p.w_steps.h + s * p.w_steps.w);
#pragma unroll 1
    for (int k = 0; k < p.filters; ++k) sum = fma(to_acc(dy[k * p.y_steps.channel]), to_acc(v[k * p.w_steps.outer]), sum);
  }
  return sum;
}

// Where the columns of m lie from its first element on.
struct Column {
  int offset, h, w, channel;
};
template <class T> DEVICE void list_columns(const JoinedDataParams<T>& p, int columns, Column* to) {
  if ((int)threadIdx.x >= columns) return;
  const int i = threadIdx.x, rest = i / p.channels, channel = i - rest * p.channels;
  const int h = rest / p.stride.w, w = rest % p.stride.w;
  const bool real = h < p.stride.h;
  to[i] = Column{h * p.x_steps.h + w * p.x_steps.w + channel * p.x_steps.channel, real ? h : p.image.h, w, channel};
}

// The sums of one m; numbers of those that are not finite are left in the result, to be made anew.
template <class T, int COLUMNS>
DEVICE u32 store_columns(const JoinedDataParams<T>& p, const acc_t<T> (&sum)[COLUMNS], const Column* columns, T* dx, int h,
                         int w) {
  u32 doubtful = 0;
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    const Column here = columns[c];
    if (h + here.h >= p.image.h || w + here.w >= p.image.w) continue;
    acc_t<T> v = sum[c];
    if (v - v != acc_t<T>(0)) {
      doubtful |= 1u << c;
      continue;
    }
    if (p.b) v += to_acc(p.b[here.channel]);
    dx[here.offset] = blend<T>(p.alpha, v, p.beta, dx + here.offset);
  }
  return doubtful;
}

// Adds what ROWS m, one above the other, see of eight filters.
template <class T, int PACKS>
DEVICE void add_eight(const JoinedDataParams<T>& p, const T* outputs, const T* taps, acc_t<T> (&sum)[DATA_ROWS][4 * PACKS]) {
  constexpr int COLUMNS = 4 * PACKS;
  const int across = TILE_W + p.reach.w - 1;
  const T* last = outputs + ((threadIdx.x / 32 * DATA_ROWS + p.reach.h - 1) * across + threadIdx.x % 32 + p.reach.w - 1) * OUTPUT_PITCH;
#pragma unroll 1
  for (int up = 0; up < p.reach.h; ++up)
#pragma unroll 1
    for (int aside = 0; aside < p.reach.w; ++aside, taps += EIGHT * COLUMNS) {
      const T* from = last - (up * across + aside) * OUTPUT_PITCH;
#pragma unroll
      for (int half = 0; half < EIGHT; half += 4) {
        T dy[DATA_ROWS][4];
#pragma unroll
        for (int y = 0; y < DATA_ROWS; ++y) take_four(dy[y], from + y * across * OUTPUT_PITCH + half);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          T tap[COLUMNS];
#pragma unroll
          for (int i = 0; i < PACKS; ++i) take_four(tap + 4 * i, taps + (half + k) * COLUMNS + 4 * i);
#pragma unroll
          for (int y = 0; y < DATA_ROWS; ++y)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) sum[y][c] = fma(to_acc(dy[y][k]), to_acc(tap[c]), sum[y][c]);
        }
      }
    }
}

template <class T, int PACKS> __global__ void __launch_bounds__(DATA_BLOCK, PACKS < 4 ? 4 : 3) joined_data(const JoinedDataParams<T> p) {
  constexpr int COLUMNS = 4 * PACKS;
  DYNAMIC_SHARED(T, outputs);
  __shared__ Column columns[COLUMNS];
  const int across = TILE_W + p.reach.w - 1, down = TILE_H + p.reach.h - 1, seen = p.reach.h * p.reach.w;
  T* taps = outputs + down * across * OUTPUT_PITCH;
  const int by_w = blockIdx.x / p.tiles_w, tile_w = (int)blockIdx.x - by_w * p.tiles_w, n = by_w / p.tiles_h;
  const int m_h = (by_w - n * p.tiles_h) * TILE_H, m_w = tile_w * TILE_W;
  const int top = m_h + p.lead.h - (p.reach.h - 1), left = m_w + p.lead.w - (p.reach.w - 1);
  list_columns(p, COLUMNS, columns);
  acc_t<T> sum[DATA_ROWS][COLUMNS] = {};
#pragma unroll 1
  for (int k = 0; k < p.filters; k += EIGHT) {
    const int size = seen * EIGHT * COLUMNS;
    bring_outputs(p, n, top, left, k, outputs);
    for (int i = threadIdx.x * 4; i < size; i += DATA_BLOCK * 4) copy_async(taps + i, p.ordered + (i64)k / EIGHT * size + i);
    commit_copies();
    await_copies<0>();
    __syncthreads();
    add_eight<T, PACKS>(p, outputs, taps, sum);
    __syncthreads();
  }
  const int w = (m_w + (int)threadIdx.x % 32) * p.stride.w;
#pragma unroll
  for (int y = 0; y < DATA_ROWS; ++y) {
    const int h = (m_h + (int)threadIdx.x / 32 * DATA_ROWS + y) * p.stride.h;
    if (h >= p.image.h || w >= p.image.w) continue;
    T* dx = p.dx + (i64)(n * p.x_steps.outer + h * p.x_steps.h + w * p.x_steps.w);
    u32 doubtful = store_columns(p, sum[y], columns, dx, h, w);
#pragma unroll 1
    for (int c = 0; doubtful; ++c, doubtful >>= 1) {
      if (!(doubtful & 1u)) continue;
      const Column here = columns[c];
      acc_t<T> v = sum_of_data(p, n, h + here.h, w + here.w, here.channel);
      if (p.b) v += to_acc(p.b[here.channel]);
      dx[here.offset] = blend<T>(p.alpha, v, p.beta, dx + here.offset);
    }
  }
}
