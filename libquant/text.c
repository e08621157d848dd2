/* text.c: vocabularies out of directories, and text to tokens and back.
 *
 * Owns what tokenizer kinds leave open: which kind, where the special ids come from, whether a vocabulary holds
 * together, special tokens spelled in text, BOS, the leading space, streams that end inside a character. Refuses
 * vocabularies that contradict themselves, naming the key. Knows the kinds through their table alone. Layer L3. */
#include "text.h"

#include <math.h>
#include <stdio.h>

struct q_text {
    const q_alloc *alloc;
    const q_log *log;
    const q_tokenizer_kind *kind;
    void *state;
    q_vocab vocab;
    q_index index;   /* pieces by spelling */
    q_match special; /* control and unknown tokens */
    size_t longest;  /* bytes of a token */
};

/* ------------------------------------------------------------------------------------------------ metadata */

#define KEY "tokenizer.ggml."
#define HF_KEY "tokenizer_config."

static const char *type_name(q_meta_type type) {
    static const char *const names[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array",
                                        "u64", "i64", "f64"};
    return (uint32_t)type < Q_COUNT(names) ? names[type] : "?";
}

static bool is_integer(q_meta_type type) {
    return type <= Q_META_I32 || type == Q_META_U64 || type == Q_META_I64;
}

/* A token id: absent leaves *id alone. */
static lq_status meta_id(const q_directory *dir, const char *key, int32_t n, int32_t *id) {
    const q_meta *m = q_directory_meta(dir, key);
    if (!m) return LQ_OK;
    if (!is_integer(m->type))
        return q_fail(LQ_E_INCONSISTENT, "%s is a %s, not a token id", key, type_name(m->type));
    if (m->i < 0 || m->i >= n)
        return q_fail(LQ_E_INCONSISTENT, "%s is %lld in a vocabulary of %d tokens", key, (long long)m->i, n);
    *id = (int32_t)m->i;
    return LQ_OK;
}

static lq_status meta_bool(const q_directory *dir, const char *key, bool *value) {
    const q_meta *m = q_directory_meta(dir, key);
    if (!m) return LQ_OK;
    if (m->type != Q_META_BOOL) return q_fail(LQ_E_INCONSISTENT, "%s is a %s, not a bool", key, type_name(m->type));
    *value = m->i != 0;
    return LQ_OK;
}

/* An array with items of one type and, unless 0, of one length. */
static lq_status meta_array(const q_directory *dir, const char *key, q_meta_type item, uint64_t count,
                            const q_meta **out) {
    const q_meta *m = q_directory_meta(dir, key);
    if (!m) return q_fail(LQ_E_INCONSISTENT, "%s is missing", key);
    if (m->type != Q_META_ARRAY || m->item != item)
        return q_fail(LQ_E_INCONSISTENT, "%s is %s%s, not an array of %s", key,
                      m->type == Q_META_ARRAY ? "an array of " : "one ",
                      type_name(m->type == Q_META_ARRAY ? m->item : m->type), type_name(item));
    if (m->count == 0 || (count && m->count != count))
        return q_fail(LQ_E_INCONSISTENT, "%s has %llu items, but " KEY "tokens has %llu", key,
                      (unsigned long long)m->count, (unsigned long long)(count ? count : m->count));
    *out = m;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ from GGUF keys */

static lq_status vocab_arrays(q_vocab *v, uint64_t n, uint64_t bytes, q_str **pieces, float **scores, int32_t **types,
                              char **text) {
    *pieces = (q_str *)q_arena_new(&v->arena, n, sizeof **pieces);
    *scores = (float *)q_arena_new(&v->arena, n, sizeof **scores);
    *types = (int32_t *)q_arena_new(&v->arena, n, sizeof **types);
    *text = (char *)q_arena_new(&v->arena, bytes, 1);
    if (!*pieces || !*scores || !*types || !*text) return LQ_E_NOMEM;
    v->n = (int32_t)n;
    v->pieces = *pieces;
    v->scores = *scores;
    v->types = *types;
    return LQ_OK;
}

static lq_status from_gguf_arrays(const q_directory *dir, q_vocab *v) {
    const q_meta *tokens, *scores, *types;
    Q_TRY(meta_array(dir, KEY "tokens", Q_META_STRING, 0, &tokens));
    Q_TRY(meta_array(dir, KEY "scores", Q_META_F32, tokens->count, &scores));
    Q_TRY(meta_array(dir, KEY "token_type", Q_META_I32, tokens->count, &types));
    if (tokens->count > Q_LIMIT_VOCAB)
        return q_fail(LQ_E_LIMIT, KEY "tokens has %llu items; at most %d are supported",
                      (unsigned long long)tokens->count, Q_LIMIT_VOCAB);
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < tokens->count; i++) bytes += tokens->strs[i].n;
    q_str *p;
    float *s;
    int32_t *t;
    char *to;
    Q_TRY(vocab_arrays(v, tokens->count, bytes, &p, &s, &t, &to));
    memcpy(s, scores->raw, (size_t)tokens->count * sizeof *s);
    memcpy(t, types->raw, (size_t)tokens->count * sizeof *t);
    for (uint64_t i = 0; i < tokens->count; i++) {
        p[i] = (q_str){to, tokens->strs[i].n};
        if (p[i].n) memcpy(to, tokens->strs[i].p, (size_t)p[i].n);
        to += p[i].n;
    }
    return LQ_OK;
}

