// Every operator of the library, on one screen. Raw operators take canonical arguments, know
// nothing of autograd, and check only what memory safety needs; d2lops/ops/ holds the public
// functions.
//
// Conventions: images are (N, C, H, W) in any strides. `window` is one list, because each list
// costs a small layer much of its time: kernel (height, width; for pooling alone), stride (height,
// width), padding (top, bottom, left, right), dilation (height, width; not for averages), groups
// (for corr2d alone). `y` is the output of a ReLU whose derivative masks `g`: where y <= 0, g
// counts as zero. `tf32` allows GPUs to round float32 numbers to TF32 on the way to tensor cores.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(d2lops, m) {
  // The three partial maps of the trilinear form <corr2d(x, w), g>, and the bias's share of it.
  m.def(
      "corr2d(Tensor x, Tensor weight, Tensor? bias, int[] window, bool relu, bool tf32=False) -> "
      "Tensor");
  m.def(
      "corr2d_input_grad(Tensor g, Tensor? y, Tensor weight, SymInt height, SymInt width, int[] "
      "window, bool tf32=False) -> Tensor");
  m.def(
      "corr2d_weight_grad(Tensor g, Tensor? y, Tensor x, SymInt height, SymInt width, int[] "
      "window, bool tf32=False) -> Tensor");

  // x (M, K), weight (N, K), g and y (M, N).
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, bool tf32=False) -> Tensor");
  m.def("linear_relu(Tensor x, Tensor weight, Tensor? bias, bool tf32=False) -> Tensor");
  m.def("linear_input_grad(Tensor g, Tensor? y, Tensor weight, bool tf32=False) -> Tensor");
  m.def("linear_weight_grad(Tensor g, Tensor? y, Tensor x, bool tf32=False) -> Tensor");
  m.def("bias_grad(Tensor g, Tensor? y) -> Tensor");  // sums over every dimension but the second

  // Max-pooling gives the maximum and where in its window it was found: uint8, or int32 for windows
  // of more than 255 elements. `gather` is the linear map that argmax picks; `scatter` is its
  // adjoint.
  m.def("max_pool2d(Tensor x, int[] window, bool ceil_mode) -> (Tensor, Tensor)");
  m.def("max_pool2d_gather(Tensor x, Tensor argmax, int[] window) -> Tensor");
  m.def(
      "max_pool2d_scatter(Tensor g, Tensor argmax, SymInt height, SymInt width, int[] window) -> "
      "Tensor");
  m.def("max_pool2d_indices(Tensor argmax, SymInt height, SymInt width, int[] window) -> Tensor");
  m.def("adaptive_max_pool2d(Tensor x, SymInt height, SymInt width) -> (Tensor, Tensor)");
  m.def("adaptive_max_pool2d_gather(Tensor x, Tensor argmax) -> Tensor");
  m.def(
      "adaptive_max_pool2d_scatter(Tensor g, Tensor argmax, SymInt height, SymInt width) -> "
      "Tensor");
  m.def("adaptive_max_pool2d_indices(Tensor argmax, SymInt height, SymInt width) -> Tensor");

  m.def(
      "avg_pool2d(Tensor x, int[] window, bool count_include_pad, int? divisor, bool ceil_mode) -> "
      "Tensor");
  m.def(
      "avg_pool2d_adjoint(Tensor g, SymInt height, SymInt width, int[] window, bool "
      "count_include_pad, int? divisor) -> Tensor");
  m.def("adaptive_avg_pool2d(Tensor x, SymInt height, SymInt width) -> Tensor");
  m.def("adaptive_avg_pool2d_adjoint(Tensor g, SymInt height, SymInt width) -> Tensor");

  // Element e is kept when word e mod 4 of Philox4x32-10(seed, e div 4) >= ceil(p 2^32). Its own
  // adjoint.
  m.def("dropout(Tensor x, Tensor seed, float p) -> Tensor");

  // Not an operator of the book: a chain of fused multiply-adds, by which the benchmark suite
  // measures what the arithmetic units of this machine can do at most.
  m.def("fma_chain(Tensor x, int rounds) -> Tensor");
}
