// Runs the kernels on the CPU: each thread of a block is a fiber, each block runs after the one before.
//
// Schedule: a thread runs until it ends or waits; a fiber whose thread ended takes up the next thread, so a
// kernel without barriers needs a single fiber and no switch. A warp runs ahead until all of its lanes wait
// at the block's barrier or have ended, which is the order that shows missing barriers best. A seed other
// than 0 shuffles the order of blocks, warps and lanes.
// Divergence: a barrier or a warp collective that some of its threads never reach is reported with the places
// where the threads are. An exited thread never counts as present, although sm_70 and later would let some
// such code pass.
// Not seen: memory ordering, uninitialised static __shared__ arrays (dynamic shared memory is filled with
// 0xFF before each block), limits on registers.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 WARP = 32, MAX_THREADS = 1024, MEETINGS = 4, FIBERS_PER_MAPPING = 64;
constexpr u32 SHARED_BYTES = 227 * 1024, SHARED_GUARD = 256;
// An odd number of cache lines, so that the stacks of a block do not compete for the same sets of the cache.
constexpr size_t STACK_BYTES = 512 * 1024 + 13 * 64;

// A line of the kernel's text: as a default argument it is the place of the call.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Rendezvous of the lanes of `mask` at a warp collective. The values alternate between two banks, because a
// lane may bring its next value before another one has read the last.
struct Meeting {
  u32 mask, arrived, unread, turn;
  const char* kind;
  u64 value[2][WARP];
};
struct Warp {
  u32 lanes, ready, exited;
  Meeting meetings[MEETINGS];
};
struct Fiber {
  jmp_buf context;
  const void* stack;
  size_t stack_bytes;
  bool started;
  Fiber* next_idle;
  void* sanitizer_stack;
};
struct Thread {
  uint3 index;
  u32 lane;
  Warp* warp;
  Fiber* fiber;
  const char* waits_at;  // null while it runs
  Site site;
  Meeting* meeting;      // null at a barrier
};

inline Thread threads[MAX_THREADS];
inline Warp warps[MAX_THREADS / WARP];
inline u32 warp_order[MAX_THREADS / WARP];
inline u32 thread_count, warp_count, finished, warp_turn, lane_turn;
inline Thread* current;
inline uint3 block_index;
inline dim3 grid_size, block_size;

inline u32 barrier_arrived, barrier_votes[2], barrier_turn;
inline const char* barrier_kind;

inline Fiber main_fiber, fibers[MAX_THREADS];
inline Fiber *idle_fibers, *left_fiber;
inline u32 fiber_count;

inline void (*body)(const void*);
inline const void* body_params;
inline u64 seed, random_state;
inline bool failed;
inline char report[640];
alignas(1024) inline unsigned char shared_memory[SHARED_BYTES + SHARED_GUARD];

inline u32 draw(u32 below) {
  random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
  return (u32)((random_state >> 33) % below);
}

// ---- fibers -----------------------------------------------------------------------------------------------

void run_threads();

[[noreturn]] inline void jump(Fiber* to) {
#if defined(__SANITIZE_ADDRESS__)
  void** kept = left_fiber ? &left_fiber->sanitizer_stack : nullptr;
  __sanitizer_start_switch_fiber(kept, to->stack, to->stack_bytes);
#endif
  if (to->started) _longjmp(to->context, 1);
  static ucontext_t start;
  to->started = true;
  getcontext(&start);
  start.uc_stack.ss_sp = const_cast<void*>(to->stack);
  start.uc_stack.ss_size = to->stack_bytes;
  start.uc_link = nullptr;
  makecontext(&start, run_threads, 0);
  setcontext(&start);
  abort();
}
inline void arrive(Fiber* self) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(self->sanitizer_stack, &stack, &bytes);
  if (left_fiber == &main_fiber) main_fiber.stack = stack, main_fiber.stack_bytes = bytes;
#else
  (void)self;
#endif
}
inline void switch_fibers(Fiber* from, Fiber* to) {
  left_fiber = from;
  if (!_setjmp(from->context)) jump(to);
  arrive(from);
}
inline Fiber* take_fiber() {
  if (!idle_fibers) {
    void* stacks = mmap(nullptr, STACK_BYTES * FIBERS_PER_MAPPING, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) return nullptr;
    for (u32 i = 0; i < FIBERS_PER_MAPPING; ++i) {
      Fiber& fiber = fibers[fiber_count++];
      fiber.stack = (char*)stacks + i * STACK_BYTES, fiber.stack_bytes = STACK_BYTES;
      fiber.next_idle = idle_fibers, idle_fibers = &fiber;
    }
  }
  Fiber* fiber = idle_fibers;
  idle_fibers = fiber->next_idle;
  return fiber;
}
// After a block that did not end: what its threads left on their stacks is dropped.
inline void discard_fibers() {
  idle_fibers = nullptr;
  for (u32 i = 0; i < fiber_count; ++i) {
    fibers[i].started = false, fibers[i].sanitizer_stack = nullptr;
    fibers[i].next_idle = idle_fibers, idle_fibers = &fibers[i];
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fibers[i].stack, fibers[i].stack_bytes);
#endif
  }
  for (Thread& thread : threads) thread.fiber = nullptr;
}

