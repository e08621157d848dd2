/* matmul_q4_k_avx2.c: products of Q4_K weights with 8-bit activations in blocks of 256.
 *
 * A pair of nibbles times activations is at most 2 * 15 * 127 = 3810: the eight pairs of a lane of 32 weights fit 16
 * bits (30480), and times the 6-bit scale, two to an int32, all of a block fits (30480 * 63 * 2 * 8 < 2^31). Scales are
 * thus applied by the widening multiply-add itself. Layer L2. */
#include "i8_avx2.h"

/* A block of the panel: 64 vectors of codes, 8 of scales (each twice), 4 of pairs of minima, d, dmin. */
enum {
    BYTES = 144,
    PANEL_SC = 2048,
    PANEL_MN = PANEL_SC + 8 * 32,
    PANEL_D = PANEL_MN + 4 * 32,
    PANEL_DMIN = PANEL_D + 32,
    PANEL = PANEL_DMIN + 32
};

/* Eight scales, or minima, as bytes 0 .. 7 of a block. */
Q_AVX2_INLINE uint64_t scales(const uint8_t *p) {
    const uint32_t a = q_load32(p + 4), c = q_load32(p + 12);
    return (a & 0x3F3F3F3Fu) | (uint64_t)((c & 0x0F0F0F0Fu) | (a >> 2 & 0x30303030u)) << 32;
}
Q_AVX2_INLINE uint64_t minima(const uint8_t *p) {
    const uint32_t b = q_load32(p + 8), c = q_load32(p + 12);
    return (b & 0x3F3F3F3Fu) | (uint64_t)((c >> 4 & 0x0F0F0F0Fu) | (b >> 2 & 0x30303030u)) << 32;
}
Q_AVX2_INLINE __m128i widen8(uint64_t bytes) { return _mm_cvtepu8_epi16(_mm_cvtsi64_si128((long long)bytes)); }

/* Sums of activations per 32. */
Q_AVX2_INLINE __m128i sums32(const q_a8_256 *b) { return _mm_hadd_epi16(q_load128(b->sum), q_load128(b->sum + 8)); }

/* int16 number j of each half to all of it. */
Q_AVX2_INLINE __m256i spread(__m256i v, int j) {
    return _mm256_shuffle_epi8(v, _mm256_set1_epi16((short)(0x0100 + 0x0202 * j)));
}

/* Exact sums of a block of one row: products with scales over 8 lanes, and with minima over 4. */
Q_AVX2_INLINE void block(const uint8_t *p, const q_a8_256 *b, __m128i sums, __m256i *products, __m128i *least) {
    const __m256i nibble = _mm256_set1_epi8(15), sc = _mm256_broadcastsi128_si256(widen8(scales(p)));
    __m256i total = _mm256_setzero_si256();
    Q_UNROLL for (int j = 0; j < 4; j++) {
        const __m256i v = q_load256(p + 16 + 32 * j);
        const __m256i lo = _mm256_and_si256(v, nibble), hi = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
        const __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(lo, q_load256(b->q + 64 * j)), spread(sc, 2 * j));
        const __m256i t =
            _mm256_madd_epi16(_mm256_maddubs_epi16(hi, q_load256(b->q + 64 * j + 32)), spread(sc, 2 * j + 1));
        total = _mm256_add_epi32(total, _mm256_add_epi32(s, t));
    }
    *products = total;
    *least = _mm_madd_epi16(widen8(minima(p)), sums);
}

Q_AVX2 static void one(const uint8_t *const *row, const uint8_t *x, int64_t blocks, __m256 *y) {
    const q_a8_256 *b = (const q_a8_256 *)(const void *)x;
    __m256 acc = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, b++) {
        q_ahead(row, i, BYTES);
        const __m128i sums = sums32(b);
        __m256i v[8];
        __m128i n[8];
        Q_UNROLL for (int r = 0; r < 8; r++) block(row[r] + i * BYTES, b, sums, &v[r], &n[r]);
        /* Across: rows 0 .. 3 in the lower halves, 4 .. 7 in the upper. */
        __m256i q[4];
        Q_UNROLL for (int r = 0; r < 4; r++) q[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(n[r]), n[r + 4], 1);
        const __m256i n01 = Q_I8_PAIR(_mm256_add_epi32, q[0], q[1]), n23 = Q_I8_PAIR(_mm256_add_epi32, q[2], q[3]);
        const __m256i least = _mm256_add_epi32(q_shuffle32(n01, n23, 0), q_shuffle32(n01, n23, 1));
        const __m256 da = _mm256_set1_ps(b->d);
        acc = _mm256_fmadd_ps(_mm256_mul_ps(q_halves8(row, i * BYTES), da), _mm256_cvtepi32_ps(q_across8(v)), acc);
        acc = _mm256_fnmadd_ps(_mm256_mul_ps(q_halves8(row, i * BYTES + 2), da), _mm256_cvtepi32_ps(least), acc);
    }
    *y = acc;
}

