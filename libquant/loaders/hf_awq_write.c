/* hf_awq_write.c: matrices of 4-bit groups as AutoAWQ's "GEMM" checkpoints store them.
 *
 * qweight [in, out/8]: nibble i of word c is output 8c + order[i]; qzeros [in/group, out/8] in the same order, as they
 * are; scales [in/group, out] in halves. Zero points are 0 .. 15. Layer L2. */
#include "hf_i4.h"

enum { QWEIGHT, QZEROS, SCALES, PARTS };

static const uint8_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7};

static lq_status awq_describe(const q_packed_matrix *m, q_arena *arena, uint32_t part, q_out_tensor *out) {
    static const char *const suffixes[] = {"=qweight", "=qzeros", "=scales"};
    const uint64_t outer = part == QWEIGHT ? m->k : hf_i4_groups(m);
    Q_TRY(hf_i4_check(m));
    *out = (q_out_tensor){.rank = 2, .shape = {part == SCALES ? m->rows : m->rows / 8, outer, 1, 1, 1, 1, 1, 1}};
    if (part == SCALES) out->format = q_format_find("f16");
    else out->type_name = "i32";
    return q_method_name(arena, m->name, suffixes[part], &out->name);
}

static lq_status awq_settle(q_packed_matrix *m, bool *changed) {
    hf_i4_bound_zeros(m, 0, 15, changed);
    return LQ_OK;
}

static void pack_weights(const q_packed_matrix *m, uint8_t *out) {
    uint8_t codes[8][32];
    for (uint64_t c = 0; c < m->rows / 8; c++)
        for (uint64_t u = 0; u < m->k / 32; u++) {
            for (uint32_t i = 0; i < 8; i++) hf_i4_unit(m, 8 * c + order[i], u, codes[i]);
            for (uint64_t j = 0; j < 32; j++) {
                uint32_t word = 0;
                for (uint32_t i = 0; i < 8; i++) word |= (uint32_t)codes[i][j] << 4 * i;
                q_store32(out + 4 * ((32 * u + j) * (m->rows / 8) + c), word);
            }
        }
}

static void pack_zeros(const q_packed_matrix *m, uint8_t *out) {
    for (uint64_t g = 0; g < hf_i4_groups(m); g++)
        for (uint64_t c = 0; c < m->rows / 8; c++) {
            uint32_t word = 0;
            for (uint32_t i = 0; i < 8; i++) word |= (uint32_t)hf_i4_group(m, 8 * c + order[i], g)[2] << 4 * i;
            q_store32(out + 4 * (g * (m->rows / 8) + c), word);
        }
}

static lq_status awq_pack(const q_packed_matrix *m, uint32_t part, uint8_t *out) {
    if (part == QWEIGHT) pack_weights(m, out);
    if (part == QZEROS) pack_zeros(m, out);
    if (part == SCALES) hf_i4_scales(m, out);
    return LQ_OK;
}

static void awq_config(const q_packed_matrix *m, q_json_text *t) {
    q_json_put(t, "{\n    \"quant_method\": \"awq\",\n    \"bits\": 4,\n    \"group_size\": ");
    q_json_put_uint(t, (uint64_t)m->format->weights);
    q_json_put(t, ",\n    \"zero_point\": true,\n    \"version\": \"gemm\",\n    \"modules_to_not_convert\": [\n"
                  "      \"lm_head\"\n    ]\n  }");
}

const q_method q_method_awq = {.name = "awq", .formats = "i4_g32,i4_g64,i4_g128", .parts = PARTS,
                               .describe = awq_describe, .settle = awq_settle, .pack = awq_pack, .config = awq_config};
