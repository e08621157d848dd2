/* attn_blocks_avx512.h: attention's products with keys and values in blocks of 32, as pages keep them (kv_form.h), in
 * AVX-512. Numbers are what the formats' codecs decode to, made in registers; products are those of attn_avx512.c,
 * whose template this is: attn_forms.h makes functions of it. Layer L2. */

Q_AVX512_INLINE __m128i bytes16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

/* Codes of 16 numbers from their bytes; upper: the upper halves of bytes count; fifth: fifth bits. */
Q_AVX512_INLINE __m512 levels16(q_attn_blocks f, __m128i b, bool upper, __mmask16 fifth) {
    if (f == Q_BLOCKS_Q8_0) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b));
    b = _mm_and_si128(upper ? _mm_srli_epi16(b, 4) : b, _mm_set1_epi8(15));
    if (f == Q_BLOCKS_Q4_0) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_sub_epi8(b, _mm_set1_epi8(8))));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_or_si128(b, _mm_maskz_set1_epi8(fifth, 16))));
}
Q_AVX512_INLINE __m512 number16(q_attn_blocks f, __m512 level, __m512 d, __m512 m) {
    const __m512 v = _mm512_mul_ps(d, level);
    return f == Q_BLOCKS_Q5_1 ? _mm512_add_ps(v, m) : v; /* rounded one by one, as codecs do */
}

/* Halves of which 16 lower bytes, then after a row of keys their upper bytes, lie at p. */
Q_AVX512_INLINE __m512 split_halves16(const uint8_t *p) {
    const __m256i lo = _mm256_cvtepu8_epi16(bytes16(p)), hi = _mm256_cvtepu8_epi16(bytes16(p + Q_KV_TOKENS));
    return _mm512_cvtph_ps(_mm256_or_si256(lo, _mm256_slli_epi16(hi, 8)));
}
/* The half at p, in all lanes. */
Q_AVX512_INLINE __m512 one_half16(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)q_load16(p)));
}

/* Number i of a block of the keys from 16 * v on; upper: i is at least 16. p: the block, byte after byte of all keys.
 */
Q_AVX512_INLINE __m512 key16(q_attn_blocks f, const uint8_t *p, int i, bool upper, int v, __m512 d, __m512 m) {
    const int code = f == Q_BLOCKS_Q8_0 || !upper ? i : i - 16;
    const __m128i b = bytes16(p + (q_attn_block_codes(f) + code) * Q_KV_TOKENS + 16 * v);
    __mmask16 fifth = 0;
    if (f == Q_BLOCKS_Q5_1)
        fifth = _mm_test_epi8_mask(bytes16(p + (4 + i / 8) * Q_KV_TOKENS + 16 * v), _mm_set1_epi8((char)(1u << i % 8)));
    return number16(f, levels16(f, b, upper, fifth), d, m);
}

/* Numbers at .. at + 15 of a block of a value; at is 0 or 16. */
Q_AVX512_INLINE __m512 value16(q_attn_blocks f, const uint8_t *p, int at, __m512 d, __m512 m) {
    const __m128i b = bytes16(p + q_attn_block_codes(f) + (f == Q_BLOCKS_Q8_0 ? at : 0));
    const __mmask16 fifth = (__mmask16)(f == Q_BLOCKS_Q5_1 ? q_load32(p + 4) >> at : 0u);
    return number16(f, levels16(f, b, at >= 16, fifth), d, m);
}

/* R rows times keys. */
Q_AVX512_INLINE void keys_tile(q_attn_blocks f, int R, const q_attn_product *p, int64_t row) {
    const float *a = p->a + row * p->a_stride;
    const uint8_t *b = p->b[0], *ahead = p->ahead[0];
    const int64_t a_stride = p->a_stride, ahead_stride = p->ahead_stride;
    __m512 acc[8][2], d[2], m[2];
    Q_UNROLL for (int i = 0; i < R; i++) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < p->to; k += 32, b += q_attn_block_bytes(f) * Q_KV_TOKENS) {
        Q_UNROLL for (int v = 0; v < 2; v++) {
            d[v] = split_halves16(b + 16 * v);
            m[v] = f == Q_BLOCKS_Q5_1 ? split_halves16(b + 2 * Q_KV_TOKENS + 16 * v) : _mm512_setzero_ps();
        }
        Q_UNROLL for (int part = 0; part < 4; part++) {
            for (int i = 8 * part; i < 8 * part + 8; i++, ahead += ahead_stride) {
                __m512 w[2];
                _mm_prefetch((const char *)ahead, _MM_HINT_T1);
                Q_UNROLL for (int v = 0; v < 2; v++) w[v] = key16(f, b, i, part >= 2, v, d[v], m[v]);
                Q_UNROLL for (int r = 0; r < R; r++) {
                    const __m512 x = _mm512_set1_ps(a[r * a_stride + k + i]);
                    Q_UNROLL for (int v = 0; v < 2; v++) acc[r][v] = _mm512_fmadd_ps(x, w[v], acc[r][v]);
                }
            }
        }
    }
    float *c = p->c + row * p->c_stride;
    Q_UNROLL for (int r = 0; r < R; r++) {
        Q_UNROLL for (int v = 0; v < 2; v++) _mm512_storeu_ps(c + r * p->c_stride + 16 * v, acc[r][v]);
    }
}

