/* test_phases.c: how the CPU backend shares out the steps of a layer, for the layer shapes that model families have:
 * the same bits whether threads share a step or each does it for itself, and how many barriers a layer then has. Then
 * attention over several blocks of keys, which threads share out by blocks: the same bits as one thread has. */
#include "harness.h"
#include "help_kv.h"

#include "../kernels/cpu/cpu.h"

extern const q_backend q_backend_cpu;

enum { DIM = 64, HEADS = 4, KV = 2, HEAD = 16, FF = 96, VOCAB = 50, LAYERS = 2, CONTEXT = 64, TOKENS = 40 };
enum { EXPERTS = 4, USED = 2 };
enum { Q_ALL = HEADS * HEAD, KV_ALL = HEADS * HEAD }; /* room for as many KV heads as there are heads */
enum { S_X = 1, S_H, S_QKV, S_K, S_V, S_Y, S_G, S_U, S_R, S_O, SLOTS };
enum {
    QK_NORM = 1,   /* norms of the heads of queries and keys */
    POST_NORM = 2, /* what attention and feed-forward give is normed before it is added */
    PARALLEL = 4,  /* feed-forward reads what attention reads */
    EXPERT = 8,    /* a router and experts */
    IN_PLACE = 16, /* attention overwrites its queries */
    FUSED = 32,    /* queries, keys and values are parts of one slot */
    PARTIAL = 64,  /* a later step reads more than the norm wrote */
    /* Of attention over several blocks: */
    ONE_KV = 128,   /* all query heads read one KV head */
    OWN_KV = 256,   /* each has its own */
    WINDOW = 512,   /* a query sees the last SEEN positions */
    ALIBI = 1024,
    CAPPED = 2048,
    SINKS = 4096,       /* learned ones */
    /* The first tokens stay in sight: */
    FEW_FIRST = 8192,   /* in a block that no window reaches */
    MANY_FIRST = 16384, /* up to one that windows begin in; those of the first 900 positions reach them */
    ALL_FIRST = 32768   /* those of the prompt, behind which each token sees itself alone */
};
enum { SEEN = 300, LONG = 1100, PROMPT = 1001 }; /* the fifth block begins behind the prompt */

typedef struct model {
    q_inst insts[64];
    q_weight weights[64];
    int32_t n_insts, n_weights, widths[SLOTS], kv;
    float freqs[HEAD / 2];
    q_kv_pool pool;
    q_segment segment;
    q_plan plan;
    uint64_t seed;
} model;

static const q_weight *matrix(model *m, const char *format, int32_t rows, int32_t k, int32_t matrices) {
    q_weight *w = &m->weights[m->n_weights++];
    const q_format *f = q_format_find(format);
    uint64_t row_bytes;
    float row[FF];
    ck_assert(q_row_bytes(f, (uint64_t)k, &row_bytes));
    uint8_t *data = (uint8_t *)malloc(row_bytes * (uint64_t)(rows * matrices));
    for (int32_t r = 0; r < rows * matrices; r++) {
        for (int32_t i = 0; i < k; i++) row[i] = t_normal(&m->seed) * 0.1f + (rows == 1 ? 1.0f : 0.0f);
        q_encode_row(f, row, NULL, false, k, data + (uint64_t)r * row_bytes);
    }
    *w = (q_weight){.format = f, .data = data, .row_bytes = row_bytes, .matrix_bytes = row_bytes * (uint64_t)rows,
                    .rows = rows, .k = k, .matrices = matrices, .name = format};
    return w;
}

