/* hf_gptq.c: directories of AutoGPTQ and GPTQModel: X.qweight, X.qzeros, X.scales and X.g_idx are the weights of X.
 *
 * Codes of `bits` bits lie along the inputs, in columns of 32-bit words: one little-endian stream of bits per output,
 * so that 3-bit codes cross words. w = scale * (code - zero), with a scale and a zero point per group of inputs and
 * output. The first version of the layout stores zero - 1, the second zero; checkpoint_format says which, but is not to
 * be trusted: where all zero points are the middle of the range, as symmetric quantization has them, they tell
 * themselves. Inputs whose groups are not contiguous (act-order) are put in order, and the view says which input is
 * where. Codes of 2, 3 and 4 bits become the i4 formats, which hold them exactly, those of 8 bits i8. Refuses other
 * layouts (marlin), groups that are no multiple of 32, and rules that change from module to module. Layer L2. */
#include "hf_view.h"

typedef struct gptq {
    q_hf_strips strips;
    const q_tensor *qweight, *qzeros, *scales;
    uint32_t bits;
    uint32_t add;  /* 1: stored zero points are one too small */
    uint64_t in, out, group, groups;
} gptq;

/* What the configuration says. */
typedef struct scheme {
    uint32_t bits;
    int64_t group; /* -1: one for all inputs */
    bool desc_act, sym, v2;
    /* tensors that were read otherwise than labelled; with zero points beyond the codes */
    uint32_t relabelled, widened;
    q_str first, widest;
} scheme;

static const q_hf_field fields[] = {
    {"bits", NULL}, {"group_size", NULL}, {"desc_act", NULL}, {"sym", NULL}, {"checkpoint_format", "gptq,gptq_v2"},
    {"is_marlin_format", "false"}, {"pack_dtype", "int32"}, {"format", "gptq,gptq_v2"}, {"hyb_act", "false"},
    /* how the codes were found, or how others are to compute with them */
    {"damp_percent", NULL}, {"damp_auto_increment", NULL}, {"static_groups", NULL}, {"true_sequential", NULL},
    {"model_name_or_path", NULL}, {"model_file_base_name", NULL}, {"dataset", NULL}, {"tokenizer", NULL},
    {"batch_size", NULL},
    {"block_name_to_quantize", NULL}, {"cache_block_outputs", NULL}, {"disable_exllama", NULL},
    {"exllama_config", NULL},
    {"max_input_length", NULL}, {"model_seqlen", NULL}, {"module_name_preceding_first_block", NULL},
    {"modules_in_block_to_quantize", NULL}, {"pad_token_id", NULL}, {"use_cuda_fp16", NULL}, {"use_exllama", NULL},
    {"backend", NULL}, {"lm_head", NULL}, {"meta", NULL}, {"mse", NULL}, {"act_group_aware", NULL},
    {"modules_to_not_convert", NULL},
};

/* ------------------------------------------------------------------------------------------------ rows */

/* Where the parts of a strip lie while it is made. */
typedef struct strip {
    uint32_t *words; /* [in * bits / 32][n] */
    uint32_t *zeros; /* [groups][n * bits / 32] */
    uint16_t *halves; /* [groups][n] */
    uint16_t *d;     /* [groups] of one row */
    uint8_t *z;      /* [groups] */
    uint8_t *codes, *mixed; /* [in] */
} strip;

static lq_status read_strip(const q_directory *dir, const gptq *g, uint64_t first, uint64_t n, const strip *s) {
    const uint64_t words = g->in * g->bits / 32, zeros = n * g->bits / 32, row = g->out * g->bits / 32;
    for (uint64_t w = 0; w < words; w++)
        Q_TRY(q_hf_bytes(dir, g->qweight, (w * g->out + first) * 4, s->words + w * n, n * 4));
    for (uint64_t k = 0; k < g->groups; k++) {
        Q_TRY(q_hf_bytes(dir, g->qzeros, (k * row + first * g->bits / 32) * 4, s->zeros + k * zeros, zeros * 4));
        Q_TRY(q_hf_halves(dir, g->scales, k * g->out + first, n, s->halves + k * n));
    }
    return LQ_OK;
}

