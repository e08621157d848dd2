/* base.h: what every file may use: integer helpers with checked arithmetic, half-float conversion by bits, hashing.
 *
 * Owns no state and calls nothing but the C library's memory functions. Layer L0. */
#ifndef Q_BASE_H
#define Q_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "libquant reads little-endian files in place: big-endian machines are not supported"
#endif

#define Q_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define Q_MIN(a, b) ((a) < (b) ? (a) : (b))
#define Q_MAX(a, b) ((a) > (b) ? (a) : (b))
#define Q_UNUSED(x) ((void)(x))
#define Q_ALIGN 64u /* bytes: every buffer of ours; a cache line and an AVX-512 register */

#if defined(__GNUC__)
#define Q_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define Q_LIKELY(x) __builtin_expect(!!(x), 1)
#else
#define Q_PRINTF(fmt, args)
#define Q_LIKELY(x) (x)
#endif

/* Before arithmetic on a few local values that sanitizers make ten times slower and could find nothing in. */
#if defined(Q_SANITIZED)
#define Q_UNCHECKED __attribute__((no_sanitize("address", "undefined", "thread")))
#else
#define Q_UNCHECKED
#endif

/* What `make analyze` cannot know by itself; nothing in any other build. */
#if defined(Q_ANALYZE)
#define Q_ASSUME(x) do { if (!(x)) __builtin_unreachable(); } while (0)
#else
#define Q_ASSUME(x) Q_UNUSED(0)
#endif

/* Checked arithmetic: true on overflow, as the compiler's builtins; *r is then unspecified. */
static inline bool q_add_overflow(uint64_t a, uint64_t b, uint64_t *r) { return __builtin_add_overflow(a, b, r); }
static inline bool q_mul_overflow(uint64_t a, uint64_t b, uint64_t *r) { return __builtin_mul_overflow(a, b, r); }

/* Round up to a multiple of a power of two; the caller made sure that it cannot overflow. */
static inline uint64_t q_round_up(uint64_t x, uint64_t to) { return (x + to - 1) & ~(to - 1); }
static inline bool q_is_pow2(uint64_t x) { return x != 0 && (x & (x - 1)) == 0; }

/* Bytes that are not NUL-terminated: names and texts inside a mapped file. */
typedef struct q_str {
    const char *p;
    uint64_t n;
} q_str;

static inline q_str q_str_of(const char *s) { return (q_str){s, strlen(s)}; }
static inline bool q_str_eq(q_str a, q_str b) { return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, (size_t)a.n) == 0); }
static inline bool q_str_is(q_str a, const char *s) { return q_str_eq(a, q_str_of(s)); }
static inline bool q_str_begins(q_str a, const char *s) {
    const size_t n = strlen(s);
    return a.n >= n && memcmp(a.p, s, n) == 0;
}
/* Something stands before it. */
static inline bool q_str_ends(q_str a, const char *s) {
    const size_t n = strlen(s);
    return a.n > n && memcmp(a.p + a.n - n, s, n) == 0;
}
/* Lists of words joined by commas: take the first off the list; false when it is used up, or NULL. "" is one empty
 * word. */
static inline bool q_list_next(const char **list, q_str *word) {
    if (!*list) return false;
    *word = (q_str){*list, strcspn(*list, ",")};
    *list = (*list)[word->n] ? *list + word->n + 1 : NULL;
    return true;
}
static inline bool q_listed(const char *list, q_str word) {
    q_str each;
    while (q_list_next(&list, &each))
        if (q_str_eq(each, word)) return true;
    return false;
}
/* Equal but for one bit: what a damaged copy of `s` looks like. */
static inline bool q_str_bit_off(q_str a, q_str s) {
    uint64_t i = 0;
    if (a.n != s.n) return false;
    while (i < a.n && a.p[i] == s.p[i]) i++;
    if (i == a.n || !q_is_pow2((uint8_t)(a.p[i] ^ s.p[i]))) return false;
    return memcmp(a.p + i + 1, s.p + i + 1, (size_t)(a.n - i - 1)) == 0;
}

/* FNV-1a, 32 and 64 bits (Fowler, Noll, Vo; IETF draft-eastlake-fnv). For tables and change detection, not security. */
static inline uint32_t q_fnv32(const void *data, size_t n) {
    const uint8_t *p = (const uint8_t *)data;
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 16777619u;
    return h;
}
static inline uint64_t q_fnv64(const void *data, size_t n) {
    const uint8_t *p = (const uint8_t *)data;
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 1099511628211u;
    return h;
}
/* More data behind what gave h. */
static inline uint64_t q_fnv64_mix(uint64_t h, const void *data, size_t n) {
    return h * 1099511628211u ^ q_fnv64(data, n);
}

/* Unaligned little-endian loads and stores. */
static inline uint16_t q_load16(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t q_load32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t q_load64(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline void q_store16(void *p, uint16_t v) { memcpy(p, &v, 2); }
static inline void q_store32(void *p, uint32_t v) { memcpy(p, &v, 4); }

static inline float q_bits_f32(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t q_f32_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

/* IEEE 754 binary16 to binary32, exact, subnormals included, by bits: no hardware or compiler half type needed. */
static inline float q_half_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 0x3FFu;
    if (exp == 31) return q_bits_f32(sign | 0x7F800000u | man << 13);
    if (exp != 0) return q_bits_f32(sign | (exp + 112) << 23 | man << 13);
    const float f = (float)man * 0x1p-24f; /* exact: man < 2^10 */
    return q_bits_f32(sign | q_f32_bits(f));
}

/* binary32 to binary16, round to nearest even; overflow to infinity, NaN stays NaN. */
static inline uint16_t q_f32_to_half(float f) {
    const uint32_t x = q_f32_bits(f), sign = (x >> 16) & 0x8000u, a = x & 0x7FFFFFFFu;
    if (a > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
    if (a >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* >= 65520 rounds to infinity */
    if (a < 0x38800000u) { /* below 2^-14: subnormal half; the float addition rounds at 2^-24 for us */
        const float r = q_bits_f32(a) + 0.5f;
        return (uint16_t)(sign | (q_f32_bits(r) - 0x3F000000u));
    }
    const uint32_t odd = (a >> 13) & 1u;
    return (uint16_t)(sign | ((a + 0xFFFu + odd - 0x38000000u) >> 13));
}

/* bfloat16: the upper half of a binary32; round to nearest even, NaN stays NaN. */
static inline float q_bf16_to_f32(uint16_t b) { return q_bits_f32((uint32_t)b << 16); }
static inline uint16_t q_f32_to_bf16(float f) {
    const uint32_t x = q_f32_bits(f);
    if ((x & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(x >> 16 | 0x40u);
    return (uint16_t)((x + 0x7FFFu + ((x >> 16) & 1u)) >> 16);
}

#endif
