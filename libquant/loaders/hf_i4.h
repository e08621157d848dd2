/* hf_i4.h: reading the 4-bit groups of i4_g32, i4_g64 and i4_g128 for the methods GPTQ and AWQ.
 *
 * Private to hf_gptq_write.c and hf_awq_write.c. Layer L2. */
#ifndef Q_HF_I4_H
#define Q_HF_I4_H

#include "../method.h"

/* A group: half d, byte zero, a byte unused, nibbles (i4_codec.h). */
static inline uint8_t *hf_i4_group(const q_packed_matrix *m, uint64_t row, uint64_t group) {
    return m->data + row * m->row_bytes + group * (uint64_t)m->format->bytes;
}
static inline uint64_t hf_i4_groups(const q_packed_matrix *m) { return m->k / (uint64_t)m->format->weights; }

/* The codes of 32 weights, `unit` counted over the row. */
static inline void hf_i4_unit(const q_packed_matrix *m, uint64_t row, uint64_t unit, uint8_t codes[32]) {
    const uint64_t units = (uint64_t)m->format->weights / 32;
    const uint8_t *p = hf_i4_group(m, row, unit / units) + 4 + unit % units * 16;
    for (int i = 0; i < 16; i++) {
        codes[i] = p[i] & 15;
        codes[i + 16] = p[i] >> 4;
    }
}

/* Bring every zero point into low .. high, which differ from what a group can have (0 .. 16) by one at most: the codes
 * move along, and one at the border stays, which changes its value. */
static inline void hf_i4_bound_zeros(q_packed_matrix *m, uint8_t low, uint8_t high, bool *changed) {
    const uint64_t groups = hf_i4_groups(m);
    for (uint64_t i = 0; i < m->rows * groups; i++) {
        uint8_t *p = hf_i4_group(m, i / groups, i % groups);
        if (p[2] >= low && p[2] <= high) continue;
        const int up = p[2] < low ? 1 : -1;
        p[2] = (uint8_t)(p[2] + up);
        for (int32_t b = 4; b < m->format->bytes; b++) {
            const int lo = (p[b] & 15) + up, hi = (p[b] >> 4) + up;
            *changed |= lo < 0 || lo > 15 || hi < 0 || hi > 15;
            p[b] = (uint8_t)(Q_MAX(Q_MIN(lo, 15), 0) | Q_MAX(Q_MIN(hi, 15), 0) << 4);
        }
    }
}

/* Both methods pack eight nibbles into a word. */
static inline lq_status hf_i4_check(const q_packed_matrix *m) {
    if (m->rows % 8 == 0 && m->k % (uint64_t)m->format->weights == 0) return LQ_OK;
    return q_fail(LQ_E_UNSUPPORTED, "tensor %.*s: %llu x %llu weights do not fill words of 8 and groups of %d",
                  Q_STR_ARG(m->name), (unsigned long long)m->rows, (unsigned long long)m->k, (int)m->format->weights);
}

/* scales [groups, rows], as halves. */
static inline void hf_i4_scales(const q_packed_matrix *m, uint8_t *out) {
    const uint64_t groups = hf_i4_groups(m);
    for (uint64_t r = 0; r < m->rows; r++)
        for (uint64_t g = 0; g < groups; g++) memcpy(out + 2 * (g * m->rows + r), hf_i4_group(m, r, g), 2);
}

#endif
