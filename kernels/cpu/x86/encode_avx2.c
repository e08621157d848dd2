/* encode_avx2.c: rows rounded to nearest (wide.h: encode) in AVX2, eight blocks at a time: their scales lie side by
 * side in a register, codes of 32 weights become bytes in one, and a format is what it makes of those.
 *
 * The bytes are those of fit, nearest and emit, by this: the fit's power of two is left out, which moves no rounding
 * while scales stay far from the ends of float32's range (PLAIN_LOW .. PLAIN_HIGH), and a code is taken where it is the
 * nearest beyond what roundings could change. The few values next to a border ask the format's own nearest; a block
 * outside the range, or with two extremes of one magnitude, goes the portable way. No fused multiply-add. Layer L2. */
#include "avx2.h"

#include "../../../libquant/wide.h"
#include "../split_codecs.h"

#define PLAIN_LOW 0x1p-60f
#define PLAIN_HIGH 0x1p60f

/* A format as the loops below see it; `to` is inlined, so that a block's bytes go from registers to the row. */
typedef struct kind {
    int32_t weights, bytes, head; /* of a block; bytes of it before the codes */
    float lo, hi;                 /* levels are integers, or, where `mid` is not NULL, a codebook's: */
    const float *mid;             /* the 15 borders between them, and how near to one a code is in doubt */
    float slack;
    float reference;              /* q_shape.reference */
    bool with_min, full;
} kind;

/* What eight blocks have in common with their grids: lane i is block i. */
typedef struct scales {
    float d[8], by[8], m[8]; /* by: what values are multiplied with */
    uint16_t half[8], half_m[8];
    int plain;               /* bit i: block i may be done here */
} scales;

#define FOLD8(name, op)                                                                                            \
    Q_AVX2_INLINE __m256 name(const __m256 v[8]) { /* lane i: all lanes of v[i] by `op` */                         \
        __m256 a[4], b[2];                                                                                         \
        Q_UNROLL for (int i = 0; i < 4; i++) a[i] = op(_mm256_permute2f128_ps(v[2 * i], v[2 * i + 1], 0x20),       \
                                                       _mm256_permute2f128_ps(v[2 * i], v[2 * i + 1], 0x31));      \
        Q_UNROLL for (int i = 0; i < 2; i++) b[i] = op(_mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),            \
                                                       _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xEE));           \
        const __m256 c = op(_mm256_shuffle_ps(b[0], b[1], 0x88), _mm256_shuffle_ps(b[0], b[1], 0xDD));             \
        return _mm256_permutevar8x32_ps(c, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));                             \
    }
FOLD8(least, _mm256_min_ps)
FOLD8(most, _mm256_max_ps)

Q_AVX2_INLINE __m256 absolute(__m256 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
Q_AVX2_INLINE __m256 minus(__m256 v) { return _mm256_xor_ps(_mm256_set1_ps(-0.0f), v); }
Q_AVX2_INLINE __m256 both(__m256 a, __m256 b) { return _mm256_and_ps(a, b); }
/* Finite halves, as q_fit_half rounds. */
Q_AVX2_INLINE __m128i halves(__m256 v) {
    v = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(-65504.0f)), _mm256_set1_ps(65504.0f));
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
}

