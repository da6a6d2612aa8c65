// Matrix products on the tensor cores of Hopper GPUs (gemm.h), bfloat16 and float16, summed in
// float.
//
//   C[i, j] = relu(sum over k of A[i, k] B[j, k] + bias)
//
// Tiling: a block makes 128 x kColumns of C. Of its three warpgroups one copies and two multiply, 64
// rows each, a step of 64 along k at a time, through a ring of stages in shared memory: `full` says
// that a stage has come, `empty` that it may be overwritten. The copying threads gather packets of
// 16 bytes (cp.async) for some steps at once and leave most of their registers to the others, whose
// sums take up to 128 a thread. One wgmma instruction multiplies 64 x kColumns x 16 straight out of
// shared memory, whether packets lie along k or across it, as in memory. Where a ReLU masks A, its
// output comes along, and A goes through registers, where it is blocked.
//
// Bytes: 2 (128 + kColumns) a k from the second cache, for 128 kColumns multiply-adds. Tensor cores
// are the limit, then the copies' instructions (kColumns = 256: 24 packets a copying thread in a
// step of about a thousand cycles).
#include "common/window.h"
#include "cuda/gemm_tile.cuh"
#include "cuda/hopper.h"

namespace d2lops {
namespace {

constexpr int kGroup = 128;           // threads of a warpgroup
constexpr int kThreads = 3 * kGroup;  // one copies, two multiply
constexpr int kGroupRows = 64, kRows = 2 * kGroupRows, kDepth = 64;
constexpr int kArrivals = 2 * kGroup / 32;  // a stage is empty when each multiplying warp says so
// 65,536 registers in all: 104 for each copying thread, 200 for the others.
constexpr int kCopyRegisters = 104, kMultiplyRegisters = 200;

template <typename T, int Columns, bool a_along, bool b_along, bool masked>
struct Shared {
  using A = TileLayout<T, kRows, kDepth, a_along>;
  using B = TileLayout<T, Columns, kDepth, b_along>;
  static constexpr int kStages = 192 * 1024 / ((masked ? 2 : 1) * A::kBytes + B::kBytes);
  static constexpr bool kMasked = masked;
  static constexpr int kAhead = kStages - 2;  // steps that are on their way

  struct Stages {
    unsigned char a[kStages][A::kBytes], b[kStages][B::kBytes];
    unsigned char mask[masked ? kStages : 1][masked ? A::kBytes : kPacketBytes];
  };
  union {
    Stages stages;
    FinishedTile<T, kRows, Columns> finished;
  };
  PhaseBarrier full[kStages], empty[kStages];
  float bias[Columns];
  Place a_rows[A::kRowPlaces], b_rows[B::kRowPlaces];
  Place a_columns[2][A::kColumnPlaces], b_columns[2][B::kColumnPlaces];
};

// What a block sums over.
struct Steps {
  int64_t begin, end;
  int count;
};

// The part of the first warpgroup.
template <typename S, typename T>
__device__ void copy_steps(S& shared, const Task<T>& task, const Tile& tile, const Steps& steps) {
  using A = typename S::A;
  using B = typename S::B;
  const Product<T>& product = task.product;
  const T* const a_data = product.a.data + tile.group * product.a.group_stride;
  const T* const b_data = product.b.data + tile.group * product.b.group_stride;
  const T* const mask =
      S::kMasked ? product.a.mask + tile.group * product.a.mask_group_stride : nullptr;
  const int thread = threadIdx.x;
  const auto place_columns = [&](int step) {
    const int64_t k = steps.begin + static_cast<int64_t>(step) * kDepth;
    A::place_columns(product.a.columns, k, shared.a_columns[step % 2], thread);
    B::place_columns(product.b.columns, k, shared.b_columns[step % 2], kGroup - 1 - thread);
  };
  const auto hand_over = [&](int step) {
    show_to_tensor_cores();
    shared.full[step % S::kStages].arrive();
  };
  place_columns(0);
  for (int step = 0; step < steps.count; ++step) {
    const int slot = step % S::kStages;
    shared.empty[slot].wait(step / S::kStages % 2 ^ 1);
    meet<kGroup>();  // columns are placed
    const int64_t depth = steps.end - steps.begin - static_cast<int64_t>(step) * kDepth;
    A::template start_copies<kGroup>(product.a, a_data, mask, shared.a_rows,
                                     shared.a_columns[step % 2], depth, shared.stages.a[slot],
                                     shared.stages.mask[S::kMasked ? slot : 0], thread);
    B::template start_copies<kGroup>(product.b, b_data, nullptr, shared.b_rows,
                                     shared.b_columns[step % 2], depth, shared.stages.b[slot],
                                     nullptr, thread);
    commit_copies();
    if (step + 1 < steps.count) place_columns(step + 1);
    if (step < S::kAhead) continue;
    wait_for_copies<S::kAhead>();
    hand_over(step - S::kAhead);
  }
  wait_for_copies<0>();
  for (int step = max(steps.count - S::kAhead, 0); step < steps.count; ++step) hand_over(step);
}

// Where step `k` of 16 products begins in a tile.
template <bool along_depth>
__device__ constexpr int offset_of(int k) {
  return k * (along_depth ? 16 * 2 : 16 * 128);
}

// The part of the others: rows 64 `half` ... of the tile.
template <typename T, int Columns, bool a_along, bool b_along, bool masked, typename S>
__device__ void multiply_steps(S& shared, const Steps& steps, int half,
                               float (&sums)[Columns / 2]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  for (int step = 0; step < steps.count; ++step) {
    const int slot = step % S::kStages;
    shared.full[slot].wait(step / S::kStages % 2);
    // 64 rows along k, or a panel of them across it: 8 KB both.
    const TileDescriptor a_tile(shared.stages.a[slot] + half * S::A::kBytes / 2);
    const TileDescriptor b_tile(shared.stages.b[slot]);
    if constexpr (masked) {
      uint32_t a[kDepth / 16][4];
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k) {
        S::A::load_masked_a(a[k], shared.stages.a[slot], shared.stages.mask[slot],
                            half * kGroupRows + 16 * warp, k);
      }
      begin_products();
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k) {
        start_products<T, Columns, b_along>(sums, a[k], b_tile + offset_of<b_along>(k),
                                            step > 0 || k > 0);
      }
      commit_products();
      wait_for_products<0>();
      if (lane == 0) shared.empty[slot].arrive();
    } else {
      begin_products();
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k) {
        start_products<T, Columns, a_along, b_along>(sums, a_tile + offset_of<a_along>(k),
                                                     b_tile + offset_of<b_along>(k),
                                                     step > 0 || k > 0);
      }
      commit_products();
      wait_for_products<1>();  // the step before is done
      if (step > 0 && lane == 0) shared.empty[(step - 1) % S::kStages].arrive();
    }
  }
  wait_for_products<0>();
