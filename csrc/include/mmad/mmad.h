/* libmmad: memory banks searched and scored from C, C++ and whatever calls C.
 *
 * Rules of all functions:
 * - They return MMAD_OK or a status that says what went wrong; mmad_last_error() then has one line about it. Nothing is
 *   thrown across this border.
 * - Every buffer is the caller's. Arrays are row-major and packed, float32 and int64. What a function returns as
 *   `const char*` belongs to the library or to the handle, and lives as long.
 * - They may be called from any thread. One bank may be searched by many threads at the same time. Only mmad_bank_close()
 *   wants the bank for itself.
 * - `threads` is the number of threads of this call, the caller's own among them; 0 takes one per processor. The results
 *   do not depend on it.
 * - Outputs of a call that fails are of no use.
 */
#ifndef MMAD_MMAD_H
#define MMAD_MMAD_H

#include <stddef.h>
#include <stdint.h>

/* The version of the library; CMake and the shared library's name take it from here. Before 1.0 another minor version is
 * another interface. */
#define MMAD_VERSION_MAJOR 0
#define MMAD_VERSION_MINOR 1
#define MMAD_VERSION_PATCH 0

#if defined(__GNUC__)
#define MMAD_API __attribute__((visibility("default")))
#else
#define MMAD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t mmad_status;
enum {
  MMAD_OK = 0,
  MMAD_ERROR_ARGUMENT = 1,  /* an argument is out of its range, or does not fit the bank */
  MMAD_ERROR_IO = 2,        /* the file is missing or cannot be read, or was changed while it was mapped */
  MMAD_ERROR_FOREIGN = 3,   /* no bank file */
  MMAD_ERROR_TRUNCATED = 4, /* a bank file with its end cut off */
  MMAD_ERROR_ALTERED = 5,   /* a bank file that is damaged */
  MMAD_ERROR_NEWER = 6,     /* a bank file of a later format version */
  MMAD_ERROR_MEMORY = 7,    /* out of memory */
  MMAD_ERROR_DEVICE = 8,    /* the CUDA device cannot be used */
  MMAD_ERROR_INTERNAL = 9   /* a fault of the library */
};

/* "0.1.0". */
MMAD_API const char* mmad_version(void);

/* One line about the last call of this thread that failed, in UTF-8; empty if none has. It names the file or the argument,
 * what was found and what was expected. It stands until the next call of this thread fails. */
MMAD_API const char* mmad_last_error(void);

/* The instruction set in use: "generic", "avx2", "avx512" or "amx". MMAD_BANK_ISA in the environment lowers it; null if it
 * holds another word. */
MMAD_API const char* mmad_instruction_set(void);

/* Number of CUDA devices that this build can use; 0 for a build without CUDA, without a driver, or with an older one. */
MMAD_API int32_t mmad_cuda_device_count(void);

/* ---- banks ---- */

typedef struct mmad_bank mmad_bank;

/* Precision of the search copy in memory. Answers do not depend on it; speed and memory do. */
enum {
  MMAD_PRECISION_OF_FILE = 0, /* what the bank was saved with; only of mmad_bank_open() */
  MMAD_PRECISION_AUTO = 1,    /* what is fastest on this machine, measured on a sample of the bank */
  MMAD_PRECISION_FLOAT32 = 2,
  MMAD_PRECISION_HALF = 3, /* 16 bits */
  MMAD_PRECISION_INT8 = 4
};

enum { MMAD_CPU = -1 };

enum {
  MMAD_OPEN_DEFAULT = 0,
  MMAD_OPEN_UNVERIFIED = 1, /* leave the checksums of the tensors out; the header is always checked */
  MMAD_OPEN_IN_MEMORY = 2,  /* read the vectors: nothing that happens to the file later matters */
  MMAD_OPEN_MAPPED = 4      /* map them whatever their size; by default those of more than 16 MiB are */
};

