/* ddi.h from C99. What it computes goes to files that the caller compares:
 *   run PLAN IMAGES N LAYOUT THREADS MAX_MACS MAX_JOULES CONFIDENCE LOGITS [DECISIONS]
 *                          prints the exit, and each sample's counts and joules by ENERGY
 *   errors PLAN            every code, and what ddi_last_error says
 *   threads PLAN IMAGES N  four threads, a session each, on a network that is already freed
 *   allocations PLAN IMAGES N THREADS   counts calls of the allocator during runs
 *   exhausted PLAN         lets every allocation of loading and opening fail once
 */
#define _POSIX_C_SOURCE 200112L
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "counted_malloc.h"
#include "ddi.h"

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, ddi_last_error()); \
      exit(1);                                                                      \
    }                                                                               \
  } while (0)

#define CHECK_FAILS(call, status, message)              \
  do {                                                  \
    CHECK((call) == (status));                          \
    CHECK(strstr(ddi_last_error(), (message)) != NULL); \
  } while (0)

#define ENERGY {3e-12, 2e-11, 7e-12}

static void* read_bytes(const char* path, size_t* bytes) {
  FILE* file = fopen(path, "rb");
  CHECK(file != NULL);
  CHECK(fseek(file, 0, SEEK_END) == 0);
  *bytes = (size_t)ftell(file);
  rewind(file);
  void* data = malloc(*bytes + 1);
  CHECK(data != NULL && fread(data, 1, *bytes, file) == *bytes);
  fclose(file);
  return data;
}

static ddi_network* load(const char* path) {
  ddi_network* network = NULL;
  CHECK(ddi_network_load(path, &network) == DDI_OK);
  return network;
}

static ddi_images images_of(const ddi_network_info* info, const float* data, int64_t n,
                            int channels_last) {
  const int64_t c = info->channels, h = info->height, w = info->width;
  ddi_images images = {data, n, {c * h * w, h * w, w, 1}};
  if (channels_last) {
    images.stride[1] = 1;
    images.stride[2] = w * c;
    images.stride[3] = c;
  }
  return images;
}

static int run(int argc, char** argv) {
  CHECK(argc >= 11);
  ddi_network* network = load(argv[2]);
  ddi_network_info info;
  CHECK(ddi_network_describe(network, &info) == DDI_OK);
  size_t bytes;
  float* data = read_bytes(argv[3], &bytes);
  const int64_t n = atol(argv[4]);
  const ddi_images images = images_of(&info, data, n, strcmp(argv[5], "nhwc") == 0);
  ddi_session* session = NULL;
  CHECK(ddi_session_open(network, n, atol(argv[6]), &session) == DDI_OK);
  ddi_options options = ddi_default_options();
  CHECK(options.max_macs < 0 && options.deadline_ms < 0 && options.decisions == NULL);
  CHECK(options.max_joules < 0 && options.energy[0] < 0 && options.confidence < 0);
  options.max_macs = atol(argv[7]);
  options.max_joules = atof(argv[8]);
  const double energy[3] = ENERGY;
  memcpy(options.energy, energy, sizeof(energy));
  options.confidence = atof(argv[9]);
  if (argc > 11) options.decisions = read_bytes(argv[11], &bytes);
  float* logits = malloc((size_t)(n * info.classes) * sizeof(float));
  CHECK(ddi_session_run(session, &images, logits, &options) == DDI_OK);
  ddi_report report;
  CHECK(ddi_session_report(session, &report) == DDI_OK);
  CHECK(ddi_session_memory(session) > 0);
  FILE* file = fopen(argv[10], "wb");
  CHECK(file != NULL);
  fwrite(logits, sizeof(float), (size_t)(n * info.classes), file);
  fclose(file);
  printf("%s %ld", ddi_network_exit_name(network, report.exit), (long)report.exit);
  for (int64_t i = 0; i < n; ++i) {
    printf(" %ld %ld %ld %.17g %ld", (long)report.macs[i], (long)report.weight_bytes[i],
           (long)report.activation_bytes[i], report.joules[i], (long)report.exits[i]);
  }
  printf("\n");
  free(logits);
  free(data);
  free((void*)options.decisions);
  ddi_session_free(session);
  ddi_network_free(network);
  return 0;
}

