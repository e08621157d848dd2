/* attn_blocks_neon.h: attention's products with keys and values in blocks of 32, as pages keep them (kv_form.h), in
 * NEON. Numbers are what the formats' codecs decode to, made in registers; products are those of attn_neon.c, whose
 * template this is: attn_forms.h makes functions of it. Layer L2. */

/* Two registers of 8 numbers, or of their scales. */
typedef struct eight {
    float32x4_t v[2];
} eight;

Q_NEON_INLINE eight floats8(int16x8_t i) {
    return (eight){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(i))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(i)))}};
}

/* 8 numbers from the bytes of their codes; upper: the upper halves of bytes count; fifth: ones where a fifth bit is. */
Q_NEON_INLINE eight numbers8(q_attn_blocks f, uint8x8_t b, bool upper, uint8x8_t fifth, eight d, eight m) {
    eight n;
    if (f != Q_BLOCKS_Q8_0) b = upper ? vshr_n_u8(b, 4) : vand_u8(b, vdup_n_u8(15));
    if (f == Q_BLOCKS_Q5_1) b = vorr_u8(b, vand_u8(fifth, vdup_n_u8(16)));
    int8x8_t code = vreinterpret_s8_u8(b);
    if (f == Q_BLOCKS_Q4_0) code = vsub_s8(code, vdup_n_s8(8));
    n = floats8(vmovl_s8(code));
    Q_UNROLL for (int i = 0; i < 2; i++) {
        n.v[i] = vmulq_f32(d.v[i], n.v[i]);
        if (f == Q_BLOCKS_Q5_1) n.v[i] = vaddq_f32(n.v[i], m.v[i]); /* rounded one by one, as codecs do */
    }
    return n;
}

Q_NEON_INLINE eight halves8(uint16x8_t h) {
    return (eight){{vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(h))),
                    vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(h)))}};
}
/* Halves of which 8 lower bytes, then after a row of keys their upper bytes, lie at p. */
Q_NEON_INLINE eight split_halves8(const uint8_t *p) {
    const uint16x8_t lo = vmovl_u8(vld1_u8(p));
    return halves8(vorrq_u16(lo, vshll_n_u8(vld1_u8(p + Q_KV_TOKENS), 8)));
}
/* The half at p, in all lanes. */
Q_NEON_INLINE eight one_half8(const uint8_t *p) { return halves8(vdupq_n_u16(q_load16(p))); }

/* Number i of a block of 8 keys; upper: i is at least 16. p: the block, byte after byte of all keys, from the first
 * on. */
Q_NEON_INLINE eight key8(q_attn_blocks f, const uint8_t *p, int i, bool upper, eight d, eight m) {
    const int code = f == Q_BLOCKS_Q8_0 || !upper ? i : i - 16;
    uint8x8_t fifth = vdup_n_u8(0);
    if (f == Q_BLOCKS_Q5_1)
        fifth = vtst_u8(vld1_u8(p + (4 + i / 8) * Q_KV_TOKENS), vdup_n_u8((uint8_t)(1u << i % 8)));
    return numbers8(f, vld1_u8(p + (q_attn_block_codes(f) + code) * Q_KV_TOKENS), upper, fifth, d, m);
}

