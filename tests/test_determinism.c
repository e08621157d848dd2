/* test_determinism.c: a sequence's logits are the same bits for any number of threads and however its tokens are cut
 * into calls and passes: for each format, from packed weights, from the file's bytes and from weights that are packed
 * on the way, with quantized and with float32 activations, with the best kernels and with those of each family's first
 * rung. What kernels/ref defines as one order of summation, a whole program of thread pool, phases, claims, kernels for
 * few columns and for many has to keep.
 *
 * The model is random and small, but whole: rows that fill blocks of 256, four heads to two, and enough tokens for
 * three of attention's blocks of keys, the last one partly filled. */
#include "harness.h"
#include "help_model.h"

#include "../kernels/cpu/cpu.h"
#include "../libquant/format.h"

enum { TOKENS = 549, WIDTH = 256, FFN = 512, KV = 128 };

static int32_t ids[TOKENS];

static const char *model_path(const char *format, char *path, size_t n) {
    char name[64];
    snprintf(name, sizeof name, "%s.gguf", format);
    return t_path(path, n, t_tmp(), name);
}

static void write_model(const char *format) {
    static tiny t;
    static const struct { const char *name; uint64_t k, rows;
    } shapes[] = {{"attn_norm", WIDTH, 1},  {"attn_q", WIDTH, WIDTH},      {"attn_k", WIDTH, KV},
                  {"attn_v", WIDTH, KV},    {"attn_output", WIDTH, WIDTH}, {"ffn_norm", WIDTH, 1},
                  {"ffn_gate", WIDTH, FFN}, {"ffn_up", WIDTH, FFN},        {"ffn_down", FFN, WIDTH}};
    char path[4096], name[64];
    tiny_init(&t, format);
    tiny_u32(&t, "llama.context_length", 1024);
    tiny_u32(&t, "llama.embedding_length", WIDTH);
    tiny_u32(&t, "llama.feed_forward_length", FFN);
    tiny_u32(&t, "llama.rope.dimension_count", WIDTH / 4);
    tiny_tensor(&t, "token_embd.weight")->shape[0] = WIDTH;
    tiny_tensor(&t, "output.weight")->shape[0] = WIDTH;
    tiny_tensor(&t, "output_norm.weight")->shape[0] = WIDTH;
    for (int l = 0; l < 2; l++)
        for (size_t i = 0; i < Q_COUNT(shapes); i++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, shapes[i].name);
            q_out_tensor *x = tiny_tensor(&t, name);
            x->shape[0] = shapes[i].k, x->shape[1] = shapes[i].rows;
        }
    tiny_write(&t, model_path(format, path, sizeof path));
}

/* A way through the tokens: one call of `first`, then calls of `piece`, all in passes of at most `batch`. More threads
 * than processors wait for one another to be woken, at each barrier: they get few passes. */
typedef struct way { uint32_t threads, first, piece, batch; } way;

/* Pieces of 1 are decoding; 8 and 9 lie on either side of what counts as few columns, 24 to 64 where kernels change
 * over to panels. */
static const way ways[] = {{1, 450, 1, 512},   {8, 545, 1, 512},  {1, 300, 7, 512},   {2, 501, 8, 512},
                           {3, 531, 9, 512},   {1, 400, 17, 16},  {5, 500, 24, 512},  {2, 450, 33, 512},
                           {6, 453, 48, 512},  {4, 421, 64, 512}, {7, 300, 100, 100}, {2, 127, 127, 512},
                           {3, 256, 256, 512}, {8, 512, 512, 512}};
/* Passes short enough, and calls enough, to be evaluated while weights are packed. */
static const way later_ways[] = {{1, 30, 24, 512}, {8, 200, 9, 512}, {3, 33, 48, 512}};
static const way few_ways[] = {{1, 430, 9, 512}, {2, 540, 1, 512}, {3, 33, 127, 512}};

static uint32_t hash_of(lq_model *m, way w, const char *act) {
    const lq_session_options o = {
        .size = sizeof o, .context = 576, .batch = w.batch, .max_logits = 1, .threads = w.threads, .activations = act};
    lq_session *s;
    ck_assert_msg(lq_session_open(m, &o, &s) == LQ_OK, "%s", lq_error_detail());
    for (uint32_t at = 0, n = w.first; at < TOKENS; at += n, n = Q_MIN(w.piece, TOKENS - at))
        ck_assert_msg(t_decode(s, ids + at, n, n - 1) == LQ_OK, "%s", lq_error_detail());
    lq_stats st = {.size = sizeof st};
    lq_session_stats(s, &st);
    lq_session_close(s);
    ck_assert_uint_ne(st.last_logits_hash, 0);
    return st.last_logits_hash;
}

