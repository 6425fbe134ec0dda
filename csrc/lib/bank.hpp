// A bank that was opened: its vectors, mapped or in memory, its search copy, and what its file says about it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "lib/bank_file.hpp"
#include "lib/calibration.hpp"
#include "lib/cuda_search.hpp"
#include "lib/file.hpp"
#include "lib/provenance.hpp"
#include "mmad/knn.hpp"
#include "mmad/matrix.hpp"
#include "mmad/mmad.h"

namespace mmad {

// "auto", "float32", "half", "int8".
std::string precision_name(std::int32_t precision);

struct Standardization {
  double mean, std;
};

class Bank {
 public:
  Bank(const std::string& path, std::int32_t precision, std::int32_t device, std::int32_t flags, int threads);

  std::int64_t size() const { return vectors_.rows; }
  std::int64_t dim() const { return vectors_.cols; }
  std::int64_t nbytes() const;
  std::int32_t precision() const { return precision_; }
  const std::string& index() const { return index_name_; }
  const std::optional<std::string>& extractor() const { return extractor_; }
  std::optional<double> radius() const { return radius_; }
  const std::optional<Standardization>& standardization() const { return standardization_; }
  const BankCalibration* calibration() const { return calibration_ ? &*calibration_ : nullptr; }
  const Provenance& provenance() const { return *provenance_; }
  std::int64_t source_row(std::int64_t row) const { return source_rows_[static_cast<std::size_t>(row)]; }

  // What scores are divided by.
  double std() const { return standardization_ ? standardization_->std : 1.0; }
  const float* vector(std::int64_t row) const { return vectors_.row(row); }

  void check_file() const;
  // Makes the search copy unless it is there.
  void prepare(int threads);
  // As KnnIndex::search; gives back what it has touched of the file where the search copy is to be small.
  void search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* rows, int threads);

 private:
  void take_tensors(const BankFile& content, std::int32_t flags, int threads);
  void take_vectors(const BankFile& content, std::int32_t flags, int threads);
  template <typename T>
  std::vector<T> read(const BankFile& content, const std::string& name, int threads) const;
  void describe(const Manifest& header, std::int32_t precision);
  const KnnIndex& search_index(int threads);
  CudaSearch& device_search();
  [[noreturn]] void bad_vectors(const std::string& why) const;
  void release_pages() const;

  InputFile file_;
  bool verify_;
  std::unique_ptr<Mapping> mapping_;  // null if the vectors are in memory
  std::uint64_t offset_ = 0;
  std::vector<float> resident_;
  Matrix<const float> vectors_;
  std::vector<std::int64_t> source_rows_;
  std::int32_t precision_ = MMAD_PRECISION_AUTO;
  std::string index_name_;
  std::optional<std::string> extractor_;
  std::optional<double> radius_;
  std::optional<Standardization> standardization_;
  std::optional<BankCalibration> calibration_;
  std::unique_ptr<Provenance> provenance_;
  std::int32_t device_ = MMAD_CPU;
  std::mutex making_;
  std::unique_ptr<KnnIndex> made_;
  std::atomic<const KnnIndex*> made_index_{nullptr};  // made_, once it is there
  std::unique_ptr<CudaSearch> on_device_;
  std::atomic<CudaSearch*> device_index_{nullptr};
};

}  // namespace mmad
