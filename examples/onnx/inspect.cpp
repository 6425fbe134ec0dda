// From a picture to a verdict without Python: OpenVINO runs the exported extractor, libmmad scores its features.
//
//     inspect EXPORT PICTURE.ppm [RATE]
//
// EXPORT is what mmad-bank export has written of a PatchCore that keeps the background and is calibrated, without roi
// and views. PICTURE.ppm is a binary PPM (P6, 8 bits). RATE is the share of the good pictures that may be called bad,
// such as 0.05 or 5%; without it the model's own. The exit code is 0 of a good picture, 4 of a bad one, 2 of an error.
#include <mmad/mmad.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <openvino/openvino.hpp>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

constexpr int GOOD = 0, FAILED = 2, BAD = 4;  // exit codes, those of mmad-bank predict --fail-on-bad

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error(why); }

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) refuse(path + ": cannot be read");
  return text;
}

std::string short_of(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", number);
  return text;
}

// The number that is all of a text; nothing for other texts, among them "nan", "inf" and "0x1".
std::optional<double> number_of(std::string_view text) {
  double number = 0;
  const char* end = text.data() + text.size();
  const bool plain = !text.empty() && text.find_first_not_of("0123456789+-.eE") == std::string_view::npos;
  const auto read = plain ? std::from_chars(text.data(), end, number) : std::from_chars_result{nullptr, {}};
  if (!plain || read.ec != std::errc() || read.ptr != end) return std::nullopt;
  return number;
}

// A value of JSON. A table has as many names as items.
struct Json {
  enum Kind { null, truth, number, text, list, table } kind = null;
  double value = 0;  // of a truth 0 or 1
  std::string word;
  std::vector<std::string> names;
  std::vector<Json> items;
};

// Reads JSON strictly, but for numbers such as .5. What \u escapes becomes "?": no name or word needed here has any.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : rest_(text), size_(text.size()) {}

  Json read() {
    Json json = value(0);
    blank();
    if (!rest_.empty()) wrong();
    return json;
  }

 private:
  [[noreturn]] void wrong() const {
    refuse("export.json: expected JSON, found something else at byte " + std::to_string(size_ - rest_.size()));
  }

  void blank() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\r\n"), rest_.size())); }

  bool takes(std::string_view word) {
    if (rest_.substr(0, word.size()) != word) return false;
    rest_.remove_prefix(word.size());
    return true;
  }

  Json value(int depth) {
    Json json;
    blank();
    if (depth > 64) wrong();
    if (takes("null")) return json;
    if (takes("true")) return {Json::truth, 1, {}, {}, {}};
    if (takes("false")) return {Json::truth, 0, {}, {}, {}};
    if (!rest_.empty() && rest_[0] == '"') return {Json::text, 0, word(), {}, {}};
    if (takes("[")) return items(depth, Json::list, "]");
    if (takes("{")) return items(depth, Json::table, "}");
    const std::size_t length = std::min(rest_.find_first_not_of("0123456789+-.eE"), rest_.size());
    const auto number = number_of(rest_.substr(0, length));
    if (!number) wrong();
    rest_.remove_prefix(length);
    return {Json::number, *number, {}, {}, {}};
  }

  Json items(int depth, Json::Kind kind, std::string_view end) {
    Json json;
    json.kind = kind;
    for (blank(); !takes(end); blank()) {
      if (!json.items.empty() && !takes(",")) wrong();
      blank();
      if (kind == Json::table) {
        json.names.push_back(word());
        blank();
        if (!takes(":")) wrong();
      }
      json.items.push_back(value(depth + 1));
    }
    return json;
  }

  std::string word() {
    std::string read;
    if (!takes("\"")) wrong();
    while (!takes("\"")) {
      if (rest_.empty() || static_cast<unsigned char>(rest_[0]) < ' ') wrong();
      const bool escaped = takes("\\");
      const std::size_t at = std::string_view("\"\\/bfnrtu").find(rest_.substr(0, 1));
      if (escaped && (rest_.empty() || at == std::string_view::npos)) wrong();
      read += escaped ? "\"\\/\b\f\n\r\t?"[at] : rest_[0];
      rest_.remove_prefix(1);
      for (int digit = 0; escaped && at == 8 && digit < 4; ++digit) {
        if (rest_.empty() || !std::isxdigit(static_cast<unsigned char>(rest_[0]))) wrong();
        rest_.remove_prefix(1);
      }
    }
    return read;
  }

  std::string_view rest_;
  std::size_t size_;
};

const Json& of_kind(const Json& json, Json::Kind kind, const std::string& name) {
  static constexpr const char* words[] = {"null", "true or false", "a number", "text", "a list", "a table"};
  if (json.kind == kind) return json;
  refuse("export.json: expected " + std::string(words[kind]) + " as " + name + ", found " + words[json.kind]);
}

