/* status.c: the thread-local sentence behind lq_error_detail, and the names of codes. Layer L0. */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char detail[1024];

const char *lq_error_detail(void) { return detail; }

/* File content may carry control characters: a sentence must be safe to print on a terminal. */
static void make_printable(char *s) {
    for (; *s; s++)
        if ((unsigned char)*s < 32 || *s == 127) *s = '?';
}

#undef q_fail /* make analyze */
#undef q_fail_in

lq_status q_fail(lq_status code, const char *fmt, ...) {
    char text[sizeof detail]; /* arguments may point into `detail` */
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    make_printable(text);
    memcpy(detail, text, sizeof detail);
    return code;
}

lq_status q_fail_in(lq_status code, const char *fmt, ...) {
    char head[512], text[sizeof detail];
    va_list args;
    va_start(args, fmt);
    vsnprintf(head, sizeof head, fmt, args);
    va_end(args);
    snprintf(text, sizeof text, "%s: %.500s", head, detail);
    make_printable(text);
    memcpy(detail, text, sizeof detail);
    return code;
}

void q_trouble_note(q_trouble *t, lq_status status, uint64_t at) {
    t->status = status;
    t->at = at;
    snprintf(t->text, sizeof t->text, "%s", detail);
}

lq_status q_trouble_first(const q_trouble *t, uint32_t n) {
    const q_trouble *first = NULL;
    for (uint32_t i = 0; i < n; i++)
        if (t[i].status != LQ_OK && (!first || t[i].at < first->at)) first = &t[i];
    return first ? q_fail(first->status, "%s", first->text) : LQ_OK;
}

const char *lq_status_name(lq_status status) {
    static const struct {
        lq_status code;
        const char *name;
    } names[] = {
        {LQ_OK, "LQ_OK"},
        {LQ_E_ARG, "LQ_E_ARG"},
        {LQ_E_IO, "LQ_E_IO"},
        {LQ_E_TRUNCATED, "LQ_E_TRUNCATED"},
        {LQ_E_FORMAT, "LQ_E_FORMAT"},
        {LQ_E_LIMIT, "LQ_E_LIMIT"},
        {LQ_E_UNSUPPORTED, "LQ_E_UNSUPPORTED"},
        {LQ_E_INCONSISTENT, "LQ_E_INCONSISTENT"},
        {LQ_E_NOMEM, "LQ_E_NOMEM"},
        {LQ_E_CONTEXT, "LQ_E_CONTEXT"},
        {LQ_E_BUSY, "LQ_E_BUSY"},
        {LQ_E_CANCELLED, "LQ_E_CANCELLED"},
        {LQ_E_NUMERIC, "LQ_E_NUMERIC"},
        {LQ_FATAL, "LQ_FATAL"},
        {LQ_E_DEVICE, "LQ_E_DEVICE"},
        {LQ_E_INTERNAL, "LQ_E_INTERNAL"},
    };
    for (size_t i = 0; i < Q_COUNT(names); i++)
        if (names[i].code == status) return names[i].name;
    return "LQ_E_?";
}

uint32_t q_str_distance(q_str a, const char *s) {
    const size_t n = Q_MIN((size_t)a.n, (size_t)96), m = Q_MIN(strlen(s), (size_t)96);
    uint32_t row[97];
    for (size_t j = 0; j <= m; j++) row[j] = (uint32_t)j;
    for (size_t i = 1; i <= n; i++) {
        uint32_t diagonal = row[0];
        row[0] = (uint32_t)i;
        for (size_t j = 1; j <= m; j++) {
            const uint32_t substitute = diagonal + (a.p[i - 1] != s[j - 1]);
            diagonal = row[j];
            row[j] = Q_MIN(substitute, Q_MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[m];
}
