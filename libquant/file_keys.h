/* file_keys.h: the keys of a GGUF file that is made from a model.
 *
 * Keys of a GGUF source pass through in their order; of a Hugging Face directory the standard ones are made. What
 * describes the file and not the model is ours: its type, the version of the block formats, adapters, the importance,
 * and nothing about shards. Knows nothing of weights. Layer L3. */
#ifndef Q_FILE_KEYS_H
#define Q_FILE_KEYS_H

#include "bind.h"
#include "importance.h"
#include "lora.h"
#include "text.h"

typedef struct q_file_keys {
    const q_binding *binding;
    const q_log *log;       /* is told what they cannot say */
    q_text *text;           /* of a source that is not GGUF */
    const char *src;        /* path */
    int32_t file_type;      /* general.file_type; -1 = none */
    bool quantized;         /* some tensor is in blocks */
    const q_importance *importance; /* that took part; NULL = none */
    const char *importance_path;
    const q_loras *loras;   /* that were merged; NULL = none */
} q_file_keys;

/* *out is the caller's to q_delete; texts lie in the arena, the source and what was given. */
lq_status q_file_keys_make(const q_file_keys *k, q_arena *arena, q_meta **out, uint32_t *n);

/* The last component of a path, control bytes replaced; `otherwise` where that is no name (".", "/"). NULL: no
 * memory. */
const char *q_last_name(q_arena *arena, const char *path, const char *otherwise);

#endif
