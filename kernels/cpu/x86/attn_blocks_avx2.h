/* attn_blocks_avx2.h: attention's products with keys and values in blocks of 32, as pages keep them (kv_form.h), in
 * AVX2. Numbers are what the formats' codecs decode to, made in registers; products are those of attn_avx2.c, whose
 * template this is: attn_forms.h makes functions of it. Layer L2. */

Q_AVX2_INLINE __m128i bytes8(const uint8_t *p) { return _mm_loadl_epi64((const __m128i *)(const void *)p); }

/* Codes of 8 numbers from their bytes; upper: the upper halves of bytes count; fifth: the fifth bits, as 16 or 0. */
Q_AVX2_INLINE __m256 levels8(q_attn_blocks f, __m128i b, bool upper, __m256i fifth) {
    if (f == Q_BLOCKS_Q8_0) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b));
    b = _mm_and_si128(upper ? _mm_srli_epi16(b, 4) : b, _mm_set1_epi8(15));
    if (f == Q_BLOCKS_Q4_0) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_sub_epi8(b, _mm_set1_epi8(8))));
    return _mm256_cvtepi32_ps(_mm256_or_si256(_mm256_cvtepu8_epi32(b), fifth));
}
Q_AVX2_INLINE __m256 number8(q_attn_blocks f, __m256 level, __m256 d, __m256 m) {
    const __m256 v = _mm256_mul_ps(d, level);
    return f == Q_BLOCKS_Q5_1 ? _mm256_add_ps(v, m) : v; /* rounded one by one, as codecs do */
}

/* Halves of which 8 lower bytes, then after a row of keys their upper bytes, lie at p. */
Q_AVX2_INLINE __m256 split_halves8(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_unpacklo_epi8(bytes8(p), bytes8(p + Q_KV_TOKENS)));
}
/* The half at p, in all lanes. */
Q_AVX2_INLINE __m256 one_half8(const uint8_t *p) { return _mm256_cvtph_ps(_mm_set1_epi16((short)q_load16(p))); }

/* Number i of a block of the keys from 8 * v on; upper: i is at least 16. p: the block, byte after byte of all keys. */
Q_AVX2_INLINE __m256 key8(q_attn_blocks f, const uint8_t *p, int i, bool upper, int v, __m256 d, __m256 m) {
    const int code = f == Q_BLOCKS_Q8_0 || !upper ? i : i - 16;
    const __m128i b = bytes8(p + (q_attn_block_codes(f) + code) * Q_KV_TOKENS + 8 * v);
    __m256i fifth = _mm256_setzero_si256();
    if (f == Q_BLOCKS_Q5_1) {
        const __m128i bit = _mm_set1_epi8((char)(1u << i % 8));
        const __m128i bits = _mm_and_si128(bytes8(p + (4 + i / 8) * Q_KV_TOKENS + 8 * v), bit);
        fifth = _mm256_cvtepu8_epi32(_mm_andnot_si128(_mm_cmpeq_epi8(bits, _mm_setzero_si128()), _mm_set1_epi8(16)));
    }
    return number8(f, levels8(f, b, upper, fifth), d, m);
}

