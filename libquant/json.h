/* json.h: the one door to JSON: a strict scanner, a pull reader for large texts, and jansson trees for small ones.
 *
 * Every text is first judged by our own iterative scanner: RFC 8259 grammar, strict UTF-8, no byte order mark, no NUL
 * (not even as an escape), no lone surrogate, at most Q_LIMIT_JSON_DEPTH levels, nothing after the value. Only then
 * does jansson see it, and only where its tree stays within 12 times the text. Texts that may be large (safetensors
 * headers, shard indexes) are read by the pull reader alone, which allocates nothing but decoded escapes: jansson takes
 * seconds and 8 times the memory for a header of 100 MB.
 *
 * jansson's trees come from the C library's malloc: its hook is one per process and belongs to the application.
 * Layer L1. */
#ifndef Q_JSON_H
#define Q_JSON_H

#include <jansson.h>

#include "loader.h"

/* ---- pull reader: the caller walks the text in order; every failure is LQ_E_FORMAT (or LQ_E_LIMIT) with the byte */

typedef struct q_json_reader {
    const uint8_t *data;
    uint64_t n, at;
    uint64_t base;     /* offset of data[0] in its file, for sentences */
    const char *what;  /* the file's path, for sentences */
    q_arena *arena;    /* strings with escapes are decoded into it; others point into data */
} q_json_reader;

/* Consume one structural character, after white space. */
lq_status q_json_expect(q_json_reader *r, char c);
/* At the head of each round over an object or array whose opening was consumed (`*first` true before the first round):
 * *more says whether another element follows; if not, `close` was consumed. */
lq_status q_json_next(q_json_reader *r, char close, bool *first, bool *more);
lq_status q_json_string(q_json_reader *r, q_str *out);
/* A string and its colon. */
lq_status q_json_key(q_json_reader *r, q_str *out);
/* A plain unsigned integer: no sign, fraction, exponent or leading zero; at most 2^64 - 1. */
lq_status q_json_uint(q_json_reader *r, uint64_t *out);
/* Any one value, checked and passed over without recursion. */
lq_status q_json_skip(q_json_reader *r);
/* Nothing but white space may remain. */
lq_status q_json_end(q_json_reader *r);
/* LQ_E_FORMAT naming file and byte. */
lq_status q_json_fail(const q_json_reader *r, uint64_t at, const char *problem);

/* ---- trees */

enum { Q_JSON_WIDE = 1 /* integers beyond 64 bits become reals, right to 16 digits; without it LQ_E_FORMAT */ };

/* Parse a text whose value is an object. Duplicate keys, escaped or not, are LQ_E_FORMAT; a text whose tree would take
 * more than 12 times its size plus 64 MiB is LQ_E_LIMIT. `what` names the file. */
lq_status q_json_parse(const q_alloc *a, const uint8_t *data, uint64_t n, uint32_t flags, const char *what,
                       json_t **out);
/* NULL is fine. */
void q_json_free(json_t *value);

#endif
