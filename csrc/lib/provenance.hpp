// Where bank vectors came from; mmad_bank/bank/provenance.py is its counterpart.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lib/manifest.hpp"
#include "mmad/mmad.h"

namespace mmad {

class Provenance {
 public:
  // Reads the sources of a bank's header; throws Failure.
  explicit Provenance(const Manifest& header);

  // Throws Failure unless all rows are of the sources.
  void check_rows(const std::vector<std::int64_t>& rows, const std::string& path) const;

  // Of a row that is counted through all sources.
  mmad_origin origin(std::int64_t row) const;
  std::string image_name(std::int64_t row) const;

 private:
  struct Source {
    std::string file;
    std::int64_t rows;
    std::optional<std::int64_t> patches;
    std::optional<std::int64_t> columns;  // of the grid
    std::vector<std::string> names;       // empty if the images have none of their own
    std::int64_t images() const { return patches ? rows / *patches : 1; }
  };
  void read_images(const Manifest& header);
  std::size_t source_of(std::int64_t row) const;

  std::vector<Source> sources_;
  std::vector<std::int64_t> ends_;  // row numbers behind each source
  bool too_many_ = false;
};

}  // namespace mmad
