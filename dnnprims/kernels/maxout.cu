// Maxout: the largest of each group of `pool` neighbours along an axis (Goodfellow et al., "Maxout networks", ICML 2013,
// arXiv 1302.4389).
//
// Forward    y[o, u, i] = max_k x[o, u * pool + k, i];  which[o, u, i] = the first k that attains it. A NaN is larger
//            than every number; the first NaN wins.
// Backward   dx[o, u * pool + k, i] = dy[o, u, i] where k = which[o, u, i], else 0.
//
// Shapes     x, dx: (outer, units * pool, inner), y, dy: (outer, units, inner), row-major, of type T; which: the shape of
//            y, W = u8 for pool <= 256, else int.
// Plan       maxout_forward_units    inner = 1: the VEC groups of a thread lie side by side, POOL packs of 16 bytes, and
//                                    stay in registers; one pack of y and one word of which are written.
//            maxout_forward_strided  any inner: a thread takes VEC neighbours along inner and steps through the pool.
//            maxout_backward_units   inner = 1, pools of a power of two, nothing to blend: a thread has two packs of dx, a
//                                    block apart, whose dy and which it reads at once.
//            maxout_backward         a thread per VEC neighbours of dx, element by element. Both write the larger array in
//                                    order.
//            One pass over memory each.
// Numerics   forward moves values and rounds nothing; backward computes in A only to blend. Deterministic.
// Cost       forward (n + n / pool) sizeof(T) + n / pool sizeof(W) bytes for n elements of x; backward the same. One
//            comparison an element.
// Measured   on an NVIDIA H200, 2026-11-28, pool 4, tools/bench.py: forward 65536x1024 float32 0.327 ms, 1.00 of a copy,
//            131072x1024 bfloat16 0.341 ms, 1.01. Backward, ncu: 131072x1024 bfloat16 0.361 ms, 4.09 TB/s; element by
//            element it was 1.067 ms, 0.32 of a copy. A thread that has the units of a whole pack of dy, whose stores then
//            lie 64 bytes apart, was a prototype of 0.39.
// Limits     `which` comes from the caller: an index outside of the group selects nothing, its gradient is 0 and the
//            flag is set. VEC > 1 asks for 16-byte aligned x, y, dx and, in the strided kernel, inner divisible by VEC.
#include "vec.cuh"

// In DEVICE_FLAGS of the checks.
#define MAXOUT_INDEX_OUT_OF_RANGE 2

// Whether v replaces the best so far: strictly larger, or the first NaN.
template <class A> DEVICE bool exceeds(A v, A best) { return v > best || (v != v && best == best); }

template <class T> struct MaxoutForwardParams {
  T* y;
  void* which;
  const T* x;
  i64 size, inner, pool;  // size counts elements of y
};

// `size` elements of y; a thread past the last whole pack takes the tail, group by group.
template <class T, int VEC, int POOL>
__global__ void __launch_bounds__(256) maxout_forward_units(const MaxoutForwardParams<T> p) {
  i64 index = global_thread(), first = index * VEC;
  u8* which = static_cast<u8*>(p.which);
  if (first + VEC > p.size) {
    for (i64 u = first; u < p.size; u++) {
      int k_best = 0;
      for (int k = 1; k < POOL; k++) {
        if (exceeds(to_acc(p.x[u * POOL + k]), to_acc(p.x[u * POOL + k_best]))) k_best = k;
      }
      p.y[u] = p.x[u * POOL + k_best];
      which[u] = (u8)k_best;
    }
    return;
  }
  pack<T, VEC> y, x[POOL];
  // Bytes are put together in a register: as an array they would go through local memory.
  union {
    u64 bits;
    pack<u8, VEC> bytes;
  } k_best{0};
#pragma unroll
  for (int j = 0; j < POOL; j++) x[j] = load<VEC>(p.x, index * POOL + j);
#pragma unroll
  for (int u = 0; u < VEC; u++) {
    T best = x[u * POOL / VEC].lane[u * POOL % VEC];
    int k_max = 0;
#pragma unroll
    for (int k = 1; k < POOL; k++) {
      T v = x[(u * POOL + k) / VEC].lane[(u * POOL + k) % VEC];
      if (exceeds(to_acc(v), to_acc(best))) {
        best = v;
        k_max = k;
      }
    }
    y.lane[u] = best;
    k_best.bits |= (u64)k_max << (8 * u);
  }
  store<VEC>(p.y, index, y);
  store<VEC>(which, index, k_best.bytes);
}

