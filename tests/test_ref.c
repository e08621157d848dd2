/* test_ref.c: each reference operation against a double-precision computation written here from op.h.
 *
 * Every operation is run whole and again in ragged chunks of its units, which must give the same bits; slots, state,
 * page pools and scratch have exactly their stated size, so that a sanitizer sees any step outside. Attention and
 * experts are in test_ref_attn.c, the sampler in test_ref_sample.c. */
#include <math.h>

#include "../kernels/ref/ref.h"
#include "harness.h"
#include "help_ref.h"

/* ------------------------------------------------------------------------------------------------------- products */

/* op.h's dot, written from its words. */
static float stated_dot(const float *a, const float *b, int k) {
    float lane[16];
    for (int l = 0; l < 16; l++) {
        lane[l] = 0;
        for (int i = l; i < k; i += 16) lane[l] = fmaf(a[i], b[i], lane[l]);
    }
    for (int l = 0; l < 8; l++) lane[l] = lane[l] + lane[l + 8];
    for (int l = 0; l < 4; l++) lane[l] = lane[l] + lane[l + 4];
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

/* op.h's idot, written from its words. */
static float stated_idot(const q_weight *w, int matrix, int row, const q_act *act, const float *x) {
    const q_format *f = w->format;
    const uint8_t *bytes = w->data + (uint64_t)matrix * w->matrix_bytes + (uint64_t)row * w->row_bytes;
    const int block = act->weights ? act->weights : w->k, span = (int)q_format_span(f, w->k);
    uint8_t *xq = malloc((size_t)q_act_bytes(act, w->k));
    act->quantize(x, w->k, xq);
    const int step = span < block ? span : block;
    float acc = 0;
    for (int at = 0; at < w->k; at += step) {
        int32_t isum = 0, msum = 0;
        float d[2] = {0}, da = 0;
        for (int i = at; i < at + step; i++) {
            int q[32], sc[2], mn[2];
            f->split(bytes, i / f->weights, i % f->weights / 32, q, sc, mn, d);
            int a;
            if (act == &q_act_a8_32) {
                const q_a8_32 *b = (const q_a8_32 *)(const void *)xq + i / 32;
                a = b->q[i % 32], da = b->d;
            } else if (act == &q_act_a8_row) { /* d, a sum per 16, codes */
                a = ((const int8_t *)xq)[4 + w->k / 8 + i], memcpy(&da, xq, 4);
            } else {
                const q_a8_256 *b = (const q_a8_256 *)(const void *)xq + i / 256;
                a = b->q[i % 256], da = b->d;
            }
            isum += sc[i % 32 / 16] * q[i % 32] * a;
            msum += mn[i % 32 / 16] * a;
        }
        acc = fmaf(d[0] * da, (float)isum, acc);
        if (f->has_min) acc = fmaf(-(d[1] * da), (float)msum, acc);
    }
    free(xq);
    return acc;
}

static double plain_dot(const float *a, const float *b, int k) {
    double sum = 0;
    for (int i = 0; i < k; i++) sum += (double)a[i] * b[i];
    return sum;
}

START_TEST(act_rounding) {
    float x[256] = {0};
    q_a8_32 b;
    x[0] = 127, x[1] = 0.5f, x[2] = 1.5f, x[3] = 2.5f, x[4] = -0.5f, x[5] = -1.5f, x[6] = 126.6f, x[20] = -127;
    q_act_a8_32.quantize(x, 32, &b);
    ck_assert_float_eq(b.d, 1.0f);
    const int want[] = {127, 0, 2, 2, 0, -2, 127, 0};
    for (int i = 0; i < 8; i++) ck_assert_int_eq(b.q[i], want[i]); /* ties to even */
    ck_assert_int_eq(b.q[20], -127);
    ck_assert_int_eq(b.sum[0], 127 + 2 + 2 - 2 + 127);
    ck_assert_int_eq(b.sum[1], -127);

    uint64_t seed = 1;
    for (int turn = 0; turn < 200; turn++) {
        q_a8_256 s;
        const float scale = ldexpf(1.0f, (int)(t_rand(&seed) % 230) - 110);
        float amax = 0;
        for (int i = 0; i < 256; i++) x[i] = t_normal(&seed) * scale, amax = fmaxf(amax, fabsf(x[i]));
        q_act_a8_256.quantize(x, 256, &s);
        ck_assert_float_eq(s.d, amax / 127.0f);
        for (int i = 0; i < 256; i++) {
            ck_assert_int_le(abs(s.q[i]), 127);
            ck_assert_double_le(fabs((double)x[i] - (double)s.d * s.q[i]), (double)s.d * 0.50001);
        }
        for (int g = 0; g < 16; g++) {
            int sum = 0;
            for (int i = 0; i < 16; i++) sum += s.q[16 * g + i];
            ck_assert_int_eq(s.sum[g], sum);
        }
    }
}
END_TEST

START_TEST(act_odd_values) {
    float x[32];
    q_a8_32 b;
    for (int i = 0; i < 32; i++) x[i] = 1e-40f; /* the scale would be subnormal: counts as nothing */
    q_act_a8_32.quantize(x, 32, &b);
    ck_assert(b.d == 0 && b.q[0] == 0 && b.sum[0] == 0);
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < 32; i++) x[i] = 1;
        x[17] = bad[k];
        q_act_a8_32.quantize(x, 32, &b);
        ck_assert(isnan(b.d) && b.q[0] == 0 && b.q[17] == 0 && b.sum[1] == 0);
    }
    for (int i = 0; i < 32; i++) x[i] = i % 2 ? 3.4028235e38f : -3.4028235e38f;
    q_act_a8_32.quantize(x, 32, &b);
    ck_assert(b.q[0] == -127 && b.q[1] == 127 && b.sum[0] == 0);
}
END_TEST

