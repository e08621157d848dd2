/* test_cpu.c: the CPU backend through its vtable, on a small two-layer model built by hand: the same bits for any
 * number of threads and any chunking, agreement with a straight loop over kernels/ref, bytes as measured, cancelling,
 * tapping, and nothing allocated in a run. */
#include "harness.h"
#include "help_kv.h"

#include "../kernels/cpu/cpu.h"

#include <signal.h>
#include <sys/mman.h>

extern const q_backend q_backend_cpu;

enum { DIM = 256, HEADS = 4, KV = 2, HEAD = 64, FF = 512, VOCAB = 300, LAYERS = 2, CONTEXT = 96, TOKENS = 70 };
enum { PAGES = CONTEXT / Q_KV_TOKENS };
enum { S_X = 1, S_H, S_Q, S_K, S_V, S_Y, S_G, S_U, S_O, SLOTS };

/* ---- an allocator that counts, and fails at the k-th call */

typedef struct counted {
    size_t bytes, blocks;
    long calls, fail_at;
} counted;
static void *count_alloc(void *user, size_t bytes, size_t align) {
    counted *c = (counted *)user;
    if (++c->calls == c->fail_at) return NULL;
    c->bytes += bytes;
    c->blocks++;
    return q_alloc_libc.alloc(NULL, bytes, align);
}
static void count_free(void *user, void *p, size_t bytes) {
    counted *c = (counted *)user;
    c->bytes -= bytes;
    c->blocks--;
    q_alloc_libc.free(NULL, p, bytes);
}

/* ---- the model */

typedef struct model {
    q_inst insts[64];
    q_weight weights[64];
    int32_t n_insts, n_weights;
    int32_t widths[SLOTS];
    float freqs[HEAD / 2];
    q_kv_pool pool;
    q_segment segments[2];
    q_plan plan;
    uint64_t seed;
    int32_t order[2][FF]; /* permutations of DIM and of FF inputs */
} model;

static const q_weight *matrix(model *m, const char *format, int32_t rows, int32_t k, float size) {
    q_weight *w = &m->weights[m->n_weights++];
    const q_format *f = q_format_find(format);
    uint64_t row_bytes;
    ck_assert(q_row_bytes(f, (uint64_t)k, &row_bytes));
    uint8_t *data = (uint8_t *)malloc(row_bytes * (uint64_t)rows);
    float row[FF];
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t i = 0; i < k; i++) row[i] = t_normal(&m->seed) * size + (rows == 1 ? 1.0f : 0.0f);
        q_encode_row(f, row, NULL, false, k, data + (uint64_t)r * row_bytes);
    }
    *w = (q_weight){
        .format = f, .data = data, .row_bytes = row_bytes, .rows = rows, .k = k, .matrices = 1, .name = format};
    return w;
}

static q_view whole(const model *m, int32_t slot) { return (q_view){slot, 0, 1, m->widths[slot], m->widths[slot]}; }
static q_view heads(int32_t slot, int32_t n) { return (q_view){slot, 0, n, HEAD, HEAD}; }

static q_inst *step(model *m, q_op op, int32_t layer) {
    q_inst *s = &m->insts[m->n_insts++];
    s->op = (uint8_t)op;
    s->layer = layer;
    return s;
}
static void norm(model *m, int32_t layer, int32_t y, int32_t x, uint8_t out) {
    q_inst *s = step(m, Q_OP_NORM, layer);
    s->y = whole(m, y), s->x = whole(m, x), s->w = matrix(m, "f32", 1, DIM, 0.1f), s->eps = 1e-5f, s->out = out;
}
static q_inst *product(model *m, int32_t layer, int32_t y, int32_t x, const char *format, uint8_t group, uint8_t add) {
    q_inst *s = step(m, Q_OP_MATMUL, layer);
    s->y = whole(m, y), s->x = whole(m, x), s->group = group, s->add = add;
    s->w = matrix(m, format, m->widths[y], m->widths[x], 0.08f);
    return s;
}
/* The columns of the latest matrix are in another order. */
static void permuted(model *m) {
    q_weight *w = &m->weights[m->n_weights - 1];
    w->order = m->order[w->k == FF];
}
static void rope(model *m, int32_t layer, int32_t slot, int32_t n) {
    q_inst *s = step(m, Q_OP_ROPE, layer);
    s->y = s->x = heads(slot, n), s->kind = Q_ROPE_HALVES, s->rot = HEAD, s->freqs = m->freqs;
}

