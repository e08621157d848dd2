/* test_formats.c: every line of formats.def: bits in, values out, and back.
 *
 * All tests loop over the table, so a new format is tested without a line here, but for its goldens: blocks of other
 * programs' files, decoded by other programs (tests/golden/make_formats.py). */
#include <float.h>
#include <math.h>

#include "../libquant/format.h"
#include "harness.h"

enum { ROW = 1024 };

/* Check notes every assertion that passes; in the loops here only one that fails is worth it. */
#define NEED_MSG(ok, ...)                    \
    do {                                     \
        if (!(ok)) ck_abort_msg(__VA_ARGS__); \
    } while (0)
#define NEED(ok) NEED_MSG(ok, "%s", #ok)

/* What the reference encoders of formats with few scales or levels may miss, where others miss less: of normally
 * distributed values, and of values that are all the same. */
typedef struct coarse {
    const char *name;
    double normal, same;
} coarse;
static const coarse *coarse_of(const q_format *f) {
    static const coarse list[] = {{"tq1_0", 0.85, 0.012}, {"tq2_0", 0.85, 0.012}, /* the largest magnitude is a level */
                                  {"mxfp4", 0.14, 0.251},   /* scales are powers of two, and 6 follows 4 */
                                  {"nvfp4", 0.12, 0.05}};  /* scales have four bits of mantissa */
    for (size_t i = 0; i < Q_COUNT(list); i++)
        if (strcmp(list[i].name, f->name) == 0) return &list[i];
    return NULL;
}

static bool same_bits(float a, float b) { return q_f32_bits(a) == q_f32_bits(b) || (isnan(a) && isnan(b)); }

/* Weighted squared error over the weighted squares, as a root. */
static double error_of(const float *x, const float *y, const float *w, int n) {
    double e = 0, s = 0;
    for (int i = 0; i < n; i++) {
        const double weight = w ? (double)w[i] : 1, r = (double)x[i] - (double)y[i];
        e += weight * r * r;
        s += weight * (double)x[i] * (double)x[i];
    }
    return s > 0 ? sqrt(e / s) : sqrt(e);
}

/* Encode and decode n values (a multiple of 256). */
static void there_and_back(const q_format *f, const float *x, const float *w, bool search, int n, float *y) {
    uint64_t bytes;
    NEED(q_row_bytes(f, (uint64_t)n, &bytes));
    uint8_t *row = malloc((size_t)bytes);
    q_encode_row(f, x, w, search, n, row);
    q_decode_row(f, row, n, y);
    free(row);
}

START_TEST(halves) {
    for (uint32_t h = 0; h < 65536; h++) {
        const int e = (int)(h >> 10 & 31), m = (int)(h & 1023);
        const double sign = h & 0x8000 ? -1 : 1;
        const float got = q_half_to_f32((uint16_t)h);
        if (e == 31 && m != 0) {
            NEED(isnan(got) && isnan(q_half_to_f32(q_f32_to_half(got))));
            continue;
        }
        const double want = e == 31 ? sign * HUGE_VAL : sign * (e ? ldexp(1024 + m, e - 25) : ldexp(m, -24));
        NEED_MSG((double)got == want && !signbit(got) == !signbit(want), "half %04x", h);
        NEED_MSG(q_f32_to_half(got) == h, "half %04x does not come back", h);
        if ((h & 0x7FFF) >= 0x7BFF) continue;
        /* Half way to the next: to the even one; a float to either side: to that side. */
        const float next = q_half_to_f32((uint16_t)(h + 1)), mid = (float)(((double)got + (double)next) / 2);
        NEED(q_f32_to_half(mid) == (h & 1 ? h + 1 : h));
        NEED(q_f32_to_half(nextafterf(mid, got)) == h && q_f32_to_half(nextafterf(mid, next)) == h + 1);
    }
    NEED(q_f32_to_half(65519.0f) == 0x7BFF && q_f32_to_half(65520.0f) == 0x7C00);
    NEED(q_f32_to_half(1e-30f) == 0 && q_f32_to_half(-1e-30f) == 0x8000 && q_f32_to_half(FLT_MAX) == 0x7C00);
}
END_TEST

