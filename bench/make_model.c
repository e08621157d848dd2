/* make_model.c: a GGUF file of random weights in the shape of a real model, for measuring speed.
 *
 * What a tensor is called and how large it is comes from the architecture's own tables, its format from the scheme. The
 * weights are normal, scaled so that activations keep their size from layer to layer and logits stay finite. Quantizing
 * a billion of them one by one would take minutes and change no timing: a few thousand chunks of a row are encoded once
 * per format, and every row is a random sequence of those. So a file says nothing about quality. Every random number is
 * keyed by seed, tensor and row, and all arithmetic is exact or correctly rounded: the bytes depend on the seed alone. */
#include "make_model.h"

#include <math.h>
#include <stdio.h>

enum {
    CHUNK_WEIGHTS = 256,   /* of a row; a multiple of every block */
    POOL_CHUNKS = 4096,    /* distinct chunks per format and scale */
    MAX_POOLS = 64,
    MAX_NAME = 96,
    MAX_KEYS = Q_HP_COUNT + 24,
    PIECE_BYTES = 4 << 20, /* written at a time */
    SPAN_BYTES = 64 << 10, /* made by a thread at a time */
    SPECIALS = 3,          /* <unk> <s> </s> */
    BYTES_END = SPECIALS + 256,
    ASCII = 94,            /* from ! to ~ */
    PIECE_TEXT = 24        /* bytes that a token's spelling may take */
};

static const bench_shape shapes[] = {
    {"llama-1.1b", "llama", 2048, 22, 32, 4, 5632, 32000, 32768, 10000, "1.1 billion weights, as TinyLlama"},
    {"llama3-8b", "llama", 4096, 32, 32, 8, 14336, 128256, 32768, 500000, "8 billion weights, as Llama 3 8B"},
    {"tiny", "llama", 256, 2, 4, 2, 512, 512, 32768, 10000, "1.4 million weights, for tests"},
};

const bench_shape *bench_shape_at(size_t index) { return index < Q_COUNT(shapes) ? &shapes[index] : NULL; }

const bench_shape *bench_shape_find(const char *name) {
    for (size_t i = 0; i < Q_COUNT(shapes); i++)
        if (strcmp(shapes[i].name, name) == 0) return &shapes[i];
    return NULL;
}

/* Encoded chunks of normal weights with one standard deviation. */
typedef struct pool {
    const q_format *format;
    float sd;
    uint8_t *chunks; /* [POOL_CHUNKS][chunk_bytes] */
    uint64_t chunk_bytes;
} pool;

typedef struct maker {
    const q_alloc *alloc;
    const bench_make_options *options;
    const q_arch *arch;
    q_hparams hp;
    int32_t layers;
    q_arena arena; /* names, keys, vocabulary */
    q_recipe *recipe;
    q_pool *threads;
    q_meta meta[MAX_KEYS];
    uint32_t n_meta;
    q_out_tensor *tensors;
    float *sd; /* [n_tensors] */
    uint32_t n_tensors, cap_tensors;
    pool pools[MAX_POOLS];
    uint32_t n_pools;
    q_writer *writer;
    uint8_t *out;
    uint64_t done;
    bench_make_result result;

    /* the piece in flight */
    const pool *from;
    uint64_t first_row, row_bytes, chunks; /* chunks in a row */
    uint64_t key;                          /* of the tensor */
} maker;

/* ------------------------------------------------------------------------------------------------ random numbers */

/* Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (OOPSLA 2014): its output function. */
static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}
static uint64_t next(uint64_t *state) { return mix(*state += 0x9E3779B97F4A7C15u); }

/* Nearly normal, variance 1: the sum of twelve 16-bit numbers, exact until it is scaled, so the same everywhere. */
static float normal(uint64_t *state) {
    int32_t sum = 0;
    for (int i = 0; i < 3; i++) {
        const uint64_t r = next(state);
        sum += (int32_t)((r & 0xFFFF) + (r >> 16 & 0xFFFF) + (r >> 32 & 0xFFFF) + (r >> 48));
    }
    return (float)(sum - 6 * 65535) * 0x1p-16f;
}

