// Depthwise convolutions: what the kernels of all directions share.
//
// A thread has VEC neighbouring channels (one where positions lie side by side) and COLUMNS neighbouring positions of a row,
// and goes down row by row: each element of what it sees is read and converted once for all results of the thread.
#pragma once
#include "convolution_fused.cuh"

constexpr int COLUMNS = 4;  // positions side by side of a thread of one channel
constexpr int BLOCK = 128;
template <class T> constexpr bool is_bfloat16 = false;
template <> constexpr bool is_bfloat16<bfloat16> = true;
// Rows of the source that have places, at most, and bytes of the places of a block.
constexpr int MOST_ROWS = 4, MOST_ROOM = 36 << 10;
DEVICE constexpr int min_of(int a, int b) { return a < b ? a : b; }
// Blocks of a multiprocessor that registers must leave room for; left to itself, ptxas aims at more and spills.
template <class T, int TAPS> constexpr int RESIDENT = TAPS == 5 && sizeof(T) == 4 ? 2 : 3;

// How results see the source, step by step downwards. At step u, rows of the source come and rows of results are done.
//   forward   result o sees source o * STRIDE - padding + tap: STRIDE rows come, row u of the results is done
//   data      result i sees source o where o * STRIDE - padding + tap = i: row u comes, and the STRIDE rows are done for
//             which i + padding is u * STRIDE and more, so that the taps of each are known at compile time
// Along a row it is the same, with all positions at once.
template <int TAPS, int STRIDE, bool DATA, int POSITIONS = COLUMNS> struct Sight {
  static constexpr int WIDE = POSITIONS;
  static constexpr int LEAD = (TAPS - 1) / STRIDE;  // steps that come before a result is done
  static constexpr int COME = DATA ? 1 : STRIDE, DONE = DATA ? STRIDE : 1, OPEN = DATA ? TAPS : LEAD + 1;
  static constexpr int ADVANCE = DATA ? WIDE / STRIDE : WIDE * STRIDE;  // of the source, from a strip to the next
  static constexpr int SPAN = DATA ? (WIDE - 1) / STRIDE + LEAD + 1 : (WIDE - 1) * STRIDE + TAPS;
  // The first row that comes at step u, and the first one that is done.
  static DEVICE i64 coming(i64 u, i64 padding) { return DATA ? u : (u + LEAD) * STRIDE - padding; }
  static DEVICE i64 done(i64 u, i64 padding) { return DATA ? u * STRIDE - padding : u; }
  // The tap through which the rows that are open, the oldest one first, see row `a` of those that come.
  static DEVICE constexpr int row_tap(int open, int a) { return DATA ? open : a + (LEAD - open) * STRIDE; }
  // The column that a tile's first one, number w, sees first, and the tap through which its position x sees column b.
  static DEVICE i64 column(i64 w, i64 padding) { return DATA ? (w + padding) / STRIDE - LEAD : w * STRIDE - padding; }
  static DEVICE constexpr int column_tap(int x, int b) { return DATA ? x - STRIDE * (b - LEAD) : b - x * STRIDE; }
};

