/* bind.h: from a directory of names to an architecture's roles: which tensor is what, and every hyper-parameter.
 *
 * Done once when a model opens; checks that every tensor the architecture needs is there with the shape its
 * hyper-parameters demand, and that nothing is left over. Layer L3. */
#ifndef Q_BIND_H
#define Q_BIND_H

#include "arch.h"
#include "rope_scaling.h"

struct q_lora_delta;
/* One weight of the model under its GGUF name, wherever it comes from. */
typedef struct q_bind_item {
    q_str name;           /* GGUF name, "blk.3.attn_q.weight" */
    int32_t role;         /* index into arch->weights */
    int32_t layer;        /* -1 = one per model */
    const q_tensor *src;  /* shape and bytes in the source; in memory, if it was made of the configuration */
    q_map map;            /* what makes the source's rows the GGUF ones; Q_MAP_SAME for GGUF sources */
    int32_t map_heads;
    struct q_lora_delta *delta; /* what adapters add to its rows (lora.h), before the factors below; NULL = nothing */
    const float *columns; /* [shape[0]] each weight is multiplied by its column's; NULL = by 1 */
    const float *rows;    /* [rows], of a vector [shape[0]]: and divided by its row's (its own) */
} q_bind_item;

typedef struct q_binding {
    const q_directory *dir;
    const q_arch *arch;
    q_hparams hp;
    q_rope rope;          /* what the file says, tensors of factors included */
    int32_t layers;
    q_bind_item *items;   /* GGUF sources: file order; Hugging Face: the order of the architecture's table */
    uint32_t n_items;
    uint32_t n_stored;    /* the first items are tensors of the directory; the others were made of its configuration
                             (q_weight_row.made): GGUF files have them as tensors, Hugging Face's do not */
    int32_t *tensor_item; /* [dir->n_tensors] index into items, -1 = none */
    /* [arch->n_weights * layers] index into items or -1; layer 0 for one-per-model roles. Tied roles point at the
     * tensor they share. */
    int32_t *by_role;
    q_arena arena;
    const struct q_wide *wide; /* decodes rows that are read; NULL = as for any processor. Set by who reads many */
} q_binding;

/* The directory must outlive the binding. LQ_E_UNSUPPORTED names an unknown architecture or configuration field;
 * LQ_E_INCONSISTENT names the tensor or key. */
lq_status q_bind(const q_alloc *a, const q_log *log, const q_directory *dir, q_binding **out);
void q_binding_close(q_binding *b);

/* The item of a role (0-based) at a layer; NULL when the model has none. */
const q_bind_item *q_bind_find(const q_binding *b, int32_t role, int32_t layer);

/* Row r of an item is which row of its source? */
uint64_t q_bind_source_row(const q_bind_item *item, uint64_t r);
/* Rows [first, first + n) of an item as the GGUF tensor has them. Raw: row_bytes each, in the source's format (not for
 * PLUS_ONE, nor under factors or adapters), and in the source's order of inputs. Decoded: shape[0] floats each, by
 * input, with what adapters add, and last of all the item's factors. Thread-safe. */
lq_status q_bind_read_raw(const q_binding *b, const q_bind_item *item, uint64_t first, uint64_t n, uint8_t *out);
lq_status q_bind_read(const q_alloc *a, const q_binding *b, const q_bind_item *item, uint64_t first, uint64_t n,
                      float *out);

/* What q_bind_read of n rows asks of the allocator meanwhile. */
uint64_t q_bind_read_bytes(const q_bind_item *item, uint64_t n);

/* The GGUF keys that describe this model's hyper-parameters, from general.architecture to <arch>.vocab_size, in the
 * standard order and types; `file_type` is general.file_type. For sources that are not GGUF: a GGUF source's own keys
 * are passed through by the caller. The log is told what of RoPE's scaling they do not say (rope_scaling.h). */
lq_status q_bind_export(const q_binding *b, const q_log *log, const char *model_name, uint32_t file_type,
                        q_arena *arena, q_meta *out, uint32_t cap, uint32_t *n);

#endif
