/* experts.c: mixtures of experts by the kernels of products: MOE_GLU and MOE_DOWN.
 *
 * A router's choice is turned round first: for each expert that anyone chose, the columns that chose it. Their inputs
 * are then copied next to one another (run_copy in program.c), so that an expert is one product of its rows with its
 * columns, and experts that nobody chose are not read. Units are rows: of MOE_GLU those of all chosen experts, one
 * after the other; of MOE_DOWN those of the result, because a column adds up its experts in a stated order. A router's
 * ids come out of float slots: they are kept inside the table whatever they hold. Layer L2. */
#include "program.h"

enum {
    MOST_ROWS = 256,       /* of a call of a product */
    BLOCK_FLOATS = 1 << 17 /* results of a block of rows: half a megabyte stays in the second cache */
};

/* ---------------------------------------------------------------------------------------------------- who is chosen */

void q_cpu_routes_open(q_cpu_routes *r, const q_cpu_routing *key, int32_t columns, q_ref_carve *carve) {
    r->expert = (int32_t *)q_ref_take(carve, key->matrices, sizeof(int32_t));
    r->first = (int32_t *)q_ref_take(carve, (int64_t)key->matrices + 2, sizeof(int32_t));
    r->place = (int32_t *)q_ref_take(carve, (int64_t)columns * key->used, sizeof(int32_t));
    r->pair = (int32_t *)q_ref_take(carve, (int64_t)columns * key->used, sizeof(int32_t));
}

static int32_t chosen(const q_inst *s, const q_exec *e, int64_t c, int64_t i) {
    const float id = *q_ref_flat(e, &s->z, c, i);
    return id > 0 ? id < (float)s->w->matrices ? (int32_t)id : s->w->matrices - 1 : 0;
}

void q_cpu_route_columns(const q_inst *s, const q_exec *e, int64_t n, q_cpu_routes *r) {
    const int32_t experts = s->w->matrices, used = s->n_used;
    int32_t *first = r->first;
    memset(first, 0, sizeof *first * (size_t)(experts + 2));
    for (int64_t p = 0; p < n * used; p++) first[chosen(s, e, p / used, p % used) + 2]++;
    r->active = 0;
    for (int32_t x = 0; x < experts; x++) {
        if (first[x + 2]) r->expert[r->active++] = x;
        first[x + 2] += first[x + 1];
    }
    /* first[x + 1] is where x begins; filling moves it to where x + 1 begins */
    for (int64_t p = 0; p < n * used; p++) {
        const int32_t at = first[chosen(s, e, p / used, p % used) + 1]++;
        r->place[p] = at;
        r->pair[at] = (int32_t)p;
    }
}

/* -------------------------------------------------------------------------------------------------------- products */

static int64_t tile_of(const q_cpu_stage *t) {
    return t->kernel2 ? Q_MAX(t->kernel->rows, t->kernel2->rows) : t->kernel->rows;
}

/* Rows that are computed at a time for n columns: at least a tile. */
static int64_t block_rows(int64_t tile, int64_t n) {
    const int64_t rows = Q_MIN(BLOCK_FLOATS / Q_MAX(n, (int64_t)1), (int64_t)MOST_ROWS);
    return Q_MAX(rows / tile * tile, tile);
}

/* What one thread needs for a block. */
typedef struct block {
    float *bias;     /* [rows] */
    float *y, *y2;   /* [columns][rows] products with w and w2 */
    float *weight;   /* [used] of MOE_DOWN */
    uint8_t *rest;   /* scratch of the kernels */
} block;

static void open_block(block *b, const q_cpu_stage *t, int32_t columns, q_ref_carve *carve) {
    const q_inst *s = t->inst;
    const int64_t tile = tile_of(t), n = s->op == Q_OP_MOE_DOWN ? (int64_t)columns * s->n_used : columns;
    const int64_t floats = Q_MAX(tile * n, Q_MIN(Q_MAX(MOST_ROWS, tile) * n, (int64_t)BLOCK_FLOATS));
    b->bias = (float *)q_ref_take(carve, Q_MAX(MOST_ROWS, tile), sizeof(float));
    b->y = (float *)q_ref_take(carve, floats, sizeof(float));
    b->y2 = (float *)q_ref_take(carve, s->w2 ? floats : 0, sizeof(float));
    b->weight = (float *)q_ref_take(carve, s->n_used, sizeof(float));
    uint64_t rest = t->kernel->mm_scratch(s->w->k, columns);
    if (t->kernel2) rest = Q_MAX(rest, t->kernel2->mm_scratch(s->w2->k, columns));
    b->rest = (uint8_t *)q_ref_take(carve, (int64_t)rest, 1);
}

uint64_t q_cpu_experts_scratch(const q_cpu_stage *t, int32_t columns) {
    block b;
    q_ref_carve carve = {NULL, 0};
    open_block(&b, t, columns, &carve);
    return carve.used;
}

/* Rows [r, r + rows) of matrix x of a weight with vectors [at, at + n) of a gathered copy, into y[n][rows]. A call has
 * no more columns than a batch, whatever ids a router's slot may hold. */
