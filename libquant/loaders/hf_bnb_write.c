/* hf_bnb_write.c: matrices in nf4 as bitsandbytes stores them: the nibbles of all rows as one column of bytes, the
 * absmax of every 64 weights, the levels, and a JSON text that says what is what.
 *
 * With double quantization the absmax values, less their mean over the whole matrix, are rounded to a map of 256 values
 * times the largest of each 256 of them, by the rule of the published CUDA kernel (x times one over the largest; of two
 * neighbours the upper one when x lies above their middle). settle does that and puts the rounded absmax into the rows.
 * The mean is summed in double; bitsandbytes sums in float in an order that depends on the device. Layer L2. */
#include "../method.h"

#include <math.h>

enum { BLOCK = 64, BLOCK_BYTES = 4 + BLOCK / 2, NESTED = 256, MAP = 256, STATE_BYTES = 256 };

/* What settle leaves: the mean, the map, a largest absmax per 256, a code per block. */
typedef struct nested {
    float offset, map[MAP];
    float *largest;
    uint8_t *codes;
} nested;

static uint64_t blocks_of(const q_packed_matrix *m) { return m->rows * (m->k / BLOCK); }
static uint64_t groups_of(const q_packed_matrix *m) { return (blocks_of(m) + NESTED - 1) / NESTED; }
static uint8_t *block_at(const q_packed_matrix *m, uint64_t i) {
    const uint64_t per_row = m->k / BLOCK;
    return m->data + i / per_row * m->row_bytes + i % per_row * BLOCK_BYTES;
}

static nested nested_of(const q_packed_matrix *m) {
    nested n;
    memcpy(&n, m->scratch, sizeof n.offset + sizeof n.map);
    n.largest = (float *)(void *)(m->scratch + sizeof n.offset + sizeof n.map);
    n.codes = (uint8_t *)(n.largest + groups_of(m));
    return n;
}

static uint64_t dq_scratch(const q_packed_matrix *m) { return 4 + 4 * MAP + 4 * groups_of(m) + blocks_of(m); }

/* ---------------------------------------------------------------------------------------------- double quantization */

/* The map is nf4_dq's: a row whose nested scale and level are 1 decodes to it. */
static lq_status read_map(float *map) {
    const q_format *f = q_format_find("nf4_dq");
    uint8_t row[4 + 136];
    float y[32];
    if (!f || sizeof row != (size_t)(f->row_head + f->bytes)) return q_fail(LQ_E_INTERNAL, "nf4_dq is not as it was");
    for (int c = 0; c < MAP; c++) {
        memset(row, 0xFF, sizeof row);
        q_store32(row, 0);
        q_store32(row + 4, q_f32_bits(1.0f));
        row[8] = (uint8_t)c;
        f->decode(row, 0, 0, y);
        map[c] = y[0];
    }
    return LQ_OK;
}

static uint8_t map_code(const float *map, float x) {
    int32_t low = 0, high = MAP - 1; /* map[low] <= x < map[high], but beyond the ends */
    if (x >= map[high]) return MAP - 1;
    while (high - low > 1) {
        const int32_t middle = (low + high) / 2;
        if (x >= map[middle]) low = middle;
        else high = middle;
    }
    return (uint8_t)(x > (map[low] + map[high]) * 0.5f ? high : low);
}

