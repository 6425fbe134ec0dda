// Python face of the point cloud kernels. Outputs are allocated here, inputs were checked in Python.
#include "bindings.hpp"
#include "mmad/farthest_point_sample.hpp"
#include "mmad/interpolate_features.hpp"
#include "mmad/knn_group.hpp"

namespace py = pybind11;

using mmad::python::FloatRows;
using mmad::python::Indices;
using mmad::python::Released;
using mmad::python::view;

namespace {

Indices farthest_point_sample(const FloatRows& points, const Indices& first_rows, const Indices& lengths,
                              std::int64_t n_select, std::int64_t start, double min_norm_sq, int threads) {
  Indices selected({lengths.shape(0), static_cast<py::ssize_t>(n_select)});
  const mmad::Clouds clouds{view(points), first_rows.data(), lengths.data(), lengths.shape(0)};
  std::int64_t* output = selected.mutable_data();
  const Released released;
  mmad::farthest_point_sample(clouds, n_select, start, min_norm_sq, threads, output);
  return selected;
}

Indices knn_group(const FloatRows& points, const FloatRows& centers, std::int64_t k, int threads) {
  Indices indices({centers.shape(0), static_cast<py::ssize_t>(k)});
  const auto from = view(points), to = view(centers);
  std::int64_t* output = indices.mutable_data();
  const Released released;
  mmad::knn_group(from, to, k, threads, output);
  return indices;
}

FloatRows interpolation_weights(const FloatRows& points, const FloatRows& centers, std::int64_t k, double power,
                                double eps, int threads) {
  FloatRows weights({points.shape(0), centers.shape(0)});
  const auto to = view(points), from = view(centers);
  const mmad::Matrix<float> output(weights.mutable_data(), points.shape(0), centers.shape(0));
  const Released released;
  mmad::interpolation_weights(to, from, {k, power, eps}, threads, output);
  return weights;
}

void interpolate_features(const FloatRows& points, const FloatRows& centers, const FloatRows& features, std::int64_t k,
                          double power, double eps, int threads, FloatRows& output) {
  const auto to = view(points), from = view(centers), rows = view(features);
  const mmad::Matrix<float> result(output.mutable_data(), output.shape(0), output.shape(1));
  const Released released;
  mmad::interpolate_features(to, from, rows, {k, power, eps}, threads, result);
}

}  // namespace

void bind_points(py::module_& module) {
  module.def("farthest_point_sample", &farthest_point_sample, py::arg("points").noconvert(),
             py::arg("first_rows").noconvert(), py::arg("lengths").noconvert(), py::arg("n_select"), py::arg("start"),
             py::arg("min_norm_sq"), py::arg("threads"));
  module.def("knn_group", &knn_group, py::arg("points").noconvert(), py::arg("centers").noconvert(), py::arg("k"),
             py::arg("threads"));
  module.def("interpolation_weights", &interpolation_weights, py::arg("points").noconvert(),
             py::arg("centers").noconvert(), py::arg("k"), py::arg("power"), py::arg("eps"), py::arg("threads"));
  module.def("interpolate_features", &interpolate_features, py::arg("points").noconvert(),
             py::arg("centers").noconvert(), py::arg("features").noconvert(), py::arg("k"), py::arg("power"),
             py::arg("eps"), py::arg("threads"), py::arg("output").noconvert());
}
