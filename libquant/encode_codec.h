/* encode_codec.h: reference encoders in the subset of C that codec.h describes, for devices that store what they
 * computed: keys and values.
 *
 * A format of kv_forms.def has, at its file's end where Q_ENCODE is defined,
 *
 *   Q_FN void q8_0_store(Q_DST row, int block, Q_IN(float, x, 32))       what q_encode_row makes of 32 weights
 *   q_put8(row, i, v) q_put16 q_put32       little-endian stores at byte i of the row; v: the lowest bits of a uint
 *   q_word(f)                               a float's bits
 *
 * q_levels finds what fit.c finds without a search for 32 integer levels whose parameters are halves, and the codes of
 * fit.h, to the bit: numbers have to be finite and no larger than a half. Devices need not divide to the last bit, so
 * quotients are made of integers; and since they have no doubles, which of two levels is nearer is told by the exact
 * sum of both. Layer L1. */
#ifndef Q_ENCODE_CODEC_H
#define Q_ENCODE_CODEC_H

#include "codec.h"

#define Q_IN(type, name, n) const Q_IN_##type(name, n)
#ifdef Q_GLSL
#define Q_DST const Q_SRC_TYPE
#define Q_IN_float(name, n) float name[n]
#define Q_OUT_uint(name, n) out uint name[n]
#define q_word(f) floatBitsToUint(f)
#else
#define Q_DST uint8_t *
#define Q_IN_float(name, n) float *name
Q_FN uint q_word(float f) { uint u; memcpy(&u, &f, 4); return u; }
Q_FN void q_put8(Q_DST row, int i, uint v) { row[i] = (uint8_t)(v & 255u); }
Q_FN void q_put16(Q_DST row, int i, uint v) { q_put8(row, i, v), q_put8(row, i + 1, v >> 8); }
Q_FN void q_put32(Q_DST row, int i, uint v) { q_put16(row, i, v), q_put16(row, i + 2, v >> 16); }
#endif

/* binary16, to nearest, ties to even, as q_f32_to_half. */
Q_FN uint q_to_half(float x) {
    uint u = q_word(x), sign = u >> 16 & 0x8000u, a = u & 0x7FFFFFFFu;
    if (a > 0x7F800000u) return sign | 0x7E00u | (a >> 13 & 0x3FFu);
    if (a >= 0x477FF000u) return sign | 0x7C00u;
    if (a >= 0x38800000u) { /* normal: the exponent's bias changes by 112 */
        uint b = a - 0x38000000u;
        return sign | (b + 0xFFFu + (b >> 13 & 1u)) >> 13;
    }
    if (a < 0x33000000u) return sign; /* below half of the smallest */
    uint shift = 126u - (a >> 23), m = (a & 0x7FFFFFu) | 0x800000u; /* 14 .. 24 */
    uint whole = m >> shift, rest = m & ((1u << shift) - 1u), tie = 1u << (shift - 1u);
    if (rest > tie || (rest == tie && (whole & 1u) != 0u)) whole = whole + 1u;
    return sign | whole;
}

/* a / b to nearest; what is below the normal numbers is 0, and counts as 0. |a / b| < 2^127, b not 0. */
Q_FN float q_quotient(float a, float b) {
    uint ua = q_word(a), ub = q_word(b), sign = (ua ^ ub) & 0x80000000u, q = 0u;
    uint m = (ua & 0x7FFFFFu) | 0x800000u, n = (ub & 0x7FFFFFu) | 0x800000u;
    int e = q_int(ua >> 23 & 255u) - q_int(ub >> 23 & 255u) + 127;
    if (m < n) {
        m = m << 1;
        e = e - 1;
    }
    for (int i = 0; i < 25; i++) { /* 24 bits and one to round by; m is what is left */
        q = q << 1;
        if (m >= n) {
            q = q | 1u;
            m = m - n;
        }
        m = m << 1;
    }
    if ((ua >> 23 & 255u) == 0u || e < 1) return q_bits(sign);
    uint up = q & 1u; /* no quotient of two floats lies halfway between two: then it times b would have 25 bits */
    return q_bits(sign | ((q_uint(e) << 23) + ((q >> 1) - 0x800000u) + up));
}

