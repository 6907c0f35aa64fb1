// Reductions over any axes: sum, mean, product, max, min, amax, norm1, norm2, argmax, argmin.
//
// Maths: y = alpha * op(x_0 .. x_{count-1}) + beta * y for each output; mean is the sum over a divisor. argmax and argmin
// give the position along the reduced axes, in row-major order, of the first extremum.
// Pointers: y of T or which of i64, contiguous, one element an output; x of T, up to 8 axes with any steps, the kept ones
// before the reduced ones; parts: scratch, one partial result for each output and split.
// Plan:
//   reduce_rows      the reduced elements lie densely: a warp or a block an output.
//   reduce_columns   one step along the reduced axis: `lanes` threads of a block side by side, with VEC neighbouring
//                    outputs each, and 256 / lanes along each.
//   reduce_plain     the same with any number of reduced axes, whose offsets are worked out element by element.
//   Few outputs of many elements are split over blocks in y, whose partial results reduce_finish folds: rows so that the
//   blocks take strips of AHEAD steps in turn, and those that run together read neighbouring memory.
//   One read of x.
// Numerics: partial results are merged in an order fixed by the shape: the same bits each time. Sums in the accumulator of
// T. Products, and norm2 of float and bfloat16, are kept in double, where neither overflows nor underflows on the way to a
// representable result; norm2 of double has three sums of squares, scaled for large, middling and small elements (Blue,
// "A portable Fortran program to find the Euclidean norm of a vector", 1978; scales of Anderson, "Algorithm 978", 2017).
// A NaN makes its output NaN; for argmax and argmin the first NaN wins.
// An empty sum, norm1 or norm2 is 0, an empty product 1, an empty mean NaN.
// Cost: sizeof(T) bytes and 1 to 3 flops an element.
// Measured on an NVIDIA H200, 2026-11-28, tools/bench.py --shapes key reduction, sums of 65,536 x 4,096, share of a copy (4.29
//   TB/s), float32 / float16 / bfloat16: columns 1.01 / 0.84 / 0.97, rows 1.04 / 1.02 / 1.01, everything 1.02 / 0.99 / 0.99.
//   ncu, bfloat16: columns 0.124 + 0.003 ms, 0.91 of the memory's peak; the 0.003 ms are the second launch. float16
//   columns took 0.145 ms, 0.77 of the peak, a load waited for 41 cycles an instruction and not 28: ptxas had saved
//   registers (36 and not 42) by asking for a third pack only when the first was used, so that two were on their way
//   where four are meant. The bound of four blocks a multiprocessor leaves it 64 and all four loads come first: 0.125
//   ms, 1.01. Wider strips, strips taken in turn, 2 to 8 loads in flight and 16 to 132 splits changed 0.001 ms.
// Limits: 8 kept and 8 reduced axes after merging.
#include "strided.cuh"
#include "vec.cuh"

template <class T> struct ReduceParams {
  T* y;
  i64* which;
  void* parts;
  const T* x;
  acc_t<T> alpha, beta, divisor;
  i64 outputs, count, splits, lanes;
  axes kept, kept_step, reduced, reduced_step;
};

// ---- operations -----------------------------------------------------------------------------------------------------
// Part: what is known of some elements. start(): of none. add(): one more, of a larger position than those before it.

DEVICE float magnitude(float v) { return fabsf(v); }
DEVICE double magnitude(double v) { return fabs(v); }

