// Softmax and log-softmax along one axis, forward and backward.
//
// Maths, for each row x_0 .. x_{cols-1} (online form, where a row is read again: Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018):
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
//   *_long     inner == 1, any length: a block per row, which leaves the row in shared memory between its uses
//              (parts.cuh), a part of some in registers (held.cuh). What has no room there is read again, first what the
//              caches saw last; backward a block then takes several rows, and asks for one while it writes another.
//   *_tile     inner a multiple of a pack: a block has `lanes` packs of neighbouring rows over the whole axis in shared
//              memory and registers; one read of each input and one write, 16 bytes at a time.
//   *_strided  any inner: `lanes` neighbouring rows per block, whose memory is contiguous, and 256 / lanes threads
//              along each; two reads, one write.
//   *_plain    a thread per row, one loop per pass: any shape, any alignment.
// Numerics: sums in the accumulator of T in a fixed order, no atomics: the same bits each time. The result of a row does
// not depend on the other rows nor on how many there are. A NaN or +inf in a row, or a row of -inf alone, makes that
// row NaN throughout; so does a sum that leaves the range of the accumulator, which `fast` alone can meet: it is computed
// as `accurate` is, and held to the range of sum exp(x) afterwards.
// Cost: forward 2 * sizeof(T) bytes and 1 exponential an element (3 and 2 where read twice) and 4 flops; an exponential
//   is about 20 flops in float, 2 in 16-bit types. Backward 3 * sizeof(T) bytes (5 where read twice) and 4 flops, with
//   log an exponential.
//   An exponential here is good to 4 u, in 16-bit types to 2^-20, its argument's error aside (Power, rows.cuh).
// Limits: in registers up to 16,384 columns (8,192 in double; float32 forward from 28,932 to 32,768, too). A row
//   of T wholly in shared memory up to 226 KiB, backward two of 113 KiB.
// Measured on an NVIDIA H200, 2026-11-28, tools/bench.py --shapes key softmax; share of a copy (4.29 TB/s), forward /
//   backward of accurate; log is within 0.02 of it, but for 0.81 at 50,304 of float32 backward:
//     rows x columns     float32        float16        bfloat16
//     262,144 x 128      0.95 / 1.00    0.91 / 0.98    0.90 / 0.96
//     65,536 x 1024      0.97 / 1.01    0.95 / 0.99    0.94 / 1.00
//     32,768 x 4096      0.96 / 1.01    0.95 / 1.01    0.95 / 1.01
//     8,192 x 32,768     0.88 / 1.01    0.96 / 1.01    0.95 / 1.00
//     4,096 x 50,304     0.93 / 0.86    0.94 / 0.99    0.94 / 0.99
//     axis 1 of 256 x 1024 x 1024   0.89 / 0.69    0.90 / 0.67    0.90 / 0.67  (see below)
//   Before, axis 1 had 0.31 to 0.50, read twice by single elements, and rows of 16-bit types 0.74 to 0.88, as two numbers
//   were rounded by four instructions and an exponential took six.
//   The kernels have changed since, NVIDIA H200, 2026-11-28, microseconds, share of a copy:
//     axis 1         float32 519 / 747, 0.97 / 1.01; bfloat16 272 / 378, 0.92 / 1.00. Backward one tile of 128 bytes across
//                    and 1,024 threads has a multiprocessor. Two of 64 bytes and 512 threads took 829 and 417, 0.91 and
//                    0.90: half a line of the L2 at a time, so that its tags were asked 46 million times in bfloat16, at
//                    70 % of what they can (forward, of whole lines, 17 million, 40 %), and it was 92 % busy; 44 % of the
//                    issue slots, DRAM 80 %, waiting for shared memory 4.3 of 18 cycles an instruction.
//                    Forward two tiles of 128 bytes share one: 63 % of the issue slots (bfloat16), L2 87 %, DRAM 80 %, no
//                    pipe over 52 %, 2.6 cycles an instruction in the queue to shared memory: two tiles do not always
//                    load while the other computes. One of 256 bytes takes 318 (float32 600): nothing is loaded while it
//                    sums and writes, and forward that is the longer part.
//     8,192 x 32,768 float32 forward 519, 0.97: in the registers of 1,024 threads. Two rows on a multiprocessor, partly in
//                    registers and partly in shared memory, took 539, 0.93; one alone in shared memory 0.88.
//     4,096 x 50,304 float32 backward 611, 0.95, log 614, 0.95: 64 KiB of a block's rows in registers, so that 26 % are
//                    read again and not 42 %, which took 668, log 719; 639 to 669 before a resident grid asked for the
//                    next row in the places of the last.
//     forward        the maximum of 16-bit rows is taken two numbers at a time.
//   Along an axis, 32,768 forward and 50,304 backward by a script.
//   A resident grid that asks ahead is for rows that are partly read again, and cost everywhere else: rows forward 0.86 of a
//   copy, where a block for each has 0.94 to 0.96, rows of 32,768 backward 0.95 (1.00), tiles 0.78 forward and 0.65
//   backward (0.89 both). With 128 KiB of a row of 50,304 in the registers of 512 threads, not 64 in those of 1,024, 10 %
//   were read again, and the memory was read 1.02 times, at 708 us: half the warps, 16 % of the issue slots used, a load
//   waited for 12 cycles an instruction. Along an axis, by ncu, bfloat16 forward has 20 instructions an element now (24).
//   Tried: to ask the L2 for the row or tile that follows on a multiprocessor while this one is written (bulk prefetches,
//   or one of a line by each thread): rows of 32,768 forward 589 us (540), of 50,304 bfloat16 274 (206), tiles 347 (272)
//   and 564 (418) backward: up to two thirds more is read from memory, as lines leave the L2 before they are used.
//   262,144 x 128 of float32, where PyTorch and a copy take 66 us: 8 or 16 threads a row take 66, 32 threads 84. DRAM 79 %,
//   L2 88 %, 89 % of the warps, and an instruction waits 17 cycles for loads.
#include "softmax_long.cuh"
#include "softmax_strided.cuh"
#include "softmax_tile.cuh"

