// CUDA's vector types, sized and aligned as on the GPU.
#pragma once

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;

  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#define CUDA_ON_CPU_VECTOR_TYPES(type, name)                       \
  struct alignas(8) name##2 { type x, y; };                        \
  struct alignas(16) name##4 { type x, y, z, w; };                 \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_ON_CPU_VECTOR_TYPES(float, float)
CUDA_ON_CPU_VECTOR_TYPES(int, int)
CUDA_ON_CPU_VECTOR_TYPES(unsigned, uint)
#undef CUDA_ON_CPU_VECTOR_TYPES

struct alignas(16) double2 {
  double x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
