/* test_kernels.c: every row of kernels/cpu/kernels.def that this machine can run, against kernels/ref with the same
 * activation format: random, adversarial and ragged inputs, unaligned weights, and guards around every output. What
 * goes further with products is in test_products.c, attention's parts by themselves in test_attention.c.
 *
 * Products and activation formats keep the order of summation that op.h states, so their bits must be equal; other
 * steps have op.h's bound. */
#include "help_kv.h"
#include "help_product.h"

#include "../kernels/cpu/attn.h"

/* ------------------------------------------------------------------------------------------------------- products */

static void check_product(const q_cpu_kernel *k, const q_format *f, const shape *t, uint64_t *seed) {
    const int64_t stride = t->rows + 5, x_floats = t->k * t->n;
    uint64_t row_bytes;
    ck_assert(q_row_bytes(f, (uint64_t)t->k, &row_bytes));
    const size_t w_bytes = (size_t)(row_bytes * (uint64_t)t->rows);
    uint8_t *w = fenced(w_bytes);
    fill_weights(f, t->w, t->rows, t->k, row_bytes, w, seed);
    float *x = (float *)malloc((size_t)x_floats * sizeof(float)), *bias = guarded(t->rows);
    fill_x(t->x, x, x_floats, seed);
    for (int64_t i = 0; i < t->rows; i++) bias[i] = t_normal(seed);
    float *want = (float *)malloc((size_t)(t->rows * t->n) * sizeof(float)), *y = guarded(stride * t->n);
    for (int64_t c = 0; c < t->n; c++)
        for (int64_t r = 0; r < t->rows; r++)
            want[c * t->rows + r] = y[c * stride + r] = t->add ? t_normal(seed) : 7.0f;
    ref_product(f, k->act, t, w, row_bytes, x, bias, want);

    const q_act *act = k->act && t->n >= k->act->from ? k->act : NULL; /* what x comes in */
    const int64_t x_bytes = act ? q_act_bytes(act, t->k) : t->k * (int64_t)sizeof(float);
    uint8_t *acts = fenced((size_t)(x_bytes * t->n));
    for (int64_t c = 0; c < t->n; c++) {
        if (act) act->quantize(x + c * t->k, t->k, acts + c * x_bytes);
        else memcpy(acts + c * x_bytes, x + c * t->k, (size_t)x_bytes);
    }
    const size_t scratch_floats = (size_t)k->mm_scratch(t->k, t->n) / sizeof(float);
    uint8_t *scratch = (uint8_t *)aligned_alloc(Q_ALIGN, q_round_up(scratch_floats * sizeof(float) + 64, Q_ALIGN));
    memset(scratch, 0xA5, scratch_floats * sizeof(float) + 64);
    q_mm m = {.format = f, .w = w, .row_bytes = row_bytes, .rows = t->rows, .k = t->k, .x = acts,
              .x_stride = x_bytes, .n = t->n, .y = y, .y_stride = stride, .bias = t->bias ? bias : NULL,
              .add = t->add, .scratch = scratch};
    size_t packed_bytes = 0;
    uint8_t *packed = NULL;
    if (k->layout) {
        const q_weight weight = {.format = f, .data = w, .row_bytes = row_bytes, .rows = (int32_t)t->rows,
                                 .k = (int32_t)t->k, .matrices = 1};
        packed = pack_fenced(k->layout, &weight, &packed_bytes);
        m.w = packed + Q_ALIGN;
        m.row_bytes = q_layout_panel_bytes(k->layout, t->k);
    }
    if (k->layout && t->rows > 5) { /* in two parts that meet within a panel */
        m.rows = 5;
        k->mm(&m);
        check_guards(y, stride * t->n, k->name);
        m.rows = t->rows - 5, m.row = 5, m.y += 5;
        if (m.bias) m.bias += 5;
    }
    k->mm(&m);
    check_guards(y, stride * t->n, k->name);
    for (int i = 0; i < 64; i++)
        NEED_THAT(scratch[scratch_floats * sizeof(float) + (size_t)i] == 0xA5, "%s: scratch overrun", k->name);
    for (int64_t c = 0; c < t->n; c++) {
        for (int64_t r = 0; r < t->rows; r++) {
            const float a = y[c * stride + r], b = want[c * t->rows + r];
            NEED_THAT(q_f32_bits(a) == q_f32_bits(b) || (a != a && b != b),
                          "%s on %s %ldx%ld, %ld columns, w %d x %d: y[%ld][%ld] = %.9g, not %.9g", k->name, f->name,
                          (long)t->rows, (long)t->k, (long)t->n, (int)t->w, (int)t->x, (long)c, (long)r, (double)a,
                          (double)b);
        }
        for (int64_t r = t->rows; r < stride; r++)
            NEED_THAT(q_f32_bits(y[c * stride + r]) == guard_bits, "%s wrote past its rows", k->name);
    }
    free_fenced(acts, (size_t)(x_bytes * t->n));
    free_fenced(w, w_bytes);
    if (packed) free_fenced(packed, packed_bytes);
    free(scratch), free_guarded(y), free(want), free_guarded(bias), free(x);
}

