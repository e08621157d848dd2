/* fuzz_spm.c: a tokenizer.model and a text: two bytes (the length of the model), the model, the text.
 *
 * Whatever opens must keep its word: ids lie in the vocabulary, plain text never gives a control token, a vocabulary
 * with all byte tokens gives any bytes back, the exported GGUF keys make the same tokenizer, and a stream is a beginning
 * of the whole. Seeds: tests/golden/fuzz-spm. */
#include <stdlib.h>

#include "../libquant/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(bool truth) {
    if (!truth) abort();
}

static int32_t *tokenize(const q_text *t, const char *text, size_t n, uint32_t flags, size_t *count) {
    *count = 0;
    lq_status s = q_text_tokenize(t, text, n, flags, NULL, count);
    if (s == LQ_E_UNSUPPORTED) return NULL; /* a byte that has no token */
    demand(s == (*count ? LQ_E_ARG : LQ_OK));
    int32_t *ids = (int32_t *)malloc((*count + 1) * sizeof *ids);
    demand(q_text_tokenize(t, text, n, flags, ids, count) == LQ_OK);
    for (size_t i = 0; i < *count; i++) demand(ids[i] >= 0 && ids[i] < q_text_vocab(t)->n);
    return ids;
}

static char *detokenize(const q_text *t, const int32_t *ids, size_t count, uint32_t flags, size_t *n) {
    *n = 0;
    lq_status s = q_text_detokenize(t, ids, count, flags, NULL, n);
    demand(s == (*n ? LQ_E_ARG : LQ_OK));
    char *text = (char *)malloc(*n + 1);
    demand(q_text_detokenize(t, ids, count, flags, text, n) == LQ_OK);
    return text;
}

static void check_round_trip(const q_vocab *v, const char *text, size_t n, const char *back, size_t n_back) {
    int bytes = 0;
    for (int32_t i = 0; i < v->n; i++) bytes += v->types[i] == Q_TOKEN_BYTE;
    if (bytes != 256 || v->remove_extra_spaces) return;
    size_t at = 0;
    for (size_t i = 0; i < n; at++) {
        const bool sign = n - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0;
        demand(at < n_back && back[at] == (sign ? ' ' : text[i]));
        i += sign ? 3 : 1;
    }
    demand(at == n_back);
}

static void check_export(const q_text *t, const char *text, size_t n, const int32_t *ids, size_t count) {
    q_arena arena = {.alloc = &q_alloc_libc};
    q_meta meta[Q_TEXT_EXPORT_MAX];
    q_directory dir = {.names = Q_NAMES_GGUF, .meta = meta};
    demand(q_text_export(t, &arena, meta, Q_TEXT_EXPORT_MAX, &dir.n_meta) == LQ_OK);
    q_text *again;
    demand(q_text_open(&q_alloc_libc, NULL, &dir, &again) == LQ_OK);
    q_arena_free(&arena);
    size_t same;
    int32_t *copy = tokenize(again, text, n, 0, &same);
    demand(copy && same == count && memcmp(copy, ids, count * sizeof *ids) == 0);
    free(copy);
    q_text_close(again);
}

static void check_text(const q_text *t, const char *text, size_t n) {
    const q_vocab *v = q_text_vocab(t);
    size_t count, whole, part;
    int32_t *ids = tokenize(t, text, n, 0, &count);
    if (!ids) return;
    for (size_t i = 0; i < count; i++) demand(ids[i] == v->unk || v->types[ids[i]] != Q_TOKEN_CONTROL);
    char *back = detokenize(t, ids, count, 0, &whole);
    check_round_trip(v, text, n, back, whole);
    char *stream = detokenize(t, ids, count, LQ_DETOKENIZE_STREAM, &part);
    demand(part <= whole && whole - part <= 3 && memcmp(stream, back, part) == 0);
    check_export(t, text, n, ids, count);
    free(stream);
    free(back);
    free(ids);
    ids = tokenize(t, text, n, LQ_TOKENIZE_BOS | LQ_TOKENIZE_PARSE_SPECIAL, &count);
    if (ids) free(detokenize(t, ids, count, LQ_DETOKENIZE_SPECIAL | LQ_DETOKENIZE_MIDDLE, &whole));
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    const size_t n = Q_MIN((size_t)q_load16(data), size - 2);
    /* Blocks of their own: a read past the model or the text is seen. */
    uint8_t *model = (uint8_t *)malloc(n ? n : 1);
    char *text = (char *)malloc(size - 2 - n ? size - 2 - n : 1);
    memcpy(model, data + 2, n);
    memcpy(text, data + 2 + n, size - 2 - n);
    const q_directory dir = {.names = Q_NAMES_HF, .tokenizer_file = q_str_of("tokenizer.model"),
                             .tokenizer = model, .tokenizer_bytes = n};
    q_text *t;
    const lq_status s = q_text_open(&q_alloc_libc, NULL, &dir, &t);
    free(model); /* the object keeps nothing of it */
    if (s == LQ_OK) {
        check_text(t, text, size - 2 - n);
        q_text_close(t);
    } else {
        demand(s == LQ_E_TRUNCATED || s == LQ_E_FORMAT || s == LQ_E_UNSUPPORTED || s == LQ_E_INCONSISTENT ||
               s == LQ_E_LIMIT);
    }
    free(text);
    return 0;
}
