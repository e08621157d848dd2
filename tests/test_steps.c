/* test_steps.c: kernels of the steps between products, each line of kernels.def that this machine can run, against
 * kernels/ref: every kind, views with gaps, ragged widths, in place, any split of the units, guards around every slot,
 * values that are not finite; and the functions that they have of their own against the C library in double precision.
 *
 * Attention and KV_PUT are in test_kernels.c. */
#include "help_kernel.h"

#include <math.h>

enum { COLUMNS = 11, OUTS = 3, SLOTS = 6, IDS = 23 };
enum { Y = 1, X, Z, V, U };

/* A plan of one step over five slots. Two sequences: columns 0 .. 6 continue the first one, the others begin the
 * second. */
typedef struct bed {
    q_inst s;
    q_plan plan;
    q_batch batch;
    q_seq_ref seqs[2];
    int32_t widths[SLOTS], pos[COLUMNS], seq[COLUMNS], out[OUTS], ids[COLUMNS];
    float *slots[SLOTS], *state, *rows;
    int64_t state_floats;
    q_weight weights[6];
    uint8_t *blocks[6];
    int n_weights;
    float freqs[256];
    uint64_t seed;
} bed;

static void bed_open(bed *b, q_op op, int32_t width, int32_t past, int64_t state_floats) {
    memset(b, 0, sizeof *b);
    b->s.op = (uint8_t)op;
    b->seed = (uint64_t)op * 1000003 + (uint64_t)width * 1009 + (uint64_t)past;
    for (int i = 0; i < COLUMNS; i++) {
        b->seq[i] = i >= 7;
        b->pos[i] = i < 7 ? past + i : i - 7;
        b->ids[i] = (i * 5 + 1) % IDS;
    }
    b->out[0] = 2, b->out[1] = 3, b->out[2] = 10;
    for (int i = 1; i < SLOTS; i++) {
        b->widths[i] = width + i;
        b->slots[i] = guarded((int64_t)b->widths[i] * COLUMNS);
        for (int64_t j = 0; j < (int64_t)b->widths[i] * COLUMNS; j++) b->slots[i][j] = t_normal(&b->seed) * 2;
    }
    b->state_floats = state_floats;
    b->state = guarded(2 * state_floats);
    for (int64_t j = 0; j < 2 * state_floats; j++) b->state[j] = t_normal(&b->seed);
    b->seqs[0].state = b->seqs[1].freqs = 1;
    b->batch = (q_batch){.n = COLUMNS, .ids = b->ids, .pos = b->pos, .seq = b->seq, .seqs = b->seqs, .n_seqs = 2,
                         .n_out = OUTS, .out = b->out};
    b->plan = (q_plan){.insts = &b->s, .n_insts = 1, .n_layers = 1, .slot_width = b->widths, .n_slots = SLOTS,
                       .columns = COLUMNS, .outs = OUTS, .seqs = 2, .context = past + COLUMNS};
}
static void bed_close(bed *b) {
    for (int i = 1; i < SLOTS; i++) free_guarded(b->slots[i]);
    free_guarded(b->state);
    for (int i = 0; i < b->n_weights; i++) free(b->blocks[i]);
    free(b->rows);
}

/* A matrix whose first byte lies at an odd address; float32 vectors lie aligned every other time. */
static const q_weight *weight(bed *b, const char *format, int32_t rows, int32_t k, float mean, float size) {
    const int i = b->n_weights++;
    const q_format *f = q_format_find(format);
    uint64_t row_bytes;
    ck_assert(q_row_bytes(f, (uint64_t)k, &row_bytes));
    b->blocks[i] = (uint8_t *)malloc(row_bytes * (uint64_t)rows + 1);
    uint8_t *at = b->blocks[i] + (strcmp(format, "f32") == 0 ? t_rand(&b->seed) & 1 : 1);
    float *row = (float *)malloc((size_t)k * sizeof(float));
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t j = 0; j < k; j++) row[j] = mean + size * t_normal(&b->seed);
        q_encode_row(f, row, NULL, false, k, at + (uint64_t)r * row_bytes);
    }
    free(row);
    b->weights[i] = (q_weight){.format = f, .data = at, .row_bytes = row_bytes, .rows = rows, .k = k, .matrices = 1,
                               .name = format};
    return &b->weights[i];
}

