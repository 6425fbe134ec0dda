#include "lib/manifest.hpp"

#include <cmath>
#include <utility>

#include "lib/failure.hpp"
#include "lib/utf8.hpp"

namespace mmad {
namespace {

constexpr std::size_t kShown = 60;

std::string cut(std::string text) {
  if (text.size() <= kShown) return text;
  std::size_t end = kShown;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

}  // namespace

std::string shown(const std::string& text) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (std::size_t at = 0; at < text.size() && out.size() <= kShown;) {
    const std::uint32_t code = next_code_point(text, &at);
    if (code < 0x20 || code == 0x7F) {
      out += {'\\', 'x', digits[code >> 4 & 15], digits[code & 15]};
    } else if (code >= 0xD800 && code < 0xE000) {
      out += "\\u";
      for (int shift = 12; shift >= 0; shift -= 4) out += digits[code >> shift & 15];
    } else {
      append_utf8(&out, code);
    }
  }
  return cut("'" + out + "'");
}

std::string shown(const Json& value) {
  if (const std::string* text = value.text()) return shown(*text);
  if (value.object() != nullptr) return "an object of " + std::to_string(value.object()->size());
  if (value.list() != nullptr) return "a list of " + std::to_string(value.list()->size());
  if (const std::int64_t* integer = value.integer()) return std::to_string(*integer);
  if (const double* real = value.real()) return python_repr(*real);
  if (value.huge() != nullptr) return "a huge number";
  if (const bool* truth = value.truth()) return *truth ? "True" : "False";
  return "None";
}

Manifest::Manifest(std::string place, const Json& content) : place_(std::move(place)), content_(content.object()) {
  if (content_ == nullptr) {
    throw Failure(MMAD_ERROR_ALTERED, place_ + ": altered, expected a JSON object, found " + shown(content));
  }
}

const Json* Manifest::find(const std::string& name) const {
  const auto found = content_->find(name);
  return found == content_->end() ? nullptr : &found->second;
}

void Manifest::wrong(const std::string& name, const std::string& expected, const Json* found) const {
  throw Failure(MMAD_ERROR_ALTERED, place_ + ": altered, expected " + expected + " for '" + name + "', found " +
                                        (found == nullptr ? "nothing" : shown(*found)));
}

const Json& Manifest::required(const std::string& name, const std::string& kind) const {
  const Json* found = find(name);
  if (found == nullptr) wrong(name, kind, nullptr);
  return *found;
}

bool Manifest::absent(const std::string& name) const {
  const Json* found = find(name);
  return found == nullptr || found->is_null();
}

const std::string& Manifest::text(const std::string& name) const {
  const Json& found = required(name, "a text");
  if (found.text() == nullptr) wrong(name, "a text", &found);
  return *found.text();
}

std::optional<std::string> Manifest::optional_text(const std::string& name) const {
  const Json* found = find(name);
  if (found != nullptr && found->is_null()) return std::nullopt;
  return text(name);
}

std::int64_t Manifest::integer(const std::string& name, std::int64_t low, std::int64_t high) const {
  const Json& found = required(name, "an integer");
  const std::int64_t* value = found.integer();
  if (value == nullptr && found.huge() == nullptr) wrong(name, "an integer", &found);
  if (value == nullptr || *value < low || *value > high) {
    wrong(name, std::to_string(low) + " to " + std::to_string(high), &found);
  }
  return *value;
}

std::optional<std::int64_t> Manifest::optional_integer(const std::string& name, std::int64_t low) const {
  if (absent(name)) return std::nullopt;
  return integer(name, low);
}

double Manifest::number(const std::string& name) const {
  const Json& found = required(name, "a number");
  double value = 0.0;
  if (found.integer() != nullptr) {
    value = static_cast<double>(*found.integer());
  } else if (found.real() != nullptr) {
    value = *found.real();
  } else if (found.huge() != nullptr) {  // which may still be a double
    value = std::strtod(found.huge()->digits.c_str(), nullptr);
  } else {
    wrong(name, "a number", &found);
  }
  if (!(std::abs(value) <= 1e308)) wrong(name, "a finite number", &found);
  return value;
}

std::optional<double> Manifest::optional_number(const std::string& name) const {
  if (absent(name)) return std::nullopt;
  return number(name);
}

bool Manifest::truth(const std::string& name) const {
  const Json& found = required(name, "true or false");
  if (found.truth() == nullptr) wrong(name, "true or false", &found);
  return *found.truth();
}

Manifest Manifest::table(const std::string& name) const {
  const Json& found = required(name, "an object");
  if (found.object() == nullptr) wrong(name, "an object", &found);
  return {place_, found};
}

std::optional<Manifest> Manifest::optional_table(const std::string& name) const {
  if (absent(name)) return std::nullopt;
  return table(name);
}

const JsonList& Manifest::items(const std::string& name) const {
  const Json& found = required(name, "a list");
  if (found.list() == nullptr) wrong(name, "a list", &found);
  return *found.list();
}

std::vector<Manifest> Manifest::tables(const std::string& name) const {
  std::vector<Manifest> out;
  for (const Json& item : items(name)) out.emplace_back(place_, item);
  return out;
}

std::vector<std::int64_t> Manifest::integers(const std::string& name) const {
  std::vector<std::int64_t> out;
  for (const Json& item : items(name)) {
    const std::int64_t* value = item.integer();
    if (value == nullptr || *value < 0 || *value > kLargestCount) wrong(name, "integers", &item);
    out.push_back(*value);
  }
  return out;
}

std::vector<std::string> Manifest::texts(const std::string& name) const {
  std::vector<std::string> out;
  for (const Json& item : items(name)) {
    if (item.text() == nullptr) wrong(name, "texts", &item);
    out.push_back(*item.text());
  }
  return out;
}

}  // namespace mmad
