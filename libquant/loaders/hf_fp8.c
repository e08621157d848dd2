/* hf_fp8.c: weights in E4M3 floats of 8 bits with a scale per block (DeepSeek-V3's directories): X.weight and
 * X.weight_scale_inv, or X.weight_scale in those of AutoFP8, one for a matrix, and of compressed-tensors.
 *
 * There is no format of ours for them: they are decoded as they are read, to bf16, as the published loaders do when
 * they have no kernel for them: float32 product of float and scale, rounded to nearest. Layer L2. */
#include "hf_view.h"

typedef struct fp8 {
    q_hf_strips strips;
    const q_tensor *weight;
    const float *scales; /* [ceil(rows / block_rows)][ceil(k / block_k)] */
    uint64_t block_rows, block_k, columns; /* of scales */
} fp8;

static const q_hf_field fields[] = {
    {"weight_block_size", NULL}, {"fmt", "e4m3"}, {"scale_fmt", "float,ue8m0"}, {"expert_dtype", "fp8"},
    /* which modules stay float, tensors tell; activations this engine quantizes in its own way */
    {"activation_scheme", "dynamic,static"}, {"modules_to_not_convert", NULL}, {"ignored_layers", NULL},
    {"modules_to_convert", NULL}, {"dequantize", NULL},
};

/* Bias 7, subnormals, no infinity: all ones are NaN. */
static float of_e4m3(uint8_t b) {
    const uint32_t sign = (uint32_t)(b & 0x80u) << 24, e = b >> 3 & 15u, m = b & 7u;
    if (e == 15 && m == 7) return q_bits_f32(sign | 0x7FC00000u);
    if (e) return q_bits_f32(sign | (e + 120) << 23 | m << 20);
    const float f = (float)m * 0x1p-9f;
    return q_bits_f32(sign | q_f32_bits(f));
}

static lq_status fp8_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const fp8 *w = (const fp8 *)t->view;
    const uint64_t k = t->shape[0];
    float values[256];
    /* The bytes lie in the second half of where their values go: each is read before it is overwritten. */
    uint8_t *bytes = out + n * k;
    for (int i = 0; i < 256; i++) values[i] = of_e4m3((uint8_t)i);
    Q_TRY(q_hf_bytes(dir, w->weight, first * k, bytes, n * k));
    for (uint64_t r = 0; r < n; r++) {
        const float *scales = w->scales + (first + r) / w->block_rows * w->columns;
        for (uint64_t at = 0; at < k; at += w->block_k) {
            const float scale = scales[at / w->block_k];
            for (uint64_t j = at, end = Q_MIN(at + w->block_k, k); j < end; j++)
                q_store16(out + (r * k + j) * 2, q_f32_to_bf16(values[bytes[r * k + j]] * scale));
        }
    }
    return LQ_OK;
}

lq_status q_hf_add_fp8(q_hf_reader *r, q_str module, const q_tensor *weight, const q_tensor *scale, uint64_t block_rows,
                       uint64_t block_k) {
    fp8 *w = (fp8 *)q_arena_new(r->arena, 1, sizeof *w);
    const uint64_t n = scale->shape[0] * scale->rows;
    float *scales = (float *)q_arena_new(r->arena, n, sizeof *scales);
    if (!w || !scales) return LQ_E_NOMEM;
    Q_TRY(q_hf_floats(r->dir, scale, 0, n, scales));
    w->weight = weight;
    w->scales = scales;
    w->block_rows = block_rows;
    w->block_k = block_k;
    w->columns = (weight->shape[0] + block_k - 1) / block_k;
    w->strips.fill = fp8_fill;
    q_hf_spare_activations(r, module);
    return q_hf_add_strips(r, module, weight, q_format_find("bf16"), weight->shape[0], weight->rows, false, &w->strips);
}

static lq_status block_size(const q_hf_reader *r, uint64_t block[2]) {
    const q_meta *m = q_hf_key(r, "weight_block_size");
    if (!m) return LQ_OK; /* one scale for all */
    if (m->type != Q_META_ARRAY || m->item != Q_META_U64 || m->count != 2)
        return q_fail(LQ_E_INCONSISTENT,
                      "config.json: the field 'quantization_config.weight_block_size' is not two numbers");
    for (int i = 0; i < 2; i++) {
        block[i] = q_load64(m->raw + 8 * i);
        if (block[i] == 0 || block[i] > 1 << 20)
            return q_fail(LQ_E_UNSUPPORTED, "config.json: the field 'quantization_config.weight_block_size' has %llu",
                          (unsigned long long)block[i]);
    }
    return LQ_OK;
}

static lq_status fp8_read(q_hf_reader *r) {
    uint64_t block[2] = {0, 0};
    Q_TRY(q_hf_check_fields(r, "", fields, Q_COUNT(fields)));
    Q_TRY(block_size(r, block));
    for (uint32_t i = 0; i < r->dir->n_tensors; i++) {
        const q_tensor *t = &r->dir->tensors[i], *scale;
        q_str module;
        if (strcmp(t->type_name, "f8_e4m3") != 0 || !q_hf_module(t, ".weight", &module)) continue;
        if (t->rank != 2 || t->bytes == 0) return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "it is no matrix"), t);
        if (block[0]) {
            Q_TRY(q_hf_need(r, module, ".weight_scale_inv", Q_HF_SCALES, (t->shape[0] + block[1] - 1) / block[1],
                            (t->rows + block[0] - 1) / block[0], &scale));
            Q_TRY(q_hf_add_fp8(r, module, t, scale, block[0], block[1]));
            continue;
        }
        const bool other = !q_hf_part(r, module, ".weight_scale_inv") && q_hf_part(r, module, ".weight_scale");
        const char *suffix = other ? ".weight_scale" : ".weight_scale_inv"; /* AutoFP8's; the same factor */
        scale = q_hf_part(r, module, suffix);
        if (!scale || scale->rank != 0) Q_TRY(q_hf_need(r, module, suffix, Q_HF_SCALES, 1, 0, &scale));
        if (!scale->format) return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "its type is %s", scale->type_name), scale);
        q_hf_claim(r, scale);
        Q_TRY(q_hf_add_fp8(r, module, t, scale, t->rows, t->shape[0]));
    }
    return LQ_OK;
}

const q_hf_kind q_hf_fp8 = {.method = "fp8", .read = fp8_read};
