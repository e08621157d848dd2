/* nvfp4.c: 64 weights in groups of 16: four bytes of scale, unsigned floats of four bits of exponent and three of
 * mantissa (bit 7 says nothing, and 127 is zero), then 8 bytes of nibbles per group (low: its first 8), 4-bit floats; w
 * = scale * float. Files that scale a tensor as a whole beside have a tensor for it, which is not this format's
 * business.
 *
 * A unit has two scales. split has them as integers of a common power of two, which are exact while they are within a
 * factor of 16 of each other; beyond that the smaller one's mantissa is rounded to what fits. Layer L2. */
#include "../e2m1.h"

Q_FORMAT(nvfp4, 64, 36)

/* Scale byte s: its mantissa as an integer, and the exponent e of what that counts, half of it: 2^(e - 11). */
Q_FN int nvfp4_mantissa(uint s) { return s == 127u ? 0 : q_int(s & 7u) + ((s & 120u) != 0u ? 8 : 0); }
Q_FN int nvfp4_exponent(uint s) { return (s & 120u) != 0u ? q_int((s >> 3) & 15u) : 1; }
Q_FN float nvfp4_power(int e) { return q_bits(q_uint(e + 116) << 23); } /* 2^(e - 11) */

Q_FN void nvfp4_decode(Q_SRC row, int block, int sub, Q_OUT(float, y, 32)) {
    int base = block * 36;
    for (int g = 0; g < 2; g++) {
        uint s = q_u8(row, base + 2 * sub + g);
        Q_LOCAL_float(d, 1);
        d[0] = q_float(nvfp4_mantissa(s)) * nvfp4_power(nvfp4_exponent(s));
        for (int i = 0; i < 8; i++) {
            int b = q_int(q_u8(row, base + 4 + 16 * sub + 8 * g + i));
            y[16 * g + i] = d[0] * q_float(e2m1_table[b & 15]);
            y[16 * g + 8 + i] = d[0] * q_float(e2m1_table[b >> 4]);
        }
    }
}

/* The scales of two groups as integers, and what they count. */
Q_FN float nvfp4_scales(uint first, uint second, Q_OUT(int, sc, 2)) {
    int m0 = nvfp4_mantissa(first), m1 = nvfp4_mantissa(second);
    int e0 = m0 != 0 ? nvfp4_exponent(first) : m1 != 0 ? nvfp4_exponent(second) : 1;
    int e1 = m1 != 0 ? nvfp4_exponent(second) : e0;
    int low = e0 < e1 ? e0 : e1;
    int high = e0 < e1 ? e1 : e0;
    if (low < high - 4) low = high - 4;
    sc[0] = e0 >= low ? m0 << (e0 - low) : (m0 + (1 << (low - e0 - 1))) >> (low - e0);
    sc[1] = e1 >= low ? m1 << (e1 - low) : (m1 + (1 << (low - e1 - 1))) >> (low - e1);
    return nvfp4_power(low);
}

Q_FN void nvfp4_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                      Q_OUT(float, d, 2)) {
    int base = block * 36;
    d[0] = nvfp4_scales(q_u8(row, base + 2 * sub), q_u8(row, base + 2 * sub + 1), sc);
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        mn[g] = 0;
        for (int i = 0; i < 8; i++) {
            int b = q_int(q_u8(row, base + 4 + 16 * sub + 8 * g + i));
            q[16 * g + i] = e2m1_table[b & 15];
            q[16 * g + 8 + i] = e2m1_table[b >> 4];
        }
    }
}

#ifdef Q_HOST
#include "../fit.h"

enum { GROUP = 16, TRIED = 16 /* scales by search: from nine steps below the reference's to six above */ };

static const q_shape shape = {.weights = nvfp4_weights, .groups = 4, .lo = 0, .hi = 15, .table = e2m1_levels};

static float scale_of(int32_t s) { return q_float(nvfp4_mantissa((uint)s)) * nvfp4_power(nvfp4_exponent((uint)s)); }

/* The scale next to x, of those that ascend from 0 to 126. */
static int32_t nearest_scale(float x) {
    int32_t s = 0;
    for (int32_t step = 64; step > 0; step /= 2)
        if (s + step <= 126 && scale_of(s + step) <= x) s += step;
    return s < 126 && x - scale_of(s) > scale_of(s + 1) - x ? s + 1 : s;
}

static void fit(const q_fit_in *in, q_grid *grid) {
    memset(grid, 0, sizeof *grid);
    for (int g = 0; g < 4; g++) {
        const float *x = in->x + GROUP * g;
        float top = 0.0f, tried[TRIED];
        for (int i = 0; i < GROUP; i++) top = fmaxf(top, fabsf(x[i]));
        int32_t s = nearest_scale(top / 12.0f);
        if (in->search && top > 0.0f) {
            s = Q_MAX(Q_MIN(s - 9, 127 - TRIED), 0);
            for (int i = 0; i < TRIED; i++) tried[i] = scale_of(s + i);
            s += q_fit_choose(&shape, x, in->weight ? in->weight + GROUP * g : NULL, GROUP, tried, TRIED);
        }
        grid->sc[g] = (int16_t)s;
        grid->scale[g] = scale_of(s);
    }
}
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    for (int g = 0; g < 4; g++) {
        block[g] = (uint8_t)grid->sc[g];
        for (int i = 0; i < 8; i++)
            block[4 + 8 * g + i] =
                (uint8_t)(e2m1_code(codes[GROUP * g + i]) | e2m1_code(codes[GROUP * g + 8 + i]) << 4);
    }
}

const q_format q_format_nvfp4 = {.name = "nvfp4", .weights = nvfp4_weights, .bytes = nvfp4_bytes, .fallback = "mxfp4",
                                 .span = 32, .split_nmse = 1e-9f, .decode = nvfp4_decode, .split = nvfp4_split,
                                 .fit = fit, .nearest = nearest, .emit = emit};
#endif