static q_view part(int32_t slot, int32_t offset, int32_t heads, int32_t width) {
    return (q_view){slot, offset, heads, width, width};
}
static q_inst *step(model *m, q_op op, int32_t layer, q_view y, q_view x) {
    q_inst *s = &m->insts[m->n_insts++];
    *s = (q_inst){.op = (uint8_t)op, .layer = layer, .y = y, .x = x, .eps = 1e-5f};
    return s;
}
static void product(model *m, int32_t layer, q_view y, q_view x, const char *format, uint8_t group, uint8_t add) {
    q_inst *s = step(m, Q_OP_MATMUL, layer, y, x);
    s->w = matrix(m, format, y.heads * y.width, x.width, 1), s->group = group, s->add = add;
}
static void norm(model *m, int32_t layer, q_view y, q_view x, uint8_t add) {
    q_inst *s = step(m, y.heads > 1 ? Q_OP_HEADNORM : Q_OP_NORM, layer, y, x);
    s->w = matrix(m, "f32", 1, y.width, 1), s->add = add;
}
static void rope(model *m, int32_t layer, q_view v) {
    q_inst *s = step(m, Q_OP_ROPE, layer, v, v);
    s->rot = HEAD, s->freqs = m->freqs;
}

static void add_attention(model *m, int32_t l, int shape) {
    const bool fused = shape & FUSED;
    const q_view h = part(S_H, 0, 1, DIM), x = part(S_X, 0, 1, DIM), q = part(S_QKV, 0, HEADS, HEAD);
    const q_view k = fused ? part(S_QKV, Q_ALL, m->kv, HEAD) : part(S_K, 0, m->kv, HEAD);
    const q_view v = fused ? part(S_QKV, Q_ALL + KV_ALL, m->kv, HEAD) : part(S_V, 0, m->kv, HEAD);
    const q_view y = shape & IN_PLACE ? q : part(S_Y, 0, HEADS, HEAD);
    norm(m, l, h, x, 0);
    product(m, l, q, h, "q8_0", 1, 0);
    product(m, l, k, h, "f16", 1, 0);
    product(m, l, v, h, "q4_0", 1, 0);
    if (shape & QK_NORM) norm(m, l, q, q, 0), norm(m, l, k, k, 0);
    rope(m, l, q);
    rope(m, l, k);
    q_inst *s = step(m, Q_OP_KV_PUT, l, (q_view){0}, k);
    s->z = v, s->kv_layer = l;
    s = step(m, Q_OP_ATTN, l, y, q);
    s->scale = 0.25f, s->kv_layer = l;
    if (shape & WINDOW) s->window = shape & ALL_FIRST ? 1 : SEEN;
    s->sink_tokens = shape & FEW_FIRST ? 70 : shape & MANY_FIRST ? 600 : shape & ALL_FIRST ? PROMPT + 2 : 0;
    if (shape & ALIBI) s->kind = Q_ATTN_ALIBI;
    if (shape & CAPPED) s->softcap = 2.0f;
    if (shape & SINKS) s->w = matrix(m, "f32", 1, HEADS, 1);
    product(m, l, shape & POST_NORM ? part(S_O, 0, 1, DIM) : x, part(y.slot, 0, 1, Q_ALL), "q8_0", 0,
            !(shape & POST_NORM));
    if (shape & POST_NORM) norm(m, l, x, part(S_O, 0, 1, DIM), 1);
}

static void add_feed_forward(model *m, int32_t l, int shape) {
    const q_view h = part(S_H, 0, 1, DIM), x = part(S_X, 0, 1, DIM), g = part(S_G, 0, 1, FF), u = part(S_U, 0, 1, FF);
    q_inst *s;
    if (shape & PARTIAL) norm(m, l, part(S_H, 0, 1, DIM / 2), part(S_X, 0, 1, DIM / 2), 0);
    else if (!(shape & PARALLEL)) norm(m, l, h, x, 0);
    if (shape & EXPERT) {
        s = step(m, Q_OP_ROUTE, l, part(S_R, 0, 1, 2 * USED), h);
        s->w = matrix(m, "f32", EXPERTS, DIM, 1), s->n_expert = EXPERTS, s->n_used = USED, s->renorm = 1;
        s = step(m, Q_OP_MOE_GLU, l, part(S_G, 0, USED, FF), h);
        s->z = part(S_R, 0, 1, 2 * USED), s->w = matrix(m, "q8_0", FF, DIM, EXPERTS),
        s->w2 = matrix(m, "f16", FF, DIM, EXPERTS);
        s->n_expert = EXPERTS, s->n_used = USED, s->kind = Q_ACT_SILU;
        s = step(m, Q_OP_MOE_DOWN, l, x, part(S_G, 0, USED, FF));
        s->z = part(S_R, 0, 1, 2 * USED), s->w = matrix(m, "q8_0", DIM, FF, EXPERTS);
        s->n_expert = EXPERTS, s->n_used = USED, s->add = 1;
        return;
    }
    product(m, l, g, h, "q8_0", 2, 0);
    product(m, l, u, h, "f16", 2, 0);
    s = step(m, Q_OP_GLU, l, g, g);
    s->z = u, s->kind = Q_ACT_SILU;
    product(m, l, shape & POST_NORM ? part(S_O, 0, 1, DIM) : x, g, l ? "q8_0" : "f16", 0, !(shape & POST_NORM));
    if (shape & POST_NORM) norm(m, l, x, part(S_O, 0, 1, DIM), 1);
}

