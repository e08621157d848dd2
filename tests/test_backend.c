/* test_backend.c: every operation in every kind and format on every device of every backend, against kernels/ref.
 *
 * A case makes a plan of many steps of one operation, all operands in slot 1 (help_backend.h); it is compiled once and
 * run for numbers of columns in each regime that a backend may treat by itself: one, a few, a tile and one more, all.
 * Only the table of functions of backend.h is used, so a new backend is tested by its line in backends.def. What a
 * device is beside its operations (buffers, threads, refusals) is in test_backend_life.c. */
#include <math.h>

#include "help_backend.h"

/* Drivers keep what they allocate until the process ends; our own blocks are counted by help_backend.c. */
T_ASAN_OPTIONS("detect_leaks=0")

static const q_format *const *const formats = q_formats;

/* A length of rows that the format allows: `blocks` blocks, or for formats of single weights something ragged. */
static int32_t length(const q_format *f, int32_t blocks) {
    static const int32_t ragged[] = {37, 64, 101, 200, 5};
    return f->weights == 1 ? ragged[blocks % 5] : blocks * f->weights;
}

/* -------------------------------------------------------------------------------------------------- tables, slices */

enum { EMBED_IDS, EMBED_TABLES, EMBED_ROWS, EMBED_VARIANTS };

/* The first variant of an operation has every format; each one after it a third of them, in turn: what they vary is the
 * numbers, and a pipeline costs a driver as much for each. With T_FEW (check_validation.sh: the calls matter, not the
 * values) the first has every fourth. */
static bool has_turn(uint32_t f, int variant) {
    if (getenv("T_FEW")) return (f + (uint32_t)variant) % 4 == 0;
    return variant == 0 || (f + (uint32_t)variant) % 3 == 0;
}

static void embed_cases(st *t, int variant) {
    enum { VOCAB = 19, PAST = 41 };
    t->past = PAST;
    if (variant == EMBED_ROWS) { /* no ids: the batch's rows, into another slot and where they are */
        const q_view a = st_in(t, 3, 7, 9, ST_BITS), b = st_out(t, 3, 7, 11);
        const int32_t all = t->widths[1];
        t->widths[2] = all, t->plan.n_slots = 3;
        const q_weight *w = st_weight(t, "f16", VOCAB, all, 1, ST_W_NORMAL);
        st_add(t, (q_inst){.op = Q_OP_EMBED, .y = {2, 0, 1, all, all}, .w = w});
        st_add(t, (q_inst){.op = Q_OP_EMBED, .y = {1, 0, 1, all, all}, .w = w});
        st_add(t, (q_inst){.op = Q_OP_COPY, .x = {2, a.offset, 3, 7, 9}, .y = b});
        st_ready(t, false);
        return;
    }
    t->by_ids = true;
    for (uint32_t f = 0; f < q_format_count(); f++)
        for (int i = 1; has_turn(f, variant) && i <= 3; i += 2) {
            const int32_t k = length(formats[f], i);
            q_inst s = {.op = Q_OP_EMBED, .w = st_weight(t, formats[f]->name, VOCAB, k, 1, (st_weights)(i == 1))};
            s.y = k % 2 == 0 && i == 3 ? st_out(t, 2, k / 2, k / 2 + 3) : st_out(t, 1, k, k);
            if (variant == EMBED_TABLES) {
                const q_format *g = k % 256 == 0 ? formats[(f + 5) % q_format_count()] : q_format_find("bf16");
                if (i == 1) s.scale = 8.3f;
                s.w2 = st_weight(t, g->name, PAST + 200, k, 1, ST_W_NORMAL);
                if (i == 3) s.w3 = st_weight(t, formats[f]->name, 2, k, 1, ST_W_ODD);
            }
            st_add(t, s);
        }
    st_ready(t, true);
}

static void copy_cases(st *t, int variant) {
    (void)variant;
    t->widths[2] = 61, t->widths[3] = 97, t->plan.n_slots = 4;
    static const struct { int32_t xh, xw, xs, yh, yw, ys; } shapes[] = {
        {3, 4, 8, 3, 4, 10}, {1, 5, 5, 4, 5, 9}, {1, 24, 24, 4, 6, 7}, {5, 6, 6, 1, 30, 30}, {1, 1, 1, 1, 1, 1},
        {2, 9, 11, 3, 6, 8}, {1, 517, 517, 1, 517, 517},
    };
    for (size_t i = 0; i < 2 * Q_COUNT(shapes); i++) {
        const size_t j = i / 2;
        q_inst s = {.op = Q_OP_COPY, .out = i % 2};
        s.x = st_in(t, shapes[j].xh, shapes[j].xw, shapes[j].xs, ST_BITS);
        s.y = st_out(t, shapes[j].yh, shapes[j].yw, shapes[j].ys);
        st_add(t, s);
    }
    /* through slots of other widths */
    st_add(t, (q_inst){.op = Q_OP_COPY, .x = st_in(t, 1, 40, 40, ST_BITS), .y = {2, 3, 4, 10, 13}});
    st_add(t, (q_inst){.op = Q_OP_COPY, .x = {2, 3, 4, 10, 13}, .y = {3, 1, 1, 40, 40}});
    st_add(t, (q_inst){.op = Q_OP_COPY, .x = {3, 1, 8, 5, 5}, .y = st_out(t, 8, 5, 6)});
    st_ready(t, false);
}

