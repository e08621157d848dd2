/* rope_scaling.c: rotations of positions stretched beyond the trained context: keys, options, tensors of factors,
 * tables.
 *
 * Keys of GGUF files and of config.json, in the spellings of all versions; every key under rope.scaling, rope_scaling
 * and rope_parameters is either read here or refused by name. A key that the type does not use is refused, since the
 * file then means something else than it says. Tables are computed in double and rounded once, but for factors, which
 * are float32 wherever they come from. Layer L3. */
#include "rope_scaling.h"

#include <math.h>
#include <stdio.h>

static const char *const kinds[Q_ROPE_KINDS] = {"none", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope"};
const char *q_rope_name(q_rope_kind kind) { return kinds[kind]; }

/* ------------------------------------------------------------------------------------------------ fields */

#define KIND(x) (1u << Q_ROPE_##x)
enum { STRETCHED = KIND(LINEAR) | KIND(NTK) | KIND(DYNAMIC) | KIND(YARN) | KIND(LLAMA3) | KIND(LONGROPE) };

typedef enum { NUMBER, WHOLE, TRUTH, NUMBERS, IGNORED } field_type;

/* A field: its name in either convention, whose it is, and what values it may have. */
typedef struct field {
    const char *gguf, *hf;
    field_type type;
    size_t at;
    uint32_t of; /* kinds */
    double min, max;
} field;
static const field fields[] = {
    {"factor", "factor", NUMBER, offsetof(q_rope, factor), KIND(NONE) | STRETCHED, 1, 1e5},
    {"original_context_length", "original_max_position_embeddings", WHOLE, offsetof(q_rope, original),
     KIND(NONE) | STRETCHED, 1, 1 << 28},
    {"attn_factor", NULL, NUMBER, offsetof(q_rope, attention_by), KIND(YARN) | KIND(LONGROPE), 1e-3, 1e3},
    {NULL, "attention_factor", NUMBER, offsetof(q_rope, attention), KIND(YARN) | KIND(LONGROPE), 1e-3, 1e3},
    {"yarn_beta_fast", "beta_fast", NUMBER, offsetof(q_rope, beta_fast), KIND(YARN), 1e-3, 1e6},
    {"yarn_beta_slow", "beta_slow", NUMBER, offsetof(q_rope, beta_slow), KIND(YARN), 1e-3, 1e6},
    {NULL, "mscale", NUMBER, offsetof(q_rope, mscale), KIND(YARN), 0, 1e3},
    {NULL, "mscale_all_dim", NUMBER, offsetof(q_rope, mscale_all), KIND(YARN), 0, 1e3},
    {NULL, "truncate", TRUTH, offsetof(q_rope, exact_ramp), KIND(YARN), 0, 1},
    {NULL, "low_freq_factor", NUMBER, offsetof(q_rope, low), KIND(LLAMA3), 1e-3, 1e6},
    {NULL, "high_freq_factor", NUMBER, offsetof(q_rope, high), KIND(LLAMA3), 1e-3, 1e6},
    {NULL, "short_factor", NUMBERS, offsetof(q_rope, factors[0]), KIND(LONGROPE), 1e-3, 1e6},
    {NULL, "long_factor", NUMBERS, offsetof(q_rope, factors[1]), KIND(LONGROPE), 1e-3, 1e6},
    {"finetuned", "finetuned", IGNORED, 0, KIND(NONE) | STRETCHED, 0, 1},
};

static const char *const hf_groups[] = {"rope_scaling.", "rope_parameters."};
static const char *const hf_types[] = {"type", "rope_type"};
static const char outside[] = "original_max_position_embeddings"; /* phi-3 has it beside them */

static bool begins(q_str s, const char *with) {
    return s.n >= strlen(with) && memcmp(s.p, with, strlen(with)) == 0;
}
static q_str behind(q_str s, const char *prefix) {
    return (q_str){s.p + strlen(prefix), s.n - strlen(prefix)};
}

bool q_rope_key(const q_directory *dir, const char *prefix, q_str key) {
    char group[128];
    if (dir->names == Q_NAMES_GGUF) {
        snprintf(group, sizeof group, "%srope.scaling.", prefix);
        if (!begins(key, group)) return false;
        key = behind(key, group);
        bool known = q_str_is(key, "type");
        for (size_t i = 0; i < Q_COUNT(fields); i++) known |= fields[i].gguf && q_str_is(key, fields[i].gguf);
        return known;
    }
    if (q_str_is(key, outside)) return true;
    for (size_t g = 0; g < Q_COUNT(hf_groups); g++) {
        if (!begins(key, hf_groups[g])) continue;
        const q_str name = behind(key, hf_groups[g]);
        for (size_t i = 0; i < Q_COUNT(hf_types); i++)
            if (q_str_is(name, hf_types[i])) return true;
        for (size_t i = 0; i < Q_COUNT(fields); i++)
            if (fields[i].hf && q_str_is(name, fields[i].hf)) return true;
    }
    return false;
}

/* ------------------------------------------------------------------------------------------------ reading */

static bool is_number(const q_meta *m) { return m->type < Q_META_BOOL || m->type >= Q_META_U64; }
static bool is_whole(const q_meta *m) { return is_number(m) && m->type != Q_META_F32 && m->type != Q_META_F64; }

static double number_of(const q_meta *m, uint64_t i) {
    double f;
    int64_t v;
    uint64_t u;
    memcpy(&f, m->raw + i * 8, 8);
    memcpy(&v, m->raw + i * 8, 8);
    memcpy(&u, m->raw + i * 8, 8);
    return m->item == Q_META_F64 ? f : m->item == Q_META_I64 ? (double)v : (double)u;
}

/* Of a key or tensor, `what`. */
static lq_status check_factors(const float *f, uint32_t n, const char *what) {
    for (uint32_t i = 0; i < n; i++)
        if (!(f[i] >= 1e-3f && f[i] <= 1e6f))
            return q_fail(LQ_E_INCONSISTENT, "the %s: factor %u is %g, outside 0.001 to 1e6", what, i, (double)f[i]);
    return LQ_OK;
}

static lq_status read_numbers(const q_meta *m, const char *key, int32_t rot, q_arena *arena, q_rope *r,
                              const float **out) {
    const bool numbers =
        m->type == Q_META_ARRAY && (m->item == Q_META_F64 || m->item == Q_META_I64 || m->item == Q_META_U64);
    if (!numbers || m->count != (uint64_t)rot / 2)
        return q_fail(LQ_E_INCONSISTENT,
                      "the key '%s' is not a list of %d numbers, one for each rotated pair of a head", key, rot / 2);
    float *f = (float *)q_arena_new(arena, m->count, sizeof *f);
    if (!f) return LQ_E_NOMEM;
    for (uint64_t i = 0; i < m->count; i++) f[i] = (float)number_of(m, i);
    *out = f;
    r->n_factors = (uint32_t)m->count;
    char what[176];
    snprintf(what, sizeof what, "key '%s'", key);
    return check_factors(f, r->n_factors, what);
}

static lq_status read_field(const field *f, const q_meta *m, const char *key, int32_t rot, q_arena *arena, q_rope *r) {
    void *to = (char *)r + f->at;
    if (!(f->of & 1u << r->kind))
        return q_fail(LQ_E_INCONSISTENT, "the key '%s' says nothing about RoPE scaling of the type '%s'", key,
                      kinds[r->kind]);
    if (f->type == IGNORED) return LQ_OK;
    if (f->type == NUMBERS) return read_numbers(m, key, rot, arena, r, (const float **)to);
    if (f->type == TRUTH) {
        if (m->type != Q_META_BOOL) return q_fail(LQ_E_INCONSISTENT, "the key '%s' is neither true nor false", key);
        r->exact_ramp = !m->i;
        return LQ_OK;
    }
    if (!is_number(m) || (f->type == WHOLE && !is_whole(m)))
        return q_fail(LQ_E_INCONSISTENT, "the key '%s' is not a single %s", key,
                      f->type == WHOLE ? "whole number" : "number");
    const double before = *(double *)to;
    if (!(m->f >= f->min && m->f <= f->max))
        return q_fail(LQ_E_INCONSISTENT, "the key '%s' is %g, outside %g to %g", key, m->f, f->min, f->max);
    if (before != 0 && before != m->f)
        return q_fail(LQ_E_INCONSISTENT, "the key '%s' is %g, and another spelling of it %g", key, m->f, before);
    *(double *)to = m->f;
    return LQ_OK;
}

static lq_status find_kind(const q_meta *m, const char *key, bool gguf, bool *found, q_rope_kind *kind) {
    if (m->type != Q_META_STRING) return q_fail(LQ_E_INCONSISTENT, "the key '%s' is not a string", key);
    q_rope_kind k = Q_ROPE_KINDS;
    for (int i = 0; i < Q_ROPE_KINDS; i++)
        if (q_str_is(m->s, kinds[i]) && i != Q_ROPE_NTK) k = (q_rope_kind)i;
    if (!gguf && q_str_is(m->s, "default")) k = Q_ROPE_NONE;
    if (!gguf && q_str_is(m->s, "su")) k = Q_ROPE_LONGROPE; /* its first name */
    if (gguf && (k == Q_ROPE_DYNAMIC || k == Q_ROPE_LLAMA3)) k = Q_ROPE_KINDS; /* not of that convention */
    if (k == Q_ROPE_KINDS)
        return q_fail(LQ_E_UNSUPPORTED, "the key '%s' is '%.*s'; this build supports none, %slinear, yarn, %slongrope",
                      key, Q_STR_ARG(m->s), gguf ? "" : "default, dynamic, llama3, ", gguf ? "" : "su, ");
    if (*found && *kind != k)
        return q_fail(LQ_E_INCONSISTENT, "the key '%s' is '%.*s', and another spelling of it %s", key, Q_STR_ARG(m->s),
                      kinds[*kind]);
    *found = true;
    *kind = k;
    return LQ_OK;
}

/* The key of a name in one of the groups; NULL = there are no more groups. */
static const char *key_in(const q_directory *dir, const char *prefix, size_t group, const char *name, char *buf,
                          size_t n) {
    const bool gguf = dir->names == Q_NAMES_GGUF;
    if (group >= (gguf ? 1 : Q_COUNT(hf_groups))) return NULL;
    snprintf(buf, n, "%s%s%s", gguf ? prefix : "", gguf ? "rope.scaling." : hf_groups[group], name);
    return buf;
}

static lq_status read_kind(const q_directory *dir, const char *prefix, q_rope *r) {
    const bool gguf = dir->names == Q_NAMES_GGUF;
    char buf[160];
    bool found = false;
    const char *key;
    for (size_t g = 0; key_in(dir, prefix, g, "", buf, sizeof buf); g++)
        for (size_t i = 0; i < (gguf ? 1 : Q_COUNT(hf_types)); i++) {
            const q_meta *m = q_directory_meta(dir, key = key_in(dir, prefix, g, hf_types[i], buf, sizeof buf));
            if (m) Q_TRY(find_kind(m, key, gguf, &found, &r->kind));
        }
    if (found) return LQ_OK;
    /* What GGUF files mean that name no type; those of Phi-3 have LongRoPE's tensors alone. */
    key = gguf ? key_in(dir, prefix, 0, "factor", buf, sizeof buf) : NULL;
    if (key && q_directory_meta(dir, key)) r->kind = Q_ROPE_LINEAR;
    else if (key && q_directory_tensor(dir, q_str_of("rope_factors_long.weight"))) r->kind = Q_ROPE_LONGROPE;
    return LQ_OK;
}

/* Defaults, and what fields say together. */
static lq_status complete(const q_directory *dir, uint32_t context, q_rope *r) {
    const bool gguf = dir->names == Q_NAMES_GGUF;
    const char *const where = gguf ? "rope.scaling" : "rope_scaling";
    if (r->kind == Q_ROPE_NONE && r->factor != 0 && r->factor != 1)
        return q_fail(LQ_E_INCONSISTENT, "%s has a factor of %g and no type", where, r->factor);
    if (r->kind == Q_ROPE_NONE) {
        r->factor = 1;
        return LQ_OK;
    }
    const bool given = r->original > 0;
    const uint32_t of_context = KIND(DYNAMIC) | KIND(YARN) | KIND(LLAMA3) | KIND(LONGROPE);
    if (!given && (of_context & 1u << r->kind)) r->original = context;
    if (r->factor == 0 && (r->kind == Q_ROPE_LONGROPE || (r->kind == Q_ROPE_YARN && given)))
        r->factor = Q_MAX(context / r->original, 1.0);
    if (r->factor == 0) return q_fail(LQ_E_INCONSISTENT, "%s of the type '%s' has no factor", where, kinds[r->kind]);
    if (r->beta_fast == 0) r->beta_fast = 32;
    if (r->beta_slow == 0) r->beta_slow = 1;
    if (r->kind == Q_ROPE_YARN && r->beta_fast < r->beta_slow)
        return q_fail(LQ_E_INCONSISTENT, "%s: beta_fast %g is less than beta_slow %g", where, r->beta_fast,
                      r->beta_slow);
    if (r->kind == Q_ROPE_LLAMA3 && !(r->low > 0 && r->high > r->low))
        return q_fail(LQ_E_INCONSISTENT, "%s: low_freq_factor %g and high_freq_factor %g are not given in this order",
                      where, r->low, r->high);
    if (gguf && r->attention_by == 0) r->attention_by = 1;
    if (gguf && r->kind == Q_ROPE_LONGROPE) r->attention = 1; /* attn_factor is all of it */
    if (r->kind == Q_ROPE_LONGROPE && r->original < 2)
        return q_fail(LQ_E_INCONSISTENT, "%s: the original context is %g", where, r->original);
    return LQ_OK;
}

lq_status q_rope_read(const q_directory *dir, const char *prefix, uint32_t context, int32_t rot, q_arena *arena,
                      q_rope *out) {
    const bool gguf = dir->names == Q_NAMES_GGUF;
    q_rope r = {.kind = Q_ROPE_NONE};
    char buf[160];
    const char *key;
    Q_TRY(read_kind(dir, prefix, &r));
    for (size_t i = 0; i < Q_COUNT(fields); i++) {
        const char *name = gguf ? fields[i].gguf : fields[i].hf;
        for (size_t g = 0; name && (key = key_in(dir, prefix, g, name, buf, sizeof buf)); g++) {
            const q_meta *m = q_directory_meta(dir, key);
            if (m) Q_TRY(read_field(&fields[i], m, key, rot, arena, &r));
        }
        const q_meta *m = name && strcmp(name, outside) == 0 ? q_directory_meta(dir, outside) : NULL;
        if (m) Q_TRY(read_field(&fields[i], m, outside, rot, arena, &r));
    }
    Q_TRY(complete(dir, context, &r));
    if (r.kind == Q_ROPE_LONGROPE && !gguf && !(r.factors[0] && r.factors[1]))
        return q_fail(LQ_E_INCONSISTENT, "rope_scaling of the type 'longrope' needs short_factor and long_factor");
    *out = r;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ tensors */

static double frequency(double base, int32_t rot, int32_t i) { return pow(base, -2.0 * i / rot); }

/* LLAMA3: what a frequency is divided by, as a file would have it. */
static float by_wavelength(const q_rope *r, double f) {
    const double length = 2 * acos(-1.0) / f;
    if (length < r->original / r->high) return 1;
    if (length > r->original / r->low) return (float)r->factor;
    const double smooth = (r->original / length - r->low) / (r->high - r->low);
    return (float)(1 / ((1 - smooth) / r->factor + smooth));
}

lq_status q_rope_make(q_rope *r, double base, int32_t rot, q_arena *arena) {
    if (r->kind != Q_ROPE_LLAMA3) return LQ_OK; /* LONGROPE's are there */
    const int32_t n = rot / 2;
    float *f = (float *)q_arena_new(arena, (uint64_t)n, sizeof *f);
    if (!f) return LQ_E_NOMEM;
    for (int32_t i = 0; i < n; i++) f[i] = by_wavelength(r, frequency(base, rot, i));
    r->factors[0] = f;
    r->n_factors = (uint32_t)n;
    return LQ_OK;
}

const float *q_rope_made(const q_rope *r, q_made what) {
    switch (what) {
    case Q_MADE_ROPE_FREQS: return r->kind == Q_ROPE_LLAMA3 ? r->factors[0] : NULL;
    case Q_MADE_ROPE_SHORT: return r->kind == Q_ROPE_LONGROPE ? r->factors[0] : NULL;
    case Q_MADE_ROPE_LONG: return r->kind == Q_ROPE_LONGROPE ? r->factors[1] : NULL;
    default: return NULL;
    }
}

lq_status q_rope_take(q_rope *r, const float *const tensors[Q_MADE_KINDS], int32_t rot) {
    static const char *const names[Q_MADE_KINDS] = {
        [Q_MADE_ROPE_FREQS] = "tensor 'rope_freqs.weight'",
        [Q_MADE_ROPE_SHORT] = "tensor 'rope_factors_short.weight'",
        [Q_MADE_ROPE_LONG] = "tensor 'rope_factors_long.weight'"};
    const uint32_t n = (uint32_t)rot / 2;
    const bool longrope = r->kind == Q_ROPE_LONGROPE, plain = r->kind == Q_ROPE_NONE || r->kind == Q_ROPE_LINEAR;
    for (int k = Q_MADE_ROPE_FREQS; k < Q_MADE_KINDS; k++) {
        const bool all = k == Q_MADE_ROPE_FREQS;
        if (longrope && !all && !tensors[k])
            return q_fail(LQ_E_INCONSISTENT, "the %s is missing: RoPE scaling of the type 'longrope' needs it",
                          names[k]);
        if (tensors[k] && (all ? !plain : !longrope))
            return q_fail(LQ_E_UNSUPPORTED, "the %s does not go with rope.scaling.type '%s'", names[k], kinds[r->kind]);
        if (tensors[k]) Q_TRY(check_factors(tensors[k], n, names[k]));
    }
    r->factors[0] = tensors[longrope ? Q_MADE_ROPE_SHORT : Q_MADE_ROPE_FREQS];
    r->factors[1] = longrope ? tensors[Q_MADE_ROPE_LONG] : NULL;
    r->n_factors = r->factors[0] ? n : 0;
    if (r->kind != Q_ROPE_NONE || !r->factors[0]) return LQ_OK;
    r->kind = Q_ROPE_LLAMA3; /* the one that is written so: its factor is that of the slowest */
    for (uint32_t i = 0; i < n; i++) r->factor = Q_MAX(r->factor, (double)r->factors[0][i]);
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ options */

static lq_status option(const char *name, double v, double min, double max) {
    if (v == 0 || (v >= min && v <= max)) return LQ_OK;
    return q_fail(LQ_E_ARG, "%s %g is outside %g to %g", name, v, min, max);
}

lq_status q_rope_choose(const q_rope *model, const lq_session_options *o, uint32_t trained, q_rope *out) {
    const double original = o->rope_original ? o->rope_original : model->original > 0 ? model->original : trained;
    if (!o->rope_scaling) {
        if (o->rope_factor != 0 || o->rope_original || o->rope_attention != 0 || o->rope_beta_fast != 0 ||
            o->rope_beta_slow != 0)
            return q_fail(LQ_E_ARG, "rope_factor, rope_original, rope_attention and rope_beta_fast and _slow go with "
                                    "rope_scaling, which names no type");
        *out = *model;
        return LQ_OK;
    }
    q_rope r = {.kind = Q_ROPE_KINDS, .factor = o->rope_factor, .original = original, .attention = o->rope_attention,
                .beta_fast = o->rope_beta_fast != 0 ? o->rope_beta_fast : 32,
                .beta_slow = o->rope_beta_slow != 0 ? o->rope_beta_slow : 1, .low = 1, .high = 4};
    for (int i = 0; i < Q_ROPE_KINDS; i++)
        if (strcmp(o->rope_scaling, kinds[i]) == 0) r.kind = (q_rope_kind)i;
    if (r.kind == Q_ROPE_KINDS || r.kind == Q_ROPE_LONGROPE)
        return q_fail(LQ_E_ARG,
                      "rope_scaling '%s' is not one of: none, linear, ntk, dynamic, yarn, llama3 (longrope has factors "
                      "that only a model brings)",
                      o->rope_scaling);
    Q_TRY(option("rope_factor", o->rope_factor, 1, 1e5));
    Q_TRY(option("rope_original", o->rope_original, 1, 1 << 28));
    Q_TRY(option("rope_attention", o->rope_attention, 1e-3, 1e3));
    Q_TRY(option("rope_beta_fast", o->rope_beta_fast, 1e-3, 1e6));
    Q_TRY(option("rope_beta_slow", o->rope_beta_slow, 1e-3, 1e6));
    if (r.kind != Q_ROPE_YARN && (o->rope_beta_fast != 0 || o->rope_beta_slow != 0 || o->rope_attention != 0))
        return q_fail(LQ_E_ARG, "rope_attention, rope_beta_fast and rope_beta_slow go with rope_scaling 'yarn' alone");
    if (r.kind == Q_ROPE_NONE && (o->rope_factor != 0 || o->rope_original))
        return q_fail(LQ_E_ARG, "rope_scaling 'none' has no rope_factor and no rope_original");
    if (r.beta_fast < r.beta_slow)
        return q_fail(LQ_E_ARG, "rope_beta_fast %g is less than rope_beta_slow %g", r.beta_fast, r.beta_slow);
    if (r.kind == Q_ROPE_NONE) r.factor = 1;
    if (r.factor == 0 && o->context > r.original) r.factor = o->context / r.original;
    if (r.factor == 0)
        return q_fail(LQ_E_ARG,
                      "rope_scaling '%s' needs a rope_factor, or a context of more than the original %g tokens",
                      o->rope_scaling, r.original);
    *out = r;
    return LQ_OK;
}

uint32_t q_rope_longest(const q_rope *r, uint32_t trained, bool chosen) {
    const uint32_t least = chosen && r->original > 0 ? (uint32_t)Q_MIN(r->original, (double)trained) : trained;
    if (r->kind == Q_ROPE_NONE) return least;
    if (r->original == 0) return trained; /* linear, from a file: whether it is in that number nobody says */
    if (r->kind == Q_ROPE_LLAMA3 && !chosen && trained > r->original) return trained; /* it is */
    return Q_MAX(least, (uint32_t)Q_MIN(floor(r->factor * r->original + 1e-6), (double)(1 << 28)));
}

/* ------------------------------------------------------------------------------------------------ tables */

int32_t q_rope_tables(const q_rope *r, uint32_t context) {
    return r->kind == Q_ROPE_LONGROPE && context > r->original ? 2 : 1;
}

/* YARN's ramp: 0 = a frequency stays, 1 = it is divided by the factor. */
static double ramp(const q_rope *r, double base, int32_t rot, int32_t i) {
    const double turn = 2 * acos(-1.0), by = rot / (2 * log(base));
    double low = by * log(r->original / (r->beta_fast * turn)), high = by * log(r->original / (r->beta_slow * turn));
    if (!r->exact_ramp) {
        low = floor(low);
        high = ceil(high);
    }
    low = Q_MAX(low, 0.0);
    high = Q_MIN(high, rot - 1.0);
    return Q_MIN(Q_MAX((i - low) / Q_MAX(high - low, 0.001), 0.0), 1.0);
}

static double yarn_scale(double factor, double by) { return factor <= 1 ? 1 : 0.1 * by * log(factor) + 1; }

/* What cosines and sines are multiplied by. */
static double attention_of(const q_rope *r) {
    double a = r->attention;
    if (a == 0 && r->kind == Q_ROPE_YARN)
        a = r->mscale == 0 || r->mscale_all == 0
                ? yarn_scale(r->factor, 1)
                : yarn_scale(r->factor, r->mscale) / yarn_scale(r->factor, r->mscale_all);
    if (a == 0 && r->kind == Q_ROPE_LONGROPE)
        a = r->factor <= 1 ? 1 : sqrt(1 + log(r->factor) / log(r->original));
    return (a == 0 ? 1 : a) * (r->attention_by == 0 ? 1 : r->attention_by);
}

float q_rope_table(const q_rope *r, double base, int32_t rot, uint32_t context, bool beyond, float *freqs) {
    double factor = r->factor;
    if (r->kind == Q_ROPE_DYNAMIC)
        factor = context > r->original ? factor * context / r->original - (factor - 1) : 1;
    if ((r->kind == Q_ROPE_NTK || r->kind == Q_ROPE_DYNAMIC) && rot > 2)
        base *= pow(factor, (double)rot / (rot - 2));
    const float *factors = r->factors[r->kind == Q_ROPE_LONGROPE && beyond];
    for (int32_t i = 0; i < rot / 2; i++) {
        double f = frequency(base, rot, i);
        if (r->kind == Q_ROPE_LINEAR) f /= factor;
        if (r->kind == Q_ROPE_YARN) {
            const double slow = ramp(r, base, rot, i);
            f = f / factor * slow + f * (1 - slow);
        }
        if (r->kind == Q_ROPE_LLAMA3 && !factors) f /= (double)by_wavelength(r, f);
        freqs[i] = (float)(factors ? f / (double)factors[i] : f);
    }
    return (float)attention_of(r);
}

/* ------------------------------------------------------------------------------------------------ files */

static lq_status put_key(q_arena *arena, const char *arch, const char *name, q_meta m, q_meta *out) {
    char buf[160];
    snprintf(buf, sizeof buf, "%s.rope.scaling.%s", arch, name);
    char *key = q_arena_str(arena, q_str_of(buf));
    if (!key) return LQ_E_NOMEM;
    m.key = q_str_of(key);
    m.count = 1;
    *out = m;
    return LQ_OK;
}
static q_meta real(double v) { return (q_meta){.type = Q_META_F32, .f = v}; }

/* GGUF has no form for DYNAMIC: what is written then is the model without it, the same as long as it does nothing. */
static lq_status leave_out_dynamic(const q_rope *r, uint32_t context, const q_log *log) {
    if (r->original < context)
        return q_fail(LQ_E_UNSUPPORTED,
                      "RoPE scaling of the type 'dynamic' from %g tokens on, within the trained context of %u, has no "
                      "form in GGUF files: a scheme of Hugging Face directories (gptq-4bit-g128, nf4) keeps it",
                      r->original, context);
    char original[64] = "";
    if (r->original > context) snprintf(original, sizeof original, ", rope_original %.0f", r->original);
    q_log_write(log, LQ_LOG_WARN,
                "RoPE scaling of the type 'dynamic' by %g has no form in GGUF files and is left out: up to the trained "
                "context of %u tokens it does nothing; a longer one takes the options rope_scaling dynamic, "
                "rope_factor %g%s",
                r->factor, context, r->factor, original);
    return LQ_OK;
}

/* A file with factors and no `factor` (which would divide positions too) gives the trained context and no more. */
static void tell_shorter(const q_rope *r, uint32_t context, const q_log *log) {
    const uint32_t longest = q_rope_longest(r, context, false);
    if (longest > context)
        q_log_write(log, LQ_LOG_WARN,
                    "RoPE scaling of the type '%s' by %g of %g tokens gives contexts up to %u; in a GGUF file, which "
                    "has its factors and not that number, up to the trained %u: longer ones need the directory, or a "
                    "scheme that writes one (gptq-4bit-g128, nf4)",
                    kinds[r->kind], r->factor, r->original, longest, context);
}

lq_status q_rope_export(const q_rope *r, const char *arch, uint32_t context, const q_log *log, q_arena *arena,
                        q_meta *out, uint32_t *n) {
    uint32_t k = 0;
    *n = 0;
    if (r->kind == Q_ROPE_DYNAMIC) return leave_out_dynamic(r, context, log);
    const bool by_tensors = r->kind == Q_ROPE_LLAMA3 || r->kind == Q_ROPE_LONGROPE;
    if (by_tensors) tell_shorter(r, context, log);
    if (r->kind == Q_ROPE_NONE || r->kind == Q_ROPE_LLAMA3) return LQ_OK; /* all of it is a tensor */
    if (r->exact_ramp)
        return q_fail(LQ_E_UNSUPPORTED,
                      "GGUF files have no key for rope_scaling.truncate = false: a scheme of Hugging Face directories "
                      "(gptq-4bit-g128, nf4) keeps it");
    const q_meta type = {.type = Q_META_STRING, .s = q_str_of(kinds[r->kind])};
    Q_TRY(put_key(arena, arch, "type", type, &out[k++]));
    if (!by_tensors) Q_TRY(put_key(arena, arch, "factor", real(r->factor), &out[k++]));
    if (r->kind == Q_ROPE_LONGROPE) Q_TRY(put_key(arena, arch, "attn_factor", real(attention_of(r)), &out[k++]));
    if (r->original > 0) {
        const q_meta whole = {.type = Q_META_U32, .f = r->original, .u = (uint64_t)r->original,
                              .i = (int64_t)r->original};
        Q_TRY(put_key(arena, arch, "original_context_length", whole, &out[k++]));
    }
    if (r->kind == Q_ROPE_YARN) {
        const double by = attention_of(r) / yarn_scale(r->factor, 1);
        if (by != 1) Q_TRY(put_key(arena, arch, "attn_factor", real(by), &out[k++]));
        if (r->beta_fast != 32) Q_TRY(put_key(arena, arch, "yarn_beta_fast", real(r->beta_fast), &out[k++]));
        if (r->beta_slow != 1) Q_TRY(put_key(arena, arch, "yarn_beta_slow", real(r->beta_slow), &out[k++]));
    }
    *n = k;
    return LQ_OK;
}

uint64_t q_rope_hash(const q_rope *r, uint64_t hash) {
    const double numbers[] = {r->kind,      r->factor, r->original,   r->attention, r->attention_by, r->beta_fast,
                              r->beta_slow, r->mscale, r->mscale_all, r->low,       r->high,         r->exact_ramp};
    if (r->kind == Q_ROPE_NONE && !r->factors[0]) return hash;
    hash = q_fnv64_mix(hash, numbers, sizeof numbers);
    for (int i = 0; i < 2; i++)
        if (r->factors[i]) hash = q_fnv64_mix(hash, r->factors[i], r->n_factors * sizeof(float));
    return hash;
}
