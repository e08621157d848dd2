/* rows16_formats_avx2.h: how codes and scales of each packed format come out of its layout (rows16.h and rows16_cards.h
 * say where they lie), for the loops of rows16_avx2.h and panel_avx2.h, after which a file includes this one. Layer
 * L2. */
#ifndef Q_ROWS16_FORMATS_AVX2_H
#define Q_ROWS16_FORMATS_AVX2_H

/* ---------------------------------------------------------------------------------- blocks of 32, two to a block */

Q_Y_INLINE __m256 d_pair(const uint8_t *p, int unit, int h) { return q_y_halves(p + 32 * unit + 16 * h); }

/* Unit `unit` of nibbles alone behind a head of 64 bytes. */
Q_Y_INLINE __m256i nibbles_of(const uint8_t *p, int unit, int g, int h) {
    return q_y_nibbles(q_y_load(p + 64 + 256 * unit + 64 * (g & 3) + 32 * h), g / 4);
}
Q_Y_INLINE __m256i codes_q4_0(const uint8_t *p, int i, int u, int g, int h) { return nibbles_of(p, i + u, g, h); }
static const q_y_format q4_0 = {.bytes = Q_ROWS16_Q4_0,
                                .units = 2,
                                .act = 1,
                                .span = 1,
                                .most = 8,
                                .bias = 8,
                                .codes = codes_q4_0,
                                .d = d_pair};

/* The codebook of IQ4_NL and IQ4_XS by codes below 16. */
Q_Y_INLINE __m256i iq4(__m256i codes) {
    const __m128i t = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), codes);
}
Q_Y_INLINE __m256i codes_iq4_nl(const uint8_t *p, int i, int u, int g, int h) {
    return iq4(nibbles_of(p, i + u, g, h));
}
static const q_y_format iq4_nl = {
    .bytes = Q_ROWS16_Q4_0, .units = 2, .act = 1, .span = 1, .codes = codes_iq4_nl, .d = d_pair};

/* Codes with `value` more where a byte of `of` has its `bit`-th bit. */
Q_Y_INLINE __m256i with_bit(__m256i codes, const uint8_t *of, int bit, int value) {
    const __m256i mask = _mm256_set1_epi8((char)(1 << bit));
    const __m256i in = _mm256_cmpeq_epi8(_mm256_and_si256(q_y_load(of), mask), mask);
    return _mm256_or_si256(codes, _mm256_and_si256(in, _mm256_set1_epi8((char)value)));
}

Q_Y_INLINE __m256i codes_q5_0(const uint8_t *p, int i, int u, int g, int h) {
    const __m256i v = q_y_nibbles(q_y_load(p + 192 + 256 * (i + u) + 64 * (g & 3) + 32 * h), g / 4);
    return with_bit(v, p + 64 + 64 * (i + u) + 32 * h, g, 16);
}
static const q_y_format q5_0 = {.bytes = Q_ROWS16_Q5_0,
                                .units = 2,
                                .act = 1,
                                .span = 1,
                                .most = 4,
                                .bias = 16,
                                .codes = codes_q5_0,
                                .d = d_pair};

Q_Y_INLINE __m256 d_first(const uint8_t *p, int unit, int h) { return q_y_halves(p + 16 * h + 0 * unit); }
Q_Y_INLINE __m256 d_second(const uint8_t *p, int unit, int h) { return q_y_halves(p + 32 + 16 * h + 0 * unit); }

Q_Y_INLINE __m256i codes_q4_1(const uint8_t *p, int i, int u, int g, int h) {
    return q_y_nibbles(q_y_load(p + 64 + 64 * (g & 3) + 32 * h + 0 * (i + u)), g / 4);
}
static const q_y_format q4_1 = {.bytes = Q_ROWS16_Q4_1,
                                .units = 1,
                                .act = 1,
                                .span = 1,
                                .most = 8,
                                .minima = 1,
                                .codes = codes_q4_1,
                                .d = d_first,
                                .dmin = d_second};

Q_Y_INLINE __m256i codes_q5_1(const uint8_t *p, int i, int u, int g, int h) {
    return with_bit(codes_q4_1(p + 64, i, u, g, h), p + 64 + 32 * h, g, 16);
}
static const q_y_format q5_1 = {.bytes = Q_ROWS16_Q5_1,
                                .units = 1,
                                .act = 1,
                                .span = 1,
                                .most = 4,
                                .minima = 1,
                                .codes = codes_q5_1,
                                .d = d_first,
                                .dmin = d_second};

/* ------------------------------------------------------------------------------------------------ blocks of 256 */