/* Numbers at .. at + 7 of a block of a value. */
Q_NEON_INLINE eight value8(q_attn_blocks f, const uint8_t *p, int64_t at, eight d, eight m) {
    static const uint8_t bit[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x8_t b = vld1_u8(p + q_attn_block_codes(f) + (f == Q_BLOCKS_Q8_0 ? at : at % 16));
    uint8x8_t fifth = vdup_n_u8(0);
    if (f == Q_BLOCKS_Q5_1) fifth = vtst_u8(vdup_n_u8(p[4 + at / 8]), vld1_u8(bit));
    if (f != Q_BLOCKS_Q8_0 && at >= 16) return numbers8(f, b, true, fifth, d, m);
    return numbers8(f, b, false, fifth, d, m);
}

/* R rows times the 8 keys from `at` on. */
Q_NEON_INLINE void keys_tile(q_attn_blocks f, int R, const q_attn_product *p, int64_t row, int64_t at) {
    const float *a = p->a + row * p->a_stride;
    const uint8_t *ahead = p->ahead[0], *b = p->b[0] + at;
    const int64_t a_stride = p->a_stride, ahead_stride = p->ahead_stride;
    float32x4_t acc[8][2];
    Q_UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = vdupq_n_f32(0);
    for (int64_t k = 0; k < p->to; k += 32, b += q_attn_block_bytes(f) * Q_KV_TOKENS) {
        const eight d = split_halves8(b), m = f == Q_BLOCKS_Q5_1 ? split_halves8(b + 2 * Q_KV_TOKENS) : d;
        Q_UNROLL for (int half = 0; half < 2; half++) {
            for (int i = 16 * half; i < 16 * half + 16; i++, ahead += ahead_stride) {
                const eight w = key8(f, b, i, half > 0, d, m);
                __builtin_prefetch(ahead);
                Q_UNROLL for (int r = 0; r < R; r++) {
                    const float x = a[r * a_stride + k + i];
                    Q_UNROLL for (int v = 0; v < 2; v++) acc[r][v] = vfmaq_n_f32(acc[r][v], w.v[v], x);
                }
            }
        }
    }
    float *c = p->c + row * p->c_stride + at;
    Q_UNROLL for (int r = 0; r < R; r++) {
        Q_UNROLL for (int v = 0; v < 2; v++) vst1q_f32(c + r * p->c_stride + 4 * v, acc[r][v]);
    }
}

/* R rows times the 8 numbers of values from `at` on. */
Q_NEON_INLINE void values_tile(q_attn_blocks f, int R, const q_attn_product *p, int64_t row, int64_t at) {
    const float *a = p->a + row * p->a_stride;
    float *c = p->c + row * p->c_stride + at;
    const int64_t a_stride = p->a_stride, ahead_at = at * p->ahead_stride / p->width;
    float32x4_t acc[8][2];
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < 2; v++)
            acc[i][v] = p->more ? vld1q_f32(c + i * p->c_stride + 4 * v) : vdupq_n_f32(0);
    }
    for (int64_t k = p->from; k < p->to;) {
        const int64_t page = k / p->per, first = page * p->per, end = Q_MIN(p->to, first + p->per);
        const uint8_t *b = p->b[page] + (k - first) * p->b_stride + at / 32 * q_attn_block_bytes(f);
        const uint8_t *ahead = p->ahead[page] + (k - first) * p->ahead_stride + ahead_at;
        for (; k < end; k++, b += p->b_stride, ahead += p->ahead_stride) {
            const eight d = one_half8(b), m = f == Q_BLOCKS_Q5_1 ? one_half8(b + 2) : d;
            const eight w = value8(f, b, at % 32, d, m);
            __builtin_prefetch(ahead);
            Q_UNROLL for (int i = 0; i < R; i++) {
                const float x = a[i * a_stride + k];
                Q_UNROLL for (int v = 0; v < 2; v++) acc[i][v] = vfmaq_n_f32(acc[i][v], w.v[v], x);
            }
        }
    }
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < 2; v++) vst1q_f32(c + i * p->c_stride + 4 * v, acc[i][v]);
    }
}

Q_NEON_INLINE void block_rows(bool keys, q_attn_blocks f, int R, const q_attn_product *p, int64_t row) {
    for (int64_t at = 0; at < p->width; at += 8) {
        if (keys) keys_tile(f, R, p, row, at);
        else values_tile(f, R, p, row, at);
    }
}

Q_NEON_INLINE void block_product(bool keys, q_attn_blocks f, const q_attn_product *p) {
    int64_t row = 0;
    for (; row + 8 <= p->rows; row += 8) block_rows(keys, f, 8, p, row);
    if (p->rows - row >= 4) block_rows(keys, f, 4, p, row), row += 4;
    if (p->rows - row >= 2) block_rows(keys, f, 2, p, row), row += 2;
    if (p->rows - row >= 1) block_rows(keys, f, 1, p, row);
}

Q_NEON_INLINE void store8(float *to, eight w) {
    vst1q_f32(to, w.v[0]);
    vst1q_f32(to + 4, w.v[1]);
}
Q_NEON_INLINE void widen_block_keys(q_attn_blocks f, const uint8_t *page, int64_t width, float *to) {
    for (int64_t k = 0; k < width; k += 32, page += q_attn_block_bytes(f) * Q_KV_TOKENS)
        for (int at = 0; at < Q_KV_TOKENS; at += 8) {
            const uint8_t *b = page + at;
            const eight d = split_halves8(b), m = f == Q_BLOCKS_Q5_1 ? split_halves8(b + 2 * Q_KV_TOKENS) : d;
            for (int i = 0; i < 16; i++) store8(to + (k + i) * Q_KV_TOKENS + at, key8(f, b, i, false, d, m));
            for (int i = 16; i < 32; i++) store8(to + (k + i) * Q_KV_TOKENS + at, key8(f, b, i, true, d, m));
        }
}
Q_NEON_INLINE void widen_block_values(q_attn_blocks f, const uint8_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 8) {
        const uint8_t *b = from + i / 32 * q_attn_block_bytes(f);
        const eight d = one_half8(b), m = f == Q_BLOCKS_Q5_1 ? one_half8(b + 2) : d;
        store8(to + i, value8(f, b, i % 32, d, m));
    }
}
