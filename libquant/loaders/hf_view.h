/* hf_view.h: what the kinds of quantized directories share: looking at the configuration, claiming tensors, making
 * views.
 *
 * Private to libquant/loaders/hf_*.c. Layer L2. */
#ifndef Q_HF_VIEW_H
#define Q_HF_VIEW_H

#include "../hf_kind.h"
#include "../threads.h"

typedef struct q_hf_cache q_hf_cache;

/* One directory as a kind reads it: the metadata, and the tensors as the files have them. */
struct q_hf_reader {
    const q_alloc *alloc;
    const q_log *log;
    q_arena *arena; /* lives as long as the directory */
    const q_directory *dir;
    const q_hf_kind *kind;
    q_hf_cache *cache;
    q_tensor *tensors; /* [dir->n_tensors] what becomes of each: itself, or the view in its place */
    uint8_t *state;    /* [dir->n_tensors] */
    uint32_t views;
    const q_tensor *activation; /* the first of the scales of activations, and how many */
    uint32_t activations;
    char text[64]; /* of a value, for sentences */
};

/* Turn the directory's quantized tensors into views: *n tensors in `out` (the caller's to free), with the directory's
 * own when nothing is quantized. The container's name comes to say the method. LQ_E_UNSUPPORTED for a method or a field
 * that is not known, LQ_E_INCONSISTENT where configuration and tensors disagree. `cache`: the caller's, to be closed
 * after the last read. */
lq_status q_hf_views(const q_alloc *a, const q_log *log, q_arena *arena, q_directory *dir, q_hf_cache **cache,
                     q_tensor **out, uint32_t *n);
lq_status q_hf_cache_open(const q_alloc *a, q_hf_cache **out);
void q_hf_cache_close(q_hf_cache *cache);
void q_hf_cache_empty(q_hf_cache *cache);

/* ---- the configuration: names are those below "quantization_config." */

/* A field that a kind knows. allowed: the values that mean what the kind does, separated by commas; NULL = the kind
 * reads it, or it says nothing about the weights. It covers what is nested in it too ("meta" is also
 * "meta.quantizer"). */
typedef struct q_hf_field {
    const char *name, *allowed;
} q_hf_field;
/* Of the fields that begin with `base` ("" = all). */
lq_status q_hf_check_fields(q_hf_reader *r, const char *base, const q_hf_field *fields, size_t n);
const q_meta *q_hf_key(const q_hf_reader *r, const char *name);
/* `otherwise` < min: the field must be there. */
lq_status q_hf_integer(const q_hf_reader *r, const char *name, int64_t min, int64_t max, int64_t otherwise,
                       int64_t *out);
lq_status q_hf_flag(const q_hf_reader *r, const char *name, bool otherwise, bool *out);
bool q_hf_word(const q_hf_reader *r, const char *name, const char *word);

/* ---- tensors */

/* `suffix` ends the name: *module is what stands before. */
bool q_hf_module(const q_tensor *t, const char *suffix, q_str *module);
const q_tensor *q_hf_part(const q_hf_reader *r, q_str module, const char *suffix);
/* The part that has to be there, of one of these types (separated by commas) and this shape: `rows` 0 = a vector of
 * k. */
lq_status q_hf_need(q_hf_reader *r, q_str module, const char *suffix, const char *types, uint64_t k, uint64_t rows,
                    const q_tensor **out);
/* It belongs to a view: it is not a tensor of the model. */
void q_hf_claim(q_hf_reader *r, const q_tensor *part);
/* Claim the module's parts that say how an engine of 8-bit activations rounds its input: the weights are the same
 * without them. They are told once for the whole directory. */
void q_hf_spare_activations(q_hf_reader *r, q_str module);
/* Put file and tensor in front of the sentence. */
lq_status q_hf_at(const q_hf_reader *r, lq_status s, const q_tensor *t);
/* module.weight with this view, in the place of `part`: rows x k weights. */
lq_status q_hf_add(q_hf_reader *r, q_str module, const q_tensor *part, const q_format *format, uint64_t k,
                   uint64_t rows, const q_source *view);