static void normal_row(float *x, uint64_t n, float mean, float sd, uint64_t *state) {
    for (uint64_t i = 0; i < n; i++) x[i] = mean + sd * normal(state);
}

/* ------------------------------------------------------------------------------------------------ keys */

static q_meta *add_key(maker *m, const char *key, q_meta_type type) {
    if (m->n_meta == MAX_KEYS) return NULL;
    q_meta *k = &m->meta[m->n_meta++];
    *k = (q_meta){.key = q_str_of(key), .type = type, .count = 1};
    return k;
}

static lq_status add_number(maker *m, const char *key, q_meta_type type, double v) {
    q_meta *k = add_key(m, key, type);
    if (!k) return q_fail(LQ_E_INTERNAL, "more than %d keys", MAX_KEYS);
    k->f = v;
    k->i = (int64_t)v;
    k->u = (uint64_t)k->i;
    return LQ_OK;
}

static lq_status add_string(maker *m, const char *key, const char *v) {
    q_meta *k = add_key(m, key, Q_META_STRING);
    if (!k) return q_fail(LQ_E_INTERNAL, "more than %d keys", MAX_KEYS);
    k->s = q_str_of(v);
    return LQ_OK;
}

static lq_status add_array(maker *m, const char *key, q_meta_type item, const void *raw, const q_str *strs) {
    q_meta *k = add_key(m, key, Q_META_ARRAY);
    if (!k) return q_fail(LQ_E_INTERNAL, "more than %d keys", MAX_KEYS);
    k->item = item;
    k->count = m->options->shape->vocab;
    k->raw = (const uint8_t *)raw;
    k->strs = strs;
    return LQ_OK;
}

/* The shape's numbers, then the architecture's own defaults for what a shape does not say. */
static lq_status fill_hparams(maker *m) {
    const bench_shape *s = m->options->shape;
    for (int i = 0; i < Q_HP_COUNT; i++) m->hp.v[i] = NAN;
    double *v = m->hp.v;
    v[Q_HP_CONTEXT] = s->context, v[Q_HP_EMBD] = s->embd, v[Q_HP_LAYERS] = s->layers, v[Q_HP_FF] = s->ff;
    v[Q_HP_HEADS] = s->heads, v[Q_HP_HEADS_KV] = s->heads_kv, v[Q_HP_VOCAB] = s->vocab, v[Q_HP_EPS] = 1e-5;
    v[Q_HP_ROPE_BASE] = s->rope_base;
    for (uint32_t i = 0; i < m->arch->n_hparams; i++) {
        const q_hparam_row *r = &m->arch->hparams[i];
        double usual = r->same_as ? v[r->same_as] : r->otherwise;
        if (r->over) usual /= v[r->over];
        if (isnan(v[r->id]) && r->optional) v[r->id] = usual;
        if (isnan(v[r->id])) return q_fail(LQ_E_INTERNAL, "shape %s lacks what %s needs", s->name, r->gguf);
        if (!r->gguf || (r->quiet && v[r->id] == usual)) continue;
        char key[160];
        snprintf(key, sizeof key, "%s.%s", m->arch->name, r->gguf);
        const char *kept = q_arena_str(&m->arena, q_str_of(r->gguf[0] == '=' ? r->gguf + 1 : key));
        if (!kept) return LQ_E_NOMEM;
        Q_TRY(add_number(m, kept, r->integer ? Q_META_U32 : Q_META_F32, v[r->id]));
    }
    m->layers = (int32_t)s->layers;
    return LQ_OK;
}

/* The spelling of token `i`: specials, bytes, the characters of ASCII and the sign for a space, then words of two letters,
 * three, ...: the first of 27 letters may be that sign. Each word is a shorter one and a letter, so merging finds it. */
