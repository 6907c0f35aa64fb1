// Walks over tensors of up to 8 axes with any steps. Axes that a tensor lacks come first, with extent 1.
#pragma once
#include "dtypes.cuh"

constexpr int MAX_AXES = 8;
struct axes {
  i64 of[MAX_AXES];
};

// n / d for n, d >= 0: nothing to divide on the outermost axis, and four times faster where both fit 32 bits, which they
// nearly always do.
DEVICE i64 divide(i64 n, i64 d) { return n < d ? 0 : ((u64)n | (u64)d) >> 32 ? n / d : (i64)((u32)n / (u32)d); }

// Offset of element `index` of the row-major walk in each of N tensors. The loop ends with the first axis that has no
// part in the index; unrolled, its divisions would be most of a kernel's code.
template <int N> struct offsets {
  i64 in[N];
};
DEVICE offsets<1> offsets_of(i64 index, const axes& extent, const axes& a) {
  offsets<1> at = {{0}};
#pragma unroll 1
  for (int axis = MAX_AXES - 1; index > 0 && axis >= 0; --axis) {
    const i64 outer = divide(index, extent.of[axis]), here = index - outer * extent.of[axis];
    at.in[0] += here * a.of[axis];
    index = outer;
  }
  return at;
}
DEVICE offsets<2> offsets_of(i64 index, const axes& extent, const axes& a, const axes& b) {
  offsets<2> at = {{0, 0}};
#pragma unroll 1
  for (int axis = MAX_AXES - 1; index > 0 && axis >= 0; --axis) {
    const i64 outer = divide(index, extent.of[axis]), here = index - outer * extent.of[axis];
    at.in[0] += here * a.of[axis];
    at.in[1] += here * b.of[axis];
    index = outer;
  }
  return at;
}
