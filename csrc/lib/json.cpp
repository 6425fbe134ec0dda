#include "lib/json.hpp"

#include <charconv>
#include <cmath>
#include <utility>

#include "lib/utf8.hpp"

namespace mmad {
namespace {

constexpr std::size_t kMostDigits = 4300;  // of an integer that Python reads

bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Parser {
 public:
  Parser(std::string_view text, const JsonLimits& limits) : text_(text), limits_(limits) {}

  Json whole() {
    Json value = any();
    skip_space();
    if (at_ != text_.size()) fail("expected the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& words) const { throw JsonError(words + " at byte " + std::to_string(at_)); }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
      ++at_;
  }

  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json any() {
    if (++values_ > limits_.values) fail("too many values");
    skip_space();
    const char c = peek();
    if (c == '{') return nested([this] { return object(); });
    if (c == '[') return nested([this] { return list(); });
    if (c == '"') return Json(std::make_unique<std::string>(string()));
    if (c == '-' || is_digit(c)) return number();
    if (take("true")) return Json(true);
    if (take("false")) return Json(false);
    if (take("null")) return Json();
    fail("expected a value");
  }

  template <typename Read>
  Json nested(const Read& read) {
    if (++depth_ > limits_.depth) fail("nested too deeply");
    ++at_;
    Json value = read();
    --depth_;
    return value;
  }

  Json list() {
    auto items = std::make_unique<JsonList>();
    skip_space();
    if (take(']')) return Json(std::move(items));
    do {
      items->push_back(any());
      skip_space();
    } while (take(','));
    if (!take(']')) fail("expected ',' or ']'");
    return Json(std::move(items));
  }

  Json object() {
    auto fields = std::make_unique<JsonObject>();
    skip_space();
    if (take('}')) return Json(std::move(fields));
    do {
      skip_space();
      if (peek() != '"') fail("expected a name");
      std::string name = string();
      skip_space();
      if (!take(':')) fail("expected ':'");
      const bool fresh = fields->insert_or_assign(std::move(name), any()).second;
      if (!fresh && !limits_.repeated_names) fail("a name comes twice");
      skip_space();
    } while (take(','));
    if (!take('}')) fail("expected ',' or '}'");
    return Json(std::move(fields));
  }

  Json number() {
    const std::size_t first = at_;
    take('-');
    if (!take('0')) digits();
    bool whole = true;
    if (peek() == '.') whole = false, ++at_, digits();
    if (peek() == 'e' || peek() == 'E') {
      whole = false, ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    const std::string_view token = text_.substr(first, at_ - first);
    return whole ? integer(token) : Json(real(token));
  }

  void digits() {
    if (!is_digit(peek())) fail("expected a digit");
    while (is_digit(peek())) ++at_;
  }

  Json integer(std::string_view token) const {
    std::int64_t value = 0;
    const auto read = std::from_chars(token.data(), token.data() + token.size(), value);
    if (read.ec == std::errc()) return Json(value);
    if (token.size() > kMostDigits) fail("an integer of too many digits");
    return Json(std::make_unique<HugeInteger>(HugeInteger{std::string(token)}));
  }

  double real(std::string_view token) const {
    double value = 0.0;
    const auto read = std::from_chars(token.data(), token.data() + token.size(), value);
    if (read.ec == std::errc()) return value;
    if (magnitude(token) > 0) fail("expected finite numbers");
    return token.front() == '-' ? -0.0 : 0.0;  // below the smallest
  }

  // Power of ten of the leading digit of a number that is too large or too small for doubles; its sign alone counts.
  static double magnitude(std::string_view token) {
    const std::size_t e = token.find_first_of("eE");
    const std::string_view mantissa = token.substr(0, e);
    const std::size_t point = std::min(mantissa.find('.'), mantissa.size());
    const std::size_t leading = mantissa.find_first_of("123456789");
    if (leading == std::string_view::npos) return -1.0;
    const double place = leading < point ? static_cast<double>(point - leading) : -static_cast<double>(leading - point);
    double exponent = 0.0;
    if (e != std::string_view::npos) {
      for (const char c : token.substr(e + 1)) {
        if (is_digit(c)) exponent = 10.0 * exponent + (c - '0');
      }
      if (token[e + 1] == '-') exponent = -exponent;
    }
    return place + exponent;
  }

  std::string string() {
    std::string out;
    ++at_;
    while (true) {
      if (at_ >= text_.size()) fail("a text without an end");
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') break;
      if (c < 0x20) fail("a control character in a text");
      if (c == '\\') {
        escape(&out);
        continue;
      }
      const std::size_t length = utf8_length(text_.substr(at_));
      if (length == 0) fail("bytes that are no UTF-8");
      out.append(text_.substr(at_, length));
      at_ += length;
    }
    ++at_;
    return out;
  }

  void escape(std::string* out) {
    ++at_;
    const char c = peek();
    ++at_;
    constexpr std::string_view names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
    const std::size_t which = c == '\0' ? std::string_view::npos : names.find(c);
    if (which != std::string_view::npos) {
      *out += values[which];
      return;
    }
    if (c != 'u') fail("an unknown escape");
    std::uint32_t code = four_digits();
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      const std::size_t before = at_;
      at_ += 2;
      const std::uint32_t low = four_digits();
      if (low >= 0xDC00 && low < 0xE000) {
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      } else {
        at_ = before;
      }
    }
    append_utf8(out, code);
  }

  std::uint32_t four_digits() {
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const int digit = is_digit(c)            ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("expected four hexadecimal digits");
      code = code << 4 | static_cast<std::uint32_t>(digit);
    }
    return code;
  }

  std::string_view text_;
  const JsonLimits& limits_;
  std::size_t at_ = 0, depth_ = 0, values_ = 0;
};

void append_escape(std::string* out, std::uint32_t unit) {
  constexpr char digits[] = "0123456789abcdef";
  *out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) *out += digits[unit >> shift & 15];
}

void append_text(std::string* out, const std::string& text) {
  constexpr std::string_view values = "\"\\\b\f\n\r\t", names = "\"\\bfnrt";
  *out += '"';
  for (std::size_t at = 0; at < text.size();) {
    const std::uint32_t code = next_code_point(text, &at);
    const std::size_t which = code < 0x80 ? values.find(static_cast<char>(code)) : std::string_view::npos;
    if (which != std::string_view::npos) {
      *out += '\\';
      *out += names[which];
    } else if (code >= ' ' && code <= '~') {
      *out += static_cast<char>(code);
    } else if (code < 0x10000) {
      append_escape(out, code);
    } else {
      append_escape(out, 0xD800 + ((code - 0x10000) >> 10));
      append_escape(out, 0xDC00 + ((code - 0x10000) & 0x3FF));
    }
  }
  *out += '"';
}

void append_value(std::string* out, const Json& value);

void append_object(std::string* out, const JsonObject& object, const std::string_view* left_out) {
  *out += '{';
  bool first = true;
  for (const auto& [name, value] : object) {
    if (left_out != nullptr && name == *left_out) continue;
    if (!first) *out += ", ";
    first = false;
    append_text(out, name);
    *out += ": ";
    append_value(out, value);
  }
  *out += '}';
}

void append_value(std::string* out, const Json& value) {
  if (const bool* truth = value.truth()) {
    *out += *truth ? "true" : "false";
  } else if (const std::int64_t* integer = value.integer()) {
    *out += std::to_string(*integer);
  } else if (const double* real = value.real()) {
    *out += python_repr(*real);
  } else if (const HugeInteger* huge = value.huge()) {
    *out += huge->digits;
  } else if (const std::string* text = value.text()) {
    append_text(out, *text);
  } else if (const JsonObject* object = value.object()) {
    append_object(out, *object, nullptr);
  } else if (const JsonList* list = value.list()) {
    *out += '[';
    for (std::size_t i = 0; i < list->size(); ++i) {
      if (i > 0) *out += ", ";
      append_value(out, (*list)[i]);
    }
    *out += ']';
  } else {
    *out += "null";
  }
}

}  // namespace

