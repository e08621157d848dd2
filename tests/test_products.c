/* test_products.c: the product kernels of kernels.def where test_kernels.c does not go: every number of columns up to
 * where the last kernel has changed over to panels, rows of every remainder, a matrix handed over in parts, weights,
 * activations and results of any alignment, each of them between pages that may not be touched and those that are only
 * read on pages that may not be written, and all kinds of weights with all kinds of activations for few and for many
 * columns. The bits have to be the reference's.
 *
 * Which shape meets which kinds is drawn, from seeds that are fixed. What the reference says of a shape is computed
 * once for all kernels that multiply this format with these activations. */
#include "help_product.h"

typedef struct columns {
    uint8_t *x;
    int64_t bytes, stride;
    size_t size;
} columns;

/* A product, and what the definition says of it before bias and add. */
typedef struct product {
    const q_format *format;
    const q_act *act;
    int64_t rows, k, n, pad; /* pad: bytes between columns of activations */
    uint64_t row_bytes;
    bool below;              /* weights lie behind the fence, not in front of it */
    uint8_t *w;
    columns columns[2];      /* as they are, and as `act` */
    float *x, *want, *bias, *before; /* before: what y holds, [n][rows] */
    float *y;                /* [n][rows + GAP] in front of a fence */
    uint8_t *scratch;
    size_t scratch_bytes;
} product;
enum { GAP = 3 };

static uint64_t w_size(const product *p) { return p->row_bytes * (uint64_t)p->rows; }
static int64_t y_floats(const product *p, int64_t n) { return (p->rows + GAP) * (n - 1) + p->rows; }
static size_t y_size(const product *p) { return (size_t)y_floats(p, p->n) * sizeof(float); }

static void product_open(product *p, w_kind w, x_kind x, uint64_t *seed) {
    ck_assert(q_row_bytes(p->format, (uint64_t)p->k, &p->row_bytes));
    p->below = t_rand(seed) & 1;
    p->w = p->below ? fenced_below(w_size(p)) : fenced(w_size(p));
    fill_weights(p->format, w, p->rows, p->k, p->row_bytes, p->w, seed);
    read_only(p->w, w_size(p));
    const size_t values = (size_t)(p->rows * p->n) * sizeof(float);
    p->x = (float *)malloc((size_t)(p->k * p->n) * sizeof(float));
    p->want = (float *)calloc(1, values);
    p->before = (float *)malloc(values);
    p->bias = guarded(p->rows);
    p->y = (float *)(void *)fenced(y_size(p));
    fill_x(x, p->x, p->k * p->n, seed);
    for (int64_t i = 0; i < p->rows; i++) p->bias[i] = t_normal(seed);
    for (int64_t i = 0; i < p->rows * p->n; i++) p->before[i] = t_normal(seed);
    const shape t = {p->rows, p->k, p->n, w, x, false, false};
    ref_product(p->format, p->act, &t, p->w, p->row_bytes, p->x, NULL, p->want);
}
static void product_close(product *p) {
    if (p->below) free_fenced_below(p->w, w_size(p));
    else free_fenced(p->w, w_size(p));
    for (int i = 0; i < 2; i++)
        if (p->columns[i].x) free_fenced(p->columns[i].x, p->columns[i].size);
    free_fenced((uint8_t *)p->y, y_size(p));
    free(p->x), free(p->want), free(p->before), free(p->scratch), free_guarded(p->bias);
}

static bool multiplies(const q_cpu_kernel *k, const product *p) {
    return k->mm && q_isa_present(k->isa) && k->act == p->act &&
           (strcmp(k->format, "any") == 0 || strcmp(k->format, p->format->name) == 0);
}

/* Weights as a kernel reads them; NULL: as they lie in p. */
static uint8_t *packed_for(const q_cpu_kernel *k, const product *p, size_t *bytes) {
    if (!k->layout) return NULL;
    const q_weight weight = {.format = p->format, .data = p->w, .row_bytes = p->row_bytes, .rows = (int32_t)p->rows,
                             .k = (int32_t)p->k, .matrices = 1};
    uint8_t *to = pack_fenced(k->layout, &weight, bytes);
    read_only(to, *bytes);
    return to;
}

/* What a kernel reads n columns as. */
static const q_act *read_as(const q_cpu_kernel *k, int64_t n) {
    return k->act && n >= k->act->from ? k->act : NULL;
}

