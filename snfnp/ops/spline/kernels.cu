// The rational-quadratic spline. Formulas: derivations/09-splines.md; layouts: definition.py.
// Knots and factors have a row of all P pixels for each number; helpers take pointers to them that
// point at the pixel. K, the number of bins, is known at run time only: what depends on it is
// looped over or lies in shared memory, never in an array of a thread's own.

#include "../gpu/common.cuh"

// Of spline_backward, and read by gpu.py: pixels of a block (4 floats are half a sector of memory,
// the least that is fetched, but 784 pixels then fill a large GPU), a divisor of 32; and numbers in
// its shared memory.
constexpr int SPLINE_PIXELS = 4;
constexpr int SPLINE_SUMS = 4096;

template <typename T>
struct SplineBin {
  T x0, y0, w, h, d0, d1;
  int index;
  bool outside;
};

// The bin that a value lies in, among the positions (axis 0) or the values (axis 1).
// A NaN compares false: bin 0, and not outside.
template <typename T>
__device__ SplineBin<T> spline_bin(T value, const T* __restrict__ knots, int axis, int bins,
                                   long long pixels) {
  const T* edges = knots + axis * (bins + 1) * pixels;
  SplineBin<T> b;
  b.index = 0;
#pragma unroll 2  // by 4, the backward pass needs all of its registers on sm_80
  for (int k = 1; k < bins; ++k) b.index += value >= edges[k * pixels];
  b.outside = value <= edges[0] || value >= edges[bins * pixels];
  const T* x = knots + b.index * pixels;
  const T* y = x + (bins + 1) * pixels;
  const T* d = y + (bins + 1) * pixels;
  b.x0 = x[0];
  b.y0 = y[0];
  b.d0 = d[0];
  b.w = x[pixels] - b.x0;
  b.h = y[pixels] - b.y0;
  b.d1 = d[pixels];
  return b;
}

// 0, or NaN where one of raw (n,) is not finite.
template <typename T>
__device__ T spline_poison(const T* __restrict__ raw, int n) {
  T poison = T(0);
  for (int k = 0; k < n; ++k) poison += raw[k] - raw[k];
  return poison;
}

// A pixel's raw widths or heights (K,) -> their softmax, and the edges -B, ..., B.
template <typename T>
__device__ void spline_edges(const T* __restrict__ raw, T poison, T bound, T eps, T rest,
                             T* __restrict__ edges, T* __restrict__ shares, int bins,
                             long long pixels) {
  T largest = raw[0], total = poison, reached = T(0);
  for (int k = 1; k < bins; ++k) largest = fmax(largest, raw[k]);
  for (int k = 0; k < bins; ++k) total += exp(raw[k] - largest);
  edges[0] = poison - bound;
#pragma unroll 1  // by 4, it needs 74 registers in single precision
  for (int k = 0; k < bins; ++k) {
    const T share = exp(raw[k] - largest) / total;
    shares[k * pixels] = share;
    reached += T(2) * bound * (eps + rest * share);
    edges[(k + 1) * pixels] = k + 1 < bins ? reached - bound : poison + bound;
  }
}

// Raw widths, heights (P, K), slopes (P, K-1) -> knots (3, K+1, P), factors (3K-1, P): softmaxes
// and sigma(raw slope + shift). A thread takes the widths, the heights or the slopes of a pixel.
template <typename T>
__global__ void spline_knots(const T* __restrict__ widths, const T* __restrict__ heights,
                             const T* __restrict__ slopes, double bound, double eps, double shift,
                             T* __restrict__ knots, T* __restrict__ factors, long long pixels,
                             long long bins) {
  const int K = int(bins);
  const T rest = T(1.0 - eps * double(bins));
  for (long long t = first_item(); t < 3 * pixels; t += item_stride()) {
    const long long axis = t / pixels, p = t - axis * pixels;
    const T *own_widths = widths + p * K, *own_heights = heights + p * K;
    const T* raw = slopes + p * (K - 1);
    const T poison = spline_poison(own_widths, K) + spline_poison(own_heights, K) +
                     spline_poison(raw, K - 1);
    T* row = knots + axis * (K + 1) * pixels + p;
    T* factor = factors + axis * K * pixels + p;
    if (axis < 2) {
      const T* sizes = axis == 0 ? own_widths : own_heights;
      spline_edges(sizes, poison, T(bound), T(eps), rest, row, factor, K, pixels);
      continue;
    }
    row[0] = row[K * pixels] = T(1);
    for (int k = 1; k < K; ++k) {
      const T a = raw[k - 1] + poison + T(shift), e = exp(-fabs(a));
      row[k * pixels] = T(eps) + fmax(a, T(0)) + log1p(e);
      factor[(k - 1) * pixels] = (a >= T(0) ? T(1) : e) / (T(1) + e);
    }
  }
}

