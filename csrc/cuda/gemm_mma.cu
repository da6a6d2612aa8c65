// Matrix products on tensor cores (gemm.h), bfloat16 and float16, summed in float: every GPU from
// sm_80 on.
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
#include "cuda/gemm.cuh"
#include "cuda/ptx.h"

namespace d2lops {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 128, kDepth = 32, kStages = 4;
constexpr int kPacketBytes = 16, kEight = 8;  // numbers in a packet

// Where packet `chunk` of row `row` lies in a stage; rows are along k (64 bytes) or across it.
template <bool along_depth, int Rows>
__device__ __forceinline__ int packet_at(int row, int chunk) {
  if constexpr (along_depth) {
    return row * kDepth * 2 + (chunk ^ (row / 2 % 4)) * kPacketBytes;
  } else {
    return row * Rows * 2 + (chunk ^ (row % 8)) * kPacketBytes;
  }
}

// A thread's packets of a step of A or B: always the same rows.
template <typename T, int Rows, bool along_depth>
struct Copies {
  static constexpr int kCount = Rows * kDepth / kEight / kThreads;
  static constexpr int kChunks = (along_depth ? kDepth : Rows) / kEight;  // in a row of the stage
  static constexpr int kColumnPlaces = along_depth ? kDepth / kEight : kDepth;
  Place rows[kCount];

  static __device__ int row(int i) { return (i * kThreads + threadIdx.x) / kChunks; }
  static __device__ int chunk() { return threadIdx.x % kChunks; }

  // Rows beyond the last one repeat it, and are not written.
  __device__ Copies(const Walk& walk, int64_t first, int64_t count) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t at = first + (along_depth ? row(i) : chunk() * kEight);
      rows[i] = walk.at(min(at, along_depth ? count - 1 : (count - 1) / kEight * kEight));
    }
  }

  // Starts to copy a step of which `depth` columns count.
  __device__ void start(const Gathered<T>& x, const T* data, const T* mask, const Place* columns,
                        int64_t depth, unsigned char* stage, unsigned char* mask_stage) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Place column = columns[along_depth ? chunk() : row(i)];
      const int k = along_depth ? chunk() * kEight : row(i);
      const bool valid = k < depth && x.inside(rows[i], column);
      const int to = packet_at<along_depth, Rows>(row(i), chunk());
      copy_async(stage + to, valid ? data + rows[i].offset + column.offset : data, valid);
      if (mask_stage) {
        copy_async(mask_stage + to, valid ? mask + rows[i].mask + column.mask : mask, valid);
      }
    }
  }
};

// Fragments of A, 16 rows from `row` on, and of B, 16 columns likewise; step `k` of 16 products.
template <bool along_depth>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const unsigned char* stage, int row,
                                       int k) {
  const int lane = threadIdx.x % 32;
  const int at = along_depth ? packet_at<true, kRows>(row + lane % 16, 2 * k + lane / 16)
                             : packet_at<false, kRows>(16 * k + lane % 8 + lane / 16 * 8,
                                                       row / kEight + lane / 8 % 2);
  load_matrices<!along_depth>(a, stage + at);
}
template <bool along_depth, int Columns>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const unsigned char* stage, int column,
                                       int k) {
  const int lane = threadIdx.x % 32;
  const int at =
      along_depth
          ? packet_at<true, Columns>(column + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2)
          : packet_at<false, Columns>(16 * k + lane % 16, column / kEight + lane / 16);
  load_matrices<!along_depth>(b, stage + at);
}

template <int Columns, bool masked>
struct Stages {
  unsigned char a[kStages][kRows * kDepth * 2], b[kStages][Columns * kDepth * 2];
  unsigned char mask[masked ? kStages : 1][masked ? kRows * kDepth * 2 : kPacketBytes];
  Place a_columns[kStages][kDepth], b_columns[kStages][kDepth];
};

