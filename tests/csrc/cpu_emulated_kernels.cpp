// What the emulated processor runs: kernels behind functions that take one pointer.
#include "cpu/tile.hpp"
#include "mmad/k_center_greedy.hpp"
#include "mmad/knn.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Kernels : std::int64_t { generic, avx2, avx512, avx512_vnni, amx };

static_assert(sizeof(mmad::RowTerms) == 20);

mmad::TileKernel kernel_of(std::int64_t kernels, std::int64_t format) {
  const auto operand = static_cast<mmad::Format>(format);
  switch (kernels) {
    case generic: return mmad::generic_tile_kernel(operand);
    case avx2: return mmad::avx2_tile_kernel(operand);
    case avx512: return mmad::avx512_tile_kernel(operand, false);
    case avx512_vnni: return mmad::avx512_tile_kernel(operand, true);
    default: return mmad::amx_tile_kernel(operand);
  }
}

}  // namespace

struct Tile {
  std::int64_t kernels, format, rows, panels;
  const void* a;
  std::int64_t row_bytes;
  const void* b;
  std::int64_t panel_bytes, depth;
  void* accumulators;
  std::int64_t screened_rows;
  const mmad::RowTerms* terms;
  mmad::ColumnTerms columns;
  float* lower;
  std::uint32_t* passed;
  std::int64_t any;
};

EXPORT void tile_shape(Tile* t) {
  const mmad::TileKernel kernel = kernel_of(t->kernels, t->format);
  t->rows = kernel.rows;
  t->panels = kernel.panels;
}

EXPORT void tile_multiply(Tile* t) {
  const mmad::TileKernel kernel = kernel_of(t->kernels, t->format);
  kernel.begin();
  kernel.multiply(t->a, t->row_bytes, t->b, t->panel_bytes, t->depth, t->accumulators);
  kernel.end();
}

EXPORT void tile_screen(Tile* t) {
  const mmad::TileKernel kernel = kernel_of(t->kernels, t->format);
  t->any =
      kernel.screen(t->accumulators, static_cast<int>(t->screened_rows), t->terms, t->columns, t->lower, t->passed);
}

struct Search {
  std::int64_t isa;
  const char* precision;
  const float* bank;
  std::int64_t size;
  const float* queries;
  std::int64_t count, dim, k, coarse;
  float* distances;
  std::int64_t* indices;
};

EXPORT void knn(Search* s) {
  const auto isa = static_cast<mmad::Isa>(s->isa);
  const mmad::Format format = mmad::screening_format(s->precision, isa);
  const mmad::KnnIndex index({s->bank, s->size, s->dim}, {format, s->coarse}, isa, 1);
  index.search({s->queries, s->count, s->dim}, s->k, s->distances, s->indices, 1);
}

// `bank` holds the rows and `k` is the number of picks.
EXPORT void k_center_greedy(Search* s) {
  mmad::KCenterOptions options;
  options.isa = static_cast<mmad::Isa>(s->isa);
  options.format = mmad::screening_format(s->precision, options.isa);
  options.pool = 40;
  options.progress = [](std::int64_t) {};
  const mmad::KCenterResult result =
      mmad::k_center_greedy({s->bank, s->size, s->dim}, {nullptr, 0, s->dim}, s->k, options);
  for (std::int64_t i = 0; i < s->k; ++i) s->indices[i] = result.rows[static_cast<std::size_t>(i)];
}
