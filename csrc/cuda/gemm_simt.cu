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
#include "cuda/gemm.cuh"

namespace d2lops {
namespace {

constexpr int kThreads = 256, kEdge = 16;  // kEdge x kEdge threads
// Of a step: so that a thread reads four numbers of A and of B.
template <int Size>
constexpr int kDepth = 4 * kThreads / Size;
constexpr int kRun = 4;  // neighbours that a thread has in a row and in a column of the tile

template <typename A, int Size>
struct Stages {
  // Rows are padded: where threads write along k, they would meet in one bank.
  A a[2][kDepth<Size>][Size + kRun], b[2][kDepth<Size>][Size + kRun];
  Place a_rows[Size], b_rows[Size], a_columns[2][kDepth<Size>], b_columns[2][kDepth<Size>];
};

// Finished numbers on their way out, 64 columns at a time.
constexpr int kSlice = kEdge * kRun;
template <typename A, int Size>
struct Slice {
  A number[Size][kSlice + kRun];
};

template <typename A, int Size>
union Shared {
  Stages<A, Size> stages;
  Slice<A, Size> slice;
};

// A thread's share of a step of A or of B, in registers.
template <typename T, int Size>
struct Share {
  using A = Accumulator<T>;
  static constexpr int kCount = Size * kDepth<Size> / kThreads;
  A value[kCount];

