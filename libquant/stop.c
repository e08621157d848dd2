/* stop.c: the text of a sequence that lq_step makes: which bytes are certain, and where a stop string ends it.
 *
 * Bytes come one by one, so that borders of tokens do not matter. Held back is the longest end of the text that a stop
 * string begins with, since one that is still to come can begin nowhere before that; and of what is then left, the
 * beginning of a UTF-8 character. Of strings that end at one byte the longest counts. Nothing is allocated. Layer
 * L3. */
#include "engine.h"

lq_status q_stops_check(const lq_sampler *o) {
    if (o->n_stop > Q_STOPS) return q_fail(LQ_E_ARG, "lq_step: %u stop strings, at most %d", o->n_stop, Q_STOPS);
    if (o->n_stop && !o->stop) return q_fail(LQ_E_ARG, "lq_step: %u stop strings, and their array is NULL", o->n_stop);
    for (uint32_t i = 0; i < o->n_stop; i++) {
        if (!o->stop[i] || !o->stop[i][0]) return q_fail(LQ_E_ARG, "lq_step: stop string %u is empty", i);
        if (!memchr(o->stop[i], 0, Q_STOP_BYTES + 1))
            return q_fail(LQ_E_ARG, "lq_step: stop string %u has more than %d bytes", i, Q_STOP_BYTES);
    }
    return LQ_OK;
}

/* The longest of the stop strings that the held bytes end with: its number, -1 = none, and its bytes. */
static int32_t complete(const q_answer *a, const lq_sampler *o, size_t *bytes) {
    int32_t found = -1;
    *bytes = 0;
    for (uint32_t i = 0; i < o->n_stop; i++) {
        const size_t n = strlen(o->stop[i]);
        if (n > a->n_held || n <= *bytes || memcmp(a->held + a->n_held - n, o->stop[i], n) != 0) continue;
        found = (int32_t)i;
        *bytes = n;
    }
    return found;
}

/* Bytes at the end of what is held that are not certain. */
static size_t uncertain(const q_answer *a, const lq_sampler *o) {
    size_t most = 0;
    for (uint32_t i = 0; i < o->n_stop; i++)
        for (size_t n = Q_MIN(strlen(o->stop[i]) - 1, (size_t)a->n_held); n > most; n--)
            if (memcmp(a->held + a->n_held - n, o->stop[i], n) == 0) most = n;
    return most + q_text_incomplete(a->held, a->n_held - most);
}

/* The first n held bytes come out. */
static void release(q_answer *a, size_t n, char *text, size_t *at) {
    memcpy(text + *at, a->held, n);
    *at += n;
    a->bytes += n;
    a->n_held -= (uint32_t)n;
    memmove(a->held, a->held + n, a->n_held);
}

int32_t q_answer_add(q_answer *a, const lq_sampler *o, const char *bytes, size_t n, char *text, size_t *at) {
    for (size_t i = 0; i < n; i++) {
        size_t length;
        a->held[a->n_held++] = (uint8_t)bytes[i];
        const int32_t stop = complete(a, o, &length);
        release(a, a->n_held - (stop >= 0 ? length : uncertain(a, o)), text, at);
        if (stop < 0) continue;
        a->n_held = 0;
        return stop;
    }
    return -1;
}

void q_answer_end(q_answer *a, char *text, size_t *at) {
    release(a, a->n_held, text, at);
    a->begun = false;
}