/* Numbers at .. at + 7 of a block of a value. */
Q_AVX2_INLINE __m256 value8(q_attn_blocks f, const uint8_t *p, int at, __m256 d, __m256 m) {
    const __m128i b = bytes8(p + q_attn_block_codes(f) + (f == Q_BLOCKS_Q8_0 ? at : at % 16));
    __m256i fifth = _mm256_setzero_si256();
    if (f == Q_BLOCKS_Q5_1) { /* bit i of the byte goes to bit 4 of lane i */
        const __m256i bits = _mm256_set1_epi32((int)p[4 + at / 8] << 4);
        const __m256i at4 = _mm256_srlv_epi32(bits, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        fifth = _mm256_and_si256(at4, _mm256_set1_epi32(16));
    }
    return number8(f, levels8(f, b, at >= 16, fifth), d, m);
}

/* R rows times keys. */
Q_AVX2_INLINE void keys_tile(q_attn_blocks f, int R, const q_attn_product *p, int64_t row) {
    const float *a = p->a + row * p->a_stride;
    const uint8_t *ahead = p->ahead[0], *b = p->b[0];
    const int64_t a_stride = p->a_stride, ahead_stride = p->ahead_stride;
    __m256 acc[3][4];
    Q_UNROLL for (int r = 0; r < R; r++) Q_UNROLL for (int v = 0; v < 4; v++) acc[r][v] = _mm256_setzero_ps();
    for (int64_t k = 0; k < p->to; k += 32, b += q_attn_block_bytes(f) * Q_KV_TOKENS) {
        float scale[2][Q_KV_TOKENS]; /* scales and minima of all keys: registers hold the sums */
        Q_UNROLL for (int v = 0; v < 4; v++) {
            _mm256_storeu_ps(scale[0] + 8 * v, split_halves8(b + 8 * v));
            if (f == Q_BLOCKS_Q5_1) _mm256_storeu_ps(scale[1] + 8 * v, split_halves8(b + 2 * Q_KV_TOKENS + 8 * v));
        }
        Q_UNROLL for (int half = 0; half < 2; half++) {
            for (int i = 16 * half; i < 16 * half + 16; i++, ahead += ahead_stride) {
                __m256 x[3];
                _mm_prefetch((const char *)ahead, _MM_HINT_T0);
                Q_UNROLL for (int r = 0; r < R; r++) x[r] = _mm256_broadcast_ss(a + r * a_stride + k + i);
                Q_UNROLL for (int v = 0; v < 4; v++) {
                    const __m256 m = f == Q_BLOCKS_Q5_1 ? _mm256_loadu_ps(scale[1] + 8 * v) : _mm256_setzero_ps();
                    const __m256 w = key8(f, b, i, half > 0, v, _mm256_loadu_ps(scale[0] + 8 * v), m);
                    Q_UNROLL for (int r = 0; r < R; r++) acc[r][v] = _mm256_fmadd_ps(x[r], w, acc[r][v]);
                }
            }
        }
    }
    float *c = p->c + row * p->c_stride;
    Q_UNROLL for (int r = 0; r < R; r++) {
        Q_UNROLL for (int v = 0; v < 4; v++) _mm256_storeu_ps(c + r * p->c_stride + 8 * v, acc[r][v]);
    }
}

/* R rows times V registers of numbers of values from `at` on, which begins a block. */
Q_AVX2_INLINE void values_tile(q_attn_blocks f, int R, int V, const q_attn_product *p, int64_t row, int64_t at) {
    const float *a = p->a + row * p->a_stride;
    float *c = p->c + row * p->c_stride + at;
    const int64_t a_stride = p->a_stride, ahead_at = at * p->ahead_stride / p->width;
    __m256 acc[3][4];
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < V; v++)
            acc[i][v] = p->more ? _mm256_loadu_ps(c + i * p->c_stride + 8 * v) : _mm256_setzero_ps();
    }
    for (int64_t k = p->from; k < p->to;) {
        const int64_t page = k / p->per, first = page * p->per, end = Q_MIN(p->to, first + p->per);
        const uint8_t *b = p->b[page] + (k - first) * p->b_stride + at / 32 * q_attn_block_bytes(f);
        const uint8_t *ahead = p->ahead[page] + (k - first) * p->ahead_stride + ahead_at;
        for (; k < end; k++, b += p->b_stride, ahead += p->ahead_stride) {
            const __m256 d = one_half8(b), m = f == Q_BLOCKS_Q5_1 ? one_half8(b + 2) : _mm256_setzero_ps();
            __m256 x[3];
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            Q_UNROLL for (int i = 0; i < R; i++) x[i] = _mm256_broadcast_ss(a + i * a_stride + k);
            Q_UNROLL for (int v = 0; v < V; v++) {
                const __m256 w = value8(f, b, 8 * v, d, m);
                Q_UNROLL for (int i = 0; i < R; i++) acc[i][v] = _mm256_fmadd_ps(x[i], w, acc[i][v]);
            }
        }
    }
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < V; v++) _mm256_storeu_ps(c + i * p->c_stride + 8 * v, acc[i][v]);
    }
}

Q_AVX2_INLINE void block_rows(bool keys, q_attn_blocks f, int R, const q_attn_product *p, int64_t row) {
    int64_t at = 0;
    if (keys) {
        keys_tile(f, R, p, row);
        return;
    }
    for (; at + 32 <= p->width; at += 32) values_tile(f, R, 4, p, row, at);
    if (at < p->width) values_tile(f, R, 2, p, row, at);
}

Q_AVX2_INLINE void block_product(bool keys, q_attn_blocks f, const q_attn_product *p) {
    int64_t row = 0;
    for (; row + 3 <= p->rows; row += 3) block_rows(keys, f, 3, p, row);
    if (p->rows - row == 2) block_rows(keys, f, 2, p, row);
    if (p->rows - row == 1) block_rows(keys, f, 1, p, row);
}

Q_AVX2_INLINE void widen_block_keys(q_attn_blocks f, const uint8_t *page, int64_t width, float *to) {
    for (int64_t k = 0; k < width; k += 32, page += q_attn_block_bytes(f) * Q_KV_TOKENS)
        Q_UNROLL for (int v = 0; v < 4; v++) {
            const __m256 d = split_halves8(page + 8 * v);
            const __m256 m = f == Q_BLOCKS_Q5_1 ? split_halves8(page + 2 * Q_KV_TOKENS + 8 * v) : _mm256_setzero_ps();
            for (int i = 0; i < 16; i++)
                _mm256_storeu_ps(to + (k + i) * Q_KV_TOKENS + 8 * v, key8(f, page, i, false, v, d, m));
            for (int i = 16; i < 32; i++)
                _mm256_storeu_ps(to + (k + i) * Q_KV_TOKENS + 8 * v, key8(f, page, i, true, v, d, m));
        }
}
Q_AVX2_INLINE void widen_block_values(q_attn_blocks f, const uint8_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 32, from += q_attn_block_bytes(f)) {
        const __m256 d = one_half8(from), m = f == Q_BLOCKS_Q5_1 ? one_half8(from + 2) : _mm256_setzero_ps();
        Q_UNROLL for (int at = 0; at < 32; at += 8)
            if (i + at < n) _mm256_storeu_ps(to + i + at, value8(f, from, at, d, m));
    }
}