// SPAN neighbours of rows, the same columns of each; zeros where they are outside of the image. The next rows are on their
// way to places of the thread's own in shared memory, so that no register is spent on them and no barrier waits for them.
template <class T, int VEC, int SPAN, int ROWS> struct Reader {
  typedef pack<T, VEC> Pack;
  static constexpr int PLACES = ROWS * SPAN * BLOCK;  // of a block
  Pack* places;
  const T* at;  // in row h, which is the next one to be asked for
  i64 down;
  int step, h, rows, wanted, asked, taken;
  u32 there;  // a bit for each column

  DEVICE Reader(Pack* room, const T* image, const Walk& walk, const Extent& extent, i64 h, i64 w, i64 wanted)
      : places(room + threadIdx.x), at(image + (h * walk.h + w * walk.w)), down(walk.h), step((int)walk.w), h((int)h),
        rows((int)extent.h), wanted((int)wanted), asked(0), taken(0), there(0) {
#pragma unroll
    for (int b = 0; b < SPAN; ++b) there |= (u32)within(w + b, extent.w) << b;
    keep_here(there);
  }
  DEVICE void ask() {
    const u32 seen = wanted > 0 && inside(h, rows) ? there : 0;
#pragma unroll
    for (int b = 0; b < SPAN; ++b) copy(places + (asked * SPAN + b) * BLOCK, at + b * step, (seen & 1u << b) != 0);
    at += down, ++h, --wanted, asked = asked + 1 < ROWS ? asked + 1 : 0;
  }
  // Column b of the row is BLOCK * b further.
  DEVICE const Pack* take() {
    const Pack* row = places + taken * SPAN * BLOCK;
    taken = taken + 1 < ROWS ? taken + 1 : 0;
    return row;
  }

 private:
  // Two bytes have no asynchronous copy.
  static DEVICE void copy(Pack* to, const T* from, bool is) {
    if constexpr (sizeof(Pack) >= 4) copy_async_or_zeros<(int)sizeof(Pack)>(to, from, is);
    else {
      to->bits = 0;
      if (is) *to = load<VEC>(from, 0);
    }
  }
};
// Rows that have places, one of which is worked on; COUNT elements of a row.
template <class T, int VEC, int COUNT>
constexpr int ROWS = min_of(MOST_ROWS, MOST_ROOM / (COUNT * BLOCK * VEC * (int)sizeof(T)));

// A pack of a row, which is loaded as one.
template <class T, int VEC> DEVICE void take(acc_t<T> (&v)[VEC], const pack<T, VEC>& from) {
  pack<T, VEC> whole;
  whole.bits = from.bits;
  if constexpr (is_bfloat16<T> && VEC == 2) {  // the upper one is there but for the other's bits
    v[0] = bits_to_float(whole.bits << 16), v[1] = bits_to_float(whole.bits & 0xffff0000u);
  } else {
    unpack(v, whole);
  }
}

// As rounded, of two 16-bit numbers, too, by one instruction.
template <class T, int VEC> DEVICE pack<T, VEC> packed(const acc_t<T> (&v)[VEC]) {
  pack<T, VEC> r;
  if constexpr (sizeof(T) == 2 && VEC == 2) r.bits = rounding<T>::from(v[0], v[1]);
  else r = rounded<T>(v);
  return r;
}

// The rounded sums of N neighbours, as far as they are there; all of them are nearly always.
template <class T, int VEC, int N>
DEVICE void store_row(T* y, i64 step, int first, int columns, const acc_t<T> (&sums)[N][VEC]) {
  if (first >= 0 && first + N <= columns) {
#pragma unroll
    for (int q = 0; q < N; ++q, y += step) store(y, 0, packed<T>(sums[q]));
    return;
  }
#pragma unroll
  for (int q = 0; q < N; ++q, y += step)
    if (inside(first + q, columns)) store(y, 0, packed<T>(sums[q]));
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

template <class A, int N, int VEC> DEVICE void clear(A (&v)[N][VEC]) {
#pragma unroll
  for (int i = 0; i < N * VEC; ++i) v[i / VEC][i % VEC] = A(0);
}
template <class A, int N, int VEC> DEVICE void copy(A (&to)[N][VEC], const A (&from)[N][VEC]) {
#pragma unroll
  for (int i = 0; i < N * VEC; ++i) to[i / VEC][i % VEC] = from[i / VEC][i % VEC];
}
// Whether none is infinite or NaN.
template <class A, int N, int VEC> DEVICE bool finite(const A (&v)[N][VEC]) {
  A sum = 0;
#pragma unroll
  for (int i = 0; i < N * VEC; ++i) sum = fma_(v[i / VEC][i % VEC], A(0), sum);
  return sum == A(0);
}
// The same of filters: zeros outside of the image add nothing to products with finite taps.
template <class A, int TAPS, int VEC> DEVICE bool all_finite(const A (&filter)[TAPS][TAPS][VEC]) {
  bool well = true;
#pragma unroll
  for (int r = 0; r < TAPS; ++r) well &= finite(filter[r]);
  return well;
}