/* Scales of eight blocks as the reference encoder sets them. */
Q_AVX2_INLINE void find_scales(const kind *k, const float *x, scales *s) {
    __m256 low[8], high[8];
    for (int b = 0; b < 8; b++, x += k->weights) {
        low[b] = high[b] = _mm256_loadu_ps(x);
        Q_UNROLL for (int i = 8; i < k->weights; i += 8) {
            low[b] = _mm256_min_ps(low[b], _mm256_loadu_ps(x + i));
            high[b] = _mm256_max_ps(high[b], _mm256_loadu_ps(x + i));
        }
    }
    const __m256 lo = least(low), hi = most(high), below = minus(lo), amax = _mm256_max_ps(below, hi);
    const __m256 none = _mm256_setzero_ps();
    __m256 plain = both(_mm256_cmp_ps(amax, _mm256_set1_ps(PLAIN_LOW), _CMP_GE_OQ),
                        _mm256_cmp_ps(amax, _mm256_set1_ps(PLAIN_HIGH), _CMP_LE_OQ));
    __m256 d, m = none;
    if (k->with_min) { /* a zero as the lowest may be of either sign */
        d = _mm256_div_ps(_mm256_sub_ps(hi, lo), _mm256_set1_ps(k->hi));
        plain = both(plain, _mm256_cmp_ps(lo, none, _CMP_NEQ_UQ));
        _mm_storeu_si128((__m128i *)(void *)s->half_m, halves(lo));
        m = minus(_mm256_cvtph_ps(halves(lo)));
    } else if (k->reference > 0.0f) {
        d = _mm256_div_ps(amax, _mm256_set1_ps(k->reference));
    } else {
        d = _mm256_div_ps(_mm256_blendv_ps(lo, hi, _mm256_cmp_ps(hi, below, _CMP_GT_OQ)), _mm256_set1_ps(k->reference));
        plain = both(plain, _mm256_cmp_ps(hi, below, _CMP_NEQ_UQ));
    }
    if (!k->full) {
        _mm_storeu_si128((__m128i *)(void *)s->half, halves(d));
        d = _mm256_cvtph_ps(halves(d));
        plain = both(plain, _mm256_cmp_ps(d, none, _CMP_NEQ_UQ));
    }
    _mm256_storeu_ps(s->d, d);
    _mm256_storeu_ps(s->by, _mm256_div_ps(_mm256_set1_ps(1.0f), d));
    _mm256_storeu_ps(s->m, m);
    s->plain = _mm256_movemask_ps(plain);
}

/* 32 codes as bytes. */
Q_AVX2_INLINE __m256i bytes32(const __m256i c[4]) {
    const __m256i v = _mm256_packs_epi16(_mm256_packs_epi32(c[0], c[1]), _mm256_packs_epi32(c[2], c[3]));
    return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Codes of integer levels. *far: which values are not surely nearest to what their code decodes to. Without a minimum
 * the product with 1 / d and the decoder's product are off by less than 2^-15 d, so that 0.4999 d is as good as the
 * 0.499 of q_wide.codes; with one, sums may be off by more, and everything is done as there. */
Q_AVX2_INLINE __m256i levels32(const kind *k, const float *x, float scale, float inverse, float min, uint32_t *far) {
    const __m256 d = _mm256_set1_ps(scale), by = _mm256_set1_ps(inverse), m = _mm256_set1_ps(min);
    const __m256 lo = _mm256_set1_ps(k->lo), hi = _mm256_set1_ps(k->hi);
    const __m256 limit = _mm256_mul_ps(_mm256_set1_ps(k->with_min ? 0.499f : 0.4999f), absolute(d));
    __m256 near[4];
    __m256i c[4];
    Q_UNROLL for (int i = 0; i < 4; i++) {
        const __m256 v = _mm256_loadu_ps(x + 8 * i);
        const __m256 level = k->with_min ? _mm256_div_ps(_mm256_add_ps(v, m), d) : _mm256_mul_ps(v, by);
        c[i] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(level, lo), hi));
        __m256 y = _mm256_mul_ps(d, _mm256_cvtepi32_ps(c[i]));
        if (k->with_min) y = _mm256_sub_ps(y, m);
        near[i] = _mm256_cmp_ps(absolute(_mm256_sub_ps(v, y)), limit, _CMP_LT_OQ);
    }
    *far = 0;
    if (_mm256_movemask_ps(both(both(near[0], near[1]), both(near[2], near[3]))) != 0xFF)
        Q_UNROLL for (int i = 0; i < 4; i++) *far |= (~(uint32_t)_mm256_movemask_ps(near[i]) & 0xFFu) << 8 * i;
    return bytes32(c);
}

Q_AVX2_INLINE __m256i borders_below(const kind *k, __m256 v) {
    __m256i n = _mm256_setzero_si256();
    Q_UNROLL for (int j = 0; j < 15; j++)
        n = _mm256_sub_epi32(n, _mm256_castps_si256(_mm256_cmp_ps(v, _mm256_set1_ps(k->mid[j]), _CMP_GT_OQ)));
    return n;
}

/* Codes of a codebook. */
Q_AVX2_INLINE __m256i book32(const kind *k, const float *x, float inverse, uint32_t *far) {
    const __m256 by = _mm256_set1_ps(inverse), slack = _mm256_set1_ps(k->slack);
    const bool doubt = k->slack > 0.0f;
    __m256i c[4];
    *far = 0;
    Q_UNROLL for (int i = 0; i < 4; i++) {
        const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), by);
        c[i] = borders_below(k, doubt ? _mm256_sub_ps(v, slack) : v);
        if (!doubt) continue;
        const __m256i same = _mm256_cmpeq_epi32(c[i], borders_below(k, _mm256_add_ps(v, slack)));
        *far |= (~(uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(same)) & 0xFFu) << 8 * i;
    }
    return bytes32(c);
}