// The launch itself goes on, and fails, saying why.
inline Fiber* give_up(const char* why) {
  failed = true;
  snprintf(report, sizeof report, "block (%u, %u, %u): %s", block_index.x, block_index.y, block_index.z, why);
  return &main_fiber;
}

// ---- schedule ---------------------------------------------------------------------------------------------

inline void next_warp() {
  if (++warp_turn >= warp_count) {
    warp_turn = 0;
    for (u32 i = warp_count - 1; seed && i > 0; --i) {
      u32 j = draw(i + 1), other = warp_order[j];
      warp_order[j] = warp_order[i], warp_order[i] = other;
    }
  }
  if (seed) lane_turn = draw(WARP);
}
// The fiber that runs on: that of the next thread which is ready, or the launch itself when none is.
inline Fiber* next_fiber() {
  for (u32 tried = 0; tried <= warp_count; ++tried, next_warp()) {
    Warp& warp = warps[warp_order[warp_turn]];
    if (!warp.ready) continue;
    u32 turned = lane_turn ? warp.ready >> lane_turn | warp.ready << (WARP - lane_turn) : warp.ready;
    u32 lane = (__builtin_ctz(turned) + lane_turn) % WARP;
    warp.ready &= ~(1u << lane);
    current = &threads[warp_order[warp_turn] * WARP + lane];
    if (!current->fiber) current->fiber = take_fiber();
    return current->fiber ? current->fiber : give_up("there is no memory for the stacks of its threads");
  }
  return &main_fiber;
}
// What a fiber does all its life: end a thread, take up another.
inline void run_threads() {
  Fiber* self = current->fiber;
  arrive(self);
  for (;;) {
    body(body_params);
    current->warp->exited |= 1u << current->lane;
    current->fiber = nullptr;
    ++finished;
    self->next_idle = idle_fibers, idle_fibers = self;
    Fiber* next = next_fiber();
    if (next != self) switch_fibers(self, next);
  }
}
inline void wait(const char* kind, Site site, Meeting* meeting) {
  Thread* self = current;
  self->waits_at = kind, self->site = site, self->meeting = meeting;
  switch_fibers(self->fiber, next_fiber());
  self->waits_at = nullptr;
}

// ---- reports ----------------------------------------------------------------------------------------------

inline void say(const char* text) { strncat(report, text, sizeof report - strlen(report) - 1); }
inline void say(const char* format, u32 number) {
  char text[64];
  snprintf(text, sizeof text, format, number);
  say(text);
}
inline void say_place(const char* kind, Site site) {
  const char* slash = strrchr(site.file, '/');
  say(kind), say(" at "), say(slash ? slash + 1 : site.file), say(":%u", (u32)site.line);
}
inline void say_block() {
  report[0] = 0;
  say("block (%u, ", block_index.x), say("%u, ", block_index.y), say("%u): ", block_index.z);
}
inline u32 number_of(const Thread* thread) { return (u32)(thread - threads); }
inline bool has_exited(const Thread* thread) { return thread->warp->exited >> thread->lane & 1; }

[[noreturn]] inline void abandon_block() {
  failed = true;
  left_fiber = nullptr;
  jump(&main_fiber);
}
[[noreturn]] inline void refuse(const char* kind, Site site, const char* problem) {
  say_block(), say_place(kind, site), say(": thread %u ", number_of(current)), say(problem);
  abandon_block();
}
// Whether `thread` is one that `waiting` waits for.
inline bool is_missed(const Thread* thread, const Thread* waiting) {
  const Meeting* meeting = waiting->meeting;
  if (!meeting) return has_exited(thread) || thread->meeting;
  return thread->warp == waiting->warp && (meeting->mask & ~meeting->arrived) >> thread->lane & 1;
}
inline void explain_deadlock() {
  const Thread* waiting = nullptr;
  // A collective first: it is what keeps the others from the barrier.
  for (u32 i = 0; i < thread_count; ++i) {
    const Thread* thread = &threads[i];
    if (!has_exited(thread) && (!waiting || (thread->meeting && !waiting->meeting))) waiting = thread;
  }
  const Thread* missed = nullptr;
  for (u32 i = 0; i < thread_count && !missed; ++i)
    if (is_missed(&threads[i], waiting)) missed = &threads[i];
  say_block(), say_place(waiting->waits_at, waiting->site);
  say(" in divergent code: thread %u waits", number_of(waiting));
  if (!missed) return;
  say(", thread %u ", number_of(missed));
  if (has_exited(missed)) return say("has exited");
  say("waits elsewhere: "), say_place(missed->waits_at, missed->site);
}

