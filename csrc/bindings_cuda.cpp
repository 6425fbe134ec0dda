// The Python face of the CUDA part. Pointers and streams come as integers (torch.Tensor.data_ptr(),
// torch.cuda.Stream.cuda_stream); mmad_bank/ops/_cuda/ owns the memory and has checked everything but values.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <tuple>
#include <utility>

#include "mmad/cuda_device.hpp"
#include "mmad/cuda_k_center_greedy.hpp"
#include "mmad/cuda_k_center_shard.hpp"
#include "mmad/cuda_knn.hpp"
#include "mmad/cuda_operand.hpp"
#include "mmad/cuda_points.hpp"

namespace py = pybind11;

namespace {

using mmad::cuda::Stream;
using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Stream stream_at(Address address) { return reinterpret_cast<Stream>(address); }

struct OperandArguments {  // an operand as Python holds it
  Address buffer;
  std::int64_t rows;
  int dim;
  bool int8;
  int resident;
  Address streamed;

  mmad::cuda::Operand view() const {
    return mmad::cuda::operand_view(at<void>(buffer), rows, dim, int8, resident, at<void>(streamed));
  }
};

void prepare(int device, Address stream, const OperandArguments& operand, Address rows, std::int64_t count,
             std::int64_t stride, Address center, std::int64_t first) {
  mmad::cuda::set_device(device);
  const mmad::cuda::Operand view = operand.view();
  if (first == 0) mmad::cuda::operand_begin(view, stream_at(stream));
  mmad::cuda::prepare_rows(at<const float>(rows), count, stride, at<const float>(center), view, first,
                           stream_at(stream));
}

std::size_t knn_workspace(int device, std::int64_t queries, const OperandArguments& bank, int k) {
  return mmad::cuda::plan_knn(queries, bank.view(), k, mmad::cuda::device_limits(device)).workspace_bytes;
}

void knn(int device, Address stream, Address queries, std::int64_t count, const OperandArguments& operand, Address rows,
         Address center, int k, Address workspace, Address distances, Address indices) {
  mmad::cuda::set_device(device);
  const mmad::cuda::DeviceLimits limits = mmad::cuda::device_limits(device);
  const mmad::cuda::KnnBank bank{operand.view(), at<const float>(rows), at<const float>(center)};
  const mmad::cuda::KnnPlan plan = mmad::cuda::plan_knn(count, bank.operand, k, limits);
  mmad::cuda::knn(at<const float>(queries), count, bank, k, plan, limits, at<void>(workspace), at<float>(distances),
                  at<std::int64_t>(indices), stream_at(stream));
}

void gather_rows(int device, Address stream, Address rows, std::int64_t row_count, int dim, Address indices,
                 std::int64_t count, Address output) {
  mmad::cuda::set_device(device);
  mmad::cuda::gather_rows(at<const float>(rows), row_count, dim, at<const std::int64_t>(indices), count,
                          at<float>(output), stream_at(stream));
}

using Report = std::optional<std::function<void(std::int64_t)>>;

mmad::cuda::KCenterProblem k_center_problem(const OperandArguments& operand, std::int64_t earlier_count,
                                            std::int64_t count, std::int64_t pool) {
  mmad::cuda::KCenterProblem problem;
  problem.operand = operand.view();
  problem.earlier_count = earlier_count;
  problem.count = count;
  problem.pool = pool;
  return problem;
}

std::size_t k_center_workspace(int device, const OperandArguments& operand, std::int64_t earlier_count,
                               std::int64_t count, std::int64_t pool) {
  return mmad::cuda::k_center_workspace_bytes(k_center_problem(operand, earlier_count, count, pool),
                                              mmad::cuda::device_limits(device));
}

std::pair<std::int64_t, double> k_center_greedy(int device, Address stream, const OperandArguments& operand,
                                                Address rows, Address earlier, std::int64_t earlier_count,
                                                Address center, std::int64_t count, std::int64_t start, double radius,
                                                std::int64_t pool, Address workspace, Address picks, Address radii,
                                                const Report& report) {
  mmad::cuda::KCenterProblem problem = k_center_problem(operand, earlier_count, count, pool);
  problem.rows = at<const float>(rows);
  problem.earlier = at<const float>(earlier);
  problem.center = at<const float>(center);
  problem.start = start;
  problem.radius = radius;
  const py::gil_scoped_release release;  // std::function takes the lock again for each call
  mmad::cuda::set_device(device);
  const mmad::cuda::KCenterOutcome outcome = mmad::cuda::k_center_greedy(
      problem, mmad::cuda::device_limits(device), at<void>(workspace), at<std::int64_t>(picks), at<double>(radii),
      report.value_or(nullptr), stream_at(stream));
  return {outcome.count, outcome.covering_radius};
}

mmad::cuda::KCenterShardRows shard_rows(const OperandArguments& operand, std::int64_t centers) {
  mmad::cuda::KCenterShardRows shard;
  shard.operand = operand.view();
  shard.centers = centers;
  return shard;
}

std::size_t k_center_shard_workspace(int device, const OperandArguments& operand, std::int64_t centers) {
  return mmad::cuda::k_center_shard_workspace_bytes(shard_rows(operand, centers), mmad::cuda::device_limits(device));
}

class KCenterShard {  // a shard on its device
 public:
  KCenterShard(int device, Address stream, const OperandArguments& operand, Address rows, Address center,
               std::int64_t centers, Address workspace, const py::object&)
      : device_(device), shard_(make(device, stream, operand, rows, center, centers, workspace)) {}

