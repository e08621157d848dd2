/* test_session_life.c: random lives of sessions, thousands of operations: opened with any options, tokens decoded and
 * synchronized, sequences that go on by themselves, guessing ahead or not, forked, cut, saved, loaded here and in the
 * other session, sampled from, cancelled before and during a call, closed. After each operation a shadow that evaluates
 * every text alone and from its beginning has the same bits, lengths are what the calls said, and memory is what the
 * plan said, to the byte.
 *
 * T_OPERATIONS is how many (10,000 unless builds are slow): T_OPERATIONS=10000 ONLY=test_session_life tests/run.sh */
#include "harness.h"
#include "help_model.h"

#include "../libquant/engine.h"

#include <pthread.h>

enum { CONTEXT = 300, SEQS = 6, VOCAB = 262, SAVED = 1 << 22 };

/* ------------------------------------------------------------------------------------------------ models */

/* The tiny model, and with its tables changed by hand: a window in the second layer, windows in both and sinks before
 * that of the second, a recurrence over values, this and a window. */
enum { PLAIN, WINDOW, SINKS, RECURRENT, BOTH, KINDS };

static lq_ctx *ctx;
static lq_model *models[KINDS];
static q_arch archs[KINDS];
static q_step steps[KINDS][64];
static q_layer_table tables[KINDS];
static double windows[2] = {0, 45}, both_windows[2] = {45, 45}, sinks[2] = {0, 37};

static void change(lq_model *m, int kind) {
    const q_arch *a = m->binding->arch;
    uint32_t n = 0;
    for (uint32_t i = 0; i < a->layers[0].n; i++) {
        q_step s = a->layers[0].steps[i];
        if (s.op == Q_OP_KV_PUT && kind >= RECURRENT) { /* the matrix of values stands in for 64 taps of each channel */
            uint32_t v = 0;
            while (!a->weights[v].role || strcmp(a->weights[v].role, "attn_v") != 0) v++;
            steps[kind][n++] = (q_step){.op = Q_OP_CONV, .y = s.z, .x = s.z, .w = (uint8_t)(v + 1)};
        }
        if (s.op == Q_OP_KV_PUT && kind != RECURRENT) s.hp_window = Q_HP_WINDOW;
        if (s.op == Q_OP_KV_PUT && kind == SINKS) s.hp_sink_tokens = Q_HP_SINK_TOKENS;
        steps[kind][n++] = s;
    }
    tables[kind] = (q_layer_table){steps[kind], n};
    archs[kind] = *a;
    archs[kind].layers = &tables[kind];
    m->binding->arch = &archs[kind];
    m->binding->hp.per_layer[Q_HP_WINDOW] = kind == SINKS ? both_windows : windows;
    m->binding->hp.per_layer[Q_HP_SINK_TOKENS] = kind == SINKS ? sinks : NULL;
}

static void setup(void) {
    char path[4096];
    static tiny t;
    tiny_init(&t, "q8_0");
    tiny_u32(&t, "llama.context_length", CONTEXT);
    tiny_u32(&t, "llama.attention.head_count", 2); /* of 32, which every form of keys and values fits */
    tiny_u32(&t, "llama.attention.head_count_kv", 1);
    tiny_u32(&t, "llama.rope.dimension_count", 32);
    tiny_write(&t, t_path(path, sizeof path, t_tmp(), "life.gguf"));
    static const lq_allocator alloc = {live_alloc, live_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &alloc};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    for (int i = 0; i < KINDS; i++) {
        ck_assert_msg(lq_model_open(ctx, path, NULL, &models[i]) == LQ_OK, "%s", lq_error_detail());
        if (i != PLAIN) change(models[i], i);
    }
}
static void teardown(void) {
    for (int i = 0; i < KINDS; i++) {
        models[i]->binding->hp.per_layer[Q_HP_WINDOW] = models[i]->binding->hp.per_layer[Q_HP_SINK_TOKENS] = NULL;
        lq_model_close(models[i]);
    }
    lq_close(ctx);
    ck_assert_uint_eq(live_bytes, 0);
}

/* ------------------------------------------------------------------------------------------------ options */

/* Choices of an option of sessions, by number. One that changes bits is the same for all sessions of a life. */
typedef struct option {
    uint32_t choices;
    bool bits;
    void (*set)(lq_session_options *o, uint32_t choice);
} option;

