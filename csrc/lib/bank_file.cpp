#include "lib/bank_file.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "lib/blake2b.hpp"
#include "lib/checksum.hpp"
#include "lib/failure.hpp"
#include "lib/manifest.hpp"

namespace mmad {
namespace {

constexpr std::int64_t kNewest = 1;
constexpr const char* kFormat = "mmad-bank";
constexpr std::uint64_t kLargestHeader = 32 << 20;           // bytes of JSON
constexpr std::uint64_t kLargestTable = 2 * kLargestHeader;  // the header is a text within JSON
constexpr std::size_t kHeaderDepth = 256;
constexpr const char* kBadTable = ": altered, its table of tensors is not valid";

struct ElementType {
  const char *stored, *name;
  std::uint64_t bytes;
};
constexpr ElementType kTypes[] = {
    {"F32", "float32", 4},   {"I64", "int64", 8},  {"F64", "float64", 8}, {"U8", "uint8", 1},     {"F16", "float16", 2},
    {"BF16", "bfloat16", 2}, {"I32", "int32", 4},  {"I16", "int16", 2},   {"I8", "int8", 1},      {"BOOL", "bool", 1},
    {"U16", "uint16", 2},    {"U32", "uint32", 4}, {"U64", "uint64", 8},  {"C64", "complex64", 8}};

std::uint64_t length_of_table(const InputFile& file) {
  std::array<unsigned char, 9> start{};
  const std::size_t count = std::min<std::uint64_t>(start.size(), file.size());
  file.read(0, start.data(), count);
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | start[static_cast<std::size_t>(i)];
  const bool braced = count == start.size() && start[8] == '{';
  const bool zip = count >= 4 && std::memcmp(start.data(), "PK\x03\x04", 4) == 0;
  if ((zip || (count > 0 && start[0] == 0x80)) && !braced) {
    throw Failure(MMAD_ERROR_FOREIGN,
                  file.path() + ": foreign, a pickle or zip file (.pt, .npz); nothing in it was run");
  }
  if (count > 0 && (!braced || length > kLargestTable)) {
    throw Failure(MMAD_ERROR_FOREIGN, file.path() + ": foreign, not a safetensors file and so no bank");
  }
  if (count == 0 || 8 + length > file.size()) {
    throw Failure(MMAD_ERROR_TRUNCATED,
                  file.path() + ": truncated within its header, " + std::to_string(file.size()) + " bytes long");
  }
  return length;
}

Json parse_table(const InputFile& file, std::uint64_t length) {
  std::string text(static_cast<std::size_t>(length), '\0');
  file.read(8, text.data(), text.size());
  JsonLimits limits;
  limits.repeated_names = false;
  try {
    return parse_json(text, limits);
  } catch (const JsonError& error) {
    throw Failure(MMAD_ERROR_ALTERED,
                  file.path() + ": altered, its table of tensors is not valid JSON (" + error.what() + ")");
  }
}

// Two integers of at least 0, or nothing.
std::optional<std::pair<std::uint64_t, std::uint64_t>> offsets_of(const Json& entry) {
  const JsonObject* fields = entry.object();
  if (fields == nullptr) return std::nullopt;
  const auto found = fields->find("data_offsets");
  const JsonList* pair = found == fields->end() ? nullptr : found->second.list();
  if (pair == nullptr || pair->size() != 2) return std::nullopt;
  const std::int64_t *begin = (*pair)[0].integer(), *end = (*pair)[1].integer();
  if (begin == nullptr || end == nullptr || *begin < 0 || *end < 0) return std::nullopt;
  return std::make_pair(static_cast<std::uint64_t>(*begin), static_cast<std::uint64_t>(*end));
}

// Where a tensor ends, as far as the table says so with any number; whether it is a valid one is seen later.
std::optional<std::int64_t> end_of(const Json& entry) {
  const JsonObject* fields = entry.object();
  if (fields == nullptr || fields->count("data_offsets") == 0) return std::nullopt;
  const JsonList* pair = fields->at("data_offsets").list();
  if (pair == nullptr || pair->size() < 2) return std::nullopt;
  const Json& end = (*pair)[1];
  if (end.integer() != nullptr) return *end.integer();
  if (end.truth() != nullptr) return *end.truth() ? 1 : 0;
  if (end.real() == nullptr || !(std::abs(*end.real()) < 9e18)) return std::nullopt;
  return static_cast<std::int64_t>(*end.real());
}

void check_size(const InputFile& file, const JsonObject& table, std::uint64_t data) {
  std::int64_t last = std::numeric_limits<std::int64_t>::min();
  for (const auto& [name, entry] : table) {
    if (name == "__metadata__") continue;
    const auto end = end_of(entry);
    if (!end) throw Failure(MMAD_ERROR_ALTERED, file.path() + kBadTable);
    last = std::max(last, *end);
  }
  const std::int64_t bytes = last == std::numeric_limits<std::int64_t>::min() ? 0 : last;
  if (bytes < 0) throw Failure(MMAD_ERROR_ALTERED, file.path() + kBadTable);
  const std::uint64_t expected = data + static_cast<std::uint64_t>(bytes);
  if (file.size() == expected) return;
  const bool cut = file.size() < expected;
  throw Failure(cut ? MMAD_ERROR_TRUNCATED : MMAD_ERROR_ALTERED, file.path() + ": " + (cut ? "truncated" : "altered") +
                                                                     ", expected " + std::to_string(expected) +
                                                                     " bytes, found " + std::to_string(file.size()));
}

Json header_of(const InputFile& file, const JsonObject& table) {
  const std::string& path = file.path();
  const auto metadata = table.find("__metadata__");
  const JsonObject* texts = metadata == table.end() ? nullptr : metadata->second.object();
  const std::string* text = nullptr;
  if (texts != nullptr && texts->count("mmad_bank") > 0) text = texts->at("mmad_bank").text();
  if (text == nullptr) {
    throw Failure(MMAD_ERROR_FOREIGN, path + ": foreign, a safetensors file that holds no memory bank");
  }
  JsonLimits limits;
  limits.depth = kHeaderDepth;
  Json content;
  try {
    if (text->size() > kLargestHeader) throw JsonError("larger than 32 MiB");
    content = parse_json(*text, limits);
  } catch (const JsonError& error) {
    throw Failure(MMAD_ERROR_ALTERED, path + ": altered, its header cannot be read (" + error.what() + ")");
  }
  const Manifest header(path, content);
  const Json* format = header.find("format");
  if (format == nullptr || format->text() == nullptr || *format->text() != kFormat) {
    throw Failure(MMAD_ERROR_FOREIGN, path + ": foreign, expected the format '" + kFormat + "', found " +
                                          (format == nullptr ? "None" : shown(*format)));
  }
  const std::int64_t version = header.integer("version", 1);
  if (version > kNewest) {
    throw Failure(MMAD_ERROR_NEWER, path + ": newer, format version " + std::to_string(version) +
                                        "; this libmmad reads up to version " + std::to_string(kNewest) +
                                        ": upgrade it");
  }
  const std::string canonical = canonical_json(header.content(), "checksum");
  Blake2b digest;
  digest.update(canonical.data(), canonical.size());
  const Json* found = header.find("checksum");
  if (found == nullptr || found->text() == nullptr || *found->text() != hexadecimal(digest.finish())) {
    throw Failure(MMAD_ERROR_ALTERED, path + ": altered, its header does not match its checksum");
  }
  return content;
}

// Multiplies unless the product is beyond 64 bits.
bool multiply(std::uint64_t* product, std::uint64_t factor) {
  return !__builtin_mul_overflow(*product, factor, product);
}

std::optional<StoredTensor> stored_tensor(const Json& entry, std::uint64_t data) {
  const auto offsets = offsets_of(entry);
  const JsonObject& fields = *entry.object();
  const auto dtype = fields.find("dtype"), shape = fields.find("shape");
  if (!offsets || dtype == fields.end() || shape == fields.end()) return std::nullopt;
  if (dtype->second.text() == nullptr || shape->second.list() == nullptr) return std::nullopt;
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const ElementType& one) { return *dtype->second.text() == one.stored; });
  if (type == std::end(kTypes)) return std::nullopt;
  StoredTensor out{type->name, {}, data + offsets->first, offsets->second - offsets->first};
  std::uint64_t nbytes = type->bytes;
  for (const Json& side : *shape->second.list()) {
    if (side.integer() == nullptr || *side.integer() < 0) return std::nullopt;
    if (!multiply(&nbytes, static_cast<std::uint64_t>(*side.integer()))) return std::nullopt;
    out.shape.push_back(*side.integer());
  }
  if (offsets->second < offsets->first || nbytes != out.nbytes) return std::nullopt;
  return out;
}