static void check_product_row(const q_cpu_kernel *k, const q_format *f) {
    static const int64_t rows[] = {1, 2, 3, 7, 8, 9, 16, 31, 33, 40}, columns[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33};
    uint64_t seed = 42;
    const int64_t unit = Q_MAX(f->weights, k->act ? k->act->weights : 1);
    const int64_t lengths[] = {unit == 1 ? 37 : unit, unit == 1 ? 64 : 2 * unit, unit == 1 ? 200 : 3 * unit};
    for (size_t i = 0; i < Q_COUNT(rows); i++) {
        const shape t = {rows[i], lengths[i % 3], columns[i % Q_COUNT(columns)], W_RANDOM, X_RANDOM, i & 1, i & 2};
        check_product(k, f, &t, &seed);
    }
    for (size_t i = 0; i < Q_COUNT(columns); i++) {
        const shape t = {
            rows[(i * 3 + 1) % Q_COUNT(rows)], lengths[(i + 1) % 3], columns[i], W_BYTES, X_RANDOM, i & 2, i & 1};
        check_product(k, f, &t, &seed);
    }
    /* Long rows, which float kernels take in pieces. */
    for (int64_t n = 1; n <= 7; n += 3) {
        const shape t = {14, unit == 1 ? 1100 + n : 1280, n, W_RANDOM, X_RANDOM, true, true};
        check_product(k, f, &t, &seed);
    }
    /* More blocks to a row than a register has lanes, and one row more than it has. */
    for (int64_t n = 1; n <= 7; n += 3) {
        const shape t = {17, unit == 1 ? 600 : 22 * 256, n, W_RANDOM, X_RANDOM, n & 2, n & 1};
        check_product(k, f, &t, &seed);
    }
    for (int w = 0; w < W_KINDS; w++)
        for (int x = 0; x < X_KINDS; x++) {
            const shape t = {9, lengths[1], w & 1 ? 1 : 5, (w_kind)w, (x_kind)x, false, false};
            check_product(k, f, &t, &seed);
        }
}

#if defined(__x86_64__)
/* The AMX kernels once more, with tiles made of memory: the functions q_emulated_x of a line x. */
#define Q_AMX_EMULATED
#include "../kernels/cpu/x86/matmul_rows16_amx.c"

enum { AMX = Q_ISA_amx, EMULATES_AMX = Q_ISA_avx512vnni };
static bool emulated(const q_cpu_kernel *k, q_cpu_kernel *to) {
    static const struct {
        const char *name;
        void (*mm)(const q_mm *m);
        uint64_t (*mm_scratch)(int64_t k, int64_t n);
    } kernels[] = {
#define AMX_ROW_amx(name_) {#name_, q_emulated_##name_, q_emulated_##name_##_scratch},
#define AMX_ROW_avx2(name_)
#define AMX_ROW_avxvnni(name_)
#define AMX_ROW_avx512vnni(name_)
#define PACKED(weight, activation, isa_, rows_, layout_, name_) AMX_ROW_##isa_(name_)
#include "../kernels/cpu/kernels.def"
    };
    for (size_t i = 0; i < Q_COUNT(kernels); i++) {
        if (strcmp(kernels[i].name, k->name) != 0) continue;
        *to = *k;
        to->mm = kernels[i].mm;
        to->mm_scratch = kernels[i].mm_scratch;
        return true;
    }
    return false;
}

/* So many columns that tiles are used: ragged ones, rows that begin within a panel, rows of weights of several chunks,
 * a last step that is not full; and the largest codes and scales, which are next to what fits a signed byte. */
static void check_tiles(const q_cpu_kernel *k) {
    const q_format *f = q_format_find(k->format);
    const int64_t unit = Q_MAX(f->weights, k->act->weights);
    uint64_t seed = 7;
    static const w_kind kinds[] = {W_BYTES, W_ALL_80, W_ALL_7F, W_ALL_FF, W_TINY_SCALE};
    for (size_t i = 0; i < Q_COUNT(kinds); i++)
        for (int x = 0; x < X_KINDS; x++) {
            const shape t = {17, 2 * unit, 129, kinds[i], (x_kind)x, i & 1, x & 1};
            check_product(k, f, &t, &seed);
        }
    const shape ragged[] = {{1, unit, 128, W_RANDOM, X_RANDOM, true, false},
                            {37, Q_MAX(1312 / unit, 5) * unit, 145, W_RANDOM, X_RANDOM, true, true},
                            {3, unit, 8, W_RANDOM, X_RANDOM, false, false},
                            {34, 3 * unit, 48, W_RANDOM, X_RANDOM, false, true},
                            {9, unit, 529, W_RANDOM, X_RANDOM, false, false}};
    for (size_t i = 0; i < Q_COUNT(ragged); i++) check_product(k, f, &ragged[i], &seed);
}

START_TEST(tiles_equal_the_reference) {
    int lines = 0;
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        q_cpu_kernel memory;
        if (!k->mm || k->isa != (q_isa)AMX) continue;
        ck_assert_msg(emulated(k, &memory), "%s has no emulation", k->name);
        if (q_isa_present((q_isa)AMX)) check_tiles(k);
        if (q_isa_present((q_isa)EMULATES_AMX)) check_tiles(&memory);
        lines++;
    }
    ck_assert_int_ge(lines, 1);
    if (!q_isa_present((q_isa)EMULATES_AMX)) T_SKIP("tiles: no AVX-512 VNNI, which what is around them needs");
}
END_TEST

