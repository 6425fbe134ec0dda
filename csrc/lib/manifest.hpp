// Values of a bank's header, asked for by name and kind; mmad_bank/_internal/manifest.py has the same limits and words.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lib/json.hpp"

namespace mmad {

constexpr std::int64_t kLargestCount = std::int64_t{1} << 62;

// Words for a value of a damaged file, which may be very long or deep.
std::string shown(const Json& value);
std::string shown(const std::string& text);

// All throw Failure (MMAD_ERROR_ALTERED) if there is no such value, or it is of another kind or out of its range.
class Manifest {
 public:
  Manifest(std::string place, const Json& content);

  const Json* find(const std::string& name) const;  // null if there is none
  const JsonObject& content() const { return *content_; }

  const std::string& text(const std::string& name) const;
  // Null counts as none; a missing value too where older files may lack it.
  std::optional<std::string> optional_text(const std::string& name) const;
  std::int64_t integer(const std::string& name, std::int64_t low = 0, std::int64_t high = kLargestCount) const;
  std::optional<std::int64_t> optional_integer(const std::string& name, std::int64_t low) const;
  double number(const std::string& name) const;
  std::optional<double> optional_number(const std::string& name) const;
  bool truth(const std::string& name) const;
  Manifest table(const std::string& name) const;
  std::optional<Manifest> optional_table(const std::string& name) const;
  std::vector<Manifest> tables(const std::string& name) const;
  std::vector<std::int64_t> integers(const std::string& name) const;
  std::vector<std::string> texts(const std::string& name) const;

  [[noreturn]] void wrong(const std::string& name, const std::string& expected, const Json* found) const;

 private:
  const Json& required(const std::string& name, const std::string& kind) const;
  const JsonList& items(const std::string& name) const;
  bool absent(const std::string& name) const;  // missing or null

  std::string place_;
  const JsonObject* content_;
};

}  // namespace mmad
