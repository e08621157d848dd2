/* test_fold.c: who can take factors of whose inputs: of whole models through the binding, and in step tables made by
 * hand, in the shapes of libquant/README.md and with one thing in the way at a time; and rows as they are read under
 * factors. */
#include "harness.h"
#include "help_model.h"

#include "../libquant/fold.h"

#include <sys/stat.h>


#define OK(e) ck_assert_msg((e) == LQ_OK, "%s: %s", #e, lq_error_detail())

/* ---- models */

typedef struct bound {
    q_directory *dir;
    q_binding *b;
    q_arena arena;
    q_folds f;
} bound;

static void bind_tiny(bound *m, tiny *t, const char *folder) {
    char path[4096];
    t_path(path, sizeof path, t_tmp(), folder ? folder : "fold.gguf");
    if (folder) mkdir(path, 0755);
    if (folder) tiny_write_hf(t, path);
    else tiny_write(t, path);
    const q_load_options o = {.alloc = &q_alloc_libc};
    memset(m, 0, sizeof *m);
    OK(q_directory_open(path, &o, &m->dir));
    OK(q_bind(&q_alloc_libc, NULL, m->dir, &m->b));
    m->arena.alloc = &q_alloc_libc;
    OK(q_folds_find(m->b, &m->arena, &m->f));
}
static void release(bound *m) {
    q_arena_free(&m->arena);
    q_binding_close(m->b);
    q_directory_close(m->dir);
}
static bool is_named(const bound *m, uint32_t item, int32_t layer, const char *name) {
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    return q_str_is(m->b->items[item].name, full);
}

/* A llama's four groups in each layer; without shared heads, attention's output has a producer too. */
static void check_llama(const bound *m, bool grouped) {
    static const struct {
        const char *producer, *consumers[3];
        uint64_t k;
    } want[] = {{"attn_norm", {"attn_q", "attn_k", "attn_v"}, 64},
                {"attn_v", {"attn_output"}, 64},
                {"ffn_norm", {"ffn_gate", "ffn_up"}, 64},
                {"ffn_up", {"ffn_down"}, 96}};
    ck_assert_uint_eq(m->f.n_groups, 8);
    for (uint32_t i = 0; i < 8; i++) {
        const q_fold_group *g = &m->f.groups[i];
        uint32_t n = 0;
        ck_assert_int_eq(g->layer, (int32_t)(i / 4));
        ck_assert_uint_eq(g->k, want[i % 4].k);
        while (n < 3 && want[i % 4].consumers[n]) n++;
        ck_assert_uint_eq(g->n_consumers, n);
        for (uint32_t c = 0; c < n; c++) {
            ck_assert(is_named(m, g->consumers[c], g->layer, want[i % 4].consumers[c]));
            ck_assert_ptr_eq(q_folds_of(&m->f, g->consumers[c]), g);
        }
        if (grouped && i % 4 == 1) {
            ck_assert_str_eq(g->refused, "query heads share values");
            continue;
        }
        ck_assert_msg(!g->refused, "%s", g->refused);
        ck_assert(is_named(m, g->producer, g->layer, want[i % 4].producer));
    }
    for (uint32_t i = 0; i < m->b->n_items; i++) /* norms, embedding, output */
        if (m->b->items[i].layer < 0 || m->b->items[i].src->rank == 1) ck_assert_ptr_null(q_folds_of(&m->f, i));
}

START_TEST(partners_of_llama) {
    static tiny t;
    bound m;
    tiny_init(&t, "f16");
    bind_tiny(&m, &t, NULL);
    check_llama(&m, true);
    release(&m);
    tiny_init(&t, "f16");
    tiny_unshare_heads(&t);
    bind_tiny(&m, &t, NULL);
    check_llama(&m, false);
    release(&m);
    tiny_init(&t, "f16");
    bind_tiny(&m, &t, "fold-hf");
    check_llama(&m, true);
    release(&m);
}
END_TEST

/* ---- rows under factors */

/* Columns are by input and rows by those of the GGUF tensor, whatever the source's order is; bits are not to be had
 * then. */