static lq_status dq_settle(q_packed_matrix *m, bool *changed) {
    nested n = nested_of(m);
    const uint64_t blocks = blocks_of(m);
    double sum = 0;
    for (uint64_t i = 0; i < blocks; i++) sum += (double)q_bits_f32(q_load32(block_at(m, i)));
    n.offset = (float)(sum / (double)blocks);
    Q_TRY(read_map(n.map));
    for (uint64_t g = 0; g < groups_of(m); g++) {
        const uint64_t end = Q_MIN(blocks, (g + 1) * NESTED);
        float top = 0.0f;
        for (uint64_t i = g * NESTED; i < end; i++)
            top = fmaxf(top, fabsf(q_bits_f32(q_load32(block_at(m, i))) - n.offset));
        const float inverse = top > 0.0f ? 1.0f / top : 0.0f;
        n.largest[g] = top;
        for (uint64_t i = g * NESTED; i < end; i++) {
            uint8_t *b = block_at(m, i);
            const float x = (q_bits_f32(q_load32(b)) - n.offset) * inverse;
            n.codes[i] = map_code(n.map, fmaxf(-1.0f, fminf(1.0f, x)));
            const float scaled = n.map[n.codes[i]] * top; /* rounded before the sum, as it is read */
            q_store32(b, q_f32_bits(scaled + n.offset));
        }
    }
    memcpy(m->scratch, &n, sizeof n.offset + sizeof n.map);
    *changed = true;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ parts */

enum { WEIGHT, ABSMAX, LEVELS, STATE, NESTED_ABSMAX, NESTED_MAP };

static lq_status describe_part(const q_packed_matrix *m, q_arena *arena, uint32_t part, bool dq, q_out_tensor *out) {
    static const char *const suffixes[] = {
        "", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4", ".nested_absmax", ".nested_quant_map"};
    const uint64_t n[] = {m->k * m->rows / 2, blocks_of(m), 16, STATE_BYTES, groups_of(m), MAP};
    const bool bytes = part == WEIGHT || part == STATE || (part == ABSMAX && dq);
    *out = (q_out_tensor){.format = bytes ? NULL : q_format_find("f32"), .type_name = bytes ? "u8" : NULL,
                          .rank = part == WEIGHT ? 2 : 1, .shape = {n[part], 1, 1, 1, 1, 1, 1, 1}};
    if (part == WEIGHT) { /* [bytes, 1] */
        out->shape[0] = 1;
        out->shape[1] = n[part];
    }
    return q_method_name(arena, m->name, suffixes[part], &out->name);
}

static lq_status plain_describe(const q_packed_matrix *m, q_arena *arena, uint32_t part, q_out_tensor *out) {
    return describe_part(m, arena, part, false, out);
}
static lq_status dq_describe(const q_packed_matrix *m, q_arena *arena, uint32_t part, q_out_tensor *out) {
    return describe_part(m, arena, part, true, out);
}

static const char *dtype_name(const q_packed_matrix *m) {
    return strcmp(m->dtype->name, "bf16") == 0 ? "bfloat16" : "float16";
}

/* The same length for every matrix: blanks follow. */
static lq_status pack_state(const q_packed_matrix *m, const nested *n, uint8_t *out) {
    q_json_text t = {.alloc = m->alloc};
    q_json_put(&t, "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"");
    q_json_put(&t, dtype_name(m));
    q_json_put(&t, "\", \"shape\": [");
    q_json_put_uint(&t, m->rows);
    q_json_put(&t, ", ");
    q_json_put_uint(&t, m->k);
    q_json_put(&t, "]");
    if (n) {
        q_json_put(&t, ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": ");
        q_json_put_float(&t, n->offset);
    }
    q_json_put(&t, "}");
    lq_status s = t.failed ? LQ_E_NOMEM : t.n > STATE_BYTES ? q_fail(LQ_E_INTERNAL, "a quant_state too long") : LQ_OK;
    memset(out, ' ', STATE_BYTES);
    if (s == LQ_OK) memcpy(out, t.p, (size_t)t.n);
    q_delete(m->alloc, t.p);
    return s;
}

static void pack_levels(uint8_t *out) {
    const q_format *f = q_format_find("nf4");
    uint8_t row[BLOCK_BYTES] = {0};
    float y[32];
    q_store32(row, q_f32_bits(1.0f));
    for (int i = 0; i < 8; i++) row[4 + i] = (uint8_t)(2 * i << 4 | (2 * i + 1));
    f->decode(row, 0, 0, y);
    memcpy(out, y, 16 * sizeof *y);
}

static lq_status pack_part(const q_packed_matrix *m, uint32_t part, const nested *n, uint8_t *out) {
    const uint64_t blocks = blocks_of(m);
    if (part == STATE) return pack_state(m, n, out);
    if (part == LEVELS) pack_levels(out);
    if (n && part == NESTED_MAP) memcpy(out, n->map, sizeof n->map);
    if (n && part == NESTED_ABSMAX) memcpy(out, n->largest, groups_of(m) * sizeof *n->largest);
    if (part == ABSMAX && n) memcpy(out, n->codes, blocks);
    for (uint64_t i = 0; part == ABSMAX && !n && i < blocks; i++) memcpy(out + 4 * i, block_at(m, i), 4);
    for (uint64_t i = 0; part == WEIGHT && i < blocks; i++) memcpy(out + BLOCK / 2 * i, block_at(m, i) + 4, BLOCK / 2);
    return LQ_OK;
}

static lq_status plain_pack(const q_packed_matrix *m, uint32_t part, uint8_t *out) {
    return pack_part(m, part, NULL, out);
}
static lq_status dq_pack(const q_packed_matrix *m, uint32_t part, uint8_t *out) {
    const nested n = nested_of(m);
    return pack_part(m, part, &n, out);
}

/* ------------------------------------------------------------------------------------------------ configuration */

static void put_config(const q_packed_matrix *m, q_json_text *t, bool dq) {
    q_json_put(
        t, "{\n    \"quant_method\": \"bitsandbytes\",\n    \"_load_in_4bit\": true,\n    \"_load_in_8bit\": false,\n"
           "    \"load_in_4bit\": true,\n    \"load_in_8bit\": false,\n    \"bnb_4bit_quant_type\": \"nf4\",\n"
           "    \"bnb_4bit_use_double_quant\": ");
    q_json_put(t, dq ? "true" : "false");
    q_json_put(t, ",\n    \"bnb_4bit_compute_dtype\": \"");
    q_json_put(t, dtype_name(m));
    q_json_put(t,
               "\",\n    \"bnb_4bit_quant_storage\": \"uint8\",\n    \"llm_int8_enable_fp32_cpu_offload\": false,\n"
               "    \"llm_int8_has_fp16_weight\": false,\n    \"llm_int8_skip_modules\": [\n      \"lm_head\"\n    ],\n"
               "    \"llm_int8_threshold\": 6.0\n  }");
}
static void plain_config(const q_packed_matrix *m, q_json_text *t) { put_config(m, t, false); }
static void dq_config(const q_packed_matrix *m, q_json_text *t) { put_config(m, t, true); }

const q_method q_method_bnb_nf4 = {.name = "bitsandbytes-nf4", .formats = "nf4", .parts = STATE + 1,
                                     .describe = plain_describe, .pack = plain_pack, .config = plain_config};
const q_method q_method_bnb_nf4_dq = {.name = "bitsandbytes-nf4-dq", .formats = "nf4", .parts = NESTED_MAP + 1,
                                        .describe = dq_describe, .scratch = dq_scratch, .settle = dq_settle,
                                        .pack = dq_pack, .config = dq_config};
