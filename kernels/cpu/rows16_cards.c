/* rows16_cards.c: layouts of sixteen rows side by side for the formats of model cards: INT8 per row, 4-bit and 8-bit
 * groups with zero points, NF4, 4-bit floats, ternary. As in rows16.c a block starts with what scales it; codes follow
 * in words of four bytes, sixteen rows each.
 *
 * The nibbles of NF4 are put into the order of the others (low: the first 16 of 32 weights), so that kernels take all
 * apart alike; absmax of nf4_dq is decoded. i4_row repeats its row's scale in every block. Layer L2. */
#include "rows16_cards.h"

#include "../../libquant/formats/nf4_dq.c"
#include "../../libquant/formats/nvfp4.c"
#include "../../libquant/formats/tq1_0.c"

/* n words of a row to its place in a run of words. */
static inline void words_of(const uint8_t *from, int n, int r, uint8_t *to) {
    for (int j = 0; j < n; j++) memcpy(to + 64 * j + 4 * r, from + 4 * j, 4);
}

/* ------------------------------------------------------------------------------------------------- 4-bit groups */

/* The head of a group (half d, byte z) of row r. */
static inline void head_i4(const uint8_t *from, int r, uint8_t *to) {
    memcpy(to + 2 * r, from, 2);
    to[32 + r] = from[2] & 31;
}

static inline void groups(const uint8_t *const row[Q_PANEL], int64_t blocks, int weights, uint8_t *panel) {
    const int bytes = 4 + weights / 2;
    for (int64_t i = 0; i < blocks; i++, panel += Q_ROWS16_I4_HEAD + 8 * weights) {
        memset(panel + 48, 0, 16);
        for (int r = 0; r < Q_PANEL; r++) {
            head_i4(row[r] + i * bytes, r, panel);
            words_of(row[r] + i * bytes + 4, weights / 8, r, panel + Q_ROWS16_I4_HEAD);
        }
    }
}
static void pack_i4_g32(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    groups(row, blocks, 32, panel);
}
static void pack_i4_g64(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    groups(row, blocks, 64, panel);
}
static void pack_i4_g128(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    groups(row, blocks, 128, panel);
}
const q_cpu_layout q_rows16_i4_g32 = {"rows16_i4_g32", 32, Q_ROWS16_I4_G32, 0, pack_i4_g32};
const q_cpu_layout q_rows16_i4_g64 = {"rows16_i4_g64", 64, Q_ROWS16_I4_G64, 0, pack_i4_g64};
const q_cpu_layout q_rows16_i4_g128 = {"rows16_i4_g128", 128, Q_ROWS16_I4_G128, 0, pack_i4_g128};

static void pack_i4_row(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i += 2, panel += Q_ROWS16_I4_G64) {
        const int n = blocks - i < 2 ? 4 : 8;
        memset(panel, 0, Q_ROWS16_I4_G64);
        for (int r = 0; r < Q_PANEL; r++) {
            head_i4(row[r], r, panel);
            words_of(row[r] + 4 + 16 * i, n, r, panel + Q_ROWS16_I4_HEAD);
        }
    }
}
const q_cpu_layout q_rows16_i4_row = {"rows16_i4_row", 64, Q_ROWS16_I4_G64, 0, pack_i4_row};

/* ------------------------------------------------------------------------------------------------------------ NF4 */

/* 64 weights of row r: absmax, then two runs of 16 bytes whose nibbles change places. */
static inline void group_nf4(float absmax, const uint8_t *from, int r, uint8_t *to) {
    memcpy(to + 4 * r, &absmax, 4);
    for (int u = 0; u < 2; u++, from += 16) {
        uint8_t b[16];
        for (int i = 0; i < 8; i++) { /* weights 2i, 2i + 1 and 16 + 2i, 16 + 2i + 1 */
            b[2 * i] = (uint8_t)(from[i] >> 4 | (from[8 + i] & 0xF0));
            b[2 * i + 1] = (uint8_t)((from[i] & 15) | (from[8 + i] & 15) << 4);
        }
        words_of(b, 4, r, to + 64 + 256 * u);
    }
}