static void check_factors(bound *m, const char *name) {
    float columns[96], rows[96], plain[96], folded[96];
    uint8_t raw[4096];
    for (int i = 0; i < 96; i++) {
        columns[i] = 0.5f + (float)i / 64;
        rows[i] = 3.0f - (float)i / 64;
    }
    q_bind_item *item = NULL;
    for (uint32_t i = 0; i < m->b->n_items; i++)
        if (q_str_is(m->b->items[i].name, name)) item = &m->b->items[i];
    ck_assert_ptr_nonnull(item);
    const uint64_t k = item->src->shape[0];
    const bool vector = item->src->rank == 1;
    for (uint64_t r = 0; r < item->src->rows; r++) {
        item->columns = item->rows = NULL;
        OK(q_bind_read(&q_alloc_libc, m->b, item, r, 1, plain));
        OK(q_bind_read_raw(m->b, item, r, 1, raw));
        item->columns = vector ? NULL : columns;
        item->rows = rows;
        OK(q_bind_read(&q_alloc_libc, m->b, item, r, 1, folded));
        for (uint64_t j = 0; j < k; j++)
            ck_assert(folded[j] == (vector ? plain[j] / rows[j] : plain[j] * columns[j] / rows[r]));
        ck_assert_int_eq(q_bind_read_raw(m->b, item, r, 1, raw), LQ_E_INTERNAL);
    }
}

START_TEST(rows_are_read_under_factors) {
    static tiny t;
    bound m;
    tiny_init(&t, "f16");
    for (int hf = 0; hf < 2; hf++) {
        bind_tiny(&m, &t, hf ? "fold-rows" : NULL);
        check_factors(&m, "blk.1.attn_q.weight");
        check_factors(&m, "blk.1.ffn_up.weight");
        check_factors(&m, "blk.1.ffn_norm.weight");
        release(&m);
    }
}
END_TEST

/* ---- tables made by hand */

#define D(x) Q_DIM_##x
enum { X = 1, H, Q, K, V, Y, G, U, R };
static const q_slot_row slots[] = {{NULL, 0},      {"X", D(EMBD)}, {"H", D(EMBD)}, {"Q", D(Q)}, {"K", D(K)},
                                   {"V", D(V)},    {"Y", D(ATTN)}, {"G", D(FF)},   {"U", D(FF)}, {"R", D(FF)}};
enum { ANORM = 1, AQ, AK, AV, AO, FNORM, GATE, UP, DOWN, BIAS, OTHER, ROLES };

/* A model of one layer; widths: 8 (2 heads of 4), feed-forward 12. */
typedef struct bed {
    q_arch arch;
    q_step steps[32], last[2];
    q_layer_table table;
    q_weight_row rows[ROLES - 1];
    q_tensor src[ROLES - 1];
    q_bind_item items[ROLES - 1];
    int32_t by_role[ROLES - 1];
    q_binding b;
    q_arena arena;
    q_folds f;
} bed;

static void step(bed *d, q_step s) { d->steps[d->table.n++] = s; }
static void weight(bed *d, int role, uint32_t rank, uint64_t k, uint64_t rows) {
    d->by_role[role - 1] = role - 1;
    d->src[role - 1] = (q_tensor){.rank = rank, .shape = {k, rank == 1 ? 1 : rows, 1, 1, 1, 1, 1, 1}, .rows = rows};
    d->items[role - 1] = (q_bind_item){.role = role - 1, .src = &d->src[role - 1]};
}

static void bed_init(bed *d) {
    memset(d, 0, sizeof *d);
    for (int i = 0; i < ROLES - 1; i++) {
        d->rows[i] = (q_weight_row){.role = "w", .gguf = "blk.%d.w"};
        d->by_role[i] = -1;
    }
    d->table.steps = d->steps;
    d->arch = (q_arch){.weights = d->rows, .n_weights = ROLES - 1, .slots = slots, .n_slots = Q_COUNT(slots),
                       .layers = &d->table, .n_layer_kinds = 1, .last = {d->last, 1},
                       .dim_kv_heads = D(HEADS_KV), .dim_k = D(HEAD_K), .dim_v = D(HEAD_V)};
    d->last[0] = (q_step){.op = Q_OP_NORM, .y = H, .x = X, .out = 1};
    d->b = (q_binding){.arch = &d->arch, .layers = 1, .items = d->items, .n_items = ROLES - 1, .by_role = d->by_role};
    d->b.hp.v[Q_HP_EMBD] = 8;
    d->b.hp.v[Q_HP_FF] = 12;
    d->b.hp.v[Q_HP_HEADS] = d->b.hp.v[Q_HP_HEADS_KV] = 2;
    d->b.hp.v[Q_HP_HEAD_K] = d->b.hp.v[Q_HP_HEAD_V] = 4;
    for (int i = 0; i < ROLES - 1; i++) weight(d, i + 1, 2, 8, 8);
    weight(d, ANORM, 1, 8, 1);
    weight(d, FNORM, 1, 8, 1);
    weight(d, GATE, 2, 8, 12);
    weight(d, UP, 2, 8, 12);
    weight(d, DOWN, 2, 12, 8);
    d->by_role[BIAS - 1] = d->by_role[OTHER - 1] = -1;
}

