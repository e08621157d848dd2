/* gptq.c: round column after column, and let the columns not yet rounded make up for the error (Frantar et al., "GPTQ",
 * arXiv:2210.17323).
 *
 * With U upper triangular, U' U the inverse of the Hessian H of a row's squared error in the output: rounding column i with
 * the error e = (w_i - q_i) / U_ii adds e^2 to that, once the later columns have been moved by -e * U_ij. U is made once
 * per matrix (prepare), in float64, of H with a hundredth of its mean diagonal added to the diagonal; ten times as much
 * each time that H turns out not to be positive definite, up to the mean itself, and the log says so. Inputs that are
 * always 0 say nothing: their weights become 0.
 *
 * Columns are rounded by falling diagonal of H ("act-order"); where they lie does not change, so the parameters of all
 * blocks are found beforehand, from the weights as they are, an error counting 1 / U_ii^2. On the bundled model this gives
 * a mean KL divergence 2 to 6 % below that of columns as they come with each block fitted to what has become of its
 * weights, in i4_g128 and q4_k alike; counting by the diagonal of H gives up to 2 % more.
 *
 * gptq_act moves the columns into that order: blocks are made of columns that are rounded one after the other, each fitted to
 * what has become of its weights when the first is reached. Against gptq that is 7 to 10 % less divergence with groups of 32,
 * 3 to 6 % with 64, and no difference with 128 (bench/QUALITY.md); only files that say which column is which input can have it.
 * Rows are independent, and their arithmetic does not depend on which others are at hand. Layer L2. */
#include <math.h>
#include <stdlib.h> /* qsort */

#include "../dense.h"
#include "../quantizer.h"
#include "../wide.h"

enum {
    LAZY = 128,         /* columns after which the rest of a row is brought up to date */
    MOST = Q_MAX_BLOCK, /* where columns move, that may be a block */
    ROWS = 16,
    CHUNK = Q_WIDE_COLUMNS
};
_Static_assert(LAZY <= MOST, "errors of as many columns are kept");

typedef struct factor {
    float *u;       /* [k][k] upper triangular */
    float *weight;  /* [k] by input: what a squared error there costs */
    float *in_turn; /* [k] the same in the order of rounding */
    int32_t *order; /* [k] the input that is rounded i-th */
    bool *dead;     /* [k] */
} factor;

static bool accepts(const q_format *f) { return f->weights > 1 && f->weights <= Q_MAX_BLOCK; }

/* ------------------------------------------------------------------------------------------------ once per matrix */

static void release(const q_alloc *a, void *shared) {
    factor *f = (factor *)shared;
    if (!f) return;
    q_delete(a, f->u);
    q_delete(a, f->weight);
    q_delete(a, f->in_turn);
    q_delete(a, f->order);
    q_delete(a, f->dead);
    q_delete(a, f);
}

typedef struct column {
    float h;
    int32_t at;
} column;
static int descending(const void *a, const void *b) {
    const column *x = (const column *)a, *y = (const column *)b;
    if (x->h != y->h) return x->h > y->h ? -1 : 1;
    return x->at - y->at;
}

static lq_status choose_order(const q_quant_stats *s, factor *f) {
    column *c = (column *)q_new_raw(s->alloc, (uint64_t)s->k, sizeof *c);
    f->order = (int32_t *)q_new_raw(s->alloc, (uint64_t)s->k, sizeof *f->order);
    if (c && f->order) {
        for (int64_t i = 0; i < s->k; i++) c[i] = (column){s->hessian[i * (i + 1) / 2 + i], (int32_t)i};
        qsort(c, (size_t)s->k, sizeof *c, descending);
        for (int64_t i = 0; i < s->k; i++) f->order[i] = c[i].at;
    }
    const bool made = c && f->order;
    q_delete(s->alloc, c);
    return made ? LQ_OK : LQ_E_NOMEM;
}

