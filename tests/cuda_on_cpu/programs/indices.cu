// Each thread writes down who it is, in grids and blocks of three dimensions and of odd sizes.
#include "program.h"

using namespace d2lops;

__device__ unsigned flat(uint3 at, dim3 size) { return (at.z * size.y + at.y) * size.x + at.x; }

__global__ void count(int* visits) {
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  ++visits[flat(blockIdx, gridDim) * threads + flat(threadIdx, blockDim)];
}

// The block that comes last is the one that is read: the races of blocks show.
__global__ void last_block(int* last) { *last = static_cast<int>(blockIdx.x); }

bool each_once(dim3 grid, dim3 block) {
  const int total = grid.x * grid.y * grid.z * block.x * block.y * block.z;
  int* visits = managed<int>(total);
  for (int i = 0; i < total; ++i) visits[i] = 0;
  launch(count, grid, block, 0, visits);
  bool once = true;
  for (int i = 0; i < total; ++i) once = once && visits[i] == 1;
  return once;
}

int main() {
  std::printf("%d %d %d ", each_once({3, 4, 5}, {7, 3, 2}), each_once(1, 1), each_once(2, 1024));
  int* last = managed<int>(1);
  launch(last_block, 5, 1, 0, last);
  std::printf("%d\n", *last);
}
