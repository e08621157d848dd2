/* harness.h: what every test program shares: Check, a main, and skips that are printed and counted.
 *
 * A test program is tests/test_X.c with `HARNESS_MAIN(suite function)`. Tests link to the library's internals, write
 * only below t_tmp(), and read only the tree (t_root()). */
#ifndef HARNESS_H
#define HARNESS_H

#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../include/libquant.h"
#include "../libquant/base.h"

/* A skipped test says why; tests/run.sh counts these lines. */
#define T_SKIP(...)                  \
    do {                             \
        printf("SKIP: " __VA_ARGS__); \
        printf("\n");                \
        fflush(stdout);              \
        return;                      \
    } while (0)

/* Sanitized builds and those that count coverage run some ten times slower (the Makefile says which): tests whose length
 * is statistics, not coverage, do less there. Scripts find T_SLOW in the environment. */
#ifndef T_SLOW
#define T_SLOW 0
#endif
/* ThreadSanitizer slows arithmetic fifty times and leaves little room for huge mappings: it is there for races. */
#ifdef __SANITIZE_THREAD__
#define T_TSAN 1
#else
#define T_TSAN 0
#endif

/* AddressSanitizer's options for a program, where the surroundings give none: T_ASAN_OPTIONS("detect_leaks=0") for those that
 * load a driver, which keeps memory until the process ends. It has to be seen by the sanitizer's own library. */
#if defined(__SANITIZE_ADDRESS__)
#define T_ASAN_OPTIONS(text)                                                              \
    __attribute__((visibility("default"))) const char *__asan_default_options(void);     \
    const char *__asan_default_options(void) { return text; }
#else
#define T_ASAN_OPTIONS(text)
#endif

/* Tokens for sequence 0 alone. */
static inline lq_status t_decode(lq_session *s, const int32_t *ids, size_t n, size_t logits_from) {
    return lq_decode(s, &(lq_item){.ids = ids, .count = n, .logits_from = logits_from}, 1);
}

/* Root of the tree, and a fresh writable folder for this program (removed by tests/run.sh). */
static inline const char *t_root(void) {
    const char *r = getenv("T_ROOT");
    return r ? r : ".";
}
static inline const char *t_tmp(void) {
    const char *r = getenv("T_TMP");
    return r ? r : "/tmp";
}
static inline char *t_path(char *buf, size_t n, const char *dir, const char *name) {
    snprintf(buf, n, "%s/%s", dir, name);
    return buf;
}
/* How many files a folder has, temporaries included; with `remove` they go, and it too. */
static inline int t_files(const char *folder, int remove) {
    int n = 0;
    DIR *d = opendir(folder);
    ck_assert_msg(d != NULL, "%s", folder);
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[1400];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        n++;
        if (remove) unlink(t_path(path, sizeof path, folder, e->d_name));
    }
    closedir(d);
    if (remove) rmdir(folder);
    return n;
}

/* Programs run through an emulator of their processor (tests/run.sh, RUNNER), some twenty times slower. */
static inline int t_emulated(void) { return getenv("T_EMULATED") != NULL; }

/* A small deterministic generator for test data (splitmix64). */
static inline uint64_t t_rand(uint64_t *s) {
    uint64_t z = (*s += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
static inline float t_uniform(uint64_t *s) { return (float)(t_rand(s) >> 40) * 0x1p-24f * 2.0f - 1.0f; }
/* Roughly normal: the sum of four uniforms. */
static inline float t_normal(uint64_t *s) {
    return (t_uniform(s) + t_uniform(s) + t_uniform(s) + t_uniform(s)) * 0.866f;
}

#define HARNESS_MAIN(make_suite)                     \
    int main(void) {                                 \
        SRunner *r_ = srunner_create(make_suite());  \
        srunner_run_all(r_, CK_NORMAL);              \
        const int f_ = srunner_ntests_failed(r_);    \
        srunner_free(r_);                            \
        return f_ ? 1 : 0;                           \
    }

#endif