/* bfloat16: ties to even, what is below 2^-126 is zero of its sign, what is above the largest is infinite. */
START_TEST(bf16_rounding) {
    static const struct { float x; uint16_t want; } of[] = {
        {1, 0x3F80}, {1 + 0x1p-8f, 0x3F80}, {1 + 0x3p-8f, 0x3F82}, {-1 - 0x3p-8f, 0xBF82}, {1 + 0x1.2p-8f, 0x3F81},
        {0x1p-126f, 0x0080}, {0x1.fffffcp-127f, 0}, {-0x1p-130f, 0x8000}, {-0.0f, 0x8000}, {3.4028235e38f, 0x7F80},
        {-INFINITY, 0xFF80},
    };
    float x[32] = {0};
    uint16_t q[33];
    for (size_t i = 0; i < Q_COUNT(of); i++) x[i] = of[i].x;
    x[31] = q_bits_f32(0xFF800001u);
    q[32] = 0xA5A5;
    q_act_a_bf16.quantize(x, 32, q);
    for (size_t i = 0; i < Q_COUNT(of); i++) ck_assert_msg(q[i] == of[i].want, "%a is %04x", (double)x[i], q[i]);
    ck_assert_uint_eq(q[31], 0xFFC0);
    ck_assert_uint_eq(q[32], 0xA5A5);
}
END_TEST

/* bdot: the odd value of a pair before the even one, lane by lane; what is below 2^-126 counts as zero. */
START_TEST(bf16_order) {
    float w[64] = {0}, x[64] = {0};
    uint16_t q[64];
    w[0] = w[1] = w[32] = w[33] = 1;
    x[1] = 1, x[33] = 0x1p-24f, x[32] = 0x1p-23f; /* 1 + 2^-24 is a tie, which goes to 1 */
    q_act_a_bf16.quantize(x, 64, q);
    ck_assert_float_eq(q_ref_bdot(w, q, 64), 1 + 0x1p-23f);
    x[33] = 0x1p-23f, x[32] = 0x1p-24f; /* 1 + 2^-23 + 2^-24: a tie again, which goes to 1 + 2^-22 */
    q_act_a_bf16.quantize(x, 64, q);
    ck_assert_float_eq(q_ref_bdot(w, q, 64), 1 + 0x1p-22f);

    memset(x, 0, sizeof x);
    w[0] = 0.5f, x[0] = 0x1p-126f; /* a sum that vanishes, and would be seen after the next */
    w[33] = 0.5f, x[33] = 0x1p-126f;
    q_act_a_bf16.quantize(x, 64, q);
    ck_assert_float_eq(q_ref_bdot(w, q, 64), 0);

    uint64_t seed = 5;
    double want = 0, size = 0;
    for (int i = 0; i < 64; i++) {
        w[i] = q_bf16_to_f32(q_ref_bf16(t_normal(&seed))), x[i] = t_normal(&seed);
        want += (double)w[i] * (double)q_bf16_to_f32(q_ref_bf16(x[i])), size += fabs((double)w[i] * (double)x[i]);
    }
    q_act_a_bf16.quantize(x, 64, q);
    ck_assert_double_le(fabs((double)q_ref_bdot(w, q, 64) - want), size * 1e-6);
}
END_TEST

/* Every format, with each kind of activations: the stated order bit for bit, and close to plain arithmetic. */
START_TEST(matmul_formats) {
    enum { rows = 5, n = 3 };
    for (uint32_t f = 0; f < q_format_count(); f++)
        for (int kk = 0; kk < 2; kk++) {
            const int k = kk ? 96 : 512;
            if (k % q_formats[f]->weights) continue;
            fx t;
            fx_init(&t, n, (const int32_t[]){k, rows}, 2);
            q_weight *w = fx_weight(&t, q_formats[f]->name, rows, k, 1);
            q_inst s = {.op = Q_OP_MATMUL, .x = fx_view(1, 0, 1, k), .y = fx_view(2, 0, 1, rows), .w = w};
            const q_act *acts[] = {NULL, &q_act_a8_32, &q_act_a8_256, &q_act_a8_row};
            for (int a = 0; a < 4; a++) {
                t.e.act = acts[a];
                fx_run(&t, &s);
                const bool integer = acts[a] && w->format->split && q_act_fits(acts[a], k);
                double err = 0, ref = 0;
                for (int c = 0; c < n; c++)
                    for (int r = 0; r < rows; r++) {
                        const float *x = t.slots[1] + c * k, *row = fx_row(&t, w, 0, r), y = t.slots[2][c * rows + r];
                        const double want = plain_dot(row, x, k);
                        ck_assert_float_eq(y, integer ? stated_idot(w, 0, r, acts[a], x) : stated_dot(row, x, k));
                        err += (y - want) * (y - want), ref += want * want;
                    }
                ck_assert_msg(err <= ref * (integer ? 5e-3 : 1e-12), "%s act %d: NMSE %g", w->format->name, a,
                              err / ref);
            }
            fx_free(&t);
        }
}
END_TEST