/* H in the order of rounding, reversed as q_dense_inverse_factor wants it, with `more` on the diagonal. */
static void damped(const q_quant_stats *s, const factor *f, double more, double *m) {
    const int64_t k = s->k;
    for (int64_t i = 0; i < k; i++) {
        const int64_t r = f->order[k - 1 - i];
        for (int64_t j = 0; j <= i; j++) {
            const int64_t c = f->order[k - 1 - j], hi = Q_MAX(r, c), lo = Q_MIN(r, c);
            m[i * k + j] = (double)s->hessian[hi * (hi + 1) / 2 + lo];
        }
        if (f->dead[r]) m[i * k + i] = 1;
        m[i * k + i] += more;
    }
}

static lq_status factorize(const q_quant_stats *s, const q_dense *d, factor *f) {
    const int64_t k = s->k;
    double mean = 0;
    for (int64_t i = 0; i < k; i++) mean += f->dead[i] ? 1 : (double)s->hessian[i * (i + 1) / 2 + i];
    mean /= (double)k;
    double *m = (double *)q_new_raw(s->alloc, (uint64_t)k * (uint64_t)k, sizeof *m);
    lq_status status = m ? LQ_OK : LQ_E_NOMEM;
    bool definite = false;
    for (double share = 0.01; status == LQ_OK && !definite; share *= 10) {
        if (share > 1.5) {
            status = q_fail(LQ_E_NUMERIC, "tensor %s: its Hessian is not positive definite, not even with the mean of its "
                            "diagonal added", s->name);
            break;
        }
        if (share > 0.015)
            q_log_write(s->log, LQ_LOG_WARN, "tensor %s: its Hessian is not positive definite; %g of the mean of its diagonal "
                        "is added", s->name, share);
        damped(s, f, share * mean, m);
        status = q_dense_inverse_factor(d, s->alloc, s->pool, m, k, f->u, &definite);
    }
    q_delete(s->alloc, m);
    return status;
}