#define PAGES(context) (((context) + Q_KV_TOKENS - 1) / Q_KV_TOKENS)

static void model_open(model *m, int shape, int32_t context, int32_t tokens) {
    memset(m, 0, sizeof *m);
    m->seed = 11;
    m->kv = shape & ONE_KV ? 1 : shape & OWN_KV ? HEADS : KV;
    const int32_t widths[SLOTS] = {0,     DIM,       DIM, Q_ALL + 2 * KV_ALL, KV_ALL, KV_ALL,
                                   Q_ALL, FF * USED, FF,  2 * USED,           DIM};
    memcpy(m->widths, widths, sizeof widths);
    for (int i = 0; i < HEAD / 2; i++) m->freqs[i] = 1.0f / (float)(1 + i * i);
    step(m, Q_OP_EMBED, -1, part(S_X, 0, 1, DIM), (q_view){0})->w = matrix(m, "f16", VOCAB, DIM, 1);
    for (int32_t l = 0; l < LAYERS; l++) {
        add_attention(m, l, shape);
        add_feed_forward(m, l, shape);
    }
    norm(m, LAYERS, part(S_O, 0, 1, DIM), part(S_X, 0, 1, DIM), 0);
    m->insts[m->n_insts - 1].out = 1;
    q_inst *s = step(m, Q_OP_HEAD, LAYERS, (q_view){0}, part(S_O, 0, 1, DIM));
    s->w = matrix(m, "q8_0", VOCAB, DIM, 1), s->out = 1;
    m->pool = (q_kv_pool){.layers = LAYERS, .heads = m->kv, .pages = (uint32_t)PAGES(context)};
    t_kv_forms(&m->pool, "f16", HEAD, HEAD);
    m->segment.last = m->n_insts;
    m->plan = (q_plan){.insts = m->insts, .n_insts = m->n_insts, .n_layers = LAYERS, .slot_width = m->widths,
                       .n_slots = SLOTS, .columns = tokens, .outs = tokens, .vocab = VOCAB, .kv = &m->pool, .n_kv = 1,
                       .segments = &m->segment, .n_segments = 1, .seqs = 1, .context = context};
}
static void model_close(model *m) {
    for (int32_t i = 0; i < m->n_weights; i++) free((void *)(uintptr_t)m->weights[i].data);
}

/* A request to cancel that comes as the key of the token at `pos` (even, since two lie in an int) is stored in the last
 * layer: its own bits, which were zero, are the request. */
static const int *raised_by(const model *m, const q_buffer *kv, const uint32_t *pages, int32_t pos) {
    const uint8_t *key = q_kv_k(&m->pool, kv->host, pages[pos / Q_KV_TOKENS], LAYERS - 1, 0);
    return (const int *)(const void *)(key + pos % Q_KV_TOKENS * 2);
}

/* Logits of all tokens, `prompt` of them in a first pass, then passes of `columns`; the barriers of the last one.
 * cancel: of every second token behind the prompt, alone in its pass, attention is cancelled first. */
