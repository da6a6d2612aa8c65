// Runs the threads of a block as fibers on the OS thread that launches, one block after the other.
//
// A warp runs as far as barriers allow before the next one has its turn: what one warp may not yet
// read or overwrite, another has long since read or written, unless a barrier kept it from that. In
// which order blocks, warps and lanes have their turns is the schedule's to say.
#include "emulator.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

extern "C" {
#pragma weak __asan_poison_memory_region
#pragma weak __asan_unpoison_memory_region
#pragma weak __tsan_acquire
#pragma weak __tsan_release
#pragma weak __tsan_ignore_thread_begin
#pragma weak __tsan_ignore_thread_end
void __asan_poison_memory_region(const volatile void* address, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}

namespace cuda_on_cpu {
constexpr int kWarp = 32, kWarpgroup = 128, kMaxThreads = 1024, kBarriers = 16;
constexpr int kSharedBytes = 232448, kSharedBytesUnasked = 48 << 10;
constexpr int kExchangeBytes = 256;
}  // namespace cuda_on_cpu

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace d2lops {
alignas(1024) unsigned char shared_bytes[cuda_on_cpu::kSharedBytes];
}

namespace cuda_on_cpu {
namespace {

using d2lops::shared_bytes;

// In which order things happen that CUDA leaves open, from the environment.
class Schedule {
 public:
  Schedule() {
    const char* name = std::getenv("CUDA_ON_CPU_ORDER");
    const std::string order = name ? name : "forward";
    reverse = order == "reverse";
    random = order == "random";
    if (!reverse && !random && order != "forward") {
      std::fprintf(stderr, "CUDA_ON_CPU_ORDER must be forward, reverse or random, not %s\n", name);
      std::abort();
    }
    const char* seed = std::getenv("CUDA_ON_CPU_SEED");
    if (random) generator.seed(seed ? std::strtoul(seed, nullptr, 10) : 0);
  }

  bool is_random() const { return random; }

  // Whether to put something off that may happen at once.
  bool late() { return random ? generator() & 1 : reverse; }

  // Which of `count` things comes first.
  size_t first(size_t count) { return random ? generator() % count : reverse ? count - 1 : 0; }

  template <typename T>
  void arrange(std::vector<T>& things) {
    if (reverse) std::reverse(things.begin(), things.end());
    if (random) std::shuffle(things.begin(), things.end(), generator);
  }

 private:
  bool reverse, random;
  std::mt19937 generator;
};

// Where threads wait for each other.
struct Barrier {
  int threads = 0;    // that the phase waits for
  bool live = false;  // those that have not exited, however many: __syncthreads, exchanges
  int arrived = 0;
  unsigned phase = 0;
  int votes = 0, result = 0;  // of the phase that fills, and of the last full one
  char clock[2] = {};         // what ThreadSanitizer knows even and odd phases by
};

// The barrier of a warp or warpgroup, and what its lanes hand in. The values of a phase are
// overwritten three phases on, when every lane has come for those of the second.
template <int lanes>
struct Exchange {
  Barrier barrier;
  int bytes = 0;
  alignas(64) unsigned char values[3][lanes * kExchangeBytes];
};

struct Copy {
  void* to;
  const void* from;
  int bytes, source_bytes;
  int group;
};

enum class State { ready, at_barrier, at_condition, exited };

struct Thread {
  Thread(void (*body)(), int number)
      : fiber(body, number), lane(number % kWarp), warp(number / kWarp) {}

  Fiber fiber;
  const int lane, warp;
  uint3 index = {};
  State state = State::exited;
  Barrier* barrier = nullptr;
  unsigned phase = 0;  // whose end it waits for
  bool (*condition)(void*) = nullptr;
  void* context = nullptr;
  std::vector<Copy> copies;  // that are still to be carried out
  int groups = 0;            // committed

  bool can_run() const {
    switch (state) {
      case State::ready:
        return true;
      case State::at_barrier:
        return barrier->phase != phase;
      case State::at_condition:
        return condition(context);
      default:
        return false;
    }
  }
};

// What one launch brings.
struct Launch {
  const void* function;
  void (*run_thread)(const void*);
  const void* call;
  int shared_bytes;
};

std::mutex mutex;  // one launch at a time
std::map<const void*, int> max_shared_bytes;
thread_local cudaError_t last_error = cudaSuccess;

Launch kernel;
Schedule schedule;
Fiber launcher;
std::vector<std::unique_ptr<Thread>> threads;  // made as launches need them, and kept
Thread* current = nullptr;

// The block that runs.
int live_threads = 0;
unsigned live_lanes[kMaxThreads / kWarp];
Barrier barriers[kBarriers];
Exchange<kWarp> warp_exchange[kMaxThreads / kWarp];
Exchange<kWarpgroup> warpgroup_exchange[kMaxThreads / kWarpgroup];
std::vector<std::function<void()>> bulk_copies;
char block_clock;  // ThreadSanitizer's, of what is before a block and after it

// Whose turn it is: lane lanes[turn_lane] of warp warps[turn_warp].
std::vector<int> warps, lanes;
size_t turn_warp = 0, turn_lane = 0;

void release(char& clock) {
  if (__tsan_release) __tsan_release(&clock);
}
void acquire(char& clock) {
  if (__tsan_acquire) __tsan_acquire(&clock);
}

// Its name if that is exported, else what `addr2line -Cfe FILE OFFSET` turns into it.
std::string kernel_name() {
  Dl_info info;
  if (!dladdr(kernel.function, &info)) return "a kernel";
  if (info.dli_saddr != kernel.function) {
    const auto* function = static_cast<const char*>(kernel.function);
    char offset[32];
    std::snprintf(offset, sizeof offset, "%#tx", function - static_cast<char*>(info.dli_fbase));
    return "the kernel of " + std::string(info.dli_fname) + " at " + offset;
  }
  char* name = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
  return name ? name : info.dli_sname;
}

void print_place(const char* message) {
  std::fflush(stdout);
  std::fprintf(stderr, "cuda_on_cpu: %s\n  in %s, block (%u, %u, %u)\n", message,
               kernel_name().c_str(), blockIdx.x, blockIdx.y, blockIdx.z);
}

std::string waits_at(const Thread& thread) {
  if (thread.state == State::at_condition) return "a condition (mbarrier)";
  if (thread.barrier == &barriers[0]) return "__syncthreads (barrier 0)";
  for (int i = 1; i < kBarriers; ++i) {
    if (thread.barrier == &barriers[i]) return "barrier " + std::to_string(i);
  }
  if (thread.barrier == &warp_exchange[thread.warp].barrier) {
    return "an exchange (shuffle, vote, mma) of warp " + std::to_string(thread.warp);
  }
  return "an exchange (wgmma) of warpgroup " + std::to_string(thread.warp * kWarp / kWarpgroup);
}

[[noreturn]] void deadlock() {
  print_place("deadlock: no thread can run");
  struct Waiting {
    int threads = 0;
    uint3 first = {};
  };
  std::map<std::string, Waiting> places;
  for (const auto& thread : threads) {
    if (thread->state == State::exited) continue;
    Waiting& place = places[waits_at(*thread)];
    if (place.threads++ == 0) place.first = thread->index;
  }
  for (const auto& [place, waiting] : places) {
    std::fprintf(stderr, "  %d of %u threads at %s, the first is (%u, %u, %u)\n", waiting.threads,
                 blockDim.x * blockDim.y * blockDim.z, place.c_str(), waiting.first.x,
                 waiting.first.y, waiting.first.z);
  }
  std::abort();
}

// Whoever is first in the schedule has the next turn.
void restart_turns() {
  turn_warp = turn_lane = 0;
  if (!schedule.is_random()) return;
  schedule.arrange(warps);
  schedule.arrange(lanes);
}

// The next lane that can run: of this warp if there is one, then of those whose turn is next.
Thread* find_ready() {
  for (size_t w = 0; w <= warps.size(); ++w) {
    for (int i = 0; i < kWarp; ++i) {
      Thread& thread = *threads[warps[turn_warp] * kWarp + lanes[turn_lane]];
      turn_lane = (turn_lane + 1) % kWarp;
      if (thread.can_run()) return &thread;
    }
    turn_warp = (turn_warp + 1) % warps.size();
    turn_lane = 0;
  }
  return nullptr;
}

void carry_out_bulk_copy() {
  const auto copy = bulk_copies.begin() + schedule.first(bulk_copies.size());
  const auto work = std::move(*copy);
  bulk_copies.erase(copy);
  work();
}

Thread& next_thread() {
  if (schedule.is_random() && !bulk_copies.empty() && !schedule.late()) carry_out_bulk_copy();
  for (;;) {
    if (Thread* thread = find_ready()) return *thread;
    if (bulk_copies.empty()) deadlock();
    carry_out_bulk_copy();
  }
}

// Lets others run until `current` can, and it is its turn.
void give_way() {
  Thread &self = *current, &next = next_thread();
  current = &next;
  threadIdx = next.index;
  next.state = State::ready;
  if (&next != &self) self.fiber.switch_to(next.fiber);
}

// After what only one warp waited for, it is still that warp's turn.
void end_phase(Barrier& barrier) {
  if (barrier.arrived > kWarp) restart_turns();
  barrier.arrived = 0;
  barrier.result = std::exchange(barrier.votes, 0);
  ++barrier.phase;
}

void wait_at(Barrier& barrier, int threads, bool live) {
  if (barrier.arrived == 0) {
    barrier.threads = threads;
    barrier.live = live;
  } else if (barrier.threads != threads || barrier.live != live) {
    fail("threads at one barrier wait for different numbers of threads");
  }
  char& clock = barrier.clock[barrier.phase & 1];
  release(clock);
  current->state = State::at_barrier;
  current->barrier = &barrier;
  current->phase = barrier.phase;
  if (++barrier.arrived == barrier.threads) end_phase(barrier);
  give_way();
  acquire(clock);
}

// A thread has exited that others may be waiting for.
void wait_for_one_less(Barrier& barrier) {
  if (barrier.arrived > 0 && barrier.live && --barrier.threads == barrier.arrived) {
    end_phase(barrier);
  }
}

int live_in_warps(int first, int count) {
  int live = 0;
  for (int warp = first; warp < first + count; ++warp) live += __popc(live_lanes[warp]);
  return live;
}

// A lane's value comes to where those of exited lanes stay 0xFF. ThreadSanitizer need not see that
// the lanes take turns here.
template <int lanes>
void hand_in(Exchange<lanes>& exchange, unsigned char* values, const void* mine) {
  if (__tsan_ignore_thread_begin) __tsan_ignore_thread_begin();
  const auto bytes = static_cast<size_t>(exchange.bytes);
  if (exchange.barrier.arrived == 0) std::memset(values, 0xFF, lanes * bytes);
  std::memcpy(values + (current->warp * kWarp + current->lane) % lanes * bytes, mine, bytes);
  if (__tsan_ignore_thread_end) __tsan_ignore_thread_end();
}

template <int lanes>
const void* exchange_among(Exchange<lanes>& exchange, const void* mine, int bytes) {
  if (exchange.barrier.arrived == 0) exchange.bytes = bytes;
  if (exchange.bytes != bytes) {
    fail("lanes of one warp are at different shuffles, votes or other warp-wide instructions");
  }
  auto* values = exchange.values[exchange.barrier.phase % 3];
  hand_in(exchange, values, mine);
  constexpr int warps = lanes / kWarp;
  wait_at(exchange.barrier, live_in_warps(current->warp / warps * warps, warps), true);
  return values;
}

// On its own, memcpy is a call, which sanitizers watch though this file is compiled without them.
__attribute__((noipa)) void carry_out(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.source_bytes);
  std::memset(static_cast<char*>(copy.to) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

bool in_shared_memory(const void* begin, int bytes) {
  const auto* p = static_cast<const unsigned char*>(begin);
  return p >= shared_bytes && p + bytes <= shared_bytes + kernel.shared_bytes;
}

bool is_aligned(const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

void exit_thread() {
  release(block_clock);
  current->state = State::exited;
  live_lanes[current->warp] &= ~(1u << current->lane);
  --live_threads;
  wait_for_one_less(barriers[0]);
  wait_for_one_less(warp_exchange[current->warp].barrier);
  wait_for_one_less(warpgroup_exchange[current->warp * kWarp / kWarpgroup].barrier);
  if (live_threads > 0) {
    give_way();
  } else {
    current->fiber.switch_to(launcher);
  }
}

// A fiber outlives its thread: at the end it waits to be a thread of the next block.
void thread_main() {
  for (;;) {
    acquire(block_clock);
    kernel.run_thread(kernel.call);
    exit_thread();
  }
}

// Shared memory as a new block finds it: not a number in any format, and no more of it than the
// launch asked for.
void fill_shared_memory() {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(shared_bytes, kSharedBytes);
  std::memset(shared_bytes, 0xFF, kernel.shared_bytes);
  if (__asan_poison_memory_region) {
    __asan_poison_memory_region(shared_bytes + kernel.shared_bytes,
                                kSharedBytes - kernel.shared_bytes);
  }
}

void start_thread(Thread& thread, unsigned number) {
  thread.index = {number % blockDim.x, number / blockDim.x % blockDim.y,
                  number / (blockDim.x * blockDim.y)};
  thread.state = State::ready;
  thread.copies.clear();
  thread.groups = 0;
  live_lanes[thread.warp] |= 1u << thread.lane;
}

void run_block() {
  fill_shared_memory();
  live_threads = blockDim.x * blockDim.y * blockDim.z;
  for (int i = 0; i < live_threads; ++i) start_thread(*threads[i], i);
  restart_turns();
  release(block_clock);
  current = &next_thread();
  threadIdx = current->index;
  launcher.switch_to(current->fiber);
  acquire(block_clock);
  if (bulk_copies.empty()) return;
  fill_shared_memory();  // a copy that nobody waited for may find it another block's
  while (!bulk_copies.empty()) carry_out_bulk_copy();
}

std::vector<int> numbers(int64_t count) {
  std::vector<int> all(count);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

void run_grid() {
  const int block_warps = (blockDim.x * blockDim.y * blockDim.z + kWarp - 1) / kWarp;
  for (int i = static_cast<int>(threads.size()); i < block_warps * kWarp; ++i) {
    threads.push_back(std::make_unique<Thread>(&thread_main, i));
  }
  schedule = Schedule();
  warps = numbers(block_warps);
  lanes = numbers(kWarp);
  schedule.arrange(warps);
  schedule.arrange(lanes);
  auto blocks = numbers(int64_t{gridDim.x} * gridDim.y * gridDim.z);
  schedule.arrange(blocks);
  for (const unsigned block : blocks) {
    blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
    run_block();
  }
}

bool is_possible(dim3 grid, dim3 block) {
  const auto within = [](unsigned n, unsigned most) { return n > 0 && n <= most; };
  return within(grid.x, 0x7FFFFFFF) && within(grid.y, 0xFFFF) && within(grid.z, 0xFFFF) &&
         within(block.x, kMaxThreads) && within(block.y, kMaxThreads) && within(block.z, 64) &&
         block.x * block.y * block.z <= kMaxThreads;
}

bool asks_for_clusters(const cudaLaunchConfig_t& config) {
  return std::any_of(config.attrs, config.attrs + config.numAttrs, [](const auto& attribute) {
    const auto& cluster = attribute.val.clusterDim;
    return attribute.id == cudaLaunchAttributeClusterDimension &&
           cluster.x * cluster.y * cluster.z != 1;
  });
}

cudaError_t check(const cudaLaunchConfig_t& config, const void* function) {
  if (!is_possible(config.gridDim, config.blockDim)) return cudaErrorInvalidConfiguration;
  const auto asked = max_shared_bytes.find(function);
  const int most = asked == max_shared_bytes.end() ? kSharedBytesUnasked : asked->second;
  if (config.dynamicSmemBytes > static_cast<size_t>(most)) return cudaErrorInvalidValue;
  return asks_for_clusters(config) ? cudaErrorNotSupported : cudaSuccess;
}

cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

int lane() { return current->lane; }
int warp() { return current->warp; }

void fail(const char* message) {
  print_place(message);
  std::fprintf(stderr, "  thread (%u, %u, %u)\n", threadIdx.x, threadIdx.y, threadIdx.z);
  std::abort();
}

void barrier(int id, int threads) {
  if (id < 0 || id >= kBarriers) fail("bar.sync: barriers are 0 to 15");
  if (threads <= 0 || threads % kWarp != 0) fail("bar.sync: threads come in whole warps");
  wait_at(barriers[id], threads, false);
}

void copy_async(void* to, const void* from, int bytes, int source_bytes) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async copies 4, 8 or 16 bytes");
  if (source_bytes < 0 || source_bytes > bytes) fail("cp.async reads 0 to all of its bytes");
  if (!in_shared_memory(to, bytes)) fail("cp.async writes outside shared memory");
  if (!is_aligned(to, bytes)) fail("cp.async writes to an address that is not aligned");
  if (!is_aligned(from, bytes)) fail("cp.async reads from an address that is not aligned");
  const Copy copy{to, from, bytes, source_bytes, current->groups};
  if (schedule.late()) {
    current->copies.push_back(copy);
  } else {
    carry_out(copy);
  }
}

void commit_group() { ++current->groups; }

void wait_group(int pending) {
  auto& copies = current->copies;
  const auto rest = std::find_if(copies.begin(), copies.end(), [&](const Copy& copy) {
    return copy.group >= current->groups - pending;
  });
  std::for_each(copies.begin(), rest, &carry_out);
  copies.erase(copies.begin(), rest);
}

namespace detail {

const void* exchange(const void* mine, int bytes) {
  return exchange_among(warp_exchange[current->warp], mine, bytes);
}

const void* exchange_warpgroup(const void* mine, int bytes) {
  return exchange_among(warpgroup_exchange[current->warp * kWarp / kWarpgroup], mine, bytes);
}

void block_until(bool (*ready)(void*), void* context) {
  current->state = State::at_condition;
  current->condition = ready;
  current->context = context;
  give_way();
}

void bulk_copy(std::function<void()> work) {
  bulk_copies.push_back(std::move(work));
  if (!schedule.late()) carry_out_bulk_copy();
}

void check_mask(unsigned mask) {
  if ((live_lanes[current->warp] & ~mask) != 0) {
    fail("a mask that does not name every live lane of the warp is not supported");
  }
}

int syncthreads_count(int predicate) {
  Barrier& barrier = barriers[0];
  barrier.votes += predicate;
  wait_at(barrier, live_threads, true);
  return barrier.result;
}

cudaError_t set_max_shared_bytes(const void* function, int bytes) {
  if (bytes < 0 || bytes > kSharedBytes) return returned(cudaErrorInvalidValue);
  const std::lock_guard lock(mutex);
  max_shared_bytes[function] = bytes;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* function,
                   void (*run_thread)(const void*), const void* call) {
  const std::lock_guard lock(mutex);
  const cudaError_t error = check(config, function);
  if (error != cudaSuccess) return returned(error);
  kernel = {function, run_thread, call, static_cast<int>(config.dynamicSmemBytes)};
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  run_grid();
  return cudaSuccess;
}

}  // namespace detail
}  // namespace cuda_on_cpu

void __syncthreads() { cuda_on_cpu::detail::syncthreads_count(0); }

cudaError_t cudaPeekAtLastError() { return cuda_on_cpu::last_error; }
cudaError_t cudaGetLastError() { return std::exchange(cuda_on_cpu::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNotSupported:
      return "operation not supported";
  }
  return "unrecognized error code";
}
