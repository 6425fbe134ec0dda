// The Python face of the core: NumPy arrays in, NumPy arrays out. Arguments were checked in Python; nothing is checked
// twice here.
#include "bindings.hpp"

#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "mmad/bytes.hpp"
#include "mmad/cpu_features.hpp"
#include "mmad/k_center_greedy.hpp"
#include "mmad/knn.hpp"
#include "mmad/memory.hpp"

namespace py = pybind11;

using mmad::python::FloatRows;
using mmad::python::Released;
using mmad::python::view;

void bind_points(py::module_& module);  // bindings_points.cpp
void bind_shards(py::module_& module);  // bindings_shards.cpp
#ifdef MMAD_WITH_CUDA
void bind_cuda(py::module_& module);  // bindings_cuda.cpp
#endif

namespace {

std::string format_name(mmad::Format format) {
  switch (format) {
    case mmad::Format::float32: return "float32";
    case mmad::Format::fixed16: return "fixed16";
    case mmad::Format::fixed8: return "fixed8";
    case mmad::Format::bfloat16: return "bfloat16";
    default: return "unknown";  // formats of queries
  }
}

// `coarse`, of tests: so many coordinates instead of what would be chosen.
mmad::KnnIndex make_index(const FloatRows& bank, const std::string& precision, int threads,
                          std::optional<std::int64_t> coarse) {
  const mmad::Isa isa = mmad::active_isa();
  const auto rows = view(bank);
  const Released released;
  const mmad::Screening screening = coarse.has_value()
                                        ? mmad::Screening{mmad::screening_format(precision, isa), *coarse}
                                        : mmad::choose_screening(rows, precision, isa, threads);
  return mmad::KnnIndex(rows, screening, isa, threads);
}

py::tuple search(const mmad::KnnIndex& index, const FloatRows& queries, std::int64_t k, int threads) {
  py::array_t<float> distances({queries.shape(0), static_cast<py::ssize_t>(k)});
  py::array_t<std::int64_t> indices({queries.shape(0), static_cast<py::ssize_t>(k)});
  {
    const auto rows = view(queries);
    float* to_distances = distances.mutable_data();
    std::int64_t* to_indices = indices.mutable_data();
    const Released released;
    index.search(rows, k, to_distances, to_indices, threads);
  }
  return py::make_tuple(distances, indices);
}

void bind_knn(py::module_& module) {
  py::class_<mmad::KnnIndex>(module, "KnnIndex")
      .def(py::init(&make_index), py::arg("bank").noconvert(), py::arg("precision"), py::arg("threads"),
           py::arg("coarse") = py::none(), py::keep_alive<1, 2>())
      .def("search", &search, py::arg("queries").noconvert(), py::arg("k"), py::arg("threads"))
      .def_property_readonly("nbytes", &mmad::KnnIndex::nbytes)
      .def_property_readonly("coarse", [](const mmad::KnnIndex& index) { return index.screening().coarse; })
      .def_property_readonly("format",
                             [](const mmad::KnnIndex& index) { return format_name(index.screening().format); });
}

py::tuple k_center_greedy(const FloatRows& rows, const FloatRows& centers, std::int64_t count, std::int64_t start,
                          double radius, std::int64_t pool, const std::string& precision, int threads,
                          const py::object& progress) {
  if (precision == "int8") throw std::invalid_argument("precision: int8 rows cannot be multiplied with each other");
  mmad::KCenterOptions options;
  options.start = start;
  options.radius = radius;
  options.pool = pool;
  options.threads = threads;
  options.isa = mmad::active_isa();
  options.format = mmad::screening_format(precision, options.isa);
  options.progress = [&progress](std::int64_t done) {
    mmad::python::check_signals();
    if (progress.is_none()) return;
    const mmad::python::Held held;
    progress(done);
  };
  mmad::KCenterResult result;
  {
    const auto source = view(rows), earlier = view(centers);
    const Released released;
    result = mmad::k_center_greedy(source, earlier, count, options);
  }
  return py::make_tuple(py::array_t<std::int64_t>(static_cast<py::ssize_t>(result.rows.size()), result.rows.data()),
                        py::array_t<double>(static_cast<py::ssize_t>(result.radii.size()), result.radii.data()),
                        result.covering_radius);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Native kernels of mmad-bank.";
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const mmad::OutOfMemory& failure) {
      PyErr_SetString(PyExc_MemoryError, failure.what());
    } catch (const mmad::ScratchError& failure) {
      PyErr_SetString(PyExc_OSError, failure.what());
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "out of memory in the native core");
    }
  });
  module.def("best_isa", [] { return mmad::isa_name(mmad::best_isa()); });
  module.def("active_isa", [] { return mmad::isa_name(mmad::active_isa()); });
  module.def("has_avx512_vnni", &mmad::has_avx512_vnni);
  module.def("compiled_isas", [] {
    std::vector<std::string> names;
    for (const mmad::Isa isa : mmad::compiled_isas()) names.push_back(mmad::isa_name(isa));
    return names;
  });
  bind_knn(module);
  bind_points(module);
  bind_shards(module);
  module.def("k_center_greedy", &k_center_greedy, py::arg("rows").noconvert(), py::arg("centers").noconvert(),
             py::arg("count"), py::arg("start"), py::arg("radius"), py::arg("pool"), py::arg("precision"),
             py::arg("threads"), py::arg("progress"));
#ifdef MMAD_WITH_CUDA
  module.attr("cuda_archs") = MMAD_CUDA_ARCHS;
  bind_cuda(module);
#else
  module.attr("cuda_archs") = "";
#endif
}
