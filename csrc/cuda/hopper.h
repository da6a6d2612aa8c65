// The instructions of Hopper GPUs (sm_90a) that kernels use, with two bodies each as in ptx.h: PTX,
// and, for the emulator, what PTX's manual says: sections "mbarrier", "Asynchronous Warpgroup Level
// Matrix Multiply-Accumulate Instructions", "setmaxnreg".
//
// Other architectures compile these kernels as well, but the launcher never starts them there.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/ptx.h"

#if defined(__CUDACC__)
// nvcc defines the feature macro in the pass for sm_90a alone.
#  if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#    define D2LOPS_HOPPER(...) asm volatile(__VA_ARGS__)
#  else
#    define D2LOPS_HOPPER(...) __trap()
#  endif
#endif

namespace d2lops {

#if !defined(__CUDACC__)
extern unsigned char shared_bytes[];
#endif

// An address in shared memory as instructions want it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
#if defined(__CUDACC__)
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#else
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - shared_bytes);
#endif
}

// A barrier of phases: a phase is over when `count` threads have arrived. Whoever waits names the
// parity of the phase it waits for; that of a fresh barrier's first one is 0, and the phase before
// it, of parity 1, counts as over.
struct alignas(8) PhaseBarrier {
  uint64_t state;

  __device__ __forceinline__ void init(int count) {
#if defined(__CUDACC__)
    D2LOPS_HOPPER("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)),
                  "r"(count) : "memory");
#else
    state = static_cast<uint64_t>(count) << 32 | static_cast<uint64_t>(count);
#endif
  }

