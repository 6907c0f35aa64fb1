// Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019) on lists of tensors, in place. With g' = scale g + d w
// (d the coupled decay) and e = lr times the decoupled decay:
//
//   m = b1 m + (1 - b1) g'     v = b2 v + (1 - b2) g'^2
//   w -= e w + lr / c1 * m / (sqrt(v) / sqrt(c2) + epsilon),    c_i = 1 - b_i^step, or 1 without bias correction
//
// Pointers: table, i64: address of every operand of the call; rows, i32 (blocks, 4): the chunks (tensor_lists.cuh);
//   lr, gradient_scale: null or a float32 or float64 scalar; step: null or an int32 or int64 scalar; found_inf: null or an
//   i32 scalar, nonzero: nothing is changed. In the table, weights and gradients are T, moments and masters A, the
//   accumulator of T; masters may be absent.
// Plan: one block per share of a chunk, one pass. Thread 0 derives the coefficients in double; lanes that fill 16 bytes of
//   A per thread and step, four steps a share; one lane where an array is unaligned and in the tail.
// Numerics: in A, fused where written, each stored value rounded once; with a master the weight is the rounded master.
//   c_i = -expm1(step log b_i) keeps its digits for b near 1 and in long runs, and is the same whether step comes from the
//   host or the device. The shrinkage e w is added to the step before the weight is touched: 1 - e would lose e's digits.
//   v is infinite for |g'| above about 1.8e19 / sqrt(1 - b2) in float, and such an element no longer moves.
//   Every element is computed by one thread from its own values, so the bits depend on nothing else.
// Cost for T = A = float: 28 bytes and 14 flops, among them a root and a quotient, per element; for 16-bit T 22 bytes;
//   masters add 6.
// Limits: chunks are counted in 32 bits, elements in 64.
// Measured on an NVIDIA H200, 2026-11-28, adamw, 8 tensors of 16,777,216: float32 4.13 TB/s, 0.96 of a copy; bfloat16 4.09
//   TB/s, 0.95. A block for each chunk of 65,536 elements had reached 0.93 and 0.92, as it reads far from its neighbours;
//   one step a share 0.93 and 0.86, as the coefficients then take longer than the packs. Loading the first packs before
//   the coefficients are there, predicted to hide these, changed nothing for the more registers it takes. 1,000 tensors
//   of 10,000, as a graph with a block for each chunk: float32 0.075 ms, bfloat16 0.062 ms, as long as one of 10,000,000.
#include "tensor_lists.cuh"

template <class T> struct AdamUpdateParams {
  const i64* table;
  const int* rows;
  const void* lr_address;
  const void* gradient_scale_address;
  const void* step_address;
  const int* found_inf;
  double lr, gradient_scale, beta1, beta2, log_beta1, log_beta2, epsilon, coupled_decay, decoupled_decay;
  i64 step;
  int lr_wide, gradient_scale_wide, step_wide;
  int weights, gradients, first_moments, second_moments, masters;
  int elements, share, bias_correction;
};

template <class A> struct AdamUpdate {
  A scale, coupled, shrink, beta1, gain1, beta2, gain2, step_size, root_scale, epsilon;  // gain: 1 - beta

  DEVICE bool reads_states() const { return true; }

  DEVICE A operator()(A weight, A gradient, A* moments) const {
    gradient = fma(coupled, weight, scale * gradient);
    moments[0] = fma(beta1, moments[0], gain1 * gradient);
    moments[1] = fma(beta2, moments[1], (gain2 * gradient) * gradient);
    A ratio = moments[0] / fma(sqrt(moments[1]), root_scale, epsilon);
    return weight - fma(shrink, weight, step_size * ratio);
  }
};

template <class T> DEVICE AdamUpdate<acc_t<T>> adam_coefficients(const AdamUpdateParams<T>& p) {
  typedef acc_t<T> A;
  double lr = scalar_or(p.lr_address, p.lr_wide, p.lr), correction1 = 1.0, correction2 = 1.0;
  if (p.bias_correction) {
    i64 step = p.step;
    if (p.step_address)
      step = p.step_wide ? *static_cast<const i64*>(p.step_address) : *static_cast<const int*>(p.step_address);
    correction1 = -expm1((double)step * p.log_beta1);
    correction2 = -expm1((double)step * p.log_beta2);
  }
  AdamUpdate<A> update;
  update.scale = (A)scalar_or(p.gradient_scale_address, p.gradient_scale_wide, p.gradient_scale);
  update.coupled = (A)p.coupled_decay;
  update.shrink = (A)(lr * p.decoupled_decay);
  update.beta1 = (A)p.beta1;
  update.gain1 = (A)(1.0 - p.beta1);
  update.beta2 = (A)p.beta2;
  update.gain2 = (A)(1.0 - p.beta2);
  update.step_size = (A)(lr / correction1);
  update.root_scale = (A)(1.0 / sqrt(correction2));
  update.epsilon = (A)p.epsilon;
  return update;
}

template <class T> __global__ void __launch_bounds__(256) adam_update(const AdamUpdateParams<T> p) {
  typedef acc_t<T> A;
  if (p.found_inf && *p.found_inf != 0) return;
  Chunk chunk = chunk_at(p.rows, blockIdx.x, p.elements, p.share);
  if (chunk.count <= 0) return;
  __shared__ AdamUpdate<A> shared;
  if (threadIdx.x == 0) shared = adam_coefficients(p);
  Arrays<T, 2> arrays;
  arrays.weight = array_at<T>(p.table, p.weights, chunk);
  arrays.gradient = array_at<const T>(p.table, p.gradients, chunk);
  arrays.state[0] = array_at<A>(p.table, p.first_moments, chunk);
  arrays.state[1] = array_at<A>(p.table, p.second_moments, chunk);
  arrays.master = array_at<A>(p.table, p.masters, chunk);
  __syncthreads();
  AdamUpdate<A> update = shared;
  update_chunk(arrays, chunk, update);
}