// The tensors of the table: one after the other, without gaps.
std::map<std::string, StoredTensor> tensors_of(const InputFile& file, const JsonObject& table, std::uint64_t data) {
  std::map<std::string, StoredTensor> out;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> places;
  for (const auto& [name, entry] : table) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : *entry.object()) {
        if (value.text() == nullptr) throw Failure(MMAD_ERROR_ALTERED, file.path() + kBadTable);
      }
      continue;
    }
    auto tensor = stored_tensor(entry, data);
    if (!tensor) throw Failure(MMAD_ERROR_ALTERED, file.path() + kBadTable + " (" + shown(name) + ")");
    places.emplace_back(tensor->offset, tensor->offset + tensor->nbytes);
    out.emplace(name, std::move(*tensor));
  }
  std::sort(places.begin(), places.end());
  std::uint64_t end = data;
  for (const auto& [first, last] : places) {
    if (first != end) throw Failure(MMAD_ERROR_ALTERED, file.path() + kBadTable + " (gaps or overlaps)");
    end = last;
  }
  return out;
}

bool is_listed(const StoredTensor& tensor, const Manifest& entry) {
  const Json *dtype = entry.find("dtype"), *shape = entry.find("shape");
  if (dtype == nullptr || dtype->text() == nullptr || *dtype->text() != tensor.dtype) return false;
  const JsonList* sides = shape == nullptr ? nullptr : shape->list();
  if (sides == nullptr || sides->size() != tensor.shape.size()) return false;
  for (std::size_t i = 0; i < sides->size(); ++i) {
    if ((*sides)[i].integer() == nullptr || *(*sides)[i].integer() != tensor.shape[i]) return false;
  }
  return true;
}

}  // namespace

