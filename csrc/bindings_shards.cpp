// Shards and coordinators of a selection (mmad/k_center_shards.hpp) for Python.
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "mmad/cpu_features.hpp"
#include "mmad/k_center_shards.hpp"
#include "mmad/knn.hpp"

namespace py = pybind11;

using mmad::python::FloatRows;
using mmad::python::Indices;
using mmad::python::Released;
using mmad::python::view;

namespace {

using Doubles = py::array_t<double, py::array::c_style>;

mmad::KCenterOptions options_for(const std::string& precision, int threads) {
  mmad::KCenterOptions options;
  options.threads = threads;
  options.isa = mmad::active_isa();
  options.format = mmad::screening_format(precision, options.isa);
  return options;
}

mmad::KCenterShard make_shard(const FloatRows& rows, std::int64_t centers, const std::string& precision, int threads,
                              const std::string& scratch, int file) {
  const auto source = view(rows);
  mmad::KCenterOptions options = options_for(precision, threads);
  options.scratch = scratch;
  options.file = file;
  const Released released;
  return mmad::KCenterShard(source, centers, options);
}

mmad::KCenterCoordinator make_coordinator(std::int64_t rows, std::int64_t earlier, std::int64_t count,
                                          std::int64_t start, double radius, std::int64_t pool, double sinking,
                                          const std::string& precision, int threads) {
  mmad::KCenterOptions options = options_for(precision, threads);
  options.start = start;
  options.radius = radius;
  options.pool = pool;
  options.sinking = sinking;
  return mmad::KCenterCoordinator(rows, earlier, count, options);
}

std::vector<mmad::KCenterCandidate> candidates(const Doubles& squared, const Indices& rows) {
  std::vector<mmad::KCenterCandidate> list;
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) list.push_back({squared.at(i), rows.at(i)});
  return list;
}

std::pair<Doubles, Indices> arrays(const std::vector<mmad::KCenterCandidate>& list) {
  const auto n = static_cast<py::ssize_t>(list.size());
  Doubles squared(n);
  Indices rows(n);
  double* to_squared = squared.mutable_data();
  std::int64_t* to_rows = rows.mutable_data();
  for (py::ssize_t i = 0; i < n; ++i) {
    to_squared[i] = list[i].squared;
    to_rows[i] = list[i].row;
  }
  return {squared, rows};
}

py::tuple rise(mmad::KCenterShard* shard, double bar, std::int64_t at_most) {
  mmad::KCenterCandidates found;
  {
    const Released released;
    found = shard->rise(bar, at_most);
  }
  const auto [squared, rows] = arrays(found.top);
  return py::make_tuple(squared, rows, found.above, found.below);
}

void bind_shard(py::module_& module) {
  using Shard = mmad::KCenterShard;
  py::class_<Shard>(module, "KCenterShard")
      .def(py::init(&make_shard), py::arg("rows").noconvert(), py::arg("centers"), py::arg("precision"),
           py::arg("threads"), py::arg("scratch"), py::arg("file"), py::keep_alive<1, 2>())
      .def(
          "meet",
          [](Shard* shard, const FloatRows& centers, const Indices& own) {
            const auto rows = view(centers);
            const std::int64_t* numbers = own.data();
            const Released released;
            shard->meet(rows, numbers);
          },
          py::arg("centers").noconvert(), py::arg("own").noconvert())
      .def(
          "settle",
          [](Shard* shard, const Doubles& squared, const Indices& rows) { shard->settle(candidates(squared, rows)); },
          py::arg("squared").noconvert(), py::arg("rows").noconvert())
      .def("rise", &rise, py::arg("bar"), py::arg("at_most"))
      .def_property_readonly("updates", &Shard::updates);
}

void bind_coordinator(py::module_& module) {
  using Coordinator = mmad::KCenterCoordinator;
  py::class_<Coordinator>(module, "KCenterCoordinator")
      .def(py::init(&make_coordinator), py::arg("rows"), py::arg("earlier"), py::arg("count"), py::arg("start"),
           py::arg("radius"), py::arg("pool"), py::arg("sinking"), py::arg("precision"), py::arg("threads"))
      .def_property_readonly("bar", &Coordinator::bar)
      .def_property_readonly("wanted", &Coordinator::wanted)
      .def(
          "offer",
          [](Coordinator* coordinator, const Doubles& squared, const Indices& rows, std::int64_t above, double below) {
            coordinator->offer({candidates(squared, rows), above, below});
          },
          py::arg("squared").noconvert(), py::arg("rows").noconvert(), py::arg("above"), py::arg("below"))
      .def("join", &Coordinator::join)
      .def("pool", [](const Coordinator& coordinator) { return arrays(coordinator.pool()); })
      .def(
          "pick",
          [](Coordinator* coordinator, const FloatRows& pool) {
            const auto rows = view(pool);
            const Released released;
            return coordinator->pick(rows);
          },
          py::arg("pool").noconvert())
      .def_property_readonly("complete", &Coordinator::complete)
      .def_property_readonly("covered", &Coordinator::covered)
      .def_property_readonly("covering_radius",
                             [](const Coordinator& coordinator) { return coordinator.result().covering_radius; })
      .def(
          "picks",
          [](const Coordinator& coordinator, std::int64_t from) {
            const mmad::KCenterResult& result = coordinator.result();
            const auto n = static_cast<py::ssize_t>(result.rows.size()) - static_cast<py::ssize_t>(from);
            return py::make_tuple(py::array_t<std::int64_t>(n, result.rows.data() + from),
                                  py::array_t<double>(n, result.radii.data() + from));
          },
          py::arg("from"));
}

}  // namespace

void bind_shards(py::module_& module) {
  bind_shard(module);
  bind_coordinator(module);
}
