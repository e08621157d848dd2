/* importance.c: reads importance files and answers for tensors by name.
 *
 * The GGUF form goes through the loader, which has checked the container; what is checked here is that it is an
 * importance file and nothing else: every tensor is one of those that the form knows, has its partner, its type and
 * shape, and values that a sum of squares can have. imatrix.dat has no magic: it is read by its lengths alone, each of
 * them against the size of the file. Refuses what it does not know by name. Layer L3. */
#include "importance.h"

#include <math.h>

/* The mean inputs of a tensor, kept by newer writers beside the sums of squares; of no use here. */
#define MEANS ".in_sum"

enum { LIMIT_NAME = 65535, DAT_ENTRY = 4 + 1 + 4 + 4 + 4 /* bytes of the shortest entry of an imatrix.dat */ };

/* ------------------------------------------------------------------------------------------------ values */

/* To a largest value of 1: only ratios count, and a product with weights can then neither overflow nor vanish. */
lq_status q_importance_scale(q_str name, float *v, uint64_t inputs) {
    float largest = 0.0f;
    for (uint64_t i = 0; i < inputs; i++) {
        if (!(v[i] >= 0.0f && isfinite(v[i])))
            return q_fail(LQ_E_INCONSISTENT, "entry \"%.*s\": the sum of squares %g of input %llu is %s",
                          Q_STR_ARG(name), (double)v[i], (unsigned long long)i,
                          isfinite(v[i]) ? "negative" : "not finite");
        largest = fmaxf(largest, v[i]);
    }
    for (uint64_t i = 0; largest > 0.0f && i < inputs; i++) v[i] = (float)((double)v[i] / (double)largest);
    return LQ_OK;
}

static lq_status take_values(q_importance_entry *e) {
    for (uint64_t m = 0; m < e->matrices; m++) Q_TRY(q_importance_scale(e->name, e->values + m * e->inputs, e->inputs));
    return LQ_OK;
}

static bool any_seen(const q_importance_entry *e) {
    bool any = false;
    for (uint64_t m = 0; m < e->matrices; m++) any |= e->seen[m];
    return any;
}

static lq_status new_values(q_importance *im, q_importance_entry *e) {
    uint64_t n;
    if (q_mul_overflow(e->inputs, e->matrices, &n)) return q_fail(LQ_E_LIMIT, "more values than can be counted");
    e->values = (float *)q_arena_new(&im->arena, n, sizeof *e->values);
    e->seen = (bool *)q_arena_new(&im->arena, e->matrices, sizeof *e->seen);
    return e->values && e->seen ? LQ_OK : LQ_E_NOMEM;
}

/* ------------------------------------------------------------------------------------------------ the GGUF form */

static bool takes_suffix(q_str *name, const char *suffix) {
    const size_t n = strlen(suffix);
    if (name->n <= n || memcmp(name->p + name->n - n, suffix, n) != 0) return false;
    name->n -= n;
    return true;
}

static lq_status copy_text(q_importance *im, q_str s, q_str *out) {
    const char *p = q_arena_str(&im->arena, s);
    if (!p) return LQ_E_NOMEM;
    *out = (q_str){p, s.n};
    return LQ_OK;
}

static lq_status wrong_key(const char *key, const char *want) {
    return q_fail(LQ_E_FORMAT, "key \"%s\" is not %s", key, want);
}

