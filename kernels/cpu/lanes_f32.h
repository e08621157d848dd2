/* lanes_f32.h: products of float32 activations in the words of vec.h, lane by lane: the 16 lanes of op.h's dot are
 * sixteen products of matrices, each of every sixteenth weight and value. Bit-equal to kernels/ref.
 *
 * A lane's part of a tile of L_ROWS rows and up to L_COLUMNS columns stays in registers while its weights pass: rows
 * lie in the lanes of vectors, a value of a column meets them all, and nothing is added across a vector. The sixteen
 * results are added as op.h says: lanes come in the order 0 8 4 12 2 ..., so that a result always finds its partner
 * among at most four that wait. Activations lie in that order (q_act_lanes); weights are decoded and turned into panels
 * [lane][step][row], lanes in that order too, so that all that a tile reads are streams that the processor sees coming.
 * A lane's share of both fits the first cache up to k = 4096 or so. Two panels, where k allows, share a tile's columns,
 * which come from the third cache; more of them would leave the second cache to a neighbour.
 *
 * The file of an instruction set defines L_VECTORS (of rows to a tile), L_COLUMNS and L_TIMES_TILES(DO), which is DO(c)
 * for c from L_COLUMNS / 2 to L_COLUMNS, and then includes its words, vec.h and this. Layer L2. */
#include "../ref/lane_order.h"

enum {
    L_ROWS = L_VECTORS * V_N,
    L_PANELS = 16,           /* at a time, at most, of L_PANEL_BYTES together */
    L_PANEL_BYTES = 576 << 10
};

/* Floats from a lane of a panel to the next: a line more than its steps take, or all lanes would lie in the same sets
 * of the first cache where k is a power of two. */
static inline int64_t l_lane(int64_t k) { return (k + 15) / 16 * L_ROWS + 16; }
static inline int64_t l_panels(int64_t k) {
    return Q_MIN(Q_MAX(L_PANEL_BYTES / (64 * l_lane(k)), (int64_t)1), (int64_t)L_PANELS);
}
static inline uint64_t l_scratch(int64_t k) { return (uint64_t)(l_panels(k) * 16 * l_lane(k)) * sizeof(float); }

/* ---- activations */

/* n values in the order of q_act_lanes. */
V_IN void l_arrange(const float *x, int64_t n, float *to) {
    const int64_t steps = (n + 15) / 16;
    for (int64_t s = 0; s < steps; s += V_N)
        Q_UNROLL for (int p = 0; p < V_PARTS; p++) {
            v_f v[V_N];
            Q_UNROLL for (int j = 0; j < V_N; j++) {
                const int64_t at = 16 * (s + j) + p * V_N;
                v[j] = at < n ? v_get(x + at, n - at) : v_set(0);
            }
            v_transpose(v);
            Q_UNROLL for (int j = 0; j < V_N; j++) v_put(to + q_lane_place(p * V_N + j) * steps + s, v[j], steps - s);
        }
    const int64_t used = 16 * steps * (int64_t)sizeof(float);
    memset((uint8_t *)to + used, 0, (size_t)(q_act_bytes(&q_act_lanes, n) - used));
}

/* ---- panels */

/* V_N weights of a row, from the i-th on, of which n exist; the others are zero. */
typedef v_f (*l_load)(const uint8_t *row, int64_t i, int64_t n);
/* Weights 32 u .. 32 u + 31 of a row. */
typedef void (*l_decode)(const uint8_t *row, int64_t u, float *to);

/* V_N rows from row r of a panel on, V_N of their weights that begin with lane l: to where their lanes' step lies. */
V_IN void l_turn(v_f v[V_N], int64_t k, int64_t l, float *to) {
    v_transpose(v);
    Q_UNROLL for (int j = 0; j < V_N; j++) v_store(to + q_lane_place(l + j) * l_lane(k), v[j]);
}

V_IN const uint8_t *l_row(const q_mm *m, int64_t r) { /* rows past the last are it again */
    return m->w + (uint64_t)Q_MIN(r, m->rows - 1) * m->row_bytes;
}

V_IN void l_fill_loaded(l_load load, const q_mm *m, int64_t r0, float *panel) {
    for (int64_t g = 0; g < L_VECTORS; g++) {
        const uint8_t *row[V_N];
        for (int64_t r = 0; r < V_N; r++) row[r] = l_row(m, r0 + g * V_N + r);
        for (int64_t i = 0; i < m->k; i += V_N) {
            v_f v[V_N];
            Q_UNROLL for (int r = 0; r < V_N; r++) v[r] = load(row[r], i, m->k - i);
            l_turn(v, m->k, i % 16, panel + i / 16 * L_ROWS + g * V_N);
        }
    }
}

V_IN void l_fill_decoded(l_decode decode, const q_mm *m, int64_t r0, float *panel) {
    for (int64_t g = 0; g < L_VECTORS; g++)
        for (int64_t u = 0; u < m->k / 32; u++) {
            float w[V_N][32];
            for (int64_t r = 0; r < V_N; r++) decode(l_row(m, r0 + g * V_N + r), u, w[r]);
            for (int64_t i = 0; i < 32; i += V_N) {
                v_f v[V_N];
                Q_UNROLL for (int r = 0; r < V_N; r++) v[r] = v_load(w[r] + i);
                l_turn(v, m->k, i % 16, panel + (2 * u + i / 16) * L_ROWS + g * V_N);
            }
        }
}