START_TEST(bfloats) {
    for (uint32_t b = 0; b < 65536; b++) {
        const float got = q_bf16_to_f32((uint16_t)b);
        NEED(q_f32_bits(got) == b << 16);
        if (isnan(got)) {
            NEED(isnan(q_bf16_to_f32(q_f32_to_bf16(got))));
            NEED(isnan(q_bf16_to_f32(q_f32_to_bf16(q_bits_f32(b << 16 | 1)))));
            continue;
        }
        NEED(q_f32_to_bf16(got) == b);
        if ((b & 0x7F80) == 0x7F80) continue;
        const uint32_t mid = b << 16 | 0x8000;
        NEED(q_f32_to_bf16(q_bits_f32(mid)) == (b & 1 ? b + 1 : b));
        NEED(q_f32_to_bf16(q_bits_f32(mid - 1)) == b && q_f32_to_bf16(q_bits_f32(mid + 1)) == b + 1);
    }
}
END_TEST

START_TEST(table) {
    NEED(q_format_count() >= 16);
    for (uint32_t i = 0; i < q_format_count(); i++) {
        const q_format *f = q_formats[i];
        NEED(q_format_find(f->name) == f && q_format_gguf_id(f) == q_format_gguf_ids[i]);
        if (q_format_gguf_ids[i] >= 0) NEED(q_format_by_gguf((uint32_t)q_format_gguf_ids[i]) == f);
        NEED(f->weights == 1 || f->weights % Q_UNIT == 0);
        NEED(f->weights <= Q_MAX_BLOCK && f->bytes > 0);
        /* The chain of fallbacks ends at a format that takes any length, over ever shorter blocks. */
        NEED_MSG((f->fallback == NULL) == (f->weights == 1), "%s", f->name);
        for (const q_format *g = f; g->fallback;) {
            const q_format *next = q_format_find(g->fallback);
            NEED_MSG(next && next->weights < g->weights, "%s falls back to %s", g->name, g->fallback);
            g = next;
        }
    }
    NEED(!q_format_find("q4_2") && !q_format_find("") && !q_format_find("Q4_K") && !q_format_find(NULL));
    NEED(!q_format_by_gguf(4) && !q_format_by_gguf(UINT32_MAX) && !q_format_by_gguf(255));
    NEED(q_format_by_gguf(12) == q_format_find("q4_k"));
}
END_TEST

START_TEST(row_sizes) {
    for (uint32_t i = 0; i < q_format_count(); i++) {
        const q_format *f = q_formats[i];
        const uint64_t w = (uint64_t)f->weights, head = (uint64_t)f->row_head;
        uint64_t bytes = 7;
        NEED(q_row_bytes(f, 3 * w, &bytes) && bytes == 3 * (uint64_t)f->bytes + head);
        NEED(q_row_bytes(f, 0, &bytes) && bytes == head);
        bytes = 7;
        if (w > 1) NEED(!q_row_bytes(f, 3 * w - 1, &bytes) && !q_row_bytes(f, 1, &bytes));
        NEED(!q_row_bytes(f, UINT64_MAX - UINT64_MAX % w, &bytes));
        NEED(!q_row_bytes(f, (uint64_t)1 << 62, &bytes));
        NEED(!q_row_bytes(f, (uint64_t)1 << 33, &bytes)); /* offsets in a row are ints */
        NEED_MSG(bytes == 7, "untouched on refusal");
    }
}
END_TEST

/* decode says what split says, on any bytes; where split rounds levels or integer scales, within half a step of
 * these. */