/* What is said of tiles in C is what the instructions do. */
START_TEST(tiles_in_memory_are_tiles) {
    if (!q_isa_present((q_isa)AMX)) T_SKIP("tiles: no AMX to compare with");
    uint64_t seed = 11;
    for (int depth = 4; depth <= 64; depth += 4)
        for (int round = 0; round < 20; round++) {
            enum { PITCH = 80 };
            uint8_t in[3][Q_T_ROWS * PITCH], out[2][Q_T_ROWS * PITCH];
            for (size_t i = 0; i < Q_COUNT(in); i++)
                for (size_t j = 0; j < sizeof in[i]; j++) in[i][j] = round ? (uint8_t)t_rand(&seed) : 0x80;
            memset(out, 0xA5, sizeof out);
            const q_t_config shapes = q_t_shapes(depth);
            Q_AMX_BEGIN(&shapes);
            Q_AMX_ZERO(1);
            if (round & 1) Q_AMX_LOAD(1, in[2], PITCH);
            Q_AMX_LOAD(4, in[0], PITCH);
            Q_AMX_LOAD(6, in[1], PITCH);
            Q_AMX_MULTIPLY(1, 4, 6);
            Q_AMX_MULTIPLY(1, 4, 6);
            Q_AMX_STORE(1, out[0], PITCH);
            Q_AMX_END();
            Q_T_BEGIN(&shapes);
            Q_T_ZERO(1);
            if (round & 1) Q_T_LOAD(1, in[2], PITCH);
            Q_T_LOAD(4, in[0], PITCH);
            Q_T_LOAD(6, in[1], PITCH);
            Q_T_MULTIPLY(1, 4, 6);
            Q_T_MULTIPLY(1, 4, 6);
            Q_T_STORE(1, out[1], PITCH);
            Q_T_END();
            NEED_THAT(memcmp(out[0], out[1], sizeof out[0]) == 0, "rows of %d bytes, round %d", depth, round);
        }
}
END_TEST
#endif

START_TEST(products_equal_the_reference) {
    int done = 0;
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!k->mm || !q_isa_present(k->isa)) continue;
        const bool any = strcmp(k->format, "any") == 0;
        for (uint32_t j = 0; j < q_format_count(); j++)
            if (any || strcmp(q_formats[j]->name, k->format) == 0) {
                check_product_row(k, q_formats[j]);
                done++;
            }
    }
    ck_assert_int_ge(done, (int)q_format_count());
}
END_TEST

/* Columns as a kind of activations, made once for all kernels that read it. */
enum { KINDS = 8 };
typedef struct made_kind {
    const q_act *act;
    uint8_t *columns;
} made_kind;
static const uint8_t *of_kind(const q_act *act, const float *x, int64_t k, int n, made_kind *made) {
    const int64_t column = q_act_bytes(act, k);
    int i = 0;
    while (i < KINDS && made[i].act && made[i].act != act) i++;
    ck_assert_int_lt(i, KINDS);
    if (made[i].act) return made[i].columns;
    made[i] = (made_kind){act, (uint8_t *)malloc((size_t)(column * n))};
    for (int c = 0; c < n; c++) act->quantize(x + c * k, k, made[i].columns + c * column);
    return made[i].columns;
}

/* Products that kernels take in pieces of rows, weights and columns: the definition of some columns, from both sides of
 * where a piece may end, is compared. */
START_TEST(large_products_equal_the_reference) {
    enum { ROWS = 133, K = 1280, N = 523, CHOSEN = 8 };
    static const int chosen[CHOSEN] = {0, 5, 6, 511, 515, 516, 521, 522};
    made_kind made[KINDS] = {{NULL, NULL}};
    uint64_t seed = 5;
    float *x = (float *)malloc(sizeof(float) * K * N), *some = (float *)malloc(sizeof(float) * K * CHOSEN);
    float *y = (float *)malloc(sizeof(float) * ROWS * N), *want = (float *)malloc(sizeof(float) * ROWS * CHOSEN);
    fill_x(X_RANDOM, x, (int64_t)K * N, &seed);
    for (int i = 0; i < CHOSEN; i++) memcpy(some + i * K, x + chosen[i] * K, sizeof(float) * K);
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!k->mm || !k->act || !q_isa_present(k->isa)) continue;
        const q_format *f = q_format_find(k->format);
        const shape t = {ROWS, K, CHOSEN, W_RANDOM, X_RANDOM, true, false};
        uint64_t row_bytes;
        ck_assert(f && q_row_bytes(f, K, &row_bytes));
        uint8_t *w = (uint8_t *)malloc((size_t)row_bytes * ROWS);
        fill_weights(f, t.w, ROWS, K, row_bytes, w, &seed);
        for (int j = 0; j < ROWS * N; j++) y[j] = (float)(j % ROWS);
        for (int j = 0; j < ROWS * CHOSEN; j++) want[j] = (float)(j % ROWS);
        ref_product(f, k->act, &t, w, row_bytes, some, NULL, want);

        const int64_t column = q_act_bytes(k->act, K);
        const uint8_t *acts = of_kind(k->act, x, K, N, made);
        void *scratch = q_new(&q_alloc_libc, k->mm_scratch(K, N), 1);
        q_mm m = {.format = f, .w = w, .row_bytes = row_bytes, .rows = ROWS, .k = K, .x = acts, .x_stride = column,
                  .n = N, .y = y, .y_stride = ROWS, .add = true, .scratch = scratch};
        uint8_t *packed = NULL;
        size_t packed_bytes = 0;
        if (k->layout) {
            const q_weight weight = {
                .format = f, .data = w, .row_bytes = row_bytes, .rows = ROWS, .k = K, .matrices = 1};
            packed = pack_fenced(k->layout, &weight, &packed_bytes);
            m.w = packed + Q_ALIGN;
            m.row_bytes = q_layout_panel_bytes(k->layout, K);
        }
        k->mm(&m);
        if (packed) free_fenced(packed, packed_bytes);
        for (int c = 0; c < CHOSEN; c++)
            NEED_THAT(memcmp(y + chosen[c] * ROWS, want + c * ROWS, sizeof(float) * ROWS) == 0, "%s: column %d",
                          k->name, chosen[c]);
        q_delete(&q_alloc_libc, scratch);
        free(w);
    }
    for (int i = 0; i < KINDS; i++) free(made[i].columns);
    free(x), free(some), free(y), free(want);
}
END_TEST