static lq_status read_keys(q_importance *im, const q_directory *d) {
    const q_meta *type = q_directory_meta(d, "general.type");
    if (!type || type->type != Q_META_STRING || !q_str_is(type->s, Q_IMPORTANCE_TYPE))
        return q_fail(LQ_E_UNSUPPORTED, "a GGUF file, but no importance file: its general.type is not \"imatrix\"");
    const q_meta *sets = q_directory_meta(d, Q_IMPORTANCE_DATASETS);
    if (sets && (sets->type != Q_META_ARRAY || sets->item != Q_META_STRING))
        return wrong_key(Q_IMPORTANCE_DATASETS, "an array of strings");
    if (sets && sets->count) Q_TRY(copy_text(im, sets->strs[0], &im->dataset));
    const q_meta *scheme = q_directory_meta(d, Q_HESSIAN_SCHEME);
    if (scheme && scheme->type != Q_META_STRING) return wrong_key(Q_HESSIAN_SCHEME, "a string");
    if (scheme) Q_TRY(copy_text(im, scheme->s, &im->scheme));
    const q_meta *adapters = q_directory_meta(d, Q_IMPORTANCE_ADAPTERS);
    if (adapters && adapters->type != Q_META_STRING) return wrong_key(Q_IMPORTANCE_ADAPTERS, "a string");
    if (adapters) Q_TRY(copy_text(im, adapters->s, &im->adapters));
    const q_meta *transform = q_directory_meta(d, Q_FOLD_TRANSFORM);
    if (transform && (transform->type != Q_META_STRING || !transform->s.n))
        return wrong_key(Q_FOLD_TRANSFORM, "the name of a transform");
    if (transform) Q_TRY(copy_text(im, transform->s, &im->transform));
    static const char *const numbers[] = {Q_IMPORTANCE_CHUNKS, Q_IMPORTANCE_CHUNK_SIZE};
    for (size_t i = 0; i < Q_COUNT(numbers); i++) {
        const q_meta *m = q_directory_meta(d, numbers[i]);
        if (m && m->type != Q_META_U32) return wrong_key(numbers[i], "a 32-bit unsigned integer");
        if (m && i == 0) im->chunks = (uint32_t)m->u;
    }
    return LQ_OK;
}

/* The tensor `base` + `suffix`; NULL when there is none. */
static lq_status partner(q_importance *im, const q_directory *d, q_str base, const char *suffix, const q_tensor **out) {
    char *name = (char *)q_new(im->alloc, base.n + strlen(suffix) + 1, 1);
    if (!name) return LQ_E_NOMEM;
    memcpy(name, base.p, (size_t)base.n);
    memcpy(name + base.n, suffix, strlen(suffix));
    *out = q_directory_tensor(d, q_str_of(name));
    q_delete(im->alloc, name);
    return LQ_OK;
}

static lq_status check_tensor(const q_tensor *t, uint64_t inputs, uint64_t matrices) {
    if (!t->format || strcmp(t->format->name, "f32") != 0)
        return q_fail(LQ_E_FORMAT, "tensor \"%.*s\" is %s, not f32", Q_STR_ARG(t->name), t->type_name);
    if (t->rows != t->shape[1])
        return q_fail(LQ_E_FORMAT, "tensor \"%.*s\" has %u dimensions; two are known", Q_STR_ARG(t->name), t->rank);
    if (t->shape[0] != inputs || t->shape[1] != matrices)
        return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\" is [%llu, %llu], not [%llu, %llu]", Q_STR_ARG(t->name),
                      (unsigned long long)t->shape[0], (unsigned long long)t->shape[1], (unsigned long long)inputs,
                      (unsigned long long)matrices);
    return LQ_OK;
}

static lq_status read_counts(q_importance *im, const q_directory *d, const q_tensor *t, q_importance_entry *e) {
    float *counts = (float *)q_new(im->alloc, e->matrices, sizeof *counts);
    if (!counts) return LQ_E_NOMEM;
    lq_status status = q_tensor_read(d, t, 0, counts, t->bytes);
    for (uint64_t m = 0; m < e->matrices && status == LQ_OK; m++) {
        e->seen[m] = counts[m] > 0.0f;
        if (!(counts[m] >= 0.0f && isfinite(counts[m])))
            status = q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\": %g is no number of tokens", Q_STR_ARG(t->name),
                            (double)counts[m]);
    }
    q_delete(im->alloc, counts);
    return status;
}

