// Batches of training images, and what is done to their values before a flow takes them.

#include "../gpu/common.cuh"
#include "../random/philox.cuh"

// Dequantise, scale, logit, with the log-Jacobian of each sample. A block per sample of
// `dimension` values. Both image + u and levels − (image + u) are whole multiples of 2^-32, each of
// which is rounded once: 255 + u would be 256 in single precision. The noise is made of the key's
// words from `first_word` on.
template <typename T>
__global__ void preprocess(const unsigned char* __restrict__ images, T* __restrict__ x,
                           T* __restrict__ ldj, const unsigned long long* step_at, long long step,
                           long long stream, long long seed, long long first_word, double alpha,
                           double levels, double constant, long long dimension) {
  const unsigned long long step_ = value(step_at, step);
  const long long start = blockIdx.x * dimension, stop = start + dimension;
  const unsigned long long top = (unsigned long long)levels << 32;
  const T least = T(alpha), scale = T(1.0 - 2.0 * alpha), all = T(levels), each = T(constant);
  Sum<T> terms;
  for (long long block = (first_word + start) / 4 + threadIdx.x; 4 * block < first_word + stop;
       block += blockDim.x) {
    const Words four = philox(block, step_, stream, seed);
    for (int lane = 0; lane < 4; ++lane) {
      const long long i = 4 * block + lane - first_word;
      if (i < start || i >= stop) continue;
      const unsigned long long noisy = ((unsigned long long)images[i] << 32) + word(four, lane);
      const T log_s = log(least + scale * (T(noisy) * T(0x1p-32) / all));
      const T log_1_s = log(least + scale * (T(top - noisy) * T(0x1p-32) / all));
      x[i] = log_s - log_1_s;
      terms.add(each - log_s - log_1_s);
    }
  }
  const double sum = block_sum(terms.total());
  if (threadIdx.x == 0) ldj[blockIdx.x] = T(sum);
}

// Images order[first], order[first + 1], … of (M, H, W, C), a block per image; `change` flips and
// shifts them as `augment` does, by the key's words from `first_word` on. T is not used: images
// are bytes.
template <typename T>
__global__ void gather(const unsigned char* __restrict__ images,
                       const long long* __restrict__ order,
                       const unsigned long long* first_at, long long first,
                       unsigned char* __restrict__ out, long long change,
                       const unsigned long long* step_at, long long step, long long stream,
                       long long seed, long long first_word, long long height, long long width,
                       long long channels) {
  const int h = int(height), w = int(width), c = int(channels), size = h * w * c;
  const unsigned char* image = images + (long long)size * order[value(first_at, first) + blockIdx.x];
  unsigned char* copy = out + (long long)size * blockIdx.x;
  int flipped = 0, down = 0, right = 0;
  if (change) {
    double u[3];
    for (int k = 0; k < 3; ++k) {
      const unsigned long long i = first_word + 3ull * blockIdx.x + k;
      const Words four = philox(i / 4, value(step_at, step), stream, seed);
      u[k] = word(four, int(i % 4)) * 0x1p-32;
    }
    flipped = u[0] < 0.5;
    down = int(floor(3.0 * u[1])) - 1;
    right = int(floor(3.0 * u[2])) - 1;
  }
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    const int channel = i % c, column = i / c % w, row = i / c / w;
    const int y = min(max(row - down, 0), h - 1);
    int x = min(max(column - right, 0), w - 1);
    if (flipped) x = w - 1 - x;
    copy[i] = image[(y * w + x) * c + channel];
  }
}
