// The batch norm forward in one launch, channels first, whose rows end within packs: a block holds a unit of channels in its
// shared memory, the fewest whose elements fill whole packs, so that memory is read once, and whole packs are read and
// written. batchnorm.cu says what is computed.
//
// A thread has one of the `packs` of a unit, in some of the rows: a pack ends with the channel that it begins with, or with
// the next.
#pragma once
#include "batchnorm_held.cuh"

// Threads of a block and channels of a unit at most; packs that a thread has in flight of what is not held. Loops are kept
// short: each block runs the code once, and fetching it takes longer than running it.
constexpr int UNIT_BLOCK = 1024, UNIT_CHANNELS = 8, UNIT_AHEAD = 2;

struct UnitTiling {
  i64 rows, channels, inner, unit_channels, packs;
  DEVICE i64 first_channel() const { return (i64)blockIdx.x * unit_channels; }
  DEVICE i64 elements() const { return rows * inner; }
  // Rows of the threads that lie side by side in a block, and packs of a thread that come first: a quarter of all.
  DEVICE int depth() const { return (int)blockDim.x / (int)packs; }
  DEVICE int early() const { return ((int)rows / depth() + 3) / 4 + 1; }
  DEVICE i64 early_elements() const { return min(rows, (i64)early() * depth()) * inner; }
};
template <int VEC> struct UnitPlace : HeldPacks {
  int here, next, cut;  // channels of the unit in which a pack begins and ends, and lanes of the first

  DEVICE explicit UnitPlace(const UnitTiling& t) {
    const int packs = (int)t.packs, inner = (int)t.inner, depth = t.depth(), rows = (int)t.rows;
    const int row = (int)threadIdx.x / packs, across = (int)threadIdx.x - row * packs;
    const i64 row_packs = (i64)((u64)(t.channels * t.inner) / VEC);
    here = across * VEC / inner;
    cut = min((here + 1) * inner - across * VEC, VEC);
    next = cut < VEC ? here + 1 : here;
    slot = row * packs + across;
    stride = depth * packs;
    first = row * row_packs + (i64)((u64)(t.first_channel() * t.inner) / VEC) + across;
    step = depth * row_packs;
    count = row < depth && row < rows ? (rows - row + depth - 1) / depth : 0;
  }
  // What belongs to the channel of each lane, of two.
  template <class A> DEVICE void spread(A (&lanes)[VEC], A first, A second) const {
#pragma unroll
    for (int k = 0; k < VEC; ++k) lanes[k] = k < cut ? first : second;
  }
  template <class A> DEVICE void spread(A (&lanes)[VEC], const A* of_channels) const {
    spread(lanes, of_channels[here], of_channels[next]);
  }
};

// Packs [from, end) of a thread, into shared memory: asked for, not yet there.
template <int VEC, class T> DEVICE void fetch_unit(T* tile, const T* x, const UnitPlace<VEC>& at, int from, int end) {
#pragma unroll 2
  for (int k = from; k < end; ++k) {
    const int to = at.slot + k * at.stride;
    if constexpr (sizeof(T) * VEC == 16) copy_async(tile + to * VEC, x + (at.first + k * at.step) * VEC);
    else store<VEC>(tile, to, load<VEC>(x, at.first + k * at.step));
  }
  commit_copies();
}

// Sums of N numbers of each channel of a unit, over all threads of the block, which have them by lanes. `parts` is shared
// memory for two of each number and thread; each channel has as many warps as the others.
template <int N, int VEC, class A>
DEVICE void unit_sums(A (&totals)[N][UNIT_CHANNELS], A* parts, const A (&own)[N][VEC], const UnitPlace<VEC>& at,
                      const UnitTiling& t) {
  __shared__ A of_warps[N][UNIT_BLOCK / 32];
  const int threads = (int)blockDim.x, thread = (int)threadIdx.x, warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    A first = A(0), second = A(0);
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      first += k < at.cut ? own[n][k] : A(0);
      second += k < at.cut ? A(0) : own[n][k];
    }
    parts[2 * n * threads + thread] = at.count > 0 ? first : A(0);
    parts[(2 * n + 1) * threads + thread] = at.count > 0 ? second : A(0);
  }
  __syncthreads();
  const int unit = (int)t.unit_channels, inner = (int)t.inner, packs = (int)t.packs, team = threads / 32 / unit;
  const int channel = warp % unit, begin = channel * inner / VEC, width = ((channel + 1) * inner + VEC - 1) / VEC - begin;
  const int entries = threads / packs * width;
  A sums[N] = {};
#pragma unroll 1
  for (int e = warp / unit * 32 + lane; e < entries; e += 32 * team) {
    const int row = e / width, across = begin + e - row * width;
    const int half = across == begin && channel * inner % VEC != 0;  // the pack begins with the channel before
#pragma unroll
    for (int n = 0; n < N; ++n) sums[n] += parts[(2 * n + half) * threads + row * packs + across];
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    sums[n] = warp_reduce(sums[n], Sum{});
    if (lane == 0) of_warps[n][warp] = sums[n];
  }
  __syncthreads();
  if (thread < unit) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      A sum = A(0);
#pragma unroll 1
      for (int k = 0; k < team; ++k) sum += of_warps[n][thread + k * unit];
      totals[n][thread] = sum;
    }
  }
  __syncthreads();
}