static uint64_t evaluate_or_cancel(const model *m, uint32_t threads, int32_t tokens, int32_t prompt, int32_t columns,
                                   bool cancel, float *logits) {
    static int32_t ids[LONG], pos[LONG], seq[LONG], out[LONG];
    const q_device_options o = {.threads = threads};
    uint32_t pages[PAGES(LONG)];
    const uint32_t *const tables[] = {pages};
    const q_seq_ref ref = {.pages = tables};
    q_device *dev;
    q_buffer kv;
    q_program *p;
    uint64_t before = 0;
    for (uint32_t i = 0; i < m->pool.pages; i++) pages[i] = m->pool.pages - 1 - i;
    ck_assert_int_eq(q_backend_cpu.open(0, &o, &dev), LQ_OK);
    ck_assert_int_eq(q_backend_cpu.alloc(dev, m->pool.page_bytes * m->pool.pages, &kv), LQ_OK);
    ck_assert_int_eq(q_backend_cpu.compile(dev, &m->plan, 0, &kv, NULL, threads, &p), LQ_OK);
    for (int32_t at = 0, n; at < tokens; at += n) {
        n = Q_MIN(at < prompt ? prompt : columns, tokens - at);
        for (int32_t i = 0; i < n; i++) ids[i] = (at + i) * 7 % VOCAB, pos[i] = at + i, out[i] = i;
        q_batch b = {.n = n, .ids = ids, .pos = pos, .seq = seq, .seqs = &ref, .n_seqs = 1, .n_out = n, .out = out,
                     .logits = logits + at * VOCAB};
        if (cancel && at >= prompt && n == 1 && at % 2 == 0) {
            b.cancel = raised_by(m, &kv, pages, at);
            ck_assert_int_eq(*b.cancel, 0);
            ck_assert_int_eq(q_backend_cpu.run(p, &b), LQ_E_CANCELLED);
            ck_assert_int_ne(*b.cancel, 0);
            b.cancel = NULL;
        }
        before = q_backend_cpu.traffic(p).barriers;
        ck_assert_int_eq(q_backend_cpu.run(p, &b), LQ_OK);
    }
    const uint64_t barriers = q_backend_cpu.traffic(p).barriers - before;
    q_backend_cpu.release(p);
    q_backend_cpu.free(dev, &kv);
    q_backend_cpu.close(dev);
    return barriers;
}
static uint64_t evaluate(const model *m, uint32_t threads, int32_t tokens, int32_t prompt, int32_t columns,
                         float *logits) {
    return evaluate_or_cancel(m, threads, tokens, prompt, columns, false, logits);
}

/* Shapes, and the barriers of their two layers when one token is decoded, with the one behind the embedding; the last
 * norm and the output have none between them. */
static const struct { int shape; uint64_t barriers; } shapes[] = {
    {0, 11},                 /* llama: five in a layer */
    {QK_NORM, 11},           /* qwen3 */
    {FUSED, 11},             /* phi-3 */
    {PARALLEL | FUSED, 11},  /* falcon */
    {EXPERT, 11},            /* mixtral */
    {EXPERT | QK_NORM, 11},
    {POST_NORM, 15},         /* gemma-2: the residual is what column steps write */
    {IN_PLACE, 13},          /* threads rope queries that others would overwrite by then */
    /* norms of one slot that another one writes in part: shared, the first with the embedding */
    {PARTIAL, 14},
};

START_TEST(few_columns_have_the_bits_of_many_and_fewer_barriers) {
    static float want[TOKENS * VOCAB], got[TOKENS * VOCAB];
    for (size_t i = 0; i < Q_COUNT(shapes); i++) {
        model m;
        model_open(&m, shapes[i].shape, CONTEXT, TOKENS);
        evaluate(&m, 1, TOKENS, TOKENS, TOKENS, want);
        static const uint32_t counts[] = {1, 2, 3, 8, 16}; /* more threads share more columns' steps */
        for (size_t t = 0; t < Q_COUNT(counts); t++)
            for (int32_t columns = 1; columns <= 5; columns++) {
                const uint32_t threads = counts[t];
                memset(got, 0, sizeof got);
                const uint64_t barriers = evaluate(&m, threads, TOKENS, 0, columns, got);
                ck_assert_msg(memcmp(want, got, sizeof want) == 0, "shape %d, %u threads, %d columns: other bits",
                              shapes[i].shape, threads, columns);
                if (threads > 1 && columns == 1)
                    ck_assert_msg(barriers == shapes[i].barriers, "shape %d: %llu barriers, not %llu", shapes[i].shape,
                                  (unsigned long long)barriers, (unsigned long long)shapes[i].barriers);
            }
        model_close(&m);
    }
}
END_TEST

