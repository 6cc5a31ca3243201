// The base density, and sums of log-densities.

#include "../gpu/common.cuh"

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

// sum (n,) = first + a + b + …, in this order; what is null is left out.
template <typename T>
__global__ void total(const T* __restrict__ first, const T* a, const T* b, const T* c, const T* d,
                      const T* e, const T* f, const T* g, const T* h, T* __restrict__ sum,
                      long long n) {
  for (long long i = first_item(); i < n; i += item_stride()) {
    T s = first[i];
    if (a) s += a[i];
    if (b) s += b[i];
    if (c) s += c[i];
    if (d) s += d[i];
    if (e) s += e[i];
    if (f) s += f[i];
    if (g) s += g[i];
    if (h) s += h[i];
    sum[i] = s;
  }
}