static q_view part(int32_t slot, int32_t heads, int32_t width, int32_t stride) {
    return (q_view){slot, 2, heads, width, stride};
}

/* What lies in the slots and the state, to be put back and compared. */
typedef struct snapshot {
    float *slots[SLOTS], *state;
} snapshot;
static void *copy_of(const float *p, int64_t n) {
    return memcpy(malloc((size_t)n * sizeof(float)), p, (size_t)n * sizeof(float));
}
static void take(const bed *b, snapshot *t) {
    for (int i = 1; i < SLOTS; i++) t->slots[i] = (float *)copy_of(b->slots[i], (int64_t)b->widths[i] * COLUMNS);
    t->state = (float *)copy_of(b->state, 2 * b->state_floats + 1);
}
static void put_back(bed *b, const snapshot *t) {
    for (int i = 1; i < SLOTS; i++) memcpy(b->slots[i], t->slots[i], (size_t)b->widths[i] * COLUMNS * sizeof(float));
    memcpy(b->state, t->state, (size_t)(2 * b->state_floats) * sizeof(float));
}
static void drop(snapshot *t) {
    for (int i = 1; i < SLOTS; i++) free(t->slots[i]);
    free(t->state);
}

/* Values agree within the bound, or to the bit where it is 0; what is not finite has to be so in both. */
static void compare(const float *got, const float *want, int64_t n, double bound, const char *name, const char *what) {
    double d = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        const float a = got[i], b = want[i];
        if (q_f32_bits(a) == q_f32_bits(b) || (a != a && b != b)) {
            if (isfinite(b)) size += (double)b * b;
            continue;
        }
        ck_assert_msg(bound > 0 && isfinite(a) && isfinite(b), "%s, %s: value %ld is %.9g, not %.9g", name, what,
                      (long)i, (double)a, (double)b);
        d += ((double)a - b) * ((double)a - b);
        size += (double)b * b;
    }
    ck_assert_msg(d <= bound * size, "%s, %s: NMSE %g, more than %g", name, what, d / size, bound);
}

/* The step by the reference over all units and by `k` in chunks of `chunk`. */
static void check(bed *b, const q_cpu_kernel *k, int64_t chunk, double bound) {
    ck_assert_msg(!k->accepts || k->accepts(&b->s), "%s refuses a step that it is meant for", k->name);
    const int64_t units = q_op_units(&b->s, COLUMNS, OUTS);
    const size_t own = (size_t)k->scratch(&b->s, COLUMNS);
    const size_t bytes = Q_MAX(q_ref_scratch(&b->s, COLUMNS), own);
    uint8_t *scratch = (uint8_t *)aligned_alloc(Q_ALIGN, (size_t)q_round_up(bytes + 64, Q_ALIGN));
    q_exec e = {.plan = &b->plan, .batch = &b->batch, .slots = b->slots, .state = b->state,
                .state_floats = (uint64_t)b->state_floats, .scratch = scratch, .scratch_bytes = bytes};
    snapshot before, want;
    take(b, &before);
    q_ops[b->s.op].ref(&b->s, &e, 0, units);
    take(b, &want);
    put_back(b, &before);
    memset(scratch, 0xA5, bytes + 64);
    for (int64_t at = 0; at < units; at += chunk) k->fn(&b->s, &e, at, Q_MIN(at + chunk, units));
    for (int i = 0; i < 64; i++) ck_assert_msg(scratch[own + (size_t)i] == 0xA5, "%s: scratch overrun", k->name);
    for (int i = 1; i < SLOTS; i++) {
        check_guards(b->slots[i], (int64_t)b->widths[i] * COLUMNS, k->name);
        compare(b->slots[i], want.slots[i], (int64_t)b->widths[i] * COLUMNS, bound, k->name, "slots");
    }
    check_guards(b->state, 2 * b->state_floats, k->name);
    compare(b->state, want.state, 2 * b->state_floats, 0, k->name, "state");
    put_back(b, &before);
    drop(&before), drop(&want);
    free(scratch);
}