START_TEST(matmul_bias_add_adapter) {
    enum { rows = 7, k = 64, rank = 3, n = 4 };
    for (int mask = 0; mask < 16; mask++) { /* bias, add, adapter, domain OUT */
        fx t;
        fx_init(&t, n, (const int32_t[]){k, rows + 2}, 2);
        t.batch.n_out = 2;
        q_inst s = {.op = Q_OP_MATMUL, .x = fx_view(1, 0, 1, k), .y = fx_view(2, 1, 1, rows), .add = (mask & 2) != 0};
        s.w = fx_weight(&t, "f16", rows, k, 1);
        s.out = (mask & 8) != 0;
        if (mask & 1) s.b = fx_weight(&t, "f32", 1, rows, 1);
        if (mask & 4) {
            s.lora_a = fx_weight(&t, "f32", rank, k, 1);
            s.lora_b = fx_weight(&t, "f16", rows, rank, 1);
            s.lora_scale = 0.7f;
        }
        fx_run(&t, &s);
        for (int c = 0; c < n; c++)
            for (int r = 0; r < rows; r++) {
                const float *x = t.old[1] + c * k;
                const int at = c * (rows + 2) + 1 + r;
                double want = plain_dot(fx_row(&t, s.w, 0, r), x, k);
                if (s.b) want += fx_row(&t, s.b, 0, 0)[r];
                for (int i = 0; s.lora_a && i < rank; i++)
                    want += 0.7 * fx_row(&t, s.lora_b, 0, r)[i] * plain_dot(fx_row(&t, s.lora_a, 0, i), x, k);
                if (s.add) want += t.old[2][at];
                if (s.out && c >= 2) want = t.old[2][at];
                ck_near(t.slots[2][at], want, 1e-5);
            }
        for (int c = 0; c < n; c++) ck_assert_float_eq(t.slots[2][c * (rows + 2)], t.old[2][c * (rows + 2)]);
        fx_free(&t);
    }
}
END_TEST

/* One integer sum for a whole row, as long as it may be and of the largest codes; a longer row is a float product. */
START_TEST(matmul_longest_row) {
    enum { most = Q_ACT_ROW_MOST };
    for (int k = most; k <= most + 32; k += 32) {
        fx t;
        fx_init(&t, 1, (const int32_t[]){most + 32, 1}, 2);
        q_inst s = {.op = Q_OP_MATMUL, .x = fx_view(1, 0, 1, k), .y = fx_view(2, 0, 1, 1)};
        q_weight *w = fx_weight(&t, "i8_row", 1, k, 1);
        uint8_t *row = (uint8_t *)(uintptr_t)w->data;
        memset(row + 4, 0x80, (size_t)k);
        q_store32(row, q_f32_bits(1.0f));
        for (int i = 0; i < k; i++) t.slots[1][i] = i ? -1.0f : -0.9f; /* codes -127 but for one */
        s.w = w;
        t.e.act = &q_act_a8_row;
        fx_run(&t, &s);
        const float *x = t.slots[1];
        float *plain = (float *)malloc((size_t)k * sizeof(float));
        q_decode_row(w->format, row, k, plain);
        ck_assert_float_eq(t.slots[2][0], k == most ? stated_idot(w, 0, 0, t.e.act, x) : stated_dot(plain, x, k));
        free(plain);
        fx_free(&t);
    }
}
END_TEST

