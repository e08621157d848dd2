/* ref_matmul.c: MATMUL and HEAD, and the product of one weight row with vectors (dot, idot and bdot of op.h) that they
 * share with the experts. A row is decoded once for all columns; adapters stay float32. Layer L2. */
#include "ref.h"

static float flush(float v) {
    const uint32_t bits = q_f32_bits(v);
    return (bits & 0x7F800000u) ? v : q_bits_f32(bits & 0x80000000u);
}

uint16_t q_ref_bf16(float v) { return q_f32_to_bf16(flush(v)); }

float q_ref_bdot(const float *w, const uint16_t *x, int64_t k) {
    float lane[16] = {0};
    for (int64_t i = 0; i < k; i += 32)
        for (int64_t l = 0; l < 16; l++)
            for (int64_t j = i + 2 * l + 1; j >= i + 2 * l; j--)
                lane[l] = flush(fmaf(w[j], q_bf16_to_f32(x[j]), lane[l]));
    return q_ref_fold(lane);
}

const q_act *q_ref_mul_act(const q_act *act, const q_weight *w) {
    return act && !act->lanes && (act->floats || w->format->split) && q_act_fits(act, w->k) ? act : NULL;
}

void q_ref_mul_open(q_ref_mul *m, const q_act *act, const q_weight *w, q_ref_carve *carve) {
    m->act = act;
    m->format = w->format;
    m->order = w->order;
    m->k = w->k;
    m->seg = act ? Q_MIN(q_act_block(act, w->k), q_format_span(w->format, w->k)) : 0;
    m->row = q_ref_take(carve, w->k, sizeof(float));
    m->sq = q_ref_take(carve, w->k, sizeof(int32_t));
    m->mn = q_ref_take(carve, w->k / 16 + 1, sizeof(int32_t));
    m->d = q_ref_take(carve, w->k / Q_UNIT * 2 + 2, sizeof(float));
    m->ordered = q_ref_take(carve, w->order ? w->k : 0, sizeof(float));
}

void q_ref_mul_vector(const q_ref_mul *m, const float *x, void *to) {
    float *in_order = m->act ? m->ordered : to;
    for (int64_t i = 0; m->order && i < m->k; i++) in_order[i] = x[m->order[i]];
    if (m->act) m->act->quantize(m->order ? in_order : x, m->k, to);
}

void q_ref_mul_row(q_ref_mul *m, const uint8_t *row) {
    if (!m->act) {
        q_decode_row(m->format, row, m->k, m->row);
        return;
    }
    if (m->act->floats) {
        q_decode_row(m->format, row, m->k, m->row);
        for (int64_t i = 0; i < m->k; i++) m->row[i] = q_bf16_to_f32(q_ref_bf16(m->row[i]));
        return;
    }
    const int64_t units = m->format->weights / Q_UNIT;
    for (int64_t u = 0; u < m->k / Q_UNIT; u++) {
        int q[Q_UNIT], sc[2], mn[2];
        m->format->split(row, (int)(u / units), (int)(u % units), q, sc, mn, m->d + 2 * u);
        for (int i = 0; i < Q_UNIT; i++) m->sq[u * Q_UNIT + i] = sc[i / 16] * q[i];
        m->mn[2 * u] = mn[0];
        m->mn[2 * u + 1] = mn[1];
    }
}

float q_ref_mul_dot(const q_ref_mul *m, const void *x) {
    if (!m->act) return q_ref_dot(m->row, x, m->k);
    if (m->act->floats) return q_ref_bdot(m->row, x, m->k);
    const int64_t block = q_act_block(m->act, m->k), bytes = q_act_bytes(m->act, block);
    float acc = 0;
    for (int64_t i = 0; i < m->k; i += m->seg) { /* one exact integer sum per turn */
        const int64_t within = i % block;
        const uint8_t *b = (const uint8_t *)x + i / block * bytes;
        const int16_t *sums = (const int16_t *)(const void *)(b + sizeof(float)), *sum = sums + within / 16;
        const int8_t *q = (const int8_t *)(sums + block / 16) + within;
        const float *d = m->d + i / Q_UNIT * 2, da = *(const float *)(const void *)b;
        int32_t isum = 0, msum = 0;
        for (int64_t j = 0; j < m->seg; j++) isum += m->sq[i + j] * q[j];
        acc = fmaf(d[0] * da, (float)isum, acc);
        if (!m->format->has_min) continue;
        for (int64_t g = 0; g < m->seg / 16; g++) msum += m->mn[i / 16 + g] * sum[g];
        acc = fmaf(-(d[1] * da), (float)msum, acc);
    }
    return acc;
}

