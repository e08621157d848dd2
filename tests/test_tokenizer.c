/* test_tokenizer.c: the SentencePiece tokenizer and the vocabulary object: ids equal to SentencePiece's, exact round
 * trips of any bytes, hostile vocabularies, special tokens, streams. Directories are built by hand here, with helpers
 * that all cases share: hence more than 800 lines. */
#include "harness.h"

#include <jansson.h>
#include <math.h>

#include "../libquant/text.h"

/* ------------------------------------------------------------------------------------------------ helpers */

static uint8_t *slurp(const char *name, uint64_t *n) {
    char path[4096];
    uint8_t *data = NULL;
    ck_assert_int_eq(q_file_slurp(&q_alloc_libc, t_path(path, sizeof path, t_root(), name), 1 << 26, &data, n), LQ_OK);
    return data;
}

/* A directory like the ones that loaders make; `meta` may be changed freely. */
typedef struct source {
    q_directory dir;
    q_meta meta[40];
    uint8_t *file;
    q_arena arena;
} source;

static q_meta *add(source *s, const char *key, q_meta_type type) {
    ck_assert_uint_lt(s->dir.n_meta, Q_COUNT(s->meta));
    s->dir.meta = s->meta;
    q_meta *m = &s->meta[s->dir.n_meta++];
    *m = (q_meta){.key = q_str_of(key), .type = type, .count = 1};
    return m;
}
static void add_string(source *s, const char *key, const char *value) {
    add(s, key, Q_META_STRING)->s = q_str_of(value);
}
static void add_number(source *s, const char *key, q_meta_type type, int64_t value) {
    q_meta *m = add(s, key, type);
    m->i = value;
    m->u = (uint64_t)value;
    m->f = (double)value;
}
static q_meta *get(source *s, const char *key) {
    for (uint32_t i = 0; i < s->dir.n_meta; i++)
        if (q_str_is(s->meta[i].key, key)) return &s->meta[i];
    ck_abort_msg("no key %s", key);
    return NULL;
}
static void drop(source *s, const char *key) {
    q_meta *m = get(s, key);
    *m = s->meta[--s->dir.n_meta];
}

static void from_model_file(source *s, const uint8_t *data, uint64_t n) {
    *s = (source){.dir = {.names = Q_NAMES_HF, .tokenizer_file = q_str_of("tokenizer.model"),
                          .tokenizer = data, .tokenizer_bytes = n}, .arena = {.alloc = &q_alloc_libc}};
}
static void free_source(source *s) {
    q_delete(&q_alloc_libc, s->file);
    q_arena_free(&s->arena);
}

static q_text *open_text(const source *s) {
    q_text *t = NULL;
    const lq_status r = q_text_open(&q_alloc_libc, NULL, &s->dir, &t);
    ck_assert_msg(r == LQ_OK, "%s: %s", lq_status_name(r), lq_error_detail());
    return t;
}

static q_text *open_pocket(void) {
    source s;
    uint64_t n;
    uint8_t *file = slurp("bench/data/pocket/tokenizer.model", &n);
    from_model_file(&s, file, n);
    s.file = file;
    q_text *t = open_text(&s);
    free_source(&s); /* the object is independent of the directory */
    return t;
}

/* Opening fails with this code and the sentence names `word`. */
static void refuse(const source *s, lq_status code, const char *word) {
    q_text *t = (q_text *)(uintptr_t)1;
    const lq_status r = q_text_open(&q_alloc_libc, NULL, &s->dir, &t);
    ck_assert_msg(r == code, "%s instead of %s: %s", lq_status_name(r), lq_status_name(code), lq_error_detail());
    ck_assert_msg(strstr(lq_error_detail(), word) != NULL, "\"%s\" does not name %s", lq_error_detail(), word);
    ck_assert_ptr_eq(t, (q_text *)(uintptr_t)1);
}

typedef struct token {
    const char *piece;
    float score;
    int32_t type;
} token;

/* GGUF keys over a few tokens; kept in the source's arena. */
static void from_tokens(source *s, const token *tokens, uint32_t n) {
    *s = (source){.dir = {.names = Q_NAMES_GGUF}, .arena = {.alloc = &q_alloc_libc}};
    q_str *strs = (q_str *)q_arena_new(&s->arena, n, sizeof *strs);
    float *scores = (float *)q_arena_new(&s->arena, n, sizeof *scores);
    int32_t *types = (int32_t *)q_arena_new(&s->arena, n, sizeof *types);
    for (uint32_t i = 0; i < n; i++) {
        strs[i] = q_str_of(q_arena_str(&s->arena, q_str_of(tokens[i].piece)));
        scores[i] = tokens[i].score;
        types[i] = tokens[i].type;
    }
    add_string(s, "tokenizer.ggml.model", "llama");
    q_meta *m = add(s, "tokenizer.ggml.tokens", Q_META_ARRAY);
    m->item = Q_META_STRING;
    m->count = n;
    m->strs = strs;
    m = add(s, "tokenizer.ggml.scores", Q_META_ARRAY);
    m->item = Q_META_F32;
    m->count = n;
    m->raw = (const uint8_t *)scores;
    m = add(s, "tokenizer.ggml.token_type", Q_META_ARRAY);
    m->item = Q_META_I32;
    m->count = n;
    m->raw = (const uint8_t *)types;
}

static int32_t *tokenize(const q_text *t, const char *text, size_t bytes, uint32_t flags, size_t *n) {
    *n = 0;
    const lq_status r = q_text_tokenize(t, text, bytes, flags, NULL, n);
    ck_assert_msg(r == (*n ? LQ_E_ARG : LQ_OK), "%s", lq_error_detail());
    int32_t *ids = (int32_t *)malloc((*n + 1) * sizeof *ids);
    const size_t want = *n;
    ck_assert_int_eq(q_text_tokenize(t, text, bytes, flags, ids, n), LQ_OK);
    ck_assert_uint_eq(*n, want);
    return ids;
}

static char *detokenize(const q_text *t, const int32_t *ids, size_t count, uint32_t flags, size_t *n) {
    *n = 0;
    const lq_status r = q_text_detokenize(t, ids, count, flags, NULL, n);
    ck_assert_msg(r == (*n ? LQ_E_ARG : LQ_OK), "%s", lq_error_detail());
    char *text = (char *)malloc(*n + 1);
    const size_t want = *n;
    ck_assert_int_eq(q_text_detokenize(t, ids, count, flags, text, n), LQ_OK);
    ck_assert_uint_eq(*n, want);
    text[*n] = 0;
    return text;
}

static void check_ids(const q_text *t, const char *text, uint32_t flags, const int32_t *want, size_t n_want) {
    size_t n;
    int32_t *ids = tokenize(t, text, strlen(text), flags, &n);
    bool same = n == n_want;
    for (size_t i = 0; same && i < n; i++) same = ids[i] == want[i];
    if (!same) {
        printf("\"%s\":", text);
        for (size_t i = 0; i < n; i++) printf(" %d", ids[i]);
        printf("\n");
    }
    ck_assert_msg(same, "ids of \"%s\" differ", text);
    free(ids);
}
#define IDS(t, text, flags, ...)                                        \
    do {                                                                \
        const int32_t want_[] = {__VA_ARGS__};                          \
        check_ids((t), (text), (flags), want_, Q_COUNT(want_));         \
    } while (0)

