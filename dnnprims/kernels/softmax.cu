// Softmax and log-softmax along one axis, forward and backward.
//
// Maths, for each row x_0 .. x_{cols-1} (online form: Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018):
//   forward   accurate  y = exp(x - m) / s     with m = max x, s = sum exp(x - m)
//             fast      y = exp(x) / sum exp(x)
//             log       y = x - m - log s
//   backward  dx = y (dy - sum dy y);  log: dx = dy - exp(y) sum dy
//   out = alpha * result + beta * out.
// Pointers: y, x, dy, dx of T, (outer, cols, inner) contiguous; a row runs over cols with step inner. out may be the
// very memory of x, dy or y: each element is read by the thread that writes it, and the row's sums come first.
// Plan:
//   *_row      inner == 1, the row in the registers of WIDTH threads (a part of a warp, a warp, or a block): one read
//              of each input and one write.
//   *_long     inner == 1, any length: a block per row, maximum and sum in one read, which leaves the row in shared memory
//              for the result (parts.cuh). What has no room there is read again, first what the caches saw last.
//   *_strided  any inner: `lanes` neighbouring rows per block, whose memory is contiguous, and 256 / lanes threads
//              along each; two reads, one write.
//   *_plain    a thread per row, one loop per pass: any shape, any alignment.
// Numerics: sums in the accumulator of T in a fixed order, no atomics: the same bits each time. The result of a row does
// not depend on the other rows nor on how many there are. A NaN or +inf in a row, or a row of -inf alone, makes that
// row NaN throughout; so does a sum that leaves the range of the accumulator, which `fast` alone can meet.
// Cost: forward 2 * sizeof(T) bytes and 1 exponential an element (3 and 2 where read twice) and 4 flops; an exponential
//   is about 20 flops in float, 2 in 16-bit types. Backward 3 * sizeof(T) bytes (5 where read twice) and 4 flops, with
//   log an exponential.
//   An exponential here is good to 4 u, its argument's error aside (math<T>::exp_term).
// Limits: in registers up to 16,384 columns (8,192 in double). A row of T wholly in shared memory up to 226 KiB, backward
//   two of 113 KiB.
// Measured on an NVIDIA H200, 2026-11-28, tools/bench.py --shapes key softmax; share of a copy (4.295 TB/s), forward /
//   backward of accurate:
//     rows x columns     float32        float16        bfloat16
//     262,144 x 128      0.89 / 0.95    0.75 / 0.87    0.74 / 0.88
//     65,536 x 1024      0.85 / 0.92    0.75 / 0.75    0.88 / 0.77
//     32,768 x 4096      0.86 / 1.00    0.75 / 0.98    0.87 / 0.97
//     8,192 x 32,768     0.91 / 1.00    0.86 / 1.00    0.80 / 1.00
//     4,096 x 50,304     0.95 / 0.84    0.88 / 0.98    0.83 / 0.97
//     axis 1 of 256 x 1024 x 1024   0.48 / 0.50   0.31 / 0.33   0.31 / 0.38
//   log is within 0.14 of that, mostly above it from 32,768 columns on. Predicted for a row kept between its uses: a copy's
//   rate in the place of two thirds of it (0.59 to 0.79 were measured). Where it falls short: at 50,304 of float32 backward
//   393 KiB do not fit, and 42 % of them are read again; the strided kernel reads twice, too. Supposed for the 16-bit types
//   forward: the instructions of the exponential, of which there are twice as many a byte.
#include "math.cuh"
#include "parts.cuh"
#include "reduce.cuh"
#include "vec.cuh"

constexpr int ACCURATE = 0, FAST = 1, LOG = 2;

template <class T> struct SoftmaxForwardParams {
  T* y;
  const T* x;
  acc_t<T> alpha, beta;
  i64 rows, cols, inner;
  int algorithm, lanes;
  int kept;  // packs of a row that *_long keeps in shared memory
};
template <class T> struct SoftmaxBackwardParams {
  T* dx;
  const T* dy;
  const T* y;
  acc_t<T> alpha, beta;
  i64 rows, cols, inner;
  int algorithm, lanes;
  int kept;  // packs of a row that *_long keeps in shared memory
};

