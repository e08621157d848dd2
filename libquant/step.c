/* step.c: lq_step: sequences that go on by the tokens that their samplers choose.
 *
 * What a step appends last is evaluated by the next one, so every choice is made once, and nobody pays for logits that
 * no choice is made from. Nothing is allocated. Layer L3. */
#include "engine.h"

/* The row of logits that the next token of a sequence is chosen from; -1 = the last call kept none. */
static int64_t row_of(const lq_session *s, uint32_t seq) {
    const q_kv_seq *q = &s->kv_book.seqs[seq];
    if (q->stored < q->length) return -1;
    for (uint32_t i = 0; i < s->n_logits; i++)
        if (s->rows[i].seq == seq && s->rows[i].tokens == q->dropped + q->length) return i;
    return -1;
}

static lq_status check_step_item(const lq_session *s, const lq_step_item *t, const lq_sampler *o) {
    Q_TRY(q_session_has_seq(s, t->sequence));
    if (s->kv_book.seqs[t->sequence].length == 0)
        return q_fail(LQ_E_ARG, "lq_step: sequence %u is empty: lq_decode or lq_sync evaluates a prompt", t->sequence);
    if (o->ignore_eos > 1) return q_fail(LQ_E_ARG, "lq_step: ignore_eos is %u, not 0 or 1", o->ignore_eos);
    return q_stops_check(o);
}

/* The caller's item i, whose struct may be older or newer than ours. */
static void *item_at(lq_step_item *items, size_t i) { return (char *)items + i * items->size; }

/* A copy of item i and of its sampler. */
static lq_status read_step(lq_step_item *items, size_t i, lq_step_item *t, lq_sampler *o) {
    const uint32_t size = items->size;
    uint32_t own;
    memcpy(&own, item_at(items, i), sizeof own);
    if (size < offsetof(lq_step_item, end) || own != size)
        return q_fail(LQ_E_ARG, "lq_step_item.size of item %zu is %u, of the first %u: set all to sizeof of the struct",
                      i, own, size);
    Q_TRY(q_struct_in(item_at(items, i), t, sizeof *t, "lq_step_item"));
    Q_TRY(q_struct_in(t->sampler, o, sizeof *o, "lq_sampler"));
    o->size = sizeof *o;
    return LQ_OK;
}

static lq_status check_steps(lq_session *s, lq_step_item *items, size_t n) {
    if (n == 0) return q_fail(LQ_E_ARG, "lq_step: no items");
    if (s->shape.embed) return q_fail(LQ_E_ARG, "lq_step: the session was opened for lq_embed, and has no logits");
    if (n > s->shape.seqs) return q_fail(LQ_E_ARG, "lq_step: %zu items for %u sequences", n, s->shape.seqs);
    if (n > s->shape.max_logits)
        return q_fail(LQ_E_ARG, "lq_step: %zu items, the session keeps %u rows of logits (max_logits)", n,
                      s->shape.max_logits);
    memset(s->count, 0, s->shape.seqs * sizeof *s->count);
    for (size_t i = 0; i < n; i++) {
        lq_step_item t;
        lq_sampler o;
        Q_TRY(read_step(items, i, &t, &o));
        Q_TRY(check_step_item(s, &t, &o));
        if (s->count[t.sequence]++)
            return q_fail(LQ_E_ARG, "lq_step: item %zu is of sequence %u, as another before it", i, t.sequence);
        s->of[i] = t.sequence;
    }
    return LQ_OK;
}

/* The text of a sequence begins, unless it has begun. */
static void begin(lq_session *s, uint32_t seq) {
    q_answer *a = &s->answers[seq];
    const q_kv_seq *q = &s->kv_book.seqs[seq];
    if (a->begun) return;
    a->begun = true;
    a->starts = q->ids[q->length - 1] == q_text_vocab(s->model->text)->bos;
    a->made = a->bytes = 0;
    a->ahead = Q_MIN(4u, s->shape.drafts);
    a->rest = 0;
    a->n_held = 0;
}

/* Whether a sequence takes part: its text may have ended before anything is chosen. */
static uint32_t ended(const lq_session *s, uint32_t seq, const lq_sampler *o) {
    if (o->max_tokens && s->answers[seq].begun && s->answers[seq].made >= o->max_tokens) return LQ_END_LIMIT;
    const bool full = s->kv_book.seqs[seq].length >= s->shape.context && s->shape.overflow != Q_OVERFLOW_SLIDE;
    return full ? LQ_END_CONTEXT : LQ_END_NONE;
}