  __device__ __forceinline__ void arrive() {
#if defined(__CUDACC__)
    D2LOPS_HOPPER(
        "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
#else
    const uint64_t count = state >> 32 & 0x7FFFFFFF;  // above it, the parity; below, who is missing
    --state;
    if (static_cast<uint32_t>(state) == 0) state = (state ^ uint64_t{1} << 63) | count;
#endif
  }

  __device__ __forceinline__ void wait(int parity) {
#if defined(__CUDACC__)
    D2LOPS_HOPPER(
        "{\n"
        ".reg .pred over;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
        "@!over bra again;\n"
        "}" ::"r"(shared_address(this)),
        "r"(parity) : "memory");
#else
    cuda_on_cpu::block_until([this, parity] { return static_cast<int>(state >> 63) != parity; });
#endif
  }
};

// Makes initialised barriers known to all that may use them, before the next __syncthreads.
__device__ __forceinline__ void publish_barriers() {
#if defined(__CUDACC__)
  D2LOPS_HOPPER("fence.mbarrier_init.release.cluster;" :: : "memory");
#endif
}

// What this thread has written to shared memory can be read by the tensor cores, once those who
// start them have met this thread at a barrier.
__device__ __forceinline__ void show_to_tensor_cores() {
#if defined(__CUDACC__)
  D2LOPS_HOPPER("fence.proxy.async.shared::cta;" :: : "memory");
#endif
}

// A warpgroup that needs few registers gives some back; one that needs many asks for them. All of
// its threads do so, and together they must not ask for more than there are.
template <int Registers>
__device__ __forceinline__ void give_back_registers() {
#if defined(__CUDACC__)
  D2LOPS_HOPPER("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}
template <int Registers>
__device__ __forceinline__ void ask_for_registers() {
#if defined(__CUDACC__)
  D2LOPS_HOPPER("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}

// A tile in shared memory as wgmma reads it, swizzled by 128 bytes: packet c of 16 bytes of row r is
// at c ^ (r mod 8). The tile, and every row that is 0 mod 8, lies at a multiple of 1024 bytes.
//
//   along k:   a row is 64 numbers along k; rows follow one another
//   across k:  a row is 64 numbers across k at one k; 64 such rows make a panel of 8 KB, and panels
//              follow one another
//
// "Matrix Descriptor Format": address in bits 0-13, from panel to panel in 16-29, from eight rows to
// the next eight in 32-45, all in 16 bytes; the swizzle in 62-63.
struct TileDescriptor {
  uint64_t bits;

  __device__ __forceinline__ explicit TileDescriptor(const void* tile) {
    constexpr uint64_t kSwizzle128 = 1, kPanel = 8192 / 16, kEightRows = 1024 / 16;
    bits =
        (shared_address(tile) & 0x3FFFF) / 16 | kPanel << 16 | kEightRows << 32 | kSwizzle128 << 62;
  }

  // The same, `bytes` on.
  __device__ __forceinline__ TileDescriptor operator+(int bytes) const {
    TileDescriptor next = *this;
    next.bits += static_cast<uint64_t>(bytes / 16);
    return next;
  }
};

// Orders the registers of sums and fragments before the products that use them.
__device__ __forceinline__ void begin_products() {
#if defined(__CUDACC__)
  D2LOPS_HOPPER("wgmma.fence.sync.aligned;" :: : "memory");
#endif
}
__device__ __forceinline__ void commit_products() {
#if defined(__CUDACC__)
  D2LOPS_HOPPER("wgmma.commit_group.sync.aligned;" :: : "memory");
#endif
}
// Until all but the last `Pending` groups of products are done.
template <int Pending>
__device__ __forceinline__ void wait_for_products() {
#if defined(__CUDACC__)
  D2LOPS_HOPPER("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#endif
}
// Keeps the compiler from moving a sum across what comes before or after.
__device__ __forceinline__ void pin(float& sum) {
#if defined(__CUDACC__)
  asm volatile("" : "+f"(sum)::"memory");
#else
  (void)sum;
#endif
}

#if !defined(__CUDACC__)

// What the emulator's tensor cores do: D += A B, 64 x N, over 16 products. Number i of a thread's sums
// is at row 16 warp + g + 8 (i / 2 mod 2), column 8 (i / 4) + 2 t + i mod 2.
template <typename T, int N>
struct EmulatedProduct {
  float a[64][16], b[N][16];

  static float number(TileDescriptor tile, int row, int k, bool along_depth) {
    const auto field = [&](int bit) { return tile.bits >> bit & 0x3FFF; };
    const uint64_t panel = field(16) * 16, eight_rows = field(32) * 16;
    uint64_t at = field(0) * 16;
    at += along_depth ? row / 8 * eight_rows + row % 8 * 128 + k * 2
                      : row / 64 * panel + k / 8 * eight_rows + k % 8 * 128 + row % 64 * 2;
    at ^= (at >> 7 & 7) << 4;
    T value;
    std::memcpy(&value, shared_bytes + at, sizeof(T));
    return widen(value);
  }

  // Fragments of A in registers are those of mma.m16n8k16, 16 rows a warp.
  void take(const uint32_t (&fragment)[4], int thread) {
    const int row = thread / 32 * 16 + thread % 32 / 4, k = thread % 4 * 2;
    for (int r = 0; r < 4; ++r) {
      for (int half = 0; half < 2; ++half) {
        a[row + r % 2 * 8][k + r / 2 * 8 + half] =
            widen(T{static_cast<uint16_t>(fragment[r] >> 16 * half)});
      }
    }
  }
  void take_a(TileDescriptor tile, bool along_depth) {
    for (int row = 0; row < 64; ++row)
      for (int k = 0; k < 16; ++k) a[row][k] = number(tile, row, k, along_depth);
  }
  void take_b(TileDescriptor tile, bool along_depth) {
    for (int row = 0; row < N; ++row)
      for (int k = 0; k < 16; ++k) b[row][k] = number(tile, row, k, along_depth);
  }
  void add_to(float (&sums)[N / 2], int thread) const {
    const int g = thread % 32 / 4, t = thread % 4;
    for (int i = 0; i < N / 2; ++i) {
      const float* left = a[thread / 32 * 16 + g + i / 2 % 2 * 8];
      const float* right = b[i / 4 * 8 + 2 * t + i % 2];
      for (int k = 0; k < 16; ++k) sums[i] += left[k] * right[k];
    }
  }

  // One for each warpgroup; whoever comes first fills in what all share.
  template <typename Fill>
  static void run(float (&sums)[N / 2], Fill&& fill) {
    static EmulatedProduct products[8];
    const int thread = threadIdx.x % 128;
    EmulatedProduct& product = products[threadIdx.x / 128];
    cuda_on_cpu::exchange_warpgroup(thread);
    fill(product, thread);
    cuda_on_cpu::exchange_warpgroup(thread);
    product.add_to(sums, thread);
  }
};

#endif

// A list of N / 2 registers, as operands and as their names.
#define D2LOPS_FLOATS8(d, i)                                                                  \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define D2LOPS_FLOATS32(d, i)                                                \
  D2LOPS_FLOATS8(d, i), D2LOPS_FLOATS8(d, i + 8), D2LOPS_FLOATS8(d, i + 16), \
      D2LOPS_FLOATS8(d, i + 24)
#define D2LOPS_FLOATS64(d, i) D2LOPS_FLOATS32(d, i), D2LOPS_FLOATS32(d, i + 32)
#define D2LOPS_FLOATS128(d, i) D2LOPS_FLOATS64(d, i), D2LOPS_FLOATS64(d, i + 64)
#define D2LOPS_NAMES64                                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, " \
  "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define D2LOPS_NAMES128                                                                          \
  D2LOPS_NAMES64                                                                                 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "   \
  "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, "   \
  "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// wgmma of N columns, in a scope with the predicate `adds`. A, B ... name the operands that follow
// the sums' registers.
#define D2LOPS_WGMMA(N, type, names, operands) \
  "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." type "." type " {" names "}, " operands ";\n}"
#define D2LOPS_WGMMA_SHARED(N, type, names, floats, A, B, ADDS, A_ACROSS, B_ACROSS)                \
  D2LOPS_HOPPER("{\n.reg .pred adds;\nsetp.ne.b32 adds, " ADDS ", 0;\n" D2LOPS_WGMMA(              \
                    N, type, names,                                                                \
                    A ", " B ", adds, 1, 1, " A_ACROSS ", " B_ACROSS) : floats : "l"(a_tile.bits), \
                "l"(b_tile.bits), "r"(adds ? 1 : 0), "n"(a_along ? 0 : 1), "n"(b_along ? 0 : 1))
#define D2LOPS_WGMMA_REGISTERS(N, type, names, floats, A, B, ADDS, B_ACROSS)                       \
  D2LOPS_HOPPER("{\n.reg .pred adds;\nsetp.ne.b32 adds, " ADDS ", 0;\n" D2LOPS_WGMMA(              \
                    N, type, names, "{" A "}, " B ", adds, 1, 1, " B_ACROSS) : floats : "r"(a[0]), \
                "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_tile.bits), "r"(adds ? 1 : 0),              \
                "n"(b_along ? 0 : 1))

// sums (+)= A B, 64 x N, over 16 products, started by the 128 threads of a warpgroup; `along` says
// how a tile lies. Until waited for, neither sums nor tiles (nor fragments) may be touched.
template <typename T, int N, bool a_along, bool b_along>
__device__ __forceinline__ void start_products(float (&sums)[N / 2], TileDescriptor a_tile,
                                               TileDescriptor b_tile, bool adds) {
  static_assert(N == 128 || N == 256);
#if defined(__CUDACC__)
  constexpr bool bf16 = std::is_same_v<T, bfloat16>;
  if constexpr (N == 128 && bf16) {
    D2LOPS_WGMMA_SHARED("128", "bf16", D2LOPS_NAMES64, D2LOPS_FLOATS64(sums, 0), "%64", "%65",
                        "%66", "%67", "%68");
  } else if constexpr (N == 128) {
    D2LOPS_WGMMA_SHARED("128", "f16", D2LOPS_NAMES64, D2LOPS_FLOATS64(sums, 0), "%64", "%65", "%66",
                        "%67", "%68");
  } else if constexpr (bf16) {
    D2LOPS_WGMMA_SHARED("256", "bf16", D2LOPS_NAMES128, D2LOPS_FLOATS128(sums, 0), "%128", "%129",
                        "%130", "%131", "%132");
  } else {
    D2LOPS_WGMMA_SHARED("256", "f16", D2LOPS_NAMES128, D2LOPS_FLOATS128(sums, 0), "%128", "%129",
                        "%130", "%131", "%132");
  }
#else
  if (!adds) std::memset(sums, 0, sizeof(sums));
  EmulatedProduct<T, N>::run(sums, [&](auto& product, int thread) {
    if (thread == 0) product.take_a(a_tile, a_along), product.take_b(b_tile, b_along);
  });
#endif
}

// The same with a fragment of A in registers, as load_matrices leaves it: 16 rows for each warp.
template <typename T, int N, bool b_along>
__device__ __forceinline__ void start_products(float (&sums)[N / 2], const uint32_t (&a)[4],
                                               TileDescriptor b_tile, bool adds) {
  static_assert(N == 128 || N == 256);
#if defined(__CUDACC__)
  constexpr bool bf16 = std::is_same_v<T, bfloat16>;
  if constexpr (N == 128 && bf16) {
    D2LOPS_WGMMA_REGISTERS("128", "bf16", D2LOPS_NAMES64, D2LOPS_FLOATS64(sums, 0),
                           "%64, %65, %66, %67", "%68", "%69", "%70");
  } else if constexpr (N == 128) {
    D2LOPS_WGMMA_REGISTERS("128", "f16", D2LOPS_NAMES64, D2LOPS_FLOATS64(sums, 0),
                           "%64, %65, %66, %67", "%68", "%69", "%70");
  } else if constexpr (bf16) {
    D2LOPS_WGMMA_REGISTERS("256", "bf16", D2LOPS_NAMES128, D2LOPS_FLOATS128(sums, 0),
                           "%128, %129, %130, %131", "%132", "%133", "%134");
  } else {
    D2LOPS_WGMMA_REGISTERS("256", "f16", D2LOPS_NAMES128, D2LOPS_FLOATS128(sums, 0),
                           "%128, %129, %130, %131", "%132", "%133", "%134");
  }
#else
  if (!adds) std::memset(sums, 0, sizeof(sums));
  EmulatedProduct<T, N>::run(sums, [&](auto& product, int thread) {
    if (thread == 0) product.take_b(b_tile, b_along);
    product.take(a, thread);
  });
#endif
}

}  // namespace d2lops
