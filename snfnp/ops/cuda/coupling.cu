// The affine coupling: images x, h, z (n, pixels, 2 half), s (n, pixels, half). z₁ = x₁ and
// z₂ = x₂ exp(s) + h₁ with s = 2 tanh(h₀/2), where h₀ and h₁ are the even and odd channels of h.
// A block per sample.

// Where item i of a sample's (pixels, half) is in an image: in its first half, its second half is
// `half` further on; in h, h₁ is next to h₀.
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
