/* test_rope.c: contexts beyond training: frequencies of every kind of scaling against transformers' (golden/rope.txt,
 * made by golden/make_rope.py), what files and options may say, and sequences that cross from one set of factors to the
 * other: their logits are those of the text alone, to the last bit. */
#include <math.h>

#include "../libquant/engine.h"
#include "../libquant/json.h"
#include "../libquant/loaders/safetensors.h"
#include "help_session.h"

enum { TRAINED = 64, CONTEXT = 150, SEQS = 3, VOCAB = 262, LINE = 1 << 16 };

/* ------------------------------------------------------------------------------------------------ tables */

typedef struct config {
    q_arena arena;
    q_hf_meta meta;
    q_directory dir;
} config;

/* A directory of keys alone, of a configuration's text. */
static void config_open(config *c, const char *text) {
    const q_json *root;
    *c = (config){.arena = {.alloc = &q_alloc_libc}};
    c->meta = (q_hf_meta){.alloc = &q_alloc_libc, .arena = &c->arena};
    ck_assert_msg(q_json_parse(&c->arena, (const uint8_t *)text, strlen(text), 0, "text", &root) == LQ_OK, "%s",
                  lq_error_detail());
    ck_assert_msg(q_hf_flatten(&c->meta, root, "", false) == LQ_OK, "%s", lq_error_detail());
    c->dir = (q_directory){.names = Q_NAMES_HF, .meta = c->meta.items, .n_meta = (uint32_t)c->meta.n};
    const lq_status s =
        q_index_build(&q_alloc_libc, c->meta.items, sizeof(q_meta), c->dir.n_meta, "key", &c->dir.meta_index);
    ck_assert_int_eq(s, LQ_OK);
}
static void config_close(config *c) {
    q_delete(&q_alloc_libc, c->dir.meta_index.cells);
    q_delete(&q_alloc_libc, c->meta.items);
    q_arena_free(&c->arena);
}
static double number(const config *c, const char *key) {
    const q_meta *m = q_directory_meta(&c->dir, key);
    ck_assert_msg(m != NULL, "%s", key);
    return m->f;
}

START_TEST(tables_are_those_of_transformers) {
    FILE *f = fopen("tests/golden/rope.txt", "r");
    char *name = malloc(LINE), *text = malloc(LINE), *line = malloc(LINE);
    uint32_t cases = 0;
    ck_assert_ptr_nonnull(f);
    for (; fgets(name, LINE, f); cases++) {
        unsigned length;
        double attention;
        config c;
        q_rope r;
        ck_assert_ptr_nonnull(fgets(text, LINE, f));
        ck_assert_int_eq(fscanf(f, "%u %lf ", &length, &attention), 2);
        ck_assert_ptr_nonnull(fgets(line, LINE, f));
        config_open(&c, text);
        const int32_t rot = (int32_t)number(&c, "head_dim");
        const uint32_t context = (uint32_t)number(&c, "max_position_embeddings");
        if (strncmp(name, "ntk", 3) == 0) { /* no file says it */
            const q_rope none = {.factor = 1};
            const lq_session_options o = {.rope_scaling = "ntk", .rope_factor = number(&c, "rope_scaling.factor")};
            ck_assert_int_eq(q_rope_choose(&none, &o, context, &r), LQ_OK);
        } else {
            const lq_status s = q_rope_read(&c.dir, "", context, rot, &c.arena, &r);
            ck_assert_msg(s == LQ_OK, "%s: %s", name, lq_error_detail());
        }
        float freqs[256];
        const bool beyond = q_rope_tables(&r, length) == 2;
        const float got = q_rope_table(&r, number(&c, "rope_theta"), rot, length, beyond, freqs);
        ck_assert_msg(fabs((double)got / attention - 1) < 1e-6, "%s attention %g, not %g", name, (double)got,
                      attention);
        char *at = line;
        for (int32_t i = 0; i < rot / 2; i++) {
            const double want = strtod(at, &at);
            ck_assert_msg(fabs((double)freqs[i] / want - 1) < 5e-6, "%s frequency %d is %.9g, not %.9g", name, i,
                          (double)freqs[i], want);
        }
        config_close(&c);
    }
    ck_assert_uint_ge(cases, 17);
    fclose(f);
    free(name), free(text), free(line);
}
END_TEST

