/* test_backend_life.c: what a device of any backend is beside its operations: buffers, programs side by side, segments,
 * cancellation, refused memory, and that nothing is left of any of it.
 *
 * By the table of functions of backend.h alone, on every device of every backend (help_backend.h). */
#include <pthread.h>

#include "help_backend.h"

/* Drivers keep what they allocate until the process ends; our own blocks are counted by help_backend.c. What no
 * allocator can give is asked for on purpose. */
T_ASAN_OPTIONS("detect_leaks=0:allocator_may_return_null=1")

/* Layers of products, each of which adds to what the next one reads, and logits. */
static void make_plan(st *t, uint64_t seed, int layers) {
    enum { WIDTH = 64, WIDE = 96, VOCAB = 50 };
    st_open(t, seed);
    const q_view x = st_in(t, 1, WIDTH, WIDTH, ST_PLAIN), h = st_out(t, 1, WIDE, WIDE);
    for (int i = 0; i < layers; i++) {
        q_weight *up = st_weight(t, i % 2 ? "f16" : "q8_0", WIDE, WIDTH, 1, ST_W_NORMAL);
        st_add(t, (q_inst){.op = Q_OP_MATMUL, .x = x, .y = h, .w = up, .b = st_vector(t, WIDE, 1, 0, 1)});
        st_add(t, (q_inst){.op = Q_OP_MATMUL, .x = h, .y = x, .add = 1,
                           .w = st_weight(t, "q5_1", WIDTH, WIDE, 1, ST_W_TINY)});
    }
    st_add(t, (q_inst){.op = Q_OP_HEAD, .out = 1, .x = x, .w = st_weight(t, "f32", VOCAB, WIDTH, 1, ST_W_NORMAL)});
    st_ready(t, false);
    for (int32_t i = 0; i < t->n_insts - 1; i++) t->insts[i].layer = i / 2;
    t->plan.n_layers = layers;
}

/* --------------------------------------------------------------------------------------------------------- buffers */

static void fill_bytes(uint8_t *p, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)t_rand(&seed);
}

static void check_ranges(st_device *d, q_buffer *a, q_buffer *b) {
    const q_backend *be = d->be;
    uint8_t byte[4] = {1, 2, 3, 4};
    static const struct { uint64_t at, n; } wrong[] = {{1000, 1}, {999, 2}, {0, 1001}, {UINT64_MAX, 1}, {UINT64_MAX, 2},
                                                       {1, UINT64_MAX}, {UINT64_MAX - 1, 4}, {1u << 31, 4}};
    for (size_t i = 0; i < Q_COUNT(wrong); i++) {
        ck_assert_int_eq(be->write(d->dev, a, wrong[i].at, byte, wrong[i].n), LQ_E_INTERNAL);
        ck_assert_int_eq(be->read(d->dev, a, wrong[i].at, byte, wrong[i].n), LQ_E_INTERNAL);
        ck_assert_int_eq(be->copy(d->dev, a, wrong[i].at, b, 0, wrong[i].n), LQ_E_INTERNAL);
        ck_assert_int_eq(be->copy(d->dev, b, 0, a, wrong[i].at, wrong[i].n), LQ_E_INTERNAL);
    }
    ck_assert_int_eq(be->write(d->dev, a, 1000, byte, 0), LQ_OK);
    ck_assert_int_eq(be->read(d->dev, a, 1000, byte, 0), LQ_OK);
    ck_assert_int_eq(be->copy(d->dev, a, 1000, b, 0, 0), LQ_OK);
    ck_assert(byte[0] == 1 && byte[3] == 4);
}