static void set_context(lq_session_options *o, uint32_t i) { o->context = (uint32_t[]){0, CONTEXT, 129, 64}[i]; }
static void set_batch(lq_session_options *o, uint32_t i) { o->batch = (uint32_t[]){0, 48, 7, 1, 33}[i]; }
static void set_threads(lq_session_options *o, uint32_t i) { o->threads = (uint32_t[]){1, 1, 1, 1, 2, 3, 0}[i]; }
static void set_prefill(lq_session_options *o, uint32_t i) { o->threads_prefill = (uint32_t[]){0, 0, 0, 1, 2}[i]; }
static void set_sequences(lq_session_options *o, uint32_t i) { o->sequences = i; }
static void set_reuse(lq_session_options *o, uint32_t i) { o->no_reuse = i == 0; }
static void set_tokens(lq_session_options *o, uint32_t i) { o->kv_tokens = (uint64_t[]){0, CONTEXT, 2 * CONTEXT}[i]; }
static void set_checkpoints(lq_session_options *o, uint32_t i) { o->checkpoints = (uint32_t[]){0, 1, 9}[i]; }
static void set_activations(lq_session_options *o, uint32_t i) { o->activations = i ? NULL : "f32"; }
static void set_overflow(lq_session_options *o, uint32_t i) {
    o->overflow = (const char *[]){NULL, "error", "stop", "slide", "slide"}[i];
    o->overflow_keep = i == 4 ? 5 : 0;
}
static void set_ngram(lq_session_options *o, uint32_t i) { o->ngram = (uint32_t[]){0, 0, 3}[i]; }
static void set_draft(lq_session_options *o, uint32_t i) { o->draft = i ? NULL : models[PLAIN]; }
static const char *const forms[] = {NULL, NULL, "f16", "bf16", "f32", "q8_0", "q5_1", "q4_0"};
static void set_keys(lq_session_options *o, uint32_t i) { o->kv_k = forms[i]; }
static void set_values(lq_session_options *o, uint32_t i) { o->kv_v = forms[i]; }

static const option options[] = {
    {4, false, set_context},
    {5, false, set_batch},
    {7, false, set_threads},
    {5, false, set_prefill},
    {SEQS + 1, false, set_sequences},
    {6, false, set_reuse},
    {3, false, set_tokens},
    {3, false, set_checkpoints},
    {5, false, set_overflow},
    {3, false, set_ngram},
    {4, false, set_draft},
    {4, true, set_activations},
    {Q_COUNT(forms), true, set_keys},
    {Q_COUNT(forms), true, set_values},
};

/* ------------------------------------------------------------------------------------------------ a life */

typedef enum { NO, YES, MAYBE } asked;

/* A session, and what it should hold. */
typedef struct party {
    lq_session *s;
    uint32_t seqs, context, keep;
    bool slides; /* what finds the context full drops tokens behind the first `keep` */
    size_t bytes;
    int32_t ids[SEQS][CONTEXT];
    uint32_t length[SEQS];
    asked cancel; /* was asked for, and no call has obeyed yet */
} party;

/* What happened so far, and how often. */
enum { CHECKED, REUSED, AGAIN, LOADED, DROPPED, CANCELLED, REFUSED, STEPPED, FIGURES };
static const char *const figures[FIGURES] = {"rows of logits checked", "tokens reused", "evaluated again", "loaded",
                                             "dropped", "calls cancelled", "refused", "tokens stepped"};

typedef struct life {
    int kind;
    uint32_t bits[Q_COUNT(options)]; /* what is chosen of the options that change bits */
    party p[2];
    lq_session *alone; /* one sequence, one thread, nothing reused */
    uint64_t seed, n[FIGURES];
    size_t before; /* bytes of everything but the two parties */
} life;

static uint32_t roll(life *l, uint32_t n) { return (uint32_t)(t_rand(&l->seed) >> 33) % n; }

/* Texts that go on alike often, and differ now and then. */
static void some_ids(life *l, int32_t *ids) {
    int32_t at = 3 + (int32_t)roll(l, 2);
    for (int32_t i = 0; i < CONTEXT; i++) {
        ids[i] = at;
        at = roll(l, 250) == 0 ? (int32_t)roll(l, VOCAB) : (at * 31 + i) % VOCAB;
    }
}

