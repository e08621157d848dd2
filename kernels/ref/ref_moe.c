/* ref_moe.c: ROUTE, MOE_GLU, MOE_DOWN. The experts' columns are grouped first, so that a weight row is decoded once for
 * all of them. A router's ids come out of float slots: they are kept inside the table whatever they hold. Layer L2. */
#include "ref.h"

/* ----------------------------------------------------------------------------------------------------------- ROUTE */

void q_ref_route_open(q_ref_route_scratch *t, const q_inst *s, int64_t n, q_ref_carve *carve) {
    t->row = q_ref_take(carve, Q_MAX(s->w->k, s->n_groups), sizeof(float));
    t->logits = q_ref_take(carve, n * s->n_expert, sizeof(float));
    t->value = q_ref_take(carve, s->n_expert, sizeof(float));
    t->rank = q_ref_take(carve, s->n_expert, sizeof(float));
    t->taken = q_ref_take(carve, s->n_expert, 1);
}

static void softmax(float *x, int64_t n) {
    float m = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++) m = x[i] > m ? x[i] : m;
    for (int64_t i = 0; i < n; i++) sum += x[i] = expf(x[i] - m);
    const float r = 1.0f / sum;
    for (int64_t i = 0; i < n; i++) x[i] *= r;
}

/* The untaken entry with the largest rank, ties and NaN: the lowest id; there is always one while fewer than n are
 * taken. */
static int64_t best(const float *rank, const uint8_t *taken, int64_t n) {
    int64_t id = -1;
    for (int64_t i = 0; i < n; i++)
        if (!taken[i] && (id < 0 || rank[i] > rank[id])) id = i;
    return id;
}

/* Put the experts of all but the best groups out of the running. */
static void keep_groups(const q_inst *s, q_ref_route_scratch *t) {
    const int64_t size = s->n_expert / s->n_groups;
    for (int64_t g = 0; g < s->n_groups; g++) t->taken[g] = 0;
    float *score = t->row; /* no longer needed, and at least n_groups long */
    for (int64_t g = 0; g < s->n_groups; g++) {
        float a = -INFINITY, b = -INFINITY; /* the two best */
        for (int64_t i = g * size; i < (g + 1) * size; i++) {
            const float r = t->rank[i];
            if (r > a) b = a, a = r;
            else if (r > b) b = r;
        }
        score[g] = size > 1 ? a + b : a;
    }
    for (int64_t i = 0; i < s->n_groups_used; i++) t->taken[best(score, t->taken, s->n_groups)] = 1;
    for (int64_t g = s->n_groups - 1; g >= 0; g--)
        if (!t->taken[g])
            for (int64_t i = g * size; i < (g + 1) * size; i++) t->rank[i] = -INFINITY;
}

void q_ref_route_choose(const q_inst *s, q_ref_route_scratch *t, const float *logits, float *y) {
    const int64_t n = s->n_expert, used = s->n_used;
    memcpy(t->value, logits, sizeof(float) * (size_t)n);
    if (s->kind == Q_ROUTE_SOFTMAX) softmax(t->value, n);
    for (int64_t i = 0; i < n; i++) {
        if (s->kind == Q_ROUTE_SIGMOID) t->value[i] = q_ref_sigmoid(t->value[i]);
        t->rank[i] = t->value[i];
        if (s->kind == Q_ROUTE_SIGMOID && s->b2) t->rank[i] += q_ref_value(s->b2, 0, i);
    }
    if (s->n_groups > 1) keep_groups(s, t);
    memset(t->taken, 0, (size_t)n);
    float *ids = y, *weights = y + used, sum = 0;
    for (int64_t i = 0; i < used; i++) {
        const int64_t id = best(t->rank, t->taken, n);
        t->taken[id] = 1;
        ids[i] = (float)id;
        weights[i] = t->value[id];
    }
    if (s->kind == Q_ROUTE_SOFTMAX_TOP) softmax(weights, used);
    for (int64_t i = 0; i < used; i++) sum += weights[i];
    for (int64_t i = 0; i < used; i++) {
        if (s->renorm && sum > 0) weights[i] /= sum;
        weights[i] *= q_ref_or1(s->scale);
    }
}

