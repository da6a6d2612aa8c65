// d2lops._C: what was built, and what this machine has. No operators live here: they are in the
// libraries under d2lops/lib, and d2lops.backends asks this module which of them the processor can
// run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#if defined(__linux__)
#  include <sys/syscall.h>
#  include <unistd.h>
#endif

namespace py = pybind11;

// Written by setup.py.
static const char* const kBuildRecord =
#include "build_record.h"
    ;

// Tile registers are large: Linux wants to be asked before a process uses them.
static bool may_use_amx() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h of Linux 5.16
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// __builtin_cpu_supports wants literals. It also asks the operating system whether it saves the
// registers.
static std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> features;
#if defined(__x86_64__)
#  define FEATURE(name) features[name] = __builtin_cpu_supports(name)
  FEATURE("avx2");
  FEATURE("fma");
  FEATURE("f16c");
  FEATURE("bmi2");
  FEATURE("avx512f");
  FEATURE("avx512bw");
  FEATURE("avx512dq");
  FEATURE("avx512vl");
  FEATURE("avx512bf16");
#  undef FEATURE
  features["amx"] = may_use_amx();
#endif
  return features;
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "What was built, and what this machine has.";
  m.attr("build_record") = py::module_::import("json").attr("loads")(kBuildRecord);
  m.def("cpu_features", &cpu_features,
        "Instruction sets that the processor and the system support.");
}
