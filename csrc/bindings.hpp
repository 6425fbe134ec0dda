// What the parts of the Python module share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "mmad/interrupt.hpp"
#include "mmad/matrix.hpp"

namespace mmad::python {

namespace py = pybind11;

using FloatRows = py::array_t<float, py::array::c_style>;
using Indices = py::array_t<std::int64_t, py::array::c_style>;

inline Matrix<const float> view(const FloatRows& rows) { return {rows.data(), rows.shape(0), rows.shape(1)}; }

// Without the interpreter's lock, but Ctrl-C ends what runs.
class Released {
 public:
  Released() : interrupts_(&check_signals) {}

 private:
  static void check_signals() {
    py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

  InterruptScope interrupts_;
  py::gil_scoped_release release_;
};

}  // namespace mmad::python
