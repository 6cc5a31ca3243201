// The inverse of a causal 2 × 2 convolution, on channels-last images.

#include "../gpu/common.cuh"

// The x with conv(x, k) = z for a causal k (2, 2, C, C), by substitution along anti-diagonals: one
// block per sample. The rest of z and then x itself are in x, where the whole block sees them.
template <typename T>
__global__ void causal_conv_inverse(const T* __restrict__ z, const T* __restrict__ k, T* x,
                                    long long samples, long long height, long long width,
                                    long long channels) {
  const int rows = (int)height, columns = (int)width, count = (int)channels, tap = count * count;
  const T* own = k + 3 * tap;  // k[1, 1], upper triangular
  for (long long image = blockIdx.x; image < samples; image += gridDim.x) {
    const T* from = z + image * rows * columns * count;
    T* to = x + image * rows * columns * count;
    for (int diagonal = 0; diagonal < rows + columns - 1; ++diagonal) {
      const int first = diagonal < columns ? 0 : diagonal - columns + 1;
      const int last = diagonal < rows ? diagonal : rows - 1;
      const int items = (last - first + 1) * count;
      for (int j = threadIdx.x; j < items; j += blockDim.x) {
        const int row = first + j / count, column = diagonal - row, o = j % count;
        const int at = (row * columns + column) * count;
        const T* above = to + at - columns * count;
        const T* before = to + at - count;
        T rest = from[at + o];
        for (int i = 0; i < count; ++i) {
          const T* weights = k + i * count + o;
          if (row > 0 && column > 0) rest -= above[i - count] * weights[0];
          if (row > 0) rest -= above[i] * weights[tap];
          if (column > 0) rest -= before[i] * weights[2 * tap];
        }
        to[at + o] = rest;
      }
      __syncthreads();
      for (int solved = 0; solved < count - 1; ++solved) {
        for (int j = threadIdx.x; j < items; j += blockDim.x) {
          const int row = first + j / count, o = j % count;
          T* pixel = to + (row * columns + diagonal - row) * count;
          const T* weights = own + solved * count;
          if (o > solved) pixel[o] -= pixel[solved] / weights[solved] * weights[o];
        }
        __syncthreads();
      }
      for (int j = threadIdx.x; j < items; j += blockDim.x) {
        const int row = first + j / count, o = j % count;
        to[(row * columns + diagonal - row) * count + o] /= own[o * count + o];
      }
      __syncthreads();
    }
  }
}