/* ----------------------------------------------------------------------------------------------------------- norms */

static void norm_cases(st *t, int variant) {
    static const int32_t widths[] = {1, 7, 16, 40, 75, 256, 301};
    for (int kind = Q_NORM_RMS; kind <= Q_NORM_L2; kind++)
        for (int mask = 0; mask < 16; mask++) { /* weight, bias, add, domain OUT */
            const int32_t w = mask == 5 && variant ? 1500 : widths[(mask + kind + 3 * variant) % 7];
            if (kind == Q_NORM_L2 && mask & 3) continue;
            q_inst s = {.op = Q_OP_NORM, .kind = (uint8_t)kind, .eps = mask % 3 == 1 ? 30.0f : 1e-5f};
            s.x = st_in(t, 1, w, w, variant ? ST_WILD : ST_MILD);
            s.add = (mask & 4) != 0, s.out = (mask & 8) != 0;
            s.y = variant && !s.out ? s.x : st_out(t, 1, w, w);
            if (mask & 1) s.w = st_vector(t, w, 1, 1, 0.3f);
            if (mask & 2) s.b = st_vector(t, w, 1, 0, 0.3f);
            st_add(t, s);
        }
    st_ready(t, true);
}

static void headnorm_cases(st *t, int variant) {
    static const int32_t widths[] = {1, 20, 64, 128, 33};
    for (int kind = Q_NORM_RMS; kind <= Q_NORM_L2; kind++)
        for (int mask = 0; mask < 16; mask++) { /* weight, one per head, gate, in place */
            const int32_t w = widths[(mask + kind) % 5], heads = 1 + (mask + variant) % 5;
            if ((kind == Q_NORM_L2 && mask & 3) || (mask & 3) == 2) continue;
            q_inst s = {.op = Q_OP_HEADNORM, .kind = (uint8_t)kind, .eps = 1e-6f};
            s.x = st_in(t, heads, w, w + mask % 3, variant ? ST_MILD : ST_WILD);
            s.y = mask & 8 ? s.x : st_out(t, heads, w, w + 3);
            if (mask & 1) s.w = st_vector(t, mask & 2 ? heads * w : w, 1, 1, 0.3f);
            if (mask == 1 && variant) s.b = st_vector(t, w, 1, 0, 0.3f);
            if (mask & 4) s.z = st_in(t, heads, w, w + 1, ST_MILD);
            st_add(t, s);
        }
    st_ready(t, true);
}

/* -------------------------------------------------------------------------------------------------------- products */

enum { MATMUL_NORMAL, MATMUL_BYTES, MATMUL_TINY, MATMUL_LONG, MATMUL_OPTIONS, MATMUL_ADAPTERS, MATMUL_HEADS,
       MATMUL_VARIANTS };

static void matmul_formats(st *t, int variant) {
    static const int32_t rows[] = {1, 2, 7, 8, 31, 33, 40, 67};
    for (uint32_t f = 0; f < q_format_count(); f++)
        for (int i = 0; has_turn(f, variant) && i < 2; i++) {
            int32_t k = length(formats[f], 1 + (i + (int)f) % 3), r = rows[(3 * f + (uint32_t)i * 5) % 8];
            if (variant == MATMUL_LONG && i == 0) k = formats[f]->weights == 1 ? 1101 : 1280, r = 3;
            q_inst s = {.op = Q_OP_MATMUL};
            s.x = st_in(t, 1, k, k, variant == MATMUL_NORMAL ? ST_WILD : ST_MILD);
            s.y = st_out(t, 1, r, r);
            s.w = st_weight(t, formats[f]->name, r, k, 1, variant == MATMUL_BYTES ? ST_W_BYTES
                                                          : variant == MATMUL_TINY ? ST_W_TINY
                                                          : variant == MATMUL_LONG ? ST_W_ODD
                                                                                   : ST_W_NORMAL);
            st_add(t, s);
        }
}