static void model_open(model *m, bool f32_activations) {
    memset(m, 0, sizeof *m);
    m->seed = 7;
    const int32_t widths[SLOTS] = {0, DIM, DIM, HEADS * HEAD, KV * HEAD, KV * HEAD, HEADS * HEAD, FF, FF, DIM};
    memcpy(m->widths, widths, sizeof widths);
    for (int i = 0; i < HEAD / 2; i++) m->freqs[i] = 1.0f / (float)(1 + i * i);
    for (int i = 0; i < FF; i++) m->order[0][i] = i * 29 % DIM, m->order[1][i] = (i * 37 + 11) % FF;
    q_inst *s = step(m, Q_OP_EMBED, -1);
    s->y = whole(m, S_X), s->w = matrix(m, "f16", VOCAB, DIM, 1.0f);
    for (int32_t l = 0; l < LAYERS; l++) {
        norm(m, l, S_H, S_X, 0);
        s = product(m, l, S_Q, S_H, "q4_k", 1, 0);
        s->y = heads(S_Q, HEADS), s->b = matrix(m, "f32", 1, HEADS * HEAD, 0.1f);
        product(m, l, S_K, S_H, l ? "q8_0" : "q4_k", 1, 0);
        if (l) permuted(m);
        product(m, l, S_V, S_H, "f16", 1, 0);
        if (l) permuted(m);
        rope(m, l, S_Q, HEADS);
        rope(m, l, S_K, KV);
        s = step(m, Q_OP_KV_PUT, l);
        s->x = heads(S_K, KV), s->z = heads(S_V, KV), s->kv_layer = l;
        s = step(m, Q_OP_ATTN, l);
        s->y = heads(S_Y, HEADS), s->x = heads(S_Q, HEADS), s->scale = 0.125f, s->kv_layer = l, s->window = l ? 40 : 0;
        product(m, l, S_X, S_Y, "q4_0", 0, 1);
        norm(m, l, S_H, S_X, 0);
        product(m, l, S_G, S_H, "q5_k", 2, 0);
        product(m, l, S_U, S_H, "q6_k", 2, 0);
        s = step(m, Q_OP_GLU, l);
        s->y = whole(m, S_G), s->x = whole(m, S_G), s->z = whole(m, S_U), s->kind = Q_ACT_SILU;
        product(m, l, S_X, S_G, "q6_k", 0, 1);
        if (!l) permuted(m);
    }
    norm(m, LAYERS, S_O, S_X, 1);
    s = step(m, Q_OP_HEAD, LAYERS);
    s->x = whole(m, S_O), s->w = matrix(m, "q8_0", VOCAB, DIM, 0.1f), s->out = 1, s->scale = 0.5f, s->softcap = 20.0f;
    m->pool = (q_kv_pool){.layers = LAYERS, .heads = KV, .pages = PAGES};
    t_kv_forms(&m->pool, "f16", HEAD, HEAD);
    m->segments[0].last = m->n_insts;
    m->plan = (q_plan){.insts = m->insts,
                       .n_insts = m->n_insts,
                       .n_layers = LAYERS,
                       .slot_width = m->widths,
                       .n_slots = SLOTS,
                       .columns = TOKENS,
                       .outs = TOKENS,
                       .vocab = VOCAB,
                       .kv = &m->pool,
                       .n_kv = 1,
                       .segments = m->segments,
                       .n_segments = 1,
                       .seqs = 1,
                       .context = CONTEXT,
                       .f32_activations = f32_activations};
}
static void model_close(model *m) {
    for (int32_t i = 0; i < m->n_weights; i++) free((void *)(uintptr_t)m->weights[i].data);
}

