/* embed.c: lq_embed: one vector for a text, from the hidden rows that its tokens have behind the final norm.
 *
 * A session with `embed` has a plan whose HEAD is a copy to slot 1 instead (plan.c), so that hidden rows come out of
 * the last segment as they do where a device's layers end. decode.c shows each pass's rows here. Sums are in double and
 * go up in positions. Refuses what would drop tokens of a text. Nothing is allocated. Layer L3. */
#include "engine.h"

#include <math.h>

lq_status q_embed_shape(const lq_session_options *o, const q_session_shape *s) {
    if (o->embed > 1) return q_fail(LQ_E_ARG, "embed is %u, not 0 or 1", o->embed);
    if (!o->embed) return LQ_OK;
    if (s->overflow != Q_OVERFLOW_ERROR)
        return q_fail(LQ_E_ARG, "embed goes with overflow 'error': a vector stands for all of a text");
    if (s->drafts) return q_fail(LQ_E_ARG, "embed with ngram or draft: there are no tokens to guess");
    return LQ_OK;
}

lq_status q_embed_rows(lq_session *s, uint32_t n_shares, const float *rows) {
    const int32_t width = s->plan->slot_width[1];
    for (uint32_t i = 0; i < n_shares; i++) {
        const q_share *h = &s->shares[i];
        const uint32_t at = s->kv_book.seqs[h->seq].stored;
        double *sum = s->sums + (uint64_t)i * (uint64_t)width;
        for (uint32_t j = 0; j < h->taken; j++, rows += width) {
            if (at + j < h->from || (s->pooling == LQ_POOL_FIRST && at + j > 0)) continue;
            for (int32_t k = 0; k < width; k++) {
                if (!isfinite(rows[k]))
                    return q_fail(LQ_E_NUMERIC,
                                  "the hidden values of token %u are not finite: the model's weights are damaged",
                                  at + j);
                sum[k] += (double)rows[k];
            }
        }
    }
    return LQ_OK;
}

static void finish(const double *sum, int32_t width, double count, bool normalize, float *out) {
    double squares = 0;
    for (int32_t k = 0; k < width; k++) squares += sum[k] / count * (sum[k] / count);
    const double scale = !normalize ? 1 : squares > 0 ? 1 / sqrt(squares) : 0;
    for (int32_t k = 0; k < width; k++) out[k] = (float)(sum[k] / count * scale);
}

lq_status q_session_embed(lq_session *s, const lq_item *items, size_t n, const lq_embed_options *options, float *out) {
    const uint64_t width = (uint64_t)s->plan->slot_width[1];
    lq_embed_options o;
    Q_TRY(q_struct_in(options, &o, sizeof o, "lq_embed_options"));
    if (!s->shape.embed)
        return q_fail(LQ_E_ARG, "lq_embed: the session was opened for logits (lq_session_options.embed)");
    if (o.pooling > LQ_POOL_FIRST || o.no_normalize > 1)
        return q_fail(LQ_E_ARG, "lq_embed: pooling %u or no_normalize %u is out of range", o.pooling, o.no_normalize);
    if (n > s->shape.seqs) return q_fail(LQ_E_ARG, "lq_embed: %zu items for %u sequences", n, s->shape.seqs);
    for (size_t i = 0; i < n; i++) {
        Q_TRY(q_session_has_seq(s, items[i].sequence));
        s->items[i] = items[i];
        s->items[i].logits_from = o.pooling == LQ_POOL_LAST && items[i].count ? items[i].count - 1 : 0;
    }
    for (size_t i = 0; i < n; i++) q_kv_truncate(&s->kv_book, items[i].sequence, 0);
    memset(s->sums, 0, n * width * sizeof *s->sums);
    s->pooling = o.pooling;
    Q_TRY(q_session_decode(s, s->items, n, o.pooling != LQ_POOL_LAST));
    for (size_t i = 0; i < n; i++)
        finish(s->sums + i * width, (int32_t)width, o.pooling == LQ_POOL_MEAN ? (double)items[i].count : 1,
               !o.no_normalize, out + i * width);
    return LQ_OK;
}