static void check_text(const q_text *t, const int32_t *ids, size_t count, uint32_t flags, const char *want) {
    size_t n;
    char *text = detokenize(t, ids, count, flags, &n);
    ck_assert_str_eq(text, want);
    free(text);
}
#define TEXT(t, want, flags, ...)                                       \
    do {                                                                \
        const int32_t ids_[] = {__VA_ARGS__};                           \
        check_text((t), ids_, Q_COUNT(ids_), (flags), (want));          \
    } while (0)

/* Tokens give the same bytes back, U+2581 excepted. */
static void round_trip(const q_text *t, const char *text, size_t bytes) {
    size_t n, m, w = 0;
    int32_t *ids = tokenize(t, text, bytes, 0, &n);
    char *back = detokenize(t, ids, n, 0, &m);
    char *want = (char *)malloc(bytes + 1);
    for (size_t i = 0; i < bytes; w++) {
        const bool sign = bytes - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0;
        want[w] = sign ? ' ' : text[i];
        i += sign ? 3 : 1;
    }
    ck_assert_uint_eq(m, w);
    ck_assert_int_eq(memcmp(back, want, w), 0);
    free(want);
    free(back);
    free(ids);
}

/* ---------------------------------------------------------------------------------------- equal to SentencePiece */

static uint32_t check_vectors(const q_text *t) {
    uint64_t n;
    uint8_t *data = slurp("tests/golden/token-vectors.jsonl", &n);
    uint32_t lines = 0;
    for (char *line = (char *)data, *end; *line; line = end + 1, lines++) {
        end = strchr(line, '\n');
        ck_assert_ptr_nonnull(end);
        json_t *v = json_loadb(line, (size_t)(end - line), JSON_ALLOW_NUL, NULL);
        ck_assert_ptr_nonnull(v);
        const json_t *text = json_object_get(v, "text"), *want = json_object_get(v, "ids");
        size_t count;
        int32_t *ids = tokenize(t, json_string_value(text), json_string_length(text), 0, &count);
        ck_assert_msg(count == json_array_size(want), "line %u: %zu ids", lines + 1, count);
        for (size_t i = 0; i < count; i++) ck_assert_int_eq(ids[i], json_integer_value(json_array_get(want, i)));
        round_trip(t, json_string_value(text), json_string_length(text));
        free(ids);
        json_decref(v);
    }
    q_delete(&q_alloc_libc, data);
    return lines;
}

START_TEST(vectors_from_the_model_file) {
    q_text *t = open_pocket();
    ck_assert_uint_ge(check_vectors(t), 200);
    q_text_close(t);
}
END_TEST

/* Export, read the keys as a GGUF file's, export again. */
START_TEST(vectors_from_gguf_keys) {
    static const struct {
        const char *key;
        q_meta_type type, item;
        int64_t value;
    } want[] = {
        {"tokenizer.ggml.model", Q_META_STRING, 0, 0},
        {"tokenizer.ggml.tokens", Q_META_ARRAY, Q_META_STRING, 0},
        {"tokenizer.ggml.scores", Q_META_ARRAY, Q_META_F32, 0},
        {"tokenizer.ggml.token_type", Q_META_ARRAY, Q_META_I32, 0},
        {"tokenizer.ggml.bos_token_id", Q_META_U32, 0, 1},
        {"tokenizer.ggml.eos_token_id", Q_META_U32, 0, 2},
        {"tokenizer.ggml.unknown_token_id", Q_META_U32, 0, 0},
        {"tokenizer.ggml.add_bos_token", Q_META_BOOL, 0, 1},
        {"tokenizer.ggml.add_eos_token", Q_META_BOOL, 0, 0},
    };
    q_text *first = open_pocket();
    source s = {.dir = {.names = Q_NAMES_GGUF}, .arena = {.alloc = &q_alloc_libc}};
    s.dir.meta = s.meta;
    ck_assert_int_eq(q_text_export(first, &s.arena, s.meta, 3, &s.dir.n_meta), LQ_E_ARG);
    ck_assert_int_eq(q_text_export(first, &s.arena, s.meta, Q_TEXT_EXPORT_MAX, &s.dir.n_meta), LQ_OK);
    ck_assert_uint_eq(s.dir.n_meta, Q_COUNT(want));
    for (size_t i = 0; i < Q_COUNT(want); i++) {
        const q_meta *m = &s.meta[i];
        ck_assert_msg(q_str_is(m->key, want[i].key), "key %zu is %s", i, m->key.p);
        ck_assert_int_eq(m->type, want[i].type);
        if (m->type == Q_META_ARRAY) {
            ck_assert_int_eq(m->item, want[i].item);
            ck_assert_uint_eq(m->count, 4096);
        } else if (m->type != Q_META_STRING) {
            ck_assert_int_eq(m->i, want[i].value);
        }
    }
    ck_assert(q_str_is(s.meta[0].s, q_text_gguf_model(first)));
    ck_assert_str_eq(q_text_gguf_model(first), "llama");
    q_text *t = open_text(&s);
    ck_assert_uint_ge(check_vectors(t), 200);
    const q_vocab *a = q_text_vocab(first), *b = q_text_vocab(t);
    ck_assert_int_eq(a->n, b->n);
    ck_assert_int_eq(memcmp(a->scores, b->scores, (size_t)a->n * sizeof *a->scores), 0);
    ck_assert_int_eq(memcmp(a->types, b->types, (size_t)a->n * sizeof *a->types), 0);
    for (int32_t i = 0; i < a->n; i++) ck_assert(q_str_eq(a->pieces[i], b->pieces[i]));
    ck_assert(a->bos == b->bos && a->eos == b->eos && a->unk == b->unk && a->pad == b->pad);
    ck_assert(a->add_bos == b->add_bos && a->add_eos == b->add_eos);
    ck_assert(a->add_space_prefix == b->add_space_prefix && a->remove_extra_spaces == b->remove_extra_spaces);
    q_text_close(first);
    q_text_close(t);
    free_source(&s);
}
END_TEST

/* The plainest possible encoder over characters a, b, c and space, for vocabularies made of them. */
static size_t naive(const token *v, uint32_t n_v, const char *text, int32_t *out) {
    static char parts[64][48];
    size_t n = 0;
    for (; text[n]; n++) {
        parts[n][0] = text[n];
        parts[n][1] = 0;
    }
    for (;;) {
        size_t best = SIZE_MAX;
        float score = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (uint32_t k = 0; k < n_v; k++) {
                const size_t left = strlen(parts[i]);
                const bool match = strncmp(v[k].piece, parts[i], left) == 0 &&
                                   strcmp(v[k].piece + left, parts[i + 1]) == 0;
                if (match && (best == SIZE_MAX || v[k].score > score)) {
                    best = i;
                    score = v[k].score;
                }
            }
        if (best == SIZE_MAX) break;
        memcpy(parts[best] + strlen(parts[best]), parts[best + 1], strlen(parts[best + 1]) + 1);
        memmove(parts[best + 1], parts[best + 2], (n - best - 2) * sizeof parts[0]);
        n--;
    }
    size_t n_out = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t id = 0;
        for (uint32_t k = 1; k < n_v; k++)
            if (strcmp(parts[i], v[k].piece) == 0) id = (int32_t)k;
        if (id || n_out == 0 || out[n_out - 1]) out[n_out++] = id; /* a run of unknowns is one */
    }
    return n_out;
}