static void matmul_cases(st *t, int variant) {
    if (variant <= MATMUL_LONG) matmul_formats(t, variant);
    for (int mask = 0; variant == MATMUL_OPTIONS && mask < 16; mask++) { /* bias, add, domain OUT; formats in turn */
        const q_format *f = formats[(uint32_t)mask % q_format_count()];
        const int32_t k = length(f, 2), r = 5 + 3 * mask;
        q_inst s = {.op = Q_OP_MATMUL, .add = (mask & 2) != 0, .out = (mask & 4) != 0, .w = NULL};
        s.x = st_in(t, 1, k, k, ST_PLAIN), s.y = st_out(t, 1, r, r);
        s.w = st_weight(t, f->name, r, k, 1, ST_W_NORMAL);
        if (mask & 1) s.b = st_vector(t, r, 1, 0, 2);
        st_add(t, s);
    }
    for (uint32_t a = 0; variant == MATMUL_ADAPTERS && a < q_format_count(); a++) {
        const q_format *fb = formats[(a + 3) % q_format_count()], *fw = formats[(a + 7) % q_format_count()];
        const int32_t k = 256, rank = fb->weights == 1 ? 3 : fb->weights, r = 9 + (int32_t)a;
        q_inst s = {.op = Q_OP_MATMUL, .lora_scale = 0.07f, .add = a % 3 == 0, .out = a % 5 == 4};
        s.x = st_in(t, 1, k, k, ST_MILD), s.y = st_out(t, 1, r, r);
        s.w = st_weight(t, fw->name, r, k, 1, ST_W_NORMAL);
        s.lora_a = st_weight(t, formats[a]->name, rank, k, 1, ST_W_NORMAL);
        s.lora_b = st_weight(t, fb->name, r, rank, 1, ST_W_NORMAL);
        if (a % 2) s.b = st_vector(t, r, 1, 0, 2);
        st_add(t, s);
    }
    for (int i = 0; variant == MATMUL_HEADS && i < 8; i++) { /* rows of w for each head of x; one head for all of y */
        const q_format *f = formats[((uint32_t)i * 5 + 3) % q_format_count()];
        const int32_t k = length(f, 1 + i % 2), heads = 2 + i % 3, w = 4 + 5 * (i % 4);
        q_inst s = {.op = Q_OP_MATMUL, .add = i == 2};
        s.x = i < 6 ? st_in(t, heads, k, k + 3, ST_PLAIN) : st_in(t, 1, k, k, ST_PLAIN);
        s.y = st_out(t, heads, w, w + 2);
        s.w = st_weight(t, f->name, heads * w, k, 1, ST_W_NORMAL);
        if (i % 2) s.b = st_vector(t, heads * w, 1, 0, 2);
        if (i % 4 == 3) {
            s.lora_a = st_weight(t, "f32", 5, k, 1, ST_W_NORMAL);
            s.lora_b = st_weight(t, "f16", heads * w, 5, 1, ST_W_NORMAL);
            s.lora_scale = 0.5f;
        }
        st_add(t, s);
    }
    st_ready(t, true);
}

/* A variant for each format, as a plan has one output matrix. */
static void head_cases(st *t, int variant) {
    static const int32_t vocabs[] = {1, 11, 33, 67, 130, 301};
    const q_format *f = formats[variant];
    const int32_t k = length(f, 1 + variant % 3), vocab = vocabs[variant % 6];
    q_inst s = {.op = Q_OP_HEAD, .out = 1};
    s.x = st_in(t, 1, k, k, ST_MILD);
    s.w = st_weight(t, f->name, vocab, k, 1, variant % 2 ? ST_W_BYTES : ST_W_NORMAL);
    if (variant % 3 == 1) s.b = st_vector(t, vocab, 1, 0, 2);
    if (variant % 4 == 2) s.softcap = 3.0f, s.scale = 0.25f;
    if (variant % 4 == 3) s.scale = 0.1f;
    st_add(t, s);
    st_ready(t, false);
}

static void sample_cases(st *t, int variant) {
    static lq_sampler knobs[] = {
        {.temperature = 0},
        {.temperature = 1},
        {.temperature = 0.7f, .top_k = 5, .seed = 3},
        {.temperature = 1.3f, .top_p = 0.9f, .seed = 4},
        {.temperature = 0.9f, .min_p = 0.05f, .seed = 5},
        {.temperature = 1.1f, .top_k = 40, .top_p = 0.95f, .min_p = 0.01f, .seed = 6},
        {.temperature = 5.0f, .top_k = 1},
        {.temperature = 0.01f, .top_p = 0.45f}, /* not at a half: two that tie would lie on the edge, see op.h */
    };
    enum { KNOBS = Q_COUNT(knobs), VOCAB = 300, K = 64 };
    q_inst s = {.op = Q_OP_HEAD, .out = 1, .x = st_in(t, 1, K, K, ST_SMALL)};
    s.w = st_weight(t, "f32", VOCAB, K, 1, ST_W_GRID); /* every fifth row repeats another: ties */
    if (variant >= KNOBS) {
        q_weight *b = st_vector(t, VOCAB, 1, 0, 0.1f);
        uint8_t *v = t->blocks[b - t->weights];
        for (int i = 0; i < VOCAB; i++)
            if (variant == KNOBS + 2 || i % 3) q_store32(v + 4 * i, q_f32_bits(-INFINITY)); /* masked; the last: all */
        if (variant == KNOBS + 1) q_store32(v + 4 * 77, q_f32_bits(NAN));
        s.b = b;
    }
    t->sampler = &knobs[variant < KNOBS ? variant : KNOBS - 1 - (variant - KNOBS)];
    t->sampler->size = sizeof(lq_sampler);
    if (variant == KNOBS + 1) t->sampler = &knobs[0];
    st_add(t, s);
    st_add(t, (q_inst){.op = Q_OP_SAMPLE, .out = 1, .x = {0, 0, 1, VOCAB, VOCAB}});
    st_ready(t, false);
}
enum { SAMPLE_VARIANTS = 8 + 3 };

