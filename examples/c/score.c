/* Scores the patches of images with a memory bank, and says which normal patch each image's worst one is nearest to.
 *
 *     score BANK PATCHES.npy
 *
 * BANK is a file that MemoryBank.save or mmad-bank build has written, PATCHES.npy float32 (images, patches, D). */
#include <inttypes.h>
#include <mmad/mmad.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int64_t images, patches, dim;
  float* values;
} Dump;

static int complain(const char* file, const char* what) {
  fprintf(stderr, "error: %s: %s\n", file, what);
  return 0;
}

/* Reads a .npy file of version 1: 10 bytes, a header in text, the values. */
static int read_dump(const char* path, Dump* dump) {
  unsigned char start[10];
  char header[65536] = "";
  const char* shape = NULL;
  size_t length = 0, count = 0;
  int done = 0;
  FILE* file = fopen(path, "rb");
  if (file == NULL) return complain(path, "cannot be read");
  if (fread(start, 1, 10, file) == 10 && memcmp(start, "\x93NUMPY\x01", 7) == 0) {
    length = start[8] + 256u * start[9];
    if (fread(header, 1, length, file) == length) shape = strstr(header, "'shape': (");
  }
  if (shape == NULL || strstr(header, "'<f4'") == NULL || strstr(header, "'fortran_order': False") == NULL ||
      sscanf(shape, "'shape': (%" SCNd64 ", %" SCNd64 ", %" SCNd64 ")", &dump->images, &dump->patches, &dump->dim) !=
          3 ||
      dump->images < 1 || dump->patches < 1 || dump->dim < 1 || dump->images > (1 << 20) || dump->patches > (1 << 20) ||
      dump->dim > (1 << 16)) {
    complain(path, "expected a .npy file of float32 (images, patches, D)");
  } else {
    count = (size_t)dump->images * (size_t)dump->patches * (size_t)dump->dim;
    dump->values = malloc(count * sizeof(float));
    if (dump->values == NULL) {
      complain(path, "is larger than the memory");
    } else if (fread(dump->values, sizeof(float), count, file) != count) {
      complain(path, "is cut off");
    } else {
      done = 1;
    }
  }
  fclose(file);
  return done;
}

static int report(mmad_bank* bank, const Dump* dump) {
  const size_t count = (size_t)(dump->images * dump->patches);
  float* patch = malloc(count * sizeof(float));
  float* image = malloc((size_t)dump->images * sizeof(float));
  int64_t* nearest = malloc(count * sizeof(int64_t));
  int done = 0;
  if (patch != NULL && image != NULL && nearest != NULL &&
      mmad_bank_score(bank, dump->values, dump->images, dump->patches, dump->dim, NULL, 0, patch, image, nearest) ==
          MMAD_OK) {
    done = 1;
    for (int64_t i = 0; i < dump->images && done; ++i) {
      int64_t worst = i * dump->patches;
      mmad_origin origin;
      char name[256];
      for (int64_t p = worst; p < (i + 1) * dump->patches; ++p) {
        if (patch[p] > patch[worst]) worst = p;
      }
      done = mmad_bank_origin(bank, nearest[worst], &origin) == MMAD_OK &&
             mmad_bank_image_name(bank, nearest[worst], name, sizeof name, NULL) == MMAD_OK;
      printf("image %" PRId64 ": score %.9g, patch %" PRId64 " at %.9g from patch %" PRId64 " of %s (%s)\n", i,
             image[i], worst - i * dump->patches, patch[worst], origin.patch, name, origin.file);
    }
  }
  if (!done) fprintf(stderr, "error: %s\n", mmad_last_error());
  free(patch);
  free(image);
  free(nearest);
  return done;
}

int main(int argc, char** argv) {
  Dump dump = {0, 0, 0, NULL};
  mmad_bank* bank = NULL;
  int done = 0;
  if (argc != 3) {
    fprintf(stderr, "usage: score BANK PATCHES.npy (libmmad %s)\n", mmad_version());
    return 2;
  }
  if (read_dump(argv[2], &dump)) {
    if (mmad_bank_open(argv[1], MMAD_PRECISION_OF_FILE, MMAD_CPU, MMAD_OPEN_DEFAULT, 0, &bank) == MMAD_OK) {
      done = report(bank, &dump);
    } else {
      fprintf(stderr, "error: %s\n", mmad_last_error());
    }
  }
  mmad_bank_close(bank);
  free(dump.values);
  return done ? 0 : 2;
}