  void meet(Address centers, std::int64_t count, Address own) {
    mmad::cuda::set_device(device_);
    shard_.meet(at<const float>(centers), count, at<const std::int64_t>(own));
  }

  void settle(Address rows, Address squared, std::int64_t count) {
    mmad::cuda::set_device(device_);
    shard_.settle(at<const std::int64_t>(rows), at<const double>(squared), count);
  }

  std::tuple<std::int64_t, std::int64_t, double> rise(double bar, std::int64_t at_most, Address results, Address rows,
                                                      Address squared) {
    const py::gil_scoped_release release;  // other shards may be asked meanwhile
    mmad::cuda::set_device(device_);
    const mmad::cuda::KCenterRise found =
        shard_.rise(bar, at_most, at<void>(results), at<std::int64_t>(rows), at<double>(squared));
    return {found.count, found.above, found.below};
  }

 private:
  static mmad::cuda::KCenterShard make(int device, Address stream, const OperandArguments& operand, Address rows,
                                       Address center, std::int64_t centers, Address workspace) {
    mmad::cuda::set_device(device);
    mmad::cuda::KCenterShardRows shard = shard_rows(operand, centers);
    shard.rows = at<const float>(rows);
    shard.center = at<const float>(center);
    return {shard, mmad::cuda::device_limits(device), at<void>(workspace), stream_at(stream)};
  }

  int device_;
  mmad::cuda::KCenterShard shard_;
};

void bind_shard(py::module_& module) {
  module.def("k_center_shard_workspace", &k_center_shard_workspace, py::arg("device"), py::arg("operand"),
             py::arg("centers"));
  py::class_<KCenterShard>(module, "KCenterShard")
      .def(
          py::init<int, Address, const OperandArguments&, Address, Address, std::int64_t, Address, const py::object&>(),
          py::arg("device"), py::arg("stream"), py::arg("operand"), py::arg("rows"), py::arg("center"),
          py::arg("centers"), py::arg("workspace"), py::arg("memory"),
          py::keep_alive<1, 9>())  // of all addresses: it lasts until the shard is gone
      .def("meet", &KCenterShard::meet, py::arg("centers"), py::arg("count"), py::arg("own"))
      .def("settle", &KCenterShard::settle, py::arg("rows"), py::arg("squared"), py::arg("count"))
      .def("rise", &KCenterShard::rise, py::arg("bar"), py::arg("at_most"), py::arg("results"), py::arg("rows"),
           py::arg("squared"));
}

void farthest_point_sample(int device, Address stream, Address points, std::int64_t points_in_all, Address first_rows,
                           Address sizes, int clouds, std::int64_t largest, std::int64_t n_select, std::int64_t start,
                           double floor, Address workspace, Address picks) {
  mmad::cuda::set_device(device);
  mmad::cuda::farthest_point_sample(at<const float>(points), points_in_all, at<const std::int64_t>(first_rows),
                                    at<const std::int64_t>(sizes), clouds, largest, n_select, start, floor,
                                    at<void>(workspace), at<std::int64_t>(picks), mmad::cuda::device_limits(device),
                                    stream_at(stream));
}

void knn_group(int device, Address stream, Address points, std::int64_t count, Address centers,
               std::int64_t center_count, int clouds, int k, Address indices) {
  mmad::cuda::set_device(device);
  mmad::cuda::knn_group(at<const float>(points), count, at<const float>(centers), center_count, clouds, k,
                        at<std::int64_t>(indices), stream_at(stream));
}

void interpolate_features(int device, Address stream, Address points, std::int64_t count, Address centers,
                          std::int64_t center_count, Address features, int clouds, int dim, int k, double power,
                          double eps, Address output) {
  mmad::cuda::set_device(device);
  mmad::cuda::interpolate_features(at<const float>(points), count, at<const float>(centers), center_count,
                                   at<const float>(features), clouds, dim, k, power, eps, at<float>(output),
                                   stream_at(stream));
}

}  // namespace