// The larger of two; a NaN is dropped here, because it comes back in the sum of exponentials.
struct Larger {
  DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
  DEVICE double operator()(double a, double b) const { return fmax(a, b); }
};

// Rows narrower than a block share blocks of this many threads.
constexpr int SHARED_BLOCK = 128;
template <int WIDTH> constexpr int row_block = WIDTH > SHARED_BLOCK ? WIDTH : SHARED_BLOCK;

template <int WIDTH, class Op, class A> DEVICE A row_reduce(A v, Op op, A identity) {
  if constexpr (WIDTH > 32) {
    return block_reduce<WIDTH>(v, op, identity);
  } else {
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset >>= 1) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
  }
}

// What takes an element's part to its result: the factor 1 / s, or log s. NaN where s left the range.
template <class T> DEVICE acc_t<T> normalizer(acc_t<T> sum, bool log) {
  typedef acc_t<T> A;
  const A factor = A(1) / sum;
  if (!(factor > A(0) && factor < limits<A>::infinity())) return limits<A>::nan();
  return log ? math<T>::log(sum) : factor;
}
template <class T, class A> DEVICE A normalized(A x, A top, A norm, bool log) {
  return log ? (x - top) - norm : math<T>::exp_term(x - top) * norm;
}

// A maximum and the sum of exponentials below it, over the elements met so far.
template <class T> struct Running {
  typedef acc_t<T> A;
  A top, sum;
  // What to subtract: as long as nothing but -inf came, anything finite, so that exp(-inf) is 0 and not NaN.
  static DEVICE A base(A top) { return top == -limits<A>::infinity() ? A(0) : top; }
  DEVICE void start(bool fast) {
    top = fast ? A(0) : -limits<A>::infinity();
    sum = A(0);
  }
  template <int N> DEVICE void add(const A (&v)[N], bool fast) {
    if (!fast) {
      A peak = v[0];
#pragma unroll
      for (int i = 1; i < N; ++i) peak = Larger()(peak, v[i]);
      if (peak > top) {
        sum *= math<T>::exp_term(top - peak);
        top = peak;
      }
    }
    const A shift = base(top);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += math<T>::exp_term(v[i] - shift);
  }
  // The sum as it counts below another maximum.
  DEVICE A below(A other) const { return sum * math<T>::exp_term(top - base(other)); }
};

// ---- rows in registers ----------------------------------------------------------------------------------------------

// The part of this thread: every WIDTH-th pack of a row, `count` of them, from element `first` on.
template <int VEC, int WIDTH> struct RowPart {
  i64 first;
  int count;
  DEVICE RowPart(i64 rows, i64 cols) {
    const i64 row = ((i64)blockIdx.x * row_block<WIDTH> + threadIdx.x) / WIDTH;
    const int lane = threadIdx.x % WIDTH;
    count = row < rows ? ((int)(cols / VEC) - lane + WIDTH - 1) / WIDTH : 0;
    first = row * cols + lane * VEC;
  }
  DEVICE bool has(int j) const { return j < count; }
};

template <class T, int VEC, int PACKS, int WIDTH>
__global__ void __launch_bounds__(row_block<WIDTH>) softmax_forward_row(const SoftmaxForwardParams<T> p) {
  typedef acc_t<T> A;
  const RowPart<VEC, WIDTH> part(p.rows, p.cols);
  const bool log = p.algorithm == LOG;
  A v[PACKS][VEC], top = -limits<A>::infinity(), sum = A(0);
#pragma unroll
  for (int j = 0; j < PACKS; ++j) {
    pack<T, VEC> in;
    if (part.has(j)) in = load<VEC>(p.x + part.first, j * WIDTH);
#pragma unroll
    for (int i = 0; i < VEC; ++i) v[j][i] = part.has(j) ? to_acc(in.lane[i]) : -limits<A>::infinity();
  }
#pragma unroll
  for (int j = 0; j < PACKS; ++j)
#pragma unroll
    for (int i = 0; i < VEC; ++i) top = Larger()(top, v[j][i]);
  top = p.algorithm == FAST ? A(0) : row_reduce<WIDTH>(top, Larger(), -limits<A>::infinity());
#pragma unroll
  for (int j = 0; j < PACKS; ++j)
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      const A shifted = v[j][i] - top, power = math<T>::exp_term(shifted);
      sum += power;
      v[j][i] = log ? shifted : power;
    }
  const A norm = normalizer<T>(row_reduce<WIDTH>(sum, Sum(), A(0)), log);
