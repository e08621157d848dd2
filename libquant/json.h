/* json.h: JSON: a strict scanner, a pull reader for large texts, trees for small ones, and writing.
 *
 * Every text is judged by one iterative scanner: RFC 8259 grammar, strict UTF-8, no byte order mark, no NUL (not even
 * as an escape), no lone surrogate, at most Q_LIMIT_JSON_DEPTH levels, nothing after the value. Texts that may be large
 * (safetensors headers, shard indexes) are read by the pull reader, which allocates nothing but decoded escapes.
 *
 * No JSON library is used: those at hand allocate past our hook, and some lose characters or abort when memory runs
 * out. Layer L1. */
#ifndef Q_JSON_H
#define Q_JSON_H

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

typedef enum {
    Q_JSON_NULL, Q_JSON_BOOL, Q_JSON_INTEGER, Q_JSON_REAL, Q_JSON_STRING, Q_JSON_ARRAY, Q_JSON_OBJECT
} q_json_type;

typedef struct q_json {
    q_json_type type;
    q_str key;            /* of a member of an object */
    union {
        q_str s;          /* strings */
        struct {
            int64_t i;    /* integers; booleans: 0 or 1; 0 for reals */
            double f;     /* every number and boolean */
        };
        struct {
            const struct q_json *first; /* elements or members, in the text's order */
            uint64_t n;
        };
    };
    const struct q_json *next; /* in what holds this one */
} q_json;

enum { Q_JSON_WIDE = 1 /* integers beyond 64 bits become reals; without it LQ_E_FORMAT */ };

/* Parse a text whose value is an object into `arena`; strings without escapes point into `data`. Duplicate keys,
 * escaped or not, and reals beyond a double are LQ_E_FORMAT; a text whose tree would take more than 12 times its size
 * plus 64 MiB is LQ_E_LIMIT before anything is allocated. `what` names the file. */
lq_status q_json_parse(q_arena *arena, const uint8_t *data, uint64_t n, uint32_t flags, const char *what,
                       const q_json **out);

/* ---- writing: a text that grows; the caller writes the structure, these the parts that have rules */

/* Zero-initialize, set `alloc`; when memory ends `failed` is set and nothing more is added. Free `p` with q_delete. */
typedef struct q_json_text {
    const q_alloc *alloc;
    char *p;
    uint64_t n, cap;
    bool failed;
} q_json_text;
void q_json_put(q_json_text *t, const char *s); /* as it is */
void q_json_put_bytes(q_json_text *t, q_str s); /* as they are */
void q_json_put_string(q_json_text *t, q_str s); /* quoted, escaped */
void q_json_put_uint(q_json_text *t, uint64_t v);
/* A finite float, so that it reads back as the same one; always 18 characters, whatever the locale. */
void q_json_put_float(q_json_text *t, float v);

#endif
