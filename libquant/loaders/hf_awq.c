/* hf_awq.c: directories of AutoAWQ ("gemm"): X.qweight, X.qzeros and X.scales are the weights of X.
 *
 * Eight codes of 4 bits to a 32-bit word lie along the outputs, in the order 0 2 4 6 1 3 5 7; so do zero points, as they are.
 * w = scale * (code - zero). Refuses the other layouts that call themselves AWQ (gemv, llm-awq) by their names, and where a
 * file gives none by its shapes; and every number of bits but 4. Layer L2. */
#include "hf_view.h"

typedef struct awq {
    q_hf_strips strips;
    const q_tensor *qweight, *qzeros, *scales;
    uint64_t in, out, group, groups;
} awq;

static const q_hf_field fields[] = {
    {"bits", NULL}, {"w_bit", NULL}, {"group_size", NULL}, {"q_group_size", NULL}, {"zero_point", "true"},
    {"version", "gemm,GEMM"}, {"format", "gemm,GEMM"}, {"sym", NULL}, {"desc_act", "false"}, {"pack_dtype", "int32"},
    {"checkpoint_format", "gemm,awq"},
    {"backend", "autoawq,auto,auto_trainable,machete,marlin,exllama_v2,exllama_v1,gemm,gemm_triton,torch_awq,torch_fused_awq"},
    /* which modules stay float, tensors tell; how others are to compute with them */
    {"modules_to_not_convert", NULL}, {"do_fuse", NULL}, {"fuse_max_seq_len", NULL}, {"modules_to_fuse", NULL},
    {"exllama_config", NULL}, {"meta", NULL}, {"lm_head", NULL},
    /* how the codes were found */
    {"act_group_aware", NULL}, {"damp_percent", NULL}, {"true_sequential", NULL}, {"batch_size", NULL}, {"tokenizer", NULL},
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

static lq_status awq_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const awq *w = (const awq *)t->view;
    const uint64_t line = w->out / 8, words = n / 8; /* of a row of the file; of the strip */
    uint32_t *codes = (uint32_t *)q_new_raw(dir->alloc, 1, (w->in + w->groups) * words * 4 + w->groups * (n * 2 + 3) + w->in);
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

/* ------------------------------------------------------------------------------------------------ opening */

/* Either name of a field, the library's or the paper's. */
static lq_status either(const q_hf_reader *r, const char *name, const char *other, int64_t min, int64_t max, int64_t *out) {
    return q_hf_integer(r, q_hf_key(r, name) || !q_hf_key(r, other) ? name : other, min, max, min - 1, out);
}

static lq_status add_module(q_hf_reader *r, int64_t group, const q_tensor *qweight, q_str module) {
    awq *w = (awq *)q_arena_new(r->arena, 1, sizeof *w);
    const q_tensor *scales = q_hf_part(r, module, ".scales");
    if (!w) return LQ_E_NOMEM;
    if (strcmp(qweight->type_name, "i32") != 0 || qweight->rank != 2)
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "it is %u-dimensional of type %s; awq packs codes in a matrix of i32: the "
                                 "order of this packing is unknown", qweight->rank, qweight->type_name), qweight);
    if (!scales)
        return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s.scales' is missing, which awq needs", Q_STR_ARG(module));
    w->in = qweight->rows;
    if (q_mul_overflow(qweight->shape[0], 8, &w->out) || w->out == 0 || w->in == 0 || w->in % 32)
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "%llu inputs; awq has multiples of 32", (unsigned long long)w->in), qweight);
    w->group = group < 0 ? w->in : (uint64_t)group;
    if (w->in % w->group)
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "groups of %llu do not divide its %llu inputs",
                                 (unsigned long long)w->group, (unsigned long long)w->in), qweight);
    w->groups = w->in / w->group;
    if (scales->shape[0] != w->out)
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "it has %llu columns, and the codes are of %llu outputs: the order of their "
                                 "packing is unknown", (unsigned long long)scales->shape[0], (unsigned long long)w->out), scales);
    w->qweight = qweight;
    Q_TRY(q_hf_need(r, module, ".scales", Q_HF_SCALES, w->out, w->groups, &w->scales));
    Q_TRY(q_hf_need(r, module, ".qzeros", "i32", qweight->shape[0], w->groups, &w->qzeros));
    Q_TRY(q_hf_check_scales(r, w->scales));
    w->strips.fill = awq_fill;
    return q_hf_add_strips(r, module, qweight, q_hf_grouped(4, w->in, w->group), w->in, w->out, true, &w->strips);
}

static lq_status awq_read(q_hf_reader *r) {
    int64_t bits, group;
    q_str module;
    Q_TRY(q_hf_check_fields(r, "", fields, Q_COUNT(fields)));
    Q_TRY(either(r, "bits", "w_bit", 4, 4, &bits));
    Q_TRY(either(r, "group_size", "q_group_size", -1, 1 << 20, &group));
    if (group == 0 || (group > 0 && group % 32))
        return q_fail(LQ_E_UNSUPPORTED, "config.json: the field 'quantization_config.group_size' is %lld; -1 and multiples of "
                      "32 are read", (long long)group);
    for (uint32_t i = 0; i < r->dir->n_tensors; i++)
        if (q_hf_module(&r->dir->tensors[i], ".qweight", &module)) Q_TRY(add_module(r, group, &r->dir->tensors[i], module));
    return LQ_OK;
}

const q_hf_kind q_hf_awq = {.method = "awq", .read = awq_read};
