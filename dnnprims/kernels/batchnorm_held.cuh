// The batch norm in one launch, channels first: a block holds all of one channel in its shared memory, so that memory is
// read once. batchnorm.cu says what is computed.
//
// A channel is a run of `inner` elements in each row, which begins and ends wherever it does: a thread has one of the
// `packs` that the run touches, and of its VEC elements those from `begin` to `end`; what else lies in a pack is another
// channel's, is taken along and left out of all sums.
#pragma once
#include "batchnorm_backward.cuh"

// Threads of a block at most; packs that a thread has in flight of what is not held.
constexpr int HELD_BLOCK = 1024, HELD_AHEAD = 2;

// The packs of a thread: number k at first + k * step of memory and at slot + k * stride of what is held.
struct HeldPacks {
  i64 first, step;
  int slot, stride, count;
};

struct HeldTiling {
  i64 rows, channels, inner, packs;
};
template <int VEC> struct HeldPlace : HeldPacks {
  int begin, end;

  DEVICE explicit HeldPlace(const HeldTiling& t) {
    const int packs = (int)t.packs, inner = (int)t.inner, depth = (int)blockDim.x / packs;
    const int row = (int)threadIdx.x / packs, across = (int)threadIdx.x - row * packs, rows = (int)t.rows;
    const i64 from = (i64)blockIdx.x * t.inner, row_packs = (i64)((u64)(t.channels * t.inner) / VEC);
    const i64 pack = (i64)((u64)from / VEC);
    const int column = across * VEC - (int)(from - pack * VEC);
    slot = row * packs + across;
    stride = depth * packs;
    first = row * row_packs + pack + across;
    step = depth * row_packs;
    begin = max(-column, 0);
    end = min(inner - column, VEC);
    count = row < depth && row < rows && end > 0 ? (rows - row + depth - 1) / depth : 0;
  }
  DEVICE bool holds(int k) const { return k >= begin && k < end; }
};

// All packs of a thread, into shared memory: asked for, not yet there.
template <int VEC, class T> DEVICE void fetch_held(T* tile, const T* x, const HeldPlace<VEC>& at) {
  for (int k = 0; k < at.count; ++k) {
    const int to = at.slot + k * at.stride;
    const i64 from = at.first + k * at.step;
    if constexpr (sizeof(T) * VEC == 16) copy_async(tile + to * VEC, x + from * VEC);
    else store<VEC>(tile, to, load<VEC>(x, from));
  }
}
template <int VEC, class T> DEVICE pack<T, VEC> held(const T* tile, const HeldPacks& at, int k) {
  return load<VEC>(tile, at.slot + k * at.stride);
}
// A pack of y, but for what is another channel's.
template <int VEC, class T> DEVICE void put_held(T* y, const HeldPlace<VEC>& at, int k, const pack<T, VEC>& v) {
  const i64 to = at.first + k * at.step;
  if (at.begin == 0 && at.end == VEC) return store(y, to, v);
#pragma unroll
  for (int j = 0; j < VEC; ++j)
    if (at.holds(j)) y[to * VEC + j] = v.lane[j];
}

// Zeros in place of what is another channel's.
template <int VEC, class T> DEVICE void clear_others(T* tile, const HeldPlace<VEC>& at) {
  if (at.begin == 0 && at.end == VEC) return;
  for (int k = 0; k < at.count; ++k) {
    pack<T, VEC> v = held<VEC>(tile, at, k);
#pragma unroll
    for (int j = 0; j < VEC; ++j)
      if (!at.holds(j)) v.lane[j] = T{};
    store<VEC>(tile, at.slot + k * at.stride, v);
  }
}