/* ------------------------------------------------------------------------------------------- columns by themselves */

static void glu_cases(st *t, int variant) {
    static const int32_t widths[] = {1, 8, 13, 40, 768};
    for (int kind = Q_ACT_NONE; kind <= Q_ACT_SWIGLU_CLAMP; kind++)
        for (int i = 0; i < 4; i++) { /* gate, in place */
            int32_t w = widths[(kind + i + 2 * variant) % 5];
            if (variant) w = Q_MAX(w, 40); /* 1 + erf cancels: the far end alone would be judged by the last bit of 1 */
            if (kind == Q_ACT_SWIGLU_CLAMP && !(i & 1)) continue;
            q_inst s = {.op = Q_OP_GLU, .kind = (uint8_t)kind, .limit = 3.0f, .alpha = 1.702f};
            s.x = st_in(t, 1 + variant, w, w + variant, variant ? ST_EDGES : i & 2 ? ST_WILD : ST_MILD);
            s.y = i & 2 ? s.x : st_out(t, 1 + variant, w, w);
            if (i & 1) s.z = st_in(t, 1 + variant, w, w + 2 * variant, variant ? ST_PLAIN : ST_WILD);
            s.out = kind % 4 == 1 && i == 1;
            st_add(t, s);
        }
    st_ready(t, true);
}

static void rope_cases(st *t, int variant) {
    t->past = variant == 0 ? 0 : variant == 1 ? 8190 : 1000003;
    for (int kind = Q_ROPE_PAIRS; kind <= Q_ROPE_HALVES; kind++)
        for (int i = 0; i < 6; i++) {
            static const int32_t heads[] = {1, 3, 2, 5, 8, 1}, width[] = {2, 20, 64, 128, 33, 80};
            static const int32_t rot[] = {2, 12, 64, 128, 32, 32};
            q_inst s = {.op = Q_OP_ROPE, .kind = (uint8_t)kind, .rot = rot[i], .mscale = i == 1 ? 1.19f : 0};
            s.freqs = st_angles(t, variant == 2 ? 2 * rot[i] : rot[i], i % 2 ? 10000.0f : 500000.0f);
            s.freq_tables = t->plan.freq_tables = variant == 2 ? 2 : 1; /* two halves of that */
            s.x = st_in(t, heads[i], width[i], width[i] + i % 3, ST_MILD);
            s.y = i & 1 ? st_out(t, heads[i], width[i], width[i] + 1) : s.x;
            s.out = i == 3;
            st_add(t, s);
        }
    st_ready(t, true);
}

static void scale_cases(st *t, int variant) {
    static const int32_t widths[] = {1, 24, 75, 260};
    (void)variant;
    for (int mask = 0; mask < 32; mask++) { /* scale, gate, cap, add, in place */
        const int32_t w = widths[(mask + mask / 4) % 4], heads = 1 + mask % 3;
        q_inst s = {.op = Q_OP_SCALE, .add = (mask & 8) != 0, .out = mask == 7 || mask == 8};
        s.x = st_in(t, heads, w, w + mask % 2, mask & 4 ? ST_EDGES : ST_WILD);
        s.y = mask & 16 ? s.x : st_out(t, heads, w, w);
        if (mask & 1) s.scale = 2.5f;
        if (mask & 2) s.z = st_in(t, 1, 1, 1, ST_PLAIN);
        if (mask & 4) s.softcap = 1.5f;
        st_add(t, s);
    }
    st_ready(t, true);
}

/* ------------------------------------------------------------------------------------------------------- attention */

/* Stored, and attended to, in pools of every shape and form; variants for the length of the past. `prefix`: how much of
 * the keys is values, where they are a part of these: whole turns. */