/* Guesses for n sequences that go on together, behind their tokens; how many into s->count. What a text may still have
 * bounds them, and what can be evaluated at once; a text whose guesses were wrong gets fewer. */
static lq_status guess(lq_session *s, lq_step_item *items, uint32_t n) {
    uint64_t missing;
    for (uint32_t i = 0, k = 0; k < n; i++) {
        lq_step_item t;
        lq_sampler o;
        Q_TRY(read_step(items, i, &t, &o));
        if (t.sequence != s->of[k]) continue; /* it has ended */
        q_answer *a = &s->answers[t.sequence];
        const uint32_t length = s->kv_book.seqs[t.sequence].length;
        s->count[k] = 0;
        if (a->rest) {
            a->rest--;
            k++;
            continue;
        }
        const uint32_t room = s->shape.context - Q_MIN(length + 1, s->shape.context);
        uint32_t most = Q_MIN(Q_MIN(s->shape.drafts / n, a->ahead), room);
        if (!q_session_freqs(s, length) && q_session_freqs(s, length + most)) /* a guess may be wrong: none crosses */
            most = (uint32_t)s->shape.rope.original - length;
        if (o.max_tokens) most = (uint32_t)Q_MIN((uint64_t)most, o.max_tokens - a->made - 1);
        Q_TRY(q_draft_guess(s, t.sequence, &o, most, &s->count[k++]));
    }
    if (!q_kv_room(&s->kv_book, s->of, NULL, s->count, n, &missing)) memset(s->count, 0, n * sizeof *s->count);
    return LQ_OK;
}

/* Rows for the n sequences in s->of, by evaluating what is pending of each, or its last token again, and guesses. */
static lq_status evaluate(lq_session *s, uint32_t n) {
    q_kv *kv = &s->kv_book;
    for (uint32_t i = 0; i < n; i++) {
        q_kv_seq *q = &kv->seqs[s->of[i]];
        const uint32_t length = q->length;
        const uint64_t dropped = q->dropped;
        if (q->stored == length) q_kv_truncate(kv, s->of[i], length - 1);
        q->length = length;
        q->dropped = dropped;
        q->again = q->kept = q->reused = 0;
        q->slid = q->refused = 0;
        s->shares[i] = (q_share){.seq = s->of[i], .old = length - 1, .keep = length, .end = length + s->count[i],
                                 .from = length - 1, .restore = q->restore};
    }
    s->stepping = true;
    const lq_status st = q_session_add(s, n);
    s->stepping = false;
    for (uint32_t i = 0; i < n; i++) { /* the guesses are not part of it yet, and after a failure never */
        q_kv_seq *q = &kv->seqs[s->of[i]];
        const uint32_t length = s->shares[i].end - s->count[i];
        if (st != LQ_OK && q->stored > length) q_kv_truncate(kv, s->of[i], length);
        q->length = length;
    }
    return st;
}

/* One item, while its tokens are chosen. */
typedef struct making {
    lq_step_item *t;
    const lq_sampler *o;
    char *text; /* all of the session's */
    size_t *used;
    uint32_t last; /* the row that was chosen from last */
} making;

/* One more token, where the context is full in the place of others; what then moved is evaluated by the next step. */
static lq_status append(lq_session *s, uint32_t seq, int32_t id) {
    q_kv_seq *q = &s->kv_book.seqs[seq];
    q_share h = {.seq = seq};
    const uint32_t length = q->length;
    Q_TRY(q_overflow_fit(&s->shape, length, &(lq_item){seq, &id, 1, 1}, &h));
    if (h.dropped) {
        const uint64_t dropped = q->dropped + h.dropped;
        q_kv_truncate(&s->kv_book, seq, q_overflow_same(&s->shape, length));
        q_overflow_join(&s->shape, q->ids, length, &h);
        q->dropped = dropped;
        q->slid = h.dropped;
    } else {
        q->ids[length] = id;
    }
    q->length = h.end;
    return LQ_OK;
}

/* Choose from one row, append, and see whether the text ends. */
static lq_status choose(lq_session *s, const making *m, uint32_t row) {
    lq_step_item *t = m->t;
    q_answer *a = &s->answers[t->sequence];
    char piece[Q_LIMIT_PIECE];
    int32_t id;
    Q_TRY(q_session_sample(s, row, m->o, &id));
    if (id == q_text_vocab(s->model->text)->eos && !m->o->ignore_eos) {
        t->end = LQ_END_EOS;
        return LQ_OK;
    }
    Q_TRY(append(s, t->sequence, id));
    t->n++;
    a->made++;
    const size_t bytes = q_text_spell(s->model->text, id, &a->starts, piece);
    const int32_t stop = q_answer_add(a, m->o, piece, bytes, m->text, m->used);
    if (stop < 0) {
        t->end = ended(s, t->sequence, m->o);
        return LQ_OK;
    }
    t->end = LQ_END_STOP;
    t->stop = (uint32_t)stop;
    return LQ_OK;
}