Q_Y_INLINE __m256i codes_q4_k(const uint8_t *p, int i, int u, int g, int h) {
    return q_y_nibbles(q_y_load(p + 320 + 512 * i + 64 * g + 32 * h), u);
}
Q_Y_INLINE __m256i scale_4k(const uint8_t *p, int unit, int half, int h) {
    return q_y_bytes(p + 64 + 16 * unit + 8 * h + 0 * half);
}
Q_Y_INLINE __m256i pair_4k(const uint8_t *p, int unit, int h) {
    const __m256i a = q_y_bytes(p + 192 + 32 * unit + 8 * h), b = q_y_bytes(p + 208 + 32 * unit + 8 * h);
    return _mm256_blend_epi16(a, b, 0xAA);
}
static const q_y_format q4_k = {.bytes = Q_ROWS16_Q4_K,
                                .units = 8,
                                .act = 8,
                                .span = 2,
                                .most = 8,
                                .scales = 1,
                                .minima = 3,
                                .codes = codes_q4_k,
                                .scale = scale_4k,
                                .pair = pair_4k,
                                .d = d_first,
                                .dmin = d_second};

Q_Y_INLINE __m256i codes_q5_k(const uint8_t *p, int i, int u, int g, int h) {
    return with_bit(codes_q4_k(p + 512, i, u, g, h), p + 320 + 64 * g + 32 * h, 2 * i + u, 16);
}
static const q_y_format q5_k = {.bytes = Q_ROWS16_Q5_K,
                                .units = 8,
                                .act = 8,
                                .span = 2,
                                .most = 4,
                                .scales = 1,
                                .minima = 3,
                                .codes = codes_q5_k,
                                .scale = scale_4k,
                                .pair = pair_4k,
                                .d = d_first,
                                .dmin = d_second};

Q_Y_INLINE __m256i low2(__m256i v, int shift) {
    return _mm256_and_si256(shift ? _mm256_srli_epi16(v, shift) : v, _mm256_set1_epi8(3));
}

Q_Y_INLINE __m256i codes_q2_k(const uint8_t *p, int i, int u, int g, int h) {
    return low2(q_y_load(p + 320 + 512 * i + 64 * g + 32 * h), 2 * u);
}
Q_Y_INLINE __m256i scale_q2_k(const uint8_t *p, int unit, int half, int h) {
    return _mm256_and_si256(q_y_bytes(p + 64 + 32 * unit + 16 * half + 8 * h), _mm256_set1_epi16(15));
}
Q_Y_INLINE __m256i pair_q2_k(const uint8_t *p, int unit, int h) {
    const __m256i a = q_y_bytes(p + 64 + 32 * unit + 8 * h), b = q_y_bytes(p + 80 + 32 * unit + 8 * h);
    return _mm256_blend_epi16(_mm256_srli_epi16(a, 4), _mm256_srli_epi16(b, 4), 0xAA);
}
static const q_y_format q2_k = {.bytes = Q_ROWS16_Q2_K,
                                .units = 8,
                                .act = 8,
                                .span = 4,
                                .most = 8,
                                .scales = 2,
                                .minima = 2,
                                .codes = codes_q2_k,
                                .scale = scale_q2_k,
                                .pair = pair_q2_k,
                                .d = d_first,
                                .dmin = d_second};

Q_Y_INLINE __m256 d_float(const uint8_t *p, int unit, int h) {
    return _mm256_load_ps((const float *)(const void *)p + 8 * h + 0 * unit);
}
/* Sixteen signed scales. */
Q_Y_INLINE __m256i scale_signed(const uint8_t *p, int unit, int half, int h) {
    return q_y_signed(p + 64 + 32 * unit + 16 * half + 8 * h);
}

Q_Y_INLINE __m256i codes_q3_k(const uint8_t *p, int i, int u, int g, int h) {
    return with_bit(codes_q2_k(p + 512, i, u, g, h), p + 320 + 64 * g + 32 * h, 4 * i + u, 4);
}
static const q_y_format q3_k = {.bytes = Q_ROWS16_Q3_K,
                                .units = 8,
                                .act = 8,
                                .span = 4,
                                .most = 8,
                                .bias = 4,
                                .scales = 2,
                                .codes = codes_q3_k,
                                .scale = scale_signed,
                                .d = d_float};

/* Of 128 weights 16 words of nibbles, the first two units' in the low halves, and eight words of two more bits. */
Q_Y_INLINE __m256i codes_q6_k(const uint8_t *p, int i, int u, int g, int h) {
    const __m256i four = q_y_nibbles(q_y_load(p + 320 + 1024 * i + 512 * (u & 1) + 64 * g + 32 * h), u / 2);
    const __m256i two = q_y_load(p + 2368 + 512 * i + 64 * g + 32 * h), in = _mm256_set1_epi8(0x30);
    const __m256i moved = u < 2 ? _mm256_slli_epi16(two, 4 - 2 * u) : u == 2 ? two : _mm256_srli_epi16(two, 2);
    return _mm256_or_si256(four, _mm256_and_si256(moved, in));
}
static const q_y_format q6_k = {.bytes = Q_ROWS16_Q6_K,
                                .units = 8,
                                .act = 1,
                                .span = 4,
                                .most = 2,
                                .bias = 32,
                                .scales = 2,
                                .codes = codes_q6_k,
                                .scale = scale_signed,
                                .d = d_float};