START_TEST(every_product_row_names_a_format) {
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!k->mm || strcmp(k->format, "any") == 0) continue;
        ck_assert_msg(q_format_find(k->format) != NULL, "%s is for the unknown format %s", k->name, k->format);
    }
}
END_TEST

/* ----------------------------------------------------------------------------------------------- activation formats */

START_TEST(activations_equal_the_reference) {
    uint64_t seed = 3;
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!k->quantize || !q_isa_present(k->isa)) continue;
        const int64_t n = k->act->weights ? 3 * k->act->weights : 160, bytes = q_act_bytes(k->act, n);
        float *x = (float *)malloc((size_t)n * sizeof(float));
        uint8_t *a = (uint8_t *)malloc((size_t)bytes + 1), *b = (uint8_t *)malloc((size_t)bytes);
        for (int round = 0; round < 400; round++) {
            fill_x((x_kind)(round % X_KINDS), x, n, &seed);
            if (round % 7 == 1) /* halves between codes: ties */
                for (int64_t j = 0; j < n; j++)
                    x[j] = j % 32 == 0 ? 127.0f : (float)(int)(t_rand(&seed) % 250) * 0.5f - 60.0f;
            if (round % 11 == 3) x[t_rand(&seed) % (uint64_t)n] = round & 1 ? INFINITY : NAN;
            if (round % 13 == 5) x[n - 1] = 3e38f;
            if (round % 13 == 7) for (int64_t j = 0; j < n; j++) x[j] *= 1e-36f;
            memset(a, 0xA5, (size_t)bytes + 1);
            k->quantize(x, n, a);
            k->act->quantize(x, n, b);
            NEED_THAT(memcmp(a, b, (size_t)bytes) == 0, "%s, round %d", k->name, round);
            ck_assert_int_eq(a[bytes], 0xA5);
        }
        free(x), free(a), free(b);
    }
}
END_TEST

/* ---------------------------------------------------------------------------------------------------------- steps */

enum { COLUMNS = 11, HEADS = 4, KV_HEADS = 2, CONTEXT = 640, PAGES = CONTEXT / Q_KV_TOKENS };

/* A plan of one step over four slots: 1 = y, 2 = x, 3 = z, and pages that hold a sequence's past. Two sequences:
 * columns 0 .. 6 continue the first one, the others begin the second. */
typedef struct bed {
    q_inst s;
    q_plan plan;
    q_batch batch;
    q_kv_pool pool;
    q_seq_ref seqs[2];
    uint32_t pages[2][PAGES];
    const uint32_t *tables[2][1];
    int32_t widths[4], pos[COLUMNS], seq[COLUMNS], out[3];
    float *slots[4];
    uint8_t *kv[1];
    uint64_t seed;
} bed;

/* k, v: kinds of keys and values. */
static void bed_open_of(bed *b, int32_t width, int32_t past, const q_kv_kind *k, const q_kv_kind *v) {
    memset(b, 0, sizeof *b);
    b->seed = (uint64_t)(width * 1000 + past);
    b->pool = (q_kv_pool){.layers = 2, .heads = KV_HEADS, .pages = 2 * PAGES + 1};
    t_kv_forms_of(&b->pool, k, v, 64, 64);
    b->kv[0] = (uint8_t *)malloc(b->pool.page_bytes * b->pool.pages);
    t_kv_fill(&b->pool, b->kv[0], t_normal, &b->seed);
    for (uint32_t i = 0; i < PAGES; i++) { /* pages in no order */
        b->pages[0][i] = 2 * PAGES - 2 * i;
        b->pages[1][i] = 2 * i + 1;
    }
    for (int i = 0; i < 2; i++) {
        b->tables[i][0] = b->pages[i];
        b->seqs[i].pages = b->tables[i];
    }
    for (int i = 0; i < COLUMNS; i++) {
        b->seq[i] = i >= 7;
        b->pos[i] = i < 7 ? past + i : i - 7;
    }
    b->out[0] = 2, b->out[1] = 3, b->out[2] = 10;
    for (int i = 1; i < 4; i++) {
        b->widths[i] = width;
        b->slots[i] = guarded((int64_t)width * COLUMNS);
        for (int64_t j = 0; j < (int64_t)width * COLUMNS; j++) b->slots[i][j] = t_normal(&b->seed) * 2;
    }
    b->batch =
        (q_batch){.n = COLUMNS, .pos = b->pos, .seq = b->seq, .seqs = b->seqs, .n_seqs = 2, .n_out = 3, .out = b->out};
    b->plan = (q_plan){.insts = &b->s, .n_insts = 1, .n_layers = 2, .slot_width = b->widths, .n_slots = 4,
                       .columns = COLUMNS, .outs = 3, .kv = &b->pool, .n_kv = 1, .context = CONTEXT};
    b->s.y = (q_view){1, 0, 1, width, width};
    b->s.x = (q_view){2, 0, 1, width, width};
    b->s.kv_layer = 1;
}
static void bed_open(bed *b, int32_t width, int32_t past, uint32_t k, uint32_t v) {
    bed_open_of(b, width, past, &q_kv_kinds[k], &q_kv_kinds[v]);
}
static void bed_close(bed *b) {
    for (int i = 1; i < 4; i++) free_guarded(b->slots[i]);
    free(b->kv[0]);
}