/* ---- a batch over one sequence of tokens i * 7 % VOCAB */

typedef struct run {
    q_batch batch;
    int32_t ids[TOKENS], pos[TOKENS], seq[TOKENS], out[TOKENS];
    uint32_t pages[PAGES];
    const uint32_t *tables[1];
    q_seq_ref ref;
} run;
static void run_init(run *r, int32_t first, int32_t n, float *logits) {
    memset(r, 0, sizeof *r);
    for (int32_t i = 0; i < n; i++) {
        r->ids[i] = (first + i) * 7 % VOCAB;
        r->pos[i] = first + i;
        r->out[i] = i;
    }
    for (uint32_t i = 0; i < PAGES; i++) r->pages[i] = PAGES - 1 - i;
    r->tables[0] = r->pages;
    r->ref.pages = r->tables;
    r->batch = (q_batch){.n = n, .ids = r->ids, .pos = r->pos, .seq = r->seq, .seqs = &r->ref, .n_seqs = 1, .n_out = n,
                         .out = r->out, .logits = logits + (int64_t)first * VOCAB};
}

typedef struct machine {
    const q_backend *b;
    q_device *dev;
    q_buffer kv;
    q_program *program;
} machine;
static void machine_open(machine *t, const model *m, const char *isa, uint32_t threads) {
    const q_device_options o = {.isa = isa, .threads = threads};
    t->b = &q_backend_cpu;
    ck_assert_int_eq(t->b->open(0, &o, &t->dev), LQ_OK);
    ck_assert_int_eq(t->b->alloc(t->dev, m->pool.page_bytes * m->pool.pages, &t->kv), LQ_OK);
    ck_assert_int_eq(t->b->compile(t->dev, &m->plan, 0, &t->kv, NULL, threads, &t->program), LQ_OK);
}
static void machine_close(machine *t) {
    t->b->release(t->program);
    t->b->free(t->dev, &t->kv);
    t->b->close(t->dev);
}

/* Logits of all tokens, evaluated in the given chunks. */
static void evaluate(const model *m, const char *isa, uint32_t threads, const int32_t *chunks, float *logits) {
    machine t;
    machine_open(&t, m, isa, threads);
    for (int32_t at = 0; at < TOKENS; at += *chunks++) {
        run r;
        run_init(&r, at, *chunks, logits);
        ck_assert_int_eq(t.b->run(t.program, &r.batch), LQ_OK);
        ck_assert_int_eq(t.b->wait(t.program), LQ_OK);
    }
    machine_close(&t);
}

static float all_a[TOKENS * VOCAB], all_b[TOKENS * VOCAB];

static double nmse(const float *a, const float *b, int64_t n) {
    double d = 0, s = 0;
    for (int64_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        s += (double)b[i] * b[i];
    }
    return d / s;
}

START_TEST(threads_and_chunks_do_not_change_a_bit) {
    static const int32_t chunkings[][TOKENS] = {{70}, {1, 69}, {7, 1, 33, 29}, {35, 1, 1, 1, 32}, {2, 3, 64, 1}};
    for (int f32 = 0; f32 < 2; f32++) {
        model m;
        model_open(&m, f32 != 0);
        evaluate(&m, NULL, 1, chunkings[0], all_a);
        for (uint32_t threads = 1; threads <= 4; threads++)
            for (size_t i = 0; i < Q_COUNT(chunkings); i++) {
                memset(all_b, 0, sizeof all_b);
                evaluate(&m, NULL, threads, chunkings[i], all_b);
                ck_assert_msg(memcmp(all_a, all_b, sizeof all_a) == 0, "%u threads, chunking %zu: other bits", threads,
                              i);
            }
        model_close(&m);
    }
}
END_TEST