static void check_nulls(const ddi_network* network, ddi_session* session, const ddi_images* images,
                        float* logits) {
  ddi_network* no_network;
  ddi_session* no_session;
  ddi_network_info info;
  ddi_report report;
  size_t bytes;
  CHECK_FAILS(ddi_network_load(NULL, &no_network), DDI_BAD_ARGUMENT, "ddi_network_load: NULL");
  CHECK_FAILS(ddi_network_load("x", NULL), DDI_BAD_ARGUMENT, "ddi_network_load: NULL");
  CHECK_FAILS(ddi_network_read(NULL, 1, &no_network), DDI_BAD_ARGUMENT, "ddi_network_read: NULL");
  CHECK_FAILS(ddi_network_describe(NULL, &info), DDI_BAD_ARGUMENT, "ddi_network_describe: NULL");
  CHECK_FAILS(ddi_network_describe(network, NULL), DDI_BAD_ARGUMENT, "ddi_network_describe: NULL");
  CHECK_FAILS(ddi_session_open(NULL, 1, 1, &no_session), DDI_BAD_ARGUMENT,
              "ddi_session_open: NULL");
  CHECK_FAILS(ddi_session_open(network, 1, 1, NULL), DDI_BAD_ARGUMENT, "ddi_session_open: NULL");
  CHECK_FAILS(ddi_session_run(NULL, images, logits, NULL), DDI_BAD_ARGUMENT, "for session");
  CHECK_FAILS(ddi_session_run(session, NULL, logits, NULL), DDI_BAD_ARGUMENT, "for images");
  CHECK_FAILS(ddi_session_run(session, images, NULL, NULL), DDI_BAD_ARGUMENT, "for logits");
  ddi_images empty = *images;
  empty.data = NULL;
  CHECK_FAILS(ddi_session_run(session, &empty, logits, NULL), DDI_BAD_ARGUMENT, "for images.data");
  empty.n = 0;
  CHECK(ddi_session_run(session, &empty, NULL, NULL) == DDI_OK);
  CHECK_FAILS(ddi_session_report(NULL, &report), DDI_BAD_ARGUMENT, "ddi_session_report: NULL");
  CHECK_FAILS(ddi_session_report(session, NULL), DDI_BAD_ARGUMENT, "ddi_session_report: NULL");
  CHECK(ddi_network_metadata(NULL, &bytes) == NULL && ddi_network_metadata(network, NULL) == NULL);
  CHECK(ddi_network_step_name(NULL, 0) == NULL && ddi_network_exit_name(NULL, 0) == NULL);
  CHECK(ddi_session_memory(NULL) == 0);
  ddi_network_free(NULL);
  ddi_session_free(NULL);
}

static void check_names(const ddi_network* network, const ddi_network_info* info) {
  for (int64_t i = 0; i < info->steps; ++i) CHECK(strlen(ddi_network_step_name(network, i)) > 0);
  for (int64_t i = 0; i < info->exits; ++i) CHECK(strlen(ddi_network_exit_name(network, i)) > 0);
  CHECK(ddi_network_step_name(network, -1) == NULL);
  CHECK(ddi_network_step_name(network, info->steps) == NULL);
  CHECK(ddi_network_exit_name(network, -1) == NULL);
  CHECK(ddi_network_exit_name(network, info->exits) == NULL);
  size_t bytes = 0;
  const char* metadata = ddi_network_metadata(network, &bytes);
  CHECK(bytes > 2 && metadata[0] == '{' && metadata[bytes - 1] == '}');
  CHECK(strlen(ddi_cpu_isa()) > 0);
}

static void check_bad_plans(const char* path) {
  size_t bytes;
  uint8_t* plan = read_bytes(path, &bytes);
  ddi_network* network = (ddi_network*)plan;
  CHECK_FAILS(ddi_network_load("/no/such/file", &network), DDI_BAD_PLAN,
              "cannot open /no/such/file");
  CHECK(network == NULL);
  CHECK_FAILS(ddi_network_load("/", &network), DDI_BAD_PLAN, "cannot read /");
  CHECK_FAILS(ddi_network_read(plan, 0, &network), DDI_BAD_PLAN, "less than a header");
  CHECK_FAILS(ddi_network_read(plan, bytes - 1, &network), DDI_BAD_PLAN, "its header says");
  plan[bytes - 1] ^= 1;
  CHECK_FAILS(ddi_network_read(plan, bytes, &network), DDI_BAD_PLAN, "checksum");
  plan[bytes - 1] ^= 1;
  plan[0] = 'x';
  CHECK_FAILS(ddi_network_read(plan, bytes, &network), DDI_BAD_PLAN, "this is no plan");
  free(plan);
}

