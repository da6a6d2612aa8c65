// Fibers: threads that give way only where they say so, and to the one that they name. One runs at
// a time. For emulator.cpp alone.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#  define CUDA_ON_CPU_UCONTEXT
#endif
#if defined(CUDA_ON_CPU_UCONTEXT)
#  include <ucontext.h>
#endif

// The sanitizers' run times, there when the kernels are compiled with one, want to be told.
extern "C" {
#pragma weak __sanitizer_start_switch_fiber
#pragma weak __sanitizer_finish_switch_fiber
#pragma weak __tsan_create_fiber
#pragma weak __tsan_get_current_fiber
#pragma weak __tsan_switch_to_fiber
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
void* __tsan_create_fiber(unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}

#if !defined(CUDA_ON_CPU_UCONTEXT)
// Keeps the registers that a call preserves on the stack it leaves, and takes those of the other.
extern "C" void cuda_on_cpu_switch(void** leave, void* enter);
asm(R"(
.text
.hidden cuda_on_cpu_switch
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
#endif

namespace cuda_on_cpu {
namespace {

class Fiber {
 public:
  // The OS thread itself.
  Fiber() = default;

  // Runs `body`, which must not return, when it is first switched to. `colour` sets stacks apart
  // that would otherwise begin in the same set of the first-level cache.
  Fiber(void (*body)(), int colour) : body(body) {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) {
      std::perror("cuda_on_cpu: no stack for a thread");
      std::abort();
    }
    stack = static_cast<char*>(memory) + kPage;
    stack_bytes = kStackBytes - kPage - static_cast<size_t>(colour) * 320 % kPage;
    if (__tsan_create_fiber) tsan_fiber = __tsan_create_fiber(0);
#if defined(CUDA_ON_CPU_UCONTEXT)
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = stack_bytes;
    makecontext(&context, &Fiber::enter, 0);
#else
    // What cuda_on_cpu_switch takes: six registers, where to go on, and a return address of 0, at
    // which debuggers stop.
    auto* top = reinterpret_cast<void**>(stack + stack_bytes);
    *(top - 2) = reinterpret_cast<void*>(&Fiber::enter);
    context = top - 8;
#endif
  }

  Fiber(const Fiber&) = delete;

  // Leaves this fiber, which runs, until somebody switches back to it.
  void switch_to(Fiber& to) {
    arriving = &to;
    leaving = this;
    if (__sanitizer_start_switch_fiber) {
      __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.stack_bytes);
    }
    if (__tsan_switch_to_fiber) {
      if (!body) tsan_fiber = __tsan_get_current_fiber();
      __tsan_switch_to_fiber(to.tsan_fiber, kNoSync);
    }
#if defined(CUDA_ON_CPU_UCONTEXT)
    swapcontext(&context, &to.context);
#else
    cuda_on_cpu_switch(&context, to.context);
#endif
    arrive();
  }

 private:
  static constexpr size_t kPage = 4096, kStackBytes = 64 * kPage;
  static constexpr unsigned kNoSync = 1;  // a switch orders nothing: only barriers do

  static void enter() {
    arriving->arrive();
    arriving->body();
  }

  void arrive() {
    if (!__sanitizer_finish_switch_fiber) return;
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
    if (!leaving->body) {
      leaving->stack = static_cast<char*>(const_cast<void*>(bottom));
      leaving->stack_bytes = bytes;
    }
  }

  inline static Fiber *leaving = nullptr, *arriving = nullptr;  // of the last switch

  void (*body)() = nullptr;
  char* stack = nullptr;  // the lowest address
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan_fiber = nullptr;
#if defined(CUDA_ON_CPU_UCONTEXT)
  ucontext_t context;
#else
  void* context = nullptr;  // its stack pointer
#endif
};

}  // namespace
}  // namespace cuda_on_cpu
