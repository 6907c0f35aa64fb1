// Packs of a row or tile that wait in registers between their uses, where shared memory has no room for all: HELD of each
// thread, BLOCK apart. Each belongs to the thread that asked for it.
#pragma once
#include "vec.cuh"

template <class T, int VEC, int HELD> struct Held {
  pack<T, VEC> packs[HELD > 0 ? HELD : 1];
};
// How many of `packs` a block holds so.
template <int BLOCK, int HELD> DEVICE int held_of(i64 packs) {
  return packs < 0 ? 0 : packs < HELD * BLOCK ? (int)packs : HELD * BLOCK;
}
// use(j, k) for the packs of this thread: its pack number j, which is number k of the block's `packs`.
template <int BLOCK, int HELD, class Use> DEVICE void each_held(int packs, Use use) {
#pragma unroll
  for (int j = 0; j < HELD; ++j)
    if (j * BLOCK + (int)threadIdx.x < packs) use(j, j * BLOCK + (int)threadIdx.x);
}
