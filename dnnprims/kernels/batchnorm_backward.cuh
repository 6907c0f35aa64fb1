// Gradients of the batch norm: batchnorm.cu says what and how.
#pragma once
#include "batchnorm.cuh"

// What gradients are made from.
template <class T> struct NormGiven {
  const T* dy;
  const T* x;
  const T* y;  // or null
  const acc_t<T>* gamma;
  const acc_t<T>* beta;  // or null
  const acc_t<T>* mean;
  const acc_t<T>* rstd;
  acc_t<T> low, high;
};

// dz of a row: f' is taken at y, or else at z, computed again. Limits that are NaN let all of dy through.
template <class T, int VEC> struct NormSlope {
  typedef acc_t<T> A;
  A low, high;
  bool from_y;
  DEVICE NormSlope(A low, A high, const T* y)
      : low(y ? stored<T>(low) : low), high(y ? stored<T>(high) : high), from_y(y != nullptr) {}
  DEVICE void operator()(A (&dz)[VEC], pack<T, VEC> dy, pack<T, VEC> y, const A (&apart)[VEC], const A (&scale)[VEC],
                         const A (&beta)[VEC]) const {
    A v[VEC];
#pragma unroll
    for (int j = 0; j < VEC; ++j) v[j] = fma(apart[j], scale[j], beta[j]);
    if (from_y) unpack(v, y);
#pragma unroll
    for (int j = 0; j < VEC; ++j) dz[j] = passed(to_acc(dy.lane[j]), v[j], low, high);
  }
};

// What a thread has of its columns; writes dz where it is wanted.
template <class T, int VEC>
DEVICE void columns_sums(Sums<acc_t<T>> (&sums)[VEC], T* to_dz, const NormGiven<T>& given, i64 inner, const NormPlace<VEC>& at) {
  typedef acc_t<T> A;
  const NormSlope<T, VEC> slope(given.low, given.high, given.y);
  if (at.count > 0) {
    i64 channel[VEC];
    A mean[VEC], scale[VEC] = {}, beta[VEC] = {};
    channels_of<VEC>(at.column, inner, channel);
    gather<VEC>(given.mean, channel, mean);
    if (given.beta) {
      A gamma[VEC];
      gather<VEC>(given.gamma, channel, gamma);
      gather<VEC>(given.rstd, channel, scale);
      gather<VEC>(given.beta, channel, beta);
#pragma unroll
      for (int k = 0; k < VEC; ++k) scale[k] *= gamma[k];
    }
    for (int k = 0; k < at.count; k += AHEAD_OF_TWO) {
      i64 from[AHEAD_OF_TWO];
      pack<T, VEC> x[AHEAD_OF_TWO], dy[AHEAD_OF_TWO], y[AHEAD_OF_TWO];
      const int rows = at.count - k;
      packs_of_rows(at, k, 1, rows, from);
#pragma unroll
      for (int u = 0; u < AHEAD_OF_TWO; ++u) {
        x[u] = load<VEC>(given.x, from[u]);
        dy[u] = load<VEC>(given.dy, from[u]);
      }
      if (slope.from_y) {
#pragma unroll
        for (int u = 0; u < AHEAD_OF_TWO; ++u) y[u] = load<VEC>(given.y, from[u]);
      }
#pragma unroll
      for (int u = 0; u < AHEAD_OF_TWO; ++u) {
        A apart[VEC], dz[VEC];
        unpack(apart, x[u]);
#pragma unroll
        for (int j = 0; j < VEC; ++j) apart[j] -= mean[j];
        slope(dz, dy[u], y[u], apart, scale, beta);
#pragma unroll
        for (int j = 0; j < VEC; ++j)
          if (u < rows) {
            sums[j].dz += dz[j];
            sums[j].product = fma(dz[j], apart[j], sums[j].product);
          }
        if (to_dz) store(to_dz, from[u], rounded<T>(dz));
      }
    }
  }
}
template <int VEC, class A> DEVICE Sums<A> merge_columns(const Sums<A> (&own)[VEC]) {
  Sums<A> all = own[0];
#pragma unroll
  for (int k = 1; k < VEC; ++k) all.dz += own[k].dz, all.product += own[k].product;
  return all;
}

template <class T> struct NormSumsParams {
  Sums<acc_t<T>>* parts;  // (channels, slots)
  T* dz;                  // or null
  NormGiven<T> given;
  NormTiling tiling;
};

template <class T, int VEC>
__global__ void __launch_bounds__(NORM_BLOCK, BACKWARD_BLOCKS) batchnorm_sums(const NormSumsParams<T> p) {
  const NormPlace<VEC> at(p.tiling, blockIdx.y);
  Sums<acc_t<T>> sums[VEC] = {};
  columns_sums(sums, p.dz, p.given, p.tiling.inner, at);
  const bool alike = p.tiling.inner % VEC == 0;
  if (alike) sums[0] = merge_columns(sums);
  store_slots<VEC>(p.parts, p.tiling, at, sums, alike);
}