START_TEST(merges_in_order_of_score_then_position) {
    uint64_t seed = 7;
    for (int round = 0; round < 300; round++) {
        const char *const letters = round % 3 == 0 ? "aaa" : round % 3 == 1 ? "aab" : "abc";
        char pieces[40][8];
        token v[40] = {{"<unk>", 0, Q_TOKEN_UNKNOWN}};
        uint32_t n = 1;
        for (int tries = 0; tries < 30; tries++) {
            const uint32_t len = 1 + (uint32_t)(t_rand(&seed) % 7), score = (uint32_t)(t_rand(&seed) % 8);
            char *p = pieces[n];
            for (uint32_t i = 0; i < len; i++) p[i] = letters[t_rand(&seed) % 3];
            p[len] = 0;
            bool fresh = true;
            for (uint32_t i = 1; i < n; i++) fresh = fresh && strcmp(p, v[i].piece) != 0;
            /* Many equal scores, and zeros of both signs. */
            if (fresh) v[n++] = (token){p, score == 7 ? 0.0f : -(float)score, Q_TOKEN_NORMAL};
        }
        source s;
        from_tokens(&s, v, n);
        add_number(&s, "tokenizer.ggml.add_space_prefix", Q_META_BOOL, 0);
        q_text *t = open_text(&s);
        for (int k = 0; k < 20; k++) {
            char text[41];
            const uint32_t len = (uint32_t)(t_rand(&seed) % 40);
            for (uint32_t i = 0; i < len; i++) text[i] = t_rand(&seed) % 20 ? letters[t_rand(&seed) % 3] : 'd';
            text[len] = 0;
            int32_t want[64];
            check_ids(t, text, 0, want, naive(v, n, text, want));
        }
        q_text_close(t);
        free_source(&s);
    }
}
END_TEST

#define S "\xE2\x96\x81"
START_TEST(user_defined_unused_and_unknown_pieces) {
    static const token v[] = {
        {"<unk>", 0, 2}, {"a", -1, 1}, {"b", -1, 1},      {"ab", 0, 1},      {"<x>", 0, 4}, {"<x>a", 0, 4},
        {"abb", -2, 5},  {"c", -1, 1}, {S, -1, 1},        {S "a", -3, 1},    {"d", -1, 5},  {"a a", 0, 4},
    };
    source s;
    from_tokens(&s, v, Q_COUNT(v));
    q_text *t = open_text(&s);
    IDS(t, "ab", 0, 8, 3);
    IDS(t, "a", 0, 9);
    IDS(t, "c<x>b", 0, 8, 7, 4, 2);
    IDS(t, "c<x>ab", 0, 8, 7, 5, 2);  /* the longest user-defined piece; it joins nothing */
    IDS(t, "cabb", 0, 8, 7, 3, 2);    /* an unused piece is taken apart */
    IDS(t, "cd", 0, 8, 7, 0);         /* one that cannot be is unknown */
    IDS(t, "c\xC3\xA9zzc", 0, 8, 7, 0, 7);
    IDS(t, "ca a", 0, 8, 7, 1, 9);    /* a piece with a plain space matches nothing */
    ck_assert_int_eq(q_text_vocab(t)->unk, 0); /* found by its type */
    TEXT(t, "c\xEF\xBF\xBD<x>", 0, 8, 7, 0, 4);
    TEXT(t, "c<unk>", LQ_DETOKENIZE_SPECIAL, 8, 7, 0);
    q_text_close(t);
    free_source(&s);
}
END_TEST