static void check_limits(ddi_session* session, const ddi_images* images, float* logits) {
  const double nan = strtod("nan", NULL), infinity = strtod("inf", NULL);
  ddi_options options = ddi_default_options();
  options.max_macs = 0;
  CHECK_FAILS(ddi_session_run(session, images, logits, &options), DDI_REFUSED, "0 MACs: the first");
  options = ddi_default_options();
  options.max_joules = 0;
  CHECK_FAILS(ddi_session_run(session, images, logits, &options), DDI_REFUSED,
              "max_joules comes without energy");
  for (int i = 0; i < 3; ++i) options.energy[i] = 1;
  CHECK_FAILS(ddi_session_run(session, images, logits, &options), DDI_REFUSED,
              "0 joules: the first");
  const double bad_energy[3] = {-1, nan, infinity};
  for (int i = 0; i < 3; ++i) {
    options.energy[1] = bad_energy[i];
    CHECK_FAILS(ddi_session_run(session, images, logits, &options), DDI_REFUSED, "energy is 1, ");
  }
  options.energy[1] = 1;
  options.max_joules = nan;
  CHECK_FAILS(ddi_session_run(session, images, logits, &options), DDI_REFUSED, "max_joules is nan");
  options.max_joules = infinity;
  CHECK_FAILS(ddi_session_run(session, images, logits, &options), DDI_REFUSED, "max_joules is inf");
  options = ddi_default_options();
  options.deadline_ms = nan;
  CHECK_FAILS(ddi_session_run(session, images, logits, &options), DDI_REFUSED,
              "deadline_ms is nan");
  options = ddi_default_options();
  options.confidence = nan;
  CHECK_FAILS(ddi_session_run(session, images, logits, &options), DDI_REFUSED, "confidence is nan");
  options.confidence = 1.5;
  CHECK_FAILS(ddi_session_run(session, images, logits, &options), DDI_REFUSED, "confidence is 1.5");
  options.confidence = 0;
  CHECK(ddi_session_run(session, images, logits, &options) == DDI_OK);
  ddi_report report;
  CHECK(ddi_session_report(session, &report) == DDI_OK && report.joules == NULL);
}

static int errors(const char* path) {
  ddi_network* network = load(path);
  ddi_network_info info;
  CHECK(ddi_network_describe(network, &info) == DDI_OK);
  check_names(network, &info);
  ddi_session* session = NULL;
  CHECK_FAILS(ddi_session_open(network, 0, 1, &session), DDI_REFUSED, "max_batch is 0");
  CHECK_FAILS(ddi_session_open(network, 1 << 20, 1, &session), DDI_REFUSED, "max_batch is 1048576");
  CHECK_FAILS(ddi_session_open(network, 1, 0, &session), DDI_REFUSED, "threads is 0");
  CHECK_FAILS(ddi_session_open(network, 1, 1 << 20, &session), DDI_REFUSED, "threads is 1048576");
  CHECK(session == NULL);
  CHECK(ddi_session_open(network, 2, 1, &session) == DDI_OK);
  const int64_t numel = info.channels * info.height * info.width;
  float* data = calloc((size_t)(2 * numel), sizeof(float));
  float* logits = malloc((size_t)(2 * info.classes) * sizeof(float));
  ddi_images images = images_of(&info, data, 2, 0);
  check_nulls(network, session, &images, logits);
  check_bad_plans(path);
  images.n = 3;
  CHECK_FAILS(ddi_session_run(session, &images, logits, NULL), DDI_REFUSED, "has 3 images");
  images.n = -1;
  CHECK_FAILS(ddi_session_run(session, &images, logits, NULL), DDI_REFUSED, "has -1 images");
  images.n = 2;
  check_limits(session, &images, logits);
  /* After all of it the session still works, and what failed last is still told. */
  CHECK(ddi_session_run(session, &images, logits, NULL) == DDI_OK);
  CHECK(strstr(ddi_last_error(), "confidence is 1.5") != NULL);
  free(data);
  free(logits);
  ddi_session_free(session);
  ddi_network_free(network);
  printf("errors: ok\n");
  return 0;
}

typedef struct {
  ddi_session* session;
  ddi_images images;
  const float* expected;
  int64_t numel;
  float* logits;
  int wrong;
} work;

static void* repeat(void* argument) {
  work* w = argument;
  if (*ddi_last_error() != '\0') w->wrong += 1000; /* errors are their thread's own */
  for (int i = 0; i < 50; ++i) {
    memset(w->logits, 0xff, (size_t)w->numel * sizeof(float));
    if (ddi_session_run(w->session, &w->images, w->logits, NULL) != DDI_OK) w->wrong += 1;
    if (memcmp(w->logits, w->expected, (size_t)w->numel * sizeof(float)) != 0) w->wrong += 1;
  }
  return NULL;
}

