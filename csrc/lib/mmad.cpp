// The C interface: checks what comes over the border, and lets nothing be thrown across it.
#include "mmad/mmad.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "lib/bank.hpp"
#include "lib/failure.hpp"
#include "lib/scoring.hpp"
#include "lib/utf8.hpp"
#include "mmad/cpu_features.hpp"
#include "mmad/k_center_greedy.hpp"
#include "mmad/knn.hpp"
#include "mmad/memory.hpp"

struct mmad_bank {
  mmad::Bank bank;
};

namespace {

using mmad::expect_argument;
using mmad::Failure;
using mmad::Matrix;

constexpr std::size_t kErrorBytes = 4096;
constexpr std::int64_t kMostThreads = 1024;
thread_local char last_error[kErrorBytes] = "";

// Keeps the line in UTF-8: a byte of a file's name that is none becomes "\xff", and no character is cut.
mmad_status failed(mmad_status status, const char* words) noexcept {
  std::string_view left = words;
  std::size_t at = 0;
  while (!left.empty()) {
    const std::size_t length = mmad::utf8_length(left), written = length == 0 ? 4 : length;
    if (at + written >= kErrorBytes) break;
    if (length == 0) {
      std::snprintf(last_error + at, 5, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(left[0])));
    } else {
      std::memcpy(last_error + at, left.data(), length);
    }
    at += written;
    left.remove_prefix(length == 0 ? 1 : length);
  }
  last_error[at] = '\0';
  return status;
}

template <typename Work>
mmad_status guarded(const Work& work) noexcept {
  try {
    work();
    return MMAD_OK;
  } catch (const Failure& error) {
    return failed(error.status(), error.what());
  } catch (const mmad::OutOfMemory& error) {
    return failed(MMAD_ERROR_MEMORY, error.what());
  } catch (const std::bad_alloc&) {
    return failed(MMAD_ERROR_MEMORY, "out of memory");
  } catch (const std::length_error&) {
    return failed(MMAD_ERROR_MEMORY, "out of memory: more is wanted than can be addressed");
  } catch (const std::invalid_argument& error) {
    return failed(MMAD_ERROR_ARGUMENT, error.what());
  } catch (const std::exception& error) {
    return failed(MMAD_ERROR_INTERNAL, error.what());
  } catch (...) {
    return failed(MMAD_ERROR_INTERNAL, "unknown failure");
  }
}

std::string number(std::int64_t value) { return std::to_string(value); }

int checked_threads(std::int32_t threads) {
  expect_argument(threads >= 0 && threads <= kMostThreads,
                  "threads: expected 0 (all processors) to " + number(kMostThreads) + ", found " + number(threads));
  return threads == 0 ? static_cast<int>(std::max(1u, std::thread::hardware_concurrency())) : threads;
}

template <typename T>
void expect_given(const T* pointer, const char* name) {
  expect_argument(pointer != nullptr, std::string(name) + ": expected a pointer, found null");
}

// A NaN is above no limit: it would be judged as good.
void expect_numbers(const float* scores, std::int64_t n, const char* name) {
  const auto* found = std::find_if(scores, scores + n, [](float one) { return std::isnan(one); });
  expect_argument(found == scores + n,
                  std::string(name) + ": expected numbers, found NaN as number " + number(found - scores));
}

void expect_range(std::int64_t value, std::int64_t low, std::int64_t high, const char* name, const char* why) {
  expect_argument(low <= value && value <= high, std::string(name) + ": expected " + number(low) + " to " +
                                                     number(high) + " (" + why + "), found " + number(value));
}

// A matrix that the caller gives; its bytes can be addressed.
Matrix<const float> given(const float* data, std::int64_t rows, std::int64_t dim, const char* name) {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / 8;
  expect_given(data, name);
  expect_argument(rows >= 1 && dim >= 1, std::string(name) + ": expected at least one row and one column, found (" +
                                             number(rows) + ", " + number(dim) + ")");
  expect_argument(rows <= most / dim,
                  std::string(name) + ": (" + number(rows) + ", " + number(dim) + ") values cannot be addressed");
  return {data, rows, dim};
}

mmad::Bank& opened(mmad_bank* bank) {
  expect_given(bank, "bank");
  return bank->bank;
}

const mmad::Bank& opened(const mmad_bank* bank) {
  expect_given(bank, "bank");
  return bank->bank;
}

void expect_dim(const mmad::Bank& bank, std::int64_t dim, const char* name) {
  expect_argument(dim == bank.dim(), std::string(name) + ": expected rows of " + number(bank.dim()) +
                                         " values as in the bank, found " + number(dim));
}

