/* format.h: the record of a tensor format, and the table of all of them.
 *
 * A format is one file libquant/formats/X.c with a codec (codec.h) and, under Q_HOST, this record; plus the line
 * FORMAT(x, gguf id) in formats.def. What the bits mean is here; how to choose them is a quantizer's business, by
 * means of fit, nearest and emit alone. Layer L1. */
#ifndef Q_FORMAT_H
#define Q_FORMAT_H

#include "codec.h"
#include "status.h"

enum { Q_UNIT = 32, Q_MAX_BLOCK = 256, Q_MAX_GROUPS = 16, Q_SPAN_ROW = -1 };

/* What `fit` is asked. */
typedef struct q_fit_in {
    const float *x;      /* one block: `weights` values; of `head`, the whole row; finite */
    const float *weight; /* importance of the squared error of each value, >= 0; NULL = the format's own default */
    /* false: the reference encoder, one closed-form choice; true: search for less weighted error */
    bool search;
    const uint8_t *head; /* of fit: the row's head, already chosen; NULL for formats without */
    const struct q_wide *wide; /* loops for the processor at hand (wide.h); NULL = for any, with the same results */
} q_fit_in;

/* The parameters of one block, as they will read back after storage (scales already rounded to their stored type).
 * Code q of weight j in group g = j / (weights / groups) has the value `scale[g] * level - min[g]`, where level is q
 * itself or an entry of the format's codebook. d, dmin, sc, mn are for the format's emit. */
typedef struct q_grid {
    float d, dmin;
    int16_t sc[Q_MAX_GROUPS], mn[Q_MAX_GROUPS];
    float scale[Q_MAX_GROUPS], min[Q_MAX_GROUPS];
} q_grid;

typedef struct q_format {
    const char *name;
    int32_t weights;      /* per block; 1 for float formats */
    int32_t bytes;        /* per block */
    int32_t row_head;     /* bytes ahead of the first block of each row */
    const char *fallback; /* the format for rows whose length is not a multiple of `weights`; NULL when weights == 1 */
    bool has_min;         /* split yields minima */
    /* weights that share split's d: 0 = a block; else a divisor of it, or Q_SPAN_ROW = all of a row */
    int32_t span;
    float split_nmse; /* 0: split says what decode does, to the bit. Else split rounds the levels: for normally
                         distributed weights the mean square difference from decode is at most this much of theirs */

    /* 32 weights: unit `sub` of block `block`. For weights == 1 sub is 0 and `block` counts units of 32 weights, all of
     * which must be readable: q_decode_row takes care of tails. */
    void (*decode)(const uint8_t *row, int block, int sub, float *y);
    /* The integer form (codec.h); NULL for formats without one. */
    void (*split)(const uint8_t *row, int block, int sub, int *q, int *sc, int *mn, float *d);

    /* Formats with a row head: choose it from the whole row of n weights. Fit then finds it in in->head. */
    void (*head)(const q_fit_in *in, int64_t n, uint8_t *head);
    void (*fit)(const q_fit_in *in, q_grid *grid);
    /* The best code for value x as weight j of the block; *value = what it decodes to. */
    int32_t (*nearest)(const q_grid *grid, int32_t j, float x, float *value);
    /* Where nearest is q_fit_nearest of a shape whose levels are integers: that shape (fit.h), so that codes are found
     * many at a time; NULL = one by one. */
    const struct q_shape *shape;
    /* Write `bytes` bytes from `weights` codes. */
    void (*emit)(const q_grid *grid, const int32_t *codes, uint8_t *block);
} q_format;

/* The table from formats.def, in its order. */
extern const q_format *const q_formats[];
extern const int32_t q_format_gguf_ids[]; /* parallel: the GGUF tensor type, -1 = none */
uint32_t q_format_count(void);
const q_format *q_format_find(const char *name);     /* NULL when unknown */
const q_format *q_format_by_gguf(uint32_t id);       /* NULL when not in the table */
int32_t q_format_gguf_id(const q_format *f);

/* Bytes of a row of n weights; false when n is not a multiple of the block or the size overflows. */
bool q_row_bytes(const q_format *f, uint64_t n, uint64_t *bytes);

/* Weights of a row of k over which products of split's integers are summed before a float sees them. */
static inline int64_t q_format_span(const q_format *f, int64_t k) {
    return f->span == Q_SPAN_ROW ? k : f->span ? f->span : f->weights;
}

/* Decode a row of n weights (n as q_row_bytes accepts; a tail of less than 32 is fine for weights == 1). Reads no byte
 * beyond the row. */
void q_decode_row(const q_format *f, const uint8_t *row, int64_t n, float *y);

/* Encode a row with fit / nearest / emit, block by block; `in` is of the whole row: weight may be NULL, else n entries,
 * head is not looked at. */
void q_encode_row_of(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row);
void q_encode_row(const q_format *f, const float *x, const float *weight, bool search, int64_t n, uint8_t *row);

/* The blocks behind a row's head, one by one; in->head is that head. */
void q_encode_blocks(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row);

/* The codes of a block under its grid; `wide` as in q_fit_in. */
void q_format_codes(const q_format *f, const struct q_wide *wide, const q_grid *grid, const float *x, int32_t *codes);

#endif