#define HEADS2 {.heads = D(HEADS), .width = D(HEAD_K)}
enum { S_ANORM, S_Q, S_K, S_V, S_PUT, S_ATTN, S_O, S_FNORM, S_GATE, S_UP, S_GLU, S_DOWN };
static void llama(bed *d) {
    bed_init(d);
    step(d, (q_step){.op = Q_OP_NORM, .y = H, .x = X, .w = ANORM});
    step(d, (q_step){.op = Q_OP_MATMUL, .y = Q, .x = H, .w = AQ});
    step(d, (q_step){.op = Q_OP_MATMUL, .y = K, .x = H, .w = AK});
    step(d, (q_step){.op = Q_OP_MATMUL, .y = V, .x = H, .w = AV});
    step(d, (q_step){.op = Q_OP_KV_PUT, .x = K, .z = V, .xp = HEADS2, .zp = HEADS2});
    step(d, (q_step){.op = Q_OP_ATTN, .y = Y, .x = Q, .yp = HEADS2, .xp = HEADS2});
    step(d, (q_step){.op = Q_OP_MATMUL, .y = X, .x = Y, .w = AO, .add = 1});
    step(d, (q_step){.op = Q_OP_NORM, .y = H, .x = X, .w = FNORM});
    step(d, (q_step){.op = Q_OP_MATMUL, .y = G, .x = H, .w = GATE});
    step(d, (q_step){.op = Q_OP_MATMUL, .y = U, .x = H, .w = UP});
    step(d, (q_step){.op = Q_OP_GLU, .y = G, .x = G, .z = U, .kind = Q_ACT_SILU});
    step(d, (q_step){.op = Q_OP_MATMUL, .y = X, .x = G, .w = DOWN, .add = 1});
}
static void insert(bed *d, uint32_t at, q_step s) {
    memmove(&d->steps[at + 1], &d->steps[at], (d->table.n++ - at) * sizeof s);
    d->steps[at] = s;
}
static const q_fold_group *find(bed *d, int consumer) {
    q_arena_free(&d->arena);
    d->arena = (q_arena){.alloc = &q_alloc_libc};
    OK(q_folds_find(&d->b, &d->arena, &d->f));
    return q_folds_of(&d->f, (uint32_t)consumer - 1);
}
static void folds(bed *d, int consumer, int producer) {
    const q_fold_group *g = find(d, consumer);
    ck_assert_ptr_nonnull(g);
    ck_assert_msg(!g->refused, "%d: %s", consumer, g->refused);
    ck_assert_int_eq((int)g->producer + 1, producer);
}
static void refuses(bed *d, int consumer, const char *why) {
    const q_fold_group *g = find(d, consumer);
    ck_assert_ptr_nonnull(g);
    ck_assert_msg(g->refused && strstr(g->refused, why), "%d: '%s', not '%s'", consumer,
                  g->refused ? g->refused : "folds", why);
    q_arena_free(&d->arena);
}