static void buffers_on(st_device *d, void *user) {
    enum { BYTES = 5003 };
    const q_backend *be = d->be;
    static uint8_t want[BYTES], got[BYTES], piece[BYTES];
    q_buffer a = {0}, b = {0};
    (void)user;
    memset(want, 0, sizeof want);
    ck_assert_int_eq(be->alloc(d->dev, 1000, &a), LQ_OK);
    ck_assert_int_eq(be->alloc(d->dev, BYTES, &b), LQ_OK);
    ck_assert_uint_eq(a.bytes, 1000);
    ck_assert(a.device != 0 && b.device != 0);
    ck_assert(a.device + 1000 <= b.device || b.device + BYTES <= a.device);
    ck_assert_uint_ge(be->alloc_bytes(d->dev, BYTES), BYTES);
    check_ranges(d, &a, &b);
    ck_assert_int_eq(be->read(d->dev, &b, 0, got, BYTES), LQ_OK);
    ck_assert_mem_eq(got, want, BYTES); /* zeros */
    uint64_t seed = 5;
    for (int turn = 0; turn < 60; turn++) { /* any offset and length; the source is overwritten at once */
        const size_t at = t_rand(&seed) % BYTES, n = t_rand(&seed) % (turn % 3 ? 40 : BYTES - at);
        if (at + n > BYTES) continue;
        fill_bytes(piece, n, seed);
        memcpy(want + at, piece, n);
        ck_assert_int_eq(be->write(d->dev, &b, at, piece, n), LQ_OK);
        memset(piece, 0xEE, n);
    }
    ck_assert_int_eq(be->read(d->dev, &b, 3, got + 3, BYTES - 7), LQ_OK); /* without a flush */
    ck_assert_mem_eq(got + 3, want + 3, BYTES - 7);
    ck_assert_int_eq(be->copy(d->dev, &a, 11, &b, 4001, 777), LQ_OK);
    ck_assert_int_eq(be->flush(d->dev), LQ_OK);
    ck_assert_int_eq(be->read(d->dev, &a, 0, got, 1000), LQ_OK);
    for (int i = 0; i < 1000; i++) ck_assert_uint_eq(got[i], i < 11 || i >= 788 ? 0 : want[4001 + i - 11]);
    be->free(d->dev, &a);
    be->free(d->dev, &b);
}

START_TEST(buffers_hold_what_was_written) {
    st_each_device(buffers_on, NULL);
}
END_TEST

/* Larger than any block that bytes are staged in, written in odd pieces. */
static void large_on(st_device *d, void *user) {
    enum { BYTES = (T_SLOW ? 20 << 20 : 69 << 20) + 13, LARGEST = 9 << 20 };
    static uint8_t piece[LARGEST], want[LARGEST];
    q_buffer b;
    (void)user;
    ck_assert_int_eq(d->be->alloc(d->dev, BYTES, &b), LQ_OK);
    for (int reading = 0; reading < 2; reading++) {
        uint64_t seed = 77;
        for (uint64_t at = 0, n; at < BYTES; at += n) {
            n = t_rand(&seed) % (t_rand(&seed) % 4 ? 70001 : LARGEST) + 1;
            n = Q_MIN(n, BYTES - at);
            for (uint64_t i = 0; i < n; i++) want[i] = (uint8_t)((at + i) * 2654435761u >> 13);
            if (reading) {
                ck_assert_int_eq(d->be->read(d->dev, &b, at, piece, n), LQ_OK);
                ck_assert_mem_eq(piece, want, n);
            } else {
                memcpy(piece, want, n);
                ck_assert_int_eq(d->be->write(d->dev, &b, at, piece, n), LQ_OK);
                memset(piece, 0, n);
            }
        }
        ck_assert_int_eq(d->be->flush(d->dev), LQ_OK);
    }
    d->be->free(d->dev, &b);
}

START_TEST(large_buffers_are_written_in_pieces) {
    st_each_device(large_on, NULL);
}
END_TEST