#define TEN "[1,1,1,1,1,1,1,1]"
static const struct {
    const char *text, *word; /* NULL = it is right */
    lq_status code;
} configs[] = {
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", NULL, LQ_OK},
    {"{\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.0,\"rope_theta\":10000.0}}", NULL, LQ_OK},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"rope_type\":\"linear\",\"factor\":2}}", NULL, LQ_OK},
    {"{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"finetuned\":true}}", NULL, LQ_OK},
    {"{\"rope_scaling\":{\"type\":\"su\",\"short_factor\":" TEN ",\"long_factor\":" TEN "},"
     "\"original_max_position_embeddings\":32}", NULL, LQ_OK},
    {"{\"rope_scaling\":{\"type\":\"warp\",\"factor\":2}}", "rope_scaling.type", LQ_E_UNSUPPORTED},
    {"{\"rope_scaling\":{\"type\":\"ntk\",\"factor\":2}}", "rope_scaling.type", LQ_E_UNSUPPORTED},
    {"{\"rope_scaling\":{\"type\":3,\"factor\":2}}", "rope_scaling.type", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"rope_type\":\"yarn\",\"factor\":2}}", "rope_type", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"linear\"}}", "has no factor", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"factor\":2}}", "no type", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", "rope_scaling.factor", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":-2}}", "rope_scaling.factor", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}}", "rope_scaling.factor", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":1e30}}", "rope_scaling.factor", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":\"2\"}}", "rope_scaling.factor", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"beta_fast\":32}}", "beta_fast", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},\"rope_parameters\":{\"factor\":3}}", "another spelling",
     LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"original_max_position_embeddings\":0}}",
     "original_max_position_embeddings", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"original_max_position_embeddings\":32.0}}",
     "original_max_position_embeddings", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"beta_fast\":1,\"beta_slow\":2}}", "beta_slow",
     LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"truncate\":1}}", "truncate", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2}}", "low_freq_factor", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,\"high_freq_factor\":4}}",
     "high_freq_factor", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":" TEN "}}", "long_factor", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":" TEN ",\"long_factor\":[1,1]}}", "list of 8 numbers",
     LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":" TEN ",\"long_factor\":[1,1,1,1,1,1,0,1]}}",
     "'rope_scaling.long_factor': factor 6 is 0", LQ_E_INCONSISTENT},
    {"{\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":" TEN ",\"long_factor\":[1,1,1,1,1,1,1e30,1]}}",
     "'rope_scaling.long_factor': factor 6", LQ_E_INCONSISTENT},
};
START_TEST(configurations) {
    config c;
    q_rope r;
    config_open(&c, configs[_i].text);
    const lq_status s = q_rope_read(&c.dir, "", TRAINED, 16, &c.arena, &r);
    ck_assert_msg(s == configs[_i].code, "%s: %s (%s)", configs[_i].text, lq_status_name(s), lq_error_detail());
    if (s)
        ck_assert_msg(strstr(lq_error_detail(), configs[_i].word), "'%s' lacks '%s'", lq_error_detail(),
                      configs[_i].word);
    config_close(&c);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ models */

static lq_ctx *ctx;
static tiny t;
static char path[4096];

static void setup(void) {
    static const lq_allocator alloc = {live_alloc, live_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &alloc};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    t_path(path, sizeof path, t_tmp(), "rope.gguf");
    tiny_init(&t, "q8_0");
}
static void teardown(void) { lq_close(ctx); }

static lq_model *model_of(void) {
    lq_model *m = NULL;
    tiny_write(&t, path);
    ck_assert_msg(lq_model_open(ctx, path, NULL, &m) == LQ_OK, "%s", lq_error_detail());
    return m;
}
static void refused(lq_status code, const char *word) {
    lq_model *m = NULL;
    tiny_write(&t, path);
    const lq_status s = lq_model_open(ctx, path, NULL, &m);
    ck_assert_msg(s == code, "%s: %s", lq_status_name(s), s ? lq_error_detail() : "accepted");
    ck_assert_msg(strstr(lq_error_detail(), word) != NULL, "'%s' lacks '%s'", lq_error_detail(), word);
}
static lq_session *session_of(lq_model *m, lq_session_options o) {
    lq_session *s = NULL;
    o.size = sizeof o;
    o.threads = 1;
    ck_assert_msg(lq_session_open(m, &o, &s) == LQ_OK, "%s", lq_error_detail());
    return s;
}
static void text_of(int32_t *ids, uint32_t n, uint32_t seed) {
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)((i * 37 + i * i * 11 + seed * 5) % VOCAB);
}
/* The hash of the logits behind a text. */
static uint32_t hash_of(lq_session *s, const int32_t *ids, uint32_t n) {
    lq_stats stats = {.size = sizeof stats};
    ck_assert_msg(lq_sync(s, 0, ids, n, n - 1) == LQ_OK, "%s", lq_error_detail());
    ck_assert_int_eq(lq_session_stats(s, &stats), LQ_OK);
    return stats.last_logits_hash;
}
static void yarn_keys(double factor, uint32_t original) {
    tiny_str(&t, "llama.rope.scaling.type", "yarn");
    tiny_f32(&t, "llama.rope.scaling.factor", factor);
    tiny_u32(&t, "llama.rope.scaling.original_context_length", original);
}