/* All columns of a product as activations, in front of a fence: n of them are the last n. */
static const columns *columns_as(product *p, const q_act *act) {
    columns *c = &p->columns[act != NULL];
    if (c->x) return c;
    c->bytes = act ? q_act_bytes(act, p->k) : p->k * (int64_t)sizeof(float);
    c->stride = c->bytes + p->pad;
    c->size = (size_t)(c->stride * (p->n - 1) + c->bytes);
    c->x = fenced(c->size);
    memset(c->x, 0x7F, c->size);
    for (int64_t i = 0; i < p->n; i++) {
        if (act) act->quantize(p->x + i * p->k, p->k, c->x + i * c->stride);
        else memcpy(c->x + i * c->stride, p->x + i * p->k, (size_t)c->bytes);
    }
    read_only(c->x, c->size);
    return c;
}

typedef struct how {
    bool add, bias;
    int64_t cuts[3]; /* the rows are handed over in parts that end at these, and at the last one */
} how;

/* The last n columns by kernel k. */
static void check_columns(const q_cpu_kernel *k, product *p, const uint8_t *packed, int64_t n, how h,
                          const char *what) {
    const columns *x = columns_as(p, read_as(k, n));
    const int64_t stride = p->rows + GAP, first = p->n - n;
    const size_t own = (size_t)k->mm_scratch(p->k, n);
    float *y = p->y + stride * first;
    if (p->scratch_bytes < own + 64) {
        free(p->scratch);
        p->scratch_bytes = (size_t)q_round_up(2 * own + 64, Q_ALIGN);
        p->scratch = (uint8_t *)aligned_alloc(Q_ALIGN, p->scratch_bytes);
    }
    memset(p->scratch, 0xA5, own + 64);
    for (int64_t i = 0; i < y_floats(p, n); i++) y[i] = q_bits_f32(guard_bits);
    for (int64_t c = 0; c < n && h.add; c++)
        memcpy(y + c * stride, p->before + (first + c) * p->rows, (size_t)p->rows * sizeof(float));
    for (int64_t r = 0, i = 0, end; r < p->rows; r = end) {
        end = p->rows;
        for (; i < 3 && h.cuts[i] <= r; i++) {}
        if (i < 3) end = Q_MIN(h.cuts[i], p->rows);
        const q_mm m = {.format = p->format, .w = packed ? packed + Q_ALIGN : p->w + (uint64_t)r * p->row_bytes,
                        .row_bytes = packed ? q_layout_panel_bytes(k->layout, p->k) : p->row_bytes,
                        .row = packed ? r : 0, .rows = end - r, .k = p->k, .x = x->x + first * x->stride,
                        .x_stride = x->stride, .n = n, .y = y + r, .y_stride = stride,
                        .bias = h.bias ? p->bias + r : NULL, .add = h.add, .scratch = p->scratch};
        k->mm(&m);
    }
    for (size_t i = 0; i < 64; i++) NEED_THAT(p->scratch[own + i] == 0xA5, "%s, %s: scratch overrun", k->name, what);
    for (int64_t c = 0; c < n; c++) {
        for (int64_t r = 0; r < p->rows; r++) {
            const int64_t at = (first + c) * p->rows + r;
            float want = p->want[at];
            if (h.bias) want += p->bias[r];
            if (h.add) want = p->before[at] + want;
            const float got = y[c * stride + r];
            NEED_THAT(q_f32_bits(got) == q_f32_bits(want) || (got != got && want != want),
                      "%s on %s, %s, %ld x %ld, %ld columns: y[%ld][%ld] = %.9g, not %.9g", k->name, p->format->name,
                      what, (long)p->rows, (long)p->k, (long)n, (long)c, (long)r, (double)got, (double)want);
        }
        for (int64_t r = p->rows; r < stride && c + 1 < n; r++)
            NEED_THAT(q_f32_bits(y[c * stride + r]) == guard_bits, "%s, %s: wrote past its rows", k->name, what);
    }
}

/* Each format with each kind of activations that a kernel present here multiplies it with. */
static void each_product(void (*check)(const q_format *f, const q_act *act, uint64_t seed)) {
    for (uint32_t j = 0; j < q_format_count(); j++) {
        const q_act *seen[8];
        int n = 0;
        for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
            const product p = {.format = q_formats[j], .act = q_cpu_kernels[i].act};
            if (!multiplies(&q_cpu_kernels[i], &p)) continue;
            int s = 0;
            while (s < n && seen[s] != p.act) s++;
            if (s < n) continue;
            ck_assert_int_lt(n, (int)Q_COUNT(seen));
            seen[n++] = p.act;
            check(p.format, p.act, j * 977 + (uint64_t)n);
        }
    }
}

