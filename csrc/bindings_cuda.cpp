// The Python face of the CUDA part. Pointers and streams come as integers (torch.Tensor.data_ptr(),
// torch.cuda.Stream.cuda_stream); mmad_bank/ops/_cuda.py owns the memory and has checked everything.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "mmad/cuda_device.hpp"
#include "mmad/cuda_knn.hpp"
#include "mmad/cuda_operand.hpp"

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

  mmad::cuda::Operand view() const { return mmad::cuda::operand_view(at<void>(buffer), rows, dim, int8); }
};

void prepare(int device, Address stream, const OperandArguments& operand, Address rows, std::int64_t count,
             std::int64_t stride, Address center, std::int64_t first) {
  mmad::cuda::set_device(device);
  const mmad::cuda::Operand view = operand.view();
  if (first == 0) mmad::cuda::operand_begin(view, stream_at(stream));
  mmad::cuda::prepare_rows(at<const float>(rows), count, stride, at<const float>(center), view, first, stream_at(stream));
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

}  // namespace

void bind_cuda(py::module_& parent) {
  py::module_ module = parent.def_submodule("cuda", "CUDA kernels; addresses are those of device memory.");
  module.def("device_count", &mmad::cuda::device_count);
  module.def("operand_bytes", &mmad::cuda::operand_bytes, py::arg("rows"), py::arg("dim"), py::arg("int8"));
  py::class_<OperandArguments>(module, "Operand")
      .def(py::init<Address, std::int64_t, int, bool>(), py::arg("buffer"), py::arg("rows"), py::arg("dim"),
           py::arg("int8"));
  module.def("prepare", &prepare, py::arg("device"), py::arg("stream"), py::arg("operand"), py::arg("rows"),
             py::arg("count"), py::arg("stride"), py::arg("center"), py::arg("first"));
  module.def("knn_workspace", &knn_workspace, py::arg("device"), py::arg("queries"), py::arg("bank"), py::arg("k"));
  module.def("knn", &knn, py::arg("device"), py::arg("stream"), py::arg("queries"), py::arg("count"), py::arg("operand"),
             py::arg("rows"), py::arg("center"), py::arg("k"), py::arg("workspace"), py::arg("distances"),
             py::arg("indices"));
}
