/* detect.c: which instruction sets this processor and operating system offer, as the bundles of isa.def. Asks the
 * processor (CPUID, XGETBV) each time: no state. Layer L2. */
#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

const char *const q_isa_names[Q_ISA_COUNT] = {
#define ISA(name) #name,
#include "isa.def"
#undef ISA
};

static bool present_scalar(void) { return true; }

#if defined(__x86_64__)
/* The register state that the operating system saves: bit 1 SSE, bit 2 AVX. Only after CPUID says OSXSAVE. */
static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool present_avx2(void) {
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29, AVX2 = 1 << 5, SSE_AVX_STATE = 6 };
    const unsigned want = (unsigned)FMA | (unsigned)OSXSAVE | (unsigned)AVX | (unsigned)F16C;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & want) != want) return false;
    if ((saved_state() & SSE_AVX_STATE) != SSE_AVX_STATE) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & AVX2) != 0;
}
#endif

bool q_isa_present(q_isa isa) {
    static bool (*const present[Q_ISA_COUNT])(void) = {
#define ISA(name) present_##name,
#include "isa.def"
#undef ISA
    };
    return isa < Q_ISA_COUNT && present[isa]();
}

lq_status q_isa_choose(const char *name, q_isa *out) {
    if (!name) {
        int best = Q_ISA_COUNT - 1;
        while (best > 0 && !q_isa_present((q_isa)best)) best--;
        *out = (q_isa)best;
        return LQ_OK;
    }
    for (int i = 0; i < Q_ISA_COUNT; i++) {
        if (strcmp(q_isa_names[i], name) != 0) continue;
        if (!q_isa_present((q_isa)i))
            return q_fail(LQ_E_UNSUPPORTED, "this processor or operating system does not offer \"%s\"", name);
        *out = (q_isa)i;
        return LQ_OK;
    }
    return q_fail(LQ_E_ARG, "no instruction set \"%.64s\" in this build", name);
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
