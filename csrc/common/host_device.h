// What marks a short function for host and device: inlined in both.
#pragma once

#if defined(__CUDACC__)
#  define D2LOPS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#  define D2LOPS_HOST_DEVICE inline __attribute__((always_inline))
#endif
