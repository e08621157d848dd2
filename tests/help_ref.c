/* help_ref.c: see help_ref.h. */
#include <math.h>

#include "help_ref.h"

static void *must(void *p) {
    if (!p) abort();
    return p;
}

void fx_init(fx *t, int32_t n, const int32_t *widths, int32_t count) {
    memset(t, 0, sizeof *t);
    t->seed = 7;
    t->n_slots = count + 1;
    for (int32_t s = 1; s <= count; s++) {
        const size_t floats = (size_t)n * (size_t)widths[s - 1];
        t->width[s] = widths[s - 1];
        t->slots[s] = must(malloc(floats * sizeof(float)));
        t->old[s] = must(malloc(floats * sizeof(float)));
        for (size_t i = 0; i < floats; i++) t->slots[s][i] = t_normal(&t->seed);
    }
    t->defaults = must(calloc((size_t)n, 2 * sizeof(int32_t))); /* positions and wanted columns 0 1 2 ..; sequence 0 */
    for (int32_t c = 0; c < n; c++) t->defaults[c] = c;
    t->batch = (q_batch){.n = n, .pos = t->defaults, .seq = t->defaults + n, .out = t->defaults, .seqs = t->seqs,
                         .n_seqs = 1};
    t->plan = (q_plan){.slot_width = t->width, .n_slots = t->n_slots, .columns = n};
    t->e = (q_exec){.plan = &t->plan, .batch = &t->batch, .slots = t->slots, .kv = t->pools};
}

void fx_free(fx *t) {
    for (int i = 0; i < FX_SLOTS; i++) free(t->slots[i]), free(t->old[i]);
    for (int i = 0; i < t->n_weights; i++) free((void *)(uintptr_t)t->weights[i].data), free(t->decoded[i]);
    for (int i = 0; i < 2; i++) free(t->pools[i]);
    free(t->state);
    free(t->defaults);
    free(t->batch.logits);
}

q_weight *fx_weight(fx *t, const char *format, int32_t rows, int32_t k, int32_t matrices) {
    const int at = t->n_weights++;
    ck_assert_int_lt(at, FX_WEIGHTS);
    q_weight *w = &t->weights[at];
    *w = (q_weight){.format = q_format_find(format), .rows = rows, .k = k, .matrices = matrices, .name = "test"};
    ck_assert_ptr_nonnull(w->format);
    ck_assert(q_row_bytes(w->format, (uint64_t)k, &w->row_bytes));
    const size_t all = (size_t)rows * (size_t)matrices;
    w->matrix_bytes = matrices > 1 ? (uint64_t)rows * w->row_bytes : 0;
    uint8_t *data = must(malloc(all * w->row_bytes));
    float *x = must(malloc((size_t)k * sizeof(float)));
    t->decoded[at] = must(malloc(all * (size_t)k * sizeof(float)));
    for (size_t r = 0; r < all; r++) {
        for (int32_t i = 0; i < k; i++) x[i] = t_normal(&t->seed);
        q_encode_row(w->format, x, NULL, false, k, data + r * w->row_bytes);
        q_decode_row(w->format, data + r * w->row_bytes, k, t->decoded[at] + r * (size_t)k);
    }
    free(x);
    w->data = data;
    return w;
}

const float *fx_row(fx *t, const q_weight *w, int32_t matrix, int32_t row) {
    return t->decoded[w - t->weights] + ((size_t)matrix * (size_t)w->rows + (size_t)row) * (size_t)w->k;
}

void fx_logits(fx *t, int32_t vocab, int32_t n_out) {
    t->plan.vocab = vocab;
    t->plan.outs = t->batch.n_out = n_out;
    t->batch.logits = must(calloc((size_t)n_out * (size_t)vocab, sizeof(float)));
}

void fx_state(fx *t, int32_t seqs, int32_t floats) {
    t->state = must(calloc((size_t)seqs * (size_t)floats, sizeof(float)));
    for (int32_t i = 0; i < seqs; i++) t->seqs[i].state = (uint32_t)i;
    t->e.state = t->state;
    t->e.state_floats = (uint64_t)floats;
    t->batch.n_seqs = seqs;
}

void *fx_scratch(fx *t, const q_inst *s) {
    t->e.scratch_bytes = q_ref_scratch(s, t->batch.n);
    t->e.scratch = must(aligned_alloc(Q_ALIGN, q_round_up(Q_MAX(t->e.scratch_bytes, 1), Q_ALIGN)));
    return t->e.scratch;
}

/* Everything that a step may write. */
typedef struct region {
    void *p;
    size_t bytes;
} region;

static int regions(fx *t, region *r) {
    int n = 0;
    for (int s = 1; s < t->n_slots; s++)
        r[n++] = (region){t->slots[s], sizeof(float) * (size_t)t->batch.n * (size_t)t->width[s]};
    if (t->state) r[n++] = (region){t->state, sizeof(float) * (size_t)t->batch.n_seqs * t->e.state_floats};
    if (t->batch.logits)
        r[n++] = (region){t->batch.logits, sizeof(float) * (size_t)t->batch.n_out * (size_t)t->plan.vocab};
    for (int i = 0; i < t->plan.n_kv; i++) r[n++] = (region){t->pools[i], t->pool_bytes};
    return n;
}

void fx_run(fx *t, const q_inst *s) {
    region r[FX_REGIONS];
    void *before[FX_REGIONS], *after[FX_REGIONS];
    const int n = regions(t, r);
    const int64_t units = q_op_units(s, t->batch.n, t->batch.n_out);
    void *scratch = fx_scratch(t, s);
    for (int i = 1; i < t->n_slots; i++)
        memcpy(t->old[i], t->slots[i], sizeof(float) * (size_t)t->batch.n * (size_t)t->width[i]);
    for (int i = 0; i < n; i++) {
        before[i] = memcpy(must(malloc(r[i].bytes)), r[i].p, r[i].bytes);
        after[i] = must(malloc(r[i].bytes));
    }
    for (int64_t end = units, step = 1; end > 0; end -= step, step = step % 3 + 1) {
        if (step > end) step = end;
        memset(t->e.scratch, 0xA5, t->e.scratch_bytes); /* nothing may be expected in it */
        q_ops[s->op].ref(s, &t->e, end - step, end);
    }
    for (int i = 0; i < n; i++) {
        memcpy(after[i], r[i].p, r[i].bytes);
        memcpy(r[i].p, before[i], r[i].bytes);
    }
    q_ops[s->op].ref(s, &t->e, 0, units);
    for (int i = 0; i < n; i++) {
        ck_assert_msg(memcmp(after[i], r[i].p, r[i].bytes) == 0, "%s: chunks differ from the whole", q_ops[s->op].name);
        free(before[i]);
        free(after[i]);
    }
    free(scratch);
}
