/* export.h: what turns quantizing into a Hugging Face directory: whether there is to be one, and what goes into it
 * besides the tensors.
 *
 * Layer L3. */
#ifndef Q_EXPORT_H
#define Q_EXPORT_H

#include "bind.h"
#include "recipe.h"

/* The keys that q_export_keys makes, at most. */
enum { Q_EXPORT_KEYS = 24 };

/* Does this scheme write a directory at `dst` (may be NULL)? A recipe with a method does; others do where `dst` ends in
 * '/' or is a directory. LQ_E_UNSUPPORTED: a directory's scheme for a *.gguf, or from a GGUF source. */
lq_status q_export_decide(const q_recipe *recipe, const char *scheme, const q_directory *dir, const char *src,
                          const char *dst, bool *directory);

/* LQ_E_ARG when replacing the directory `dst` would remove an input file. */
lq_status q_export_spares(const char *dst, const char *input);

/* The files beside the weights, as q_writer_huggingface takes them: config.json of the source, with the type of the
 * model's float weights and `m`'s quantization (method NULL: none), and those of the tokenizer and of generation as
 * they are. */
lq_status q_export_keys(q_arena *arena, const q_directory *dir, const q_format *dtype, const q_method *method,
                        const q_packed_matrix *m, q_meta *out, uint32_t *n);

/* Bytes of a tensor that goes into a directory. */
uint64_t q_export_bytes(const q_out_tensor *t);

#endif