/* The plan as a straight loop over the reference, with the activation format that the program chose for each step. */
static void straight(const model *m, const machine *t, float *logits) {
    float *slots[SLOTS] = {NULL};
    uint8_t *kv = (uint8_t *)calloc(1, m->pool.page_bytes * m->pool.pages);
    size_t bytes = 64;
    for (int i = 1; i < SLOTS; i++) slots[i] = (float *)calloc(TOKENS, (size_t)m->widths[i] * sizeof(float));
    for (int32_t i = 0; i < m->n_insts; i++) bytes = Q_MAX(bytes, q_ref_scratch(&m->insts[i], TOKENS));
    void *scratch = q_new(&q_alloc_libc, bytes, 1);
    run r;
    run_init(&r, 0, TOKENS, logits);
    for (int32_t i = 0; i < m->n_insts; i++) {
        const char *name = t->b->kernel_name(t->program, i);
        const q_act *act = strstr(name, "_a8_32_")    ? &q_act_a8_32
                           : strstr(name, "_a8_256_") ? &q_act_a8_256
                           : strstr(name, "_a_bf16_") ? &q_act_a_bf16
                                                      : NULL;
        const q_exec e = {.plan = &m->plan,
                          .batch = &r.batch,
                          .slots = slots,
                          .kv = &kv,
                          .act = act,
                          .scratch = scratch,
                          .scratch_bytes = bytes};
        q_ops[m->insts[i].op].ref(&m->insts[i], &e, 0, q_op_units(&m->insts[i], TOKENS, TOKENS));
    }
    q_delete(&q_alloc_libc, scratch);
    for (int i = 1; i < SLOTS; i++) free(slots[i]);
    free(kv);
}

START_TEST(every_rung_agrees_with_the_reference) {
    static const int32_t one[TOKENS] = {TOKENS};
    for (int isa = 0; isa < Q_ISA_COUNT; isa++) {
        if (!q_isa_present((q_isa)isa)) continue;
        for (int f32 = 0; f32 < 2; f32++) {
            model m;
            machine t;
            model_open(&m, f32 != 0);
            machine_open(&t, &m, q_isa_names[isa], 2);
            straight(&m, &t, all_a);
            machine_close(&t);
            evaluate(&m, q_isa_names[isa], 2, one, all_b);
            /* A last bit in the exponential can move an 8-bit code by one: coarse where activations are codes. */
            ck_assert_double_le(nmse(all_b, all_a, TOKENS * VOCAB), f32 ? 1e-9 : 1e-4);
            model_close(&m);
        }
    }
}
END_TEST

/* What is masked does not run: a kernel's name ends with a rung of the set. */
START_TEST(masked_instruction_sets_do_not_run) {
    for (int isa = 0; isa < Q_ISA_COUNT; isa++) {
        if (!q_isa_present((q_isa)isa)) continue;
        model m;
        machine t;
        model_open(&m, false);
        machine_open(&t, &m, q_isa_names[isa], 1);
        for (int32_t i = 0; i < m.n_insts; i++) {
            const char *name = t.b->kernel_name(t.program, i), *rung = strstr(name, "__");
            bool allowed = strncmp(name, "ref_", 4) == 0;
            for (int j = 0; j < Q_ISA_COUNT && rung; j++)
                allowed |= q_isa_in(q_isa_with[isa], (q_isa)j) && strcmp(rung + 2, q_isa_names[j]) == 0;
            ck_assert_msg(allowed, "%s runs where only %s may", name, q_isa_names[isa]);
        }
        machine_close(&t);
        model_close(&m);
    }
}
END_TEST

