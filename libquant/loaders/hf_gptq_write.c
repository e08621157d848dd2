/* hf_gptq_write.c: matrices of 4-bit groups as GPTQ checkpoints store them (checkpoint_format "gptq").
 *
 * qweight [in/8, out]: nibble j of a word is input 8r + j; qzeros [in/group, out/8]: nibble j is output 8c + j, less one;
 * scales [in/group, out] in halves; g_idx [in], the group of each input. A stored zero point is 0 .. 14: readers differ on 15,
 * so zero points are 1 .. 15. gptq-act takes columns in any order: inputs of one group need not be neighbours. Layer L2. */
#include "hf_i4.h"

enum { QWEIGHT, QZEROS, SCALES, G_IDX, PARTS };

static lq_status gptq_describe(const q_packed_matrix *m, q_arena *arena, uint32_t part, q_out_tensor *out) {
    static const char *const suffixes[] = {"=qweight", "=qzeros", "=scales", "=g_idx"};
    const uint64_t groups = hf_i4_groups(m);
    const uint64_t inner[] = {m->rows, m->rows / 8, m->rows, m->k}, outer[] = {m->k / 8, groups, groups, 1};
    Q_TRY(hf_i4_check(m));
    *out = (q_out_tensor){.rank = part == G_IDX ? 1 : 2, .shape = {inner[part], outer[part], 1, 1, 1, 1, 1, 1}};
    if (part == SCALES) out->format = q_format_find("f16");
    else out->type_name = "i32";
    return q_method_name(arena, m->name, suffixes[part], &out->name);
}

static lq_status gptq_settle(q_packed_matrix *m, bool *changed) {
    hf_i4_bound_zeros(m, 1, 15, changed);
    return LQ_OK;
}

static uint64_t input_of(const q_packed_matrix *m, uint64_t column) { return m->order ? (uint64_t)m->order[column] : column; }

static lq_status pack_weights(const q_packed_matrix *m, uint8_t *out) {
    uint8_t codes[32], *row = (uint8_t *)q_new_raw(m->alloc, m->k, 1); /* by input */
    if (!row) return LQ_E_NOMEM;
    for (uint64_t r = 0; r < m->rows; r++) {
        for (uint64_t u = 0; u < m->k / 32; u++) {
            hf_i4_unit(m, r, u, codes);
            for (uint64_t i = 0; i < 32; i++) row[input_of(m, 32 * u + i)] = codes[i];
        }
        for (uint64_t w = 0; w < m->k / 8; w++) {
            uint32_t word = 0;
            for (uint32_t j = 0; j < 8; j++) word |= (uint32_t)row[8 * w + j] << 4 * j;
            q_store32(out + 4 * (w * m->rows + r), word);
        }
    }
    q_delete(m->alloc, row);
    return LQ_OK;
}

static void pack_zeros(const q_packed_matrix *m, uint8_t *out) {
    for (uint64_t g = 0; g < hf_i4_groups(m); g++)
        for (uint64_t c = 0; c < m->rows / 8; c++) {
            uint32_t word = 0;
            for (uint32_t j = 0; j < 8; j++) word |= ((uint32_t)hf_i4_group(m, 8 * c + j, g)[2] - 1) << 4 * j;
            q_store32(out + 4 * (g * (m->rows / 8) + c), word);
        }
}

static lq_status gptq_pack(const q_packed_matrix *m, uint32_t part, uint8_t *out) {
    if (part == QWEIGHT) return pack_weights(m, out);
    if (part == QZEROS) pack_zeros(m, out);
    if (part == SCALES) hf_i4_scales(m, out);
    for (uint64_t i = 0; part == G_IDX && i < m->k; i++)
        q_store32(out + 4 * input_of(m, i), (uint32_t)(i / (uint64_t)m->format->weights));
    return LQ_OK;
}

static void put_config(const q_packed_matrix *m, q_json_text *t, bool act) {
    q_json_put(t, "{\n    \"quant_method\": \"gptq\",\n    \"bits\": 4,\n    \"group_size\": ");
    q_json_put_uint(t, (uint64_t)m->format->weights);
    q_json_put(t, ",\n    \"desc_act\": ");
    q_json_put(t, act ? "true,\n    \"static_groups\": false" : "false");
    q_json_put(t, ",\n    \"sym\": false,\n    \"lm_head\": false,\n    \"true_sequential\": true,\n"
                  "    \"damp_percent\": 0.01,\n    \"checkpoint_format\": \"gptq\"\n  }");
}
static void plain_config(const q_packed_matrix *m, q_json_text *t) { put_config(m, t, false); }
static void act_config(const q_packed_matrix *m, q_json_text *t) { put_config(m, t, true); }

#define FORMATS "i4_g32,i4_g64,i4_g128"
const q_method q_method_gptq = {.name = "gptq", .formats = FORMATS, .parts = PARTS, .describe = gptq_describe,
                                  .settle = gptq_settle, .pack = gptq_pack, .config = plain_config};
const q_method q_method_gptq_act = {.name = "gptq-act", .formats = FORMATS, .parts = PARTS, .ordered = true, .describe = gptq_describe,
                                      .settle = gptq_settle, .pack = gptq_pack, .config = act_config};
