// Batch normalisation (Ioffe and Szegedy, "Batch normalization", ICML 2015, arXiv 1502.03167), with an activation f and a
// residual r: spatial, one mean per channel, and per activation, one per element of an image.
//
// Forward    y = f(z), z = gamma (x - mean) rstd + beta + r, rstd = 1 / sqrt(variance + epsilon), the variance that of the m
//            elements of a channel about their mean, divided by m. running = (1 - factor) running + factor new.
// Backward   dz = dy f'(z), dbeta = sum dz, dgamma = rstd sum dz (x - mean), dr = dz,
//            dx = gamma rstd (dz - dbeta / m - (x - mean) rstd dgamma / m)
//
// Shapes     x, y, r, dy, dx, dr: (rows, channels, inner) of type T, row-major; channels last and statistics per activation
//            are inner = 1. gamma, beta, mean, rstd, running statistics, dgamma, dbeta: (channels) of acc_t<T>.
// Plan       x is a matrix of `rows` rows and channels * inner columns. A thread keeps its VEC columns, so that what belongs
//            to their channels stays in its registers, and walks down the rows; a block has some whole channels or a piece
//            of one (batchnorm.cuh).
//            batchnorm_moments   reads x: mean and squared deviations of each channel in each part of the rows.
//            batchnorm_finish    merges the parts; mean, rstd, running statistics.
//            batchnorm_apply     reads x (and r), writes y; it is the whole of inference.
//            batchnorm_sums      reads x and dy: sums of dz and dz (x - mean) of each part; writes dr where it is wanted.
//            batchnorm_gradients adds the parts; dgamma, dbeta, and three factors of each channel.
//            batchnorm_data      reads x and dy (or dr), writes dx.
//            batchnorm_*_planes  apply and data, channels first, straight through memory (batchnorm_planes.cuh).
//            batchnorm_channel_* moments or sums with what merges them, where a block for each channel fills the GPU.
//            batchnorm_held_*    all of this in one launch, channels first, where a block's shared memory holds a channel of
//            x, and backward of dy: memory is read once (batchnorm_held.cuh). batchnorm_units_forward does so with the
//            fewest channels that fill whole packs (batchnorm_units.cuh).
//            f'(z) takes z computed again from x, or where there was a residual y. The passes that read x for
//            the second time go through it backwards, so that what the first pass read last is still in the L2.
// Numerics   Each thread adds up deviations from the mean it has so far, of the first rows from the first element, and their
//            squares, AHEAD rows at a time, and then moves the mean; means of threads and of parts are merged about one of
//            them (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
//            1979). So a mean large beside the
//            deviations costs them no digits but those of its own rounding, equal elements have the variance 0, and no sum
//            of x is formed that could overflow. The order depends on shape and device alone: the same bits each time. A
//            channel with a NaN or an infinity has mean and rstd NaN. Without elements (m = 0) the variance is 0, running
//            statistics stay.
// Cost       forward 3 n sizeof(T) bytes, backward 5 n, one n more for r, dr or y; some ten flops an element.
// Measured   on an NVIDIA H200, 2026-11-28, a graph of each call between events, share of a copy of 4.27 TB/s for three passes
//            forward and five backward, batch 256, c x h:
//                                              64x112 64x56 256x56 128x28 512x28 256x14 1024x14 512x7 2048x7
//              bfloat16 channels last, forward   .91 .81 .90 .72 .87 .53 .80 .36 .69
//                                       backward .97 .91 .96 .86 .95 .72 .92 .54 .86
//              bfloat16 channels first, forward  .95 .89 .95 .78 .95 .72 .93 .39 .76
//                                       backward 1.0 .91 .96 .85 .94 .81 1.0 .57 .86
//              float32 channels last, forward        .90     .83     .76 .91 .63 .85
//                                       backward     .98     .95     .91 .99 .84 .97
//              float32 channels first, forward       .94     .91     .91 1.07 .75 .95
//                                       backward     1.0     1.0     .98 .99 .93 1.1
//            with a residual and relu, bfloat16, forward / backward with its gradient: channels first 256x56 1.0 / .98,
//            512x28 .99 / .97, 1024x14 .92 / .91, 2048x7 .78 / .88; channels last .94 / .95, .92 / .94, .85 / .92, .75 / .88.
//            In the same run before: two passes straight through planes in place of down the rows (channels first, 64x56 .81
//            forward and .87 backward, float32 .87 forward; 256x56 .87 and .90; 128x28 float32 .82 forward), a block for each
//            channel (512x28 .79 and .87; 153 us in place of 182), units of channels (2048x7 .61, float32 .77 forward), the
//            first rows about the first of them and more rows for a thread (channels last 512x7 .28, 256x14 .49 forward).
//            What is missed is nearly the same for all sizes, 10 to 15 us beside three or five passes. ncu, bfloat16, us of each
//            launch, DRAM / issue slots / warps in per cent, and the stall at the top in cycles of an issue:
//              128x28 channels first   moments 19.9, 56 / 50 / 30, loads 4.9; finish 3.4; apply in planes 25.3, 64 / 41 / 43,
//                                      loads 10.5 (a copy's rate: 12 and 24)
//              512x7 channels last     moments 11.4, 24 / 25 / 12, loads 2.4; finish 4.2; apply 11.9, 22 / 25 / 12, loads 4.2;
//                                      sums 12.9, 42 / 42 / 23, loads 3.4; gradients 4.4, barriers 2.2 (3, 6, 6 and 9)
//              2048x7 channels first   units 44.4, 37 / 54 / 49, loads 2.3, barriers 1.9 (24)
//              256x14 channels first   by units, two blocks each, 24, 25 / 55 / 43, barriers 2.2; 512x7 so 19, 15 / 44 / 25
//            So small tensors end before their launches are under way: a launch that merges is 3.4 to 4.4 us for next to no
//            bytes, and one launch with a barrier of the grid in place of three would need flags in memory that outlive a
//            call. What is held waits for its own instructions, some eleven an element, and at barriers: a block reads, adds
//            up, and writes one after the other.
//            Tried, and slower: clusters of 2 to 8 blocks for the moments of a channel (64x112 344 us for 311, 64x56 95 for 81,
//            backward 165 for 132; 128x28 and 256x56 the same), or for a unit of channels held backward (256x14 bfloat16 39 us
//            for 37, 1024x14 132 for 119, float32 2048x7 116 for 109) and forward (128x28 52 us for 46, 512x28 178 for 151);
//            units in place of held channels for 14x14 (256x14 26 us for 25, 1024x14 86 for 76, float32 44 for 39), of which but
//            one is on a multiprocessor at a time; 64 rows of a thread at least (512x7 channels last 37 us for 25, backward 49
//            for 30). Earlier: to read an array backwards or forwards the second time made no difference above 1 %; two rows
//            ahead and three blocks a multiprocessor in place of four and two, backward 0.80 where it is 0.96; 7x7 in 16 bits
//            held by channel, whose runs of 98 bytes end in the middle of packs that two blocks write (.29; 2048x7 .54);
//            strips of 32 or 64 bytes of channels last in clusters (512x7 .35 / .43, 2048x7 .61 / .66, 256x14 .34).
// Limits     up to 65,535 parts; VEC > 1 wants 16-byte aligned arrays and columns that fill whole packs.
#include "batchnorm_held.cuh"
#include "batchnorm_planes.cuh"
#include "batchnorm_units.cuh"

