// From a picture to a verdict without Python: OpenVINO runs the exported extractor, libmmad scores its features.
//
//     inspect EXPORT PICTURE.ppm [RATE]
//
// EXPORT is what mmad-bank export has written of a PatchCore of pictures alone, PICTURE.ppm a binary PPM (P6, 8 bits).
// RATE is the share of the good pictures that may be called bad; without it the model's own.
#include <mmad/mmad.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <openvino/openvino.hpp>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// What is needed of export.json; a program that reads more of it will take a JSON library.
struct Said {
  std::string bank;
  mmad_rule rule{};
  std::size_t columns = 0;
  std::vector<double> held_out;  // scores of normal pictures
  double rate = 0;
};

std::string after(const std::string& text, const std::string& place, const std::string& pattern) {
  const std::size_t from = text.rfind('"' + place + '"');
  std::smatch found;
  if (from == std::string::npos ||
      !std::regex_search(text.begin() + static_cast<std::ptrdiff_t>(from), text.end(), found, std::regex(pattern))) {
    throw std::runtime_error("export.json: expected " + pattern + " behind '" + place + "', found none");
  }
  return found[1];
}

Said read_export(const std::string& folder) {
  const std::string text = text_of(folder + "/export.json");
  const std::map<std::string, int> rules{{"m3dm", MMAD_REWEIGHT_M3DM},
                                         {"patchcore", MMAD_REWEIGHT_PATCHCORE},
                                         {"max", MMAD_REWEIGHT_MAX},
                                         {"top", MMAD_REWEIGHT_TOP}};
  Said said;
  said.bank = folder + '/' + after(text, "banks", R"re("file": "([\w.-]+)")re");
  said.rule.reweight = rules.at(after(text, "banks", R"re("reweight": "(\w+)")re"));
  said.rule.n_neighbors = std::stoi(after(text, "banks", R"re("n_neighbors": (\d+))re"));
  said.rule.divisor = std::stod(after(text, "banks", R"re("divisor": ([\d.e+-]+))re"));
  said.columns = std::stoul(after(text, "banks", R"re("grid": \[\s*\d+,\s*(\d+))re"));
  std::istringstream scores(after(text, "fused", R"re("scores": \[([^\]]*)\])re"));
  for (std::string word; std::getline(scores, word, ',');) said.held_out.push_back(std::stod(word));
  said.rate = std::stod(after(text, "false_alarm_rate", R"re(: ([\d.e+-]+))re"));
  return said;
}

ov::Tensor read_picture(const std::string& path) {
  std::istringstream file(text_of(path));
  std::string magic;
  std::size_t width = 0, height = 0, most = 0;
  file >> magic >> width >> height >> most;
  file.get();
  if (!file || magic != "P6" || most != 255 || width == 0 || height == 0 || width > 65536 || height > 65536) {
    throw std::runtime_error(path + ": expected a binary PPM (P6) of 8 bits");
  }
  ov::Tensor picture(ov::element::u8, {1, height, width, 3});
  file.read(static_cast<char*>(picture.data()), static_cast<std::streamsize>(picture.get_byte_size()));
  if (!file) throw std::runtime_error(path + ": is cut off");
  return picture;
}

// Features (P, D) of the patches that show the picture; the others are padding.
std::vector<float> describe(const std::string& network, const ov::Tensor& picture, std::size_t columns,
                            std::size_t& dim) {
  ov::Core core;
  // float32, as in Python: some processors would take bfloat16 otherwise.
  auto request =
      core.compile_model(network, "CPU", ov::hint::inference_precision(ov::element::f32)).create_infer_request();
  request.set_input_tensor(picture);
  request.infer();
  const ov::Tensor features = request.get_tensor("features"), window = request.get_tensor("window");
  const auto* at = window.data<std::int64_t>();
  const auto* values = features.data<float>();
  dim = features.get_shape()[2];
  std::vector<float> shown;
  for (std::int64_t row = at[0]; row < at[1]; ++row) {
    const float* first = values + (static_cast<std::size_t>(row) * columns + static_cast<std::size_t>(at[2])) * dim;
    shown.insert(shown.end(), first, first + static_cast<std::size_t>(at[3] - at[2]) * dim);
  }
  return shown;
}

void check(mmad_status status) {
  if (status != MMAD_OK) throw std::runtime_error(mmad_last_error());
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

void inspect(const std::string& folder, const std::string& picture, double rate) {
  const Said said = read_export(folder);
  std::size_t dim = 0;
  const std::vector<float> patches = describe(folder + "/rgb.onnx", read_picture(picture), said.columns, dim);
  const float found = score(said, patches, dim);
  // Conformal: of good pictures, at most a share p has a p-value of p or less.
  const auto above = std::count_if(said.held_out.begin(), said.held_out.end(), [&](double s) { return s >= found; });
  const double p_value = (1.0 + static_cast<double>(above)) / (static_cast<double>(said.held_out.size()) + 1.0);
  const double asked = rate > 0 ? rate : said.rate;
  std::printf("score %.6g, p-value %.6g: %s at a false-alarm rate of %.6g\n", found, p_value,
              p_value <= asked * (1 + 1e-12) ? "bad" : "good", asked);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: inspect EXPORT PICTURE.ppm [RATE]\n");
    return 2;
  }
  try {
    inspect(argv[1], argv[2], argc == 4 ? std::atof(argv[3]) : 0.0);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