// x (N, P) -> y (N, P), ldj (N,). A block takes a sample.
template <typename T>
__global__ void spline(const T* __restrict__ x, const T* __restrict__ knots, T* __restrict__ y,
                       T* __restrict__ ldj, long long pixels, long long bins) {
  const long long start = blockIdx.x * pixels;
  T sum = T(0);
  for (int p = threadIdx.x; p < pixels; p += blockDim.x) {
    const T value = x[start + p];
    const SplineBin<T> b = spline_bin(value, knots + p, 0, int(bins), pixels);
    const T s = b.h / b.w, t = b.outside ? T(0) : (value - b.x0) / b.w, m = T(1) - t, u = t * m;
    const T numerator = s * t * t + b.d0 * u;
    const T denominator = s + (b.d0 + b.d1 - T(2) * s) * u;
    const T n = b.d1 * t * t + T(2) * s * u + b.d0 * m * m;
    y[start + p] = b.outside ? value : b.y0 + b.h * (numerator / denominator);
    if (!b.outside) sum += log(n) + T(2) * log(s / denominator);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) ldj[blockIdx.x] = sum;
}

// y (N, P) -> x (N, P): see the definition for the stable root. A block takes a sample.
template <typename T>
__global__ void spline_inverse(const T* __restrict__ y, const T* __restrict__ knots,
                               T* __restrict__ x, long long pixels, long long bins) {
  const long long start = blockIdx.x * pixels;
  for (int p = threadIdx.x; p < pixels; p += blockDim.x) {
    const T value = y[start + p];
    const SplineBin<T> b = spline_bin(value, knots + p, 1, int(bins), pixels);
    const T s = b.h / b.w, r = b.outside ? T(0) : (value - b.y0) / b.h;
    const T difference = b.d0 * (T(1) - r) - b.d1 * r, linear = difference + T(2) * s * r;
    const T q = sqrt(difference * difference + T(4) * s * s * r * (T(1) - r));
    const bool stable = linear >= T(0);
    const T above = stable ? T(2) * s * r : q - linear;
    const T below = stable ? linear + q : T(2) * (s - linear);
    x[start + p] = b.outside ? value : b.x0 + b.w * (above / below);
  }
}

// p_k (c_k - <c, p>) of one raw width or height: p the softmax, c_j the sum of the gradients of the
// inner knots right of bin j. These are `step` apart.
template <typename T>
__device__ T spline_raw_size(const T* inner, int step, const T* __restrict__ shares, int k,
                             int bins, long long pixels) {
  T c = T(0), c_k = T(0), mean = T(0);
  for (int j = bins - 1; j >= 0; --j) {
    mean += c * shares[j * pixels];
    if (j == k) c_k = c;
    if (j > 0) c += inner[(j - 1) * step];
  }
  return shares[k * pixels] * (c_k - mean);
}