template <class T> struct NormGradientsParams {
  acc_t<T>* factors;  // (2, channels): what dz and x - mean lose of themselves in dx / (gamma rstd)
  acc_t<T>* dgamma;   // or null
  acc_t<T>* dbeta;    // or null
  const acc_t<T>* rstd;
  const Sums<acc_t<T>>* parts;
  i64 channels, slots, shift, count;
};

template <class Params, class A> DEVICE void keep_gradients(const Params& p, i64 channel, A rstd, const Sums<A>& all) {
  const A dgamma = rstd * all.product;
  if (p.dgamma) p.dgamma[channel] = dgamma;
  if (p.dbeta) p.dbeta[channel] = all.dz;
  if (p.count == 0) return;
  p.factors[channel] = all.dz / A(p.count);
  p.factors[p.channels + channel] = rstd * dgamma / A(p.count);
}

template <class T> __global__ void __launch_bounds__(NORM_BLOCK) batchnorm_gradients(const NormGradientsParams<T> p) {
  typedef acc_t<T> A;
  const int team = 1 << (int)p.shift, member = (int)threadIdx.x & (team - 1);
  const i64 channel = global_thread() >> (int)p.shift, slots = channel < p.channels ? p.slots : 0;
  const Sums<A> all = Sums<A>::all_of(SlotWalk<Sums<A>>{p.parts + channel * p.slots, member, slots, team}, team);
  if (member != 0 || channel >= p.channels) return;
  keep_gradients(p, channel, p.rstd[channel], all);
}

// Both in one launch, where a block has all of a channel.
template <class T> struct NormChannelSumsParams {
  acc_t<T>* factors;
  acc_t<T>* dgamma;  // or null
  acc_t<T>* dbeta;   // or null
  T* dz;             // or null
  NormGiven<T> given;
  i64 channels, count;
  NormTiling tiling;
};

template <class T, int VEC>
__global__ void __launch_bounds__(NORM_BLOCK, BACKWARD_BLOCKS) batchnorm_channel_sums(const NormChannelSumsParams<T> p) {
  const NormPlace<VEC> at(p.tiling, 0);
  Sums<acc_t<T>> sums[VEC] = {};
  columns_sums(sums, p.dz, p.given, p.tiling.inner, at);
  const Sums<acc_t<T>> all = merge_block(p.tiling, at, merge_columns(sums));
  if (threadIdx.x == 0) keep_gradients(p, blockIdx.x, p.given.rstd[blockIdx.x], all);
}

template <class T> struct NormDataParams {
  T* dx;
  const acc_t<T>* factors;
  NormGiven<T> given;
  i64 channels;
  NormTiling tiling;
};

template <class T, int VEC>
__global__ void __launch_bounds__(NORM_BLOCK, BACKWARD_BLOCKS) batchnorm_data(const NormDataParams<T> p) {
  typedef acc_t<T> A;
  const NormPlace<VEC> at(p.tiling, gridDim.y - 1 - blockIdx.y);
  if (at.count == 0) return;
  const NormGiven<T>& given = p.given;
  const NormSlope<T, VEC> slope(given.low, given.high, given.y);
  i64 channel[VEC];
  A mean[VEC], scale[VEC], gamma[VEC], beta[VEC] = {}, constant[VEC], linear[VEC];
  channels_of<VEC>(at.column, p.tiling.inner, channel);
  gather<VEC>(given.mean, channel, mean);
  gather<VEC>(given.rstd, channel, scale);
  gather<VEC>(given.gamma, channel, gamma);
  gather<VEC>(p.factors, channel, constant);
  gather<VEC>(p.factors + p.channels, channel, linear);
  if (given.beta) gather<VEC>(given.beta, channel, beta);
#pragma unroll
  for (int k = 0; k < VEC; ++k) scale[k] *= gamma[k];
  for (int k = at.count; k > 0; k -= AHEAD_OF_TWO) {
    i64 from[AHEAD_OF_TWO];
    pack<T, VEC> x[AHEAD_OF_TWO], dy[AHEAD_OF_TWO], y[AHEAD_OF_TWO];
    packs_of_rows(at, k - 1, -1, k, from);
#pragma unroll
    for (int u = 0; u < AHEAD_OF_TWO; ++u) {
      x[u] = load<VEC>(given.x, from[u]);
      dy[u] = load<VEC>(given.dy, from[u]);
    }
    if (slope.from_y) {
#pragma unroll
      for (int u = 0; u < AHEAD_OF_TWO; ++u) y[u] = load<VEC>(given.y, from[u]);
    }
#pragma unroll
    for (int u = 0; u < AHEAD_OF_TWO; ++u) {
      A apart[VEC], dx[VEC];
      unpack(apart, x[u]);
#pragma unroll
      for (int j = 0; j < VEC; ++j) apart[j] -= mean[j];
      slope(dx, dy[u], y[u], apart, scale, beta);
#pragma unroll
      for (int j = 0; j < VEC; ++j) dx[j] = scale[j] * fma(-linear[j], apart[j], dx[j] - constant[j]);
      store(p.dx, from[u], rounded<T>(dx));
    }
  }
}