/* What a step with an order says of x is what it says without one of x in that order, to the bit. */
static void check_order(q_inst *s, q_op op, const char *format, const q_act *act) {
    enum { k = 64, rows = 6, n = 3, experts = 2 };
    int32_t order[k];
    fx t;
    fx_init(&t, n, (const int32_t[]){2 * k, 2 * rows, 4}, 3);
    fx_logits(&t, rows, 2);
    q_weight *w = fx_weight(&t, format, rows, k, op == Q_OP_MATMUL || op == Q_OP_HEAD ? 1 : experts);
    for (int i = 0; i < k; i++) order[i] = (i * 27 + 5) % k;
    s->op = (uint8_t)op, s->w = w, s->n_expert = experts, s->n_used = 2;
    q_weight *w2 = op == Q_OP_MOE_GLU ? fx_weight(&t, format, rows, k, experts) : NULL;
    s->w2 = w2;
    for (int c = 0; c < n; c++)
        for (int i = 0; i < 4; i++) t.slots[3][4 * c + i] = i < 2 ? (float)i : 0.5f;
    float want[64], x[n * 2 * k];
    w->order = order;
    if (w2) w2->order = order;
    t.e.act = act;
    memcpy(x, t.slots[1], sizeof x);
    float *y = op == Q_OP_HEAD ? t.batch.logits : t.slots[2];
    const size_t bytes = (op == Q_OP_HEAD ? 2 * rows : n * 2 * rows) * sizeof(float);
    memset(y, 0, bytes);
    fx_run(&t, s);
    memcpy(want, y, bytes);
    w->order = NULL;
    if (w2) w2->order = NULL;
    for (int c = 0; c < 2 * n; c++)
        for (int i = 0; i < k; i++) t.slots[1][c * k + i] = x[c * k + order[i]];
    memset(y, 0, bytes);
    fx_run(&t, s);
    ck_assert_msg(memcmp(want, y, bytes) == 0, "%s with %s and an order", q_ops[op].name, format);
    fx_free(&t);
}

START_TEST(products_in_another_order) {
    static const struct { const char *format; const q_act *act; } ways[] = {
        {"i4_g32", NULL}, {"i4_g32", &q_act_a8_32}, {"i8_row", &q_act_a8_row}, {"f16", NULL}};
    for (size_t i = 0; i < Q_COUNT(ways); i++) {
        q_inst plain = {.x = fx_view(1, 0, 1, 64), .y = fx_view(2, 0, 1, 6)},
               head = {.x = fx_view(1, 0, 1, 64), .out = 1}, heads = {.x = {1, 0, 2, 64, 64}, .y = {2, 0, 2, 3, 3}},
               glu = {.x = fx_view(1, 0, 1, 64), .y = {2, 0, 2, 6, 6}, .z = fx_view(3, 0, 1, 4), .kind = Q_ACT_SILU},
               down = {.x = {1, 0, 2, 64, 64}, .y = fx_view(2, 0, 1, 6), .z = fx_view(3, 0, 1, 4)};
        check_order(&plain, Q_OP_MATMUL, ways[i].format, ways[i].act);
        check_order(&heads, Q_OP_MATMUL, ways[i].format, ways[i].act);
        check_order(&head, Q_OP_HEAD, ways[i].format, ways[i].act);
        check_order(&glu, Q_OP_MOE_GLU, ways[i].format, ways[i].act);
        check_order(&down, Q_OP_MOE_DOWN, ways[i].format, ways[i].act);
    }
}
END_TEST

/* Each head of x has its own rows of w (latent attention); strides are free. */
START_TEST(matmul_per_head) {
    enum { heads = 3, k = 32, width = 4, n = 3 };
    for (int act = 0; act < 2; act++) {
        fx t;
        fx_init(&t, n, (const int32_t[]){heads * 40, heads * 6}, 2);
        q_inst s = {.op = Q_OP_MATMUL, .x = {1, 5, heads, k, 36}, .y = {2, 1, heads, width, 6}};
        s.w = fx_weight(&t, act ? "q8_0" : "f32", heads * width, k, 1);
        s.b = fx_weight(&t, "f32", 1, heads * width, 1);
        t.e.act = act ? &q_act_a8_32 : NULL;
        fx_run(&t, &s);
        for (int c = 0; c < n; c++)
            for (int i = 0; i < heads * width; i++) {
                const float *x = t.slots[1] + c * heads * 40 + 5 + i / width * 36;
                const float b = fx_row(&t, s.b, 0, 0)[i], y = t.slots[2][c * heads * 6 + 1 + i / width * 6 + i % width];
                if (act) ck_assert_float_eq(y, stated_idot(s.w, 0, i, t.e.act, x) + b);
                else ck_near(y, plain_dot(fx_row(&t, s.w, 0, i), x, k) + b, 1e-5);
            }
        fx_free(&t);
    }
}
END_TEST

START_TEST(head_logits) {
    enum { vocab = 11, k = 64, n = 5 };
    for (int mask = 0; mask < 8; mask++) {
        fx t;
        fx_init(&t, n, (const int32_t[]){k}, 1);
        fx_logits(&t, vocab, 2);
        q_inst s = {.op = Q_OP_HEAD, .out = 1, .x = fx_view(1, 0, 1, k)};
        s.w = fx_weight(&t, mask & 4 ? "q4_0" : "f16", vocab, k, 1);
        t.e.act = mask & 4 ? &q_act_a8_32 : NULL;
        if (mask & 1) s.b = fx_weight(&t, "f32", 1, vocab, 1);
        if (mask & 2) s.softcap = 3.0f, s.scale = 0.25f;
        ck_assert_int_eq(q_op_units(&s, n, 2), vocab);
        ck_assert_int_eq(q_op_units(&s, n, 0), 0);
        fx_run(&t, &s);
        for (int o = 0; o < 2; o++)
            for (int r = 0; r < vocab; r++) {
                const float *x = t.slots[1] + o * k;
                double want = mask & 4 ? stated_idot(s.w, 0, r, t.e.act, x) : plain_dot(fx_row(&t, s.w, 0, r), x, k);
                if (s.b) want += fx_row(&t, s.b, 0, 0)[r];
                if (mask & 2) want = 3 * tanh(want * 0.25 / 3);
                ck_near(t.batch.logits[o * vocab + r], want, 1e-5);
            }
        fx_free(&t);
    }
}
END_TEST

