// Elementwise linear algebra and sums of squares.

#include "../gpu/common.cuh"

// out = a x + b out, of n numbers; and of m others, with an `a` of their own
template <typename T>
__global__ void axpby(const double* a_at, double a, const T* __restrict__ x, const double* b_at,
                      double b, T* __restrict__ out, long long n, double second_a,
                      const T* __restrict__ second_x, T* __restrict__ second_out, long long m) {
  const T a_ = T(value(a_at, a)), b_ = T(value(b_at, b));
  for (long long i = first_item(); i < n; i += item_stride())
    out[i] = b_ * out[i] + a_ * x[i];
  for (long long i = first_item(); i < m; i += item_stride())
    second_out[i] = b_ * second_out[i] + T(second_a) * second_x[i];
}

// out = scale · a, of n numbers
template <typename T>
__global__ void scaled(T* __restrict__ out, double scale, const T* __restrict__ a, long long n) {
  const T factor = T(scale);
#pragma unroll 1
  for (long long i = first_item(); i < n; i += item_stride()) out[i] = factor * a[i];
}

// The side of the largest matrix for `small_inverse`; read by gpu.py.
constexpr int MOST_ROWS = 48;

// a⁻¹ (size, size), size <= MOST_ROWS, by elimination with the largest pivot of each column, in
// place; all NaN if a pivot is 0. One block.
template <typename T>
__global__ void small_inverse(const T* a, T* inverse, long long size) {
  __shared__ T rows[MOST_ROWS][MOST_ROWS + 1];
  __shared__ T column[MOST_ROWS];
  __shared__ T line[MOST_ROWS];
  __shared__ int pivots[MOST_ROWS];
  const int n = int(size), t = threadIdx.x, threads = blockDim.x;
  for (int i = t; i < n * n; i += threads) rows[i / n][i % n] = a[i];
  __syncthreads();
  for (int k = 0; k < n; ++k) {
    if (t < 32) {
      T largest = T(-1);
      int row = k;
      for (int i = k + t; i < n; i += 32) {
        if (fabs(rows[i][k]) > largest) {
          largest = fabs(rows[i][k]);
          row = i;
        }
      }
      for (int offset = 16; offset > 0; offset >>= 1) {
        const T other = __shfl_xor_sync(0xffffffffu, largest, offset);
        const int its_row = __shfl_xor_sync(0xffffffffu, row, offset);
        if (other > largest || (other == largest && its_row < row)) {
          largest = other;
          row = its_row;
        }
      }
      if (t == 0) pivots[k] = row;
    }
    __syncthreads();
    const int row = pivots[k];
    for (int j = t; j < n; j += threads) {
      const T above = rows[k][j];
      rows[k][j] = rows[row][j];
      rows[row][j] = above;
    }
    __syncthreads();
    for (int i = t; i < n; i += threads) {
      const T pivot = rows[k][k] == T(0) ? sqrt(T(-1)) : rows[k][k];  // NaN: singular
      column[i] = rows[i][k];
      line[i] = (i == k ? T(1) : rows[k][i]) / pivot;
    }
    __syncthreads();
    for (int at = t; at < n * n; at += threads) {
      const int i = at / n, j = at % n;
      rows[i][j] = i == k ? line[j] : (j == k ? T(0) : rows[i][j]) - column[i] * line[j];
    }
    __syncthreads();
  }
  for (int i = t; i < n; i += threads) {  // rows that changed places are columns of the inverse
    for (int k = n - 1; k >= 0; --k) {
      const T left = rows[i][k];
      rows[i][k] = rows[i][pivots[k]];
      rows[i][pivots[k]] = left;
    }
  }
  __syncthreads();
  for (int i = t; i < n * n; i += threads) inverse[i] = rows[i / n][i % n];
}

// Σ g², of runs of few.
template <typename T>
__global__ void sum_squares(const T* __restrict__ g, double* partial, double* __restrict__ total,
                            unsigned int* arrived, long long n) {
  Sum<T> squares;
#pragma unroll 4
  for (long long i = first_item(); i < n; i += item_stride()) squares.add(g[i] * g[i]);
  double sum = squares.total();
  if (sum_of_all(sum, partial, arrived) && threadIdx.x == 0) *total = sum;
}

// error = error - x, and total = Σ error² / samples.
template <typename T>
__global__ void residual(T* __restrict__ error, const T* __restrict__ x, double* partial,
                         double* __restrict__ total, unsigned int* arrived, long long samples,
                         long long n) {
  Sum<T> squares;
#pragma unroll 4
  for (long long i = first_item(); i < n; i += item_stride()) {
    const T difference = error[i] - x[i];
    error[i] = difference;
    squares.add(difference * difference);
  }
  double sum = squares.total();
  if (sum_of_all(sum, partial, arrived) && threadIdx.x == 0) *total = sum / double(samples);
}
