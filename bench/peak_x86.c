/* peak_x86.c: multiply-adds in AVX2, AVX-VNNI and AVX-512 registers and AMX tiles. See peak.h.
 *
 * Each function sets its own target. The empty asm on a factor makes each product a new one: without it a compiler
 * computes `x * y` once for all sums and the loop only adds. */
#include "peak.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#define TARGET(x) __attribute__((target(x), noinline))
#define RENEW(r) __asm__ volatile("" : "+v"(r));

static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}
static bool has_avx512vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
static bool has_avx512bf16(void) { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
static bool has_avxvnni(void) { /* no name for it in every compiler's builtin */
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

/* A loop over BENCH_SUMS sums of TYPE, each stepped by STEP(i) from x and y. Equal sums would become one sum but for
 * the empty asm on each; factors of known value would become additions. */
#define SUM_ZERO(i) s[i] = ZERO;
#define SUM_STEP(i) STEP(i) RENEW(s[i])
#define LOOP(TYPE)           \
    TYPE s[BENCH_SUMS];      \
    RENEW(x) RENEW(y)        \
    BENCH_TIMES_12(SUM_ZERO) \
    for (; turns; turns--) { BENCH_TIMES_12(SUM_STEP) }

#define ZERO _mm256_setzero_ps()
#define STEP(i) s[i] = _mm256_fmadd_ps(x, y, s[i]);
TARGET("avx2,fma") static void fp32_avx2(uint64_t turns) {
    __m256 x = _mm256_set1_ps(1), y = _mm256_set1_ps(0x1p-20f);
    LOOP(__m256)
}
#undef ZERO
#undef STEP

#define ZERO _mm256_setzero_si256()
#define STEP(i) RENEW(x) s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
TARGET("avx2") static void int8_avx2(uint64_t turns) {
    __m256i x = _mm256_set1_epi8(3);
    __m256i y = _mm256_set1_epi8(-5);
    const __m256i ones = _mm256_set1_epi16(1);
    LOOP(__m256i)
}
#undef STEP
#define STEP(i) s[i] = _mm256_dpbusd_avx_epi32(s[i], x, y);
TARGET("avx2,avxvnni") static void int8_avxvnni(uint64_t turns) {
    __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(-5);
    LOOP(__m256i)
}
#undef ZERO
#undef STEP

#define ZERO _mm512_setzero_ps()
#define STEP(i) s[i] = _mm512_fmadd_ps(x, y, s[i]);
TARGET("avx512f") static void fp32_avx512(uint64_t turns) {
    __m512 x = _mm512_set1_ps(1), y = _mm512_set1_ps(0x1p-20f);
    LOOP(__m512)
}
#undef STEP
#define STEP(i) s[i] = _mm512_dpbf16_ps(s[i], x, y);
TARGET("avx512f,avx512bw,avx512bf16") static void bf16_avx512(uint64_t turns) {
    __m512bh x = (__m512bh)_mm512_set1_epi16(0x3F80), y = (__m512bh)_mm512_set1_epi16(0x3580);
    LOOP(__m512)
}
#undef ZERO
#undef STEP

#define ZERO _mm512_setzero_si512()
#define STEP(i) RENEW(x) s[i] = _mm512_add_epi32(s[i], _mm512_madd_epi16(_mm512_maddubs_epi16(x, y), ones));
TARGET("avx512f,avx512bw") static void int8_avx512(uint64_t turns) {
    __m512i x = _mm512_set1_epi8(3);
    __m512i y = _mm512_set1_epi8(-5);
    const __m512i ones = _mm512_set1_epi16(1);
    LOOP(__m512i)
}
#undef STEP
#define STEP(i) s[i] = _mm512_dpbusd_epi32(s[i], x, y);
TARGET("avx512f,avx512bw,avx512vnni") static void int8_avx512vnni(uint64_t turns) {
    __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(-5);
    LOOP(__m512i)
}
#undef ZERO
#undef STEP

/* Four tiles of sums: two tiles of A times two of B, as kernels have them. */
#define TILES(STEP) STEP(0, 4, 6) STEP(1, 5, 6) STEP(2, 4, 7) STEP(3, 5, 7)
#define TILE_STEP(sums, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sums : : : "memory");
#define TILE_ZERO(sums, a, b)                                                                                          \
    __asm__ volatile("tilezero %%tmm" #sums "\n\ttilezero %%tmm" #a "\n\ttilezero %%tmm" #b : : : "memory");
static bool has_amx(void) { return q_isa_present(Q_ISA_amx); } /* which asks the system for it */
TARGET("sse2") static void int8_amx(uint64_t turns) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.bytes[i] = 64, shapes.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
    TILES(TILE_ZERO)
    for (; turns; turns--) { TILES(TILE_STEP) }
    __asm__ volatile("tilerelease" : : : "memory");
}

#define SUMS(per_vector) (2 * BENCH_SUMS * (per_vector))
const bench_peak bench_peaks_x86[] = {
    {"fp32", "avx2", "vfmadd ymm", has_avx2, SUMS(8), fp32_avx2},
    {"int8", "avx2", "vpmaddubsw, vpmaddwd, vpaddd ymm", has_avx2, SUMS(32), int8_avx2},
    {"int8", "avxvnni", "vpdpbusd ymm", has_avxvnni, SUMS(32), int8_avxvnni},
    {"fp32", "avx512", "vfmadd zmm", has_avx512, SUMS(16), fp32_avx512},
    {"int8", "avx512", "vpmaddubsw, vpmaddwd, vpaddd zmm", has_avx512, SUMS(64), int8_avx512},
    {"int8", "avx512vnni", "vpdpbusd zmm", has_avx512vnni, SUMS(64), int8_avx512vnni},
    {"int8", "amx", "tdpbssd tmm", has_amx, 2 * 4 * 16 * 16 * 64, int8_amx},
    {"bf16", "avx512bf16", "vdpbf16ps zmm", has_avx512bf16, SUMS(32), bf16_avx512},
    {0},
};
#else
typedef int bench_no_peak_x86; /* a translation unit is not empty */
#endif
