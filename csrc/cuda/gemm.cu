// Matrix products on CUDA cores, for every element type and any strides (gemm.h).
//
//   C[i, j] = relu(sum over k of A[i, k] B[j, k] + bias)
//
// Tiling: a block of 256 threads makes a square tile of C, kSize x kSize, each thread 8 x 8 (or
// 4 x 4) numbers of it in registers. It goes through k in steps of kDepth: while the threads
// multiply one step out of shared memory, the next one is on its way from memory into registers,
// from where it is written into the other half of shared memory: one barrier a step. What an index
// means in memory is worked out once per row of the tile and once per k (gather.h), and lies in
// shared memory too.
// A long sum over a small C is split: each part goes to a workspace, and a second kernel adds the
// parts in their order, so that the result has the same bits every time.
//
// Flops: 2 kSize kSize per k, for 2 kSize numbers read from memory: 32 multiply-adds a number, so
// the FMA units are the limit, then shared memory (6 of its cycles for 64 multiply-adds a warp).
#include "cuda/gemm.h"

#include <algorithm>

#include "common/integer.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace d2lops {
namespace {

constexpr int kThreads = 256, kEdge = 16;  // kEdge x kEdge threads
constexpr int kDepth = 16;
constexpr int kRun = 4;          // neighbours that a thread has in a row and in a column of the tile
constexpr int64_t kWave = 264;   // blocks that keep a large GPU busy
constexpr int64_t kPart = 512;   // the least of a sum that is worth a block of its own
constexpr int64_t kBand = 8;     // rows of tiles that run at a time, to find B in the second cache

template <typename T>
struct Task {
  using A = Accumulator<T>;
  Product<T> product;
  int64_t rows, columns, depth;
  int64_t tiles_down = 0, tiles_across = 0, parts = 1, part_depth = 0;
  bool a_along_depth = false, b_along_depth = false;  // where neighbours in memory lie
  A* partial = nullptr;  // [group][part][row][column], if there are several parts
};

// What one block does.
struct Tile {
  int64_t group, part, row, column;
};

template <typename T>
__device__ Tile tile_of_block(const Task<T>& task) {
  const int64_t tiles = task.tiles_down * task.tiles_across;
  const int64_t block = blockIdx.x, tile = block % tiles, rest = block / tiles;
  const int64_t in_band = kBand * task.tiles_across;
  const int64_t band = tile / in_band * kBand;
  const int64_t height = min(kBand, task.tiles_down - band);
  return {rest / task.parts, rest % task.parts, band + tile % in_band % height,
          tile % in_band / height};
}

template <typename A, int Size>
struct Shared {
  // Rows are padded: where threads write along k, they would meet in one bank.
  A a[2][kDepth][Size + kRun], b[2][kDepth][Size + kRun];
  Place a_rows[Size], b_rows[Size], a_columns[2][kDepth], b_columns[2][kDepth];
};

// A thread's share of a step of A or of B, in registers.
template <typename T, int Size>
struct Share {
  using A = Accumulator<T>;
  static constexpr int kCount = Size * kDepth / kThreads;
  A value[kCount];

  static __device__ int row(int i, bool along_depth) {
    const int at = i * kThreads + threadIdx.x;
    return along_depth ? at / kDepth : at % Size;
  }
  static __device__ int column(int i, bool along_depth) {
    const int at = i * kThreads + threadIdx.x;
    return along_depth ? at % kDepth : at / Size;
  }

  // Of `depth` columns; the others are zero.
  __device__ void fetch(const Gathered<T>& x, int64_t group, const Place* rows,
                        const Place* columns, int64_t depth, bool along_depth) {
    const T* const data = x.data + group * x.group_stride;
    const T* const mask = x.mask ? x.mask + group * x.mask_group_stride : nullptr;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int k = column(i, along_depth);
      const Place r = rows[row(i, along_depth)], c = columns[k];
      value[i] = 0;
      if (k >= depth || !x.inside(r, c)) continue;
      if (mask && widen(mask[r.mask + c.mask]) <= 0) continue;
      value[i] = widen(data[r.offset + c.offset]);
    }
  }

  __device__ void put(A (&tile)[kDepth][Size + kRun], bool along_depth) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) tile[column(i, along_depth)][row(i, along_depth)] = value[i];
  }
};

