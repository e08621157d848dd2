/* ref_column.c: the operations that treat each column by itself and hardly compute: EMBED COPY GLU SCALE ROPE.
 * Layer L2. */
#include "ref.h"

size_t q_ref_embed_scratch(const q_inst *s) {
    q_ref_carve carve = {NULL, 0};
    q_ref_take(&carve, s->w ? s->w->k : 0, sizeof(float));
    q_ref_take(&carve, s->w ? s->w->k : 0, sizeof(float));
    return carve.used;
}

static void add_row(const q_weight *w, int64_t row, float *tmp, float *y) {
    if (!w) return;
    q_decode_row(w->format, q_ref_row(w, 0, row), w->k, tmp);
    for (int64_t i = 0; i < w->k; i++) y[i] += tmp[i];
}

void q_ref_embed(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t width = (int64_t)s->y.heads * s->y.width;
    if (!e->batch->ids) {
        const int64_t stride = e->plan->slot_width[1];
        for (int64_t c = begin; c < end; c++)
            for (int64_t i = 0; i < width; i++) *q_ref_flat(e, &s->y, c, i) = e->batch->x[c * stride + i];
        return;
    }
    const float scale = q_ref_or1(s->scale);
    q_ref_carve carve = {e->scratch, 0};
    float *row = q_ref_take(&carve, s->w->k, sizeof(float)), *tmp = q_ref_take(&carve, s->w->k, sizeof(float));
    for (int64_t c = begin; c < end; c++) {
        q_decode_row(s->w->format, q_ref_row(s->w, 0, e->batch->ids[c]), s->w->k, row);
        for (int64_t i = 0; i < s->w->k; i++) row[i] *= scale;
        add_row(s->w2, e->batch->pos[c], tmp, row);
        add_row(s->w3, 0, tmp, row);
        for (int64_t i = 0; i < width; i++) *q_ref_flat(e, &s->y, c, i) = row[i];
    }
}

void q_ref_copy(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const bool spread = s->x.heads == 1 && s->x.width == s->y.width; /* one head into all */
    const int64_t n = (int64_t)s->y.heads * s->y.width;
    for (int64_t c = begin; c < end; c++) {
        const int64_t from = q_ref_gather(s, e, c);
        for (int64_t i = 0; i < n; i++)
            *q_ref_flat(e, &s->y, c, i) = *q_ref_flat(e, &s->x, from, spread ? i % s->x.width : i);
    }
}

void q_ref_glu(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t n = (int64_t)s->y.heads * s->y.width;
    for (int64_t c = begin; c < end; c++)
        for (int64_t i = 0; i < n; i++) {
            const float x = *q_ref_flat(e, &s->x, c, i);
            *q_ref_flat(e, &s->y, c, i) =
                s->z.slot ? q_ref_glu1(s, x, *q_ref_flat(e, &s->z, c, i)) : q_ref_act(s->kind, x);
        }
}

void q_ref_scale(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t n = (int64_t)s->y.heads * s->y.width;
    for (int64_t c = begin; c < end; c++) {
        const float gate = s->z.slot ? q_ref_sigmoid(*q_ref_at(e, &s->z, c, 0)) : 1.0f;
        for (int64_t i = 0; i < n; i++) {
            const float v = q_ref_softcap(q_ref_or1(s->scale) * *q_ref_flat(e, &s->x, c, i) * gate, s->softcap);
            float *y = q_ref_flat(e, &s->y, c, i);
            *y = s->add ? *y + v : v;
        }
    }
}

void q_ref_rope(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t half = s->rot / 2;
    const bool pairs = s->kind == Q_ROPE_PAIRS;
    const float mscale = q_ref_or1(s->mscale);
    for (int64_t c = begin; c < end; c++) {
        const float pos = (float)e->batch->pos[q_ref_gather(s, e, c)], *freqs = q_ref_freqs(s, e, c);
        for (int64_t i = 0; i < half; i++) { /* one angle for all heads */
            const float angle = pos * freqs[i], co = cosf(angle) * mscale, si = sinf(angle) * mscale;
            const int64_t i0 = pairs ? 2 * i : i, i1 = pairs ? 2 * i + 1 : i + half;
            for (int64_t h = 0; h < s->x.heads; h++) {
                const float *x = q_ref_at(e, &s->x, c, h);
                float *y = q_ref_at(e, &s->y, c, h);
                const float a = x[i0], b = x[i1];
                y[i0] = a * co - b * si;
                y[i1] = a * si + b * co;
            }
        }
        for (int64_t h = 0; h < s->x.heads; h++) {
            const float *x = q_ref_at(e, &s->x, c, h);
            float *y = q_ref_at(e, &s->y, c, h);
            for (int64_t i = s->rot; i < s->x.width; i++) y[i] = x[i];
        }
    }
}
