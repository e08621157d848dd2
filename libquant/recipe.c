/* recipe.c: parses recipes, enumerates the embedded ones, and chooses a format and quantizer per tensor. (What users
 * add to a name, "q4_k_m:gptq", is scheme.c's.)
 *
 * Owns the grammar of recipe.h. Refuses, with recipe and line: unknown formats, quantizers, roles and conditions, rules
 * that can never apply, and texts without a rule for every tensor. Globs are matched without recursion in
 * O(pattern * name). Layer L3. */
#include "recipe.h"

#include <stdlib.h>

#include "arch.h"
#include "file.h"

enum {
    LIMIT_TEXT = 1 << 20,
    LIMIT_RULES = 4096,
    LIMIT_WORDS = 16,      /* per line */
    LIMIT_PATTERNS = 32,   /* per rule */
    LIMIT_NUMBER = 1000000 /* in conditions */
};

typedef enum { VAR_LAYER, VAR_GQA } variable;
typedef enum { CMP_LT, CMP_LE, CMP_GT, CMP_GE, CMP_EQ } comparison;
typedef enum { COND_COMPARE, COND_MORE, COND_TIED, COND_UNTIED, COND_IMPORTANCE, COND_NO_IMPORTANCE } condition_kind;

typedef struct condition {
    condition_kind kind;
    variable var;
    comparison cmp;
    int64_t mul, div, add; /* right side: mul * n / div + add */
} condition;

typedef struct rule {
    const char *patterns[LIMIT_PATTERNS];
    uint32_t n_patterns;
    condition conditions[LIMIT_WORDS];
    uint32_t n_conditions;
    const q_format *format;
    const q_quantizer *quantizer; /* NULL = the rule names none: search */
    struct rule *next;
} rule;

struct q_recipe {
    q_arena arena;
    const char *name;
    int32_t file_type;
    const q_format *vector;
    const q_quantizer *quantizer; /* of the layers' matrices, whatever rules say; NULL = as they say */
    bool statistics;              /* the scheme says that it wants them */
    const q_method *method; /* NULL: a GGUF file */
    const q_transform *transform; /* NULL = none */
    const char *instead;
    rule *rules;
};

/* ---- the embedded texts */

static const struct {
    const char *name, *description, *text;
} embedded[] = {
#define RECIPE(name, description, text) {name, description, text},
#include "recipes.inc"
#undef RECIPE
};

uint32_t q_recipe_count(void) { return (uint32_t)Q_COUNT(embedded); }

const char *q_recipe_name(uint32_t index, const char **description) {
    if (index >= Q_COUNT(embedded)) return NULL;
    if (description) *description = embedded[index].description;
    return embedded[index].name;
}

const char *q_recipe_by_file_type(uint64_t file_type) {
    static const char key[] = "\nfile_type ";
    for (size_t i = 0; i < Q_COUNT(embedded); i++) {
        const char *at = strstr(embedded[i].text, key);
        if (at && strtoull(at + sizeof key - 1, NULL, 10) == file_type) return embedded[i].name;
    }
    return NULL;
}

bool q_recipe_is_directory(uint32_t index) {
    return index < Q_COUNT(embedded) && strstr(embedded[index].text, "\nmethod ") != NULL;
}

/* ---- words */

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* A whole number of at most LIMIT_NUMBER at *p; false when there is none. Advances. */
static bool take_number(const char **p, const char *end, int64_t *out) {
    int64_t v = 0;
    const char *at = *p;
    while (at < end && is_digit(*at)) {
        v = v * 10 + (*at++ - '0');
        if (v > LIMIT_NUMBER) return false;
    }
    if (at == *p) return false;
    *p = at;
    *out = v;
    return true;
}