Q_Y_INLINE __m256i codes_iq4_xs(const uint8_t *p, int i, int u, int g, int h) {
    return iq4(q_y_nibbles(q_y_load(p + 192 + 256 * (i + u) + 64 * (g & 3) + 32 * h), g / 4));
}
Q_Y_INLINE __m256i scale_iq4_xs(const uint8_t *p, int unit, int half, int h) {
    return q_y_signed(p + 64 + 16 * unit + 8 * h + 0 * half);
}
static const q_y_format iq4_xs = {.bytes = Q_ROWS16_IQ4_XS,
                                  .units = 8,
                                  .act = 8,
                                  .span = 1,
                                  .scales = 1,
                                  .codes = codes_iq4_xs,
                                  .scale = scale_iq4_xs,
                                  .d = d_float};

/* ------------------------------------------------------------------------------------------- formats of model cards */

enum { ZERO = 32 /* code = q + ZERO - z: unsigned for every z that a byte may hold in five bits, and below 64 */ };

/* ZERO - z of eight rows, in all four bytes of each lane. */
Q_Y_INLINE __m256i zeros_i4(const uint8_t *p, int h) {
    const __m256i z = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + 32 + 8 * h)));
    const __m128i each = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm256_sub_epi8(_mm256_set1_epi8(ZERO), _mm256_shuffle_epi8(z, _mm256_broadcastsi128_si256(each)));
}
Q_Y_INLINE __m256i codes_i4(const uint8_t *p, int i, int u, int g, int h) {
    return _mm256_add_epi8(nibbles_of(p, i + u, g, h), zeros_i4(p, h));
}
#define I4(units_, layout)                                                                                      \
    {                                                                                                           \
        .bytes = layout, .units = units_, .act = 1, .span = 1, .most = 2,          \
        .bias = ZERO, .codes = codes_i4, .d = d_first                                                           \
    }
static const q_y_format i4_g32 = I4(1, Q_ROWS16_I4_G32);
static const q_y_format i4_g64 = I4(2, Q_ROWS16_I4_G64);
static const q_y_format i4_g128 = I4(4, Q_ROWS16_I4_G128);

/* The integers of nf4_levels.h. */
Q_Y_INLINE __m256i codes_nf4(const uint8_t *p, int i, int u, int g, int h) {
    const __m128i t = _mm_setr_epi8(-124, -86, -65, -49, -35, -23, -11, 0, 10, 20, 31, 42, 55, 70, 90, 124);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), nibbles_of(p, i + u, g, h));
}
Q_Y_INLINE __m256 d_nf4(const uint8_t *p, int unit, int h) {
    return _mm256_mul_ps(d_float(p, unit, h), _mm256_set1_ps(0.008064516129032258f));
}
static const q_y_format nf4 = {
    .bytes = Q_ROWS16_NF4, .units = 2, .act = 1, .span = 1, .codes = codes_nf4, .d = d_nf4};

/* The integers of fp4.c. */
Q_Y_INLINE __m256i codes_fp4(const uint8_t *p, int i, int u, int g, int h) {
    const __m128i t = _mm_setr_epi8(0, 1, 80, 120, 40, 60, 20, 30, 0, -1, -80, -120, -40, -60, -20, -30);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), nibbles_of(p, i + u, g, h));
}
Q_Y_INLINE __m256 d_fp4(const uint8_t *p, int unit, int h) {
    return _mm256_mul_ps(d_float(p, unit, h), _mm256_set1_ps(0.008333333333333333f));
}
static const q_y_format fp4 = {
    .bytes = Q_ROWS16_NF4, .units = 2, .act = 1, .span = 1, .codes = codes_fp4, .d = d_fp4};

/* Eight bytes to lanes. */
Q_Y_INLINE __m256i lanes_of(const uint8_t *p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
}

/* The integers of e2m1.h plus 12. */
Q_Y_INLINE __m256i codes_mxfp4(const uint8_t *p, int i, int u, int g, int h) {
    const __m128i t = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), nibbles_of(p, i + u, g, h));
}
/* 2^(e - 128): below e = 2 it is subnormal. */
Q_Y_INLINE __m256 d_mxfp4(const uint8_t *p, int unit, int h) {
    const __m256i e = lanes_of(p + 16 * unit + 8 * h);
    const __m256i v = _mm256_sub_epi32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(1 << 23));
    const __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(1 << 21), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(v, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}
