// Matrix products on the tensor cores of Hopper GPUs (gemm.h), bfloat16 and float16, summed in
// float.
//
//   C[i, j] = relu(sum over k of A[i, k] B[j, k] + bias)
//
// Tiling: a block makes 128 x kColumns of C. Of its three warpgroups, one copies and two multiply,
// 64 rows each, a step of 64 along k at a time, through a ring of stages in shared memory: `full`
// says that a stage has come, `empty` that it may be overwritten. The copying threads gather packets
// of 16 bytes (cp.async), up to kAhead stages at once, and give most of their registers to the
// others, whose sums take 128 a thread; a wgmma instruction multiplies 64 x kColumns x 16 straight
// out of shared memory.
// Packets lie along k or across it, as in memory, which wgmma takes as it is. Where a ReLU masks A,
// its output comes along, and fragments of A go through registers, where it blocks them.
//
// Bytes: 2 (128 + kColumns) a k from the second cache, for 128 kColumns multiply-adds. Tensor cores
// are the limit, then the issue of copies (kColumns = 256: 12 packets a thread and step of some
// thousand cycles).
#include "common/window.h"
#include "cuda/gemm.cuh"
#include "cuda/gemm_tile.cuh"
#include "cuda/hopper.h"

namespace d2lops {
namespace {

constexpr int kGroup = 128;           // threads of a warpgroup
constexpr int kThreads = 3 * kGroup;  // one copies, two multiply
constexpr int kRows = 128, kDepth = 64;
constexpr int kTileBytes = kRows * kDepth * 2;

// What fits into 227 KB.
template <int Columns, bool masked>
constexpr int kStages = (masked ? 192 : 160) / ((masked ? 32 : 16) + Columns / 8) + !masked;

}  // namespace
}  // namespace d2lops