/* NUMBER | [A]n[/B][+C|-C] */
static bool parse_expression(q_str s, condition *c) {
    const char *p = s.p, *end = s.p + s.n;
    int64_t v = 0;
    const bool leading = take_number(&p, end, &v);
    c->mul = 0, c->div = 1, c->add = 0;
    if (leading && p == end) {
        c->add = v;
        return true;
    }
    if (p == end || *p != 'n') return false;
    p++;
    c->mul = leading ? v : 1;
    if (p < end && *p == '/') {
        p++;
        if (!take_number(&p, end, &c->div) || c->div == 0) return false;
    }
    if (p < end && (*p == '+' || *p == '-')) {
        const bool minus = *p++ == '-';
        if (!take_number(&p, end, &v)) return false;
        c->add = minus ? -v : v;
    }
    return p == end;
}

static bool parse_condition(q_str s, condition *c) {
    static const struct {
        const char *word;
        condition_kind kind;
    } words[] = {{"more", COND_MORE},
                 {"tied", COND_TIED},
                 {"untied", COND_UNTIED},
                 {"importance", COND_IMPORTANCE},
                 {"no-importance", COND_NO_IMPORTANCE}};
    static const char *const variables[] = {[VAR_LAYER] = "layer", [VAR_GQA] = "gqa"};
    static const struct {
        const char *sign;
        comparison cmp;
    } signs[] = {{"<=", CMP_LE}, {">=", CMP_GE}, {"<", CMP_LT}, {">", CMP_GT}, {"=", CMP_EQ}}; /* longest first */
    for (size_t i = 0; i < Q_COUNT(words); i++)
        if (q_str_is(s, words[i].word)) {
            c->kind = words[i].kind;
            return true;
        }
    c->kind = COND_COMPARE;
    for (size_t v = 0; v < Q_COUNT(variables); v++) {
        const size_t n = strlen(variables[v]);
        if (s.n <= n || memcmp(s.p, variables[v], n) != 0) continue;
        c->var = (variable)v;
        for (size_t i = 0; i < Q_COUNT(signs); i++) {
            const size_t m = strlen(signs[i].sign);
            if (s.n - n < m || memcmp(s.p + n, signs[i].sign, m) != 0) continue;
            c->cmp = signs[i].cmp;
            return parse_expression((q_str){s.p + n + m, s.n - n - m}, c);
        }
    }
    return false;
}

static bool is_role(q_str s) {
    for (const q_arch *const *a = q_archs; *a; a++)
        for (uint32_t i = 0; i < (*a)->n_weights; i++)
            if (q_str_is(s, (*a)->weights[i].role)) return true;
    return false;
}
static bool is_glob(const char *s) { return strpbrk(s, "*?[.") != NULL; }

/* ---- globs */

/* Does the set that begins at p ("[...]") hold c? *after = the character behind it; NULL when it is not closed. */
static bool set_holds(const char *p, char c, const char **after) {
    const bool negate = *++p == '!';
    bool found = false;
    if (negate) p++;
    const char *first = p;
    *after = NULL;
    while (*p && (*p != ']' || p == first)) {
        const char low = *p++;
        char high = low;
        if (*p == '-' && p[1] && p[1] != ']') {
            high = p[1];
            p += 2;
        }
        found |= c >= low && c <= high;
    }
    if (*p == ']') *after = p + 1;
    return found != negate;
}

/* On a mismatch take one more character into the last star: earlier stars never need another try. */
static bool glob_matches(const char *p, q_str s) {
    const char *star = NULL;
    uint64_t at = 0, star_at = 0;
    for (;;) {
        if (*p == '*') {
            star = ++p;
            star_at = at;
            continue;
        }
        if (at == s.n && !*p) return true;
        if (at < s.n && *p) {
            const char *after = p + 1;
            const bool hit = *p == '[' ? set_holds(p, s.p[at], &after) : *p == '?' || *p == s.p[at];
            if (hit && after) {
                p = after;
                at++;
                continue;
            }
        }
        if (!star || star_at == s.n) return false;
        p = star;
        at = ++star_at;
    }
}

/* An unclosed set would never match: refuse it when it is read. */
static bool glob_valid(const char *p) {
    while (*p) {
        if (*p != '[') {
            p++;
            continue;
        }
        set_holds(p, 'a', &p);
        if (!p) return false;
    }
    return true;
}

