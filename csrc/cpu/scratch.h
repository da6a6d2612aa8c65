// Memory for panels, slabs and transforms, which each thread keeps.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#  include <sys/mman.h>
#endif

#include "common/integer.h"

namespace d2lops {

// Scratch memory, first zero, that a thread keeps from call to call: fresh pages cost more than
// packing does. Large ones ask for huge pages, without which looking up addresses takes up to a
// third of a product's time. Two slots serve two uses at once.
template <typename A, int Slot = 0>
A* scratch(size_t count) {
  constexpr size_t huge_page = 2 << 20;
  struct Free {
    void operator()(A* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<A[], Free> memory;
  thread_local size_t capacity = 0;
  if (capacity < count) {
    const size_t alignment = count * sizeof(A) < huge_page ? 64 : huge_page;
    const size_t bytes = round_up(count * sizeof(A), alignment);
    memory.reset();
    memory.reset(static_cast<A*>(std::aligned_alloc(alignment, bytes)));
    if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (alignment == huge_page) madvise(memory.get(), bytes, MADV_HUGEPAGE);
#endif
    // Lanes whose results are not used may still read it, and subnormal garbage is slow to
    // multiply.
    std::memset(memory.get(), 0, bytes);
    capacity = bytes / sizeof(A);
  }
  return memory.get();
}

}  // namespace d2lops
