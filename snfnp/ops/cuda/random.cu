// Philox 4x32-10 (Salmon et al., 2011), and what is made of it. See snfnp/ops/philox.py.

struct Words {
  unsigned int x, y, z, w;
};

__device__ inline unsigned int high_product(unsigned int a, unsigned int b) {
  return (unsigned int)((unsigned long long)a * b >> 32);
}

// The four words of one block of a key's sequence.
__device__ inline Words philox(unsigned long long block, unsigned long long step, long long stream,
                              long long seed) {
  unsigned int c0 = (unsigned int)block, c1 = (unsigned int)step;
  unsigned int c2 = (unsigned int)(step >> 32), c3 = (unsigned int)stream;
  unsigned int k0 = (unsigned int)seed, k1 = (unsigned int)((unsigned long long)seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const unsigned int low0 = 0xD2511F53u * c0, high0 = high_product(0xD2511F53u, c0);
    const unsigned int low1 = 0xCD9E8D57u * c2, high1 = high_product(0xCD9E8D57u, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

__device__ inline unsigned int word(const Words& four, int lane) {
  return lane == 0 ? four.x : lane == 1 ? four.y : lane == 2 ? four.z : four.w;
}

// 32 bits as a number on [0, 1). In single precision they would round to 1: 24 are kept.
__device__ inline double unit(unsigned int bits, double) { return bits * 0x1p-32; }
__device__ inline float unit(unsigned int bits, float) { return float(bits >> 8) * 0x1p-24f; }

template <typename T>
__global__ void uniform(T* __restrict__ out, const unsigned long long* step_at, long long step,
                        long long stream, long long seed, long long n) {
  const unsigned long long step_ = value(step_at, step);
  for (long long block = first_item(); 4 * block < n; block += item_stride()) {
    const Words four = philox(block, step_, stream, seed);
    for (int lane = 0; lane < 4; ++lane)
      if (4 * block + lane < n) out[4 * block + lane] = unit(word(four, lane), T(0));
  }
}

// Box-Muller: words 2i and 2i + 1 make elements 2i (cosine) and 2i + 1 (sine).
template <typename T>
__global__ void normal(T* __restrict__ out, const unsigned long long* step_at, long long step,
                       long long stream, long long seed, long long n) {
  const unsigned long long step_ = value(step_at, step);
  for (long long block = first_item(); 4 * block < n; block += item_stride()) {
    const Words four = philox(block, step_, stream, seed);
    for (int lane = 0; lane < 4; lane += 2) {
      const long long i = 4 * block + lane;
      const double radius = sqrt(-2.0 * log((double(word(four, lane)) + 1.0) * 0x1p-32));
      const double angle = 6.283185307179586477 * (word(four, lane + 1) * 0x1p-32);
      if (i < n) out[i] = T(radius * cos(angle));
      if (i + 1 < n) out[i + 1] = T(radius * sin(angle));
    }
  }
}

// Dequantise, scale, logit, with the log-Jacobian of each sample. A block per sample of
// `dimension` values, in double precision: 255 + u would round to 256 in single.
template <typename T>
__global__ void preprocess(const unsigned char* __restrict__ images, T* __restrict__ x,
                           T* __restrict__ ldj, const unsigned long long* step_at, long long step,
                           long long stream, long long seed, double alpha, double levels,
                           double constant, long long dimension) {
  const unsigned long long step_ = value(step_at, step);
  const long long start = blockIdx.x * dimension, stop = start + dimension;
  double sum = 0.0;
  for (long long block = start / 4 + threadIdx.x; 4 * block < stop; block += blockDim.x) {
    const Words four = philox(block, step_, stream, seed);
    for (int lane = 0; lane < 4; ++lane) {
      const long long i = 4 * block + lane;
      if (i < start || i >= stop) continue;
      const double noisy = images[i] + word(four, lane) * 0x1p-32;
      const double scale = 1.0 - 2.0 * alpha;
      const double log_s = log(alpha + scale * (noisy / levels));
      const double log_1_s = log(alpha + scale * ((levels - noisy) / levels));
      x[i] = T(log_s - log_1_s);
      sum += constant - log_s - log_1_s;
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) ldj[blockIdx.x] = T(sum);
}

// Images order[first], order[first + 1], … of (M, H, W, C), a block per image; `change` flips and
// shifts them as snfnp/ops/augment.py does. T is not used: images are bytes.
template <typename T>
__global__ void gather(const unsigned char* __restrict__ images,
                       const long long* __restrict__ order, long long first,
                       unsigned char* __restrict__ out, long long change,
                       const unsigned long long* step_at, long long step, long long stream,
                       long long seed, long long height, long long width, long long channels) {
  const int h = int(height), w = int(width), c = int(channels), size = h * w * c;
  const unsigned char* image = images + (long long)size * order[first + blockIdx.x];
  unsigned char* copy = out + (long long)size * blockIdx.x;
  int flipped = 0, down = 0, right = 0;
  if (change) {
    double u[3];
    for (int k = 0; k < 3; ++k) {
      const unsigned long long i = 3ull * blockIdx.x + k;
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