// The mean of the first quarter of a channel, about its first element, so that equal ones give that itself; then sums of
// deviations from that and of their squares, by which mean and squares are put right. The quarter being part of the channel,
// its mean is no further from that of all than sqrt(3) standard deviations, so that a fourth of the squares or more is left.
// Thread k has the moments of channel k.
template <class T, int VEC>
DEVICE Moments<acc_t<T>> unit_moments(const T* tile, acc_t<T>* parts, const T* x, const UnitPlace<VEC>& at,
                                      const UnitTiling& t) {
  typedef acc_t<T> A;
  __shared__ A guesses[1][UNIT_CHANNELS], rest_sums[2][UNIT_CHANNELS];
  const T* firsts = x + t.first_channel() * t.inner;
  const int early = min(t.early(), at.count);
  A mean[VEC], sums[2][VEC] = {};
  {
    const A part = A(1) / A(t.early_elements());
    A more[VEC], sum[1][VEC] = {};
    at.spread(mean, to_acc(firsts[at.here * t.inner]), to_acc(firsts[at.next * t.inner]));
    await_copies<1>();
#pragma unroll 2
    for (int k = 0; k < early; ++k) {
      const pack<T, VEC> v = held<VEC>(tile, at, k);
#pragma unroll
      for (int j = 0; j < VEC; ++j) sum[0][j] = fma(to_acc(v.lane[j]) - mean[j], part, sum[0][j]);
    }
    unit_sums(guesses, parts, sum, at, t);
    at.spread(more, guesses[0]);
#pragma unroll
    for (int j = 0; j < VEC; ++j) mean[j] += more[j];
  }
  await_copies<0>();
  const A part = A(1) / A(t.elements());
#pragma unroll 2
  for (int k = 0; k < at.count; ++k) {
    const pack<T, VEC> v = held<VEC>(tile, at, k);
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const A apart = to_acc(v.lane[j]) - mean[j];
      sums[0][j] = fma(apart, part, sums[0][j]);
      sums[1][j] = fma(apart, apart, sums[1][j]);
    }
  }
  unit_sums(rest_sums, parts, sums, at, t);
  const int c = (int)threadIdx.x < (int)t.unit_channels ? (int)threadIdx.x : 0;
  const A count = A(t.elements()), move = rest_sums[0][c], all = rest_sums[1][c], less = fma(-move * count, move, all);
  const A squares = all < limits<A>::infinity() ? max(less, A(0)) : all;
  const A merged = to_acc(firsts[c * t.inner]) + guesses[0][c] + move;
  return {count, squares != squares ? squares : merged, squares};
}

template <class T> using NormUnitsForwardParams = NormInOneParams<T, UnitTiling>;

template <class T, int VEC>
__global__ void __launch_bounds__(UNIT_BLOCK) batchnorm_units_forward(const NormUnitsForwardParams<T> p) {
  DYNAMIC_SHARED(T, tile);
  typedef acc_t<T> A;
  __shared__ A means[UNIT_CHANNELS], scales[UNIT_CHANNELS], betas[UNIT_CHANNELS];
  const UnitTiling& t = p.tiling;
  const UnitPlace<VEC> at(t);
  const int early = min(t.early(), at.count);
  fetch_unit(tile, p.x, at, 0, early);
  fetch_unit(tile, p.x, at, early, at.count);
  A* parts = reinterpret_cast<A*>(tile + t.rows * t.packs * VEC);
  const Moments<A> all = unit_moments<T>(tile, parts, p.x, at, t);
  if ((int)threadIdx.x < (int)t.unit_channels) {
    const i64 channel = t.first_channel() + threadIdx.x;
    const A rstd = A(1) / sqrt(all.squares / all.count + p.epsilon);
    means[threadIdx.x] = all.mean;
    scales[threadIdx.x] = rstd * p.gamma[channel];
    betas[threadIdx.x] = p.beta[channel];
    p.mean[channel] = all.mean;
    p.rstd[channel] = rstd;
    keep_running(p.running_mean, p.running_variance, channel, all, p.unbiased != 0, p.factor);
  }
  __syncthreads();
  A mean[VEC], scale[VEC], beta[VEC];
  at.spread(mean, means);
  at.spread(scale, scales);
  at.spread(beta, betas);
  const bool bent = p.low > -limits<A>::infinity() || p.high < limits<A>::infinity();
#pragma unroll 1
  for (int k = 0; k < at.count; k += UNIT_AHEAD) {
    pack<T, VEC> r[UNIT_AHEAD];
    if (p.residual) {
#pragma unroll
      for (int u = 0; u < UNIT_AHEAD; ++u)
        if (k + u < at.count) r[u] = load<VEC>(p.residual, at.first + (k + u) * at.step);
    }
#pragma unroll
    for (int u = 0; u < UNIT_AHEAD; ++u) {
      if (k + u >= at.count) break;
      const pack<T, VEC> x = held<VEC>(tile, at, k + u);
      A y[VEC];
#pragma unroll
      for (int j = 0; j < VEC; ++j) y[j] = fma(to_acc(x.lane[j]) - mean[j], scale[j], beta[j]);
      if (p.residual) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) y[j] += to_acc(r[u].lane[j]);
      }
      if (bent) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) y[j] = clamped(y[j], p.low, p.high);
      }
      store(p.y, at.first + (k + u) * at.step, rounded<T>(y));
    }
  }
}
