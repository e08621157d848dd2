/* gguf_types.c: the numbers and rules that reading and writing GGUF share.
 *
 * Owns the names of types that this build knows but cannot compute with, so that a refusal says which one it was; the
 * numbers of the others stand in formats.def. Layer L2. */
#include "gguf.h"

static const struct {
    uint32_t id, bytes;
    const char *name;
} integers[] = {{24, 1, "i8"}, {25, 2, "i16"}, {26, 4, "i32"}, {27, 8, "i64"}, {28, 8, "f64"}};

static const struct {
    uint32_t id;
    bool withdrawn;
    const char *name;
} others[] = {
    {4, true, "q4_2"},        {5, true, "q4_3"},        {9, false, "q8_1"},       {15, false, "q8_k"},
    {16, false, "iq2_xxs"},   {17, false, "iq2_xs"},    {18, false, "iq3_xxs"},   {19, false, "iq1_s"},
    {21, false, "iq3_s"},     {22, false, "iq2_s"},     {29, false, "iq1_m"},     {31, true, "q4_0_4_4"},
    {32, true, "q4_0_4_8"},   {33, true, "q4_0_8_8"},   {36, true, "iq4_nl_4_4"}, {37, true, "iq4_nl_4_8"},
    {38, true, "iq4_nl_8_8"},
};

lq_status q_gguf_type_of(uint32_t id, q_gguf_type *out) {
    const q_format *f = q_format_by_gguf(id);
    if (f) {
        *out = (q_gguf_type){f, f->name, (uint32_t)f->weights, (uint32_t)f->bytes};
        return LQ_OK;
    }
    for (size_t i = 0; i < Q_COUNT(integers); i++)
        if (integers[i].id == id) {
            *out = (q_gguf_type){NULL, integers[i].name, 1, integers[i].bytes};
            return LQ_OK;
        }
    for (size_t i = 0; i < Q_COUNT(others); i++)
        if (others[i].id == id)
            return q_fail(LQ_E_UNSUPPORTED, "its type %s (number %u) %s", others[i].name, id,
                          others[i].withdrawn ? "was withdrawn from GGUF"
                                              : "is known but cannot be read by this build");
    return q_fail(LQ_E_UNSUPPORTED, "its type number %u is unknown", id);
}

int64_t q_gguf_type_id(const q_format *format, const char *type_name) {
    if (format) return q_format_gguf_id(format);
    for (size_t i = 0; type_name && i < Q_COUNT(integers); i++)
        if (strcmp(integers[i].name, type_name) == 0) return integers[i].id;
    return -1;
}

bool q_gguf_row_bytes(const q_gguf_type *t, uint64_t n, uint64_t *bytes) {
    if (t->format) return q_row_bytes(t->format, n, bytes);
    return n % t->weights == 0 && !q_mul_overflow(n / t->weights, t->bytes, bytes);
}

uint32_t q_gguf_item_bytes(uint32_t type) {
    static const uint8_t bytes[] = {
        [Q_META_U8] = 1,  [Q_META_I8] = 1,  [Q_META_U16] = 2,  [Q_META_I16] = 2, [Q_META_U32] = 4, [Q_META_I32] = 4,
        [Q_META_F32] = 4, [Q_META_U64] = 8, [Q_META_BOOL] = 1, [Q_META_I64] = 8, [Q_META_F64] = 8,
    };
    return type < Q_COUNT(bytes) ? bytes[type] : 0;
}

/* The offset of the first byte that is not well-formed UTF-8 (overlong, surrogate, above U+10FFFF), or n. */
static uint64_t utf8_valid(const uint8_t *p, uint64_t n) {
    for (uint64_t i = 0; i < n;) {
        const uint8_t b = p[i];
        const uint64_t more = b < 0x80 ? 0 : b < 0xC2 ? 4 : b < 0xE0 ? 1 : b < 0xF0 ? 2 : b < 0xF5 ? 3 : 4;
        if (more > 3 || more > n - i - 1) return i;
        /* The second byte's range rules out overlong forms, surrogates and what lies above the last code point. */
        if (more && (p[i + 1] < (b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80) ||
                     p[i + 1] > (b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF)))
            return i;
        for (uint64_t k = 2; k <= more; k++)
            if ((p[i + k] & 0xC0) != 0x80) return i;
        i += more + 1;
    }
    return n;
}

lq_status q_gguf_check_name(const char *what, q_str s) {
    if (s.n == 0) return q_fail(LQ_E_FORMAT, "a %s is empty", what);
    if (s.n > Q_GGUF_NAME)
        return q_fail(LQ_E_FORMAT, "a %s has %llu bytes; at most %d are allowed", what, (unsigned long long)s.n,
                      Q_GGUF_NAME);
    if (memchr(s.p, 0, (size_t)s.n))
        return q_fail(LQ_E_FORMAT, "the %s \"%.*s\" contains a zero byte", what, Q_STR_ARG(s));
    const uint64_t bad = utf8_valid((const uint8_t *)s.p, s.n);
    if (bad < s.n)
        return q_fail(LQ_E_FORMAT, "a %s is not UTF-8: byte %llu of \"%.*s\"", what, (unsigned long long)bad,
                      (int)Q_MIN(bad, (uint64_t)200), s.p);
    return LQ_OK;
}