template <class T> struct SumOf {
  typedef acc_t<T> A;
  typedef A Part;
  static DEVICE Part start() { return A(0); }
  static DEVICE void add(Part& part, A x, i64) { part += x; }
  static DEVICE void merge(Part& part, Part other) { part += other; }
  static DEVICE A result(Part part, A divisor) { return part / divisor; }
};
template <class T> struct AbsSumOf : SumOf<T> {
  typedef acc_t<T> A;
  static DEVICE void add(A& part, A x, i64) { part += magnitude(x); }
};
template <class T> struct ProductOf {
  typedef acc_t<T> A;
  typedef double Part;
  static DEVICE Part start() { return 1.0; }
  static DEVICE void add(Part& part, A x, i64) { part *= x; }
  static DEVICE void merge(Part& part, Part other) { part *= other; }
  static DEVICE double result(Part part, A) { return part; }
};
template <class T> struct MaxOf {
  typedef acc_t<T> A;
  typedef A Part;
  static DEVICE Part start() { return -limits<A>::infinity(); }
  static DEVICE void add(Part& part, A x, i64) { part = (part > x || part != part) ? part : x; }
  static DEVICE void merge(Part& part, Part other) { add(part, other, 0); }
  static DEVICE A result(Part part, A) { return part; }
};
template <class T> struct MinOf {
  typedef acc_t<T> A;
  typedef A Part;
  static DEVICE Part start() { return limits<A>::infinity(); }
  static DEVICE void add(Part& part, A x, i64) { part = (part < x || part != part) ? part : x; }
  static DEVICE void merge(Part& part, Part other) { add(part, other, 0); }
  static DEVICE A result(Part part, A) { return part; }
};
template <class T> struct AbsMaxOf : MaxOf<T> {
  typedef acc_t<T> A;
  static DEVICE void add(A& part, A x, i64) { MaxOf<T>::add(part, magnitude(x), 0); }
};

// Squares of float and bfloat16 lie well within double, those of float16 within float.
template <class S> struct SquareSum {
  typedef S Part;
  static DEVICE Part start() { return S(0); }
  template <class A> static DEVICE void add(Part& part, A x, i64) { part += (S)x * (S)x; }
  static DEVICE void merge(Part& part, Part other) { part += other; }
  template <class A> static DEVICE S result(Part part, A) { return sqrt(part); }
};
struct ThreeSums {
  double large, middling, small;
};
struct ScaledSquareSum {
  typedef ThreeSums Part;
  static constexpr double LARGEST = 0x1p486, SMALLEST = 0x1p-511, SHRINK = 0x1p-538, GROW = 0x1p537;
  static DEVICE Part start() { return {0.0, 0.0, 0.0}; }
  static DEVICE void add(Part& part, double x, i64) {
    const double a = fabs(x);
    if (a > LARGEST) {
      part.large += (a * SHRINK) * (a * SHRINK);
    } else if (a < SMALLEST) {
      part.small += (a * GROW) * (a * GROW);
    } else {
      part.middling += a * a;
    }
  }
  static DEVICE void merge(Part& part, Part other) {
    part.large += other.large;
    part.middling += other.middling;
    part.small += other.small;
  }
  static DEVICE double result(Part part, double) {
    if (part.large > 0.0) return sqrt(part.large + (part.middling * SHRINK) * SHRINK) / SHRINK;
    if (part.small > 0.0 && part.middling == 0.0) return sqrt(part.small) / GROW;
    if (part.small > 0.0) return sqrt(part.middling + (part.small / GROW) / GROW);
    return sqrt(part.middling);
  }
};
template <class T> struct NormOf : SquareSum<double> {};
template <> struct NormOf<float16> : SquareSum<float> {};
template <> struct NormOf<double> : ScaledSquareSum {};

template <class A> struct Found {
  A value;
  i64 index;  // -1: none yet
};
// The first of the largest (SIGN 1) or smallest (SIGN -1) elements; a NaN is beyond both.
template <class T, int SIGN> struct Extremum {
  typedef acc_t<T> A;
  typedef Found<A> Part;
  static DEVICE Part start() { return {A(0), -1}; }
  static DEVICE bool beyond(A a, A b) { return a != a ? b == b : SIGN > 0 ? a > b : a < b; }
  static DEVICE void add(Part& part, A x, i64 index) {
    if (part.index < 0 || beyond(x, part.value)) part = {x, index};
  }
  static DEVICE void merge(Part& part, Part other) {
    if (other.index < 0) return;
    const bool earlier = other.index < part.index && !beyond(part.value, other.value);
    if (part.index < 0 || beyond(other.value, part.value) || earlier) part = other;
  }
};
template <class T> struct ArgMaxOf : Extremum<T, 1> {};
template <class T> struct ArgMinOf : Extremum<T, -1> {};

// ---- from parts to results ------------------------------------------------------------------------------------------