/* Opens a bank file as mmad-bank writes it. Nothing in the file is run. The header, and the tensors unless told otherwise,
 * are compared with their checksums. A mapped file may be replaced by renaming or removed, but not changed in place.
 *
 * A bank with a FAISS index is opened too. Its saved index is left alone: libmmad always searches exactly, which finds
 * nearer neighbours where the index misses some.
 *
 * `path` is a file name of the system. `device` is where to search: MMAD_CPU, or the number of a CUDA device, which then
 * holds the vectors and a copy of 16 bits (of 8 with INT8) per value; the answers are the same. More than 256 neighbours
 * are found by the CPU. On success *bank is a handle for mmad_bank_close(); otherwise null. */
MMAD_API mmad_status mmad_bank_open(const char* path, int32_t precision, int32_t device, int32_t flags, int32_t threads,
                                    mmad_bank** bank);

/* Frees the bank and all that its functions have returned. Null is allowed. */
MMAD_API void mmad_bank_close(mmad_bank* bank);

/* Makes the search copy, which the first search or score would make otherwise. Call it before fork(). A vector that is not
 * finite is found here: MMAD_ERROR_ALTERED. */
MMAD_API mmad_status mmad_bank_prepare(mmad_bank* bank, int32_t threads);

MMAD_API int64_t mmad_bank_size(const mmad_bank* bank); /* number of vectors, M; of a null bank 0, as of the next two */
MMAD_API int64_t mmad_bank_dim(const mmad_bank* bank);  /* length of a vector, D */
MMAD_API int64_t mmad_bank_nbytes(const mmad_bank* bank);    /* memory held: the search copy, and vectors not mapped */
MMAD_API int32_t mmad_bank_precision(const mmad_bank* bank); /* MMAD_PRECISION_AUTO ... */
MMAD_API const char* mmad_bank_index(const mmad_bank* bank); /* "exact", or the FAISS index that it was saved with */
MMAD_API const char* mmad_bank_extractor(const mmad_bank* bank); /* what made the features; null if it is not known */
MMAD_API double mmad_bank_radius(const mmad_bank* bank);         /* covering radius; NaN if it is not known */

/* 1 if distances are divided by *std (*mean and *std may be null), 0 if the bank does not standardize. Features are given
 * as they come from the extractor in either case. */
MMAD_API int32_t mmad_bank_standardization(const mmad_bank* bank, double* mean, double* std);

/* The `k` nearest vectors of each query, nearest first, ties to the lowest row: (n, k) Euclidean distances and rows.
 * Identical to sorting float64 distances. 1 <= k <= M; either output may be null. */
MMAD_API mmad_status mmad_bank_search(mmad_bank* bank, const float* queries, int64_t n, int64_t dim, int64_t k,
                                      int32_t threads, float* distances, int64_t* rows);

/* How an image's score is made of its patches' (docs/reference/scoring.md). */
enum { MMAD_REWEIGHT_M3DM = 0, MMAD_REWEIGHT_PATCHCORE = 1, MMAD_REWEIGHT_MAX = 2, MMAD_REWEIGHT_TOP = 3 };

typedef struct mmad_rule {
  int32_t reweight;    /* MMAD_REWEIGHT_... */
  int32_t n_neighbors; /* vectors around the nearest one, it included; 0: 3 of M3DM, 9 of PATCHCORE, 1 of the others */
  double divisor;      /* what the largest patch score is divided by before the rule; 1 leaves it; 0 is taken as 1 */
} mmad_rule;

/* Scores images of `patches_per_image` patches: patches (images, patches_per_image, dim) to patch scores and nearest rows
 * (images, patches_per_image) and image scores (images). `rule` null is M3DM's. Any output may be null. */
MMAD_API mmad_status mmad_bank_score(mmad_bank* bank, const float* patches, int64_t images, int64_t patches_per_image,
                                     int64_t dim, const mmad_rule* rule, int32_t threads, float* patch_scores,
                                     float* image_scores, int64_t* nearest);

/* Copies vectors by number: (n) rows to (n, D). */
MMAD_API mmad_status mmad_bank_vectors(const mmad_bank* bank, const int64_t* rows, int64_t n, float* vectors);