/* Run the step in b->s by the reference over all units, and by `k` in chunks of `chunk`; compare y and the pages. */
static void check_step(bed *b, const q_cpu_kernel *k, int64_t chunk, double bound) {
    ck_assert_msg(!k->accepts || k->accepts(&b->s), "%s refuses a step that it is meant for", k->name);
    const int64_t n = (int64_t)b->widths[1] * COLUMNS, units = q_op_units(&b->s, COLUMNS, 3);
    const uint64_t kv_bytes = b->pool.page_bytes * b->pool.pages;
    const size_t bytes = Q_MAX(q_ref_scratch(&b->s, COLUMNS), (size_t)k->scratch(&b->s, COLUMNS));
    float *before = guarded(n), *want = guarded(n);
    uint8_t *kv_before = (uint8_t *)malloc(kv_bytes), *kv_want = (uint8_t *)malloc(kv_bytes);
    memcpy(before, b->slots[1], (size_t)n * sizeof(float));
    memcpy(kv_before, b->kv[0], kv_bytes);
    void *scratch = q_new(&q_alloc_libc, bytes, 1);
    q_exec e = {.plan = &b->plan,
                .batch = &b->batch,
                .slots = b->slots,
                .kv = b->kv,
                .scratch = scratch,
                .scratch_bytes = bytes};
    q_ops[b->s.op].ref(&b->s, &e, 0, units);
    memcpy(want, b->slots[1], (size_t)n * sizeof(float));
    memcpy(kv_want, b->kv[0], kv_bytes);
    memcpy(b->slots[1], before, (size_t)n * sizeof(float));
    memcpy(b->kv[0], kv_before, kv_bytes);
    for (int64_t at = 0; at < units; at += chunk) k->fn(&b->s, &e, at, Q_MIN(at + chunk, units));
    check_guards(b->slots[1], n, k->name);
    const double far = nmse(b->slots[1], want, n);
    ck_assert_msg(far <= bound, "%s, chunks of %ld: NMSE %g, more than %g", k->name, (long)chunk, far, bound);
    ck_assert_msg(memcmp(b->kv[0], kv_want, kv_bytes) == 0, "%s: pages differ", k->name);
    memcpy(b->slots[1], before, (size_t)n * sizeof(float));
    memcpy(b->kv[0], kv_before, kv_bytes);
    q_delete(&q_alloc_libc, scratch);
    free(kv_before), free(kv_want), free_guarded(before), free_guarded(want);
}

static q_weight vector_of(float *v, int32_t n, uint64_t *seed) {
    for (int32_t i = 0; i < n; i++) v[i] = 1.0f + t_normal(seed) * 0.1f;
    return (q_weight){.format = q_format_find("f32"),
                      .data = (const uint8_t *)v,
                      .row_bytes = (uint64_t)n * 4,
                      .rows = 1,
                      .k = n,
                      .matrices = 1,
                      .name = "v"};
}

static void check_kv_put_in(const q_cpu_kernel *k, uint32_t keys, uint32_t values) {
    bed b;
    bed_open(&b, HEADS * 64, 60, keys, values);
    b.s.op = Q_OP_KV_PUT;
    b.s.x = (q_view){2, 0, KV_HEADS, 64, 64};
    b.s.z = (q_view){3, 64, KV_HEADS, 64, 64};
    b.slots[2][3] = 1e9f, b.slots[2][4] = -1e9f, b.slots[2][5] = 3e-7f, b.slots[2][6] = 65519.0f;
    b.slots[2][70] = NAN, b.slots[2][130] = -INFINITY, b.slots[2][201] = 65504.0f;
    check_step(&b, k, 2, 0);
    b.pool.v.width = 0; /* values are a prefix of the keys */
    check_step(&b, k, 11, 0);
    bed_close(&b);
}

static void check_kv_put(const q_cpu_kernel *k) {
    for (uint32_t i = 0; i < q_kv_kind_count(); i++) {
        check_kv_put_in(k, i, i);
        check_kv_put_in(k, i, (i + 1) % q_kv_kind_count());
    }
}

/* A step over what bed_open() made, `heads` query heads wide. */
static void attn_step(bed *b, int32_t heads, int32_t k, int32_t v) {
    b->s.op = Q_OP_ATTN;
    b->s.x = (q_view){2, 0, heads, k, k};
    b->s.y = (q_view){1, 0, heads, v, v};
    b->s.scale = 0.125f;
}