START_TEST(extra_spaces_are_removed_where_the_model_says_so) {
    static const token v[] = {{"<unk>", 0, 2}, {S, -1, 1}, {"a", -1, 1}, {S "a", 0, 1}};
    source s;
    from_tokens(&s, v, Q_COUNT(v));
    add_number(&s, "tokenizer.ggml.remove_extra_whitespaces", Q_META_BOOL, 1);
    q_text *t = open_text(&s);
    IDS(t, "  a   a a  ", 0, 3, 3, 3);
    size_t n;
    free(tokenize(t, "    ", 4, 0, &n));
    ck_assert_uint_eq(n, 0);
    source e = {.arena = {.alloc = &q_alloc_libc}};
    ck_assert_int_eq(q_text_export(t, &e.arena, e.meta, Q_TEXT_EXPORT_MAX, &e.dir.n_meta), LQ_OK);
    e.dir.meta = e.meta;
    ck_assert_int_eq(get(&e, "tokenizer.ggml.remove_extra_whitespaces")->i, 1);
    free_source(&e);
    q_text_close(t);
    free_source(&s);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ any bytes */

START_TEST(bundled_texts_come_back) {
    static const char *const files[] = {"c", "calibration", "prose", "python", "technical"};
    q_text *t = open_pocket();
    for (size_t i = 0; i < Q_COUNT(files); i++) {
        char name[64];
        uint64_t n;
        snprintf(name, sizeof name, "bench/data/text/%s.txt", files[i]);
        uint8_t *data = slurp(name, &n);
        round_trip(t, (const char *)data, (size_t)n);
        q_delete(&q_alloc_libc, data);
    }
    q_text_close(t);
}
END_TEST

START_TEST(random_bytes_come_back) {
    q_text *t = open_pocket();
    uint64_t seed = 1;
    static const char *const bits[] = {"\xE2\x96", "\xE2\x96\x81", "\xE2", " ", "  ",
                                       "\xF0\x9F\x98\x80", "\xF0\x9F", "the"};
    for (int round = 0; round < 10000; round++) {
        char text[80];
        size_t n = 0;
        const size_t want = t_rand(&seed) % 64;
        while (n < want) {
            if (t_rand(&seed) % 3) {
                text[n++] = (char)t_rand(&seed);
                continue;
            }
            const char *bit = bits[t_rand(&seed) % Q_COUNT(bits)];
            memcpy(text + n, bit, strlen(bit));
            n += strlen(bit);
        }
        round_trip(t, text, n);
    }
    q_text_close(t);
}
END_TEST

START_TEST(difficult_texts_come_back) {
    static const struct {
        const char *text;
        size_t n;
    } texts[] = {
#define TEXT_OF(s) {s, sizeof s - 1}
        TEXT_OF(""), TEXT_OF("\0"), TEXT_OF("a\0b\0"), TEXT_OF(" "), TEXT_OF("   a"), TEXT_OF("a   "), TEXT_OF("\n \t"),
        TEXT_OF("\xF0\x9F\x91\xA8\xE2\x80\x8D\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA7\xE2\x80\x8D\xF0\x9F\x91\xA6"),
        TEXT_OF("\xC3\xA9 e\xCC\x81 \xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB \xED\x95\x9C"), /* NFC and NFD */
        TEXT_OF("\xED\xA0\x80\xED\xB0\x80 \xED\xBF\xBF"),                               /* surrogates */
        TEXT_OF("\xC0\x80\xE0\x80\x80\xF0\x80\x80\x80\xF4\x90\x80\x80\xF8\xFF\xFE"),     /* overlong, too large */
        TEXT_OF("\xEF\xBB\xBF\xE2\x80\xA8\xC2\xA0"), TEXT_OF("\xE2\x96 \xE2\x96\x81\x81"),
    };
    q_text *t = open_pocket();
    for (size_t i = 0; i < Q_COUNT(texts); i++) round_trip(t, texts[i].text, texts[i].n);
    size_t n;
    free(tokenize(t, "", 0, 0, &n)); /* no space goes before nothing */
    ck_assert_uint_eq(n, 0);
    q_text_close(t);
}
END_TEST

/* Megabytes without one place to cut, in vocabularies where everything merges again and again. */
START_TEST(long_runs_take_no_longer_per_byte) {
    enum { N = 10 << 20 };
    static token v[20];
    uint32_t n_v = 0;
    v[n_v++] = (token){"<unk>", 0, 2};
    static char pieces[9][300];
    for (uint32_t k = 0; k < 9; k++) {
        memset(pieces[k], 'a', 1u << k);
        v[n_v++] = (token){pieces[k], -(float)k, 1};
    }
    v[n_v++] = (token){S, -100, 1};
    source s;
    from_tokens(&s, v, n_v);
    q_text *t = open_text(&s);
    char *text = (char *)malloc(N);
    memset(text, 'a', N);
    size_t n = N / 256 + 1;
    int32_t *ids = (int32_t *)malloc(n * sizeof *ids);
    ck_assert_int_eq(q_text_tokenize(t, text, N, 0, ids, &n), LQ_OK);
    ck_assert_uint_eq(n, N / 256 + 1);
    ck_assert_int_eq(ids[0], 10);
    for (size_t i = 1; i < n; i++) ck_assert_int_eq(ids[i], 9);
    free(ids);
    q_text_close(t);
    free_source(&s);
    t = open_pocket();
    round_trip(t, text, 1 << 20);
    memset(text, ' ', 1 << 20);
    round_trip(t, text, 1 << 20);
    free(text);
    q_text_close(t);
}
END_TEST

/* --------------------------------------------------------------------------------------- special tokens, streams */

START_TEST(special_tokens_in_text_are_text_unless_asked_for) {
    q_text *t = open_pocket();
    size_t n;
    int32_t *ids = tokenize(t, "a</s><s>b", 9, LQ_TOKENIZE_BOS, &n);
    ck_assert_int_eq(ids[0], 1);
    for (size_t i = 1; i < n; i++) ck_assert_int_gt(ids[i], 2);
    free(ids);
    round_trip(t, "a</s><s>b<unk>", 14);
    const int32_t a = q_text_find(t, S "a"), b = q_text_find(t, S "b"), plain_b = q_text_find(t, "b");
    ck_assert(a >= 0 && b >= 0 && plain_b >= 0);
    /* A text begins at its first byte and after BOS, and there alone gets its space. */
    IDS(t, "a</s>b", LQ_TOKENIZE_PARSE_SPECIAL, a, 2, plain_b);
    IDS(t, "a</s><s>b", LQ_TOKENIZE_PARSE_SPECIAL, a, 2, 1, b);
    IDS(t, "<s>", LQ_TOKENIZE_PARSE_SPECIAL, 1);
    TEXT(t, "ab", 0, a, 2, plain_b);
    TEXT(t, "ab", 0, a, 2, 1, b);
    TEXT(t, "a</s><s>b", LQ_DETOKENIZE_SPECIAL, a, 2, 1, b);
    TEXT(t, " a", LQ_DETOKENIZE_MIDDLE, a);
    TEXT(t, "a b", 0, a, b);
    ck_assert_int_eq(q_text_find(t, "</s>"), 2);
    ck_assert_int_eq(q_text_find(t, "<0x0A>"), 13);
    ck_assert_int_eq(q_text_find(t, "no such piece"), -1);
    ck_assert_int_eq(q_text_find(t, ""), -1);
    q_text_close(t);
}
END_TEST

START_TEST(longest_special_token_wins) {
    static const token v[] = {{"<unk>", 0, 2}, {"<|a|>", 0, 3}, {"<|a|>b", 0, 3}, {"<", -1, 1},  {"|", -1, 1},
                              {"a", -1, 1},    {">", -1, 1},    {"b", -1, 1},     {"c", -1, 1}, {S, -1, 1}};
    source s;
    from_tokens(&s, v, Q_COUNT(v));
    q_text *t = open_text(&s);
    IDS(t, "c<|a|>bc<|a|><|a", LQ_TOKENIZE_PARSE_SPECIAL, 9, 8, 2, 8, 1, 3, 4, 5);
    IDS(t, "<|a|>", 0, 9, 3, 4, 5, 4, 6);
    q_text_close(t);
    free_source(&s);
}
END_TEST

static void count_message(void *user, lq_log_level level, const char *message) {
    ck_assert_int_eq(level, LQ_LOG_WARN);
    ck_assert_ptr_nonnull(strstr(message, "<s>"));
    ++*(int *)user;
}

START_TEST(bos_is_never_doubled) {
    int messages = 0;
    const q_log log = {count_message, &messages};
    source s;
    uint64_t n;
    uint8_t *file = slurp("bench/data/pocket/tokenizer.model", &n);
    from_model_file(&s, file, n);
    s.file = file;
    q_text *t;
    ck_assert_int_eq(q_text_open(&q_alloc_libc, &log, &s.dir, &t), LQ_OK);
    const int32_t a = q_text_find(t, S "a");
    IDS(t, "a", LQ_TOKENIZE_BOS, 1, a);
    IDS(t, "", LQ_TOKENIZE_BOS, 1);
    IDS(t, "a", LQ_TOKENIZE_BOS | LQ_TOKENIZE_PARSE_SPECIAL, 1, a);
    ck_assert_int_eq(messages, 0);
    IDS(t, "<s>a", LQ_TOKENIZE_BOS | LQ_TOKENIZE_PARSE_SPECIAL, 1, a);
    ck_assert_int_eq(messages, 2); /* both of the helper's calls */
    q_text_close(t);
    add_number(&s, "tokenizer_config.add_bos_token", Q_META_BOOL, 0);
    t = open_text(&s);
    IDS(t, "a", LQ_TOKENIZE_BOS, a);
    q_text_close(t);
    free_source(&s);
}
END_TEST

START_TEST(ids_outside_the_vocabulary_are_refused) {
    q_text *t = open_pocket();
    char text[16] = "untouched";
    size_t n = sizeof text;
    ck_assert_int_eq(q_text_detokenize(t, (const int32_t[]){300, -1}, 2, 0, text, &n), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "-1"));
    ck_assert_int_eq(q_text_detokenize(t, (const int32_t[]){4096}, 1, 0, text, &n), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "4096"));
    ck_assert_uint_eq(n, sizeof text);
    ck_assert_str_eq(text, "untouched");
    ck_assert_int_eq(q_text_detokenize(t, NULL, 0, 0, NULL, &(size_t){0}), LQ_OK);
    ck_assert_int_eq(q_text_detokenize(t, NULL, 0, 64, NULL, &n), LQ_E_ARG);
    q_text_close(t);
}
END_TEST

