/* gguf.h: what the GGUF reader and writer share: type numbers, sizes of items, the rule for names. Private to
 * libquant/loaders/gguf*.c. Layer L2. */
#ifndef Q_GGUF_H
#define Q_GGUF_H

#include "../loader.h"

enum {
    Q_GGUF_ALIGNMENT = 32, /* of tensor data, where general.alignment says nothing */
    Q_GGUF_HEADER = 24,    /* magic, version, counts */
    Q_GGUF_RANK = 4,
    Q_GGUF_NAME = 65535    /* bytes of a key or a tensor's name */
};

extern const q_loader q_loader_gguf;

/* A tensor type as it stands in a file. */
typedef struct q_gguf_type {
    const q_format *format; /* NULL: stored, never computed with */
    const char *name;
    uint32_t weights, bytes; /* per block, when format is NULL */
} q_gguf_type;

/* LQ_E_UNSUPPORTED with a sentence that names the type. */
lq_status q_gguf_type_of(uint32_t id, q_gguf_type *out);
/* The number of a format, or of an integer type by name when format is NULL; -1 when GGUF has none. */
int64_t q_gguf_type_id(const q_format *format, const char *type_name);
/* Bytes of a row of n weights; false when n is not a multiple of the block or the size overflows. */
bool q_gguf_row_bytes(const q_gguf_type *t, uint64_t n, uint64_t *bytes);
/* Bytes of a number in metadata; 0 for strings, arrays and unknown types. */
uint32_t q_gguf_item_bytes(uint32_t type);
/* LQ_E_FORMAT unless 1 to Q_GGUF_NAME bytes of UTF-8 without zero bytes. `what`: "key". */
lq_status q_gguf_check_name(const char *what, q_str s);

#endif
