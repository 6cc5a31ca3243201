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

// out = out [a > 0], and what each block makes of its rows' sums: sums (groups, channels). A NaN
// in a is not below zero, and one in out stays.
template <typename T>
__global__ void bias_relu_backward(T* __restrict__ out, const T* __restrict__ a,
                                   T* __restrict__ sums, long long size, long long channels) {
  const Place at(channels);
  T sum = T(0);
  if (at.takes_part()) {
    for (long long i = at.first; i < size; i += BATCH * at.step) {
      T v[BATCH];
      for (int k = 0; k < BATCH; ++k)
        if (i + k * at.step < size)
          v[k] = out[i + k * at.step] * (a[i + k * at.step] <= T(0) ? T(0) : T(1));
      for (int k = 0; k < BATCH; ++k)
        if (i + k * at.step < size) {
          out[i + k * at.step] = v[k];
          sum += v[k];
        }
    }
  }
  sum = sum_of_lanes(sum, at);
  if (at.leads()) sums[at.group * channels + at.channel] = sum;
}

// A tile of a product: rows and columns, and the terms of its sums that are read at once.
constexpr int SIDE = 64;
constexpr int DEPTH = 16;

// The product of x (rows, inner), inner small, and w (inner, columns), and the pass over it that
// follows in the network: out = max(x w + b, 0); or, without b, out = (x w) [a > 0] and what each
// tile makes of its rows' sums: sums (tiles of rows, columns). NaNs as above. For 256 threads:
// each takes 4 rows, and 4 columns a quarter of the tile apart, so that neighbours store neighbours.
template <typename T>
__global__ void product_relu(const T* __restrict__ x, const T* __restrict__ w,
                             const T* __restrict__ b, const T* __restrict__ a,
                             T* __restrict__ out, T* __restrict__ sums, long long rows,
                             long long inner, long long columns) {
  __shared__ Four<T> lines[DEPTH][SIDE / 4 + 1];  // of x, transposed; one more for the banks
  __shared__ T weights[DEPTH][SIDE];
  __shared__ T totals[SIDE / 4][SIDE];
  const int across = threadIdx.x % 16, down = threadIdx.x / 16;
  const int terms = (int)inner, line_length = (int)columns;
  const int width = (line_length + SIDE - 1) / SIDE;
  const long long tiles = (rows + SIDE - 1) / SIDE * width;
  for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int left = int(tile % width) * SIDE;
    const long long top = tile / width * SIDE;
    const int height = rows - top < SIDE ? int(rows - top) : SIDE;
    T sum[4][4] = {};
    for (int from = 0; from < terms; from += DEPTH) {
      for (int i = threadIdx.x; i < SIDE * DEPTH; i += blockDim.x) {
        const int row = i / DEPTH, k = from + i % DEPTH;
        T* line = reinterpret_cast<T*>(lines[i % DEPTH]);
        line[row] = row < height && k < terms ? x[(top + row) * terms + k] : T(0);
        const int term = from + i / SIDE, column = left + i % SIDE;
        weights[i / SIDE][i % SIDE] =
            term < terms && column < line_length ? w[term * line_length + column] : T(0);
      }
      __syncthreads();
      for (int k = 0; k < DEPTH; ++k) {
        const Four<T> v = lines[k][down];
        for (int c = 0; c < 4; ++c) {
          const T weight = weights[k][across + SIDE / 4 * c];
          sum[0][c] += v.a * weight;
          sum[1][c] += v.b * weight;
          sum[2][c] += v.c * weight;
          sum[3][c] += v.d * weight;
        }
      }
      __syncthreads();
    }
    for (int c = 0; c < 4; ++c) {
      const int column = left + across + SIDE / 4 * c;
      T total = T(0);
      for (int r = 0; r < 4; ++r) {
        const int row = 4 * down + r;
        if (row >= height || column >= line_length) continue;
        const long long at = (top + row) * line_length + column;
        T v = sum[r][c];
        if (b) {
          v += b[column];
          v = v < T(0) ? T(0) : v;
        } else {
          v *= a[at] <= T(0) ? T(0) : T(1);
          total += v;
        }
        out[at] = v;
      }
      totals[down][across + SIDE / 4 * c] = total;
    }
    __syncthreads();
    if (sums && threadIdx.x < SIDE && left + threadIdx.x < columns) {
      T total = T(0);
      for (int r = 0; r < SIDE / 4; ++r) total += totals[r][threadIdx.x];
      sums[tile / width * line_length + left + threadIdx.x] = total;
    }
  }
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
