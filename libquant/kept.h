/* kept.h: what an interrupted calibration leaves, and goes on from: per layer a file of results, and one of what all samples
 * carried into the next. Layer L3. */
#ifndef Q_KEPT_H
#define Q_KEPT_H

#include "stream.h"

/* Files DST.HASH.layerN and DST.HASH.rows. A file counts when it was completed, for this hash. */
typedef struct q_kept {
    const q_alloc *alloc;
    const char *dst;
    uint64_t hash;
    char path[4096];
} q_kept;

typedef struct q_kept_file q_kept_file;
/* Write the results of a layer, in any pieces. */
lq_status q_kept_create(q_kept *k, int32_t layer, uint64_t bytes, q_kept_file **out);
lq_status q_kept_write(q_kept_file *f, const void *data, uint64_t n);
lq_status q_kept_commit(q_kept_file *f);  /* frees f */
void q_kept_discard(q_kept_file *f);      /* NULL is fine */

/* Read them in order: `bytes` in all, checked at the end. */
typedef struct q_kept_reader {
    q_file *file;
    uint64_t at, sum;
} q_kept_reader;
lq_status q_kept_open(q_kept *k, int32_t layer, uint64_t bytes, q_kept_reader *out);
lq_status q_kept_read(q_kept_reader *r, void *data, uint64_t n);
lq_status q_kept_close(q_kept_reader *r); /* LQ_E_INCONSISTENT when what was read is not what was written */

/* What all samples carry into the stage that is next. */
lq_status q_kept_save_rows(q_kept *k, q_stream *s, uint32_t samples);
/* Begin `s` at the stage that was saved last; *found false: nothing of use is there, and `s` is as it was. `bytes` [layers]
 * of the results of each. */
lq_status q_kept_restore(q_kept *k, q_stream *s, uint32_t samples, const uint64_t *bytes, bool *found);
/* All is done. */
lq_status q_kept_remove(q_kept *k, int32_t layers);
/* Files that interrupted calibrations to the same `dst` left for another hash, those they were writing counted: how many, and
 * of how many bytes; with `remove` they go. What cannot be looked at or removed (it may be another user's) stays, with a
 * warning: no calibration fails for it. Only one who holds the lock of `dst` may ask: then none of them is in use. */
void q_kept_strays(const q_kept *k, const q_log *log, bool remove, uint32_t *n, uint64_t *bytes);

#endif
