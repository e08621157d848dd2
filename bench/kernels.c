/* kernels.c: timing products and activation formats, one kernel at a time. See kernels.h.
 *
 * Weights lie in a buffer larger than the caches, of which each thread walks its own part, a chunk of rows per call as
 * the backend does, so a product of few columns is timed as decoding meets it: from memory. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

#define PASS_SECONDS 0.002  /* short: some passes then run between two interruptions by other programs */
#define MOST_SECONDS 1.0    /* for all passes of a case, but for the first three */
enum {
    CHUNK_ROWS = 256,       /* rows of a call at most */
    WIDTH = 4096,           /* floats from a column of the result to the next, as in a model's slot */
    DISTINCT_ROWS = 16,
    ACTIVATION_COLUMNS = 64 /* quantized in turn */
};
#define WEIGHT_BYTES ((uint64_t)128 << 20)
#define HOT_BYTES ((uint64_t)192 << 10) /* per thread: fits the second cache beside the activations */

struct bench_kernels {
    q_pool *pool;
    uint8_t *weights;
    uint64_t bytes;         /* of weights */
    const q_format *filled; /* what they hold, in rows of `depth` */
    int64_t depth;
};

lq_status bench_kernels_open(uint32_t threads, uint64_t memory, bench_kernels **out) {
    bench_kernels *b = Q_NEW(&q_alloc_libc, bench_kernels, 1);
    if (!b) return LQ_E_NOMEM;
    b->bytes = Q_MIN(WEIGHT_BYTES, memory / 4);
    b->weights = (uint8_t *)q_new_raw(&q_alloc_libc, b->bytes, 1);
    const lq_status s = b->weights ? q_pool_open(&q_alloc_libc, threads, &b->pool) : LQ_E_NOMEM;
    if (s == LQ_OK) *out = b;
    else bench_kernels_close(b);
    return s;
}

void bench_kernels_close(bench_kernels *b) {
    if (!b) return;
    if (b->pool) q_pool_close(b->pool);
    q_delete(&q_alloc_libc, b->weights);
    q_delete(&q_alloc_libc, b);
}

void bench_kernel_fill(float *x, int64_t n) {
    uint64_t state = 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
        x[i] = (float)(int32_t)(state >> 32) * 0x1p-31f;
    }
}

static double time_one(void (*pass)(void *arg), void *arg) {
    const double begin = q_clock();
    pass(arg);
    return q_clock() - begin;
}

