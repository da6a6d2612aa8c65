// Linear and linear + ReLU (D2L 3, 5.1):  y = relu(x W^T + b),  x (M, K), W (N, K), y (M, N)
//
//   input gradient    (g . [y > 0]) W        M x K, summed over N
//   weight gradient   (g . [y > 0])^T x      N x K, summed over M
//
// Three matrix products that differ in how memory is read: each is the core of gemm.h over two
// strided matrices. Bias and ReLU ride on the way out, while a piece of y is in the first-level
// cache; backward reads y's sign while it packs g, so neither the product before the ReLU nor the
// masked gradient ever exists. Flops 2 M N K; the FMA units are the limit but for small M, where
// reading W is.
#include <utility>
#include <vector>

#include "common/integer.h"
#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "operators.h"

namespace d2lops {
namespace {

// What a layer does to a piece of its product on the way out: add the bias, clamp at zero (NaN
// stays NaN), round. There is a bias for each of `width` outputs.
template <typename T>
class Writer {
 public:
  using A = Accumulator<T>;

  Writer(T* out, int64_t width, const Epilogue<T>& epilogue)
      : out_(out), width_(width), relu_(epilogue.relu) {
    if (!epilogue.bias) return;
    bias_.resize(width + kCols<A>);
    read_row(epilogue.bias, epilogue.bias_stride, width, bias_.data());
  }

  // Rows of the piece are rows of out.
  void rows(int64_t i, int64_t j, int rows, int cols, const A* c) const {
    constexpr int lanes = kLanes<A>;
    T* to = out_ + i * width_ + j;
    for (int r = 0; r < rows; ++r, c += kCols<A>, to += width_) {
      int x = 0;
      for (; x + lanes <= cols; x += lanes) store(to + x, finish(load<A>(c + x), j + x));
      if (x == cols) continue;
      if (x > 0) {
        x = cols - lanes;  // again the last ones, together with the rest
        store(to + x, finish(load<A>(c + x), j + x));
      } else {
        store_first(to, finish(load<A>(c), j), cols);
      }
    }
  }

  // Columns of the piece are rows of out: it is transposed in registers.
  void columns(int64_t i, int64_t j, int rows, int cols, const A* c) const {
    constexpr int lanes = kLanes<A>, step = std::min(kRows, lanes);
    for (int r = 0; r < rows; r += step) {
      for (int x = 0; x < cols; x += lanes) {
        Vec<A> block[step];
        for (int s = 0; s < step; ++s) block[s] = load<A>(c + (r + s) * kCols<A> + x);
        transpose<step, A>(block);
        alignas(kVectorBytes) A values[step * lanes + lanes];
        for (int s = 0; s < step; ++s) store(values + s * lanes, block[s]);
        T* to = out_ + (j + x) * width_ + i + r;
        for (int s = 0; s < std::min(cols - x, lanes); ++s, to += width_) {
          const Vec<A> value = finish(load<A>(values + s * step), i + r);
          store_first(to, value, std::min(rows - r, step));
        }
      }
    }
  }

 private:
  Vec<A> finish(Vec<A> value, int64_t at) const {
    if (!bias_.empty()) value += load<A>(bias_.data() + at);
    return relu_ ? (value < Vec<A>{} ? Vec<A>{} : value) : value;
  }

  T* out_;
  int64_t width_;
  bool relu_;
  std::vector<A> bias_;
};

// A few rows of A, too few to pay for packing B: each row of B is read once, as it lies, and
// multiplied by all of A's. Four rows at a time keep four sums going.
constexpr int64_t kFewRows = 3;

template <typename T>
void few_rows(int64_t m, int64_t n, int64_t depth, const Matrix<T>& a, const Matrix<T>& b,
              const Writer<T>& out) {
  using A = Accumulator<T>;
  constexpr int lanes = kLanes<A>, group = 4;
  parallel_for(0, ceil_div(n, group), grain(16 * group * depth), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * group; j < std::min(end * group, n); j += group) {
      const int rows = static_cast<int>(std::min<int64_t>(group, n - j));
      for (int64_t i = 0; i < m; ++i) {
        const T* x = a.data + i * a.i_stride;
        Vec<A> sums[group] = {};
        const T* w[group];
        for (int r = 0; r < group; ++r) w[r] = b.data + (j + std::min(r, rows - 1)) * b.i_stride;
        int64_t k = 0;
        for (; k + lanes <= depth; k += lanes) {
          const Vec<A> values = load<A>(x + k);
          for (int r = 0; r < group; ++r) sums[r] += values * load<A>(w[r] + k);
        }
        if (const int rest = static_cast<int>(depth - k)) {
          const Vec<A> values = load_first<A>(x + k, rest);
          for (int r = 0; r < group; ++r) sums[r] += values * load_first<A>(w[r] + k, rest);
        }
        A c[lanes + group];
        for (int r = 0; r < rows; ++r) c[r] = horizontal_sum<A>(sums[r]);
        out.rows(i, j, 1, rows, c);
      }
    }
  });
}

// The same where rows of B lie across k: they are read as they lie, some side by side, and added to
// sums in the first-level cache, in the order and the blocks of gemm.h.
template <int Group, typename T, typename A>
void add_rows(int64_t m, int64_t cols, const A* a, const T* b, int64_t stride, A* sums,
              int64_t width) {
  constexpr int lanes = kLanes<A>;
  for (int64_t x = 0; x < cols; x += lanes) {
    const int rest = static_cast<int>(cols - x);
    Vec<A> row[Group];
    for (int g = 0; g < Group; ++g) {
      const T* from = b + g * stride + x;
      row[g] = rest < lanes ? load_first<A>(from, rest) : load<A>(from);
      __builtin_prefetch(from + Group * stride);
    }
    for (int64_t i = 0; i < m; ++i) {
      Vec<A> sum = load<A>(sums + i * width + x);
#pragma GCC unroll 4
      for (int g = 0; g < Group; ++g) sum += broadcast(a[g * kRows + i]) * row[g];
      store(sums + i * width + x, sum);
    }
  }
}

