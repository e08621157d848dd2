/* test_rope_files.c: RoPE scaling on its way from a Hugging Face directory into GGUF files: a file turns keys as the
 * directory does, to the bit; its factors are those of transformers (golden/rope_factors.txt, made by
 * golden/make_rope_factors.py); what GGUF has no form for is told or refused, and so are factors that are none. */
#include <math.h>
#include <sys/stat.h>

#include "../libquant/engine.h"
#include "../libquant/json.h"
#include "../libquant/loaders/safetensors.h"
#include "help_session.h"

enum { ORIGINAL = 64, CONTEXT = 512, TEXT = 150, VOCAB = 262, PAIRS = 8, LINE = 1 << 14 };

#define LLAMA3                                                                                                         \
    ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"     \
    "\"original_max_position_embeddings\":64}"
#define LONGROPE(more)                                                                                                 \
    ",\"original_max_position_embeddings\":64,\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,1.05,1.1,1.2,1.3," \
    "1.4,1.5,1.75],\"long_factor\":[1,1.5,2.25,3,4.1,5,6,8.5]" more "}"

static lq_ctx *ctx;
static tiny t;
static char logged[4096];
static char dir[2000], gguf[2000], other[2000];

static void on_log(void *user, lq_log_level level, const char *message) {
    (void)user;
    (void)level;
    const size_t n = strlen(logged);
    snprintf(logged + n, sizeof logged - n, "%s\n", message);
}
static void setup(void) {
    static const lq_allocator alloc = {live_alloc, live_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &alloc, .log = on_log};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    t_path(dir, sizeof dir, t_tmp(), "rope-hf");
    t_path(gguf, sizeof gguf, t_tmp(), "rope-files.gguf");
    t_path(other, sizeof other, t_tmp(), "rope-other");
    t_remove(dir), t_remove(other);
    remove(gguf), remove(other);
    ck_assert_int_eq(mkdir(dir, 0777), 0);
    tiny_init(&t, "f16");
    logged[0] = 0;
}
static void teardown(void) {
    lq_close(ctx);
    t_remove(dir), t_remove(other);
    remove(gguf), remove(other);
}

static void directory(const char *config, uint64_t context) {
    t.config = config;
    tiny_u32(&t, "llama.context_length", context);
    tiny_write_hf(&t, dir);
}
static lq_quantize_result quantized(const char *src, const char *dst, const char *scheme) {
    lq_quantize_result r = {.size = sizeof r};
    const lq_quantize_options o = {.size = sizeof o, .scheme = scheme, .force = 1, .requantize = 1};
    ck_assert_msg(lq_quantize(ctx, src, dst, &o, &r) == LQ_OK, "%s", lq_error_detail());
    return r;
}
static void refused(const char *src, lq_status code, const char *word) {
    const lq_quantize_options o = {.size = sizeof o, .scheme = "q8_0", .requantize = 1};
    const lq_status s = lq_quantize(ctx, src, other, &o, NULL);
    ck_assert_msg(s == code, "%s: %s", lq_status_name(s), s ? lq_error_detail() : "accepted");
    ck_assert_msg(strstr(lq_error_detail(), word) != NULL, "'%s' lacks '%s'", lq_error_detail(), word);
    lq_model *m = NULL;
    if (code == LQ_E_UNSUPPORTED) return; /* the model runs, it is not written */
    ck_assert_int_eq(lq_model_open(ctx, src, NULL, &m), code);
    ck_assert_msg(strstr(lq_error_detail(), word) != NULL, "'%s' lacks '%s'", lq_error_detail(), word);
}
static lq_model *model_of(const char *path) {
    lq_model *m = NULL;
    ck_assert_msg(lq_model_open(ctx, path, NULL, &m) == LQ_OK, "%s", lq_error_detail());
    return m;
}