/* ---- tiles */

/* A step: acc[C v + c] += the V_N rows of vector v times column c. at[b] is in column 4 b. */
V_IN void l_step(int C, const float *w, const float *const *at, int64_t next, v_f *acc) {
    v_f a[L_VECTORS];
    Q_UNROLL for (int v = 0; v < L_VECTORS; v++) a[v] = v_load(w + v * V_N);
    Q_UNROLL for (int c = 0; c < C; c++) {
        const v_f u = v_set(at[c / 4][c % 4 * next]);
        Q_UNROLL for (int v = 0; v < L_VECTORS; v++) acc[C * v + c] = v_fma(a[v], u, acc[C * v + c]);
    }
}

/* The steps of a lane. Columns lie `next` floats apart; every fourth has an address that is counted on, which leaves
 * the others to the forms of addresses and all of them in registers. */
V_IN void l_steps(int C, const float *w, const float *x, int64_t next, int64_t steps, v_f *acc) {
    enum { BASES = (L_COLUMNS + 3) / 4 };
    const float *at[BASES], *second[BASES];
    Q_UNROLL for (int b = 0; b < BASES; b++) at[b] = x + 4 * b * next;
    Q_UNROLL for (int i = 0; i < L_VECTORS * C; i++) acc[i] = v_set(0);
    for (; steps >= 2; steps -= 2, w += 2 * L_ROWS) {
        Q_UNROLL for (int b = 0; b < BASES; b++) second[b] = at[b] + 1;
        l_step(C, w, at, next, acc);
        l_step(C, w + L_ROWS, second, next, acc);
        Q_UNROLL for (int b = 0; b < BASES; b++) {
            at[b] += 2;
            __asm__("" : "+r"(at[b]));
        }
    }
    if (steps) l_step(C, w, at, next, acc);
}

/* All lanes: the products of a panel with C columns. */
V_IN void l_lanes(int C, const float *panel, const float *x, int64_t next, int64_t k, v_f *acc) {
    float wait[4][L_VECTORS * L_COLUMNS * V_N] __attribute__((aligned(64)));
    for (int t = 0; t < 16; t++) {
        const int64_t steps = (k + 15 - q_lane_place(t)) / 16;
        l_steps(C, panel + t * l_lane(k), x + t * ((k + 15) / 16), next, steps, acc);
        int had = 0;
        for (; t >> had & 1; had++) /* of two halves and of two quarters, ... */
            Q_UNROLL for (int i = 0; i < L_VECTORS * C; i++) acc[i] = v_add(v_load(wait[had] + i * V_N), acc[i]);
        if (t < 15) Q_UNROLL for (int i = 0; i < L_VECTORS * C; i++) v_store(wait[had] + i * V_N, acc[i]);
    }
}

/* A panel, of which row r0 is the first, times columns c0 .. c0 + C - 1. */
V_IN void l_tile(int C, const q_mm *m, const float *panel, int64_t r0, int64_t c0) {
    v_f acc[L_VECTORS * L_COLUMNS];
    l_lanes(C, panel, (const float *)(const void *)(m->x + c0 * m->x_stride), m->x_stride / (int64_t)sizeof(float),
            m->k, acc);
    Q_UNROLL for (int v = 0; v < L_VECTORS; v++) {
        const int64_t r = r0 + v * V_N, n = m->rows - r;
        if (n <= 0) break;
        Q_UNROLL for (int c = 0; c < C; c++) {
            float *y = m->y + (c0 + c) * m->y_stride + r;
            v_f s = acc[C * v + c];
            if (m->bias) s = v_add(s, v_get(m->bias + r, n));
            if (m->add) s = v_add(v_get(y, n), s);
            v_put(y, s, n);
        }
    }
}

/* What m's columns are multiplied in: parts of nearly one size, at most L_COLUMNS and at least half of that each. */
V_FN static void l_multiply(const q_mm *m, const float *panels, int64_t r0) {
    const int64_t parts = (m->n + L_COLUMNS - 1) / L_COLUMNS, count = l_panels(m->k);
    for (int64_t part = 0; part < parts; part++) {
        const int64_t c = m->n * part / parts, columns = m->n * (part + 1) / parts - c;
        for (int64_t p = 0, r = r0; p < count && r < m->rows; p++, r += L_ROWS) {
            const float *panel = panels + p * 16 * l_lane(m->k);
            switch (columns) {
#define L_CASE(C) \
    case C: l_tile(C, m, panel, r, c); break;
                L_TIMES_TILES(L_CASE)
#undef L_CASE
            }
        }
    }
}

/* All of a product, at least L_COLUMNS / 2 columns in lanes. One of load and decode says how rows are read. */
V_IN void l_product(const q_mm *m, l_load load, l_decode decode) {
    float *panels = (float *)m->scratch;
    const int64_t count = l_panels(m->k);
    for (int64_t r0 = 0; r0 < m->rows; r0 += count * L_ROWS) {
        for (int64_t p = 0, r = r0; p < count && r < m->rows; p++, r += L_ROWS) {
            float *panel = panels + p * 16 * l_lane(m->k);
            if (load) l_fill_loaded(load, m, r, panel);
            else l_fill_decoded(decode, m, r, panel);
        }
        l_multiply(m, panels, r0);
    }
}
