/* rope_scaling.h: how the rotations of positions are stretched for contexts beyond those of training.
 *
 * What a model's metadata or a session's options say, checked, and the table of angular frequencies that a plan gets.
 * Layer L3. */
#ifndef Q_ROPE_SCALING_H
#define Q_ROPE_SCALING_H

#include "arch.h"
#include "memory.h"

typedef enum {
    Q_ROPE_NONE,
    Q_ROPE_LINEAR,   /* all frequencies by `factor` (positions interpolated) */
    Q_ROPE_NTK,      /* the base times factor^(d / (d - 2)): the fastest stay, the slowest are divided by the factor */
    Q_ROPE_DYNAMIC,  /* the same with the factor that the session's context needs; none below `original` */
    Q_ROPE_YARN,     /* fast ones stay, slow ones are divided, between them a ramp (arXiv:2309.00071) */
    Q_ROPE_LLAMA3,   /* likewise by wavelength (Llama 3.1); of GGUF files: by a tensor of factors, whatever made them */
    Q_ROPE_LONGROPE, /* a factor for each, and others beyond `original` tokens (arXiv:2402.13753) */
    Q_ROPE_KINDS
} q_rope_kind;

typedef struct q_rope {
    q_rope_kind kind;
    double factor;
    double original;       /* context of the training without it; 0 = nobody says */
    double attention;      /* cosines and sines are multiplied by it; 0 = what the kind's rule says */
    double attention_by;   /* and by this (GGUF's attn_factor); 0 = 1 */
    double beta_fast, beta_slow; /* YARN: rotations within `original` at the ends of its ramp */
    double mscale, mscale_all;   /* YARN: 0 = not given */
    double low, high;      /* LLAMA3: factors of wavelengths; 0 = its factors are given below */
    bool exact_ramp;       /* YARN: its ends are not rounded to whole dimensions */
    /* [n_factors] what frequencies are divided by; LONGROPE: short and long; LLAMA3, LINEAR: [0], or NULL */
    const float *factors[2];
    uint32_t n_factors;
} q_rope;

/* Is this key of a directory one of those that q_rope_read reads? `prefix`: the architecture's, of GGUF keys. */
bool q_rope_key(const q_directory *dir, const char *prefix, q_str key);
/* What a directory says, for a model trained for `context` tokens and heads of which `rot` values are rotated.
 * LQ_E_UNSUPPORTED names a type or a field that is not understood, LQ_E_INCONSISTENT one out of its range. Factors of
 * GGUF files are tensors: q_rope_take adds them. */
lq_status q_rope_read(const q_directory *dir, const char *prefix, uint32_t context, int32_t rot, q_arena *arena,
                      q_rope *out);

/* Tensors of factors, between config.json, which says what they are made of, and GGUF files, which have them.
 * What config.json says: LLAMA3's factors are computed from the base, once, in float32 as a file has them, so that a
 * directory and the file written from it turn keys alike, to the bit. */
lq_status q_rope_make(q_rope *r, double base, int32_t rot, q_arena *arena);
/* rot / 2 of them; NULL = the scaling has no such tensor. */
const float *q_rope_made(const q_rope *r, q_made what);
/* The ones of a GGUF file, NULL where it has none; they must outlive *r. LQ_E_INCONSISTENT names a tensor that is
 * missing or a factor out of its range, LQ_E_UNSUPPORTED a tensor that does not go with the type. */
lq_status q_rope_take(q_rope *r, const float *const tensors[Q_MADE_KINDS], int32_t rot);

/* The same as options of a session say it, over a model's own; context 0 = to be chosen. LQ_E_ARG. */
lq_status q_rope_choose(const q_rope *model, const lq_session_options *o, uint32_t trained, q_rope *out);
const char *q_rope_name(q_rope_kind kind);

/* The most tokens that a sequence may have. `chosen`: by options. */
uint32_t q_rope_longest(const q_rope *r, uint32_t trained, bool chosen);
/* Tables that a session of so many tokens needs: 2 = another one for sequences of more than `original` tokens. */
int32_t q_rope_tables(const q_rope *r, uint32_t context);
/* rot / 2 angular frequencies, and what cosines and sines are multiplied by. `beyond`: of the second table. */
float q_rope_table(const q_rope *r, double base, int32_t rot, uint32_t context, bool beyond, float *freqs);

/* Keys of a GGUF file that, with the tensors above, says the same, at most Q_ROPE_KEYS; `context` as for q_rope_read.
 * LQ_E_UNSUPPORTED for what GGUF has no form for; where that is needed beyond `context` alone, the log says how to give
 * it to a session. */
enum { Q_ROPE_KEYS = 6 };
lq_status q_rope_export(const q_rope *r, const char *arch, uint32_t context, const q_log *log, q_arena *arena,
                        q_meta *out, uint32_t *n);
uint64_t q_rope_hash(const q_rope *r, uint64_t hash);

#endif
