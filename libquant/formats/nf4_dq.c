/* nf4_dq.c: NF4 whose absmax values are quantized in their turn ("double quantization"). A row: float32 offset, then
 * blocks of 256 weights: float32 nested, a code byte for each of four groups of 64, 128 bytes of nibbles as in nf4.c.
 * absmax = nested * map(code) + offset, w = absmax * level, all in float32: the values of bitsandbytes files.
 *
 * There `nested` serves 256 groups (16384 weights) and the offset the whole tensor; here each block of 256 has a copy
 * of the one, each row of the other, and our own encoder gives each a value of its own, which costs nothing more. Needs
 * no table: the map's 256 values are computed. Layer L2. */
#include "../book_codec.h"
#include "../nf4_levels.h"

Q_FORMAT(nf4_dq, 256, 136)

/* Powers of ten as float32 has them. */
Q_TABLE(float, nf4_dq_powers, 7) = {9.999999974752427e-07, 9.999999747378752e-06, 9.999999747378752e-05,
                                    0.0010000000474974513, 0.009999999776482582, 0.10000000149011612, 1.0};

/* Point i of 2^exponent + 1 evenly spread over 0.1 .. 1, counted from the nearer end, as the published code does. */
Q_FN float nf4_dq_point(int exponent, int i) {
    Q_LOCAL_float(v, 2);
    int n = 1 << exponent;
    v[0] = (q_float(1.0) - q_float(0.1)) / q_float(n);
    if (2 * i < n) v[1] = q_float(0.1) + v[0] * q_float(i);
    else v[1] = q_float(1.0) - v[0] * q_float(n - i);
    return v[1];
}

/* The signed 8-bit dynamic map: code 127 is 0, 255 is 1; the others are means of neighbouring points, 1, 2, 4 ... 64 of
 * them in decades up to 1, negative below 127. */
Q_FN float nf4_dq_map(int code) {
    Q_LOCAL_float(v, 1);
    int m = code < 127 ? 127 - code : code - 127;
    int exponent = 0;
    if (code == 255) return q_float(1.0);
    if (m == 0) return q_float(0.0);
    for (int e = 1; e < 7; e++)
        if (m >> e != 0) exponent = e;
    m = m - (1 << exponent);
    v[0] = nf4_dq_powers[exponent] * ((nf4_dq_point(exponent, m) + nf4_dq_point(exponent, m + 1)) * q_float(0.5));
    return code < 127 ? -v[0] : v[0];
}

/* The absmax of group g of a block. */
Q_FN float nf4_dq_absmax(Q_SRC row, int block, int g) {
    Q_LOCAL_float(v, 1);
    int base = 4 + block * 136;
    v[0] = q_f32(row, base) * nf4_dq_map(q_int(q_u8(row, base + 4 + g))) + q_f32(row, 0);
    return v[0];
}

Q_BOOK_CODEC(nf4_dq, nf4_table, nf4_integers, NF4_SCALE, nf4_dq_absmax(row, block, sub / 2),
             4 + block * 136 + 8 + 16 * sub)

#ifdef Q_HOST
#include "../fit.h"

enum { GROUP = 64, GROUPS = nf4_dq_weights / GROUP };

/* A group, as nf4 has it; and the four of a block. */
static const q_shape group = {.weights = GROUP, .groups = 1, .lo = 0, .hi = 15, .levels = nf4_table, .sc_lo = 1,
                              .sc_hi = 1, .full = true, .reference = 1, .from = 0.7f, .to = 1.2f, .steps = 10};
static const q_shape shape = {.weights = nf4_dq_weights, .groups = GROUPS, .lo = 0, .hi = 15, .levels = nf4_table,
                              .sc_lo = 1, .sc_hi = 1, .full = true};

static float largest(const float *x, int n) {
    float top = 0.0f;
    for (int i = 0; i < n; i++) top = fmaxf(top, fabsf(x[i]));
    return top;
}

/* The offset: the mean of the absmax values. */
static void head(const q_fit_in *in, int64_t n, uint8_t *row) {
    double sum = 0;
    for (int64_t at = 0; at < n; at += GROUP) sum += (double)largest(in->x + at, GROUP);
    q_store32(row, q_f32_bits(n > 0 ? (float)(sum * GROUP / (double)n) : 0.0f));
}

/* The code whose scale is nearest to s; the products are the decoder's. */
static int16_t scale_code(float nested, float offset, float s, float *scale) {
    int best = 127;
    *scale = nested * nf4_dq_map(127) + offset;
    for (int c = 0; c < 256; c++) {
        const float v = nested * nf4_dq_map(c) + offset;
        if (fabs((double)v - (double)s) < fabs((double)*scale - (double)s)) best = c, *scale = v;
    }
    return (int16_t)best;
}

/* Scales s as they will be stored, and the weighted error that they leave. */
static double with_scales(const q_fit_in *in, const float *s, q_grid *grid) {
    const float offset = q_bits_f32(q_load32(in->head));
    double error = 0;
    memset(grid, 0, sizeof *grid);
    for (int g = 0; g < GROUPS; g++) grid->d = fmaxf(grid->d, fabsf(s[g] - offset));
    for (int g = 0; g < GROUPS; g++) grid->sc[g] = scale_code(grid->d, offset, s[g], &grid->scale[g]);
    for (int i = 0; i < nf4_dq_weights; i++) {
        float value;
        q_fit_nearest(&shape, grid, i, in->x[i], &value);
        const double r = (double)in->x[i] - (double)value;
        error += (in->weight ? (double)in->weight[i] : 1) * r * r;
    }
    return error;
}

static void fit(const q_fit_in *in, q_grid *grid) {
    float s[GROUPS], found[GROUPS];
    for (int g = 0; g < GROUPS; g++) s[g] = largest(in->x + GROUP * g, GROUP);
    const double reference = with_scales(in, s, grid);
    if (!in->search) return;
    q_grid better;
    for (int g = 0; g < GROUPS; g++) {
        const q_fit_in part = {in->x + GROUP * g, in->weight ? in->weight + GROUP * g : NULL, true, NULL, in->wide};
        q_fit_symmetric(&group, &part, &better);
        found[g] = better.d > 0.0f ? better.d : s[g]; /* a negative scale is too far from the others */
    }
    if (with_scales(in, found, &better) < reference) *grid = better;
}
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    q_store32(block, q_f32_bits(grid->d));
    for (int g = 0; g < GROUPS; g++) block[4 + g] = (uint8_t)grid->sc[g];
    for (int i = 0; i < 128; i++) block[8 + i] = (uint8_t)((codes[2 * i] & 15) << 4 | (codes[2 * i + 1] & 15));
}

const q_format q_format_nf4_dq = {.name = "nf4_dq", .weights = nf4_dq_weights, .bytes = nf4_dq_bytes, .row_head = 4,
                                  .fallback = "nf4", .span = GROUP, .split_nmse = NF4_SPLIT_NMSE,
                                  .decode = nf4_dq_decode, .split = nf4_dq_split, .head = head, .fit = fit,
                                  .nearest = nearest, .emit = emit};
#endif