START_TEST(one_thing_in_the_way) {
    bed d;
    llama(&d);
    folds(&d, AQ, ANORM);
    folds(&d, AO, AV);
    folds(&d, GATE, FNORM);
    folds(&d, DOWN, UP);
    q_arena_free(&d.arena);

#define CASE(change, consumer, why) \
    do {                            \
        llama(&d);                  \
        change;                     \
        refuses(&d, consumer, why); \
    } while (0)
    /* norms */
    CASE(d.steps[S_ANORM].w = 0, AQ, "no weight");
    CASE(d.items[ANORM - 1].map = Q_MAP_PLUS_ONE, AQ, "less one");
    CASE((weight(&d, BIAS, 1, 8, 1), d.steps[S_ANORM].b = BIAS), AQ, "bias");
    CASE(d.steps[S_ANORM].add = 1, AQ, "adds to something");
    CASE(weight(&d, ANORM, 1, 4, 1), AQ, "another length");
    CASE(d.steps[S_FNORM].w = ANORM, AQ, "norm's weight is used at another place");
    CASE(d.last[0].w = FNORM, GATE, "norm's weight is used at another place");
    CASE(d.steps[S_ANORM].yp.heads = D(HEADS), AQ, "makes a part");
    /* who else reads */
    CASE(insert(&d, S_PUT, ((q_step){.op = Q_OP_COPY, .y = R, .x = H})), AQ, "something else");
    CASE(insert(&d, S_PUT, ((q_step){.op = Q_OP_SCALE, .y = X, .x = X, .z = H})), AQ, "something else");
    CASE(insert(&d, S_PUT, ((q_step){.op = Q_OP_ROUTE, .y = R, .x = H, .w = AQ})), AQ, "something else");
    CASE((d.steps[S_FNORM].y = Y, d.last[0].x = H), AQ, "after the layer");
    CASE((d.steps[S_FNORM].y = Y, d.steps[S_ANORM].z = H), AQ, "after the layer");
    CASE(d.steps[S_V].xp = ((q_part){.heads = D(HEADS), .width = D(HEAD_K)}), AQ, "a part");
    CASE(d.steps[S_V].w2 = AK, AQ, "there are several");
    CASE(weight(&d, AV, 3, 8, 8), AQ, "there are several");
    CASE(weight(&d, AV, 2, 16, 8), AQ, "a part");
    CASE(d.steps[S_ANORM].y = R, AQ, "before the layer");
    /* weights of several steps */
    CASE(d.last[0] = ((q_step){.op = Q_OP_HEAD, .x = H, .w = AQ}), GATE, "after the layer");
    CASE(d.last[0].w = AQ, AQ, "used at another place");
    CASE(d.steps[S_GATE].w = AQ, AQ, "used at another place");
    CASE(d.by_role[OTHER - 1] = AK - 1; d.steps[S_GATE].b = OTHER, AQ, "used at another place");
    /* GLU */
    CASE(d.steps[S_GLU].z = 0, DOWN, "not linear");
    CASE(d.steps[S_GLU].kind = Q_ACT_SWIGLU_CLAMP, DOWN, "clamped");
    CASE(d.steps[S_GLU].zp = ((q_part){.offset = D(ONE), .width = D(FF)}), DOWN, "part of something else");
    CASE(d.steps[S_GLU].x = U, DOWN, "part of something else");
    CASE(d.steps[S_GLU].add = 1, DOWN, "part of something else");
    CASE((weight(&d, BIAS, 1, 12, 1), d.steps[S_UP].b = BIAS), DOWN, "a bias");
    CASE(d.steps[S_UP].add = 1, DOWN, "not the product of one matrix");
    CASE(d.steps[S_UP].w_row = D(ONE), DOWN, "other rows");
    CASE(weight(&d, UP, 2, 8, 24), DOWN, "other rows");
    CASE(d.steps[S_GATE].w = UP, DOWN, "the matrix that makes it is used at another place");
    CASE(d.items[UP - 1].map = Q_MAP_ROPE_PAIRS, DOWN, "the matrix that makes it is used at another place");
    CASE(insert(&d, S_GLU, ((q_step){.op = Q_OP_COPY, .y = R, .x = U})), DOWN,
         "what makes it is read at another place");
    CASE(insert(&d, S_DOWN, ((q_step){.op = Q_OP_COPY, .y = R, .x = U})), DOWN,
         "what makes it is read at another place");
    CASE(insert(&d, S_GLU, ((q_step){.op = Q_OP_SCALE, .y = U, .x = U})), DOWN, "not the product of one matrix");
    CASE(d.last[0].x = U, DOWN, "what makes it is read at another place");
    /* attention */
    CASE(d.b.hp.v[Q_HP_HEADS_KV] = 1, AO, "query heads share values");
    CASE(d.steps[S_PUT].z = 0, AO, "part of its keys");
    CASE(d.arch.dim_v = 0, AO, "part of its keys");
    CASE(d.steps[S_PUT].z = K, AO, "part of its keys");
    CASE(d.steps[S_ATTN].z = V, AO, "of another kind");
    CASE(insert(&d, S_ATTN, d.steps[S_PUT]), AO, "of another kind");
    CASE(insert(&d, S_ATTN, ((q_step){.op = Q_OP_ATTN, .y = R, .x = Q})), AO, "of another kind");
    CASE(d.steps[S_PUT].zp = ((q_part){.heads = D(HEADS), .width = D(ONE)}), AO, "another width");
    CASE(insert(&d, S_O, ((q_step){.op = Q_OP_SCALE, .y = Y, .x = Y})), AO, "no weight to take");
    CASE((weight(&d, BIAS, 1, 8, 1), d.steps[S_V].b = BIAS), AO, "a bias");
    CASE(insert(&d, S_PUT, ((q_step){.op = Q_OP_HEADNORM, .y = V, .x = V})), AO, "not the product of one matrix");
#undef CASE
    q_arena_free(&d.arena);
}
END_TEST

