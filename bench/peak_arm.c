/* peak_arm.c: multiply-adds in NEON registers, and with the dot products of ARMv8.2. See peak.h. */
#include "peak.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>

#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#define RENEW(r) __asm__ volatile("" : "+w"(r));
#define SUM_STEP(i) STEP(i) RENEW(s[i])
#define LOOP(TYPE)           \
    TYPE s[BENCH_SUMS];      \
    RENEW(x) RENEW(y)        \
    BENCH_TIMES_12(SUM_ZERO) \
    for (; turns; turns--) { BENCH_TIMES_12(SUM_STEP) }

static bool has_neon(void) { return true; }
static bool has_dotprod(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

#define SUM_ZERO(i) s[i] = vdupq_n_f32(0);
#define STEP(i) s[i] = vfmaq_f32(s[i], x, y);
static void fp32_neon(uint64_t turns) {
    float32x4_t x = vdupq_n_f32(1), y = vdupq_n_f32(0x1p-20f);
    LOOP(float32x4_t)
}
#undef STEP
#undef SUM_ZERO

/* Products of bytes into 16 bits, pairs of them into 32: two widening multiplications and two additions per 16
 * bytes. */
#define SUM_ZERO(i) s[i] = vdupq_n_s32(0);
#define STEP(i)                                                                                   \
    RENEW(x)                                                                                      \
    s[i] = vpadalq_s16(s[i], vmlal_high_s8(vmull_s8(vget_low_s8(x), vget_low_s8(y)), x, y));
static void int8_neon(uint64_t turns) {
    int8x16_t x = vdupq_n_s8(3);
    int8x16_t y = vdupq_n_s8(-5);
    LOOP(int32x4_t)
}
#undef STEP
#define STEP(i) s[i] = vdotq_s32(s[i], x, y);
__attribute__((target("arch=armv8.2-a+dotprod"))) static void int8_dotprod(uint64_t turns) {
    int8x16_t x = vdupq_n_s8(3), y = vdupq_n_s8(-5);
    LOOP(int32x4_t)
}
#undef STEP
#undef SUM_ZERO

#define SUMS(per_vector) (2 * BENCH_SUMS * (per_vector))
const bench_peak bench_peaks_arm[] = {
    {"fp32", "neon", "fmla 4s", has_neon, SUMS(4), fp32_neon},
    {"int8", "neon", "smull, smlal2, sadalp", has_neon, SUMS(16), int8_neon},
    {"int8", "neon_dotprod", "sdot 4s", has_dotprod, SUMS(16), int8_dotprod},
    {0},
};
#else
typedef int bench_no_peak_arm; /* a translation unit is not empty */
#endif
