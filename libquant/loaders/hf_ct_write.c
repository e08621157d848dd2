/* hf_ct_write.c: matrices in i8_row as compressed-tensors stores weights of 8 bits ("int-quantized", W8A8): the bytes,
 * and a scale per output, of the model's type: readers round it to that. Activations are quantized per token by whoever
 * runs it. Layer L2. */
#include "../method.h"

#include <math.h>

static uint16_t stored_scale(const q_packed_matrix *m, float d) {
    const bool bf16 = strcmp(m->dtype->name, "bf16") == 0;
    const uint16_t s = bf16 ? q_f32_to_bf16(d) : q_f32_to_half(fminf(d, 65504.0f));
    return s == 0 && d > 0.0f ? 1 : s;
}
static float scale_of(const q_packed_matrix *m, uint16_t s) {
    return strcmp(m->dtype->name, "bf16") == 0 ? q_bf16_to_f32(s) : q_half_to_f32(s);
}

/* The scale as it is stored, and the nearest codes under it. */
static void ct_refine(const q_packed_matrix *m, const float *x, uint8_t *row) {
    const float d = scale_of(m, stored_scale(m, q_bits_f32(q_load32(row))));
    q_store32(row, q_f32_bits(d));
    for (uint64_t i = 0; i < m->k; i++) {
        const float v = d > 0.0f ? fmaxf(-127.0f, fminf(127.0f, rintf(x[i] / d))) : 0.0f;
        row[4 + i] = (uint8_t)(int8_t)v;
    }
}

static lq_status ct_describe(const q_packed_matrix *m, q_arena *arena, uint32_t part, q_out_tensor *out) {
    *out = (q_out_tensor){.rank = 2, .shape = {part ? 1 : m->k, m->rows, 1, 1, 1, 1, 1, 1}};
    if (part) out->format = m->dtype;
    else out->type_name = "i8";
    return q_method_name(arena, m->name, part ? "_scale" : "", &out->name);
}

static lq_status ct_pack(const q_packed_matrix *m, uint32_t part, uint8_t *out) {
    for (uint64_t r = 0; r < m->rows; r++) {
        const uint8_t *row = m->data + r * m->row_bytes;
        if (part) q_store16(out + 2 * r, stored_scale(m, q_bits_f32(q_load32(row))));
        else memcpy(out + m->k * r, row + 4, (size_t)m->k);
    }
    return LQ_OK;
}

static void ct_config(const q_packed_matrix *m, q_json_text *t) {
    Q_UNUSED(m);
    q_json_put(t, "{\n    \"quant_method\": \"compressed-tensors\",\n    \"format\": \"int-quantized\",\n"
                  "    \"quantization_status\": \"compressed\",\n    \"config_groups\": {\n      \"group_0\": {\n"
                  "        \"targets\": [\n          \"Linear\"\n        ],\n        \"weights\": {\n"
                  "          \"num_bits\": 8,\n          \"type\": \"int\",\n          \"symmetric\": true,\n"
                  "          \"strategy\": \"channel\",\n          \"dynamic\": false\n        },\n"
                  "        \"input_activations\": {\n          \"num_bits\": 8,\n          \"type\": \"int\",\n"
                  "          \"symmetric\": true,\n          \"strategy\": \"token\",\n          \"dynamic\": true\n"
                  "        }\n      }\n    },\n    \"ignore\": [\n      \"lm_head\"\n    ]\n  }");
}

const q_method q_method_int8 = {.name = "compressed-tensors-w8a8", .formats = "i8_row", .parts = 2,
                                  .describe = ct_describe, .refine = ct_refine, .pack = ct_pack, .config = ct_config};