/* ---------------------------------------------------------------------------------------------- norms and columns */

static void norm_want(int kind, const float *x, const float *w, const float *b, const float *z, double eps, int n,
                      double *y) {
    double sum = 0, sq = 0, mean, var = 0;
    for (int i = 0; i < n; i++) sum += x[i], sq += (double)x[i] * x[i];
    mean = sum / n;
    for (int i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / n;
    for (int i = 0; i < n; i++) {
        y[i] = kind == Q_NORM_RMS ? x[i] / sqrt(sq / n + eps) : kind == Q_NORM_LAYER ? (x[i] - mean) / sqrt(var + eps)
                                                              : x[i] / fmax(sqrt(sq), eps);
        if (w) y[i] *= w[i];
        if (b) y[i] += b[i];
        if (z) y[i] *= z[i] / (1 + exp(-z[i]));
    }
}

START_TEST(norm_kinds) {
    enum { width = 75, n = 5 };
    for (int kind = Q_NORM_RMS; kind <= Q_NORM_L2; kind++)
        for (int mask = 0; mask < 16; mask++) {
            fx t;
            fx_init(&t, n, (const int32_t[]){width + 3, width}, 2);
            q_inst s = {.op = Q_OP_NORM, .kind = (uint8_t)kind, .x = fx_view(1, 2, 1, width),
                        .y = fx_view(2, 0, 1, width), .eps = mask & 8 ? 30.0f : 1e-5f};
            if (mask & 1) s.b = fx_weight(&t, "f32", 1, width, 1);
            if (mask & 1) s.w = fx_weight(&t, "f16", 1, width, 1);
            s.add = (mask & 2) != 0, s.out = (mask & 4) != 0;
            const int32_t out[] = {1, 4};
            t.batch.out = out, t.batch.n_out = 2;
            ck_assert_int_eq(q_op_units(&s, n, 2), s.out ? 2 : n);
            fx_run(&t, &s);
            for (int c = 0; c < (s.out ? 2 : n); c++) {
                double want[width];
                norm_want(kind, t.old[1] + (s.out ? out[c] : c) * (width + 3) + 2, s.w ? fx_row(&t, s.w, 0, 0) : NULL,
                          s.b ? fx_row(&t, s.b, 0, 0) : NULL, NULL, s.eps, width, want);
                for (int i = 0; i < width; i++)
                    ck_near(t.slots[2][c * width + i], want[i] + (s.add ? t.old[2][c * width + i] : 0), 2e-6);
            }
            fx_free(&t);
        }
}
END_TEST

START_TEST(headnorm_kinds) {
    enum { heads = 3, width = 20, n = 4 };
    for (int kind = Q_NORM_RMS; kind <= Q_NORM_L2; kind++)
        for (int mask = 0; mask < 8; mask++) { /* weight per head, gate, in place */
            fx t;
            fx_init(&t, n, (const int32_t[]){heads * width, heads * 24, heads * width}, 3);
            q_inst s = {.op = Q_OP_HEADNORM, .kind = (uint8_t)kind, .x = {1, 0, heads, width, width},
                        .y = {2, 1, heads, width, 23}, .eps = 1e-6f};
            s.w = fx_weight(&t, "f32", 1, mask & 1 ? heads * width : width, 1);
            if (mask & 2) s.z = (q_view){3, 0, heads, width, width};
            if (mask & 4) s.y = s.x;
            fx_run(&t, &s);
            for (int c = 0; c < n; c++)
                for (int h = 0; h < heads; h++) {
                    double want[width];
                    const int at = (c * heads + h) * width;
                    norm_want(kind, t.old[1] + at, fx_row(&t, s.w, 0, 0) + (mask & 1 ? h * width : 0), NULL,
                              mask & 2 ? t.old[3] + at : NULL, 1e-6, width, want);
                    for (int i = 0; i < width; i++) ck_near(*fx_at(&t, &s.y, c, h, i), want[i], 2e-6);
                }
            fx_free(&t);
        }
}
END_TEST

START_TEST(embed_tables) {
    enum { width = 64, vocab = 9, n = 4 };
    const int32_t ids[] = {8, 0, 3, 3}, pos[] = {5, 6, 0, 1}, seq[] = {0, 0, 1, 1};
    for (int mask = 0; mask < 8; mask++) {
        fx t;
        fx_init(&t, n, (const int32_t[]){width}, 1);
        t.batch.ids = ids, t.batch.pos = pos, t.batch.seq = seq;
        q_inst s = {.op = Q_OP_EMBED, .y = fx_view(1, 0, 1, width), .w = fx_weight(&t, "q4_0", vocab, width, 1)};
        if (mask & 1) s.scale = 8.0f;
        if (mask & 2) s.w2 = fx_weight(&t, "f16", 7, width, 1);
        if (mask & 4) s.w3 = fx_weight(&t, "f32", 2, width, 1);
        fx_run(&t, &s);
        for (int c = 0; c < n; c++)
            for (int i = 0; i < width; i++) {
                float want = fx_row(&t, s.w, 0, ids[c])[i] * (mask & 1 ? 8.0f : 1.0f);
                if (s.w2) want += fx_row(&t, s.w2, 0, pos[c])[i];
                if (s.w3) want += fx_row(&t, s.w3, 0, 0)[i];
                ck_assert_float_eq(t.slots[1][c * width + i], want);
            }
        float x[n * width];
        for (int i = 0; i < n * width; i++) x[i] = (float)i;
        t.batch.ids = NULL, t.batch.x = x;
        fx_run(&t, &s);
        ck_assert_mem_eq(t.slots[1], x, sizeof x);
        fx_free(&t);
    }
}
END_TEST

START_TEST(copy_slices) {
    enum { n = 4 };
    const int32_t out[] = {0, 3};
    fx t;
    fx_init(&t, n, (const int32_t[]){30, 40}, 2);
    t.batch.out = out, t.batch.n_out = 2;
    q_inst s = {.op = Q_OP_COPY, .x = {1, 3, 3, 4, 8}, .y = {2, 1, 3, 4, 10}}; /* slices of equal shape */
    fx_run(&t, &s);
    for (int c = 0; c < n; c++)
        for (int i = 0; i < 40; i++) {
            const int j = i - 1, h = j / 10, in = j >= 0 && h < 3 && j % 10 < 4;
            const float want = in ? t.old[1][c * 30 + 3 + h * 8 + j % 10] : t.old[2][c * 40 + i];
            ck_assert_float_eq(t.slots[2][c * 40 + i], want);
        }
    s.x = (q_view){1, 2, 1, 5, 5}, s.y = (q_view){2, 0, 4, 5, 9}, s.out = 1; /* one head into four, gathered */
    fx_run(&t, &s);
    for (int c = 0; c < 2; c++)
        for (int h = 0; h < 4; h++)
            for (int i = 0; i < 5; i++)
                ck_assert_float_eq(t.slots[2][c * 40 + h * 9 + i], t.old[1][out[c] * 30 + 2 + i]);
    s.x = (q_view){1, 0, 1, 24, 24}, s.y = (q_view){2, 0, 4, 6, 7}, s.out = 0; /* cut into heads */
    fx_run(&t, &s);
    for (int c = 0; c < n; c++)
        for (int i = 0; i < 24; i++) ck_assert_float_eq(t.slots[2][c * 40 + i / 6 * 7 + i % 6], t.old[1][c * 30 + i]);
    fx_free(&t);
}
END_TEST

static double act_want(int kind, double x) {
    switch (kind) {
    case Q_ACT_SILU: return x / (1 + exp(-x));
    case Q_ACT_GELU: return x * 0.5 * erfc(-x / sqrt(2));
    case Q_ACT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x)));
    case Q_ACT_RELU: return fmax(x, 0);
    case Q_ACT_RELU2: return fmax(x, 0) * fmax(x, 0);
    case Q_ACT_SIGMOID: return 1 / (1 + exp(-x));
    default: return x;
    }
}