static void open_party(life *l, party *p) {
    lq_session_options o = {.size = sizeof o, .max_logits = SEQS};
    memset(p, 0, sizeof *p);
    for (size_t i = 0; i < Q_COUNT(options); i++)
        options[i].set(&o, options[i].bits ? l->bits[i] : roll(l, options[i].choices));
    if (l->kind >= RECURRENT) o.ngram = 0, o.draft = NULL; /* refused */
    if (o.ngram || o.draft) o.draft_tokens = (uint32_t[]){0, 1, 3, 20}[roll(l, 4)];
    lq_plan_info plan = {.size = sizeof plan};
    const size_t before = live_bytes;
    ck_assert_msg(lq_model_plan(models[l->kind], &o, &plan) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(lq_session_open(models[l->kind], &o, &p->s) == LQ_OK, "%s", lq_error_detail());
    p->bytes = live_bytes - before;
    ck_assert_uint_eq(p->bytes, plan.kv + plan.activations);
    lq_session_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_session_info_get(p->s, &info), LQ_OK);
    ck_assert_uint_eq(info.kv_bytes, plan.kv);
    ck_assert_uint_eq(info.activation_bytes, plan.activations);
    p->seqs = info.sequences;
    p->context = info.context;
    p->slides = strcmp(info.overflow, "slide") == 0;
    p->keep = info.overflow_keep;
}

/* Tokens come to a sequence one by one. */
static void append(party *p, uint32_t seq, const int32_t *ids, size_t n) {
    int32_t *text = p->ids[seq];
    for (size_t i = 0; i < n; i++) {
        if (p->length[seq] == p->context) {
            const uint32_t drop = (p->context - p->keep + 1) / 2;
            memmove(text + p->keep, text + p->keep + drop, (p->context - p->keep - drop) * sizeof *text);
            p->length[seq] -= drop;
        }
        text[p->length[seq]++] = ids[i];
    }
}

/* Row `row` is what follows the text of a sequence; a token drawn from it is that of the shadow's row. */
static void check_row(life *l, party *p, uint32_t row, uint32_t seq) {
    const float *got, *want;
    ck_assert_int_eq(lq_logits(p->s, row, &got), LQ_OK);
    ck_assert_int_eq(lq_seq_truncate(l->alone, 0, 0), LQ_OK);
    ck_assert_int_eq(t_decode(l->alone, p->ids[seq], p->length[seq], p->length[seq] - 1), LQ_OK);
    ck_assert_int_eq(lq_logits(l->alone, 0, &want), LQ_OK);
    ck_assert_msg(memcmp(got, want, VOCAB * sizeof *got) == 0, "sequence %u of %u tokens: other bits than alone", seq,
                  p->length[seq]);
    l->n[CHECKED]++;
    if (roll(l, 4)) return;
    const lq_sampler warm = {.size = sizeof warm, .temperature = 1.2f, .top_k = 40, .min_p = 0.01f,
                             .seed = roll(l, 99)};
    int32_t a, b;
    lq_seq_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_seq_info_get(p->s, seq, &info), LQ_OK);
    ck_assert_int_eq(lq_sample(p->s, row, &warm, &a), LQ_OK);
    ck_assert_int_eq(lq_sample_logits(NULL, want, VOCAB, &warm, p->ids[seq], p->length[seq],
                                      p->length[seq] + info.dropped_in_all, &b), LQ_OK);
    ck_assert_int_eq(a, b);
}

/* Another thread that cancels after a while, sometimes. */
typedef struct canceller {
    lq_session *s;
    uint32_t spins;
    bool runs;
    pthread_t thread;
} canceller;
static void *cancel_soon(void *arg) {
    const canceller *c = arg;
    for (volatile uint32_t i = 0; i < c->spins; i++) continue;
    lq_session_cancel(c->s);
    return NULL;
}
static canceller maybe_cancel(life *l, party *p) {
    canceller c = {.s = p->s, .spins = 1u << roll(l, 19), .runs = roll(l, 6) == 0};
    return c;
}
static void begin_cancel(canceller *c) {
    if (c->runs) ck_assert_int_eq(pthread_create(&c->thread, NULL, cancel_soon, c), 0);
}

