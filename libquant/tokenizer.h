/* tokenizer.h: a kind of tokenizer: from a vocabulary to ids and back.
 *
 * One file libquant/tokenizers/X.c and the line TOKENIZER(x) in tokenizers.def. Encoding here is of plain text: special
 * tokens in text, BOS and streaming are text.c's. Encoders are pure and thread-safe. Layer L1. */
#ifndef Q_TOKENIZER_H
#define Q_TOKENIZER_H

#include "loader.h"

/* Token types, with the numbers that GGUF and SentencePiece share. */
typedef enum {
    Q_TOKEN_NORMAL = 1, Q_TOKEN_UNKNOWN = 2, Q_TOKEN_CONTROL = 3, Q_TOKEN_USER = 4, Q_TOKEN_UNUSED = 5, Q_TOKEN_BYTE = 6
} q_token_type;

typedef struct q_vocab {
    int32_t n;
    const q_str *pieces;  /* [n] as stored: U+2581 for space, "<0x0A>" for byte tokens */
    const float *scores;  /* [n] */
    const int32_t *types; /* [n] q_token_type */
    int32_t bos, eos, unk, pad; /* -1 = none */
    bool add_bos, add_eos;
    bool add_space_prefix;    /* a space goes before the text */
    bool remove_extra_spaces;
    q_arena arena;            /* owns the arrays */
} q_vocab;

/* Longest piece: real ones stay below 200 bytes, and merging costs time in proportion to it. */
enum { Q_LIMIT_VOCAB = 1 << 24, Q_LIMIT_PIECE = 1 << 14, Q_LIMIT_SPECIAL = 1024 };

/* A set of byte strings searched for the longest that begins a text: special tokens, user-defined pieces. match.c. */
typedef struct q_match {
    struct q_match_item *items; /* sorted by bytes */
    uint32_t n;
    uint32_t first[257];        /* items by first byte: first[b] .. first[b + 1] */
} q_match;
/* Of the `n_ids` ids, pieces[id] goes in; pieces must outlive it. LQ_E_LIMIT beyond Q_LIMIT_SPECIAL bytes. */
lq_status q_match_build(const q_alloc *a, const q_str *pieces, const int32_t *ids, uint32_t n_ids, q_match *out);
void q_match_free(const q_alloc *a, q_match *m);
/* The id of the longest one that begins text[0 .. n), and its length; -1 when there is none. */
int32_t q_match_find(const q_match *m, const char *text, uint64_t n, uint32_t *length);

typedef struct q_tokenizer_kind {
    const char *name;       /* "spm" */
    const char *gguf_model; /* value of tokenizer.ggml.model that it serves: "llama" */
    const char *file;       /* the Hugging Face file that it reads: "tokenizer.model" */
    /* Parse that file. vocab->arena.alloc is set by the caller. Special ids not in the file stay -1. */
    lq_status (*from_file)(const uint8_t *data, uint64_t n, q_vocab *vocab);
    /* Build the lookup tables over a checked vocabulary, which must outlive them. */
    lq_status (*open)(const q_alloc *a, const q_vocab *vocab, void **state);
    void (*close)(void *state);
    /* Encode n bytes of plain text. `start`: the text begins here, so that a space prefix applies. Appends to out
     * through `emit`, which may fail; O(n log n). */
    lq_status (*encode)(const void *state, const char *text, uint64_t n, bool start,
                        lq_status (*emit)(void *user, int32_t id), void *user);
    /* The bytes of one token, at most `cap`; returns their number (which may exceed cap). Spaces are real spaces. */
    uint64_t (*piece)(const void *state, int32_t id, char *out, uint64_t cap);
} q_tokenizer_kind;
extern const q_tokenizer_kind *const q_tokenizers[]; /* from tokenizers.def */

#endif