/* An optional step whose weight is missing is none. */
START_TEST(steps_that_the_model_lacks) {
    bed d;
    llama(&d);
    insert(&d, S_PUT, (q_step){.op = Q_OP_HEADNORM, .y = V, .x = V, .w = OTHER, .opt = 1});
    insert(&d, S_GLU + 1, (q_step){.op = Q_OP_SCALE, .y = R, .x = U, .w = OTHER, .opt = 1});
    folds(&d, AQ, ANORM);
    folds(&d, AO, AV);
    folds(&d, DOWN, UP);
    weight(&d, OTHER, 1, 8, 1);
    refuses(&d, AO, "not the product of one matrix");
    refuses(&d, DOWN, "read at another place");
    q_arena_free(&d.arena);
}
END_TEST

/* ---- the families of libquant/README.md, as far as they differ */

START_TEST(gpt2_takes_nothing) { /* norms with biases, no gate, biases behind values */
    bed d;
    bed_init(&d);
    weight(&d, BIAS, 1, 8, 1);
    weight(&d, AQ, 2, 8, 24);
    step(&d, (q_step){.op = Q_OP_NORM, .y = H, .x = X, .kind = Q_NORM_LAYER, .w = ANORM, .b = BIAS});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = Q, .x = H, .w = AQ});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = K, .x = H, .w = AQ, .w_row = D(EMBD)});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = V, .x = H, .w = AQ, .w_row = D(EMBD)});
    step(&d, (q_step){.op = Q_OP_KV_PUT, .x = K, .z = V, .xp = HEADS2, .zp = HEADS2});
    step(&d, (q_step){.op = Q_OP_ATTN, .y = Y, .x = Q, .yp = HEADS2, .xp = HEADS2});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = X, .x = Y, .w = AO, .add = 1});
    step(&d, (q_step){.op = Q_OP_NORM, .y = H, .x = X, .kind = Q_NORM_LAYER, .w = FNORM, .b = BIAS});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = G, .x = H, .w = UP});
    step(&d, (q_step){.op = Q_OP_GLU, .y = G, .x = G, .kind = Q_ACT_GELU_TANH});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = X, .x = G, .w = DOWN, .add = 1});
    refuses(&d, AQ, "bias");
    refuses(&d, AO, "other rows");
    refuses(&d, UP, "bias");
    refuses(&d, DOWN, "not linear");
    d.steps[0].b = 0; /* mpt: without biases; one matrix of three steps is one consumer */
    folds(&d, AQ, ANORM);
    ck_assert_uint_eq(q_folds_of(&d.f, AQ - 1)->n_consumers, 1);
    q_arena_free(&d.arena);
}
END_TEST

START_TEST(phi3_folds_fused_rows_into_norms) {
    bed d;
    llama(&d);
    weight(&d, UP, 2, 8, 24);
    d.steps[S_GATE].w = UP;
    d.steps[S_UP].w_row = D(FF);
    folds(&d, UP, FNORM);
    refuses(&d, DOWN, "other rows");
    q_arena_free(&d.arena);
}
END_TEST

START_TEST(falcon_has_one_group_for_both_sides) {
    bed d;
    llama(&d);
    memmove(&d.steps[S_FNORM], &d.steps[S_FNORM + 1], (--d.table.n - S_FNORM) * sizeof d.steps[0]);
    folds(&d, AQ, ANORM);
    folds(&d, UP, ANORM);
    ck_assert_uint_eq(q_folds_of(&d.f, UP - 1)->n_consumers, 5);
    q_arena_free(&d.arena);
}
END_TEST