/* ---- parser */

typedef struct parser {
    q_recipe *recipe;
    uint32_t line, n_rules;
    rule **tail;
    bool complete; /* a rule that takes every tensor was read */
    bool has_file_type, has_vector;
    q_str words[LIMIT_WORDS];
    uint32_t n;
} parser;

/* The sentence, with recipe and line in front. */
#define FAIL(p, ...)               \
    (q_fail(LQ_E_FORMAT, __VA_ARGS__), \
     q_fail_in(LQ_E_FORMAT, "recipe %s, line %u", (p)->recipe->name, (unsigned)(p)->line))

/* Split a line into words up to a comment. */
static lq_status split_words(parser *p, const char *s, const char *end) {
    p->n = 0;
    while (s < end) {
        if (is_blank(*s)) {
            s++;
            continue;
        }
        if (*s == '#') break;
        const char *first = s;
        while (s < end && !is_blank(*s)) {
            if ((unsigned char)*s < 0x21 || (unsigned char)*s > 0x7E)
                return FAIL(p, "byte 0x%02x is not a printable character", (unsigned)(unsigned char)*s);
            s++;
        }
        if (p->n == LIMIT_WORDS) return FAIL(p, "more than %d words", LIMIT_WORDS);
        p->words[p->n++] = (q_str){first, (uint64_t)(s - first)};
    }
    return LQ_OK;
}

static const q_format *find_format(q_str s) {
    for (uint32_t i = 0; i < q_format_count(); i++)
        if (q_str_is(s, q_formats[i]->name)) return q_formats[i];
    return NULL;
}

static lq_status read_file_type(parser *p) {
    const char *at = p->words[1].p;
    int64_t v;
    if (p->n != 2 || !take_number(&at, at + p->words[1].n, &v) || at != p->words[1].p + p->words[1].n)
        return FAIL(p, "expected 'file_type NUMBER'");
    if (p->has_file_type) return FAIL(p, "a second file_type");
    p->has_file_type = true;
    p->recipe->file_type = (int32_t)v;
    return LQ_OK;
}

static lq_status read_vector(parser *p) {
    if (p->n != 2) return FAIL(p, "expected 'vector FORMAT'");
    const q_format *f = find_format(p->words[1]);
    if (!f) return FAIL(p, "there is no format '%.*s'", Q_STR_ARG(p->words[1]));
    if (f->weights != 1) return FAIL(p, "vectors cannot be in blocks: %s is not a float format", f->name);
    if (p->has_vector) return FAIL(p, "a second vector line");
    p->has_vector = true;
    p->recipe->vector = f;
    return LQ_OK;
}

static lq_status read_method(parser *p) {
    if (p->n != 2) return FAIL(p, "expected 'method NAME'");
    if (p->recipe->method) return FAIL(p, "a second method");
    p->recipe->method = q_method_find(p->words[1]);
    return p->recipe->method ? LQ_OK : FAIL(p, "there is no method '%.*s'", Q_STR_ARG(p->words[1]));
}

static lq_status read_transform(parser *p) {
    if (p->n != 2 || p->recipe->transform) return FAIL(p, "expected 'transform NAME', once");
    for (const q_transform *const *t = q_transforms; *t; t++)
        if (q_str_is(p->words[1], (*t)->name)) p->recipe->transform = *t;
    return p->recipe->transform ? LQ_OK : FAIL(p, "there is no transform '%.*s'", Q_STR_ARG(p->words[1]));
}

static lq_status read_instead(parser *p) {
    if (p->n != 2 || p->recipe->instead) return FAIL(p, "expected 'instead SCHEME', once");
    p->recipe->instead = q_arena_str(&p->recipe->arena, p->words[1]);
    return p->recipe->instead ? LQ_OK : LQ_E_NOMEM;
}