/* Those that are in doubt, by the format itself. */
Q_AVX2 static __m256i ask(const q_format *f, const float *x, float scale, float min, uint32_t far, __m256i codes) {
    q_grid grid = {.scale = {scale}, .min = {min}};
    int8_t c[32];
    float value;
    _mm256_storeu_si256((__m256i *)(void *)c, codes);
    for (; far; far &= far - 1) {
        const int i = __builtin_ctz(far);
        c[i] = (int8_t)f->nearest(&grid, i, x[i], &value);
    }
    return _mm256_loadu_si256((const __m256i *)(const void *)c);
}

/* ----------------------------------------------------------------------------------- codes of 32 weights in a row */

Q_AVX2_INLINE void put_bytes(__m256i c, uint8_t *to) { _mm256_storeu_si256((__m256i *)(void *)to, c); }
/* Weights i and i + 16 in a byte. */
Q_AVX2_INLINE void put_nibbles(__m256i c, uint8_t *to) {
    c = _mm256_and_si256(c, _mm256_set1_epi8(15));
    const __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(c, 1), 4);
    _mm_storeu_si128((__m128i *)(void *)to, _mm_or_si128(_mm256_castsi256_si128(c), high));
}
Q_AVX2_INLINE void put_fifths(__m256i c, uint8_t *to) {
    q_store32(to, (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(c, 3)));
    put_nibbles(c, to + 4);
}
Q_AVX2_INLINE __m256i from(__m256i c, int lowest) { return _mm256_sub_epi8(c, _mm256_set1_epi8((char)lowest)); }
Q_AVX2_INLINE void put_signed_nibbles(__m256i c, uint8_t *to) { put_nibbles(from(c, -8), to); }
Q_AVX2_INLINE void put_signed_fifths(__m256i c, uint8_t *to) { put_fifths(from(c, -16), to); }
/* Neighbours in a byte, the first in the high nibble. */
Q_AVX2_INLINE void put_pairs(__m256i c, uint8_t *to) {
    const __m256i pairs = _mm256_maddubs_epi16(c, _mm256_set1_epi16(0x0110));
    const __m128i first = _mm256_castsi256_si128(pairs), second = _mm256_extracti128_si256(pairs, 1);
    _mm_storeu_si128((__m128i *)(void *)to, _mm_packus_epi16(first, second));
}

/* ------------------------------------------------------------------------------------------------ rows */

typedef void put(__m256i codes, uint8_t *to);

/* The codes of a block. */
Q_AVX2_INLINE void encode_units(const q_format *f, const kind *k, put *to, const float *x, float d, float by, float m,
                                uint8_t *row) {
    uint8_t *const codes = row + k->head;
    Q_UNROLL for (int u = 0; u < k->weights; u += 32) {
        uint32_t far;
        __m256i c = k->mid ? book32(k, x + u, by, &far) : levels32(k, x + u, d, by, m, &far);
        if (far) c = ask(f, x + u, d, m, far, c);
        to(c, codes + u / 32 * ((k->bytes - k->head) / (k->weights / 32)));
    }
}

Q_AVX2_INLINE void encode_row(const q_format *f, const kind *k, put *to, const q_fit_in *in, int64_t n, uint8_t *row) {
    scales s;
    q_fit_in one = *in;
    for (; n >= 8 * k->weights; n -= 8 * k->weights) {
        find_scales(k, one.x, &s);
        for (int b = 0; b < 8; b++, one.x += k->weights, row += k->bytes) {
            if (!(s.plain >> b & 1)) {
                q_encode_blocks(f, &one, k->weights, row);
                continue;
            }
            if (k->full) memcpy(row, &s.d[b], sizeof(float));
            else memcpy(row, &s.half[b], 2);
            if (k->with_min) memcpy(row + 2, &s.half_m[b], 2);
            encode_units(f, k, to, one.x, s.d[b], s.by[b], s.m[b], row);
        }
    }
    q_encode_blocks(f, &one, n, row);
}