/* In chunks of every kind, and in place where x may be y. */
static void check_all(bed *b, const q_cpu_kernel *k, double bound, bool in_place) {
    check(b, k, 1, bound);
    check(b, k, 4, bound);
    check(b, k, 1000, bound);
    if (!in_place) return;
    const q_view x = b->s.x;
    b->s.x = b->s.y;
    check(b, k, 3, bound);
    b->s.x = x;
}

static const float wild[] = {INFINITY, -INFINITY, NAN,    0.0f,    -0.0f,  3e38f,  -3e38f,     1e-42f,
                             -1e-42f,  88.8f,     -88.8f, -104.5f, 1e-20f, -1e20f, 16777216.0f};
static void make_wild(float *x, int64_t n, uint64_t *seed) {
    for (int64_t i = 0; i < n; i++)
        if (t_rand(seed) % 3 == 0) x[i] = wild[t_rand(seed) % Q_COUNT(wild)];
}

/* ---------------------------------------------------------------------------------------------------------- norms */

static void norms(const q_cpu_kernel *k) {
    static const int32_t widths[] = {1, 7, 16, 17, 40, 256, 301};
    const bool by_head = k->op == Q_OP_HEADNORM;
    for (int kind = Q_NORM_RMS; kind <= Q_NORM_L2; kind++)
        for (int mask = 0; mask < 64; mask++) { /* weight, bias, add, domain OUT or gate, per head, other formats */
            const int32_t w = widths[(mask + kind) % 7], heads = by_head ? 1 + mask % 4 : 1, all = (w + 3) * heads + 4;
            const bool each = by_head && mask & 16;
            bed b;
            bed_open(&b, k->op, all, 5, 1);
            b.s.kind = (uint8_t)kind;
            b.s.eps = mask % 3 ? 1e-5f : 40.0f;
            b.s.x = part(X, heads, w, w + 3), b.s.y = part(Y, heads, w, w + 1);
            if (mask & 1) b.s.w = weight(&b, mask & 32 ? "bf16" : "f32", 1, each ? w * heads : w, 1, 0.2f);
            if (mask & 2) b.s.b = weight(&b, mask & 32 ? "f16" : "f32", 1, each ? w * heads : w, 0, 0.2f);
            b.s.add = (mask & 4) != 0;
            if (by_head && mask & 8) b.s.z = part(Z, heads, w, w + 2);
            if (!by_head) b.s.out = (mask & 8) != 0;
            check_all(&b, k, b.s.z.slot ? 1e-9 : 0, !b.s.out);
            if (mask % 16 == 5 && !b.s.z.slot) {
                make_wild(b.slots[X], (int64_t)b.widths[X] * COLUMNS, &b.seed);
                check(&b, k, 2, 0);
            }
            bed_close(&b);
        }
}

/* ------------------------------------------------------------------------------------------------------ elementwise */