/* Weights of a row that consists of whole blocks of both. */
static int64_t unit_of(const q_format *f, const q_act *act) { return Q_MAX(f->weights, act ? act->weights : 1); }

/* Is it the kernel of an earlier line too, for another format of the same layout? */
static bool is_shared(const q_cpu_kernel *k) {
    for (const q_cpu_kernel *i = q_cpu_kernels; i < k; i++)
        if (i->mm == k->mm) return true;
    return false;
}

/* All numbers are for kernels that a model may meet. The scalar one, those of any format where the format has its own,
 * and those that had them with another format, take few; and in slow builds all do, other ones for each format. */
static bool left_out(const q_cpu_kernel *k, int64_t n, uint64_t seed) {
    if (k->isa == Q_ISA_scalar) return n != 1 && n != 3 && n != 8;
    if (strcmp(k->format, "any") == 0 || is_shared(k) || T_SLOW || t_emulated())
        return (n * 7 + (int64_t)seed) % 9 != 0;
    return false;
}

/* ------------------------------------------------------------------------------------------------------- columns */

static void every_number(const q_format *f, const q_act *act, uint64_t seed) {
    static const int64_t beyond[] = {47, 48, 49, 63, 64, 65, 96, 97};
    const int64_t unit = unit_of(f, act);
    product p = {.format = f, .act = act, .rows = 37, .k = unit == 1 ? 203 : unit < 256 ? 7 * unit : 3 * unit, .n = 97,
                 .pad = 4 * (int64_t)(seed % 4)};
    product_open(&p, W_RANDOM, X_RANDOM, &seed);
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!multiplies(k, &p)) continue;
        size_t bytes = 0;
        uint8_t *packed = packed_for(k, &p, &bytes);
        for (int64_t j = 1; j <= 40 + (int64_t)Q_COUNT(beyond); j++) {
            const int64_t n = j <= 40 ? j : beyond[j - 41];
            const how h = {.add = n & 1, .bias = n & 2, .cuts = {n % 5 == 0 ? n % 36 + 1 : p.rows}};
            if (!left_out(k, n, seed)) check_columns(k, &p, packed, n, h, "any number of columns");
        }
        if (packed) free_fenced(packed, bytes);
    }
    product_close(&p);
}

START_TEST(every_number_of_columns) { each_product(every_number); }
END_TEST

/* -------------------------------------------------------------------------------------------------- shapes, values */

static void one_shape(const q_format *f, const q_act *act, w_kind w, x_kind x, bool many, uint64_t *seed) {
    static const int64_t rows[] = {1, 2, 3, 5, 7, 8, 9, 11, 13, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 61, 64, 65};
    static const int64_t lengths[] = {1,  2,  3,  5,  7,   8,   15,  16,  17,  31,  32,
                                      33, 47, 63, 65, 127, 129, 255, 257, 509, 1031};
    static const int64_t blocks[] = {1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 15, 16, 17, 31};
    const int64_t unit = unit_of(f, act);
    product p = {
        .format = f, .act = act, .rows = rows[t_rand(seed) % Q_COUNT(rows)], .pad = 4 * (int64_t)(t_rand(seed) % 4)};
    p.k = unit == 1 ? lengths[t_rand(seed) % Q_COUNT(lengths)]
                    : unit * blocks[t_rand(seed) % (unit < 256 ? Q_COUNT(blocks) : 6)];
    p.n = many ? 23 + (int64_t)(t_rand(seed) % 28) : 1 + (int64_t)(t_rand(seed) % 12);
    char what[64];
    snprintf(what, sizeof what, "weights %d, activations %d", (int)w, (int)x);
    product_open(&p, w, x, seed);
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!multiplies(k, &p)) continue;
        const uint64_t draw = t_rand(seed);
        const int64_t cut = 1 + (int64_t)(draw >> 8) % p.rows;
        const how h = {.add = draw & 1, .bias = draw & 2, .cuts = {cut, Q_MIN(cut + 16, p.rows), p.rows}};
        size_t bytes = 0;
        uint8_t *packed = packed_for(k, &p, &bytes);
        check_columns(k, &p, packed, p.n, h, what);
        if (packed) free_fenced(packed, bytes);
    }
    product_close(&p);
}

/* Each kind of weights with few columns and with many; the kinds of activations take turns, so that over the formats
 * each meets each. */