START_TEST(kernels_are_chosen_and_named) {
    model m;
    machine t;
    model_open(&m, false);
    machine_open(&t, &m, "scalar", 1);
    ck_assert_str_eq(t.b->kernel_name(t.program, 0), "ref_embed");
    ck_assert_str_eq(t.b->kernel_name(t.program, 2), "matmul_any_f32__scalar");
    ck_assert_str_eq(t.b->kernel_name(t.program, m.n_insts), "");
    machine_close(&t);
    if (Q_ISA_COUNT > 1 && q_isa_present((q_isa)1)) {
        machine_open(&t, &m, NULL, 1);
        ck_assert_ptr_nonnull(strstr(t.b->kernel_name(t.program, 2), "matmul_q4_k_a8_256"));
        ck_assert_ptr_nonnull(strstr(t.b->kernel_name(t.program, 4), "matmul_f16_f32"));
        ck_assert_ptr_nonnull(strstr(t.b->kernel_name(t.program, m.n_insts - 1), "matmul_q8_0_a8_32"));
        machine_close(&t);
        m.plan.f32_activations = true;
        machine_open(&t, &m, NULL, 1);
        ck_assert_ptr_nonnull(strstr(t.b->kernel_name(t.program, 2), "matmul_q4_k_f32"));
        machine_close(&t);
    }
    model_close(&m);
}
END_TEST

START_TEST(measured_bytes_are_allocated_and_runs_allocate_none) {
    static float logits[TOKENS * VOCAB];
    model m;
    model_open(&m, false);
    for (uint32_t threads = 1; threads <= 3; threads++) {
        counted c = {0};
        const q_alloc a = {count_alloc, count_free, &c};
        const q_device_options o = {.alloc = &a, .threads = 1};
        q_device *dev;
        q_buffer kv;
        q_program *p;
        ck_assert_int_eq(q_backend_cpu.open(0, &o, &dev), LQ_OK);
        ck_assert_int_eq(q_backend_cpu.alloc(dev, m.pool.page_bytes * m.pool.pages, &kv), LQ_OK);
        const size_t before = c.bytes;
        q_need promised;
        ck_assert_int_eq(q_backend_cpu.measure(dev, &m.plan, 0, threads, &promised), LQ_OK);
        ck_assert_uint_eq(c.bytes, before);
        ck_assert_int_eq(q_backend_cpu.compile(dev, &m.plan, 0, &kv, NULL, threads, &p), LQ_OK);
        ck_assert_uint_eq(c.bytes - before, promised.host);
        ck_assert_uint_eq(promised.device, 0);
        const long calls = c.calls;
        run r;
        run_init(&r, 0, TOKENS, logits);
        ck_assert_int_eq(q_backend_cpu.run(p, &r.batch), LQ_OK);
        ck_assert_int_eq(c.calls, calls);
        q_backend_cpu.release(p);
        ck_assert_uint_eq(c.bytes, before);
        q_backend_cpu.free(dev, &kv);
        q_backend_cpu.close(dev);
        ck_assert_uint_eq(c.bytes, 0);
        ck_assert_uint_eq(c.blocks, 0);
    }
    model_close(&m);
}
END_TEST

START_TEST(failed_allocations_are_reported_and_leave_nothing) {
    model m;
    model_open(&m, false);
    for (long k = 1;; k++) {
        counted c = {.fail_at = k};
        const q_alloc a = {count_alloc, count_free, &c};
        const q_device_options o = {.alloc = &a, .threads = 2};
        q_device *dev = NULL;
        q_buffer kv = {0};
        q_program *p = NULL;
        lq_status s = q_backend_cpu.open(0, &o, &dev);
        if (s == LQ_OK) s = q_backend_cpu.alloc(dev, m.pool.page_bytes * m.pool.pages, &kv);
        if (s == LQ_OK) s = q_backend_cpu.compile(dev, &m.plan, 0, &kv, NULL, 2, &p);
        ck_assert_int_eq(s, c.calls >= k ? LQ_E_NOMEM : LQ_OK);
        ck_assert((s == LQ_OK) == (p != NULL));
        q_backend_cpu.release(p);
        if (dev) q_backend_cpu.free(dev, &kv);
        q_backend_cpu.close(dev);
        ck_assert_uint_eq(c.bytes, 0);
        if (s == LQ_OK) break;
    }
    model_close(&m);
}
END_TEST

