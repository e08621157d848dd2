/* rows16.c: layouts of sixteen rows side by side, one for each format.
 *
 * A block keeps the bytes of its format's codes, in words of four: word j of each of the sixteen rows makes 64 bytes,
 * so that a register of AVX-512, two of AVX2 or four of NEON hold four codes (or the nibbles of eight) of every row.
 * That is a mere change of order: packing costs what copying does, and what a bit means stays as in libquant/formats/.
 * What scales a block comes first, also for sixteen rows each: d and the minimum's d as halves or, where that fills up
 * 64 bytes, as floats, then integer scales and minima as whole bytes, in the order in which kernels load them. A
 * kernel's record of a format repeats these offsets (rows16.h). Layer L2. */
#include "rows16.h"

/* n words of each row from byte `at` on; n is a multiple of four. Four words of four rows change places at a time, in
 * vectors of the compiler's, which every processor with 16-byte registers has. */
typedef uint32_t words4 __attribute__((vector_size(16)));
static inline uint8_t *words(const uint8_t *const row[Q_PANEL], int64_t at, int n, uint8_t *to) {
    for (int r = 0; r < Q_PANEL; r += 4)
        for (int j = 0; j < n; j += 4) {
            words4 v[4];
            for (int i = 0; i < 4; i++) memcpy(&v[i], row[r + i] + at + 4 * j, sizeof v[i]);
            const words4 a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5),
                         b = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5),
                         c = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7),
                         d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
            const words4 across[4] = {
                __builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
            for (int i = 0; i < 4; i++) memcpy(to + 64 * (j + i) + 4 * r, &across[i], sizeof across[i]);
        }
    return to + 64 * n;
}
/* The half at byte `at` of each row. */
static inline uint8_t *halves(const uint8_t *const row[Q_PANEL], int64_t at, uint8_t *to) {
    for (int r = 0; r < Q_PANEL; r++) memcpy(to + 2 * r, row[r] + at, 2);
    return to + 32;
}

/* The half at byte `at` of each row, as a float. */
static inline uint8_t *floats(const uint8_t *const row[Q_PANEL], int64_t at, uint8_t *to) {
    for (int r = 0; r < Q_PANEL; r++) q_store32(to + 4 * r, q_f32_bits(q_half_to_f32(q_load16(row[r] + at))));
    return to + 64;
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
const q_cpu_layout q_rows16_q4_0 = {"rows16_q4_0", 64, Q_ROWS16_Q4_0, 0, pack_q4_0};
const q_cpu_layout q_rows16_iq4_nl = {"rows16_iq4_nl", 64, Q_ROWS16_Q4_0, 0, pack_q4_0};

static void pack_q8_0(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    pair(row, blocks, 34, 8, panel);
}
const q_cpu_layout q_rows16_q8_0 = {"rows16_q8_0", 64, Q_ROWS16_Q8_0, 0, pack_q8_0};

static void pack_q4_1(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++)
        panel = words(row, i * 20 + 4, 4, halves(row, i * 20 + 2, halves(row, i * 20, panel)));
}
const q_cpu_layout q_rows16_q4_1 = {"rows16_q4_1", 32, Q_ROWS16_Q4_1, 0, pack_q4_1};

/* The fifth bits of 32 weights, bit i of a word that of weight i: bit g of byte j becomes that of weight 4g + j, which
 * a kernel finds in the byte that holds the weight's other bits. */
static inline uint8_t *fifth(const uint8_t *const row[Q_PANEL], int64_t at, uint8_t *to) {
    for (int r = 0; r < Q_PANEL; r++) {
        const uint32_t bits = q_load32(row[r] + at);
        uint32_t v = 0;
        for (int g = 0; g < 8; g++) { /* four bits to four bytes */
            const uint32_t four = bits >> 4 * g & 15;
            v |= ((four * 0x00204081u) & 0x01010101u) << g;
        }
        q_store32(to + 4 * r, v);
    }
    return to + 64;
}

