// JSON of files that may come from strangers, read strictly and within limits, and written as Python writes it: a bank's
// header is checksummed in that form.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace mmad {

class Json;
using JsonList = std::vector<Json>;
using JsonObject =
    std::map<std::string, Json>;  // by bytes of UTF-8, which is the order of code points, as Python sorts

// Digits of an integer that 64 bits do not hold.
struct HugeInteger {
  std::string digits;
};

// One value. Texts are UTF-8; a surrogate that stands alone, which JSON can escape and Python keeps, has its three bytes.
class Json {
 public:
  template <typename T>
  using Box = std::unique_ptr<T>;
  using Value = std::variant<std::nullptr_t, bool, std::int64_t, double, Box<HugeInteger>, Box<std::string>,
                             Box<JsonList>, Box<JsonObject>>;

  Json() = default;
  template <typename T>
  explicit Json(T value) : value_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  const bool* truth() const { return std::get_if<bool>(&value_); }
  const std::int64_t* integer() const { return std::get_if<std::int64_t>(&value_); }
  const double* real() const { return std::get_if<double>(&value_); }
  const HugeInteger* huge() const { return boxed<HugeInteger>(); }
  const std::string* text() const { return boxed<std::string>(); }
  const JsonList* list() const { return boxed<JsonList>(); }
  const JsonObject* object() const { return boxed<JsonObject>(); }

 private:
  template <typename T>
  const T* boxed() const {
    const auto* box = std::get_if<Box<T>>(&value_);
    return box == nullptr ? nullptr : box->get();
  }

  Value value_ = nullptr;
};

class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct JsonLimits {
  std::size_t depth = 128;
  std::size_t values = std::size_t{8} << 20;
  bool repeated_names = true;  // the last value of a name counts, as in Python; otherwise an error
};

// Throws JsonError. NaN, infinities, control characters within texts, numbers beyond the range of doubles, and bytes that
// are no UTF-8 are errors.
Json parse_json(std::string_view text, const JsonLimits& limits);

// Python's json.dumps(object, sort_keys=True), without one name.
std::string canonical_json(const JsonObject& object, std::string_view left_out);

// Python's repr of a finite float.
std::string python_repr(double value);

}  // namespace mmad
