// What the stand-in's compiler reads before every kernel, compiled once (see standin.py).
//
// The threads of a block are contexts there, and swapcontext asks the system for the signal mask,
// twice per switch. Contexts that have begun are switched by jumps here, as in support/hostcuda.h.

// Some compilers define this by themselves: a jump to another stack is then taken for an error.
#undef _FORTIFY_SOURCE

#include <setjmp.h>
#include <ucontext.h>

struct JumpingContext : ucontext_t {
  jmp_buf place;       // where it waits, if it has begun
  bool begun = false;  // a context that was entered is not entered again
};

inline int getcontext(JumpingContext* context) {
  context->begun = false;
  return getcontext(static_cast<ucontext_t*>(context));
}

inline int swapcontext(JumpingContext* from, const JumpingContext* to) {
  if (_setjmp(from->place)) return 0;
  from->begun = true;
  if (to->begun) _longjmp(const_cast<JumpingContext*>(to)->place, 1);
  return setcontext(to);
}

#define ucontext_t JumpingContext
#define HOSTCUDA_CUPY
#include "hostcuda.h"
#undef ucontext_t