enum { PAGED_VARIANTS = 6 };
static void paged_cases(st *t, int variant) {
    static const int32_t pasts[PAGED_VARIANTS] = {0, 31, 140, 31, 140, 62};
    static const struct {
        int32_t layers, heads, k, v, window, sinks, prefix;
        const char *k_form, *v_form;
    } sets[][ST_POOLS] = {
        {{2, 2, 40, 24, 0, 0, 0, "f16", "f16"}, {1, 3, 64, 64, 0, 7, 0, "f32", "f32"},
         {2, 1, 70, 0, 20, 5, 51, "f16", "f16"}},
        {{2, 2, 64, 96, 0, 0, 0, "q8_0", "q8_0"}, {1, 3, 128, 64, 0, 0, 0, "q4_0", "q4_0"},
         {2, 1, 96, 0, 20, 33, 51, "q5_1", "q5_1"}},
        {{2, 2, 37, 24, 9, 1, 0, "bf16", "f32"}, {1, 2, 160, 32, 0, 0, 0, "f16", "q4_0"},
         {2, 1, 96, 0, 0, 0, 64, "q4_0", "q4_0"}},
        {{2, 2, 32, 64, 0, 0, 0, "q5_1", "q8_0"}, {1, 2, 96, 33, 40, 9, 0, "q4_0", "bf16"},
         {1, 1, 576, 0, 0, 0, 512, "q8_0", "q8_0"}},
    };
    const int set = Q_MAX(variant - 2, 0);
    _Static_assert(Q_COUNT(sets) == PAGED_VARIANTS - 2, "the first three pasts share a set");
    t->past = pasts[variant];
    for (int32_t p = 0; p < ST_POOLS; p++) {
        const int32_t heads = sets[set][p].heads, k = sets[set][p].k, v = sets[set][p].v, window = sets[set][p].window;
        st_pool(t, sets[set][p].layers, heads, k, v, sets[set][p].k_form, sets[set][p].v_form, window);
        t->pools[p].sink_tokens = window ? sets[set][p].sinks : 0;
        for (int32_t layer = sets[set][p].layers - 1; layer >= 0; layer--) {
            const st_fill fill = layer == 1 ? ST_BITS : ST_PLAIN;
            q_inst s = {.op = Q_OP_KV_PUT, .kv_group = p, .kv_layer = layer, .x = st_in(t, heads, k, k + 1, fill)};
            if (v) s.z = st_in(t, heads, v, v + 3, fill);
            st_add(t, s);
        }
        for (int i = 0; i < 6; i++) {
            const int32_t queries = heads * (1 + (i + p) % 4), width = v ? v : i % 2 ? k : sets[set][p].prefix;
            q_inst s = {.op = Q_OP_ATTN, .kv_group = p, .window = window, .scale = 1.0f / sqrtf((float)k)};
            s.sink_tokens = sets[set][p].sinks;
            s.x = st_in(t, queries, k, k + i % 2, ST_PLAIN), s.y = st_out(t, queries, width, width + i % 3);
            if (i == 1 || i == 4) s.kind = Q_ATTN_ALIBI;
            if (i == 4) s.alpha = 4, s.softcap = 2.0f;
            if (i == 2) s.w = st_vector(t, queries, 1, 0.5f, 1);
            if (i == 3) s.softcap = 3.0f;
            if (i == 5) s.scale = 0; /* one */
            st_add(t, s);
        }
    }
    st_ready(t, false);
}

/* Keys and values are operands: all columns of the sequence, in both directions. */
static void attn_cases(st *t, int variant) {
    if (variant < PAGED_VARIANTS) {
        paged_cases(t, variant);
        return;
    }
    t->past = 5;
    for (int i = 0; i < 8; i++) {
        const int32_t kv = 1 + i % 3, queries = kv * (1 + i % 2), k = 16 + 13 * i, v = i == 5 ? 10 : k + (i % 2) * 3;
        q_inst s = {.op = Q_OP_ATTN, .scale = 0.2f};
        s.x = st_in(t, queries, k, k + 1, ST_PLAIN), s.z = st_in(t, kv, k, k + 2, ST_PLAIN);
        s.y = st_out(t, queries, v, v);
        if (i != 5 && i != 6) s.v = st_in(t, kv, v, v + 1, ST_PLAIN);
        if (i == 6) s.y.width = k, s.y = st_out(t, queries, k, k + 4);
        if (i % 3 == 1) s.kind = Q_ATTN_ALIBI;
        if (i == 3) s.w = st_vector(t, queries, 1, 0, 2);
        if (i == 4) s.softcap = 2.5f;
        st_add(t, s);
    }
    st_ready(t, true);
}

/* --------------------------------------------------------------------------------------------------------- experts */

