// How a block goes over rows of channels, such as the pixels of images.
//
// A block takes a tile of up to 32 neighbouring channels, so that what a warp reads lies together,
// and some of the rows. Every tile has the same number of blocks, which share its rows.

const int TILE = 32;

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