START_TEST(files_and_options_say_the_same) {
    int32_t ids[CONTEXT];
    text_of(ids, CONTEXT, 1);
    lq_model *plain = model_of();
    yarn_keys(4, TRAINED);
    lq_model *yarn = model_of();
    lq_model_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_model_info_get(yarn, &info), LQ_OK);
    ck_assert_str_eq(info.rope_scaling, "yarn");
    ck_assert_uint_eq(info.longest_context, 256);
    const lq_session_options by_option = {.context = CONTEXT, .rope_scaling = "yarn", .rope_factor = 4};
    lq_session *a = session_of(yarn, (lq_session_options){.context = CONTEXT}), *b = session_of(plain, by_option),
               *c = session_of(plain, (lq_session_options){.context = CONTEXT, .rope_scaling = "linear"}),
               *d = session_of(yarn, (lq_session_options){.rope_scaling = "none"}),
               *e = session_of(plain, (lq_session_options){0});
    ck_assert_uint_eq(hash_of(a, ids, CONTEXT), hash_of(b, ids, CONTEXT));
    ck_assert_uint_ne(hash_of(a, ids, CONTEXT), hash_of(c, ids, CONTEXT));
    ck_assert_uint_eq(hash_of(d, ids, TRAINED), hash_of(e, ids, TRAINED));
    ck_assert_uint_ne(hash_of(a, ids, TRAINED), hash_of(e, ids, TRAINED));
    lq_session_info si = {.size = sizeof si};
    ck_assert_int_eq(lq_session_info_get(c, &si), LQ_OK);
    ck_assert_str_eq(si.rope_scaling, "linear");
    ck_assert(fabs(si.rope_factor - CONTEXT / (double)TRAINED) < 1e-12);
    ck_assert_uint_eq(si.rope_original, TRAINED);
    lq_session *const all[] = {a, b, c, d, e};
    for (size_t i = 0; i < Q_COUNT(all); i++) lq_session_close(all[i]);
    lq_model_close(plain);
    lq_model_close(yarn);
}
END_TEST

