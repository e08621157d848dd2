/* help_product.h: what products are tried on: weights and activations of every kind, what kernels/ref says of them,
 * packed weights, and the activations that a kernel reads. */
#ifndef HELP_PRODUCT_H
#define HELP_PRODUCT_H

#include "help_kernel.h"

#include <math.h>

/* Where the numbers that scale a row and a block lie: halves, or float32 (`wide`). Weights of other formats are
 * numbers. */
typedef struct scale_place {
    const char *format;
    bool wide;
    int head, at[2];
} scale_place;

static inline const scale_place *scale_place_of(const q_format *f) {
    static const scale_place places[] = {
        {"q8_0", false, -1, {0, -1}},   {"q4_0", false, -1, {0, -1}},   {"q4_k", false, -1, {0, 2}},
        {"q6_k", false, -1, {208, -1}}, {"q4_1", false, -1, {0, 2}},    {"q5_0", false, -1, {0, -1}},
        {"q5_1", false, -1, {0, 2}},    {"iq4_nl", false, -1, {0, -1}}, {"iq4_xs", false, -1, {0, -1}},
        {"q2_k", false, -1, {80, 82}},  {"q3_k", false, -1, {108, -1}}, {"q5_k", false, -1, {0, 2}},
        {"i4_g32", false, -1, {0, -1}}, {"i4_g64", false, -1, {0, -1}}, {"i4_g128", false, -1, {0, -1}},
        {"i4_row", false, 0, {-1, -1}}, {"nf4", true, -1, {0, -1}},     {"nf4_dq", true, 0, {0, -1}},
        {"i8_row", true, 0, {-1, -1}},  {"fp4", true, -1, {0, -1}},     {"i8_g32", false, -1, {0, -1}},
        {"i8_g64", false, -1, {0, -1}}, {"i8_g128", false, -1, {0, -1}}, {"tq1_0", false, -1, {52, -1}},
        {"tq2_0", false, -1, {64, -1}}, {"mxfp4", false, -1, {-1, -1}}, {"nvfp4", false, -1, {-1, -1}},
    };
    for (size_t i = 0; i < Q_COUNT(places); i++)
        if (strcmp(places[i].format, f->name) == 0) return &places[i];
    return NULL;
}

typedef enum {
    W_RANDOM, W_BYTES, W_ALL_80, W_ALL_7F, W_ALL_FF, W_ALL_00,
    W_TINY_SCALE,  /* subnormal */
    W_ODD_SCALE,   /* the largest, the least, the last subnormal one, zeros; of both signs */
    W_NOT_FINITE,  /* an infinity or NaN in every third row */
    W_KINDS
} w_kind;

static inline uint32_t odd_float(w_kind kind, uint64_t *seed) {
    static const uint32_t odd[] = {0x7F7FFFFF, 0xFF7FFFFF, 1, 0x80000001, 0x007FFFFF, 0x807FFFFF,
                                   0x00800000, 0x80800000, 0, 0x80000000, 0x3F800000, 0xBF800000};
    static const uint32_t none[] = {0x7F800000, 0xFF800000, 0x7FC00000};
    if (kind == W_TINY_SCALE) return (uint32_t)t_rand(seed) & 0x807FFFFFu;
    if (kind == W_ODD_SCALE) return odd[t_rand(seed) % Q_COUNT(odd)];
    if (kind == W_NOT_FINITE) return none[t_rand(seed) % Q_COUNT(none)];
    return q_f32_bits(t_normal(seed));
}
static inline uint16_t odd_half(w_kind kind, uint64_t *seed) {
    static const uint16_t odd[] = {0x7BFF, 0xFBFF, 1, 0x8001, 0x03FF, 0x83FF,
                                   0x0400, 0x8400, 0, 0x8000, 0x3C00, 0xBC00};
    static const uint16_t none[] = {0x7C00, 0xFC00, 0x7E00};
    if (kind == W_TINY_SCALE) return (uint16_t)(t_rand(seed) & 0x83FF);
    if (kind == W_ODD_SCALE) return odd[t_rand(seed) % Q_COUNT(odd)];
    if (kind == W_NOT_FINITE) return none[t_rand(seed) % Q_COUNT(none)];
    return q_f32_to_half(t_normal(seed));
}

/* Value i of a row in a format of numbers. */
static inline void odd_number(const q_format *f, w_kind kind, int64_t i, uint8_t *row, uint64_t *seed) {
    uint8_t *to = row + i * f->bytes;
    if (strcmp(f->name, "f16") == 0) q_store16(to, odd_half(kind, seed));
    else if (f->bytes == 2) q_store16(to, (uint16_t)(odd_float(kind, seed) >> 16));
    else q_store32(to, odd_float(kind, seed));
}

static inline void fill_row(const q_format *f, w_kind kind, bool spoilt, int64_t k, uint64_t row_bytes, uint8_t *to,
                            uint64_t *seed) {
    static const uint8_t bytes[W_KINDS] = {[W_ALL_80] = 0x80, [W_ALL_7F] = 0x7F, [W_ALL_FF] = 0xFF};
    const scale_place *p = scale_place_of(f);
    const bool same = kind >= W_ALL_80 && kind <= W_ALL_00;
    for (uint64_t i = 0; i < row_bytes; i++) to[i] = same ? bytes[kind] : (uint8_t)t_rand(seed);
    if (!p) {
        for (int64_t i = 0; !same && i < k; i++)
            odd_number(f, kind == W_NOT_FINITE && !(spoilt && i == k / 2) ? W_RANDOM : kind, i, to, seed);
        return;
    }
    const int64_t blocks = k / f->weights;
    for (int64_t b = -1; b < blocks; b++)
        for (int j = 0; j < 2; j++) {
            const int at = b >= 0 ? p->at[j] : j == 0 ? p->head : -1;
            uint8_t *scale = to + (b >= 0 ? f->row_head + b * f->bytes : 0) + at;
            const bool here = spoilt && (b < 0 || b == blocks / 2);
            const w_kind how = kind == W_NOT_FINITE && !here ? W_RANDOM : kind;
            if (at >= 0 && p->wide) q_store32(scale, odd_float(how, seed));
            else if (at >= 0) q_store16(scale, odd_half(how, seed));
        }
}

