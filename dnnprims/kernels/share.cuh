// The elements of one thread of an elementwise kernel, in packs where that is possible and else one by one, with one text
// for both: what is computed from them is compiled once.
#pragma once
#include "vec.cuh"

// Threads of a block, which has VEC elements for each.
constexpr int SHARE_BLOCK = 256;

// Where all elements of the block are there and the arrays are aligned (`packs`, the same for the whole block), a thread
// has VEC neighbours. Else its elements lie SHARE_BLOCK apart, so that neighbouring threads still take neighbouring ones.
template <int VEC> struct Share {
  static constexpr int MOST = SHARE_BLOCK * VEC;
  i64 begin;  // first element of the block
  int count;  // elements of the block
  bool packs;

  DEVICE Share(i64 size, bool aligned) {
    begin = (i64)blockIdx.x * MOST;
    count = size - begin < MOST ? (int)(size - begin) : MOST;
    packs = aligned && count == MOST;
  }
  static DEVICE int at(int k) { return k * SHARE_BLOCK + (int)threadIdx.x; }

  // Elements that are not there read as zeros.
  template <class T> DEVICE pack<T, VEC> load(const T* array) const {
    if (packs) return ::load<VEC>(array + begin, threadIdx.x);
    pack<T, VEC> v = {};
#pragma unroll
    for (int k = 0; k < VEC; ++k)
      if (at(k) < count) v.lane[k] = array[begin + at(k)];
    return v;
  }
  // Of two arrays behind one branch, so that the second load does not wait for the first.
  template <class T> DEVICE void load(const T* first, const T* second, pack<T, VEC>& v, pack<T, VEC>& w) const {
    if (packs) {
      v = ::load<VEC>(first + begin, threadIdx.x);
      w = ::load<VEC>(second + begin, threadIdx.x);
    } else {
      v = load(first);
      w = load(second);
    }
  }
  template <class T> DEVICE void store(T* array, pack<T, VEC> v) const {
    if (packs) return ::store<VEC>(array + begin, threadIdx.x, v);
#pragma unroll
    for (int k = 0; k < VEC; ++k)
      if (at(k) < count) array[begin + at(k)] = v.lane[k];
  }
  // alpha * result + beta * old, for each of them; the result as it is where alpha is 1 and beta 0.
  template <class T, class A> DEVICE void store_blended(T* array, const A (&result)[VEC], A alpha, A beta) const {
    pack<T, VEC> v = {};
    if (alpha == A(1) && beta == A(0)) {
#pragma unroll
      for (int k = 0; k < VEC; ++k) v.lane[k] = from_acc<T>(result[k]);
    } else {
      if (beta != A(0)) v = load(array);
#pragma unroll
      for (int k = 0; k < VEC; ++k) v.lane[k] = blend(alpha, result[k], beta, &v.lane[k]);
    }
    store(array, v);
  }
};
