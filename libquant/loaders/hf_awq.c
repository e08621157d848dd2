/* hf_awq.c: directories of AutoAWQ and llm-awq: X.qweight, X.scales and X.qzeros or X.scaled_zeros are the weights of
 * X.
 *
 * w = scale * (code - zero), codes of 4 bits, in one of three layouts:
 * - gemm, and the first llm-awq: eight codes to a word of 32 bits lie along the outputs, in the order 0 2 4 6 1 3 5 7;
 *   so do zero points, as they are; a row of scales per group.
 * - gemv: eight codes to a word lie along the inputs, in their order; so do zero points; a row of scales per output.
 * - gemv_fast, which is llm-awq's own of today: words of 16 bits. Of four outputs side by side, 64 inputs at a time: 16
 *   words of the first output, 16 of the second, and so on; nibble n of a half's word w is its input 8 n + w. A row of
 *   scales per group, and beside it one of -scale * zero, rounded: the zero point is what that is a multiple of, a
 *   whole number.
 * The latter two have room for more groups than there are, which is left zero. Type and shapes say which layout it is;
 * where the configuration names one, it has to be that one, except that llm-awq is a name of all three. Refuses other
 * layouts (marlin, exllama) by their names, zero points that are not whole, and every number of bits but 4. Layer
 * L2. */
#include <math.h>

#include "hf_view.h"

typedef struct awq {
    q_hf_strips strips;
    const q_tensor *qweight, *qzeros, *scales;
    uint64_t in, out, group, groups;
    uint64_t room; /* for groups, in the file */
} awq;

static const q_hf_field fields[] = {
    {"bits", NULL}, {"w_bit", NULL}, {"group_size", NULL}, {"q_group_size", NULL}, {"zero_point", "true"},
    {"version", "gemm,GEMM,gemv,GEMV,gemv_fast,GEMV_FAST,llm-awq"},
    {"format", "gemm,GEMM,gemv,GEMV,gemv_fast,GEMV_FAST,llm-awq"},
    {"checkpoint_format", "gemm,gemv,gemv_fast,llm-awq,awq"}, {"sym", NULL}, {"desc_act", "false"},
    {"pack_dtype", "int32,int16"},
    {"backend",
     "autoawq,llm-awq,auto,auto_trainable,machete,marlin,exllama_v2,exllama_v1,gemm,gemm_triton,gemv,gemv_fast,"
     "torch_awq,torch_fused_awq"},
    /* which modules stay float, tensors tell; how others are to compute with them */
    {"modules_to_not_convert", NULL}, {"do_fuse", NULL}, {"fuse_max_seq_len", NULL}, {"modules_to_fuse", NULL},
    {"exllama_config", NULL}, {"meta", NULL}, {"lm_head", NULL},
    /* how the codes were found */
    {"act_group_aware", NULL}, {"damp_percent", NULL}, {"true_sequential", NULL}, {"batch_size", NULL},
    {"tokenizer", NULL},
    {"dataset", NULL}, {"cache_block_outputs", NULL}, {"model_seqlen", NULL}, {"block_name_to_quantize", NULL},
    {"module_name_preceding_first_block", NULL}, {"pad_token_id", NULL}, {"max_input_length", NULL},
    {"modules_in_block_to_quantize", NULL},
};

/* ------------------------------------------------------------------------------------------------ rows */

/* Output o of its word's eight. */
static uint32_t nibble(uint32_t word, uint64_t o) {
    static const uint8_t at[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    return word >> at[o % 8] & 15;
}

static lq_status gemm_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const awq *w = (const awq *)t->view;
    const uint64_t line = w->out / 8, words = n / 8; /* of a row of the file; of the strip */
    uint32_t *codes =
        (uint32_t *)q_new_raw(dir->alloc, 1, (w->in + w->groups) * words * 4 + w->groups * (n * 2 + 3) + w->in);
    if (!codes) return LQ_E_NOMEM;
    uint32_t *zeros = codes + w->in * words;
    uint16_t *halves = (uint16_t *)(zeros + w->groups * words), *d = halves + w->groups * n;
    uint8_t *z = (uint8_t *)(d + w->groups), *row = z + w->groups;
    lq_status s = LQ_OK;
    for (uint64_t i = 0; i < w->in && s == LQ_OK; i++)
        s = q_hf_bytes(dir, w->qweight, (i * line + first / 8) * 4, codes + i * words, words * 4);
    for (uint64_t g = 0; g < w->groups && s == LQ_OK; g++) {
        s = q_hf_bytes(dir, w->qzeros, (g * line + first / 8) * 4, zeros + g * words, words * 4);
        if (s == LQ_OK) s = q_hf_halves(dir, w->scales, g * w->out + first, n, halves + g * n);
    }
    for (uint64_t o = 0; o < n && s == LQ_OK; o++) {
        for (uint64_t g = 0; g < w->groups; g++) {
            d[g] = halves[g * n + o];
            z[g] = (uint8_t)nibble(zeros[g * words + o / 8], o);
        }
        for (uint64_t i = 0; i < w->in; i++) row[i] = (uint8_t)nibble(codes[i * words + o / 8], o);
        q_hf_row(t->format, w->in, w->group, row, d, z, out + o * t->row_bytes);
    }
    q_delete(dir->alloc, codes);
    return s;
}