START_TEST(arguments_that_make_no_sense) {
    q_text *t = open_pocket();
    int32_t id = 1;
    char c;
    size_t n = 1;
    ck_assert_int_eq(q_text_tokenize(t, "a", 1, 8, &id, &n), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "unknown flags 0x8"));
    ck_assert_int_eq(q_text_tokenize(t, NULL, 1, 0, &id, &n), LQ_E_ARG);
    ck_assert_int_eq(q_text_tokenize(t, "a", 1, 0, NULL, &n), LQ_E_ARG);
    ck_assert_int_eq(q_text_tokenize(t, "a", 1, 0, &id, NULL), LQ_E_ARG);
    ck_assert_int_eq(q_text_detokenize(t, &id, 1, 8, &c, &n), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "unknown flags 0x8"));
    ck_assert_int_eq(q_text_detokenize(t, NULL, 1, 0, &c, &n), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "NULL"));
    ck_assert(n == 1 && id == 1);
    q_text_close(t);
}
END_TEST

START_TEST(too_little_room_writes_nothing) {
    q_text *t = open_pocket();
    int32_t ids[4] = {-7, -7, -7, -7};
    size_t n = 4;
    ck_assert_int_eq(q_text_tokenize(t, "the cat sat on the mat", 22, 0, ids, &n), LQ_E_ARG);
    ck_assert_uint_gt(n, 4);
    for (int i = 0; i < 4; i++) ck_assert_int_eq(ids[i], -7);
    int32_t *all = tokenize(t, "the cat sat on the mat", 22, 0, &n);
    char text[24];
    memset(text, '#', sizeof text);
    size_t room = 21;
    ck_assert_int_eq(q_text_detokenize(t, all, n, 0, text, &room), LQ_E_ARG);
    ck_assert_uint_eq(room, 22);
    ck_assert_int_eq(text[0], '#');
    ck_assert_int_eq(q_text_detokenize(t, all, n, 0, text, &room), LQ_OK);
    ck_assert_int_eq(memcmp(text, "the cat sat on the mat##", 24), 0);
    free(all);
    q_text_close(t);
}
END_TEST

static bool is_utf8(const char *s, size_t n) {
    char buf[512];
    snprintf(buf, sizeof buf, "\"%.*s\"", (int)n, s);
    json_t *v = json_loads(buf, JSON_DECODE_ANY, NULL); /* jansson is strict about it */
    json_decref(v);
    return v != NULL;
}

