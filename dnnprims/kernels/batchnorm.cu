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
//            batchnorm_held_*    all of this in one launch, channels first, where a block's shared memory holds a channel of
//            x, and backward of dy: memory is read once (batchnorm_held.cuh).
//            f'(z) takes z computed again from x, or where there was a residual y. The passes that read x for
//            the second time go through it backwards, so that what the first pass read last is still in the L2.
// Numerics   Each thread adds up deviations from the mean it has so far, and their squares, AHEAD rows at a time, and then
//            moves the mean; means of threads and of parts are merged about one of them (Chan, Golub and LeVeque, "Updating
//            formulae and a pairwise algorithm for computing sample variances", 1979). So a mean large beside the
//            deviations costs them no digits but those of its own rounding, equal elements have the variance 0, and no sum
//            of x is formed that could overflow. The order depends on shape and device alone: the same bits each time. A
//            channel with a NaN or an infinity has mean and rstd NaN. Without elements (m = 0) the variance is 0, running
//            statistics stay.
// Cost       forward 3 n sizeof(T) bytes, backward 5 n, one n more for r, dr or y; some ten flops an element.
// Measured   on an NVIDIA H200, 2026-11-28, tools/bench.py, 256x256x56x56 channels last, bfloat16, beside PyTorch 2.11: forward
//            with relu 0.324 ms, 0.89 of a copy, 3.2 times faster; with a residual, too, 0.411 ms, 0.94, 3.3 times; backward
//            with relu 0.502 ms, 0.96, 1.9 times.
//            Shares of a copy, relu fused, batch 256, c x h: 64x112 64x56 256x56 128x28 512x28 256x14 1024x14 512x7 2048x7
//              bfloat16 channels last, forward   .92 .80 .89 .71 .87 .49 .79 .30 .67
//                                       backward .96 .89 .96 .82 .94 .65 .89 .47 .81
//              bfloat16 channels first, forward  .90 .80 .88 .69 .80 .50 .66 .35 .61
//                                       backward .96 .87 .90 .81 .87 .71 .84 .56 .84
//              float32 channels last, forward    .93 .89 .95 .82 .93 .74 .89 .60 .84
//                                       backward 1.0 .97 1.0 .93 1.0 .87 .98 .75 .96
//              float32 channels first, forward   .90 .87 .94 .83 .91 .66 .82 .59 .75
//                                       backward .96 .97 1.0 .95 .97 .90 .92 .78 .89
//            ncu, 256x64x112x112 bfloat16, microseconds of each launch (a copy's rate): moments 101 (0.95), finish 6, apply
//            215 (0.89); sums 190 (1.01), gradients 5, data 307 (0.94). What small tensors miss is the same for all, some 20
//            us in three launches: of 256x512x7x7 13, 7, 11 forward where 9 in all would be a copy's rate, 14, 5, 15
//            backward. Of the 13 two thirds of the instructions begin and end blocks, at 44 % of the issue slots.
//            To read an array backwards or forwards the second time made no difference above 1 %. Two rows ahead and three
//            blocks a multiprocessor in place of four and two: backward 0.80 where it is 0.96. Four blocks and half as many
//            rows ahead forward: the same for large tensors, .77 for .66 and .67 for .61 of 1024x14 and 2048x7 channels first,
//            .59 for .67 of 2048x7 channels last.
//            Held channels, relu fused, a graph of each call between events, share of a copy of 4.27 TB/s (the table above, in
//            brackets, is of tools/bench.py before them), forward / backward: bfloat16 256x14 .69 / .74 (.50 / .71),
//            1024x14 .87 / .92 (.66 / .84); float32 512x7 .71 / .90 (.66 / .78), 2048x7 .77 / 1.12 (.75 / .89), 256x14 .90
//            forward (.66), 1024x14 1.05 forward (.82). A copy of the two passes that are left would be 1.5 forward, 1.67
//            backward. Tried with it, and no faster: 7x7 in 16 bits, whose runs of 98 bytes end in the middle of packs that two
//            blocks write (.29, with pieces of packs .40 for .37; 2048x7 .54 for .61); clusters of up to eight blocks with a
//            part of the rows each, for 28x28 and 56x56 (bfloat16 .64 for .69, .62 for .80, float32 .84 for .82); the same
//            for strips of 32 or 64 bytes of channels last (bfloat16 512x7 .35 / .43 for .30 / .47, 2048x7 .61 / .66 for
//            .67 / .81, 256x14 .34 forward for .49); sums formed while what is held comes in, in four steps (the same
//            forward; tried together with the strips and the pieces of packs). No profile was made of held channels. Faster, but not kept for this alone: clusters of two for 14x14 backward (.79 and 1.00 of bfloat16).
// Limits     up to 65,535 parts; VEC > 1 wants 16-byte aligned arrays and columns that fill whole packs.
#include "batchnorm_held.cuh"

