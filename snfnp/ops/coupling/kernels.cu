// The affine coupling, and the biases and ReLUs of its network.

#include "../gpu/common.cuh"
#include "../channels/rows.cuh"

const int BATCH = 4;  // values that a thread reads before it writes the first

// out = max(out + b, 0). A NaN is not below zero, and stays.
template <typename T>
__global__ void bias_relu(T* __restrict__ out, const T* __restrict__ b, long long size,
                          long long channels) {
  const Place at(channels);
  if (!at.takes_part()) return;
  const T bias = b[at.channel];
  for (long long i = at.first; i < size; i += BATCH * at.step) {
    T v[BATCH];
    for (int k = 0; k < BATCH; ++k)
      if (i + k * at.step < size) v[k] = out[i + k * at.step] + bias;
    for (int k = 0; k < BATCH; ++k)
      if (i + k * at.step < size) out[i + k * at.step] = v[k] < T(0) ? T(0) : v[k];
  }
}

// out = out [a > 0], and g_b = Σ of its rows, or `add`: g_b plus that. A NaN in a is not below zero,
// and one in out stays.
template <typename T>
__global__ void bias_relu_backward(T* __restrict__ out, const T* __restrict__ a, T* g_b, T* partial,
                                   unsigned int* arrived, long long add, long long size,
                                   long long channels) {
  const Place at(channels);
  T sums[1] = {T(0)};
  if (at.takes_part()) {
    for (long long i = at.first; i < size; i += BATCH * at.step) {
      T v[BATCH];
      for (int k = 0; k < BATCH; ++k)
        if (i + k * at.step < size)
          v[k] = out[i + k * at.step] * (a[i + k * at.step] <= T(0) ? T(0) : T(1));
      for (int k = 0; k < BATCH; ++k)
        if (i + k * at.step < size) {
          out[i + k * at.step] = v[k];
          sums[0] += v[k];
        }
    }
  }
  sum_of_rows(sums, at, partial, arrived, [=](long long c, const T(&sum)[1]) {
    g_b[c] = add ? g_b[c] + sum[0] : sum[0];
  });
}

// The coupling itself: images x, h, z (n, pixels, 2 half), s (n, pixels, half). z₁ = x₁ and
// z₂ = x₂ exp(s) + h₁ with s = 2 tanh(h₀/2), where h₀ and h₁ are the even and odd channels of h.
// A block per sample.

// Where item i of a sample's (pixels, half) is: `x` in the first half of an image's channels (the
// second half is `half` further on), `h` in h (h₁ is next to h₀), `s` in s.
struct Item {
  long long x, h, s;

  __device__ Item(int i, int half, long long values) {
    const long long start = blockIdx.x * values;
    s = start + i;
    h = 2 * s;
    x = 2 * start + 2 * (i / half) * half + i % half;
  }
};

// ldj (n,) = Σ s
template <typename T>
__global__ void affine_coupling(const T* __restrict__ x, const T* __restrict__ h,
                                T* __restrict__ z, T* __restrict__ ldj, T* __restrict__ s,
                                long long half, long long values) {
  T sum = T(0);
  for (int i = threadIdx.x; i < values; i += blockDim.x) {
    const Item at(i, int(half), values);
    const T scale = T(2) * tanh(h[at.h] / T(2));
    s[at.s] = scale;
    sum += scale;
    z[at.x] = x[at.x];
    z[at.x + half] = x[at.x + half] * exp(scale) + h[at.h + 1];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) ldj[blockIdx.x] = sum;
}

template <typename T>
__global__ void affine_coupling_inverse(const T* __restrict__ z, const T* __restrict__ h,
                                        T* __restrict__ x, long long half, long long values) {
  for (int i = threadIdx.x; i < values; i += blockDim.x) {
    const Item at(i, int(half), values);
    x[at.x] = z[at.x];
    x[at.x + half] = (z[at.x + half] - h[at.h + 1]) * exp(T(-2) * tanh(h[at.h] / T(2)));
  }
}

// dldj (n,) -> dx, dh; 1 - s²/4 = ds/dh₀
template <typename T>
__global__ void affine_coupling_backward(const T* __restrict__ x, const T* __restrict__ s,
                                         const T* __restrict__ dz, const T* __restrict__ dldj,
                                         T* __restrict__ dx, T* __restrict__ dh, long long half,
                                         long long values) {
  const T volume = dldj[blockIdx.x];
  for (int i = threadIdx.x; i < values; i += blockDim.x) {
    const Item at(i, int(half), values);
    const T scale = s[at.s], delta = dz[at.x + half], through = delta * exp(scale);
    dx[at.x] = dz[at.x];
    dx[at.x + half] = through;
    dh[at.h] = (through * x[at.x + half] + volume) * (T(1) - T(0.25) * scale * scale);
    dh[at.h + 1] = delta;
  }
}
