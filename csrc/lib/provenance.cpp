#include "lib/provenance.hpp"

#include <algorithm>

#include "lib/failure.hpp"
#include "lib/utf8.hpp"

namespace mmad {
namespace {

bool says_anything(const Json* value) {  // what Python takes as true
  if (value == nullptr || value->is_null()) return false;
  if (value->list() != nullptr) return !value->list()->empty();
  if (value->object() != nullptr) return !value->object()->empty();
  if (value->text() != nullptr) return !value->text()->empty();
  if (value->truth() != nullptr) return *value->truth();
  if (value->integer() != nullptr) return *value->integer() != 0;
  return value->real() == nullptr || *value->real() != 0.0;
}

// Null, or what `read` makes of the value; a value must be there.
template <typename Read>
auto optional_value(const Manifest& table, const std::string& name, const Read& read) {
  const Json* found = table.find(name);
  if (found == nullptr) table.wrong(name, "a list", nullptr);
  using Value = decltype(read());
  return found->is_null() ? std::optional<Value>() : std::optional<Value>(read());
}

// The last part of a path without its last suffix, as Python's PurePath(file).stem.
std::string stem(const std::string& file) {
  std::string name;
  for (std::size_t first = 0; first <= file.size();) {
    const std::size_t end = std::min(file.find('/', first), file.size());
    const std::string part = file.substr(first, end - first);
    if (!part.empty() && part != ".") name = part;
    first = end + 1;
  }
  const std::size_t dot = name.rfind('.');
  return dot == std::string::npos || dot == 0 || dot + 1 == name.size() ? name : name.substr(0, dot);
}

}  // namespace

Provenance::Provenance(const Manifest& header) {
  for (const Manifest& one : header.tables("sources")) {
    sources_.push_back({one.text("file"), one.integer("rows", 1), one.optional_integer("patches", 1), {}, {}});
  }
  if (says_anything(header.find("images"))) read_images(header);
  std::int64_t total = 0;
  for (Source& source : sources_) {
    too_many_ = too_many_ || total > kLargestCount - source.rows;
    if (too_many_) break;
    total += source.rows;
    ends_.push_back(total);
    source.file = system_text(source.file);
    for (std::string& name : source.names) name = system_text(name);
  }
}

void Provenance::read_images(const Manifest& header) {
  const std::vector<Manifest> told = header.tables("images");
  if (told.size() != sources_.size()) header.wrong("images", "one for each source", header.find("images"));
  for (std::size_t i = 0; i < told.size(); ++i) {
    const Manifest& one = told[i];
    Source& source = sources_[i];
    const auto grid = optional_value(one, "grid", [&] { return one.integers("grid"); });
    const auto names = optional_value(one, "names", [&] { return one.texts("names"); });
    if (grid) {
      std::int64_t product = 0;
      const bool fits = grid->size() == 2 && source.patches &&
                        !__builtin_mul_overflow((*grid)[0], (*grid)[1], &product) && product == *source.patches;
      if (!fits) one.wrong("grid", "the grid of its patches", one.find("grid"));
      source.columns = (*grid)[1];
    }
    if (names) {
      if (static_cast<std::int64_t>(names->size()) != source.images()) {
        one.wrong("names", "a name for each image", one.find("names"));
      }
      source.names = *names;
    }
  }
}

void Provenance::check_rows(const std::vector<std::int64_t>& rows, const std::string& path) const {
  const std::int64_t total = ends_.empty() ? 0 : ends_.back();
  const auto [low, high] = std::minmax_element(rows.begin(), rows.end());
  if (!too_many_ && (rows.empty() || (*low >= 0 && *high < total))) return;
  throw Failure(MMAD_ERROR_ALTERED, path +
                                        ": altered, its header does not describe a memory bank (source_rows: expected "
                                        "0 to " +
                                        std::to_string(total - 1) + " (the rows of " + std::to_string(sources_.size()) +
                                        " sources), found others)");
}

std::size_t Provenance::source_of(std::int64_t row) const {
  return static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), row) - ends_.begin());
}

mmad_origin Provenance::origin(std::int64_t row) const {
  const std::size_t which = source_of(row);
  const Source& source = sources_[which];
  mmad_origin out{source.file.c_str(), row - (ends_[which] - source.rows), -1, -1, -1, -1};
  if (source.patches) {
    out.image = out.row / *source.patches;
    out.patch = out.row % *source.patches;
    if (source.columns) {
      out.grid_row = out.patch / *source.columns;
      out.grid_column = out.patch % *source.columns;
    }
  }
  return out;
}

std::string Provenance::image_name(std::int64_t row) const {
  const Source& source = sources_[source_of(row)];
  const std::int64_t image = std::max<std::int64_t>(0, origin(row).image);
  if (!source.names.empty()) {
    return image < static_cast<std::int64_t>(source.names.size()) ? source.names[static_cast<std::size_t>(image)] : "";
  }
  const std::string name = stem(source.file);
  return source.images() > 1 ? name + "[" + std::to_string(image) + "]" : name;
}

}  // namespace mmad