template <class T, class W, int VEC>
__global__ void __launch_bounds__(256) maxout_forward_strided(const MaxoutForwardParams<T> p) {
  i64 index = global_thread(), first = index * VEC;
  if (first >= p.size) return;
  i64 group = quotient(first, p.inner);
  const T* x = p.x + group * p.pool * p.inner + (first - group * p.inner);
  pack<T, VEC> best = load<VEC>(x, 0);
  W k_best[VEC];
#pragma unroll
  for (int u = 0; u < VEC; u++) k_best[u] = W(0);
  for (i64 k = 1; k < p.pool; k++) {
    pack<T, VEC> v = load<VEC>(x + k * p.inner, 0);
#pragma unroll
    for (int u = 0; u < VEC; u++) {
      if (exceeds(to_acc(v.lane[u]), to_acc(best.lane[u]))) {
        best.lane[u] = v.lane[u];
        k_best[u] = (W)k;
      }
    }
  }
  store<VEC>(p.y, index, best);
#pragma unroll
  for (int u = 0; u < VEC; u++) static_cast<W*>(p.which)[first + u] = k_best[u];
}

template <class T> struct MaxoutBackwardParams {
  T* dx;
  int* flag;
  const T* dy;
  const void* which;
  acc_t<T> alpha, beta;
  i64 size, inner, pool;  // size counts elements of dx
};

constexpr int BACKWARD_PACKS = 2;

// Byte u of a word: an array of bytes would go through local memory.
DEVICE int byte_of(u32 word, int u) { return (int)(word >> (8 * u) & 0xffu); }

// A pack of dx from UNITS units; where a unit is longer than a pack, this is the part of it that begins with k = `begin`.
template <class T, int VEC, int UNITS>
DEVICE pack<T, VEC> spread(const pack<T, UNITS>& dy, u32 which, int begin) {
  pack<T, VEC> dx;
#pragma unroll
  for (int e = 0; e < VEC; ++e) {
    const int u = e / (VEC / UNITS);
    dx.lane[e] = byte_of(which, u) == begin + e % (VEC / UNITS) ? dy.lane[u] : T{};
  }
  return dx;
}

// dx = dy where chosen, else 0: bits are moved and nothing is blended.
template <class T, int VEC, int POOL>
__global__ void __launch_bounds__(256) maxout_backward_units(const MaxoutBackwardParams<T> p) {
  constexpr int UNITS = POOL < VEC ? VEC / POOL : 1, PACKS = POOL > VEC ? POOL / VEC : 1;  // of a pack, of a unit
  const u64 first = (u64)blockIdx.x * (256 * BACKWARD_PACKS) + threadIdx.x, packs = (u64)p.size / VEC;
  const u8* chosen = static_cast<const u8*>(p.which);
  pack<T, UNITS> dy[BACKWARD_PACKS];
  u32 which[BACKWARD_PACKS];
#pragma unroll
  for (int j = 0; j < BACKWARD_PACKS; ++j) {
    const u64 index = first + j * 256;
    if (index < packs) {
      dy[j] = load<UNITS>(p.dy, index / PACKS);
      which[j] = load<UNITS>(chosen, index / PACKS).bits;
    }
  }
#pragma unroll
  for (int j = 0; j < BACKWARD_PACKS; ++j) {
    const u64 index = first + j * 256;
    if (index < packs) {
      bool within = true;
#pragma unroll
      for (int u = 0; u < UNITS; ++u) within = within && byte_of(which[j], u) < POOL;
      if (!within) *p.flag = MAXOUT_INDEX_OUT_OF_RANGE;
      store<VEC>(p.dx, index, spread<T, VEC, UNITS>(dy[j], which[j], (int)(index % PACKS) * VEC));
    } else if (index == packs) {  // elements past the last whole pack
      for (u64 e = packs * VEC; e < (u64)p.size; ++e) {
        const int k = chosen[e / POOL];
        if (k >= POOL) *p.flag = MAXOUT_INDEX_OUT_OF_RANGE;
        p.dx[e] = k == (int)(e % POOL) ? p.dy[e / POOL] : T{};
      }
    }
  }
}

// Element by element within a pack, without dividing again: e = (group * pool + k) * inner + position.
template <class T, class W, int VEC>
__global__ void __launch_bounds__(256) maxout_backward(const MaxoutBackwardParams<T> p) {
  typedef acc_t<T> A;
  i64 first = global_thread() * VEC;
  if (first >= p.size) return;
  i64 row = quotient(first, p.inner), position = first - row * p.inner;
  i64 group = quotient(row, p.pool), k = row - group * p.pool;
  int count = p.size - first < VEC ? (int)(p.size - first) : VEC;
  pack<T, VEC> dx;
#pragma unroll
  for (int e = 0; e < VEC; e++) {
    if (e < count) {
      i64 from = group * p.inner + position, chosen = (i64)static_cast<const W*>(p.which)[from];
      if (chosen < 0 || chosen >= p.pool) *p.flag = MAXOUT_INDEX_OUT_OF_RANGE;
      A gradient = chosen == k ? to_acc(p.dy[from]) : A(0);
      dx.lane[e] = blend<T>(p.alpha, gradient, p.beta, p.dx + first + e);
      if (++position == p.inner) {
        position = 0;
        if (++k == p.pool) {
          k = 0;
          group++;
        }
      }
    }
  }
  if (count == VEC) {
    store<VEC>(p.dx, first / VEC, dx);
    return;
  }
#pragma unroll
  for (int e = 0; e < VEC; e++) {
    if (e < count) p.dx[first + e] = dx.lane[e];
  }
}