static void route_cases(st *t, int variant) {
    static const int32_t experts[] = {1, 5, 12, 64, 128}, used[] = {1, 3, 4, 6, 8};
    for (uint32_t f = 0; variant == 0 && f < q_format_count(); f++) { /* formats */
        const int32_t k = length(formats[f], 2);
        q_inst s = {.op = Q_OP_ROUTE, .kind = (uint8_t)(f % 3), .n_expert = 8, .n_used = 2, .n_groups = 0};
        s.x = st_in(t, 1, k, k, ST_SMALL), s.y = st_out(t, 1, 4, 4);
        s.w = st_weight(t, formats[f]->name, 8, k, 1, ST_W_NORMAL);
        st_add(t, s);
    }
    for (int i = 0; variant == 1 && i < 30; i++) { /* options, with logits that are exact */
        const int32_t n = experts[i % 5], u = used[i % 5], k = 48;
        q_inst s = {.op = Q_OP_ROUTE, .kind = (uint8_t)(i % 3), .n_expert = n, .n_used = u, .renorm = (i & 4) != 0};
        s.x = st_in(t, 1, k, k, i % 7 == 3 ? ST_MILD : ST_GRID), s.y = st_out(t, 1, 2 * u, 2 * u);
        if (i % 7 == 3) s.n_expert = 1, s.n_used = 1, s.y = st_out(t, 1, 2, 2);
        s.w = st_weight(t, i & 1 ? "f32" : "f16", s.n_expert, k, 1, ST_W_GRID);
        if (i & 2) s.scale = 2.5f;
        if (i & 8) s.b = st_vector(t, s.n_expert, 1, 0.5f, 0);
        if (s.kind == Q_ROUTE_SIGMOID && i & 1) s.b2 = st_vector(t, s.n_expert, 1, 0, 0.5f);
        if (s.n_expert >= 12 && i >= 10) s.n_groups = 4, s.n_groups_used = 2;
        s.out = i == 6;
        st_add(t, s);
    }
    st_ready(t, true);
}

static void moe_glu_cases(st *t, int variant) {
    enum { EXPERTS = 5, USED = 2 };
    for (uint32_t f = 0; variant < 2 && f < q_format_count(); f++) {
        if (!has_turn(f, variant)) continue;
        const q_format *g = formats[(f + 5) % q_format_count()];
        const int32_t k = formats[f]->weights == 1 && g->weights == 1 ? 37 : Q_MAX(formats[f]->weights, g->weights);
        const int32_t rows = 5 + (int32_t)f * 3;
        q_inst s = {.op = Q_OP_MOE_GLU, .kind = Q_ACT_SILU, .n_expert = EXPERTS, .n_used = USED};
        s.x = st_in(t, 1, k, k, ST_MILD), s.y = st_out(t, USED, rows, rows + 1);
        s.z = st_choice(t, USED, EXPERTS, f % 4 == 3 ? ST_NOISE : ST_CHOICE);
        s.w = st_weight(t, formats[f]->name, rows, k, EXPERTS, variant ? ST_W_BYTES : ST_W_NORMAL);
        if (variant == 0 || f % 2) s.w2 = st_weight(t, g->name, rows, k, EXPERTS, variant ? ST_W_BYTES : ST_W_NORMAL);
        st_add(t, s);
    }
    for (int i = 0; variant == 2 && i < 16; i++) { /* kinds, gate, biases */
        const int32_t rows = 3 + 2 * i, used = 1 + i % 3;
        q_inst s = {.op = Q_OP_MOE_GLU, .kind = (uint8_t)(i / 2), .n_expert = EXPERTS, .n_used = used, .limit = 2,
                    .alpha = 1.5f, .out = i == 3};
        s.x = st_in(t, 1, 64, 64, ST_MILD), s.y = st_out(t, used, rows, rows);
        s.z = st_choice(t, used, EXPERTS, ST_CHOICE);
        s.w = st_weight(t, i % 3 ? "q4_0" : "bf16", rows, 64, EXPERTS, ST_W_NORMAL);
        if (i & 1 || s.kind == Q_ACT_SWIGLU_CLAMP) s.w2 = st_weight(t, "q8_0", rows, 64, EXPERTS, ST_W_NORMAL);
        if (i % 4 > 1) s.b = st_vector(t, rows, EXPERTS, 0, 2);
        if (i % 4 > 1 && s.w2) s.b2 = st_vector(t, rows, EXPERTS, 0, 2);
        st_add(t, s);
    }
    st_ready(t, true);
}

static void moe_down_cases(st *t, int variant) {
    enum { EXPERTS = 6 };
    for (uint32_t f = 0; f < q_format_count(); f++) {
        if (!has_turn(f, variant)) continue;
        const int32_t k = length(formats[f], 1 + (int)f % 2), rows = 4 + (int32_t)f * 3, used = 1 + (int32_t)f % 4;
        q_inst s = {.op = Q_OP_MOE_DOWN, .n_expert = EXPERTS, .n_used = used, .add = f % 3 == 1, .out = f % 5 == 4};
        s.x = st_in(t, used, k, k + 1, ST_MILD), s.y = st_out(t, 1, rows, rows);
        s.z = st_choice(t, used, EXPERTS, f % 4 == 3 ? ST_NOISE : ST_CHOICE);
        s.w = st_weight(t, formats[f]->name, rows, k, EXPERTS, variant ? ST_W_BYTES : ST_W_NORMAL);
        if (f % 2) s.b = st_vector(t, rows, EXPERTS, 0, 2);
        st_add(t, s);
    }
    st_ready(t, true);
}

