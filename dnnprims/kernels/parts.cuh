// A row on its way from global to shared memory in PARTS parts, so that work on the first begins while the others come:
// all of it is in flight at once, and no register is spent on it. Each pack belongs to the thread that asked for it, so
// that no barrier is needed.
#pragma once
#include "vec.cuh"

constexpr int PARTS = 4;

// Packs of a part: a multiple of the block's threads.
template <int BLOCK> DEVICE int part_of(int packs) { return (packs + PARTS * BLOCK - 1) / (PARTS * BLOCK) * BLOCK; }

// Ask for pack k of a row; a pack of one element has no asynchronous copy.
template <int VEC, class T> DEVICE void fetch(T* kept, const T* row, int k) {
  if constexpr (sizeof(T) * VEC == 16) copy_async(kept + (i64)k * VEC, row + (i64)k * VEC);
  else store<VEC>(kept, k, load<VEC>(row, k));
}
// copy(k) asks for pack k, for the packs of this thread among `packs`.
template <int BLOCK, class Copy> DEVICE void fetch_parts(int packs, Copy copy) {
  const int part = part_of<BLOCK>(packs);
#pragma unroll 1
  for (int s = 0; s < PARTS; ++s) {
    const int end = min((s + 1) * part, packs);
#pragma unroll 4
    for (int k = s * part + (int)threadIdx.x; k < end; k += BLOCK) copy(k);
    commit_copies();
  }
}
// use(k) works on pack k, which has come.
template <int BLOCK, class Use> DEVICE void use_parts(int packs, Use use) {
  const int part = part_of<BLOCK>(packs);
#pragma unroll 1
  for (int s = 0; s < PARTS; ++s) {
    if (s == 0) await_copies<3>();
    if (s == 1) await_copies<2>();
    if (s == 2) await_copies<1>();
    if (s == 3) await_copies<0>();
    const int end = min((s + 1) * part, packs);
#pragma unroll 1
    for (int k = s * part + (int)threadIdx.x; k < end; k += BLOCK) use(k);
  }
}
// use(k) works on pack k for the last time and asks for what comes after it in its place, as fetch_parts does.
template <int BLOCK, class Use> DEVICE void exchange_parts(int packs, Use use) {
  const int part = part_of<BLOCK>(packs);
#pragma unroll 1
  for (int s = 0; s < PARTS; ++s) {
    const int end = min((s + 1) * part, packs);
#pragma unroll 2
    for (int k = s * part + (int)threadIdx.x; k < end; k += BLOCK) use(k);
    commit_copies();
  }
}