static void check_chunks(bed *b, const q_cpu_kernel *k) {
    for (int64_t chunk = 1; chunk <= COLUMNS * b->s.x.heads; chunk = chunk < 4 ? chunk + 1 : chunk * 3 - 1)
        check_step(b, k, chunk, 1e-10);
}

static void check_attn_pages(const q_cpu_kernel *k) {
    static const int32_t pasts[] = {0, 1, 31, 60, 140, 249, 256, 620};
    static const int32_t windows[] = {0, 1, 5, 70, 300, 0, 1, 70, 300}, sink_tokens[] = {0, 0, 0, 0, 0, 7, 33, 4, 280};
    uint32_t turn = 0; /* every format of keys with every one of values */
    for (size_t i = 0; i < Q_COUNT(pasts); i++)
        for (size_t j = 0; j < Q_COUNT(windows); j++) {
            bed b;
            float sinks[HEADS];
            const uint32_t keys = turn++ % q_kv_kind_count(), other = turn / q_kv_kind_count() % q_kv_kind_count();
            bed_open(&b, HEADS * 64, pasts[i], keys, j == 5 ? keys : other);
            const q_weight w = vector_of(sinks, HEADS, &b.seed);
            attn_step(&b, j == 1 ? KV_HEADS : HEADS, 64, j == 3 && !b.pool.v.turn ? 48 : 64);
            b.s.window = windows[j];
            b.s.sink_tokens = sink_tokens[j];
            b.s.softcap = j == 2 ? 3.0f : 0;
            b.s.w = j == 3 ? &w : NULL;
            if (j == 5) b.s.kind = Q_ATTN_ALIBI, b.pool.v.width = i & 2 ? 0 : 64; /* values: a prefix of the keys */
            check_chunks(&b, k);
            bed_close(&b);
        }
}

/* A form that no instruction set knows: pages are decoded first. */
static void check_attn_unknown(const q_cpu_kernel *k) {
    const q_kv_kind unknown = {.format = q_format_find("q5_0"), .turned = true, .most = 65504.0f};
    for (int mask = 0; mask < 4; mask++) {
        bed b;
        bed_open_of(&b, HEADS * 64, 140, mask & 1 ? &unknown : &q_kv_kinds[0], mask & 2 ? &unknown : &q_kv_kinds[3]);
        attn_step(&b, HEADS, 64, 64);
        check_chunks(&b, k);
        bed_close(&b);
    }
}

/* Keys and values in columns of the batch, also at positions that are not consecutive. */
static void check_attn_columns(const q_cpu_kernel *k) {
    for (int variant = 0; variant < 8; variant++) {
        bed b;
        bed_open(&b, HEADS * 64, variant & 1 ? 250 : 3, 0, 0);
        attn_step(&b, HEADS, 64, 64);
        b.s.z = (q_view){3, 0, KV_HEADS, 64, 64};
        if (variant & 2) b.s.v = (q_view){3, KV_HEADS * 64, KV_HEADS, 64, 64};
        if (variant & 2) b.s.kind = Q_ATTN_ALIBI;
        if (variant & 4) b.pos[6] += 9;
        check_chunks(&b, k);
        bed_close(&b);
    }
}

/* Queries give the same bits together and one by one, and nothing of a key that they may not see: the last key of the
 * first sequence is no number. Of some of those with sinks before their window the window reaches them. */
static void check_attn_company(const q_cpu_kernel *k) {
    for (int variant = 0; variant < 24; variant++) {
        enum { LAST = 6, PAST = 252 };
        bed b;
        bed_open(&b, HEADS * 64, PAST, (uint32_t)variant / 4, variant & 1 ? (uint32_t)variant / 4 : 1);
        attn_step(&b, variant & 2 ? KV_HEADS : HEADS, 64, 64);
        b.s.window = variant & 4 ? 3 : 0;
        b.s.sink_tokens = variant & 1 ? PAST - 1 : 0;
        for (int i = 0; i < 64 * HEADS; i++) b.slots[3][LAST * b.widths[3] + i] = NAN;
        const q_inst attn = b.s, put = {.op = Q_OP_KV_PUT, .kv_layer = 1, .x = {3, 0, KV_HEADS, 64, 64},
                                        .z = {3, KV_HEADS * 64, KV_HEADS, 64, 64}};
        const int64_t n = (int64_t)b.widths[1] * COLUMNS, units = COLUMNS * attn.x.heads;
        q_exec e = {.plan = &b.plan, .batch = &b.batch, .slots = b.slots, .kv = b.kv};
        q_ref_kv_put(&put, &e, 0, COLUMNS * KV_HEADS);
        float *together = guarded(n);
        e.scratch = q_new(&q_alloc_libc, (size_t)k->scratch(&attn, COLUMNS), 1);
        k->fn(&attn, &e, 0, units);
        memcpy(together, b.slots[1], (size_t)n * sizeof(float));
        for (int64_t u = 0; u < units; u++) k->fn(&attn, &e, u, u + 1);
        for (int64_t i = 0; i < n; i++) {
            if (i / b.widths[1] == LAST) continue;
            NEED_THAT(q_f32_bits(together[i]) == q_f32_bits(b.slots[1][i]) && !isnan(together[i]),
                          "%s, value %ld of column %ld: %g, alone %g", k->name, (long)(i % b.widths[1]),
                          (long)(i / b.widths[1]), (double)together[i], (double)b.slots[1][i]);
        }
        q_delete(&q_alloc_libc, e.scratch);
        free_guarded(together);
        bed_close(&b);
    }
}

