// libmmad's own parts without Python, for CTest and sanitizers: a bank file is written here, read back, cut at every byte,
// changed at every byte of its header and at random, and given hostile headers with checksums made right.
//
//     library_checks [rounds] [seed]
//
// What is wrong is printed, and makes the exit status 1.
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "lib/blake2b.hpp"
#include "lib/checksum.hpp"
#include "lib/json.hpp"
#include "lib/utf8.hpp"
#include "mmad/mmad.h"

namespace {

int failures = 0;

void expect(bool right, const std::string& what) {
  if (right) return;
  ++failures;
  std::printf("wrong: %s (%s)\n", what.c_str(), mmad_last_error());
}

std::string digest_of(const std::string& text, std::size_t step) {
  mmad::Blake2b digest;
  for (std::size_t at = 0; at < text.size(); at += step)
    digest.update(text.data() + at, std::min(step, text.size() - at));
  return mmad::hexadecimal(digest.finish());
}

// Values of Python's hashlib.blake2b(..., digest_size=16) and mmad_bank._internal.checksum.
void check_digests() {
  std::string letters;
  for (int i = 0; i < 1000; ++i) letters += static_cast<char>('a' + i % 26);
  for (const std::size_t step : {1, 7, 64, 127, 128, 129, 1000}) {
    expect(digest_of("", step) == "cae66941d9efbd404e4d88758ea67670", "BLAKE2b of nothing");
    expect(digest_of("abc", step) == "cf4ab791c62b8d2b2109c90275287816", "BLAKE2b of abc");
    expect(digest_of(letters.substr(0, 128), step) == "b17466a99e866eaf42b6c806c9df5be2", "BLAKE2b of a whole block");
    expect(digest_of(letters, step) == "3aa6e59e7fbb8728c8e454ea2221cde2", "BLAKE2b of some blocks");
  }
  expect(mmad::checksum(nullptr, 0, 1) == "c804ce198ec337e3dc762bdd1a09aece", "the checksum of nothing");
  expect(mmad::checksum(letters.data(), letters.size(), 1) == "437d2f19d5a3b3fd0e1f3f19deb25650",
         "the checksum of letters");
  const std::vector<unsigned char> large((16 << 20) + 5, 7);
  for (const int threads : {1, 2}) {
    expect(mmad::checksum(large.data(), large.size(), threads) == "f76edeb83e43b6007bf706ac9979018f",
           "the checksum of two segments");
  }
}

std::string again(const std::string& text) {
  const mmad::Json value = mmad::parse_json("{\"v\": " + text + "}", {});
  const std::string out = mmad::canonical_json(*value.object(), "");
  return out.substr(6, out.size() - 7);
}

bool is_json(const std::string& text, std::size_t depth = 128) {
  try {
    mmad::JsonLimits limits;
    limits.depth = depth;
    limits.values = 1000;
    mmad::parse_json(text, limits);
    return true;
  } catch (const mmad::JsonError&) {
    return false;
  }
}

void check_json() {
  const std::pair<const char*, const char*> pairs[] = {
      {"1", "1"},
      {"-0", "0"},
      {"1E2", "100.0"},
      {"1e16", "1e+16"},
      {"123456789012345680.0", "1.2345678901234568e+17"},
      {"0.0001", "0.0001"},
      {"0.00001", "1e-05"},
      {"-0.0", "-0.0"},
      {"5e-324", "5e-324"},
      {"1e-400", "0.0"},
      {"-1e-400", "-0.0"},
      {"9223372036854775808", "9223372036854775808"},
      {"[ ]", "[]"},
      {"{ }", "{}"},
      {"[1,\t2 ,\n3]", "[1, 2, 3]"},
      {"{\"b\":1,\"a\":null,\"b\":true}", "{\"a\": null, \"b\": true}"},
      {"\"\\u0041\\/\\u00e9\"", "\"A/\\u00e9\""},
      {"\"\xF0\x9F\x98\x80\"", "\"\\ud83d\\ude00\""},
      {"\"\\ud83d\\ude00\\ud800\"", "\"\\ud83d\\ude00\\ud800\""},
      {"\"\\ud800\\u0041\"", "\"\\ud800A\""},
      {"\"\x7F\\u0000\"", "\"\\u007f\\u0000\""}};
  for (const auto& [text, expected] : pairs) expect(again(text) == expected, std::string("JSON of ") + text);
  const char* none[] = {"",
                        " ",
                        "{",
                        "[1,]",
                        "{\"a\":1,}",
                        "{a:1}",
                        "01",
                        "1.",
                        ".5",
                        "+1",
                        "1e",
                        "-",
                        "NaN",
                        "Infinity",
                        "-Infinity",
                        "1e999",
                        "-1e999",
                        "tru",
                        "nul",
                        "\"",
                        "\"\\x\"",
                        "\"\\u12\"",
                        "\"\\u12g4\"",
                        "\"\n\"",
                        "[1] 2",
                        "\"\xC0\x80\"",
                        "\"\xED\xA0\x80\"",
                        "\"\xF5\x80\x80\x80\"",
                        "\"\xE2\x82\"",
                        "\xEF\xBB\xBF{}",
                        "{\"a\" 1}",
                        "'a'"};
  for (const char* text : none) expect(!is_json(text), std::string("no JSON: ") + text);
  expect(!is_json(std::string("[\0]", 3)), "a zero byte");
  expect(is_json(std::string(128, '[') + std::string(128, ']')), "128 lists in each other");
  expect(!is_json(std::string(129, '[') + std::string(129, ']')), "129 lists in each other");
  for (const char* one : {"[", "{\"a\":"}) {
    std::string deep;
    for (int i = 0; i < 100000; ++i) deep += one;
    expect(!is_json(deep), "deep nesting");
  }
  std::string many = "[";
  for (int i = 0; i < 1000; ++i) many += "1,";
  expect(!is_json(many + "1]"), "too many values");
  expect(!is_json(std::string(5000, '9')), "an integer of 5000 digits");
  expect(mmad::system_text("a\xED\xB3\xBF") == "a\xFF", "a byte of a file name");
}

struct Parts {
  std::string vectors, rows, header, table;  // the header without its checksum; the table with @ where the header goes
};

std::string quoted(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '"' || c == '\\' ? std::string{'\\', c} : std::string{c};
  return out;
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

constexpr std::int64_t kRows = 40, kDim = 6;

Parts parts(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> vectors(kRows * kDim);
  for (float& one : vectors) one = normal(random);
  std::vector<std::int64_t> rows(kRows);
  for (std::int64_t i = 0; i < kRows; ++i) rows[static_cast<std::size_t>(i)] = 2 * i;
  Parts out{bytes_of(vectors), bytes_of(rows), "", ""};
  out.header =
      R"({"format": "mmad-bank", "version": 1, "metric": "euclidean", "dtype": "float32", "vectors": 40, "dim": 6, )"
      R"("index": "exact", "bank_precision": "auto", "search": null, "radius": 1.5, "projection": null, )"
      R"("standardisation": {"mean": 0.25, "std": 2.0}, "extractor": null, )"
      R"("sources": [{"file": "a/b.npy", "rows": 100, "patches": 10}], "images": [{"grid": [2, 5], "names": null}], )"
      R"("tensors": {"source_rows": {"dtype": "int64", "shape": [40], "checksum": ")" +
      mmad::checksum(out.rows.data(), out.rows.size(), 1) +
      R"("}, "vectors": {"dtype": "float32", "shape": [40, 6], "checksum": ")" +
      mmad::checksum(out.vectors.data(), out.vectors.size(), 1) + R"("}}})";
  out.table = R"({"__metadata__":{"mmad_bank":"@"},"source_rows":{"dtype":"I64","shape":[40],"data_offsets":[0,320]},)"
              R"("vectors":{"dtype":"F32","shape":[40,6],"data_offsets":[320,1280]}})";
  return out;
}