// ---- statistics -------------------------------------------------------------------------------------------------------

template <class T> struct NormMomentsParams {
  Moments<acc_t<T>>* parts;  // (channels, slots)
  const T* x;
  NormTiling tiling;
};

// `rows` more rows of VEC columns, up to AHEAD: about the mean of the `done` before them, the first rows about the first of
// all. With s and q the sums of deviations and of their squares, the mean moves by s over all, and q - s^2 over all joins
// the squares: half of q or more, as s^2 <= rows q and rows <= done, and an AHEADth or more of the first rows, of whose
// deviations one is 0.
template <int AHEAD, class T, int VEC>
DEVICE void add_rows(acc_t<T> (&mean)[VEC], acc_t<T> (&squares)[VEC], int done, const pack<T, VEC> (&x)[AHEAD], int rows) {
  typedef acc_t<T> A;
  const A part = A(1) / A(done + rows);
#pragma unroll
  for (int k = 0; k < VEC; ++k) {
    A sum = A(0), square_sum = A(0);
    if (done == 0) mean[k] = to_acc(x[0].lane[k]);
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      const A apart = to_acc(x[u].lane[k]) - mean[k];
      if (u < rows) {
        sum += apart;
        square_sum = fma(apart, apart, square_sum);
      }
    }
    const A move = sum * part;
    squares[k] += fma(-sum, move, square_sum);
    mean[k] += move;
  }
}

