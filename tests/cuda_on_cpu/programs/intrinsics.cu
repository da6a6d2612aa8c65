// CUDA's arithmetic that C++ has no name for.
#include "program.h"

using namespace d2lops;

__global__ void intrinsics(double* out) {
  int i = 0;
  const auto put = [&](auto value) { out[i++] = static_cast<double>(value); };
  put(__popc(0xF0F0u));
  put(__popcll(0xFF00000000FFull));
  put(__ffs(0));
  put(__ffs(24));
  put(__clz(0));
  put(__clz(1));
  put(__brev(6u));
  put(__umulhi(0xFFFFFFFFu, 0xFFFFFFFFu));
  put(__float_as_uint(1.0f));
  put(__float_as_int(-1.0f));
  put(__uint_as_float(0x3F800000u));
  put(__int_as_float(0x40000000));
  put(__fmaf_rn(1.0f + 0x1p-12f, 1.0f + 0x1p-12f, -1.0f));
  put(__saturatef(-2.0f));
  put(__saturatef(0.25f));
  put(__saturatef(2.0f));
  put(__saturatef(NAN));
  put(__ldg(out));
  put(min(-1, 2));
  put(max(-1, 2));
  put(min(3u, 2u));
  put(max(1LL << 40, 1LL));
  put(min(NAN, 2.0f));
  put(max(2.0, 3.0));
}

int main() {
  double* out = managed<double>(24);
  launch(intrinsics, 1, 1, 0, out);
  print(out, 24);
}
