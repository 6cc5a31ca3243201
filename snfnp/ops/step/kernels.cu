// What a training step needs beside its layers: scalars, the log, Adam.

#include "../gpu/common.cuh"

// The entries of the log: see `LogEntry`.
enum {
  SURROGATE = 0,
  RECONSTRUCTION = 1,
  NORM = 2,
  SURROGATE_SUM = 3,
  RECONSTRUCTION_SUM = 4,
  NORM_SUM = 5,
  COUNT = 6,
  DENSITY = 7,
  FAILED = 8
};

// What the host tells a step: by value, so that no host memory has to outlive the call.
template <typename T>
__global__ void set_scalars(unsigned long long* __restrict__ step,
                            unsigned long long* __restrict__ first, T* __restrict__ number,
                            T* __restrict__ lr, long long step_, long long first_, double lr_) {
  if (first_item() > 0) return;
  *step = (unsigned long long)step_;
  *first = (unsigned long long)first_;
  *number = T(step_) + T(1);
  *lr = T(lr_);
}

// The mean of the log-densities (n,), and whether it is finite. One block.
template <typename T>
__global__ void log_density(double* __restrict__ log, const T* __restrict__ density,
                            const double* number_at, double number, long long n) {
  if (log[FAILED] != 0.0) return;
  double sum = 0.0;
  for (long long i = threadIdx.x; i < n; i += blockDim.x) sum += double(density[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    log[DENSITY] = sum / double(n);
    if (!isfinite(log[DENSITY])) log[FAILED] = value(number_at, number);
  }
}

// The figures of a step, of which `error` is the sum over layers, and their sums. One thread.
template <typename T>
__global__ void log_step(T* __restrict__ log, const double* error_at, double error,
                         const double* squares_at, double squares, const double* lam_at,
                         double lam, const double* number_at, double number) {
  if (first_item() > 0 || log[FAILED] != T(0)) return;
  const T norm = sqrt(T(value(squares_at, squares)));
  if (!isfinite(norm)) {
    log[FAILED] = T(value(number_at, number));
    return;
  }
  const T reconstruction = T(value(error_at, error));
  const T surrogate = log[DENSITY] - T(value(lam_at, lam)) * reconstruction;
  log[SURROGATE] = surrogate;
  log[RECONSTRUCTION] = reconstruction;
  log[NORM] = norm;
  log[SURROGATE_SUM] += surrogate;
  log[RECONSTRUCTION_SUM] += reconstruction;
  log[NORM_SUM] += norm;
  log[COUNT] += T(1);
}

// One ascent step; none where `failed` is not 0 or `squares`, the sum of g², is not finite.
template <typename T>
__global__ void adam(T* __restrict__ p, const T* __restrict__ g, T* __restrict__ m,
                     T* __restrict__ v, const double* lr_at, double lr, double beta1, double beta2,
                     double eps, const double* step_at, double step, double clip_norm,
                     const double* failed_at, double failed, const double* __restrict__ squares,
                     long long n) {
  if (value(failed_at, failed) != 0.0 || !isfinite(*squares)) return;
  __shared__ double factors[3];  // double precision: two powers, and the scale of clipping
  if (threadIdx.x < 2) {
    const double top = threadIdx.x == 0 ? value(lr_at, lr) : 1.0;
    const double beta = threadIdx.x == 0 ? beta1 : beta2;
    factors[threadIdx.x] = top / (1.0 - pow(beta, value(step_at, step)));
  } else if (threadIdx.x == 2) {
    factors[2] = fmin(1.0, clip_norm / (sqrt(*squares) + 1e-6));
  }
  __syncthreads();
  const T step_size = T(factors[0]), second = T(factors[1]), scale = T(factors[2]);
  const T b1 = T(beta1), c1 = T(1.0 - beta1), b2 = T(beta2), c2 = T(1.0 - beta2), eps_ = T(eps);
  // All that two items need is on its way before the first of them is computed.
  const long long stride = item_stride();
  for (long long first = first_item(); first < n; first += 2 * stride) {
    T gs[2], ms[2], vs[2], ps[2];
    for (int k = 0; k < 2; ++k) {
      const long long i = first + k * stride;
      if (i >= n) continue;
      gs[k] = g[i];
      ms[k] = m[i];
      vs[k] = v[i];
      ps[k] = p[i];
    }
    for (int k = 0; k < 2; ++k) {
      const long long i = first + k * stride;
      if (i >= n) continue;
      const T gradient = scale * gs[k];
      const T mean = b1 * ms[k] + c1 * gradient;
      const T square = b2 * vs[k] + c2 * gradient * gradient;
      m[i] = mean;
      v[i] = square;
      p[i] = ps[k] + step_size * mean / (sqrt(square * second) + eps_);
    }
  }
}

// Blocks (size, outputs) of flat values, multiplied by matrices (size, size) each; the rest as it is.
// blocks (count, 4): start in values, size, outputs, start in matrices.
template <typename T>
__global__ void apply_block_matrices(const T* __restrict__ values,
                                     const double* __restrict__ matrices,
                                     const long long* __restrict__ blocks, T* __restrict__ out,
                                     long long count, long long add, long long n) {
  for (long long i = first_item(); i < n; i += item_stride()) {
    T turned = values[i];
    for (const long long* block = blocks; block < blocks + 4 * count; block += 4) {
      const long long place = i - block[0], size = block[1], outputs = block[2];
      if (place < 0 || place >= size * outputs) continue;
      const double* row = matrices + block[3] + place / outputs * size;
      const T* column = values + block[0] + place % outputs;
      turned = T(0);
      for (long long k = 0; k < size; ++k) turned += T(row[k]) * column[k * outputs];
      break;
    }
    out[i] = add ? out[i] + turned : turned;
  }
}