#pragma unroll
  for (int j = 0; j < PACKS; ++j) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) v[j][i] = log ? v[j][i] - norm : v[j][i] * norm;
    if (part.has(j)) store_blended<VEC>(p.y + part.first, j * WIDTH, v[j], p.alpha, p.beta);
  }
}

template <class A> DEVICE A backward_term(A dy, A y, bool log) { return log ? dy : dy * y; }
template <class T, class A> DEVICE A backward_result(A dy, A y, A sum, bool log) {
  return log ? dy - math<T>::exp_term(y) * sum : y * (dy - sum);
}

template <class T, int VEC, int PACKS, int WIDTH>
__global__ void __launch_bounds__(row_block<WIDTH>) softmax_backward_row(const SoftmaxBackwardParams<T> p) {
  typedef acc_t<T> A;
  const RowPart<VEC, WIDTH> part(p.rows, p.cols);
  const bool log = p.algorithm == LOG;
  pack<T, VEC> dy[PACKS], y[PACKS];
  A sum = A(0);
#pragma unroll
  for (int j = 0; j < PACKS; ++j) {
    if (part.has(j)) dy[j] = load<VEC>(p.dy + part.first, j * WIDTH);
    if (part.has(j)) y[j] = load<VEC>(p.y + part.first, j * WIDTH);
  }
#pragma unroll
  for (int j = 0; j < PACKS; ++j)
#pragma unroll
    for (int i = 0; i < VEC; ++i)
      if (part.has(j)) sum += backward_term(to_acc(dy[j].lane[i]), to_acc(y[j].lane[i]), log);
  sum = row_reduce<WIDTH>(sum, Sum(), A(0));
#pragma unroll
  for (int j = 0; j < PACKS; ++j) {
    if (!part.has(j)) continue;
    A v[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) v[i] = backward_result<T>(to_acc(dy[j].lane[i]), to_acc(y[j].lane[i]), sum, log);
    store_blended<VEC>(p.dx + part.first, j * WIDTH, v, p.alpha, p.beta);
  }
}

// ---- a block per row ------------------------------------------------------------------------------------------------

template <class T, int VEC, int BLOCK>
__global__ void __launch_bounds__(BLOCK) softmax_forward_long(const SoftmaxForwardParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(T, kept);
  const bool fast = p.algorithm == FAST, log = p.algorithm == LOG;
  const T* x = p.x + (i64)blockIdx.x * p.cols;
  T* y = p.y + (i64)blockIdx.x * p.cols;
  const i64 packs = p.cols / VEC;
  Running<T> mine;
  mine.start(fast);
  A v[VEC];
  const auto add = [&](const pack<T, VEC>& in) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) v[i] = to_acc(in.lane[i]);
    mine.add(v, fast);
  };
  fetch_parts<BLOCK>(p.kept, [&](int k) { fetch<VEC>(kept, x, k); });
  use_parts<BLOCK>(p.kept, [&](int k) { add(load<VEC>(kept, k)); });
#pragma unroll 4
  for (i64 k = p.kept + threadIdx.x; k < packs; k += BLOCK) add(load<VEC>(x, k));
  const A top = block_reduce<BLOCK>(mine.top, Larger(), -limits<A>::infinity());
  const A norm = normalizer<T>(block_reduce<BLOCK>(mine.below(top), Sum(), A(0)), log);
  const auto put = [&](i64 k, const pack<T, VEC>& in) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) v[i] = normalized<T>(to_acc(in.lane[i]), top, norm, log);
    store_blended<VEC>(y, k, v, p.alpha, p.beta);
  };
  // First what the caches saw last.
