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

/* The first failure of a thread that shares work with others: each keeps one, zeroed, and stops at it. */
typedef struct q_trouble {
    lq_status status; /* LQ_OK = none */
    uint64_t at;      /* place in the work, such as a row */
    char text[1024];
} q_trouble;
/* `status`, which is not LQ_OK, with the sentence, which is the calling thread's own. */
void q_trouble_note(q_trouble *t, lq_status status, uint64_t at);
/* Of n of them that at the lowest place, with its sentence on this thread; LQ_OK where there is none. */
lq_status q_trouble_first(const q_trouble *t, uint32_t n);

/* Edit distance of the first 96 bytes of each: for naming what is nearest to a word that is none. */
uint32_t q_str_distance(q_str a, const char *s);

/* For "%.*s" with a q_str: at most 200 bytes of it. */
#define Q_STR_ARG(s) (int)Q_MIN((s).n, (uint64_t)200), (s).p ? (s).p : ""

#endif
