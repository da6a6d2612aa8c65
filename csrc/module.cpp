// d2lops._C: what was built, and what this machine has. No operators live here: they are in the
// libraries under d2lops/lib, and d2lops.backends asks this module which of them the processor can
// run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

namespace py = pybind11;

// Written by setup.py.
static const char* const kBuildRecord =
#include "build_record.h"
    ;

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
#  undef FEATURE
#endif
  return features;
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "What was built, and what this machine has.";
  m.attr("build_record") = py::module_::import("json").attr("loads")(kBuildRecord);
  m.def("cpu_features", &cpu_features,
        "Instruction sets that the processor and the system support.");
}
