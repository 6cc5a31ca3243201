// Elementwise linear algebra and sums of squares.

#include "../gpu/common.cuh"

// out = a x + b out
template <typename T>
__global__ void axpby(const double* a_at, double a, const T* __restrict__ x, const double* b_at,
                      double b, T* __restrict__ out, long long n) {
  const T a_ = T(value(a_at, a)), b_ = T(value(b_at, b));
  for (long long i = first_item(); i < n; i += item_stride()) out[i] = b_ * out[i] + a_ * x[i];
}

// out (rows, columns) = scale · volume · a (columns, rows)ᵀ, in tiles of 32 × 32 that are read and
// written along rows. Blocks of 256 threads, 8 rows of a tile at a time.
template <typename T>
__global__ void scaled_transpose(T* __restrict__ out, double scale, const double* volume_at,
                                 double volume, const T* __restrict__ a, long long rows,
                                 long long columns) {
  __shared__ T tile[32][33];  // 33: the 32 values of a column lie in different banks
  const T factor = T(scale * value(volume_at, volume));
  const int lane = threadIdx.x & 31, first = threadIdx.x >> 5, step = blockDim.x >> 5;
  const long long across = (columns + 31) / 32, tiles = across * ((rows + 31) / 32);
  for (long long t = blockIdx.x; t < tiles; t += gridDim.x) {
    const long long row = t / across * 32, column = t % across * 32;
    for (int i = first; i < 32; i += step)
      if (column + i < columns && row + lane < rows)
        tile[i][lane] = a[(column + i) * rows + row + lane];
    __syncthreads();
    for (int i = first; i < 32; i += step)
      if (row + i < rows && column + lane < columns)
        out[(row + i) * columns + column + lane] = factor * tile[lane][i];
    __syncthreads();
  }
}

// out (H, W, I, O) = scale · volume · a ⊙ m, a with any strides (in elements), m (H, W).
template <typename T>
__global__ void scaled_kernel(T* __restrict__ out, double scale, const double* volume_at,
                              double volume, const T* a, long long a_stride_0, long long a_stride_1,
                              long long a_stride_2, long long a_stride_3,
                              const double* __restrict__ multiple, long long width,
                              long long inputs, long long outputs, long long n) {
  const double factor = scale * value(volume_at, volume);
  for (long long index = first_item(); index < n; index += item_stride()) {
    const long long o = index % outputs, i = index / outputs % inputs;
    const long long tap = index / outputs / inputs, h = tap / width, w = tap % width;
    const T m = T(factor * (multiple ? multiple[tap] : 1.0));
    out[index] = m * a[h * a_stride_0 + w * a_stride_1 + i * a_stride_2 + o * a_stride_3];
  }
}

// Σ g² in double precision.
template <typename T>
__global__ void sum_squares(const T* __restrict__ g, double* partial, double* __restrict__ total,
                            unsigned int* arrived, long long n) {
  double sum = 0.0;
  for (long long i = first_item(); i < n; i += item_stride()) sum += double(g[i]) * double(g[i]);
  if (sum_of_all(sum, partial, arrived) && threadIdx.x == 0) *total = sum;
}

// error = error - x, and total = before + Σ error² / samples.
template <typename T>
__global__ void residual(T* __restrict__ error, const T* __restrict__ x, const double* before_at,
                         double before, double* partial, double* __restrict__ total,
                         unsigned int* arrived, long long samples, long long n) {
  double sum = 0.0;
#pragma unroll 4
  for (long long i = first_item(); i < n; i += item_stride()) {
    const T difference = error[i] - x[i];
    error[i] = difference;
    sum += double(difference) * double(difference);
  }
  if (sum_of_all(sum, partial, arrived) && threadIdx.x == 0)
    *total = value(before_at, before) + sum / double(samples);
}