static void spell(uint32_t i, char text[PIECE_TEXT]) {
    static const char *const special[SPECIALS] = {"<unk>", "<s>", "</s>"};
    static const char space[] = "\xE2\x96\x81"; /* U+2581 */
    if (i < SPECIALS) {
        snprintf(text, PIECE_TEXT, "%s", special[i]);
    } else if (i < BYTES_END) {
        snprintf(text, PIECE_TEXT, "<0x%02X>", (i - SPECIALS) & 0xFFu);
    } else if (i < BYTES_END + ASCII) {
        text[0] = (char)('!' + (i - BYTES_END)), text[1] = '\0';
    } else if (i == BYTES_END + ASCII) {
        memcpy(text, space, sizeof space);
    } else {
        uint64_t at = i - (BYTES_END + ASCII + 1), words = 27 * 26;
        uint32_t letters = 2;
        for (; at >= words; words *= 26, letters++) at -= words;
        char *end = text + PIECE_TEXT - 1; /* written from the end, then moved to the front */
        *end = '\0';
        for (uint32_t j = 1; j < letters; j++, at /= 26) *--end = (char)('a' + at % 26);
        if (at) *--end = (char)('a' + at - 1);
        else end -= sizeof space - 1, memcpy(end, space, sizeof space - 1);
        memmove(text, end, (size_t)(text + PIECE_TEXT - end));
    }
}

static lq_status fill_vocabulary(maker *m) {
    const uint32_t n = m->options->shape->vocab;
    q_str *pieces = (q_str *)q_arena_new(&m->arena, n, sizeof *pieces);
    float *scores = (float *)q_arena_new(&m->arena, n, sizeof *scores);
    int32_t *types = (int32_t *)q_arena_new(&m->arena, n, sizeof *types);
    if (!pieces || !scores || !types) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < n; i++) {
        char text[PIECE_TEXT];
        spell(i, text);
        const char *kept = q_arena_str(&m->arena, q_str_of(text));
        if (!kept) return LQ_E_NOMEM;
        pieces[i] = q_str_of(kept);
        scores[i] = i < BYTES_END ? 0.0f : -(float)(i - BYTES_END);
        types[i] = i == 0               ? Q_TOKEN_UNKNOWN
                   : i < SPECIALS       ? Q_TOKEN_CONTROL
                   : i < BYTES_END ? Q_TOKEN_BYTE
                                        : Q_TOKEN_NORMAL;
    }
    Q_TRY(add_string(m, "tokenizer.ggml.model", "llama"));
    Q_TRY(add_array(m, "tokenizer.ggml.tokens", Q_META_STRING, NULL, pieces));
    Q_TRY(add_array(m, "tokenizer.ggml.scores", Q_META_F32, scores, NULL));
    Q_TRY(add_array(m, "tokenizer.ggml.token_type", Q_META_I32, types, NULL));
    Q_TRY(add_number(m, "tokenizer.ggml.bos_token_id", Q_META_U32, 1));
    Q_TRY(add_number(m, "tokenizer.ggml.eos_token_id", Q_META_U32, 2));
    Q_TRY(add_number(m, "tokenizer.ggml.unknown_token_id", Q_META_U32, 0));
    return add_number(m, "tokenizer.ggml.add_bos_token", Q_META_BOOL, 1);
}

static lq_status fill_keys(maker *m) {
    const int32_t file_type = q_recipe_file_type(m->recipe);
    Q_TRY(add_string(m, "general.architecture", m->arch->name));
    Q_TRY(add_string(m, "general.name", m->options->shape->name));
    Q_TRY(add_string(m, "general.description", "random weights, for measuring speed"));
    Q_TRY(fill_hparams(m));
    if (file_type >= 0) Q_TRY(add_number(m, "general.file_type", Q_META_U32, file_type));
    return fill_vocabulary(m);
}