/* ---- tap and cancel */

typedef struct watch {
    int taps, last_layer;
    int cancel_at; /* tap number at which `cancel` is set */
    int cancel;
    int32_t n;
    bool wrong;
    const model *m;
} watch;
static void on_tap(void *user, const q_inst *s, const float *x, int32_t n, int32_t stride) {
    watch *w = (watch *)user;
    w->wrong |= s->op != Q_OP_MATMUL || n != w->n || stride != w->m->widths[s->x.slot] || !(x[0] == x[0]);
    w->last_layer = s->layer;
    if (++w->taps == w->cancel_at) __atomic_store_n(&w->cancel, 1, __ATOMIC_RELAXED); /* other threads look */
}

START_TEST(tap_sees_the_input_of_every_product) {
    model m;
    model_open(&m, false);
    for (uint32_t threads = 1; threads <= 3; threads++) {
        machine t;
        run r;
        machine_open(&t, &m, NULL, threads);
        run_init(&r, 0, 9, all_a);
        watch w = {.n = 9, .m = &m};
        r.batch.tap = on_tap;
        r.batch.tap_user = &w;
        ck_assert_int_eq(t.b->run(t.program, &r.batch), LQ_OK);
        ck_assert_int_eq(w.taps, LAYERS * 7);
        ck_assert(!w.wrong);
        machine_close(&t);
    }
    model_close(&m);
}
END_TEST

/* A request that comes as the inputs of a product are shown: not even that product is computed. */
START_TEST(cancel_stops_at_the_next_product) {
    model m;
    model_open(&m, false);
    for (uint32_t threads = 1; threads <= 4; threads++) {
        machine t;
        run r;
        machine_open(&t, &m, NULL, threads);
        run_init(&r, 0, 5, all_a);
        watch w = {.n = 5, .m = &m, .cancel_at = 4};
        r.batch.tap = on_tap;
        r.batch.tap_user = &w;
        r.batch.cancel = &w.cancel;
        ck_assert_int_eq(t.b->run(t.program, &r.batch), LQ_E_CANCELLED);
        ck_assert_int_eq(w.taps, 4); /* of 7 in this layer */
        ck_assert_int_eq(w.last_layer, 0);
        ck_assert_int_eq(t.b->run(t.program, &r.batch), LQ_E_CANCELLED); /* still set: nothing begins */
        ck_assert_int_eq(w.taps, 4);
        w.cancel = 0;
        ck_assert_int_eq(t.b->run(t.program, &r.batch), LQ_OK);
        ck_assert_int_eq(w.taps, 4 + LAYERS * 7);
        machine_close(&t);
    }
    model_close(&m);
}
END_TEST