/* -------------------------------------------------------------------------------------------------- recurrent steps */

static void conv_cases(st *t, int variant) {
    static const char *const floats[] = {"f32", "f16", "bf16"};
    t->past = variant ? 7 : 0;
    for (int i = 0; i < 9; i++) {
        static const int32_t taps[] = {4, 1, 2, 3, 5, 4, 4, 8, 4}, width[] = {24, 7, 1, 65, 10, 33, 128, 5, 300};
        const int32_t heads = 1 + i % 3, channels = heads * width[i];
        q_inst s = {.op = Q_OP_CONV, .kind = i % 2 ? Q_ACT_SILU : Q_ACT_NONE, .taps = taps[i]};
        s.x = st_in(t, heads, width[i], width[i] + i % 2, ST_MILD);
        s.y = i % 4 == 3 ? s.x : st_out(t, heads, width[i], width[i]);
        s.w = st_weight(t, floats[(i + variant) % 3], channels, taps[i], 1, ST_W_NORMAL);
        if (i & 2) s.b = st_vector(t, channels, 1, 0, 1);
        if (taps[i] > 1) s.state = st_state(t, channels * (taps[i] - 1));
        st_add(t, s);
    }
    st_ready(t, false);
}

static void scan_cases(st *t, int variant) {
    t->past = variant ? 9 : 0;
    for (int i = 0; i < 6; i++) {
        static const int32_t heads[] = {1, 4, 4, 6, 2, 8}, q[] = {1, 2, 4, 3, 1, 4}, k[] = {1, 2, 1, 6, 2, 8};
        static const int32_t kw[] = {8, 16, 5, 33, 128, 20}, vw[] = {8, 12, 7, 40, 96, 20};
        const int32_t h = heads[i];
        q_inst s = {.op = Q_OP_SCAN, .scale = i % 2 ? 0.25f : 0};
        s.x = st_in(t, q[i], kw[i], kw[i] + 1, ST_SMALL), s.z = st_in(t, k[i], kw[i], kw[i] + 2, ST_SMALL);
        s.v = st_in(t, h, vw[i], vw[i] + i % 3, ST_PLAIN), s.u = st_in(t, 2, h, h + i % 2, ST_PLAIN);
        s.y = i == 5 ? s.v : st_out(t, h, vw[i], vw[i] + 1);
        s.w = st_vector(t, h, 1, -0.7f, 0.2f);
        if (i != 2) s.b = st_vector(t, h, 1, 0.5f, 0.5f);
        s.state = st_state(t, h * kw[i] * vw[i]);
        st_add(t, s);
    }
    st_ready(t, false);
}

/* ----------------------------------------------------------------------------------------------------------- table */

/* The cases of each operation; HEAD has a variant for each format. */
static const struct {
    q_op op;
    void (*make)(st *t, int variant);
    int variants;
} cases[] = {
    {Q_OP_EMBED, embed_cases, EMBED_VARIANTS},
    {Q_OP_NORM, norm_cases, 2},
    {Q_OP_HEADNORM, headnorm_cases, 2},
    {Q_OP_MATMUL, matmul_cases, MATMUL_VARIANTS},
    {Q_OP_GLU, glu_cases, 2},
    {Q_OP_ROPE, rope_cases, 3},
    {Q_OP_KV_PUT, paged_cases, 0}, /* with ATTN */
    {Q_OP_ATTN, attn_cases, PAGED_VARIANTS + 1},
    {Q_OP_ROUTE, route_cases, 2},
    {Q_OP_MOE_GLU, moe_glu_cases, 3},
    {Q_OP_MOE_DOWN, moe_down_cases, 2},
    {Q_OP_CONV, conv_cases, 2},
    {Q_OP_SCAN, scan_cases, 2},
    {Q_OP_SCALE, scale_cases, 1},
    {Q_OP_COPY, copy_cases, 1},
    {Q_OP_HEAD, head_cases, -1},
    {Q_OP_SAMPLE, sample_cases, SAMPLE_VARIANTS},
};

static int variants_of(size_t i) { return cases[i].variants < 0 ? (int)q_format_count() : cases[i].variants; }

/* Columns and wanted columns: every regime, and back again. */
static const struct { int32_t n, n_out; } runs[] = {{65, 9}, {1, 0}, {1, 1}, {2, 1}, {8, 8},
                                                    {9, 0}, {9, 5}, {33, 9}, {1, 1}};

/* A plan, and what kernels/ref makes of each run, once for all devices. */
typedef struct {
    st t;
    bool here; /* on the processor alone */
    st_batch want[Q_COUNT(runs)];
} variant;