/* One row after the other, as ours. */
static lq_status gemv_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const awq *w = (const awq *)t->view;
    const uint64_t words = w->in / 8, zeros = w->room / 8;
    uint32_t *codes = (uint32_t *)q_new_raw(dir->alloc, 1, (words + zeros) * 4 + w->groups * 3 + w->in);
    if (!codes) return LQ_E_NOMEM;
    uint32_t *packed = codes + words;
    uint16_t *d = (uint16_t *)(packed + zeros);
    uint8_t *z = (uint8_t *)(d + w->groups), *row = z + w->groups;
    lq_status s = LQ_OK;
    for (uint64_t o = first; o < first + n && s == LQ_OK; o++, out += t->row_bytes) {
        s = q_hf_bytes(dir, w->qweight, o * words * 4, codes, words * 4);
        if (s == LQ_OK) s = q_hf_bytes(dir, w->qzeros, o * zeros * 4, packed, zeros * 4);
        if (s == LQ_OK) s = q_hf_halves(dir, w->scales, o * w->room, w->groups, d);
        if (s != LQ_OK) break;
        for (uint64_t g = 0; g < w->groups; g++) z[g] = (uint8_t)q_hf_code(packed, 1, 0, g, 4);
        q_hf_unpack(codes, 1, w->in, 4, row);
        q_hf_row(t->format, w->in, w->group, row, d, z, out);
    }
    q_delete(dir->alloc, codes);
    return s;
}

/* What -scale * zero is of the scale, to the next whole number of 0 .. 15; 0 for what is none (opening refused it). */
static uint8_t whole_zero(float scale, float scaled) {
    const float z = scale != 0 ? 0.5f - scaled / scale : 0;
    return z >= 1 && z < 16 ? (uint8_t)z : 0;
}

/* Output r of the four of a line: both halves of every 64 inputs have 8 words. */
static void fast_codes(const uint16_t *line, uint64_t in, uint64_t r, uint8_t *codes) {
    for (uint64_t i = 0; i < in; i += 32) {
        const uint16_t *half = line + i / 64 * 64 + r * 16 + i % 64 / 4;
        for (uint32_t n = 0; n < 4; n++)
            for (uint32_t j = 0; j < 8; j++) codes[i + 8 * n + j] = half[j] >> 4 * n & 15;
    }
}

static lq_status fast_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const awq *w = (const awq *)t->view;
    const uint64_t cells = w->groups * n;
    float *scales = (float *)q_new_raw(dir->alloc, 1, cells * 8 + w->in * 2 + w->groups * 3 + w->in);
    if (!scales) return LQ_E_NOMEM;
    float *scaled = scales + cells;
    uint16_t *line = (uint16_t *)(scaled + cells), *d = line + w->in;
    uint8_t *z = (uint8_t *)(d + w->groups), *row = z + w->groups;
    lq_status s = LQ_OK;
    for (uint64_t g = 0; g < w->groups && s == LQ_OK; g++) {
        s = q_hf_floats(dir, w->scales, g * w->out + first, n, scales + g * n);
        if (s == LQ_OK) s = q_hf_floats(dir, w->qzeros, g * w->out + first, n, scaled + g * n);
    }
    for (uint64_t o = 0; o < n && s == LQ_OK; o++) {
        if (o % 4 == 0) s = q_hf_bytes(dir, w->qweight, (first + o) / 4 * w->in * 2, line, w->in * 2);
        if (s != LQ_OK) break;
        for (uint64_t g = 0; g < w->groups; g++) {
            d[g] = q_f32_to_half(scales[g * n + o]);
            z[g] = whole_zero(scales[g * n + o], scaled[g * n + o]);
        }
        fast_codes(line, w->in, o % 4, row);
        q_hf_row(t->format, w->in, w->group, row, d, z, out + o * t->row_bytes);
    }
    q_delete(dir->alloc, scales);
    return s;
}

