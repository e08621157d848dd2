/* test_folding.c: transforms leave the function of a model unchanged: random factors on every group that can be folded, and
 * logits in FP32 before and after; one factor less, and they differ. What factors do to importance, Hessians and clipped
 * weights; files of factors that do not fit are refused. */
#include "harness.h"
#include "help_model.h"

#include <math.h>
#include <sys/stat.h>

#include "../libquant/fold.h"
#include "../libquant/folding.h"
#include "../libquant/row_limits.h"
#include "../libquant/quantize.h"

static const q_alloc *const A = &q_alloc_libc;
#define OK(e) ck_assert_msg((e) == LQ_OK, "%s: %s", #e, lq_error_detail())
enum { TOKENS = 12, MOST = 1024 };
static const double bound = 1e-5; /* of the largest logit */

static char paths[8][1200];
static const char *in_tmp(int slot, const char *name) { return t_path(paths[slot], sizeof paths[slot], t_tmp(), name); }

/* ---- models and their groups */

typedef struct bound_model {
    q_directory *dir;
    q_binding *b;
    q_arena arena;
    q_folds f;
} bound_model;
static void bind(bound_model *m, const char *path) {
    const q_load_options o = {.alloc = A};
    memset(m, 0, sizeof *m);
    m->arena.alloc = A;
    OK(q_directory_open(path, &o, &m->dir));
    OK(q_bind(A, NULL, m->dir, &m->b));
    OK(q_folds_find(m->b, &m->arena, &m->f));
}
static void release(bound_model *m) {
    q_arena_free(&m->arena);
    q_binding_close(m->b);
    q_directory_close(m->dir);
}

/* ---- statistics with factors */

typedef struct mischief {
    const char *transform;        /* NULL = smooth, "" = no key */
    const char *drop;             /* tensor that is left out */
    const char *hit;              /* tensor whose second value is: */
    float value;
    const char *cut;              /* tensor that is shorter by one */
    const char *longer;           /* tensor that is a million values longer */
    const char *extra;            /* one more tensor, of this shape and value */
    uint64_t k, rows;
    float extra_value;
    bool unseen;                  /* no token came by */
    bool mild;                    /* factors within 2^-1/2 to 2^1/2 */
} mischief;

typedef struct parts {
    q_out_tensor t[MOST];
    char names[MOST][80];
    uint32_t n;
} parts;
static void add(parts *s, const char *name, int n, const char *suffix, uint64_t k, uint64_t rows) {
    snprintf(s->names[s->n], sizeof s->names[0], "%.*s%s", n, name, suffix);
    s->t[s->n] = (q_out_tensor){.name = q_str_of(s->names[s->n]), .format = q_format_find("f32"), .rank = rows ? 2 : 1,
                                .shape = {k, rows ? rows : 1, 1, 1, 1, 1, 1, 1}};
    s->n++;
}
static bool ends(q_str s, const char *end) { return s.n >= strlen(end) && memcmp(s.p + s.n - strlen(end), end, strlen(end)) == 0; }

