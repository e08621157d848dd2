/* help_kernel.h: memory that shows what a kernel does to its surroundings, and the distance of results. */
#ifndef HELP_KERNEL_H
#define HELP_KERNEL_H

#include "harness.h"

#include "../kernels/cpu/cpu.h"

#include <sys/mman.h>
#include <unistd.h>

enum { GUARD = 37 };
static const uint32_t guard_bits = 0x7FA5A5A5u; /* a NaN that no kernel makes */

/* Check notes every assertion that passes, which took a quarter of a test of millions: in loops only one that fails is
 * worth it. */
#define NEED_THAT(ok, ...)                    \
    do {                                      \
        if (!(ok)) ck_abort_msg(__VA_ARGS__); \
    } while (0)

static inline float *guarded(int64_t n) {
    float *p = (float *)malloc((size_t)(n + 2 * GUARD) * sizeof(float));
    for (int64_t i = 0; i < n + 2 * GUARD; i++) p[i] = q_bits_f32(guard_bits);
    return p + GUARD;
}
static inline void check_guards(const float *p, int64_t n, const char *what) {
    for (int64_t i = 0; i < GUARD; i++)
        NEED_THAT(q_f32_bits(p[-1 - i]) == guard_bits && q_f32_bits(p[n + i]) == guard_bits, "%s: guard", what);
}
static inline void free_guarded(float *p) { free(p - GUARD); }

/* n bytes right in front of a page that may not be touched: a read past the end is a crash, and the start is at any
 * alignment. */
static inline uint8_t *fenced(size_t n) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (n + page - 1) / page * page;
    uint8_t *p = (uint8_t *)mmap(NULL, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(p, MAP_FAILED);
    ck_assert_int_eq(mprotect(p + bytes, page, PROT_NONE), 0);
    return p + bytes - n;
}
/* The same right behind such a page. */
static inline uint8_t *fenced_below(size_t n) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (n + page - 1) / page * page;
    uint8_t *p = (uint8_t *)mmap(NULL, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(p, MAP_FAILED);
    ck_assert_int_eq(mprotect(p, page, PROT_NONE), 0);
    return p + page;
}
static inline void free_fenced_below(uint8_t *p, size_t n) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (n + page - 1) / page * page;
    munmap(p - page, bytes + page);
}
/* From here on a write is a crash too: n bytes of either kind. */
static inline void read_only(uint8_t *p, size_t n) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)p / page * page;
    ck_assert_int_eq(mprotect((void *)from, (uintptr_t)p + n - from, PROT_READ), 0);
}
static inline void free_fenced(uint8_t *p, size_t n) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (n + page - 1) / page * page;
    munmap(p + n - bytes, bytes + page);
}

/* |a - b|^2 / |b|^2 */
static inline double nmse(const float *a, const float *b, int64_t n) {
    double d = 0, s = 0;
    for (int64_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        s += (double)b[i] * b[i];
    }
    return s > 0 ? d / s : d;
}

#endif
