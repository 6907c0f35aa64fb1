// What the Hopper convolutions share: the ring of stages, and what happens to sums on their way to memory.
#pragma once
#include "activation.cuh"
#include "hopper.cuh"

constexpr int CONSUMERS = 2;  // consumer warpgroups of a block
// Channels of a stage, and of what leaves at once: 128 bytes of 64 pixels. A consumer has two pieces on their way.
template <class T> constexpr int CHUNK = SWIZZLED_ROW / sizeof(T);
constexpr int PIECE = 64, PIECE_BYTES = PIECE * SWIZZLED_ROW;
template <class T> constexpr int PIECE_VALUES = PIECE * CHUNK<T> / WARPGROUP;  // of a thread

// A place in a ring of stages, after so many steps.
template <int STAGES> struct Cursor {
  int stage;
  u32 parity;
  DEVICE explicit Cursor(u32 steps) : stage(steps % STAGES), parity(steps / STAGES & 1u) {}
  DEVICE void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1u;
  }
};

// Two barriers a stage: filled by the copy engine, emptied by the consumers.
template <int STAGES> struct Ring {
  u32 barriers;
  DEVICE u32 full(int stage) const { return barriers + 8 * stage; }
  DEVICE u32 empty(int stage) const { return barriers + 8 * (STAGES + stage); }
  DEVICE void init(int consumers) const {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), consumers);
    }
  }
  // Of each consuming warp.
  DEVICE void give_back(int stage) const {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty(stage));
  }
};

// What follows sums, as the host gives it: arrays over the channels out, and the residual, any of them null.
template <class T> struct Following {
  const T* residual;
  const T* b;
  const float* scale;
  const float* shift;
  acc_t<T> alpha1, alpha2, c0, c1;  // c0, c1: of the activation
};

// What follows a sum s: act(scale (alpha1 s + b) + shift + alpha2 residual), act relu where the flag says so, then Act, the
// identity for either.
template <class T, class Act = Identity<T>> struct Then {
  const T* b;
  const float* scale;
  const float* shift;
  float alpha1, alpha2;
  bool residual, relu;
  Act act;
  DEVICE Then(const Following<T>& by, bool relu)
      : b(by.b), scale(by.scale), shift(by.shift), alpha1(by.alpha1), alpha2(by.alpha2), residual(by.residual != nullptr),
        relu(relu), act{by.c0, by.c1} {}
};

// Of a piece, a thread has sums 4 j .. 4 j + 3: columns 8 j + 2 (lane % 4) and the next, of rows 16 warp + lane / 4 and 8
// further down. Columns are channels, or rows where roles are swapped. This is a number for each channel of them.
template <bool SWAPPED, int COUNT> struct OfChannels {
  static constexpr int OWN = SWAPPED ? 2 : COUNT / 2;
  float values[OWN];
  template <class U> DEVICE OfChannels(const U* from, int channel, int channels) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int first = channel + (SWAPPED ? warp * 16 + lane / 4 : lane % 4 * 2);
#pragma unroll
    for (int k = 0; k < OWN; ++k) {
      const int own = first + (SWAPPED ? 8 * k : k / 2 * 8 + k % 2);
      values[k] = own < channels ? to_acc(from[own]) : 0.0f;
    }
  }
  DEVICE float at(int i) const { return values[SWAPPED ? i / 2 % 2 : i / 4 * 2 + i % 2]; }
};

// The address of this lane's row of the four matrices that hold sums 4 j .. 4 j + 7 of the piece, swizzled.
template <bool SWAPPED> DEVICE u32 matrix_row(u32 piece, int j) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, matrix = lane / 8;
  const int row = (SWAPPED ? (j + matrix / 2) * 8 : warp * 16 + matrix % 2 * 8) + lane % 8;
  const int chunk = SWAPPED ? warp * 2 + matrix % 2 : j + matrix / 2;
  return piece + row * SWIZZLED_ROW + ((chunk ^ (row & 7)) << 4);
}

// The address of this thread's pair of floats 4 j + 2 half, likewise.
DEVICE u32 pair_at(u32 piece, int j, int half) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + half * 8 + lane / 4;
  return piece + row * SWIZZLED_ROW + (((2 * j + lane % 4 / 2) ^ (row & 7)) << 4) + lane % 2 * 8;
}

// The last eight columns may be by themselves where roles are swapped.
template <class T, bool SWAPPED, int COUNT> DEVICE void put_piece(u32 piece, const float (&v)[COUNT]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) store_pair(pair_at(piece, i / 4, i / 2 % 2), v[i], v[i + 1]);
  } else {
#pragma unroll
    for (int j = 0; j < COUNT / 4; j += 2) {
      const u32 row = matrix_row<SWAPPED>(piece, j);
      const u32 a = two<T>(v[4 * j], v[4 * j + 1]), b = two<T>(v[4 * j + 2], v[4 * j + 3]);
      if (j + 1 == COUNT / 4) {
        store_two_transposed_matrices(row, a, b);
        break;
      }
      const u32 c = two<T>(v[4 * j + 4], v[4 * j + 5]), d = two<T>(v[4 * j + 6], v[4 * j + 7]);
      if constexpr (SWAPPED)
        store_transposed_matrices(row, a, b, c, d);
      else
        store_matrices(row, a, b, c, d);
    }
  }
}

// v += factor times what lies in the piece, which has been put there likewise.
template <class T, bool SWAPPED, int COUNT> DEVICE void add_piece(u32 piece, float factor, float (&v)[COUNT]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
      float first, second;
      load_pair(pair_at(piece, i / 4, i / 2 % 2), first, second);
      v[i] += factor * first, v[i + 1] += factor * second;
    }
  } else {
#pragma unroll
    for (int j = 0; j < COUNT / 4; j += 2) {
      u32 pairs[4];
      if constexpr (SWAPPED)
        load_transposed_matrices(matrix_row<SWAPPED>(piece, j), pairs);
      else
        load_matrices(matrix_row<SWAPPED>(piece, j), pairs);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (4 * j + 2 * k >= COUNT) break;
        v[4 * j + 2 * k] += factor * to_acc(T{(u16)(pairs[k] & 0xffffu)});
        v[4 * j + 2 * k + 1] += factor * to_acc(T{(u16)(pairs[k] >> 16)});
      }
    }
  }
}

// From sums to what is stored; the residual lies in the piece.
template <class T, bool SWAPPED, class Act, int COUNT>
DEVICE void follow(const Then<T, Act>& then, u32 piece, int channel, int channels, float (&v)[COUNT]) {
  if (then.alpha1 != 1.0f)
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] *= then.alpha1;
  if (then.b) {
    const OfChannels<SWAPPED, COUNT> b(then.b, channel, channels);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] += b.at(i);
  }
  if (then.scale) {
    const OfChannels<SWAPPED, COUNT> scale(then.scale, channel, channels);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] *= scale.at(i);
  }
  if (then.shift) {
    const OfChannels<SWAPPED, COUNT> shift(then.shift, channel, channels);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] += shift.at(i);
  }
  if (then.residual) add_piece<T, SWAPPED>(piece, then.alpha2, v);
  if (then.relu)
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] = positive_part(v[i]);
  float result[COUNT];
  forward_all(then.act, v, result);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) v[i] = result[i];
}