/* What a call may say, and what is left of the requests afterwards. */
static void end_call(life *l, party *p, canceller *c, lq_status st) {
    if (c->runs) pthread_join(c->thread, NULL);
    if (st == LQ_E_CANCELLED) ck_assert(p->cancel != NO || c->runs);
    else {
        ck_assert_msg(st == LQ_OK || st == LQ_E_CONTEXT, "%s", lq_error_detail());
        ck_assert_msg(st != LQ_OK || p->cancel != YES, "a request to cancel was not obeyed");
    }
    l->n[CANCELLED] += st == LQ_E_CANCELLED;
    l->n[REFUSED] += st == LQ_E_CONTEXT;
    if (st == LQ_E_CANCELLED) p->cancel = p->cancel != NO && c->runs ? MAYBE : NO;
    else p->cancel = c->runs ? YES : st == LQ_OK ? NO : p->cancel; /* too much is refused without a look at it */
}

static void add(life *l, party *p) {
    static int32_t ids[SEQS][2 * CONTEXT];
    lq_item items[SEQS];
    size_t n = 0;
    for (uint32_t i = 0, from = roll(l, p->seqs); i < p->seqs; i++) {
        const uint32_t seq = (from + i) % p->seqs, at = p->length[seq], room = p->context - at;
        const bool beyond = roll(l, p->slides ? 4 : 40) == 0; /* of its context */
        if ((room == 0 && !beyond) || roll(l, 3) == 0) continue;
        some_ids(l, ids[n]);
        some_ids(l, ids[n] + CONTEXT);
        const uint32_t count = 1 + (roll(l, 2) ? 0 : roll(l, beyond ? CONTEXT : room));
        items[n] = (lq_item){.sequence = seq, .ids = ids[n] + at, .count = count, .logits_from = count - 1};
        n++;
    }
    if (n == 0) return;
    canceller c = maybe_cancel(l, p);
    begin_cancel(&c);
    const lq_status st = lq_decode(p->s, items, n);
    end_call(l, p, &c, st);
    for (size_t i = 0; i < n; i++) {
        const uint32_t seq = items[i].sequence, was = p->length[seq], now = lq_seq_length(p->s, seq);
        lq_seq_info info = {.size = sizeof info};
        ck_assert_int_eq(lq_seq_info_get(p->s, seq, &info), LQ_OK);
        ck_assert_uint_eq(info.length, now);
        if (st == LQ_OK) {
            append(p, seq, items[i].ids, items[i].count);
            ck_assert_uint_eq(now, p->length[seq]);
            l->n[REUSED] += info.cached;
            l->n[AGAIN] += info.again;
            l->n[DROPPED] += info.dropped;
            check_row(l, p, (uint32_t)i, seq);
        } else if (was + items[i].count > p->context && p->slides) { /* somewhere on its way: not followed here */
            p->length[seq] = 0;
            ck_assert_int_eq(lq_seq_truncate(p->s, seq, 0), LQ_OK);
        } else {
            ck_assert(now >= was && now <= was + items[i].count);
            memcpy(p->ids[seq] + was, items[i].ids, (now - was) * sizeof **p->ids);
            p->length[seq] = now;
        }
    }
}

static void sync_one(life *l, party *p) {
    int32_t ids[CONTEXT];
    const uint32_t seq = roll(l, p->seqs), count = 1 + roll(l, p->context);
    const uint32_t same = roll(l, 2) ? Q_MIN(p->length[seq], count) : 0;
    some_ids(l, ids);
    memcpy(ids, p->ids[seq], same * sizeof *ids);
    canceller c = maybe_cancel(l, p);
    const bool before = p->cancel == YES;
    begin_cancel(&c);
    const lq_status st = lq_sync(p->s, seq, ids, count, count - 1);
    end_call(l, p, &c, st);
    const uint32_t now = lq_seq_length(p->s, seq);
    if (st == LQ_E_CANCELLED && before && !c.runs) ck_assert_uint_eq(now, p->length[seq]); /* nothing was touched */
    if (st != LQ_OK) { /* this text or that: what they have in common stays */
        uint32_t both = 0;
        while (both < now && both < p->length[seq] && ids[both] == p->ids[seq][both]) both++;
        p->length[seq] = both;
        ck_assert_int_eq(lq_seq_truncate(p->s, seq, both), LQ_OK);
        return;
    }
    memcpy(p->ids[seq], ids, sizeof ids);
    p->length[seq] = count;
    check_row(l, p, 0, seq);
}