// The sum over the threads of a block, of which there are whole warps; of all, or of the elements that are theirs.
template <class A> DEVICE A held_sum(A v) {
  __shared__ A of_warps[HELD_BLOCK / 32];
  v = warp_reduce(v, Sum{});
  const int lane = (int)threadIdx.x % 32, warps = (int)blockDim.x / 32;
  if (lane == 0) of_warps[threadIdx.x / 32] = v;
  __syncthreads();
  v = warp_reduce(lane < warps ? of_warps[lane] : A(0), Sum{});
  __syncthreads();
  return v;
}
template <int VEC, class A> DEVICE A held_sum(const A (&own)[VEC], const HeldPlace<VEC>& at) {
  A v = A(0);
#pragma unroll
  for (int k = 0; k < VEC; ++k) v += at.count > 0 && at.holds(k) ? own[k] : A(0);
  return held_sum(v);
}

// ---- forward --------------------------------------------------------------------------------------------------------

template <class T, class Tiling> struct NormInOneParams {
  T* y;
  const T* x;
  const T* residual;  // or null
  const acc_t<T>* gamma;
  const acc_t<T>* beta;
  acc_t<T>* mean;
  acc_t<T>* rstd;
  acc_t<T>* running_mean;      // or null
  acc_t<T>* running_variance;  // or null
  acc_t<T> epsilon, low, high;
  double factor;
  i64 unbiased;
  Tiling tiling;
};
template <class T> using NormHeldForwardParams = NormInOneParams<T, HeldTiling>;

// About the first element, so that equal ones give that itself, and then about that mean, with what is left beside it.
template <class T, int VEC> DEVICE Moments<acc_t<T>> held_moments(const T* tile, const HeldPlace<VEC>& at, T first, i64 count) {
  typedef acc_t<T> A;
  const A part = A(1) / A(count), middle = to_acc(first);
  A sum[VEC] = {}, left[VEC] = {}, squares[VEC] = {};
  for (int k = 0; k < at.count; ++k) {
    const pack<T, VEC> x = held<VEC>(tile, at, k);
#pragma unroll
    for (int j = 0; j < VEC; ++j) sum[j] = fma(to_acc(x.lane[j]) - middle, part, sum[j]);
  }
  const A mean = middle + held_sum(sum, at);
  for (int k = 0; k < at.count; ++k) {
    const pack<T, VEC> x = held<VEC>(tile, at, k);
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const A apart = to_acc(x.lane[j]) - mean;
      left[j] = fma(apart, part, left[j]);
      squares[j] = fma(apart, apart, squares[j]);
    }
  }
  Moments<A> all{A(count), mean + held_sum(left, at), held_sum(squares, at)};
  if (all.squares != all.squares) all.mean = all.squares;
  return all;
}

template <class T, int VEC>
__global__ void __launch_bounds__(HELD_BLOCK) batchnorm_held_forward(const NormHeldForwardParams<T> p) {
  DYNAMIC_SHARED(T, tile);
  typedef acc_t<T> A;
  const HeldPlace<VEC> at(p.tiling);
  const i64 channel = blockIdx.x;
  fetch_held(tile, p.x, at);
  const T first = p.x[channel * p.tiling.inner];
  commit_copies();
  await_copies<0>();
  const Moments<A> all = held_moments<T>(tile, at, first, p.tiling.rows * p.tiling.inner);
  const A rstd = A(1) / sqrt(all.squares / all.count + p.epsilon);
  if (threadIdx.x == 0) {
    p.mean[channel] = all.mean;
    p.rstd[channel] = rstd;
    keep_running(p.running_mean, p.running_variance, channel, all, p.unbiased != 0, p.factor);
  }
  const A scale = rstd * p.gamma[channel], beta = p.beta[channel];
  const bool bent = p.low > -limits<A>::infinity() || p.high < limits<A>::infinity();
  for (int k = 0; k < at.count; k += HELD_AHEAD) {
    pack<T, VEC> r[HELD_AHEAD];
    if (p.residual) {
#pragma unroll
      for (int u = 0; u < HELD_AHEAD; ++u)
        if (k + u < at.count) r[u] = load<VEC>(p.residual, at.first + (k + u) * at.step);
    }
#pragma unroll
    for (int u = 0; u < HELD_AHEAD; ++u) {
      if (k + u >= at.count) break;
      const pack<T, VEC> x = held<VEC>(tile, at, k + u);
      A y[VEC];
#pragma unroll
      for (int j = 0; j < VEC; ++j) y[j] = fma(to_acc(x.lane[j]) - all.mean, scale, beta);
      if (p.residual) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) y[j] += to_acc(r[u].lane[j]);
      }
      if (bent) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) y[j] = clamped(y[j], p.low, p.high);
      }
      put_held(p.y, at, k + u, rounded<T>(y));
    }
  }
}