START_TEST(mixtral_is_refused) {
    bed d;
    llama(&d);
    d.table.n = S_GATE;
    step(&d, (q_step){.op = Q_OP_ROUTE, .y = R, .x = H, .w = OTHER});
    step(&d, (q_step){.op = Q_OP_MOE_GLU, .y = G, .x = H, .z = R, .w = GATE, .w2 = UP});
    step(&d, (q_step){.op = Q_OP_MOE_DOWN, .y = X, .x = G, .z = R, .w = DOWN, .add = 1});
    folds(&d, AQ, ANORM);
    ck_assert_ptr_null(find(&d, GATE));
    ck_assert_ptr_null(q_folds_of(&d.f, DOWN - 1));
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = U, .x = H, .w = OTHER}); /* a shared expert */
    weight(&d, OTHER, 2, 8, 12);
    refuses(&d, OTHER, "something else");
    q_arena_free(&d.arena);
}
END_TEST

START_TEST(bert_norms_are_read_by_the_residual) {
    bed d;
    bed_init(&d);
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = Q, .x = X, .w = AQ});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = K, .x = X, .w = AK});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = V, .x = X, .w = AV});
    step(&d,
         (q_step){
             .op = Q_OP_ATTN, .y = Y, .x = Q, .z = K, .v = V, .yp = HEADS2, .xp = HEADS2, .zp = HEADS2, .vp = HEADS2});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = X, .x = Y, .w = AO, .add = 1});
    step(&d, (q_step){.op = Q_OP_NORM, .y = X, .x = X, .w = ANORM, .kind = Q_NORM_LAYER});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = G, .x = X, .w = UP});
    step(&d, (q_step){.op = Q_OP_GLU, .y = G, .x = G, .kind = Q_ACT_GELU});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = X, .x = G, .w = DOWN, .add = 1});
    step(&d, (q_step){.op = Q_OP_NORM, .y = X, .x = X, .w = FNORM, .kind = Q_NORM_LAYER});
    refuses(&d, AQ, "something else"); /* the sum after attention */
    refuses(&d, AO, "of another kind");
    refuses(&d, UP, "something else");
    refuses(&d, DOWN, "not linear");
}
END_TEST

START_TEST(gated_attention_is_refused) { /* Qwen3-Next: GLU Y <- QG, z Y SIGMOID */
    bed d;
    llama(&d);
    insert(&d, S_O, (q_step){.op = Q_OP_GLU, .y = Y, .x = Q, .z = Y, .kind = Q_ACT_SIGMOID});
    folds(&d, AQ, ANORM);
    refuses(&d, AO, "not the product of one matrix");
}
END_TEST

START_TEST(latent_attention_is_refused) { /* DeepSeek: the norm is of a part, in place; per-head matrices */
    bed d;
    bed_init(&d);
    weight(&d, OTHER, 1, 4, 1);
    weight(&d, AK, 3, 4, 8);
    step(&d, (q_step){.op = Q_OP_NORM, .y = H, .x = X, .w = ANORM});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = K, .x = H, .w = AV});
    step(&d, (q_step){.op = Q_OP_NORM, .y = K, .x = K, .yp = {.heads = D(ONE), .width = D(HEAD_K)}, .w = OTHER});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = Q, .x = H, .w = AQ});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = V, .x = Q, .xp = HEADS2, .w = AK});
    step(&d, (q_step){.op = Q_OP_KV_PUT, .x = K, .xp = {.heads = D(ONE), .width = D(K)}});
    step(&d, (q_step){.op = Q_OP_ATTN, .y = Y, .x = V, .yp = HEADS2, .xp = HEADS2});
    step(&d, (q_step){.op = Q_OP_MATMUL, .y = X, .x = Y, .w = AO, .add = 1});
    folds(&d, AV, ANORM);
    ck_assert_ptr_eq(q_folds_of(&d.f, AQ - 1), q_folds_of(&d.f, AV - 1));
    refuses(&d, AK, "a part");
    refuses(&d, AO, "part of its keys");
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("fold");
    TCase *c = tcase_create("fold");
    tcase_add_test(c, partners_of_llama);
    tcase_add_test(c, rows_are_read_under_factors);
    tcase_add_test(c, one_thing_in_the_way);
    tcase_add_test(c, steps_that_the_model_lacks);
    tcase_add_test(c, gpt2_takes_nothing);
    tcase_add_test(c, phi3_folds_fused_rows_into_norms);
    tcase_add_test(c, falcon_has_one_group_for_both_sides);
    tcase_add_test(c, mixtral_is_refused);
    tcase_add_test(c, bert_norms_are_read_by_the_residual);
    tcase_add_test(c, gated_attention_is_refused);
    tcase_add_test(c, latent_attention_is_refused);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
