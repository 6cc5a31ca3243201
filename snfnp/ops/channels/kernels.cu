// Sums over rows of channels; a shift and a scale for each channel; the log-densities of samples.

#include "../gpu/common.cuh"
#include "../channels/rows.cuh"

// x (size / channels, channels) -> out (channels,)
template <typename T>
__global__ void channel_sum(const T* __restrict__ x, T* __restrict__ out, T* partial,
                            unsigned int* arrived, long long size, long long channels) {
  const Place at(channels);
  T sums[1] = {T(0)};
  if (at.takes_part()) {
#pragma unroll 4
    for (long long i = at.first; i < size; i += at.step) sums[0] += x[i];
  }
  sum_of_rows(sums, at, partial, arrived, [=](long long c, const T(&sum)[1]) { out[c] = sum[0]; });
}

// y = (x + sign before) exp(factor s) + after, where null pointers are zeros; and, if there is an
// ldj (samples,), factor · pixels · Σ s for each.
template <typename T>
__global__ void shift_scale(const T* __restrict__ x, double sign, const T* __restrict__ before,
                            double factor, const T* __restrict__ s, const T* __restrict__ after,
                            T* __restrict__ y, T* __restrict__ ldj, long long pixels,
                            long long samples, long long size, long long channels) {
  const Place at(channels);
  if (at.takes_part()) {
    const T scale = exp(T(factor) * s[at.channel]);
    const T first = before ? T(sign) * before[at.channel] : T(0);
    const T last = after ? after[at.channel] : T(0);
#pragma unroll 4
    for (long long i = at.first; i < size; i += at.step) y[i] = (x[i] + first) * scale + last;
  }
  if (!ldj || blockIdx.x > 0) return;
  T sum = T(0);
  for (long long c = threadIdx.x; c < channels; c += blockDim.x) sum += s[c];
  sum = T(factor) * T(pixels) * block_sum(sum);
  for (long long n = threadIdx.x; n < samples; n += blockDim.x) ldj[n] = sum;
}

// For y = (x + sign b) exp(factor s) and its ldj: dx = dy exp(factor s), g_b = sign Σ dx and
// g_s = factor (Σ dy y + pixels Σ dldj). samples = 0: without an ldj.
template <typename T>
__global__ void shift_scale_backward(const T* __restrict__ dy, const T* __restrict__ y,
                                     double sign, double factor, const T* __restrict__ s,
                                     const T* __restrict__ dldj, T* __restrict__ dx,
                                     T* __restrict__ g_b, T* __restrict__ g_s, T* partial,
                                     unsigned int* arrived, long long pixels, long long samples,
                                     long long size, long long channels) {
  const Place at(channels);
  T sums[2] = {T(0), T(0)};
  if (at.takes_part()) {
    const T scale = exp(T(factor) * s[at.channel]);
    const long long row = at.group * at.lanes + at.lane, rows = at.groups * at.lanes;
    for (long long n = row; n < samples; n += rows) sums[1] += T(pixels) * dldj[n];
#pragma unroll 4
    for (long long i = at.first; i < size; i += at.step) {
      const T through = dy[i] * scale;
      dx[i] = through;
      sums[0] += through;
      sums[1] += dy[i] * y[i];
    }
  }
  sum_of_rows(sums, at, partial, arrived, [=](long long c, const T(&sum)[2]) {
    g_b[c] = T(sign) * sum[0];
    g_s[c] = T(factor) * sum[1];
  });
}

// z (n, dimension) -> -½ Σ z² - constant, (n,). A block per sample.
template <typename T>
__global__ void gaussian_log_density(const T* __restrict__ z, double constant,
                                     T* __restrict__ density, long long dimension) {
  const long long start = blockIdx.x * dimension;
  T sum = T(0);
  for (int d = threadIdx.x; d < dimension; d += blockDim.x) sum += z[start + d] * z[start + d];
  sum = block_sum(sum);
  if (threadIdx.x == 0) density[blockIdx.x] = -T(0.5) * sum - T(constant);
}
