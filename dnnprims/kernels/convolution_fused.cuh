// What the special kernels of convolutions share: extents and steps, and the activations that follow the sums.
#pragma once
#include "activation.cuh"
#include "vec.cuh"

struct Extent {
  i64 h, w;
};
struct Walk {  // elements from an image, a row and a position to the next
  i64 outer, h, w;
};

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

template <class T, int N> DEVICE void activate(i64 mode, acc_t<T> c0, acc_t<T> c1, acc_t<T> (&z)[N]) {
  typedef acc_t<T> A;
  A y[N];
  switch (mode) {
    case RELU: forward_all(Relu<T>{c0, c1}, z, y); break;
    case CLIPPED_RELU: forward_all(ClippedRelu<T>{c0, c1}, z, y); break;
    case LEAKY_RELU: forward_all(LeakyRelu<T>{c0, c1}, z, y); break;
    case HARD_SWISH: forward_all(HardSwish<T>{c0, c1}, z, y); break;
    case SWISH: forward_all(Swish<T>{c0, c1}, z, y); break;
    default: return;
  }
#pragma unroll
  for (int k = 0; k < N; ++k) z[k] = y[k];
}
