// Random numbers as a function of (seed, stream, step): elements first_word, …, first_word + n - 1
// of a key's sequence.

#include "../gpu/common.cuh"
#include "../random/philox.cuh"

// 32 bits as a number on [0, 1). In single precision they would round to 1: 24 are kept.
__device__ inline double unit(unsigned int bits, double) { return bits * 0x1p-32; }
__device__ inline float unit(unsigned int bits, float) { return float(bits >> 8) * 0x1p-24f; }

// out[i] = of(the four words of its block, its place among them).
template <typename T, typename Of>
__device__ void draw(T* __restrict__ out, const unsigned long long* step_at, long long step,
                     long long stream, long long seed, long long first_word, long long n, Of of) {
  const unsigned long long step_ = value(step_at, step);
  for (long long block = first_word / 4 + first_item(); 4 * block < first_word + n;
       block += item_stride()) {
    const Words four = philox(block, step_, stream, seed);
    for (int lane = 0; lane < 4; ++lane) {
      const long long i = 4 * block + lane - first_word;
      if (i >= 0 && i < n) out[i] = of(four, lane);
    }
  }
}

template <typename T>
__global__ void uniform(T* __restrict__ out, const unsigned long long* step_at, long long step,
                        long long stream, long long seed, long long first_word, long long n) {
  draw(out, step_at, step, stream, seed, first_word, n,
       [](const Words& four, int lane) { return unit(word(four, lane), T(0)); });
}

// Box-Muller: words 2i and 2i + 1 make elements 2i (cosine) and 2i + 1 (sine).
template <typename T>
__global__ void normal(T* __restrict__ out, const unsigned long long* step_at, long long step,
                       long long stream, long long seed, long long first_word, long long n) {
  draw(out, step_at, step, stream, seed, first_word, n, [](const Words& four, int lane) {
    const int first = lane / 2 * 2;
    const double radius = sqrt(-2.0 * log((double(word(four, first)) + 1.0) * 0x1p-32));
    const double angle = 6.283185307179586477 * (word(four, first + 1) * 0x1p-32);
    return T(radius * (lane == first ? cos(angle) : sin(angle)));
  });
}

// The highest bit of each word as a sign.
template <typename T>
__global__ void rademacher(T* __restrict__ out, const unsigned long long* step_at, long long step,
                           long long stream, long long seed, long long first_word, long long n) {
  draw(out, step_at, step, stream, seed, first_word, n,
       [](const Words& four, int lane) { return word(four, lane) >> 31 ? T(-1) : T(1); });
}
