/* recipe.h: which format and quantizer each tensor gets: recipes as text, read once and then asked per tensor.
 *
 * A recipe is a text of lines; libquant/recipes/X.txt are embedded as the schemes users name. Words are separated by
 * blanks; '#' at the start of a word begins a comment. The first line, when a comment, is the recipe's description.
 *
 *   # 4.5 bits, half of attn_v and ffn_down at 6: the usual choice
 *   file_type 15                     general.file_type of the GGUF file; without it the file carries no such key
 *   vector f32                       format of tensors of rank 1 and of norms; f32 when the line is absent (factors of
 *                                    RoPE's frequencies are f32 whatever it says)
 *   method gptq                      a Hugging Face directory, its layers' matrices stored by this method
 *                                    (methods.def); everything else is in the model's 16-bit type, whatever the rules
 *                                    say
 *   instead q4_k_m                   with method: the scheme that comes nearest in a GGUF file
 *   transform awq                    factors of inputs (transforms.def) are folded into neighbouring weights before
 *                                    anything is quantized; the calibration statistics have them
 *   output q6_k                      PATTERN[,PATTERN...] [CONDITION...] FORMAT[:QUANTIZER], the first match wins
 *   token_embd tied q6_k
 *   attn_v,ffn_down more q6_k:search
 *   blk.[0-3].attn_* layer<n/2 q5_k
 *   * q4_k                           the last rule takes every tensor
 *
 * PATTERN    a role (attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down token_embd output ...), or a glob over
 *            the tensor's GGUF name: * any text, ? one character, [a-c] [!a-c] one of (or outside) a set
 * CONDITION  all must hold:
 *            layer<E layer<=E layer>E layer>=E layer=E   never true for tensors outside the layers
 *            gqa<E ...             query heads per key-value head
 *            E                     a number, or [A]n[/B][+C] with n the number of layers, in whole numbers: 7n/8
 *            more                  the layers that carry most: the first and last eighth, and every third between
 *            tied untied           the embedding also serves as output matrix, or not
 *            importance no-importance   calibration statistics are at hand, or not
 * QUANTIZER  of quantizers.def; `search` without it
 *
 * A scheme is what users name: a recipe or a format, and what changes it, in any order (scheme.c):
 *
 *   q4_k_m           the recipe
 *   q4_k             a format's name: everything that format
 *   q4_k_m:gptq      the matrices of the layers by that quantizer, whatever the recipe says
 *   awq+q4_k_m       with that transform
 *   q4_k_m+imatrix   nothing else, but refused without calibration statistics
 *
 * Layer L3. */
#ifndef Q_RECIPE_H
#define Q_RECIPE_H

#include "memory.h"
#include "method.h"
#include "quantizer.h"
#include "transform.h"

typedef struct q_recipe q_recipe;

/* The embedded recipes, by index: name and one-line description (static storage); NULL past the end. */
uint32_t q_recipe_count(void);
const char *q_recipe_name(uint32_t index, const char **description);
/* The scheme whose files carry this general.file_type; NULL when there is none. */
const char *q_recipe_by_file_type(uint64_t file_type);

/* A scheme by its words. LQ_E_ARG names the word that is none, the nearest, and what there is. */
lq_status q_recipe_find(const q_alloc *a, const char *scheme, q_recipe **out);
/* The embedded recipe of that name, or for a format's name "everything that format"; *out NULL = no such name. */
lq_status q_recipe_named(const q_alloc *a, const char *name, q_recipe **out);
/* A recipe in a file. */
lq_status q_recipe_read(const q_alloc *a, const char *path, q_recipe **out);
/* Read a recipe of n bytes; `name` is for messages. LQ_E_FORMAT names recipe and line. The text may go afterwards. */
lq_status q_recipe_parse(const q_alloc *a, const char *name, const char *text, size_t n, q_recipe **out);
void q_recipe_close(q_recipe *recipe);

/* What a scheme adds to a recipe. LQ_E_ARG: no rule has a format that this one fills. */
lq_status q_recipe_set_quantizer(q_recipe *recipe, const q_quantizer *quantizer);
/* LQ_E_ARG: the recipe has another. */
lq_status q_recipe_set_transform(q_recipe *recipe, const q_transform *transform);
/* NULL = none. */
const q_transform *q_recipe_transform(const q_recipe *recipe);
void q_recipe_demand_statistics(q_recipe *recipe);
bool q_recipe_demands_statistics(const q_recipe *recipe);

/* general.file_type; -1 = none stated. */
int32_t q_recipe_file_type(const q_recipe *recipe);

/* How a directory stores matrices; NULL for recipes of GGUF files. `instead`, which may be NULL, gets the nearest of
 * those. */
const q_method *q_recipe_method(const q_recipe *recipe, const char **instead);
/* The same of an embedded recipe, by index; false past the end too. */
bool q_recipe_is_directory(uint32_t index);

/* What a recipe may look at. */
typedef struct q_recipe_tensor {
    q_str name;            /* GGUF name */
    const char *role;      /* of the architecture's weight row */
    int32_t layer, layers; /* layer -1 = one per model */
    int32_t gqa;           /* query heads per key-value head */
    uint32_t rank;
    uint64_t k;            /* row length */
    bool tied, importance;
} q_recipe_tensor;

typedef struct q_recipe_choice {
    const q_format *wanted; /* as the recipe says */
    const q_format *format; /* differs from `wanted` when rows of k weights do not fill its blocks */
    const q_quantizer *quantizer;
} q_recipe_choice;

lq_status q_recipe_choose(const q_recipe *recipe, const q_recipe_tensor *tensor, q_recipe_choice *out);

#endif