BankFile read_bank_file(const InputFile& file) {
  const std::uint64_t length = length_of_table(file);
  const Json parsed = parse_table(file, length);
  const JsonObject& table = *parsed.object();  // it begins with a brace
  check_size(file, table, 8 + length);
  BankFile out;
  out.header = header_of(file, table);
  const Manifest listed = Manifest(file.path(), out.header).table("tensors");
  out.tensors = tensors_of(file, table, 8 + length);
  bool right = listed.content().size() == out.tensors.size();
  for (const auto& [name, entry] : listed.content()) {
    const Manifest described = listed.table(name);
    const auto tensor = out.tensors.find(name);
    right = right && tensor != out.tensors.end() && is_listed(tensor->second, described);
  }
  if (!right) {
    throw Failure(MMAD_ERROR_ALTERED, file.path() + ": altered, its tensors are not those that its header lists");
  }
  return out;
}

void check_tensor(const BankFile& content, const std::string& path, const std::string& name, const void* data,
                  int threads) {
  const Manifest listed = Manifest(path, content.header).table("tensors").table(name);
  const Json* expected = listed.find("checksum");
  const std::uint64_t nbytes = content.tensors.at(name).nbytes;
  if (expected != nullptr && expected->text() != nullptr &&
      *expected->text() == checksum(data, static_cast<std::size_t>(nbytes), threads)) {
    return;
  }
  throw Failure(MMAD_ERROR_ALTERED, path + ": altered, its '" + name + "' does not match its checksum");
}

}  // namespace mmad
