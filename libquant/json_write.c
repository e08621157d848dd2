/* json_write.c: the parts of a JSON text that have rules: strings and numbers. Owns the text's growth. Numbers do not
 * pass through the decimal point of a locale. Layer L1. */
#include "json.h"

#include <math.h>
#include <stdio.h>

void q_json_put_bytes(q_json_text *t, q_str s) {
    if (t->failed || s.n == 0) return;
    if (s.n > t->cap - t->n) {
        uint64_t cap;
        char *p = NULL;
        if (!q_add_overflow(t->n, s.n, &cap) && !q_mul_overflow(Q_MAX(cap, (uint64_t)128), 2, &cap))
            p = (char *)q_grow(t->alloc, t->p, t->n, cap, 1);
        if (!p) {
            t->failed = true;
            return;
        }
        t->p = p;
        t->cap = cap;
    }
    memcpy(t->p + t->n, s.p, (size_t)s.n);
    t->n += s.n;
}

void q_json_put(q_json_text *t, const char *s) { q_json_put_bytes(t, q_str_of(s)); }

void q_json_put_string(q_json_text *t, q_str s) {
    q_json_put(t, "\"");
    uint64_t from = 0;
    for (uint64_t i = 0; i < s.n; i++) {
        const unsigned char c = (unsigned char)s.p[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        char escape[8];
        snprintf(escape, sizeof escape, c < 0x20 ? "\\u%04x" : "\\%c", c);
        q_json_put_bytes(t, (q_str){s.p + from, i - from});
        q_json_put(t, escape);
        from = i + 1;
    }
    q_json_put_bytes(t, (q_str){s.p + from, s.n - from});
    q_json_put(t, "\"");
}

void q_json_put_uint(q_json_text *t, uint64_t v) {
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)v);
    q_json_put(t, digits);
}

/* Twelve digits: nine tell floats apart. Scaled in double, whose error is far below the last of them. */
void q_json_put_float(q_json_text *t, float v) {
    char text[40];
    int exponent = v != 0.0f ? (int)floor(log10(fabs((double)v))) : 0;
    double m = fabs((double)v);
    for (int e = exponent; e > 0; e--) m /= 10;
    for (int e = exponent; e < 0; e++) m *= 10;
    unsigned long long digits = (unsigned long long)(m * 1e11 + 0.5);
    if (digits >= 1000000000000ULL) {
        digits = (digits + 5) / 10;
        exponent++;
    } else if (v != 0.0f && digits < 100000000000ULL) {
        digits *= 10; /* log10 was rounded up */
        exponent--;
    }
    snprintf(text, sizeof text, "%c%llu.%011llue%c%02d", v < 0.0f ? '-' : ' ', digits / 100000000000ULL,
             digits % 100000000000ULL, exponent < 0 ? '-' : '+', exponent < 0 ? -exponent : exponent);
    q_json_put(t, text);
}