static lq_status read_entry(q_importance *im, const q_directory *d, q_str base, const q_tensor *sums) {
    const q_tensor *counts;
    q_importance_entry *e = &im->entries[im->n_entries];
    Q_TRY(check_tensor(sums, sums->shape[0], sums->shape[1]));
    Q_TRY(partner(im, d, base, Q_IMPORTANCE_COUNTS, &counts));
    if (!counts)
        return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\" has no partner \"%s\"", Q_STR_ARG(sums->name),
                      Q_IMPORTANCE_COUNTS);
    Q_TRY(check_tensor(counts, 1, sums->shape[1]));
    e->inputs = sums->shape[0];
    e->matrices = sums->shape[1];
    Q_TRY(copy_text(im, base, &e->name));
    Q_TRY(new_values(im, e));
    Q_TRY(read_counts(im, d, counts, e));
    Q_TRY(q_tensor_read(d, sums, 0, e->values, sums->bytes));
    im->n_entries++;
    Q_TRY(partner(im, d, base, Q_IMPORTANCE_HESSIAN, &e->hessian));
    Q_TRY(partner(im, d, base, Q_IMPORTANCE_FOLD, &e->fold));
    Q_TRY(partner(im, d, base, Q_IMPORTANCE_CLIP, &e->clip));
    return take_values(e);
}

/* A triangle for as many inputs as the sums have. */
static lq_status check_hessian(const q_tensor *t, uint64_t inputs, uint64_t matrices) {
    uint64_t n;
    if (matrices != 1)
        return q_fail(LQ_E_UNSUPPORTED, "tensor \"%.*s\" is for %llu matrices; one is known", Q_STR_ARG(t->name),
                      (unsigned long long)matrices);
    if (inputs > INT32_MAX || q_mul_overflow(inputs, inputs + 1, &n))
        return q_fail(LQ_E_LIMIT, "tensor \"%.*s\" is for more inputs than can be counted", Q_STR_ARG(t->name));
    return check_tensor(t, n / 2, 1);
}

/* Factors for as many inputs as the sums have, limits for groups of as many; both of one matrix, measured on
 * something. */
static lq_status check_transformed(const q_importance *im, const q_tensor *t, const q_tensor *sums, bool fold) {
    if (!im->transform.n)
        return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\" is of a transform, and there is no key \"%s\" to name it",
                      Q_STR_ARG(t->name), Q_FOLD_TRANSFORM);
    if (sums->shape[1] != 1)
        return q_fail(LQ_E_UNSUPPORTED, "tensor \"%.*s\" is for %llu matrices; one is known", Q_STR_ARG(t->name),
                      (unsigned long long)sums->shape[1]);
    if (fold) return check_tensor(t, sums->shape[0], 1);
    Q_TRY(check_tensor(t, t->shape[0], t->shape[1]));
    if (t->shape[0] == 0 || sums->shape[0] % t->shape[0] != 0)
        return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\": %llu groups do not divide rows of %llu weights",
                      Q_STR_ARG(t->name), (unsigned long long)t->shape[0], (unsigned long long)sums->shape[0]);
    return LQ_OK;
}

static lq_status texts_of(const q_directory *d, const char *key, const q_meta **out) {
    *out = q_directory_meta(d, key);
    if (!*out || ((*out)->type == Q_META_ARRAY && (*out)->item == Q_META_STRING)) return LQ_OK;
    return wrong_key(key, "an array of strings");
}

/* Tensors that share the Hessian of another. */
static lq_status share_hessians(q_importance *im, const q_directory *d) {
    const q_meta *names, *of;
    Q_TRY(texts_of(d, Q_HESSIAN_TENSORS, &names));
    Q_TRY(texts_of(d, Q_HESSIAN_OF, &of));
    if (!names && !of) return LQ_OK;
    if (!names || !of || names->count != of->count)
        return q_fail(LQ_E_INCONSISTENT, "keys \"%s\" and \"%s\" are not of one length", Q_HESSIAN_TENSORS,
                      Q_HESSIAN_OF);
    for (uint64_t i = 0; i < names->count; i++) {
        const int64_t at = q_index_find(&im->index, im->entries, sizeof *im->entries, names->strs[i]);
        const q_tensor *t;
        Q_TRY(partner(im, d, of->strs[i], Q_IMPORTANCE_HESSIAN, &t));
        if (at < 0 || !t)
            return q_fail(LQ_E_INCONSISTENT,
                          "key \"%s\" gives \"%.*s\" the Hessian of \"%.*s\", and the file lacks one of them",
                          Q_HESSIAN_OF, Q_STR_ARG(names->strs[i]), Q_STR_ARG(of->strs[i]));
        Q_TRY(check_hessian(t, im->entries[at].inputs, im->entries[at].matrices));
        im->entries[at].hessian = t;
    }
    return LQ_OK;
}