/* Decoding behind a prompt of several blocks, one to four columns at a time into the fifth block: who takes which block
 * of keys, and who finishes last, changes no bit. */
enum { BLOCK_SHAPES = 11 };
START_TEST(blocks_of_keys_have_the_bits_of_one_thread) {
    static const int of[BLOCK_SHAPES] = {
        0, ONE_KV, OWN_KV, WINDOW, WINDOW | ONE_KV | SINKS, ALIBI | CAPPED, ALIBI | WINDOW | OWN_KV, SINKS,
        WINDOW | FEW_FIRST, WINDOW | MANY_FIRST | ALIBI, WINDOW | ALL_FIRST | SINKS};
    static float want[LONG * VOCAB], got[LONG * VOCAB];
    enum { TOTAL = PROMPT + 40 };
    model m;
    model_open(&m, of[_i], LONG, PROMPT);
    evaluate(&m, 1, TOTAL, PROMPT, 1, want);
    evaluate(&m, 1, TOTAL, 64, 7, got); /* one thread, in other passes */
    ck_assert_msg(memcmp(want, got, TOTAL * VOCAB * sizeof *want) == 0, "shape %d, other passes: other bits", of[_i]);
    for (uint32_t threads = 2; threads <= (t_emulated() ? 3u : 16u); threads += threads < 8 ? 1 : 8) {
        const int32_t columns = threads == 16 ? 4 : threads == 8 ? 2 : 1;
        memset(got, 0, sizeof got);
        const uint64_t barriers = evaluate(&m, threads, TOTAL, PROMPT, columns, got);
        ck_assert_msg(memcmp(want, got, TOTAL * VOCAB * sizeof *want) == 0, "shape %d, %u threads: other bits", of[_i],
                      threads);
        ck_assert_uint_eq(barriers, 11); /* five in a layer, as in short contexts */
    }
    model_close(&m);
}
END_TEST

/* A pass that is cancelled while some blocks of keys are taken and others are not leaves nothing that a later one could
 * take for its own. */
START_TEST(what_was_cancelled_in_attention_changes_no_later_bit) {
#ifdef __SANITIZE_THREAD__
    T_SKIP("the request is a key, which is written as such");
#endif
    static const int of[] = {0, OWN_KV, WINDOW, OWN_KV | WINDOW | FEW_FIRST};
    static float want[LONG * VOCAB], got[LONG * VOCAB];
    enum { TOTAL = PROMPT + 21 };
    for (size_t i = 0; i < Q_COUNT(of); i++) {
        model m;
        model_open(&m, of[i], LONG, PROMPT);
        evaluate(&m, 1, TOTAL, PROMPT, 1, want);
        for (uint32_t threads = 1; threads <= 4; threads++) {
            memset(got, 0, sizeof got);
            evaluate_or_cancel(&m, threads, TOTAL, PROMPT, 1, true, got);
            ck_assert_msg(memcmp(want, got, TOTAL * VOCAB * sizeof *want) == 0, "shape %d, %u threads: other bits",
                          of[i], threads);
        }
        model_close(&m);
    }
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("phases");
    TCase *t = tcase_create("phases");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, few_columns_have_the_bits_of_many_and_fewer_barriers);
    tcase_add_test(t, what_was_cancelled_in_attention_changes_no_later_bit);
    tcase_add_loop_test(t, blocks_of_keys_have_the_bits_of_one_thread, 0, BLOCK_SHAPES);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
