/* The engine for C: runs networks that ddi.freeze wrote, with neither Python nor torch.
 *
 *   ddi_network* network;
 *   ddi_session* session;
 *   float image[3 * 32 * 32] = {...}, logits[10];
 *   if (ddi_network_load("net.ddi", &network) != DDI_OK) die(ddi_last_error());
 *   if (ddi_session_open(network, 1, 1, &session) != DDI_OK) die(ddi_last_error());
 *   ddi_images images = {image, 1, {3 * 32 * 32, 32 * 32, 32, 1}};
 *   if (ddi_session_run(session, &images, logits, NULL) != DDI_OK) die(ddi_last_error());
 *
 * A network is immutable: any number of threads may open sessions on it and run them. A session
 * belongs to one thread at a time, and allocates nothing after it is open. All sizes and strides
 * are in elements. No function throws or exits. */
#ifndef DDI_H
#define DDI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DDI_API __attribute__((visibility("default")))
#else
#define DDI_API
#endif

typedef enum {
  DDI_OK = 0,
  DDI_BAD_ARGUMENT = 1, /* a null pointer, or a number out of range */
  DDI_BAD_PLAN = 2,     /* the file is no plan, damaged, or of another version */
  DDI_REFUSED = 3,      /* the call cannot be served: too large a batch, no exit fits the budget */
  DDI_NO_MEMORY = 4,
  DDI_INTERNAL = 5
} ddi_status;

typedef struct ddi_network ddi_network;
typedef struct ddi_session ddi_session;

typedef struct {
  int64_t channels, height, width; /* of an image */
  int64_t classes;
  int64_t exits;          /* classifiers that may answer; the last is the whole network's */
  int64_t steps;          /* of the trunk, see ddi_network_step_name */
  int64_t decision_bytes; /* gate bits of one sample, a byte each */
  int64_t dense_macs;     /* multiply-adds of one sample with every gate open, to the last exit */
} ddi_network_info;

typedef struct {
  const float* data;
  int64_t n;
  int64_t stride[4]; /* from sample to sample, channel, row, column; NCHW and NHWC alike */
} ddi_images;

/* Limits may be combined; all of them hold. */
typedef struct {
  int64_t max_macs;   /* of every sample, never exceeded; negative: no limit */
  double deadline_ms; /* from the start of the call, checked before each step; negative: none */
  const uint8_t* decisions; /* [n][decision_bytes] to use in place of the gates' own, or NULL */
  int trace;                /* not 0: take the time of every step, see ddi_report */
  double max_joules;        /* of every sample, by `energy`, never exceeded; negative: no limit */
  double energy[3];  /* joules per multiply-add, byte of weights and byte of activations that it
                        needs; the first negative: unknown */
  double confidence; /* at most 1: each sample halts at the first exit where its largest
                        probability is at least this, the call goes on with the others;
                        negative: none does */
} ddi_options;

/* What the last run of a session did. Valid until its next run. */
typedef struct {
  int64_t exit;                /* the deepest classifier that answered, from 0 */
  const int64_t* macs;         /* [n] multiply-adds of each sample, gates and classifier included */
  const uint8_t* decisions;    /* [n][decision_bytes], 0 where a gate was not reached */
  const double* step_ms;       /* [steps], negative where a step was not run or not timed */
  const int64_t* weight_bytes; /* [n] that the multiply-adds of each sample need */
  const int64_t* activation_bytes; /* [n] */
  const double* joules;            /* [n] of each sample by options.energy; NULL without */
  const int64_t* exits;            /* [n] the classifier that answered for each sample */
} ddi_report;

/* No limit, no confidence, the gates' own decisions, no trace. */
DDI_API ddi_options ddi_default_options(void);

DDI_API ddi_status ddi_network_load(const char* path, ddi_network** network);
/* From memory, which may be freed afterwards. */
DDI_API ddi_status ddi_network_read(const void* plan, size_t bytes, ddi_network** network);
DDI_API void ddi_network_free(ddi_network* network);
DDI_API ddi_status ddi_network_describe(const ddi_network* network, ddi_network_info* info);
/* UTF-8, not NUL-terminated: `*bytes` long. JSON about the network and what its gates are. */
DDI_API const char* ddi_network_metadata(const ddi_network* network, size_t* bytes);
/* NULL if there is no such step, or exit. */
DDI_API const char* ddi_network_step_name(const ddi_network* network, int64_t step);
DDI_API const char* ddi_network_exit_name(const ddi_network* network, int64_t exit);

/* The network may be freed before its sessions. */
DDI_API ddi_status ddi_session_open(const ddi_network* network, int64_t max_batch, int64_t threads,
                                    ddi_session** session);
DDI_API void ddi_session_free(ddi_session* session);
/* logits is [n][classes]; options may be NULL. */
DDI_API ddi_status ddi_session_run(ddi_session* session, const ddi_images* images, float* logits,
                                   const ddi_options* options);
DDI_API ddi_status ddi_session_report(const ddi_session* session, ddi_report* report);
/* Bytes that the session holds. */
DDI_API int64_t ddi_session_memory(const ddi_session* session);

/* Of the calling thread's last failed call. Valid until its next one. */
DDI_API const char* ddi_last_error(void);
/* The instruction set in use, e.g. "avx512". */
DDI_API const char* ddi_cpu_isa(void);

#ifdef __cplusplus
}
#endif

#endif