START_TEST(contexts_beyond_are_told) {
    lq_model *plain = model_of();
    yarn_keys(2, TRAINED);
    lq_model *yarn = model_of();
    const struct {
        lq_model *m;
        lq_session_options o;
        lq_status code;
        const char *word;
    } cases[] = {
        {plain, {.context = 65}, LQ_E_CONTEXT, "trained for 64 (rope_scaling goes beyond)"},
        {yarn, {.context = 129}, LQ_E_CONTEXT, "'yarn' by 2 of the original 64 tokens gives 128"},
        {yarn, {.context = 65, .rope_scaling = "none"}, LQ_E_CONTEXT, "trained for 64"},
        {plain, {.context = 257, .rope_scaling = "ntk", .rope_factor = 4}, LQ_E_CONTEXT, "'ntk' by 4"},
        {plain, {.rope_scaling = "linear"}, LQ_E_ARG, "needs a rope_factor"},
        {plain, {.rope_scaling = "warp", .rope_factor = 2}, LQ_E_ARG, "rope_scaling 'warp'"},
        {plain, {.rope_scaling = "longrope", .rope_factor = 2}, LQ_E_ARG, "only a model brings"},
        {plain, {.rope_factor = 2}, LQ_E_ARG, "go with rope_scaling"},
        {plain, {.rope_original = 2}, LQ_E_ARG, "go with rope_scaling"},
        {plain, {.rope_scaling = "none", .rope_factor = 2}, LQ_E_ARG, "'none' has no rope_factor"},
        {plain, {.rope_scaling = "linear", .rope_factor = 0.5}, LQ_E_ARG, "rope_factor 0.5"},
        {plain, {.rope_scaling = "linear", .rope_factor = -1}, LQ_E_ARG, "rope_factor -1"},
        {plain, {.rope_scaling = "linear", .rope_factor = (double)NAN}, LQ_E_ARG, "rope_factor"},
        {plain, {.rope_scaling = "linear", .rope_factor = 1e30}, LQ_E_ARG, "rope_factor 1e+30"},
        {plain, {.rope_scaling = "linear", .rope_factor = 2, .rope_beta_fast = 3}, LQ_E_ARG, "'yarn' alone"},
        {plain, {.rope_scaling = "yarn", .rope_factor = 2, .rope_beta_slow = 40}, LQ_E_ARG, "rope_beta_slow"},
        {plain, {.rope_scaling = "yarn", .rope_factor = 2, .rope_original = UINT32_MAX}, LQ_E_ARG, "rope_original"},
    };
    for (size_t i = 0; i < Q_COUNT(cases); i++) {
        lq_session *s = NULL;
        lq_session_options o = cases[i].o;
        o.size = sizeof o;
        const lq_status st = lq_session_open(cases[i].m, &o, &s);
        ck_assert_msg(st == cases[i].code, "case %zu: %s (%s)", i, lq_status_name(st), lq_error_detail());
        ck_assert_msg(strstr(lq_error_detail(), cases[i].word), "'%s' lacks '%s'", lq_error_detail(), cases[i].word);
    }
    lq_session_close(session_of(yarn, (lq_session_options){.context = 128}));
    lq_session *s = session_of(yarn, (lq_session_options){0});
    lq_session_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_session_info_get(s, &info), LQ_OK);
    ck_assert_uint_eq(info.context, TRAINED); /* the default stays what the model says */
    lq_session_close(s);
    s = session_of(plain, (lq_session_options){.rope_scaling = "dynamic", .rope_factor = 3});
    ck_assert_int_eq(lq_session_info_get(s, &info), LQ_OK);
    ck_assert_uint_eq(info.context, 3 * TRAINED);
    lq_session_close(s);
    lq_model_close(plain);
    lq_model_close(yarn);
}
END_TEST

START_TEST(bad_files_are_refused) {
    yarn_keys(0, TRAINED);
    refused(LQ_E_INCONSISTENT, "llama.rope.scaling.factor");
    yarn_keys((double)NAN, TRAINED);
    refused(LQ_E_INCONSISTENT, "llama.rope.scaling.factor");
    yarn_keys(1e30, TRAINED);
    refused(LQ_E_INCONSISTENT, "llama.rope.scaling.factor");
    yarn_keys(2, 0);
    refused(LQ_E_INCONSISTENT, "original_context_length");
    yarn_keys(2, TRAINED);
    tiny_f32(&t, "llama.rope.scaling.wobble", 1);
    refused(LQ_E_UNSUPPORTED, "llama.rope.scaling.wobble");
    tiny_drop_key(&t, "llama.rope.scaling.wobble");
    tiny_str(&t, "llama.rope.scaling.type", "llama3"); /* GGUF files have a tensor for that */
    refused(LQ_E_UNSUPPORTED, "llama.rope.scaling.type");
    tiny_str(&t, "llama.rope.scaling.type", "longrope");
    refused(LQ_E_INCONSISTENT, "rope_factors_short.weight");
    tiny_add(&t, "rope_factors_short.weight", "f32", 8, 0);
    tiny_add(&t, "rope_factors_long.weight", "f32", 7, 0);
    refused(LQ_E_INCONSISTENT, "rope_factors_long.weight");
    tiny_tensor(&t, "rope_factors_long.weight")->shape[0] = 8;
    t.poison_tensor = "rope_factors_long.weight";
    t.poison = -1;
    refused(LQ_E_INCONSISTENT, "'rope_factors_long.weight': factor 0 is -1");
    t.poison_tensor = NULL;
    lq_model_close(model_of());
    tiny_str(&t, "llama.rope.scaling.type", "yarn");
    refused(LQ_E_UNSUPPORTED, "rope_factors_short.weight");
}
END_TEST

