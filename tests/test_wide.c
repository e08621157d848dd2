/* test_wide.c: the loops of quantizing and of choosing tokens: every record for wider registers gives the bits of the
 * portable one, function by function, format by format and in whole files; and an instruction set that is masked is not
 * used. */
#include "harness.h"

#include <float.h>
#include <math.h>

#include "../include/libquant.h"
#include "../kernels/cpu/choose.h"
#include "../libquant/file.h"

enum { N = 512 };

static const q_cpu_kernel *wide_line(uint32_t i) {
    const q_cpu_kernel *k = &q_cpu_kernels[i];
    return k->wide && q_isa_present(k->isa) ? k : NULL;
}
#define EACH_WIDE(k)                                          \
    for (uint32_t k##_i = 0; k##_i < q_cpu_kernel_count(); k##_i++) \
        for (const q_cpu_kernel *k = wide_line(k##_i); k; k = NULL)

/* Kinds of blocks: normal; of all magnitudes; with zeros of both signs; with outliers; of one sign; on a grid, so that
 * values lie on borders; all equal; far from zero and close together; at or above zero. */
enum { KINDS = 9 };
static void fill(float *x, int n, int kind, uint64_t *seed) {
    for (int i = 0; i < n; i++) {
        float v = t_normal(seed);
        if (kind == 1) v *= ldexpf(1.0f, (int)(t_rand(seed) % 240) - 135);
        if (kind == 2 && i / 16 % 3 != 1) v = t_rand(seed) & 1 ? 0.0f : -0.0f;
        if (kind == 3 && t_rand(seed) % 64 == 0) v *= 100;
        if (kind == 4) v = fabsf(v) + 1;
        if (kind == 5) v = (float)(int)(v * 8) / 16;
        if (kind == 6) v = -0.75f;
        if (kind == 7) v = v / 1024 + 3;
        if (kind == 8) v = t_rand(seed) % 4 ? fabsf(v) : t_rand(seed) & 1 ? 0.0f : -0.0f;
        x[i] = v;
    }
}

static bool same(const void *a, const void *b, size_t n) { return memcmp(a, b, n) == 0; }

static void check_sums(const q_cpu_kernel *k, uint64_t *seed) {
    enum { TRIES = 40 };
    for (int round = 0; round < 4 * KINDS; round++) {
        q_wide_block b = {.n = 16 << round % 5, .with_min = round & 1, .with_book = round % 4 == 0,
                          .lo = round & 1 ? 0 : -8, .hi = 15};
        q_wide_try tries[TRIES];
        q_wide_sums want[TRIES], got[TRIES];
        fill(b.x, Q_MAX_BLOCK, round % KINDS, seed);
        for (int i = 0; i < Q_MAX_BLOCK; i++) b.w[i] = round & 2 ? fabsf(t_normal(seed)) : 1.0f;
        for (int i = 0; i < 16; i++) b.book[i] = (float)(i - 7) * fabsf((float)i - 6.5f) / 60;
        for (int i = 0; i < 16; i++) b.mid[i] = i < 15 ? (b.book[i] + b.book[i + 1]) * 0.5f : HUGE_VALF;
        for (int i = 0; i < TRIES; i++)
            tries[i] = (q_wide_try){(int32_t)(t_rand(seed) % (uint64_t)(Q_MAX_BLOCK / b.n)),
                                    i ? t_normal(seed) * 0.2f : 0.0f, b.with_min ? t_normal(seed) : 0.0f};
        q_wide_any.sums(&b, tries, TRIES, want);
        k->wide->sums(&b, tries, TRIES, got);
        for (int i = 0; i < TRIES; i++)
            ck_assert_msg(same(&want[i], &got[i], (b.with_min ? 5 : 3) * sizeof(float)), "%s: sums, round %d, try %d",
                          k->name, round, i);
    }
}

static void check_blocks(const q_cpu_kernel *k, uint64_t *seed) {
    for (int round = 0; round < 20 * KINDS; round++) {
        float x[N], want[N], got[N], lo[2][N / 16], hi[2][N / 16];
        int32_t codes[2][N];
        const int n = 16 << round % 5, groups = N / n;
        fill(x, N, round % KINDS, seed);
        q_wide_any.extremes(x, groups, n, lo[0], hi[0]);
        k->wide->extremes(x, groups, n, lo[1], hi[1]);
        ck_assert_msg(same(lo[0], lo[1], sizeof(float) * (size_t)groups) &&
                          same(hi[0], hi[1], sizeof(float) * (size_t)groups),
                      "%s: extremes, round %d", k->name, round);
        q_wide_any.multiply(x, N, 0x1p-9f, want);
        k->wide->multiply(x, N, 0x1p-9f, got);
        ck_assert_msg(same(want, got, sizeof want), "%s: multiply, round %d", k->name, round);
        if (round % 3 == 0) x[t_rand(seed) % N] = round % 2 ? NAN : -INFINITY;
        const float scale = t_normal(seed) * 0.1f + 0.5f, min = round & 1 ? t_normal(seed) : 0.0f;
        for (int g = 0; g < groups; g++) {
            const bool plain = q_wide_any.codes(x + g * n, n, scale, min, -8, 15, codes[0] + g * n);
            const bool ours = k->wide->codes(x + g * n, n, scale, min, -8, 15, codes[1] + g * n);
            ck_assert_msg(plain == ours, "%s: codes, round %d: %d", k->name, round, ours);
        }
        ck_assert_msg(same(codes[0], codes[1], sizeof codes[0]), "%s: codes, round %d", k->name, round);
    }
}

static void check_rows(const q_cpu_kernel *k, uint64_t *seed) {
    static float x[N + 8], y[N + 8];
    for (int n = 0; n <= 70; n++) { /* finite: a value at any place */
        for (int i = 0; i < n; i++) x[i] = 3e37f * t_normal(seed);
        ck_assert_msg(k->wide->finite(x, n), "%s: %d values are finite", k->name, n);
        for (int i = 0; i < n; i++) {
            const float was = x[i];
            x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
            ck_assert_msg(!k->wide->finite(x, n), "%s: value %d of %d is not finite", k->name, i, n);
            x[i] = was;
        }
    }
    for (int round = 0; round < 64; round++) {
        double want[2] = {0, 0}, got[2] = {0, 0};
        fill(x, N, round % KINDS == 1 ? 0 : round % KINDS, seed);
        for (int i = 0; i < N; i++) y[i] = x[i] + t_normal(seed) / 64;
        const int at = (int)(t_rand(seed) % N);
        if (round % 4 == 1) y[at] = INFINITY;
        if (round % 4 == 2) x[at] = -70000.0f;
        const bool a = q_wide_any.errors(x, y, N, want), b = k->wide->errors(x, y, N, got);
        ck_assert_msg(a == b && b == (round % 4 == 1 || round % 4 == 2), "%s: errors say %d in round %d", k->name, b,
                      round);
        ck_assert_msg(round % 4 == 1 || same(want, got, sizeof want), "%s: errors, round %d", k->name, round);
        float w[2][Q_WIDE_COLUMNS];
        fill(w[0], Q_WIDE_COLUMNS, 0, seed);
        memcpy(w[1], w[0], sizeof w[0]);
        q_wide_any.subtract(w[0], x, 8, y, round % 33);
        k->wide->subtract(w[1], x, 8, y, round % 33);
        ck_assert_msg(same(w[0], w[1], sizeof w[0]), "%s: subtract, round %d", k->name, round);
    }
}

START_TEST(functions_equal_the_portable_ones) {
    uint64_t seed = 1;
    EACH_WIDE(k) {
        check_sums(k, &seed);
        check_blocks(k, &seed);
        check_rows(k, &seed);
    }
}
END_TEST

/* Move the values of each block but its extremes to the middle of two that the format decodes to, or next to it:
 * whether rounding goes up or down there hangs on the last bit. */
static void to_borders(const q_format *f, float *x, int64_t n, uint64_t *seed) {
    static float y[1024];
    static uint8_t row[1024 * 4 + 64];
    q_encode_row(f, x, NULL, false, n, row);
    q_decode_row(f, row, n, y);
    for (int64_t at = 0; at < n; at += f->weights) {
        int64_t low = at, high = at;
        for (int64_t i = at; i < at + f->weights; i++) {
            if (x[i] < x[low]) low = i;
            if (x[i] > x[high]) high = i;
        }
        for (int64_t i = at; i < at + f->weights; i++) {
            const float a = y[i], b = y[at + (int64_t)(t_rand(seed) % (uint64_t)f->weights)];
            float v = (float)(((double)a + (double)b) / 2);
            for (uint64_t step = t_rand(seed) % 4; step > 0; step--) v = nextafterf(v, t_rand(seed) & 1 ? a : b);
            if (i != low && i != high && v >= x[low] && v <= x[high]) x[i] = v;
        }
    }
}

START_TEST(rows_rounded_to_nearest_equal_the_portable_ones) {
    enum { K = 1024, ROUNDS = 120 };
    uint64_t seed = 3;
    static float x[K];
    static uint8_t row[2][K * 4 + 64];
    uint32_t quick = 0;
    EACH_WIDE(k)
    for (uint32_t i = 0; i < q_format_count(); i++) {
        const q_format *f = q_formats[i];
        q_fit_in in = {.x = x, .head = row[1], .wide = k->wide};
        if (!k->wide->encode(f, &in, 0, row[1])) continue;
        quick++;
        for (int round = 0; round < ROUNDS; round++) { /* rows of any number of blocks */
            const int64_t n = (K / f->weights - (f->weights > 1 ? round % 11 : round)) * f->weights;
            uint64_t bytes;
            ck_assert(q_row_bytes(f, (uint64_t)n, &bytes) && bytes <= sizeof row[0]);
            fill(x, K, round % KINDS, &seed);
            if (round % 7 == 3) /* scales beyond halves, or below them, beside plain ones */
                for (int j = 0; j < K; j++) x[j] *= j / 64 % 3 == 0 ? 1e9f : j / 64 % 3 == 1 ? 1e-7f : 1.0f;
            if (round % 5 == 4) memset(x + 128, 0, 64 * sizeof *x);
            if (f->weights > 1 && round % 2 == 1) to_borders(f, x, n, &seed);
            if (round % 13 == 8) x[t_rand(&seed) % (uint64_t)n] = FLT_MAX;
            for (int j = 0; j < K && round % 13 == 9; j++) x[j] *= 0x1p-133f;
            for (int r = 0; r < 2; r++) {
                in = (q_fit_in){.x = x, .wide = r ? k->wide : NULL};
                memset(row[r], 0xA5, sizeof row[r]);
                q_encode_row_of(f, &in, n, row[r]);
            }
            ck_assert_msg(same(row[0], row[1], sizeof row[0]), "%s: %s, round %d", k->name, f->name, round);
        }
    }
    if (quick == 0) T_SKIP("wide: no instruction set here encodes rows by itself");
}
END_TEST

/* Rows of every format: any bits decode alike, any values encode alike. */
START_TEST(formats_equal_the_portable_ones) {
    enum { K = 1024 };
    uint64_t seed = 2;
    static float x[K], w[K], y[2][K];
    static uint8_t row[2][K * 4 + 64];
    EACH_WIDE(k)
    for (uint32_t i = 0; i < q_format_count(); i++)
        for (int round = 0; round < 4 * KINDS; round++) {
            const q_format *f = q_formats[i];
            const int64_t n = f->weights > 1 ? K : K - round;
            uint64_t bytes;
            ck_assert(q_row_bytes(f, (uint64_t)n, &bytes) && bytes <= sizeof row[0]);
            for (uint64_t j = 0; j < bytes; j++) row[0][j] = (uint8_t)t_rand(&seed);
            q_decode_row(f, row[0], n, y[0]);
            k->wide->decode(f, row[0], n, y[1]);
            for (int64_t j = 0; j < n; j++)
                ck_assert_msg(q_f32_bits(y[0][j]) == q_f32_bits(y[1][j]) || (isnan(y[0][j]) && isnan(y[1][j])),
                              "%s: %s, weight %d of %d", k->name, f->name, (int)j, (int)n);
            fill(x, K, round % KINDS, &seed);
            for (int j = 0; j < K; j++) w[j] = t_rand(&seed) % 8 ? fabsf(t_normal(&seed)) : 0.0f;
            const bool search = round & 1;
            q_fit_in in = {.x = x, .weight = round & 2 ? w : NULL, .search = search};
            for (int r = 0; r < 2; r++) {
                in.wide = r ? k->wide : NULL;
                memset(row[r], 0, sizeof row[r]);
                q_encode_row_of(f, &in, n, row[r]);
            }
            ck_assert_msg(same(row[0], row[1], bytes), "%s: %s, round %d", k->name, f->name, round);
        }
}
END_TEST

/* Rows of every length up to two spans and a half; values beyond the last are not touched. */
START_TEST(peaks_and_exps_equal_the_portable_ones) {
    enum { ROW = 2 * Q_WIDE_SPAN + 133 };
    static float x[ROW], y[2][ROW + 1], most[2][3], e[2][ROW + 1], sums[2][3];
    uint64_t seed = 12;
    EACH_WIDE(k)
    for (int n = 1; n <= ROW; n += n < 40 ? 1 : 7) {
        fill(x, ROW, n % KINDS, &seed);
        for (int i = 0; i < n; i++) x[i] = t_rand(&seed) % 9 ? x[i] * 30 : -INFINITY;
        x[n / 2] = fabsf(t_normal(&seed));
        float best = x[0];
        for (int i = 1; i < n; i++) best = Q_MAX(best, x[i]);
        for (int r = 0; r < 2; r++) {
            const q_wide *w = r ? k->wide : &q_wide_any;
            y[r][n] = e[r][n] = 77;
            ck_assert(w->peaks(x, n, y[r], most[r]));
            w->exps(x, n, best, 2.5f, e[r], sums[r]);
            ck_assert_msg(same(x, y[r], (uint64_t)n * sizeof *x) && y[r][n] == 77.0f && e[r][n] == 77.0f,
                          "%s: %d values", k->name, n);
        }
        for (int i = 0; i < q_wide_spans(n); i++)
            ck_assert_msg(most[0][i] == most[1][i] && q_f32_bits(sums[0][i]) == q_f32_bits(sums[1][i]),
                          "%s: span %d of %d values", k->name, i, n);
        ck_assert_msg(same(e[0], e[1], (uint64_t)n * sizeof *x), "%s: powers of %d values", k->name, n);
        k->wide->exps(x, n, best, 2.5f, NULL, sums[0]);
        ck_assert(same(sums[0], sums[1], (uint64_t)q_wide_spans(n) * sizeof(float)));
        const int bad = (int)(t_rand(&seed) % (uint64_t)n);
        for (int r = 0; r < 4; r++) {
            x[bad] = r & 1 ? NAN : INFINITY;
            ck_assert((r & 2 ? k->wide : &q_wide_any)->peaks(x, n, NULL, most[0]) == false);
        }
    }
}
END_TEST

START_TEST(powers_are_exact_enough) {
    double worst = 0;
    for (int i = 0; i < 200000; i++) {
        const float x = -88.0f * (float)i / 200000;
        const double want = x > -87.0f ? exp((double)x) : 0, got = (double)q_wide_exp(x);
        worst = fmax(worst, want > 0 ? fabs(got - want) / want : got);
    }
    ck_assert_double_lt(worst, 2.5e-7);
    ck_assert(q_wide_exp(0) == 1.0f && q_wide_exp(-INFINITY) == 0.0f);
}
END_TEST

/* Files, by a context that may use all that is here and by one that may not. */
START_TEST(files_equal_the_scalar_ones) {
    static const char *const schemes[] = {"q4_k_m", "q8_0", "iq4_nl"};
    char src[4096], path[2][4096];
    t_path(src, sizeof src, t_root(), "bench/data/pocket");
    for (size_t s = 0; s < (T_SLOW ? 1 : Q_COUNT(schemes)); s++) {
        uint8_t *bytes[2];
        uint64_t n[2];
        for (int i = 0; i < 2; i++) {
            const lq_options o = {.size = sizeof o, .isa = i ? NULL : "scalar", .threads = 2};
            const lq_quantize_options q = {.size = sizeof q, .scheme = schemes[s], .force = 1};
            lq_ctx *ctx;
            ck_assert_int_eq(lq_open(&o, &ctx), LQ_OK);
            t_path(path[i], sizeof path[i], t_tmp(), i ? "wide.gguf" : "scalar.gguf");
            ck_assert_msg(lq_quantize(ctx, src, path[i], &q, NULL) == LQ_OK, "%s", lq_error_detail());
            lq_close(ctx);
            ck_assert_int_eq(q_file_slurp(&q_alloc_libc, path[i], 1 << 28, &bytes[i], &n[i]), LQ_OK);
        }
        ck_assert_msg(n[0] == n[1] && same(bytes[0], bytes[1], n[0]), "%s: other bytes", schemes[s]);
        for (int i = 0; i < 2; i++) q_delete(&q_alloc_libc, bytes[i]);
    }
}
END_TEST

START_TEST(masks_are_obeyed) {
    int lines = 0;
    ck_assert_ptr_null(q_cpu_choose_wide(Q_ISAS_scalar));
    ck_assert_ptr_eq(q_wide_of(NULL), &q_wide_any);
    EACH_WIDE(k) {
        ck_assert_ptr_eq(q_cpu_choose_wide(q_isa_with[k->isa]), k->wide);
        lines++;
    }
    if (lines == 0) T_SKIP("wide: no instruction set here has loops of its own");
}
END_TEST

static Suite *wide_suite(void) {
    Suite *s = suite_create("wide");
    TCase *c = tcase_create("wide");
    tcase_add_test(c, functions_equal_the_portable_ones);
    tcase_add_test(c, formats_equal_the_portable_ones);
    tcase_add_test(c, rows_rounded_to_nearest_equal_the_portable_ones);
    tcase_add_test(c, peaks_and_exps_equal_the_portable_ones);
    tcase_add_test(c, powers_are_exact_enough);
    tcase_add_test(c, files_equal_the_scalar_ones);
    tcase_add_test(c, masks_are_obeyed);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(wide_suite)