// ---- rows in registers ----------------------------------------------------------------------------------------------

// Rows narrower than a block share blocks of this many threads.
constexpr int SHARED_BLOCK = 128;
template <int WIDTH> constexpr int row_block = WIDTH > SHARED_BLOCK ? WIDTH : SHARED_BLOCK;

// The part of this thread: every WIDTH-th pack of a row of `packs`, which begins at `first`; there is none past the rows.
template <int VEC, int WIDTH> struct RowPart {
  i64 first;
  int lane, packs;
  DEVICE RowPart(i64 rows, i64 cols) : lane(threadIdx.x % WIDTH) {
    const i64 row = ((i64)blockIdx.x * row_block<WIDTH> + threadIdx.x) / WIDTH;
    packs = row < rows ? (int)(cols / VEC) : 0;
    first = row * cols;
  }
  DEVICE bool has(int j) const { return j * WIDTH < packs - lane; }
};

template <class T, int VEC, int PACKS, int WIDTH>
__global__ void __launch_bounds__(row_block<WIDTH>) softmax_forward_row(const SoftmaxForwardParams<T> p) {
  typedef acc_t<T> A;
  const RowPart<VEC, WIDTH> part(p.rows, p.cols);
  const bool log = p.algorithm == LOG;
  pack<T, VEC> in[PACKS];
  A v[PACKS][VEC], sum = A(0);
  load_packs<WIDTH>(in, p.x + part.first, part.lane, part.packs);
  const A top = group_reduce<WIDTH>(unpack_packs(v, in), Larger(), -limits<A>::infinity());
#pragma unroll
  for (int j = 0; j < PACKS; ++j) sum += powers_below<T>(v[j], top, log);
  const A norm = normalizer<T>(top, group_reduce<WIDTH>(sum, Sum(), A(0)), p.algorithm);
#pragma unroll
  for (int j = 0; j < PACKS; ++j) {
    normalize(v[j], norm, log);
    if (part.has(j)) store_blended<VEC>(p.y + part.first + part.lane * VEC, j * WIDTH, v[j], p.alpha, p.beta);
  }
}

template <class T, int VEC, int PACKS, int WIDTH>
__global__ void __launch_bounds__(row_block<WIDTH>) softmax_backward_row(const SoftmaxBackwardParams<T> p) {
  typedef acc_t<T> A;
  const RowPart<VEC, WIDTH> part(p.rows, p.cols);
  const bool log = p.algorithm == LOG;
  const i64 first = part.first + part.lane * VEC;
  pack<T, VEC> dy[PACKS], y[PACKS];
  A sum = A(0);
#pragma unroll
  for (int j = 0; j < PACKS; ++j) {
    if (part.has(j)) dy[j] = load<VEC>(p.dy + first, j * WIDTH);
    if (part.has(j)) y[j] = load<VEC>(p.y + first, j * WIDTH);
  }
#pragma unroll
  for (int j = 0; j < PACKS; ++j)
#pragma unroll
    for (int i = 0; i < VEC; ++i)
      if (part.has(j)) sum += backward_term(to_acc(dy[j].lane[i]), to_acc(y[j].lane[i]), log);
  sum = group_reduce<WIDTH>(sum, Sum(), A(0));
#pragma unroll
  for (int j = 0; j < PACKS; ++j) {
    if (!part.has(j)) continue;
    A v[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) v[i] = backward_result<T>(to_acc(dy[j].lane[i]), to_acc(y[j].lane[i]), sum, log);
    store_blended<VEC>(p.dx + first, j * WIDTH, v, p.alpha, p.beta);
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
  for (i64 at = first; at < end; at += p.inner) sum += Power<T>::of(to_acc(p.x[at]) - top);
  const A norm = normalizer<T>(top, sum, p.algorithm);
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