// The first row that holds NaN or infinity, or -1.
std::int64_t first_bad_row(Matrix<const float> rows) {
  for (std::int64_t i = 0; i < rows.rows; ++i) {
    const float* row = rows.row(i);
    if (!std::all_of(row, row + rows.cols, [](float one) { return std::isfinite(one); })) return i;
  }
  return -1;
}

void check_finite(Matrix<const float> rows, const char* name) {
  const std::int64_t bad = first_bad_row(rows);
  expect_argument(bad < 0,
                  std::string(name) + ": row " + number(bad) + " holds NaN or infinity; expected finite values");
}

void divide(float* values, std::int64_t count, double by) {
  const auto divisor = static_cast<float>(by);
  for (std::int64_t i = 0; i < count; ++i) values[i] /= divisor;
}

// What the caller wants of (n, k) values, or memory of our own.
template <typename T>
T* wanted(T* output, std::vector<T>* own, std::int64_t count) {
  if (output != nullptr) return output;
  mmad::resize_for("results", own, count);
  return own->data();
}

void expect_pairs(std::int64_t n, std::int64_t k) {
  expect_argument(n <= std::numeric_limits<std::int64_t>::max() / 16 / k,
                  "k: (" + number(n) + ", " + number(k) + ") results cannot be addressed");
}

const mmad::BankCalibration& calibration_of(const mmad::Bank& bank) {
  expect_argument(
      bank.calibration() != nullptr,
      "bank: expected one that is calibrated, found none; MemoryBank.calibrate or mmad-bank calibrate does it");
  return *bank.calibration();
}

void expect_device(std::int32_t device) {
  if (device == MMAD_CPU) return;
  const int count = mmad::CudaSearch::device_count();
  if (device >= 0 && device < count) return;
  throw Failure(device < 0 ? MMAD_ERROR_ARGUMENT : MMAD_ERROR_DEVICE,
                "device: expected MMAD_CPU (-1) or one of the " + number(count) +
                    " CUDA devices that this libmmad can use, found " + number(device));
}

bool same(const mmad_rule& a, const mmad_rule& b) {
  return a.reweight == b.reweight && a.n_neighbors == b.n_neighbors && a.divisor == b.divisor;
}

}  // namespace

#define MMAD_TEXT_OF(number) #number
#define MMAD_TEXT(number) MMAD_TEXT_OF(number)