START_TEST(split_formula) {
    uint64_t seed = 1;
    for (uint32_t i = 0; i < q_format_count(); i++) {
        const q_format *f = q_formats[i];
        if (!f->split) continue;
        for (int turn = 0; turn < 200; turn++) {
            uint8_t row[4 * Q_MAX_BLOCK];
            float first[2] = {0};
            const int span = f->span > 0 ? f->span : f->weights;
            for (size_t b = 0; b < sizeof row; b++) row[b] = (uint8_t)t_rand(&seed);
            const int block = turn % 2;
            for (int sub = 0; sub < f->weights / Q_UNIT; sub++) {
                float y[Q_UNIT], d[2];
                int q[Q_UNIT], sc[2], mn[2];
                f->decode(row, block, sub, y);
                f->split(row, block, sub, q, sc, mn, d);
                if (sub * Q_UNIT % span == 0) memcpy(first, d, sizeof d);
                NEED(same_bits(d[0], first[0]) && same_bits(d[1], first[1]));
                if (!f->has_min) NEED(d[1] == 0 && mn[0] == 0 && mn[1] == 0);
                for (int k = 0; k < Q_UNIT; k++) {
                    const int g = k / 16;
                    NEED(abs(q[k]) <= 128 && abs(sc[g]) <= 255 && abs(mn[g]) <= 255);
                    const float product = (d[0] * (float)sc[g]) * (float)q[k], least = d[1] * (float)mn[g];
                    const float want = f->has_min ? product - least : product;
                    if (f->span == Q_SPAN_ROW) NEED(sc[g] == 1);
                    if (f->split_nmse > 0) {
                        const double step = fabs((double)d[0]) * (sc[0] == 1 && sc[1] == 1 ? 1 : abs(q[k]));
                        NEED_MSG(!isfinite(d[0]) || fabs((double)y[k] - (double)want) <= 0.5001 * step,
                                 "%s: weight %d of unit %d is %g, its integers say %g", f->name, k, sub, (double)y[k],
                                 (double)want);
                        continue;
                    }
                    NEED_MSG(same_bits(y[k], want), "%s: weight %d of unit %d", f->name, k, sub);
                }
            }
        }
    }
}
END_TEST

/* The value that nearest promises is the one that decode reads, and no other code comes closer. */
START_TEST(nearest_is_nearest) {
    uint64_t seed = 2;
    for (uint32_t i = 0; i < q_format_count(); i++) {
        const q_format *f = q_formats[i];
        if (f->weights == 1) continue;
        for (int turn = 0; turn < 6; turn++) {
            float x[Q_MAX_BLOCK], value[Q_MAX_BLOCK], reach[256][Q_MAX_BLOCK];
            int32_t codes[Q_MAX_BLOCK], other[Q_MAX_BLOCK];
            uint8_t row[Q_MAX_BLOCK * 4], *block = row + f->row_head;
            q_grid grid;
            const float size = turn < 3 ? 0.05f : turn == 3 ? 1e-4f : 1000.0f;
            for (int j = 0; j < f->weights; j++) x[j] = size * t_normal(&seed);
            q_fit_in in = {x, NULL, turn % 2 == 1, NULL, NULL};
            if (f->head) f->head(&in, f->weights, row);
            in.head = row;
            f->fit(&in, &grid);
            for (int c = 0; c < 256; c++) { /* what every code decodes to, out-of-range ones included */
                for (int j = 0; j < f->weights; j++) other[j] = c - 128;
                f->emit(&grid, other, block);
                q_decode_row(f, row, f->weights, reach[c]);
            }
            for (int j = 0; j < f->weights; j++) {
                x[j] *= turn == 2 ? 2.0f : 1.0f; /* beyond the range, too */
                codes[j] = f->nearest(&grid, j, x[j], &value[j]);
                double best = HUGE_VAL;
                for (int c = 0; c < 256; c++) best = fmin(best, fabs((double)x[j] - (double)reach[c][j]));
                NEED_MSG(fabs((double)x[j] - (double)value[j]) <= best, "%s: %.9g has a nearer value than %.9g",
                              f->name, (double)x[j], (double)value[j]);
            }
            float y[Q_MAX_BLOCK];
            q_format_codes(f, NULL, &grid, x, other); /* all at once, and with borders between two codes among them */
            NEED_MSG(memcmp(other, codes, sizeof *codes * (size_t)f->weights) == 0, "%s", f->name);
            for (int j = 0; j < f->weights; j++)
                y[j] = j % 3 ? x[j] : (reach[128 + j % 4][j] + reach[129 + j % 4][j]) / 2;
            if (f->weights > 1) y[1] = NAN, y[2] = INFINITY;
            q_format_codes(f, NULL, &grid, y, other);
            for (int j = 0; j < f->weights; j++) {
                float one;
                NEED_MSG(other[j] == f->nearest(&grid, j, y[j], &one), "%s: weight %d, %.9g", f->name, j, (double)y[j]);
            }
            f->emit(&grid, codes, block);
            q_decode_row(f, row, f->weights, y);
            for (int j = 0; j < f->weights; j++)
                NEED_MSG(same_bits(y[j], value[j]), "%s: nearest promised %.9g, decode reads %.9g", f->name,
                              (double)value[j], (double)y[j]);
        }
    }
}
END_TEST