void q_ref_route(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    q_ref_route_scratch t;
    q_ref_carve carve = {e->scratch, 0};
    q_ref_route_open(&t, s, end - begin, &carve);
    for (int64_t x = 0; x < s->n_expert; x++) {
        q_decode_row(s->w->format, q_ref_row(s->w, 0, x), s->w->k, t.row);
        const float b = q_ref_bias(s->b, 0, x);
        for (int64_t c = begin; c < end; c++) {
            float v = q_ref_dot(t.row, q_ref_at(e, &s->x, c, 0), s->w->k);
            if (s->b) v += b;
            t.logits[(c - begin) * s->n_expert + x] = v;
        }
    }
    for (int64_t c = begin; c < end; c++)
        q_ref_route_choose(s, &t, t.logits + (c - begin) * s->n_expert, q_ref_at(e, &s->y, c, 0));
}

/* --------------------------------------------------------------------------------------------------------- experts */

typedef struct moe_scratch {
    q_ref_mul mul, mul2;
    uint8_t *acts, *acts2; /* vectors in the activation formats of w and w2; MOE_DOWN has n_used per column */
    int32_t *first;        /* [experts + 1] where each expert's pairs begin */
    int32_t *pair;         /* [n * n_used] column * n_used + i, grouped by expert */
    float *value;          /* [n * n_used] products of the current row */
} moe_scratch;

static void lay_out(moe_scratch *m, const q_inst *s, const q_act *act, int64_t n, q_ref_carve *carve) {
    const int64_t pairs = n * s->n_used;
    q_ref_mul_open(&m->mul, q_ref_mul_act(act, s->w), s->w, carve);
    m->acts = q_ref_take(carve, (s->op == Q_OP_MOE_DOWN ? pairs : n) * q_ref_vector_most(s->w), 1);
    if (s->w2) {
        q_ref_mul_open(&m->mul2, q_ref_mul_act(act, s->w2), s->w2, carve);
        m->acts2 = q_ref_take(carve, n * q_ref_vector_most(s->w2), 1);
    }
    m->first = q_ref_take(carve, s->w->matrices + 2, sizeof(int32_t));
    m->pair = q_ref_take(carve, pairs, sizeof(int32_t));
    m->value = q_ref_take(carve, pairs, sizeof(float));
}

size_t q_ref_moe_scratch(const q_inst *s, int32_t n) {
    q_ref_carve carve = {NULL, 0};
    if (s->op == Q_OP_ROUTE) {
        q_ref_route_scratch t;
        q_ref_route_open(&t, s, n, &carve);
    } else {
        moe_scratch m;
        lay_out(&m, s, NULL, n, &carve);
    }
    return carve.used;
}

static int32_t expert(const q_inst *s, const q_exec *e, int64_t c, int64_t i) {
    const float id = *q_ref_flat(e, &s->z, c, i);
    return id > 0 ? id < (float)s->w->matrices ? (int32_t)id : s->w->matrices - 1 : 0;
}

/* Group the (column, i) pairs by expert, ascending within one. */
static void group(moe_scratch *m, const q_inst *s, const q_exec *e, int64_t n) {
    int32_t *first = m->first;
    memset(first, 0, sizeof *first * (size_t)(s->w->matrices + 2));
    for (int64_t p = 0; p < n * s->n_used; p++) first[expert(s, e, p / s->n_used, p % s->n_used) + 2]++;
    for (int32_t x = 0; x < s->w->matrices; x++) first[x + 2] += first[x + 1];
    /* first[x + 1] is where x begins; filling moves it to where x + 1 begins */
    for (int64_t p = 0; p < n * s->n_used; p++)
        m->pair[first[expert(s, e, p / s->n_used, p % s->n_used) + 1]++] = (int32_t)p;
}