extern "C" {

const char* mmad_version(void) {
  return MMAD_TEXT(MMAD_VERSION_MAJOR) "." MMAD_TEXT(MMAD_VERSION_MINOR) "." MMAD_TEXT(MMAD_VERSION_PATCH);
}

const char* mmad_last_error(void) { return last_error; }

const char* mmad_instruction_set(void) {
  const char* name = nullptr;
  guarded([&] {
    switch (mmad::active_isa()) {
      case mmad::Isa::generic: name = "generic"; break;
      case mmad::Isa::avx2: name = "avx2"; break;
      case mmad::Isa::avx512: name = "avx512"; break;
      case mmad::Isa::amx: name = "amx"; break;
    }
  });
  return name;
}

int32_t mmad_cuda_device_count(void) {
  std::int32_t count = 0;
  guarded([&] { count = mmad::CudaSearch::device_count(); });
  return count;
}

mmad_status mmad_bank_open(const char* path, int32_t precision, int32_t device, int32_t flags, int32_t threads,
                           mmad_bank** bank) {
  return guarded([&] {
    expect_given(bank, "bank");
    *bank = nullptr;
    expect_given(path, "path");
    if (precision != MMAD_PRECISION_OF_FILE) mmad::precision_name(precision);
    expect_range(flags, 0, MMAD_OPEN_UNVERIFIED | MMAD_OPEN_IN_MEMORY | MMAD_OPEN_MAPPED, "flags", "MMAD_OPEN_...");
    expect_device(device);
    *bank = new mmad_bank{mmad::Bank(path, precision, device, flags, checked_threads(threads))};
  });
}

void mmad_bank_close(mmad_bank* bank) { delete bank; }

mmad_status mmad_bank_prepare(mmad_bank* bank, int32_t threads) {
  return guarded([&] { opened(bank).prepare(checked_threads(threads)); });
}

int64_t mmad_bank_size(const mmad_bank* bank) { return bank == nullptr ? 0 : bank->bank.size(); }
int64_t mmad_bank_dim(const mmad_bank* bank) { return bank == nullptr ? 0 : bank->bank.dim(); }
int64_t mmad_bank_nbytes(const mmad_bank* bank) { return bank == nullptr ? 0 : bank->bank.nbytes(); }
int32_t mmad_bank_precision(const mmad_bank* bank) { return bank == nullptr ? 0 : bank->bank.precision(); }
const char* mmad_bank_index(const mmad_bank* bank) { return bank == nullptr ? nullptr : bank->bank.index().c_str(); }

const char* mmad_bank_extractor(const mmad_bank* bank) {
  return bank == nullptr || !bank->bank.extractor() ? nullptr : bank->bank.extractor()->c_str();
}

double mmad_bank_radius(const mmad_bank* bank) {
  return bank == nullptr ? std::nan("") : bank->bank.radius().value_or(std::nan(""));
}

int32_t mmad_bank_standardization(const mmad_bank* bank, double* mean, double* std) {
  if (bank == nullptr || !bank->bank.standardization()) return 0;
  if (mean != nullptr) *mean = bank->bank.standardization()->mean;
  if (std != nullptr) *std = bank->bank.standardization()->std;
  return 1;
}

mmad_status mmad_bank_search(mmad_bank* bank, const float* queries, int64_t n, int64_t dim, int64_t k, int32_t threads,
                             float* distances, int64_t* rows) {
  return guarded([&] {
    mmad::Bank& own = opened(bank);
    const int team = checked_threads(threads);
    const Matrix<const float> asked = given(queries, n, dim, "queries");
    expect_dim(own, dim, "queries");
    expect_range(k, 1, own.size(), "k", "the number of vectors in the bank");
    expect_pairs(n, k);
    check_finite(asked, "queries");
    std::vector<float> own_distances;
    std::vector<std::int64_t> own_rows;
    float* found = wanted(distances, &own_distances, n * k);
    own.search(asked, k, found, wanted(rows, &own_rows, n * k), team);
    if (own.standardization()) divide(found, n * k, own.std());
  });
}

mmad_status mmad_bank_score(mmad_bank* bank, const float* patches, int64_t images, int64_t patches_per_image,
                            int64_t dim, const mmad_rule* rule, int32_t threads, float* patch_scores,
                            float* image_scores, int64_t* nearest) {
  return guarded([&] {
    mmad::Bank& own = opened(bank);
    const int team = checked_threads(threads);
    const mmad_rule checked = mmad::checked_rule(rule);
    expect_argument(images >= 1 && patches_per_image >= 1,
                    "patches: expected at least one image of one patch, found (" + number(images) + ", " +
                        number(patches_per_image) + ", " + number(dim) + ")");
    std::int64_t count = 0;
    expect_argument(!__builtin_mul_overflow(images, patches_per_image, &count),
                    "patches: more patches than can be addressed");
    const Matrix<const float> rows = given(patches, count, dim, "patches");
    expect_dim(own, dim, "patches");
    const std::int64_t bad = first_bad_row(rows);
    expect_argument(bad < 0, "patches: image " + number(bad / patches_per_image) + ", patch " +
                                 number(bad % patches_per_image) + " holds NaN or infinity; expected finite values");
    mmad::score_images(own, patches, images, patches_per_image, checked, team, {patch_scores, image_scores, nearest});
  });
}

mmad_status mmad_bank_vectors(const mmad_bank* bank, const int64_t* rows, int64_t n, float* vectors) {
  return guarded([&] {
    const mmad::Bank& own = opened(bank);
    expect_range(n, 0, std::numeric_limits<std::int64_t>::max() / 16 / own.dim(), "n", "what can be addressed");
    if (n == 0) return;
    expect_given(rows, "rows");
    expect_given(vectors, "vectors");
    own.check_file();
    for (std::int64_t i = 0; i < n; ++i) {
      expect_range(rows[i], 0, own.size() - 1, "rows", "the rows of the bank");
      std::copy_n(own.vector(rows[i]), own.dim(), vectors + i * own.dim());
    }
  });
}

mmad_status mmad_bank_origin(const mmad_bank* bank, int64_t row, mmad_origin* origin) {
  return guarded([&] {
    const mmad::Bank& own = opened(bank);
    expect_given(origin, "origin");
    expect_range(row, 0, own.size() - 1, "row", "the rows of the bank");
    *origin = own.provenance().origin(own.source_row(row));
  });
}

mmad_status mmad_bank_image_name(const mmad_bank* bank, int64_t row, char* buffer, size_t size, size_t* length) {
  return guarded([&] {
    const mmad::Bank& own = opened(bank);
    expect_range(row, 0, own.size() - 1, "row", "the rows of the bank");
    expect_argument(buffer != nullptr || size == 0, "buffer: expected a pointer, found null");
    const std::string name = own.provenance().image_name(own.source_row(row));
    if (length != nullptr) *length = name.size();
    if (size == 0) return;
    const std::size_t taken = std::min(name.size(), size - 1);
    std::memcpy(buffer, name.data(), taken);
    buffer[taken] = '\0';
  });
}

int32_t mmad_bank_is_calibrated(const mmad_bank* bank) {
  return bank != nullptr && bank->bank.calibration() != nullptr ? 1 : 0;
}

mmad_status mmad_bank_calibration(const mmad_bank* bank, mmad_calibration* calibration) {
  return guarded([&] {
    const mmad::BankCalibration& own = calibration_of(opened(bank));
    expect_given(calibration, "calibration");
    *calibration = {own.origin.c_str(), own.images.size(),    own.patches,
                    own.rule,           own.outdated ? 1 : 0, own.images.smallest_rate()};
  });
}

mmad_status mmad_bank_threshold(const mmad_bank* bank, double rate, mmad_threshold* image, mmad_threshold* patch) {
  return guarded([&] {
    const mmad::BankCalibration& own = calibration_of(opened(bank));
    const mmad_threshold of_images = own.images.threshold(rate), of_patches = own.peaks.threshold(rate);
    if (image != nullptr) *image = of_images;
    if (patch != nullptr) *patch = of_patches;
  });
}

mmad_status mmad_bank_judge(const mmad_bank* bank, const mmad_rule* rule, int64_t images, int64_t patches_per_image,
                            const float* image_scores, const float* patch_scores, double rate, double* p_values,
                            uint8_t* bad, uint8_t* bad_patches) {
  return guarded([&] {
    const mmad::BankCalibration& own = calibration_of(opened(bank));
    expect_argument(same(mmad::checked_rule(rule), own.rule),
                    "rule: expected that of the calibration (mmad_bank_calibration), found another");
    expect_argument(patches_per_image == own.patches, "patches_per_image: expected " + number(own.patches) +
                                                          ", as the calibration's images have, found " +
                                                          number(patches_per_image));
    expect_range(images, 0, std::numeric_limits<std::int64_t>::max() / 16 / own.patches, "images",
                 "what can be addressed");
    const mmad_threshold of_images = own.images.threshold(rate), of_patches = own.peaks.threshold(rate);
    if (p_values != nullptr || bad != nullptr) expect_given(image_scores, "image_scores");
    if (bad_patches != nullptr) expect_given(patch_scores, "patch_scores");
    if (p_values != nullptr || bad != nullptr) expect_numbers(image_scores, images, "image_scores");
    if (bad_patches != nullptr) expect_numbers(patch_scores, images * own.patches, "patch_scores");
    for (std::int64_t i = 0; i < images; ++i) {
      if (p_values != nullptr) p_values[i] = own.images.p_value(image_scores[i]);
      if (bad != nullptr) bad[i] = static_cast<double>(image_scores[i]) > of_images.score ? 1 : 0;
    }
    for (std::int64_t i = 0; bad_patches != nullptr && i < images * own.patches; ++i) {
      bad_patches[i] = static_cast<double>(patch_scores[i]) > of_patches.score ? 1 : 0;
    }
  });
}

mmad_status mmad_knn(const float* queries, int64_t n, const float* vectors, int64_t m, int64_t dim, int64_t k,
                     int32_t precision, int32_t threads, float* distances, int64_t* rows) {
  return guarded([&] {
    const int team = checked_threads(threads);
    const Matrix<const float> asked = given(queries, n, dim, "queries"), bank = given(vectors, m, dim, "vectors");
    expect_range(k, 1, m, "k", "the number of vectors");
    expect_pairs(n, k);
    const std::string name = mmad::precision_name(precision);
    check_finite(asked, "queries");
    check_finite(bank, "vectors");
    const mmad::Isa isa = mmad::active_isa();
    const mmad::KnnIndex index(bank, mmad::choose_screening(bank, name == "auto" ? "half" : name, isa, team), isa,
                               team);
    std::vector<float> own_distances;
    std::vector<std::int64_t> own_rows;
    index.search(asked, k, wanted(distances, &own_distances, n * k), wanted(rows, &own_rows, n * k), team);
  });
}

mmad_status mmad_k_center_greedy(const float* rows, int64_t n, int64_t dim, int64_t count, int64_t start,
                                 int32_t threads, int64_t* selected, double* radii, double* covering_radius) {
  return guarded([&] {
    const Matrix<const float> from = given(rows, n, dim, "rows");
    expect_range(count, 1, n, "count", "the number of rows");
    expect_range(start, 0, n - 1, "start", "the row numbers");
    expect_given(selected, "selected");
    check_finite(from, "rows");
    mmad::KCenterOptions options;
    options.start = start;
    options.threads = checked_threads(threads);
    options.isa = mmad::active_isa();
    options.format = mmad::screening_format("auto", options.isa);
    const mmad::KCenterResult found = mmad::k_center_greedy(from, {nullptr, 0, dim}, count, options);
    std::copy(found.rows.begin(), found.rows.end(), selected);
    if (radii != nullptr) std::copy(found.radii.begin(), found.radii.end(), radii);
    if (covering_radius != nullptr) *covering_radius = found.covering_radius;
  });
}

}  // extern "C"