/* Row c of the strip. */
static void make_row(const q_tensor *t, const gptq *g, const strip *s, uint64_t n, uint64_t c, uint8_t *out) {
    const uint64_t zeros = n * g->bits / 32;
    const int32_t *order = g->strips.view.order;
    for (uint64_t k = 0; k < g->groups; k++) {
        s->d[k] = s->halves[k * n + c];
        s->z[k] = (uint8_t)(q_hf_code(s->zeros + k * zeros, 1, 0, c, g->bits) + g->add);
    }
    q_hf_unpack(s->words + c, n, g->in, g->bits, s->codes);
    for (uint64_t i = 0; order && i < g->in; i++) s->mixed[i] = s->codes[order[i]];
    q_hf_row(t->format, g->in, g->group, order ? s->mixed : s->codes, s->d, s->z, out);
}

static lq_status gptq_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const gptq *g = (const gptq *)t->view;
    const uint64_t words = g->in * g->bits / 32 * n, zeros = g->groups * (n * g->bits / 32);
    uint32_t *block = (uint32_t *)q_new_raw(dir->alloc, 1, (words + zeros) * 4 + g->groups * (n * 2 + 3) + g->in * 2);
    if (!block) return LQ_E_NOMEM;
    strip s = {.words = block, .zeros = block + words};
    s.halves = (uint16_t *)(s.zeros + zeros);
    s.d = s.halves + g->groups * n;
    s.z = (uint8_t *)(s.d + g->groups);
    s.codes = s.z + g->groups;
    s.mixed = s.codes + g->in;
    const lq_status status = read_strip(dir, g, first, n, &s);
    for (uint64_t c = 0; c < n && status == LQ_OK; c++) make_row(t, g, &s, n, c, out + c * t->row_bytes);
    q_delete(dir->alloc, block);
    return status;
}

/* ------------------------------------------------------------------------------------------------ opening */

static lq_status read_scheme(q_hf_reader *r, scheme *s) {
    int64_t bits;
    Q_TRY(q_hf_check_fields(r, "", fields, Q_COUNT(fields)));
    Q_TRY(q_hf_integer(r, "bits", 2, 8, 0, &bits));
    if (bits > 4 && bits != 8)
        return q_fail(LQ_E_UNSUPPORTED,
                      "config.json: the field 'quantization_config.bits' is %lld; 2, 3, 4 and 8 are read",
                      (long long)bits);
    s->bits = (uint32_t)bits;
    Q_TRY(q_hf_integer(r, "group_size", -1, 1 << 20, -2, &s->group));
    if (s->group == 0 || (s->group > 0 && s->group % 32))
        return q_fail(LQ_E_UNSUPPORTED,
                      "config.json: the field 'quantization_config.group_size' is %lld; -1 and multiples of "
                      "32 are read",
                      (long long)s->group);
    Q_TRY(q_hf_flag(r, "desc_act", false, &s->desc_act));
    Q_TRY(q_hf_flag(r, "sym", true, &s->sym));
    s->v2 = q_hf_word(r, "checkpoint_format", "gptq_v2") ||
            (!q_hf_key(r, "checkpoint_format") && q_hf_word(r, "format", "gptq_v2"));
    return LQ_OK;
}

/* The least and the largest stored zero point decide the version where they can, else the label does. */
static lq_status choose_version(q_hf_reader *r, scheme *s, gptq *g) {
    const uint32_t top = (1u << g->bits) - 1, middle = 1u << (g->bits - 1);
    uint32_t least = top, most = 0;
    void *all;
    Q_TRY(q_hf_all(r, g->qzeros, &all));
    const uint64_t row = g->out * g->bits / 32;
    for (uint64_t k = 0; k < g->groups; k++)
        for (uint64_t c = 0; c < g->out; c++) {
            const uint32_t z = q_hf_code((const uint32_t *)all + k * row, 1, 0, c, g->bits);
            least = Q_MIN(least, z);
            most = Q_MAX(most, z);
        }
    q_delete(r->alloc, all);
    bool v2 = s->v2;
    if (s->sym && least == most && (least == middle || least == middle - 1)) v2 = least == middle;
    if (v2 != s->v2 && s->relabelled++ == 0) s->first = g->qzeros->name;
    g->add = !v2;
    if (g->add && g->bits == 8 && most == top)
        return q_hf_at(r, q_fail(LQ_E_UNSUPPORTED, "a zero point of 256, which no format holds"), g->qzeros);
    if (g->add && most == top && s->widened++ == 0) s->widest = g->qzeros->name;
    return LQ_OK;
}

