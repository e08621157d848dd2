/* backend.h: the contract of a kind of device.
 *
 * A backend is kernels/X/X.c with one record, plus a line in backends.def. It receives a segment of a plan once (compile)
 * and then one run per batch. It knows nothing of files, models or sessions. Layer L1. */
#ifndef Q_BACKEND_H
#define Q_BACKEND_H

#include "log.h"
#include "plan.h"
#include "threads.h"

typedef struct q_device q_device;   /* a backend's own */
typedef struct q_program q_program; /* a compiled plan */

typedef struct q_buffer {
    void *host;      /* memory that the processor may use, NULL = none */
    uint64_t device; /* its address for the device's kernels; of the CPU the same as host */
    uint64_t bytes;
    void *handle;    /* a backend's own */
} q_buffer;

typedef struct q_device_options {
    const q_alloc *alloc;
    const q_log *log;
    const char *isa;  /* mask, as lq_options.isa */
    uint32_t threads; /* default */
    const q_placing *placing; /* of large blocks in the process's memory; NULL = as they come */
} q_device_options;

/* Bytes by whose they are: the process's memory, the device's. A device without memory of its own counts all as host. */
typedef struct q_need {
    uint64_t host, device;
    uint64_t locked; /* of host: what stays in memory */
} q_need;

/* What crossed between the processor and a device in the runs of a program so far: hidden rows at the borders of
 * segments (q_batch.x and y), and everything (ids, positions, page tables, logits too). */
typedef struct q_traffic {
    uint64_t border_bytes, bytes;
    double border_seconds; /* on the caller's thread */
    uint64_t barriers;     /* CPU: points at which all threads waited for one another */
} q_traffic;

enum { Q_PACK_ROWS = 64 };

typedef struct q_backend {
    const char *name; /* "cpu" */
    /* Weights are read where the file's bytes lie (q_weight.data). Otherwise they are written to its buffers first and
     * q_weight.device is their address there. */
    bool host_memory;
    /* Number of devices present; never fails, never prints. */
    uint32_t (*probe)(void);
    lq_status (*open)(uint32_t index, const q_device_options *options, q_device **out);
    void (*close)(q_device *dev);
    /* Describe it, with memory available now. */
    void (*info)(const q_device *dev, lq_device_info *info);
    /* What the open device holds for itself, programs and buffers not counted. */
    q_need (*held)(const q_device *dev);

    /* The largest buffer that alloc can make, and what one of `bytes` takes of the device. */
    uint64_t (*alloc_most)(const q_device *dev);
    uint64_t (*alloc_bytes)(const q_device *dev, uint64_t bytes);
    lq_status (*alloc)(q_device *dev, uint64_t bytes, q_buffer *out); /* zeroed */
    void (*free)(q_device *dev, q_buffer *buffer);
    /* `src` may be reused on return; the device may still be copying. flush waits for all writes and says whether they
     * arrived; read, copy and run come after the writes before them in any case. One thread at a time writes. */
    lq_status (*write)(q_device *dev, q_buffer *dst, uint64_t offset, const void *src, uint64_t n);
    lq_status (*flush)(q_device *dev);
    lq_status (*read)(q_device *dev, const q_buffer *src, uint64_t offset, void *dst, uint64_t n);
    lq_status (*copy)(q_device *dev, q_buffer *dst, uint64_t to, const q_buffer *src, uint64_t from, uint64_t n);

    /* Bytes of the backend's own layout of a weight, in the process's memory, for products of this op: what compile will
     * choose for activations in any format; 0 = the file's bytes are used. pack makes rows begin .. end - 1 of all
     * matrices' rows in `to`, where all of it begins, Q_ALIGN-aligned; begin and end are multiples of Q_PACK_ROWS, but for
     * the last end. Every byte is written by one of the ranges, and from any thread. The empty range at 0 makes only
     * what tells of the layout, at most Q_ALIGN bytes, by which measure and compile choose. Of a weight with
     * `packed_ready` compile touches nothing of `packed`, and each run reads what is packed by then: the results are the
     * same. */
    uint64_t (*pack_bytes)(q_device *dev, q_op op, const q_weight *w);
    void (*pack)(q_device *dev, q_op op, const q_weight *w, int64_t begin, int64_t end, void *to);

    /* NULL when the device can run the step, else the reason in words. Static storage. */
    const char *(*supports)(const q_device *dev, const q_inst *s);

    /* What compile will allocate for this segment: exactly. */
    lq_status (*measure)(q_device *dev, const q_plan *plan, int32_t segment, uint32_t threads, q_need *need);
    /* Make the steps of a segment into whatever the device replays. The plan must outlive the program. kv: one buffer
     * per pool, those of other segments empty. state: q_plan.states times the segment's state_floats; NULL when it has none. */
    lq_status (*compile)(q_device *dev, const q_plan *plan, int32_t segment, const q_buffer *kv, const q_buffer *state,
                         uint32_t threads, q_program **out);
    void (*release)(q_program *program);
    /* Run the segment for a batch; returns when it is submitted, and wait when it is done: then its results (y, logits,
     * sampled) are there. The batch and all it points to stay as they are until then. Neither allocates. LQ_E_CANCELLED
     * from either when batch->cancel was seen; what the sequence holds from then on is not defined. After
     * LQ_E_DEVICE the program can only be released. Programs of one device may run from different threads. */
    lq_status (*run)(q_program *program, const q_batch *batch);
    lq_status (*wait)(q_program *program);
    q_traffic (*traffic)(const q_program *program);
    /* Between two runs: fn(arg, begin, end, thread) over chunks of [0, total) on the program's threads; NULL where a device
     * packs nothing. */
    void (*work)(q_program *program, int64_t total, int64_t step,
                 void (*fn)(void *arg, int64_t begin, int64_t end, uint32_t thread), void *arg);
    /* The loops of quantizing (wide.h) on this processor; NULL = those for any. The member is NULL where devices are none. */
    const struct q_wide *(*wide)(const q_device *dev);
    /* The kernel that runs step i of the plan, by name ("matmul_q4_k_a8_256__avx2"): for reports and tests. "" for a step
     * of another segment. */
    const char *(*kernel_name)(const q_program *program, int32_t i);
} q_backend;

extern const q_backend *const q_backends[]; /* from backends.def; [0] is the processor */
uint32_t q_backend_count(void);

#endif
