#include "lib/index_name.hpp"

#include <algorithm>
#include <regex>

namespace mmad {
namespace {

constexpr std::size_t kLongest = 200, kMostDigits = 12;

// Whether all numbers that `pattern` finds in `name` are at most `largest`.
bool within(const std::string& name, const char* pattern, std::int64_t largest) {
  const std::regex numbers(pattern);
  for (std::sregex_iterator it(name.begin(), name.end(), numbers), end; it != end; ++it) {
    const std::string digits = (*it)[1].str();
    const std::string value = digits.substr(std::min(digits.find_first_not_of('0'), digits.size() - 1));
    if (value.size() > kMostDigits || std::stoll(value) > largest) return false;
  }
  return true;
}

bool longest_number_fits(const std::string& name) {
  std::size_t run = 0;
  for (const char c : name) {
    run = c >= '0' && c <= '9' ? run + 1 : 0;
    if (run > kMostDigits) return false;
  }
  return true;
}

}  // namespace

bool is_index_name(const std::string& name, std::int64_t vectors, std::int64_t dim) {
  if (name.size() > kLongest || !longest_number_fits(name)) return false;
  if (!std::all_of(name.begin(), name.end(), [](char c) { return c >= ' ' && c <= '~'; })) return false;
  std::int64_t bits = 0;
  while (bits < 63 && vectors >> bits != 0) ++bits;
  const std::int64_t columns = dim < (std::int64_t{1} << 60) ? 4 * dim : dim;
  return within(name, "IVF(\\d+)", vectors) &&
         within(name, "IMI\\d+x(\\d+)", std::min<std::int64_t>(12, std::max<std::int64_t>(1, bits))) &&
         within(name, "(?:PQ|RQ|LSQ)\\d+x(\\d+)", std::max<std::int64_t>(12, bits)) &&
         within(name, "(?:IVF)?(\\d+)", std::max({vectors, columns, std::int64_t{1024}}));
}

}  // namespace mmad
