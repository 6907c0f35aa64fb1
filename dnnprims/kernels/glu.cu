// Gated linear units: one half of the input, scaled by a gate of the other half.
//
// Forward    y = a * g(b), where a is the first and b the second half of x along an axis.
// Backward   da = dy * g(b),  db = dy * a * g'(b).
//            g: sigmoid (Dauphin et al., "Language modeling with gated convolutional networks", 2017), gelu, gelu_tanh,
//            swish, relu, identity (Shazeer, "GLU variants improve transformer", 2020, arXiv 2002.05202).
//
// Shapes     x, dx: (outer, 2, half), y, dy: (outer, half), row-major, of type T; half counts all elements of one half
//            of the axis and of the axes behind it.
// Plan       one pass; a thread takes VEC neighbours of both halves, and in backward writes both gradients, so that the
//            gate and its slope are worked out from one load of b.
// Numerics   in A; the gate and its slope as activation.cuh states, then one rounding for each product. In db a
//            large dy is halved first and the result doubled last, as a slope above 1 must not make an infinity that
//            a = 0 would turn into NaN. relu'(0) = 0. Deterministic.
// Cost       forward 3 n sizeof(T) bytes for n elements of y, backward 5 n; up to 60 flops an element.
// Measured   on an NVIDIA H200, 2026-11-28, tools/bench.py, y of 512 MiB, share of a copy: sigmoid forward bfloat16 1.00,
//            float32 0.90, backward 1.00, 1.00; swish forward 0.98, 0.88, backward 0.90, 0.77. ncu: swish backward in
//            float32 issues instructions in 90 of 100 cycles: the gate and its slope are the bound, not the memory.
// Limits     VEC > 1 asks for 16-byte aligned pointers and half divisible by VEC.
#include "activation.cuh"
#include "vec.cuh"

// Gate is a functor of activation.cuh; swish takes its beta, 1, and the others no parameter.
template <class T> struct GluForwardParams {
  T* y;
  const T* x;
  acc_t<T> alpha, beta;
  i64 size, half;  // size counts elements of y
};

template <class T, class Gate, int VEC>
__global__ void __launch_bounds__(256) glu_forward(const GluForwardParams<T> p) {
  i64 index = global_thread(), first = index * VEC;
  if (first >= p.size) return;
  i64 at = (first + quotient(first, p.half) * p.half) / VEC;
  pack<T, VEC> a = load<VEC>(p.x, at), b = load<VEC>(p.x, at + p.half / VEC), y;
  const Gate gate{acc_t<T>(1), acc_t<T>(0)};
#pragma unroll
  for (int k = 0; k < VEC; k++)
    y.lane[k] = blend<T>(p.alpha, to_acc(a.lane[k]) * gate.forward(to_acc(b.lane[k])), p.beta, p.y + first + k);
  store<VEC>(p.y, index, y);
}

template <class T> struct GluBackwardParams {
  T* dx;
  const T* dy;
  const T* x;
  acc_t<T> alpha, beta;
  i64 size, half;  // size counts elements of dy
};

template <class T, class Gate, int VEC>
__global__ void __launch_bounds__(256) glu_backward(const GluBackwardParams<T> p) {
  typedef acc_t<T> A;
  i64 index = global_thread(), first = index * VEC;
  if (first >= p.size) return;
  i64 at = (first + quotient(first, p.half) * p.half) / VEC, behind = at + p.half / VEC;
  pack<T, VEC> dy = load<VEC>(p.dy, index), a = load<VEC>(p.x, at), b = load<VEC>(p.x, behind), da, db;
  const Gate gate{A(1), A(0)};
#pragma unroll
  for (int k = 0; k < VEC; k++) {
    A upstream = to_acc(dy.lane[k]), gating = to_acc(b.lane[k]);
    bool large = magnitude(upstream) > A(1);
    A gradient = gate.backward(large ? A(0.5) * upstream : upstream, gating) * to_acc(a.lane[k]);
    da.lane[k] = blend<T>(p.alpha, upstream * gate.forward(gating), p.beta, p.dx + at * VEC + k);
    db.lane[k] = blend<T>(p.alpha, large ? gradient + gradient : gradient, p.beta, p.dx + behind * VEC + k);
  }
  store<VEC>(p.dx, at, da);
  store<VEC>(p.dx, behind, db);
}
