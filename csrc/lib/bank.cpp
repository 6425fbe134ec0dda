#include "lib/bank.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "lib/failure.hpp"
#include "lib/index_name.hpp"
#include "lib/manifest.hpp"
#include "lib/utf8.hpp"
#include "mmad/memory.hpp"

namespace mmad {
namespace {

constexpr std::uint64_t kLargestRead = 16 << 20;  // bytes of vectors that are read; larger ones are mapped
constexpr const char* kPrecisions[] = {"", "auto", "float32", "half", "int8"};

std::string no_bank(const std::string& path, const std::string& why) {
  return path + ": altered, its header does not describe a memory bank (" + why + ")";
}

std::string shape_words(const std::vector<std::int64_t>& shape) {
  std::string out = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return out + (shape.size() == 1 ? ",)" : ")");
}

}  // namespace

std::string precision_name(std::int32_t precision) {
  expect_argument(
      precision >= MMAD_PRECISION_AUTO && precision <= MMAD_PRECISION_INT8,
      "precision: expected MMAD_PRECISION_AUTO (1) to MMAD_PRECISION_INT8 (4), found " + std::to_string(precision));
  return kPrecisions[precision];
}

Bank::Bank(const std::string& path, std::int32_t precision, std::int32_t device, std::int32_t flags, int threads)
    : file_(path), verify_((flags & MMAD_OPEN_UNVERIFIED) == 0), device_(device) {
  const BankFile content = read_bank_file(file_);
  take_tensors(content, flags, threads);
  describe(Manifest(path, content.header), precision);
  if (const auto calibration = Manifest(path, content.header).optional_table("calibration")) {
    calibration_ = read_calibration(*calibration, read<double>(content, "calibration_images", threads),
                                    read<double>(content, "calibration_peaks", threads));
  }
  file_.close();
}

// Verifies all tensors before anything of them is believed, as Python does.
void Bank::take_tensors(const BankFile& content, std::int32_t flags, int threads) {
  const std::string& path = file_.path();
  if (verify_) {
    const Mapping whole(file_);  // of its own: the pages that this touches leave the process with it
    for (const auto& [name, tensor] : content.tensors) {
      if (name != "vectors") check_tensor(content, path, name, whole.data() + tensor.offset, threads);
    }
  }
  if (content.tensors.count("vectors") > 0) take_vectors(content, flags, threads);
  const Manifest header(path, content.header);
  const std::int64_t rows = header.integer("vectors", 1), dim = header.integer("dim", 1);
  for (const char* name : {"vectors", "source_rows"}) {
    if (content.tensors.count(name) == 0) {
      throw Failure(MMAD_ERROR_ALTERED, no_bank(path, std::string("it has no '") + name + "'"));
    }
  }
  const StoredTensor& vectors = content.tensors.at("vectors");
  if (vectors.dtype != "float32" || vectors.shape != std::vector<std::int64_t>{rows, dim}) {
    throw Failure(MMAD_ERROR_ALTERED, no_bank(path, "vectors are " + vectors.dtype + " " + shape_words(vectors.shape)));
  }
  const StoredTensor& numbers = content.tensors.at("source_rows");
  if (numbers.dtype != "int64" || numbers.shape != std::vector<std::int64_t>{rows}) {
    throw Failure(MMAD_ERROR_ALTERED,
                  no_bank(path, "source rows are " + numbers.dtype + " " + shape_words(numbers.shape)));
  }
  source_rows_ = read<std::int64_t>(content, "source_rows", threads);
  const auto* values = mapping_ ? reinterpret_cast<const float*>(mapping_->data() + offset_) : resident_.data();
  vectors_ = {values, rows, dim};
}

void Bank::take_vectors(const BankFile& content, std::int32_t flags, int threads) {
  const StoredTensor& tensor = content.tensors.at("vectors");
  const bool large = tensor.nbytes > kLargestRead;
  const bool mapped = (flags & MMAD_OPEN_IN_MEMORY) != 0 ? false : large || (flags & MMAD_OPEN_MAPPED) != 0;
  offset_ = tensor.offset;
  if (mapped && tensor.offset % alignof(float) == 0) {
    mapping_ = std::make_unique<Mapping>(file_);
  } else {
    resize_for("the vectors", &resident_, static_cast<std::int64_t>(tensor.nbytes / sizeof(float)));
    file_.read(tensor.offset, resident_.data(), resident_.size() * sizeof(float));
  }
  if (!verify_) return;
  const Mapping* whole = mapping_.get();
  std::unique_ptr<Mapping> odd;  // of a length that is no number of values: found out below, once it is verified
  if (whole == nullptr && tensor.nbytes % sizeof(float) != 0) odd = std::make_unique<Mapping>(file_), whole = odd.get();
  const void* data = whole != nullptr ? static_cast<const void*>(whole->data() + tensor.offset) : resident_.data();
  check_tensor(content, file_.path(), "vectors", data, threads);
  if (mapping_) release_pages();
}

template <typename T>
std::vector<T> Bank::read(const BankFile& content, const std::string& name, int threads) const {
  const auto found = content.tensors.find(name);
  constexpr const char* dtype = std::is_same_v<T, double> ? "float64" : "int64";
  if (found == content.tensors.end()) {
    throw Failure(MMAD_ERROR_ALTERED, no_bank(file_.path(), "it has no '" + name + "'"));
  }
  const StoredTensor& tensor = found->second;
  if (tensor.dtype != dtype || tensor.shape.size() != 1) {
    throw Failure(MMAD_ERROR_ALTERED,
                  no_bank(file_.path(), name + " are " + tensor.dtype + " " + shape_words(tensor.shape)));
  }
  std::vector<T> out;
  resize_for("a tensor", &out, tensor.shape[0]);
  file_.read(tensor.offset, out.data(), out.size() * sizeof(T));
  if (verify_) check_tensor(content, file_.path(), name, out.data(), threads);
  return out;
}

void Bank::describe(const Manifest& header, std::int32_t precision) {
  const std::string& path = file_.path();
  std::int32_t stored = MMAD_PRECISION_AUTO;
  if (header.find("bank_precision") != nullptr) {  // older files have none
    const std::string& name = header.text("bank_precision");
    for (stored = MMAD_PRECISION_INT8; stored > 0 && name != kPrecisions[stored]; --stored) {
    }
    if (stored == 0) {
      throw Failure(MMAD_ERROR_ALTERED, no_bank(path,
                                                "bank_precision: expected one of auto, float32, half, int8, "
                                                "found " +
                                                    shown(name)));
    }
  }
  precision_ = precision == MMAD_PRECISION_OF_FILE ? stored : precision;
  index_name_ = system_text(header.text("index"));
  provenance_ = std::make_unique<Provenance>(header);
  provenance_->check_rows(source_rows_, path);
  if (const auto projection =
          header.optional_table("projection")) {  // of the selection; what searches has no use for it
    projection->integer("dim", 1, dim());
    projection->integer("seed", 0, std::numeric_limits<std::int64_t>::max());
  }
  if (const auto pair = header.optional_table("standardisation")) {
    standardization_ = {pair->number("mean"), pair->number("std")};
    if (!(standardization_->std > 0.0)) {
      throw Failure(MMAD_ERROR_ALTERED, no_bank(path, "standardize: expected a finite mean and a std above 0"));
    }
  }
  extractor_ = header.optional_text("extractor");
  if (extractor_) extractor_ = system_text(*extractor_);
  if (const auto radius = header.optional_number("radius")) {
    if (!(*radius >= 0.0)) {
      throw Failure(MMAD_ERROR_ALTERED, no_bank(path, "radius: expected a finite number of at least 0"));
    }
    radius_ = *radius / std();
  }
  if (index_name_ == "exact") return;
  if (!is_index_name(index_name_, size(), dim())) {
    throw Failure(MMAD_ERROR_ALTERED,
                  no_bank(path, "index: expected 'exact' or a FAISS factory string for " + std::to_string(size()) +
                                    " vectors of " + std::to_string(dim()) + " dimensions, found " +
                                    shown(header.text("index"))));
  }
  if (const auto search = header.optional_table("search")) {  // of an index that is not made here
    search->optional_integer("nprobe", 1);
    search->optional_integer("ef_search", 1);
    search->optional_number("recall");
  }
}

void Bank::check_file() const {
  if (mapping_) file_.check_unchanged();
}

void Bank::release_pages() const {
  if (mapping_) mapping_->release(offset_, static_cast<std::uint64_t>(size() * dim()) * sizeof(float));
}

void Bank::bad_vectors(const std::string& why) const {
  throw Failure(MMAD_ERROR_ALTERED, file_.path() + ": altered, bank: " + why);
}

const KnnIndex& Bank::search_index(int threads) {
  if (const KnnIndex* made = made_index_.load(std::memory_order_acquire)) return *made;
  const std::lock_guard<std::mutex> lock(making_);  // threads that search first at the same time make one copy
  if (!made_) {
    const Isa isa = active_isa();
    std::unique_ptr<KnnIndex> fresh;
    try {
      const Screening screening = choose_screening(vectors_, precision_name(precision_), isa, threads);
      fresh = std::make_unique<KnnIndex>(vectors_, screening, isa, threads);
    } catch (const std::invalid_argument& error) {
      bad_vectors(error.what());
    }
    release_pages();
    made_ = std::move(fresh);
    made_index_.store(made_.get(), std::memory_order_release);
  }
  return *made_;
}

CudaSearch& Bank::device_search() {
  if (CudaSearch* made = device_index_.load(std::memory_order_acquire)) return *made;
  const std::lock_guard<std::mutex> lock(making_);
  if (!on_device_) {
    if (size() > CudaSearch::kMostRows || dim() > CudaSearch::largest_dim()) {
      throw Failure(MMAD_ERROR_DEVICE, "bank: expected at most " + std::to_string(CudaSearch::kMostRows) +
                                           " vectors of " + std::to_string(CudaSearch::largest_dim()) +
                                           " values on a CUDA device");
    }
    for (std::int64_t row = 0; row < size(); ++row) {
      const float* values = vector(row);
      if (std::all_of(values, values + dim(), [](float one) { return std::isfinite(one); })) continue;
      bad_vectors("row " + std::to_string(row) + " holds NaN or infinity; expected finite values");
    }
    on_device_ = std::make_unique<CudaSearch>(vectors_, precision_ == MMAD_PRECISION_INT8, device_);
    release_pages();
    device_index_.store(on_device_.get(), std::memory_order_release);
  }
  return *on_device_;
}

std::int64_t Bank::nbytes() const {
  const KnnIndex* index = made_index_.load(std::memory_order_acquire);
  const CudaSearch* device = device_index_.load(std::memory_order_acquire);
  return (index == nullptr ? 0 : index->nbytes()) + (device == nullptr ? 0 : device->nbytes()) +
         static_cast<std::int64_t>(resident_.size() * sizeof(float) + source_rows_.size() * sizeof(std::int64_t));
}

void Bank::prepare(int threads) {
  check_file();
  if (device_ != MMAD_CPU) {
    device_search();
  } else {
    search_index(threads);
  }
}

void Bank::search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* rows, int threads) {
  check_file();
  if (device_ != MMAD_CPU && k <= CudaSearch::kMostNeighbors) {
    device_search().search(queries, k, distances, rows);
    return;
  }
  search_index(threads).search(queries, k, distances, rows, threads);
  if (precision_ == MMAD_PRECISION_INT8) release_pages();
}

}  // namespace mmad
