/* rows16.c: layouts of sixteen rows side by side, one for each format.
 *
 * A block keeps the bytes of its format's codes, in words of four: word j of each of the sixteen rows makes 64 bytes,
 * so that a register of AVX-512, two of AVX2 or four of NEON hold four codes (or the nibbles of eight) of every row.
 * That is a mere change of order: packing costs what copying does, and what a bit means stays as in libquant/formats/.
 * What scales a block comes first, also for sixteen rows each: d and the minimum's d as halves or, where that fills up
 * 64 bytes, as floats, then integer scales and minima as whole bytes, in the order in which kernels load them. A
 * kernel's record of a format repeats these offsets (rows16.h). Layer L2. */
#include "rows16.h"

/* n words of each row from byte `at` on. */
static inline uint8_t *words(const uint8_t *const row[Q_PANEL], int64_t at, int n, uint8_t *to) {
    for (int r = 0; r < Q_PANEL; r++)
        for (int j = 0; j < n; j++) memcpy(to + 64 * j + 4 * r, row[r] + at + 4 * j, 4);
    return to + 64 * n;
}
/* The half at byte `at` of each row. */
static inline uint8_t *halves(const uint8_t *const row[Q_PANEL], int64_t at, uint8_t *to) {
    for (int r = 0; r < Q_PANEL; r++) memcpy(to + 2 * r, row[r] + at, 2);
    return to + 32;
}

/* ------------------------------------------------------------------------------------------------ blocks of 32 */

/* Two blocks of 32 to one of the layout, so that it is a multiple of 64 bytes: halves of both, then codes of both. */
static inline void pair(const uint8_t *const row[Q_PANEL], int64_t blocks, int bytes, int n, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i += 2, panel += 64 + 128 * n) {
        const int both = i + 1 < blocks;
        if (!both) memset(panel, 0, (size_t)(64 + 128 * n));
        for (int j = 0; j <= both; j++) {
            halves(row, (i + j) * bytes, panel + 32 * j);
            words(row, (i + j) * bytes + 2, n, panel + 64 + 64 * n * j);
        }
    }
}

static void pack_q4_0(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    pair(row, blocks, 18, 4, panel);
}
const q_cpu_layout q_rows16_q4_0 = {"rows16_q4_0", 64, Q_ROWS16_Q4_0, pack_q4_0};

static void pack_q8_0(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    pair(row, blocks, 34, 8, panel);
}
const q_cpu_layout q_rows16_q8_0 = {"rows16_q8_0", 64, Q_ROWS16_Q8_0, pack_q8_0};

/* ----------------------------------------------------------------------------------------------- blocks of 256 */

/* The eight scales, or minima, of 6 bits in 12 bytes (q4_k.c), as bytes. */
static inline uint64_t scales6(const uint8_t *p) {
    const uint32_t a = q_load32(p), c = q_load32(p + 8);
    return (a & 0x3F3F3F3Fu) | (uint64_t)((c & 0x0F0F0F0Fu) | (a >> 2 & 0x30303030u)) << 32;
}
static inline uint64_t minima6(const uint8_t *p) {
    const uint32_t b = q_load32(p + 4), c = q_load32(p + 8);
    return (b & 0x3F3F3F3Fu) | (uint64_t)((c >> 4 & 0x0F0F0F0Fu) | (b >> 2 & 0x30303030u)) << 32;
}

/* Of each row: d, dmin; a scale of each unit; a minimum of each unit. */
static inline uint8_t *head_4k(const uint8_t *const row[Q_PANEL], int64_t at, uint8_t *to) {
    halves(row, at, to);
    halves(row, at + 2, to + 32);
    to += 64;
    for (int r = 0; r < Q_PANEL; r++) {
        const uint64_t sc = scales6(row[r] + at + 4), mn = minima6(row[r] + at + 4);
        for (int u = 0; u < 8; u++) {
            to[16 * u + r] = (uint8_t)(sc >> 8 * u);
            to[128 + 16 * u + r] = (uint8_t)(mn >> 8 * u);
        }
    }
    return to + 256;
}

static void pack_q4_k(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++) panel = words(row, i * 144 + 16, 32, head_4k(row, i * 144, panel));
}
const q_cpu_layout q_rows16_q4_k = {"rows16_q4_k", 256, Q_ROWS16_Q4_K, pack_q4_k};