START_TEST(glu_kinds) {
    enum { width = 40, n = 3 };
    for (int kind = Q_ACT_NONE; kind <= Q_ACT_SWIGLU_CLAMP; kind++)
        for (int gated = 0; gated < 2; gated++) {
            if (kind == Q_ACT_SWIGLU_CLAMP && !gated) continue;
            fx t;
            fx_init(&t, n, (const int32_t[]){2 * width, width}, 2);
            for (int i = 0; i < n * 2 * width; i++) t.slots[1][i] *= 4;
            t.slots[1][0] = -300, t.slots[1][1] = 300;
            q_inst s = {.op = Q_OP_GLU, .kind = (uint8_t)kind, .x = fx_view(1, 0, 1, width),
                        .y = fx_view(2, 0, 1, width), .limit = 3.0f, .alpha = 1.702f};
            if (gated) s.z = fx_view(1, width, 1, width);
            fx_run(&t, &s);
            for (int c = 0; c < n; c++)
                for (int i = 0; i < width; i++) {
                    const double x = t.old[1][c * 2 * width + i], z = gated ? t.old[1][(c * 2 + 1) * width + i] : 1;
                    double want = act_want(kind, x) * z;
                    if (kind == Q_ACT_SWIGLU_CLAMP)
                        want = fmin(x, 3) / (1 + exp(-1.702 * fmin(x, 3))) * (fmax(-3, fmin(z, 3)) + 1);
                    ck_near(t.slots[2][c * width + i], want, 2e-6);
                }
            fx_free(&t);
        }
}
END_TEST

