// What the kernels of gemm.h's product have in common: how it is cut into tiles and parts, and what
// happens to a result on its way out.
#pragma once

#include <algorithm>

#include "common/integer.h"
#include "cuda/device.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"

namespace d2lops {

constexpr int64_t kPart = 512;  // the least of a sum that is worth a block of its own
constexpr int64_t kBand = 8;    // rows of tiles that run at a time, to find B in the second cache

// Blocks that keep this GPU busy.
inline int64_t wave() { return 2 * current_device().multiprocessors; }

template <typename T>
struct Task {
  using A = Accumulator<T>;
  Product<T> product;
  int64_t rows, columns, depth;
  int64_t tiles_down = 0, tiles_across = 0, parts = 1, part_depth = 0;
  A* partial = nullptr;  // [group][part][row][column], if there are several parts

  explicit Task(const Product<T>& product)
      : product(product),
        rows(product.c.rows.size()),
        columns(product.c.columns.size()),
        depth(product.depth) {}

  int64_t numbers() const { return product.groups * rows * columns; }
  int64_t blocks() const { return product.groups * tiles_down * tiles_across * parts; }

  // A long sum over few tiles is split, into parts of a multiple of `step`.
  void cut(int tile_rows, int tile_columns, int64_t step) {
    tiles_down = ceil_div(rows, tile_rows);
    tiles_across = ceil_div(columns, tile_columns);
    parts = 1;
    parts = std::min(ceil_div(wave(), at_least_one(blocks())), at_least_one(depth / kPart));
    part_depth = round_up(ceil_div(depth, parts), step);
  }

 private:
  static int64_t at_least_one(int64_t n) { return std::max<int64_t>(n, 1); }
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

template <typename T>
__device__ T finish(const Product<T>& product, int64_t group, int64_t row, int64_t column,
                    Accumulator<T> value) {
  if (product.bias) {
    const int64_t i = product.bias_per_row ? row : column;
    value += widen(product.bias[group * product.bias_group_stride + i * product.bias_stride]);
  }
  return narrow<T>(product.relu && value < 0 ? 0 : value);  // NaN stays NaN
}

template <typename T>
__device__ Accumulator<T>* partial_row(const Task<T>& task, const Tile& tile, int64_t row) {
  return task.partial + ((tile.group * task.parts + tile.part) * task.rows + row) * task.columns;
}

// Adds up the parts of each sum, in their order.
template <typename T>
__global__ __launch_bounds__(256) void add_parts_kernel(const __grid_constant__ Task<T> task) {
  const Product<T>& product = task.product;
  const int64_t size = task.rows * task.columns;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < product.groups * size; i += step) {
    const int64_t group = i / size, row = i % size / task.columns, column = i % task.columns;
    const auto* from = task.partial + group * task.parts * size + i % size;
    Accumulator<T> sum = 0;
    for (int64_t part = 0; part < task.parts; ++part) sum += from[part * size];
    const Place r = product.c.rows.at(row), c = product.c.columns.at(column);
    if (!product.c.inside(r, c)) continue;
    product.c.data[group * product.c.group_stride + r.offset + c.offset] =
        finish(product, group, row, column, sum);
  }
}

// Runs a kernel over all tiles, and adds up the parts.
template <typename T>
void run_tiles(const char* name, void (*kernel)(Task<T>), int threads, size_t shared,
               Task<T>& task) {
  using A = Accumulator<T>;
  const Workspace partial(task.parts > 1 ? task.parts * task.numbers() * sizeof(A) : 0);
  task.partial = partial.as<A>();
  launch(name, kernel, dim3(static_cast<unsigned>(task.blocks())), threads, shared, task);
  if (task.parts == 1) return;
  const int64_t most = 8 * current_device().multiprocessors;
  launch("add_parts", add_parts_kernel<T>,
         dim3(static_cast<unsigned>(std::min(ceil_div(task.numbers(), 256), most))), 256, 0, task);
}

}  // namespace d2lops
