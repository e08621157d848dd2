/* test_moe.c: mixtures of experts on the processor's kernels: the bits of kernels/ref in the same activation format,
 * for any number of threads and any cut of the columns, from the file's bytes and packed; experts that nobody chose are
 * not read. (RELU alone keeps bits: other activations are vec.h's own, and test_backend holds them to their bound.) */
#include "harness.h"

#include <sys/mman.h>
#include <unistd.h>

#include "../kernels/cpu/cpu.h"

extern const q_backend q_backend_cpu;

enum { DIM = 256, FF = 512, EXPERTS = 8, USED = 3, TOKENS = 41, WIDTH = DIM + 2 * USED, MOST_K = FF };

typedef struct mix {
    q_weight w[3], b[3]; /* gate, up, down */
    q_inst insts[2];
    q_segment segment;
    q_plan plan;
    int32_t widths[3], order[DIM];
    float x[TOKENS * WIDTH];
    uint64_t seed;
    void *packed[3];
} mix;

static void weights(mix *m, q_weight *w, const char *format, int32_t rows, int32_t k, int32_t matrices) {
    const q_format *f = q_format_find(format);
    uint64_t row_bytes;
    float row[MOST_K];
    ck_assert(q_row_bytes(f, (uint64_t)k, &row_bytes));
    uint8_t *data = (uint8_t *)malloc(row_bytes * (uint64_t)rows * (uint64_t)matrices);
    for (int64_t r = 0; r < (int64_t)rows * matrices; r++) {
        for (int32_t i = 0; i < k; i++) row[i] = t_normal(&m->seed) * 0.1f;
        q_encode_row(f, row, NULL, false, k, data + (uint64_t)r * row_bytes);
    }
    *w = (q_weight){.format = f, .data = data, .row_bytes = row_bytes, .matrix_bytes = row_bytes * (uint64_t)rows,
                    .rows = rows, .k = k, .matrices = matrices, .name = format};
}

typedef struct shape {
    const char *gate, *up, *down; /* no `up`: a plain activation */
    int32_t ff, bias, order, add;
} shape;

static void mix_open(mix *m, const shape *s) {
    memset(m, 0, sizeof *m);
    m->seed = 5;
    m->widths[1] = WIDTH, m->widths[2] = USED * FF;
    weights(m, &m->w[0], s->gate, s->ff, DIM, EXPERTS);
    if (s->up) weights(m, &m->w[1], s->up, s->ff, DIM, EXPERTS);
    weights(m, &m->w[2], s->down, DIM, s->ff, EXPERTS);
    for (int i = 0; i < 3; i++) weights(m, &m->b[i], i ? "f32" : "f16", 1, i == 2 ? DIM : s->ff, EXPERTS);
    for (int i = 0; i < DIM; i++) m->order[i] = i * 29 % DIM;
    if (s->order) m->w[0].order = m->order;
    const q_view x = {1, 0, 1, DIM, DIM}, z = {1, DIM, 1, 2 * USED, 2 * USED}, h = {2, 0, USED, s->ff, FF};
    m->insts[0] = (q_inst){.op = Q_OP_MOE_GLU, .kind = Q_ACT_RELU, .y = h, .x = x, .z = z, .w = &m->w[0],
                           .w2 = s->up ? &m->w[1] : NULL, .n_expert = EXPERTS, .n_used = USED};
    m->insts[1] = (q_inst){.op = Q_OP_MOE_DOWN, .add = (uint8_t)s->add, .y = x, .x = h, .z = z, .w = &m->w[2],
                           .n_expert = EXPERTS, .n_used = USED};
    if (s->bias) m->insts[0].b = &m->b[0], m->insts[0].b2 = s->up ? &m->b[1] : NULL, m->insts[1].b = &m->b[2];
    m->segment.last = 2;
    m->plan = (q_plan){.insts = m->insts, .n_insts = 2, .n_layers = 1, .slot_width = m->widths, .n_slots = 3,
                       .columns = TOKENS, .outs = 1, .vocab = 1, .segments = &m->segment, .n_segments = 1, .seqs = 1,
                       .context = TOKENS};
    for (int32_t c = 0; c < TOKENS; c++) {
        float *at = m->x + c * WIDTH;
        for (int i = 0; i < DIM; i++) at[i] = t_normal(&m->seed);
        for (int i = 0; i < USED; i++) { /* expert 7 is nobody's; 1 only the first column's */
            at[DIM + i] = (float)(c == 0 ? i : c % 3 == 0 ? 4 + i : (const int[]){0, 2, 3}[i]);
            at[DIM + USED + i] = t_normal(&m->seed);
        }
    }
    m->x[5 * WIDTH + DIM] = -3, m->x[5 * WIDTH + DIM + 1] = NAN; /* kept inside the table */
}
static void mix_close(mix *m) {
    for (int i = 0; i < 3; i++) {
        free((void *)(uintptr_t)m->w[i].data);
        free((void *)(uintptr_t)m->b[i].data);
        free(m->packed[i]);
    }
}

