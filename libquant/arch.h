/* arch.h: a model family as data: hyper-parameters, weights, slots and steps.
 *
 * One file libquant/archs/X.c and the line ARCH(x) in archs.def. A row speaks in roles, slots and symbolic dimensions;
 * bind.c resolves them once against a directory, and plan.c turns the steps into q_inst. libquant/README.md shows the
 * step tables of families beyond llama that this record must hold. Layer L1. */
#ifndef Q_ARCH_H
#define Q_ARCH_H

#include "loader.h"
#include "op.h"

/* Hyper-parameters (hparams.def) and the dimensions computed from them (dims.def). */
typedef enum {
#define HPARAM(name) Q_HP_##name,
#include "hparams.def"
#undef HPARAM
    Q_HP_COUNT
} q_hparam;
typedef enum {
#define DIM(name, expr) Q_DIM_##name,
#include "dims.def"
#undef DIM
    Q_DIM_COUNT
} q_dim;

typedef struct q_hparams {
    double v[Q_HP_COUNT];            /* NaN = not given */
    const double *per_layer[Q_HP_COUNT]; /* [layers] when the value varies by layer, else NULL */
} q_hparams;
static inline double q_hp(const q_hparams *h, q_hparam id, int32_t layer) {
    return h->per_layer[id] && layer >= 0 ? h->per_layer[id][layer] : h->v[id];
}

/* Where a hyper-parameter comes from. Missing without a default is an error naming the key. */
typedef struct q_hparam_row {
    q_hparam id;
    const char *gguf;   /* key after "<arch>."; a leading '=' makes it a whole key; NULL = not in GGUF */
    const char *hf;     /* path in config.json; NULL = not there */
    bool integer;       /* a float value is then an error */
    bool optional;      /* without it: `otherwise`, or `same_as` / `over` where same_as is given */
    bool quiet;         /* written to files only when it differs from that default */
    double min, max;    /* allowed range, inclusive */
    double otherwise;
    q_hparam same_as, over; /* Q_HP_NONE = none; both stand earlier in the table */
    /* another path, of other versions of the library that writes it; both must agree; NULL = none */
    const char *hf_also;
} q_hparam_row;

/* A configuration value that must be as given, or absent: "hidden_act" = "silu". Anything else is LQ_E_UNSUPPORTED. */
typedef struct q_fixed_row {
    const char *gguf, *hf;
    const char *allowed; /* comma-separated texts: strings as they are, numbers as %g, true, false, null */
} q_fixed_row;

/* How a Hugging Face tensor becomes the GGUF one; each has an inverse. */
typedef enum { Q_MAP_SAME, Q_MAP_ROPE_PAIRS /* rows of each head: halves interleaved */, Q_MAP_PLUS_ONE } q_map;

/* A tensor of GGUF files that Hugging Face has in config.json instead: bind.c makes it of that, so that models from
 * both have the same weights, and files that are written have it. Those there are: rot / 2 factors of RoPE's
 * frequencies, float32 in every file. */
typedef enum { Q_MADE_NOT, Q_MADE_ROPE_FREQS, Q_MADE_ROPE_SHORT, Q_MADE_ROPE_LONG, Q_MADE_KINDS } q_made;

typedef struct q_weight_row {
    const char *role;   /* class name, as recipes and reports use it: "attn_q" */
    const char *gguf;   /* "blk.%d.attn_q.weight": %d = layer; without it, one per model */
    const char *hf;     /* "model.layers.%d.self_attn.q_proj.weight"; NULL = not there: `made` */
    q_map map;
    uint8_t k, rows, matrices; /* q_dim: shape [k, rows, matrices]; rows 0 = a vector of k; matrices 0 = one */
    bool optional;
    uint8_t tied;       /* when absent use this role (its index + 1): output -> token_embd */
    uint8_t map_heads;  /* q_dim: ROPE_PAIRS: number of heads in the rows */
    q_made made;        /* such a row is one per model, and optional */
} q_weight_row;

typedef struct q_slot_row {
    const char *name;
    uint8_t width; /* q_dim */
} q_slot_row;

/* Part of a slot: `heads` heads of `width` values at `offset`, `stride` apart (q_dims). All 0 = the whole slot as one
 * head; width given and stride 0 = stride is the width. */
typedef struct q_part {
    uint8_t offset, heads, width, stride;
} q_part;

/* One step of a layer's table. Names of fields are those of q_inst (op.h); the small integers are: slots for
 * y x z v u, roles (weight row + 1; 0 = none) for w w2 w3 b b2, q_hparam (Q_HP_NONE = none) for hp_*. */
typedef struct q_step {
    uint8_t op, y, x, z, v, u;
    uint8_t w, w2, w3, b, b2;
    uint8_t kind, group;
    uint8_t add : 1, opt : 1 /* a weight or bias that the file lacks: no step, no bias */, out : 1, renorm : 1;
    q_part yp, xp, zp, vp, up;
    uint8_t w_row;      /* q_dim: first row of w (and bias) used; the number is y's heads * width */
    uint8_t hp_eps, hp_scale, hp_softcap, hp_limit, hp_alpha, hp_window, hp_sink_tokens, hp_base;
    uint8_t rot;        /* ROPE: q_dim of values rotated per head */
    float scale;        /* constant factor; 0 = 1 */
    float scale_pow;    /* hp_scale is raised to this: -0.5 = one over its square root; 0 = taken as it is */
} q_step;

/* The table of one kind of layer. */
typedef struct q_layer_table {
    const q_step *steps;
    uint32_t n;
} q_layer_table;

typedef struct q_arch {
    const char *name;         /* "llama": GGUF general.architecture */
    const char *aliases;      /* further GGUF names, comma-separated, or NULL */
    const char *hf_classes;   /* config.json "architectures" entries, comma-separated */
    const char *hf_ignored;   /* config.json fields that do not change the function, beyond the common ones */
    const char *ignored_tensors; /* endings of tensor names that carry nothing the steps need, comma-separated */
    const q_hparam_row *hparams;
    uint32_t n_hparams;
    const q_fixed_row *fixed;
    uint32_t n_fixed;
    const q_weight_row *weights; /* [0] .. ; steps refer to index + 1 */
    uint32_t n_weights;
    const q_slot_row *slots;  /* [0] unused: slot 0 = absent; slot 1 = the residual stream, a batch's x rows */
    uint32_t n_slots;
    q_layer_table first;      /* before the layers */
    const q_layer_table *layers; /* kinds of layer */
    uint32_t n_layer_kinds;
    /* Kind of layer i; NULL = always 0. The one function of an architecture, for patterns like "every fourth". */
    uint32_t (*layer_kind)(const q_hparams *hp, int32_t layer);
    q_layer_table last;       /* after them; steps with .out work on the wanted columns */
    bool rope_scaling;        /* what files say of it is read (rope_scaling.h); else every such key is refused */
    uint8_t dim_kv_heads, dim_k, dim_v; /* q_dim: KV heads, key width, value width (0: prefix of the keys) of a page */
} q_arch;
extern const q_arch *const q_archs[]; /* from archs.def */

double q_dim_value(const q_hparams *hp, q_dim dim, int32_t layer);

#endif