/* Where a vector of the bank came from; numbers are -1 where they are not known. */
typedef struct mmad_origin {
  const char* file; /* source file as it was given to the bank's builder; lives as long as the bank */
  int64_t row;      /* row in that file */
  int64_t image;    /* number of the image in that file */
  int64_t patch;    /* number of the patch in that image */
  int64_t grid_row; /* place of the patch in the image's grid */
  int64_t grid_column;
} mmad_origin;

MMAD_API mmad_status mmad_bank_origin(const mmad_bank* bank, int64_t row, mmad_origin* origin);

/* Writes the name of the image that a vector came from to `buffer`, cut to `size` bytes with the ending zero, and the
 * length that it has without one to *length (may be null). */
MMAD_API mmad_status mmad_bank_image_name(const mmad_bank* bank, int64_t row, char* buffer, size_t size,
                                          size_t* length);

/* ---- verdicts at a promised false-alarm rate ---- */

typedef struct mmad_calibration {
  const char* origin;   /* which normal images were scored; lives as long as the bank */
  int64_t images;       /* number of them */
  int64_t patches;      /* patches per image */
  mmad_rule rule;       /* how image scores must be made to be judged */
  int32_t outdated;     /* 1 if the bank was extended afterwards */
  double smallest_rate; /* 1/(images + 1), the smallest false-alarm rate that so many can promise */
} mmad_calibration;

/* The limit that scores of bad images and patches are above. */
typedef struct mmad_threshold {
  double score;
  double rate;          /* false-alarm rate that it stands for */
  int32_t extrapolated; /* 1 where the rate is below smallest_rate: a fitted tail then, no promise */
} mmad_threshold;

/* 1 if the file holds a calibration. */
MMAD_API int32_t mmad_bank_is_calibrated(const mmad_bank* bank);
MMAD_API mmad_status mmad_bank_calibration(const mmad_bank* bank, mmad_calibration* calibration);

/* The limits of image and patch scores at a false-alarm rate above 0 and below 1; 0 takes 0.01, or smallest_rate if that is
 * larger. Either output may be null. A share `rate` of the normal images has a patch above the second. */
MMAD_API mmad_status mmad_bank_threshold(const mmad_bank* bank, double rate, mmad_threshold* image,
                                         mmad_threshold* patch);

/* Judges scores that mmad_bank_score() has made by the calibration's rule: p_values (images) are conformal,
 * (1 + #{normal >= s})/(n + 1); bad (images) and bad_patches (images, patches_per_image) are 1 above the limit. Inputs that
 * no output needs, and outputs, may be null; NaN among the others is refused. */
MMAD_API mmad_status mmad_bank_judge(const mmad_bank* bank, const mmad_rule* rule, int64_t images,
                                     int64_t patches_per_image, const float* image_scores, const float* patch_scores,
                                     double rate, double* p_values, uint8_t* bad, uint8_t* bad_patches);

/* ---- without a bank file ---- */

/* As mmad_bank_search(), on vectors (m, dim). `precision` AUTO is HALF here: measuring takes longer than one search. */
MMAD_API mmad_status mmad_knn(const float* queries, int64_t n, const float* vectors, int64_t m, int64_t dim, int64_t k,
                              int32_t precision, int32_t threads, float* distances, int64_t* rows);

/* Exact greedy k-centre selection: `count` of (n, dim) rows, each the farthest from those before, the first is `start`;
 * ties go to the lowest row. `selected` (count) are the rows in order of selection, `radii` (count, may be null) the distance
 * of each to its nearest earlier one, infinity for the first. *covering_radius (may be null): of the rows that were not
 * selected the largest distance to the nearest selected one. */
MMAD_API mmad_status mmad_k_center_greedy(const float* rows, int64_t n, int64_t dim, int64_t count, int64_t start,
                                          int32_t threads, int64_t* selected, double* radii, double* covering_radius);

#ifdef __cplusplus
}
#endif

#endif /* MMAD_MMAD_H */
