// The elements of one thread of an elementwise kernel, in packs where that is possible and else one by one, with one text
// for both: what is computed from them is compiled once.
#pragma once
#include "vec.cuh"

// A block has SHARE_WIDE packs of VEC elements: PACKS of each thread, all loaded before any is worked on. The front end has
// chosen PACKS. Two leave arithmetic in the shadow of memory: on an NVIDIA H200 mish in float had 0.98 of relu's rate with two and
// 0.86 with one. Where there is little to compute one is up to 1 % faster. Four took 4 % from relu and nothing was faster by
// them (2026-11-28, 2^27 to 2^29 elements).
constexpr int SHARE_WIDE = 256, SHARE_PACKS = 2;

// Where the arrays are aligned and the block's elements are whole packs (`packs`, the same for the whole block), a pack has
// VEC neighbours. Else its elements lie BLOCK apart, so that neighbouring threads still take neighbouring ones.
// With two packs the block must also have all its elements: to ask for each pack took up to 2 % from 16-bit gelu. With one
// that is free, and the last block, which all wait for, takes packs too: relu backward of 10^7 16-bit numbers, not in the L2,
// has 0.993 to 1.002 of PyTorch's rate so, and 0.984 in wide blocks of which the last takes single elements.
// A block of SHARE_WIDE threads that was meant for two packs takes one: `holds` says no to the second.
template <int VEC, int PACKS = SHARE_PACKS> struct Share {
  static_assert(PACKS == 1 || PACKS == 2);
  static constexpr int MOST = SHARE_WIDE * VEC, BLOCK = SHARE_WIDE / PACKS;
  i64 begin;  // first element of the block
  int count;  // elements of the block
  int first;  // first element of the thread where the elements come one by one
  bool packs;

  DEVICE Share(i64 size, bool aligned) {
    begin = (i64)blockIdx.x * MOST;
    count = count_from(begin, size);
    packs = aligned && fills_packs(count);
    // The second half of a wide block has what is the second pack of a thread in others.
    first = (int)threadIdx.x + (PACKS == 1 || threadIdx.x < BLOCK ? 0 : BLOCK * (VEC - 1));
  }
  static DEVICE int count_from(i64 begin, i64 size) { return size - begin < MOST ? (int)(size - begin) : MOST; }
  static DEVICE bool fills_packs(int count) { return PACKS == 1 ? count % VEC == 0 : count == MOST; }
  // Element k of pack j where the elements come one by one.
  DEVICE int at(int j, int k) const { return first + (j * VEC + k) * BLOCK; }
  static DEVICE int at(int j) { return j * BLOCK + (int)threadIdx.x; }
  // Where pack j is loaded from. One that is not there is another: to load that again takes less than to ask.
  static DEVICE int source(int j, int count) {
    if constexpr (PACKS == 1) return at(0) * VEC < count ? at(0) : 0;
    else return j * (SHARE_WIDE - (int)blockDim.x) + (int)threadIdx.x;
  }
  // Whether the thread has pack j of a block that has nothing but packs.
  static DEVICE bool takes(int j, int count) {
    if constexpr (PACKS == 1) return at(0) * VEC < count;
    else return j * (int)blockDim.x < SHARE_WIDE;
  }
  // Whether the thread has any element in pack j.
  DEVICE bool holds(int j) const {
    if constexpr (PACKS == 1) return (packs ? at(0) * VEC : first) < count;
    else return takes(j, count) && at(j, 0) < count;
  }

  // Elements that are not there read as zeros.
  template <class T> DEVICE pack<T, VEC> single(const T* array, int j) const {
    pack<T, VEC> v = {};
#pragma unroll
    for (int k = 0; k < VEC; ++k)
      if (at(j, k) < count) v.lane[k] = array[begin + at(j, k)];
    return v;
  }
  template <class T> DEVICE void load(const T* array, pack<T, VEC> (&v)[PACKS]) const {
    if (packs) {
#pragma unroll
      for (int j = 0; j < PACKS; ++j) v[j] = ::load<VEC>(array + begin, source(j, count));
    } else {
#pragma unroll
      for (int j = 0; j < PACKS; ++j) v[j] = single(array, j);
    }
  }
  // Of two arrays behind one branch, so that the second load does not wait for the first.
  template <class T>
  DEVICE void load(const T* first, const T* second, pack<T, VEC> (&v)[PACKS], pack<T, VEC> (&w)[PACKS]) const {
    if (packs) {
#pragma unroll
      for (int j = 0; j < PACKS; ++j) {
        v[j] = ::load<VEC>(first + begin, source(j, count));
        w[j] = ::load<VEC>(second + begin, source(j, count));
      }
    } else {
#pragma unroll
      for (int j = 0; j < PACKS; ++j) v[j] = single(first, j), w[j] = single(second, j);
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
template <int VEC, int PACKS> struct WholeShare {
  typedef Share<VEC, PACKS> S;
  i64 begin;
  int count;

  DEVICE explicit WholeShare(i64 size) : begin((i64)blockIdx.x * S::MOST), count(S::count_from(begin, size)) {}
  DEVICE bool applies(bool aligned) const { return aligned && S::fills_packs(count); }
  DEVICE bool holds(int j) const { return S::takes(j, count); }
  template <class T> DEVICE pack<T, VEC> load(const T* array, int j) const {
    return ::load<VEC>(array + begin, S::source(j, count));
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