/* Memory that raises `cancel` when it is first written to. */
static struct trap {
    uint8_t *p;
    size_t bytes;
    int cancel;
} trap;
static void sprung(int sig, siginfo_t *info, void *context) {
    const uint8_t *at = info->si_addr;
    Q_UNUSED(sig);
    Q_UNUSED(context);
    if (at < trap.p || at >= trap.p + trap.bytes || mprotect(trap.p, trap.bytes, PROT_READ | PROT_WRITE) != 0) _exit(9);
    __atomic_store_n(&trap.cancel, 1, __ATOMIC_RELAXED);
}
static void set_trap(size_t bytes) {
    const struct sigaction act = {.sa_sigaction = sprung, .sa_flags = SA_SIGINFO};
    trap.bytes = q_round_up(bytes, (uint64_t)sysconf(_SC_PAGESIZE));
    trap.p = mmap(NULL, trap.bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(trap.p != MAP_FAILED && sigaction(SIGSEGV, &act, NULL) == 0);
    trap.cancel = 0;
}

/* A request that comes while a step runs ends it: what has not been begun of it stays undone. In the output matrix,
 * behind which no layer ends. One thread: others of the pool block signals. */
START_TEST(cancel_stops_within_the_output_matrix) {
    model m;
    machine t;
    run r;
    model_open(&m, false);
    machine_open(&t, &m, NULL, 1);
    set_trap(TOKENS * VOCAB * sizeof(float));
    run_init(&r, 0, TOKENS, (float *)(void *)trap.p);
    r.batch.cancel = &trap.cancel;
    ck_assert_int_eq(t.b->run(t.program, &r.batch), LQ_E_CANCELLED);
    int left = 0;
    for (int i = 0; i < TOKENS * VOCAB; i++) left += r.batch.logits[i] == 0;
    ck_assert_int_ge(left, TOKENS * VOCAB / 2); /* one of several pieces was done */
    trap.cancel = 0;
    ck_assert_int_eq(t.b->run(t.program, &r.batch), LQ_OK);
    for (int i = 0; i < TOKENS * VOCAB; i++) ck_assert(r.batch.logits[i] != 0);
    signal(SIGSEGV, SIG_DFL);
    ck_assert_int_eq(munmap(trap.p, trap.bytes), 0);
    machine_close(&t);
    model_close(&m);
}
END_TEST

/* And as a layer stores its keys. */
START_TEST(cancel_stops_within_a_layer) {
    model m;
    machine t;
    run r;
    model_open(&m, false);
    machine_open(&t, &m, NULL, 1);
    t.b->release(t.program);
    set_trap(t.kv.bytes);
    const q_buffer kv = {.host = trap.p, .device = (uint64_t)(uintptr_t)trap.p, .bytes = t.kv.bytes};
    ck_assert_int_eq(t.b->compile(t.dev, &m.plan, 0, &kv, NULL, 1, &t.program), LQ_OK);
    run_init(&r, 0, TOKENS, all_a);
    watch w = {.n = TOKENS, .m = &m, .cancel_at = -1};
    r.batch.cancel = &trap.cancel;
    r.batch.tap = on_tap;
    r.batch.tap_user = &w;
    ck_assert_int_eq(t.b->run(t.program, &r.batch), LQ_E_CANCELLED);
    ck_assert(trap.cancel);
    ck_assert_int_eq(w.taps, 3); /* of the layer's products those before attention */
    signal(SIGSEGV, SIG_DFL);
    machine_close(&t);
    ck_assert_int_eq(munmap(trap.p, trap.bytes), 0);
    model_close(&m);
}
END_TEST

/* A plan cut where its first layer ends: the segments, each a program with memory of its own, hand slot 1 on and give
 * what one program gives. */
START_TEST(segments_add_up) {
    static float rows[TOKENS * DIM];
    static const int32_t one[TOKENS] = {TOKENS};
    model m;
    run r;
    machine t;
    q_program *second = NULL;
    q_buffer kv;
    model_open(&m, false);
    evaluate(&m, NULL, 2, one, all_a);
    int32_t cut = 0;
    while (m.insts[cut].layer < 1) cut++;
    m.segments[0].last = m.segments[1].first = cut;
    m.segments[1].last = m.n_insts;
    m.plan.n_segments = 2;
    machine_open(&t, &m, NULL, 2);
    ck_assert_int_eq(t.b->alloc(t.dev, m.pool.page_bytes * m.pool.pages, &kv), LQ_OK);
    ck_assert_int_eq(t.b->compile(t.dev, &m.plan, 1, &kv, NULL, 1, &second), LQ_OK);
    ck_assert_str_eq(t.b->kernel_name(t.program, cut), "");
    ck_assert_str_ne(t.b->kernel_name(second, cut), "");
    run_init(&r, 0, TOKENS, all_b);
    r.batch.y = rows;
    ck_assert_int_eq(t.b->run(t.program, &r.batch), LQ_OK);
    r.batch.y = NULL;
    ck_assert_int_eq(t.b->run(second, &r.batch), LQ_E_INTERNAL); /* it begins with hidden rows */
    r.batch.x = rows;
    ck_assert_int_eq(t.b->run(second, &r.batch), LQ_OK);
    ck_assert_int_eq(memcmp(all_a, all_b, sizeof all_a), 0);
    ck_assert_uint_eq(t.b->traffic(t.program).border_bytes, sizeof rows);
    ck_assert_uint_eq(t.b->traffic(second).border_bytes, sizeof rows);
    r.batch.n = TOKENS + 1;
    ck_assert_int_eq(t.b->run(second, &r.batch), LQ_E_INTERNAL);
    r.batch.n = TOKENS, r.batch.n_seqs = 2;
    ck_assert_int_eq(t.b->run(second, &r.batch), LQ_E_INTERNAL);
    t.b->release(second);
    t.b->free(t.dev, &kv);
    machine_close(&t);
    model_close(&m);
}
END_TEST

START_TEST(device_describes_itself_and_refuses_nonsense) {
    q_device *dev = NULL;
    q_device_options o = {.isa = "no such"};
    ck_assert_uint_eq(q_backend_cpu.probe(), 1);
    ck_assert_int_eq(q_backend_cpu.open(0, &o, &dev), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "\"no such\" in this build, which has scalar"));
    ck_assert_int_eq(q_backend_cpu.open(1, NULL, &dev), LQ_E_ARG);
    ck_assert_ptr_null(dev);
    o = (q_device_options){.isa = "scalar", .threads = 3};
    ck_assert_int_eq(q_backend_cpu.open(0, &o, &dev), LQ_OK);
    lq_device_info info = {.size = sizeof info};
    q_backend_cpu.info(dev, &info);
    ck_assert_str_eq(info.name, "cpu:0");
    ck_assert_str_eq(info.isa, "scalar");
    ck_assert_ptr_nonnull(strstr(info.description, ", scalar"));
    ck_assert_uint_eq(info.threads, 3);
    ck_assert_uint_gt(info.memory, 0);
    q_buffer a, b;
    char text[8];
    ck_assert_int_eq(q_backend_cpu.alloc(dev, 8, &a), LQ_OK);
    ck_assert_int_eq(q_backend_cpu.alloc(dev, 8, &b), LQ_OK);
    ck_assert_int_eq(q_backend_cpu.write(dev, &a, 0, "1234567", 8), LQ_OK);
    ck_assert_int_eq(q_backend_cpu.copy(dev, &b, 0, &a, 0, 8), LQ_OK);
    ck_assert_int_eq(q_backend_cpu.read(dev, &b, 0, text, 8), LQ_OK);
    ck_assert_str_eq(text, "1234567");
    ck_assert_int_eq(q_backend_cpu.read(dev, &b, 1, text, 8), LQ_E_INTERNAL);
    ck_assert_int_eq(q_backend_cpu.write(dev, &b, UINT64_MAX, "x", 2), LQ_E_INTERNAL);
    q_backend_cpu.free(dev, &a);
    q_backend_cpu.free(dev, &b);
    q_backend_cpu.close(dev);
    q_backend_cpu.close(NULL);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("cpu");
    TCase *t = tcase_create("cpu");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, threads_and_chunks_do_not_change_a_bit);
    tcase_add_test(t, every_rung_agrees_with_the_reference);
    tcase_add_test(t, masked_instruction_sets_do_not_run);
    tcase_add_test(t, kernels_are_chosen_and_named);
    tcase_add_test(t, measured_bytes_are_allocated_and_runs_allocate_none);
    tcase_add_test(t, failed_allocations_are_reported_and_leave_nothing);
    tcase_add_test(t, tap_sees_the_input_of_every_product);
    tcase_add_test(t, cancel_stops_at_the_next_product);
    tcase_add_test(t, cancel_stops_within_the_output_matrix);
    tcase_add_test(t, cancel_stops_within_a_layer);
    tcase_add_test(t, segments_add_up);
    tcase_add_test(t, device_describes_itself_and_refuses_nonsense);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