/* ------------------------------------------------------------------------------------------------ tensors */

/* The standard deviation that keeps a unit variance: of the residual stream for what is added to it, of products for the
 * others. The embedding is what later norms see, and has variance 1 itself. */
static float scale_of(const maker *m, const char *role, uint64_t k) {
    if (strcmp(role, "token_embd") == 0) return 1;
    const bool adds = strcmp(role, "attn_output") == 0 || strcmp(role, "ffn_down") == 0;
    return (float)(1 / sqrt((double)k * (adds ? 2 * m->layers : 1)));
}

/* "blk.%d.attn_q.weight" with its layer, in the arena. */
static const char *tensor_name(maker *m, const char *pattern, int32_t layer) {
    char name[MAX_NAME];
    const char *at = strstr(pattern, "%d");
    if (!at) return pattern;
    snprintf(name, sizeof name, "%.*s%d%s", (int)(at - pattern), pattern, layer, at + 2);
    return q_arena_str(&m->arena, q_str_of(name));
}

static lq_status add_tensor(maker *m, const q_weight_row *w, int32_t layer) {
    const char *name = tensor_name(m, w->gguf, layer);
    if (!name) return LQ_E_NOMEM;
    q_out_tensor *t = &m->tensors[m->n_tensors];
    *t = (q_out_tensor){.name = q_str_of(name), .rank = w->matrices ? 3 : w->rows ? 2 : 1,
                        .shape = {1, 1, 1, 1, 1, 1, 1, 1}};
    t->shape[0] = (uint64_t)q_dim_value(&m->hp, (q_dim)w->k, layer);
    if (w->rows) t->shape[1] = (uint64_t)q_dim_value(&m->hp, (q_dim)w->rows, layer);
    if (w->matrices) t->shape[2] = (uint64_t)q_dim_value(&m->hp, (q_dim)w->matrices, layer);
    m->sd[m->n_tensors++] = t->rank == 1 ? 0 : scale_of(m, w->role, t->shape[0]);
    const q_recipe_tensor about = {.name = t->name, .role = w->role, .layer = layer, .layers = m->layers,
                                   .gqa = (int32_t)(m->options->shape->heads / m->options->shape->heads_kv),
                                   .rank = t->rank, .k = t->shape[0]};
    q_recipe_choice choice;
    Q_TRY(q_recipe_choose(m->recipe, &about, &choice));
    t->format = choice.format;
    m->result.fallbacks += choice.format != choice.wanted;
    m->result.weights += t->shape[0] * t->shape[1] * t->shape[2];
    uint64_t row_bytes;
    if (!q_row_bytes(t->format, t->shape[0], &row_bytes))
        return q_fail(LQ_E_INTERNAL, "tensor %s: rows do not fit format %s", name, t->format->name);
    m->result.bits_per_weight += 8.0 * (double)row_bytes * (double)(t->shape[1] * t->shape[2]);
    return LQ_OK;
}