static void multiply(const q_cpu_lane *l, const q_weight *w, const q_weight *b, const q_cpu_kernel *k, int32_t copy,
                     int64_t x, int64_t r, int64_t rows, int64_t at, int64_t n, const block *t, float *y) {
    const uint64_t bytes = l->p->copies[copy].head_bytes;
    const int64_t batch = Q_MAX(l->p->plan->columns, l->p->plan->outs);
    /* gathered as they lie: cpu.c */
    const int64_t most = k->act && k->act->from ? Q_MIN(batch, k->act->from - 1) : batch;
    q_mm m = {
        .format = w->format, .rows = rows, .k = w->k, .x_stride = (int64_t)bytes, .y_stride = rows, .scratch = t->rest};
    m.w = k->layout ? q_layout_panels(w) : q_ref_row(w, x, r);
    m.row_bytes = k->layout ? q_layout_panel_bytes(k->layout, w->k) : w->row_bytes;
    m.row = w->packed_row + x * (int64_t)(w->matrix_bytes / w->row_bytes) + r;
    if (b) {
        q_cpu_bias(b, x, r, rows, t->bias);
        m.bias = t->bias;
    }
    for (int64_t c = 0; c < n; c += m.n) {
        m.n = Q_MIN(n - c, most);
        m.x = l->copies[copy] + (uint64_t)(at + c) * bytes;
        m.y = y + c * rows;
        k->mm(&m);
    }
}

/* --------------------------------------------------------------------------------------------------------- MOE_GLU */

static int64_t expert_units(const q_cpu_stage *t) { /* whole tiles, so that no chunk of an expert begins inside one */
    const int64_t tile = tile_of(t);
    return (t->inst->y.width + tile - 1) / tile * tile;
}

/* Rows [r, r + rows) of expert x for its columns [at, at + n). */
static void glu_block(const q_cpu_lane *l, const q_cpu_stage *t, const block *b, int64_t x, int64_t r, int64_t rows,
                      int64_t at, int64_t n) {
    const q_inst *s = t->inst;
    multiply(l, s->w, s->b, t->kernel, t->reads, x, r, rows, at, n, b, b->y);
    if (s->w2) multiply(l, s->w2, s->b2, t->kernel2, t->reads2, x, r, rows, at, n, b, b->y2);
    const q_view y = {1, 0, 1, (int32_t)rows, (int32_t)rows}, y2 = {2, 0, 1, (int32_t)rows, (int32_t)rows};
    const q_inst glu = {.op = Q_OP_GLU, .kind = s->kind, .y = y, .x = y, .z = s->w2 ? y2 : (q_view){0},
                        .limit = s->limit,
                        .alpha = s->alpha};
    float *buffers[] = {NULL, b->y, b->y2};
    q_cpu_on_buffers(l, t->fn, &glu, buffers, (int32_t)rows, n);
    const int32_t *pair = l->own->routes[t->uses].pair + at;
    for (int64_t c = 0; c < n; c++)
        memcpy(q_ref_at(&l->e, &s->y, pair[c] / s->n_used, pair[c] % s->n_used) + r, b->y + c * rows,
               (size_t)rows * sizeof(float));
}

static void run_glu(const q_cpu_lane *l, const q_cpu_stage *t, const block *b, int64_t begin, int64_t end) {
    const q_cpu_routes *route = &l->own->routes[t->uses];
    const int64_t units = expert_units(t), width = t->inst->y.width;
    for (int64_t u = begin; u < end;) {
        const int64_t x = route->expert[u / units], at = route->first[x], n = route->first[x + 1] - at;
        const int64_t next = (u / units + 1) * units, r = u % units, stop = Q_MIN(Q_MIN(end, next) - u + r, width);
        const int64_t most = Q_MAX(l->p->plan->columns, l->p->plan->outs);
        for (int64_t c = 0, part; c < n; c += part) {
            part = Q_MIN(n - c, most);
            const int64_t rows = block_rows(tile_of(t), part);
            for (int64_t i = r; i < stop; i += rows) glu_block(l, t, b, x, i, Q_MIN(rows, stop - i), at + c, part);
        }
        u = Q_MIN(end, next);
    }
}

/* -------------------------------------------------------------------------------------------------------- MOE_DOWN */

static void down_block(const q_cpu_lane *l, const q_cpu_stage *t, const block *b, int64_t r, int64_t rows) {
    const q_inst *s = t->inst;
    const q_cpu_routes *route = &l->own->routes[t->uses];
    const int64_t n = q_ref_columns(s, &l->e), used = s->n_used;
    for (int32_t i = 0; i < route->active; i++) {
        const int64_t x = route->expert[i], at = route->first[x];
        multiply(l, s->w, s->b, t->kernel, t->reads, x, r, rows, at, route->first[x + 1] - at, b, b->y + at * rows);
    }
    for (int64_t c = 0; c < n; c++) {
        for (int64_t i = 0; i < used; i++) b->weight[i] = *q_ref_flat(&l->e, &s->z, c, used + i);
        t->combine(q_ref_at(&l->e, &s->y, c, 0) + r, s->add, b->y, rows, route->place + c * used, b->weight, used);
    }
}

static void run_down(const q_cpu_lane *l, const q_cpu_stage *t, const block *b, int64_t begin, int64_t end) {
    const int64_t rows = block_rows(tile_of(t), q_ref_columns(t->inst, &l->e) * t->inst->n_used);
    for (int64_t r = begin; r < end; r += rows) down_block(l, t, b, r, Q_MIN(rows, end - r));
}

int64_t q_cpu_experts_units(const q_cpu_lane *l, const q_cpu_stage *t) {
    if (t->inst->op == Q_OP_MOE_DOWN) return q_ref_columns(t->inst, &l->e) ? t->inst->y.width : 0;
    return expert_units(t) * l->own->routes[t->uses].active;
}

void q_cpu_run_experts(const q_cpu_lane *l, const q_cpu_stage *t, int64_t begin, int64_t end) {
    block b;
    q_ref_carve carve = {(uint8_t *)l->e.scratch, 0};
    open_block(&b, t, Q_MAX(l->p->plan->columns, l->p->plan->outs), &carve);
    if (t->inst->op == Q_OP_MOE_DOWN) run_down(l, t, &b, begin, end);
    else run_glu(l, t, &b, begin, end);
}