// What VEC columns of one channel know, as one.
template <int VEC, class A> DEVICE Moments<A> merge_columns(const Moments<A> (&known)[VEC]) {
  Moments<A> all{A(VEC) * known[0].count, A(0), A(0)};
#pragma unroll
  for (int k = 1; k < VEC; ++k) all.mean += known[k].mean - known[0].mean;
  all.mean = known[0].mean + all.mean / A(VEC);
#pragma unroll
  for (int k = 0; k < VEC; ++k) {
    const A apart = known[k].mean - all.mean;
    all.squares += known[k].squares + apart * (apart * known[0].count);
  }
  return all;
}

// What a thread has of its columns, AHEAD rows at a time.
template <int AHEAD, class T, int VEC>
DEVICE void columns_moments(Moments<acc_t<T>> (&known)[VEC], const T* from_x, const NormPlace<VEC>& at) {
  typedef acc_t<T> A;
  A mean[VEC] = {}, squares[VEC] = {};
  i64 from = at.first;
  for (int done = 0; done < at.count; done += AHEAD, from += AHEAD * at.step) {
    pack<T, VEC> x[AHEAD];
    const int rows = at.count - done < AHEAD ? at.count - done : AHEAD;
#pragma unroll
    for (int u = 0; u < AHEAD; ++u)
      if (u < rows) x[u] = load<VEC>(from_x, from + u * at.step);
    add_rows<AHEAD, T, VEC>(mean, squares, done, x, rows);
  }
#pragma unroll
  for (int k = 0; k < VEC; ++k) known[k] = {A(at.count), mean[k], squares[k]};
}

template <class T, int VEC>
__global__ void __launch_bounds__(NORM_BLOCK, FORWARD_BLOCKS<T>) batchnorm_moments(const NormMomentsParams<T> p) {
  const NormPlace<VEC> at(p.tiling, blockIdx.y);
  Moments<acc_t<T>> known[VEC];
  columns_moments<AHEAD>(known, p.x, at);
  const bool alike = p.tiling.inner % VEC == 0;
  if (alike) known[0] = merge_columns(known);
  store_slots<VEC>(p.parts, p.tiling, at, known, alike);
}

template <class T> struct NormFinishParams {
  acc_t<T>* mean;
  acc_t<T>* rstd;
  acc_t<T>* running_mean;      // or null
  acc_t<T>* running_variance;  // or null
  const Moments<acc_t<T>>* parts;
  acc_t<T> epsilon;
  double factor;
  i64 channels, slots, shift, unbiased;
};

template <class Params, class A> DEVICE void keep_moments(const Params& p, i64 channel, Moments<A> all) {
  if (all.squares != all.squares) all.mean = all.squares;
  p.mean[channel] = all.mean;
  p.rstd[channel] = A(1) / sqrt(all.squares / all.count + p.epsilon);
  keep_running(p.running_mean, p.running_variance, channel, all, p.unbiased != 0, p.factor);
}