#pragma unroll 4
  for (i64 k = p.kept + threadIdx.x; k < packs; k += BLOCK) put(k, load<VEC>(x, k));
#pragma unroll 4
  for (int k = threadIdx.x; k < p.kept; k += BLOCK) put(k, load<VEC>(kept, k));
}

template <class T, int VEC, int BLOCK>
__global__ void __launch_bounds__(BLOCK) softmax_backward_long(const SoftmaxBackwardParams<T> p) {
  typedef acc_t<T> A;
  DYNAMIC_SHARED(T, kept);
  const bool log = p.algorithm == LOG;
  const i64 first = (i64)blockIdx.x * p.cols, packs = p.cols / VEC;
  const T *dy = p.dy + first, *y = p.y + first;
  T* kept_y = kept + (i64)p.kept * VEC;
  A sum = A(0), v[VEC];
  const auto add = [&](const pack<T, VEC>& dy, const pack<T, VEC>& y) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) sum += backward_term(to_acc(dy.lane[i]), to_acc(y.lane[i]), log);
  };
  fetch_parts<BLOCK>(p.kept, [&](int k) {
    fetch<VEC>(kept, dy, k);
    fetch<VEC>(kept_y, y, k);
  });
  use_parts<BLOCK>(p.kept, [&](int k) { add(load<VEC>(kept, k), load<VEC>(kept_y, k)); });
#pragma unroll 4
  for (i64 k = p.kept + threadIdx.x; k < packs; k += BLOCK) add(load<VEC>(dy, k), load<VEC>(y, k));
  sum = block_reduce<BLOCK>(sum, Sum(), A(0));
  const auto put = [&](i64 k, const pack<T, VEC>& dy, const pack<T, VEC>& y) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) v[i] = backward_result<T>(to_acc(dy.lane[i]), to_acc(y.lane[i]), sum, log);
    store_blended<VEC>(p.dx + first, k, v, p.alpha, p.beta);
  };
  // First what the caches saw last.
#pragma unroll 4
  for (i64 k = p.kept + threadIdx.x; k < packs; k += BLOCK) put(k, load<VEC>(dy, k), load<VEC>(y, k));
#pragma unroll 4
  for (int k = threadIdx.x; k < p.kept; k += BLOCK) put(k, load<VEC>(kept, k), load<VEC>(kept_y, k));
}

// ---- an axis with a stride ------------------------------------------------------------------------------------------

constexpr int STRIDED_BLOCK = 256, AHEAD = 4;  // elements in flight per thread

// The part of this thread: a row, where its elements lie, and which of them are its own.
struct StridedPart {
  i64 row, first, step, begin, stride, end;
  int lanes;
  DEVICE StridedPart(i64 rows, i64 cols, i64 inner, int row_lanes) : lanes(row_lanes) {
    row = (i64)blockIdx.x * lanes + threadIdx.x % lanes;
    first = row / inner * inner * cols + row % inner;
    step = inner;
    begin = threadIdx.x / lanes;
    stride = STRIDED_BLOCK / lanes;
    end = row < rows ? cols : 0;
  }
  DEVICE i64 at(i64 k) const { return first + k * step; }
};