template <class V> DEVICE V from_lane(V v, int offset) { return __shfl_xor_sync(0xffffffffu, v, offset); }
DEVICE ThreeSums from_lane(ThreeSums v, int offset) {
  return {from_lane(v.large, offset), from_lane(v.middling, offset), from_lane(v.small, offset)};
}
template <class A> DEVICE Found<A> from_lane(Found<A> v, int offset) {
  return {from_lane(v.value, offset), from_lane(v.index, offset)};
}

template <class Op> DEVICE void merge_warp(typename Op::Part& part) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) Op::merge(part, from_lane(part, offset));
}

template <class Part> constexpr bool indexed = false;
template <class A> constexpr bool indexed<Found<A>> = true;

template <class Op, class T> DEVICE void write_result(const ReduceParams<T>& p, i64 output, const typename Op::Part& part) {
  if constexpr (indexed<typename Op::Part>) {
    p.which[output] = part.index;
  } else {
    auto v = Op::result(part, p.divisor) * p.alpha;
    if (p.beta != acc_t<T>(0)) v += p.beta * to_acc(p.y[output]);
    p.y[output] = from_acc<T>((acc_t<T>)v);
  }
}
// Store what is known of an output's elements: the result, or where the work is split a partial one.
template <class Op, class T> DEVICE void write_part(const ReduceParams<T>& p, i64 output, const typename Op::Part& part) {
  if (p.splits == 1) return write_result<Op>(p, output, part);
  static_cast<typename Op::Part*>(p.parts)[output * p.splits + blockIdx.y] = part;
}

// ---- dense rows -----------------------------------------------------------------------------------------------------

constexpr int ROW_BLOCK = 256, AHEAD = 4;  // most threads; loads in flight per thread

// The parts of a warp, or of a whole block of warps, in an order fixed by its size; its first thread has the result.
template <class Op, bool WHOLE_BLOCK> DEVICE void merge_threads(typename Op::Part& part) {
  typedef typename Op::Part Part;
  merge_warp<Op>(part);
  if constexpr (WHOLE_BLOCK) {
    __shared__ Part parts[ROW_BLOCK / 32];
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = part;
    __syncthreads();
    part = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : Op::start();
    merge_warp<Op>(part);
  }
}

template <class T, class Op, int VEC> DEVICE void add_pack(typename Op::Part& part, const pack<T, VEC>& v, i64 k) {
#pragma unroll
  for (int i = 0; i < VEC; ++i) Op::add(part, to_acc(v.lane[i]), k * VEC + i);
}

// A row is a warp's, or a block's of a size that leaves each thread AHEAD packs where the row has as many.
template <class T, class Op, int VEC, bool WHOLE_BLOCK>
__global__ void __launch_bounds__(ROW_BLOCK) reduce_rows(const ReduceParams<T> p) {
  typedef typename Op::Part Part;
  const int width = WHOLE_BLOCK ? (int)blockDim.x : 32, thread = WHOLE_BLOCK ? (int)threadIdx.x : (int)threadIdx.x % 32;
  const i64 output = WHOLE_BLOCK ? (i64)blockIdx.x : ((i64)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const i64 end = output < p.outputs ? p.count / VEC : 0, stride = p.splits * AHEAD * width;
  const T* x = p.x + offsets_of(output < p.outputs ? output : 0, p.kept, p.kept_step).in[0];
  Part part = Op::start();
  i64 k = (i64)blockIdx.y * AHEAD * width + thread;
  for (; k + (AHEAD - 1) * width < end; k += stride) {
    pack<T, VEC> v[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) v[j] = load<VEC>(x, k + j * width);
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) add_pack<T, Op, VEC>(part, v[j], k + j * width);
  }
  for (int j = 0; j < AHEAD && k < end; ++j, k += width) add_pack<T, Op, VEC>(part, load<VEC>(x, k), k);
  merge_threads<Op, WHOLE_BLOCK>(part);
  if (thread == 0 && output < p.outputs) write_part<Op>(p, output, part);
}

// ---- columns --------------------------------------------------------------------------------------------------------

constexpr int TILE = 256;