static void many_on(st_device *d, void *user) {
    enum { N = 60 };
    q_buffer b[N];
    (void)user;
    for (int i = 0; i < N; i++) ck_assert_int_eq(d->be->alloc(d->dev, 1 + 999 * (uint64_t)i, &b[i]), LQ_OK);
    for (int i = 0; i < N; i++) {
        const int j = i * 23 % N; /* in no order */
        uint32_t v = (uint32_t)j, w = 0;
        const uint64_t n = Q_MIN(b[j].bytes, 4);
        ck_assert_int_eq(d->be->write(d->dev, &b[j], b[j].bytes - n, &v, n), LQ_OK);
        ck_assert_int_eq(d->be->read(d->dev, &b[j], b[j].bytes - n, &w, n), LQ_OK);
        ck_assert_uint_eq(w, v);
    }
    for (int i = 0; i < N; i++) d->be->free(d->dev, &b[i * 7 % N]);
    const uint64_t most = d->be->alloc_most(d->dev);
    q_buffer none = {.bytes = 3};
    ck_assert_uint_ge(most, 16 << 20);
    ck_assert_int_eq(d->be->alloc(d->dev, most + 1, &none), LQ_E_NOMEM);
    ck_assert_msg(strpbrk(lq_error_detail(), "0123456789") != NULL, "no numbers: %s", lq_error_detail());
    ck_assert_int_eq(d->be->alloc(d->dev, UINT64_MAX - 7, &none), LQ_E_NOMEM);
    ck_assert(none.bytes == 3 || none.bytes == 0);
}

START_TEST(buffers_come_and_go_in_any_order) {
    st_each_device(many_on, NULL);
}
END_TEST

/* -------------------------------------------------------------------------------------------------------- programs */

static void refusals_on(st_device *d, void *user) {
    st *t = (st *)user;
    st_program p;
    st_batch b;
    st_compile(&p, t, d, 0);
    st_batch_open(&b, t, 5, 2, 0);
    const q_batch good = b.b;
    q_batch wrong[8];
    for (size_t i = 0; i < Q_COUNT(wrong); i++) wrong[i] = good;
    wrong[0].n = 0, wrong[1].n = -1, wrong[2].n = ST_COLUMNS + 1, wrong[3].n_out = ST_OUTS + 1, wrong[4].n_out = -1;
    wrong[5].n_seqs = 0, wrong[6].n_seqs = ST_SEQS + 1, wrong[7].x = NULL;
    for (size_t i = 0; i < Q_COUNT(wrong); i++) {
        ck_assert_msg(d->be->run(p.program, &wrong[i]) == LQ_E_INTERNAL, "%s ran wrong batch %zu", d->be->name, i);
        ck_assert_int_gt((int)strlen(lq_error_detail()), 10);
    }
    ck_assert_uint_eq(d->be->traffic(p.program).border_bytes, 0);
    st_check(&p, 5, 2, 0);
    q_traffic f = d->be->traffic(p.program);
    ck_assert_uint_eq(f.border_bytes, 2u * 5 * (uint64_t)t->widths[1] * 4); /* in and out */
    ck_assert_uint_ge(f.bytes, f.border_bytes);
    st_check(&p, 1, 0, 0);
    f = d->be->traffic(p.program);
    ck_assert_uint_eq(f.border_bytes, 2u * 6 * (uint64_t)t->widths[1] * 4);
    st_batch_free(&b);
    st_release(&p);
    d->be->release(NULL);
}

START_TEST(wrong_batches_are_refused_and_right_ones_counted) {
    static st t;
    make_plan(&t, 3, 2);
    st_each_device(refusals_on, &t);
    st_free(&t);
}
END_TEST

/* No logits wanted, no rows back: a step of prefill. */
static void silent_on(st_device *d, void *user) {
    st *t = (st *)user;
    st_program p;
    st_batch b;
    st_compile(&p, t, d, 0);
    st_batch_open(&b, t, 33, 0, 0);
    b.b.y = NULL, b.b.logits = NULL, b.b.out = NULL, b.b.draw = NULL, b.b.sampled = NULL;
    ck_assert_int_eq(d->be->run(p.program, &b.b), LQ_OK);
    ck_assert_int_eq(d->be->wait(p.program), LQ_OK);
    ck_assert_uint_eq(d->be->traffic(p.program).border_bytes, 33u * (uint64_t)t->widths[1] * 4);
    st_batch_free(&b);
    st_check(&p, 33, 9, 1);
    st_release(&p);
}