static lq_status read_patterns(parser *p, rule *r, q_str word) {
    for (uint64_t at = 0; at <= word.n;) {
        const char *comma = (const char *)memchr(word.p + at, ',', (size_t)(word.n - at));
        const uint64_t end = comma ? (uint64_t)(comma - word.p) : word.n;
        const q_str s = {word.p + at, end - at};
        at = end + 1;
        if (s.n == 0) return FAIL(p, "an empty pattern in '%.*s'", Q_STR_ARG(word));
        if (r->n_patterns == LIMIT_PATTERNS) return FAIL(p, "more than %d patterns in a rule", LIMIT_PATTERNS);
        char *text = q_arena_str(&p->recipe->arena, s);
        if (!text) return LQ_E_NOMEM;
        if (is_glob(text)) {
            if (!glob_valid(text)) return FAIL(p, "pattern '%s' has a '[' without ']'", text);
        } else if (!is_role(s)) {
            return FAIL(p, "'%s' is not the role of any tensor (a tensor's name is matched by a pattern with '*', '?', "
                        "'[' or '.')", text);
        }
        r->patterns[r->n_patterns++] = text;
    }
    return LQ_OK;
}

/* FORMAT[:QUANTIZER] */
static lq_status read_target(parser *p, rule *r, q_str word) {
    const char *colon = (const char *)memchr(word.p, ':', (size_t)word.n);
    const q_str format = {word.p, colon ? (uint64_t)(colon - word.p) : word.n};
    r->format = find_format(format);
    if (!r->format) return FAIL(p, "there is no format '%.*s'", Q_STR_ARG(format));
    if (!colon) return LQ_OK;
    const q_str name = {colon + 1, word.n - format.n - 1};
    for (const q_quantizer *const *q = q_quantizers; *q; q++)
        if (q_str_is(name, (*q)->name)) r->quantizer = *q;
    if (!r->quantizer) return FAIL(p, "there is no quantizer '%.*s'", Q_STR_ARG(name));
    if (!r->quantizer->accepts(r->format))
        return FAIL(p, "quantizer %s cannot fill format %s", r->quantizer->name, r->format->name);
    return LQ_OK;
}

static lq_status read_rule(parser *p) {
    if (p->n < 2) return FAIL(p, "expected 'PATTERN [CONDITION...] FORMAT'");
    if (p->complete) return FAIL(p, "never reached: a rule before this one takes every tensor");
    if (p->n_rules == LIMIT_RULES) return FAIL(p, "more than %d rules", LIMIT_RULES);
    rule *r = (rule *)q_arena_new(&p->recipe->arena, 1, sizeof(rule));
    if (!r) return LQ_E_NOMEM;
    Q_TRY(read_patterns(p, r, p->words[0]));
    for (uint32_t i = 1; i + 1 < p->n; i++)
        if (!parse_condition(p->words[i], &r->conditions[r->n_conditions++]))
            return FAIL(p, "'%.*s' is not a condition", Q_STR_ARG(p->words[i]));
    Q_TRY(read_target(p, r, p->words[p->n - 1]));
    if (r->n_conditions == 0)
        for (uint32_t i = 0; i < r->n_patterns; i++) p->complete |= strcmp(r->patterns[i], "*") == 0;
    *p->tail = r;
    p->tail = &r->next;
    p->n_rules++;
    return LQ_OK;
}

static lq_status read_text(parser *p, const char *text, size_t n) {
    const char *end = text + n;
    while (text < end) {
        const char *newline = (const char *)memchr(text, '\n', (size_t)(end - text));
        const char *stop = newline ? newline : end;
        p->line++;
        Q_TRY(split_words(p, text, stop));
        text = newline ? newline + 1 : end;
        if (p->n == 0) continue;
        if (q_str_is(p->words[0], "file_type"))
            Q_TRY(read_file_type(p));
        else if (q_str_is(p->words[0], "vector"))
            Q_TRY(read_vector(p));
        else if (q_str_is(p->words[0], "method"))
            Q_TRY(read_method(p));
        else if (q_str_is(p->words[0], "transform"))
            Q_TRY(read_transform(p));
        else if (q_str_is(p->words[0], "instead"))
            Q_TRY(read_instead(p));
        else
            Q_TRY(read_rule(p));
    }
    if (!p->complete) return FAIL(p, "the last rule must be '* FORMAT', so that every tensor has a format");
    return LQ_OK;
}

