// Rows of channels, such as the pixels of images: sums over the rows, a shift and a scale for each
// channel, a bias with ReLU.
//
// A block takes a tile of up to 32 neighbouring channels, so that what a warp reads lies together,
// and some of the rows. The grid holds every tile equally often: that many blocks share its rows.

const int TILE = 32, BATCH = 4;  // BATCH: values that a thread reads before it writes the first

struct Place {
  int width, lanes;            // channels of a tile, rows that a block reads at once
  int column, lane;            // this thread's channel and row among them
  long long tiles, group, groups, channels, channel;
  long long first, step;       // of the thread's values in the flat array

  __device__ Place(long long channels_) : channels(channels_) {
    tiles = (channels + TILE - 1) / TILE;
    width = int((channels + tiles - 1) / tiles);
    lanes = blockDim.x / width;
    column = threadIdx.x % width;
    lane = threadIdx.x / width;
    group = blockIdx.x / tiles;
    groups = gridDim.x / tiles;
    to_tile(blockIdx.x % tiles);
    first = (group * lanes + lane) * channels + channel;
    step = groups * lanes * channels;
  }
  __device__ void to_tile(long long tile) { channel = tile * width + column; }
  // The last tile may be narrower, and the last threads may not fill a row of it.
  __device__ bool takes_part() const { return lane < lanes && channel < channels; }
  __device__ bool leads() const { return lane == 0 && channel < channels; }
};

// The sum of v over a block's lanes, to the first of them. All threads must come here.
template <typename T>
__device__ T sum_of_lanes(T v, const Place& at) {
  __shared__ T part[256];
  part[threadIdx.x] = v;
  __syncthreads();
  for (int rows = at.lanes; rows > 1; rows = (rows + 1) / 2) {
    const int kept = (rows + 1) / 2;
    if (at.lane < rows - kept) part[threadIdx.x] += part[threadIdx.x + kept * at.width];
    __syncthreads();
  }
  return part[threadIdx.x];  // which no other thread reads: the next sum may overwrite it
}

// S sums over all rows, from those of the threads: store(channel, sums). Where several blocks share
// a tile they leave their sums in `partial` (groups, S, channels), and the last of all blocks adds
// them up. All threads must come here.
template <int S, typename T, typename Store>
__device__ void sum_of_rows(T (&sums)[S], Place& at, T* partial, unsigned int* arrived,
                            Store store) {
  for (int k = 0; k < S; ++k) {
    sums[k] = sum_of_lanes(sums[k], at);
    if (at.groups > 1 && at.leads())
      partial[(at.group * S + k) * at.channels + at.channel] = sums[k];
  }
  if (at.groups == 1) {
    if (at.leads()) store(at.channel, sums);
    return;
  }
  if (!last_block(arrived)) return;
  for (long long tile = 0; tile < at.tiles; ++tile) {
    at.to_tile(tile);
    for (int k = 0; k < S; ++k) {
      T sum = T(0);
      if (at.takes_part())
        for (long long group = at.lane; group < at.groups; group += at.lanes)
          sum += partial[(group * S + k) * at.channels + at.channel];
      sums[k] = sum_of_lanes(sum, at);
    }
    if (at.leads()) store(at.channel, sums);
  }
}

// x (size / channels, channels) -> out (channels,)
template <typename T>
__global__ void channel_sum(const T* __restrict__ x, T* __restrict__ out, T* partial,
                            unsigned int* arrived, long long size, long long channels) {
  Place at(channels);
  T sums[1] = {T(0)};
  if (at.takes_part()) {
#pragma unroll 4
    for (long long i = at.first; i < size; i += at.step) sums[0] += x[i];
  }
  sum_of_rows(sums, at, partial, arrived, [=](long long c, const T(&sum)[1]) { out[c] = sum[0]; });
}

// y = (x + sign before) exp(factor s) + after, where null pointers are zeros; and, if there is an
// ldj (samples,), factor · pixels · Σ s for each.
template <typename T>
__global__ void shift_scale(const T* __restrict__ x, double sign, const T* __restrict__ before,
                            double factor, const T* __restrict__ s, const T* __restrict__ after,
                            T* __restrict__ y, T* __restrict__ ldj, long long pixels,
                            long long samples, long long size, long long channels) {
  const Place at(channels);
  if (at.takes_part()) {
    const T scale = exp(T(factor) * s[at.channel]);
    const T first = before ? T(sign) * before[at.channel] : T(0);
    const T last = after ? after[at.channel] : T(0);
#pragma unroll 4
    for (long long i = at.first; i < size; i += at.step) y[i] = (x[i] + first) * scale + last;
  }
  if (!ldj || blockIdx.x > 0) return;
  T sum = T(0);
  for (long long c = threadIdx.x; c < channels; c += blockDim.x) sum += s[c];
  sum = T(factor) * T(pixels) * block_sum(sum);
  for (long long n = threadIdx.x; n < samples; n += blockDim.x) ldj[n] = sum;
}

// For y = (x + sign b) exp(factor s) and its ldj: dx = dy exp(factor s), g_b = sign Σ dx and
// g_s = factor (Σ dy y + pixels Σ dldj). samples = 0: without an ldj.
template <typename T>
__global__ void shift_scale_backward(const T* __restrict__ dy, const T* __restrict__ y,
                                     double sign, double factor, const T* __restrict__ s,
                                     const T* __restrict__ dldj, T* __restrict__ dx,
                                     T* __restrict__ g_b, T* __restrict__ g_s, T* partial,
                                     unsigned int* arrived, long long pixels, long long samples,
                                     long long size, long long channels) {
  Place at(channels);
  T sums[2] = {T(0), T(0)};
  if (at.takes_part()) {
    const T scale = exp(T(factor) * s[at.channel]);
    const long long row = at.group * at.lanes + at.lane, rows = at.groups * at.lanes;
    for (long long n = row; n < samples; n += rows) sums[1] += T(pixels) * dldj[n];
#pragma unroll 4
    for (long long i = at.first; i < size; i += at.step) {
      const T through = dy[i] * scale;
      dx[i] = through;
      sums[0] += through;
      sums[1] += dy[i] * y[i];
    }
  }
  sum_of_rows(sums, at, partial, arrived, [=](long long c, const T(&sum)[2]) {
    g_b[c] = T(sign) * sum[0];
    g_s[c] = T(factor) * sum[1];
  });
}

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