/* Normal data loses at most what the bits allow, search less than the reference. */
START_TEST(error_bounds) {
    uint64_t seed = 3;
    static float x[ROW], w[ROW], y[ROW], z[ROW];
    for (int k = 0; k < ROW; k++) {
        x[k] = 0.03f * t_normal(&seed);
        w[k] = fabsf(t_normal(&seed)) + 0.01f;
    }
    for (uint32_t i = 0; i < q_format_count(); i++) {
        const q_format *f = q_formats[i];
        const coarse *few = coarse_of(f);
        const double bits = 8.0 * f->bytes / f->weights;
        const double bound = f->weights == 1 ? 1.0 / 256 : few ? few->normal : 2.6 * exp2(-bits);
        there_and_back(f, x, NULL, false, ROW, y);
        there_and_back(f, x, NULL, true, ROW, z);
        const double reference = error_of(x, y, NULL, ROW), search = error_of(x, z, NULL, ROW);
        NEED_MSG(reference <= bound, "%s: reference error %g > %g", f->name, reference, bound);
        if (f->weights == 1) NEED(search == reference);
        /* One scale for so many weights leaves little to search. */
        else
            NEED_MSG(search < (f->span == Q_SPAN_ROW ? 1.0 : 0.99) * reference, "%s: search error %g, reference %g",
                     f->name, search, reference);
        there_and_back(f, x, w, false, ROW, y);
        there_and_back(f, x, w, true, ROW, z);
        const double ours = error_of(x, z, w, ROW), without = error_of(x, y, w, ROW);
        NEED_MSG(ours <= without, "%s: weighted error %g, reference %g", f->name, ours, without);
        if (f->weights > 1) { /* importance buys accuracy where it says */
            there_and_back(f, x, NULL, true, ROW, y);
            NEED_MSG(ours < error_of(x, y, w, ROW), "%s: importance bought nothing", f->name);
        }
    }
}
END_TEST

/* One block at a time, search is never worse than the reference: whatever the block, whatever the weights. */
START_TEST(search_never_loses) {
    uint64_t seed = 4;
    float x[Q_MAX_BLOCK], w[Q_MAX_BLOCK], y[Q_MAX_BLOCK], z[Q_MAX_BLOCK];
    for (int turn = 0; turn < 60; turn++) {
        for (int k = 0; k < Q_MAX_BLOCK; k++) {
            const float v = t_normal(&seed);
            x[k] = turn % 4 == 0 ? v : turn % 4 == 1 ? v * v * v : turn % 4 == 2 ? v + 3.0f : (float)(k % 7) - 3.0f;
            w[k] = turn % 3 == 0 ? fabsf(v) : turn % 3 == 1 ? (k % 5 == 0 ? 1000.0f : 0.001f) : (float)(k >= 100);
        }
        for (uint32_t i = 0; i < q_format_count(); i++) {
            const q_format *f = q_formats[i];
            there_and_back(f, x, w, false, Q_MAX_BLOCK, y);
            there_and_back(f, x, w, true, Q_MAX_BLOCK, z);
            const double a = error_of(x, y, w, Q_MAX_BLOCK), b = error_of(x, z, w, Q_MAX_BLOCK);
            NEED_MSG(b <= a * (1 + 1e-5) + 1e-6, "%s, turn %d: search %g > reference %g", f->name, turn, b, a);
        }
    }
}
END_TEST