/* How many are guessed next: twice as many where all were right, else as many as were. Where not even one was, there is
 * a rest: a pass over two columns takes a fifth longer than one over one. */
static void follow(q_answer *a, uint32_t guesses, uint32_t right, uint32_t most) {
    enum { REST = 4 };
    a->ahead = right == guesses ? Q_MIN(2 * a->ahead, most) : Q_MAX(right, 1u);
    a->rest = right == 0 && guesses == 1 ? REST : 0;
}

/* Choose from row after row as long as guesses are right: a wrong one gives way to what was chosen in its place, and it
 * and those behind it are forgotten. */
static lq_status choose_all(lq_session *s, making *m) {
    lq_step_item *t = m->t;
    q_kv_seq *q = &s->kv_book.seqs[t->sequence];
    q_answer *a = &s->answers[t->sequence];
    const uint32_t length = q->length, guesses = q->stored - length;
    uint32_t right = 0;
    lq_status st = LQ_OK;
    for (bool next = true; next;) {
        const int32_t guessed = right < guesses ? q->ids[length + right] : -1;
        m->last = t->row + right;
        st = choose(s, m, m->last);
        const bool hit = right < guesses && t->n > right && q->ids[length + right] == guessed;
        right += hit;
        next = st == LQ_OK && !t->end && hit;
    }
    const uint32_t now = q->length;
    const uint32_t again = q->again;
    if (right < guesses) q_kv_truncate(&s->kv_book, t->sequence, length + right);
    q->again = again; /* a cut forgets it */
    q->length = now;
    if (guesses) follow(a, guesses, right, s->shape.drafts);
    s->stats.drafted += guesses;
    s->stats.accepted += right;
    s->stats.decode_tokens -= guesses - right;
    return st;
}

/* The results of one item. */
static lq_status go_on(lq_session *s, making *m) {
    lq_step_item *t = m->t;
    const q_kv_seq *q = &s->kv_book.seqs[t->sequence];
    q_answer *a = &s->answers[t->sequence];
    const size_t from = *m->used;
    t->end = ended(s, t->sequence, m->o);
    t->stop = t->row = 0;
    t->n = 0;
    begin(s, t->sequence);
    if (!t->end) {
        t->row = (uint32_t)row_of(s, t->sequence);
        Q_TRY(choose_all(s, m));
    }
    if (t->end) q_answer_end(a, m->text, m->used);
    t->ids = q->ids + q->length - t->n;
    t->text = m->text + from;
    t->bytes = *m->used - from;
    t->made = a->made;
    t->made_bytes = a->bytes;
    return LQ_OK;
}

lq_status q_session_step(lq_session *s, lq_step_item *items, size_t n) {
    Q_TRY(check_steps(s, items, n));
    uint32_t todo = 0; /* sequences that a token is chosen for: first in s->of */
    bool known = true;
    for (uint32_t i = 0; i < n; i++) {
        lq_step_item t;
        lq_sampler o;
        Q_TRY(read_step(items, i, &t, &o));
        if (ended(s, t.sequence, &o)) continue;
        begin(s, t.sequence);
        s->of[todo++] = t.sequence;
        known = known && row_of(s, t.sequence) >= 0;
    }
    Q_TRY(q_session_check_cancel(s));
    if (!known) Q_TRY(guess(s, items, todo));
    if (!known) Q_TRY(evaluate(s, todo));
    size_t used = 0;
    lq_status st = LQ_OK;
    making m = {.text = s->text, .used = &used, .last = s->n_logits - 1};
    for (size_t i = 0; i < n; i++) {
        lq_step_item t;
        lq_sampler o;
        Q_TRY(read_step(items, i, &t, &o));
        m.t = &t, m.o = &o;
        if (st == LQ_OK) st = go_on(s, &m);
        if (st == LQ_OK) q_struct_out(item_at(items, i), &t, sizeof t);
        q_kv_seq *q = &s->kv_book.seqs[t.sequence];
        if (q->stored > q->length) q_kv_truncate(&s->kv_book, t.sequence, q->length); /* guesses behind a fault */
    }
    if (!known && m.last + 1 != s->n_logits) q_session_hash(s, m.last); /* of what is the last row without guesses */
    return st;
}
