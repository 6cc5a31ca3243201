// Convolutions on channels-last images (N, H, W, C) with kernels (kH, kW, I, O): see
// definition.py. Tap (h, w) of the output at (y, x) sees the input at
// (y + h - kH / 2, x + w - kW / 2), which is 0 outside the image; kH and kW may be even.

#include "../gpu/common.cuh"

// kH kW I ceil(O / 4) that a block of `conv` holds: all of a 3 x 3 kernel from 16 to 16 channels.
constexpr int MOST_TAPS = 576;

// im2col: cols (N, H, W, kH, kW, C) from x (N, H, W, C), which may be strided.
template <typename T>
__global__ void patches(const T* __restrict__ x, long long x_stride_0, long long x_stride_1,
                        long long x_stride_2, long long x_stride_3, T* __restrict__ cols,
                        long long samples, long long height, long long width, long long kh,
                        long long kw, long long channels) {
  const int rows = (int)height, columns = (int)width, c_count = (int)channels;
  const int across = (int)kw, run = across * c_count, taps = (int)kh * run;
  const int top = (int)kh / 2, left = across / 2;
  const long long sample = height * width * taps;
  for (long long t = first_item(); t < samples * sample; t += item_stride()) {
    const long long image = t / sample;
    const int at = (int)(t - image * sample), pixel = at / taps, tap = at % taps;
    const int h = tap / run, w = tap % run / c_count, c = tap % c_count;
    const int y = pixel / columns + h - top, column = pixel % columns + w - left;
    const bool inside = y >= 0 && y < rows && column >= 0 && column < columns;
    cols[t] = inside ? x[image * x_stride_0 + y * x_stride_1 + column * x_stride_2 +
                         c * x_stride_3]
                     : T(0);
  }
}

// z (N, H, W, O) from products (N, H, W, kH, kW, O) of all pixels and all taps.
template <typename T>
__global__ void shift_and_add(const T* __restrict__ products, T* __restrict__ z, long long samples,
                              long long height, long long width, long long kh, long long kw,
                              long long outputs) {
  const int rows = (int)height, columns = (int)width, down = (int)kh, across = (int)kw;
  const int o_count = (int)outputs, taps = down * across, sample = rows * columns * o_count;
  for (long long t = first_item(); t < samples * sample; t += item_stride()) {
    const long long image = t / sample;
    const int at = (int)(t - image * sample), o = at % o_count, pixel = at / o_count;
    const int top = pixel / columns - down / 2, left = pixel % columns - across / 2;
    const T* source = products + image * sample * taps + o;
    T sum = T(0);
    for (int h = 0; h < down; ++h) {
      const int y = top + h;
      if (y < 0 || y >= rows) continue;
      for (int w = 0; w < across; ++w) {
        const int column = left + w;
        if (column < 0 || column >= columns) continue;
        sum += source[((y * columns + column) * taps + h * across + w) * o_count];
      }
    }
    z[t] = sum;
  }
}

template <typename T>
__device__ T weight(const T* k, long long at, long long stride, int o, int outputs) {
  return o < outputs ? k[at + o * stride] : T(0);
}

// z (N, H, W, O) from x (N, H, W, I) and k (kH, kW, I, O), which may be strided: kernels of adjoint
// maps are mirrored views. For kH kW I ceil(O / 4) <= MOST_TAPS. A thread takes one
// pixel and four outputs, so that an input and four weights are two loads; `splits` threads share
// the rows of the kernel, so that more threads hide the latency of loads.
template <typename T>
__global__ void conv(const T* __restrict__ x, const T* __restrict__ k, long long k_stride_0,
                     long long k_stride_1, long long k_stride_2, long long k_stride_3,
                     T* __restrict__ z, long long samples, long long height, long long width,
                     long long kh, long long kw, long long inputs, long long outputs,
                     long long splits) {
  __shared__ Four<T> taps[MOST_TAPS];  // (kH, kW, I, groups of four outputs)
  __shared__ Four<T> sums[256];
  const int rows = (int)height, columns = (int)width, down = (int)kh, across = (int)kw;
  const int i_count = (int)inputs, o_count = (int)outputs, groups = (o_count + 3) / 4;
  for (int j = threadIdx.x; j < down * across * i_count * groups; j += blockDim.x) {
    const int o = j % groups * 4, i = j / groups % i_count, tap = j / (groups * i_count);
    const long long at = tap / across * k_stride_0 + tap % across * k_stride_1 + i * k_stride_2;
    taps[j].a = weight(k, at, k_stride_3, o, o_count);
    taps[j].b = weight(k, at, k_stride_3, o + 1, o_count);
    taps[j].c = weight(k, at, k_stride_3, o + 2, o_count);
    taps[j].d = weight(k, at, k_stride_3, o + 3, o_count);
  }
  __syncthreads();
  const int pixels = rows * columns, parts = (int)splits, lanes = blockDim.x / parts;
  const int part = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const long long sample = (long long)pixels * groups, count = samples * sample;
  for (long long start = blockIdx.x * (long long)lanes; start < count;
       start += gridDim.x * (long long)lanes) {
    const long long t = start + lane, image = t / sample;
    const int at = (int)(t - image * sample), group = at % groups, pixel = at / groups;
    const int top = pixel / columns - down / 2, left = pixel % columns - across / 2;
    const T* source = x + image * pixels * i_count;
    Four<T> sum = {T(0), T(0), T(0), T(0)};
    for (int h = t < count ? part : down; h < down; h += parts) {
      const int row = top + h;
      if (row < 0 || row >= rows) continue;
      for (int w = 0; w < across; ++w) {
        const int column = left + w;
        if (column < 0 || column >= columns) continue;
        const T* values = source + (row * columns + column) * i_count;
        const Four<T>* weights = taps + (h * across + w) * i_count * groups + group;
#pragma unroll 4
        for (int i = 0; i < i_count; ++i) {
          const Four<T> four = weights[i * groups];
          sum.a += values[i] * four.a;
          sum.b += values[i] * four.b;
          sum.c += values[i] * four.c;
          sum.d += values[i] * four.d;
        }
      }
    }
    if (parts > 1) {
      sums[threadIdx.x] = sum;
      __syncthreads();
      for (int other = lane + lanes; part == 0 && other < parts * lanes; other += lanes) {
        sum.a += sums[other].a;
        sum.b += sums[other].b;
        sum.c += sums[other].c;
        sum.d += sums[other].d;
      }
      __syncthreads();
    }
    if (part > 0 || t >= count) continue;
    T* target = z + (image * pixels + pixel) * o_count + 4 * group;
    target[0] = sum.a;
    if (4 * group + 1 < o_count) target[1] = sum.b;
    if (4 * group + 2 < o_count) target[2] = sum.c;
    if (4 * group + 3 < o_count) target[3] = sum.d;
  }
}

