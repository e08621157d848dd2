/* json.c: the strict JSON scanner, the pull reader and the trees over it. Owns no state; refuses everything that two
 * parsers could read differently. Iterative: no text, however nested, uses stack. Layer L1. */
#include "json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { FEW_MEMBERS = 8, NUMBER_BYTES = 128 };
#define TREE_SLACK ((uint64_t)64 << 20)
#define TREE_FACTOR 12u

lq_status q_json_fail(const q_json_reader *r, uint64_t at, const char *problem) {
    return q_fail(LQ_E_FORMAT, "%s: invalid JSON at byte %llu: %s", r->what, (unsigned long long)(r->base + at),
                  problem);
}

static void skip_space(q_json_reader *r) {
    while (r->at < r->n) {
        const uint8_t c = r->data[r->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') break;
        r->at++;
    }
}

/* Bytes of the UTF-8 character at p, 0 when it is invalid: overlong forms, surrogates and numbers beyond U+10FFFF. */
static uint32_t utf8_bytes(const uint8_t *p, uint64_t n) {
    const uint8_t c = p[0];
    if (c < 0x80) return 1;
    if (c < 0xC2 || c > 0xF4) return 0;
    const uint32_t len = c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (n < len) return 0;
    for (uint32_t i = 1; i < len; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    if (c == 0xE0 && p[1] < 0xA0) return 0;
    if (c == 0xED && p[1] > 0x9F) return 0;
    if (c == 0xF0 && p[1] < 0x90) return 0;
    if (c == 0xF4 && p[1] > 0x8F) return 0;
    return len;
}

/* Four hexadecimal digits at `at`; false when they are not there. */
static bool hex4(const q_json_reader *r, uint64_t at, uint32_t *out) {
    if (r->n - at < 4) return false;
    uint32_t v = 0;
    for (uint32_t i = 0; i < 4; i++) {
        const uint8_t c = r->data[at + i];
        const uint8_t lower = c | 32;
        if (c >= '0' && c <= '9') v = v << 4 | (uint32_t)(c - '0');
        else if (lower >= 'a' && lower <= 'f') v = v << 4 | (uint32_t)(lower - 'a' + 10);
        else return false;
    }
    *out = v;
    return true;
}

/* The escape whose backslash is at r->at, passed over; *code = its character. */
static lq_status read_escape(q_json_reader *r, uint32_t *code) {
    const uint64_t at = r->at;
    const char kinds[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (r->n - at < 2) return q_json_fail(r, at, "the text ends inside a string");
    const uint8_t c = r->data[at + 1];
    const char *k = c ? strchr(kinds, c) : NULL;
    r->at += 2;
    if (k) {
        *code = (uint8_t)values[k - kinds];
        return LQ_OK;
    }
    uint32_t u, low;
    if (c != 'u' || !hex4(r, at + 2, &u)) return q_json_fail(r, at, "unknown escape");
    r->at += 4;
    if (u == 0) return q_json_fail(r, at, "NUL in a string");
    if (u >= 0xD800 && u <= 0xDFFF) {
        if (u >= 0xDC00 || r->n - r->at < 6 || r->data[r->at] != '\\' || r->data[r->at + 1] != 'u' ||
            !hex4(r, r->at + 2, &low) || low < 0xDC00 || low > 0xDFFF)
            return q_json_fail(r, at, "lone surrogate");
        u = 0x10000u + ((u - 0xD800u) << 10 | (low - 0xDC00u));
        r->at += 6;
    }
    *code = u;
    return LQ_OK;
}

/* Check the string at r->at and pass over it. raw = its bytes between the quotes; *escaped when it has escapes. */
static lq_status scan_string(q_json_reader *r, q_str *raw, bool *escaped) {
    const uint64_t begin = r->at;
    if (begin >= r->n || r->data[begin] != '"') return q_json_fail(r, begin, "a string is expected");
    r->at++;
    *escaped = false;
    while (r->at < r->n) {
        const uint8_t c = r->data[r->at];
        if (c == '"') {
            *raw = (q_str){(const char *)r->data + begin + 1, r->at - begin - 1};
            r->at++;
            return LQ_OK;
        }
        if (c == '\\') {
            uint32_t code;
            *escaped = true;
            Q_TRY(read_escape(r, &code));
        } else if (c < 32) {
            return q_json_fail(r, r->at, "control character in a string");
        } else {
            const uint32_t len = utf8_bytes(r->data + r->at, r->n - r->at);
            if (!len) return q_json_fail(r, r->at, "invalid UTF-8");
            r->at += len;
        }
    }
    return q_json_fail(r, begin, "a string does not end");
}

/* Decode a string that scan_string accepted; `out` has room for raw.n bytes (an escape never grows). */
static uint64_t decode_string(q_str raw, char *out) {
    q_json_reader r = {.data = (const uint8_t *)raw.p, .n = raw.n, .what = ""};
    uint64_t n = 0;
    while (r.at < r.n) {
        uint32_t c = r.data[r.at];
        if (c != '\\') {
            out[n++] = (char)c;
            r.at++;
            continue;
        }
        if (read_escape(&r, &c) != LQ_OK) break; /* cannot be: it was scanned */
        if (c < 0x80) {
            out[n++] = (char)c;
        } else {
            const uint32_t len = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
            const uint32_t head = len == 2 ? 0xC0 : len == 3 ? 0xE0 : 0xF0;
            out[n++] = (char)(head | c >> 6 * (len - 1));
            for (uint32_t i = len - 1; i-- > 0;) out[n++] = (char)(0x80 | (c >> 6 * i & 0x3F));
        }
    }
    return n;
}

lq_status q_json_string(q_json_reader *r, q_str *out) {
    q_str raw;
    bool escaped;
    skip_space(r);
    Q_TRY(scan_string(r, &raw, &escaped));
    if (escaped) {
        char *p = (char *)q_arena_new(r->arena, raw.n, 1);
        if (!p) return LQ_E_NOMEM;
        raw = (q_str){p, decode_string(raw, p)};
    }
    *out = raw;
    return LQ_OK;
}

lq_status q_json_key(q_json_reader *r, q_str *out) {
    Q_TRY(q_json_string(r, out));
    return q_json_expect(r, ':');
}

lq_status q_json_expect(q_json_reader *r, char c) {
    skip_space(r);
    if (r->at < r->n && r->data[r->at] == (uint8_t)c) {
        r->at++;
        return LQ_OK;
    }
    const char problem[] = {'\'', c, '\'', ' ', 'i', 's', ' ', 'e', 'x', 'p', 'e', 'c', 't', 'e', 'd', 0};
    return q_json_fail(r, r->at, problem);
}

lq_status q_json_next(q_json_reader *r, char close, bool *first, bool *more) {
    skip_space(r);
    *more = !(r->at < r->n && r->data[r->at] == (uint8_t)close);
    if (!*more) r->at++;
    else if (!*first) Q_TRY(q_json_expect(r, ','));
    *first = false;
    return LQ_OK;
}

lq_status q_json_end(q_json_reader *r) {
    skip_space(r);
    return r->at == r->n ? LQ_OK : q_json_fail(r, r->at, "there is something after the value");
}

/* ---- numbers */

typedef struct number {
    uint64_t begin, end;
    bool integer, negative, wide; /* wide: the digits do not fit 64 bits */
    uint64_t value;
} number;

static bool is_digit(const q_json_reader *r, uint64_t at) {
    return at < r->n && r->data[at] >= '0' && r->data[at] <= '9';
}

static lq_status scan_number(q_json_reader *r, number *out) {
    uint64_t at = r->at;
    *out = (number){.begin = at, .integer = true};
    if (at < r->n && r->data[at] == '-') {
        out->negative = true;
        at++;
    }
    if (!is_digit(r, at)) return q_json_fail(r, r->at, "a value is expected");
    if (r->data[at] == '0' && is_digit(r, at + 1)) return q_json_fail(r, at, "a number begins with 0");
    for (; is_digit(r, at); at++)
        out->wide = q_mul_overflow(out->value, 10, &out->value) ||
                    q_add_overflow(out->value, (uint64_t)(r->data[at] - '0'), &out->value) || out->wide;
    if (at < r->n && r->data[at] == '.') {
        out->integer = false;
        if (!is_digit(r, ++at)) return q_json_fail(r, at, "a digit is expected");
        while (is_digit(r, at)) at++;
    }
    if (at < r->n && (r->data[at] | 32) == 'e') {
        out->integer = false;
        at++;
        if (at < r->n && (r->data[at] == '+' || r->data[at] == '-')) at++;
        if (!is_digit(r, at)) return q_json_fail(r, at, "a digit is expected");
        while (is_digit(r, at)) at++;
    }
    if (out->integer && out->negative && !out->wide && out->value == 0)
        return q_json_fail(r, r->at, "-0 is not an integer");
    r->at = out->end = at;
    return LQ_OK;
}

lq_status q_json_uint(q_json_reader *r, uint64_t *out) {
    number x;
    skip_space(r);
    Q_TRY(scan_number(r, &x));
    if (!x.integer || x.negative || x.wide)
        return q_json_fail(r, x.begin, "a plain unsigned 64-bit integer is expected");
    *out = x.value;
    return LQ_OK;
}

/* ---- any value */

static lq_status scan_literal(q_json_reader *r) {
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < Q_COUNT(words); i++) {
        const size_t n = strlen(words[i]);
        if (r->n - r->at >= n && memcmp(r->data + r->at, words[i], n) == 0) {
            r->at += n;
            return LQ_OK;
        }
    }
    return q_json_fail(r, r->at, "a value is expected");
}

/* A value that is not an object or array. */
static lq_status scan_scalar(q_json_reader *r, uint64_t *cost) {
    const uint8_t c = r->data[r->at];
    if (c == '"') {
        q_str raw;
        bool escaped;
        Q_TRY(scan_string(r, &raw, &escaped));
        *cost += escaped ? raw.n : 0;
        return LQ_OK;
    }
    if (c != '-' && !(c >= '0' && c <= '9')) return scan_literal(r);
    number x;
    return scan_number(r, &x);
}

/* One value, and the bytes that its tree would take added to *cost. `objects` keeps, one bit per open level, whether
 * the level is an object: the whole of the stack. */
static lq_status scan_value(q_json_reader *r, uint64_t *cost) {
    uint64_t objects = 0;
    uint32_t depth = 0;
    bool first = false; /* an opening was just consumed */
    for (;;) {
        if (depth) {
            const bool object = objects & 1;
            bool more;
            Q_TRY(q_json_next(r, object ? '}' : ']', &first, &more));
            if (!more) {
                objects >>= 1;
                if (--depth == 0) return LQ_OK;
                continue;
            }
            if (object) {
                q_str raw;
                bool escaped;
                skip_space(r);
                Q_TRY(scan_string(r, &raw, &escaped));
                Q_TRY(q_json_expect(r, ':'));
                *cost += escaped ? raw.n : 0;
            }
        }
        skip_space(r);
        if (r->at >= r->n) return q_json_fail(r, r->at, "the text ends where a value is expected");
        const uint8_t c = r->data[r->at];
        *cost += sizeof(q_json);
        if (c == '{' || c == '[') {
            if (depth == Q_LIMIT_JSON_DEPTH)
                return q_fail(LQ_E_LIMIT, "%s: JSON at byte %llu is nested deeper than %d levels", r->what,
                              (unsigned long long)(r->base + r->at), Q_LIMIT_JSON_DEPTH);
            objects = objects << 1 | (c == '{');
            depth++;
            first = true;
            r->at++;
            continue;
        }
        Q_TRY(scan_scalar(r, cost));
        if (!depth) return LQ_OK;
    }
}

lq_status q_json_skip(q_json_reader *r) {
    uint64_t cost = 0;
    return scan_value(r, &cost);
}

/* ---- trees */

/* strtod takes the decimal point of the thread's locale: find out which that is, and give it that. */
static lq_status read_real(q_json_reader *r, const number *x, double *out) {
    char small[NUMBER_BYTES], half[16], *text = small;
    const uint64_t n = x->end - x->begin;
    snprintf(half, sizeof half, "%.1f", 0.5);
    const uint64_t point = strlen(half) - 2; /* its bytes: "0", point, "5" */
    if (n + point >= sizeof small && !(text = (char *)q_arena_new(r->arena, n + point + 1, 1))) return LQ_E_NOMEM;
    char *p = text;
    for (uint64_t i = x->begin; i < x->end; i++) {
        if (r->data[i] != '.') {
            *p++ = (char)r->data[i];
            continue;
        }
        memcpy(p, half + 1, (size_t)point);
        p += point;
    }
    *p = 0;
    *out = strtod(text, NULL);
    return isfinite(*out) ? LQ_OK : q_json_fail(r, x->begin, "a number is beyond the range of doubles");
}

static lq_status read_number(q_json_reader *r, uint32_t flags, q_json *v) {
    number x;
    Q_TRY(scan_number(r, &x));
    const uint64_t most = x.negative ? (uint64_t)1 << 63 : INT64_MAX;
    const bool fits = x.integer && !x.wide && x.value <= most;
    if (x.integer && !fits && !(flags & Q_JSON_WIDE))
        return q_json_fail(r, x.begin, "an integer does not fit 64 bits");
    v->type = fits ? Q_JSON_INTEGER : Q_JSON_REAL;
    if (!fits) return read_real(r, &x, &v->f);
    v->i = x.negative ? (int64_t)(0 - x.value) : (int64_t)x.value;
    v->f = (double)v->i;
    return LQ_OK;
}

static lq_status read_scalar(q_json_reader *r, uint32_t flags, q_json *v) {
    const uint8_t c = r->data[r->at];
    if (c == '"') {
        v->type = Q_JSON_STRING;
        return q_json_string(r, &v->s);
    }
    if (c == '-' || (c >= '0' && c <= '9')) return read_number(r, flags, v);
    v->type = c == 'n' ? Q_JSON_NULL : Q_JSON_BOOL;
    v->i = c == 't';
    v->f = (double)v->i;
    return scan_literal(r);
}

static lq_status fail_duplicate(const q_json_reader *r, q_str key) {
    char problem[300];
    snprintf(problem, sizeof problem, "duplicate key '%.*s' in the object that ends here", Q_STR_ARG(key));
    return q_json_fail(r, r->at, problem);
}

static lq_status check_keys(const q_json_reader *r, const q_json *object) {
    if (object->n <= FEW_MEMBERS) {
        for (const q_json *a = object->first; a; a = a->next)
            for (const q_json *b = a->next; b; b = b->next)
                if (q_str_eq(a->key, b->key)) return fail_duplicate(r, a->key);
        return LQ_OK;
    }
    const q_alloc *alloc = r->arena->alloc;
    q_str *keys = (q_str *)q_new_raw(alloc, object->n, sizeof *keys);
    if (!keys) return LQ_E_NOMEM;
    q_index index;
    uint32_t n = 0; /* a text of less than 4 GiB has fewer members */
    for (const q_json *v = object->first; v; v = v->next) keys[n++] = v->key;
    lq_status s = q_index_build(alloc, keys, sizeof *keys, n, "duplicate: key", &index);
    if (s == LQ_OK) q_delete(alloc, index.cells);
    else if (s == LQ_E_INCONSISTENT)
        s = q_fail_in(LQ_E_FORMAT, "%s: invalid JSON at byte %llu", r->what, (unsigned long long)(r->base + r->at));
    q_delete(alloc, keys);
    return s;
}

/* The tree of a text that scan_value accepted. */
static lq_status build_tree(q_json_reader *r, uint32_t flags, q_json **out) {
    struct {
        q_json *value;
        const q_json **tail;
    } open[Q_LIMIT_JSON_DEPTH];
    uint32_t depth = 0;
    bool first = false;
    for (;;) {
        q_str key = {0};
        if (depth) {
            q_json *in = open[depth - 1].value;
            bool more;
            Q_TRY(q_json_next(r, in->type == Q_JSON_OBJECT ? '}' : ']', &first, &more));
            if (!more) {
                if (in->type == Q_JSON_OBJECT) Q_TRY(check_keys(r, in));
                if (--depth == 0) return LQ_OK;
                continue;
            }
            if (in->type == Q_JSON_OBJECT) Q_TRY(q_json_key(r, &key));
        }
        q_json *v = (q_json *)q_arena_new(r->arena, 1, sizeof *v);
        if (!v) return LQ_E_NOMEM;
        v->key = key;
        if (depth) {
            *open[depth - 1].tail = v;
            open[depth - 1].tail = &v->next;
            open[depth - 1].value->n++;
        } else *out = v;
        skip_space(r);
        const uint8_t c = r->at < r->n ? r->data[r->at] : 0;
        if ((c == '{' || c == '[') && depth < Q_LIMIT_JSON_DEPTH) {
            v->type = c == '{' ? Q_JSON_OBJECT : Q_JSON_ARRAY;
            open[depth].value = v;
            open[depth++].tail = &v->first;
            first = true;
            r->at++;
            continue;
        }
        Q_TRY(read_scalar(r, flags, v));
        if (!depth) return LQ_OK;
    }
}

lq_status q_json_parse(q_arena *arena, const uint8_t *data, uint64_t n, uint32_t flags, const char *what,
                       const q_json **out) {
    q_json_reader r = {.data = data, .n = n, .what = what, .arena = arena};
    uint64_t cost = 0;
    q_json *tree = NULL;
    if (n > UINT32_MAX) return q_fail(LQ_E_LIMIT, "%s: a JSON text of %llu bytes", what, (unsigned long long)n);
    skip_space(&r);
    if (r.at >= n || data[r.at] != '{') return q_json_fail(&r, r.at, "an object is expected");
    const uint64_t begin = r.at;
    Q_TRY(scan_value(&r, &cost));
    Q_TRY(q_json_end(&r));
    if (cost > TREE_FACTOR * n + TREE_SLACK)
        return q_fail(LQ_E_LIMIT, "%s: its JSON would take %llu bytes of memory, more than %u times its size", what,
                      (unsigned long long)cost, TREE_FACTOR);
    r.at = begin;
    Q_TRY(build_tree(&r, flags, &tree));
    *out = tree;
    return LQ_OK;
}