static void elementwise(const q_cpu_kernel *k) {
    static const int32_t widths[] = {1, 3, 8, 13, 16, 33, 100};
    const int kinds = k->op == Q_OP_GLU ? Q_ACT_SWIGLU_CLAMP + 1 : 2;
    for (int kind = 0; kind < kinds; kind++)
        for (int i = 0; i < 2 * (int)Q_COUNT(widths); i++) {
            const int32_t w = widths[i % 7], heads = 1 + i % 3;
            bed b;
            bed_open(&b, k->op, (w + 2) * heads + 60, 5, 1);
            b.s.kind = k->op == Q_OP_GLU ? (uint8_t)kind : 0;
            b.s.limit = 3.0f, b.s.alpha = 1.702f;
            b.s.x = part(X, heads, w, w + 2), b.s.y = part(Y, 1, w * heads, w * heads);
            if (i % 2 == 0) b.s.y = part(Y, heads, w, w);
            if (k->op == Q_OP_GLU && (i & 1 || kind == Q_ACT_SWIGLU_CLAMP)) b.s.z = part(Z, heads, w, w + (i & 2));
            if (k->op == Q_OP_SCALE) {
                b.s.scale = i % 3 ? 0.37f : 0;
                b.s.softcap = kind ? 1.5f : 0;
                b.s.add = i % 4 == 1;
                if (i & 4) b.s.z = part(Z, 1, 1, 1);
            }
            check_all(&b, k, kind == 0 && k->op == Q_OP_SCALE ? 0 : 1e-9, false);
            b.s.x = b.s.y;
            check(&b, k, 3, 1e-9);
            for (int j = 0; j < 3; j++) {
                make_wild(b.slots[Y], (int64_t)b.widths[Y] * COLUMNS, &b.seed);
                if (kind != Q_ACT_GELU) check(&b, k, 5, 1e-9); /* 1 + erf cancels: see below */
            }
            bed_close(&b);
        }
}

/* Values that are not finite stay what the reference makes of them; the rest of GELU is in functions_are_close. */
static void gelu_edges(const q_cpu_kernel *k) {
    bed b;
    if (k->op != Q_OP_GLU) return;
    bed_open(&b, k->op, 44, 0, 1);
    b.s.kind = Q_ACT_GELU;
    b.s.x = part(X, 1, 40, 40), b.s.y = part(Y, 1, 40, 40);
    for (int64_t i = 0; i < (int64_t)b.widths[X] * COLUMNS; i++) {
        static const float ends[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f, 3e38f, -3e38f, 9.0f, -9.0f};
        b.slots[X][i] = ends[i % 9];
    }
    check(&b, k, 4, 1e-12);
    bed_close(&b);
}

/* ------------------------------------------------------------------------------------------------ copies and tables */

static void copies(const q_cpu_kernel *k) {
    static const struct { int32_t xh, xw, xs, yh, yw, ys; } shapes[] = {
        {3, 4, 8, 3, 4, 10}, {1, 5, 5, 4, 5, 9}, {1, 24, 24, 4, 6, 7}, {5, 6, 6, 1, 30, 30}, {1, 1, 1, 1, 1, 1},
        {2, 9, 11, 3, 6, 8}, {1, 117, 117, 1, 117, 117}, {1, 9, 9, 3, 9, 9},
    };
    for (int i = 0; i < 2 * (int)Q_COUNT(shapes); i++) {
        const int j = i / 2;
        bed b;
        bed_open(&b, k->op, 130, 5, 1);
        b.s.x = part(X, shapes[j].xh, shapes[j].xw, shapes[j].xs);
        b.s.y = part(Y, shapes[j].yh, shapes[j].yw, shapes[j].ys);
        b.s.out = i & 1;
        make_wild(b.slots[X], (int64_t)b.widths[X] * COLUMNS, &b.seed);
        check_all(&b, k, 0, false);
        bed_close(&b);
    }
}

static void embeds(const q_cpu_kernel *k) {
    for (uint32_t f = 0; f < q_format_count(); f++)
        for (int mask = 0; mask < 8; mask++) { /* positions, types, scale */
            const int32_t w = q_formats[f]->weights == 1 ? 37 : 2 * q_formats[f]->weights;
            bed b;
            bed_open(&b, k->op, w + 20, 4, 1);
            b.s.w = weight(&b, q_formats[f]->name, IDS, w, 0, 1);
            if (mask & 1) b.s.w2 = weight(&b, "f16", 16, w, 0, 1);
            if (mask & 2) b.s.w3 = weight(&b, "f32", 2, w, 0, 1);
            b.s.scale = mask & 4 ? 11.3f : 0;
            b.s.y = mask & 1 && w % 2 == 0 ? part(Y, 2, w / 2, w / 2 + 5) : part(Y, 1, w, w);
            check_all(&b, k, 0, false);
            if (mask == 0) { /* hidden rows instead of ids */
                b.rows = (float *)malloc((size_t)b.widths[1] * COLUMNS * sizeof(float));
                for (int64_t i = 0; i < (int64_t)b.widths[1] * COLUMNS; i++) b.rows[i] = t_normal(&b.seed);
                b.batch.ids = NULL, b.batch.x = b.rows;
                check_all(&b, k, 0, false);
            }
            bed_close(&b);
        }
}

