// A ring of tiles: one thread has them copied in, the others wait for each, sum it up and give its
// place back. mbarrier as a wrapper's CPU body writes it.
#include "emulator.h"
#include "program.h"

using namespace d2lops;

struct Mbarrier {
  int expected, arrived, phase;

  void arrive() {
    if (++arrived < expected) return;
    arrived = 0;
    ++phase;
  }
  void wait(int phases) const {
    cuda_on_cpu::block_until([=] { return phase >= phases; });
  }
};

constexpr int kStages = 3, kTile = 64, kConsumers = 64;

struct Ring {
  float tiles[kStages][kTile];
  Mbarrier full[kStages], empty[kStages];
};

enum Mistake { none, not_full, not_empty, never };

template <Mistake mistake>
void sums(const float* x, float* out, int tiles) {
  Ring& ring = *shared<Ring>();
  if (threadIdx.x < kStages) {
    ring.full[threadIdx.x] = {1, 0, 0};
    ring.empty[threadIdx.x] = {kConsumers + (mistake == never), 0, 0};
  }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x) - 32;
  if (thread == -32) {
    for (int t = 0; t < tiles; ++t) {
      const int stage = t % kStages;
      if (mistake != not_empty) ring.empty[stage].wait(t / kStages);
      cuda_on_cpu::bulk_copy([=, &ring] {
        std::memcpy(ring.tiles[stage], x + t * kTile, sizeof ring.tiles[stage]);
        ring.full[stage].arrive();
      });
    }
  } else if (thread >= 0) {
    float sum = 0;
    for (int t = 0; t < tiles; ++t) {
      const int stage = t % kStages;
      if (mistake != not_full) ring.full[stage].wait(t / kStages + 1);
      sum += ring.tiles[stage][(thread + t) % kTile];
      ring.empty[stage].arrive();
    }
    out[thread] = sum;
  }
}

// From shared memory, which is gone with the block.
void store_and_exit(float* out) {
  float* tile = shared<float>();
  tile[0] = 1;
  cuda_on_cpu::bulk_copy([=] { out[0] = tile[0]; });
}

int main(int, char** arguments) {
  const std::string mistake = arguments[1];
  constexpr int tiles = 7;
  auto *x = managed<float>(tiles * kTile), *out = managed<float>(kConsumers);
  const auto run = [&](auto kernel) {
    launch(kernel, 2, 32 + kConsumers, sizeof(Ring), x, out, tiles);
    print(out, kConsumers);
  };
  if (mistake == "none") run(sums<none>);
  if (mistake == "not_full") run(sums<not_full>);
  if (mistake == "not_empty") run(sums<not_empty>);
  if (mistake == "never") run(sums<never>);
  if (mistake == "store_and_exit") {
    launch(store_and_exit, 1, 1, sizeof(float), out);
    print(out, 1);
  }
}