static void pack_nf4(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++, panel += Q_ROWS16_NF4)
        for (int r = 0; r < Q_PANEL; r++) group_nf4(q_f32(row[r], (int)(36 * i)), row[r] + 36 * i + 4, r, panel);
}
const q_cpu_layout q_rows16_nf4 = {"rows16_nf4", 64, Q_ROWS16_NF4, 0, pack_nf4};

static void pack_nf4_dq(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++)
        for (int g = 0; g < 4; g++, panel += Q_ROWS16_NF4)
            for (int r = 0; r < Q_PANEL; r++)
                group_nf4(nf4_dq_absmax(row[r], (int)i, g), row[r] + 4 + 136 * i + 8 + 32 * g, r, panel);
}
const q_cpu_layout q_rows16_nf4_dq = {"rows16_nf4_dq", 64, Q_ROWS16_NF4, 0, pack_nf4_dq};

/* FP4 has the bytes of NF4. */
const q_cpu_layout q_rows16_fp4 = {"rows16_fp4", 64, Q_ROWS16_NF4, 0, pack_nf4};

/* ---------------------------------------------------------------------------------------------------- 4-bit floats */

/* Four blocks of 32, as far as there are so many. */
static void pack_mxfp4(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i += 4, panel += Q_ROWS16_MXFP4) {
        const int n = (int)Q_MIN(blocks - i, (int64_t)4);
        if (n < 4) memset(panel, 0, Q_ROWS16_MXFP4);
        for (int u = 0; u < n; u++)
            for (int r = 0; r < Q_PANEL; r++) {
                panel[16 * u + r] = row[r][17 * (i + u)];
                words_of(row[r] + 17 * (i + u) + 1, 4, r, panel + 64 + 256 * u);
            }
    }
}
const q_cpu_layout q_rows16_mxfp4 = {"rows16_mxfp4", 128, Q_ROWS16_MXFP4, 0, pack_mxfp4};

/* Unit u of a row: what split says, in bytes. Nibbles of each 16 are those of 8 and 8: the two halves change places. */
static inline void unit_nvfp4(const uint8_t *row, int64_t unit, int u, int r, uint8_t *panel) {
    const uint8_t *from = row + 36 * (unit / 2) + 4 + 16 * (unit % 2);
    const uint8_t *scales = row + 36 * (unit / 2) + 2 * (unit % 2);
    int sc[2];
    uint8_t b[16];
    panel[16 * u + r] = (uint8_t)(q_f32_bits(nvfp4_scales(scales[0], scales[1], sc)) >> 23);
    for (int h = 0; h < 2; h++) panel[64 + 32 * u + 16 * h + r] = (uint8_t)sc[h];
    for (int i = 0; i < 8; i++) {
        b[i] = (uint8_t)((from[i] & 15) | (from[8 + i] & 15) << 4);
        b[8 + i] = (uint8_t)(from[i] >> 4 | (from[8 + i] & 0xF0));
    }
    words_of(b, 4, r, panel + 192 + 256 * u);
}
static void pack_nvfp4(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t unit = 0; unit < 2 * blocks; unit += 4, panel += Q_ROWS16_NVFP4) {
        const int n = (int)Q_MIN(2 * blocks - unit, (int64_t)4);
        if (n < 4) memset(panel, 0, Q_ROWS16_NVFP4);
        for (int u = 0; u < n; u++)
            for (int r = 0; r < Q_PANEL; r++) unit_nvfp4(row[r], unit + u, u, r, panel);
    }
}
const q_cpu_layout q_rows16_nvfp4 = {"rows16_nvfp4", 128, Q_ROWS16_NVFP4, 0, pack_nvfp4};

/* --------------------------------------------------------------------------------------------------------- ternary */