/* `rows` rows of k weights in a format. */
static inline void fill_weights(const q_format *f, w_kind kind, int64_t rows, int64_t k, uint64_t row_bytes, uint8_t *w,
                                uint64_t *seed) {
    float *row = (float *)malloc((size_t)k * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        uint8_t *to = w + (uint64_t)r * row_bytes;
        if (kind != W_RANDOM) {
            fill_row(f, kind, r % 3 == 1, k, row_bytes, to, seed);
            continue;
        }
        for (int64_t i = 0; i < k; i++) row[i] = t_normal(seed) * (r % 3 == 2 ? 1e-3f : 1.0f);
        q_encode_row(f, row, NULL, false, k, to);
    }
    free(row);
}

typedef enum {
    X_RANDOM, X_ZERO, X_HUGE, X_TINY,
    X_EXTREME,                     /* all codes +-127 */
    X_ONES, X_MINUS,               /* all codes 127, all -127 */
    X_SUBNORMAL,
    X_NOT_FINITE,                  /* here and there an infinity or NaN */
    X_KINDS
} x_kind;

static inline void fill_x(x_kind kind, float *x, int64_t n, uint64_t *seed) {
    for (int64_t i = 0; i < n; i++) {
        switch (kind) {
        case X_ZERO: x[i] = 0; break;
        case X_HUGE: x[i] = t_normal(seed) * 1e30f; break;
        case X_TINY: x[i] = t_normal(seed) * 1e-38f; break;
        case X_EXTREME: x[i] = (t_rand(seed) & 3) ? 1.0f : -1.0f; break;
        case X_ONES: x[i] = 1.0f; break;
        case X_MINUS: x[i] = -1.0f; break;
        case X_SUBNORMAL: x[i] = q_bits_f32((uint32_t)t_rand(seed) & 0x807FFFFFu); break;
        default: x[i] = t_normal(seed) * (i % 37 == 5 ? 20.0f : 1.0f); break;
        }
    }
    for (int64_t i = 0; kind == X_NOT_FINITE && i < 1 + n / 3000; i++)
        x[t_rand(seed) % (uint64_t)n] = i % 3 == 0 ? INFINITY : i % 3 == 1 ? NAN : -INFINITY;
}

typedef struct shape {
    int64_t rows, k, n;
    w_kind w;
    x_kind x;
    bool add, bias;
} shape;

/* What the definition says, into y [n][rows] (which holds what `add` adds to). */
static inline void ref_product(const q_format *f, const q_act *act, const shape *t, const uint8_t *w,
                               uint64_t row_bytes, const float *x, const float *bias, float *y) {
    const q_weight weight = {.format = f, .data = w, .row_bytes = row_bytes, .rows = (int32_t)t->rows,
                             .k = (int32_t)t->k, .matrices = 1, .name = "w"};
    const q_weight b = {.format = q_format_find("f32"), .data = (const uint8_t *)bias, .rows = 1, .k = (int32_t)t->rows,
                        .row_bytes = (uint64_t)t->rows * 4, .matrices = 1, .name = "b"};
    const int32_t widths[3] = {0, (int32_t)t->k, (int32_t)t->rows};
    float *slots[3] = {NULL, (float *)x, y};
    const q_inst s = {.op = Q_OP_MATMUL, .add = t->add, .w = &weight, .b = t->bias ? &b : NULL,
                      .x = {1, 0, 1, (int32_t)t->k, (int32_t)t->k}, .y = {2, 0, 1, (int32_t)t->rows, (int32_t)t->rows}};
    const q_plan plan = {.insts = &s, .n_insts = 1, .slot_width = widths, .n_slots = 3, .columns = (int32_t)t->n};
    const q_batch batch = {.n = (int32_t)t->n};
    const size_t bytes = q_ref_scratch(&s, (int32_t)t->n);
    void *scratch = q_new(&q_alloc_libc, bytes, 1);
    const q_exec e = {.plan = &plan, .batch = &batch, .slots = slots, .act = act, .scratch = scratch,
                      .scratch_bytes = bytes};
    q_ref_matmul(&s, &e, 0, t->rows);
    q_delete(&q_alloc_libc, scratch);
}

/* The layout of a packed kernel, made in pieces of whole panels, in front of a page that may not be touched. */
static inline uint8_t *pack_fenced(const q_cpu_layout *l, const q_weight *w, size_t *bytes) {
    *bytes = (size_t)q_layout_bytes(l, w);
    uint8_t *to = fenced(*bytes);
    ck_assert_int_eq((intptr_t)to % Q_ALIGN, 0);
    memset(to, 0xA5, *bytes);
    for (int64_t r = 0, step; r < q_layout_rows(w); r += step) {
        step = Q_PANEL * (1 + r / Q_PANEL % 2);
        q_layout_pack(l, w, r, Q_MIN(r + step, q_layout_rows(w)), to);
    }
    return to;
}

#endif
