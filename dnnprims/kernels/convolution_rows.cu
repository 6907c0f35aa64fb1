// Images of few channels widened for convolutions on Hopper in TF32, and what such a convolution makes of them narrowed.
//
// A window's pixels of one row lie side by side: with channels padded to four, positions apart by the stride and a row's taps
// as channels, a convolution of R x S taps of C channels is one of R x 1 taps of 4 S channels.
//
// rows_widen    to[row, j, c] = from[row, j - left, c], zero outside of the row and for c >= channels
// rows_narrow   to[row, w, c] = alpha sum over s, q with q stride + s = w + left of from[row, q, s, c] + beta to[row, w, c]:
//               what a pixel's windows make of it. With one position and stride 1, filters come back from (k, r, s, 4).
//
// Shapes    from and to of float; what is wide is dense, of packs of four, the other has any steps. Rows are of images
//           (n, h), or of filters (k, r).
// Plan      a thread a pixel.
// Numerics  bits are copied; sums in float in the order of taps, the same each time.
// Cost      each element is read and written once; rows_narrow reads S taps a position.
// Limits    fewer than 2^31 pixels along a row.
// Measured  NVIDIA H200, 2026-11-28, 64 images of 3 channels of 224 x 224, 7x7 of stride 2 to 64, TF32, us with the products,
//           cuDNN 9.19 of the same run in brackets: forward 323 (403), data 411 (1215), filter 527 (461). Predicted were 140,
//           280 and 400: where the rest goes was not profiled. With 4 channels in as they are forward took 2414, data 2375
//           and filter 4044 (`hopper` behind copies).
#include "vec.cuh"

template <class T> struct RowsParams {
  T* to;
  const T* from;
  acc_t<T> alpha, beta;
  i64 pixels, height, width, channels;                 // pixels of what is made; height and width of an image of it
  i64 image_step, row_step, pixel_step, channel_step;  // of what is not wide
  i64 extent, left, taps, stride;                      // pixels of a row (rows_widen), positions (rows_narrow) of the source
};

constexpr int BLOCK = 256, WIDE = 4;

// Image, row and pixel of what a thread makes, and the offset of that pixel by its steps.
struct Spot {
  i64 row, w, offset;
  template <class T> DEVICE Spot(const RowsParams<T>& p, i64 at) {
    row = quotient(at, p.width), w = at - row * p.width;
    const i64 n = quotient(row, p.height);
    offset = n * p.image_step + (row - n * p.height) * p.row_step;
  }
};

template <class T> __global__ void __launch_bounds__(BLOCK) rows_widen(const RowsParams<T> p) {
  const i64 at = (i64)blockIdx.x * BLOCK + threadIdx.x;
  if (at >= p.pixels) return;
  const Spot spot(p, at);
  const i64 w = spot.w - p.left;
  pack<T, WIDE> v = {};
  if (w >= 0 && w < p.extent) {
    const T* from = p.from + spot.offset + w * p.pixel_step;
#pragma unroll
    for (int c = 0; c < WIDE; ++c)
      if (c < p.channels) v.lane[c] = from[c * p.channel_step];
  }
  store<WIDE>(p.to, at, v);
}

template <class T> __global__ void __launch_bounds__(BLOCK) rows_narrow(const RowsParams<T> p) {
  const i64 at = (i64)blockIdx.x * BLOCK + threadIdx.x;
  if (at >= p.pixels) return;
  const Spot spot(p, at);
  const i64 w = spot.w + p.left, first = w - quotient(w, p.stride) * p.stride;
  acc_t<T> sum[WIDE] = {};
  for (i64 s = first, q = quotient(w, p.stride); s < p.taps && q >= 0; s += p.stride, --q) {
    if (q >= p.extent) continue;
    const pack<T, WIDE> v = load<WIDE>(p.from, (spot.row * p.extent + q) * p.taps + s);
#pragma unroll
    for (int c = 0; c < WIDE; ++c) sum[c] += to_acc(v.lane[c]);
  }
  T* to = p.to + spot.offset + spot.w * p.pixel_step;
#pragma unroll
  for (int c = 0; c < WIDE; ++c)
    if (c < p.channels) to[c * p.channel_step] = from_acc<T>(blend<T>(p.alpha, sum[c], p.beta, to + c * p.channel_step));
}
