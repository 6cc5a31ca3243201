// What a training step needs beside its layers: dials, the log, the gradient's norm, Adam.
// The log's layout is snfnp/ops/numpy_steps.py's.

enum { SURROGATE, RECONSTRUCTION, NORM, SUMS, COUNT = 6, DENSITY, FAILED };

// What the host tells a step: by value, so that no memory of the host's has to outlive the call.
template <typename T>
__global__ void set_dials(unsigned long long* __restrict__ step, T* __restrict__ number,
                          T* __restrict__ lr, T* __restrict__ lam, long long step_, double lr_,
                          double lam_) {
  if (first_item() > 0) return;
  *step = (unsigned long long)step_;
  *number = T(step_) + T(1);
  *lr = T(lr_);
  *lam = T(lam_);
}

// The mean of the log-densities (n,), and whether it is finite. One block.
template <typename T>
__global__ void watch(double* __restrict__ log, const T* __restrict__ density,
                      const double* step_at, double step, long long n) {
  if (log[FAILED] != 0.0) return;
  double sum = 0.0;
  for (long long i = threadIdx.x; i < n; i += blockDim.x) sum += double(density[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    log[DENSITY] = sum / double(n);
    if (!isfinite(log[DENSITY])) log[FAILED] = value(step_at, step);
  }
}

// The figures of a step, and their sums. One thread.
template <typename T>
__global__ void record(T* __restrict__ log, const double* reconstruction_at,
                       double reconstruction, const double* squares_at, double squares,
                       const double* lam_at, double lam, const double* step_at, double step) {
  if (first_item() > 0 || log[FAILED] != T(0)) return;
  const T norm = sqrt(T(value(squares_at, squares)));
  if (!isfinite(norm)) {
    log[FAILED] = T(value(step_at, step));
    return;
  }
  const T error = T(value(reconstruction_at, reconstruction));
  const T surrogate = log[DENSITY] - T(value(lam_at, lam)) * error;
  log[SURROGATE] = surrogate;
  log[RECONSTRUCTION] = error;
  log[NORM] = norm;
  log[SUMS + SURROGATE] += surrogate;
  log[SUMS + RECONSTRUCTION] += error;
  log[SUMS + NORM] += norm;
  log[COUNT] += T(1);
}

// Σ g² in double precision. partial: one number per block.
template <typename T>
__global__ void sum_squares(const T* __restrict__ g, double* __restrict__ partial,
                            double* __restrict__ total, unsigned int* arrived, long long n) {
  double sum = 0.0;
  for (long long i = first_item(); i < n; i += item_stride()) sum += double(g[i]) * double(g[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
  if (!last_block(arrived)) return;
  sum = 0.0;
  for (long long i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}

// One ascent step; `squares` and `failed` say whether there is anything to climb.
template <typename T>
__global__ void adam(T* __restrict__ p, const T* __restrict__ g, T* __restrict__ m,
                     T* __restrict__ v, const double* lr_at, double lr, double beta1, double beta2,
                     double eps, const double* step_at, double step, const double* scale_at,
                     double scale, const double* failed_at, double failed,
                     const double* __restrict__ squares, long long n) {
  if (value(failed_at, failed) != 0.0 || !isfinite(*squares)) return;
  __shared__ double factors[2];  // a power in double precision, once per block
  if (threadIdx.x == 0) {
    factors[0] = value(lr_at, lr) / (1.0 - pow(beta1, value(step_at, step)));
    factors[1] = 1.0 / (1.0 - pow(beta2, value(step_at, step)));
  }
  __syncthreads();
  const T step_size = T(factors[0]), second = T(factors[1]), scale_ = T(value(scale_at, scale));
  const T b1 = T(beta1), c1 = T(1.0 - beta1), b2 = T(beta2), c2 = T(1.0 - beta2), eps_ = T(eps);
  for (long long i = first_item(); i < n; i += item_stride()) {
    const T gradient = scale_ * g[i];
    const T mean = b1 * m[i] + c1 * gradient;
    const T square = b2 * v[i] + c2 * gradient * gradient;
    m[i] = mean;
    v[i] = square;
    p[i] += step_size * mean / (sqrt(square * second) + eps_);
  }
}
