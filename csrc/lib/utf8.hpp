// UTF-8, with surrogates that stand alone as their three bytes where a text has been unescaped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mmad {

// Bytes of the character that `text` begins with; 0 where it is none: cut, longer than need be, a surrogate, too large.
inline std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  if (text.empty()) return 0;
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  if ((first == 0xE0 && byte(1) < 0xA0) || (first == 0xED && byte(1) >= 0xA0)) return 0;
  if ((first == 0xF0 && byte(1) < 0x90) || (first == 0xF4 && byte(1) >= 0x90)) return 0;
  return length;
}

inline void append_utf8(std::string* out, std::uint32_t code) {
  const auto add = [out](std::uint32_t byte) { *out += static_cast<char>(byte); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xC0 | code >> 6), add(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    add(0xE0 | code >> 12), add(0x80 | (code >> 6 & 0x3F)), add(0x80 | (code & 0x3F));
  } else {
    add(0xF0 | code >> 18), add(0x80 | (code >> 12 & 0x3F)), add(0x80 | (code >> 6 & 0x3F)), add(0x80 | (code & 0x3F));
  }
}

// The code point at text[*at], which then moves on. The text is what append_utf8() and valid UTF-8 give.
inline std::uint32_t next_code_point(const std::string& text, std::size_t* at) {
  const auto byte = [&](std::size_t i) {
    return static_cast<std::uint32_t>(static_cast<unsigned char>(text[*at + i]));
  };
  const std::uint32_t first = byte(0);
  std::uint32_t code = first;
  std::size_t length = 1;
  if (first >= 0xF0) {
    code = (first & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), length = 4;
  } else if (first >= 0xE0) {
    code = (first & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), length = 3;
  } else if (first >= 0xC0) {
    code = (first & 0x1F) << 6 | (byte(1) & 0x3F), length = 2;
  }
  *at += length;
  return code;
}

// A text that stands for a file name: the surrogates by which Python keeps bytes that are no UTF-8 become these bytes.
inline std::string system_text(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const std::uint32_t code = next_code_point(text, &at);
    if (code >= 0xDC80 && code <= 0xDCFF) {
      out += static_cast<char>(code - 0xDC00);
    } else {
      append_utf8(&out, code);
    }
  }
  return out;
}

}  // namespace mmad