/* Token by token: what is out stays out, no character is ever broken, and in the end nothing is missing. */
START_TEST(streams_never_break_a_character) {
    static const char text[] = "Gr\xC3\xBC\xC3\x9F" "e \xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E "
                               "\xF0\x9F\x91\xA8\xE2\x80\x8D"
                               "\xF0\x9F\x91\xA9 \xF4\x8F\xBF\xBF \xED\x9F\xBF\xE0\xA0\x80.";
    q_text *t = open_pocket();
    size_t n, done = 0, held = 0, len, whole;
    int32_t *ids = tokenize(t, text, sizeof text - 1, 0, &n);
    for (size_t k = 1; k <= n; k++) {
        char *out = detokenize(t, ids, k, LQ_DETOKENIZE_STREAM, &len), *all = detokenize(t, ids, k, 0, &whole);
        ck_assert_uint_ge(len, done);
        ck_assert_uint_le(whole - len, 3);
        held += whole != len;
        ck_assert_int_eq(memcmp(out, text, len), 0);
        ck_assert(is_utf8(out, len));
        done = len;
        free(out);
        free(all);
    }
    ck_assert_uint_eq(done, sizeof text - 1);
    ck_assert_uint_gt(held, 10);
    free(ids);
    /* What cannot become a character is not held back: E0 80, ED A0, F4 90, F5, C1, a lone continuation. */
    static const uint8_t never[][2] = {{0xE0, 0x80}, {0xED, 0xA0}, {0xF4, 0x90},
                                       {'a', 0xF5},  {'a', 0xC1},  {'a', 0x80}};
    for (size_t i = 0; i < Q_COUNT(never); i++) {
        const int32_t pair[] = {3 + never[i][0], 3 + never[i][1]}; /* byte b is token b + 3 */
        free(detokenize(t, pair, 2, LQ_DETOKENIZE_STREAM, &len));
        ck_assert_uint_eq(len, 2);
    }
    q_text_close(t);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ hostile GGUF keys */

static const token small[] = {{"<unk>", 0, 2},  {"<s>", 0, 3}, {"</s>", 0, 3},
                              {"<0x0A>", 0, 6}, {S, -1, 1},    {"a", -2, 1}};

START_TEST(keys_that_contradict_one_another) {
    static const char *const arrays[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores",
                                         "tokenizer.ggml.token_type"};
    static const char *const ids[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
                                      "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"};
    source s;
    for (size_t i = 0; i < Q_COUNT(arrays); i++) {
        from_tokens(&s, small, Q_COUNT(small));
        get(&s, arrays[i])->count--;
        refuse(&s, LQ_E_INCONSISTENT, i ? arrays[i] : arrays[1]); /* the first array sets the length */
        get(&s, arrays[i])->count = 0;
        refuse(&s, LQ_E_INCONSISTENT, arrays[i]);
        get(&s, arrays[i])->count = Q_COUNT(small);
        get(&s, arrays[i])->item = Q_META_F64;
        refuse(&s, LQ_E_INCONSISTENT, arrays[i]);
        get(&s, arrays[i])->type = Q_META_STRING;
        refuse(&s, LQ_E_INCONSISTENT, arrays[i]);
        drop(&s, arrays[i]);
        refuse(&s, LQ_E_INCONSISTENT, arrays[i]);
        free_source(&s);
    }
    for (size_t i = 0; i < Q_COUNT(ids); i++) {
        from_tokens(&s, small, Q_COUNT(small));
        add_number(&s, ids[i], Q_META_U32, Q_COUNT(small));
        refuse(&s, LQ_E_INCONSISTENT, ids[i]);
        *get(&s, ids[i]) = (q_meta){.key = q_str_of(ids[i]), .type = Q_META_I32, .count = 1, .i = -1, .u = UINT64_MAX};
        refuse(&s, LQ_E_INCONSISTENT, ids[i]);
        get(&s, ids[i])->type = Q_META_F32;
        refuse(&s, LQ_E_INCONSISTENT, ids[i]);
        *get(&s, ids[i]) = (q_meta){.key = q_str_of(ids[i]), .type = Q_META_U32, .count = 1, .i = 5, .u = 5};
        q_text *t = open_text(&s);
        const q_vocab *v = q_text_vocab(t);
        const int32_t found[] = {v->bos, v->eos, v->unk, v->pad};
        ck_assert_int_eq(found[i], 5);
        q_text_close(t);
        free_source(&s);
    }
    from_tokens(&s, small, Q_COUNT(small));
    add_number(&s, "tokenizer.ggml.add_bos_token", Q_META_BOOL, 1);
    refuse(&s, LQ_E_INCONSISTENT, "tokenizer.ggml.add_bos_token");
    get(&s, "tokenizer.ggml.add_bos_token")->type = Q_META_U8;
    refuse(&s, LQ_E_INCONSISTENT, "tokenizer.ggml.add_bos_token");
    drop(&s, "tokenizer.ggml.add_bos_token");
    add_number(&s, "tokenizer.ggml.add_eos_token", Q_META_BOOL, 1);
    refuse(&s, LQ_E_INCONSISTENT, "there is no tokenizer.ggml.eos_token_id");
    drop(&s, "tokenizer.ggml.add_eos_token");
    add_number(&s, "tokenizer.ggml.bos_token_ie", Q_META_U32, 1); /* a damaged file, not an unknown key */
    refuse(&s, LQ_E_INCONSISTENT, "'tokenizer.ggml.bos_token_ie' is one bit away from 'tokenizer.ggml.bos_token_id'");
    drop(&s, "tokenizer.ggml.bos_token_ie");
    get(&s, "tokenizer.ggml.model")->type = Q_META_U32;
    refuse(&s, LQ_E_INCONSISTENT, "tokenizer.ggml.model is a u32");
    get(&s, "tokenizer.ggml.model")->type = Q_META_STRING;
    for (size_t i = 0; i < Q_COUNT(arrays); i++) get(&s, arrays[i])->count = Q_LIMIT_VOCAB + 1; /* before any is read */
    refuse(&s, LQ_E_LIMIT, "tokenizer.ggml.tokens has 16777217 items");
    free_source(&s);
}
END_TEST

START_TEST(tokenizers_we_do_not_have) {
    source s;
    from_tokens(&s, small, Q_COUNT(small));
    get(&s, "tokenizer.ggml.model")->s = q_str_of("gpt2");
    refuse(&s, LQ_E_UNSUPPORTED, "gpt2");
    get(&s, "tokenizer.ggml.model")->s = q_str_of("llama");
    add(&s, "tokenizer.ggml.precompiled_charsmap", Q_META_ARRAY);
    refuse(&s, LQ_E_UNSUPPORTED, "precompiled_charsmap");
    drop(&s, "tokenizer.ggml.model");
    refuse(&s, LQ_E_UNSUPPORTED, "tokenizer.ggml.model");
    free_source(&s);
    from_model_file(&s, (const uint8_t *)"{}", 2);
    s.dir.tokenizer_file = q_str_of("tokenizer.json");
    refuse(&s, LQ_E_UNSUPPORTED, "tokenizer.json");
    s.dir.tokenizer_file = (q_str){0};
    refuse(&s, LQ_E_UNSUPPORTED, "tokenizer");
}
END_TEST

START_TEST(tokens_that_cannot_be) {
    static const struct {
        token bad;
        const char *word;
    } cases[] = {
        {{"", 0, 1}, "tokens[6]"},       {{"a", 0, 1}, "tokens"},           {{"</s>", 0, 3}, "</s>"},
        {{"<0x-1>", 0, 6}, "<0x-1>"},    {{"<0xGG>", 0, 6}, "<0xGG>"},      {{"<0x0A", 0, 6}, "<0x0A"},
        {{"<0x0a>", 0, 6}, "<0x0a>"},    {{"0x0A", 0, 6}, "0x0A"},          {{"b", NAN, 1}, "scores[6]"},
        {{"b", INFINITY, 1}, "scores[6]"}, {{"b", 0, 0}, "token_type[6]"}, {{"b", 0, 7}, "token_type[6]"},
        {{"b", 0, -1}, "token_type[6]"},
    };
    token v[Q_COUNT(small) + 1];
    memcpy(v, small, sizeof small);
    source s;
    for (size_t i = 0; i < Q_COUNT(cases); i++) {
        v[Q_COUNT(small)] = cases[i].bad;
        from_tokens(&s, v, Q_COUNT(v));
        refuse(&s, LQ_E_INCONSISTENT, cases[i].word);
        free_source(&s);
    }
    char *huge = (char *)malloc((1 << 20) + 1);
    memset(huge, 'x', 1 << 20);
    huge[1 << 20] = 0;
    v[Q_COUNT(small)] = (token){huge, 0, 1};
    from_tokens(&s, v, Q_COUNT(v));
    refuse(&s, LQ_E_INCONSISTENT, "tokenizer.ggml.tokens[6]");
    free_source(&s);
    huge[Q_LIMIT_PIECE] = 0;
    from_tokens(&s, v, Q_COUNT(v));
    q_text *t = open_text(&s);
    size_t n;
    free(detokenize(t, (const int32_t[]){6}, 1, 0, &n));
    ck_assert_uint_eq(n, Q_LIMIT_PIECE);
    q_text_close(t);
    free_source(&s);
    v[Q_COUNT(small)].type = Q_TOKEN_CONTROL; /* special ones are sought at every byte of a text */
    from_tokens(&s, v, Q_COUNT(v));
    refuse(&s, LQ_E_LIMIT, "special token 6");
    free_source(&s);
    free(huge);
    /* Neither byte tokens nor an unknown token: what has no token is an error, not a guess. */
    from_tokens(&s, small + 4, 2);
    t = open_text(&s);
    n = 0;
    IDS(t, "a", 0, 0, 1);
    ck_assert_int_eq(q_text_tokenize(t, "b", 1, 0, NULL, &n), LQ_E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "0x62"));
    q_text_close(t);
    free_source(&s);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ tokenizer.model */

typedef struct bytes {
    uint8_t p[16384];
    size_t n;
} bytes;

static void put_varint(bytes *b, uint64_t v) {
    for (; v > 127; v >>= 7) b->p[b->n++] = (uint8_t)(v | 128);
    b->p[b->n++] = (uint8_t)v;
}
static void put_number(bytes *b, uint32_t field, uint64_t v) {
    put_varint(b, field << 3);
    put_varint(b, v);
}
static void put_bytes(bytes *b, uint32_t field, const void *data, size_t n) {
    put_varint(b, field << 3 | 2);
    put_varint(b, n);
    memcpy(b->p + b->n, data, n);
    b->n += n;
}
static void put_piece(bytes *b, const char *piece, float score, uint32_t type) {
    bytes m = {.n = 0};
    put_bytes(&m, 1, piece, strlen(piece));
    m.p[m.n++] = 2 << 3 | 5;
    memcpy(m.p + m.n, &score, 4);
    m.n += 4;
    if (type != 1) put_number(&m, 3, type);
    put_bytes(b, 1, m.p, m.n);
}
/* Three pieces, a trainer_spec of BPE with one more field, a normalizer_spec of one field (0 = none). */
static void model_file(bytes *b, uint32_t trainer_field, uint64_t trainer_value, uint32_t normalizer_field) {
    b->n = 0;
    put_piece(b, "<unk>", 0, 2);
    put_piece(b, S, -1, 1);
    put_piece(b, "a", -2, 1);
    bytes m = {.n = 0};
    put_number(&m, 3, 2);
    put_number(&m, 41, UINT64_MAX); /* bos_id, eos_id: -1, none */
    put_number(&m, 42, UINT64_MAX);
    if (trainer_field) put_number(&m, trainer_field, trainer_value);
    put_bytes(b, 2, m.p, m.n);
    m.n = 0;
    put_bytes(&m, 1, "identity", 8);
    if (normalizer_field == 2) put_bytes(&m, 2, "map", 3);
    else if (normalizer_field) put_number(&m, normalizer_field, 0);
    put_bytes(b, 3, m.p, m.n);
}

START_TEST(model_files_that_ask_for_something_else) {
    static const struct {
        uint32_t trainer_field;
        uint64_t trainer_value;
        uint32_t normalizer_field;
        lq_status code;
        const char *word;
    } cases[] = {
        {0, 0, 2, LQ_E_UNSUPPORTED, "precompiled_charsmap"}, {3, 1, 0, LQ_E_UNSUPPORTED, "unigram"},
        {3, 3, 0, LQ_E_UNSUPPORTED, "word"},                 {3, 1000, 0, LQ_E_UNSUPPORTED, "model_type is 1000"},
        {24, 1, 0, LQ_E_UNSUPPORTED, "treat_whitespace_as_suffix"},
        {0, 0, 5, LQ_E_UNSUPPORTED, "escape_whitespaces"},   {35, 1, 0, LQ_E_INCONSISTENT, "byte_fallback"},
        {40, 3, 0, LQ_E_INCONSISTENT, "unk_id"},             {41, 99, 0, LQ_E_INCONSISTENT, "bos_id"},
        {42, 3, 0, LQ_E_INCONSISTENT, "eos_id"},             {43, 3, 0, LQ_E_INCONSISTENT, "pad_id"},
    };
    static bytes b;
    source s;
    for (size_t i = 0; i < Q_COUNT(cases); i++) {
        model_file(&b, cases[i].trainer_field, cases[i].trainer_value, cases[i].normalizer_field);
        from_model_file(&s, b.p, b.n);
        refuse(&s, cases[i].code, cases[i].word);
    }
    model_file(&b, 0, 0, 3);
    put_bytes(&b, 5, "\x12\x03map", 5); /* denormalizer_spec: its charsmap */
    from_model_file(&s, b.p, b.n);
    refuse(&s, LQ_E_UNSUPPORTED, "denormalizer_spec.precompiled_charsmap");
    model_file(&b, 0, 0, 0); /* a whole message less at the end */
    from_model_file(&s, b.p, b.n - 12);
    refuse(&s, LQ_E_TRUNCATED, "normalizer_spec");
    model_file(&b, 0, 0, 3); /* no space before the text */
    put_bytes(&b, 5, "\x0A\x08identity", 10);
    from_model_file(&s, b.p, b.n);
    q_text *t = open_text(&s);
    const q_vocab *v = q_text_vocab(t);
    ck_assert(v->bos == -1 && v->eos == -1 && v->unk == 0 && v->pad == -1 && !v->add_bos && !v->add_space_prefix);
    ck_assert(v->remove_extra_spaces); /* the format's default */
    IDS(t, "a a", 0, 2, 1, 2);
    source e = {.arena = {.alloc = &q_alloc_libc}};
    e.dir.meta = e.meta;
    ck_assert_int_eq(q_text_export(t, &e.arena, e.meta, Q_TEXT_EXPORT_MAX, &e.dir.n_meta), LQ_OK);
    ck_assert_int_eq(get(&e, "tokenizer.ggml.add_space_prefix")->i, 0);
    free_source(&e);
    q_text_close(t);
}
END_TEST

START_TEST(damaged_model_files) {
    static bytes b;
    source s;
    model_file(&b, 0, 0, 4);
    const size_t whole = b.n;
    /* Every shorter file fails, or is one whose last fields are missing: those do not say BPE. */
    for (size_t n = 0; n < whole; n++) {
        from_model_file(&s, b.p, n);
        q_text *t;
        const lq_status r = q_text_open(&q_alloc_libc, NULL, &s.dir, &t);
        if (r == LQ_OK) q_text_close(t);
        else ck_assert(r == LQ_E_TRUNCATED || r == LQ_E_UNSUPPORTED);
    }
    /* Unknown fields of every kind are passed over. */
    put_number(&b, 9, 1ull << 63);
    put_bytes(&b, 200000, "whatever", 8);
    memcpy(b.p + b.n, "\x51" "12345678" "\x55" "1234", 14);
    b.n += 14;
    const size_t padded = b.n;
    from_model_file(&s, b.p, b.n);
    q_text_close(open_text(&s));
    static const struct {
        const char *tail;
        size_t n;
        lq_status code;
    } tails[] = {
        {"\x08\xFF", 2, LQ_E_FORMAT},                                     /* pieces as a number; cut */
        {"\x48\xFF\xFF", 3, LQ_E_TRUNCATED},                              /* a number without end */
        {"\x48\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 12, LQ_E_FORMAT}, /* of eleven bytes */
        {"\x4A\x05" "abcd", 6, LQ_E_TRUNCATED},                           /* longer than the file */
        {"\x4A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11, LQ_E_TRUNCATED}, /* 2^64 - 1 bytes */
        {"\x51" "1234567", 8, LQ_E_TRUNCATED},
        {"\x55" "123", 4, LQ_E_TRUNCATED},
        {"\x4B\x4B\x4B\x4B", 4, LQ_E_FORMAT},                             /* groups, nested */
        {"\x4F", 1, LQ_E_FORMAT},                                         /* wire type 7 */
        {"\x02\x00", 2, LQ_E_FORMAT},                                     /* field 0 */
        {"\x0A\x02\x08\x01", 4, LQ_E_FORMAT},                             /* a piece's text as a number */
        {"\x0A\x00", 2, LQ_E_INCONSISTENT},                               /* an empty piece */
        {"\x0A\x05\x0A\x01" "b\x18\x07", 7, LQ_E_INCONSISTENT},           /* of a type that is none */
        {"\x0A\x03\x0A\x01" "a", 5, LQ_E_INCONSISTENT},                   /* for the second time */
        {"\x0A\x05\x0A\x07" "abc", 7, LQ_E_TRUNCATED},                    /* longer than its message */
        {"\x12\x02\x1A\x00", 4, LQ_E_FORMAT},                             /* model_type as bytes */
    };
    for (size_t i = 0; i < Q_COUNT(tails); i++) {
        memcpy(b.p + padded, tails[i].tail, tails[i].n);
        from_model_file(&s, b.p, padded + tails[i].n);
        refuse(&s, i == 0 ? LQ_E_TRUNCATED : tails[i].code, "tokenizer.model");
    }
}
END_TEST

START_TEST(hugging_face_settings) {
    static bytes b;
    source s;
    model_file(&b, 0, 0, 3);
    from_model_file(&s, b.p, b.n);
    add_number(&s, "vocab_size", Q_META_I64, 8);
    add_string(&s, "tokenizer_config.added_tokens_decoder.3.content", "<|start|>");
    add_string(&s, "tokenizer_config.added_tokens_decoder.4.content", "<|end|>");
    add_number(&s, "tokenizer_config.added_tokens_decoder.4.special", Q_META_BOOL, 1);
    add_string(&s, "tokenizer_config.added_tokens_decoder.5.content", "plain");
    add_number(&s, "tokenizer_config.added_tokens_decoder.5.special", Q_META_BOOL, 0);
    add_string(&s, "tokenizer_config.bos_token", "<|start|>");
    add_string(&s, "tokenizer_config.eos_token.content", "<|end|>");
    add_number(&s, "pad_token_id", Q_META_I64, -1);
    q_text *t = open_text(&s);
    const q_vocab *v = q_text_vocab(t);
    ck_assert_int_eq(v->n, 8); /* as many as the model has rows */
    ck_assert(q_str_is(v->pieces[7], "[PAD7]") && v->types[7] == Q_TOKEN_UNUSED);
    ck_assert(v->bos == 3 && v->eos == 4 && v->unk == 0 && v->pad == -1 && v->add_bos);
    IDS(t, "a<|end|>plain", LQ_TOKENIZE_BOS | LQ_TOKENIZE_PARSE_SPECIAL, 3, 2, 4, 5);
    IDS(t, "aplain[PAD7]", 0, 2, 5, 0);
    q_text_close(t);
    get(&s, "tokenizer_config.bos_token")->s = q_str_of("<|none|>");
    refuse(&s, LQ_E_INCONSISTENT, "<|none|>");
    drop(&s, "tokenizer_config.bos_token");
    add_number(&s, "tokenizer_config.add_bos_token", Q_META_BOOL, 1);
    refuse(&s, LQ_E_INCONSISTENT, "tokenizer_config.add_bos_token is true");
    get(&s, "tokenizer_config.add_bos_token")->type = Q_META_STRING;
    refuse(&s, LQ_E_INCONSISTENT, "tokenizer_config.add_bos_token is a string");
    drop(&s, "tokenizer_config.add_bos_token");
    add_number(&s, "bos_token_id", Q_META_I64, 8);
    refuse(&s, LQ_E_INCONSISTENT, "bos_token_id");
    get(&s, "bos_token_id")->i = 3;
    q_text_close(open_text(&s));
    add_string(&s, "tokenizer_config.added_tokens_decoder.2.content", "b");
    refuse(&s, LQ_E_INCONSISTENT, "added_tokens_decoder.2");
    get(&s, "tokenizer_config.added_tokens_decoder.2.content")->s = q_str_of("a");
    q_text_close(open_text(&s));
    get(&s, "vocab_size")->i = (int64_t)1 << 40;
    refuse(&s, LQ_E_LIMIT, "vocab_size");
    drop(&s, "vocab_size");
    add_string(&s, "tokenizer_config.added_tokens_decoder.99999999999999999999.content", "x");
    refuse(&s, LQ_E_LIMIT, "vocab_size");
}
END_TEST

/* ------------------------------------------------------------------------------------------------ memory */

typedef struct failing {
    int64_t left;   /* allocations until one fails */
    int64_t blocks; /* alive */
} failing;
static void *failing_alloc(void *user, size_t n, size_t align) {
    failing *f = (failing *)user;
    if (f->left-- == 0) return NULL;
    f->blocks++;
    return q_alloc_libc.alloc(NULL, n, align);
}
static void failing_free(void *user, void *p, size_t n) {
    ((failing *)user)->blocks--;
    q_alloc_libc.free(NULL, p, n);
}

START_TEST(every_allocation_may_fail) {
    static const token v[] = {{"<unk>", 0, 2}, {"a", 0, 1}, {"aa", 1, 5}, {S, 0, 1}, {"<x>", 0, 4}, {"<s>", 0, 3}};
    static char text[1000];
    memset(text, 'a', sizeof text);
    source s;
    from_tokens(&s, v, Q_COUNT(v));
    bool done = false;
    for (int64_t k = 0; !done; k++) {
        failing f = {.left = k};
        const q_alloc a = {failing_alloc, failing_free, &f};
        q_text *t = NULL;
        int32_t ids[1002];
        size_t n = 1002;
        lq_status r = q_text_open(&a, NULL, &s.dir, &t);
        if (r == LQ_OK) {
            r = q_text_tokenize(t, text, sizeof text, 0, ids, &n);
            done = r == LQ_OK;
            q_text_close(t);
        }
        ck_assert(done ? n == 1001 : r == LQ_E_NOMEM && n == 1002);
        ck_assert_int_eq(f.blocks, 0);
        ck_assert_int_lt(k, 1000);
    }
    free_source(&s);
}
END_TEST

static Suite *suite(void) {
    Suite *all = suite_create("tokenizer");
    TCase *c = tcase_create("all");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, vectors_from_the_model_file);
    tcase_add_test(c, vectors_from_gguf_keys);
    tcase_add_test(c, merges_in_order_of_score_then_position);
    tcase_add_test(c, user_defined_unused_and_unknown_pieces);
    tcase_add_test(c, extra_spaces_are_removed_where_the_model_says_so);
    tcase_add_test(c, bundled_texts_come_back);
    tcase_add_test(c, random_bytes_come_back);
    tcase_add_test(c, difficult_texts_come_back);
    tcase_add_test(c, long_runs_take_no_longer_per_byte);
    tcase_add_test(c, special_tokens_in_text_are_text_unless_asked_for);
    tcase_add_test(c, longest_special_token_wins);
    tcase_add_test(c, bos_is_never_doubled);
    tcase_add_test(c, ids_outside_the_vocabulary_are_refused);
    tcase_add_test(c, arguments_that_make_no_sense);
    tcase_add_test(c, too_little_room_writes_nothing);
    tcase_add_test(c, streams_never_break_a_character);
    tcase_add_test(c, keys_that_contradict_one_another);
    tcase_add_test(c, tokenizers_we_do_not_have);
    tcase_add_test(c, tokens_that_cannot_be);
    tcase_add_test(c, model_files_that_ask_for_something_else);
    tcase_add_test(c, damaged_model_files);
    tcase_add_test(c, hugging_face_settings);
    tcase_add_test(c, every_allocation_may_fail);
    suite_add_tcase(all, c);
    return all;
}

HARNESS_MAIN(suite)