// x, dy (N, P), dldj (N,) -> dx (N, P) and the gradients of raw widths, heights (P, K) and slopes
// (P, K-1), summed over samples; scale = 2 B (1 - eps K). A block takes SPLINE_PIXELS pixels, a
// thread one of them in every so many-th sample, with sums of its own: 3 (K-1) blockDim.x numbers,
// which must not exceed SPLINE_SUMS.
template <typename T>
__global__ void spline_backward(const T* __restrict__ x, const T* __restrict__ knots,
                                const T* __restrict__ factors, const T* __restrict__ dy,
                                const T* __restrict__ dldj, double scale, T* __restrict__ dx,
                                T* __restrict__ g_widths, T* __restrict__ g_heights,
                                T* __restrict__ g_slopes, long long samples, long long pixels,
                                long long bins) {
  // (position, value or slope; inner knot; thread): the threads of a warp use different banks,
  // whichever knots they add to
  __shared__ T sums[SPLINE_SUMS];
  const int threads = blockDim.x, thread = threadIdx.x, K = int(bins), inner = K - 1;
  const int rows = 3 * inner, axis = inner * threads;
  const long long first = blockIdx.x * (long long)SPLINE_PIXELS;
  const long long p = first + thread % SPLINE_PIXELS;
  for (int row = 0; row < rows; ++row) sums[row * threads + thread] = T(0);
  if (p < pixels) {
    for (long long n = thread / SPLINE_PIXELS; n < samples; n += threads / SPLINE_PIXELS) {
      const T value = x[n * pixels + p], gy_n = dy[n * pixels + p];
      const SplineBin<T> b = spline_bin(value, knots + p, 0, K, pixels);
      const T gy = b.outside ? T(0) : gy_n, gl = b.outside ? T(0) : dldj[n];
      const T inverse_w = T(1) / b.w, s = b.h * inverse_w;
      const T t = b.outside ? T(0) : (value - b.x0) * inverse_w, m = T(1) - t;
      const T u = t * m, tilt = m - t, bend = b.d0 + b.d1 - T(2) * s;
      const T inverse_d = T(1) / (s + bend * u), r = (s * t * t + b.d0 * u) * inverse_d;
      const T numerator = b.d1 * t * t + T(2) * s * u + b.d0 * m * m;
      const T inverse_n = T(1) / numerator, ratio = s * inverse_d, v = u * inverse_d;
      const T log_slope_t =
          T(2) * ((b.d1 * t + s * tilt - b.d0 * m) * inverse_n - bend * tilt * inverse_d);
      const T g = gy * (ratio * ratio * numerator) + gl * inverse_w * log_slope_t;
      dx[n * pixels + p] = b.outside ? gy_n : g;
      const T gy_hv = gy * b.h * v;
      const T g_d0 = gy_hv * (T(1) - r) + gl * (m * m * inverse_n - T(2) * v);
      const T g_d1 = gl * (t * t * inverse_n - T(2) * v) - gy_hv * r;
      const T total = b.d0 * g_d0 + b.d1 * g_d1 - gl;
      const T g_w = total * inverse_w - t * g, g_h = gy * r - total / b.h;
      // the left knot of a bin moves its edge and shrinks it, the right one widens it
      const int right = b.index * threads + thread, left = right - threads;
      if (b.index > 0) {
        sums[left] -= g + g_w;
        sums[left + axis] += gy - g_h;
        sums[left + 2 * axis] += g_d0;
      }
      if (b.index < inner) {
        sums[right] += g_w;
        sums[right + axis] += g_h;
        sums[right + 2 * axis] += g_d1;
      }
    }
  }
  // all threads' sums of a pixel, in a fixed order, into those of its first thread: those of a
  // warp first, for which its own threads' places serve
  for (int row = 0; row < rows; ++row) {
    T sum = sums[row * threads + thread];
    for (int offset = 16; offset >= SPLINE_PIXELS; offset >>= 1)
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (thread % 32 < SPLINE_PIXELS) sums[row * threads + thread] = sum;
  }
  __syncthreads();
  for (int i = thread; i < rows * SPLINE_PIXELS; i += threads) {
    T* sum = sums + i / SPLINE_PIXELS * threads + i % SPLINE_PIXELS;
    T total = T(0);
    for (int warp = 0; warp < threads; warp += 32) total += sum[warp];
    *sum = total;
  }
  __syncthreads();
  // a thread takes a raw parameter, in their order in memory
  const int here = pixels - first < SPLINE_PIXELS ? int(pixels - first) : SPLINE_PIXELS;
  for (int i = thread; i < 2 * here * K; i += threads) {
    const int heights = i >= here * K, j = i - heights * here * K, pixel = j / K;
    const T g = spline_raw_size(sums + heights * axis + pixel, threads,
                                factors + heights * K * pixels + first + pixel, j % K, K, pixels);
    (heights ? g_heights : g_widths)[first * K + j] = T(scale) * g;
  }
  for (int i = thread; i < here * inner; i += threads) {
    const int pixel = i / inner, k = i % inner;
    const T sigma = factors[(2 * K + k) * pixels + first + pixel];
    g_slopes[first * inner + i] = sums[2 * axis + k * threads + pixel] * sigma;
  }
}