/* Old writers gave every module a bias of zeros: such a one is no part of the model. */
static lq_status drop_zero_bias(q_hf_reader *r, q_str module, uint64_t out) {
    const q_tensor *bias = q_hf_part(r, module, ".bias");
    if (!bias || !bias->format || bias->rank != 1 || bias->shape[0] != out) return LQ_OK; /* who binds it decides */
    void *all;
    bool zero = true;
    Q_TRY(q_hf_all(r, bias, &all));
    for (uint64_t i = 0; i < bias->bytes && zero; i++) zero = ((const uint8_t *)all)[i] == 0;
    q_delete(r->alloc, all);
    if (zero) q_hf_claim(r, bias);
    return LQ_OK;
}

static lq_status check_shape(const q_hf_reader *r, const scheme *s, const q_tensor *qweight, gptq *g) {
    const q_tensor *t = qweight;
    if (strcmp(t->type_name, "i32") != 0 || t->rank != 2)
        return q_hf_at(r,
                       q_fail(LQ_E_INCONSISTENT, "it is %u-dimensional of type %s; gptq packs codes in a matrix of i32",
                              t->rank, t->type_name),
                       t);
    uint64_t stream;
    g->bits = s->bits;
    g->out = t->shape[0];
    if (q_mul_overflow(t->rows, 32, &stream) || stream % (32 * s->bits) || stream == 0 || g->out == 0)
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "%llu rows of words hold no whole units of 32 codes of %u bits",
                                 (unsigned long long)t->rows, s->bits), t);
    g->in = stream / s->bits;
    if (g->out % 32 * s->bits % 32)
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "zero points of %llu outputs do not fill words",
                                 (unsigned long long)g->out), t);
    g->group = s->group < 0 ? g->in : (uint64_t)s->group;
    if (g->in % g->group)
        return q_hf_at(r,
                       q_fail(LQ_E_INCONSISTENT,
                              "groups of %llu do not divide its %llu inputs (quantization_config.bits or "
                              "group_size is another's)",
                              (unsigned long long)g->group, (unsigned long long)g->in),
                       t);
    g->groups = g->in / g->group;
    return LQ_OK;
}

static lq_status add_module(q_hf_reader *r, scheme *s, const q_tensor *qweight, q_str module) {
    gptq *g = (gptq *)q_arena_new(r->arena, 1, sizeof *g);
    if (!g) return LQ_E_NOMEM;
    g->qweight = qweight;
    Q_TRY(check_shape(r, s, qweight, g));
    Q_TRY(q_hf_need(r, module, ".qzeros", "i32", g->out * g->bits / 32, g->groups, &g->qzeros));
    Q_TRY(q_hf_need(r, module, ".scales", Q_HF_SCALES, g->out, g->groups, &g->scales));
    Q_TRY(q_hf_check_scales(r, g->scales));
    Q_TRY(choose_version(r, s, g));
    const q_tensor *g_idx = q_hf_part(r, module, ".g_idx");
    if (!g_idx && s->desc_act && g->groups > 1)
        return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s.g_idx' is missing, which desc_act needs", Q_STR_ARG(module));
    if (g_idx) {
        Q_TRY(q_hf_need(r, module, ".g_idx", "i32,i64", g->in, 0, &g_idx));
        Q_TRY(q_hf_order(r, g_idx, g->in, g->group, &g->strips.view.order));
    }
    Q_TRY(drop_zero_bias(r, module, g->out));
    g->strips.fill = gptq_fill;
    return q_hf_add_strips(r, module, qweight, q_hf_grouped(g->bits, g->in, g->group), g->in, g->out, true, &g->strips);
}

static lq_status gptq_read(q_hf_reader *r) {
    scheme s = {0};
    q_str module;
    Q_TRY(read_scheme(r, &s));
    for (uint32_t i = 0; i < r->dir->n_tensors; i++)
        if (q_hf_module(&r->dir->tensors[i], ".qweight", &module))
            Q_TRY(add_module(r, &s, &r->dir->tensors[i], module));
    if (s.relabelled)
        q_log_write(r->log, LQ_LOG_WARN,
                    "quantization_config says %s, but the zero points of %u tensors ('%.*s') are those of "
                    "%s: they are read so",
                    s.v2 ? "gptq_v2" : "gptq", s.relabelled, Q_STR_ARG(s.first), s.v2 ? "gptq" : "gptq_v2");
    if (s.widened)
        q_log_write(r->log, LQ_LOG_WARN,
                    "%u tensors ('%.*s') store the largest zero point, which gptq reads as %u, beyond all "
                    "codes; some engines read 0",
                    s.widened, Q_STR_ARG(s.widest), 1u << s.bits);
    return LQ_OK;
}

const q_hf_kind q_hf_gptq = {.method = "gptq", .read = gptq_read};