// ---- statistics -------------------------------------------------------------------------------------------------------

template <class T> struct NormMomentsParams {
  Moments<acc_t<T>>* parts;  // (channels, slots)
  const T* x;
  NormTiling tiling;
};

// `rows` more rows of VEC columns, up to AHEAD: about the mean of the `done` before them, the first about their own. With s
// and q the sums of deviations and of their squares, the mean moves by s over all, and q - s^2 over all joins the squares:
// half of q or more, as s^2 <= rows q and rows <= done.
template <class T, int VEC>
DEVICE void add_rows(acc_t<T> (&mean)[VEC], acc_t<T> (&squares)[VEC], int done, const pack<T, VEC> (&x)[AHEAD], int rows) {
  typedef acc_t<T> A;
  const A part = A(1) / A(done + rows);
#pragma unroll
  for (int k = 0; k < VEC; ++k) {
    A sum = A(0), square_sum = A(0);
    if (done == 0) {
      const A middle = to_acc(x[0].lane[k]);
#pragma unroll
      for (int u = 1; u < AHEAD; ++u)
        if (u < rows) mean[k] += to_acc(x[u].lane[k]) - middle;
      mean[k] = fma(mean[k], part, middle);
    }
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

template <class T, int VEC>
__global__ void __launch_bounds__(NORM_BLOCK, FORWARD_BLOCKS<T>) batchnorm_moments(const NormMomentsParams<T> p) {
  const NormPlace<VEC> at(p.tiling, blockIdx.y);
  typedef acc_t<T> A;
  A mean[VEC] = {}, squares[VEC] = {};
  i64 from = at.first;
  for (int done = 0; done < at.count; done += AHEAD, from += AHEAD * at.step) {
    pack<T, VEC> x[AHEAD];
    const int rows = at.count - done < AHEAD ? at.count - done : AHEAD;
#pragma unroll
    for (int u = 0; u < AHEAD; ++u)
      if (u < rows) x[u] = load<VEC>(p.x, from + u * at.step);
    add_rows<T, VEC>(mean, squares, done, x, rows);
  }
  Moments<A> known[VEC];
#pragma unroll
  for (int k = 0; k < VEC; ++k) known[k] = {A(at.count), mean[k], squares[k]};
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
  i64 channels, slots, team, unbiased;
};

// `team` threads for each channel, whose slots lie side by side.
template <class T> __global__ void __launch_bounds__(NORM_BLOCK) batchnorm_finish(const NormFinishParams<T> p) {
  typedef acc_t<T> A;
  const int team = (int)p.team, member = (int)threadIdx.x % team;
  const i64 channel = quotient(global_thread(), team), slots = channel < p.channels ? p.slots : 0;
  Moments<A> all = Moments<A>::all_of(SlotWalk<Moments<A>>{p.parts + channel * p.slots, member, slots, team}, team);
  if (member != 0 || channel >= p.channels) return;
  if (slots == 0) all = {A(1), A(0), A(0)};
  if (all.squares != all.squares) all.mean = all.squares;
  p.mean[channel] = all.mean;
  p.rstd[channel] = A(1) / sqrt(all.squares / all.count + p.epsilon);
  if (slots > 0) keep_running(p.running_mean, p.running_variance, channel, all, p.unbiased != 0, p.factor);
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