/* n bytes of a part at `offset`, never from the mapping: what is read once need not become part of the process. */
lq_status q_hf_bytes(const q_directory *dir, const q_tensor *part, uint64_t offset, void *dst, uint64_t n);
/* All of it, in a block of the caller's. */
lq_status q_hf_all(const q_hf_reader *r, const q_tensor *part, void **out);

/* Scales: f16, bf16 or f32 in the file, halves in our formats. The check reads them where they are no halves: what a
 * half cannot hold is LQ_E_NUMERIC, what it holds less exactly a warning. */
#define Q_HF_SCALES "f16,bf16,f32"
lq_status q_hf_check_scales(const q_hf_reader *r, const q_tensor *scales);
lq_status q_hf_floats(const q_directory *dir, const q_tensor *scales, uint64_t first, uint64_t n, float *out);
lq_status q_hf_halves(const q_directory *dir, const q_tensor *scales, uint64_t first, uint64_t n, uint16_t *out);

/* ---- rows in strips */

/* A view whose rows are made a strip of many at a time. Where they lie across the file, as columns, strips are kept in
 * the directory's cache while their rows are read one by one. Begins the view's own struct. */
typedef struct q_hf_strips {
    q_source view; /* strip: a multiple of 32 */
    q_hf_cache *cache;
    /* Rows [first, first + n), at most a strip; across the file: from a multiple of 32 on, a whole strip. */
    lq_status (*fill)(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out);
} q_hf_strips;
/* module.weight, as q_hf_add, with its rows made by `fill`. */
lq_status q_hf_add_strips(q_hf_reader *r, q_str module, const q_tensor *part, const q_format *format, uint64_t k,
                          uint64_t rows, bool across, q_hf_strips *s);

/* ---- rows of the formats with a scale and a zero point per group: i4 for codes of up to 4 bits, i8 */

/* The format for rows of `in` weights in groups of `group` (which divides it, a multiple of 32): repeated where ours
 * are shorter. */
const q_format *q_hf_grouped(uint32_t bits, uint64_t in, uint64_t group);
/* A row: a code per weight (0 .. 15, or 255), a half and a zero point (0 .. 16, or 255) per group. */
void q_hf_row(const q_format *f, uint64_t in, uint64_t group, const uint8_t *codes, const uint16_t *d, const uint8_t *z,
              uint8_t *out);

/* Code i of a little-endian stream of codes of `bits` bits in words that lie `stride` apart; `skip` bits come first. */
static inline uint32_t q_hf_code(const uint32_t *words, uint64_t stride, uint64_t skip, uint64_t i, uint32_t bits) {
    const uint64_t at = skip + i * bits, w = at / 32;
    const uint32_t shift = (uint32_t)(at % 32);
    uint64_t v = words[w * stride];
    if (shift + bits > 32) v |= (uint64_t)words[(w + 1) * stride] << 32;
    return (uint32_t)(v >> shift) & ((1u << bits) - 1);
}

/* The first n codes of such a stream, n a multiple of 32. */
void q_hf_unpack(const uint32_t *words, uint64_t stride, uint64_t n, uint32_t bits, uint8_t *codes);

/* Inputs in contiguous groups: *order, in the arena, from the group of each of `in` inputs; NULL where they are
 * already. `g_idx`: i32, or i64. LQ_E_INCONSISTENT unless each of in / group groups has `group` inputs. */
lq_status q_hf_order(const q_hf_reader *r, const q_tensor *g_idx, uint64_t in, uint64_t group, const int32_t **order);

/* ---- floats of 8 bits (hf_fp8.c): a weight in E4M3, with a scale for each block, becomes module.weight in bf16 */
lq_status q_hf_add_fp8(q_hf_reader *r, q_str module, const q_tensor *weight, const q_tensor *scale, uint64_t block_rows,
                       uint64_t block_k);

#endif