static const char *const kinds[] = {"zero", "minus zero", "constant", "negative constant", "subnormal", "tiny", "huge",
                                    "huge and one sign", "outlier", "half's end", "all magnitudes", "one value"};
static float special(int kind, int k, uint64_t *seed) {
    const float v = t_uniform(seed);
    switch (kind) {
    case 0: return 0.0f;
    case 1: return -0.0f;
    case 2: return 0.75f;
    case 3: return -0.3f;
    case 4: return q_bits_f32((uint32_t)t_rand(seed) & 0x807FFFFFu);
    case 5: return v * 1e-9f;
    case 6: return k % 2 ? FLT_MAX : -FLT_MAX;
    case 7: return FLT_MAX * fabsf(v);
    case 8: return k % 32 == 5 ? 1000.0f : v;
    case 9: return v * 65504.0f;
    case 10: return v * ldexpf(1.0f, k % 250 - 125);
    default: return k == 17 ? -2.5f : 0.0f;
    }
}

START_TEST(special_blocks) {
    uint64_t seed = 5;
    float x[Q_MAX_BLOCK], y[Q_MAX_BLOCK], w[4][Q_MAX_BLOCK];
    for (int k = 0; k < Q_MAX_BLOCK; k++) {
        w[0][k] = 0.0f;
        w[1][k] = k % 3 ? FLT_MAX : 1e-40f;
        w[2][k] = k % 3 == 0 ? INFINITY : k % 3 == 1 ? NAN : 1.0f;
        w[3][k] = -1.0f;
    }
    for (uint32_t i = 0; i < q_format_count(); i++) {
        const q_format *f = q_formats[i];
        for (int kind = 0; kind < (int)Q_COUNT(kinds); kind++) {
            for (int k = 0; k < Q_MAX_BLOCK; k++) x[k] = special(kind, k, &seed);
            for (int way = 0; way < 6; way++) {
                there_and_back(f, x, way < 2 ? NULL : w[way - 2], way > 0, Q_MAX_BLOCK, y);
                for (int k = 0; k < Q_MAX_BLOCK; k++) {
                    NEED_MSG(isfinite(y[k]), "%s, %s: %g became %g", f->name, kinds[kind], (double)x[k],
                                  (double)y[k]);
                    if (kind < 2) NEED_MSG(y[k] == 0.0f, "%s, %s: %g", f->name, kinds[kind], (double)y[k]);
                    /* Within 1 %: a constant, an outlier, a lone value. An out-of-range scale still gives the sign. */
                    const bool sharp = kind == 2 || kind == 3 || (kind == 8 && k % 32 == 5) || (kind == 11 && k == 17);
                    const double miss = coarse_of(f) ? coarse_of(f)->same : 0.012;
                    if (sharp && way < 2)
                        NEED_MSG(fabs((double)(y[k] / x[k]) - 1) < (way ? fmax(0.1, miss) : miss),
                                 "%s, %s: %g became %g", f->name, kinds[kind], (double)x[k], (double)y[k]);
                    if (kind == 6 && way < 2) NEED(f->has_min ? y[k] <= 0 || x[k] > 0 : (y[k] > 0) == (x[k] > 0));
                }
            }
        }
    }
}
END_TEST