// The value at a place such as "decision.verdict.bad_above".
const Json& at(const Json& json, const std::string& place) {
  const Json* found = &json;
  std::istringstream names(place);
  for (std::string name; std::getline(names, name, '.');) {
    const auto named = std::find(found->names.begin(), found->names.end(), name);
    if (named == found->names.end()) refuse("export.json: expected " + place + ", found none");
    found = &found->items[static_cast<std::size_t>(named - found->names.begin())];
  }
  return *found;
}

const Json& at(const Json& json, const std::string& place, Json::Kind kind) {
  return of_kind(at(json, place), kind, place);
}

// What is needed of export.json.
struct Said {
  std::string network, bank;
  mmad_rule rule{};
  std::size_t rows = 0, columns = 0;
  std::vector<double> held_out;  // scores of normal pictures, ascending
  double bad_above = 0, rate = 0;
  bool extrapolated = false;  // the rate is below what the held-out pictures can promise
};

void check_usable(const Json& json) {
  const std::string expected = "export.json: expected ";
  if (json.kind != Json::table || at(json, "format").word != "mmad-bank export" || at(json, "version").value != 1) {
    refuse(expected + "what mmad-bank export writes, version 1, found another file");
  }
  if (const std::string& method = at(json, "method", Json::text).word; method != "patchcore") {
    refuse(expected + "a PatchCore, which has one bank, found " + method);
  }
  if (at(json, "networks.rgb.prepares", Json::truth).value == 0) {
    refuse(expected + "a model that keeps the background, found one whose network takes prepared squares, no pictures");
  }
  if (at(json, "roi").kind != Json::null) {
    refuse(expected + "a model without a region of interest, found roi: its bank knows no patch outside");
  }
  if (at(json, "arguments.views").kind != Json::null) {
    refuse(expected + "a model that judges each picture by itself, found views: it judges the pictures of a part");
  }
  if (at(json, "calibration").kind == Json::null) {
    refuse(expected + "a calibrated model, found one that is not: no verdict follows from its scores");
  }
}

std::size_t whole_of(const Json& json, const std::string& name) {
  const double value = of_kind(json, Json::number, name).value;
  if (value != std::floor(value) || value < 1 || value > 1e6) {
    refuse("export.json: expected a whole number from 1 to 1000000 as " + name + ", found " + short_of(value));
  }
  return static_cast<std::size_t>(value);
}

Said read_export(const std::string& folder) {
  const std::map<std::string, int> rules{{"m3dm", MMAD_REWEIGHT_M3DM},
                                         {"patchcore", MMAD_REWEIGHT_PATCHCORE},
                                         {"max", MMAD_REWEIGHT_MAX},
                                         {"top", MMAD_REWEIGHT_TOP}};
  const std::string text = text_of(folder + "/export.json");
  const Json json = JsonReader(text).read();
  check_usable(json);
  Said said;
  said.network = folder + '/' + at(json, "networks.rgb.file", Json::text).word;
  const Json& bank = at(json, "banks.rgb", Json::table);
  said.bank = folder + '/' + at(bank, "file", Json::text).word;
  const auto rule = rules.find(at(bank, "reweight", Json::text).word);
  if (rule == rules.end()) refuse("export.json: expected m3dm, patchcore, max or top as reweight, found another word");
  said.rule.reweight = rule->second;
  said.rule.n_neighbors = static_cast<int>(whole_of(at(bank, "n_neighbors"), "n_neighbors"));
  said.rule.divisor = at(bank, "divisor", Json::number).value;
  const std::vector<Json>& grid = at(bank, "grid", Json::list).items;
  if (grid.size() != 2) refuse("export.json: expected two numbers as grid, found " + std::to_string(grid.size()));
  said.rows = whole_of(grid[0], "grid");
  said.columns = whole_of(grid[1], "grid");
  for (const Json& one : at(json, "calibration.images.fused.scores", Json::list).items) {
    said.held_out.push_back(of_kind(one, Json::number, "score").value);
  }
  if (said.held_out.empty()) refuse("export.json: expected scores of held-out pictures, found none");
  std::sort(said.held_out.begin(), said.held_out.end());
  said.bad_above = at(json, "decision.verdict.bad_above", Json::number).value;
  said.rate = at(json, "decision.verdict.false_alarm_rate", Json::number).value;
  said.extrapolated = at(json, "decision.verdict.extrapolated", Json::truth).value != 0;
  return said;
}

// A share as on the command line of mmad-bank: 0.05 or 5%.
double share_of(std::string_view text) {
  const bool percent = !text.empty() && text.back() == '%';
  const double share = number_of(text.substr(0, text.size() - percent)).value_or(0) / (percent ? 100 : 1);
  if (share > 0 && share < 1) return share;
  refuse("RATE: expected a share above 0 and below 1, such as 0.01 or 1%, found '" + std::string(text) + "'");
}