START_TEST(results_that_nobody_wants) {
    static st t;
    make_plan(&t, 4, 2);
    st_each_device(silent_on, &t);
    st_free(&t);
}
END_TEST

typedef struct canceller {
    int *flag;
    unsigned spins;
} canceller;
static void *cancel_soon(void *arg) {
    const canceller *c = (const canceller *)arg;
    for (volatile unsigned i = 0; i < c->spins; i++) continue;
    __atomic_store_n(c->flag, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void cancel_on(st_device *d, void *user) {
    st *t = (st *)user;
    st_program p;
    st_batch b;
    int flag = 1;
    st_compile(&p, t, d, 0);
    st_batch_open(&b, t, ST_COLUMNS, 9, 0);
    b.b.cancel = &flag;
    ck_assert_int_eq(st_run(&p, &b), LQ_E_CANCELLED);
    ck_assert_int_eq(st_run(&p, &b), LQ_E_CANCELLED); /* still set */
    flag = 0;
    ck_assert_int_eq(st_run(&p, &b), LQ_OK);
    for (unsigned spins = 1; spins < 3000000; spins = spins * 3 + 1) {
        canceller c = {&flag, spins};
        pthread_t thread;
        flag = 0;
        ck_assert_int_eq(pthread_create(&thread, NULL, cancel_soon, &c), 0);
        const lq_status s = st_run(&p, &b);
        pthread_join(thread, NULL);
        ck_assert_msg(s == LQ_OK || s == LQ_E_CANCELLED, "%s: %s", d->be->name, lq_error_detail());
        st_check(&p, 9, 3, 2); /* and the next batch knows nothing of it */
    }
    st_batch_free(&b);
    st_release(&p);
}

START_TEST(a_cancelled_batch_leaves_the_program_whole) {
    static st t;
    make_plan(&t, 5, 6);
    st_each_device(cancel_on, &t);
    st_free(&t);
}
END_TEST

/* ---- two threads */

typedef struct worker {
    st_program *p;
    st_batch *want; /* what it gives when alone */
    int32_t n;
    bool wrong;
} worker;
static void *work(void *arg) {
    worker *w = (worker *)arg;
    st_batch b;
    st_batch_open(&b, w->p->t, w->n, w->want->b.n_out, 1);
    for (int i = 0; i < 12; i++) {
        memset(b.logits, 0, (size_t)b.b.n_out * (size_t)w->p->t->plan.vocab * sizeof(float));
        if (w->p->d->be->run(w->p->program, &b.b) != LQ_OK || w->p->d->be->wait(w->p->program) != LQ_OK ||
            !st_same(w->p->t, &b, w->want))
            w->wrong = true;
    }
    st_batch_free(&b);
    return NULL;
}

static void threads_on(st_device *d, void *user) {
    st *t = (st *)user; /* two plans */
    st_program p[2];
    st_batch want[2];
    worker w[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        st_compile(&p[i], &t[i], d, 0);
        w[i] = (worker){&p[i], &want[i], i ? 1 : 33, false};
        st_batch_open(&want[i], &t[i], w[i].n, i ? 1 : 3, 1);
        ck_assert_int_eq(st_run(&p[i], &want[i]), LQ_OK);
    }
    for (int i = 0; i < 2; i++) ck_assert_int_eq(pthread_create(&threads[i], NULL, work, &w[i]), 0);
    q_buffer b; /* and this one writes and reads in the meantime */
    uint8_t data[3000], back[3000];
    ck_assert_int_eq(d->be->alloc(d->dev, sizeof data, &b), LQ_OK);
    for (uint64_t i = 0; i < 12; i++) {
        fill_bytes(data, sizeof data, i);
        ck_assert_int_eq(d->be->write(d->dev, &b, 0, data, sizeof data), LQ_OK);
        ck_assert_int_eq(d->be->read(d->dev, &b, 0, back, sizeof back), LQ_OK);
        ck_assert_mem_eq(data, back, sizeof data);
    }
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    d->be->free(d->dev, &b);
    for (int i = 0; i < 2; i++) {
        ck_assert_msg(!w[i].wrong, "%s: program %d gives something else beside another", d->be->name, i);
        st_batch_free(&want[i]);
    }
    st_release(&p[0]);
    st_release(&p[1]);
}

START_TEST(programs_run_side_by_side) {
    static st t[2];
    make_plan(&t[0], 6, 3);
    make_plan(&t[1], 7, 5);
    st_each_device(threads_on, t);
    st_free(&t[0]);
    st_free(&t[1]);
}
END_TEST

/* -------------------------------------------------------------------------------------------------------- segments */

/* A plan in two parts: the first on one device, the rest on another; hidden rows cross. */
static void halves(st *t, st_device *first, st_device *rest, const st_batch *want) {
    st_program a, b;
    st_batch got;
    char who[64];
    st_compile(&a, t, first, 0);
    st_compile(&b, t, rest, 1);
    st_batch_open(&got, t, want->b.n, want->b.n_out, 2);
    float *final = got.b.y, *rows = (float *)malloc((size_t)got.b.n * (size_t)t->widths[1] * sizeof(float));
    got.b.y = rows;
    ck_assert_int_eq(st_run(&a, &got), LQ_OK);
    got.b.x = rows, got.b.y = final;
    ck_assert_int_eq(st_run(&b, &got), LQ_OK);
    got.b.x = NULL;
    ck_assert_int_eq(rest->be->run(b.program, &got.b), LQ_E_INTERNAL); /* it begins with hidden rows */
    snprintf(who, sizeof who, "%s then %s", first->be->name, rest->be->name);
    st_compare(t, want, &got, who);
    free(rows);
    st_batch_free(&got);
    st_release(&a);
    st_release(&b);
}

static void segments_on(st_device *d, void *user) {
    st *t = (st *)user;
    st_device cpu;
    st_batch want;
    st_device_open(&cpu, q_backends[0], 0);
    static const int32_t columns[] = {1, 8, 40};
    for (size_t i = 0; i < Q_COUNT(columns); i++) {
        st_batch_open(&want, t, columns[i], 1, 2);
        st_reference(t, &want);
        halves(t, d, &cpu, &want);
        halves(t, &cpu, d, &want);
        halves(t, d, d, &want);
        st_batch_free(&want);
    }
    st_device_close(&cpu);
}

START_TEST(segments_add_up) {
    static st t;
    make_plan(&t, 8, 4);
    t.segments[0].last = t.segments[1].first = 4;
    t.segments[1].last = t.n_insts;
    t.plan.n_segments = 2;
    st_each_device(segments_on, &t);
    st_free(&t);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ opening, closing */

START_TEST(devices_describe_themselves) {
    for (uint32_t i = 0; i < q_backend_count(); i++) {
        const q_backend *be = q_backends[i];
        const uint32_t n = be->probe();
        q_device *none = NULL;
        ck_assert_uint_eq(be->probe(), n);
        const lq_status s = be->open(n, NULL, &none);
        ck_assert_msg(s == LQ_E_ARG || (n == 0 && s == LQ_E_UNSUPPORTED), "%s: number %u opens: %d", be->name, n,
                      (int)s);
        ck_assert_ptr_null(none);
        ck_assert_int_gt((int)strlen(lq_error_detail()), 10);
        be->close(NULL);
        for (uint32_t k = 0; k < n; k++) {
            st_device a, b;
            char name[32];
            snprintf(name, sizeof name, "%s:%u", be->name, k);
            st_device_open(&a, be, k);
            st_device_open(&b, be, k); /* twice; closed in this order and the other */
            lq_device_info info = {.size = sizeof info};
            be->info(a.dev, &info);
            ck_assert_str_eq(info.name, name);
            ck_assert_uint_gt(info.memory, 0);
            ck_assert(info.description[0] != 0);
            const q_need held = be->held(a.dev);
            ck_assert_uint_le(held.host, (uint64_t)a.count.bytes);
            if (!be->host_memory) ck_assert_uint_eq(held.host, (uint64_t)a.count.bytes);
            ck_assert((held.device > 0) == !be->host_memory);
            st_device_close(&a);
            st_device_close(&b);
            st_device_open(&a, be, k);
            st_device_open(&b, be, k);
            st_device_close(&b);
            st_device_close(&a);
        }
    }
}
END_TEST

/* The k-th allocation is refused, for every k, from opening the device to the end of a run. */
static lq_status life(st_device *d, const q_backend *be, uint32_t index, st *t) {
    const q_device_options o = {.alloc = &d->alloc, .threads = 2};
    q_buffer data = {0};
    q_program *p = NULL;
    st_batch b;
    lq_status s = be->open(index, &o, &d->dev);
    uint64_t bytes = 0;
    for (int32_t i = 0; i < t->n_weights; i++) bytes += q_round_up(t->sizes[i], 32);
    if (s == LQ_OK) s = be->alloc(d->dev, bytes, &data);
    for (int32_t i = 0; i < t->n_weights; i++) t->weights[i].device = data.device; /* any will do: all are read */
    if (s == LQ_OK) s = be->compile(d->dev, &t->plan, 0, NULL, NULL, 2, &p);
    if (s == LQ_OK) {
        st_batch_open(&b, t, 3, 1, 0);
        s = be->run(p, &b.b);
        if (s == LQ_OK) s = be->wait(p);
        st_batch_free(&b);
    }
    be->release(p);
    if (data.bytes) be->free(d->dev, &data);
    be->close(d->dev);
    for (int32_t i = 0; i < t->n_weights; i++) t->weights[i].device = 0;
    return s;
}

START_TEST(refused_memory_is_an_error_that_leaves_nothing) {
    static st t;
    make_plan(&t, 9, 1);
    for (uint32_t i = 0; i < q_backend_count(); i++)
        for (uint32_t n = 0; n < q_backends[i]->probe(); n++)
            for (long k = 1;; k++) {
                st_device d = {.be = q_backends[i], .count = {.fail_at = k}};
                d.alloc = st_counting(&d.count);
                const lq_status s = life(&d, d.be, n, &t);
                ck_assert_msg(s == (d.count.calls >= k ? LQ_E_NOMEM : LQ_OK), "%s, allocation %ld: %d, %s", d.be->name,
                              k, (int)s, lq_error_detail());
                ck_assert_msg(d.count.bytes == 0 && d.count.blocks == 0, "%s, allocation %ld: %ld blocks are left",
                              d.be->name, k, d.count.blocks);
                if (s == LQ_OK) break;
            }
    st_free(&t);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("backend_life");
    TCase *t = tcase_create("device");
    tcase_set_timeout(t, 240);
    tcase_add_test(t, buffers_hold_what_was_written);
    tcase_add_test(t, large_buffers_are_written_in_pieces);
    tcase_add_test(t, buffers_come_and_go_in_any_order);
    tcase_add_test(t, wrong_batches_are_refused_and_right_ones_counted);
    tcase_add_test(t, results_that_nobody_wants);
    tcase_add_test(t, a_cancelled_batch_leaves_the_program_whole);
    tcase_add_test(t, programs_run_side_by_side);
    tcase_add_test(t, segments_add_up);
    tcase_add_test(t, devices_describe_themselves);
    tcase_add_test(t, refused_memory_is_an_error_that_leaves_nothing);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