/* Some sequences go on by tokens of their own choice. */
static void step_some(life *l, party *p) {
    const lq_sampler how = {.size = sizeof how, .temperature = roll(l, 2) ? 1.0f : 0.0f, .seed = roll(l, 99),
                            .ignore_eos = 1};
    lq_step_item t[SEQS];
    size_t n = 0;
    for (uint32_t i = 0; i < p->seqs; i++)
        if (p->length[i] && roll(l, 2)) t[n++] = (lq_step_item){.size = sizeof *t, .sequence = i, .sampler = &how};
    if (n == 0) return;
    canceller c = maybe_cancel(l, p);
    begin_cancel(&c);
    const lq_status st = lq_step(p->s, t, n);
    end_call(l, p, &c, st);
    for (size_t i = 0; i < n; i++) {
        const uint32_t seq = t[i].sequence;
        if (st == LQ_OK && t[i].n == 0) ck_assert(t[i].end == LQ_END_CONTEXT && p->length[seq] == p->context);
        if (st == LQ_OK && t[i].n) {
            if (p->length[seq] < p->context) check_row(l, p, t[i].row, seq); /* what its first token was chosen from */
            append(p, seq, t[i].ids, t[i].n);
            l->n[STEPPED] += t[i].n;
        }
        ck_assert_uint_eq(lq_seq_length(p->s, seq), p->length[seq]);
    }
}

static struct {
    uint8_t p[SAVED];
    size_t n, at;
} saved;
static int put(void *user, const void *data, size_t n) {
    Q_UNUSED(user);
    ck_assert_uint_le(n, SAVED - saved.n);
    memcpy(saved.p + saved.n, data, n);
    saved.n += n;
    return 0;
}
static int get(void *user, void *data, size_t n) {
    Q_UNUSED(user);
    if (n > saved.n - saved.at) return 1;
    memcpy(data, saved.p + saved.at, n);
    saved.at += n;
    return 0;
}

static void save_and_load(life *l, party *p, party *to) {
    const uint32_t seq = roll(l, p->seqs), into = roll(l, to->seqs);
    saved.n = saved.at = 0;
    canceller c = maybe_cancel(l, p);
    begin_cancel(&c);
    lq_status st = lq_seq_save(p->s, seq, put, NULL);
    end_call(l, p, &c, st);
    if (st != LQ_OK) return;
    c = maybe_cancel(l, to);
    begin_cancel(&c);
    st = lq_seq_load(to->s, into, get, NULL);
    end_call(l, to, &c, st);
    const uint32_t now = lq_seq_length(to->s, into);
    if (st == LQ_OK) {
        ck_assert_uint_eq(saved.at, saved.n);
        ck_assert_uint_eq(now, p->length[seq]);
        if (to->ids[into] != p->ids[seq]) memcpy(to->ids[into], p->ids[seq], sizeof to->ids[into]);
        l->n[LOADED] += now;
    } else if (now != 0) ck_assert_uint_eq(now, to->length[into]); /* before anything was read */
    to->length[into] = now;
}

static void fork_one(life *l, party *p) {
    const uint32_t from = roll(l, p->seqs), to = roll(l, p->seqs);
    ck_assert_int_eq(lq_seq_fork(p->s, from, to), LQ_OK);
    p->length[to] = p->length[from];
    if (to != from) memcpy(p->ids[to], p->ids[from], sizeof p->ids[to]);
}

static void cut(life *l, party *p) {
    const uint32_t seq = roll(l, p->seqs);
    p->length[seq] = roll(l, 3) ? roll(l, p->length[seq] + 1) : 0;
    ck_assert_int_eq(lq_seq_truncate(p->s, seq, p->length[seq]), LQ_OK);
}