/* Sums of squares of every matrix, factors 2^-4 to 2^4 of every group that can be folded. */
static void write_stats(const bound_model *m, const char *path, const mischief *x) {
    static parts s;
    static const mischief none;
    const q_str transform = q_str_of(x && x->transform ? x->transform : "smooth");
    const q_meta keys[] = {{.key = q_str_of("general.type"), .type = Q_META_STRING, .count = 1, .s = q_str_of("imatrix")},
                           {.key = q_str_of(Q_FOLD_TRANSFORM), .type = Q_META_STRING, .count = 1, .s = transform}};
    if (!x) x = &none;
    s.n = 0;
    for (uint32_t i = 0; i < m->b->n_items; i++) {
        const q_bind_item *item = &m->b->items[i];
        const q_fold_group *g = q_folds_of(&m->f, i);
        if (item->layer < 0 || item->src->rank == 1) continue;
        add(&s, item->name.p, (int)item->name.n, Q_IMPORTANCE_SUMS, item->src->shape[0], 0);
        add(&s, item->name.p, (int)item->name.n, Q_IMPORTANCE_COUNTS, 1, 0);
        if (g && !g->refused && g->consumers[0] == i) add(&s, item->name.p, (int)item->name.n, Q_IMPORTANCE_FOLD, item->src->shape[0], 0);
    }
    if (x->extra) add(&s, x->extra, (int)strlen(x->extra), "", x->k, x->rows);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s.n; i++) {
        if (x->drop && q_str_is(s.t[i].name, x->drop)) continue;
        if (x->cut && q_str_is(s.t[i].name, x->cut)) s.t[i].shape[0]--;
        if (x->longer && q_str_is(s.t[i].name, x->longer)) s.t[i].shape[0] += 1000000;
        s.t[kept++] = s.t[i];
    }
    q_writer *w;
    OK(q_writer_gguf.open(A, path, true, keys, transform.n ? 2 : 1, s.t, kept, &w));
    for (uint32_t i = 0; i < kept; i++) {
        const uint64_t n = s.t[i].shape[0] * s.t[i].shape[1];
        uint64_t seed = q_fnv64(s.t[i].name.p, (size_t)s.t[i].name.n);
        float *v = malloc(n * sizeof *v);
        for (uint64_t j = 0; j < n; j++) {
            const float u = (float)(t_rand(&seed) % 10001) / 10000.0f;
            v[j] = ends(s.t[i].name, Q_IMPORTANCE_FOLD) ? exp2f((8.0f * u - 4.0f) / (x->mild ? 8 : 1)) : 0.1f + u;
            if (ends(s.t[i].name, Q_IMPORTANCE_COUNTS)) v[j] = x->unseen ? 0 : 100;
            if (x->hit && j == 1 && q_str_is(s.t[i].name, x->hit)) v[j] = x->value;
            if (x->extra && q_str_is(s.t[i].name, x->extra)) v[j] = x->extra_value;
        }
        OK(q_writer_gguf.write(w, v, n * sizeof *v));
        free(v);
    }
    OK(q_writer_gguf.commit(w, NULL));
}

/* ---- quantizing and running */

typedef struct seen {
    uint32_t transformed, tensors;
    char first[64];
    double worst;
} seen;
static void on_report(void *user, const lq_tensor_report *t) {
    seen *s = user;
    s->tensors++;
    ck_assert_ptr_nonnull(t->transform);
    s->worst = fmax(s->worst, t->rel_error);
    if (!t->transform[0]) return;
    snprintf(s->first, sizeof s->first, "%s", t->transform);
    s->transformed++;
}
static lq_status quantize(const char *src, const char *dst, const char *scheme, const char *importance, seen *s) {
    const lq_quantize_options o = {.size = sizeof o, .scheme = scheme, .threads = 2, .force = 1, .importance = importance,
                                   .report = s ? on_report : NULL, .user = s};
    return q_quantize(A, NULL, 1, src, dst, &o, NULL);
}

typedef struct run {
    float *logits;
    uint64_t n;
} run;
static run logits_of(const char *path) {
    lq_ctx *c;
    lq_model *m;
    lq_session *s;
    int32_t ids[TOKENS];
    run r = {0};
    const lq_options oc = {.size = sizeof oc, .threads = 2};
    const lq_session_options os = {.size = sizeof os, .context = 32, .max_logits = TOKENS, .activations = "f32"};
    OK(lq_open(&oc, &c));
    OK(lq_model_open(c, path, NULL, &m));
    OK(lq_session_open(m, &os, &s));
    for (int i = 0; i < TOKENS; i++) ids[i] = i ? 3 + (i * 37) % 250 : 1;
    OK(t_decode(s, ids, TOKENS, 0));
    lq_model_info info = {.size = sizeof info};
    OK(lq_model_info_get(m, &info));
    r.n = (uint64_t)TOKENS * info.vocabulary;
    r.logits = malloc(r.n * sizeof *r.logits);
    for (uint32_t i = 0; i < TOKENS; i++) {
        const float *row;
        OK(lq_logits(s, i, &row));
        memcpy(r.logits + (uint64_t)i * info.vocabulary, row, info.vocabulary * sizeof *row);
    }
    lq_session_close(s);
    lq_model_close(m);
    lq_close(c);
    return r;
}
/* max |difference| / max |logit| */
static double distance(const run *a, const char *path) {
    run b = logits_of(path);
    double most = 0, difference = 0;
    ck_assert_uint_eq(a->n, b.n);
    for (uint64_t i = 0; i < a->n; i++) {
        most = fmax(most, fabs((double)a->logits[i]));
        difference = fmax(difference, fabs((double)a->logits[i] - (double)b.logits[i]));
    }
    free(b.logits);
    return difference / most;
}