static lq_status recipe_new(const q_alloc *a, const char *name, q_recipe **out) {
    q_recipe *r = Q_NEW(a, q_recipe, 1);
    if (!r) return LQ_E_NOMEM;
    r->arena.alloc = a;
    r->file_type = -1;
    r->vector = q_format_find("f32");
    r->name = q_arena_str(&r->arena, q_str_of(name));
    if (!r->name) {
        q_recipe_close(r);
        return LQ_E_NOMEM;
    }
    *out = r;
    return LQ_OK;
}

lq_status q_recipe_parse(const q_alloc *a, const char *name, const char *text, size_t n, q_recipe **out) {
    if (n > LIMIT_TEXT) return q_fail(LQ_E_LIMIT, "recipe %s is longer than %d bytes", name, LIMIT_TEXT);
    q_recipe *r;
    Q_TRY(recipe_new(a, name, &r));
    parser p;
    memset(&p, 0, sizeof p);
    p.recipe = r;
    p.tail = &r->rules;
    const lq_status st = read_text(&p, text, n);
    if (st != LQ_OK) {
        q_recipe_close(r);
        return st;
    }
    *out = r;
    return LQ_OK;
}

void q_recipe_close(q_recipe *recipe) {
    if (!recipe) return;
    const q_alloc *a = recipe->arena.alloc;
    q_arena_free(&recipe->arena);
    q_delete(a, recipe);
}

/* ---- finding */

static lq_status uniform(const q_alloc *a, const q_format *f, q_recipe **out) {
    q_recipe *r;
    Q_TRY(recipe_new(a, f->name, &r));
    rule *all = (rule *)q_arena_new(&r->arena, 1, sizeof(rule));
    if (!all) {
        q_recipe_close(r);
        return LQ_E_NOMEM;
    }
    all->patterns[all->n_patterns++] = "*";
    all->format = f;
    r->rules = all;
    *out = r;
    return LQ_OK;
}

lq_status q_recipe_named(const q_alloc *a, const char *name, q_recipe **out) {
    for (size_t i = 0; i < Q_COUNT(embedded); i++)
        if (strcmp(embedded[i].name, name) == 0)
            return q_recipe_parse(a, name, embedded[i].text, strlen(embedded[i].text), out);
    const q_format *f = q_format_find(name);
    *out = NULL;
    return f ? uniform(a, f, out) : LQ_OK;
}

lq_status q_recipe_read(const q_alloc *a, const char *path, q_recipe **out) {
    uint8_t *text;
    uint64_t n;
    Q_TRY(q_file_slurp(a, path, LIMIT_TEXT, &text, &n));
    const lq_status s = q_recipe_parse(a, path, (const char *)text, (size_t)n, out);
    q_delete(a, text);
    return s;
}

lq_status q_recipe_set_quantizer(q_recipe *recipe, const q_quantizer *quantizer) {
    bool any = false;
    for (const rule *r = recipe->rules; r && !any; r = r->next)
        any = r->format->weights > 1 && quantizer->accepts(r->format);
    if (!any)
        return q_fail(LQ_E_ARG, "scheme %s has no format whose bits %s could choose", recipe->name, quantizer->name);
    recipe->quantizer = quantizer;
    return LQ_OK;
}

lq_status q_recipe_set_transform(q_recipe *recipe, const q_transform *transform) {
    if (recipe->transform && recipe->transform != transform)
        return q_fail(LQ_E_ARG, "scheme %s has the transform %s already; %s cannot be added", recipe->name,
                      recipe->transform->name, transform->name);
    recipe->transform = transform;
    return LQ_OK;
}
const q_transform *q_recipe_transform(const q_recipe *recipe) { return recipe->transform; }