static void ropes(const q_cpu_kernel *k) {
    static const int32_t rots[] = {2, 6, 16, 30, 64, 128}, pasts[] = {0, 100, 8190, 131072, 16777216, 2000000000};
    for (int kind = Q_ROPE_PAIRS; kind <= Q_ROPE_HALVES; kind++)
        for (size_t i = 0; i < Q_COUNT(rots); i++)
            for (size_t p = 0; p < Q_COUNT(pasts); p++) {
                const int32_t rot = rots[i], w = rot + (p % 2 ? 5 : 0), heads = 1 + (int32_t)p % 3;
                bed b;
                bed_open(&b, k->op, (w + 3) * heads + 4, pasts[p], 1);
                b.s.kind = (uint8_t)kind, b.s.rot = rot, b.s.freqs = b.freqs, b.s.out = p == 3;
                b.s.mscale = p == 2 ? 1.3f : 0;
                b.s.freq_tables = p == 1 ? 2 : 0;
                for (int32_t j = 0; j < rot; j++) b.freqs[j] = (float)pow(10000.0, -2.0 * j / rot);
                b.s.x = part(X, heads, w, w + 3), b.s.y = part(Y, heads, w, w + 1);
                check_all(&b, k, 1e-13, true);
                b.freqs[0] = INFINITY;
                check(&b, k, 4, 1e-13);
                bed_close(&b);
            }
}

/* ------------------------------------------------------------------------------------------------- routers, states */

static void routes(const q_cpu_kernel *k) {
    for (int i = 0; i < 36; i++) {
        const int32_t experts = i % 4 == 3 ? 32 : 7 + i % 5, used = 1 + i % 4, w = i % 3 ? 61 : 256;
        const char *format = i % 3 ? i % 2 ? "f32" : "bf16" : q_formats[(uint32_t)i % q_format_count()]->name;
        bed b;
        bed_open(&b, k->op, 300, 0, 1);
        b.s.kind = (uint8_t)(i % 3);
        b.s.n_expert = experts, b.s.n_used = used, b.s.renorm = i & 1, b.s.scale = i % 5 == 2 ? 2.5f : 0;
        if (experts == 32) b.s.n_groups = 4, b.s.n_groups_used = 2;
        b.s.w = weight(&b, format, experts, w, 0, 0.2f);
        if (i & 2) b.s.b = weight(&b, "f32", 1, experts, 0, 0.3f);
        if (i & 4) b.s.b2 = weight(&b, "f32", 1, experts, 0, 0.3f);
        b.s.x = part(X, 1, w, w), b.s.y = part(Y, 1, 2 * used, 2 * used);
        check_all(&b, k, 0, false);
        if (i % 6 == 1) b.slots[X][10] = NAN, b.slots[X][400] = INFINITY, check(&b, k, 2, 0);
        bed_close(&b);
    }
}

static void convs(const q_cpu_kernel *k) {
    static const int32_t channels[] = {1, 7, 64, 65, 150}, taps[] = {1, 2, 4, 5};
    for (int i = 0; i < 40; i++) {
        const int32_t n = channels[i % 5], t = taps[i % 4], heads = n % 5 == 0 && i & 1 ? 5 : 1;
        bed b;
        bed_open(&b, k->op, n + 40, i % 3 ? 9 : 0, 700);
        b.s.kind = i & 1 ? Q_ACT_SILU : Q_ACT_NONE, b.s.taps = t, b.s.state = 3;
        b.s.w = weight(&b, i % 3 ? "f32" : "f16", n, t, 0, 0.5f);
        if (i & 2) b.s.b = weight(&b, "f32", 1, n, 0, 0.5f);
        b.s.x = part(X, heads, n / heads, n / heads + 2), b.s.y = part(Y, 1, n, n);
        check(&b, k, 1, i & 1 ? 1e-9 : 0);
        check(&b, k, 29, i & 1 ? 1e-9 : 0);
        b.s.x = b.s.y;
        check(&b, k, 1000, i & 1 ? 1e-9 : 0);
        bed_close(&b);
    }
}