/* ---- the proof */

/* Multiply what divides factor i of a group back, in a file of float32. */
static void take_back(const char *path, q_str name, uint64_t i, float by) {
    const q_load_options o = {.alloc = A};
    q_directory *d;
    OK(q_directory_open(path, &o, &d));
    const q_tensor *t = q_directory_tensor(d, name);
    const uint64_t n = t->rank == 1 ? 1 : t->shape[0], at = t->offset + i * n * sizeof(float);
    float *v = malloc(n * sizeof *v);
    OK(q_tensor_read(d, t, i * n * sizeof *v, v, n * sizeof *v));
    q_directory_close(d);
    FILE *f = fopen(path, "r+b");
    ck_assert_ptr_nonnull(f);
    for (uint64_t j = 0; j < n; j++) v[j] *= by;
    ck_assert_int_eq(fseek(f, (long)at, SEEK_SET), 0);
    ck_assert_uint_eq(fwrite(v, sizeof *v, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
    free(v);
}

static void check_unchanged(const char *src, uint32_t groups) {
    bound_model m;
    seen s = {0};
    const char *stats = in_tmp(5, "stats.gguf"), *dst = in_tmp(6, "folded.gguf");
    bind(&m, src);
    write_stats(&m, stats, NULL);
    OK(quantize(src, dst, "smooth+f32", stats, &s));
    uint32_t folded = 0;
    for (uint32_t g = 0; g < m.f.n_groups; g++) folded += !m.f.groups[g].refused;
    ck_assert_uint_eq(folded, groups);
    ck_assert_str_eq(s.first, "smooth");
    const run plain = logits_of(src);
    const double d = distance(&plain, dst);
    printf("%s: %u groups, %u tensors, logits differ by %.2g\n", src, folded, s.transformed, d);
    ck_assert_msg(d <= bound, "%g", d);
    for (uint32_t g = 0; g < m.f.n_groups && m.f.groups[g].layer == 0; g++) { /* one factor less, in each kind of group */
        if (m.f.groups[g].refused) continue;
        const q_str name = m.b->items[m.f.groups[g].producer].name;
        take_back(dst, name, 7, 1.5f);
        const double without = distance(&plain, dst);
        ck_assert_msg(without > bound, "%.*s: %g", (int)name.n, name.p, without);
        take_back(dst, name, 7, 1 / 1.5f);
    }
    ck_assert_msg(distance(&plain, dst) <= bound, "one factor was not all that was changed");
    free(plain.logits);
    release(&m);
}

static const char *tiny_model(const char *format, bool shared) {
    static tiny t;
    const char *path = in_tmp(0, "tiny.gguf");
    tiny_init(&t, format);
    if (!shared) tiny_unshare_heads(&t);
    tiny_write(&t, path);
    return path;
}

START_TEST(functions_stay_as_they_are) {
    static tiny t;
    check_unchanged(tiny_model("f16", true), 6);
    check_unchanged(tiny_model("f32", false), 8);
    const char *dir = in_tmp(0, "tiny-hf");
    mkdir(dir, 0755);
    tiny_init(&t, "f16");
    tiny_write_hf(&t, dir);
    check_unchanged(dir, 6);
}
END_TEST

START_TEST(the_pocket_model_stays_as_it_is) {
    char path[4096];
    bound_model m;
    uint32_t folded = 0;
    bind(&m, t_path(path, sizeof path, t_root(), "bench/data/pocket"));
    for (uint32_t g = 0; g < m.f.n_groups; g++) folded += !m.f.groups[g].refused;
    ck_assert_uint_ge(folded, 3 * (uint32_t)m.b->layers);
    release(&m);
    check_unchanged(path, folded);
}
END_TEST

/* ---- norms of 16 bits: consumers get what the norm could not take */

START_TEST(a_rounded_norm_is_exact) {
    const char *src = tiny_model("f32", true), *recipe = in_tmp(1, "recipe.txt"), *stats = in_tmp(5, "stats.gguf"),
               *dst = in_tmp(6, "folded.gguf"), *plain = in_tmp(2, "plain.gguf");
    bound_model m;
    bind(&m, src);
    write_stats(&m, stats, NULL);
    release(&m);
    const run want = logits_of(src);
    static const char *const vectors[] = {"f16", "bf16"};
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen(recipe, "w");
        fprintf(f, "transform smooth\nvector %s\n* f32\n", vectors[i]);
        fclose(f);
        lq_quantize_options o = {.size = sizeof o, .recipe = recipe, .force = 1, .importance = stats};
        OK(q_quantize(A, NULL, 1, src, dst, &o, NULL));
        f = fopen(recipe, "w");
        fprintf(f, "vector %s\n* f32\n", vectors[i]);
        fclose(f);
        o.importance = NULL;
        OK(q_quantize(A, NULL, 1, src, plain, &o, NULL));
        /* The last norm, which has no factors, is rounded in both: nothing else is left of rounding. */
        ck_assert_double_gt(distance(&want, plain), distance(&want, dst));
    }
    free(want.logits);
}
END_TEST

/* ---- a directory by AutoAWQ's rules */

START_TEST(an_awq_directory_is_read_back) {
    char path[4096];
    const char *stats = in_tmp(5, "stats.gguf"), *dst = in_tmp(6, "pocket-awq");
    bound_model m;
    seen s = {0};
    t_path(path, sizeof path, t_root(), "bench/data/pocket");
    ck_assert_int_eq(quantize(path, in_tmp(7, "x.gguf"), "awq-4bit-g128", NULL, NULL), LQ_E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "awq+q4_k_m"));
    ck_assert_int_eq(quantize(path, dst, "awq-4bit-g128", NULL, NULL), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "--for awq-4bit-g128"));
    bind(&m, path);
    write_stats(&m, stats, &(mischief){.transform = "awq", .mild = true});
    release(&m);
    OK(quantize(path, dst, "awq-4bit-g128", stats, &s));
    ck_assert_str_eq(s.first, "awq");
    const run plain = logits_of(path);
    const double d = distance(&plain, dst);
    printf("awq-4bit-g128 under some factors: logits differ by %.2g\n", d);
    ck_assert_double_lt(d, 0.5);
    free(plain.logits);
    bind(&m, dst);
    ck_assert_ptr_nonnull(m.b->items[q_folds_of(&m.f, m.f.groups[0].consumers[0])->consumers[0]].src->view);
    release(&m);
}
END_TEST