static lq_status prepare(const q_quant_stats *s, void **shared) {
    const uint64_t k = (uint64_t)s->k;
    q_dense *d;
    factor *f = Q_NEW(s->alloc, factor, 1);
    if (!f) return LQ_E_NOMEM;
    f->u = (float *)q_new_raw(s->alloc, k * k, sizeof *f->u);
    f->weight = Q_NEW(s->alloc, float, k);
    f->in_turn = Q_NEW(s->alloc, float, k);
    f->dead = Q_NEW(s->alloc, bool, k);
    lq_status status = f->u && f->weight && f->in_turn && f->dead ? q_dense_open(s->alloc, &d) : LQ_E_NOMEM;
    if (status == LQ_OK) {
        for (uint64_t i = 0; i < k; i++) f->dead[i] = s->hessian[i * (i + 1) / 2 + i] == 0.0f;
        status = choose_order(s, f);
        if (status == LQ_OK) status = factorize(s, d, f);
        q_dense_close(d);
    }
    if (status != LQ_OK) {
        release(s->alloc, f);
        return status;
    }
    for (uint64_t i = 0; i < k; i++) {
        const float u = f->u[i * k + i];
        f->in_turn[i] = f->weight[f->order[i]] = f->dead[f->order[i]] ? 0.0f : 1.0f / (u * u);
    }
    *shared = f;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ rows */

/* Some rows on their way; columns in the order of rounding, codes as the file has them. */
typedef struct rows {
    const q_quant_job *job;
    const factor *f;
    int64_t n, k, blocks;
    bool moved;     /* columns of the file are in the order of rounding */
    float *w;       /* [ROWS][k] not yet rounded */
    float *e;       /* [ROWS][MOST] */
    q_grid *grids;  /* [ROWS][blocks] */
    int32_t *codes; /* [ROWS][k] */
    uint8_t *dst;
    uint64_t row_bytes;
} rows;

static void fit_block(const rows *t, int64_t row, int64_t block, const float *x) {
    const q_format *f = t->job->format;
    const float *weight = (t->moved ? t->f->in_turn : t->f->weight) + block * f->weights;
    float total = 0;
    for (int32_t j = 0; j < f->weights; j++) total += weight[j];
    const q_fit_in in = {x, total > 0.0f && isfinite(total) ? weight : NULL, true,
                         f->row_head ? t->dst + (uint64_t)row * t->row_bytes : NULL, t->job->wide};
    q_grid *grid = &t->grids[row * t->blocks + block];
    memset(grid, 0, sizeof *grid);
    f->fit(&in, grid);
}

/* The parameters of a row as the file has it, with weights of dead inputs 0. */
static void begin_row(const rows *t, int64_t row, float *x) {
    const q_format *f = t->job->format;
    float *w = t->w + row * t->k;
    for (int64_t i = 0; i < t->k; i++) x[i] = t->f->dead[i] ? 0.0f : t->job->x[row * t->k + i];
    for (int64_t i = 0; i < t->k; i++) w[i] = x[t->f->order[i]];
    const q_fit_in all = {t->moved ? w : x, t->moved ? t->f->in_turn : t->f->weight, true, NULL, t->job->wide};
    if (f->row_head) f->head(&all, t->k, t->dst + (uint64_t)row * t->row_bytes);
    for (int64_t b = 0; b < t->blocks && !t->moved; b++) fit_block(t, row, b, x + b * f->weights);
}

/* Round columns begin .. end - 1 of a row, and bring those among them that come later up to date. */
static void round_columns(const rows *t, int64_t row, int64_t begin, int64_t end) {
    const q_format *f = t->job->format;
    float *w = t->w + row * t->k, *e = t->e + row * MOST;
    for (int64_t i = begin; i < end; i++) {
        const int64_t at = t->moved ? i : t->f->order[i], block = at / f->weights;
        const float *u = t->f->u + i * t->k;
        float value;
        if (t->moved && i % f->weights == 0) fit_block(t, row, block, w + i);
        t->codes[row * t->k + at] = f->nearest(&t->grids[row * t->blocks + block], (int32_t)(at % f->weights), w[i], &value);
        const float error = (w[i] - value) / u[i];
        e[i - begin] = error;
        for (int64_t j = i + 1; j < end; j++) w[j] -= error * u[j];
    }
}

/* w[j] -= sum over i of e[i] * U[i][j], in ascending i: columns of all rows by chunks, while U's are at hand. */
static void update_rest(const rows *t, int64_t begin, int64_t end) {
    int64_t at = end;
    for (; at + CHUNK <= t->k; at += CHUNK)
        for (int64_t row = 0; row < t->n; row++)
            t->job->wide->subtract(t->w + row * t->k + at, t->e + row * MOST, end - begin, t->f->u + begin * t->k + at, t->k);
    for (int64_t row = 0; row < t->n; row++)
        for (int64_t i = begin; i < end; i++)
            for (int64_t j = at; j < t->k; j++)
                t->w[row * t->k + j] -= t->e[row * MOST + i - begin] * t->f->u[i * t->k + j];
}

static void some_rows(const rows *t, float *x) {
    const q_format *f = t->job->format;
    /* A block that is fitted on the way has been brought up to date as a whole. */
    const int64_t step = !t->moved ? LAZY : f->weights < LAZY ? LAZY / f->weights * f->weights : f->weights;
    for (int64_t row = 0; row < t->n; row++) begin_row(t, row, x);
    for (int64_t i = 0; i < t->k; i += step) {
        const int64_t end = Q_MIN(i + step, t->k);
        for (int64_t row = 0; row < t->n; row++) round_columns(t, row, i, end);
        update_rest(t, i, end);
    }
    for (int64_t row = 0; row < t->n; row++)
        for (int64_t b = 0; b < t->blocks; b++)
            f->emit(&t->grids[row * t->blocks + b], t->codes + row * t->k + b * f->weights,
                    t->dst + (uint64_t)row * t->row_bytes + f->row_head + b * f->bytes);
}

static lq_status quantize_all(const q_quant_job *job, bool moved, uint8_t *dst) {
    const q_format *f = job->format;
    rows t = {.job = job, .f = (const factor *)job->shared, .k = job->k, .blocks = job->k / f->weights, .moved = moved};
    if (!t.f || job->k < 1 || !q_row_bytes(f, (uint64_t)job->k, &t.row_bytes))
        return q_fail(LQ_E_INTERNAL, "quantizer gptq: rows of %lld weights without a Hessian, or that do not fit format %s",
                      (long long)job->k, f->name);
    const uint64_t k = (uint64_t)job->k;
    t.w = (float *)q_new_raw(job->alloc, (ROWS + 1) * k + ROWS * MOST, sizeof *t.w);
    t.codes = (int32_t *)q_new_raw(job->alloc, ROWS * k, sizeof *t.codes);
    t.grids = (q_grid *)q_new_raw(job->alloc, ROWS * (uint64_t)t.blocks, sizeof *t.grids);
    const bool room = t.w && t.codes && t.grids;
    if (room) t.e = t.w + (ROWS + 1) * k;
    for (int64_t r = 0; room && r < job->rows; r += ROWS) {
        const q_quant_job some = {.format = f, .x = job->x + r * job->k, .k = job->k, .wide = q_wide_of(job->wide)};
        t.job = &some;
        t.n = Q_MIN((int64_t)ROWS, job->rows - r);
        t.dst = dst + (uint64_t)r * t.row_bytes;
        some_rows(&t, t.w + ROWS * k);
    }
    q_delete(job->alloc, t.w);
    q_delete(job->alloc, t.codes);
    q_delete(job->alloc, t.grids);
    return room ? LQ_OK : LQ_E_NOMEM;
}

static uint64_t quantize_bytes(const q_format *f, uint64_t k) {
    return q_new_bytes(((ROWS + 1) * k + ROWS * MOST) * sizeof(float)) + q_new_bytes(ROWS * k * sizeof(int32_t)) +
           q_new_bytes(ROWS * (k / (uint64_t)f->weights) * sizeof(q_grid));
}

/* The factor and its vectors; the matrix that is factored, and its rooms, or before these the columns to sort. */
static uint64_t prepare_bytes(uint64_t k, uint32_t threads) {
    const uint64_t dense = q_new_bytes(k * k * sizeof(double)) + q_dense_inverse_bytes(k, threads);
    return q_new_bytes(sizeof(factor)) + q_new_bytes(k * k * sizeof(float)) + 2 * q_new_bytes(k * sizeof(float)) +
           q_new_bytes(k * sizeof(bool)) + q_new_bytes(k * sizeof(int32_t)) + Q_MAX(dense, q_new_bytes(k * sizeof(column))) +
           q_dense_open_bytes();
}

static lq_status quantize(const q_quant_job *job, uint8_t *dst) { return quantize_all(job, false, dst); }
static lq_status quantize_moved(const q_quant_job *job, uint8_t *dst) { return quantize_all(job, true, dst); }
static const int32_t *order_of(const void *shared) { return ((const factor *)shared)->order; }

const q_quantizer q_quantizer_gptq_act = {.name = "gptq_act", .needs = Q_NEEDS_HESSIAN, .accepts = accepts,
                                          .quantize = quantize_moved, .uses = Q_NEEDS_HESSIAN, .rows = ROWS,
                                          .prepare = prepare, .release = release, .order = order_of,
                                          .quantize_bytes = quantize_bytes, .prepare_bytes = prepare_bytes};
const q_quantizer q_quantizer_gptq = {.name = "gptq", .needs = Q_NEEDS_HESSIAN, .accepts = accepts, .quantize = quantize,
                                      .uses = Q_NEEDS_HESSIAN, .rows = ROWS, .prepare = prepare, .release = release,
                                      .quantize_bytes = quantize_bytes, .prepare_bytes = prepare_bytes};
