/* peak_scalar.c: multiply-adds without vectors: what the scalar rung of the kernels is bound by. See peak.h.
 *
 * A multiplication and an addition, since the baseline of x86-64 has no fused one. The empty asm on the factors makes
 * each product a new one of unknown numbers; without it a compiler computes it once, or makes vectors of the sums. */
#include "peak.h"

#if defined(__x86_64__)
#define IN_FLOAT "+x"
#elif defined(__aarch64__)
#define IN_FLOAT "+w"
#else
#define IN_FLOAT "+m"
#endif

static bool always(void) { return true; }

#define DECLARE(i) s##i = 0,
#define KEEP_FLOAT(i) __asm__ volatile("" : IN_FLOAT(s##i));
#define KEEP_INT(i) __asm__ volatile("" : "+r"(s##i));

static void fp32(uint64_t turns) {
    float DECLARE(0) DECLARE(1) DECLARE(2) DECLARE(3) DECLARE(4) DECLARE(5) DECLARE(6) DECLARE(7) x = 1, y = 0x1p-20f;
#define STEP(i)                         \
    __asm__ volatile("" : IN_FLOAT(x)); \
    s##i += x * y;                      \
    KEEP_FLOAT(i)
    __asm__ volatile("" : IN_FLOAT(y));
    for (; turns; turns--) { STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7) }
#undef STEP
}

static void int8(uint64_t turns) {
    int32_t DECLARE(0) DECLARE(1) DECLARE(2) DECLARE(3) DECLARE(4) DECLARE(5) x = 3, y = -5;
#define STEP(i)                                           \
    __asm__ volatile("" : "+r"(x));                       \
    s##i = (int32_t)((uint32_t)s##i + (uint32_t)(x * y)); \
    KEEP_INT(i)
    __asm__ volatile("" : "+r"(y));
    for (; turns; turns--) { STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) }
#undef STEP
}

const bench_peak bench_peaks_scalar[] = {
    {"fp32", "scalar", "multiply, add", always, 2 * 8, fp32},
    {"int8", "scalar", "multiply, add", always, 2 * 6, int8},
    {0},
};