// A finished tile, along memory: rows of C, or columns if those are dense.
template <typename T, int Columns>
struct Finished {
  static constexpr int kPad = kEight;
  T number[(kRows + kPad) * (Columns + kPad)];

  static __device__ int at(int row, int column, bool by_columns) {
    return by_columns ? column * (kRows + kPad) + row : row * (Columns + kPad) + column;
  }
};

template <typename T, int Columns, bool masked>
union Shared {
  Stages<Columns, masked> stages;
  Finished<T, Columns> finished;
};

// Writes a tile to memory, in packets where neighbours in it are neighbours in memory.
template <typename T, int Columns>
__device__ void write_tile(const Task<T>& task, const Tile& tile, bool by_columns,
                           const Finished<T, Columns>& finished) {
  const Scattered<T>& c = task.product.c;
  T* const data = c.data + tile.group * c.group_stride;
  const Walk &majors = by_columns ? c.columns : c.rows, &minors = by_columns ? c.rows : c.columns;
  const int major_count = by_columns ? Columns : kRows,
            chunks = (kRows + Columns - major_count) / kEight;
  const int64_t row = tile.row * kRows, column = tile.column * Columns;
  const int64_t first_major = by_columns ? column : row, first_minor = by_columns ? row : column;
  const int64_t major_end = by_columns ? task.columns : task.rows;
  const int64_t minor_end = by_columns ? task.rows : task.columns;
  for (int packet = threadIdx.x; packet < major_count * chunks; packet += kThreads) {
    const int i = packet / chunks, j = packet % chunks * kEight;
    const int64_t major = first_major + i, minor = first_minor + j;
    if (major >= major_end || minor >= minor_end) continue;
    const T* const from = finished.number + i * ((by_columns ? kRows : Columns) + kEight) + j;
    const Place m = majors.at(major), first = minors.at(minor);
    T* const to = data + m.offset;
    if (minor + kEight <= minor_end) {
      const Place last = minors.at(minor + kEight - 1);
      if (last.offset == first.offset + kEight - 1 && c.inside(m, first) && c.inside(m, last) &&
          reinterpret_cast<uintptr_t>(to + first.offset) % kPacketBytes == 0) {
        store(to + first.offset, load<kEight>(from));
        continue;
      }
    }
    for (int x = 0; x < kEight && minor + x < minor_end; ++x) {
      const Place place = minors.at(minor + x);
      if (c.inside(m, place)) to[place.offset] = from[x];
    }
  }
}