// ---- barriers and collectives -----------------------------------------------------------------------------

// Threads for which the predicate holds, once all threads of the block are here.
inline u32 barrier(bool predicate, const char* kind, Site site) {
  u32 turn = barrier_turn;
  if (barrier_arrived && strcmp(barrier_kind, kind))
    refuse(kind, site, "meets threads at another kind of barrier");
  barrier_kind = kind;
  barrier_votes[turn] += predicate;
  if (++barrier_arrived < thread_count) {
    wait(kind, site, nullptr);
    return barrier_votes[turn];
  }
  barrier_arrived = 0, barrier_turn = turn ^ 1, barrier_votes[turn ^ 1] = 0;
  for (u32 w = 0; w < warp_count; ++w) warps[w].ready = warps[w].lanes;
  current->warp->ready &= ~(1u << current->lane);
  return barrier_votes[turn];
}
inline Meeting* find_meeting(u32 mask) {
  Warp* warp = current->warp;
  for (Meeting& meeting : warp->meetings)
    if (meeting.mask == mask) return &meeting;
  for (Meeting& meeting : warp->meetings)
    if (!meeting.arrived && !meeting.unread) return meeting.mask = mask, &meeting;
  return nullptr;
}
// The values that the lanes of `mask` bring, once all of them are here.
inline const u64* meet(u32 mask, u64 value, const char* kind, Site site) {
  u32 me = 1u << current->lane;
  if (!(mask & me)) refuse(kind, site, "is not in its own mask");
  mask &= current->warp->lanes;
  Meeting* meeting = find_meeting(mask);
  if (!meeting) refuse(kind, site, "opens one collective too many in its warp");
  if (meeting->arrived && strcmp(meeting->kind, kind))
    refuse(kind, site, "meets lanes at another kind of collective");
  u64* values = meeting->value[meeting->turn];
  values[current->lane] = value;
  meeting->kind = kind;
  meeting->arrived |= me, meeting->unread |= me;
  if (meeting->arrived == mask) {
    meeting->arrived = 0, meeting->turn ^= 1;
    current->warp->ready |= mask & ~me;
  } else {
    wait(kind, site, meeting);
  }
  meeting->unread &= ~me;
  return values;
}
// The value of lane `source`; all bits set where that lane takes no part.
template <class T> T exchange(u32 mask, T value, int source, const char* kind, Site site) {
  static_assert(!__is_class(T) && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles take 4 or 8 byte scalars");
  u64 word = 0;
  memcpy(&word, &value, sizeof(T));
  word = meet(mask, word, kind, site)[source & 31];
  if (!((mask & current->warp->lanes) >> (source & 31) & 1)) word = ~0ull;
  memcpy(&value, &word, sizeof(T));
  return value;
}
inline u32 ballot(u32 mask, bool predicate, const char* kind, Site site) {
  const u64* values = meet(mask, predicate, kind, site);
  u32 votes = 0;
  for (u32 lane = 0; lane < WARP; ++lane)
    if (mask & current->warp->lanes & 1u << lane) votes |= (u32)values[lane] << lane;
  return votes;
}

// ---- launch -----------------------------------------------------------------------------------------------

inline void fault(int signal) {
  say_block(), say("thread %u: ", number_of(current));
  say(signal == SIGFPE ? "integer division by zero" : "access to memory that is not there or not aligned");
  abandon_block();
}
// Turns faults of a kernel into reports while it lives; AddressSanitizer has better ones of its own.
struct FaultHandlers {
  static constexpr int signals[3] = {SIGSEGV, SIGBUS, SIGFPE};
  struct sigaction old[3];
  FaultHandlers() {
    struct sigaction action = {};
    action.sa_handler = fault;
    action.sa_flags = SA_NODEFER;  // it leaves by a jump
#if !defined(__SANITIZE_ADDRESS__)
    for (int i = 0; i < 3; ++i) sigaction(signals[i], &action, &old[i]);
#endif
  }
  ~FaultHandlers() {
#if !defined(__SANITIZE_ADDRESS__)
    for (int i = 0; i < 3; ++i) sigaction(signals[i], &old[i], nullptr);
#endif
  }
};
inline void prepare_threads(u32 count) {
  thread_count = count, warp_count = (count + WARP - 1) / WARP;
  for (u32 i = 0; i < count; ++i)
    threads[i] = {{i, 0, 0}, i % WARP, &warps[i / WARP], nullptr, nullptr, {"", 0}, nullptr};
  for (u32 w = 0; w < warp_count; ++w) {
    warp_order[w] = w;
    warps[w].lanes = count - w * WARP >= WARP ? ~0u : (1u << count % WARP) - 1;
  }
  warp_turn = 0, lane_turn = seed ? draw(WARP) : 0;
}
inline void poison_shared(u32 bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(shared_memory, sizeof shared_memory);
#endif
  memset(shared_memory, 0xff, bytes + SHARED_GUARD);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(shared_memory + bytes, sizeof shared_memory - bytes);
#endif
}
inline bool shared_guard_holds(u32 bytes) {
#if !defined(__SANITIZE_ADDRESS__)
  for (u32 i = 0; i < SHARED_GUARD; ++i)
    if (shared_memory[bytes + i] != 0xff) return false;
#endif
  return true;
}
inline bool run_block(u32 shared_bytes) {
  for (u32 w = 0; w < warp_count; ++w) {
    warps[w].ready = warps[w].lanes, warps[w].exited = 0;
    for (Meeting& meeting : warps[w].meetings) meeting.mask = meeting.arrived = meeting.unread = 0;
  }
  finished = barrier_arrived = barrier_votes[barrier_turn] = 0;
  failed = false;
  poison_shared(shared_bytes);
  switch_fibers(&main_fiber, next_fiber());
  if (!failed && finished == thread_count) {
    if (shared_guard_holds(shared_bytes)) return true;
    say_block(), say("wrote past its %u bytes of dynamic shared memory", shared_bytes);
  } else if (!failed) {
    explain_deadlock();
  }
  discard_fibers();
  return false;
}
inline u64 common_divisor(u64 a, u64 b) { return b ? common_divisor(b, a % b) : a; }

inline int launch(void (*kernel)(const void*), const void* params, const u32 grid[3], u32 block,
                  u32 shared_bytes) {
  report[0] = 0;
  if (!block || block > MAX_THREADS) return say("a block has 1 to 1024 threads"), 1;
  if (shared_bytes > SHARED_BYTES) return say("at most %u bytes of shared memory", SHARED_BYTES), 1;
  if (grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535) return say("the grid is too large"), 1;
  random_state = seed;
  body = kernel, body_params = params;
  grid_size = {grid[0], grid[1], grid[2]}, block_size = {block, 1, 1};
  main_fiber.started = true;
  prepare_threads(block);
  u64 blocks = (u64)grid[0] * grid[1] * grid[2], step = 1, at = 0;
  if (seed && blocks > 1) {
    at = draw(0x7fffffff) % blocks, step = 1 + draw(0x7fffffff) % (blocks - 1);
    while (common_divisor(step, blocks) != 1) step = step % blocks + 1;
  }
  FaultHandlers handlers;
  for (u64 i = 0; i < blocks; ++i, at = (at + step) % blocks) {
    block_index = {(u32)(at % grid[0]), (u32)(at / grid[0] % grid[1]), (u32)(at / grid[0] / grid[1])};
    if (!run_block(shared_bytes)) return 1;
  }
  return 0;
}
// The kernel as a function of the address of its parameter struct.
template <auto kernel> struct Entry;
template <class P, void (*kernel)(P)> struct Entry<kernel> {
  static void body(const void* params) { kernel(*static_cast<const P*>(params)); }
};

}  // namespace emulator

#define EMULATOR_EXPORT extern "C" __attribute__((visibility("default")))
#define EMULATOR_ENTRY(name, ...)                                                                      \
  EMULATOR_EXPORT int name(const unsigned* grid, unsigned block, unsigned bytes, const void* params) { \
    return emulator::launch(emulator::Entry<__VA_ARGS__>::body, params, grid, block, bytes);           \
  }
// Once in a library: what the host sets and reads.
#define EMULATOR_SERVICES                                                                              \
  EMULATOR_EXPORT void emulator_set_seed(unsigned long long seed) { emulator::seed = seed; }           \
  EMULATOR_EXPORT const char* emulator_report() { return emulator::report; }
