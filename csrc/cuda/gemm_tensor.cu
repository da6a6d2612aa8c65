// Which tensor cores a product goes to: by the GPU, and by its size.
#include "cuda/gemm.h"
#include "cuda/launch.h"

namespace d2lops {

template <typename T>
void gemm_tensor(const Product<T>& product) {
  if constexpr (sizeof(T) == 2) {
    // Tiles of 128 columns would be half empty for fewer.
    const bool wide = product.c.columns.size() > 64;
    if (current_device().wgmma && wide) return gemm_wgmma(product);
  }
  gemm_mma(product);
}

template void gemm_tensor(const Product<float>&);
template void gemm_tensor(const Product<bfloat16>&);
template void gemm_tensor(const Product<float16>&);

}  // namespace d2lops