std::string file_of(const Parts& parts) {
  std::string header = parts.header;
  try {
    const mmad::Json parsed = mmad::parse_json(header, {});
    if (parsed.object() != nullptr && !header.empty() && header.back() == '}') {
      const std::string canonical = mmad::canonical_json(*parsed.object(), "checksum");
      const std::string comma = parsed.object()->empty() ? "" : ", ";
      header = header.substr(0, header.size() - 1) + comma + "\"checksum\": \"" +
               digest_of(canonical, canonical.size()) + "\"}";
    }
  } catch (const mmad::JsonError&) {
  }
  std::string table = parts.table;
  const std::size_t at = table.find('@');
  if (at != std::string::npos) table.replace(at, 1, quoted(header));
  table += std::string((8 - table.size() % 8) % 8, ' ');
  const std::uint64_t length = table.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + table + parts.rows + parts.vectors;
}

class File {
 public:
  File() {
    const int descriptor = mkstemp(name_);
    if (descriptor >= 0) close(descriptor);
  }
  ~File() { unlink(name_); }

  // Opens the bank that these bytes are; closes it again after some use.
  mmad_status open(const std::string& content, std::int32_t flags = MMAD_OPEN_DEFAULT) const {
    unlink(name_);  // some file systems write a file to the disk that is cut and written anew
    std::FILE* file = std::fopen(name_, "wb");
    if (file == nullptr || std::fwrite(content.data(), 1, content.size(), file) != content.size()) std::abort();
    std::fclose(file);
    mmad_bank* bank = nullptr;
    const mmad_status status = mmad_bank_open(name_, MMAD_PRECISION_OF_FILE, MMAD_CPU, flags, 2, &bank);
    expect((status == MMAD_OK) == (bank != nullptr), "a handle if and only if all is well");
    expect(status == MMAD_OK || std::strncmp(mmad_last_error(), name_, std::strlen(name_)) == 0, "the file is named");
    if (bank != nullptr) use(bank);
    mmad_bank_close(bank);
    return status;
  }