// ---- backward -------------------------------------------------------------------------------------------------------

template <class T> struct NormHeldBackwardParams {
  T* dx;                // or null
  T* dz;                // or null
  acc_t<T>* dgamma;     // or null
  acc_t<T>* dbeta;      // or null
  NormGiven<T> given;
  i64 bent;  // whether there is an f
  HeldTiling tiling;
};

// The first pass leaves dz where dy was.
template <class T, int VEC>
__global__ void __launch_bounds__(HELD_BLOCK) batchnorm_held_backward(const NormHeldBackwardParams<T> p) {
  DYNAMIC_SHARED(T, tile);
  typedef acc_t<T> A;
  const NormGiven<T>& given = p.given;
  const HeldPlace<VEC> at(p.tiling);
  const i64 channel = blockIdx.x;
  T* gradients = tile + p.tiling.rows * p.tiling.packs * VEC;
  fetch_held(tile, given.x, at);
  fetch_held(gradients, given.dy, at);
  commit_copies();
  const NormSlope<T, VEC> slope(given.low, given.high, given.y);
  const A mean = given.mean[channel], rstd = given.rstd[channel], scale = rstd * given.gamma[channel];
  A scales[VEC], betas[VEC];
#pragma unroll
  for (int j = 0; j < VEC; ++j) {
    scales[j] = scale;
    betas[j] = given.beta ? given.beta[channel] : A(0);
  }
  A sum = A(0), product = A(0);
  await_copies<0>();
  clear_others(tile, at);
  clear_others(gradients, at);
  for (int k = 0; k < at.count; k += HELD_AHEAD) {
    pack<T, VEC> y[HELD_AHEAD];
    if (slope.from_y) {
#pragma unroll
      for (int u = 0; u < HELD_AHEAD; ++u)
        if (k + u < at.count) y[u] = load<VEC>(given.y, at.first + (k + u) * at.step);
    }
#pragma unroll
    for (int u = 0; u < HELD_AHEAD; ++u) {
      if (k + u >= at.count) break;
      A apart[VEC], dz[VEC];
      unpack(apart, held<VEC>(tile, at, k + u));
#pragma unroll
      for (int j = 0; j < VEC; ++j) apart[j] -= mean;
      if (p.bent) slope(dz, held<VEC>(gradients, at, k + u), y[u], apart, scales, betas);
      else unpack(dz, held<VEC>(gradients, at, k + u));
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        sum += dz[j];
        product = fma(dz[j], apart[j], product);
      }
      if (!p.bent && !p.dz) continue;
      const pack<T, VEC> kept = rounded<T>(dz);
      store<VEC>(gradients, at.slot + (k + u) * at.stride, kept);
      if (p.dz) put_held(p.dz, at, k + u, kept);
    }
  }
  const A dbeta = held_sum(sum), dgamma = rstd * held_sum(product), count = A(p.tiling.rows * p.tiling.inner);
  if (threadIdx.x == 0) {
    if (p.dgamma) p.dgamma[channel] = dgamma;
    if (p.dbeta) p.dbeta[channel] = dbeta;
  }
  if (!p.dx) return;
  const A constant = dbeta / count, linear = rstd * dgamma / count;
#pragma unroll 2
  for (int k = 0; k < at.count; ++k) {
    A apart[VEC], dx[VEC];
    unpack(apart, held<VEC>(tile, at, k));
    unpack(dx, held<VEC>(gradients, at, k));
#pragma unroll
    for (int j = 0; j < VEC; ++j) dx[j] = scale * fma(-linear, apart[j] - mean, dx[j] - constant);
    put_held(p.dx, at, k, rounded<T>(dx));
  }
}