/* Where a step's scratch lies. */
typedef struct matmul_scratch {
    q_ref_mul mul;
    uint8_t *acts;  /* [n] vectors of the current head, made ready */
    float *low;     /* [n][rank] A x of the current head */
    float *adapter; /* a row of A or B */
} matmul_scratch;

static void lay_out(matmul_scratch *m, const q_inst *s, const q_act *act, int64_t n, q_ref_carve *carve) {
    const int64_t rank = s->lora_a && s->lora_b ? s->lora_a->rows : 0;
    q_ref_mul_open(&m->mul, act, s->w, carve);
    m->acts = q_ref_take(carve, n * q_ref_vector_most(s->w), 1);
    m->low = q_ref_take(carve, n * rank, sizeof(float));
    m->adapter = q_ref_take(carve, rank ? Q_MAX(s->w->k, rank) : 0, sizeof(float));
}

size_t q_ref_matmul_scratch(const q_inst *s, int32_t n) {
    matmul_scratch m;
    q_ref_carve carve = {NULL, 0};
    lay_out(&m, s, NULL, n, &carve);
    return carve.used;
}

/* The vectors of head h of all n columns, ready for products: in order, quantized, and through the adapter's A. */
static void prepare_head(matmul_scratch *m, const q_inst *s, const q_exec *e, int64_t n, int64_t h) {
    if (q_ref_mul_copies(&m->mul))
        for (int64_t c = 0; c < n; c++)
            q_ref_mul_vector(&m->mul, q_ref_at(e, &s->x, c, h), m->acts + c * q_ref_mul_bytes(&m->mul));
    if (!s->lora_a || !s->lora_b) return;
    const int64_t rank = s->lora_a->rows;
    for (int64_t r = 0; r < rank; r++) {
        q_decode_row(s->lora_a->format, q_ref_row(s->lora_a, 0, r), m->mul.k, m->adapter);
        for (int64_t c = 0; c < n; c++)
            m->low[c * rank + r] = q_ref_dot(m->adapter, q_ref_at(e, &s->x, c, h), m->mul.k);
    }
}

static const void *vector(const matmul_scratch *m, const q_inst *s, const q_exec *e, int64_t c, int64_t h) {
    if (!q_ref_mul_copies(&m->mul)) return q_ref_at(e, &s->x, c, h);
    return m->acts + c * q_ref_mul_bytes(&m->mul);
}

void q_ref_matmul(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t n = q_ref_columns(s, e);
    const bool lora = s->lora_a && s->lora_b;
    matmul_scratch m;
    q_ref_carve carve = {e->scratch, 0};
    lay_out(&m, s, q_ref_mul_act(e->act, s->w), n, &carve);
    int64_t ready = -1; /* head of x whose vectors are prepared */
    for (int64_t r = begin; r < end; r++) {
        const int64_t h = s->x.heads > 1 ? r / s->y.width : 0;
        if (h != ready) prepare_head(&m, s, e, n, h);
        ready = h;
        q_ref_mul_row(&m.mul, q_ref_row(s->w, 0, r));
        if (lora) q_decode_row(s->lora_b->format, q_ref_row(s->lora_b, 0, r), s->lora_a->rows, m.adapter);
        const float b = q_ref_bias(s->b, 0, r);
        for (int64_t c = 0; c < n; c++) {
            float v = q_ref_mul_dot(&m.mul, vector(&m, s, e, c, h));
            if (s->b) v += b;
            if (lora) v += s->lora_scale * q_ref_dot(m.adapter, m.low + c * s->lora_a->rows, s->lora_a->rows);
            float *y = q_ref_flat(e, &s->y, c, r);
            *y = s->add ? *y + v : v;
        }
    }
}

void q_ref_head(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t n = e->batch->n_out;
    matmul_scratch m;
    q_ref_carve carve = {e->scratch, 0};
    lay_out(&m, s, q_ref_mul_act(e->act, s->w), n, &carve);
    if (begin < end) prepare_head(&m, s, e, n, 0);
    for (int64_t r = begin; r < end; r++) {
        q_ref_mul_row(&m.mul, q_ref_row(s->w, 0, r));
        const float b = q_ref_bias(s->b, 0, r);
        for (int64_t o = 0; o < n; o++) {
            float v = q_ref_mul_dot(&m.mul, vector(&m, s, e, o, 0));
            if (s->b) v += b;
            e->batch->logits[o * e->plan->vocab + r] = q_ref_softcap(q_ref_or1(s->scale) * v, s->softcap);
        }
    }
}
