/* seq_file.c: a sequence as bytes: its tokens, the pages that it holds, its state.
 *
 * Header, tokens, those pages of each pool that the next token sees, states, sum. A reader computes from its
 * own plan how many bytes there must be, and believes nothing before the sums are right. Pages go piece by piece, those
 * of a device through a buffer of the session's, and between two pieces stands a look at whether the session was
 * cancelled. Nothing is allocated. Layer L3. */
#include "checksum.h"
#include "engine.h"

enum { VERSION = 1 };

typedef struct header {
    char magic[8];       /* "LQSEQ", zeros */
    uint32_t version, length, stored;
    uint32_t dropped;    /* tokens that had made room before; at most UINT32_MAX are told */
    uint64_t model, shape; /* hashes: q_model_hash; what pages and states look like */
    uint64_t bytes;      /* between the header and the last sum */
    uint64_t sum;        /* of this header up to here */
} header;
_Static_assert(sizeof(header) == 56, "without padding");

typedef struct stream {
    lq_session *s;
    uint32_t seq;
    lq_write_bytes write; /* or */
    lq_read_bytes read;
    void *user;
    q_checksum sum;
} stream;

static uint64_t sum_of(const void *data, size_t n) {
    q_checksum c = {{0}, 0, {0}};
    q_checksum_add(&c, data, n);
    return q_checksum_end(&c);
}

/* Everything that gives a byte of a page its meaning. */
static uint64_t shape_of(const lq_session *s, uint32_t freqs) {
    const q_rope *rope = &s->shape.rope;
    uint64_t h = q_rope_hash(rope, Q_KV_TOKENS);
    if (freqs) h = q_fnv64_mix(h, &freqs, sizeof freqs);
    if (rope->kind == Q_ROPE_DYNAMIC) h = q_fnv64_mix(h, &s->shape.context, sizeof s->shape.context);
    for (int32_t i = 0; i < s->plan->n_kv; i++) {
        const q_kv_pool *p = &s->plan->kv[i];
        const int32_t of[] = {p->layers, p->heads, p->k.width, p->v.width, p->window, p->k.turn, p->v.turn};
        const q_kv_form *const forms[] = {&p->k, &p->v};
        h = q_fnv64_mix(h, of, sizeof of);
        if (p->sink_tokens) h = q_fnv64_mix(h, &p->sink_tokens, sizeof p->sink_tokens);
        for (size_t j = 0; j < Q_COUNT(forms); j++)
            h = q_fnv64_mix(h, forms[j]->format->name, strlen(forms[j]->format->name));
    }
    for (int32_t i = 0; i < s->plan->n_segments; i++) {
        const uint64_t floats = s->plan->segments[i].state_floats;
        if (floats) h = q_fnv64_mix(h, &floats, sizeof floats);
    }
    return h;
}

static uint64_t states_of(const lq_session *s) {
    uint64_t floats = 0;
    for (int32_t i = 0; i < s->plan->n_segments; i++) floats += s->plan->segments[i].state_floats;
    return floats;
}

static uint64_t bytes_of(const lq_session *s, uint32_t length, uint32_t stored) {
    uint64_t n = length * sizeof(int32_t);
    for (int32_t i = 0; i < s->plan->n_kv; i++) {
        const uint32_t top = (stored + Q_KV_TOKENS - 1) / Q_KV_TOKENS;
        for (uint32_t j = 0; j < top; j++)
            if (q_kv_sees(&s->kv_book, i, stored, j)) n += s->plan->kv[i].page_bytes;
    }
    return n + (stored ? states_of(s) * sizeof(float) : 0);
}

/* ------------------------------------------------------------------------------------------------ both ways */

static lq_status give(stream *t, const void *data, size_t n) {
    q_checksum_add(&t->sum, data, n);
    if (t->write(t->user, data, n)) return q_fail(LQ_E_IO, "lq_seq_save: the callback refused %zu bytes", n);
    return LQ_OK;
}
static lq_status get(stream *t, void *data, size_t n) {
    if (t->read(t->user, data, n)) return q_fail(LQ_E_TRUNCATED, "lq_seq_load: the callback gave no %zu bytes", n);
    q_checksum_add(&t->sum, data, n);
    return LQ_OK;
}