// The indices of a thread's rows, or columns, of a tile: runs of kRun that are kEdge * kRun apart.
__device__ __forceinline__ int nth(int thread, int i) {
  return (i / kRun * kEdge + thread) * kRun + i % kRun;
}

template <typename T>
__device__ T finish(const Product<T>& product, int64_t group, int64_t row, int64_t column,
                    Accumulator<T> value) {
  if (product.bias) {
    const int64_t i = product.bias_per_row ? row : column;
    value += widen(product.bias[group * product.bias_group_stride + i * product.bias_stride]);
  }
  return narrow<T>(product.relu && value < 0 ? 0 : value);  // NaN stays NaN
}

// Neighbours in a row of C, at once where they are neighbours in memory.
template <typename T>
__device__ void write_run(T* to, const int64_t (&offsets)[kRun], int count,
                          const Packet<T, kRun>& run) {
  const bool dense = count == kRun && offsets[kRun - 1] == offsets[0] + kRun - 1 &&
                     offsets[1] == offsets[0] + 1 &&
                     reinterpret_cast<uintptr_t>(to + offsets[0]) % sizeof(run) == 0;
  if (dense) return store(to + offsets[0], run);
#pragma unroll
  for (int j = 0; j < kRun; ++j) {
    if (j < count) to[offsets[j]] = run.at[j];
  }
}

template <typename T, int Size>
__global__ __launch_bounds__(kThreads) void gemm_kernel(const __grid_constant__ Task<T> task) {
  using A = Accumulator<T>;
  constexpr int kMine = Size / kEdge;
  auto& shared = shared_memory<Shared<A, Size>>();
  const Product<T>& product = task.product;
  const int thread = threadIdx.x, down = thread / kEdge, across = thread % kEdge;
  const Tile tile = tile_of_block(task);
  const int64_t first_row = tile.row * Size, first_column = tile.column * Size;
  const int64_t begin = tile.part * task.part_depth;
  const int64_t end = min(begin + task.part_depth, task.depth);

  // Rows beyond the last one repeat it, and are not written.
  for (int i = thread; i < Size; i += kThreads) {
    shared.a_rows[i] = product.a.rows.at(min(first_row + i, task.rows - 1));
    shared.b_rows[i] = product.b.rows.at(min(first_column + i, task.columns - 1));
  }
  const auto place_columns = [&](int64_t k, int half) {
    if (thread < kDepth) {
      shared.a_columns[half][thread] = product.a.columns.at(k + thread);
    } else if (thread < 2 * kDepth) {
      shared.b_columns[half][thread - kDepth] = product.b.columns.at(k + thread - kDepth);
    }
  };
  Share<T, Size> a, b;
  const auto fetch = [&](int64_t k, int half) {
    a.fetch(product.a, tile.group, shared.a_rows, shared.a_columns[half], end - k,
            task.a_along_depth);
    b.fetch(product.b, tile.group, shared.b_rows, shared.b_columns[half], end - k,
            task.b_along_depth);
  };
  if (begin < end) place_columns(begin, 0);
  __syncthreads();
  if (begin < end) fetch(begin, 0);

  A sums[kMine][kMine] = {};
  int half = 0;
  for (int64_t k = begin; k < end; k += kDepth, half ^= 1) {
    a.put(shared.a[half], task.a_along_depth);
    b.put(shared.b[half], task.b_along_depth);
    place_columns(k + kDepth, half ^ 1);
    __syncthreads();
    if (k + kDepth < end) fetch(k + kDepth, half ^ 1);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      A left[kMine], right[kMine];
#pragma unroll
      for (int i = 0; i < kMine; i += kRun) {
        const auto l = load<kRun>(&shared.a[half][d][nth(down, i)]);
        const auto r = load<kRun>(&shared.b[half][d][nth(across, i)]);
#pragma unroll
        for (int j = 0; j < kRun; ++j) left[i + j] = l.at[j], right[i + j] = r.at[j];
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
#pragma unroll
        for (int j = 0; j < kMine; ++j) sums[i][j] += left[i] * right[j];
      }
    }
  }