START_TEST(scale_gate_cap) {
    enum { width = 24, n = 3 };
    for (int mask = 0; mask < 16; mask++) {
        fx t;
        fx_init(&t, n, (const int32_t[]){width, width, 3}, 3);
        q_inst s = {.op = Q_OP_SCALE, .x = fx_view(1, 0, 1, width), .y = fx_view(2, 0, 1, width)};
        if (mask & 1) s.scale = 2.5f;
        if (mask & 2) s.z = fx_view(3, 1, 1, 1);
        if (mask & 4) s.softcap = 1.5f;
        s.add = (mask & 8) != 0;
        fx_run(&t, &s);
        for (int c = 0; c < n; c++)
            for (int i = 0; i < width; i++) {
                double want = t.old[1][c * width + i] * (mask & 1 ? 2.5 : 1);
                if (mask & 2) want /= 1 + exp(-t.old[3][c * 3 + 1]);
                if (mask & 4) want = 1.5 * tanh(want / 1.5);
                if (mask & 8) want += t.old[2][c * width + i];
                ck_near(t.slots[2][c * width + i], want, 2e-6);
            }
        fx_free(&t);
    }
}
END_TEST

START_TEST(rope_kinds) {
    enum { heads = 2, width = 20, rot = 12, n = 4 };
    const int32_t pos[] = {0, 1, 17, 1000};
    float freqs[rot / 2];
    for (int i = 0; i < rot / 2; i++) freqs[i] = powf(10000.0f, -2.0f * (float)i / rot);
    for (int mask = 0; mask < 8; mask++) { /* halves, mscale, in place */
        fx t;
        fx_init(&t, n, (const int32_t[]){heads * width, heads * 22}, 2);
        t.batch.pos = pos;
        q_inst s = {.op = Q_OP_ROPE, .kind = mask & 1 ? Q_ROPE_HALVES : Q_ROPE_PAIRS, .rot = rot, .freqs = freqs,
                    .x = {1, 0, heads, width, width}, .y = {2, 0, heads, width, 22}, .mscale = mask & 2 ? 1.25f : 0};
        if (mask & 4) s.y = s.x;
        fx_run(&t, &s);
        for (int c = 0; c < n; c++)
            for (int h = 0; h < heads; h++) {
                const float *x = t.old[1] + (c * heads + h) * width;
                double want[width];
                for (int i = 0; i < width; i++) want[i] = x[i];
                for (int i = 0; i < rot / 2; i++) {
                    const int a = mask & 1 ? i : 2 * i, b = mask & 1 ? i + rot / 2 : 2 * i + 1;
                    const double th = (float)pos[c] * freqs[i], m = mask & 2 ? 1.25 : 1;
                    want[a] = m * (x[a] * cos(th) - x[b] * sin(th));
                    want[b] = m * (x[b] * cos(th) + x[a] * sin(th));
                }
                for (int i = 0; i < width; i++) ck_near(*fx_at(&t, &s.y, c, h, i), want[i], 2e-6);
            }
        fx_free(&t);
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ recurrent */

/* Two sequences of 5 and 3 columns; whole, and split into two batches: the same bits, and the formula in double. */
static const int32_t rec_seq[] = {1, 1, 1, 1, 1, 0, 0, 0}, rec_pos[] = {0, 1, 2, 3, 4, 0, 1, 2};

static void rec_split(fx *t, q_inst *s, int floats) {
    enum { n = 8 };
    const size_t yb = sizeof(float) * (size_t)(n * t->width[2]);
    float *whole = malloc(yb), *state = malloc(sizeof(float) * (size_t)(2 * floats));
    memcpy(whole, t->slots[2], yb);
    memcpy(state, t->state, sizeof(float) * (size_t)(2 * floats));
    for (int i = 0; i < 2 * floats; i++) /* what a sequence left there before means nothing; what lies outside stays */
        if (i % floats >= s->state) t->state[i] = 7;
    memset(t->slots[2], 0, yb);
    const int cut[] = {0, 2, 3, 7, 8}; /* runs of columns, each a batch of its own */
    float *x0 = t->slots[1], *y0 = t->slots[2], *u0 = t->slots[3];
    for (int i = 0; i + 1 < 5; i++) {
        t->batch.n = cut[i + 1] - cut[i], t->batch.seq = rec_seq + cut[i], t->batch.pos = rec_pos + cut[i];
        t->slots[1] = x0 + cut[i] * t->width[1], t->slots[2] = y0 + cut[i] * t->width[2];
        if (u0) t->slots[3] = u0 + cut[i] * t->width[3];
        void *scratch = fx_scratch(t, s);
        q_ops[s->op].ref(s, &t->e, 0, q_op_units(s, t->batch.n, 0));
        free(scratch);
    }
    t->slots[1] = x0, t->slots[2] = y0, t->slots[3] = u0, t->batch.n = n;
    ck_assert_mem_eq(t->slots[2], whole, yb);
    ck_assert_mem_eq(t->state, state, sizeof(float) * (size_t)(2 * floats));
    free(whole);
    free(state);
}

START_TEST(conv_history) {
    enum { ch = 6, taps = 4, n = 8, floats = ch * (taps - 1) + 5 };
    for (int mask = 0; mask < 4; mask++) {
        fx t;
        fx_init(&t, n, (const int32_t[]){ch + 2, ch}, 2);
        fx_state(&t, 2, floats);
        t.batch.seq = rec_seq, t.batch.pos = rec_pos;
        q_inst s = {.op = Q_OP_CONV, .kind = mask & 1 ? Q_ACT_SILU : Q_ACT_NONE, .x = fx_view(1, 1, 1, ch),
                    .y = fx_view(2, 0, 1, ch), .taps = taps, .state = 5};
        s.w = fx_weight(&t, "f32", ch, taps, 1);
        if (mask & 2) s.b = fx_weight(&t, "f32", 1, ch, 1);
        fx_run(&t, &s);
        for (int c = 0; c < n; c++)
            for (int i = 0; i < ch; i++) {
                double want = s.b ? fx_row(&t, s.b, 0, 0)[i] : 0;
                for (int k = 0; k < taps; k++) {
                    const int from = c - taps + 1 + k;
                    if (from < 0 || rec_seq[from] != rec_seq[c]) continue;
                    want += (double)fx_row(&t, s.w, 0, i)[k] * t.old[1][from * (ch + 2) + 1 + i];
                }
                ck_near(t.slots[2][c * ch + i], act_want(s.kind, want), 2e-6);
            }
        ck_assert_float_eq(t.state[floats + 5 + 2], t.old[1][4 * (ch + 2) + 1]); /* newest input last */
        rec_split(&t, &s, floats);
        fx_free(&t);
    }
}
END_TEST

START_TEST(scan_delta_rule) {
    enum { heads = 4, keys = 2, kw = 5, vw = 3, n = 8, floats = heads * kw * vw + 2 };
    enum { w1 = keys * kw * 2 + heads * vw };
    fx t;
    fx_init(&t, n, (const int32_t[]){w1, heads * vw, 2 * heads}, 3);
    fx_state(&t, 2, floats);
    t.batch.seq = rec_seq, t.batch.pos = rec_pos;
    q_inst s = {.op = Q_OP_SCAN, .x = {1, 0, keys, kw, kw}, .z = {1, keys * kw, keys, kw, kw},
                .v = {1, 2 * keys * kw, heads, vw, vw}, .u = fx_view(3, 0, 1, 2 * heads),
                .y = {2, 0, heads, vw, vw}, .state = 2, .scale = 0.5f};
    s.w = fx_weight(&t, "f32", 1, heads, 1);
    s.b = fx_weight(&t, "f32", 1, heads, 1);
    fx_run(&t, &s);
    for (int h = 0; h < heads; h++) {
        double S[kw][vw] = {{0}};
        for (int c = 0; c < n; c++) {
            if (c == 5) memset(S, 0, sizeof S);
            const float *q = t.old[1] + c * w1 + h / 2 * kw, *k = q + keys * kw,
                        *v = t.old[1] + c * w1 + 2 * keys * kw + h * vw, *u = t.old[3] + c * 2 * heads;
            const double decay = exp(fx_row(&t, s.w, 0, 0)[h] * log1p(exp(u[h] + (double)fx_row(&t, s.b, 0, 0)[h])));
            const double beta = 1 / (1 + exp(-u[heads + h]));
            for (int j = 0; j < vw; j++) {
                double r = 0, y = 0;
                for (int i = 0; i < kw; i++) r += decay * S[i][j] * k[i];
                r = beta * (v[j] - r);
                for (int i = 0; i < kw; i++) S[i][j] = decay * S[i][j] + k[i] * r, y += S[i][j] * q[i];
                ck_near(t.slots[2][c * heads * vw + h * vw + j], 0.5 * y, 1e-5);
            }
            if (c == 7) ck_near(t.state[2 + (h * kw + 4) * vw + 1], S[4][1], 1e-5); /* [head][k][v] */
        }
    }
    rec_split(&t, &s, floats);
    fx_free(&t);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("ref");
    TCase *c = tcase_create("ops");
    const TTest *const tests[] = {act_rounding, act_odd_values, bf16_rounding, bf16_order, matmul_formats,
                                  matmul_longest_row, products_in_another_order,
                                  matmul_bias_add_adapter, matmul_per_head, head_logits, norm_kinds, headnorm_kinds,
                                  embed_tables, copy_slices, glu_kinds, scale_gate_cap, rope_kinds, conv_history,
                                  scan_delta_rule};
    for (size_t i = 0; i < Q_COUNT(tests); i++) tcase_add_test(c, tests[i]);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
