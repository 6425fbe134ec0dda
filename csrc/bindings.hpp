// What the parts of the Python module share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <cstdint>
#include <thread>

#include "mmad/interrupt.hpp"
#include "mmad/matrix.hpp"

namespace mmad::python {

namespace py = pybind11;

using FloatRows = py::array_t<float, py::array::c_style>;
using Indices = py::array_t<std::int64_t, py::array::c_style>;

inline Matrix<const float> view(const FloatRows& rows) { return {rows.data(), rows.shape(0), rows.shape(1)}; }

// Takes the interpreter's lock. When the interpreter is being shut down, Python ends the threads that ask for its lock by
// pthread_exit(), which unwinds their stacks, and kernels that must not throw would end the process. Such a thread waits
// here for the end of the process instead, as Python 3.14 lets it.
template <typename Take>
auto take_lock(const Take& take) noexcept {
  try {
    return take();
  } catch (...) {
    while (true) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// Takes the interpreter's lock, for a thread that has given it away.
class Held {
 public:
  Held() : before_(take_lock([] { return PyGILState_Ensure(); })) {}
  ~Held() { PyGILState_Release(before_); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

 private:
  PyGILState_STATE before_;
};

inline void check_signals() {
  const Held held;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Without the interpreter's lock, but Ctrl-C ends what runs.
class Released {
 public:
  Released() : interrupts_(&check_signals), state_(PyEval_SaveThread()) {}
  ~Released() {
    take_lock([this] { PyEval_RestoreThread(state_); });
  }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  InterruptScope interrupts_;
  PyThreadState* state_;
};

}  // namespace mmad::python
