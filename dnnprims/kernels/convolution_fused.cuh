// What the special kernels of convolutions share: extents and steps, and the activations that follow the sums.
#pragma once
#include "activation.cuh"
#include "vec.cuh"

struct Extent {
  i64 h, w;
};
struct Walk {  // elements from an image, a channel, a row and a position to the next
  i64 outer, channel, h, w;
};
DEVICE i64 offset(const Walk& walk, i64 n, i64 channel) { return n * walk.outer + channel * walk.channel; }
DEVICE i64 offset(const Walk& walk, i64 n, i64 channel, i64 h, i64 w) {
  return offset(walk, n, channel) + h * walk.h + w * walk.w;
}

DEVICE bool within(i64 i, i64 extent) { return (u64)i < (u64)extent; }
// The same of positions, all of which fit 32 bits.
DEVICE bool inside(int i, int extent) { return (u32)i < (u32)extent; }

// Takes the innermost index off; both numbers are below 2^32, as the front end sees to.
DEVICE i64 split_off(i64& index, i64 extent) {
  const u32 outer = (u32)index / (u32)extent, here = (u32)index - outer * (u32)extent;
  index = outer;
  return here;
}

// The activations that the front end fuses; one text has them all, for a branch is nothing beside a tile.
enum { IDENTITY, RELU, CLIPPED_RELU, LEAKY_RELU, HARD_SWISH, SWISH };

template <class F, int N, class A> DEVICE void apply(const F& f, A (&z)[N]) {
#pragma unroll
  for (int k = 0; k < N; ++k) z[k] = f.forward(z[k]);
}
// Of some numbers at a time, as many as leave none over, which come to the front and go to the back: the text is long.
template <class F, int N, class A> DEVICE void apply_in_turn(const F& f, A (&z)[N]) {
  constexpr int SOME = N % 4 == 0 ? 4 : N % 2 == 0 ? 2 : 1;
#pragma unroll 1
  for (int i = 0; i < N / SOME; ++i) {
    A x[SOME], y[SOME];
#pragma unroll
    for (int k = 0; k < SOME; ++k) x[k] = z[k];
    forward_all(f, x, y);
#pragma unroll
    for (int k = 0; k < N; ++k) z[k] = k + SOME < N ? z[k + SOME < N ? k + SOME : k] : y[k + SOME - N];
  }
}
template <class T, int N> DEVICE void activate(i64 mode, acc_t<T> c0, acc_t<T> c1, acc_t<T> (&z)[N]) {
  switch (mode) {
    case RELU: return apply(Relu<T>{c0, c1}, z);
    case CLIPPED_RELU: return apply(ClippedRelu<T>{c0, c1}, z);
    case LEAKY_RELU: return apply(LeakyRelu<T>{c0, c1}, z);
    case HARD_SWISH: return apply_in_turn(HardSwish<T>{c0, c1}, z);
    case SWISH: return apply_in_turn(Swish<T>{c0, c1}, z);
  }
}