static void check_ways(lq_model *m, const way *list, size_t n, const char *act, const char *what) {
    const uint32_t want = hash_of(m, (way){1, TOKENS, 1, 512}, act);
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(hash_of(m, list[i], act) == want,
                      "%s, activations %s: other bits with %u threads, %u tokens, then %u a call, %u a pass", what,
                      act ? act : "as kernels want", list[i].threads, list[i].first, list[i].piece, list[i].batch);
}

/* A model of its own for each: packed between the passes of one session. */
static void check_later(lq_ctx *c, const char *path, lq_model_options o, lq_model *m, const char *what) {
    const uint32_t want = hash_of(m, (way){1, TOKENS, 1, 512}, NULL);
    o.pack_at_open = 0;
    for (size_t i = 0; i < Q_COUNT(later_ways); i++) {
        lq_model *later;
        ck_assert_msg(lq_model_open(c, path, &o, &later) == LQ_OK, "%s", lq_error_detail());
        ck_assert_msg(hash_of(later, later_ways[i], NULL) == want,
                      "%s as it runs: other bits with %u threads, %u tokens, then %u a call", what,
                      later_ways[i].threads, later_ways[i].first, later_ways[i].piece);
        lq_model_close(later);
    }
}

/* What loads a format: its file, or a file in F16 for formats that GGUF has no number for. */
static const char *load_as(const q_format *f) {
    if (q_format_gguf_id(f) >= 0) return NULL;
    return strcmp(f->name, "nf4_dq") == 0 ? "nf4-dq" : strcmp(f->name, "i8_row") == 0 ? "int8" : f->name;
}

static void check_format(const q_format *f, const char *isa, const way *list, size_t n) {
    char path[4096], what[256];
    const lq_options co = {.size = sizeof co, .threads = 1, .isa = isa};
    const char *as = load_as(f), *source = as ? "f16" : f->name;
    lq_ctx *c;
    ck_assert_msg(lq_open(&co, &c) == LQ_OK, "%s", lq_error_detail());
    write_model(source);
    for (uint32_t no_pack = 0; no_pack < 2; no_pack++) {
        const lq_model_options o = {.size = sizeof o, .no_pack = no_pack, .pack_at_open = 1, .load_as = as};
        lq_plan_info plan = {.size = sizeof plan};
        lq_model *m;
        ck_assert_msg(lq_model_open(c, model_path(source, path, sizeof path), &o, &m) == LQ_OK, "%s",
                      lq_error_detail());
        ck_assert_int_eq(lq_model_plan(m, NULL, &plan), LQ_OK);
        ck_assert(!no_pack || plan.packed == 0);
        snprintf(what, sizeof what, "%s, %s, %s", f->name, isa ? isa : "best kernels",
                 plan.packed ? "packed" : "not packed");
        if (no_pack || plan.packed) check_ways(m, list, n, NULL, what);
        if (plan.packed) check_later(c, path, o, m, what);
        if (no_pack) check_ways(m, few_ways, Q_COUNT(few_ways), "f32", what);
        lq_model_close(m);
    }
    lq_close(c);
    remove(path);
}

static void setup(void) {
    uint64_t seed = 11;
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)(3 + t_rand(&seed) % 259);
}

START_TEST(best_kernels) {
    if (t_emulated()) T_SKIP("an emulator does not decode 549 tokens some forty times over");
    check_format(q_formats[_i], NULL, T_SLOW ? few_ways : ways, T_SLOW ? Q_COUNT(few_ways) : Q_COUNT(ways));
}
END_TEST

/* The first rung of this processor's family, with what it stands on. */
START_TEST(first_rung) {
    if (t_emulated()) T_SKIP("an emulator does not decode 549 tokens some forty times over");
    if (Q_ISA_COUNT < 2 || !q_isa_present((q_isa)1)) T_SKIP("this processor has no rung but the scalar one");
    check_format(q_formats[_i], q_isa_names[1], few_ways, Q_COUNT(few_ways));
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("determinism");
    TCase *t = tcase_create("determinism");
    const int formats = t_emulated() ? 1 : (int)q_format_count(); /* one skip is enough */
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_loop_test(t, best_kernels, 0, formats);
    tcase_add_loop_test(t, first_rung, 0, formats);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
