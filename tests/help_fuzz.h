/* help_fuzz.h: what fuzz targets share: demands, mutation of one part of an input, what every tokenizer must keep.
 *
 * A target is one file tests/fuzz_NAME.c with LLVMFuzzerTestOneInput, and where there are some the seeds
 * tests/golden/fuzz-NAME/ and the dictionary tests/golden/fuzz-NAME.dict: tests/README.md. */
#ifndef HELP_FUZZ_H
#define HELP_FUZZ_H

#include <stdio.h>
#include <stdlib.h>

#include "../libquant/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Where blind bytes would not get past the first check: keeps lengths and counts of the container right. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);
/* libFuzzer's own mutations, for a part of the input. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

/* The end of the run, with the place and what did not hold. */
#define demand(truth)                                                            \
    do {                                                                         \
        if (!(truth)) {                                                          \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #truth); \
            abort();                                                             \
        }                                                                        \
    } while (0)

/* A block of exactly n bytes, so that a read past the end is seen. */
static inline void *fuzz_copy(const void *data, size_t n) {
    void *p = malloc(n ? n : 1);
    demand(p);
    if (n) memcpy(p, data, n);
    return p;
}

/* Mutate data[at .. at + n) of `size` bytes, moving what is behind; returns the part's new length. */
static inline size_t fuzz_mutate_part(uint8_t *data, size_t size, size_t max, size_t at, size_t n) {
    const size_t room = max - size + n;
    uint8_t *part = (uint8_t *)malloc(room ? room : 1);
    demand(part);
    if (n) memcpy(part, data + at, n);
    const size_t now = room ? LLVMFuzzerMutate(part, n, room) : 0;
    memmove(data + at + now, data + at + n, size - at - n);
    if (now) memcpy(data + at, part, now);
    free(part);
    return now;
}

/* ---- tokenizers */

static inline int32_t *fuzz_tokenize(const q_text *t, const char *text, size_t n, uint32_t flags, size_t *count) {
    *count = 0;
    const lq_status s = q_text_tokenize(t, text, n, flags, NULL, count);
    if (s == LQ_E_UNSUPPORTED) return NULL; /* a byte that has no token */
    demand(s == (*count ? LQ_E_ARG : LQ_OK));
    int32_t *ids = (int32_t *)malloc((*count + 1) * sizeof *ids);
    demand(ids && q_text_tokenize(t, text, n, flags, ids, count) == LQ_OK);
    for (size_t i = 0; i < *count; i++) demand(ids[i] >= 0 && ids[i] < q_text_vocab(t)->n);
    return ids;
}

static inline char *fuzz_detokenize(const q_text *t, const int32_t *ids, size_t count, uint32_t flags, size_t *n) {
    *n = 0;
    const lq_status s = q_text_detokenize(t, ids, count, flags, NULL, n);
    demand(s == (*n ? LQ_E_ARG : LQ_OK));
    char *text = (char *)malloc(*n + 1);
    demand(text && q_text_detokenize(t, ids, count, flags, text, n) == LQ_OK);
    return text;
}

/* A vocabulary with a token for every byte gives any text back; U+2581 cannot be told from a space. */
static inline void fuzz_check_round_trip(const q_vocab *v, const char *text, size_t n, const char *back,
                                         size_t n_back) {
    bool has[256] = {0};
    int bytes = 0;
    for (int32_t i = 0; i < v->n; i++) {
        if (v->types[i] != Q_TOKEN_BYTE) continue;
        const unsigned b = (unsigned)strtoul((char[]){v->pieces[i].p[3], v->pieces[i].p[4], 0}, NULL, 16);
        bytes += !has[b];
        has[b] = true;
    }
    if (bytes != 256 || v->remove_extra_spaces) return;
    size_t at = 0;
    for (size_t i = 0; i < n; at++) {
        const bool sign = n - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0;
        demand(at < n_back && back[at] == (sign ? ' ' : text[i]));
        i += sign ? 3 : 1;
    }
    demand(at == n_back);
}

/* The GGUF keys that are written for it make the same tokenizer. */
static inline void fuzz_check_export(const q_text *t, const char *text, size_t n, const int32_t *ids, size_t count) {
    q_arena arena = {.alloc = &q_alloc_libc};
    q_meta meta[Q_TEXT_EXPORT_MAX];
    q_directory dir = {.names = Q_NAMES_GGUF, .meta = meta};
    demand(q_text_export(t, &arena, meta, Q_TEXT_EXPORT_MAX, &dir.n_meta) == LQ_OK);
    q_text *again;
    demand(q_text_open(&q_alloc_libc, NULL, &dir, &again) == LQ_OK);
    q_arena_free(&arena);
    size_t same;
    int32_t *copy = fuzz_tokenize(again, text, n, 0, &same);
    demand(copy && same == count && memcmp(copy, ids, count * sizeof *ids) == 0);
    free(copy);
    q_text_close(again);
}

/* Ids lie in the vocabulary, plain text gives no control token, any bytes come back where the vocabulary can hold them,
 * the exported keys make the same tokenizer, and a stream is a beginning of the whole. */
static inline void fuzz_check_text(const q_text *t, const char *text, size_t n) {
    const q_vocab *v = q_text_vocab(t);
    size_t count, whole, part;
    int32_t *ids = fuzz_tokenize(t, text, n, 0, &count);
    if (!ids) return;
    for (size_t i = 0; i < count; i++) demand(ids[i] == v->unk || v->types[ids[i]] != Q_TOKEN_CONTROL);
    char *back = fuzz_detokenize(t, ids, count, 0, &whole);
    fuzz_check_round_trip(v, text, n, back, whole);
    char *stream = fuzz_detokenize(t, ids, count, LQ_DETOKENIZE_STREAM, &part);
    demand(part <= whole && whole - part <= 3 && memcmp(stream, back, part) == 0);
    fuzz_check_export(t, text, n, ids, count);
    free(stream);
    free(back);
    free(ids);
    ids = fuzz_tokenize(t, text, n, LQ_TOKENIZE_BOS | LQ_TOKENIZE_PARSE_SPECIAL, &count);
    if (ids) free(fuzz_detokenize(t, ids, count, LQ_DETOKENIZE_SPECIAL | LQ_DETOKENIZE_MIDDLE, &whole));
    free(ids);
}

#endif