static void pack_tq2_0(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++, panel += Q_ROWS16_TQ2_0)
        for (int r = 0; r < Q_PANEL; r++) {
            q_store32(panel + 4 * r, q_f32_bits(q_half_to_f32(q_load16(row[r] + 66 * i + 64))));
            words_of(row[r] + 66 * i, 16, r, panel + 64);
        }
}
const q_cpu_layout q_rows16_tq2_0 = {"rows16_tq2_0", 256, Q_ROWS16_TQ2_0, 0, pack_tq2_0};

/* Digits become the two bits that tq2_0 has for them: it takes a fifth more memory, and no kernel has to divide. */
static void pack_tq1_0(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++, panel += Q_ROWS16_TQ2_0)
        for (int r = 0; r < Q_PANEL; r++) {
            uint8_t b[64] = {0};
            float d[2];
            for (int u = 0; u < 8; u++) {
                int q[32], sc[2], mn[2];
                tq1_0_split(row[r], (int)i, u, q, sc, mn, d);
                for (int j = 0; j < 32; j++) b[32 * (u / 4) + j] |= (uint8_t)((q[j] + 1) << 2 * (u % 4));
            }
            memcpy(panel + 4 * r, d, 4);
            words_of(b, 16, r, panel + 64);
        }
}
const q_cpu_layout q_rows16_tq1_0 = {"rows16_tq1_0", 256, Q_ROWS16_TQ2_0, 0, pack_tq1_0};

/* ---------------------------------------------------------------------------------------------------- 8-bit groups */

/* The head of a group is repeated for each 32 of its weights, so that one kernel serves all lengths of groups. */
static inline void groups8(const uint8_t *const row[Q_PANEL], int64_t blocks, int weights, uint8_t *panel) {
    const int per = weights / 32;
    for (int64_t unit = 0; unit < blocks * per; unit += 4, panel += Q_ROWS16_I8_G) {
        const int n = (int)Q_MIN(blocks * per - unit, (int64_t)4);
        if (n < 4) memset(panel, 0, Q_ROWS16_I8_G);
        for (int u = 0; u < n; u++)
            for (int r = 0; r < Q_PANEL; r++) {
                const uint8_t *head = row[r] + (unit + u) / per * (4 + weights);
                memcpy(panel + 32 * u + 2 * r, head, 2);
                panel[128 + 16 * u + r] = head[2];
                words_of(head + 4 + 32 * ((unit + u) % per), 8, r, panel + 192 + 512 * u);
            }
    }
}
static void pack_i8_g32(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    groups8(row, blocks, 32, panel);
}
static void pack_i8_g64(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    groups8(row, blocks, 64, panel);
}
static void pack_i8_g128(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    groups8(row, blocks, 128, panel);
}
const q_cpu_layout q_rows16_i8_g32 = {"rows16_i8_g32", 128, Q_ROWS16_I8_G, 0, pack_i8_g32};
const q_cpu_layout q_rows16_i8_g64 = {"rows16_i8_g64", 128, Q_ROWS16_I8_G, 0, pack_i8_g64};
const q_cpu_layout q_rows16_i8_g128 = {"rows16_i8_g128", 128, Q_ROWS16_I8_G, 0, pack_i8_g128};

/* ------------------------------------------------------------------------------------------------------------ INT8 */

static void pack_i8_row(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel) {
    for (int r = 0; r < Q_PANEL; r++) {
        memcpy(panel + 4 * r, row[r], 4);
        for (int64_t i = 0; i < blocks; i++)
            words_of(row[r] + 4 + 32 * i, 8, r, panel + Q_ROWS16_I8_HEAD + Q_ROWS16_I8_ROW * i);
    }
}
const q_cpu_layout q_rows16_i8_row = {"rows16_i8_row", 32, Q_ROWS16_I8_ROW, Q_ROWS16_I8_HEAD, pack_i8_row};
