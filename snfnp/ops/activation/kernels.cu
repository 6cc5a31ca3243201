// The smooth leaky ReLU f(x) = αx + (1-α) log(1 + eˣ).

#include "../gpu/common.cuh"

// σ(x) and log(1 + eˣ), from e = e^{-|x|}, which never overflows.
template <typename T>
__device__ T logistic(T x, T e) {
  return (x >= T(0) ? T(1) : e) / (T(1) + e);
}
template <typename T>
__device__ T softplus(T x, T e) {
  return fmax(x, T(0)) + log1p(e);
}

// x, y, sigma (n, dimension), ldj (n,). A block per sample.
template <typename T>
__global__ void smooth_leaky_relu(const T* __restrict__ x, double alpha, T* __restrict__ y,
                                  T* __restrict__ ldj, T* __restrict__ sigma,
                                  long long dimension) {
  const long long start = blockIdx.x * dimension;
  const T a = T(alpha), b = T(1.0 - alpha);
  T sum = T(0);
  for (int d = threadIdx.x; d < dimension; d += blockDim.x) {
    const T v = x[start + d], e = exp(-fabs(v)), s = logistic(v, e);
    y[start + d] = a * v + b * softplus(v, e);
    sigma[start + d] = s;
    sum += log(a + b * s);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) ldj[blockIdx.x] = sum;
}

// sigma, dy, dx (n, dimension), dldj (n,). A block per sample.
template <typename T>
__global__ void smooth_leaky_relu_backward(const T* __restrict__ sigma, const T* __restrict__ dy,
                                           const T* __restrict__ dldj, double alpha,
                                           T* __restrict__ dx, long long dimension) {
  const long long start = blockIdx.x * dimension;
  const T a = T(alpha), b = T(1.0 - alpha), volume = b * dldj[blockIdx.x];
  for (int d = threadIdx.x; d < dimension; d += blockDim.x) {
    const T s = sigma[start + d], slope = a + b * s;
    dx[start + d] = dy[start + d] * slope + volume * s * (T(1) - s) / slope;
  }
}
