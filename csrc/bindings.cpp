// The Python face of the core: NumPy arrays in, NumPy arrays out. Arguments were checked in Python; nothing is checked
// twice here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "mmad/cpu_features.hpp"
#include "mmad/matrix.hpp"

namespace py = pybind11;

#ifdef MMAD_WITH_CUDA
void bind_cuda(py::module_& module);  // bindings_cuda.cpp
#endif

PYBIND11_MODULE(_core, module) {
  module.doc() = "Native kernels of mmad-bank.";
  module.def("best_isa", [] { return mmad::isa_name(mmad::best_isa()); });
  module.def("active_isa", [] { return mmad::isa_name(mmad::active_isa()); });
  module.def("has_avx512_vnni", &mmad::has_avx512_vnni);
#ifdef MMAD_WITH_CUDA
  module.attr("cuda_archs") = MMAD_CUDA_ARCHS;
  bind_cuda(module);
#else
  module.attr("cuda_archs") = "";
#endif
}
