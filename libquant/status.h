/* status.h: how an error is made and carried.
 *
 * A function that fails returns q_fail(code, sentence): the code travels up unchanged, the sentence stays in
 * thread-local storage for lq_error_detail(). The sentence names the file, key, tensor or byte offset. Layer L0. */
#ifndef Q_STATUS_H
#define Q_STATUS_H

#include "../include/libquant.h"
#include "base.h"

/* Store the sentence (printf rules; cut at 1023 bytes; control characters of file content are made visible) and
 * return `code`. */
lq_status q_fail(lq_status code, const char *fmt, ...) Q_PRINTF(2, 3);
/* Put "context: " in front of the stored sentence and return `code`: for callers that know the file or key. */
lq_status q_fail_in(lq_status code, const char *fmt, ...) Q_PRINTF(2, 3);

#if defined(Q_ANALYZE) /* the code comes back: to an analyzer, which sees one file at a time, it could become LQ_OK */
#define q_fail(code, ...) (q_fail(code, __VA_ARGS__), (code))
#define q_fail_in(code, ...) (q_fail_in(code, __VA_ARGS__), (code))
#endif

#define Q_TRY(expr)                          \
    do {                                     \
        const lq_status q_try_ = (expr);     \
        if (q_try_ != LQ_OK) return q_try_;  \
    } while (0)

/* Edit distance of the first 96 bytes of each: for naming what is nearest to a word that is none. */
uint32_t q_str_distance(q_str a, const char *s);

/* For "%.*s" with a q_str: at most 200 bytes of it. */
#define Q_STR_ARG(s) (int)Q_MIN((s).n, (uint64_t)200), (s).p ? (s).p : ""

#endif