 private:
  static void use(mmad_bank* bank) {
    const std::int64_t dim = mmad_bank_dim(bank), size = mmad_bank_size(bank);
    const std::vector<float> patches(static_cast<std::size_t>(6 * dim), 0.5f);
    float image[2];
    mmad_bank_score(bank, patches.data(), 2, 3, dim, nullptr, 2, nullptr, image, nullptr);
    mmad_origin origin;
    char text[8];
    for (std::int64_t row = -1; row <= size; ++row) {
      expect((mmad_bank_origin(bank, row, &origin) == MMAD_OK) == (row >= 0 && row < size), "rows of the bank");
      mmad_bank_image_name(bank, row, text, sizeof text, nullptr);
    }
  }

  char name_[32] = "/tmp/mmad-checks-XXXXXX";
};

void check_damage(const File& file, int rounds, std::uint64_t seed) {
  const std::string whole = file_of(parts(seed));
  for (const std::int32_t flags : {MMAD_OPEN_DEFAULT, MMAD_OPEN_MAPPED, MMAD_OPEN_IN_MEMORY, MMAD_OPEN_UNVERIFIED}) {
    expect(file.open(whole, flags) == MMAD_OK, "a whole file");
  }
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const mmad_status status = file.open(whole.substr(0, size));
    expect(status == MMAD_ERROR_TRUNCATED || (status == MMAD_ERROR_FOREIGN && size < 9),
           "cut at " + std::to_string(size));
  }
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ (at % 2 == 0 ? 1 : 128));
    const bool padding = whole[at] == ' ' && at > 8 && whole[at - 1] != ':' && whole[at - 1] != ',';
    expect(padding || file.open(changed) != MMAD_OK, "a changed byte " + std::to_string(at));
  }
  std::mt19937_64 random(seed);
  for (int round = 0; round < 200 * rounds; ++round) {
    std::string changed = whole;
    const std::size_t at = random() % changed.size(), count = random() % 64;
    if (round % 3 == 0) changed.erase(at, count);
    if (round % 3 == 1) changed.insert(at, changed.substr(random() % changed.size(), count));
    for (int i = round % 4; i > 0; --i) changed[random() % changed.size()] = static_cast<char>(random());
    file.open(changed);  // whatever it says, it ends
  }
  expect(file.open(whole + "more") == MMAD_ERROR_ALTERED, "bytes behind the end");
}

