// Parametric ReLU with a learned slope, one for all or one per channel (He et al., "Delving deep into rectifiers",
// ICCV 2015, arXiv 1502.01852).
//
// Forward    y = x where x > 0, else slope * x. A slope of 0 gives 0 everywhere below, at -inf too.
// Backward   dx = dy where x > 0, else slope * dy           (0 belongs to the slope's side; a NaN in x is handed on)
//            dslope[c] = sum over all x of channel c with x <= 0 of dy * x
//
// Shapes     x, y, dy, dx: (outer, channels, inner), row-major, of type T; slope, dslope: (channels) of type T. One
//            slope for all is channels = 1, inner = size.
// Plan       prelu_forward, prelu_backward_data: a thread per VEC neighbours, whatever channels they are in.
//            dslope takes two launches and a partial sum per (part, column) in scratch, of type A:
//            prelu_backward_rows     for a long inner: block (part, channel) sums its part of the (outer, inner) items.
//            prelu_backward_columns  for a short inner: x is a matrix of outer rows and channels * inner columns; a
//                                    block takes 32 * VEC columns and one part of the rows, 8 rows at a time.
//            prelu_fold              a block per channel adds the partial sums of all parts and columns.
//            The first two also write dx, so that x and dy are read once.
// Numerics   products and sums in A; the order of the sums depends on the shape and the device alone, so the same
//            inputs give the same bits. No atomics.
// Cost       forward 2 n sizeof(T) bytes, n flops; backward 3 n sizeof(T) bytes, 3 n flops.
// Limits     parts <= 65535; VEC > 1 asks for 16-byte aligned pointers, and in the dslope kernels for inner (rows) or
//            channels * inner (columns) divisible by VEC.
#include "reduce.cuh"
#include "vec.cuh"

template <class A> DEVICE A prelu(A x, A slope) {
  if (x > A(0)) return x;
  return slope == A(0) && x == x ? A(0) : slope * x;
}
template <class A> DEVICE A prelu_gradient(A dy, A x, A slope) {
  if (x > A(0)) return dy;
  return x == x ? slope * dy : x;
}
template <class A> DEVICE A prelu_slope_term(A dy, A x) { return x > A(0) ? A(0) : dy * x; }

// Where element e lies, and how to walk on from there without dividing again.
struct ChannelWalk {
  i64 channel, position;
  DEVICE ChannelWalk(i64 e, i64 channels, i64 inner) {
    i64 row = quotient(e, inner);
    position = e - row * inner;
    channel = row - quotient(row, channels) * channels;
  }
  DEVICE void next(i64 channels, i64 inner) {
    if (++position < inner) return;
    position = 0;
    if (++channel == channels) channel = 0;
  }
};

// The slopes of VEC neighbours from there on: one load where channels change between packs alone.
template <int VEC, class T>
DEVICE void slopes_of(const T* slopes, ChannelWalk at, i64 channels, i64 inner, acc_t<T> (&slope)[VEC]) {
  const bool alike = (u64)inner % VEC == 0;
  slope[0] = to_acc(slopes[at.channel]);
#pragma unroll
  for (int k = 1; k < VEC; k++) {
    slope[k] = slope[0];
    if (alike) continue;
    at.next(channels, inner);
    slope[k] = to_acc(slopes[at.channel]);
  }
}

template <class T> struct PreluForwardParams {
  T* y;
  const T* x;
  const T* slope;
  acc_t<T> alpha, beta;
  i64 size, channels, inner;
};

// A thread past the last whole pack takes the tail, element by element.
template <class T, int VEC> __global__ void __launch_bounds__(256) prelu_forward(const PreluForwardParams<T> p) {
  i64 first = global_thread() * VEC;
  if (first >= p.size) return;
  ChannelWalk at(first, p.channels, p.inner);
  if (first + VEC <= p.size) {
    pack<T, VEC> x = load<VEC>(p.x, first / VEC);
    acc_t<T> slope[VEC], y[VEC];
    slopes_of<VEC>(p.slope, at, p.channels, p.inner, slope);
#pragma unroll
    for (int k = 0; k < VEC; k++) y[k] = prelu(to_acc(x.lane[k]), slope[k]);
    return store_blended<VEC>(p.y, first / VEC, y, p.alpha, p.beta);
  }
  for (i64 e = first; e < p.size; e++) {
    p.y[e] = blend<T>(p.alpha, prelu(to_acc(p.x[e]), to_acc(p.slope[at.channel])), p.beta, p.y + e);
    at.next(p.channels, p.inner);
  }
}

template <class T> struct PreluBackwardDataParams {
  T* dx;
  const T* dy;
  const T* x;
  const T* slope;
  i64 size, channels, inner;
};

template <class T, int VEC>
__global__ void __launch_bounds__(256) prelu_backward_data(const PreluBackwardDataParams<T> p) {
  i64 first = global_thread() * VEC;
  if (first >= p.size) return;
  ChannelWalk at(first, p.channels, p.inner);
  if (first + VEC <= p.size) {
    pack<T, VEC> dy = load<VEC>(p.dy, first / VEC), x = load<VEC>(p.x, first / VEC), dx;
    acc_t<T> slope[VEC];
    slopes_of<VEC>(p.slope, at, p.channels, p.inner, slope);
#pragma unroll
    for (int k = 0; k < VEC; k++)
      dx.lane[k] = from_acc<T>(prelu_gradient(to_acc(dy.lane[k]), to_acc(x.lane[k]), slope[k]));
    store<VEC>(p.dx, first / VEC, dx);
    return;
  }
  for (i64 e = first; e < p.size; e++) {
    p.dx[e] = from_acc<T>(prelu_gradient(to_acc(p.dy[e]), to_acc(p.x[e]), to_acc(p.slope[at.channel])));
    at.next(p.channels, p.inner);
  }
}

