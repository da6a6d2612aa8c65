// Shared memory that was not written, and that was not asked for.
#include "program.h"

using namespace d2lops;

__global__ void read_then_write(float* out, int at) {
  out[blockIdx.x] = shared<float>()[at];
  shared<float>()[at] = 1;
}

int main(int, char** arguments) {
  float* out = managed<float>(2);
  launch(read_then_write, 2, 1, 9 * sizeof(float), out, std::atoi(arguments[1]));
  print(out, 2);
}
