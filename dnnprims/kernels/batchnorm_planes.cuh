// The passes that write, channels first, where packs lie within planes: straight through memory, from its end to its begin,
// so that what the pass before has read last comes from the L2. What belongs to its channel is fetched for each pack.
#pragma once
#include "batchnorm_backward.cuh"

// Blocks of a multiprocessor, as many as registers leave; for Blackwell, ptxas takes more of them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <class T> constexpr int APPLY_PLANES_BLOCKS = sizeof(T) == 8 ? 2 : 3;
template <class T> constexpr int DATA_PLANES_BLOCKS = 2;
#else
template <class T> constexpr int APPLY_PLANES_BLOCKS = sizeof(T) == 8 ? 2 : 4;
template <class T> constexpr int DATA_PLANES_BLOCKS = sizeof(T) == 8 ? 2 : 3;
#endif

// n / by, of what is below 2^31 (pooling.cuh says why).
struct NormDivisor {
  u32 multiplier, shift;
  DEVICE u32 operator()(u32 n) const { return (u32)((u64)n * multiplier >> shift); }
};

// What is gone through from its end to its begin: `packs`, of planes that belong to a channel each.
struct NormPlanes {
  i64 packs;
  u32 channels;
  NormDivisor by_run, by_channels;

  DEVICE i64 begin() const { return (i64)(gridDim.x - 1 - blockIdx.x) * (NORM_BLOCK * AHEAD_OF_TWO) + threadIdx.x; }
  // Pack `ahead` of a thread that begins there; the last of all in place of those past it.
  DEVICE i64 place(i64 begin, int ahead) const { return min(begin + ahead * NORM_BLOCK, packs - 1); }
  DEVICE u32 channel(i64 at) const {
    const u32 plane = by_run((u32)at);
    return plane - by_channels(plane) * channels;
  }
};

template <class T> struct NormPlanesParams {
  T* y;
  const T* x;
  const T* residual;  // or null
  const acc_t<T>* gamma;
  const acc_t<T>* beta;
  const acc_t<T>* mean;
  const acc_t<T>* rstd;
  acc_t<T> low, high;
  NormPlanes planes;
};

template <class T, int VEC>
__global__ void __launch_bounds__(NORM_BLOCK, APPLY_PLANES_BLOCKS<T>) batchnorm_apply_planes(const NormPlanesParams<T> p) {
  typedef acc_t<T> A;
  const i64 begin = p.planes.begin();
  pack<T, VEC> x[AHEAD_OF_TWO], r[AHEAD_OF_TWO];
#pragma unroll
  for (int u = 0; u < AHEAD_OF_TWO; ++u) {
    const i64 at = p.planes.place(begin, u);
    x[u] = load<VEC>(p.x, at);
    if (p.residual) r[u] = load<VEC>(p.residual, at);
  }
#pragma unroll
  for (int u = 0; u < AHEAD_OF_TWO; ++u) {
    const i64 at = begin + u * NORM_BLOCK;
    if (at >= p.planes.packs) return;
    const u32 channel = p.planes.channel(at);
    const A mean = p.mean[channel], scale = p.rstd[channel] * p.gamma[channel], beta = p.beta[channel];
    A y[VEC];
#pragma unroll
    for (int j = 0; j < VEC; ++j) y[j] = fma(to_acc(x[u].lane[j]) - mean, scale, beta);
    if (p.residual) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) y[j] += to_acc(r[u].lane[j]);
    }
#pragma unroll
    for (int j = 0; j < VEC; ++j) y[j] = clamped(y[j], p.low, p.high);
    store(p.y, at, rounded<T>(y));
  }
}

template <class T> struct NormPlanesDataParams {
  T* dx;
  const acc_t<T>* factors;
  NormGiven<T> given;
  NormPlanes planes;
};

// The same of planes, through memory from its end to its begin.
template <class T, int VEC>
__global__ void __launch_bounds__(NORM_BLOCK, DATA_PLANES_BLOCKS<T>) batchnorm_data_planes(const NormPlanesDataParams<T> p) {
  typedef acc_t<T> A;
  const NormGiven<T>& given = p.given;
  const i64 begin = p.planes.begin();
  const NormSlope<T, VEC> slope(given.low, given.high, given.y);
  pack<T, VEC> x[AHEAD_OF_TWO], dy[AHEAD_OF_TWO], y[AHEAD_OF_TWO];
#pragma unroll
  for (int u = 0; u < AHEAD_OF_TWO; ++u) {
    const i64 at = p.planes.place(begin, u);
    x[u] = load<VEC>(given.x, at);
    dy[u] = load<VEC>(given.dy, at);
    if (slope.from_y) y[u] = load<VEC>(given.y, at);
  }
#pragma unroll
  for (int u = 0; u < AHEAD_OF_TWO; ++u) {
    const i64 at = begin + u * NORM_BLOCK;
    if (at >= p.planes.packs) return;
    const u32 channel = p.planes.channel(at);
    const A mean = given.mean[channel], scale = given.rstd[channel] * given.gamma[channel], beta = given.beta ? given.beta[channel] : A(0);
    const A constant = p.factors[channel], linear = p.factors[p.planes.channels + channel];
    A apart[VEC], dx[VEC], scales[VEC], betas[VEC];
    unpack(apart, x[u]);
#pragma unroll
    for (int j = 0; j < VEC; ++j) apart[j] -= mean, scales[j] = scale, betas[j] = beta;
    slope(dx, dy[u], y[u], apart, scales, betas);
#pragma unroll
    for (int j = 0; j < VEC; ++j) dx[j] = scale * fma(-linear, apart[j], dx[j] - constant);
    store(p.dx, at, rounded<T>(dx));
  }
}