template <class T> __global__ void __launch_bounds__(STRIDED_BLOCK) softmax_forward_strided(const SoftmaxForwardParams<T> p) {
  typedef acc_t<T> A;
  __shared__ A tops[STRIDED_BLOCK], sums[STRIDED_BLOCK];
  const bool fast = p.algorithm == FAST, log = p.algorithm == LOG;
  const StridedPart part(p.rows, p.cols, p.inner, p.lanes);
  Running<T> mine;
  mine.start(fast);
  for (i64 k = part.begin; k < part.end; k += AHEAD * part.stride) {
    A v[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const i64 at = k + i * part.stride;
      v[i] = at < part.end ? to_acc(p.x[part.at(at)]) : -limits<A>::infinity();
    }
    mine.add(v, fast);
  }
  tops[threadIdx.x] = mine.top;
  sums[threadIdx.x] = mine.sum;
  __syncthreads();
  A top = mine.top, sum = A(0);
  for (int i = threadIdx.x % part.lanes; i < STRIDED_BLOCK; i += part.lanes) top = Larger()(top, tops[i]);
  for (int i = threadIdx.x % part.lanes; i < STRIDED_BLOCK; i += part.lanes) {
    mine.top = tops[i];
    mine.sum = sums[i];
    sum += mine.below(top);
  }
  const A norm = normalizer<T>(sum, log);
#pragma unroll 4
  for (i64 k = part.begin; k < part.end; k += part.stride) {
    const i64 at = part.at(k);
    p.y[at] = blend(p.alpha, normalized<T>(to_acc(p.x[at]), top, norm, log), p.beta, p.y + at);
  }
}

template <class T> __global__ void __launch_bounds__(STRIDED_BLOCK) softmax_backward_strided(const SoftmaxBackwardParams<T> p) {
  typedef acc_t<T> A;
  __shared__ A sums[STRIDED_BLOCK];
  const bool log = p.algorithm == LOG;
  const StridedPart part(p.rows, p.cols, p.inner, p.lanes);
  A sum = A(0);
#pragma unroll 4
  for (i64 k = part.begin; k < part.end; k += part.stride)
    sum += backward_term(to_acc(p.dy[part.at(k)]), to_acc(p.y[part.at(k)]), log);
  sums[threadIdx.x] = sum;
  __syncthreads();
  sum = A(0);
  for (int i = threadIdx.x % part.lanes; i < STRIDED_BLOCK; i += part.lanes) sum += sums[i];
#pragma unroll 4
  for (i64 k = part.begin; k < part.end; k += part.stride) {
    const i64 at = part.at(k);
    p.dx[at] = blend(p.alpha, backward_result<T>(to_acc(p.dy[at]), to_acc(p.y[at]), sum, log), p.beta, p.dx + at);
  }
}

// ---- plain ----------------------------------------------------------------------------------------------------------

template <class T> __global__ void __launch_bounds__(256) softmax_forward_plain(const SoftmaxForwardParams<T> p) {
  typedef acc_t<T> A;
  const i64 row = global_thread();
  if (row >= p.rows) return;
  const i64 first = row / p.inner * p.inner * p.cols + row % p.inner, end = first + p.cols * p.inner;
  const bool log = p.algorithm == LOG;
  A top = -limits<A>::infinity(), sum = A(0);
  for (i64 at = first; at < end; at += p.inner) top = Larger()(top, to_acc(p.x[at]));
  if (p.algorithm == FAST) top = A(0);
  for (i64 at = first; at < end; at += p.inner) sum += math<T>::exp_term(to_acc(p.x[at]) - top);
  const A norm = normalizer<T>(sum, log);
  for (i64 at = first; at < end; at += p.inner)
    p.y[at] = blend(p.alpha, normalized<T>(to_acc(p.x[at]), top, norm, log), p.beta, p.y + at);
}

template <class T> __global__ void __launch_bounds__(256) softmax_backward_plain(const SoftmaxBackwardParams<T> p) {
  typedef acc_t<T> A;
  const i64 row = global_thread();
  if (row >= p.rows) return;
  const i64 first = row / p.inner * p.inner * p.cols + row % p.inner, end = first + p.cols * p.inner;
  const bool log = p.algorithm == LOG;
  A sum = A(0);
  for (i64 at = first; at < end; at += p.inner) sum += backward_term(to_acc(p.dy[at]), to_acc(p.y[at]), log);
  for (i64 at = first; at < end; at += p.inner)
    p.dx[at] = blend(p.alpha, backward_result<T>(to_acc(p.dy[at]), to_acc(p.y[at]), sum, log), p.beta, p.dx + at);
}