template <typename T, int Columns, bool a_along, bool b_along, bool masked>
__global__ __launch_bounds__(kThreads) void gemm_mma_kernel(const __grid_constant__ Task<T> task) {
  // Warps side by side, and what each of them makes.
  constexpr int kAcross = Columns / 32, kDown = 8 / kAcross;
  constexpr int kWarpRows = kRows / kDown, kWarpColumns = 32;
  constexpr int kFragmentsDown = kWarpRows / 16, kFragmentsAcross = kWarpColumns / 8;
  auto& shared = shared_memory<Shared<T, Columns, masked>>();
  auto& stages = shared.stages;
  const Product<T>& product = task.product;
  const Tile tile = tile_of_block(task);
  const int64_t begin = tile.part * task.part_depth;
  const int64_t end = min(begin + task.part_depth, task.depth);
  const int steps = static_cast<int>(ceil_div(at_least(end - begin, 0), kDepth));

  using A = Copies<T, kRows, a_along>;
  using B = Copies<T, Columns, b_along>;
  const A a_copies(product.a.rows, tile.row * kRows, task.rows);
  const B b_copies(product.b.rows, tile.column * Columns, task.columns);
  const T* const a_data = product.a.data + tile.group * product.a.group_stride;
  const T* const b_data = product.b.data + tile.group * product.b.group_stride;
  const T* const mask =
      masked ? product.a.mask + tile.group * product.a.mask_group_stride : nullptr;

  const auto place_columns = [&](int step) {
    const int i = threadIdx.x % 32, warp = threadIdx.x / 32, slot = step % kStages;
    const int64_t k = begin + static_cast<int64_t>(step) * kDepth;
    if (warp == 0 && i < A::kColumnPlaces) {
      stages.a_columns[slot][i] = product.a.columns.at(k + (a_along ? i * kEight : i));
    }
    if (warp == 1 && i < B::kColumnPlaces) {
      stages.b_columns[slot][i] = product.b.columns.at(k + (b_along ? i * kEight : i));
    }
  };
  const auto start_copies = [&](int step) {
    const int slot = step % kStages;
    const int64_t depth = end - begin - static_cast<int64_t>(step) * kDepth;
    if (depth > 0) {
      a_copies.start(product.a, a_data, mask, stages.a_columns[slot], depth, stages.a[slot],
                     masked ? stages.mask[slot] : nullptr);
      b_copies.start(product.b, b_data, nullptr, stages.b_columns[slot], depth, stages.b[slot],
                     nullptr);
    }
    commit_copies();  // empty at the end, so that waiting can count
  };

  for (int step = 0; step < min(kStages, steps); ++step) place_columns(step);
  __syncthreads();
  for (int step = 0; step < kStages - 1; ++step) start_copies(step);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % kDown * kWarpRows, warp_column = warp / kDown * kWarpColumns;
  float sums[kFragmentsDown][kFragmentsAcross][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    start_copies(step + kStages - 1);
    if (step + kStages < steps) place_columns(step + kStages);
    const int slot = step % kStages;
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t a[kFragmentsDown][4], b[kFragmentsAcross / 2][4];
#pragma unroll
      for (int i = 0; i < kFragmentsDown; ++i) {
        load_a<a_along>(a[i], stages.a[slot], warp_row + 16 * i, k);
        if constexpr (masked) {
          uint32_t y[4];
          load_a<a_along>(y, stages.mask[slot], warp_row + 16 * i, k);
#pragma unroll
          for (int r = 0; r < 4; ++r) a[i][r] = passing<T>(y[r], a[i][r]);
        }
      }
#pragma unroll
      for (int j = 0; j < kFragmentsAcross / 2; ++j) {
        load_b<b_along, Columns>(b[j], stages.b[slot], warp_column + 16 * j, k);
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
  const bool by_columns = product.c.columns.step() != 1 && product.c.rows.step() == 1;
  for_each_number([&](int r, int c, float sum) {
    const int64_t column = min(first_column + c, task.columns - 1);
    shared.finished.number[Finished<T, Columns>::at(r, c, by_columns)] =
        finish(product, tile.group, first_row + r, column, sum);
  });
  __syncthreads();
  write_tile<T, Columns>(task, tile, by_columns, shared.finished);
}

template <typename T, int Columns, bool a_along, bool b_along, bool masked>
void run(const Product<T>& product) {
  Task<T> task(product);
  task.cut(kRows, Columns, kDepth);
  run_tiles("gemm_mma", gemm_mma_kernel<T, Columns, a_along, b_along, masked>, kThreads,
            sizeof(Shared<T, Columns, masked>), task);
}

// The three directions: both along k (forward), A alone (input gradient), neither (weight gradient).
template <typename T, int Columns>
void choose(const Product<T>& product) {
  const bool masked = product.a.mask != nullptr;
  if (!product.a.along_depth) {
    masked ? run<T, Columns, false, false, true>(product)
           : run<T, Columns, false, false, false>(product);
  } else if (!product.b.along_depth) {
    masked ? run<T, Columns, true, false, true>(product)
           : run<T, Columns, true, false, false>(product);
  } else {
    run<T, Columns, true, true, false>(product);
  }
}

}  // namespace

template <typename T>
void gemm_mma(const Product<T>& product) {
  product.c.columns.size() > 64 ? choose<T, 128>(product) : choose<T, 64>(product);
}

template void gemm_mma(const Product<bfloat16>&);
template void gemm_mma(const Product<float16>&);

}  // namespace d2lops
