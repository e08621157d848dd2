/* safetensors.h: what the files of the safetensors loader share: the container's header, configurations as metadata.
 *
 * Private to libquant/loaders/safetensors.c, hf_dir.c and hf_config.c (and to their tests). Layer L2. */
#ifndef Q_SAFETENSORS_H
#define Q_SAFETENSORS_H

#include "../json.h"

extern const q_loader q_loader_safetensors, q_loader_peft;

/* Tensors of all files of a directory, in file order. */
typedef struct q_st_list {
    const q_alloc *alloc;
    q_tensor *items;
    uint64_t n, cap;
} q_st_list;

/* Length of the JSON header, from the first bytes of a file of `size` bytes: at least 2, within the file and the limit.
 * `head` holds the first 9 bytes, zeros beyond the end. */
lq_status q_st_header_length(const uint8_t head[9], uint64_t size, uint64_t *n);

/* Append the tensors of a file: `json` is its header of n bytes (which must stay, names point into it), followed by
 * data_bytes of data. Checks every tensor, and that together they cover the data exactly. Errors name the tensor; the
 * caller adds the file. Names are not yet known to be unique. */
lq_status q_st_header(q_arena *arena, const uint8_t *json, uint64_t n, uint64_t data_bytes, uint32_t file,
                      q_st_list *list);

/* Metadata, growing. */
typedef struct q_hf_meta {
    const q_alloc *alloc;
    q_arena *arena; /* keys and values */
    q_meta *items;
    uint64_t n, cap;
} q_hf_meta;

enum { Q_HF_MAX_KEY = 1024 };

/* Append the members of a JSON object as metadata under `prefix` ("" or "tokenizer_config."): members of members are
 * joined by '.'. Integers become U64, or I64 when negative; reals F64; null is left out. An array of integers, of
 * numbers, of booleans or of strings becomes an array (an empty one counts as of strings); any other array becomes
 * "key.0", "key.1" and so on, as if it were an object. With scalars_only arrays are left out. Errors name the key. */
lq_status q_hf_flatten(q_hf_meta *meta, const q_json *root, const char *prefix, bool scalars_only);
/* One more; what it points to has to stay. */
lq_status q_hf_add_meta(q_hf_meta *meta, const q_meta *item);

#endif
