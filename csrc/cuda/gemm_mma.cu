// Matrix products on tensor cores (gemm.h), of bfloat16, float16 and, rounded to TF32, float32
// numbers, summed in float: every GPU from sm_80 on.
//
//   C[i, j] = relu(sum over k of A[i, k] B[j, k] + bias)
//
// Tiling: a block of eight warps makes 128 x kColumns of C, each warp a part of 64 x 32 or 32 x 32
// in registers. Steps of 32 along k go through a ring of four stages in shared memory: while the
// warps multiply one, the next three are on their way, copied by the hardware in packets of 16 bytes
// (cp.async), which writes zeros where a window leaves its image. One barrier a step both shows a
// stage and frees the one before it.
// Packets lie along k or across it, as in memory; ldmatrix turns those across. They are swizzled
// (packet ^ row), so that the eight rows of a matrix lie in eight different banks.
// Where a ReLU masks A, its output comes along through a ring of its own and blocks A's numbers in
// registers: the masked gradient never exists.
//
// Bytes: 2 (128 + kColumns) a step and k from the second cache, for 128 kColumns multiply-adds.
// Tensor cores are the limit, then the instructions around them.
#include "common/window.h"
#include "cuda/gemm_tile.cuh"

namespace d2lops {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 128, kStages = 4;
template <typename T>
constexpr int kDepth = 64 / sizeof(T);  // of a step: 64 bytes

template <typename T, int Columns, bool a_along, bool b_along, bool masked>
struct Shared {
  using A = TileLayout<T, kRows, kDepth<T>, a_along>;
  using B = TileLayout<T, Columns, kDepth<T>, b_along>;

