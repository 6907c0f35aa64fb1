// Forward and data gradient as one implicit product: parameters, the slices of a block, and what becomes of its sums.
#pragma once
#include "convolution_implicit.cuh"

template <class T> struct ImplicitGatherParams {
  T* result;
  const T* source;
  const T* w;
  After<T> after;
  acc_t<T>* partial;  // where splits leave their sums, or null
  Factors<T> by;
  i64 partial_size;   // from one split to the next
  int images, terms, lines, column_tiles, splits;
  int result_outer, result_channel, source_outer, source_channel, residual_outer, residual_channel;
  int w_term, w_line, w_group, w_first;
  Axis d, h, w_axis;
  int backwards, source_packed, source_along_terms, w_packed, w_along_terms, result_packed, relu, padded;
};

// The slices of a block, DEPTH channels of a tap each: which ones, and the operands of its group.
template <class T, int DEPTH> struct Slices {
  static constexpr int TERMS = DEPTH;
  const T* source;
  const T* w;
  Walks walks;
  int chunks, begin, end, rows;
};

template <class T, int DEPTH> DEVICE Slices<T, DEPTH> slices_of(const ImplicitGatherParams<T>& p) {
  Slices<T, DEPTH> s;
  const int group = blockIdx.y, split = blockIdx.z % p.splits;
  s.walks = walks_of(p.d, p.h, p.w_axis, p.backwards != 0, blockIdx.z / p.splits);
  s.source = p.source + (i64)group * p.terms * p.source_channel;
  s.w = p.w + p.w_first + s.walks.w_first() + (i64)group * p.w_group;
  s.chunks = (p.terms + DEPTH - 1) / DEPTH;
  const int all = s.walks.taps() * s.chunks, each = (all + p.splits - 1) / p.splits;
  s.begin = min(split * each, all), s.end = min(s.begin + each, all);
  s.rows = p.images * s.walks.positions();
  return s;
}

// Offsets of the tile's rows in the result and in the residual.
template <int ROWS, int THREADS, class T, int DEPTH>
DEVICE void locate_rows(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, int row_0, int* result_at,
                        int* residual_at) {
  for (int i = threadIdx.x; i < ROWS; i += THREADS) {
    const Row row = row_of(min(row_0 + i, s.rows - 1), s.walks);
    const int d = s.walks.d.first + row.d * s.walks.d.spread, h = s.walks.h.first + row.h * s.walks.h.spread;
    const int w = s.walks.w.first + row.w * s.walks.w.spread;
    result_at[i] = row.image * p.result_outer + d * p.d.result_step + h * p.h.result_step + w * p.w_axis.result_step;
    residual_at[i] =
        row.image * p.residual_outer + d * p.d.residual_step + h * p.h.residual_step + w * p.w_axis.residual_step;
  }
}

// Whether a weight of the block's slices and columns is infinite or NaN; for all threads of a block together.
template <int COLUMNS, int THREADS, class T, int DEPTH>
DEVICE bool weights_not_finite(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, int column_0) {
  constexpr int SLICE = DEPTH * COLUMNS;
  bool found = false;
#pragma unroll 1
  for (int at = s.begin; at < s.end; ++at) {
    const int taken = offset_of(tap_of(at / s.chunks, s.walks), s.walks);
#pragma unroll 1
    for (int i = threadIdx.x; i < SLICE; i += THREADS) {
      const int c = at % s.chunks * DEPTH + i / COLUMNS, n = column_0 + i % COLUMNS;
      if (c >= p.terms || n >= p.lines) continue;
      const acc_t<T> v = to_acc(s.w[taken + (i64)c * p.w_term + (i64)n * p.w_line]);
      found |= !(v - v == acc_t<T>(0));
    }
  }
  return __syncthreads_or(found) != 0;
}
// One sum over the block's slices, of what lies inside alone.
template <class T, int DEPTH>
DEVICE acc_t<T> sum_inside(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, int m, int n) {
  const Origin origin = origin_of(row_of(m, s.walks), s.walks, p.d, p.h, p.w_axis, p.source_outer);
  acc_t<T> sum = 0;
#pragma unroll 1
  for (int at = s.begin; at < s.end; ++at) {
    const Tap tap = tap_of(at / s.chunks, s.walks);
    const int first = at % s.chunks * DEPTH, last = min(first + DEPTH, p.terms);
    int from;
    if (!meets(origin, tap, s.walks, p.d, p.h, p.w_axis, from)) continue;
    const T* w = s.w + offset_of(tap, s.walks) + (i64)n * p.w_line;
#pragma unroll 1
    for (int c = first; c < last; ++c)
      sum = fma(to_acc(s.source[from + (i64)c * p.source_channel]), to_acc(w[(i64)c * p.w_term]), sum);
  }
  return sum;
}

// Sums to their results, or to the split's partial sums.
template <class T, int DEPTH> struct GatherFinish {
  typedef acc_t<T> A;
  const ImplicitGatherParams<T>& p;
  const Slices<T, DEPTH>& s;
  const int *result_at, *residual_at;
  A* partial;
  int row_0, column_0, channel_0;  // of the tile, and of its first column among all channels
  bool packed, along_rows, doubtful;

  DEVICE A value(A sum, int channel, i64 residual, const T* old) const {
    A z = followed(sum, p.after, p.by, channel, residual);
    if (p.relu) z = z <= A(0) ? A(0) : z;
    z *= p.by.alpha;
    return p.by.beta != A(0) ? z + p.by.beta * to_acc(*old) : z;
  }
  DEVICE A mended(A sum, int row, int column) const {
    return doubtful && sum != sum ? sum_inside(p, s, row_0 + row, column_0 + column) : sum;
  }
  DEVICE void one(A sum, int row, int column) const {
    const int channel = channel_0 + column;
    const i64 at = result_at[row] + (i64)channel * p.result_channel;
    sum = mended(sum, row, column);
    if (partial) partial[at] = sum;
    else p.result[at] = from_acc<T>(value(sum, channel, residual_at[row] + (i64)channel * p.residual_channel, p.result + at));
  }
  DEVICE void all(const A (&sum)[4], int row, int column) const {
    const int channel = channel_0 + column;
    const i64 at = result_at[row] + channel;
    if (partial) return store_four(partial + at, sum);
    A v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      v[k] = value(sum[k], channel + k, residual_at[row] + (i64)(channel + k) * p.residual_channel, p.result + at + k);
    store_four(p.result + at, v);
  }
};

// Whether sums are to be gone over for what an infinite weight made of zeros; for all threads of a block together.
template <int COLUMNS, int THREADS, class T, int DEPTH>
DEVICE bool is_doubtful(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s, int column_0, bool not_a_number) {
  return p.padded && __syncthreads_or(not_a_number) && weights_not_finite<COLUMNS, THREADS>(p, s, column_0);
}
template <class T, int DEPTH>
DEVICE GatherFinish<T, DEPTH> finish_of(const ImplicitGatherParams<T>& p, const Slices<T, DEPTH>& s,
                                        const int* result_at, const int* residual_at, int row_0, int column_0,
                                        bool doubtful) {
  acc_t<T>* partial = p.partial ? p.partial + (blockIdx.z % p.splits) * p.partial_size : nullptr;
  const int channel_0 = (int)blockIdx.y * p.lines + column_0;
  const bool packed = p.result_packed && !doubtful;
  return GatherFinish<T, DEPTH>{p,        s,         result_at, residual_at,           partial, row_0,
                                column_0, channel_0, packed,    p.result_channel != 1, doubtful};
}