void bind_cuda(py::module_& parent) {
  py::module_ module = parent.def_submodule("cuda", "CUDA kernels; addresses are those of device memory.");
  module.def("device_count", &mmad::cuda::device_count);
  module.def("page_lock",
             [](Address memory, std::size_t bytes) { return mmad::cuda::page_lock(at<void>(memory), bytes); });
  module.def("page_unlock", [](Address memory) { mmad::cuda::page_unlock(at<void>(memory)); });
  module.def("tiles", &mmad::cuda::tiles_of, py::arg("rows"));
  module.def("tile_bytes", &mmad::cuda::tile_bytes, py::arg("dim"), py::arg("int8"));
  module.def("operand_bytes", &mmad::cuda::operand_bytes, py::arg("rows"), py::arg("dim"), py::arg("int8"),
             py::arg("resident") = -1);
  py::class_<OperandArguments>(module, "Operand")
      .def(py::init<Address, std::int64_t, int, bool, int, Address>(), py::arg("buffer"), py::arg("rows"),
           py::arg("dim"), py::arg("int8"), py::arg("resident") = -1, py::arg("streamed") = 0);
  module.def("prepare", &prepare, py::arg("device"), py::arg("stream"), py::arg("operand"), py::arg("rows"),
             py::arg("count"), py::arg("stride"), py::arg("center"), py::arg("first"));
  module.def("knn_workspace", &knn_workspace, py::arg("device"), py::arg("queries"), py::arg("bank"), py::arg("k"));
  module.def("knn", &knn, py::arg("device"), py::arg("stream"), py::arg("queries"), py::arg("count"),
             py::arg("operand"), py::arg("rows"), py::arg("center"), py::arg("k"), py::arg("workspace"),
             py::arg("distances"), py::arg("indices"));
  module.def("gather_rows", &gather_rows, py::arg("device"), py::arg("stream"), py::arg("rows"), py::arg("row_count"),
             py::arg("dim"), py::arg("indices"), py::arg("count"), py::arg("output"));
  module.def("k_center_workspace", &k_center_workspace, py::arg("device"), py::arg("operand"), py::arg("earlier_count"),
             py::arg("count"), py::arg("pool"));
  module.def("k_center_greedy", &k_center_greedy, py::arg("device"), py::arg("stream"), py::arg("operand"),
             py::arg("rows"), py::arg("earlier"), py::arg("earlier_count"), py::arg("center"), py::arg("count"),
             py::arg("start"), py::arg("radius"), py::arg("pool"), py::arg("workspace"), py::arg("picks"),
             py::arg("radii"), py::arg("report"));
  bind_shard(module);
  module.def("farthest_point_workspace", &mmad::cuda::farthest_point_workspace_bytes, py::arg("points_in_all"));
  module.def("farthest_point_sample", &farthest_point_sample, py::arg("device"), py::arg("stream"), py::arg("points"),
             py::arg("points_in_all"), py::arg("first_rows"), py::arg("sizes"), py::arg("clouds"), py::arg("largest"),
             py::arg("n_select"), py::arg("start"), py::arg("floor"), py::arg("workspace"), py::arg("picks"));
  module.def("knn_group", &knn_group, py::arg("device"), py::arg("stream"), py::arg("points"), py::arg("count"),
             py::arg("centers"), py::arg("center_count"), py::arg("clouds"), py::arg("k"), py::arg("indices"));
  module.def("interpolate_features", &interpolate_features, py::arg("device"), py::arg("stream"), py::arg("points"),
             py::arg("count"), py::arg("centers"), py::arg("center_count"), py::arg("features"), py::arg("clouds"),
             py::arg("dim"), py::arg("k"), py::arg("power"), py::arg("eps"), py::arg("output"));
}