Json parse_json(std::string_view text, const JsonLimits& limits) { return Parser(text, limits).whole(); }

std::string canonical_json(const JsonObject& object, std::string_view left_out) {
  std::string out;
  append_object(&out, object, &left_out);
  return out;
}

std::string python_repr(double value) {
  char shortest[32];
  const auto end = std::to_chars(shortest, shortest + sizeof shortest, value, std::chars_format::scientific).ptr;
  const std::string_view text(shortest, static_cast<std::size_t>(end - shortest));
  const std::size_t e = text.find('e');
  const bool negative = text.front() == '-';
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (is_digit(c)) digits += c;
  }
  int exponent = 0;
  const std::string_view power = text.substr(e + (text[e + 1] == '+' ? 2 : 1));
  std::from_chars(power.data(), power.data() + power.size(), exponent);
  const int point = exponent + 1, count = static_cast<int>(digits.size());
  std::string out = negative ? "-" : "";
  if (point > -4 && point <= 16) {
    if (point <= 0) return out + "0." + std::string(static_cast<std::size_t>(-point), '0') + digits;
    if (point >= count) return out + digits + std::string(static_cast<std::size_t>(point - count), '0') + ".0";
    return out + digits.substr(0, static_cast<std::size_t>(point)) + "." +
           digits.substr(static_cast<std::size_t>(point));
  }
  out += digits[0];
  if (count > 1) out += "." + digits.substr(1);
  const std::string tens = std::to_string(std::abs(exponent));
  return out + (exponent < 0 ? "e-" : "e+") + (tens.size() < 2 ? "0" : "") + tens;
}

}  // namespace mmad
