// What the library's parts throw; the C interface turns it into a status and a line of text.
#pragma once

#include <stdexcept>
#include <string>

#include "mmad/mmad.h"

namespace mmad {

class Failure : public std::runtime_error {
 public:
  Failure(mmad_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  mmad_status status() const noexcept { return status_; }

 private:
  mmad_status status_;
};

inline void expect_argument(bool right, const std::string& message) {
  if (!right) throw Failure(MMAD_ERROR_ARGUMENT, message);
}

}  // namespace mmad