#pragma unroll
  for (int i = 0; i < Columns / 2; ++i) pin(sums[i]);
}

template <typename T, int Columns, bool a_along, bool b_along, bool masked>
__global__ __launch_bounds__(kThreads,
                             1) void gemm_wgmma_kernel(const __grid_constant__ Task<T> task) {
  using S = Shared<T, Columns, a_along, b_along, masked>;
  auto& shared = shared_memory<S>();
  const Product<T>& product = task.product;
  const Tile tile = tile_of_block(task);
  const int64_t begin = tile.part * task.part_depth;
  const int64_t end = min(begin + task.part_depth, task.depth);
  const Steps steps{begin, end, static_cast<int>(ceil_div(at_least(end - begin, 0), kDepth))};
  const int64_t first_row = tile.row * kRows, first_column = tile.column * Columns;
  const int thread = threadIdx.x;

  S::A::place_rows(product.a.rows, first_row, task.rows, shared.a_rows, thread, kThreads);
  S::B::place_rows(product.b.rows, first_column, task.columns, shared.b_rows, thread, kThreads);
  place_bias<Columns>(product, tile.group, first_column, task.columns, shared.bias, thread,
                      kThreads);
  if (thread < S::kStages) {
    shared.full[thread].init(kGroup);
    shared.empty[thread].init(kArrivals);
  }
  publish_barriers();
  __syncthreads();

  const bool by_columns = is_dense_by_columns(product.c);
  if (thread < kGroup) {
    give_back_registers<kCopyRegisters>();
    if (steps.count > 0) copy_steps(shared, task, tile, steps);
    __syncthreads();  // the stages are free
    __syncthreads();  // the tile is finished
  } else {
    ask_for_registers<kMultiplyRegisters>();
    const int half = thread / kGroup - 1, lane = thread % 32;
    float sums[Columns / 2] = {};
    multiply_steps<T, Columns, a_along, b_along, masked>(shared, steps, half, sums);
    __syncthreads();
    // Number i is at row g (+ 8) of the warp's 16, column 2 t (+ 1) of eight.
    const int row = half * kGroupRows + thread / 32 % 4 * 16 + lane / 4, column = lane % 4 * 2;
    const auto for_each_number = [&](auto&& f) {
#pragma unroll
      for (int i = 0; i < Columns / 2; ++i) f(i / 2 % 2 * 8, column + i / 4 * 8 + i % 2, sums[i]);
    };
    if (task.parts == 1) {
      for_each_number([&](int down, int c, float sum) {
        shared.finished.at(row + down, c, by_columns) =
            finish<T>(sum, shared.bias[c], product.relu);
      });
    } else {
      const int64_t rows = task.rows - first_row - row, columns = task.columns - first_column;
      float* const to = partial_row(task, tile, first_row + row) + first_column;
      for_each_number([&](int down, int c, float sum) {
        if (down < rows && c < columns) to[down * task.columns + c] = sum;
      });
    }
    __syncthreads();
  }
  if (task.parts == 1) shared.finished.template write<kThreads>(task, tile, by_columns);
}

template <typename T, int Columns, bool a_along, bool b_along, bool masked>
void run(const Product<T>& product) {
  Task<T> task(product);
  task.cut(kRows, Columns, kDepth);
  run_tiles("gemm_wgmma", gemm_wgmma_kernel<T, Columns, a_along, b_along, masked>, kThreads,
            sizeof(Shared<T, Columns, a_along, b_along, masked>), task);
}

template <typename T, int Columns>
void choose(const Product<T>& product) {
  dispatch_direction(product, [&](auto a_along, auto b_along, auto masked) {
    run<T, Columns, a_along(), b_along(), masked()>(product);
  });
}

}  // namespace

template <typename T>
void gemm_wgmma(const Product<T>& product) {
  const int64_t columns = product.c.columns.size();
  const int64_t tiles = ceil_div(product.c.rows.size(), kRows) * ceil_div(columns, 256);
  // Large tiles are the faster ones, where there are enough of them.
  columns > 128 && tiles* product.groups >= wave() / 2 ? choose<T, 256>(product)
                                                       : choose<T, 128>(product);
}

template void gemm_wgmma(const Product<bfloat16>&);
template void gemm_wgmma(const Product<float16>&);

}  // namespace d2lops
