/* act.c: the activation formats. Of those with 8 bits a block with an infinity or NaN is marked by d = NaN, never
 * refused: the logits then show it. Rounding is by the float addition itself (1.5 * 2^23 pushes the fraction out), ties
 * to even, which vector conversions do as well. Layer L2. */
#include "lane_order.h"
#include "ref.h"

static void quantize_block(const float *x, int weights, float *d_out, int16_t *sum, int8_t *q) {
    uint32_t top = 0; /* largest magnitude, by bits: above infinity's means NaN */
    for (int i = 0; i < weights; i++) {
        const uint32_t a = q_f32_bits(x[i]) & 0x7FFFFFFFu;
        if (a > top) top = a;
    }
    const float d = q_bits_f32(top) / 127.0f;
    if (top >= 0x7F800000u || d < 0x1p-126f) {
        *d_out = top >= 0x7F800000u ? q_bits_f32(0x7FC00000u) : 0.0f;
        memset(sum, 0, sizeof *sum * (size_t)(weights / 16));
        memset(q, 0, (size_t)weights);
        return;
    }
    const float id = 1.0f / d;
    *d_out = d;
    for (int g = 0; g < weights / 16; g++) {
        int total = 0;
        for (int i = 16 * g; i < 16 * g + 16; i++) {
            const float v = x[i] * id;
            const int r = (int)((v + 12582912.0f) - 12582912.0f);
            q[i] = (int8_t)r;
            total += r;
        }
        sum[g] = (int16_t)total;
    }
}

static void a8_32(const float *x, int64_t n, void *dst) {
    q_a8_32 *b = dst;
    for (int64_t i = 0; i < n; i += 32, b++) quantize_block(x + i, 32, &b->d, b->sum, b->q);
}

static void a8_256(const float *x, int64_t n, void *dst) {
    q_a8_256 *b = dst;
    for (int64_t i = 0; i < n; i += 256, b++) quantize_block(x + i, 256, &b->d, b->sum, b->q);
}

static void a_bf16(const float *x, int64_t n, void *dst) {
    uint16_t *to = dst;
    for (int64_t i = 0; i < n; i++) to[i] = q_ref_bf16(x[i]);
}

static void a8_row(const float *x, int64_t n, void *dst) {
    int16_t *sum = (int16_t *)(void *)((uint8_t *)dst + sizeof(float));
    quantize_block(x, (int)n, dst, sum, (int8_t *)(sum + n / 16));
}

static void lanes(const float *x, int64_t n, void *dst) {
    float *to = dst;
    const int64_t steps = (n + 15) / 16;
    memset(dst, 0, (size_t)q_act_bytes(&q_act_lanes, n));
    for (int64_t i = 0; i < n; i++) to[q_lane_place(i % 16) * steps + i / 16] = x[i];
}

const q_act q_act_a8_32 = {"a8_32", 32, (int32_t)sizeof(q_a8_32), a8_32, false, false, 0};
const q_act q_act_a8_256 = {"a8_256", 256, (int32_t)sizeof(q_a8_256), a8_256, false, false, 0};
const q_act q_act_a_bf16 = {"a_bf16", 32, 32 * (int32_t)sizeof(uint16_t), a_bf16, true, false, 0};
const q_act q_act_a8_row = {"a8_row", 0, 0, a8_row, false, false, 0};
const q_act q_act_lanes = {"lanes", 0, 0, lanes, false, true, 16};