#define INTEGERS(name, lowest, highest, at, minimum, codes_at, to)                                     \
    Q_AVX2 static void name##_encode(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row) { \
        const kind k = {.weights = name##_weights, .bytes = name##_bytes, .head = codes_at,            \
                        .lo = lowest, .hi = highest, .reference = at, .with_min = minimum};            \
        encode_row(f, &k, to, in, n, row);                                                             \
    }                                                                                                  \
    extern const q_format q_format_##name;
INTEGERS(q8_0, -128, 127, 127, false, 2, put_bytes)
INTEGERS(q4_0, -8, 7, -8, false, 2, put_signed_nibbles)
INTEGERS(q5_0, -16, 15, -16, false, 2, put_signed_fifths)
INTEGERS(q4_1, 0, 15, 0, true, 4, put_nibbles)
INTEGERS(q5_1, 0, 31, 0, true, 4, put_fifths)

Q_AVX2 static void iq4_nl_encode(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row) {
    float mid[15];
    for (int i = 0; i < 15; i++) mid[i] = (float)(iq4_nl_table[i] + iq4_nl_table[i + 1]) * 0.5f;
    const kind k = {.weights = iq4_nl_weights, .bytes = iq4_nl_bytes, .head = 2, .mid = mid, .slack = 0x1p-8f,
                    .reference = -127};
    encode_row(f, &k, put_nibbles, in, n, row);
}

/* Its nearest is these very steps. */
Q_AVX2 static void nf4_encode(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row) {
    float mid[15];
    for (int i = 0; i < 15; i++) mid[i] = (nf4_table[i] + nf4_table[i + 1]) * 0.5f;
    const kind k = {.weights = nf4_weights, .bytes = nf4_bytes, .head = 4, .mid = mid, .reference = 1, .full = true};
    encode_row(f, &k, put_pairs, in, n, row);
}

/* The scale is the row's. */
Q_AVX2 static void i8_row_encode(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row) {
    const kind k = {.weights = i8_row_weights, .bytes = i8_row_bytes, .lo = -128, .hi = 127};
    const float d = q_bits_f32(q_load32(in->head));
    if (!(d >= PLAIN_LOW && d <= PLAIN_HIGH)) {
        q_encode_blocks(f, in, n, row);
        return;
    }
    for (int64_t i = 0; i < n; i += k.weights, row += k.bytes)
        encode_units(f, &k, put_bytes, in->x + i, d, 1.0f / d, 0.0f, row);
}

/* ------------------------------------------------------------------------------------------------ floats */

Q_AVX2 static void f16_encode(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row) {
    q_fit_in rest = *in;
    for (; n >= 8; n -= 8, rest.x += 8, row += 16)
        _mm_storeu_si128((__m128i *)(void *)row, halves(_mm256_loadu_ps(rest.x)));
    q_encode_blocks(f, &rest, n, row);
}

Q_AVX2 static void bf16_encode(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row) {
    const __m256i one = _mm256_set1_epi32(1), low = _mm256_set1_epi32(0x7FFF), infinite = _mm256_set1_epi32(0x7F80);
    q_fit_in rest = *in;
    for (; n >= 8; n -= 8, rest.x += 8, row += 16) {
        const __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)rest.x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(v, 16), one);
        __m256i b = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(v, low), odd), 16);
        b = _mm256_add_epi32(b, _mm256_cmpeq_epi32(_mm256_and_si256(b, low), infinite)); /* the largest finite one */
        const __m128i upper = _mm_packus_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
        _mm_storeu_si128((__m128i *)(void *)row, upper);
    }
    q_encode_blocks(f, &rest, n, row);
}

static void f32_encode(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row) {
    Q_UNUSED(f);
    memcpy(row, in->x, (size_t)n * sizeof(float));
}

extern const q_format q_format_iq4_nl, q_format_nf4, q_format_i8_row, q_format_f16, q_format_bf16, q_format_f32;

bool q_wide_encode__avx2(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row) {
#define WAY(name) {&q_format_##name, name##_encode}
    static const struct {
        const q_format *format;
        void (*encode)(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row);
    } ways[] = {WAY(q8_0), WAY(q4_0),   WAY(q5_0), WAY(q4_1), WAY(q5_1), WAY(iq4_nl),
                WAY(nf4),  WAY(i8_row), WAY(f16),  WAY(bf16), WAY(f32)};
#undef WAY
    for (size_t i = 0; i < Q_COUNT(ways); i++)
        if (ways[i].format == f) {
            ways[i].encode(f, in, n, row);
            return true;
        }
    return false;
}