static void operate(life *l) {
    party *p = &l->p[roll(l, 2)], *other = &l->p[roll(l, 2)];
    const uint32_t what = roll(l, 50);
    if (what < 17) add(l, p);
    else if (what < 25) sync_one(l, p);
    else if (what < 29) cut(l, p);
    else if (what < 32) save_and_load(l, p, other);
    else if (what < 37) fork_one(l, p);
    else if (what < 39) {
        lq_session_cancel(p->s);
        p->cancel = YES;
    } else if (what > 39) {
        step_some(l, p);
    } else {
        lq_session_close(p->s);
        open_party(l, p);
    }
    ck_assert_uint_eq(live_bytes, l->before + l->p[0].bytes + l->p[1].bytes);
}

static uint32_t live(life *l, uint32_t operations) {
    lq_session_options o = {.size = sizeof o};
    for (size_t i = 0; i < Q_COUNT(options); i++) {
        l->bits[i] = roll(l, options[i].choices);
        if (options[i].bits) options[i].set(&o, l->bits[i]);
    }
    o.threads = o.no_reuse = 1;
    ck_assert_msg(lq_session_open(models[l->kind], &o, &l->alone) == LQ_OK, "%s", lq_error_detail());
    l->before = live_bytes;
    for (int i = 0; i < 2; i++) open_party(l, &l->p[i]);
    for (uint32_t i = 0; i < operations; i++) operate(l);
    for (int i = 0; i < 2; i++) lq_session_close(l->p[i].s);
    lq_session_close(l->alone);
    return operations;
}

START_TEST(any_life_has_the_bits_of_texts_alone) {
    enum { EACH = 50 };
    const char *asked_for = getenv("T_OPERATIONS");
    const uint32_t usual = t_emulated() ? 100 : T_TSAN ? 400 : T_SLOW ? 4000 : 10000;
    const uint32_t all = asked_for ? (uint32_t)strtoul(asked_for, NULL, 10) : usual;
    static life l;
    l = (life){.seed = 11 + (uint64_t)_i};
    for (uint32_t n = 0; n < all; l.kind = (l.kind + 1) % KINDS) n += live(&l, EACH);
    for (int i = 0; i < FIGURES; i++) {
        if (asked_for) printf("%s%llu %s", i ? ", " : "", (unsigned long long)l.n[i], figures[i]);
        if (all >= 1000) ck_assert_msg(l.n[i] > 0, "%s: 0", figures[i]);
    }
    if (asked_for) printf("; %u operations\n", all);
}
END_TEST

/* Logits behind 120 tokens, with these sinks and windows of the second layer. */
static void logits_of(double sink_tokens, double window, float *to) {
    lq_session *s;
    const float *row;
    int32_t ids[120];
    sinks[1] = sink_tokens;
    both_windows[1] = window;
    for (int i = 0; i < 120; i++) ids[i] = 3 + i * 7 % 250;
    ck_assert_msg(lq_session_open(models[SINKS], NULL, &s) == LQ_OK, "%s", lq_error_detail());
    ck_assert_int_eq(s->plan->n_kv, sink_tokens != 0 || window != 45 ? 2 : 1);
    ck_assert_int_eq(s->plan->kv[s->plan->n_kv - 1].sink_tokens, window != 0 ? (int)sink_tokens : 0);
    ck_assert_int_eq(t_decode(s, ids, 120, 119), LQ_OK);
    ck_assert_int_eq(lq_logits(s, 0, &row), LQ_OK);
    memcpy(to, row, VOCAB * sizeof *row);
    lq_session_close(s);
    sinks[1] = 37;
    both_windows[1] = 45;
}

/* A table's sinks make pools of their own and reach attention: as many as there are tokens are a layer without a
 * window, which has no use for any. */
START_TEST(sinks_are_seen) {
    float none[VOCAB], some[VOCAB], all[VOCAB], full[VOCAB];
    logits_of(0, 45, none);
    logits_of(4, 45, some);
    logits_of(CONTEXT, 45, all);
    logits_of(4, 0, full);
    ck_assert_mem_ne(some, none, sizeof none);
    ck_assert_mem_ne(some, all, sizeof all);
    ck_assert_mem_eq(all, full, sizeof full);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("session life");
    TCase *t = tcase_create("lives");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 3600);
    tcase_add_test(t, sinks_are_seen);
    tcase_add_test(t, any_life_has_the_bits_of_texts_alone);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
