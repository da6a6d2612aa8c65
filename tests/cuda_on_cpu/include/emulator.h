// What the CPU bodies of PTX wrappers are written on: the threads of a block are fibers, and here
// they meet, trade values, wait and copy. Each function is called by a thread of a running kernel.
#pragma once

#include <functional>
#include <type_traits>
#include <utility>

namespace cuda_on_cpu {

int lane();
int warp();

// Says which kernel, block and thread it is, and aborts.
[[noreturn]] void fail(const char* message);

// bar.sync id, threads
void barrier(int id, int threads);

// cp.async and its groups. `bytes` are written, zeros after the first `source_bytes`: at once, or
// when the thread waits for it, or never if it does not.
void copy_async(void* to, const void* from, int bytes, int source_bytes);
void commit_group();
void wait_group(int pending);

namespace detail {
const void* exchange(const void* mine, int bytes);
const void* exchange_warpgroup(const void* mine, int bytes);
void block_until(bool (*ready)(void*), void* context);
void bulk_copy(std::function<void()> work);
}  // namespace detail

// Every live lane of the warp hands in a value, and gets those of all 32 lanes once all have. They
// are its to read until the next exchange but one. In place of an exited lane's value is 0xFF.
template <typename T>
const T* exchange(const T& mine) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 256);
  return static_cast<const T*>(detail::exchange(&mine, sizeof(T)));
}

// The same among the 128 threads of a warpgroup.
template <typename T>
const T* exchange_warpgroup(const T& mine) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 256);
  return static_cast<const T*>(detail::exchange_warpgroup(&mine, sizeof(T)));
}

// Others run until ready() holds. Whoever runs asks it, so it must not depend on threadIdx.
template <typename F>
void block_until(F&& ready) {
  using Ready = std::remove_reference_t<F>;
  detail::block_until([](void* context) { return bool((*static_cast<Ready*>(context))()); },
                      const_cast<void*>(static_cast<const void*>(&ready)));
}

// Queues a copy that no thread carries out itself. It happens at any time from now on, in any order
// with other such copies, so `work` captures by value, and must not depend on threadIdx.
template <typename F>
void bulk_copy(F&& work) {
  detail::bulk_copy(std::function<void()>(std::forward<F>(work)));
}

}  // namespace cuda_on_cpu