/* ------------------------------------------------------------------------------------------------ opening */

enum { PIECE = 256 };

typedef struct layout {
    const char *name, *shouted;    /* as configurations have it */
    uint32_t per_row, per_column;  /* what a row and a column of qweight are many of */
    bool rows_in;                  /* rows are inputs, columns outputs */
    uint32_t inputs;               /* are multiples of this */
    bool across;                   /* scales and zero points lie by group, not by output */
    bool roomy;                    /* there may be more of them than groups */
    bool scaled;                   /* zero points are multiplied */
    lq_status (*fill)(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out);
} layout;
enum { GEMM, GEMV, FAST, LAYOUTS };
static const layout layouts[LAYOUTS] = {
    [GEMM] = {"gemm", "GEMM", 1, 8, true, 32, true, false, false, gemm_fill},
    [GEMV] = {"gemv", "GEMV", 1, 8, false, 32, false, true, false, gemv_fill},
    [FAST] = {"gemv_fast", "GEMV_FAST", 4, 1, false, 64, true, true, true, fast_fill},
};

/* Either name of a field, the library's or the paper's. */
static lq_status either(const q_hf_reader *r, const char *name, const char *other, int64_t min, int64_t max,
                        int64_t *out) {
    return q_hf_integer(r, q_hf_key(r, name) || !q_hf_key(r, other) ? name : other, min, max, min - 1, out);
}

/* Whose type and shapes these are; NULL = nobody's. */
static const layout *layout_of(const q_tensor *qweight, const q_tensor *scales) {
    if (qweight->rank != 2 || scales->rank != 2) return NULL;
    if (strcmp(qweight->type_name, "i16") == 0) return &layouts[FAST];
    if (strcmp(qweight->type_name, "i32") != 0) return NULL;
    if (scales->shape[0] % 8 == 0 && scales->shape[0] / 8 == qweight->shape[0]) return &layouts[GEMM];
    return scales->rows == qweight->rows ? &layouts[GEMV] : NULL;
}

static lq_status find_layout(const q_hf_reader *r, const q_tensor *t, const q_tensor *scales, const layout **out) {
    static const char *const fields_of[] = {"version", "format", "checkpoint_format"};
    const layout *l = layout_of(t, scales);
    *out = l ? l : &layouts[GEMM]; /* never nothing, whatever is returned */
    if (!l)
        return q_hf_at(r,
                       q_fail(LQ_E_INCONSISTENT,
                              "it is %llu x %llu of type %s, its scales %llu x %llu: the order of this "
                              "packing is unknown",
                              (unsigned long long)t->rows, (unsigned long long)t->shape[0], t->type_name,
                              (unsigned long long)scales->rows, (unsigned long long)scales->shape[0]),
                       t);
    if (q_hf_word(r, "backend", "llm-awq")) return LQ_OK;
    for (size_t i = 0; i < Q_COUNT(fields_of); i++)
        for (const layout *x = layouts; x < layouts + LAYOUTS; x++)
            if (x != l && (q_hf_word(r, fields_of[i], x->name) || q_hf_word(r, fields_of[i], x->shouted)))
                return q_hf_at(r,
                               q_fail(LQ_E_INCONSISTENT,
                                      "its type and shape are those of %s, but quantization_config.%s says "
                                      "%s: the order of its packing is unknown",
                                      l->name, fields_of[i], x->name),
                               t);
    return LQ_OK;
}

static lq_status find_size(const q_hf_reader *r, const layout *l, int64_t group, const q_tensor *t, awq *w) {
    const bool fits = !q_mul_overflow(t->rows, l->per_row, l->rows_in ? &w->in : &w->out) &&
                      !q_mul_overflow(t->shape[0], l->per_column, l->rows_in ? &w->out : &w->in);
    if (!fits || w->out == 0 || w->in == 0 || w->in % l->inputs)
        return q_hf_at(r,
                       q_fail(LQ_E_INCONSISTENT, "%llu inputs; awq's %s has multiples of %u", (unsigned long long)w->in,
                              l->name, l->inputs),
                       t);
    w->group = group < 0 ? w->in : (uint64_t)group;
    if (w->in % w->group)
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "groups of %llu do not divide its %llu inputs",
                                 (unsigned long long)w->group, (unsigned long long)w->in), t);
    w->groups = w->in / w->group;
    /* A word of zero points, or as many words as 1024 inputs have of them. */
    const uint64_t unit = !l->roomy ? 1 : w->group >= 128 ? 8 : w->group >= 64 ? 16 : 32;
    w->room = (w->groups + unit - 1) / unit * unit;
    return LQ_OK;
}

