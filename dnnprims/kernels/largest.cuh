// The largest of a run of numbers, the first of equal ones, and where it was.
#pragma once
#include "vec.cuh"

DEVICE u32 exceeding(float16, u32 v, u32 best) { return float16_exceeding(v, best); }
DEVICE u32 exceeding(bfloat16, u32 v, u32 best) { return bfloat16_exceeding(v, best); }

// Words of two numbers of 16 bits.
template <class T, int VEC> union pairs {
  pack<T, VEC> whole;
  u32 word[VEC / 2];
};
// The numbers of a word.
DEVICE float lower_of(float16, u32 w) { return half_bits_to_float((u16)w); }
DEVICE float upper_of(float16, u32 w) { return half_bits_to_float((u16)(w >> 16)); }
DEVICE float lower_of(bfloat16, u32 w) { return bits_to_float(w << 16); }
DEVICE float upper_of(bfloat16, u32 w) { return bits_to_float(w & 0xffff0000u); }
DEVICE u32 halves_sums(float16, u32 a, u32 b) { return float16_sums(a, b); }
DEVICE u32 halves_sums(bfloat16, u32 a, u32 b) { return bfloat16_sums(a, b); }
DEVICE u32 in_both(int v) { return (u32)v * 0x10001u; }
DEVICE u32 chosen(u32 mask, u32 a, u32 b) { return (a & mask) | (b & ~mask); }

// Of VEC runs at once. Nothing taken yet, `first` is where a run begins whose numbers are all -inf, in even runs, and
// `second` in odd ones.
template <class T, int VEC, bool PAIRED = sizeof(T) == 2 && VEC % 2 == 0> struct Largest {
  pack<T, VEC> best;
  u32 at[VEC];

  DEVICE Largest(int first, int second) : best(nothing()) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) at[k] = k % 2 ? second : first;
  }
  // Of runs that begin with these.
  DEVICE Largest(const pack<T, VEC>& v, int tap) : best(v) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) at[k] = tap;
  }
  // Taps are counted from `by` in front of the first.
  DEVICE void shift(int by) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) at[k] += by;
  }
  // What exceeds no number.
  static DEVICE pack<T, VEC> nothing() {
    pack<T, VEC> v;
#pragma unroll
    for (int k = 0; k < VEC; ++k) v.lane[k] = from_acc<T>(-limits<acc_t<T>>::infinity());
    return v;
  }
  DEVICE void take(const pack<T, VEC>& v, int tap) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      const bool better = surpasses(to_acc(v.lane[k]), to_acc(best.lane[k]));
      best.lane[k] = better ? v.lane[k] : best.lane[k];
      at[k] = better ? tap : at[k];
    }
  }
  // What another run has found, whose numbers begin at `tap` of this one.
  DEVICE void merge(const Largest& run, int tap) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      const bool better = surpasses(to_acc(run.best.lane[k]), to_acc(best.lane[k]));
      best.lane[k] = better ? run.best.lane[k] : best.lane[k];
      at[k] = better ? run.at[k] + tap : at[k];
    }
  }
  DEVICE void settle() {
#pragma unroll
    for (int k = 0; k < VEC; ++k) keep_here(at[k]);
  }
  DEVICE pack<T, VEC> values() const { return best; }
  // A byte each.
  DEVICE pack<u8, VEC> taps() const {
    u64 bytes = 0;
#pragma unroll
    for (int k = 0; k < VEC; ++k) bytes |= (u64)at[k] << (8 * k);
    pack<u8, VEC> all;
    all.bits = (typename pack<u8, VEC>::whole)bytes;
    return all;
  }
};

// By masks: a predicate for each number would take four instructions to make and to use.
template <class T, int VEC> struct Largest<T, VEC, true> {
  u32 best[VEC / 2], at[VEC / 2];

  DEVICE Largest(int first, int second) {
    const pairs<T, VEC> none = {nothing()};
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) {
      best[k] = none.word[k];
      at[k] = (u32)first | (u32)second << 16;
    }
  }
  DEVICE Largest(const pack<T, VEC>& v, int tap) {
    const pairs<T, VEC> in = {v};
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) {
      best[k] = in.word[k];
      at[k] = in_both(tap);
    }
  }
  DEVICE void shift(int by) {
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) at[k] += in_both(by);
  }
  static DEVICE pack<T, VEC> nothing() { return Largest<T, VEC, false>::nothing(); }
  DEVICE void take(const pack<T, VEC>& v, int tap) {
    const pairs<T, VEC> in = {v};
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) {
      const u32 better = exceeding(T{}, in.word[k], best[k]);
      best[k] = chosen(better, in.word[k], best[k]);
      at[k] = chosen(better, in_both(tap), at[k]);
    }
  }
  DEVICE void merge(const Largest& run, int tap) {
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) {
      const u32 better = exceeding(T{}, run.best[k], best[k]);
      best[k] = chosen(better, run.best[k], best[k]);
      at[k] = chosen(better, run.at[k] + in_both(tap), at[k]);
    }
  }
  DEVICE void settle() {
#pragma unroll
    for (int k = 0; k < VEC / 2; ++k) keep_here(at[k]);
  }
  DEVICE pack<T, VEC> values() const {
    pairs<T, VEC> v;
    if constexpr (VEC == 8) v.whole.bits = uint4{best[0], best[1], best[2], best[3]};
    else if constexpr (VEC == 4) v.whole.bits = best[0] | (u64)best[1] << 32;
    else v.word[0] = best[0];
    return v.whole;
  }
  DEVICE pack<u8, VEC> taps() const {
    pack<u8, VEC> all;
    if constexpr (VEC == 8) all.bits = halves_as_bytes(at[0], at[1]) | (u64)halves_as_bytes(at[2], at[3]) << 32;
    else if constexpr (VEC == 4) all.bits = halves_as_bytes(at[0], at[1]);
    else all.bits = (u16)halves_as_bytes(at[0], 0);
    return all;
  }
};