lq_status bench_kernel_time_passes(void (*pass)(void *arg), bool (*grow)(void *arg), void *arg, uint32_t passes,
                                   bench_rate *out) {
    *out = (bench_rate){0};
    for (double best = 0; best < PASS_SECONDS;) { /* the better of two decides whether a pass is long enough */
        if (best > 0 && !grow(arg)) break;
        const double first = time_one(pass, arg), second = first < PASS_SECONDS ? time_one(pass, arg) : first;
        best = Q_MIN(first, second);
    }
    const double begin = q_clock();
    for (uint32_t i = 0; i < passes && (i < 3 || q_clock() - begin < MOST_SECONDS); i++) {
        if (cli_interrupted()) return q_fail(LQ_E_CANCELLED, "interrupted");
        bench_rate_add(out, 1 / time_one(pass, arg));
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------------- products */

typedef struct product {
    bench_kernels *b;
    const q_cpu_kernel *k;
    q_mm m;          /* all but rows, w, y, scratch */
    int64_t slab;    /* rows that a thread walks */
    int64_t rows;    /* of a call */
    int64_t calls;   /* of a pass and thread */
    int64_t at;      /* row of the slab that the next pass begins with */
    float *y;        /* [threads][columns][WIDTH] */
    uint8_t *scratch;
    uint64_t scratch_bytes;
    uint8_t *packed; /* the slabs in the kernel's layout */
} product;

static lq_status fill_weights(bench_kernels *b, const q_format *f, int64_t depth, uint64_t row_bytes) {
    if (b->filled == f && b->depth == depth) return LQ_OK;
    float *x = Q_NEW(&q_alloc_libc, float, depth *DISTINCT_ROWS);
    if (!x) return LQ_E_NOMEM;
    bench_kernel_fill(x, depth * DISTINCT_ROWS);
    for (uint64_t r = 0; (r + 1) * row_bytes <= b->bytes; r++) {
        uint8_t *to = b->weights + r * row_bytes;
        if (r < DISTINCT_ROWS) q_encode_row(f, x + (int64_t)r * depth, NULL, false, depth, to);
        else memcpy(to, to - DISTINCT_ROWS * row_bytes, (size_t)row_bytes);
    }
    q_delete(&q_alloc_libc, x);
    b->filled = f;
    b->depth = depth;
    return LQ_OK;
}

static void product_thread(void *arg, uint32_t thread) {
    const product *p = (const product *)arg;
    q_mm m = p->m;
    m.rows = p->rows;
    m.scratch = p->scratch + thread * p->scratch_bytes;
    for (int64_t i = 0; i < p->calls; i++) {
        const int64_t row = (p->at + i * p->rows) % (p->slab - p->slab % p->rows);
        m.row = thread * p->slab + row;
        m.w = p->packed ? p->packed + Q_ALIGN : p->b->weights + (uint64_t)m.row * m.row_bytes;
        m.y = p->y + thread * m.n * WIDTH + row / p->rows % (WIDTH / p->rows) * p->rows;
        p->k->mm(&m);
    }
}

static void product_pass(void *arg) {
    product *p = (product *)arg;
    q_pool_run(p->b->pool, product_thread, p);
    p->at += p->calls * p->rows;
}

static bool product_grow(void *arg) {
    product *p = (product *)arg;
    p->at = 0; /* a multiple of the rows of a call: the last one then ends inside the slab */
    if (p->rows * 2 <= CHUNK_ROWS && p->rows * 2 <= p->slab) p->rows *= 2;
    else p->calls *= 2;
    return p->calls < INT32_MAX;
}

/* The vectors that the kernel reads, in its activation format; NULL = no memory. */
static uint8_t *make_activations(const q_act *act, int64_t depth, int64_t columns, int64_t *stride) {
    if (act && columns < act->from) act = NULL;
    *stride = act ? q_act_bytes(act, depth) : depth * (int64_t)sizeof(float);
    float *x = Q_NEW(&q_alloc_libc, float, depth);
    uint8_t *out = (uint8_t *)q_new_raw(&q_alloc_libc, (uint64_t)columns, (uint64_t)*stride);
    for (int64_t c = 0; c < columns && x && out; c++) {
        bench_kernel_fill(x, depth);
        x[c % depth] = 1; /* no column is like another */
        if (act) act->quantize(x, depth, out + c * *stride);
        else memcpy(out + c * *stride, x, (size_t)*stride);
    }
    if (!x) q_delete(&q_alloc_libc, out), out = NULL;
    q_delete(&q_alloc_libc, x);
    return out;
}

/* All slabs in the layout that the kernel reads. The sum of bytes stays that of the format. */
static lq_status pack_weights(product *p, uint32_t threads) {
    const q_weight w = {.format = p->m.format, .data = p->b->weights, .row_bytes = p->m.row_bytes,
                        .rows = (int32_t)(p->slab * threads), .k = (int32_t)p->m.k, .matrices = 1};
    if (!p->k->layout) return LQ_OK;
    p->packed = (uint8_t *)q_new_raw(&q_alloc_libc, q_layout_bytes(p->k->layout, &w), 1);
    if (!p->packed) return LQ_E_NOMEM;
    q_memory_huge(p->packed, q_layout_bytes(p->k->layout, &w));
    q_layout_pack(p->k->layout, &w, 0, w.rows, p->packed);
    p->m.row_bytes = q_layout_panel_bytes(p->k->layout, p->m.k);
    return LQ_OK;
}

lq_status bench_kernel_product(bench_kernels *b, const q_cpu_kernel *k, const q_format *format,
                               const bench_kernel_how *how, bench_kernel_time *out) {
    const uint32_t threads = q_pool_threads(b->pool);
    product p = {.b = b, .k = k, .rows = k->rows, .calls = 1};
    p.m = (q_mm){.format = format, .k = how->depth, .n = how->columns, .y_stride = WIDTH};
    if (!q_row_bytes(format, (uint64_t)how->depth, &p.m.row_bytes) || (k->act && !q_act_fits(k->act, how->depth)))
        return q_fail(LQ_E_ARG, "rows of %lld weights do not fill the blocks of %s", (long long)how->depth,
                      format->name);
    const uint64_t part = how->hot ? HOT_BYTES : b->bytes / threads;
    p.slab = Q_MIN((int64_t)(part / p.m.row_bytes), (int64_t)(b->bytes / threads / p.m.row_bytes));
    if (k->layout) p.slab = p.slab / p.rows * p.rows; /* whole panels */
    p.slab = Q_MAX(p.slab, p.rows);
    if ((uint64_t)p.slab * threads * p.m.row_bytes > b->bytes)
        return q_fail(LQ_E_NOMEM, "%u threads need %lld rows each, and there is no memory for them", threads,
                      (long long)p.rows);
    const uint64_t row_bytes = p.m.row_bytes;
    p.scratch_bytes = q_round_up(k->mm_scratch(how->depth, how->columns) + 1, Q_ALIGN);
    lq_status s = fill_weights(b, format, how->depth, p.m.row_bytes);
    if (s == LQ_OK) s = pack_weights(&p, threads);
    uint8_t *x = make_activations(k->act, how->depth, how->columns, &p.m.x_stride);
    p.m.x = x;
    p.y = (float *)q_new(&q_alloc_libc, (uint64_t)how->columns * threads, WIDTH * sizeof(float));
    p.scratch = (uint8_t *)q_new(&q_alloc_libc, threads, p.scratch_bytes);
    if (!x || !p.y || !p.scratch) s = LQ_E_NOMEM;
    if (s == LQ_OK) s = bench_kernel_time_passes(product_pass, product_grow, &p, how->passes, &out->passes);
    const double rows = (double)(p.rows * p.calls) * threads;
    out->ops = 2 * rows * (double)how->depth * how->columns;
    out->bytes = rows * (double)row_bytes;
    snprintf(out->shape, sizeof out->shape, "%lld deep; %d column%s%s", (long long)how->depth, how->columns,
             how->columns == 1 ? "" : "s", how->hot ? "; hot" : "");
    q_delete(&q_alloc_libc, x);
    q_delete(&q_alloc_libc, p.y);
    q_delete(&q_alloc_libc, p.scratch);
    q_delete(&q_alloc_libc, p.packed);
    return s;
}

/* ----------------------------------------------------------------------------------------------- activation formats */

typedef struct quantization {
    const q_cpu_kernel *k;
    const float *x;
    uint8_t *to;
    int64_t n, calls;
} quantization;

static void quantize_pass(void *arg) {
    const quantization *q = (const quantization *)arg;
    for (int64_t i = 0; i < q->calls; i++) q->k->quantize(q->x + i % ACTIVATION_COLUMNS * q->n, q->n, q->to);
}

static bool quantize_grow(void *arg) {
    quantization *q = (quantization *)arg;
    q->calls *= 2;
    return q->calls < INT32_MAX;
}

lq_status bench_kernel_activation(const q_cpu_kernel *k, const bench_kernel_how *how, bench_kernel_time *out) {
    quantization q = {.k = k, .n = how->depth, .calls = 1};
    if (!q_act_fits(k->act, how->depth))
        return q_fail(LQ_E_ARG, "%lld values do not fill the blocks of %s", (long long)how->depth, k->act->name);
    float *x = Q_NEW(&q_alloc_libc, float, how->depth *ACTIVATION_COLUMNS);
    q.to = (uint8_t *)q_new(&q_alloc_libc, (uint64_t)q_act_bytes(k->act, how->depth), 1);
    lq_status s = x && q.to ? LQ_OK : LQ_E_NOMEM;
    if (s == LQ_OK) {
        bench_kernel_fill(x, how->depth * ACTIVATION_COLUMNS);
        q.x = x;
        s = bench_kernel_time_passes(quantize_pass, quantize_grow, &q, how->passes, &out->passes);
    }
    out->ops = 0;
    out->bytes = (double)q.calls * (double)(how->depth * (int64_t)sizeof(float) + q_act_bytes(k->act, how->depth));
    snprintf(out->shape, sizeof out->shape, "%lld values", (long long)how->depth);
    q_delete(&q_alloc_libc, x);
    q_delete(&q_alloc_libc, q.to);
    return s;
}