/* Formats of single values take any length, and read and write nothing beyond it. */
START_TEST(ragged_rows) {
    uint64_t seed = 6;
    for (uint32_t i = 0; i < q_format_count(); i++) {
        const q_format *f = q_formats[i];
        if (f->weights != 1) continue;
        for (int n = 0; n <= 70; n++) {
            const size_t bytes = (size_t)n * (size_t)f->bytes;
            float x[70], y[72], whole[96];
            uint8_t padded[96 * 4] = {0}, *row = malloc(bytes + 1), *exact = malloc(bytes ? bytes : 1);
            for (int k = 0; k < n; k++) x[k] = t_normal(&seed);
            row[bytes] = 0xA5;
            y[n] = 123.0f;
            q_encode_row(f, x, NULL, false, n, row);
            NEED(row[bytes] == 0xA5);
            memcpy(exact, row, bytes); /* the sanitizer watches its end */
            q_decode_row(f, exact, n, y);
            NEED(y[n] == 123.0f);
            memcpy(padded, row, bytes);
            q_decode_row(f, padded, 96, whole);
            for (int k = 0; k < n; k++)
                NEED(same_bits(y[k], whole[k]) && fabsf(y[k] - x[k]) <= fabsf(x[k]) / 256);
            free(row);
            free(exact);
        }
    }
}
END_TEST

/* Single values: the nearest that the format holds, and what overflows becomes the largest finite one. */
START_TEST(single_values) {
    static const float in[] = {0.0f, -0.0f, 1.0f, 65504.0f, 65519.0f, 65536.0f, FLT_MAX, -FLT_MAX, 1e-7f, -1e-40f};
    static const float half[] = {0.0f, -0.0f, 1.0f, 65504.0f, 65504.0f, 65504.0f, 65504.0f, -65504.0f, 0x1p-23f, -0.0f};
    const float top = q_bits_f32(0x7F7F0000u);
    float y[Q_COUNT(in)];
    uint8_t row[sizeof in];
    q_encode_row(q_format_find("f32"), in, NULL, false, Q_COUNT(in), row);
    q_decode_row(q_format_find("f32"), row, Q_COUNT(in), y);
    NEED(memcmp(in, y, sizeof in) == 0);
    q_encode_row(q_format_find("f16"), in, NULL, false, Q_COUNT(in), row);
    q_decode_row(q_format_find("f16"), row, Q_COUNT(in), y);
    for (size_t k = 0; k < Q_COUNT(in); k++) NEED_MSG(same_bits(y[k], half[k]), "f16 of %g", (double)in[k]);
    q_encode_row(q_format_find("bf16"), in, NULL, false, Q_COUNT(in), row);
    q_decode_row(q_format_find("bf16"), row, Q_COUNT(in), y);
    NEED(y[6] == top && y[7] == -top && y[2] == 1.0f && y[5] == 65536.0f);
}
END_TEST