static const q_y_format mxfp4 = {.bytes = Q_ROWS16_MXFP4,
                                 .units = 4,
                                 .act = 1,
                                 .span = 1,
                                 .most = 4,
                                 .bias = 12,
                                 .codes = codes_mxfp4,
                                 .d = d_mxfp4};

Q_Y_INLINE __m256i codes_tq2_0(const uint8_t *p, int i, int u, int g, int h) {
    return low2(q_y_load(p + 64 + 512 * i + 64 * g + 32 * h), 2 * u);
}
static const q_y_format tq2_0 = {.bytes = Q_ROWS16_TQ2_0,
                                 .units = 8,
                                 .act = 8,
                                 .span = 4,
                                 .most = 8,
                                 .bias = 1,
                                 .codes = codes_tq2_0,
                                 .d = d_float};

Q_Y_INLINE __m256i codes_i8_g(const uint8_t *p, int i, int u, int g, int h) {
    return q_y_load(p + 192 + 512 * (i + u) + 64 * g + 32 * h);
}
/* d * (128 - z). */
Q_Y_INLINE __m256 dmin_i8_g(const uint8_t *p, int unit, int h) {
    const __m256i z = _mm256_sub_epi32(_mm256_set1_epi32(128), lanes_of(p + 128 + 16 * unit + 8 * h));
    return _mm256_mul_ps(d_pair(p, unit, h), _mm256_cvtepi32_ps(z));
}
static const q_y_format i8_g = {.bytes = Q_ROWS16_I8_G,
                                .units = 4,
                                .act = 1,
                                .span = 1,
                                .minima = 1,
                                .codes = codes_i8_g,
                                .d = d_pair,
                                .dmin = dmin_i8_g};

Q_Y_INLINE __m256i codes_i8_row(const uint8_t *p, int i, int u, int g, int h) {
    return q_y_load(p + 512 * (i + u) + 64 * g + 32 * h);
}
static const q_y_format i8_row = {.bytes = Q_ROWS16_I8_ROW,
                                  .units = 1,
                                  .head = Q_ROWS16_I8_HEAD,
                                  .act = 1,
                                  .span = 1,
                                  .whole = true,
                                  .codes = codes_i8_row,
                                  .d = d_float};

/* The products that every instruction set has; q8_0 and nvfp4 gain with AVX2 alone, whose file has them
 * (bench/SPEED.md). */
#define Q_Y_PRODUCTS(isa) \
    Q_Y_PRODUCT(matmul_q4_0_a8_32_rows16__##isa, q4_0) \
    Q_Y_PRODUCT(matmul_iq4_nl_a8_32_rows16__##isa, iq4_nl) \
    Q_Y_PRODUCT(matmul_q5_0_a8_32_rows16__##isa, q5_0) \
    Q_Y_PRODUCT(matmul_q4_1_a8_32_rows16__##isa, q4_1) \
    Q_Y_PRODUCT(matmul_q5_1_a8_32_rows16__##isa, q5_1) \
    Q_Y_PRODUCT(matmul_q4_k_a8_256_rows16__##isa, q4_k) \
    Q_Y_PRODUCT(matmul_q5_k_a8_256_rows16__##isa, q5_k) \
    Q_Y_PRODUCT(matmul_q2_k_a8_256_rows16__##isa, q2_k) \
    Q_Y_PRODUCT(matmul_q3_k_a8_256_rows16__##isa, q3_k) \
    Q_Y_PRODUCT(matmul_q6_k_a8_32_rows16__##isa, q6_k) \
    Q_Y_PRODUCT(matmul_iq4_xs_a8_256_rows16__##isa, iq4_xs) \
    Q_Y_PRODUCT(matmul_i4_g32_a8_32_rows16__##isa, i4_g32) \
    Q_Y_PRODUCT(matmul_i4_g64_a8_32_rows16__##isa, i4_g64) \
    Q_Y_PRODUCT(matmul_i4_g128_a8_32_rows16__##isa, i4_g128) \
    Q_Y_PRODUCT(matmul_nf4_a8_32_rows16__##isa, nf4) \
    Q_Y_PRODUCT(matmul_fp4_a8_32_rows16__##isa, fp4) \
    Q_Y_PRODUCT(matmul_mxfp4_a8_32_rows16__##isa, mxfp4) \
    Q_Y_PRODUCT(matmul_tq2_0_a8_256_rows16__##isa, tq2_0) \
    Q_Y_PRODUCT(matmul_i8_g_a8_32_rows16__##isa, i8_g) \
    Q_Y_PRODUCT(matmul_i8_row_a8_row_rows16__##isa, i8_row)

#endif