/* R rows times V registers of numbers of values from `at` on, which begins a block. */
Q_AVX512_INLINE void values_tile(q_attn_blocks f, int R, int V, const q_attn_product *p, int64_t row, int64_t at) {
    const float *a = p->a + row * p->a_stride;
    float *c = p->c + row * p->c_stride + at;
    const int64_t a_stride = p->a_stride, ahead_at = at * p->ahead_stride / p->width;
    __m512 acc[8][2];
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < V; v++)
            acc[i][v] = p->more ? _mm512_loadu_ps(c + i * p->c_stride + 16 * v) : _mm512_setzero_ps();
    }
    for (int64_t k = p->from; k < p->to;) {
        const int64_t page = k / p->per, first = page * p->per, end = Q_MIN(p->to, first + p->per);
        const uint8_t *b = p->b[page] + (k - first) * p->b_stride + at / 32 * q_attn_block_bytes(f);
        const uint8_t *ahead = p->ahead[page] + (k - first) * p->ahead_stride + ahead_at;
        for (; k < end; k++, b += p->b_stride, ahead += p->ahead_stride) {
            const __m512 d = one_half16(b), m = f == Q_BLOCKS_Q5_1 ? one_half16(b + 2) : _mm512_setzero_ps();
            const __m512 w[2] = {value16(f, b, 0, d, m), value16(f, b, 16, d, m)};
            _mm_prefetch((const char *)ahead, _MM_HINT_T1);
            Q_UNROLL for (int i = 0; i < R; i++) {
                const __m512 x = _mm512_set1_ps(a[i * a_stride + k]);
                Q_UNROLL for (int v = 0; v < V; v++) acc[i][v] = _mm512_fmadd_ps(x, w[v], acc[i][v]);
            }
        }
    }
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < V; v++) _mm512_storeu_ps(c + i * p->c_stride + 16 * v, acc[i][v]);
    }
}

Q_AVX512_INLINE void block_rows(bool keys, q_attn_blocks f, int R, const q_attn_product *p, int64_t row) {
    int64_t at = 0;
    if (keys) {
        keys_tile(f, R, p, row);
        return;
    }
    for (; at + 32 <= p->width; at += 32) values_tile(f, R, 2, p, row, at);
    if (at < p->width) values_tile(f, R, 1, p, row, at);
}

/* Rows by eights, then four, two and one: few bodies, since each is long. */
Q_AVX512_INLINE void block_product(bool keys, q_attn_blocks f, const q_attn_product *p) {
    int64_t row = 0;
    for (; row + 8 <= p->rows; row += 8) block_rows(keys, f, 8, p, row);
    if (row + 4 <= p->rows) block_rows(keys, f, 4, p, row), row += 4;
    if (row + 2 <= p->rows) block_rows(keys, f, 2, p, row), row += 2;
    if (row < p->rows) block_rows(keys, f, 1, p, row);
}

Q_AVX512_INLINE void widen_block_keys(q_attn_blocks f, const uint8_t *page, int64_t width, float *to) {
    for (int64_t k = 0; k < width; k += 32, page += q_attn_block_bytes(f) * Q_KV_TOKENS) {
        __m512 d[2], m[2];
        Q_UNROLL for (int v = 0; v < 2; v++) {
            d[v] = split_halves16(page + 16 * v);
            m[v] = f == Q_BLOCKS_Q5_1 ? split_halves16(page + 2 * Q_KV_TOKENS + 16 * v) : _mm512_setzero_ps();
        }
        Q_UNROLL for (int half = 0; half < 2; half++) {
            for (int i = 16 * half; i < 16 * half + 16; i++)
                Q_UNROLL for (int v = 0; v < 2; v++)
                    _mm512_storeu_ps(to + (k + i) * Q_KV_TOKENS + 16 * v, key16(f, page, i, half > 0, v, d[v], m[v]));
        }
    }
}
Q_AVX512_INLINE void widen_block_values(q_attn_blocks f, const uint8_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 32, from += q_attn_block_bytes(f)) {
        const __m512 d = one_half16(from), m = f == Q_BLOCKS_Q5_1 ? one_half16(from + 2) : _mm512_setzero_ps();
        _mm512_storeu_ps(to + i, value16(f, from, 0, d, m));
        if (i + 16 < n) _mm512_storeu_ps(to + i + 16, value16(f, from, 16, d, m));
    }
}
