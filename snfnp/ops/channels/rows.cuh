// How a block goes over rows of channels, such as the pixels of images.
//
// A block takes a tile of up to 32 neighbouring channels, so that what a warp reads lies together,
// and some of the rows. Every tile has the same number of blocks, which share its rows.

const int TILE = 32;

struct Place {
  int width, lanes;            // channels of a tile, rows that a block reads at once
  int column, lane;            // this thread's channel and row among them
  long long tile, group, groups, channels, channel;
  long long first, step;       // of the thread's values in the flat array

  __device__ Place(long long channels_) : channels(channels_) {
    const long long tiles = (channels + TILE - 1) / TILE;
    width = int((channels + tiles - 1) / tiles);
    lanes = blockDim.x / width;
    column = threadIdx.x % width;
    lane = threadIdx.x / width;
    tile = blockIdx.x % tiles;
    group = blockIdx.x / tiles;
    groups = gridDim.x / tiles;
    channel = tile * width + column;
    first = (group * lanes + lane) * channels + channel;
    step = groups * lanes * channels;
  }
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
// a tile they leave their sums in `partial` (groups, S, channels), and the last of them adds them
// up. arrived: a counter for each tile (see `last_block`). All threads must come here.
template <int S, typename T, typename Store>
__device__ void sum_of_rows(T (&sums)[S], const Place& at, T* partial, unsigned int* arrived,
                            Store store) {
  for (int k = 0; k < S; ++k) {
    sums[k] = sum_of_lanes(sums[k], at);
    if (at.groups > 1 && at.leads())
      partial[(at.group * S + k) * at.channels + at.channel] = sums[k];
  }
  if (at.groups > 1) {
    if (!last_block(arrived + at.tile, at.groups)) return;
    for (int k = 0; k < S; ++k) {
      T sum = T(0);
      if (at.takes_part())
        for (long long group = at.lane; group < at.groups; group += at.lanes)
          sum += partial[(group * S + k) * at.channels + at.channel];
      sums[k] = sum_of_lanes(sum, at);
    }
  }
  if (at.leads()) store(at.channel, sums);
}