static void scans(const q_cpu_kernel *k) {
    static const int32_t widths[] = {1, 8, 33, 64, 71, 128};
    for (int i = 0; i < 24; i++) {
        const int32_t kw = widths[i % 5], vw = widths[(i + 1 + i / 6) % 6], heads = 4, shared = 1 << i % 3;
        bed b;
        bed_open(&b, k->op, heads * (Q_MAX(kw, vw) + 2) + 8, i % 2 ? 6 : 0, (int64_t)heads * kw * vw + 5);
        b.s.scale = i & 2 ? 0.25f : 0, b.s.state = 5;
        b.s.w = weight(&b, "f32", 1, heads, -0.3f, 0.1f);
        if (i & 1) b.s.b = weight(&b, "bf16", 1, heads, 0, 0.3f);
        b.s.x = part(X, heads / shared, kw, kw + 1), b.s.z = part(Z, heads / Q_MIN(shared, 2), kw, kw + 2);
        b.s.v = part(V, heads, vw, vw), b.s.u = part(U, 1, 2 * heads, 2 * heads), b.s.y = part(Y, heads, vw, vw + 1);
        for (int j = X; j <= Z; j++) /* keys and queries as short as a model's, so that states stay small */
            for (int64_t c = 0; c < (int64_t)b.widths[j] * COLUMNS; c++) b.slots[j][c] *= 0.1f;
        check(&b, k, 1, 0);
        check(&b, k, 3, 0);
        b.s.y = b.s.v;
        check(&b, k, 100, 0);
        bed_close(&b);
    }
}

START_TEST(steps_keep_their_bound) {
    static const struct { q_op op; void (*check)(const q_cpu_kernel *k); } checks[] = {
        {Q_OP_NORM, norms},       {Q_OP_HEADNORM, norms},  {Q_OP_GLU, elementwise}, {Q_OP_GLU, gelu_edges},
        {Q_OP_SCALE, elementwise}, {Q_OP_COPY, copies},    {Q_OP_EMBED, embeds},    {Q_OP_ROPE, ropes},
        {Q_OP_ROUTE, routes},     {Q_OP_CONV, convs},      {Q_OP_SCAN, scans},
    };
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!k->fn || !q_isa_present(k->isa)) continue;
        bool known = k->op == Q_OP_ATTN || k->op == Q_OP_KV_PUT;
        for (size_t j = 0; j < Q_COUNT(checks); j++)
            if (checks[j].op == k->op) {
                checks[j].check(k);
                known = true;
            }
        ck_assert_msg(known, "%s: no check for its operation", k->name);
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------- functions of their own */

/* Run a step of one column of n values through kernel k. */
static void run(const q_cpu_kernel *k, q_inst s, int32_t n, int32_t pos, const float *x, float *y) {
    const int32_t widths[3] = {0, n, n};
    float *slots[3] = {NULL, y, (float *)(uintptr_t)x};
    static uint8_t scratch[1 << 16] __attribute__((aligned(Q_ALIGN)));
    const q_plan plan = {.insts = &s, .n_insts = 1, .slot_width = widths, .n_slots = 3, .columns = 1};
    const q_batch batch = {.n = 1, .pos = &pos};
    s.op = (uint8_t)k->op;
    ck_assert_uint_le(k->scratch(&s, 1), sizeof scratch);
    const q_exec e = {
        .plan = &plan, .batch = &batch, .slots = slots, .scratch = scratch, .scratch_bytes = sizeof scratch};
    k->fn(&s, &e, 0, 1);
}