static void on_device(st_device *d, void *user) {
    variant *u = (variant *)user;
    st *t = &u->t;
    st_program p;
    st_batch a, b;
    if (u->here && !d->be->host_memory) return;
    st_compile(&p, t, d, 0);
    for (size_t i = 0; i < Q_COUNT(runs); i++) st_check_against(&p, &u->want[i]);
    st_batch_open(&a, t, 33, 9, 1);
    st_batch_open(&b, t, 33, 9, 1);
    ck_assert_int_eq(st_run(&p, &a), LQ_OK);
    ck_assert_int_eq(st_run(&p, &b), LQ_OK);
    ck_assert_msg(st_same(t, &a, &b), "%s: other bits from run to run", d->be->name);
    st_batch_free(&a);
    st_batch_free(&b);
    st_release(&p);
}

enum { VARIANTS_MOST = 64 }; /* each variant is a test of its own, with its own time */

START_TEST(operation_keeps_its_bound) {
    const int i = _i / VARIANTS_MOST, v = _i % VARIANTS_MOST;
    static variant u;
    bool there = false;
    u.here = v > 0 && (T_SLOW || t_emulated()); /* a device of its own compiles its shaders anew for each variant */
    st_open(&u.t, 1 + (uint64_t)(i * 100 + v));
    cases[i].make(&u.t, v);
    for (int32_t s = 0; s < u.t.n_insts; s++) there |= u.t.insts[s].op == cases[i].op;
    ck_assert_msg(there, "%s, variant %d: no step of it", q_ops[cases[i].op].name, v);
    for (size_t r = 0; r < Q_COUNT(runs); r++) {
        st_batch_open(&u.want[r], &u.t, runs[r].n, runs[r].n_out, (int)r);
        st_reference(&u.t, &u.want[r]);
    }
    st_each_device(on_device, &u);
    st_each_rung(on_device, &u);
    for (size_t r = 0; r < Q_COUNT(runs); r++) st_batch_free(&u.want[r]);
    st_free(&u.t);
}
END_TEST

/* Every operation has cases, and every format stands as the weights of every operation that decodes a matrix. */
START_TEST(nothing_is_left_out) {
    static bool seen[Q_OP_COUNT][64];
    static st t;
    int of_op[Q_OP_COUNT] = {0};
    ck_assert_uint_le(q_format_count(), 64);
    for (size_t i = 0; i < Q_COUNT(cases); i++)
        for (int v = 0; v < variants_of(i); v++) {
            st_open(&t, 1);
            cases[i].make(&t, v);
            for (int32_t j = 0; j < t.n_insts; j++) {
                const q_inst *s = &t.insts[j];
                of_op[s->op]++;
                for (uint32_t f = 0; f < q_format_count(); f++) seen[s->op][f] |= s->w && s->w->format == formats[f];
            }
            st_free(&t);
        }
    static const q_op matrices[] = {Q_OP_EMBED, Q_OP_MATMUL, Q_OP_HEAD, Q_OP_ROUTE, Q_OP_MOE_GLU, Q_OP_MOE_DOWN};
    for (int op = 0; op < Q_OP_COUNT; op++) ck_assert_msg(of_op[op] > 0, "%s: no case", q_ops[op].name);
    for (size_t i = 0; i < Q_COUNT(matrices); i++)
        for (uint32_t f = 0; f < q_format_count(); f++)
            ck_assert_msg(seen[matrices[i]][f], "%s: no case in %s", q_ops[matrices[i]].name, formats[f]->name);
}
END_TEST

START_TEST(backends_without_a_device_say_so) {
    bool none = false;
    for (uint32_t b = 0; b < q_backend_count(); b++)
        if (q_backends[b]->probe() == 0) {
            printf("%s%s", none ? ", " : "SKIP: no device: ", q_backends[b]->name);
            none = true;
        }
    if (none) printf("\n");
    fflush(stdout);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("backend");
    TCase *t = tcase_create("backend");
    tcase_set_timeout(t, 240);
    tcase_add_test(t, backends_without_a_device_say_so);
    tcase_add_test(t, nothing_is_left_out);
    suite_add_tcase(s, t);
    for (int i = 0; i < (int)Q_COUNT(cases); i++) { /* CK_RUN_CASE=MATMUL picks one */
        TCase *of_op = tcase_create(q_ops[cases[i].op].name);
        tcase_set_timeout(of_op, 240);
        const int first = i * VARIANTS_MOST; /* slow builds: every third format or mixture */
        const int step = variants_of((size_t)i) > 6 && (T_SLOW || t_emulated()) ? 3 : 1;
        for (int v = 0; v < variants_of((size_t)i); v += step)
            tcase_add_loop_test(of_op, operation_keeps_its_bound, first + v, first + v + 1);
        suite_add_tcase(s, of_op);
    }
    return s;
}
HARNESS_MAIN(suite)