// Judges at another rate than the model's own. A score is above the limit exactly if its p-value is at most the rate.
void judge_at(Said& said, double rate) {
  const std::size_t n = said.held_out.size();
  const double kept = std::floor(rate * (static_cast<double>(n) + 1) * (1 + 1e-12));  // 0.29 * 100 is 28.999...
  if (kept < 1) {
    refuse("RATE: expected at least 1/(n + 1) = " + short_of(1 / (static_cast<double>(n) + 1)) + " with " +
           std::to_string(n) + " held-out images, or none for the model's own rate, found " + short_of(rate));
  }
  said.bad_above = said.held_out[n - std::min(n, static_cast<std::size_t>(kept))];
  said.rate = rate;
  said.extrapolated = false;
}

ov::Tensor read_picture(const std::string& path) {
  std::istringstream file(text_of(path));
  std::string magic;
  std::size_t width = 0, height = 0, most = 0;
  file >> magic >> width >> height >> most;
  file.get();
  if (!file || magic != "P6" || most != 255 || width == 0 || height == 0 || width > 65536 || height > 65536) {
    refuse(path + ": expected a binary PPM (P6) of 8 bits");
  }
  ov::Tensor picture(ov::element::u8, {1, height, width, 3});
  file.read(static_cast<char*>(picture.data()), static_cast<std::streamsize>(picture.get_byte_size()));
  if (!file) refuse(path + ": is cut off");
  return picture;
}

// Features (P, D) of the patches that show the picture; the others are padding.
std::vector<float> describe(const Said& said, const ov::Tensor& picture, std::size_t& dim) try {
  ov::Core core;
  // float32, as in Python: some processors would take bfloat16 otherwise.
  auto request =
      core.compile_model(said.network, "CPU", ov::hint::inference_precision(ov::element::f32)).create_infer_request();
  request.set_input_tensor(picture);
  request.infer();
  const ov::Tensor features = request.get_tensor("features"), window = request.get_tensor("window");
  const auto* at = window.data<std::int64_t>();
  const auto* values = features.data<float>();
  dim = features.get_shape().back();
  if (features.get_shape() != ov::Shape{1, said.rows * said.columns, dim}) {
    refuse(said.network + ": expected features of the grid in export.json, found others");
  }
  std::vector<float> shown;
  for (std::int64_t row = at[0]; row < at[1]; ++row) {
    const float* first =
        values + (static_cast<std::size_t>(row) * said.columns + static_cast<std::size_t>(at[2])) * dim;
    shown.insert(shown.end(), first, first + static_cast<std::size_t>(at[3] - at[2]) * dim);
  }
  return shown;
} catch (const ov::Exception&) {  // of several lines, about OpenVINO's own source
  refuse(said.network + ": OpenVINO cannot run it; is the file whole?");
}

void check(mmad_status status) {
  if (status != MMAD_OK) refuse(mmad_last_error());
}

float score(const Said& said, const std::vector<float>& patches, std::size_t dim) {
  mmad_bank* opened = nullptr;
  check(mmad_bank_open(said.bank.c_str(), MMAD_PRECISION_OF_FILE, MMAD_CPU, MMAD_OPEN_DEFAULT, 0, &opened));
  const std::unique_ptr<mmad_bank, void (*)(mmad_bank*)> bank(opened, mmad_bank_close);
  float image = 0;
  check(mmad_bank_score(bank.get(), patches.data(), 1, static_cast<std::int64_t>(patches.size() / dim),
                        static_cast<std::int64_t>(dim), &said.rule, 0, nullptr, &image, nullptr));
  return image;
}

int inspect(const std::string& folder, const std::string& picture, std::optional<double> rate) {
  Said said = read_export(folder);
  if (rate) judge_at(said, *rate);
  std::size_t dim = 0;
  const std::vector<float> patches = describe(said, read_picture(picture), dim);
  const float found = score(said, patches, dim);
  // Conformal: of good pictures, at most a share p has a p-value of p or less.
  const auto above = std::count_if(said.held_out.begin(), said.held_out.end(), [&](double s) { return s >= found; });
  const double p_value = (1.0 + static_cast<double>(above)) / (static_cast<double>(said.held_out.size()) + 1.0);
  const bool bad = found > said.bad_above;
  std::printf("score %.6g, p-value %.6g: %s at a false-alarm rate of %.6g%s\n", found, p_value, bad ? "bad" : "good",
              said.rate, said.extrapolated ? " (extrapolated)" : "");
  return bad ? BAD : GOOD;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: inspect EXPORT PICTURE.ppm [RATE]\n");
    return FAILED;
  }
  try {
    return inspect(argv[1], argv[2], argc == 4 ? std::optional(share_of(argv[3])) : std::nullopt);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return FAILED;
  }
}