/* ---- what is weighed, and what is clipped */

START_TEST(importance_follows_the_factors) {
    bound_model m;
    q_importance *im;
    const q_importance_entry *e;
    float s[64], v[64], before[64];
    const char *stats = in_tmp(5, "stats.gguf");
    bind(&m, tiny_model("f32", true));
    write_stats(&m, stats, NULL);
    release(&m);
    OK(q_importance_open(A, NULL, stats, &im));
    ck_assert(q_str_is(im->transform, "smooth"));
    OK(q_importance_find(im, q_str_of("blk.0.attn_q.weight"), 64, 1, &e));
    OK(q_importance_fold(im, e, s));
    memcpy(before, e->values, sizeof before);
    OK(q_importance_refit(im, e->name, s));
    OK(q_importance_refit(im, q_str_of("no such"), s));
    ck_assert_int_eq(q_importance_refit(im, e->name, s), LQ_E_INTERNAL);
    float most = 0;
    for (int i = 0; i < 64; i++) {
        v[i] = (float)((double)before[i] / ((double)s[i] * (double)s[i]));
        if (v[i] > most) most = v[i];
    }
    for (int i = 0; i < 64; i++) ck_assert_float_eq_tol(e->values[i], v[i] / most, 1e-6f);
    q_importance_close(im);
}
END_TEST

