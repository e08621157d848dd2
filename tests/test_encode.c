/* test_encode.c: the encoders that devices store keys and values with, as C: byte for byte the reference encoder's, on
 * numbers that lie on borders and between levels, ties of scales, zeros of either sign and both ends of the range. */
#define Q_ENCODE 1
#include "../libquant/formats/bf16.c"
#include "../libquant/formats/f16.c"
#include "../libquant/formats/f32.c"
#include "../libquant/formats/q4_0.c"
#include "../libquant/formats/q5_1.c"
#include "../libquant/formats/q8_0.c"

#include <math.h>

#include "harness.h"

#include "../libquant/kv_form.h"

typedef void encode(uint8_t *row, int block, const float *x);
static const struct { const char *name; encode *run; } encoders[] = {
    {"f16", f16_store}, {"bf16", bf16_store}, {"f32", f32_store},
    {"q8_0", q8_0_store}, {"q5_1", q5_1_store}, {"q4_0", q4_0_store},
};

enum { N = 32, LOOKS = 8 };

/* A block of a look: what normal numbers do not show comes from numbers of few bits. */
static void fill(int look, uint64_t *seed, float *x) {
    const float scale = ldexpf(1, (int)(t_rand(seed) % 40) - 28);
    const float far = look == 4 ? 1000.0f : 0.0f;
    for (int i = 0; i < N; i++) {
        const float v = t_normal(seed);
        const int32_t few = (int32_t)(t_rand(seed) % 65) - 32;
        switch (look) {
        case 0: x[i] = v; break;
        case 1: x[i] = v * scale; break;
        case 2: x[i] = (float)few * 0.5f; break;            /* halves of levels: ties */
        case 3: x[i] = (float)few * scale * 0.25f; break;
        case 4: x[i] = far + (float)few * 0.25f; break;      /* a minimum far away: levels that round */
        case 5: x[i] = t_rand(seed) % 3 == 0 ? 1.0f : t_rand(seed) % 2 ? -1.0f : 0.0f; break; /* two alike */
        case 6: x[i] = few < 0 ? -0.0f : few < 20 ? 0.0f : v * 1e-8f; break;
        default: x[i] = few == 0 ? 65504.0f : few == 1 ? -65504.0f : v * ldexpf(1, (int)(t_rand(seed) % 60) - 45);
        }
        if (look < 7 && fabsf(x[i]) > 65504.0f) x[i] = 65504.0f;
    }
}

START_TEST(bytes_are_the_references) {
    const q_format *f = q_format_find(encoders[_i].name);
    uint8_t got[N * 4], want[N * 4];
    float x[N];
    uint64_t seed = 11 + (uint64_t)_i;
    const int32_t bytes = f->bytes * (N / f->weights);
    for (int turn = 0; turn < (T_SLOW ? 20000 : 200000); turn++) {
        fill(turn % LOOKS, &seed, x);
        if (turn % LOOKS == 2) /* such that levels are wholes */
            x[turn % N] = f->has_min ? 15.5f : strcmp(f->name, "q8_0") == 0 ? 63.5f : 8.0f;
        memset(got, 0x5A, sizeof got), memset(want, 0x5A, sizeof want);
        encoders[_i].run(got, 0, x);
        q_encode_row(f, x, NULL, false, N, want);
        for (int32_t i = 0; i < (int32_t)sizeof got; i++)
            if (got[i] != want[i])
                ck_abort_msg("%s, block %d, byte %d of %d: %02x, not %02x", f->name, turn, i, bytes, got[i], want[i]);
    }
}
END_TEST

/* What encoders are made of, beside the processor's arithmetic. */
START_TEST(parts_round_as_the_processor) {
    uint64_t seed = 5;
    for (int i = 0; i < 1000000; i++) {
        const float a = t_normal(&seed) * ldexpf(1, (int)(t_rand(&seed) % 40) - 20);
        const float b = i % 3 == 0 ? 127.0f : i % 3 == 1 ? 31.0f : t_normal(&seed);
        const float near = t_normal(&seed), other = i % 2 ? -near : t_normal(&seed) * 1e-3f;
        const float x = (near + other) * 0.5f + (i % 5 ? 0 : t_normal(&seed)); /* as good as in the middle */
        const uint q = q_word(q_quotient(a, b)), want = q_word(a / b);
        if (q != want) ck_abort_msg("%.9g / %.9g: %08x, not %08x", (double)a, (double)b, q, want);
        if (q_to_half(a) != q_f32_to_half(a)) ck_abort_msg("%.9g as a half: %04x", (double)a, q_to_half(a));
        const bool closer = fabs((double)x - (double)near) < fabs((double)x - (double)other);
        if ((q_nearer(x, near, other) != 0) != closer)
            ck_abort_msg("%.9g is nearer to %.9g than to %.9g?", (double)x, (double)near, (double)other);
    }
    for (uint u = 0; u < 0x7F800000u; u += 977)
        if (q_to_half(q_bits(u)) != q_f32_to_half(q_bits(u))) ck_abort_msg("%08x as a half", u);
}
END_TEST

/* What devices can store is what sessions can be asked for. */
START_TEST(every_form_has_one) {
    ck_assert_uint_eq(q_kv_kind_count(), Q_COUNT(encoders));
    for (uint32_t k = 0; k < q_kv_kind_count(); k++) {
        bool there = false;
        for (size_t i = 0; i < Q_COUNT(encoders); i++)
            there |= strcmp(encoders[i].name, q_kv_kinds[k].format->name) == 0;
        ck_assert_msg(there, "%s has no encoder", q_kv_kinds[k].format->name);
    }
}
END_TEST

static Suite *suite(void) {
    TCase *c = tcase_create("encode");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, bytes_are_the_references, 0, (int)Q_COUNT(encoders));
    tcase_add_test(c, parts_round_as_the_processor);
    tcase_add_test(c, every_form_has_one);
    Suite *s = suite_create("encode");
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