Q_AVX2 static void unpack(const uint8_t *const *row, int64_t blocks, uint8_t *panel) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int64_t i = 0; i < blocks; i++, panel += PANEL) {
        for (int j = 0; j < 4; j++) {
            __m256i lo[8], hi[8];
            Q_UNROLL for (int r = 0; r < 8; r++) {
                const __m256i v = q_load256(row[r] + i * BYTES + 16 + 32 * j);
                lo[r] = _mm256_and_si256(v, nibble);
                hi[r] = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
            }
            q_interleave8(lo, panel + 512 * j);
            q_interleave8(hi, panel + 512 * j + 256);
        }
        for (int r = 0; r < 8; r++) {
            const uint64_t sc = scales(row[r] + i * BYTES), mn = minima(row[r] + i * BYTES);
            for (int j = 0; j < 8; j++) {
                const uint32_t s = (uint32_t)(sc >> 8 * j) & 255u;
                q_store32(panel + PANEL_SC + 32 * j + 4 * r, s | s << 16);
                q_store16(panel + PANEL_MN + 32 * (j / 2) + 4 * r + 2 * (j & 1), (uint16_t)(mn >> 8 * j & 255u));
            }
        }
        _mm256_storeu_ps((float *)(void *)(panel + PANEL_D), q_halves8(row, i * BYTES));
        _mm256_storeu_ps((float *)(void *)(panel + PANEL_DMIN), q_halves8(row, i * BYTES + 2));
    }
}

Q_AVX2 static void columns(const uint8_t *panel, const uint8_t *const *x, int64_t blocks, __m256 *y) {
    enum { C = Q_I8_COLUMNS };
    __m256 acc[C];
    Q_UNROLL for (int c = 0; c < C; c++) acc[c] = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, panel += PANEL) {
        const q_a8_256 *b[C];
        __m256i total[C];
        Q_UNROLL for (int c = 0; c < C; c++) {
            b[c] = (const q_a8_256 *)(const void *)x[c] + i;
            total[c] = _mm256_setzero_si256();
        }
        for (int j = 0; j < 8; j++) {
            __m256i sum[C];
            Q_UNROLL for (int c = 0; c < C; c++) sum[c] = _mm256_setzero_si256();
            Q_UNROLL for (int g = 0; g < 8; g++) {
                const __m256i w = q_load256(panel + 256 * j + 32 * g);
                Q_UNROLL for (int c = 0; c < C; c++)
                    sum[c] = _mm256_add_epi16(sum[c], _mm256_maddubs_epi16(w, q_four(b[c]->q + 32 * j + 4 * g)));
            }
            const __m256i sc = q_load256(panel + PANEL_SC + 32 * j);
            Q_UNROLL for (int c = 0; c < C; c++) total[c] = _mm256_add_epi32(total[c], _mm256_madd_epi16(sum[c], sc));
        }
        const __m256 d = _mm256_loadu_ps((const float *)(const void *)(panel + PANEL_D));
        const __m256 dmin = _mm256_loadu_ps((const float *)(const void *)(panel + PANEL_DMIN));
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256i s = _mm256_broadcastsi128_si256(sums32(b[c])); /* four pairs of sums */
            __m256i least = _mm256_madd_epi16(q_load256(panel + PANEL_MN), _mm256_shuffle_epi32(s, 0x00));
            least = _mm256_add_epi32(
                least, _mm256_madd_epi16(q_load256(panel + PANEL_MN + 32), _mm256_shuffle_epi32(s, 0x55)));
            least = _mm256_add_epi32(
                least, _mm256_madd_epi16(q_load256(panel + PANEL_MN + 64), _mm256_shuffle_epi32(s, 0xAA)));
            least = _mm256_add_epi32(
                least, _mm256_madd_epi16(q_load256(panel + PANEL_MN + 96), _mm256_shuffle_epi32(s, 0xFF)));
            const __m256 da = _mm256_set1_ps(b[c]->d);
            acc[c] = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(total[c]), acc[c]);
            acc[c] = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, da), _mm256_cvtepi32_ps(least), acc[c]);
        }
    }
    Q_UNROLL for (int c = 0; c < C; c++) y[c] = acc[c];
}

static const q_i8_kernel kernel = {256, PANEL, one, unpack, columns};
Q_I8_PRODUCT(matmul_q4_k_a8_256_8x4__avx2, kernel)