/* 1 where level a is nearer to x than level b, by differences in double. */
Q_FN int q_nearer(float x, float a, float b) {
    Q_LOCAL_float(t, 4);
    t[0] = a + b;
    t[1] = t[0] - a;
    t[2] = t[0] - t[1];
    t[3] = (a - t[2]) + (b - t[1]); /* a + b = t[0] + t[3] exactly */
    t[1] = x + x;
    if (t[0] == q_float(0)) { /* equally far from 0: beside them a double loses what is below 2^-53 */
        uint size = q_word(a) & 0x7FFFFFFFu, far = size & 0x7F800000u;
        t[2] = q_bits(far) * q_bits(size == far ? 0x24800000u : 0x25000000u);
        if (q_bits(q_word(x) & 0x7FFFFFFFu) <= t[2]) return 0;
    }
    if (a < b && (t[1] < t[0] || (t[1] == t[0] && t[3] > 0.0))) return 1;
    if (a > b && (t[1] > t[0] || (t[1] == t[0] && t[3] < 0.0))) return 1;
    return 0;
}

/* The nearest of the levels scale * code - min, lo <= code <= hi. */
Q_FN int q_nearest_level(float x, float scale, float min, int lo, int hi) {
    Q_LOCAL_float(t, 4);
    int code = lo;
    if (scale == 0.0) return lo < 0 ? 0 : lo;
    t[0] = x + min;
    t[0] = q_quotient(t[0], scale);
    if (t[0] > q_float(lo)) {
        t[1] = t[0] + q_float(12582912); /* 1.5 * 2^23: no room for a fraction */
        t[1] = t[1] - q_float(12582912);
        if (t[0] < q_float(hi)) code = q_int(t[1]);
        else code = hi;
    }
    t[0] = scale * q_float(code) - min;
    t[1] = x - t[0];
    t[2] = q_bits(q_word(scale) & 0x7FFFFFFFu) * q_bits(0x3EFF7CEEu); /* 0.499 */
    if (q_bits(q_word(t[1]) & 0x7FFFFFFFu) < t[2]) return code;
    int middle = code;
    for (int way = -1; way < 2; way += 2) {
        int other = middle + way;
        t[1] = scale * q_float(other) - min;
        if (other >= lo && other <= hi && q_nearer(x, t[1], t[0]) != 0) {
            code = other;
            t[0] = t[1];
        }
    }
    return code;
}

/* Lowest and highest of 32 numbers, in the order of q_wide.extremes, which decides the sign of a zero. */
Q_FN void q_range(Q_IN(float, x, 32), Q_OUT(float, range, 2)) {
    float low[16], high[16];
    for (int i = 0; i < 16; i++) {
        low[i] = x[i] < x[i + 16] ? x[i] : x[i + 16];
        high[i] = x[i] > x[i + 16] ? x[i] : x[i + 16];
    }
    for (int n = 8; n > 2; n /= 2)
        for (int i = 0; i < n; i++) {
            low[i] = low[i] < low[i + n] ? low[i] : low[i + n];
            high[i] = high[i] > high[i + n] ? high[i] : high[i + n];
        }
    for (int n = 1; n < 3; n++)
        for (int i = 0; i < 4; i += 2 * n) {
            low[i] = low[i] < low[i + n] ? low[i] : low[i + n];
            high[i] = high[i] > high[i + n] ? high[i] : high[i + n];
        }
    range[0] = low[0];
    range[1] = high[0];
}

/* Codes of a block, its d and m as halves. lo .. hi are its levels; top is that of the number of largest magnitude, or
 * 0: then the levels are spread over the range of the numbers, and m is the lowest (q_shape.reference). */
Q_FN void q_levels(Q_IN(float, x, 32), int lo, int hi, int top, Q_OUT(int, q, 32), Q_OUT(uint, dm, 2)) {
    Q_LOCAL_float(range, 2);
    Q_LOCAL_float(t, 2);
    q_range(x, range);
    float low = -range[0], high = range[1], most = low > high ? low : high;
    dm[0] = 0u;
    dm[1] = 0u;
    if (most > 0.0) {
        t[0] = most;
        if (top == 0) {
            t[0] = range[1] - range[0];
            dm[1] = q_to_half(range[0]);
        }
        if (top < 0 && low > high) t[0] = range[0];
        if (top < 0 && low == high) /* of two alike the first */
            for (int i = 31; i >= 0; i--)
                if (x[i] == high || x[i] == -high) t[0] = x[i];
        dm[0] = q_to_half(q_quotient(t[0], q_float(top == 0 ? hi : top)));
    }
    t[0] = q_half_bits(dm[0]);
    t[1] = top == 0 ? -q_half_bits(dm[1]) : q_float(0);
    for (int i = 0; i < 32; i++) q[i] = q_nearest_level(x[i], t[0], t[1], lo, hi);
}

#endif