/* A window leaves keys out and changes nothing else: the same bits as without one when every key before it, but for the
 * sinks, has a score so low that its exponential is zero. So blocks of keys begin at multiples of their length,
 * whatever a query sees, and those of sinks come first. */
static void check_attn_window(const q_cpu_kernel *k) {
    enum { PAST = 620, WINDOW = 300, SINKS = 35 };
    for (uint32_t kind = 0; kind < q_kv_kind_count(); kind++) {
        bed b;
        const float far[64] = {-6e4f};
        bed_open(&b, HEADS * 64, PAST, kind, kind);
        attn_step(&b, HEADS, 64, 64);
        for (int c = 0; c < COLUMNS; c++)
            for (int h = 0; h < HEADS; h++) b.slots[2][c * b.widths[2] + 64 * h] = 8;
        const int64_t n = (int64_t)b.widths[1] * COLUMNS;
        float *want = guarded(n);
        q_exec e = {.plan = &b.plan, .batch = &b.batch, .slots = b.slots, .kv = b.kv};
        e.scratch = q_new(&q_alloc_libc, (size_t)k->scratch(&b.s, COLUMNS), 1);
        for (int c = 0; c < 7; c++) {
            for (int32_t j = kind % 2 ? SINKS : 0; j <= b.pos[c] - WINDOW; j++)
                for (int h = 0; h < KV_HEADS; h++) {
                    const uint32_t page = b.pages[0][j / Q_KV_TOKENS];
                    q_ref_kv_put_row(&b.pool.k, &b.pool.v, j % Q_KV_TOKENS, far, far,
                                     q_kv_k(&b.pool, b.kv[0], page, b.s.kv_layer, h),
                                     q_kv_v(&b.pool, b.kv[0], page, b.s.kv_layer, h));
                }
            b.s.window = WINDOW;
            b.s.sink_tokens = kind % 2 ? SINKS : 0;
            k->fn(&b.s, &e, 0, COLUMNS * HEADS);
            memcpy(want, b.slots[1], (size_t)n * sizeof(float));
            b.s.window = 0;
            k->fn(&b.s, &e, 0, COLUMNS * HEADS);
            const int64_t at = (int64_t)c * b.widths[1];
            NEED_THAT(memcmp(want + at, b.slots[1] + at, HEADS * 64 * sizeof(float)) == 0,
                          "%s, %s, column %d: a window of %d changes bits", k->name, b.pool.k.format->name, c, WINDOW);
        }
        q_delete(&q_alloc_libc, e.scratch);
        free_guarded(want);
        bed_close(&b);
    }
}

static void check_attn(const q_cpu_kernel *k) {
    check_attn_company(k);
    check_attn_window(k);
    check_attn_pages(k);
    check_attn_unknown(k);
    check_attn_columns(k);
}

START_TEST(steps_keep_their_bound) {
    static const struct { q_op op; void (*check)(const q_cpu_kernel *k); } checks[] = {
        {Q_OP_KV_PUT, check_kv_put}, {Q_OP_ATTN, check_attn},
    };
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!k->fn || !q_isa_present(k->isa)) continue;
        for (size_t j = 0; j < Q_COUNT(checks); j++) /* the other operations: test_steps.c */
            if (checks[j].op == k->op) checks[j].check(k);
    }
}
END_TEST

/* ---------------------------------------------------------------------------------------------------- exponential */

#if defined(__x86_64__)
#include "../kernels/cpu/x86/avx512.h"

enum { EXP_ISA = Q_ISA_avx2 };
Q_AVX2 static void exp8(const float *x, float *y) { _mm256_storeu_ps(y, q_exp8(_mm256_loadu_ps(x))); }
#elif defined(__aarch64__)
#include "../kernels/cpu/arm/neon.h"

enum { EXP_ISA = Q_ISA_neon };
static void exp8(const float *x, float *y) {
    vst1q_f32(y, q_exp4(vld1q_f32(x)));
    vst1q_f32(y + 4, q_exp4(vld1q_f32(x + 4)));
}
#endif

#if defined(__x86_64__) || defined(__aarch64__)
START_TEST(exponential_is_within_one_unit) {
    if (!q_isa_present((q_isa)EXP_ISA)) T_SKIP("exponential: no vectors here");
    float x[8], y[8];
    for (uint32_t i = 0x2F000000u; i < 0x42B00000u; i += 8 * 1013)
        for (uint32_t sign = 0; sign < 2; sign++) {
            for (uint32_t j = 0; j < 8; j++) x[j] = q_bits_f32((i + j * 1013) | sign << 31);
            exp8(x, y);
            for (int j = 0; j < 8; j++) {
                const double want = exp((double)x[j]);
                int e;
                frexp(want, &e);
                if (want < 1.1754944e-38 || want > 3.4028234e38) continue;
                NEED_THAT(fabs((double)y[j] - want) <= ldexp(1, e - 24), "exp(%.9g) = %.9g", (double)x[j],
                              (double)y[j]);
            }
        }
    const float ends[8] = {-INFINITY, INFINITY, NAN, -103.98f, 88.73f, -100.0f, 300.0f, 0.0f};
    exp8(ends, y);
    ck_assert(y[0] == 0 && y[1] == INFINITY && y[2] != y[2] && y[3] == 0 && y[4] == INFINITY && y[6] == INFINITY &&
              y[7] == 1);
    ck_assert(y[5] > 3.7e-44f && y[5] < 3.9e-44f); /* a subnormal result */
}
END_TEST
#endif