START_TEST(weights_are_clipped_and_errors_are_not) {
    const char *src = tiny_model("f32", true), *stats = in_tmp(5, "stats.gguf"), *dst = in_tmp(6, "clipped.gguf");
    bound_model m;
    seen s = {0};
    float x[64];
    bind(&m, src);
    const mischief clip = {.extra = "blk.0.attn_v.weight.clip", .k = 2, .rows = 32, .extra_value = 0.01f};
    write_stats(&m, stats, &clip);
    release(&m);
    OK(quantize(src, dst, "smooth+q8_0", stats, &s));
    ck_assert_double_gt(s.worst, 0.5);
    bind(&m, dst);
    const q_bind_item *v = NULL;
    for (uint32_t i = 0; i < m.b->n_items; i++)
        if (q_str_is(m.b->items[i].name, "blk.0.attn_v.weight")) v = &m.b->items[i];
    OK(q_bind_read(A, m.b, v, 3, 1, x));
    for (int i = 0; i < 64; i++) ck_assert_float_le(fabsf(x[i]), 0.01001f);
    release(&m);
    /* Limits of groups that the format does not have say nothing; nor does a file when the scheme names no transform. */
    s = (seen){0};
    OK(quantize(src, dst, "q8_0", stats, &s));
    ck_assert_double_lt(s.worst, 0.1);
    ck_assert_uint_eq(s.transformed, 0);
    ck_assert_uint_eq(s.tensors, 21);
    bind(&m, src);
    write_stats(&m, stats, &(mischief){.extra = clip.extra, .k = 1, .rows = 32, .extra_value = 0.01f});
    release(&m);
    s = (seen){0};
    OK(quantize(src, dst, "smooth+q8_0", stats, &s));
    ck_assert_double_lt(s.worst, 0.1);
    const float limits[] = {1, 2, 0, 5};
    float row[] = {-3, 0.5f, 7, -7, 1, -1, 4, -6};
    q_limits_clamp(limits, 2, 4, 2, row, row);
    const float want[] = {-1, 0.5f, 2, -2, 0, 0, 4, -5};
    for (int i = 0; i < 8; i++) ck_assert_float_eq(row[i], want[i]);
}
END_TEST

/* ---- files that do not fit */