  struct Stages {
    unsigned char a[kStages][A::kBytes], b[kStages][B::kBytes];
    unsigned char mask[masked ? kStages : 1][masked ? A::kBytes : kPacketBytes];
  };
  union {
    Stages stages;
    FinishedTile<T, kRows, Columns> finished;
  };
  float bias[Columns];
  Place a_rows[A::kRowPlaces], b_rows[B::kRowPlaces];
  Place a_columns[kStages][A::kColumnPlaces], b_columns[kStages][B::kColumnPlaces];
};

template <typename T, int Columns, bool a_along, bool b_along, bool masked>
__global__ __launch_bounds__(kThreads) void gemm_mma_kernel(const __grid_constant__ Task<T> task) {
  // Warps side by side, and what each of them makes.
  constexpr int kAcross = Columns / 32, kDown = 8 / kAcross;
  constexpr int kWarpRows = kRows / kDown, kWarpColumns = 32;
  constexpr int kFragmentsDown = kWarpRows / 16, kFragmentsAcross = kWarpColumns / 8;
  using S = Shared<T, Columns, a_along, b_along, masked>;
  using A = typename S::A;
  using B = typename S::B;
  auto& shared = shared_memory<S>();
  auto& stages = shared.stages;
  const Product<T>& product = task.product;
  const Tile tile = tile_of_block(task);
  const int64_t begin = tile.part * task.part_depth;
  const int64_t end = min(begin + task.part_depth, task.depth);
  const int steps = static_cast<int>(ceil_div(at_least(end - begin, 0), kDepth<T>));
  const T* const a_data = product.a.data + tile.group * product.a.group_stride;
  const T* const b_data = product.b.data + tile.group * product.b.group_stride;
  const T* const mask =
      masked ? product.a.mask + tile.group * product.a.mask_group_stride : nullptr;

  const int thread = threadIdx.x;
  const auto place_columns = [&](int step) {
    const int64_t k = begin + static_cast<int64_t>(step) * kDepth<T>;
    const int slot = step % kStages;
    A::place_columns(product.a.columns, k, shared.a_columns[slot], thread);
    B::place_columns(product.b.columns, k, shared.b_columns[slot], kThreads - 1 - thread);
  };
  const auto start_copies = [&](int step) {
    const int slot = step % kStages;
    const int64_t depth = end - begin - static_cast<int64_t>(step) * kDepth<T>;
    if (depth > 0) {
      A::template start_copies<kThreads>(product.a, a_data, mask, shared.a_rows,
                                         shared.a_columns[slot], depth, stages.a[slot],
                                         stages.mask[masked ? slot : 0], thread);
      B::template start_copies<kThreads>(product.b, b_data, nullptr, shared.b_rows,
                                         shared.b_columns[slot], depth, stages.b[slot], nullptr,
                                         thread);
    }
    commit_copies();  // empty at the end, so that waiting can count
  };

  A::place_rows(product.a.rows, tile.row * kRows, task.rows, shared.a_rows, thread, kThreads);
  B::place_rows(product.b.rows, tile.column * Columns, task.columns, shared.b_rows, thread,
                kThreads);
  place_bias<Columns>(product, tile.group, tile.column * Columns, task.columns, shared.bias, thread,
                      kThreads);
  for (int step = 0; step < min(kStages, steps); ++step) place_columns(step);
  __syncthreads();
  for (int step = 0; step < kStages - 1; ++step) start_copies(step);

  const int warp = thread / 32, lane = thread % 32;
  const int warp_row = warp % kDown * kWarpRows, warp_column = warp / kDown * kWarpColumns;
  float sums[kFragmentsDown][kFragmentsAcross][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    start_copies(step + kStages - 1);
    if (step + kStages < steps) place_columns(step + kStages);
    const int slot = step % kStages;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      uint32_t a[kFragmentsDown][4], b[kFragmentsAcross / 2][4];
#pragma unroll
      for (int i = 0; i < kFragmentsDown; ++i) {
        const int row = warp_row + 16 * i;
        if constexpr (masked) {
          A::load_masked_a(a[i], stages.a[slot], stages.mask[slot], row, k);
        } else {
          A::load_a(a[i], stages.a[slot], row, k);
        }
      }
#pragma unroll
      for (int j = 0; j < kFragmentsAcross / 2; ++j) {
        B::load_b(b[j], stages.b[slot], warp_column + 16 * j, k);
      }
#pragma unroll
      for (int i = 0; i < kFragmentsDown; ++i) {
#pragma unroll
        for (int j = 0; j < kFragmentsAcross; ++j) {
          multiply<T>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }
  wait_for_copies<0>();
  __syncthreads();  // the stages are free

  // Number x of fragment (i, j) is at row g (+ 8), column 2 t (+ 1).
  const auto for_each_number = [&](auto&& f) {
#pragma unroll
    for (int i = 0; i < kFragmentsDown; ++i) {
#pragma unroll
      for (int j = 0; j < kFragmentsAcross; ++j) {
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          f(warp_row + 16 * i + lane / 4 + x / 2 * 8, warp_column + 8 * j + lane % 4 * 2 + x % 2,
            sums[i][j][x]);
        }
      }
    }
  };
  const int64_t first_row = tile.row * kRows, first_column = tile.column * Columns;
  if (task.parts > 1) {
    for_each_number([&](int r, int c, float sum) {
      const int64_t row = first_row + r, column = first_column + c;
      if (row < task.rows && column < task.columns) partial_row(task, tile, row)[column] = sum;
    });
    return;
  }
  const bool by_columns = is_dense_by_columns(product.c);
  for_each_number([&](int r, int c, float sum) {
    shared.finished.at(r, c, by_columns) = finish<T>(sum, shared.bias[c], product.relu);
  });
  __syncthreads();
  shared.finished.template write<kThreads>(task, tile, by_columns);
}

template <typename T, int Columns, bool a_along, bool b_along, bool masked>
void run(const Product<T>& product) {
  using S = Shared<T, Columns, a_along, b_along, masked>;
  static_assert(sizeof(S) <= (masked && Columns == 128 ? 128 : 99) * 1024);
  Task<T> task(product);
  task.cut(kRows, Columns, kDepth<T>);
  run_tiles("gemm_mma", gemm_mma_kernel<T, Columns, a_along, b_along, masked>, kThreads, sizeof(S),
            task);
}

template <typename T, int Columns>
void choose(const Product<T>& product) {
  dispatch_direction(product, [&](auto a_along, auto b_along, auto masked) {
    run<T, Columns, a_along(), b_along(), masked()>(product);
  });
}

}  // namespace

template <typename T>
void gemm_mma(const Product<T>& product) {
  // With a mask, the wide tile's stages do not fit into the 99 KB of the smaller GPUs.
  const bool fits = !product.a.mask || current_device().shared_memory > 128 * 1024;
  product.c.columns.size() > 64 && fits ? choose<T, 128>(product) : choose<T, 64>(product);
}

template void gemm_mma(const Product<float>&);
template void gemm_mma(const Product<bfloat16>&);
template void gemm_mma(const Product<float16>&);

}  // namespace d2lops