#if defined(__x86_64__)
Q_AVX512 static void exp16(const float *x, float *y) { _mm512_storeu_ps(y, q_exp16(_mm512_loadu_ps(x))); }

START_TEST(exponentials_have_the_same_bits) {
    if (!q_isa_present(Q_ISA_avx512)) T_SKIP("exponential: no AVX-512 here");
    float x[16], y[16], z[16];
    for (uint64_t i = 0; i < 1ull << 32; i += 16 * 4093) {
        for (uint64_t j = 0; j < 16; j++) x[j] = q_bits_f32((uint32_t)(i + j * 4093));
        for (int j = 0; j < 16; j += 8) exp8(x + j, y + j);
        exp16(x, z);
        NEED_THAT(memcmp(y, z, sizeof y) == 0, "exp(%.9g) or one of the 15 after it", (double)x[0]);
    }
}
END_TEST
#endif

/* ------------------------------------------------------------------------------------------------ instruction sets */

START_TEST(instruction_sets_are_chosen_by_name) {
    q_isas all = 0, set = 0;
    ck_assert_int_eq(q_isa_choose("scalar", &set), LQ_OK);
    ck_assert_uint_eq(set, Q_ISAS_scalar);
    static const char *const wrong[] = {"sse9",        "",      "+",       "scalar+", "+scalar",
                                        "scalar+sse9", "scala", "scalar2", "scalar "};
    for (size_t i = 0; i < Q_COUNT(wrong); i++) {
        ck_assert_int_eq(q_isa_choose(wrong[i], &set), LQ_E_ARG);
        ck_assert_uint_eq(set, Q_ISAS_scalar);
    }
    ck_assert_int_eq(q_isa_choose(NULL, &all), LQ_OK);
    for (int i = 0; i < Q_ISA_COUNT; i++) {
        const char *name = q_isa_names[i];
        const bool here = q_isa_present((q_isa)i);
        ck_assert_int_eq(q_isa_in(all, (q_isa)i), here);
        ck_assert_int_eq(q_isa_choose(name, &set), here ? LQ_OK : LQ_E_UNSUPPORTED);
        if (here) ck_assert_uint_eq(set, q_isa_with[i]);
    }
}
END_TEST

/* A rung includes what the rungs below it include; and a set's text, which lq_device_info.isa has room for, names
 * it. */
START_TEST(instruction_sets_include_others) {
    for (int i = 0; i < Q_ISA_COUNT; i++) {
        ck_assert(q_isa_in(q_isa_with[i], (q_isa)i) && q_isa_in(q_isa_with[i], Q_ISA_scalar));
        ck_assert_uint_eq(q_isa_with[i] >> i, 1); /* all that it includes stands before it */
        for (int j = 0; j < i; j++)
            if (q_isa_in(q_isa_with[i], (q_isa)j)) ck_assert_uint_eq(q_isa_with[i] & q_isa_with[j], q_isa_with[j]);
    }
    for (q_isas some = 1; some < 1u << Q_ISA_COUNT; some++) {
        q_isas set = 0, again = 0;
        char text[sizeof((lq_device_info *)0)->isa], cut[8];
        for (int i = 0; i < Q_ISA_COUNT; i++)
            if (q_isa_in(some, (q_isa)i)) set |= q_isa_with[i];
        q_isa_text(set, text, sizeof text);
        for (const char *at = text; *at;) {
            const size_t n = strcspn(at, "+");
            int i = 0;
            while (i < Q_ISA_COUNT && (strncmp(at, q_isa_names[i], n) != 0 || q_isa_names[i][n])) i++;
            ck_assert_msg(i < Q_ISA_COUNT, "%s", text);
            again |= q_isa_with[i];
            at += n + (at[n] == '+');
        }
        ck_assert_msg(again == set, "%s is not the set %x", text, set);
        q_isas chosen = 0, all;
        ck_assert_int_eq(q_isa_choose(NULL, &all), LQ_OK);
        ck_assert_int_eq(q_isa_choose(text, &chosen), (set & ~all) ? LQ_E_UNSUPPORTED : LQ_OK);
        ck_assert_uint_eq(chosen, (set & ~all) ? 0 : set);
        q_isa_text(set, cut, sizeof cut);
        ck_assert(strlen(cut) < sizeof cut && (!cut[0] || cut[strlen(cut) - 1] != '+'));
    }
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("kernels");
    TCase *t = tcase_create("kernels");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, products_equal_the_reference);
    tcase_add_test(t, large_products_equal_the_reference);
    tcase_add_test(t, every_product_row_names_a_format);
    tcase_add_test(t, activations_equal_the_reference);
    tcase_add_test(t, steps_keep_their_bound);
#if defined(__x86_64__) || defined(__aarch64__)
    tcase_add_test(t, exponential_is_within_one_unit);
#endif
#if defined(__x86_64__)
    tcase_add_test(t, exponentials_have_the_same_bits);
    tcase_add_test(t, tiles_equal_the_reference);
    tcase_add_test(t, tiles_in_memory_are_tiles);
#endif
    tcase_add_test(t, instruction_sets_are_chosen_by_name);
    tcase_add_test(t, instruction_sets_include_others);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