static lq_status read_directory(q_importance *im, const q_directory *d) {
    Q_TRY(read_keys(im, d));
    im->entries = Q_NEW(im->alloc, q_importance_entry, d->n_tensors);
    if (!im->entries) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < d->n_tensors; i++) {
        const q_tensor *t = &d->tensors[i], *sums;
        q_str base = t->name;
        if (takes_suffix(&base, Q_IMPORTANCE_SUMS)) {
            Q_TRY(read_entry(im, d, base, t));
            continue;
        }
        const bool means = takes_suffix(&base, MEANS), hessian = !means && takes_suffix(&base, Q_IMPORTANCE_HESSIAN);
        const bool fold = !means && !hessian && takes_suffix(&base, Q_IMPORTANCE_FOLD);
        const bool clip = !means && !hessian && !fold && takes_suffix(&base, Q_IMPORTANCE_CLIP);
        if (!means && !hessian && !fold && !clip && !takes_suffix(&base, Q_IMPORTANCE_COUNTS))
            return q_fail(LQ_E_UNSUPPORTED, "tensor \"%.*s\" is none that an importance file is known to have",
                          Q_STR_ARG(t->name));
        Q_TRY(partner(im, d, base, Q_IMPORTANCE_SUMS, &sums));
        if (!sums)
            return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\" has no partner \"%s\"", Q_STR_ARG(t->name),
                          Q_IMPORTANCE_SUMS);
        if (means) Q_TRY(check_tensor(t, sums->shape[0], sums->shape[1]));
        if (hessian) Q_TRY(check_hessian(t, sums->shape[0], sums->shape[1]));
        if (fold || clip) Q_TRY(check_transformed(im, t, sums, fold));
    }
    return LQ_OK;
}

static lq_status read_gguf(q_importance *im, const q_log *log, const char *path) {
    const q_load_options o = {.alloc = im->alloc, .log = log};
    q_directory *d;
    Q_TRY(q_directory_open(path, &o, &d)); /* names the path */
    im->dir = d;
    const lq_status status = read_directory(im, d);
    return status == LQ_OK ? LQ_OK : q_fail_in(status, "%s", path);
}

/* What is read later keeps the file open. */
static lq_status finish_gguf(q_importance *im) {
    bool any = false;
    if (!im->dir) return LQ_OK;
    Q_TRY(share_hessians(im, im->dir));
    for (uint32_t i = 0; i < im->n_entries; i++) {
        const q_importance_entry *e = &im->entries[i];
        const q_tensor *measured = e->fold ? e->fold : e->clip;
        any |= e->hessian || measured;
        if (measured && !any_seen(e))
            return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\" is of inputs that no token reached",
                          Q_STR_ARG(measured->name));
    }
    if (any) return LQ_OK;
    q_directory_close(im->dir);
    im->dir = NULL;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ imatrix.dat */

typedef struct cursor {
    const q_file *file;
    uint64_t at;
} cursor;

static uint64_t left(const cursor *c) { return q_file_size(c->file) - c->at; }

