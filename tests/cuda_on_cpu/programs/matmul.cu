// C = A B in tiles through shared memory, with both barriers or without one of them.
#include "program.h"

using namespace d2lops;

enum Missing { nothing, before_use, after_use };

constexpr int kTile = 64, kDepth = 16, kEach = 4;

template <Missing missing>
__global__ void __launch_bounds__(256)
    matmul(const float* a, const float* b, float* c, int rows, int columns, int depth) {
  float* a_tile = shared<float>();
  float* b_tile = a_tile + kTile * kDepth;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int row = blockIdx.y * kTile, column = blockIdx.x * kTile;
  float sums[kEach][kEach] = {};
  for (int k = 0; k < depth; k += kDepth) {
    for (int i = thread; i < kTile * kDepth; i += 256) {
      const int r = row + i / kDepth, c = column + i % kTile;
      const int ka = k + i % kDepth, kb = k + i / kTile;
      a_tile[i] = r < rows && ka < depth ? a[r * depth + ka] : 0.0f;
      b_tile[i] = c < columns && kb < depth ? b[kb * columns + c] : 0.0f;
    }
    if (missing != before_use) __syncthreads();
    for (int l = 0; l < kDepth; ++l) {
      for (int i = 0; i < kEach; ++i) {
        for (int j = 0; j < kEach; ++j) {
          sums[i][j] += a_tile[(threadIdx.y * kEach + i) * kDepth + l] *
                        b_tile[l * kTile + threadIdx.x * kEach + j];
        }
      }
    }
    if (missing != after_use) __syncthreads();
  }
  for (int i = 0; i < kEach; ++i) {
    for (int j = 0; j < kEach; ++j) {
      const int r = row + threadIdx.y * kEach + i, s = column + threadIdx.x * kEach + j;
      if (r < rows && s < columns) c[r * columns + s] = sums[i][j];
    }
  }
}

// Whole numbers, small enough for every sum to be exact.
template <Missing missing>
bool is_right(int rows, int columns, int depth) {
  auto *a = managed<float>(rows * depth), *b = managed<float>(depth * columns);
  auto* c = managed<float>(rows * columns);
  for (int i = 0; i < rows * depth; ++i) a[i] = static_cast<float>(i * 7 % 13 - 6);
  for (int i = 0; i < depth * columns; ++i) b[i] = static_cast<float>(i * 5 % 11 - 5);
  launch(matmul<missing>, dim3((columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile),
         dim3(16, 16), 2 * kTile * kDepth * sizeof(float), a, b, c, rows, columns, depth);
  bool right = true;
  for (int i = 0; i < rows * columns; ++i) {
    float expected = 0;
    for (int k = 0; k < depth; ++k) {
      expected += a[i / columns * depth + k] * b[k * columns + i % columns];
    }
    right = right && c[i] == expected;
  }
  return right;
}

int main(int, char** arguments) {
  const std::string missing = arguments[1];
  bool right = false;
  if (missing == "nothing")
    right = is_right<nothing>(256, 256, 256) && is_right<nothing>(65, 130, 33);
  if (missing == "before_use") right = is_right<before_use>(128, 64, 64);
  if (missing == "after_use") right = is_right<after_use>(128, 64, 64);
  std::printf(right ? "right\n" : "wrong\n");
}