/* The reference encoders of the simple formats are the published ones, to the byte. */
START_TEST(reference_encoders) {
    float x[64], y[64];
    uint8_t block[80];
    for (int k = 0; k < 64; k++) x[k] = (float)(k % 32 - 20) * 0.25f; /* -5 .. 2.75; the largest magnitude is -5 */
    q_encode_row(q_format_find("q4_0"), x, NULL, false, 32, block);
    NEED(q_load16(block) == q_f32_to_half(0.625f) && (block[2] & 15) == 0 && block[2] >> 4 == 6);
    q_encode_row(q_format_find("q8_0"), x, NULL, false, 32, block);
    NEED(q_load16(block) == q_f32_to_half(5.0f / 127) && (int8_t)block[2] == -127);
    q_encode_row(q_format_find("q4_1"), x, NULL, false, 32, block);
    NEED(q_load16(block) == q_f32_to_half(7.75f / 15) && q_load16(block + 2) == q_f32_to_half(-5.0f));
    NEED((block[4] & 15) == 0 && block[19] >> 4 == 15);
    q_encode_row(q_format_find("q5_0"), x, NULL, false, 32, block);
    NEED(q_load16(block) == q_f32_to_half(5.0f / 16));
    q_encode_row(q_format_find("nf4"), x, NULL, false, 64, block);
    NEED(q_bits_f32(q_load32(block)) == 5.0f && block[4] >> 4 == 0); /* the first weight is in the high nibble */
    q_decode_row(q_format_find("nf4"), block, 64, y);
    NEED(y[0] == -5.0f && y[20] == 0.0f);
    q_encode_row(q_format_find("i8_row"), x, NULL, false, 64, block);
    NEED(q_bits_f32(q_load32(block)) == 5.0f / 127 && (int8_t)block[4] == -127 && (int8_t)block[4 + 20] == 0);
    q_encode_row(q_format_find("i4_g32"), x, NULL, false, 32, block); /* 5 * 15 / 7.75 = 9.7 */
    NEED(q_load16(block) == q_f32_to_half(7.75f / 15) && block[2] == 10 && (block[4] & 15) == 0 &&
         block[19] >> 4 == 15);
    for (int k = 0; k < 64; k++) x[k] += 9.0f; /* 4 .. 11.75: the range is widened to zero */
    q_encode_row(q_format_find("i4_row"), x, NULL, false, 64, block);
    NEED(q_load16(block) == q_f32_to_half(11.75f / 15) && block[2] == 0 && (block[4] & 15) == 5);
    for (int k = 0; k < 64; k++) x[k] = (float)(k % 32 - 20) * 0.25f;
    q_encode_row(q_format_find("mxfp4"), x, NULL, false, 32, block); /* 5 = 2^2 * 1.25: e counts 1 */
    NEED(block[0] == 127 && (block[1] & 15) == 15 && block[16] >> 4 == 5 && (block[5] >> 4) == 0);
    q_encode_row(q_format_find("nvfp4"), x, NULL, false, 64, block); /* 5 / 6 in eighths of a power of two: 13 / 16 */
    NEED(block[0] == (6 << 3 | 5) && (block[4] & 15) == 15);
    for (int k = 0; k < 64; k++) x[k] += 9.0f;
    /* A tie takes the lower level: half way between 0 and the next. */
    for (int k = 0; k < 64; k++) x[k] = k == 0 ? 1.0f : 0.07958029955625534f / 2;
    q_encode_row(q_format_find("nf4"), x, NULL, false, 64, block);
    NEED(block[4] == (15 << 4 | 7));
}
END_TEST

/* Three values of any scale come back, in every place; and the bytes are those that other programs write (goldens). */
START_TEST(ternary) {
    uint64_t seed = 8;
    float x[256], y[256];
    for (int turn = 0; turn < 50; turn++) {
        for (int k = 0; k < 256; k++) x[k] = (float)((int)(t_rand(&seed) % 3) - 1) * (turn % 2 ? 0.5f : 3.0f);
        for (int f = 0; f < 4; f++) {
            there_and_back(q_format_find(f & 1 ? "tq1_0" : "tq2_0"), x, NULL, f > 1, 256, y);
            NEED(memcmp(x, y, sizeof x) == 0);
        }
    }
}
END_TEST

/* A codebook rounded to integers costs what its record says, on normally distributed weights. */
START_TEST(rounded_levels) {
    enum { N = 64 * ROW };
    uint64_t seed = 7, bytes;
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    for (int k = 0; k < N; k++) x[k] = 0.02f * t_normal(&seed);
    for (uint32_t i = 0; i < q_format_count(); i++) {
        const q_format *f = q_formats[i];
        if (!(f->split_nmse > 0)) continue;
        NEED(q_row_bytes(f, N, &bytes));
        uint8_t *row = malloc((size_t)bytes);
        q_encode_row(f, x, NULL, false, N, row);
        q_decode_row(f, row, N, y);
        double moved = 0, norm = 0;
        for (int u = 0; u < N / Q_UNIT; u++) {
            int q[Q_UNIT], sc[2], mn[2];
            float d[2];
            const int units = f->weights / Q_UNIT;
            f->split(row, u / units, u % units, q, sc, mn, d);
            for (int k = 0; k < Q_UNIT; k++) {
                const double w = (double)x[u * Q_UNIT + k];
                const double r = (double)d[0] * sc[k / 16] * q[k] - (double)y[u * Q_UNIT + k];
                moved += r * r, norm += w * w;
            }
        }
        const double states = (double)f->split_nmse;
        const bool exact = moved == 0 && strcmp(f->name, "nvfp4") == 0; /* it is where neighbours have like scales */
        NEED_MSG(moved / norm <= states && (exact || moved / norm >= states / 2),
                 "%s: rounded levels move weights by %g, not %g", f->name, moved / norm, states);
        free(row);
    }
    free(x), free(y);
}
END_TEST