void check_hostile(const File& file) {
  const auto replaced = [](std::string Parts::* member, const std::string& from, const std::string& to) {
    Parts out = parts(1);
    const std::size_t at = (out.*member).find(from);
    if (at == std::string::npos) std::abort();
    (out.*member).replace(at, from.size(), to);
    return file_of(out);
  };
  const auto header = [&](const char* from, const std::string& to) {
    return file.open(replaced(&Parts::header, from, to));
  };
  const auto table = [&](const char* from, const std::string& to) {
    return file.open(replaced(&Parts::table, from, to));
  };
  const std::string huge = "9223372036854775807", beyond = "18446744073709551616";
  expect(header("\"version\": 1", "\"version\": 2") == MMAD_ERROR_NEWER, "newer");
  expect(header("\"version\": 1", "\"version\": " + huge) == MMAD_ERROR_ALTERED, "a huge version");
  expect(header("mmad-bank", "other") == MMAD_ERROR_FOREIGN, "another format");
  for (const std::string& to :
       {huge, beyond, std::string("-1"), std::string("0"), std::string("41"), std::string("40.0"), std::string("true"),
        std::string("null"), std::string("\"40\""), std::string("[40]")}) {
    expect(header("\"vectors\": 40", "\"vectors\": " + to) == MMAD_ERROR_ALTERED, "vectors: " + to);
    expect(header("\"dim\": 6", "\"dim\": " + to) == MMAD_ERROR_ALTERED, "dim: " + to);
    expect(to == "40.0" || to == huge || to == "41" || header("\"rows\": 100", "\"rows\": " + to) == MMAD_ERROR_ALTERED,
           "rows: " + to);
    expect(header("\"std\": 2.0", "\"std\": " + to) == MMAD_ERROR_ALTERED || to[0] == '4' || to == huge || to == beyond,
           "std: " + to);
    expect(table("[40,6]", "[" + to + ",6]") == MMAD_ERROR_ALTERED, "a shape of " + to);
    expect(table("[320,1280]", "[" + to + ",1280]") == MMAD_ERROR_ALTERED, "a begin of " + to);
    expect(table("[320,1280]", "[320," + to + "]") != MMAD_OK, "an end of " + to);
  }
  expect(header("\"grid\": [2, 5]", "\"grid\": [4611686018427387904, 4]") == MMAD_ERROR_ALTERED,
         "a grid that overflows");
  expect(header("\"grid\": [2, 5]", "\"grid\": [0, 0]") == MMAD_ERROR_ALTERED, "an empty grid");
  const std::string many = R"("sources": [{"file": "x", "rows": 4611686018427387904, "patches": null}, )";
  expect(header("\"sources\": [", many) == MMAD_ERROR_ALTERED, "more rows than 62 bits hold");
  std::string deep = "\"more\": ";
  for (int i = 0; i < 1000; ++i) deep += "[";
  deep += std::string(1000, ']') + ", ";
  expect(header("\"metric\"", deep + "\"metric\"") == MMAD_ERROR_ALTERED, "a deep header");
  expect(table("\"source_rows\"", deep + "\"source_rows\"") == MMAD_ERROR_ALTERED, "a deep table");
  expect(table("\"shape\":[40,6]", "\"shape\":[4294967296,4294967296,6]") == MMAD_ERROR_ALTERED,
         "a shape that overflows");
  expect(table("F32", "F99") == MMAD_ERROR_ALTERED, "an unknown type");
  expect(table("F32", "I32") == MMAD_ERROR_ALTERED, "another type");
  expect(table("\"vectors\":", "\"source_rows\":") == MMAD_ERROR_ALTERED, "a name twice");
  expect(table("[320,1280]", "[0,960]") == MMAD_ERROR_ALTERED, "tensors that overlap");
  expect(table("\"mmad_bank\":\"@\"", "\"other\":\"@\"") == MMAD_ERROR_FOREIGN, "no bank");
  expect(table("\"@\"", "7") == MMAD_ERROR_FOREIGN, "a header that is no text");
  Parts odd = parts(1);
  odd.header = "[]";
  expect(file.open(file_of(odd)) == MMAD_ERROR_ALTERED, "a header that is no object");
  expect(file.open(std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F{}", 10)) == MMAD_ERROR_FOREIGN, "a huge table");
  expect(file.open(std::string("PK\x03\x04") + std::string(50, '\0')) == MMAD_ERROR_FOREIGN, "a zip file");
}

// Searches against plain loops, from several threads at once.
void check_search(std::uint64_t seed) {
  const Parts own = parts(seed);
  std::vector<float> vectors(kRows * kDim);
  std::memcpy(vectors.data(), own.vectors.data(), own.vectors.size());
  char name[] = "/tmp/mmad-search-XXXXXX";
  const int descriptor = mkstemp(name);
  const std::string content = file_of(own);
  if (descriptor < 0 || write(descriptor, content.data(), content.size()) != static_cast<ssize_t>(content.size())) {
    std::abort();
  }
  close(descriptor);
  mmad_bank* bank = nullptr;
  expect(mmad_bank_open(name, MMAD_PRECISION_FLOAT32, MMAD_CPU, MMAD_OPEN_MAPPED, 1, &bank) == MMAD_OK, "open");
  unlink(name);
  std::vector<std::thread> callers;
  std::vector<int> wrong(4);
  for (std::size_t caller = 0; caller < wrong.size(); ++caller) {
    callers.emplace_back([&, caller] {
      std::mt19937_64 random(seed + caller);
      std::normal_distribution<float> normal;
      for (int round = 0; round < 20; ++round) {
        std::vector<float> patches(2 * 5 * kDim), patch(10), image(2);
        std::vector<std::int64_t> nearest(10);
        for (float& one : patches) one = normal(random);
        wrong[caller] += mmad_bank_score(bank, patches.data(), 2, 5, kDim, nullptr, 2, patch.data(), image.data(),
                                         nearest.data()) != MMAD_OK;
        for (std::size_t p = 0; p < 10; ++p) {
          double least = std::numeric_limits<double>::infinity();
          std::int64_t best = -1;
          for (std::int64_t row = 0; row < kRows; ++row) {
            double sum = 0.0;
            for (std::int64_t i = 0; i < kDim; ++i) {
              const double gap = static_cast<double>(patches[p * kDim + static_cast<std::size_t>(i)]) -
                                 static_cast<double>(vectors[static_cast<std::size_t>(row * kDim + i)]);
              sum += gap * gap;
            }
            if (sum < least) least = sum, best = row;
          }
          wrong[caller] += best != nearest[p] || static_cast<float>(std::sqrt(least)) / 2.0f != patch[p];
        }
      }
    });
  }
  for (std::thread& one : callers) one.join();
  for (const int count : wrong) expect(count == 0, "the search from several threads");
  mmad_origin origin;
  expect(mmad_bank_origin(bank, 13, &origin) == MMAD_OK && origin.row == 26 && origin.image == 2 && origin.patch == 6 &&
             origin.grid_row == 1 && origin.grid_column == 1 && std::strcmp(origin.file, "a/b.npy") == 0,
         "the origin of a row");
  char text[16];
  std::size_t length = 0;
  expect(mmad_bank_image_name(bank, 13, text, sizeof text, &length) == MMAD_OK && std::strcmp(text, "b[2]") == 0 &&
             length == 4,
         "the name of an image");
  mmad_bank_close(bank);
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 6;
  const std::uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
  const File file;
  check_digests();
  check_json();
  check_damage(file, rounds, seed);
  check_hostile(file);
  check_search(seed);
  std::printf("%d wrong\n", failures);
  return failures == 0 ? 0 : 1;
}