/* n bytes, once it is known that the file has them. */
static lq_status take(cursor *c, void *dst, uint64_t n, const char *what) {
    if (n > left(c))
        return q_fail(LQ_E_TRUNCATED, "%s: %llu bytes at offset %llu reach beyond the end of the file (%llu bytes)",
                      what, (unsigned long long)n, (unsigned long long)c->at, (unsigned long long)q_file_size(c->file));
    Q_TRY(q_file_read(c->file, c->at, dst, n));
    c->at += n;
    return LQ_OK;
}

static lq_status take_number(cursor *c, int64_t lo, int64_t hi, const char *what, int64_t *out) {
    uint32_t v = 0;
    const uint64_t at = c->at;
    Q_TRY(take(c, &v, sizeof v, what));
    *out = (int32_t)v;
    if (*out >= lo && *out <= hi) return LQ_OK;
    return q_fail(LQ_E_FORMAT, "%s at offset %llu is %lld", what, (unsigned long long)at, (long long)*out);
}

static lq_status take_text(q_importance *im, cursor *c, uint64_t n, const char *what, q_str *out) {
    if (n > left(c)) return take(c, NULL, n, what); /* the sentence; nothing is allocated */
    char *p = (char *)q_arena_new(&im->arena, n + 1, 1);
    if (!p) return LQ_E_NOMEM;
    Q_TRY(take(c, p, n, what));
    if (memchr(p, 0, (size_t)n)) return q_fail(LQ_E_FORMAT, "%s holds a zero byte", what);
    *out = (q_str){p, n};
    return LQ_OK;
}

static lq_status take_entry(q_importance *im, cursor *c) {
    q_importance_entry *e = &im->entries[im->n_entries];
    int64_t length, calls, values;
    Q_TRY(take_number(c, 1, LIMIT_NAME, "the length of its name", &length));
    Q_TRY(take_text(im, c, (uint64_t)length, "its name", &e->name));
    Q_TRY(take_number(c, 0, INT32_MAX, "its number of calls", &calls));
    Q_TRY(take_number(c, 1, INT32_MAX, "its number of values", &values));
    e->inputs = (uint64_t)values;
    e->matrices = 1;
    if (e->inputs * sizeof(float) > left(c)) return take(c, NULL, e->inputs * sizeof(float), "its values");
    Q_TRY(new_values(im, e));
    e->seen[0] = calls > 0;
    Q_TRY(take(c, e->values, e->inputs * sizeof(float), "its values"));
    im->n_entries++;
    return take_values(e);
}

/* What may follow the entries: the number of chunks, and then the name of the text. */
static lq_status take_end(q_importance *im, cursor *c) {
    int64_t chunks, length;
    if (left(c) == 0) return LQ_OK;
    Q_TRY(take_number(c, 0, INT32_MAX, "the number of chunks", &chunks));
    im->chunks = (uint32_t)chunks;
    if (left(c) == 0) return LQ_OK;
    Q_TRY(take_number(c, 0, LIMIT_NAME, "the length of the text's name", &length));
    Q_TRY(take_text(im, c, (uint64_t)length, "the text's name", &im->dataset));
    if (left(c) == 0) return LQ_OK;
    return q_fail(LQ_E_FORMAT, "%llu bytes follow the end of its content, from offset %llu on",
                  (unsigned long long)left(c), (unsigned long long)c->at);
}

static lq_status read_dat(q_importance *im, cursor *c) {
    int64_t n;
    lq_status status = take_number(c, 1, Q_LIMIT_TENSORS, "the number of entries", &n);
    if (status == LQ_OK && (uint64_t)n > left(c) / DAT_ENTRY)
        status = q_fail(LQ_E_TRUNCATED, "%lld entries do not fit into %llu bytes", (long long)n,
                        (unsigned long long)q_file_size(c->file));
    if (status != LQ_OK) return q_fail_in(status, "neither GGUF nor an imatrix.dat");
    im->entries = Q_NEW(im->alloc, q_importance_entry, n);
    if (!im->entries) return LQ_E_NOMEM;
    for (int64_t i = 0; i < n; i++) {
        status = take_entry(im, c);
        if (status != LQ_OK)
            return q_fail_in(status, "as an imatrix.dat, entry %lld of %lld", (long long)i + 1, (long long)n);
    }
    return take_end(im, c);
}

