// Judges images by a calibrated memory bank: score, p-value, verdict at a false-alarm rate, and the patches that are bad.
//
//     judge BANK PATCHES.npy [RATE]
//
// BANK is a file that mmad-bank calibrate or MemoryBank.save has written, PATCHES.npy float32 (images, patches, D).
#include <mmad/mmad.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void check(mmad_status status) {
  if (status != MMAD_OK) throw std::runtime_error(mmad_last_error());
}

using Bank = std::unique_ptr<mmad_bank, void (*)(mmad_bank*)>;

Bank open_bank(const char* path) {
  mmad_bank* bank = nullptr;
  check(mmad_bank_open(path, MMAD_PRECISION_OF_FILE, MMAD_CPU, MMAD_OPEN_DEFAULT, 0, &bank));
  return {bank, mmad_bank_close};
}

struct Dump {
  std::int64_t images, patches, dim;
  std::vector<float> values;
};

// Reads a .npy file of version 1: 10 bytes, a header in text, the values.
Dump read_dump(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  std::string start(10, '\0');
  file.read(start.data(), 10);
  std::string header(static_cast<unsigned char>(start[8]) + 256u * static_cast<unsigned char>(start[9]), '\0');
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  std::smatch shape;
  const std::regex described(
      R"(\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d{1,7}), (\d{1,7}), (\d{1,5})\), \} *\n)");
  if (!file || start.compare(0, 7, "\x93NUMPY\x01") != 0 || !std::regex_match(header, shape, described)) {
    throw std::runtime_error(path + ": expected a .npy file of float32 (images, patches, D)");
  }
  Dump dump{std::stoll(shape[1]), std::stoll(shape[2]), std::stoll(shape[3]), {}};
  dump.values.resize(static_cast<std::size_t>(dump.images * dump.patches * dump.dim));
  file.read(reinterpret_cast<char*>(dump.values.data()),
            static_cast<std::streamsize>(dump.values.size() * sizeof(float)));
  if (!file) throw std::runtime_error(path + ": is cut off");
  return dump;
}

void judge(const char* bank_path, const char* dump_path, double rate) {
  const Bank bank = open_bank(bank_path);
  const Dump dump = read_dump(dump_path);
  mmad_calibration calibration{};
  mmad_threshold limit{};
  check(mmad_bank_calibration(bank.get(), &calibration));
  check(mmad_bank_threshold(bank.get(), rate, &limit, nullptr));
  std::printf("limit %.17g at a false-alarm rate of %g, by %lld %s\n", limit.score, limit.rate,
              static_cast<long long>(calibration.images), calibration.origin);

  const auto images = static_cast<std::size_t>(dump.images), patches = static_cast<std::size_t>(dump.patches);
  std::vector<float> patch_scores(images * patches), image_scores(images);
  std::vector<double> p_values(images);
  std::vector<std::uint8_t> bad(images), bad_patches(images * patches);
  check(mmad_bank_score(bank.get(), dump.values.data(), dump.images, dump.patches, dump.dim, &calibration.rule, 0,
                        patch_scores.data(), image_scores.data(), nullptr));
  check(mmad_bank_judge(bank.get(), &calibration.rule, dump.images, dump.patches, image_scores.data(),
                        patch_scores.data(), rate, p_values.data(), bad.data(), bad_patches.data()));
  for (std::size_t i = 0; i < images; ++i) {
    int count = 0;
    for (std::size_t p = 0; p < patches; ++p) count += bad_patches[i * patches + p];
    std::printf("image %zu: score %.9g, p-value %.17g, %s, %d bad patches\n", i, image_scores[i], p_values[i],
                bad[i] != 0 ? "bad" : "good", count);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: judge BANK PATCHES.npy [RATE] (libmmad %s)\n", mmad_version());
    return 2;
  }
  try {
    judge(argv[1], argv[2], argc == 4 ? std::atof(argv[3]) : 0.0);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
