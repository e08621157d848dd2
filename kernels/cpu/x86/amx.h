/* amx.h: the tile operations of AMX-INT8, as the instructions and as C that does exactly the same.
 *
 * A tile is 16 rows of 64 bytes at most. The product of bytes adds to each of 16 x 16 sums of 32 bits those of all
 * bytes of a row of A and a column of B, whose words of four bytes are four consecutive bytes of that column: nothing
 * saturates. Shapes are set once for a stretch of work (Q_T_BEGIN), at whose end the tiles are given up (Q_T_END): then
 * the thread carries no tile state, neither into the host's code nor through a switch of threads.
 *
 * With Q_AMX_EMULATED, which a test defines before it compiles kernels for itself, tiles are memory. The instructions
 * are inline assembly, which knows numbers of tiles only as text; "memory" tells compilers what they read and write.
 * Layer L2. */
#ifndef Q_AMX_H
#define Q_AMX_H

#include "i8_avx512.h"

enum { Q_T_ROWS = 16, Q_T_BYTES = 64, Q_T_TILE = Q_T_ROWS * Q_T_BYTES, Q_T_TILES = 8 };

/* What ldtilecfg reads. */
typedef struct q_t_config {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
} q_t_config;
_Static_assert(sizeof(q_t_config) == 64, "the configuration of tiles is 64 bytes");

/* Tiles 0 to 3: sums. 4 and 5: A, rows of `depth` bytes. 6 and 7: B, `depth` / 4 rows. */
static inline q_t_config q_t_shapes(int depth) {
    q_t_config c = {.palette = 1};
    for (int i = 0; i < Q_T_TILES; i++) {
        c.bytes[i] = (uint16_t)(i == 4 || i == 5 ? depth : Q_T_BYTES);
        c.rows[i] = (uint8_t)(i >= 6 ? depth / 4 : Q_T_ROWS);
    }
    return c;
}

#define Q_AMX_BEGIN(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(config)) : "memory")
#define Q_AMX_END() __asm__ volatile("tilerelease" : : : "memory")
#define Q_AMX_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : : : "memory")
/* Rows at p, p + pitch, ... */
#define Q_AMX_LOAD(tile, p, pitch) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"((const void *)(p)), "r"((int64_t)(pitch)) : "memory")
#define Q_AMX_STORE(tile, p, pitch) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"((void *)(p)), "r"((int64_t)(pitch)) : "memory")
/* sums += a * b, signed bytes. */
#define Q_AMX_MULTIPLY(sums, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sums : : : "memory")

/* What kernels say. Q_T_NAME: the name of a function of kernels.def. */
#ifndef Q_AMX_EMULATED

#define Q_T_NAME(name) q_##name
#define Q_T_BEGIN(config) Q_AMX_BEGIN(config)
#define Q_T_END() Q_AMX_END()
#define Q_T_ZERO(tile) Q_AMX_ZERO(tile)
#define Q_T_LOAD(tile, p, pitch) Q_AMX_LOAD(tile, p, pitch)
#define Q_T_STORE(tile, p, pitch) Q_AMX_STORE(tile, p, pitch)
#define Q_T_MULTIPLY(sums, a, b) Q_AMX_MULTIPLY(sums, a, b)

#else

/* The tiles of the one thread that a test has. */
static struct {
    q_t_config config;
    uint8_t tile[Q_T_TILES][Q_T_ROWS][Q_T_BYTES];
} q_t_state;

static inline void q_t_begin(const q_t_config *c) {
    memset(&q_t_state, 0, sizeof q_t_state);
    q_t_state.config = *c;
}
static inline void q_t_end(void) { memset(&q_t_state, 0, sizeof q_t_state); }
static inline void q_t_zero(int t) { memset(q_t_state.tile[t], 0, sizeof q_t_state.tile[t]); }
static inline void q_t_load(int t, const uint8_t *p, int64_t pitch) {
    q_t_zero(t);
    for (int r = 0; r < q_t_state.config.rows[t]; r++)
        memcpy(q_t_state.tile[t][r], p + r * pitch, q_t_state.config.bytes[t]);
}
static inline void q_t_store(int t, uint8_t *p, int64_t pitch) {
    for (int r = 0; r < q_t_state.config.rows[t]; r++)
        memcpy(p + r * pitch, q_t_state.tile[t][r], q_t_state.config.bytes[t]);
}
static inline void q_t_multiply(int sums, int a, int b) {
    for (int m = 0; m < q_t_state.config.rows[sums]; m++)
        for (int n = 0; n < q_t_state.config.bytes[sums] / 4; n++) {
            uint8_t *at = q_t_state.tile[sums][m] + 4 * n;
            uint32_t sum = q_load32(at); /* wraps, as the instruction's does */
            for (int k = 0; k < q_t_state.config.bytes[a]; k++)
                sum += (uint32_t)((int8_t)q_t_state.tile[a][m][k] * (int8_t)q_t_state.tile[b][k / 4][4 * n + k % 4]);
            q_store32(at, sum);
        }
}

#define Q_T_NAME(name) q_emulated_##name
#define Q_T_BEGIN(config) q_t_begin(config)
#define Q_T_END() q_t_end()
#define Q_T_ZERO(tile) q_t_zero(tile)
#define Q_T_LOAD(tile, p, pitch) q_t_load(tile, (const uint8_t *)(p), pitch)
#define Q_T_STORE(tile, p, pitch) q_t_store(tile, (uint8_t *)(p), pitch)
#define Q_T_MULTIPLY(sums, a, b) q_t_multiply(sums, a, b)

#endif
#endif