/* n bytes of a buffer from `at` on. */
static lq_status piece_by_piece(stream *t, const q_place *place, q_buffer *buffer, uint64_t at, uint64_t n) {
    uint8_t *here = buffer->host ? (uint8_t *)buffer->host + at : NULL;
    for (uint64_t done = 0, now; done < n; done += now) {
        uint8_t *piece = here ? here + done : t->s->transfer;
        now = Q_MIN(n - done, (uint64_t)Q_TRANSFER_BYTES);
        Q_TRY(q_session_check_cancel(t->s));
        if (t->write && !here) Q_TRY(place->backend->read(place->device, buffer, at + done, piece, now));
        Q_TRY(t->write ? give(t, piece, (size_t)now) : get(t, piece, (size_t)now));
        if (t->read && !here) Q_TRY(place->backend->write(place->device, buffer, at + done, piece, now));
    }
    return LQ_OK;
}

/* Pages and states of a sequence that has `stored` tokens. `state`: where its own lies. */
static lq_status contents(stream *t, uint32_t stored, uint32_t state) {
    lq_session *s = t->s;
    const q_kv_seq *q = &s->kv_book.seqs[t->seq];
    const uint32_t top = (stored + Q_KV_TOKENS - 1) / Q_KV_TOKENS;
    for (int32_t i = 0; i < s->plan->n_kv; i++) {
        const q_kv_pool *p = &s->plan->kv[i];
        const q_place *place = &s->model->places[s->plan->segments[p->segment].device];
        for (uint32_t j = 0; j < top; j++)
            if (q_kv_sees(&s->kv_book, i, stored, j))
                Q_TRY(piece_by_piece(t, place, &s->kv[i], q->tables[i][j] * p->page_bytes, p->page_bytes));
    }
    for (int32_t i = 0; i < s->plan->n_segments && stored > 0; i++) {
        const uint64_t bytes = s->plan->segments[i].state_floats * sizeof(float);
        const q_place *place = &s->model->places[s->plan->segments[i].device];
        if (bytes) Q_TRY(piece_by_piece(t, place, &s->states[i], state * bytes, bytes));
        if (bytes && t->read) Q_TRY(place->backend->flush(place->device));
    }
    for (int32_t i = 0; i < s->plan->n_kv && t->read; i++) {
        const q_place *place = &s->model->places[s->plan->segments[s->plan->kv[i].segment].device];
        Q_TRY(place->backend->flush(place->device));
    }
    return LQ_OK;
}

lq_status q_session_save(lq_session *s, uint32_t seq, lq_write_bytes write, void *user) {
    Q_TRY(q_session_has_seq(s, seq));
    Q_TRY(q_session_check_cancel(s));
    const q_kv_seq *q = &s->kv_book.seqs[seq];
    stream t = {.s = s, .seq = seq, .write = write, .user = user};
    header h = {.magic = "LQSEQ", .version = VERSION, .length = q->length, .stored = q->stored,
                .dropped = (uint32_t)Q_MIN(q->dropped, (uint64_t)UINT32_MAX), .shape = shape_of(s, q->freqs),
                .bytes = bytes_of(s, q->length, q->stored)};
    Q_TRY(q_model_hash(s->model, &h.model));
    h.sum = sum_of(&h, offsetof(header, sum));
    Q_TRY(give(&t, &h, sizeof h));
    t.sum = (q_checksum){{0}, 0, {0}};
    if (q->length) Q_TRY(give(&t, q->ids, q->length * sizeof *q->ids));
    Q_TRY(contents(&t, q->stored, q->restore >= 0 ? (uint32_t)q->restore : seq));
    const uint64_t sum = q_checksum_end(&t.sum);
    return give(&t, &sum, sizeof sum);
}