START_TEST(not_a_number) {
    for (uint32_t i = 0; i < q_format_count(); i++) {
        const q_format *f = q_formats[i];
        float x[Q_MAX_BLOCK], value;
        uint8_t row[4 * Q_MAX_BLOCK], *block = row + f->row_head;
        int32_t codes[Q_MAX_BLOCK];
        q_grid grid;
        for (int k = 0; k < f->weights; k++) x[k] = (float)(k % 9) - 4.0f;
        q_fit_in in = {x, NULL, false, row, NULL};
        if (f->head) f->head(&in, f->weights, row);
        f->fit(&in, &grid);
        if (f->weights == 1) continue;
        const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX};
        for (int k = 0; k < f->weights; k++) {
            codes[k] = f->nearest(&grid, k, odd[(size_t)k % Q_COUNT(odd)], &value);
            NEED_MSG(isfinite(value), "%s", f->name);
        }
        f->emit(&grid, codes, block);
        q_decode_row(f, row, f->weights, x);
        for (int k = 0; k < f->weights; k++) NEED(isfinite(x[k]));
    }
}
END_TEST

static size_t unhex(const char *text, uint8_t *out, size_t cap) {
    size_t n = 0;
    unsigned byte;
    for (; text[0] && text[1] && n < cap && sscanf(text, "%2x", &byte) == 1; text += 2) out[n++] = (uint8_t)byte;
    return n;
}

START_TEST(goldens) {
    char path[4096], name[16], hex[2048], digest[32], what[64];
    int count, lines = 0;
    bool seen[64] = {false};
    snprintf(path, sizeof path, "%s/tests/golden/formats.txt", t_root());
    FILE *in = fopen(path, "r");
    NEED_MSG(in != NULL, "%s", path);
    while (fscanf(in, "%15s %d %2047s %31s", name, &count, hex, digest) == 4) {
        uint8_t row[1024];
        float y[256];
        uint64_t bytes;
        const q_format *f = q_format_find(name);
        NEED_MSG(f && count <= 256 && q_row_bytes(f, (uint64_t)count, &bytes), "line %d: %s", lines + 1, name);
        ck_assert_uint_eq(unhex(hex, row, sizeof row), bytes);
        q_decode_row(f, row, count, y);
        snprintf(what, sizeof what, "%016llx", (unsigned long long)q_fnv64(y, (size_t)count * sizeof *y));
        NEED_MSG(strcmp(what, digest) == 0, "line %d: %s decodes to other values", lines + 1, name);
        for (uint32_t i = 0; i < q_format_count() && i < Q_COUNT(seen); i++) seen[i] |= q_formats[i] == f;
        lines++;
    }
    fclose(in);
    for (uint32_t i = 0; i < q_format_count() && i < Q_COUNT(seen); i++)
        NEED_MSG(seen[i], "no golden blocks for %s in tests/golden/formats.txt", q_formats[i]->name);
}
END_TEST

static Suite *make_suite(void) {
    Suite *s = suite_create("formats");
    TCase *t = tcase_create("formats");
    tcase_add_test(t, halves);
    tcase_add_test(t, bfloats);
    tcase_add_test(t, table);
    tcase_add_test(t, row_sizes);
    tcase_add_test(t, split_formula);
    tcase_add_test(t, nearest_is_nearest);
    tcase_add_test(t, error_bounds);
    tcase_add_test(t, search_never_loses);
    tcase_add_test(t, special_blocks);
    tcase_add_test(t, ragged_rows);
    tcase_add_test(t, single_values);
    tcase_add_test(t, reference_encoders);
    tcase_add_test(t, ternary);
    tcase_add_test(t, rounded_levels);
    tcase_add_test(t, not_a_number);
    tcase_add_test(t, goldens);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(make_suite)
