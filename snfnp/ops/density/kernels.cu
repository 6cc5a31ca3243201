// The base density.

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