/* ------------------------------------------------------------------------------------------------ open, find */

static lq_status read_file(q_importance *im, const q_log *log, const char *path) {
    uint8_t magic[4];
    size_t got = 0;
    const size_t n = strlen(path);
    /* the loader says what is wrong with the content */
    const bool named = n > 5 && memcmp(path + n - 5, ".gguf", 5) == 0;
    if (!named) Q_TRY(q_path_head(path, magic, sizeof magic, &got));
    if (named || (got == sizeof magic && memcmp(magic, "GGUF", 4) == 0)) return read_gguf(im, log, path);
    q_file *file;
    Q_TRY(q_file_open(im->alloc, path, 0, &file));
    cursor c = {file, 0};
    const lq_status status = read_dat(im, &c);
    q_file_close(file);
    return status == LQ_OK ? LQ_OK : q_fail_in(status, "%s", path);
}

/* Entries that no token reached are as good as absent: say so once. */
static void warn_unseen(const q_importance *im, const q_log *log, const char *path) {
    uint32_t unseen = 0, first = 0;
    for (uint32_t i = im->n_entries; i-- > 0;) {
        if (any_seen(&im->entries[i])) continue;
        unseen++;
        first = i;
    }
    if (unseen)
        q_log_write(log, LQ_LOG_WARN, "%s: %u of %u entries count no token and are not used (the first: %.*s)", path,
                    unseen, im->n_entries, Q_STR_ARG(im->entries[first].name));
}

lq_status q_importance_open(const q_alloc *a, const q_log *log, const char *path, q_importance **out) {
    _Static_assert(offsetof(q_importance_entry, name) == 0, "the index reads a q_str at the start of each item");
    q_importance *im = Q_NEW(a, q_importance, 1);
    if (!im) return LQ_E_NOMEM;
    im->alloc = a;
    im->arena.alloc = a;
    lq_status status = read_file(im, log, path);
    if (status == LQ_OK && im->n_entries == 0)
        status = q_fail(LQ_E_FORMAT, "%s: an importance file without entries", path);
    if (status == LQ_OK) {
        status = q_index_build(a, im->entries, sizeof *im->entries, im->n_entries, "entry", &im->index);
        if (status == LQ_OK) status = finish_gguf(im);
        if (status != LQ_OK) q_fail_in(status, "%s", path);
    }
    if (status != LQ_OK) {
        q_importance_close(im);
        return status;
    }
    warn_unseen(im, log, path);
    *out = im;
    return LQ_OK;
}

void q_importance_close(q_importance *im) {
    if (!im) return;
    const q_alloc *a = im->alloc;
    q_delete(a, im->index.cells);
    q_delete(a, im->entries);
    if (im->dir) q_directory_close(im->dir);
    q_arena_free(&im->arena);
    q_delete(a, im);
}

lq_status q_importance_find(q_importance *im, q_str name, uint64_t inputs, uint64_t matrices,
                            const q_importance_entry **out) {
    const int64_t i = q_index_find(&im->index, im->entries, sizeof *im->entries, name);
    *out = NULL;
    if (i < 0) return LQ_OK;
    q_importance_entry *e = &im->entries[i];
    /* One matrix of all values, as imatrix.dat has it, may stand for several. */
    const bool fits = e->matrices == 1 ? e->inputs == inputs * matrices
                                       : e->inputs == inputs && e->matrices == matrices;
    if (!fits)
        return q_fail(LQ_E_INCONSISTENT,
                      "entry \"%.*s\" is for %llu inputs and %llu matrices; the model's tensor has %llu "
                      "and %llu",
                      Q_STR_ARG(name), (unsigned long long)e->inputs, (unsigned long long)e->matrices,
                      (unsigned long long)inputs, (unsigned long long)matrices);
    e->matched = true;
    *out = any_seen(e) ? e : NULL;
    return LQ_OK;
}