static void pack_q5_0(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i += 2, panel += Q_ROWS16_Q5_0) {
        const int both = i + 1 < blocks;
        if (!both) memset(panel, 0, Q_ROWS16_Q5_0);
        for (int j = 0; j <= both; j++) {
            halves(row, (i + j) * 22, panel + 32 * j);
            fifth(row, (i + j) * 22 + 2, panel + 64 + 64 * j);
            words(row, (i + j) * 22 + 6, 4, panel + 192 + 256 * j);
        }
    }
}
const q_cpu_layout q_rows16_q5_0 = {"rows16_q5_0", 64, Q_ROWS16_Q5_0, 0, pack_q5_0};

static void pack_q5_1(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++) {
        panel = halves(row, i * 24 + 2, halves(row, i * 24, panel));
        panel = words(row, i * 24 + 8, 4, fifth(row, i * 24 + 4, panel));
    }
}
const q_cpu_layout q_rows16_q5_1 = {"rows16_q5_1", 32, Q_ROWS16_Q5_1, 0, pack_q5_1};

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
const q_cpu_layout q_rows16_q4_k = {"rows16_q4_k", 256, Q_ROWS16_Q4_K, 0, pack_q4_k};

static void pack_q5_k(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++) panel = words(row, i * 176 + 16, 40, head_4k(row, i * 176, panel));
}
const q_cpu_layout q_rows16_q5_k = {"rows16_q5_k", 256, Q_ROWS16_Q5_K, 0, pack_q5_k};

/* n bytes of each row from byte `at` on, byte by byte: byte j of the sixteen rows, then byte j + 1. */
static inline uint8_t *bytes(const uint8_t *const row[Q_PANEL], int64_t at, int n, uint8_t *to) {
    for (int r = 0; r < Q_PANEL; r++)
        for (int j = 0; j < n; j++) to[16 * j + r] = row[r][at + j];
    return to + 16 * n;
}

static void pack_q6_k(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++) {
        panel = floats(row, i * 210 + 208, panel);
        panel = bytes(row, i * 210 + 192, 16, panel);
        panel = words(row, i * 210, 48, panel);
    }
}
const q_cpu_layout q_rows16_q6_k = {"rows16_q6_k", 256, Q_ROWS16_Q6_K, 0, pack_q6_k};

static void pack_q2_k(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++) {
        panel = halves(row, i * 84 + 82, halves(row, i * 84 + 80, panel));
        panel = words(row, i * 84 + 16, 16, bytes(row, i * 84, 16, panel));
    }
}
const q_cpu_layout q_rows16_q2_k = {"rows16_q2_k", 256, Q_ROWS16_Q2_K, 0, pack_q2_k};

/* Sixteen scales of 6 bits less 32: four bits of scale j in nibble j / 8 of byte j % 8, two in bits 2 (j / 4) of byte
 * 8 + j % 4 (q3_k.c). */
static void pack_q3_k(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++) {
        panel = floats(row, i * 110 + 108, panel);
        for (int r = 0; r < Q_PANEL; r++) {
            const uint8_t *p = row[r] + i * 110 + 96;
            for (int j = 0; j < 16; j++)
                panel[16 * j + r] =
                    (uint8_t)(((p[j & 7] >> 4 * (j / 8) & 15) | (p[8 + (j & 3)] >> 2 * (j / 4) & 3) << 4) - 32);
        }
        panel = words(row, i * 110, 24, panel + 256);
    }
}
const q_cpu_layout q_rows16_q3_k = {"rows16_q3_k", 256, Q_ROWS16_Q3_K, 0, pack_q3_k};

/* Eight scales of 6 bits less 32: four bits in nibbles of four bytes, two in a word (iq4_xs.c). */
static void pack_iq4_xs(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++) {
        panel = floats(row, i * 136, panel);
        for (int r = 0; r < Q_PANEL; r++) {
            const uint8_t *p = row[r] + i * 136;
            const uint32_t high = q_load16(p + 2), low = q_load32(p + 4);
            for (int u = 0; u < 8; u++)
                panel[16 * u + r] = (uint8_t)(((low >> 4 * u & 15) | (high >> 2 * u & 3) << 4) - 32);
        }
        panel = words(row, i * 136 + 8, 32, panel + 128);
    }
}
const q_cpu_layout q_rows16_iq4_xs = {"rows16_iq4_xs", 256, Q_ROWS16_IQ4_XS, 0, pack_iq4_xs};