static int threads(char** argv) {
  ddi_network* network = load(argv[2]);
  ddi_network_info info;
  CHECK(ddi_network_describe(network, &info) == DDI_OK);
  const int64_t n = atol(argv[4]), numel = n * info.classes;
  size_t bytes;
  float* data = read_bytes(argv[3], &bytes);
  work works[4];
  float* expected = malloc((size_t)numel * sizeof(float));
  for (int i = 0; i < 4; ++i) {
    works[i].images = images_of(&info, data, n, 0);
    works[i].expected = expected;
    works[i].numel = numel;
    works[i].logits = malloc((size_t)numel * sizeof(float));
    works[i].wrong = 0;
    CHECK(ddi_session_open(network, n, 1 + i % 2, &works[i].session) == DDI_OK);
  }
  CHECK(ddi_network_load(NULL, NULL) == DDI_BAD_ARGUMENT); /* an error of this thread */
  ddi_network_free(network);                               /* sessions live on */
  CHECK(ddi_session_run(works[0].session, &works[0].images, expected, NULL) == DDI_OK);
  pthread_t ids[4];
  for (int i = 0; i < 4; ++i) CHECK(pthread_create(&ids[i], NULL, repeat, &works[i]) == 0);
  int wrong = 0;
  for (int i = 0; i < 4; ++i) {
    CHECK(pthread_join(ids[i], NULL) == 0);
    wrong += works[i].wrong;
    free(works[i].logits);
    ddi_session_free(works[i].session);
  }
  free(expected);
  free(data);
  printf("threads: %d wrong of 200\n", wrong);
  return wrong != 0;
}

static int count_allocations(char** argv) {
  ddi_network* network = load(argv[2]);
  ddi_network_info info;
  CHECK(ddi_network_describe(network, &info) == DDI_OK);
  const int64_t n = atol(argv[4]);
  size_t bytes;
  float* data = read_bytes(argv[3], &bytes);
  float* logits = malloc((size_t)(n * info.classes) * sizeof(float));
  uint8_t* bits = calloc((size_t)(n * info.decision_bytes) + 1, 1);
  ddi_session* session = NULL;
  long before = allocations;
  CHECK(ddi_session_open(network, n, atol(argv[5]), &session) == DDI_OK);
  const long opening = allocations - before;
  ddi_options options = ddi_default_options();
  before = allocations;
  for (int i = 0; i < 40; ++i) {
    const ddi_images images = images_of(&info, data, 1 + i % n, i % 3 == 0);
    options.decisions = i % 4 == 0 ? bits : NULL;
    options.max_macs = i % 5 == 0 ? info.dense_macs : -1;
    options.deadline_ms = i % 7 == 0 ? 0 : -1;
    options.confidence = i % 2 == 0 ? 0.5 : -1;
    options.max_joules = i % 3 == 0 ? 1 : -1;
    for (int j = 0; j < 3; ++j) options.energy[j] = i % 3 == 0 ? 1e-12 : -1;
    CHECK(ddi_session_run(session, &images, logits, &options) == DDI_OK);
    ddi_report report;
    CHECK(ddi_session_report(session, &report) == DDI_OK);
  }
  printf("allocations: %ld opening, %ld running\n", opening, allocations - before);
  free(data);
  free(logits);
  free(bits);
  ddi_session_free(session);
  ddi_network_free(network);
  return 0;
}

static int exhausted(const char* path) {
  size_t bytes;
  uint8_t* plan = read_bytes(path, &bytes);
  long refused = 0;
  for (long i = 0;; ++i) {
    ddi_network* network = NULL;
    ddi_session* session = NULL;
    failing = allocations + i;
    ddi_status status = ddi_network_read(plan, bytes, &network);
    if (status == DDI_OK) status = ddi_session_open(network, 2, 1, &session);
    const int reached = allocations > failing;
    failing = -1;
    CHECK(status == DDI_OK || status == DDI_NO_MEMORY);
    CHECK(status == DDI_OK ? session != NULL : strcmp(ddi_last_error(), "out of memory") == 0);
    refused += status == DDI_NO_MEMORY;
    ddi_session_free(session);
    ddi_network_free(network);
    if (!reached) break;
  }
  free(plan);
  printf("exhausted: %ld refused\n", refused);
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  if (strcmp(argv[1], "run") == 0) return run(argc, argv);
  if (strcmp(argv[1], "errors") == 0) return errors(argv[2]);
  if (strcmp(argv[1], "threads") == 0 && argc == 5) return threads(argv);
  if (strcmp(argv[1], "allocations") == 0 && argc == 6) return count_allocations(argv);
  if (strcmp(argv[1], "exhausted") == 0) return exhausted(argv[2]);
  return 2;
}
