/* act_neon.c: the 8-bit activation formats, bit-equal to kernels/ref/act.c: the conversion instruction rounds ties to
 * even in every rounding mode, and the largest magnitude is found on the bits, which order as the values do and put
 * infinity and NaN on top. Layer L2. */
#include "neon.h"

Q_NEON_INLINE uint32_t magnitude(const float *x, int n) {
    uint32x4_t top = vdupq_n_u32(0);
    for (int i = 0; i < n; i += 4)
        top = vmaxq_u32(top, vandq_u32(vdupq_n_u32(0x7FFFFFFFu), vreinterpretq_u32_f32(vld1q_f32(x + i))));
    return vmaxvq_u32(top);
}

/* Eight codes; |code| <= 127. */
Q_NEON_INLINE int16x8_t codes8(const float *x, float32x4_t id) {
    const int32x4_t a = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x), id));
    const int32x4_t b = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + 4), id));
    return vcombine_s16(vmovn_s32(a), vmovn_s32(b));
}

Q_NEON_INLINE void quantize(const float *x, int weights, float *d_out, int16_t *sum, int8_t *q) {
    const uint32_t top = magnitude(x, weights);
    const float d = q_bits_f32(top) / 127.0f;
    if (top >= 0x7F800000u || d < 0x1p-126f) {
        *d_out = top >= 0x7F800000u ? q_bits_f32(0x7FC00000u) : 0.0f;
        memset(sum, 0, sizeof *sum * (size_t)(weights / 16));
        memset(q, 0, (size_t)weights);
        return;
    }
    const float32x4_t id = vdupq_n_f32(1.0f / d);
    *d_out = d;
    for (int i = 0; i < weights; i += 16) {
        const int16x8_t a = codes8(x + i, id), b = codes8(x + i + 8, id);
        vst1q_s8(q + i, vcombine_s8(vmovn_s16(a), vmovn_s16(b)));
        sum[i / 16] = vaddvq_s16(vaddq_s16(a, b));
    }
}

void q_act_a8_32__neon(const float *x, int64_t n, void *dst) {
    q_a8_32 *b = (q_a8_32 *)dst;
    for (int64_t i = 0; i < n; i += 32, b++) quantize(x + i, 32, &b->d, b->sum, b->q);
}

void q_act_a8_256__neon(const float *x, int64_t n, void *dst) {
    q_a8_256 *b = (q_a8_256 *)dst;
    for (int64_t i = 0; i < n; i += 256, b++) quantize(x + i, 256, &b->d, b->sum, b->q);
}

void q_act_a8_row__neon(const float *x, int64_t n, void *dst) {
    int16_t *sum = (int16_t *)(void *)((uint8_t *)dst + sizeof(float));
    quantize(x, (int)n, (float *)dst, sum, (int8_t *)(sum + n / 16));
}