// A value of an image row, or the padding beside it.
template <typename T>
__device__ T value_in_row(const T* row, int column, int columns, int stride) {
  return column >= 0 && column < columns ? row[column * stride] : T(0);
}

// Sums over chunks of `chunk` image rows, of which there are N H: parts (chunks, kH kW I O) of
// delta (rows, W, O) times x (rows, W, I). A thread takes four neighbouring taps of an image row,
// which it keeps in registers as it goes along, for one input and one output: an item. A block
// takes `items_each` items, threads of its several slices every slices-th row of its chunk.
template <typename T>
__global__ void conv_weight_grad(const T* __restrict__ delta, const T* __restrict__ x,
                                 T* __restrict__ parts, long long samples, long long chunk,
                                 long long items_each, long long slices, long long height,
                                 long long width, long long kh, long long kw, long long inputs,
                                 long long outputs) {
  __shared__ Four<T> sums[256];
  const int rows = (int)height, columns = (int)width, across = (int)kw;
  const int i_count = (int)inputs, o_count = (int)outputs, quads = (across + 3) / 4;
  const int items = (int)kh * quads * i_count * o_count, each = (int)items_each;
  const int item_blocks = (items + each - 1) / each, size = (int)kh * across * i_count * o_count;
  const long long part = blockIdx.x / item_blocks;
  const long long image_rows = samples * height;
  const long long stop = (part + 1) * chunk < image_rows ? (part + 1) * chunk : image_rows;
  const int slice = threadIdx.x / each;
  const int item = blockIdx.x % item_blocks * each + threadIdx.x % each;
  const int o = item % o_count, i = item / o_count % i_count;
  const int w = item / (o_count * i_count) % quads * 4, h = item / (o_count * i_count * quads);
  const int down = h - (int)kh / 2, left = w - across / 2;
  T a = T(0), b = T(0), c = T(0), d = T(0);
  if (slice < slices && item < items) {
    for (long long row = part * chunk + slice; row < stop; row += slices) {
      const int y = (int)(row % rows) + down;
      if (y < 0 || y >= rows) continue;
      const T* deltas = delta + row * columns * o_count + o;
      const T* source = x + (row + down) * columns * i_count + i;
      T v0 = value_in_row(source, left, columns, i_count);
      T v1 = value_in_row(source, left + 1, columns, i_count);
      T v2 = value_in_row(source, left + 2, columns, i_count);
#pragma unroll 2
      for (int column = 0; column < columns; ++column) {
        const T v3 = value_in_row(source, column + left + 3, columns, i_count);
        const T each_delta = deltas[column * o_count];
        a += each_delta * v0;
        b += each_delta * v1;
        c += each_delta * v2;
        d += each_delta * v3;
        v0 = v1;
        v1 = v2;
        v2 = v3;
      }
    }
  }
  sums[threadIdx.x].a = a;
  sums[threadIdx.x].b = b;
  sums[threadIdx.x].c = c;
  sums[threadIdx.x].d = d;
  __syncthreads();
  if (slice > 0 || item >= items) return;
  for (int s = 1; s < (int)slices; ++s) {
    const Four<T> more = sums[s * each + threadIdx.x];
    a += more.a;
    b += more.b;
    c += more.c;
    d += more.d;
  }
  const int tap = i_count * o_count;
  T* target = parts + part * size + (h * across + w) * tap + i * o_count + o;
  target[0] = a;
  if (w + 1 < across) target[tap] = b;
  if (w + 2 < across) target[2 * tap] = c;
  if (w + 3 < across) target[3 * tap] = d;
}

// out (size,) ← the sum over the `count` rows of parts (or `add`: out plus it). A block takes 32
// columns, each of its warps every so-many-th row.
template <typename T>
__global__ void conv_weight_grad_sum(const T* __restrict__ parts, long long count, T* out,
                                     long long size, long long add) {
  __shared__ double sums[256];
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const long long column = blockIdx.x * 32LL + threadIdx.x % 32;
  T own = T(0);  // of few rows: double precision is slow on many cards
  if (column < size) {
#pragma unroll 4
    for (long long row = warp; row < count; row += warps) own += parts[row * size + column];
  }
  double sum = own;
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || column >= size) return;
  for (int other = 1; other < warps; ++other) sum += sums[other * 32 + threadIdx.x];
  out[column] = T((add ? out[column] : T(0)) + sum);
}