const float *q_importance_of(const q_importance_entry *e, uint64_t inputs, uint64_t matrix) {
    if (!e || !e->seen[e->matrices == 1 ? 0 : matrix]) return NULL;
    return e->values + matrix * inputs;
}

/* In a unit in which nothing grows: that of the smallest factor. */
static void refit_hessian(const q_importance_entry *e, float *h) {
    float least = e->factors[0];
    for (uint64_t i = 1; i < e->inputs; i++) least = fminf(least, e->factors[i]);
    for (uint64_t i = 0; i < e->inputs; i++)
        for (uint64_t j = 0; j <= i; j++, h++)
            *h =
                (float)((double)*h * ((double)least / (double)e->factors[i]) * ((double)least / (double)e->factors[j]));
}

lq_status q_importance_hessian(const q_importance *im, const q_importance_entry *e, float *out) {
    Q_TRY(q_tensor_read(im->dir, e->hessian, 0, out, e->hessian->bytes));
    const float *row = out;
    for (uint64_t i = 0; i < e->inputs; row += ++i) {
        if (!(row[i] >= 0.0f && isfinite(row[i])))
            return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\": %g is no mean square of input %llu",
                          Q_STR_ARG(e->hessian->name), (double)row[i], (unsigned long long)i);
        const float *diagonal = out; /* row j, whose last value is that of its input */
        for (uint64_t j = 0; j < i; diagonal += ++j) /* no product of two inputs exceeds their squares on average */
            if (!((double)row[j] * (double)row[j] <=
                  (double)row[i] * (double)diagonal[j] * 1.01 + 1e-37)) /* squares of tiny inputs vanish */
                return q_fail(LQ_E_INCONSISTENT,
                              "tensor \"%.*s\": %g of inputs %llu and %llu is beyond what their squares "
                              "allow",
                              Q_STR_ARG(e->hessian->name), (double)row[j], (unsigned long long)i,
                              (unsigned long long)j);
    }
    if (e->factors) refit_hessian(e, out);
    return LQ_OK;
}

static lq_status check_range(const q_tensor *t, const float *v, uint64_t n, bool zero) {
    for (uint64_t i = 0; i < n; i++)
        if (!((v[i] >= 0x1p-40f && v[i] <= 0x1p40f) || (zero && v[i] >= 0.0f && v[i] <= 0x1p40f)))
            return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\": value %llu, %g, is no %s", Q_STR_ARG(t->name),
                          (unsigned long long)i, (double)v[i],
                          zero ? "limit of weights" : "factor of an input (2^-40 to 2^40)");
    return LQ_OK;
}

lq_status q_importance_fold(const q_importance *im, const q_importance_entry *e, float *out) {
    Q_TRY(q_tensor_read(im->dir, e->fold, 0, out, e->fold->bytes));
    return check_range(e->fold, out, e->inputs, false);
}

lq_status q_importance_clip(const q_importance *im, const q_importance_entry *e, uint64_t rows, float *out) {
    Q_TRY(check_tensor(e->clip, e->clip->shape[0], rows));
    if (!out) return LQ_OK;
    Q_TRY(q_tensor_read(im->dir, e->clip, 0, out, e->clip->bytes));
    return check_range(e->clip, out, e->clip->shape[0] * rows, true);
}

lq_status q_importance_refit(q_importance *im, q_str name, const float *s) {
    const int64_t at = q_index_find(&im->index, im->entries, sizeof *im->entries, name);
    q_importance_entry *e = at < 0 ? NULL : &im->entries[at];
    if (!e) return LQ_OK;
    if (e->matrices != 1 || e->factors)
        return q_fail(LQ_E_INTERNAL, "entry \"%.*s\" cannot be refitted", Q_STR_ARG(name));
    e->factors = s;
    for (uint64_t i = 0; i < e->inputs; i++)
        e->values[i] = (float)((double)e->values[i] / ((double)s[i] * (double)s[i]));
    return q_importance_scale(e->name, e->values, e->inputs);
}