/* A tensor of factors divides frequencies: as Llama 3's GGUF files have it. */
START_TEST(a_tensor_of_factors_is_used) {
    int32_t ids[TRAINED];
    text_of(ids, TRAINED, 2);
    lq_model *plain = model_of();
    tiny_add(&t, "rope_freqs.weight", "f32", 8, 0);
    lq_model *other = model_of();
    lq_session *a = session_of(plain, (lq_session_options){0}), *b = session_of(other, (lq_session_options){0}),
               *c = session_of(other, (lq_session_options){.rope_scaling = "none"});
    ck_assert_uint_ne(hash_of(a, ids, TRAINED), hash_of(b, ids, TRAINED));
    ck_assert_uint_eq(hash_of(a, ids, TRAINED), hash_of(c, ids, TRAINED));
    const q_inst *step = b->plan->insts;
    while (step->op != Q_OP_ROPE) step++;
    for (int32_t i = 0; i < 8; i++) {
        const float f = step->freqs[i];
        ck_assert(f == (float)(pow(10000, -i / 8.0) / (double)other->binding->rope.factors[0][i]));
    }
    lq_session_close(a);
    lq_session_close(b);
    lq_session_close(c);
    lq_model_close(plain);
    lq_model_close(other);
}
END_TEST

/* ----------------------------------------------------------------------------------------------two sets of factors */

typedef struct world {
    lq_session *s, *alone[2];
    int32_t ids[SEQS][CONTEXT];
    uint32_t n[SEQS];
    uint64_t seed, again;
} world;
static uint32_t roll(world *w, uint32_t n) {
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->seed >> 33) % n;
}
static void check_row(world *w, uint32_t row, uint32_t seq) {
    const float *got, *want;
    lq_session *alone = w->alone[w->n[seq] > TRAINED];
    ck_assert_int_eq(lq_logits(w->s, row, &got), LQ_OK);
    ck_assert_int_eq(lq_seq_truncate(alone, 0, 0), LQ_OK);
    ck_assert_int_eq(t_decode(alone, w->ids[seq], w->n[seq], w->n[seq] - 1), LQ_OK);
    ck_assert_int_eq(lq_logits(alone, 0, &want), LQ_OK);
    ck_assert_msg(memcmp(got, want, VOCAB * sizeof *got) == 0, "a text of %u tokens: other bits than alone",
                  w->n[seq]);
}

static void live(world *w, uint32_t rounds, t_saved *b) {
    for (uint32_t i = 0; i < rounds; i++) {
        const uint32_t seq = roll(w, SEQS), to = roll(w, SEQS), what = roll(w, 12);
        if (what < 7) {
            lq_item items[SEQS];
            size_t n = 0;
            for (uint32_t q = 0; q < SEQS; q++) {
                const uint32_t room = CONTEXT - w->n[q], some = 1 + roll(w, roll(w, 2) ? 3 : 50);
                const uint32_t count = Q_MIN(room, some);
                if (count == 0 || roll(w, 3) == 0) continue;
                text_of(w->ids[q] + w->n[q], count, w->n[q] ? roll(w, 2) : 0);
                items[n++] = (lq_item){q, w->ids[q] + w->n[q], count, count - 1};
                w->n[q] += count;
            }
            if (n == 0) continue;
            ck_assert_msg(lq_decode(w->s, items, n) == LQ_OK, "%s", lq_error_detail());
            for (uint32_t k = 0; k < n; k++) {
                lq_seq_info info = {.size = sizeof info};
                ck_assert_int_eq(lq_seq_info_get(w->s, items[k].sequence, &info), LQ_OK);
                ck_assert((info.again > 0) == (info.why_again[0] != 0));
                w->again += strstr(info.why_again, "RoPE") ? info.again : 0;
                check_row(w, k, items[k].sequence);
            }
        } else if (what == 7) {
            ck_assert_int_eq(lq_seq_fork(w->s, seq, to), LQ_OK);
            w->n[to] = w->n[seq];
            memmove(w->ids[to], w->ids[seq], sizeof w->ids[to]);
        } else if (what == 8) {
            b->n = b->at = 0;
            ck_assert_msg(lq_seq_save(w->s, seq, t_saved_put, b) == LQ_OK, "%s", lq_error_detail());
            ck_assert_msg(lq_seq_load(w->s, to, t_saved_get, b) == LQ_OK, "%s", lq_error_detail());
            w->n[to] = w->n[seq];
            memmove(w->ids[to], w->ids[seq], sizeof w->ids[to]);
        } else if (what == 9 && w->n[seq] > 1) {
            const uint32_t n = 1 + roll(w, CONTEXT);
            if (n > w->n[seq]) text_of(w->ids[seq] + w->n[seq], n - w->n[seq], 1);
            w->n[seq] = n;
            ck_assert_msg(lq_sync(w->s, seq, w->ids[seq], n, n - 1) == LQ_OK, "%s", lq_error_detail());
            check_row(w, 0, seq);
        } else {
            w->n[seq] = roll(w, w->n[seq] + 1);
            ck_assert_int_eq(lq_seq_truncate(w->s, seq, w->n[seq]), LQ_OK);
        }
    }
}

