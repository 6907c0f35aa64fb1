// The elements of one thread of an elementwise kernel, in packs where that is possible and else one by one, with one text
// for both: what is computed from them is compiled once.
#pragma once
#include "vec.cuh"

// A block has SHARE_BLOCK threads of SHARE_PACKS packs of VEC elements each. Two packs are loaded before either is worked
// on. On an NVIDIA H200 that left mish in float at 0.98 of relu's rate where one pack, in blocks of 256, reached 0.86, and
// took 1 % from relu itself; four packs took 4 % from it (2026-11-28, 134,217,728 elements).
constexpr int SHARE_BLOCK = 128, SHARE_PACKS = 2, SHARE_WIDE = SHARE_BLOCK * SHARE_PACKS;

// Where all elements of the block are there and the arrays are aligned (`packs`, the same for the whole block), a pack
// holds VEC neighbours. Else its elements lie SHARE_BLOCK apart, so that neighbouring threads still take neighbouring ones.
// A block of SHARE_WIDE threads has the same elements, one pack a thread: `holds` says no to the second.
template <int VEC> struct Share {
  static constexpr int MOST = SHARE_BLOCK * SHARE_PACKS * VEC;
  i64 begin;  // first element of the block
  int count;  // elements of the block
  int first;  // first element of the thread where the elements come one by one
  bool packs;

  DEVICE Share(i64 size, bool aligned) {
    begin = (i64)blockIdx.x * MOST;
    count = size - begin < MOST ? (int)(size - begin) : MOST;
    packs = aligned && count == MOST;
    // The second half of a wide block has what is the second pack of a thread in others.
    first = (int)threadIdx.x + (threadIdx.x < SHARE_BLOCK ? 0 : SHARE_BLOCK * (VEC - 1));
  }
  // Element k of pack j where the elements come one by one.
  DEVICE int at(int j, int k) const { return first + (j * VEC + k) * SHARE_BLOCK; }
  static DEVICE int at(int j) { return j * SHARE_BLOCK + (int)threadIdx.x; }
  // Where pack j is loaded from. One that is not there is the first: to load that again takes less than to ask.
  static DEVICE int source(int j) {
    static_assert(SHARE_PACKS == 2);
    return j * (SHARE_WIDE - (int)blockDim.x) + (int)threadIdx.x;
  }
  // Whether the thread has any element in pack j.
  DEVICE bool holds(int j) const { return j * (int)blockDim.x < SHARE_WIDE && at(j, 0) < count; }

  // Elements that are not there read as zeros.
  template <class T> DEVICE pack<T, VEC> single(const T* array, int j) const {
    pack<T, VEC> v = {};
#pragma unroll
    for (int k = 0; k < VEC; ++k)
      if (at(j, k) < count) v.lane[k] = array[begin + at(j, k)];
    return v;
  }
  template <class T> DEVICE void load(const T* array, pack<T, VEC> (&v)[SHARE_PACKS]) const {
    if (packs) {
#pragma unroll
      for (int j = 0; j < SHARE_PACKS; ++j) v[j] = ::load<VEC>(array + begin, source(j));
    } else {
#pragma unroll
      for (int j = 0; j < SHARE_PACKS; ++j) v[j] = single(array, j);
    }
  }
  // Of two arrays behind one branch, so that the second load does not wait for the first.
  template <class T>
  DEVICE void load(const T* first, const T* second, pack<T, VEC> (&v)[SHARE_PACKS], pack<T, VEC> (&w)[SHARE_PACKS]) const {
    if (packs) {
#pragma unroll
      for (int j = 0; j < SHARE_PACKS; ++j) {
        v[j] = ::load<VEC>(first + begin, source(j));
        w[j] = ::load<VEC>(second + begin, source(j));
      }
    } else {
#pragma unroll
      for (int j = 0; j < SHARE_PACKS; ++j) v[j] = single(first, j), w[j] = single(second, j);
    }
  }
  template <class T> DEVICE void store(T* array, int j, pack<T, VEC> v) const {
    if (packs) return ::store<VEC>(array + begin, at(j), v);
#pragma unroll
    for (int k = 0; k < VEC; ++k)
      if (at(j, k) < count) array[begin + at(j, k)] = v.lane[k];
  }
  // alpha * result + beta * old, for each element of pack j; the result as it is where alpha is 1 and beta 0.
  template <class T, class A> DEVICE void store_blended(T* array, int j, const A (&result)[VEC], A alpha, A beta) const {
    pack<T, VEC> v = {};
    if (alpha == A(1) && beta == A(0)) {
      v = rounded<T>(result);
    } else {
      if (beta != A(0)) v = packs ? ::load<VEC>(array + begin, at(j)) : single(array, j);
#pragma unroll
      for (int k = 0; k < VEC; ++k) v.lane[k] = blend(alpha, result[k], beta, &v.lane[k]);
    }
    store(array, j, v);
  }
};

// The same of a block that has nothing but packs, which spends 2 to 3 instructions an element less on knowing so. For those
// kernels alone that arithmetic holds up: 16-bit gelu takes 36 registers with it, where 32 let all warps stay, and had 0.93
// of a copy's rate for 0.99 in a build that also had its blocks in reverse.
template <int VEC> struct WholeShare {
  typedef Share<VEC> S;
  i64 begin;

  DEVICE WholeShare() : begin((i64)blockIdx.x * S::MOST) {}
  DEVICE bool applies(i64 size, bool aligned) const { return aligned && size - begin >= S::MOST; }
  static DEVICE bool holds(int j) { return j == 0 || blockDim.x == SHARE_BLOCK; }
  template <class T> DEVICE pack<T, VEC> load(const T* array, int j) const {
    return ::load<VEC>(array + begin, S::source(j));
  }
  template <class T, class A> DEVICE void store_blended(T* array, int j, const A (&result)[VEC], A alpha, A beta) const {
    pack<T, VEC> v = {};
    if (alpha == A(1) && beta == A(0)) {
      v = rounded<T>(result);
    } else {
      if (beta != A(0)) v = ::load<VEC>(array + begin, S::at(j));
#pragma unroll
      for (int k = 0; k < VEC; ++k) v.lane[k] = blend(alpha, result[k], beta, &v.lane[k]);
    }
    ::store<VEC>(array + begin, S::at(j), v);
  }
};