template <bool ONE_AXIS, class T> DEVICE i64 reduced_offset(const ReduceParams<T>& p, i64 k) {
  return ONE_AXIS ? k * p.reduced_step.of[MAX_AXES - 1] : offsets_of(k, p.reduced, p.reduced_step).in[0];
}
// `lanes` threads side by side have VEC neighbouring outputs each, and TILE / lanes threads share a column.
template <class T, class Op, bool ONE_AXIS, int VEC> DEVICE void reduce_tile(const ReduceParams<T>& p) {
  typedef typename Op::Part Part;
  __shared__ Part parts[VEC][TILE];
  const int lanes = (int)p.lanes;
  const i64 output = ((i64)blockIdx.x * lanes + threadIdx.x % lanes) * VEC, depth = TILE / lanes;
  const i64 per_split = quotient(p.count + p.splits - 1, p.splits), begin = blockIdx.y * per_split;
  const i64 end = output < p.outputs ? (begin + per_split < p.count ? begin + per_split : p.count) : 0;
  const T* x = p.x + offsets_of(output < p.outputs ? output : 0, p.kept, p.kept_step).in[0];
  Part part[VEC];
#pragma unroll
  for (int i = 0; i < VEC; ++i) part[i] = Op::start();
  i64 k = begin + threadIdx.x / lanes;
  for (; k + (AHEAD - 1) * depth < end; k += AHEAD * depth) {
    pack<T, VEC> v[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) v[j] = load<VEC>(x + reduced_offset<ONE_AXIS>(p, k + j * depth), 0);
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
#pragma unroll
      for (int i = 0; i < VEC; ++i) Op::add(part[i], to_acc(v[j].lane[i]), k + j * depth);
    }
  }
  for (; k < end; k += depth) {
    const pack<T, VEC> v = load<VEC>(x + reduced_offset<ONE_AXIS>(p, k), 0);
#pragma unroll
    for (int i = 0; i < VEC; ++i) Op::add(part[i], to_acc(v.lane[i]), k);
  }
#pragma unroll
  for (int i = 0; i < VEC; ++i) parts[i][threadIdx.x] = part[i];
  for (int half = TILE / 2; half >= lanes; half >>= 1) {
    __syncthreads();
    if (threadIdx.x < half) {
#pragma unroll
      for (int i = 0; i < VEC; ++i) Op::merge(parts[i][threadIdx.x], parts[i][threadIdx.x + half]);
    }
  }
  __syncthreads();
  if (threadIdx.x >= lanes || output >= p.outputs) return;
#pragma unroll
  for (int i = 0; i < VEC; ++i) write_part<Op>(p, output + i, parts[i][threadIdx.x]);
}
template <class T, class Op, int VEC> __global__ void __launch_bounds__(TILE, 4) reduce_columns(const ReduceParams<T> p) {
  reduce_tile<T, Op, true, VEC>(p);
}
template <class T, class Op> __global__ void __launch_bounds__(TILE) reduce_plain(const ReduceParams<T> p) {
  reduce_tile<T, Op, false, 1>(p);
}

// ---- splits ---------------------------------------------------------------------------------------------------------

// A warp or, where the splits are many, a block of ROW_BLOCK threads an output.
template <class T, class Op, bool WHOLE_BLOCK>
__global__ void __launch_bounds__(ROW_BLOCK) reduce_finish(const ReduceParams<T> p) {
  typedef typename Op::Part Part;
  const int width = WHOLE_BLOCK ? ROW_BLOCK : 32, thread = WHOLE_BLOCK ? (int)threadIdx.x : (int)threadIdx.x % 32;
  const i64 output = WHOLE_BLOCK ? (i64)blockIdx.x : ((i64)blockIdx.x * ROW_BLOCK + threadIdx.x) / 32;
  const i64 splits = output < p.outputs ? p.splits : 0;
  const Part* parts = static_cast<const Part*>(p.parts) + output * p.splits;
  Part part = Op::start();
#pragma unroll 4
  for (i64 k = thread; k < splits; k += width) Op::merge(part, parts[k]);
  merge_threads<Op, WHOLE_BLOCK>(part);
  if (thread == 0 && output < p.outputs) write_result<Op>(p, output, part);
}