/* The activation format of a step's product with a weight. */
static const q_act *act_of(const char *kernel) {
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++)
        if (strcmp(q_cpu_kernels[i].name, kernel) == 0) return q_cpu_kernels[i].act;
    ck_abort_msg("%s is no product", kernel);
    return NULL;
}

static void reference(const mix *m, const q_act *const act[2], float *y) {
    static float hidden[TOKENS * USED * FF];
    float *const slots[] = {NULL, y, hidden};
    q_batch b = {.n = TOKENS};
    memcpy(y, m->x, sizeof m->x);
    for (int i = 0; i < 2; i++) {
        const size_t bytes = q_ref_scratch(&m->insts[i], TOKENS);
        const q_exec e = {.plan = &m->plan, .batch = &b, .slots = slots, .act = act[i],
                          .scratch = aligned_alloc(64, (bytes + 63) / 64 * 64),
                          .scratch_bytes = bytes};
        q_ops[m->insts[i].op].ref(&m->insts[i], &e, 0, m->insts[i].y.width);
        free(e.scratch);
    }
}

static void evaluate(q_device *dev, const mix *m, uint32_t threads, int32_t columns, const q_act *act[2], float *y) {
    static const int32_t zeros[TOKENS];
    q_program *p;
    const q_seq_ref ref = {0};
    ck_assert_int_eq(q_backend_cpu.compile(dev, &m->plan, 0, NULL, NULL, threads, &p), LQ_OK);
    for (int i = 0; i < 2; i++) act[i] = act_of(q_backend_cpu.kernel_name(p, i));
    for (int32_t at = 0; at < TOKENS; at += columns) {
        const q_batch b = {.n = Q_MIN(columns, TOKENS - at), .x = m->x + at * WIDTH, .y = y + at * WIDTH, .pos = zeros,
                           .seq = zeros, .seqs = &ref, .n_seqs = 1};
        ck_assert_int_eq(q_backend_cpu.run(p, &b), LQ_OK);
    }
    q_backend_cpu.release(p);
}

static void pack(q_device *dev, mix *m) {
    for (int i = 0; i < 3; i++) {
        q_weight *w = &m->w[i];
        const uint64_t bytes = w->data ? q_backend_cpu.pack_bytes(dev, i == 2 ? Q_OP_MOE_DOWN : Q_OP_MOE_GLU, w) : 0;
        if (!bytes) continue;
        m->packed[i] = aligned_alloc(64, (bytes + 63) / 64 * 64);
        q_backend_cpu.pack(dev, i == 2 ? Q_OP_MOE_DOWN : Q_OP_MOE_GLU, w, 0, (int64_t)w->rows * w->matrices,
                           m->packed[i]);
        w->packed = m->packed[i];
    }
}

static const shape shapes[] = {
    {"q4_k", "q4_k", "q6_k", FF, 0, 0, 1},       /* mixtral in Q4_K_M */
    {"q8_0", "f16", "q8_0", FF, 1, 0, 0},        /* biases, two formats of activations */
    {"mxfp4", "q8_0", "q4_0", 96, 0, 1, 1},      /* narrow experts, one weight in another order */
    {"f16", NULL, "bf16", FF - 32, 1, 0, 0},     /* a plain activation in floats */
    {"i8_row", "i8_row", "i8_row", 160, 0, 0, 1}
};

