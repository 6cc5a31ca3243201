// Philox 4x32-10 (Salmon et al., 2011): see definition.py.

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