#define FOLD_Q "blk.0.attn_q.weight.fold"
static const struct {
    mischief m;
    lq_status code;
    const char *says[3];
} bad[] = {
    {{.hit = FOLD_Q, .value = 0}, LQ_E_INCONSISTENT, {FOLD_Q, "value 1, 0, is no factor"}},
    {{.hit = FOLD_Q, .value = -1}, LQ_E_INCONSISTENT, {FOLD_Q, "-1"}},
    {{.hit = FOLD_Q, .value = NAN}, LQ_E_INCONSISTENT, {FOLD_Q, "nan"}},
    {{.hit = FOLD_Q, .value = INFINITY}, LQ_E_INCONSISTENT, {FOLD_Q, "inf"}},
    {{.hit = FOLD_Q, .value = 0x1p41f}, LQ_E_INCONSISTENT, {FOLD_Q, "2^40"}},
    {{.longer = "blk.0.attn_k.weight.in_sum2"}, LQ_E_INCONSISTENT, {"blk.0.attn_k.weight", "is for 1000064 inputs"}},
    {{.cut = FOLD_Q}, LQ_E_INCONSISTENT, {FOLD_Q, "[63, 1], not [64, 1]"}},
    {{.extra = "blk.0.attn_k.weight.fold", .k = 64, .extra_value = 1}, LQ_E_INCONSISTENT, {"attn_k.weight.fold", "go by the name of blk.0.attn_q.weight"}},
    {{.extra = "blk.0.attn_output.weight.fold", .k = 64, .extra_value = 1}, LQ_E_INCONSISTENT, {"cannot be folded", "query heads share values"}},
    {{.extra = "blk.9.attn_q.weight.fold", .k = 64, .extra_value = 1}, LQ_E_INCONSISTENT, {"no partner", "blk.9"}},
    {{.transform = ""}, LQ_E_INCONSISTENT, {FOLD_Q, Q_FOLD_TRANSFORM}},
    {{.transform = "awq"}, LQ_E_ARG, {"wants the factors of smooth", "has those of awq", "--for smooth+q8_0"}},
    {{.unseen = true}, LQ_E_INCONSISTENT, {FOLD_Q, "no token reached"}},
    {{.extra = "blk.0.attn_v.weight.clip", .k = 3, .rows = 32}, LQ_E_INCONSISTENT, {"3 groups do not divide rows of 64"}},
    {{.extra = "blk.0.attn_v.weight.clip", .k = 2, .rows = 31}, LQ_E_INCONSISTENT, {"attn_v.weight.clip", "[2, 31], not [2, 32]"}},
    {{.extra = "blk.0.attn_v.weight.clip", .k = 2, .rows = 32, .extra_value = -1}, LQ_E_INCONSISTENT, {"attn_v.weight.clip", "is no limit"}},
    {{.extra = "blk.0.attn_v.weight.clip", .k = 2, .rows = 32, .extra_value = NAN}, LQ_E_INCONSISTENT, {"attn_v.weight.clip", "is no limit"}},
};
START_TEST(factors_that_do_not_fit) {
    const char *src = tiny_model("f16", true), *stats = in_tmp(5, "stats.gguf"), *dst = in_tmp(6, "none.gguf");
    bound_model m;
    bind(&m, src);
    write_stats(&m, stats, &bad[_i].m);
    release(&m);
    const lq_status got = quantize(src, dst, "smooth+q8_0", stats, NULL);
    ck_assert_msg(got == bad[_i].code, "%d: %s (%s)", _i, lq_status_name(got), got ? lq_error_detail() : "accepted");
    for (int i = 0; i < 3 && bad[_i].says[i]; i++)
        ck_assert_msg(strstr(lq_error_detail(), bad[_i].says[i]) != NULL, "'%s' does not say '%s'", lq_error_detail(), bad[_i].says[i]);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), stats));
    ck_assert_int_ne(access(dst, F_OK), 0);
}
END_TEST

START_TEST(a_transform_wants_its_factors) {
    const char *src = tiny_model("f16", true), *dst = in_tmp(6, "none.gguf"), *stats = in_tmp(5, "stats.gguf");
    bound_model m;
    ck_assert_int_eq(quantize(src, dst, "awq+q4_k_m", NULL, NULL), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "lq calibrate MODEL --text FILE --for awq+q4_k_m -o STATS"));
    bind(&m, src); /* factors for some groups alone are fine */
    write_stats(&m, stats, &(mischief){.drop = FOLD_Q});
    seen s = {0};
    OK(quantize(src, dst, "smooth+q8_0", stats, &s));
    ck_assert_uint_eq(s.transformed, 16 - 4);
    release(&m);
    remove(dst);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("folding");
    TCase *c = tcase_create("folding");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, functions_stay_as_they_are);
    tcase_add_test(c, the_pocket_model_stays_as_it_is);
    tcase_add_test(c, a_rounded_norm_is_exact);
    tcase_add_test(c, an_awq_directory_is_read_back);
    tcase_add_test(c, importance_follows_the_factors);
    tcase_add_test(c, weights_are_clipped_and_errors_are_not);
    tcase_add_loop_test(c, factors_that_do_not_fit, 0, Q_COUNT(bad));
    tcase_add_test(c, a_transform_wants_its_factors);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