/* The vector of row p of acts: made ready there, or the float32 one in its slot. */
static void prepare(const q_ref_mul *mul, const float *x, uint8_t *acts, int64_t p) {
    if (q_ref_mul_copies(mul)) q_ref_mul_vector(mul, x, acts + p * q_ref_mul_bytes(mul));
}
static const void *vector(const q_ref_mul *mul, const float *x, const uint8_t *acts, int64_t p) {
    return q_ref_mul_copies(mul) ? (const void *)(acts + p * q_ref_mul_bytes(mul)) : x;
}

static float product(const q_ref_mul *mul, const void *x, const q_weight *b, float bias) {
    const float v = q_ref_mul_dot(mul, x);
    return b ? v + bias : v;
}

void q_ref_moe_glu(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t n = q_ref_columns(s, e);
    moe_scratch m;
    q_ref_carve carve = {e->scratch, 0};
    lay_out(&m, s, e->act, n, &carve);
    group(&m, s, e, n);
    for (int64_t c = 0; c < n; c++) {
        prepare(&m.mul, q_ref_at(e, &s->x, c, 0), m.acts, c);
        if (s->w2) prepare(&m.mul2, q_ref_at(e, &s->x, c, 0), m.acts2, c);
    }
    for (int64_t x = 0; x < s->w->matrices; x++) {
        if (m.first[x] == m.first[x + 1]) continue;
        for (int64_t r = begin; r < end; r++) {
            q_ref_mul_row(&m.mul, q_ref_row(s->w, x, r));
            if (s->w2) q_ref_mul_row(&m.mul2, q_ref_row(s->w2, x, r));
            const float b = q_ref_bias(s->b, x, r), b2 = s->w2 ? q_ref_bias(s->b2, x, r) : 0;
            for (int32_t p = m.first[x]; p < m.first[x + 1]; p++) {
                const int64_t c = m.pair[p] / s->n_used, i = m.pair[p] % s->n_used;
                const float *in = q_ref_at(e, &s->x, c, 0);
                const float g = product(&m.mul, vector(&m.mul, in, m.acts, c), s->b, b);
                float *y = q_ref_at(e, &s->y, c, i) + r;
                *y = s->w2 ? q_ref_glu1(s, g, product(&m.mul2, vector(&m.mul2, in, m.acts2, c), s->b2, b2))
                           : q_ref_act(s->kind, g);
            }
        }
    }
}

void q_ref_moe_down(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t n = q_ref_columns(s, e), used = s->n_used;
    moe_scratch m;
    q_ref_carve carve = {e->scratch, 0};
    lay_out(&m, s, e->act, n, &carve);
    group(&m, s, e, n);
    for (int64_t p = 0; p < n * used; p++) prepare(&m.mul, q_ref_at(e, &s->x, p / used, p % used), m.acts, p);
    for (int64_t r = begin; r < end; r++) {
        for (int64_t x = 0; x < s->w->matrices; x++) {
            if (m.first[x] == m.first[x + 1]) continue;
            q_ref_mul_row(&m.mul, q_ref_row(s->w, x, r));
            const float b = q_ref_bias(s->b, x, r);
            for (int32_t q = m.first[x]; q < m.first[x + 1]; q++) {
                const int64_t p = m.pair[q];
                const float *in = q_ref_at(e, &s->x, p / used, p % used);
                m.value[p] = product(&m.mul, vector(&m.mul, in, m.acts, p), s->b, b);
            }
        }
        for (int64_t c = 0; c < n; c++) {
            float v = 0;
            for (int64_t i = 0; i < used; i++)
                v = fmaf(*q_ref_flat(e, &s->z, c, used + i), m.value[c * used + i], v);
            float *y = q_ref_flat(e, &s->y, c, r);
            *y = s->add ? *y + v : v;
        }
    }
}