  static __device__ int row(int i, bool along_depth) {
    const int at = i * kThreads + threadIdx.x;
    return along_depth ? at / kDepth<Size> : at % Size;
  }
  static __device__ int column(int i, bool along_depth) {
    const int at = i * kThreads + threadIdx.x;
    return along_depth ? at % kDepth<Size> : at / Size;
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

  __device__ void put(A (&tile)[kDepth<Size>][Size + kRun], bool along_depth) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) tile[column(i, along_depth)][row(i, along_depth)] = value[i];
  }
};

// The indices of a thread's rows, or columns, of a tile: runs of kRun that are kEdge * kRun apart.
__device__ __forceinline__ int nth(int thread, int i) {
  return (i / kRun * kEdge + thread) * kRun + i % kRun;
}

// Writes a run of a row of C, at once where its numbers are neighbours in memory.
template <typename T>
__device__ void write_run(const Task<T>& task, const Tile& tile, int64_t row, int64_t column,
                          const Accumulator<T>* sums) {
  const Product<T>& product = task.product;
  const int count = static_cast<int>(min(int64_t{kRun}, task.columns - column));
  if (task.parts > 1) {
    auto* const to = partial_row(task, tile, row) + column;
    for (int x = 0; x < count; ++x) to[x] = sums[x];
    return;
  }
  const Walk& columns = product.c.columns;
  const Place down = product.c.rows.at(row), first = columns.at(column);
  T* const to = product.c.data + tile.group * product.c.group_stride + down.offset;
  Packet<T, kRun> run;
#pragma unroll
  for (int x = 0; x < kRun; ++x) {
    run.at[x] = finish(product, tile.group, row, min(column + x, task.columns - 1), sums[x]);
  }
  if (columns.inner.stride == 1 && columns.inner.size % kRun == 0 &&
      product.c.inside(down, first) && product.c.inside(down, columns.at(column + kRun - 1)) &&
      reinterpret_cast<uintptr_t>(to + first.offset) % sizeof(run) == 0) {
    return store(to + first.offset, run);
  }
#pragma unroll
  for (int x = 0; x < kRun; ++x) {
    const Place place = columns.at(column + x);
    if (x < count && product.c.inside(down, place)) to[place.offset] = run.at[x];
  }
}

template <typename T, int Size>
__global__ __launch_bounds__(kThreads,
                             2) void gemm_simt_kernel(const __grid_constant__ Task<T> task) {
  using A = Accumulator<T>;
  constexpr int kMine = Size / kEdge, kStep = kDepth<Size>;
  auto& shared = shared_memory<Shared<A, Size>>().stages;
  const Product<T>& product = task.product;
  const int thread = threadIdx.x, down = thread / kEdge, across = thread % kEdge;
  const Tile tile = tile_of_block(task);
  const int64_t first_row = tile.row * Size, first_column = tile.column * Size;
  const bool a_along_depth = product.a.along_depth, b_along_depth = product.b.along_depth;
  const int64_t begin = tile.part * task.part_depth;
  const int64_t end = min(begin + task.part_depth, task.depth);

  // Rows beyond the last one repeat it, and are not written.
  for (int i = thread; i < Size; i += kThreads) {
    shared.a_rows[i] = product.a.rows.at(min(first_row + i, task.rows - 1));
    shared.b_rows[i] = product.b.rows.at(min(first_column + i, task.columns - 1));
  }
  const auto place_columns = [&](int64_t k, int half) {
    if (thread < kStep) {
      shared.a_columns[half][thread] = product.a.columns.at(k + thread);
    } else if (thread < 2 * kStep) {
      shared.b_columns[half][thread - kStep] = product.b.columns.at(k + thread - kStep);
    }
  };
  Share<T, Size> a, b;
  const auto fetch = [&](int64_t k, int half) {
    a.fetch(product.a, tile.group, shared.a_rows, shared.a_columns[half], end - k, a_along_depth);
    b.fetch(product.b, tile.group, shared.b_rows, shared.b_columns[half], end - k, b_along_depth);
  };
  if (begin < end) place_columns(begin, 0);
  __syncthreads();
  if (begin < end) fetch(begin, 0);

  A sums[kMine][kMine] = {};
  int half = 0;
  for (int64_t k = begin; k < end; k += kStep, half ^= 1) {
    a.put(shared.a[half], a_along_depth);
    b.put(shared.b[half], b_along_depth);
    place_columns(k + kStep, half ^ 1);
    __syncthreads();
    if (k + kStep < end) fetch(k + kStep, half ^ 1);
#pragma unroll
    for (int d = 0; d < kStep; ++d) {
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

  auto& slice = shared_memory<Shared<A, Size>>().slice;
#pragma unroll
  for (int j = 0; j < kMine; j += kRun) {
    __syncthreads();  // the stages are free, or the slice before is written
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
#pragma unroll
      for (int x = 0; x < kRun; ++x) {
        slice.number[nth(down, i)][across * kRun + x] = sums[i][j + x];
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int run = thread; run < Size * kEdge; run += kThreads) {
      const int64_t row = first_row + run / kEdge;
      const int x = run % kEdge * kRun;
      const int64_t column = first_column + j / kRun * kSlice + x;
      if (row < task.rows && column < task.columns) {
        write_run(task, tile, row, column, &slice.number[run / kEdge][x]);
      }
    }
  }
}

template <typename T, int Size>
void run(Task<T>& task) {
  task.cut(Size, Size, kDepth<Size>);
  run_tiles("gemm_simt", gemm_simt_kernel<T, Size>, kThreads, sizeof(Shared<Accumulator<T>, Size>),
            task);
}

}  // namespace

template <typename T>
void gemm_simt(Product<T> product) {
  // Neighbours in a row of a tile should be neighbours in memory.
  if (product.c.columns.step() != 1 && product.c.rows.step() == 1) product.transpose();
  Task<T> task(product);
  if constexpr (sizeof(Accumulator<T>) == 4) {
    const int64_t tiles = ceil_div(task.rows, 128) * ceil_div(task.columns, 128);
    if (tiles * product.groups >= wave() / 2) return run<T, 128>(task);
  }
  run<T, 64>(task);
}

template void gemm_simt(Product<float>);
template void gemm_simt(Product<double>);
template void gemm_simt(Product<bfloat16>);
template void gemm_simt(Product<float16>);

}  // namespace d2lops
