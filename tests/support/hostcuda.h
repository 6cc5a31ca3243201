// As much of CUDA C++ as the kernels of snfnp/ops use, for one CPU thread and g++.
//
// Blocks run one after another. The threads of a block are fibers: one runs until it waits at a
// barrier or a shuffle, or ends. Every warp runs as far as it can before the next one starts, so
// that a missing barrier shows; launches go through blocks, warps and lanes forwards or backwards,
// and a kernel whose result depends on an order that CUDA does not promise gives two results.
// Where lanes of a warp, or threads of a block, do not all come to the same barrier, that is an
// error: CUDA would hang, or worse.
//
// Shared arrays are static ones (host_kernels.py rewrites their declarations) that are filled with
// 0xff bytes, NaN, when a block first reaches them: on a GPU they may hold anything then.

// Some compilers define this by themselves: a jump to another stack is then taken for an error.
#undef _FORTIFY_SOURCE

#include <math.h>  // with g++ this declares exp(float), … beside exp(double), as CUDA does
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

struct Index {
  unsigned int x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace hostcuda {

constexpr unsigned int kWarp = 32;
constexpr size_t kStack = 64 * 1024;  // of a fiber; the sanitizers need some of it
// Whether fibers that have begun are switched by jumps, which the AddressSanitizer does not follow.
// swapcontext asks the system for the signal mask, twice per switch.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kJumps = false;
#else
constexpr bool kJumps = true;
#endif

enum class State { kReady, kAtBarrier, kAtShuffle, kEnded };

struct Fiber {
  ucontext_t context;
  jmp_buf place;       // where it waits, if it has begun
  bool begun = false;  // a context that was entered is not entered again
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state;
  int line;                         // of the barrier or shuffle that it waits at
  bool odd;                         // whether it has come to an odd number of shuffles
  alignas(8) char exchanged[2][8];  // what it gave to the last two of them
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static jmp_buf scheduler_place;
static Fiber* running;       // nullptr while threads run without fibers
static void (*kernel)();     // one thread's work
static const void* closure;  // … and its arguments
static std::vector<const void*> poisoned;
static char error[200];

inline bool fail(const char* what, int line, int other_line) {
  if (!error[0])
    snprintf(error, sizeof error, "%s in block %u: lines %d and %d (0: at the end)", what,
             blockIdx.x, line, other_line);
  return false;
}

// From a fiber to the scheduler, and back where the fiber is resumed.
inline void leave() {
  if (!kJumps)
    swapcontext(&running->context, &scheduler);
  else if (!_setjmp(running->place))
    _longjmp(scheduler_place, 1);
}

inline void wait(State state, int line) {
  if (!running) {
    // other threads of this block have ended without coming here
    fail("divergent barrier", line, 0);
    return;
  }
  running->state = state;
  running->line = line;
  leave();
}

inline void enter() {
  for (;;) {  // a fiber that has ended may start again
    kernel();
    running->state = State::kEnded;
    running->line = 0;
    leave();
  }
}

inline void start(unsigned int thread) {
  Fiber& fiber = fibers[thread];
  if (!fiber.begun || fiber.state != State::kEnded) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, enter, 0);
    fiber.begun = false;
  }
  fiber.state = State::kReady;
  fiber.odd = false;
}

inline void resume(unsigned int thread) {
  running = &fibers[thread];
  threadIdx.x = thread;
  const bool begun = running->begun;
  running->begun = true;
  if (!kJumps) {
    swapcontext(&scheduler, &running->context);
  } else if (!_setjmp(scheduler_place)) {
    if (begun) _longjmp(running->place, 1);
    setcontext(&running->context);
  }
  running = nullptr;
}

// The thread that is number i of n in the present order.
static bool backwards;
inline unsigned int in_order(unsigned int i, unsigned int n) { return backwards ? n - 1 - i : i; }

// Runs the lanes of a warp until all of them wait at a barrier or have ended.
inline bool run_warp(unsigned int warp) {
  Fiber* lanes = &fibers[warp * kWarp];
  do {
    for (unsigned int i = 0; i < kWarp; ++i) {
      const unsigned int lane = in_order(i, kWarp);
      if (lanes[lane].state == State::kReady) resume(warp * kWarp + lane);
    }
    for (unsigned int lane = 1; lane < kWarp; ++lane)
      if (lanes[lane].state != lanes[0].state || lanes[lane].line != lanes[0].line)
        return fail("divergent warp", lanes[0].line, lanes[lane].line);
    if (lanes[0].state == State::kAtShuffle)
      for (unsigned int lane = 0; lane < kWarp; ++lane) lanes[lane].state = State::kReady;
  } while (lanes[0].state == State::kReady);
  return true;
}

inline bool run_fibers() {
  const unsigned int warps = blockDim.x / kWarp;
  do {
    for (unsigned int i = 0; i < warps; ++i)
      if (!run_warp(in_order(i, warps))) return false;
    for (unsigned int thread = 0; thread < blockDim.x; thread += kWarp)
      if (fibers[thread].state != fibers[0].state || fibers[thread].line != fibers[0].line)
        return fail("divergent barrier", fibers[0].line, fibers[thread].line);
    if (fibers[0].state == State::kAtBarrier)
      for (unsigned int thread = 0; thread < blockDim.x; ++thread)
        fibers[thread].state = State::kReady;
  } while (fibers[0].state == State::kReady);
  return true;
}

// Whether the first thread comes to a barrier says whether the block needs fibers.
inline bool run_block() {
  poisoned.clear();
  const unsigned int first = in_order(0, blockDim.x);
  start(first);
  resume(first);
  if (fibers[first].state != State::kEnded) {
    for (unsigned int thread = 0; thread < blockDim.x; ++thread)
      if (thread != first) start(thread);
    return run_fibers();
  }
  for (unsigned int i = 1; i < blockDim.x; ++i) {
    threadIdx.x = in_order(i, blockDim.x);
    kernel();
  }
  return !error[0];
}

// Runs body() for every thread of every block; what went wrong, or nullptr.
template <typename Body>
const char* launch(unsigned int blocks, unsigned int threads, bool backwards_, const Body& body) {
  error[0] = 0;
  backwards = backwards_;
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  closure = &body;
  kernel = [] { (*static_cast<const Body*>(closure))(); };
  if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
  for (unsigned int i = 0; i < blocks; ++i) {
    blockIdx.x = in_order(i, blocks);
    if (!run_block()) break;
  }
  return error[0] ? error : nullptr;
}

template <typename Array>
void poison(Array& shared) {
  if (std::find(poisoned.begin(), poisoned.end(), &shared) != poisoned.end()) return;
  poisoned.push_back(&shared);
  memset(&shared, 0xff, sizeof shared);
}

template <typename T>
T shuffle_xor(unsigned int mask, T value, unsigned int distance, int line) {
  static_assert(sizeof(T) <= 8, "one register or two");
  if (mask != 0xffffffffu || distance >= kWarp) fail("shuffle of other than a warp", line, line);
  if (!running) {
    wait(State::kAtShuffle, line);
    return value;
  }
  // Two slots in turn: all lanes have read one of them before any of them comes to it again.
  Fiber& self = *running;
  self.odd = !self.odd;
  const bool slot = self.odd;
  memcpy(self.exchanged[slot], &value, sizeof value);
  const unsigned int other = threadIdx.x ^ distance;
  wait(State::kAtShuffle, line);
  memcpy(&value, fibers[other].exchanged[slot], sizeof value);
  return value;
}

}  // namespace hostcuda

#define __syncthreads() hostcuda::wait(hostcuda::State::kAtBarrier, __LINE__)
#define __shfl_xor_sync(mask, value, distance) \
  hostcuda::shuffle_xor(mask, value, distance, __LINE__)
#define __threadfence()

inline unsigned int atomicAdd(unsigned int* address, unsigned int value) {
  const unsigned int old = *address;
  *address += value;
  return old;
}