/* The logits behind the first n tokens of a text. */
static void logits(lq_session *s, uint32_t n, float *out) {
    int32_t ids[CONTEXT];
    const float *row;
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)((i * 37 + i * i * 11 + 3) % VOCAB);
    ck_assert_int_eq(lq_seq_truncate(s, 0, 0), LQ_OK);
    ck_assert_msg(t_decode(s, ids, n, n - 1) == LQ_OK, "%s", lq_error_detail());
    ck_assert_int_eq(lq_logits(s, 0, &row), LQ_OK);
    memcpy(out, row, VOCAB * sizeof *out);
}
/* Of texts that end at these lengths: are all logits of two models the same, or all different? */
static void compare(lq_model *a, lq_model *b, lq_session_options for_b, bool same) {
    static const uint32_t lengths[] = {2, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, TEXT};
    lq_session_options for_a = {.context = for_b.context};
    lq_session *x = t_session(a, for_a), *y = t_session(b, for_b);
    for (size_t i = 0; i < Q_COUNT(lengths); i++) {
        float p[VOCAB], q[VOCAB];
        logits(x, lengths[i], p);
        logits(y, lengths[i], q);
        ck_assert_msg((memcmp(p, q, sizeof p) == 0) == same, "%u tokens: the same bits: %d", lengths[i], !same);
    }
    lq_session_close(x);
    lq_session_close(y);
}

/* A tensor of a file; NULL = it has none. */
static const q_tensor *tensor_of(const q_directory *d, const char *name) {
    return q_directory_tensor(d, q_str_of(name));
}
static q_directory *opened(const char *path) {
    q_directory *d;
    const q_load_options o = {.map = true};
    ck_assert_msg(q_directory_open(path, &o, &d) == LQ_OK, "%s", lq_error_detail());
    return d;
}
static void factors_are(const char *path, const char *name, const float *want, double within) {
    q_directory *d = opened(path);
    const q_tensor *x = tensor_of(d, name);
    ck_assert_msg(x != NULL, "%s has no %s", path, name);
    ck_assert_str_eq(x->type_name, "f32");
    ck_assert_uint_eq(x->rank, 1);
    ck_assert_uint_eq(x->shape[0], PAIRS);
    for (int i = 0; i < PAIRS; i++) {
        float f;
        memcpy(&f, x->data + 4 * i, 4);
        ck_assert_msg(fabs((double)f / (double)want[i] - 1) <= within, "%s: factor %d is %.9g, not %.9g", name, i,
                      (double)f, (double)want[i]);
    }
    q_directory_close(d);
}
static uint32_t scaling_keys(const char *path) {
    q_directory *d = opened(path);
    uint32_t n = 0;
    for (uint32_t i = 0; i < d->n_meta; i++) n += q_str_begins(d->meta[i].key, "llama.rope.scaling.");
    q_directory_close(d);
    return n;
}

/* ------------------------------------------------------------------------------------------------ Llama 3 */

typedef struct golden {
    char name[64], config[LINE], line[LINE];
} golden;
static bool next_case(FILE *f, golden *g) {
    if (!fgets(g->name, sizeof g->name, f)) return false;
    ck_assert_ptr_nonnull(fgets(g->config, LINE, f));
    ck_assert_ptr_nonnull(fgets(g->line, LINE, f));
    return true;
}
static double number(const q_directory *d, const char *key) {
    const q_meta *m = q_directory_meta(d, key);
    ck_assert_msg(m != NULL, "%s", key);
    return m->f;
}