static double unit(double x) { /* of the last place of a float */
    int e;
    frexp(x, &e);
    return ldexp(1, Q_MAX(e, -125) - 24);
}
static double gelu(double x) { return 0.5 * x * (1 + erf(x * (double)0.70710678f)); }
static double gelu_tanh(double x) {
    return 0.5 * x * (1 + tanh((double)0.79788456f * (x + (double)0.044715f * x * x * x)));
}
static double silu(double x) { return x / (1 + exp(-x)); }
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* Values and how far from them a result may be: units of the last place of the value, or a part of |x|. */
static void check_function(const q_cpu_kernel *k, q_inst s, double (*fn)(double), double units, double of_x) {
    enum { N = 64 };
    float x[N], y[N];
    s.x = (q_view){2, 0, 1, N, N}, s.y = (q_view){1, 0, 1, N, N};
    for (uint32_t i = 0x2F000000u; i < 0x41A00000u; i += N * 997)
        for (uint32_t sign = 0; sign < 2; sign++) {
            for (uint32_t j = 0; j < N; j++) x[j] = q_bits_f32((i + j * 997) | sign << 31);
            run(k, s, N, 0, x, y);
            for (int j = 0; j < N; j++) {
                const double want = fn((double)x[j]), far = fabs((double)y[j] - want);
                ck_assert_msg(far <= units * unit(want) || far <= of_x * fabs((double)x[j]),
                              "%s, kind %d, of %.9g: %.9g, not %.9g", k->name, s.kind, (double)x[j], (double)y[j],
                              want);
            }
        }
}

static void check_angles(const q_cpu_kernel *k) {
    enum { N = 256 };
    float x[N], y[N], freqs[N / 2];
    uint64_t seed = 9;
    for (int i = 0; i < N; i++) x[i] = i % 2 ? 0.0f : 1.0f;
    for (int round = 0; round < 300; round++) {
        const int32_t pos = round < 150 ? 1 : (int32_t)(t_rand(&seed) % 2000000000u);
        for (int i = 0; i < N / 2; i++)
            freqs[i] =
                round % 3 == 2 ? (float)(i + 1) * 1.57079633f : (float)ldexp((double)t_normal(&seed), round % 30 - 10);
        const q_inst s = {.kind = Q_ROPE_PAIRS, .rot = N, .freqs = freqs, .x = {2, 0, 1, N, N}, .y = {1, 0, 1, N, N}};
        run(k, s, N, pos, x, y);
        for (int i = 0; i < N / 2; i++) {
            const double angle = (double)((float)pos * freqs[i]);
            if (fabs(angle) >= 0x1p40) continue;
            ck_assert_msg(fabs((double)y[2 * i] - cos(angle)) <= 2e-7 &&
                              fabs((double)y[2 * i + 1] - sin(angle)) <= 2e-7,
                          "%s: angle %.9g: %.9g %.9g", k->name, angle, (double)y[2 * i], (double)y[2 * i + 1]);
        }
    }
}

START_TEST(functions_are_close) {
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!k->fn || !q_isa_present(k->isa)) continue;
        if (k->op == Q_OP_ROPE) check_angles(k);
        if (k->op == Q_OP_SCALE) check_function(k, (q_inst){.softcap = 1.0f}, tanh, 3, 0);
        if (k->op != Q_OP_GLU) continue;
        check_function(k, (q_inst){.kind = Q_ACT_SILU}, silu, 4, 0);
        check_function(k, (q_inst){.kind = Q_ACT_SIGMOID}, sigmoid, 4, 0);
        check_function(k, (q_inst){.kind = Q_ACT_GELU_TANH}, gelu_tanh, 4, 2e-6);
        check_function(k, (q_inst){.kind = Q_ACT_GELU}, gelu, 4, 2e-7);
    }
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("steps");
    TCase *t = tcase_create("steps");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, steps_keep_their_bound);
    tcase_add_test(t, functions_are_close);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
