/* hf_kind.h: one method by which Hugging Face directories keep quantized weights: GPTQ, AWQ and their like.
 *
 * Such a directory has "quantization_config" in config.json, and in the place of X.weight several tensors X.something.
 * A kind is a file libquant/loaders/hf_NAME.c with this record, and the line HF_KIND(NAME) in hf_kinds.def. It checks
 * every field of the configuration and turns those tensors into views (loader.h): X.weight again, in a format of ours.
 * Layer L1. */
#ifndef Q_HF_KIND_H
#define Q_HF_KIND_H

#include "loader.h"

typedef struct q_hf_reader q_hf_reader; /* loaders/hf_view.h */

typedef struct q_hf_kind {
    const char *method; /* quantization_config.quant_method */
    lq_status (*read)(q_hf_reader *r);
} q_hf_kind;
extern const q_hf_kind *const q_hf_kinds[]; /* from hf_kinds.def, then NULL */

#endif
