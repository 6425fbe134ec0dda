// Shards and coordinators for callers elsewhere: they keep copies of the rows that they are handed.
#include "mmad/k_center_shards.hpp"

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>

#include "cpu/k_center_coordinator.hpp"
#include "cpu/k_center_shard.hpp"

namespace mmad {

struct KCenterShard::Impl {
  std::optional<Shard> shard;              // none where there are no rows
  std::deque<std::vector<float>> centers;  // those of other shards, as they came

  // Keeps the centres that are not rows of this shard.
  Matrix<const float> keep(Matrix<const float> all, const std::int64_t* own) {
    std::vector<float>& kept = centers.emplace_back();
    for (std::int64_t c = 0; c < all.rows; ++c) {
      if (own == nullptr || own[c] < 0) kept.insert(kept.end(), all.row(c), all.row(c) + all.cols);
    }
    return {kept.data(), static_cast<std::int64_t>(kept.size()) / std::max<std::int64_t>(1, all.cols), all.cols};
  }
};

KCenterShard::KCenterShard(Matrix<const float> rows, std::int64_t centers, const KCenterOptions& options)
    : impl_(std::make_unique<Impl>()) {
  if (rows.rows > 0) impl_->shard.emplace(rows, centers, options);
}
KCenterShard::KCenterShard(KCenterShard&&) noexcept = default;
KCenterShard& KCenterShard::operator=(KCenterShard&&) noexcept = default;
KCenterShard::~KCenterShard() = default;

void KCenterShard::meet(Matrix<const float> centers, const std::int64_t* own) {
  if (!impl_->shard) return;
  impl_->shard->meet(impl_->keep(centers, own), own, centers.rows);
}

void KCenterShard::settle(const std::vector<KCenterCandidate>& rows) {
  if (impl_->shard) impl_->shard->settle(rows);
}

KCenterCandidates KCenterShard::rise(double bar, std::int64_t at_most) {
  return impl_->shard ? impl_->shard->rise(bar, at_most) : KCenterCandidates();
}

std::int64_t KCenterShard::updates() const { return impl_->shard ? impl_->shard->updates() : 0; }

struct KCenterCoordinator::Impl {
  Coordinator coordinator;
  KCenterOptions options;
  std::optional<ScreenSpace> space;
  std::int64_t space_rows = 0;  // of the pool that it was made for

  // Pools grow, and their rows come closer to each other: the space is made anew for one twice as large.
  const ScreenSpace& space_for(Matrix<const float> pool) {
    if (!space || pool.rows >= 2 * space_rows) {
      space.emplace(pool, options.format, options.isa, true, options.threads);
      space_rows = pool.rows;
    }
    return *space;
  }
};

KCenterCoordinator::KCenterCoordinator(std::int64_t rows, std::int64_t earlier, std::int64_t count,
                                       const KCenterOptions& options)
    : impl_(new Impl{Coordinator(rows, earlier, count, options), options, {}, 0}) {}
KCenterCoordinator::KCenterCoordinator(KCenterCoordinator&&) noexcept = default;
KCenterCoordinator& KCenterCoordinator::operator=(KCenterCoordinator&&) noexcept = default;
KCenterCoordinator::~KCenterCoordinator() = default;

double KCenterCoordinator::bar() const { return impl_->coordinator.bar(); }
std::int64_t KCenterCoordinator::wanted() const { return impl_->coordinator.wanted(); }
void KCenterCoordinator::offer(const KCenterCandidates& candidates) { impl_->coordinator.offer(candidates); }
bool KCenterCoordinator::join() { return impl_->coordinator.join(); }
const std::vector<KCenterCandidate>& KCenterCoordinator::pool() const { return impl_->coordinator.pool(); }
bool KCenterCoordinator::complete() const { return impl_->coordinator.complete(); }
bool KCenterCoordinator::covered() const { return impl_->coordinator.covered(); }
const KCenterResult& KCenterCoordinator::result() const { return impl_->coordinator.result(); }

std::int64_t KCenterCoordinator::pick(Matrix<const float> pool) {
  const ScreenSpace& space = impl_->space_for(pool);
  const Screen screen(space, pool.cols);
  const ScreenRows screened(pool, space, impl_->options.threads);
  PoolRows rows{{}, {}, pool.cols, screened, screen};
  for (std::int64_t p = 0; p < pool.rows; ++p) {
    rows.originals.push_back(pool.row(p));
    rows.numbers.push_back(p);
  }
  return impl_->coordinator.pick(rows);
}

}  // namespace mmad