static lq_status from_gguf(const q_directory *dir, q_text *t) {
    q_vocab *v = &t->vocab;
    const q_meta *model = q_directory_meta(dir, KEY "model");
    if (!model) return q_fail(LQ_E_UNSUPPORTED, "the file has no tokenizer: " KEY "model is missing");
    if (model->type != Q_META_STRING)
        return q_fail(LQ_E_INCONSISTENT, KEY "model is a %s, not a string", type_name(model->type));
    for (const q_tokenizer_kind *const *k = q_tokenizers; *k && !t->kind; k++)
        if (q_str_is(model->s, (*k)->gguf_model)) t->kind = *k;
    if (!t->kind)
        return q_fail(LQ_E_UNSUPPORTED, KEY "model is \"%.*s\": no such tokenizer in this build", Q_STR_ARG(model->s));
    static const char *const optional[] = {
        KEY "bos_token_id",  KEY "eos_token_id",  KEY "unknown_token_id", KEY "padding_token_id",
        KEY "add_bos_token", KEY "add_eos_token", KEY "add_space_prefix", KEY "remove_extra_whitespaces",
        KEY "precompiled_charsmap"};
    Q_TRY(q_directory_check_keys(dir, optional, Q_COUNT(optional)));
    if (q_directory_meta(dir, KEY "precompiled_charsmap"))
        return q_fail(LQ_E_UNSUPPORTED, KEY "precompiled_charsmap: text normalization is not supported");
    Q_TRY(from_gguf_arrays(dir, v));
    Q_TRY(meta_id(dir, KEY "bos_token_id", v->n, &v->bos));
    Q_TRY(meta_id(dir, KEY "eos_token_id", v->n, &v->eos));
    Q_TRY(meta_id(dir, KEY "unknown_token_id", v->n, &v->unk));
    Q_TRY(meta_id(dir, KEY "padding_token_id", v->n, &v->pad));
    for (int32_t i = 0; i < v->n && v->unk < 0; i++)
        if (v->types[i] == Q_TOKEN_UNKNOWN) v->unk = i;
    /* What readers of the format take where a file is silent: BOS and a space go in front, no EOS. */
    v->add_bos = v->bos >= 0;
    v->add_space_prefix = true;
    Q_TRY(meta_bool(dir, KEY "add_bos_token", &v->add_bos));
    Q_TRY(meta_bool(dir, KEY "add_eos_token", &v->add_eos));
    Q_TRY(meta_bool(dir, KEY "add_space_prefix", &v->add_space_prefix));
    Q_TRY(meta_bool(dir, KEY "remove_extra_whitespaces", &v->remove_extra_spaces));
    if (v->add_bos && v->bos < 0)
        return q_fail(LQ_E_INCONSISTENT, KEY "add_bos_token is true, but there is no " KEY "bos_token_id");
    if (v->add_eos && v->eos < 0)
        return q_fail(LQ_E_INCONSISTENT, KEY "add_eos_token is true, but there is no " KEY "eos_token_id");
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ from HF files */

/* "tokenizer_config.added_tokens_decoder.32000.content": the id, and which of its fields; -1 = another key. */
static int64_t added_token(q_str key, q_str *name) {
    static const char head[] = HF_KEY "added_tokens_decoder.";
    const uint64_t skip = sizeof head - 1;
    if (key.n <= skip || memcmp(key.p, head, skip) != 0) return -1;
    int64_t id = 0;
    uint64_t i = skip;
    for (; i < key.n && key.p[i] >= '0' && key.p[i] <= '9'; i++)
        id = Q_MIN(id * 10 + key.p[i] - '0', (int64_t)1 << 40);
    if (i == skip || i + 1 >= key.n || key.p[i] != '.') return -1;
    *name = (q_str){key.p + i + 1, key.n - i - 1};
    return id;
}

/* The vocabulary grown to `n` tokens: new places hold what converters put where a model has more rows than tokens. */
static lq_status pad_vocab(q_vocab *v, uint64_t n) {
    const uint64_t old = (uint64_t)v->n;
    const q_vocab before = *v;
    if (n > Q_LIMIT_VOCAB)
        return q_fail(LQ_E_LIMIT, "vocab_size is %llu; at most %d tokens are supported", (unsigned long long)n,
                      Q_LIMIT_VOCAB);
    enum { NAME = 16 };
    q_str *p;
    float *s;
    int32_t *t;
    char *text;
    Q_TRY(vocab_arrays(v, n, (n - old) * NAME, &p, &s, &t, &text));
    memcpy(p, before.pieces, old * sizeof *p);
    memcpy(s, before.scores, old * sizeof *s);
    memcpy(t, before.types, old * sizeof *t);
    for (uint64_t i = old; i < n; i++, text += NAME) {
        p[i] = (q_str){text, (uint64_t)snprintf(text, NAME, "[PAD%u]", (unsigned)i)};
        s[i] = -10000.0f;
        t[i] = Q_TOKEN_UNUSED;
    }
    return LQ_OK;
}

/* Tokens that were added after training: new ids, or another meaning for old ones. */
static lq_status added_tokens(const q_directory *dir, q_vocab *v, int32_t trained) {
    q_str *pieces = (q_str *)(uintptr_t)v->pieces; /* ours: vocab_arrays or the kind put them into the arena */
    int32_t *types = (int32_t *)(uintptr_t)v->types;
    float *scores = (float *)(uintptr_t)v->scores;
    for (uint32_t i = 0; i < dir->n_meta; i++) {
        const q_meta *m = &dir->meta[i];
        q_str name;
        const int64_t id = added_token(m->key, &name);
        if (id < 0 || id >= v->n || !q_str_is(name, "content")) continue;
        if (m->type != Q_META_STRING)
            return q_fail(LQ_E_INCONSISTENT, "%.*s is a %s, not a string", Q_STR_ARG(m->key), type_name(m->type));
        if (id < trained && !q_str_eq(m->s, pieces[id]))
            return q_fail(LQ_E_INCONSISTENT, "%.*s is \"%.*s\", but tokenizer.model has \"%.*s\" there",
                          Q_STR_ARG(m->key), Q_STR_ARG(m->s), Q_STR_ARG(pieces[id]));
        char key[96];
        snprintf(key, sizeof key, HF_KEY "added_tokens_decoder.%d.special", (int)id);
        bool special = true;
        Q_TRY(meta_bool(dir, key, &special));
        if (id >= trained) {
            const char *copy = q_arena_str(&v->arena, m->s);
            if (!copy) return LQ_E_NOMEM;
            pieces[id] = (q_str){copy, m->s.n};
            scores[id] = -1000.0f;
            types[id] = special ? Q_TOKEN_CONTROL : Q_TOKEN_USER;
        } else if (special && types[id] != Q_TOKEN_UNKNOWN && types[id] != Q_TOKEN_BYTE) {
            types[id] = Q_TOKEN_CONTROL;
        }
    }
    return LQ_OK;
}

/* A special id of a Hugging Face model: the token that tokenizer_config.json names, else config.json's id, else what
 * the tokenizer file has. Generation models list several ends of sequence: the first counts. */
static lq_status hf_special(const q_directory *dir, const q_vocab *v, const char *name, int32_t *id) {
    char key[96];
    snprintf(key, sizeof key, HF_KEY "%s", name);
    const q_meta *m = q_directory_meta(dir, key);
    if (!m || m->type != Q_META_STRING) {
        snprintf(key, sizeof key, HF_KEY "%s.content", name);
        m = q_directory_meta(dir, key);
    }
    if (m && m->type == Q_META_STRING) {
        for (int32_t i = 0; i < v->n; i++)
            if (q_str_eq(v->pieces[i], m->s)) {
                *id = i;
                return LQ_OK;
            }
        return q_fail(LQ_E_INCONSISTENT, "%s is \"%.*s\", which is not in the vocabulary", key, Q_STR_ARG(m->s));
    }
    snprintf(key, sizeof key, "%s_id", name);
    m = q_directory_meta(dir, key);
    if (m && m->type == Q_META_ARRAY) return LQ_OK; /* several: the tokenizer's own stays */
    if (m && m->i == -1 && is_integer(m->type)) { /* written for "none" */
        *id = -1;
        return LQ_OK;
    }
    return m && is_integer(m->type) ? meta_id(dir, key, v->n, id) : LQ_OK;
}

static lq_status from_hf(const q_directory *dir, q_text *t) {
    q_vocab *v = &t->vocab;
    if (dir->tokenizer_file.n == 0) return q_fail(LQ_E_UNSUPPORTED, "the model has no tokenizer file");
    for (const q_tokenizer_kind *const *k = q_tokenizers; *k && !t->kind; k++)
        if (q_str_is(dir->tokenizer_file, (*k)->file)) t->kind = *k;
    if (!t->kind)
        return q_fail(LQ_E_UNSUPPORTED, "no tokenizer in this build reads \"%.*s\"", Q_STR_ARG(dir->tokenizer_file));
    static const char *const optional[] = {
        HF_KEY "bos_token",         HF_KEY "eos_token",         HF_KEY "unk_token",         HF_KEY "pad_token",
        HF_KEY "bos_token.content", HF_KEY "eos_token.content", HF_KEY "unk_token.content", HF_KEY "pad_token.content",
        HF_KEY "add_bos_token",     HF_KEY "add_eos_token",     HF_KEY "add_prefix_space"};
    Q_TRY(q_directory_check_keys(dir, optional, Q_COUNT(optional)));
    Q_TRY(t->kind->from_file(dir->tokenizer, dir->tokenizer_bytes, v));
    const int32_t trained = v->n;
    uint64_t n = (uint64_t)trained;
    const q_meta *rows = q_directory_meta(dir, "vocab_size");
    if (rows && is_integer(rows->type) && rows->i > 0) n = Q_MAX(n, (uint64_t)rows->i);
    for (uint32_t i = 0; i < dir->n_meta; i++) {
        q_str name;
        const int64_t id = added_token(dir->meta[i].key, &name);
        if (id >= 0) n = Q_MAX(n, (uint64_t)id + 1);
    }
    if (n > (uint64_t)trained) Q_TRY(pad_vocab(v, n));
    Q_TRY(added_tokens(dir, v, trained));
    Q_TRY(hf_special(dir, v, "bos_token", &v->bos));
    Q_TRY(hf_special(dir, v, "eos_token", &v->eos));
    Q_TRY(hf_special(dir, v, "unk_token", &v->unk));
    Q_TRY(hf_special(dir, v, "pad_token", &v->pad));
    v->add_bos = v->bos >= 0;
    Q_TRY(meta_bool(dir, HF_KEY "add_bos_token", &v->add_bos));
    Q_TRY(meta_bool(dir, HF_KEY "add_eos_token", &v->add_eos));
    Q_TRY(meta_bool(dir, HF_KEY "add_prefix_space", &v->add_space_prefix));
    if ((v->add_bos && v->bos < 0) || (v->add_eos && v->eos < 0))
        return q_fail(LQ_E_INCONSISTENT, HF_KEY "add_%s_token is true, but there is no such token",
                      v->add_bos && v->bos < 0 ? "bos" : "eos");
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ open */

static bool byte_spelling(q_str s) {
    if (s.n != 6 || memcmp(s.p, "<0x", 3) != 0 || s.p[5] != '>') return false;
    for (int i = 3; i < 5; i++)
        if (!((s.p[i] >= '0' && s.p[i] <= '9') || (s.p[i] >= 'A' && s.p[i] <= 'F') || (s.p[i] >= 'a' && s.p[i] <= 'f')))
            return false;
    return true;
}

/* What no vocabulary may be; `where` names the source, to be followed by a position. */
static lq_status check_vocab(const q_vocab *v, const char *pieces, const char *scores, const char *types) {
    for (int32_t i = 0; i < v->n; i++) {
        const q_str s = v->pieces[i];
        if (s.n == 0) return q_fail(LQ_E_INCONSISTENT, "%s[%d] is empty", pieces, i);
        if (s.n > Q_LIMIT_PIECE)
            return q_fail(LQ_E_INCONSISTENT, "%s[%d] has %llu bytes; at most %d are supported", pieces, i,
                          (unsigned long long)s.n, Q_LIMIT_PIECE);
        if (v->types[i] < Q_TOKEN_NORMAL || v->types[i] > Q_TOKEN_BYTE)
            return q_fail(LQ_E_INCONSISTENT, "%s[%d] is %d, not a token type (1 to 6)", types, i, v->types[i]);
        if (!isfinite(v->scores[i])) return q_fail(LQ_E_INCONSISTENT, "%s[%d] is not finite", scores, i);
        if (v->types[i] == Q_TOKEN_BYTE && !byte_spelling(s))
            return q_fail(LQ_E_INCONSISTENT, "%s[%d] is \"%.*s\", but its type says byte token", pieces, i,
                          Q_STR_ARG(s));
    }
    return LQ_OK;
}

static lq_status open_tables(q_text *t, bool gguf) {
    q_vocab *v = &t->vocab;
    const char *const pieces = gguf ? KEY "tokens" : t->kind->file;
    Q_TRY(check_vocab(v, pieces, gguf ? KEY "scores" : "score of piece", gguf ? KEY "token_type" : "type of piece"));
    lq_status s = q_index_build(t->alloc, v->pieces, sizeof *v->pieces, (uint32_t)v->n, "token", &t->index);
    if (s == LQ_OK) s = t->kind->open(t->alloc, v, &t->state);
    if (s != LQ_OK) return s == LQ_E_NOMEM ? s : q_fail_in(s, "%s", pieces);
    int32_t *special = Q_NEW(t->alloc, int32_t, v->n);
    if (!special) return LQ_E_NOMEM;
    uint32_t n = 0;
    t->longest = 3; /* U+FFFD */
    for (int32_t i = 0; i < v->n; i++) t->longest = Q_MAX(t->longest, (size_t)v->pieces[i].n);
    for (int32_t i = 0; i < v->n; i++)
        if (v->types[i] == Q_TOKEN_CONTROL || v->types[i] == Q_TOKEN_UNKNOWN) special[n++] = i;
    s = q_match_build(t->alloc, v->pieces, special, n, &t->special);
    q_delete(t->alloc, special);
    return s == LQ_OK || s == LQ_E_NOMEM ? s : q_fail_in(s, "%s", pieces);
}

lq_status q_text_open(const q_alloc *a, const q_log *log, const q_directory *dir, q_text **out) {
    q_text *t = Q_NEW(a, q_text, 1);
    if (!t) return LQ_E_NOMEM;
    t->alloc = a;
    t->log = log;
    t->vocab = (q_vocab){.bos = -1, .eos = -1, .unk = -1, .pad = -1, .arena = {.alloc = a}};
    const bool gguf = dir->names == Q_NAMES_GGUF;
    lq_status s = gguf ? from_gguf(dir, t) : from_hf(dir, t);
    if (s == LQ_OK) s = open_tables(t, gguf);
    if (s == LQ_OK) *out = t;
    else q_text_close(t);
    return s;
}

void q_text_close(q_text *t) {
    if (!t) return;
    if (t->state) t->kind->close(t->state);
    q_match_free(t->alloc, &t->special);
    q_delete(t->alloc, t->index.cells);
    q_arena_free(&t->vocab.arena);
    q_delete(t->alloc, t);
}

const q_vocab *q_text_vocab(const q_text *t) { return &t->vocab; }
const char *q_text_gguf_model(const q_text *t) { return t->kind->gguf_model; }

lq_status q_text_same(const q_text *a, const q_text *b) {
    const q_vocab *v = &a->vocab, *w = &b->vocab;
    if (a == b) return LQ_OK;
    if (v->n != w->n)
        return q_fail(LQ_E_INCONSISTENT, "the vocabularies differ: %d tokens in the model, %d in the draft model", v->n,
                      w->n);
    for (int32_t i = 0; i < v->n; i++)
        if (!q_str_eq(v->pieces[i], w->pieces[i]) || v->types[i] != w->types[i])
            return q_fail(LQ_E_INCONSISTENT,
                          "the vocabularies differ: token %d is '%.*s' of type %d in the model, '%.*s' of type %d in "
                          "the draft model", i, Q_STR_ARG(v->pieces[i]), v->types[i], Q_STR_ARG(w->pieces[i]),
                          w->types[i]);
    if (v->bos == w->bos && v->eos == w->eos) return LQ_OK;
    return q_fail(LQ_E_INCONSISTENT,
                  "the vocabularies differ: BOS %d and EOS %d in the model, %d and %d in the draft model", v->bos,
                  v->eos, w->bos, w->eos);
}

int32_t q_text_find(const q_text *t, const char *piece) {
    return (int32_t)q_index_find(&t->index, t->vocab.pieces, sizeof *t->vocab.pieces, q_str_of(piece));
}

/* ------------------------------------------------------------------------------------------------ tokenize */

/* Ids are collected in blocks, since nothing may be written to the caller before the number is known to fit; beyond
 * its capacity they are only counted. */
enum { BLOCK_IDS = 16384 - 64 };
typedef struct block {
    struct block *next;
    uint32_t n;
    int32_t ids[BLOCK_IDS];
} block;

typedef struct sink {
    const q_alloc *alloc;
    block *first, *last;
    size_t n, cap;
} sink;

static lq_status put(void *user, int32_t id) {
    sink *s = (sink *)user;
    if (s->n++ >= s->cap) return LQ_OK;
    if (!s->last || s->last->n == BLOCK_IDS) {
        block *b = (block *)q_new_raw(s->alloc, 1, sizeof *b);
        if (!b) return LQ_E_NOMEM;
        b->next = NULL;
        b->n = 0;
        if (s->last) s->last->next = b;
        else s->first = b;
        s->last = b;
    }
    s->last->ids[s->last->n++] = id;
    return LQ_OK;
}

static lq_status tokenize(const q_text *t, const char *text, size_t bytes, uint32_t flags, sink *out) {
    const q_vocab *v = &t->vocab;
    const bool parse = (flags & LQ_TOKENIZE_PARSE_SPECIAL) != 0;
    uint32_t length = 0;
    if ((flags & LQ_TOKENIZE_BOS) && v->add_bos) {
        if (parse && q_match_find(&t->special, text, bytes, &length) == v->bos)
            q_log_write(t->log, LQ_LOG_WARN, "the text already begins with %.*s: no second one is added",
                        Q_STR_ARG(v->pieces[v->bos]));
        else Q_TRY(put(out, v->bos));
    }
    size_t from = 0; /* of the plain text before i */
    bool start = true;
    for (size_t i = 0; parse && i < bytes;) {
        const int32_t id = q_match_find(&t->special, text + i, bytes - i, &length);
        if (id < 0) {
            i++;
            continue;
        }
        if (i > from) Q_TRY(t->kind->encode(t->state, text + from, i - from, start, put, out));
        Q_TRY(put(out, id));
        i += length;
        from = i;
        start = id == v->bos;
    }
    return from < bytes ? t->kind->encode(t->state, text + from, bytes - from, start, put, out) : LQ_OK;
}

lq_status q_text_tokenize(const q_text *t, const char *text, size_t bytes, uint32_t flags, int32_t *ids, size_t *n) {
    if (!n || (!text && bytes) || (!ids && *n)) return q_fail(LQ_E_ARG, "tokenize: a NULL pointer");
    if (flags & ~(uint32_t)(LQ_TOKENIZE_BOS | LQ_TOKENIZE_PARSE_SPECIAL))
        return q_fail(LQ_E_ARG, "tokenize: unknown flags 0x%x", flags);
    sink out = {.alloc = t->alloc, .cap = *n};
    lq_status s = tokenize(t, text, bytes, flags, &out);
    if (s == LQ_OK) {
        *n = out.n;
        if (out.n > out.cap)
            s = q_fail(LQ_E_ARG, "tokenize: %llu ids, capacity %llu", (unsigned long long)out.n,
                       (unsigned long long)out.cap);
    }
    for (block *b = out.first; b;) {
        block *next = b->next;
        if (s == LQ_OK) {
            memcpy(ids, b->ids, b->n * sizeof *ids);
            ids += b->n;
        }
        q_delete(t->alloc, b);
        b = next;
    }
    return s;
}

/* ------------------------------------------------------------------------------------------------ detokenize */

uint32_t q_text_incomplete(const uint8_t *p, size_t n) {
    for (uint32_t k = 1; k <= 3 && k <= n; k++) {
        const uint8_t b = p[n - k];
        if ((b & 0xC0) == 0x80) continue;
        const uint32_t len = b >= 0xF0 && b <= 0xF4 ? 4 : b >= 0xE0 && b < 0xF0 ? 3 : b >= 0xC2 && b < 0xE0 ? 2 : 1;
        if (len <= k) return 0;
        if (k >= 2) { /* the second byte rules out overlong forms, surrogates and what is beyond U+10FFFF */
            const uint8_t c = p[n - k + 1];
            const uint8_t low = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80;
            const uint8_t high = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
            if (c < low || c > high) return 0;
        }
        return k;
    }
    return 0;
}

/* The bytes that one token adds. `start`: a text begins here; updated for the next token. */
static size_t spell(const q_text *t, int32_t id, uint32_t flags, bool *start, char out[Q_LIMIT_PIECE]) {
    const q_vocab *v = &t->vocab;
    const int32_t type = v->types[id];
    const bool begins = *start;
    *start = id == v->bos && type == Q_TOKEN_CONTROL; /* a text of its own cannot hold one */
    if (type == Q_TOKEN_CONTROL && !(flags & LQ_DETOKENIZE_SPECIAL)) return 0;
    if (type == Q_TOKEN_UNKNOWN && !(flags & LQ_DETOKENIZE_SPECIAL)) {
        memcpy(out, "\xEF\xBF\xBD", 3);
        return 3;
    }
    const size_t n = (size_t)t->kind->piece(t->state, id, out, Q_LIMIT_PIECE);
    if (!begins || !v->add_space_prefix || type == Q_TOKEN_CONTROL || out[0] != ' ') return n;
    memmove(out, out + 1, n - 1);
    return n - 1;
}

size_t q_text_spell(const q_text *t, int32_t id, bool *start, char out[Q_LIMIT_PIECE]) {
    return spell(t, id, 0, start, out);
}
size_t q_text_longest(const q_text *t) { return t->longest; }

lq_status q_text_detokenize(const q_text *t, const int32_t *ids, size_t count, uint32_t flags, char *text, size_t *n) {
    if (!n || (!ids && count) || (!text && *n)) return q_fail(LQ_E_ARG, "detokenize: a NULL pointer");
    if (flags & ~(uint32_t)(LQ_DETOKENIZE_SPECIAL | LQ_DETOKENIZE_MIDDLE | LQ_DETOKENIZE_STREAM))
        return q_fail(LQ_E_ARG, "detokenize: unknown flags 0x%x", flags);
    char piece[Q_LIMIT_PIECE];
    uint8_t tail[3] = {0}; /* the last bytes: [2] is the very last */
    size_t total = 0;
    bool start = !(flags & LQ_DETOKENIZE_MIDDLE);
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= t->vocab.n)
            return q_fail(LQ_E_ARG, "detokenize: id %d at position %llu is outside the vocabulary of %d", ids[i],
                          (unsigned long long)i, t->vocab.n);
        const size_t bytes = spell(t, ids[i], flags, &start, piece);
        for (size_t k = bytes > 3 ? bytes - 3 : 0; k < bytes; k++) {
            tail[0] = tail[1];
            tail[1] = tail[2];
            tail[2] = (uint8_t)piece[k];
        }
        total += bytes;
    }
    if (flags & LQ_DETOKENIZE_STREAM) {
        const size_t known = Q_MIN(total, (size_t)3);
        total -= q_text_incomplete(tail + 3 - known, known);
    }
    const size_t cap = *n;
    *n = total;
    if (total > cap)
        return q_fail(LQ_E_ARG, "detokenize: %llu bytes, capacity %llu", (unsigned long long)total,
                      (unsigned long long)cap);
    start = !(flags & LQ_DETOKENIZE_MIDDLE);
    for (size_t i = 0, at = 0; i < count && at < total; i++) {
        const size_t bytes = spell(t, ids[i], flags, &start, piece), take = Q_MIN(bytes, total - at);
        memcpy(text + at, piece, take);
        at += take;
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ export */

static q_meta meta_number(const char *key, q_meta_type type, int64_t value) {
    return (q_meta){.key = q_str_of(key), .type = type, .count = 1,
                    .i = value, .u = (uint64_t)value, .f = (double)value};
}

static q_meta meta_items(const char *key, q_meta_type item, int32_t n) {
    return (q_meta){.key = q_str_of(key), .type = Q_META_ARRAY, .item = item, .count = (uint64_t)n};
}

lq_status q_text_export(const q_text *t, q_arena *arena, q_meta *out, uint32_t cap, uint32_t *n) {
    const q_vocab *v = &t->vocab;
    const uint64_t vocab = (uint64_t)v->n;
    if (cap < Q_TEXT_EXPORT_MAX) return q_fail(LQ_E_ARG, "the vocabulary needs room for %d keys", Q_TEXT_EXPORT_MAX);
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < vocab; i++) bytes += v->pieces[i].n;
    q_str *pieces = (q_str *)q_arena_new(arena, vocab, sizeof *pieces);
    uint8_t *scores = (uint8_t *)q_arena_new(arena, vocab, sizeof *v->scores);
    uint8_t *types = (uint8_t *)q_arena_new(arena, vocab, sizeof *v->types);
    char *text = (char *)q_arena_new(arena, bytes, 1);
    if (!pieces || !scores || !types || !text) return LQ_E_NOMEM;
    memcpy(scores, v->scores, (size_t)vocab * sizeof *v->scores);
    memcpy(types, v->types, (size_t)vocab * sizeof *v->types);
    for (uint64_t i = 0; i < vocab; i++) {
        pieces[i] = (q_str){text, v->pieces[i].n};
        memcpy(text, v->pieces[i].p, (size_t)v->pieces[i].n);
        text += v->pieces[i].n;
    }
    uint32_t k = 0;
    out[k++] = (q_meta){.key = q_str_of(KEY "model"), .type = Q_META_STRING, .count = 1,
                        .s = q_str_of(t->kind->gguf_model)};
    out[k] = meta_items(KEY "tokens", Q_META_STRING, v->n);
    out[k++].strs = pieces;
    out[k] = meta_items(KEY "scores", Q_META_F32, v->n);
    out[k++].raw = scores;
    out[k] = meta_items(KEY "token_type", Q_META_I32, v->n);
    out[k++].raw = types;
    if (v->bos >= 0) out[k++] = meta_number(KEY "bos_token_id", Q_META_U32, v->bos);
    if (v->eos >= 0) out[k++] = meta_number(KEY "eos_token_id", Q_META_U32, v->eos);
    if (v->unk >= 0) out[k++] = meta_number(KEY "unknown_token_id", Q_META_U32, v->unk);
    if (v->pad >= 0) out[k++] = meta_number(KEY "padding_token_id", Q_META_U32, v->pad);
    out[k++] = meta_number(KEY "add_bos_token", Q_META_BOOL, v->add_bos);
    out[k++] = meta_number(KEY "add_eos_token", Q_META_BOOL, v->add_eos);
    /* What readers assume otherwise is not written. */
    if (!v->add_space_prefix) out[k++] = meta_number(KEY "add_space_prefix", Q_META_BOOL, 0);
    if (v->remove_extra_spaces) out[k++] = meta_number(KEY "remove_extra_whitespaces", Q_META_BOOL, 1);
    *n = k;
    return LQ_OK;
}