static lq_status check(const lq_session *s, const header *h, uint32_t *freqs) {
    static const char magic[8] = "LQSEQ";
    uint64_t model;
    if (memcmp(h->magic, magic, sizeof magic) != 0)
        return q_fail(LQ_E_FORMAT, "lq_seq_load: this is no saved sequence");
    if (h->version != VERSION)
        return q_fail(LQ_E_FORMAT, "lq_seq_load: a sequence saved in version %u; this library reads %d", h->version,
                      VERSION);
    if (h->sum != sum_of(h, offsetof(header, sum)))
        return q_fail(LQ_E_FORMAT, "lq_seq_load: the header is damaged");
    Q_TRY(q_model_hash(s->model, &model));
    if (h->model != model) return q_fail(LQ_E_INCONSISTENT, "lq_seq_load: the sequence is another model's");
    *freqs = s->plan->freq_tables > 1 && h->shape == shape_of(s, 1);
    if (h->shape != shape_of(s, *freqs))
        return q_fail(LQ_E_INCONSISTENT, "lq_seq_load: the sequence's keys and values are kept in another way than "
                                         "here (activations, format, RoPE scaling, or the layers of a page)");
    if (h->length > s->shape.context)
        return q_fail(LQ_E_CONTEXT, "the saved sequence has %u tokens, the context %u", h->length, s->shape.context);
    if (h->stored > h->length || h->bytes != bytes_of(s, h->length, h->stored))
        return q_fail(LQ_E_FORMAT, "lq_seq_load: %u tokens, %u with keys and values, cannot take %llu bytes", h->length,
                      h->stored, (unsigned long long)h->bytes);
    return LQ_OK;
}

static lq_status load(stream *t) {
    lq_session *s = t->s;
    q_kv *kv = &s->kv_book;
    q_kv_seq *q = &kv->seqs[t->seq];
    header h;
    uint64_t missing, sum, want;
    uint32_t freqs = 0;
    Q_TRY(get(t, &h, sizeof h));
    Q_TRY(check(s, &h, &freqs));
    q_kv_use_freqs(kv, t->seq, freqs);
    t->sum = (q_checksum){{0}, 0, {0}};
    if (!q_kv_room(kv, &t->seq, NULL, &h.length, 1, &missing))
        return q_fail(LQ_E_CONTEXT,
                      "the saved sequence needs %llu pages of %d tokens more than are free (kv_tokens %llu)",
                      (unsigned long long)missing, Q_KV_TOKENS, (unsigned long long)s->shape.kv_tokens);
    if (h.length) Q_TRY(get(t, q->ids, h.length * sizeof *q->ids));
    Q_TRY(q_kv_receive(kv, t->seq, h.stored));
    Q_TRY(contents(t, h.stored, t->seq));
    want = q_checksum_end(&t->sum);
    Q_TRY(get(t, &sum, sizeof sum));
    if (sum != want) return q_fail(LQ_E_FORMAT, "lq_seq_load: the sequence is damaged");
    for (uint32_t i = 0; i < h.length; i++)
        if (q->ids[i] < 0 || q->ids[i] >= s->plan->vocab)
            return q_fail(LQ_E_FORMAT, "lq_seq_load: token %u is %d, outside the vocabulary", i, q->ids[i]);
    q_kv_commit(kv, t->seq, h.stored);
    q->length = h.length;
    q->dropped = h.dropped;
    return LQ_OK;
}

lq_status q_session_load(lq_session *s, uint32_t seq, lq_read_bytes read, void *user) {
    Q_TRY(q_session_has_seq(s, seq));
    Q_TRY(q_session_check_cancel(s));
    stream t = {.s = s, .seq = seq, .read = read, .user = user};
    q_kv_truncate(&s->kv_book, seq, 0);
    s->n_logits = 0;
    q_session_changed(s, seq);
    const lq_status st = load(&t);
    if (st == LQ_OK) return LQ_OK;
    q_kv_abandon(&s->kv_book, seq);
    return st;
}
