/* json.c: the strict JSON scanner, the pull reader over it, and the guarded call of jansson. Owns no state; refuses
 * everything that two parsers could read differently. Iterative: no text, however nested, uses stack. Layer L1. */
#include "json.h"

/* What a tree of the text will cost, counted while scanning: bytes that jansson allocates on a 64-bit machine, rounded
 * up, as measured with glibc's malloc. */
typedef struct scan_state {
    uint64_t cost;
    uint8_t *copy; /* where integers beyond 64 bits become reals; NULL: they are refused */
    bool trees;    /* the scan is for a tree: refuse what jansson cannot hold */
} scan_state;
enum { COST_OBJECT = 240, COST_ARRAY = 144, COST_STRING = 96, COST_PAIR = 48, COST_NUMBER = 48 };
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
    bool integer, negative, wide; /* wide: the digits do not fit 64 bits, or not jansson's signed ones */
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

/* jansson's integers are signed 64-bit. A wider one becomes a real in the copy: its last two digits give way to "e2",
 * which changes the value by less than 1e-17 of it. */
static lq_status tree_number(const q_json_reader *r, const number *x, scan_state *s) {
    const uint64_t most = x->negative ? (uint64_t)1 << 63 : INT64_MAX;
    if (!x->integer || (!x->wide && x->value <= most)) return LQ_OK;
    if (!s->copy) return q_json_fail(r, x->begin, "an integer does not fit 64 bits");
    s->copy[x->end - 2] = 'e';
    s->copy[x->end - 1] = '2';
    return LQ_OK;
}

/* A value that is not an object or array. */
static lq_status scan_scalar(q_json_reader *r, scan_state *s) {
    const uint8_t c = r->data[r->at];
    if (c == '"') {
        q_str raw;
        bool escaped;
        Q_TRY(scan_string(r, &raw, &escaped));
        s->cost += COST_STRING + raw.n;
        return LQ_OK;
    }
    s->cost += COST_NUMBER;
    if (c != '-' && !(c >= '0' && c <= '9')) return scan_literal(r);
    number x;
    Q_TRY(scan_number(r, &x));
    return s->trees ? tree_number(r, &x, s) : LQ_OK;
}

/* One value. `objects` keeps, one bit per open level, whether the level is an object: the whole of the stack. */
static lq_status scan_value(q_json_reader *r, scan_state *s) {
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
                s->cost += COST_PAIR + raw.n;
            }
        }
        skip_space(r);
        if (r->at >= r->n) return q_json_fail(r, r->at, "the text ends where a value is expected");
        const uint8_t c = r->data[r->at];
        if (c == '{' || c == '[') {
            if (depth == Q_LIMIT_JSON_DEPTH)
                return q_fail(LQ_E_LIMIT, "%s: JSON at byte %llu is nested deeper than %d levels", r->what,
                              (unsigned long long)(r->base + r->at), Q_LIMIT_JSON_DEPTH);
            objects = objects << 1 | (c == '{');
            depth++;
            s->cost += c == '{' ? COST_OBJECT : COST_ARRAY;
            first = true;
            r->at++;
            continue;
        }
        Q_TRY(scan_scalar(r, s));
        if (!depth) return LQ_OK;
    }
}

lq_status q_json_skip(q_json_reader *r) {
    scan_state s = {0};
    return scan_value(r, &s);
}

/* ---- trees */

static lq_status load_tree(const uint8_t *data, uint64_t n, const char *what, json_t **out) {
    json_error_t e;
    json_t *tree = json_loadb((const char *)data, (size_t)n, JSON_REJECT_DUPLICATES, &e);
    if (tree) {
        *out = tree;
        return LQ_OK;
    }
    if (json_error_code(&e) == json_error_out_of_memory) return q_fail(LQ_E_NOMEM, "%s: out of memory", what);
    return q_fail(LQ_E_FORMAT, "%s: invalid JSON at byte %d: %s", what, e.position, e.text);
}

lq_status q_json_parse(const q_alloc *a, const uint8_t *data, uint64_t n, uint32_t flags, const char *what,
                       json_t **out) {
    q_json_reader r = {.data = data, .n = n, .what = what};
    scan_state s = {.trees = true};
    if (flags & Q_JSON_WIDE) {
        s.copy = (uint8_t *)q_new_raw(a, n, 1);
        if (!s.copy) return LQ_E_NOMEM;
        memcpy(s.copy, data, (size_t)n);
    }
    skip_space(&r);
    lq_status status = LQ_OK;
    if (r.at >= n || data[r.at] != '{') status = q_json_fail(&r, r.at, "an object is expected");
    if (status == LQ_OK) status = scan_value(&r, &s);
    if (status == LQ_OK) status = q_json_end(&r);
    if (status == LQ_OK && s.cost > TREE_FACTOR * n + TREE_SLACK)
        status = q_fail(LQ_E_LIMIT, "%s: its JSON would take %llu bytes of memory, more than %u times its size", what,
                        (unsigned long long)s.cost, TREE_FACTOR);
    if (status == LQ_OK) status = load_tree(s.copy ? s.copy : data, n, what, out);
    q_delete(a, s.copy);
    return status;
}

void q_json_free(json_t *value) { json_decref(value); }
