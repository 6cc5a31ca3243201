// What all kernels share. See source.py for the conventions.

// Where this thread starts in a loop over items, and how far apart its items are.
__device__ inline long long first_item() {
  return blockIdx.x * (long long)blockDim.x + threadIdx.x;
}
__device__ inline long long item_stride() { return gridDim.x * (long long)blockDim.x; }

// A number that lives on the device (`at`), or one that the host knew at launch.
__device__ inline double value(const double* at, double fixed) { return at ? *at : fixed; }
__device__ inline unsigned long long value(const unsigned long long* at, long long fixed) {
  return at ? *at : (unsigned long long)fixed;
}

// Four numbers that are read at once.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T a, b, c, d;
};

// A thread's sum: of runs of 16 numbers, in double precision, which many cards have little of.
template <typename T>
struct Sum {
  double of_runs = 0.0;
  T run = T(0);
  int length = 0;
  __device__ void add(T v) {
    run += v;
    if (++length < 16) return;
    of_runs += double(run);
    run = T(0);
    length = 0;
  }
  __device__ double total() const { return of_runs + double(run); }
};

// The sum of v over the block, to every thread of it. All threads must come here.
template <typename T>
__device__ T block_sum(T v) {
  __shared__ T part[32];
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  __syncthreads();  // an earlier sum may still be read
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
  __syncthreads();
  T sum = T(0);
  for (unsigned int warp = 0; warp < (blockDim.x + 31) / 32; ++warp) sum += part[warp];
  return sum;
}

// Whether this block is the last of so many to come here: it then sees what the others stored
// before. *arrived is 0 before the launch and 0 again after it. All threads must come here.
__device__ inline bool last_block(unsigned int* arrived, long long blocks) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {  // for the whole block
    __threadfence();       // what the block stored is seen before its arrival
    last = atomicAdd(arrived, 1u) == blocks - 1;
    if (last) {
      *arrived = 0u;
      __threadfence();  // what the others stored is read after this
    }
  }
  __syncthreads();
  return last;
}

// Adds `sum` up over the blocks: true in the threads of the last of them, where `sum` is then the
// total. partial: one number per block. All threads must come here.
__device__ inline bool sum_of_all(double& sum, double* partial, unsigned int* arrived) {
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
  if (!last_block(arrived, gridDim.x)) return false;
  sum = 0.0;
  for (long long i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += partial[i];
  sum = block_sum(sum);
  return true;
}
