// Values of a warp and of a warpgroup, what is left of a lane that has exited, and how long they
// last.
#include "emulator.h"
#include "program.h"

using namespace d2lops;

struct Row {
  int thread;
  double values[31];
};

void trade(int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 5) return;
  Row mine{thread, {}};
  mine.values[30] = thread / 2.0;
  const Row* lanes = cuda_on_cpu::exchange(mine);
  const int* doubled = cuda_on_cpu::exchange(2 * thread);
  const int* group = cuda_on_cpu::exchange_warpgroup(thread);
  bool right = true;
  for (int i = 0; i < 32; ++i) {
    const int other = thread / 32 * 32 + i;
    const bool here = other != 5;
    right =
        right && lanes[i].thread == (here ? other : -1) && doubled[i] == (here ? 2 * other : -1);
    right = right && (lanes[i].values[30] == other / 2.0) == here;
  }
  for (int i = 0; i < 128; ++i) {
    const int other = thread / 128 * 128 + i;
    right = right && group[i] == (other == 5 ? -1 : other);
  }
  right = right && cuda_on_cpu::warp() == thread / 32 && cuda_on_cpu::lane() == thread % 32;
  out[thread] = right;
}

int main() {
  int* out = managed<int>(256);
  launch(trade, 1, 256, 0, out);
  int right = 0;
  for (int i = 0; i < 256; ++i) right += i == 5 || out[i] == 1;
  std::printf("%d\n", right);
}