void q_recipe_demand_statistics(q_recipe *recipe) { recipe->statistics = true; }
bool q_recipe_demands_statistics(const q_recipe *recipe) { return recipe->statistics; }

int32_t q_recipe_file_type(const q_recipe *recipe) { return recipe->file_type; }

const q_method *q_recipe_method(const q_recipe *recipe, const char **instead) {
    if (instead) *instead = recipe->instead;
    return recipe->method;
}

/* ---- choosing */

/* The layers whose attention values and ffn_down carry most: the first and last eighth, every third between. */
static bool is_more(int64_t i, int64_t n) { return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2; }

static bool compare(const condition *c, const q_recipe_tensor *t) {
    if (c->var == VAR_LAYER && t->layer < 0) return false;
    const int64_t left = c->var == VAR_LAYER ? t->layer : t->gqa;
    const int64_t right = c->mul * t->layers / c->div + c->add;
    switch (c->cmp) {
    case CMP_LT: return left < right;
    case CMP_LE: return left <= right;
    case CMP_GT: return left > right;
    case CMP_GE: return left >= right;
    case CMP_EQ: return left == right;
    }
    return false;
}

static bool holds(const condition *c, const q_recipe_tensor *t) {
    switch (c->kind) {
    case COND_COMPARE: return compare(c, t);
    case COND_MORE: return t->layer >= 0 && is_more(t->layer, t->layers);
    case COND_TIED: return t->tied;
    case COND_UNTIED: return !t->tied;
    case COND_IMPORTANCE: return t->importance;
    case COND_NO_IMPORTANCE: return !t->importance;
    }
    return false;
}

static bool applies(const rule *r, const q_recipe_tensor *t) {
    bool named = false;
    for (uint32_t i = 0; i < r->n_patterns && !named; i++)
        named = is_glob(r->patterns[i]) ? glob_matches(r->patterns[i], t->name) : strcmp(r->patterns[i], t->role) == 0;
    for (uint32_t i = 0; i < r->n_conditions && named; i++) named = holds(&r->conditions[i], t);
    return named;
}

static bool is_norm(const char *role) {
    const size_t n = strlen(role);
    return n >= 5 && strcmp(role + n - 5, "_norm") == 0;
}

lq_status q_recipe_choose(const q_recipe *recipe, const q_recipe_tensor *t, q_recipe_choice *out) {
    q_recipe_choice c = {recipe->vector, NULL, q_quantizer_find("search")};
    if (t->rank > 1 && !is_norm(t->role)) {
        const rule *r = recipe->rules;
        while (r && !applies(r, t)) r = r->next;
        if (!r)
            return q_fail(LQ_E_INTERNAL, "recipe %s has no rule for tensor %.*s", recipe->name, Q_STR_ARG(t->name));
        c.wanted = r->format;
        if (recipe->quantizer && t->layer >= 0) c.quantizer = recipe->quantizer;
        else if (r->quantizer) c.quantizer = r->quantizer;
    }
    /* Every chain of fall-backs ends in a float format; the count guards against a circle in the table. */
    c.format = c.wanted;
    for (uint32_t step = 0; t->k % (uint64_t)c.format->weights != 0; step++) {
        const q_format *next = c.format->fallback ? q_format_find(c.format->fallback) : NULL;
        if (!next || step > q_format_count())
            return q_fail(LQ_E_UNSUPPORTED, "tensor %.*s: rows of %llu weights do not fill blocks of %s (%d), which "
                          "has no fall-back", Q_STR_ARG(t->name), (unsigned long long)t->k, c.wanted->name,
                          (int)c.wanted->weights);
        c.format = next;
    }
    /* A quantizer for blocks of bits has nothing to choose where every weight has a scale of its own. */
    if (c.format->weights == 1 || !c.quantizer || !c.quantizer->accepts(c.format))
        c.quantizer = q_quantizer_find("rtn");
    if (!c.quantizer) return q_fail(LQ_E_INTERNAL, "no quantizer for format %s", c.format->name);
    *out = c;
    return LQ_OK;
}