template <typename T>
void few_rows_across(int64_t m, int64_t n, int64_t depth, const Matrix<T>& a, const Matrix<T>& b,
                     const Writer<T>& out) {
  using A = Accumulator<T>;
  constexpr int64_t lanes = kLanes<A>, group = 4, most = 4096;  // sums of a task
  const int64_t threads = get_num_threads();
  const int64_t width = round_up(std::min(most / m, ceil_div(n, threads)), lanes);
  const Blocks blocks(depth);
  parallel_for(0, ceil_div(n, width), grain(m * width * depth), [&](int64_t begin, int64_t end) {
    A* const total = scratch<A>(2 * m * width + panel_size<kRows, A>(kDepth));
    A *const sums = total + m * width, *const panel = sums + m * width;
    for (int64_t j = begin * width; j < std::min(end * width, n); j += width) {
      const int64_t cols = std::min(width, n - j);
      std::fill_n(total, m * width, A{0});
      for (int64_t k = 0; k < depth; k += blocks.depth) {
        const int block = static_cast<int>(std::min(blocks.depth, depth - k));
        const T* from = b.data + k * b.k_stride + j;
        pack<kRows>(a, 0, m, k, block, panel);
        std::fill_n(sums, m * width, A{0});
        int d = 0;
        for (; d + group <= block; d += group)
          add_rows<group>(m, cols, panel + d * kRows, from + d * b.k_stride, b.k_stride, sums,
                          width);
        for (; d < block; ++d)
          add_rows<1>(m, cols, panel + d * kRows, from + d * b.k_stride, b.k_stride, sums, width);
        for (int64_t x = 0; x < m * width; x += lanes)
          store(total + x, load<A>(total + x) + load<A>(sums + x));
      }
      for (int64_t i = 0; i < m; ++i) out.rows(i, j, 1, static_cast<int>(cols), total + i * width);
    }
  });
}

// c = A B^T by tiles, each of whose pieces goes to write(i, j, rows, cols, c).
template <typename T, typename Write>
void tiles(int64_t m, int64_t n, int64_t depth, const Matrix<T>& a, const Matrix<T>& b,
           const Write& write) {
  using A = Accumulator<T>;
  const Tiling tiling(m, n, 1, get_num_threads(), kCols<A>);
  parallel_for(0, tiling.count(), grain(tiling.rows * tiling.cols * depth),
               [&](int64_t begin, int64_t end) {
                 for (int64_t tile = begin; tile < end; ++tile)
                   gemm_tile<A>(tiling, tile, 0, depth, a, b, write);
               });
}

// c = A B^T into out (m x n, contiguous).
template <typename T>
void product(int64_t m, int64_t n, int64_t depth, const Matrix<T>& a, const Matrix<T>& b,
             const Epilogue<T>& epilogue, T* out) {
  if (m == 0 || n == 0) return;
  const Writer<T> writer(out, n, epilogue);
  if (m <= kFewRows && a.k_stride == 1 && b.k_stride == 1 && !a.y) {
    return few_rows(m, n, depth, a, b, writer);
  }
  if (m <= kRows && b.i_stride == 1) return few_rows_across(m, n, depth, a, b, writer);
  // Whichever of the two leaves fewer lanes empty lies along vectors.
  const auto padded = [](int64_t count) {
    constexpr int lanes = kLanes<Accumulator<T>>;
    return round_up(count, lanes);
  };
  if (20 * padded(m) * n < 19 * m * padded(n)) {
    tiles(n, m, depth, b, a, [&](int64_t i, int64_t j, int rows, int cols, const auto* c) {
      writer.columns(i, j, rows, cols, c);
    });
  } else {
    tiles(m, n, depth, a, b, [&](int64_t i, int64_t j, int rows, int cols, const auto* c) {
      writer.rows(i, j, rows, cols, c);
    });
  }
}

// Element (i, k) of a reader is x[i, k], or x[k, i] if transposed; likewise for its mask y.
template <typename T>
Matrix<T> matrix(const Input& x, bool transposed, const Input& y = {}) {
  const auto order = [transposed](int64_t n, int64_t c) {
    return transposed ? std::pair(c, n) : std::pair(n, c);
  };
  const auto [i, k] = order(x.n, x.c);
  const auto [y_i, y_k] = order(y.n, y.c);
  return {x.as<T>().data, i, k, y.as<T>().data, y_i, y_k};
}

}  // namespace

void linear(const ProductSize& size, const Input& x, const Input& weight, const Bias& bias,
            bool relu, const Output& y) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Epilogue<T> epilogue{static_cast<const T*>(bias.data), bias.stride, relu};
    product(size.rows, size.columns, size.depth, matrix<T>(x, false), matrix<T>(weight, false),
            epilogue, y.as<T>().data);
  });
}

void linear_input_grad(const ProductSize& size, const Input& g, const Input& y, const Input& weight,
                       const Output& dx) {
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    product(size.rows, size.columns, size.depth, matrix<T>(g, false, y), matrix<T>(weight, true),
            Epilogue<T>{}, dx.as<T>().data);
  });
}

void linear_weight_grad(const ProductSize& size, const Input& g, const Input& y, const Input& x,
                        const Output& dw) {
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    product(size.rows, size.columns, size.depth, matrix<T>(g, true, y), matrix<T>(x, true),
            Epilogue<T>{}, dw.as<T>().data);
  });
}

}  // namespace d2lops
