/* fuzz_vocab.c: the vocabulary of a GGUF file, as its keys, and a text.
 *
 * The input says which keys there are and what they hold; the keys themselves are well formed, since fuzz_gguf.c feeds
 * the container. Bytes: 0 which keys; 1 their booleans, and which key is wrong; 2 how it is wrong; 3 to 6 the special
 * ids; 7 whether the 256 byte tokens come first; then pieces (type, length, score, bytes) up to a 0xFF or the end; the
 * rest is a text. Whatever opens must keep what help_fuzz.h asks of every tokenizer. */
#include "help_fuzz.h"

#include <math.h>

#define KEY "tokenizer.ggml."
enum { HEAD = 8, MOST = 2048 };

typedef struct vocab_keys {
    q_meta meta[16];
    uint32_t n_meta;
    q_str pieces[MOST];
    float scores[MOST];
    int32_t types[MOST];
    char spelled[256][8];
    uint32_t n;
} vocab_keys;

static void add_piece(vocab_keys *k, q_str s, float score, int32_t type) {
    if (k->n == MOST) return;
    k->pieces[k->n] = s;
    k->scores[k->n] = score;
    k->types[k->n++] = type;
}

/* <unk>, <s>, </s> and the bytes, as real files begin. */
static void add_usual(vocab_keys *k) {
    add_piece(k, q_str_of("<unk>"), 0, Q_TOKEN_UNKNOWN);
    add_piece(k, q_str_of("<s>"), 0, Q_TOKEN_CONTROL);
    add_piece(k, q_str_of("</s>"), 0, Q_TOKEN_CONTROL);
    for (unsigned b = 0; b < 256; b++) {
        snprintf(k->spelled[b], sizeof k->spelled[b], "<0x%02X>", b);
        add_piece(k, q_str_of(k->spelled[b]), 0, Q_TOKEN_BYTE);
    }
}

static q_meta *add_key(vocab_keys *k, const char *key, q_meta_type type, int64_t v) {
    q_meta *m = &k->meta[k->n_meta++];
    *m = (q_meta){.key = q_str_of(key), .type = type, .count = 1, .i = v, .u = (uint64_t)v, .f = (double)v};
    return m;
}

static q_meta *add_array(vocab_keys *k, const char *key, q_meta_type item, const void *items) {
    q_meta *m = add_key(k, key, Q_META_ARRAY, 0);
    m->item = item;
    m->count = k->n;
    if (item == Q_META_STRING) m->strs = (const q_str *)items;
    else m->raw = (const uint8_t *)items;
    return m;
}

/* One key made wrong: gone, of another type, short, or another value. */
static void spoil(vocab_keys *k, uint8_t which, uint8_t how) {
    q_meta *m = &k->meta[which % k->n_meta];
    switch (how % 5) {
    case 0: *m = k->meta[--k->n_meta]; break;
    case 1:
        if (m->type == Q_META_ARRAY) m->item = m->item == Q_META_F32 ? Q_META_I32 : Q_META_F32;
        else m->type = (q_meta_type)((how / 5) % 13), m->item = Q_META_F32;
        if (m->type == Q_META_ARRAY && m->item == Q_META_F32 && !m->raw) m->count = 0;
        break;
    case 2:
        if (m->type == Q_META_ARRAY) m->count = Q_MIN(m->count, (uint64_t)(how / 5));
        break;
    case 3: m->i = INT64_MAX - how; break;
    default:
        if (m->type == Q_META_STRING) m->s = q_str_of("gpt2");
        break;
    }
}

static void make_keys(vocab_keys *k, const uint8_t *h) {
    static const char *const ids[] = {KEY "bos_token_id", KEY "eos_token_id", KEY "unknown_token_id",
                                      KEY "padding_token_id"};
    static const char *const bools[] = {KEY "add_bos_token", KEY "add_eos_token", KEY "add_space_prefix",
                                        KEY "remove_extra_whitespaces"};
    add_key(k, KEY "model", Q_META_STRING, 0)->s = q_str_of("llama");
    add_array(k, KEY "tokens", Q_META_STRING, k->pieces);
    add_array(k, KEY "scores", Q_META_F32, k->scores);
    add_array(k, KEY "token_type", Q_META_I32, k->types);
    for (int i = 0; i < 4; i++)
        if (h[0] >> i & 1) add_key(k, ids[i], Q_META_U32, (int8_t)h[3 + i]);
    for (int i = 0; i < 4; i++)
        if (h[0] >> (4 + i) & 1) add_key(k, bools[i], Q_META_BOOL, h[1] >> i & 1);
    if (h[1] >> 4) spoil(k, (uint8_t)((h[1] >> 4) - 1), h[2]);
    else if (h[2] == 0xFF) add_key(k, KEY "precompiled_charsmap", Q_META_U8, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < HEAD) return 0;
    static vocab_keys k;
    k.n = k.n_meta = 0;
    if (data[7] & 1) add_usual(&k);
    size_t at = HEAD;
    while (at + 3 <= size && data[at] != 0xFF) {
        const size_t n = Q_MIN((size_t)data[at + 1], size - at - 3);
        const int8_t score = (int8_t)data[at + 2];
        add_piece(&k, (q_str){(const char *)data + at + 3, n}, score == -128 ? NAN : (float)score / 8, data[at] % 8);
        at += 3 + n;
    }
    at = Q_MIN(at + 1, size);
    make_keys(&k, data);
    char *text = (char *)fuzz_copy(data + at, size - at);
    const q_directory dir = {.names = Q_NAMES_GGUF, .meta = k.meta, .n_meta = k.n_meta};
    q_text *t;
    const lq_status s = q_text_open(&q_alloc_libc, NULL, &dir, &t);
    if (s == LQ_OK) {
        for (uint32_t i = 0; i < k.n; i++) k.pieces[i] = (q_str){0}; /* the object keeps nothing of them */
        fuzz_check_text(t, text, size - at);
        q_text_close(t);
    } else {
        demand(s == LQ_E_INCONSISTENT || s == LQ_E_UNSUPPORTED || s == LQ_E_LIMIT);
        demand(lq_error_detail()[0]);
    }
    free(text);
    return 0;
}