static void all_kinds(const q_format *f, const q_act *act, uint64_t seed) {
    const bool slow = T_SLOW || t_emulated();
    int x = (int)(seed % X_KINDS);
    for (int w = 0; w < W_KINDS; w++)
        for (int many = 0; many < 2; many++, x = (x + 1) % X_KINDS)
            if (!slow || t_rand(&seed) % 4 == 0) one_shape(f, act, (w_kind)w, (x_kind)x, many, &seed);
    for (int i = 0; i < (slow ? 1 : 6); i++) one_shape(f, act, W_RANDOM, X_RANDOM, i & 1, &seed);
}

START_TEST(all_kinds_of_weights_and_activations) { each_product(all_kinds); }
END_TEST

/* A row that is one block: the largest sum that 32 bits have to hold. */
static void longest_row(const q_format *f, const q_act *act, uint64_t seed) {
    if (!act || act->weights || f->span != Q_SPAN_ROW || T_SLOW || t_emulated()) return;
    for (int64_t n = 1; n <= 33; n = 8 * n + 1 > 33 && n < 33 ? 33 : 8 * n + 1) {
        product p = {.format = f, .act = act, .rows = 17, .k = Q_ACT_ROW_MOST, .n = n};
        product_open(&p, W_ALL_80, n & 8 ? X_ONES : X_MINUS, &seed);
        for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
            const q_cpu_kernel *k = &q_cpu_kernels[i];
            if (!multiplies(k, &p)) continue;
            size_t bytes = 0;
            uint8_t *packed = packed_for(k, &p, &bytes);
            check_columns(k, &p, packed, n, (how){.cuts = {p.rows}}, "the longest row");
            if (packed) free_fenced(packed, bytes);
        }
        product_close(&p);
    }
}

START_TEST(longest_row_of_one_block) { each_product(longest_row); }
END_TEST

/* A plan has memory for its most columns, and runs with fewer. */
START_TEST(fewer_columns_need_no_more_scratch) {
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        for (int64_t length = 256; k->mm && length <= 16384; length *= 4)
            for (int64_t n = 2; n <= 600; n += n < 70 ? 1 : 53)
                NEED_THAT(k->mm_scratch(length, n - 1) <= k->mm_scratch(length, n), "%s, %ld columns of %ld", k->name,
                              (long)n, (long)length);
    }
}
END_TEST

/* --------------------------------------------------------------------------------------------------- activations */

/* Any number of blocks, of any alignment that floats and blocks may have, up to a fence. */
START_TEST(activations_of_any_length) {
    static const int64_t blocks[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33};
    uint64_t seed = 8;
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!k->quantize || !q_isa_present(k->isa)) continue;
        for (int round = 0; round < (T_SLOW ? 20 : 40) * X_KINDS; round++) {
            const int64_t n = blocks[t_rand(&seed) % Q_COUNT(blocks)] * (k->act->weights ? k->act->weights : 32);
            const size_t bytes = (size_t)q_act_bytes(k->act, n), x_bytes = (size_t)n * sizeof(float);
            float *x = (float *)(void *)fenced(x_bytes);
            uint8_t *a = fenced(bytes), *b = (uint8_t *)malloc(bytes);
            fill_x((x_kind)(round % X_KINDS), x, n, &seed);
            if (round & 1) /* one value above all others, anywhere: also where it is the largest by its sign alone */
                x[t_rand(&seed) % (uint64_t)n] = q_bits_f32((uint32_t)t_rand(&seed));
            read_only((uint8_t *)x, x_bytes);
            memset(a, 0xA5, bytes);
            k->quantize(x, n, a);
            k->act->quantize(x, n, b);
            NEED_THAT(memcmp(a, b, bytes) == 0, "%s, round %d, %ld values", k->name, round, (long)n);
            free_fenced((uint8_t *)x, x_bytes), free_fenced(a, bytes), free(b);
        }
    }
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("products");
    const struct { const char *name; const TTest *test; } tests[] = {
        {"columns", every_number_of_columns}, {"kinds", all_kinds_of_weights_and_activations},
        {"longest", longest_row_of_one_block}, {"scratch", fewer_columns_need_no_more_scratch},
        {"activations", activations_of_any_length}};
    for (size_t i = 0; i < Q_COUNT(tests); i++) { /* CK_RUN_CASE picks one */
        TCase *t = tcase_create(tests[i].name);
        tcase_add_test(t, tests[i].test);
        suite_add_tcase(s, t);
    }
    return s;
}
HARNESS_MAIN(suite)