static lq_model *longrope_model(void) {
    tiny_u32(&t, "llama.context_length", CONTEXT);
    tiny_str(&t, "llama.rope.scaling.type", "longrope");
    tiny_u32(&t, "llama.rope.scaling.original_context_length", TRAINED);
    tiny_f32(&t, "llama.rope.scaling.attn_factor", 1.125);
    if (!tiny_tensor(&t, "rope_factors_short.weight")) {
        tiny_add(&t, "rope_factors_short.weight", "f32", 8, 0);
        tiny_add(&t, "rope_factors_long.weight", "f32", 8, 0);
    }
    return model_of();
}

START_TEST(sequences_cross_between_factors) {
    lq_model *m = longrope_model(), *only[2];
    t_saved b = t_saved_new();
    world w = {.seed = 3};
    for (int k = 0; k < 2; k++) { /* a model that has one set alone */
        only[k] = longrope_model();
        only[k]->binding->rope.kind = Q_ROPE_NONE;
        only[k]->binding->rope.factors[0] = only[k]->binding->rope.factors[k];
        w.alone[k] = session_of(only[k], (lq_session_options){.no_reuse = 1});
    }
    w.s = session_of(m, (lq_session_options){.sequences = SEQS, .max_logits = SEQS, .batch = 40});
    live(&w, t_emulated() || T_TSAN ? 30 : T_SLOW ? 120 : 500, &b);
    ck_assert_uint_gt(w.again, 0);

    int32_t ids[CONTEXT];
    lq_seq_info info = {.size = sizeof info};
    text_of(ids, CONTEXT, 9);
    ck_assert_int_eq(lq_seq_truncate(w.s, 0, 0), LQ_OK);
    ck_assert_int_eq(t_decode(w.s, ids, TRAINED, TRAINED), LQ_OK);
    ck_assert_int_eq(lq_seq_info_get(w.s, 0, &info), LQ_OK);
    ck_assert_str_eq(info.why_again, "");
    ck_assert_int_eq(t_decode(w.s, ids + TRAINED, 1, 0), LQ_OK);
    ck_assert_int_eq(lq_seq_info_get(w.s, 0, &info), LQ_OK);
    ck_assert_uint_eq(info.again, TRAINED);
    ck_assert_ptr_nonnull(strstr(info.why_again, "RoPE"));
    ck_assert_int_eq(t_decode(w.s, ids + TRAINED + 1, 1, 0), LQ_OK);
    ck_assert_int_eq(lq_seq_info_get(w.s, 0, &info), LQ_OK);
    ck_assert_uint_eq(info.again, 0);

    /* what was saved goes on under the same scaling alone */
    b.n = b.at = 0;
    ck_assert_int_eq(lq_seq_save(w.s, 0, t_saved_put, &b), LQ_OK);
    ck_assert_int_eq(lq_seq_load(w.alone[1], 0, t_saved_get, &b), LQ_E_INCONSISTENT);
    lq_session *none = session_of(m, (lq_session_options){.rope_scaling = "none", .context = TRAINED});
    b.at = 0;
    ck_assert_int_eq(lq_seq_load(none, 0, t_saved_get, &b), LQ_E_INCONSISTENT);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "RoPE scaling"));
    lq_session_close(none);
    lq_session_close(w.s);
    for (int k = 0; k < 2; k++) {
        lq_session_close(w.alone[k]);
        lq_model_close(only[k]);
    }
    lq_model_close(m);
    free(b.p);
}
END_TEST

