/* method.c: what every method needs. Layer L1. */
#include "method.h"

bool q_method_takes(const q_method *p, const q_format *f) {
    const size_t n = strlen(f->name);
    for (const char *at = p->formats; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, f->name, n) == 0 && (at[n] == ',' || at[n] == 0)) return true;
    }
    return false;
}

lq_status q_method_name(q_arena *arena, q_str matrix, const char *suffix, q_str *out) {
    static const char end[] = "weight";
    const uint64_t e = sizeof end - 1;
    const bool replaces = *suffix == '=';
    if (matrix.n < e || memcmp(matrix.p + matrix.n - e, end, e) != 0)
        return q_fail(LQ_E_UNSUPPORTED, "tensor %.*s: its name does not end in '%s'", Q_STR_ARG(matrix), end);
    const uint64_t keep = replaces ? matrix.n - e : matrix.n;
    const q_str more = q_str_of(suffix + replaces);
    char *p = (char *)q_arena_new(arena, keep + more.n + 1, 1);
    if (!p) return LQ_E_NOMEM;
    memcpy(p, matrix.p, (size_t)keep);
    memcpy(p + keep, more.p, (size_t)more.n);
    *out = (q_str){p, keep + more.n};
    return LQ_OK;
}