// 2^shift threads for each channel, whose slots lie side by side.
template <class T> __global__ void __launch_bounds__(NORM_BLOCK) batchnorm_finish(const NormFinishParams<T> p) {
  typedef acc_t<T> A;
  const int team = 1 << (int)p.shift, member = (int)threadIdx.x & (team - 1);
  const i64 channel = global_thread() >> (int)p.shift, slots = channel < p.channels ? p.slots : 0;
  Moments<A> all = Moments<A>::all_of(SlotWalk<Moments<A>>{p.parts + channel * p.slots, member, slots, team}, team);
  if (member != 0 || channel >= p.channels) return;
  if (slots > 0) return keep_moments(p, channel, all);
  p.mean[channel] = A(0);
  p.rstd[channel] = A(1) / sqrt(p.epsilon);
}

// Both in one launch, where a block has all of a channel.
template <class T> struct NormChannelMomentsParams {
  acc_t<T>* mean;
  acc_t<T>* rstd;
  acc_t<T>* running_mean;      // or null
  acc_t<T>* running_variance;  // or null
  const T* x;
  acc_t<T> epsilon;
  double factor;
  i64 unbiased;
  NormTiling tiling;
};

template <class T, int VEC>
__global__ void __launch_bounds__(NORM_BLOCK, CHANNEL_BLOCKS<T>) batchnorm_channel_moments(const NormChannelMomentsParams<T> p) {
  const NormPlace<VEC> at(p.tiling, 0);
  Moments<acc_t<T>> known[VEC];
  columns_moments<AHEAD_OF_TWO>(known, p.x, at);
  const Moments<acc_t<T>> all = merge_block(p.tiling, at, merge_columns(known));
  if (threadIdx.x == 0) keep_moments(p, blockIdx.x, all);
}

// ---- y ------------------------------------------------------------------------------------------------------------

template <class T> struct NormApplyParams {
  T* y;
  const T* x;
  const T* residual;  // or null
  const acc_t<T>* gamma;
  const acc_t<T>* beta;
  const acc_t<T>* mean;
  const acc_t<T>* spread;  // rstd, or the variance
  acc_t<T> epsilon, low, high;
  i64 from_variance;
  NormTiling tiling;
};

// The rows of a thread from the last to the first.
template <class T, int VEC>
__global__ void __launch_bounds__(NORM_BLOCK, FORWARD_BLOCKS<T>) batchnorm_apply(const NormApplyParams<T> p) {
  typedef acc_t<T> A;
  const NormPlace<VEC> at(p.tiling, gridDim.y - 1 - blockIdx.y);
  if (at.count == 0) return;
  i64 channel[VEC];
  A mean[VEC], scale[VEC], beta[VEC], gamma[VEC];
  channels_of<VEC>(at.column, p.tiling.inner, channel);
  gather<VEC>(p.mean, channel, mean);
  gather<VEC>(p.spread, channel, scale);
  gather<VEC>(p.gamma, channel, gamma);
  gather<VEC>(p.beta, channel, beta);
#pragma unroll
  for (int k = 0; k < VEC; ++k) {
    if (p.from_variance) scale[k] = A(1) / sqrt(scale[k] + p.epsilon);
    scale[k] *= gamma[k];
  }
  for (int k = at.count; k > 0; k -= AHEAD_OF_TWO) {
    i64 from[AHEAD_OF_TWO];
    pack<T, VEC> x[AHEAD_OF_TWO], r[AHEAD_OF_TWO];
    packs_of_rows(at, k - 1, -1, k, from);
#pragma unroll
    for (int u = 0; u < AHEAD_OF_TWO; ++u) x[u] = load<VEC>(p.x, from[u]);
    if (p.residual) {
#pragma unroll
      for (int u = 0; u < AHEAD_OF_TWO; ++u) r[u] = load<VEC>(p.residual, from[u]);
    }
#pragma unroll
    for (int u = 0; u < AHEAD_OF_TWO; ++u) {
      A y[VEC];
#pragma unroll
      for (int j = 0; j < VEC; ++j) y[j] = fma(to_acc(x[u].lane[j]) - mean[j], scale[j], beta[j]);
      if (p.residual) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) y[j] += to_acc(r[u].lane[j]);
      }
#pragma unroll
      for (int j = 0; j < VEC; ++j) y[j] = clamped(y[j], p.low, p.high);
      store(p.y, from[u], rounded<T>(y));
    }
  }
}
