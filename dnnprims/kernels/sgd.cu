// Stochastic gradient descent with momentum on lists of tensors, in place (Polyak 1964; the look-ahead of Nesterov 1983 as
// rewritten by Sutskever et al. 2013). With g' = scale g + decay w:
//
//   accumulate_gradient   v = mu v + (1 - damp) g'       w -= lr v    (Nesterov: w -= lr (g' + mu v))
//   accumulate_step       v = mu v - lr (1 - damp) g'    w += v       (Nesterov: w += mu v - lr g')
//
// Pointers: table, i64: address of every operand of the call; rows, i32 (blocks, 4): the chunks (tensor_lists.cuh);
//   lr, gradient_scale: null or a float32 or float64 scalar; found_inf: null or an i32 scalar, nonzero: nothing is changed.
//   In the table, weights and gradients are T, velocities and masters A, the accumulator of T; the latter two may be absent.
// Plan: one block per share of a chunk, one pass; lanes that fill 16 bytes of A per thread, which are the
//   share; one lane where an array is unaligned and in the tail.
// Numerics: in A, fused where written, each stored value rounded once; with a master the weight is the rounded master.
//   Every element is computed by one thread from its own values, so the bits depend on nothing else.
// Cost for T = A = float: 12 bytes and 4 flops per element, with velocities 20 bytes and 7 flops. For 16-bit T: 6 and 14
//   bytes; masters add 6.
// Limits: chunks are counted in 32 bits, elements in 64.
// Measured on an NVIDIA H200, 2026-11-28, tools/bench.py, with momentum: 32 tensors of 16,777,216: float32 4.30 TB/s, 1.00
//   of a copy; bfloat16 4.16 TB/s, 0.97. A block for each chunk of 65,536 elements had reached 0.94 and 0.93. 1,000 tensors
//   of 10,000, as a graph: float32 0.0555 ms, 1.03 of the time of one of 10,000,000; bfloat16 0.0437 ms, 1.09 of it. Call
//   by call the host takes longer, which looks at 3,000 arrays; the launch is one.
#include "tensor_lists.cuh"

template <class T> struct SgdUpdateParams {
  const i64* table;
  const int* rows;
  const void* lr_address;
  const void* gradient_scale_address;
  const int* found_inf;
  double lr, gradient_scale, momentum, dampening, weight_decay;
  int lr_wide, gradient_scale_wide;
  int weights, gradients, velocities, masters;
  int elements, share, accumulate_step, nesterov;
};

template <class A> struct SgdUpdate {
  A scale, decay, momentum, gain, lr;  // gain: 1 - dampening
  bool accumulate_step, nesterov;

  // With momentum 0 the old velocities do not matter and are not read.
  DEVICE bool reads_states() const { return momentum != A(0); }

  DEVICE A operator()(A weight, A gradient, A* velocity) const {
    gradient = fma(decay, weight, scale * gradient);
    if (accumulate_step) {
      velocity[0] = fma(momentum, velocity[0], -(lr * gain) * gradient);
      return weight + (nesterov ? fma(momentum, velocity[0], -lr * gradient) : velocity[0]);
    }
    velocity[0] = fma(momentum, velocity[0], gain * gradient);
    return fma(-lr, nesterov ? fma(momentum, velocity[0], gradient) : velocity[0], weight);
  }
};

template <class T> __global__ void __launch_bounds__(256) sgd_update(const SgdUpdateParams<T> p) {
  typedef acc_t<T> A;
  if (p.found_inf && *p.found_inf != 0) return;
  SgdUpdate<A> update;
  update.scale = (A)scalar_or(p.gradient_scale_address, p.gradient_scale_wide, p.gradient_scale);
  update.decay = (A)p.weight_decay;
  update.momentum = (A)p.momentum;
  update.gain = (A)(1.0 - p.dampening);
  update.lr = (A)scalar_or(p.lr_address, p.lr_wide, p.lr);
  update.accumulate_step = p.accumulate_step != 0;
  update.nesterov = p.nesterov != 0;

  Chunk chunk = chunk_at(p.rows, blockIdx.x, p.elements, p.share);
  if (chunk.count <= 0) return;
  Arrays<T, 1> arrays;
  arrays.weight = array_at<T>(p.table, p.weights, chunk);
  arrays.gradient = array_at<const T>(p.table, p.gradients, chunk);
  arrays.state[0] = array_at<A>(p.table, p.velocities, chunk);
  arrays.master = array_at<A>(p.table, p.masters, chunk);
  update_chunk(arrays, chunk, update);
}