START_TEST(experts_have_the_bits_of_the_reference) {
    static float want[TOKENS * WIDTH], got[TOKENS * WIDTH];
    static mix m;
    const shape *s = &shapes[_i];
    const size_t step = T_SLOW || t_emulated() ? 3 : 1;
    const q_act *had[2] = {NULL, NULL}; /* what `want` was computed with */
    bool any = false;
    for (size_t i = 0; i < (size_t)Q_ISA_COUNT * 2; i++) {
        const bool packed = i & 1;
        const q_isa isa = (q_isa)(i / 2);
        const q_device_options o = {.threads = 8, .isa = q_isa_names[isa]};
        if (!q_isa_present(isa)) continue;
        const q_act *act[2];
        q_device *dev;
        mix_open(&m, s);
        ck_assert_int_eq(q_backend_cpu.open(0, &o, &dev), LQ_OK);
        if (packed) pack(dev, &m);
        evaluate(dev, &m, 1, TOKENS, act, got);
        if (!any || act[0] != had[0] || act[1] != had[1]) reference(&m, act, want);
        any = true, had[0] = act[0], had[1] = act[1];
        static const struct {
            uint32_t threads;
            int32_t columns;
        } ways[] = {{3, 7}, {1, TOKENS}, {2, TOKENS}, {2, 1}, {8, 2}, {8, 5}};
        for (size_t j = 0; j < Q_COUNT(ways); j += step) {
            memset(got, 0, sizeof got);
            evaluate(dev, &m, ways[j].threads, ways[j].columns, act, got);
            ck_assert_msg(memcmp(want, got, sizeof want) == 0, "%s %s %s%s, %s, %u threads, %d columns: other bits",
                          s->gate, s->up ? s->up : "-", s->down, packed ? " packed" : "", o.isa, ways[j].threads,
                          ways[j].columns);
        }
        q_backend_cpu.close(dev);
        mix_close(&m);
    }
}
END_TEST

/* One expert's weights cannot be read: a column that chose others does not notice. */
START_TEST(other_experts_are_not_read) {
    static mix m;
    static float y[TOKENS * WIDTH];
    const shape s = {"q8_0", "q8_0", "q8_0", FF, 0, 0, 0};
    const q_device_options o = {.threads = 2};
    const q_act *act[2];
    q_device *dev;
    mix_open(&m, &s);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (m.w[0].matrix_bytes + page - 1) / page * page;
    for (int i = 0; i < 3; i++) { /* each matrix in whole pages of its own, the last one shut */
        q_weight *w = &m.w[i];
        uint8_t *all =
            (uint8_t *)mmap(NULL, bytes * EXPERTS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ck_assert_ptr_ne(all, MAP_FAILED);
        for (size_t x = 0; x < EXPERTS; x++) memcpy(all + x * bytes, w->data + x * w->matrix_bytes, w->matrix_bytes);
        ck_assert_int_eq(mprotect(all + (EXPERTS - 1) * bytes, bytes, PROT_NONE), 0);
        free((void *)(uintptr_t)w->data);
        w->data = all;
        w->matrix_bytes = bytes;
    }
    ck_assert_int_eq(q_backend_cpu.open(0, &o, &dev), LQ_OK);
    evaluate(dev, &m, 2, TOKENS, act, y);
    evaluate(dev, &m, 2, 1, act, y);
    q_backend_cpu.close(dev);
    for (int i = 0; i < 3; i++) {
        munmap((void *)(uintptr_t)m.w[i].data, bytes * EXPERTS);
        m.w[i].data = NULL;
    }
    mix_close(&m);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("moe");
    TCase *t = tcase_create("moe");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, experts_have_the_bits_of_the_reference, 0, T_TSAN ? 1 : (int)Q_COUNT(shapes));
    tcase_add_test(t, other_experts_are_not_read);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