/* Rows with a layer in their name come once per layer, all of a layer together. What a file may lack is left out. */
static lq_status fill_tensors(maker *m) {
    m->cap_tensors = m->arch->n_weights * (uint32_t)m->layers;
    m->tensors = Q_NEW(m->alloc, q_out_tensor, m->cap_tensors);
    m->sd = Q_NEW(m->alloc, float, m->cap_tensors);
    if (!m->tensors || !m->sd) return LQ_E_NOMEM;
    const q_weight_row *w = m->arch->weights;
    for (uint32_t i = 0; i < m->arch->n_weights;) {
        uint32_t end = i;
        while (end < m->arch->n_weights && strstr(w[end].gguf, "%d")) end++;
        for (int32_t layer = 0; layer < m->layers && end > i; layer++)
            for (uint32_t j = i; j < end; j++)
                if (!w[j].optional) Q_TRY(add_tensor(m, &w[j], layer));
        if (end == i && !w[end++].optional) Q_TRY(add_tensor(m, &w[i], -1));
        i = end;
    }
    bool quantized = false;
    for (uint32_t i = 0; i < m->n_tensors; i++) quantized |= m->tensors[i].format->weights > 1;
    m->result.tensors = m->n_tensors;
    m->result.bits_per_weight /= (double)m->result.weights;
    return quantized ? add_number(m, "general.quantization_version", Q_META_U32, 2) : LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ weights */

static lq_status pool_for(maker *m, const q_format *format, float sd, const pool **out) {
    for (uint32_t i = 0; i < m->n_pools; i++)
        if (m->pools[i].format == format && m->pools[i].sd == sd) {
            *out = &m->pools[i];
            return LQ_OK;
        }
    pool *p = &m->pools[m->n_pools];
    if (m->n_pools == MAX_POOLS || format->row_head || CHUNK_WEIGHTS % format->weights)
        return q_fail(LQ_E_UNSUPPORTED, "format %s has no chunks of %d weights", format->name, CHUNK_WEIGHTS);
    *p = (pool){.format = format, .sd = sd,
                .chunk_bytes = (uint64_t)(CHUNK_WEIGHTS / format->weights) * (uint64_t)format->bytes};
    p->chunks = (uint8_t *)q_new_raw(m->alloc, POOL_CHUNKS, p->chunk_bytes);
    if (!p->chunks) return LQ_E_NOMEM;
    m->n_pools++;
    uint64_t state = mix(m->options->seed) ^ q_fnv64(format->name, strlen(format->name)) ^ q_f32_bits(sd);
    float x[CHUNK_WEIGHTS];
    for (uint64_t i = 0; i < POOL_CHUNKS; i++) {
        normal_row(x, CHUNK_WEIGHTS, 0, sd, &state);
        q_encode_row(format, x, NULL, false, CHUNK_WEIGHTS, p->chunks + i * p->chunk_bytes);
    }
    *out = p;
    return LQ_OK;
}

static void make_rows(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    const maker *m = (const maker *)arg;
    Q_UNUSED(thread);
    for (int64_t r = begin; r < end; r++) {
        uint64_t state = mix(m->key ^ mix(m->first_row + (uint64_t)r));
        uint8_t *to = m->out + (uint64_t)r * m->row_bytes;
        for (uint64_t c = 0; c < m->chunks; c++, to += m->from->chunk_bytes)
            memcpy(to, m->from->chunks + next(&state) % POOL_CHUNKS * m->from->chunk_bytes, (size_t)m->from->chunk_bytes);
    }
}

static lq_status progress(const maker *m, const q_out_tensor *t) {
    char name[MAX_NAME];
    snprintf(name, sizeof name, "%.*s", Q_STR_ARG(t->name));
    if (!m->options->progress || m->options->progress(m->options->user, m->done, m->result.weights, name) == 0) return LQ_OK;
    return q_fail(LQ_E_CANCELLED, "making the model was cancelled; nothing was written");
}

/* A vector multiplies normalized activations: around 1. */
static lq_status write_vector(maker *m, const q_out_tensor *t) {
    const uint64_t k = t->shape[0];
    float *x = Q_NEW(m->alloc, float, k);
    if (!x) return LQ_E_NOMEM;
    uint64_t state = m->key;
    normal_row(x, k, 1, 0.1f, &state);
    q_encode_row(t->format, x, NULL, false, (int64_t)k, m->out);
    q_delete(m->alloc, x);
    return q_writer_gguf.write(m->writer, m->out, m->row_bytes);
}

static lq_status write_tensor(maker *m, uint32_t i) {
    const q_out_tensor *t = &m->tensors[i];
    const uint64_t k = t->shape[0], rows = t->shape[1] * t->shape[2];
    m->key = mix(m->options->seed) ^ q_fnv64(t->name.p, (size_t)t->name.n);
    if (!q_row_bytes(t->format, k, &m->row_bytes)) return LQ_E_INTERNAL;
    Q_TRY(progress(m, t));
    if (t->rank == 1) return write_vector(m, t);
    Q_TRY(pool_for(m, t->format, m->sd[i], &m->from));
    m->chunks = k / CHUNK_WEIGHTS;
    const uint64_t piece = Q_MAX(PIECE_BYTES / m->row_bytes, (uint64_t)1);
    for (uint64_t row = 0; row < rows; row += piece) {
        const uint64_t n = Q_MIN(piece, rows - row);
        m->first_row = row;
        q_pool_for(m->threads, (int64_t)n, (int64_t)Q_MAX(SPAN_BYTES / m->row_bytes, (uint64_t)1), make_rows, m);
        Q_TRY(q_writer_gguf.write(m->writer, m->out, n * m->row_bytes));
        m->done += n * k;
        Q_TRY(progress(m, t));
    }
    return LQ_OK;
}

static lq_status make(maker *m, const char *dst) {
    const bench_shape *s = m->options->shape;
    for (const q_arch *const *a = q_archs; *a && !m->arch; a++)
        if (strcmp((*a)->name, s->arch) == 0) m->arch = *a;
    if (!m->arch) return q_fail(LQ_E_INTERNAL, "shape %s is of the unknown architecture %s", s->name, s->arch);
    Q_TRY(q_recipe_find(m->alloc, m->options->scheme, &m->recipe));
    Q_TRY(fill_keys(m));
    Q_TRY(fill_tensors(m));
    uint64_t largest_row = 0;
    for (uint32_t i = 0; i < m->n_tensors; i++) {
        uint64_t bytes = 0;
        if (!q_row_bytes(m->tensors[i].format, m->tensors[i].shape[0], &bytes)) return LQ_E_INTERNAL;
        largest_row = Q_MAX(largest_row, bytes);
    }
    m->out = (uint8_t *)q_new_raw(m->alloc, Q_MAX(largest_row, (uint64_t)PIECE_BYTES), 1);
    if (!m->out) return LQ_E_NOMEM;
    Q_TRY(q_writer_gguf.measure(m->meta, m->n_meta, m->tensors, m->n_tensors, &m->result.bytes));
    Q_TRY(q_pool_open(m->alloc, m->options->threads ? m->options->threads : q_threads_default(), &m->threads));
    Q_TRY(q_writer_gguf.open(m->alloc, dst, m->options->force, m->meta, m->n_meta, m->tensors, m->n_tensors, &m->writer));
    for (uint32_t i = 0; i < m->n_tensors; i++) Q_TRY(write_tensor(m, i));
    q_writer *writer = m->writer;
    m->writer = NULL; /* commit frees it in every case */
    return q_writer_gguf.commit(writer, NULL);
}

lq_status bench_make_model(const char *dst, const bench_make_options *options, bench_make_result *result) {
    const double begin = q_clock();
    maker *m = Q_NEW(&q_alloc_libc, maker, 1);
    if (!m) return LQ_E_NOMEM;
    m->alloc = &q_alloc_libc;
    m->arena.alloc = m->alloc;
    m->options = options;
    const lq_status st = make(m, dst);
    q_writer_gguf.discard(m->writer);
    if (m->threads) q_pool_close(m->threads);
    for (uint32_t i = 0; i < m->n_pools; i++) q_delete(m->alloc, m->pools[i].chunks);
    q_delete(m->alloc, m->out);
    q_delete(m->alloc, m->tensors);
    q_delete(m->alloc, m->sd);
    q_recipe_close(m->recipe);
    q_arena_free(&m->arena);
    m->result.seconds = q_clock() - begin;
    if (st == LQ_OK) *result = m->result;
    q_delete(&q_alloc_libc, m);
    return st;
}
