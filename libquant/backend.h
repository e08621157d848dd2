/* backend.h: the contract of a kind of device.
 *
 * A backend is kernels/X/X.c with one record, plus a line in backends.def. It receives a whole plan once (compile) and
 * then one run per batch. It knows nothing of files, models or sessions. Layer L1. */
#ifndef Q_BACKEND_H
#define Q_BACKEND_H

#include "log.h"
#include "plan.h"
#include "threads.h"

typedef struct q_device q_device;   /* a backend's own */
typedef struct q_program q_program; /* a compiled plan */

typedef struct q_buffer {
    void *host;      /* CPU: the memory; otherwise NULL or a mapping */
    uint64_t device; /* a backend's handle or address */
    uint64_t bytes;
} q_buffer;

typedef struct q_device_options {
    const q_alloc *alloc;
    const q_log *log;
    const char *isa;  /* mask, NULL = best */
    uint32_t threads; /* default */
} q_device_options;

typedef struct q_backend {
    const char *name; /* "cpu" */
    /* Number of devices present; never fails, never prints. */
    uint32_t (*probe)(void);
    lq_status (*open)(uint32_t index, const q_device_options *options, q_device **out);
    void (*close)(q_device *dev);
    /* Describe it, with memory available now. */
    void (*info)(const q_device *dev, lq_device_info *info);

    lq_status (*alloc)(q_device *dev, uint64_t bytes, q_buffer *out); /* zeroed */
    void (*free)(q_device *dev, q_buffer *buffer);
    lq_status (*write)(q_device *dev, q_buffer *dst, uint64_t offset, const void *src, uint64_t n);
    lq_status (*read)(q_device *dev, const q_buffer *src, uint64_t offset, void *dst, uint64_t n);
    lq_status (*copy)(q_device *dev, q_buffer *dst, uint64_t to, const q_buffer *src, uint64_t from, uint64_t n);

    /* Bytes of the backend's own layout of a weight for this op; 0 = the file's bytes are used in place. */
    uint64_t (*pack_bytes)(q_device *dev, q_op op, const q_weight *w);
    lq_status (*pack)(q_device *dev, q_op op, const q_weight *w, q_buffer *dst);

    /* NULL when the device can run the step, else the reason in words. Static storage. */
    const char *(*supports)(const q_device *dev, const q_inst *s);

    /* Bytes that compile will allocate for this plan: exactly. */
    lq_status (*measure)(const q_device *dev, const q_plan *plan, uint32_t threads, uint64_t *bytes);
    /* The plan must outlive the program. kv: one buffer per pool. */
    lq_status (*compile)(q_device *dev, const q_plan *plan, const q_buffer *kv, uint32_t threads, q_program **out);
    void (*release)(q_program *program);
    /* Run steps [first, last) for a batch; returns when it is submitted, wait when it is done. Allocates nothing.
     * LQ_E_CANCELLED when batch->cancel was seen. */
    lq_status (*run)(q_program *program, const q_batch *batch, int32_t first, int32_t last);
    lq_status (*wait)(q_device *dev);
    /* The kernel that runs step i, by name ("matmul_q4_k_a8_256__avx2"): for reports and tests. */
    const char *(*kernel_name)(const q_program *program, int32_t i);
} q_backend;

extern const q_backend *const q_backends[]; /* from backends.def */
uint32_t q_backend_count(void);

#endif