template <class T> struct PreluBackwardParams {
  acc_t<T>* partial;  // (parts, columns); columns is channels for the rows kernel
  T* dx;              // may be null
  const T* dy;
  const T* x;
  const T* slope;
  i64 outer, channels, inner, per_part;
};

// The gradient of one pack: dx is written where it is wanted, the slope's terms are added lane by lane.
template <class T, int VEC>
DEVICE void prelu_backward_pack(const PreluBackwardParams<T>& p, i64 index, const acc_t<T> (&slope)[VEC],
                                acc_t<T> (&sum)[VEC]) {
  pack<T, VEC> dy = load<VEC>(p.dy, index), x = load<VEC>(p.x, index), dx;
#pragma unroll
  for (int k = 0; k < VEC; k++) {
    acc_t<T> g = to_acc(dy.lane[k]), v = to_acc(x.lane[k]);
    sum[k] += prelu_slope_term(g, v);
    dx.lane[k] = from_acc<T>(prelu_gradient(g, v, slope[k]));
  }
  if (p.dx) store<VEC>(p.dx, index, dx);
}

// Grid (channels, parts). Items are the packs of one channel, outer * inner / VEC of them, per_part to a part.
template <class T, int VEC> __global__ void __launch_bounds__(256) prelu_backward_rows(const PreluBackwardParams<T> p) {
  typedef acc_t<T> A;
  i64 channel = blockIdx.x, packs = p.inner / VEC, items = p.outer * packs;
  i64 begin = (i64)blockIdx.y * p.per_part, end = begin + p.per_part < items ? begin + p.per_part : items;
  A slope[VEC], sum[VEC];
#pragma unroll
  for (int k = 0; k < VEC; k++) {
    slope[k] = to_acc(p.slope[channel]);
    sum[k] = A(0);
  }
  for (i64 item = begin + threadIdx.x; item < end; item += 256) {
    i64 row = quotient(item, packs);
    prelu_backward_pack<T, VEC>(p, (row * p.channels + channel) * packs + (item - row * packs), slope, sum);
  }
#pragma unroll
  for (int k = 1; k < VEC; k++) sum[0] += sum[k];
  A total = block_reduce<256>(sum[0], Sum(), A(0));
  if (threadIdx.x == 0) p.partial[(i64)blockIdx.y * p.channels + channel] = total;
}

// Grid (column tiles, parts). A warp covers 32 * VEC columns of one row; warp w takes the rows w, w + 8, ... of the part.
template <class T, int VEC>
__global__ void __launch_bounds__(256) prelu_backward_columns(const PreluBackwardParams<T> p) {
  typedef acc_t<T> A;
  __shared__ A tile[8][32 * VEC];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  i64 columns = p.channels * p.inner, first = ((i64)blockIdx.x * 32 + lane) * VEC;
  i64 begin = (i64)blockIdx.y * p.per_part, end = begin + p.per_part < p.outer ? begin + p.per_part : p.outer;
  A slope[VEC], sum[VEC];
#pragma unroll
  for (int k = 0; k < VEC; k++) {
    sum[k] = A(0);
    slope[k] = first + k < columns ? to_acc(p.slope[quotient(first + k, p.inner)]) : A(0);
  }
  if (first < columns) {
    for (i64 row = begin + warp; row < end; row += 8)
      prelu_backward_pack<T, VEC>(p, (row * columns + first) / VEC, slope, sum);
  }
#pragma unroll
  for (int k = 0; k < VEC; k++) tile[warp][lane * VEC + k] = sum[k];
  __syncthreads();
  for (int c = threadIdx.x; c < 32 * VEC; c += 256) {
    i64 column = (i64)blockIdx.x * 32 * VEC + c;
    A total = A(0);
#pragma unroll
    for (int w = 0; w < 8; w++) total += tile[w][c];
    if (column < columns) p.partial[(i64)blockIdx.y * columns + column] = total;
  }
}

template <class T> struct PreluFoldParams {
  T* dslope;
  const acc_t<T>* partial;
  i64 parts, channels, inner;
};

// Grid (channels). partial is (parts, channels, inner).
template <class T> __global__ void __launch_bounds__(256) prelu_fold(const PreluFoldParams<T> p) {
  typedef acc_t<T> A;
  i64 channel = blockIdx.x, items = p.parts * p.inner;
  A sum = A(0);
  for (i64 item = threadIdx.x; item < items; item += 256) {
    i64 part = quotient(item, p.inner);
    sum += p.partial[(part * p.channels + channel) * p.inner + (item - part * p.inner)];
  }
  sum = block_reduce<256>(sum, Sum(), A(0));
  if (threadIdx.x == 0) p.dslope[channel] = from_acc<T>(sum);
}
