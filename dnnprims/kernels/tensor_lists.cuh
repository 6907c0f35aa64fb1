// Lists of tensors in one launch: a table of addresses, and a table of rows that cuts the tensors into chunks, so that a
// thousand small tensors fill the device as one large tensor does. A block has a chunk or, where chunks are cut again, a
// share of one: the chunks keep the table short, the shares have the blocks that run together stream neighbouring memory.
#pragma once
#include "vec.cuh"

struct Chunk {
  i64 first;   // element of the tensor that the block's part begins with
  int count;   // elements, 0 or less past the end of a short chunk
  int tensor;  // position in the list
  bool packs;  // all arrays at this position are 16-byte aligned
};

// A row: tensor, number of the chunk in it, elements, whether packs are allowed. `elements`: of a whole chunk; `share`: of
// a part, by which they can be divided; part `index` of all.
DEVICE Chunk chunk_at(const int* rows, i64 index, int elements, int share) {
  const i64 shares = elements / share, at = quotient(index, shares);
  const int skipped = (int)(index - at * shares) * share;
  pack<int, 4> row = load<4>(rows, at);
  const int left = row.lane[2] - skipped;
  return Chunk{(i64)row.lane[1] * elements + skipped, left < share ? left : share, row.lane[0], row.lane[3] != 0};
}

// Array at position `tensor` of the list that begins with operand `operand` of the call, from element `first` on; null
// for a list that was left out (operand < 0).
template <class T> DEVICE T* array_at(const i64* table, int operand, const Chunk& chunk) {
  return operand < 0 ? nullptr : reinterpret_cast<T*>(table[operand + chunk.tensor]) + chunk.first;
}

// A scalar that is on the device (`wide`: float64, else float32) or came with the call.
DEVICE double scalar_or(const void* address, int wide, double given) {
  if (!address) return given;
  return wide ? *static_cast<const double*>(address) : (double)*static_cast<const float*>(address);
}

// The arrays at one position of the lists; each `state` and `master` may be null.
template <class T, int STATES> struct Arrays {
  typedef acc_t<T> A;
  T* weight;
  const T* gradient;
  A* state[STATES];
  A* master;
};

// Apply `update(weight, gradient, states)` to VEC elements at a time.
template <int VEC, class T, int STATES, class Update>
DEVICE void for_each(const Arrays<T, STATES>& arrays, int groups, const Update& update) {
  typedef acc_t<T> A;
  for (int i = threadIdx.x; i < groups; i += blockDim.x) {
    pack<T, VEC> gradient = load<VEC>(arrays.gradient, i), weight;
    pack<A, VEC> exact, state[STATES];
    if (arrays.master) {
      exact = load<VEC>(arrays.master, i);
    } else {
      weight = load<VEC>(arrays.weight, i);
#pragma unroll
      for (int lane = 0; lane < VEC; ++lane) exact.lane[lane] = to_acc(weight.lane[lane]);
    }
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
      if (arrays.state[s] && update.reads_states()) {
        state[s] = load<VEC>(arrays.state[s], i);
      } else {
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) state[s].lane[lane] = A(0);
      }
    }
#pragma unroll
    for (int lane = 0; lane < VEC; ++lane) {
      A states[STATES];
#pragma unroll
      for (int s = 0; s < STATES; ++s) states[s] = state[s].lane[lane];
      exact.lane[lane] = update(exact.lane[lane], to_acc(gradient.lane[lane]), states);
#pragma unroll
      for (int s = 0; s < STATES; ++s) state[s].lane[lane] = states[s];
      weight.lane[lane] = from_acc<T>(exact.lane[lane]);
    }
#pragma unroll
    for (int s = 0; s < STATES; ++s)
      if (arrays.state[s]) store<VEC>(arrays.state[s], i, state[s]);
    if (arrays.master) store<VEC>(arrays.master, i, exact);
    store<VEC>(arrays.weight, i, weight);
  }
}

// The whole chunk: packs as far as they go, then single elements.
template <class T, int STATES, class Update>
DEVICE void update_chunk(Arrays<T, STATES> arrays, const Chunk& chunk, const Update& update) {
  constexpr int VEC = 16 / (int)sizeof(acc_t<T>);
  int groups = chunk.packs ? chunk.count / VEC : 0, done = groups * VEC;
  for_each<VEC>(arrays, groups, update);
  arrays.weight += done;
  arrays.gradient += done;
#pragma unroll
  for (int s = 0; s < STATES; ++s)
    if (arrays.state[s]) arrays.state[s] += done;
  if (arrays.master) arrays.master += done;
  for_each<1>(arrays, chunk.count - done, update);
}
