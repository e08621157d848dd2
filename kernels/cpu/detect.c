/* detect.c: which instruction sets this processor and operating system offer, as the bundles of isa.def. Asks the
 * processor (CPUID, XGETBV) or the system each time: no state here. Layer L2. */
#include "cpu.h"

#include <stdio.h>

#include "../../libquant/threads.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

const char *const q_isa_names[Q_ISA_COUNT] = {
#define ISA(name, includes) #name,
#include "isa.def"
#undef ISA
};
const q_isas q_isa_with[Q_ISA_COUNT] = {
#define ISA(name, includes) Q_ISAS_##name,
#include "isa.def"
#undef ISA
};

/* adds_x(): is there what rung x adds to those that it includes, which are there? */
static bool adds_scalar(void) { return true; }

#if defined(__x86_64__)
/* The register state that the operating system saves: bit 1 SSE, 2 AVX, 5 to 7 AVX-512, 17 and 18 tiles. Only after
 * CPUID says so. */
static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Are all these bits of leaf 7 there: `want_b` in EBX, `want_c` in ECX? */
static bool leaf7(unsigned want_b, unsigned want_c) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & want_b) == want_b && (c & want_c) == want_c;
}

static bool adds_avx2(void) {
    enum { SSE_AVX_STATE = 0x06 };
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29, avx2 = 1u << 5;
    const unsigned want = fma | osxsave | avx | f16c;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & want) != want) return false;
    return (saved_state() & SSE_AVX_STATE) == SSE_AVX_STATE && leaf7(avx2, 0);
}

/* Are all these bits there in EAX of the second part of leaf 7? */
static bool leaf7_more(unsigned want) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & want) == want;
}

static bool adds_avxvnni(void) {
    const unsigned vnni = 1u << 4;
    return leaf7_more(vnni);
}

static bool adds_avx512(void) {
    enum { AVX512_STATE = 0xE6 };
    const unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
    return (saved_state() & AVX512_STATE) == AVX512_STATE && leaf7(f | dq | bw | vl, 0);
}

static bool adds_avx512vnni(void) {
    const unsigned vnni = 1u << 11;
    return leaf7(0, vnni);
}

static bool adds_avx512bf16(void) {
    const unsigned bf16 = 1u << 5;
    return leaf7_more(bf16);
}

/* Tiles of the shape that kernels are made for (palette 1: eight of 16 rows of 64 bytes), multiplied by bytes; then
 * that the system lets this process use them: it is asked last, and only where all else is there (q_permit_tiles says
 * what that changes). */
static bool adds_amx(void) {
    enum { TILE_STATE = 0x60000, TILES = 8, ROWS = 16, BYTES = 64 };
    const unsigned tile = 1u << 24, int8 = 1u << 25;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (tile | int8)) != (tile | int8)) return false;
    if ((saved_state() & TILE_STATE) != TILE_STATE) return false;
    if (!__get_cpuid_count(0x1D, 0, &a, &b, &c, &d) || a < 1) return false; /* palettes */
    if (!__get_cpuid_count(0x1D, 1, &a, &b, &c, &d) || a >> 16 < ROWS * BYTES || (b & 0xFFFF) < BYTES ||
        b >> 16 < TILES || (c & 0xFFFF) < ROWS)
        return false;
    if (!__get_cpuid_count(0x1E, 0, &a, &b, &c, &d) || (b & 0xFF) < ROWS || (b >> 8 & 0xFFFF) < BYTES) return false;
    return q_permit_tiles();
}
#endif

#if defined(__aarch64__)
static bool adds_neon(void) { return true; }

static bool adds_neon_dotprod(void) {
    enum { ASIMDDP = 1 << 20 };
    return (q_hardware_bits(0) & ASIMDDP) != 0;
}

static bool adds_neon_i8mm(void) {
    enum { I8MM = 1 << 13 };
    return (q_hardware_bits(1) & I8MM) != 0;
}
#endif

/* Those of `wanted`, which has with each rung all that it includes, that are there. What nobody wants is not asked
 * for. */
static q_isas present(q_isas wanted) {
    static bool (*const adds[Q_ISA_COUNT])(void) = {
#define ISA(name, includes) adds_##name,
#include "isa.def"
#undef ISA
    };
    q_isas here = 0;
    for (int i = 0; i < Q_ISA_COUNT; i++) {
        const q_isas includes = q_isa_with[i] & ~(q_isas)(1u << i);
        if (q_isa_in(wanted, (q_isa)i) && (here & includes) == includes && adds[i]()) here |= 1u << i;
    }
    return here;
}

bool q_isa_present(q_isa isa) { return isa < Q_ISA_COUNT && q_isa_in(present(q_isa_with[isa]), isa); }

/* Every name that there is, for a message. */
static void list_names(char *text, size_t n) {
    size_t used = 0;
    for (int i = 0; i < Q_ISA_COUNT && used < n; i++)
        used += (size_t)snprintf(text + used, n - used, "%s%s", i ? ", " : "", q_isa_names[i]);
}

lq_status q_isa_choose(const char *names, q_isas *out) {
    q_isas chosen = 0;
    for (const char *at = names; at; at = strchr(at, '+'), at = at ? at + 1 : NULL) {
        const size_t length = strcspn(at, "+");
        int i = 0;
        while (i < Q_ISA_COUNT && (strlen(q_isa_names[i]) != length || memcmp(q_isa_names[i], at, length) != 0)) i++;
        if (i == Q_ISA_COUNT) {
            const int shown = (int)Q_MIN(length, (size_t)64);
            char all[256];
            list_names(all, sizeof all);
            return q_fail(LQ_E_ARG, "no instruction set \"%.*s\" in this build, which has %s", shown, at, all);
        }
        if (!q_isa_present((q_isa)i))
            return q_fail(LQ_E_UNSUPPORTED, "this processor or operating system does not offer \"%s\"", q_isa_names[i]);
        chosen |= q_isa_with[i];
    }
    *out = names ? chosen : present(UINT32_MAX);
    return LQ_OK;
}

void q_isa_text(q_isas set, char *text, size_t n) {
    q_isas included = 0;
    size_t used = 0;
    for (int i = 0; i < Q_ISA_COUNT; i++)
        if (q_isa_in(set, (q_isa)i)) included |= q_isa_with[i] & ~(q_isas)(1u << i);
    if (n) text[0] = '\0';
    for (int i = 0; i < Q_ISA_COUNT; i++) {
        if (!q_isa_in(set & ~included, (q_isa)i) || used + (used != 0) + strlen(q_isa_names[i]) >= n) continue;
        used += (size_t)snprintf(text + used, n - used, "%s%s", used ? "+" : "", q_isa_names[i]);
    }
}

void q_cpu_brand(char *text, size_t n) {
    if (n) text[0] = '\0';
#if defined(__x86_64__)
    unsigned r[12] = {0};
    const unsigned most = (unsigned)__get_cpuid_max(0x80000000u, NULL);
    if (most < 0x80000004u) return;
    for (unsigned i = 0; i < 3; i++)
        __get_cpuid(0x80000002u + i, &r[4 * i], &r[4 * i + 1], &r[4 * i + 2], &r[4 * i + 3]);
    char raw[sizeof r + 1];
    memcpy(raw, r, sizeof r);
    raw[sizeof r] = '\0';
    size_t used = 0;
    for (const char *p = raw; *p && used + 1 < n; p++) /* runs of spaces become one, none at the ends */
        if (*p != ' ' || (used && text[used - 1] != ' ')) text[used++] = *p;
    while (used && text[used - 1] == ' ') used--;
    if (n) text[used] = '\0';
#endif
}