START_TEST(factors_are_those_of_transformers) {
    static golden g;
    FILE *f = fopen("tests/golden/rope_factors.txt", "r");
    uint32_t cases = 0;
    ck_assert_ptr_nonnull(f);
    for (; next_case(f, &g); cases++) {
        const q_json *root;
        q_arena arena = {.alloc = &q_alloc_libc};
        q_hf_meta meta = {.alloc = &q_alloc_libc, .arena = &arena};
        q_rope r;
        ck_assert_int_eq(q_json_parse(&arena, (uint8_t *)g.config, strlen(g.config), 0, "text", &root), LQ_OK);
        ck_assert_int_eq(q_hf_flatten(&meta, root, "", false), LQ_OK);
        const q_directory d = {.names = Q_NAMES_HF, .meta = meta.items, .n_meta = (uint32_t)meta.n};
        const int32_t rot = (int32_t)number(&d, "head_dim");
        ck_assert_int_eq(q_rope_read(&d, "", (uint32_t)number(&d, "max_position_embeddings"), rot, &arena, &r), LQ_OK);
        ck_assert_int_eq(q_rope_make(&r, number(&d, "rope_theta"), rot, &arena), LQ_OK);
        const float *got = q_rope_made(&r, Q_MADE_ROPE_FREQS);
        ck_assert_ptr_nonnull(got);
        char *at = g.line;
        for (int32_t i = 0; i < rot / 2; i++) {
            const double want = strtod(at, &at);
            ck_assert_msg(fabs((double)got[i] / want - 1) < 1e-6, "%s: factor %d is %.9g, not %.9g", g.name, i,
                          (double)got[i], want);
        }
        q_delete(&q_alloc_libc, meta.items);
        q_arena_free(&arena);
    }
    ck_assert_uint_ge(cases, 4);
    fclose(f);
}
END_TEST

/* The first of the golden cases is this model's. */
static void golden_factors(float *out) {
    static golden g;
    FILE *f = fopen("tests/golden/rope_factors.txt", "r");
    ck_assert_ptr_nonnull(f);
    ck_assert(next_case(f, &g));
    char *at = g.line;
    for (int i = 0; i < PAIRS; i++) out[i] = strtof(at, &at);
    fclose(f);
}

START_TEST(llama3_is_a_tensor) {
    float want[PAIRS];
    golden_factors(want);
    directory(LLAMA3, CONTEXT);
    const lq_quantize_result r = quantized(dir, gguf, "f16");
    ck_assert_str_eq(logged, "");
    ck_assert_uint_eq(r.tensors, t.n_tensors + 1);
    factors_are(gguf, "rope_freqs.weight", want, 1e-6);
    ck_assert_uint_eq(scaling_keys(gguf), 0);

    lq_model *a = model_of(dir), *b = model_of(gguf);
    lq_model_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_model_info_get(b, &info), LQ_OK);
    ck_assert_str_eq(info.rope_scaling, "llama3");
    ck_assert(info.rope_factor == 8);
    const uint32_t longest = info.longest_context;
    ck_assert_int_eq(lq_model_info_get(a, &info), LQ_OK);
    ck_assert_str_eq(info.rope_scaling, "llama3");
    ck_assert_uint_eq(info.longest_context, longest);
    ck_assert_uint_eq(longest, CONTEXT);
    compare(a, b, (lq_session_options){.context = CONTEXT}, true);
    compare(a, b, (lq_session_options){.context = CONTEXT, .rope_scaling = "none"}, false);
    /* an option says the same, over the same original context */
    compare(a, b, (lq_session_options){.context = CONTEXT, .rope_scaling = "llama3", .rope_factor = 8,
                                       .rope_original = ORIGINAL}, true);
    lq_session *s = t_session(b, (lq_session_options){.context = CONTEXT});
    lq_session_info si = {.size = sizeof si};
    ck_assert_int_eq(lq_session_info_get(s, &si), LQ_OK);
    ck_assert_str_eq(si.rope_scaling, "llama3");
    lq_session_close(s);
    lq_model_close(a);
    lq_model_close(b);
}
END_TEST

/* A tensor that the source has not is counted, reported and measured like those it has; from GGUF to GGUF it stays what
 * it is, whatever a recipe says of vectors; directories say it in config.json. */