#pragma unroll
  for (int j = 0; j < kMine; j += kRun) {
    const int64_t column = first_column + nth(across, j);
    const int count = static_cast<int>(min(int64_t{kRun}, task.columns - column));
    if (count <= 0) continue;
    int64_t offsets[kRun];
#pragma unroll
    for (int x = 0; x < kRun; ++x) offsets[x] = product.c.columns.at(column + x).offset;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int64_t row = first_row + nth(down, i);
      if (row >= task.rows) continue;
      if (task.parts > 1) {
        A* const to = task.partial +
                      ((tile.group * task.parts + tile.part) * task.rows + row) * task.columns;
#pragma unroll
        for (int x = 0; x < kRun; ++x) {
          if (x < count) to[column + x] = sums[i][j + x];
        }
      } else {
        Packet<T, kRun> run;
#pragma unroll
        for (int x = 0; x < kRun; ++x) {
          run.at[x] = finish(product, tile.group, row, min(column + x, task.columns - 1),
                             sums[i][j + x]);
        }
        write_run(product.c.data + tile.group * product.c.group_stride +
                      product.c.rows.at(row).offset,
                  offsets, count, run);
      }
    }
  }
}

// Adds up the parts of each sum.
template <typename T>
__global__ __launch_bounds__(kThreads) void add_parts_kernel(const __grid_constant__ Task<T> task) {
  const Product<T>& product = task.product;
  const int64_t size = task.rows * task.columns;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       i < product.groups * size; i += step) {
    const int64_t group = i / size, row = i % size / task.columns, column = i % task.columns;
    const auto* from = task.partial + group * task.parts * size + i % size;
    Accumulator<T> sum = 0;
    for (int64_t part = 0; part < task.parts; ++part) sum += from[part * size];
    product.c.data[group * product.c.group_stride + product.c.rows.at(row).offset +
                   product.c.columns.at(column).offset] =
        finish(product, group, row, column, sum);
  }
}

// The step from one index of a walk to the next one, or what is nearest to it.
int64_t step_of(const Walk& walk) {
  for (const Digit* digit : {&walk.inner, &walk.middle, &walk.outer}) {
    if (digit->size > 1) return digit->stride;
  }
  return 0;
}

template <typename T>
bool lies_along_depth(const Gathered<T>& x) {
  return step_of(x.columns) == 1 || step_of(x.rows) != 1;
}

template <typename T, int Size>
void run(Task<T>& task) {
  const int64_t tiles = task.tiles_down * task.tiles_across * task.product.groups;
  launch("gemm", gemm_kernel<T, Size>, dim3(static_cast<unsigned>(tiles * task.parts)), kThreads,
         sizeof(Shared<Accumulator<T>, Size>), task);
}

}  // namespace

template <typename T>
void gemm(Product<T> product) {
  using A = Accumulator<T>;
  // Neighbours in a row of a tile should be neighbours in memory.
  if (step_of(product.c.columns) != 1 && step_of(product.c.rows) == 1) product.transpose();
  Task<T> task{product, product.c.rows.size(), product.c.columns.size(), product.a.columns.size()};
  const auto tiles = [&](int size) {
    task.tiles_down = ceil_div(task.rows, size);
    task.tiles_across = ceil_div(task.columns, size);
    return task.tiles_down * task.tiles_across * product.groups;
  };
  const bool large = sizeof(A) == 4 && tiles(128) >= kWave / 2;
  const int64_t blocks = tiles(large ? 128 : 64);
  if (blocks == 0) return;
  const int64_t worth = std::max<int64_t>(task.depth / kPart, 1);
  task.parts = std::min(ceil_div(kWave, blocks), worth);
  task.part_depth = round_up(ceil_div(task.depth, task.parts), kDepth);
  task.a_along_depth = lies_along_depth(product.a);
  task.b_along_depth = lies_along_depth(product.b);
  const int64_t numbers = product.groups * task.rows * task.columns;
  const Workspace partial(task.parts > 1 ? task.parts * numbers * sizeof(A) : 0);
  task.partial = partial.as<A>();
  if constexpr (sizeof(A) == 4) {
    large ? run<T, 128>(task) : run<T, 64>(task);
  } else {
    run<T, 64>(task);
  }
  if (task.parts == 1) return;
  const int64_t most = 8 * current_device().multiprocessors;
  launch("add_parts", add_parts_kernel<T>,
         dim3(static_cast<unsigned>(std::min(ceil_div(numbers, kThreads), most))), kThreads, 0,
         task);
}

template void gemm(Product<float>);
template void gemm(Product<double>);
template void gemm(Product<bfloat16>);
template void gemm(Product<float16>);

}  // namespace d2lops
