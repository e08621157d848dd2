/* text.h: a model's vocabulary and everything said about text in libquant.h: tokenize, detokenize, find.
 *
 * Built from a directory (GGUF keys, or tokenizer.model with tokenizer_config.json and config.json), checked in full,
 * then immutable and thread-safe. Independent of the directory once open. A tokenizer that this build does not know is
 * LQ_E_UNSUPPORTED by name: there is no default. Layer L3. */
#ifndef Q_TEXT_H
#define Q_TEXT_H

#include "tokenizer.h"

typedef struct q_text q_text;

/* LQ_E_INCONSISTENT names the key at fault. `log` may be NULL, else it must outlive the object. */
lq_status q_text_open(const q_alloc *a, const q_log *log, const q_directory *dir, q_text **out);
void q_text_close(q_text *t); /* NULL is fine */

const q_vocab *q_text_vocab(const q_text *t);
const char *q_text_gguf_model(const q_text *t); /* "llama": value of tokenizer.ggml.model. Static storage */

/* As lq_tokenize, flags LQ_TOKENIZE_*. A text begins, and gets its space prefix, at its first byte and after each BOS
 * that PARSE_SPECIAL finds; behind other special tokens no space is put. */
lq_status q_text_tokenize(const q_text *t, const char *text, size_t bytes, uint32_t flags, int32_t *ids, size_t *n);

/* As lq_detokenize, flags LQ_DETOKENIZE_*. The one leading space is dropped where a text begins: at the first id
 * (unless MIDDLE) and after each BOS. An unknown token, whose text is lost, is U+FFFD without LQ_DETOKENIZE_SPECIAL. */
lq_status q_text_detokenize(const q_text *t, const int32_t *ids, size_t count, uint32_t flags, char *text, size_t *n);

/* The bytes that one token adds to a text, which begins with it where *start; *start then tells of the next token. As
 * q_text_detokenize without flags. No token has more than q_text_longest. */
size_t q_text_spell(const q_text *t, int32_t id, bool *start, char out[Q_LIMIT_PIECE]);
size_t q_text_longest(const q_text *t);

/* LQ_E_INCONSISTENT, with the first token that differs, where ids do not mean the same in both. */
lq_status q_text_same(const q_text *a, const q_text *b);

/* Bytes at the end of text[0 .. n) that begin a UTF-8 character without finishing it: 0 to 3. */
uint32_t q_text_incomplete(const uint8_t *text, size_t n);

/* By spelling, as stored in the vocabulary (U+2581 for space); -1 = none. */
int32_t q_text_find(const q_text *t, const char *piece);

/* The GGUF keys of the vocabulary, in the order in which files have them. At most Q_TEXT_EXPORT_MAX; LQ_E_ARG when
 * `cap` is too small. Everything is copied to the arena, but for the static key names. */
enum { Q_TEXT_EXPORT_MAX = 12 };
lq_status q_text_export(const q_text *t, q_arena *arena, q_meta *out, uint32_t cap, uint32_t *n);

#endif