static int reports;
static void on_report(void *user, const lq_tensor_report *r) {
    (void)user;
    reports += strcmp(r->name, "rope_freqs.weight") == 0 && strcmp(r->to, "f32") == 0 && r->bytes == 4 * PAIRS;
}
START_TEST(made_tensors_are_written_like_others) {
    static char recipe[2000];
    float want[PAIRS];
    golden_factors(want);
    directory(LLAMA3, CONTEXT);
    lq_quantize_result dry = {.size = sizeof dry}, r = {.size = sizeof r};
    lq_quantize_options o = {.size = sizeof o, .scheme = "q4_0", .dry_run = 1, .report = on_report};
    reports = 0;
    ck_assert_msg(lq_quantize(ctx, dir, gguf, &o, &dry) == LQ_OK, "%s", lq_error_detail());
    o.dry_run = 0;
    ck_assert_msg(lq_quantize(ctx, dir, gguf, &o, &r) == LQ_OK, "%s", lq_error_detail());
    ck_assert_int_eq(reports, 2);
    ck_assert_uint_eq(r.tensors, dry.tensors);
    ck_assert_uint_eq(r.weights, dry.weights);
    ck_assert_uint_eq(r.bytes, dry.bytes);
    struct stat st;
    ck_assert_int_eq(stat(gguf, &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_size, r.bytes);

    FILE *f = fopen(t_path(recipe, sizeof recipe, t_tmp(), "rope-recipe.txt"), "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f, "vector f16\n* q8_0\n");
    fclose(f);
    o = (lq_quantize_options){.size = sizeof o, .recipe = recipe, .requantize = 1};
    char again[2000];
    t_path(again, sizeof again, t_tmp(), "rope-again.gguf");
    ck_assert_msg(lq_quantize(ctx, gguf, again, &o, &r) == LQ_OK, "%s", lq_error_detail());
    factors_are(again, "rope_freqs.weight", want, 1e-6);
    lq_model *a = model_of(dir), *b = model_of(again);
    for (int i = 0; i < PAIRS; i++) ck_assert(a->binding->rope.factors[0][i] == b->binding->rope.factors[0][i]);
    lq_model_close(b);

    r = quantized(dir, other, "int8");
    ck_assert_uint_eq(r.tensors, t.n_tensors);
    q_directory *d = opened(other);
    const q_meta *type = q_directory_meta(d, "rope_scaling.rope_type");
    ck_assert(type && q_str_is(type->s, "llama3"));
    ck_assert_ptr_null(tensor_of(d, "rope_freqs.weight"));
    q_directory_close(d);
    b = model_of(other);
    ck_assert_int_eq(b->binding->rope.kind, Q_ROPE_LLAMA3);
    for (int i = 0; i < PAIRS; i++) ck_assert(a->binding->rope.factors[0][i] == b->binding->rope.factors[0][i]);
    lq_model_close(a);
    lq_model_close(b);
    remove(recipe), remove(again);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ LongRoPE */

static const float shorts[PAIRS] = {1, 1.05f, 1.1f, 1.2f, 1.3f, 1.4f, 1.5f, 1.75f},
                   longs[PAIRS] = {1, 1.5f, 2.25f, 3, 4.1f, 5, 6, 8.5f};

static void longrope_alike(const char *config, double attention) {
    directory(config, CONTEXT);
    quantized(dir, gguf, "f16");
    ck_assert_str_eq(logged, "");
    factors_are(gguf, "rope_factors_short.weight", shorts, 0);
    factors_are(gguf, "rope_factors_long.weight", longs, 0);
    q_directory *d = opened(gguf);
    const q_meta *type = q_directory_meta(d, "llama.rope.scaling.type");
    ck_assert(type && q_str_is(type->s, "longrope"));
    ck_assert(number(d, "llama.rope.scaling.original_context_length") == ORIGINAL);
    ck_assert(fabs(number(d, "llama.rope.scaling.attn_factor") - attention) < 1e-6);
    ck_assert_ptr_null(q_directory_meta(d, "llama.rope.scaling.factor")); /* others would divide positions by it */
    ck_assert_ptr_null(tensor_of(d, "rope_freqs.weight"));
    q_directory_close(d);
    lq_model *a = model_of(dir), *b = model_of(gguf);
    compare(a, b, (lq_session_options){.context = CONTEXT}, true);
    lq_model_close(a);
    lq_model_close(b);
}
START_TEST(longrope_is_two_tensors) {
    longrope_alike(LONGROPE(""), sqrt(1 + log(CONTEXT / (double)ORIGINAL) / log(ORIGINAL)));
    longrope_alike(LONGROPE(",\"attention_factor\":1.25"), 1.25);

    /* which set it is matters, on both sides of the limit */
    lq_model *a = model_of(dir), *b = model_of(gguf);
    const float *swapped = b->binding->rope.factors[0];
    b->binding->rope.factors[0] = b->binding->rope.factors[1];
    b->binding->rope.factors[1] = swapped;
    compare(a, b, (lq_session_options){.context = CONTEXT}, false);
    lq_model_close(b);
    /* files of Phi-3 do not name the type */
    tiny_f32(&t, "llama.rope.scaling.attn_factor", 1.25);
    tiny_u32(&t, "llama.rope.scaling.original_context_length", ORIGINAL);
    tiny_add(&t, "rope_factors_long.weight", "f32", PAIRS, 0);
    tiny_add(&t, "rope_factors_short.weight", "f32", PAIRS, 0);
    tiny_write(&t, gguf);
    b = model_of(gguf);
    ck_assert_int_eq(b->binding->rope.kind, Q_ROPE_LONGROPE);
    tiny_str(&t, "llama.rope.scaling.type", "longrope");
    tiny_write(&t, other);
    lq_model *c = model_of(other);
    compare(b, c, (lq_session_options){.context = CONTEXT}, true);
    lq_model_close(a);
    lq_model_close(b);
    lq_model_close(c);
}
END_TEST

/* A factor of its own that goes beyond the trained context has no place in a file that others read: it is told. */
START_TEST(shorter_contexts_are_told) {
    directory(LONGROPE(",\"factor\":16.0"), CONTEXT);
    quantized(dir, gguf, "f16");
    ck_assert_msg(strstr(logged, "'longrope' by 16") && strstr(logged, "1024") && strstr(logged, "512"), "%s", logged);
    lq_model *a = model_of(dir), *b = model_of(gguf);
    compare(a, b, (lq_session_options){.context = CONTEXT}, true);
    lq_model_close(a);
    lq_model_close(b);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ what has no form */

START_TEST(dynamic_is_left_out_and_told) {
    directory(",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4.0}", ORIGINAL);
    quantized(dir, gguf, "f16");
    ck_assert_msg(strstr(logged, "'dynamic' by 4") && strstr(logged, "rope_scaling dynamic, rope_factor 4"), "%s",
                  logged);
    ck_assert_uint_eq(scaling_keys(gguf), 0);
    lq_model *a = model_of(dir), *b = model_of(gguf);
    const lq_session_options too_long = {.size = sizeof too_long, .context = 4 * ORIGINAL};
    lq_session *s = NULL;
    ck_assert_int_eq(lq_session_open(b, &too_long, &s), LQ_E_CONTEXT);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "rope_scaling"));
    lq_session *x = t_session(a, (lq_session_options){0}), *y = t_session(b, (lq_session_options){0});
    float p[VOCAB], q[VOCAB];
    logits(x, ORIGINAL, p);
    logits(y, ORIGINAL, q);
    ck_assert_int_eq(memcmp(p, q, sizeof p), 0);
    lq_session_close(x);
    lq_session_close(y);
    compare(a, b, (lq_session_options){.context = 4 * ORIGINAL, .rope_scaling = "dynamic", .rope_factor = 4}, true);
    lq_model_close(a);
    lq_model_close(b);

    /* where it does something within the trained context, a file without it would be another model */
    directory(",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4.0,\"original_max_position_embeddings\":32}",
              ORIGINAL);
    refused(dir, LQ_E_UNSUPPORTED, "'dynamic' from 32 tokens on");
    directory(",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"truncate\":false}", ORIGINAL);
    refused(dir, LQ_E_UNSUPPORTED, "truncate");
}
END_TEST

static const struct {
    const char *config, *word;
} bad[] = {
    {",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1,1,1,1,1,1],\"long_factor\":[1,1,1,1,1,1,0,1]}",
     "'rope_scaling.long_factor': factor 6 is 0"},
    {",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[-1,1,1,1,1,1,1,1],\"long_factor\":[1,1,1,1,1,1,1,1]}",
     "'rope_scaling.short_factor': factor 0 is -1"},
    {",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1,1,1,1,1],\"long_factor\":[1,1,1,1,1,1,1,1]}",
     "'rope_scaling.short_factor' is not a list of 8 numbers"},
    {",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1,1,1,1,1,1e39],"
     "\"long_factor\":[1,1,1,1,1,1,1,1]}",
     "'rope_scaling.short_factor': factor 7"},
    {",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":0.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0}",
     "'rope_scaling.factor'"},
    {",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":-1.0,\"high_freq_factor\":4.0}",
     "'rope_scaling.low_freq_factor'"},
    {",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
     "\"original_max_position_embeddings\":0}", "'rope_scaling.original_max_position_embeddings'"},
};
START_TEST(bad_configurations_are_refused) {
    directory(bad[_i].config, CONTEXT);
    refused(dir, LQ_E_INCONSISTENT, bad[_i].word);
}
END_TEST

/* Quantizing such a file is refused as opening it is: before anything is written. */
START_TEST(bad_tensors_are_refused) {
    static const struct {
        float value;
        const char *word;
    } values[] = {{0.0f, "is 0,"}, {-2.0f, "is -2,"}, {1e9f, "is 1e+09,"}, {NAN, "nan,"}, {INFINITY, "inf,"}};
    static const char *const names[] = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"};
    for (size_t k = 0; k < Q_COUNT(names); k++) {
        tiny_init(&t, "f16");
        if (k > 0) tiny_str(&t, "llama.rope.scaling.type", "longrope");
        for (size_t j = k > 0 ? 1 : 0; j < (k > 0 ? 3 : 1); j++) tiny_add(&t, names[j], "f32", PAIRS, 0);
        t.poison_tensor = names[k];
        for (size_t i = 0; i < Q_COUNT(values); i++) {
            t.poison = values[i].value;
            tiny_write(&t, gguf);
            refused(gguf, LQ_E_INCONSISTENT, names[k]);
            ck_assert_msg(strstr(lq_error_detail(), values[i].word) != NULL, "%s", lq_error_detail());
        }
        t.poison_tensor = NULL;
        tiny_tensor(&t, names[k])->shape[0] = PAIRS - 1;
        tiny_write(&t, gguf);
        refused(gguf, LQ_E_INCONSISTENT, names[k]);
    }
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("rope_files");
    TCase *c = tcase_create("files");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_set_timeout(c, 120);
    tcase_add_test(c, factors_are_those_of_transformers);
    tcase_add_test(c, llama3_is_a_tensor);
    tcase_add_test(c, made_tensors_are_written_like_others);
    tcase_add_test(c, longrope_is_two_tensors);
    tcase_add_test(c, shorter_contexts_are_told);
    tcase_add_test(c, dynamic_is_left_out_and_told);
    tcase_add_loop_test(c, bad_configurations_are_refused, 0, (int)Q_COUNT(bad));
    tcase_add_test(c, bad_tensors_are_refused);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