/* lq_step goes on across the limit as a text alone would; guesses ahead change nothing. */
START_TEST(steps_cross_between_factors) {
    lq_model *m = longrope_model();
    int32_t ids[CONTEXT];
    text_of(ids, CONTEXT, 4);
    const lq_sampler o = {.size = sizeof o, .ignore_eos = 1, .temperature = 0.7f, .seed = 5, .max_tokens = 60};
    lq_session *s = session_of(m, (lq_session_options){.ngram = 1, .draft_tokens = 5});
    lq_session *alone = session_of(m, (lq_session_options){0});
    const uint32_t begin = TRAINED - 20;
    uint32_t n = begin;
    uint64_t again = 0;
    ck_assert_int_eq(t_decode(s, ids, begin, begin - 1), LQ_OK);
    for (lq_step_item step = {.size = sizeof step, .sampler = &o}; !step.end;) {
        ck_assert_msg(lq_step(s, &step, 1) == LQ_OK, "%s", lq_error_detail());
        lq_seq_info info = {.size = sizeof info};
        ck_assert_int_eq(lq_seq_info_get(s, 0, &info), LQ_OK);
        again += strstr(info.why_again, "RoPE") ? info.again : 0;
        memcpy(ids + n, step.ids, step.n * sizeof *ids);
        n += (uint32_t)step.n;
    }
    ck_assert_uint_eq(n, begin + 60);
    ck_assert_uint_ge(again, TRAINED); /* once */
    ck_assert_uint_lt(again, 2 * TRAINED);
    for (uint32_t i = begin; i < n; i++) {
        int32_t id;
        ck_assert_int_eq(lq_seq_truncate(alone, 0, 0), LQ_OK);
        ck_assert_int_eq(t_decode(alone, ids, i, i - 1), LQ_OK);
        ck_assert_int_eq(lq_sample(alone, 0, &o, &id), LQ_OK);
        ck_assert_msg(id == ids[i], "token %u is %d, alone %d", i, ids[i], id);
    }
    lq_session_close(s);
    lq_session_close(alone);
    lq_model_close(m);
}
END_TEST

/* Keys that are written keep what a directory says of it (files as a whole: test_rope_files.c). */
START_TEST(files_that_are_written_keep_it) {
    const q_rope yarn = {.kind = Q_ROPE_YARN, .factor = 4, .original = 4096, .attention = 1.5, .beta_fast = 20,
                         .beta_slow = 1};
    q_arena arena = {.alloc = &q_alloc_libc};
    q_meta keys[Q_ROPE_KEYS];
    uint32_t n;
    ck_assert_int_eq(q_rope_export(&yarn, "llama", 4096, NULL, &arena, keys, &n), LQ_OK);
    q_directory dir = {.names = Q_NAMES_GGUF, .meta = keys, .n_meta = n};
    ck_assert_int_eq(q_index_build(&q_alloc_libc, keys, sizeof *keys, n, "key", &dir.meta_index), LQ_OK);
    q_rope back;
    ck_assert_msg(q_rope_read(&dir, "llama.", 4096, 16, &arena, &back) == LQ_OK, "%s", lq_error_detail());
    float a[32], b[32];
    const float x = q_rope_table(&yarn, 1e4, 64, 9000, false, a), y = q_rope_table(&back, 1e4, 64, 9000, false, b);
    ck_assert(fabs((double)x / (double)y - 1) < 1e-6);
    ck_assert_int_eq(memcmp(a, b, sizeof a), 0);
    q_delete(&q_alloc_libc, dir.meta_index.cells);
    q_arena_free(&arena);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("rope");
    TCase *c = tcase_create("tables");
    tcase_add_test(c, tables_are_those_of_transformers);
    tcase_add_loop_test(c, configurations, 0, (int)Q_COUNT(configs));
    tcase_add_test(c, files_that_are_written_keep_it);
    suite_add_tcase(s, c);
    c = tcase_create("models");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_set_timeout(c, 120);
    tcase_add_test(c, files_and_options_say_the_same);
    tcase_add_test(c, contexts_beyond_are_told);
    tcase_add_test(c, bad_files_are_refused);
    tcase_add_test(c, a_tensor_of_factors_is_used);
    tcase_add_test(c, sequences_cross_between_factors);
    tcase_add_test(c, steps_cross_between_factors);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