/* That there are scales of as many groups as the configuration makes, where the file has room for more; and that zero
 * points that are multiplied are whole. Rounding scale and product to bf16, the coarsest type, moves 15 by 0.06. */
static lq_status check_groups(q_hf_reader *r, const layout *l, const awq *w) {
    const uint64_t k = w->scales->shape[0], cells = k * w->scales->rows;
    float scales[PIECE], scaled[PIECE] = {0};
    uint64_t used = 0;
    for (uint64_t at = 0; at < cells; at += PIECE) {
        const uint64_t n = Q_MIN(cells - at, (uint64_t)PIECE);
        Q_TRY(q_hf_floats(r->dir, w->scales, at, n, scales));
        if (l->scaled) Q_TRY(q_hf_floats(r->dir, w->qzeros, at, n, scaled));
        for (uint64_t i = 0; i < n; i++) {
            const uint64_t g = l->across ? (at + i) / k : (at + i) % k, o = l->across ? (at + i) % k : (at + i) / k;
            if (scales[i] != 0) used = Q_MAX(used, g + 1);
            if (!l->scaled || g >= w->groups) continue;
            const float z = scales[i] != 0 ? -scaled[i] / scales[i] : -scaled[i];
            if (!isfinite(scales[i]) || !(fabsf(z - (float)whole_zero(scales[i], scaled[i])) <= 0.0625f))
                return q_hf_at(r,
                               q_fail(LQ_E_UNSUPPORTED,
                                      "output %llu of group %llu: %g is not the scale, %g, times a whole "
                                      "zero point of 0 to 15",
                                      (unsigned long long)o, (unsigned long long)g, (double)-scaled[i],
                                      (double)scales[i]),
                               w->qzeros);
        }
    }
    if (used == w->groups) return LQ_OK;
    return q_hf_at(r,
                   q_fail(LQ_E_INCONSISTENT, "it has scales of %llu groups; group_size makes %llu",
                          (unsigned long long)used, (unsigned long long)w->groups),
                   w->scales);
}

static lq_status add_module(q_hf_reader *r, int64_t group, const q_tensor *qweight, q_str module) {
    awq *w = (awq *)q_arena_new(r->arena, 1, sizeof *w);
    const q_tensor *scales = q_hf_part(r, module, ".scales");
    const layout *l;
    if (!w) return LQ_E_NOMEM;
    if (!scales)
        return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s.scales' is missing, which awq needs", Q_STR_ARG(module));
    Q_TRY(find_layout(r, qweight, scales, &l));
    Q_TRY(find_size(r, l, group, qweight, w));
    w->qweight = qweight;
    Q_TRY(q_hf_need(r, module, ".scales", Q_HF_SCALES, l->across ? w->out : w->room, l->across ? w->room : w->out,
                    &w->scales));
    if (l->scaled) /* AutoAWQ kept the name of the other layouts */
        Q_TRY(q_hf_need(r, module, q_hf_part(r, module, ".qzeros") ? ".qzeros" : ".scaled_zeros", Q_HF_SCALES, w->out,
                        w->room, &w->qzeros));
    else
        Q_TRY(q_hf_need(r, module, ".qzeros", "i32", l->across ? w->out / 8 : w->room / 8, l->across ? w->room : w->out,
                        &w->qzeros));
    Q_TRY(q_hf_check_scales(r, w->scales));
    if (l->roomy) Q_TRY(check_groups(r, l, w));
    w->strips.fill = l->fill;
    return q_hf_add_strips(r, module, qweight, q_hf_grouped(4, w->in, w->group), w->in, w->out, l->across, &w->strips);
}

static lq_status awq_read(q_hf_reader *r) {
    int64_t bits, group;
    q_str module;
    Q_TRY(q_hf_check_fields(r, "", fields, Q_COUNT(fields)));
    Q_TRY(either(r, "bits", "w_bit", 4, 4, &bits));
    Q_TRY(either(r, "group_size", "q_group_size", -1, 1 << 20, &group));
    if (group == 0 || (group > 0 && group % 32))
        return q_fail(LQ_E_UNSUPPORTED,
                      "config.json: the field 'quantization_config.group_size' is %lld; -1 and multiples of "
                      "32 are read",
                      (long long)group);
    for (uint32_t i = 0; i < r->dir->n_tensors; i++)
        if (q_hf_module(&r->dir->tensors[i], ".qweight", &module))
            Q_TRY(add_module(r, group, &r->dir->tensors[i], module));
    return LQ_OK;
}

const q_hf_kind q_hf_awq = {.method = "awq", .read = awq_read};
