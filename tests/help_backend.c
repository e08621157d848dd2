/* help_backend.c: see help_backend.h. */
#include <math.h>

#include "help_backend.h"
#include "help_kv.h"

/* Check writes down where each assertion stands: too slow for one per value. */
#define VALUE_MSG(ok, ...)                    \
    do {                                      \
        if (!(ok)) ck_abort_msg(__VA_ARGS__); \
    } while (0)

static void *must(void *p) {
    if (!p) abort();
    return p;
}
static uint64_t below(uint64_t *seed, uint64_t n) { return t_rand(seed) % n; }

/* ------------------------------------------------------------------------------------------------------- allocator */

static void *count_alloc(void *user, size_t bytes, size_t align) {
    st_count *c = (st_count *)user;
    if (__atomic_add_fetch(&c->calls, 1, __ATOMIC_SEQ_CST) == c->fail_at) return NULL;
    void *p = q_alloc_libc.alloc(NULL, bytes, align);
    if (!p) return NULL;
    __atomic_add_fetch(&c->bytes, (long)bytes, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&c->blocks, 1, __ATOMIC_SEQ_CST);
    return p;
}
static void count_free(void *user, void *p, size_t bytes) {
    st_count *c = (st_count *)user;
    __atomic_sub_fetch(&c->bytes, (long)bytes, __ATOMIC_SEQ_CST);
    __atomic_sub_fetch(&c->blocks, 1, __ATOMIC_SEQ_CST);
    q_alloc_libc.free(NULL, p, bytes);
}
q_alloc st_counting(st_count *c) { return (q_alloc){count_alloc, count_free, c}; }

/* ------------------------------------------------------------------------------------------------------ the plan */

void st_open(st *t, uint64_t seed) {
    memset(t, 0, sizeof *t);
    t->seed = seed;
    t->plan = (q_plan){.insts = t->insts, .slot_width = t->widths, .n_slots = 2, .columns = ST_COLUMNS, .outs = ST_OUTS,
                       .kv = t->pools, .segments = t->segments, .n_segments = 1, .seqs = ST_SEQS,
                       .f32_activations = true};
}

void st_free(st *t) {
    for (int32_t i = 0; i < t->n_weights; i++) free(t->blocks[i]);
    for (int32_t i = 0; i < t->n_freqs; i++) free(t->freqs[i]);
}

static int32_t room(st *t, int32_t floats, st_fill fill, int32_t n_used, int32_t n_expert) {
    const int32_t at = t->widths[1] + (t->widths[1] & 1 ? 0 : 1) + 2 * (int32_t)below(&t->seed, 2);
    ck_assert_int_lt(t->n_regions, ST_REGIONS);
    t->regions[t->n_regions++] = (st_region){at, floats, fill, n_used, n_expert};
    t->widths[1] = at + floats;
    return at;
}

q_view st_in(st *t, int32_t heads, int32_t width, int32_t stride, st_fill fill) {
    return (q_view){1, room(t, (heads - 1) * stride + width, fill, 0, 0), heads, width, stride};
}
q_view st_choice(st *t, int32_t n_used, int32_t n_expert, st_fill fill) {
    return (q_view){1, room(t, 2 * n_used, fill, n_used, n_expert), 1, 2 * n_used, 2 * n_used};
}
q_view st_out(st *t, int32_t heads, int32_t width, int32_t stride) {
    return st_in(t, heads, width, stride, ST_PLAIN);
}

/* Where the halves that scale a block lie. Random bytes there would decode to infinities. */
static const struct { const char *format; int at[2]; } scales[] = {
    {"q8_0", {0, -1}}, {"q4_0", {0, -1}}, {"q4_k", {0, 2}}, {"q6_k", {208, -1}}, {"q4_1", {0, 2}},
    {"q5_0", {0, -1}}, {"q5_1", {0, 2}}, {"iq4_nl", {0, -1}}, {"iq4_xs", {0, -1}}, {"q2_k", {80, 82}},
    {"q3_k", {108, -1}}, {"q5_k", {0, 2}},
};

static void fill_row(const q_format *f, st_weights look, int64_t r, int64_t k, uint64_t row_bytes, uint8_t *to,
                     uint64_t *seed) {
    const int *at = NULL;
    for (size_t i = 0; i < Q_COUNT(scales); i++)
        if (strcmp(scales[i].format, f->name) == 0) at = scales[i].at;
    if ((look == ST_W_BYTES || look == ST_W_TINY) && at) {
        for (uint64_t i = 0; i < row_bytes; i++) to[i] = (uint8_t)t_rand(seed);
        for (int64_t b = 0; b < k / f->weights; b++)
            for (int j = 0; j < 2 && at[j] >= 0; j++)
                q_store16(to + b * f->bytes + at[j], look == ST_W_TINY ? (uint16_t)(t_rand(seed) & 0x83FF)
                                                                       : q_f32_to_half(t_normal(seed)));
        return;
    }
    static const float odd[] = {1, 1e-3f, 0, 30, 1};
    const float scale = look == ST_W_ODD ? odd[r % 5] : look == ST_W_TINY ? 2e-6f : 1;
    float *row = must(malloc((size_t)k * sizeof(float)));
    for (int64_t i = 0; i < k; i++)
        row[i] = look == ST_W_GRID ? (float)below(seed, 9) * 0.25f - 1.0f : t_normal(seed) * scale;
    if (look == ST_W_GRID && r % 5 == 4) q_decode_row(f, to - row_bytes, k, row);
    q_encode_row(f, row, NULL, false, k, to);
    free(row);
}

static q_weight *weight(st *t, const q_format *f, int32_t rows, int32_t k, int32_t matrices, int32_t skip) {
    uint64_t row_bytes;
    ck_assert_ptr_nonnull(f);
    ck_assert_msg(q_row_bytes(f, (uint64_t)k, &row_bytes), "no row of %d weights in %s", k, f->name);
    ck_assert_int_lt(t->n_weights, ST_WEIGHTS);
    const int32_t i = t->n_weights++;
    t->sizes[i] = row_bytes * (uint64_t)(skip + rows * matrices);
    t->blocks[i] = must(malloc(t->sizes[i]));
    memset(t->blocks[i], 0x5A, t->sizes[i]);
    t->weights[i] = (q_weight){.format = f, .rows = rows, .k = k, .matrices = matrices, .name = "w",
                               .data = t->blocks[i] + row_bytes * (uint64_t)skip, .row_bytes = row_bytes,
                               .matrix_bytes = matrices > 1 ? row_bytes * (uint64_t)rows : 0};
    return &t->weights[i];
}

/* Some begin one row or more into their tensor, as the parts of joined tensors do. */
q_weight *st_weight(st *t, const char *format, int32_t rows, int32_t k, int32_t matrices, st_weights look) {
    q_weight *w = weight(t, q_format_find(format), rows, k, matrices, (int32_t)below(&t->seed, 3));
    uint8_t *to = t->blocks[w - t->weights] + (w->data - t->blocks[w - t->weights]);
    for (int64_t r = 0; r < (int64_t)rows * matrices; r++)
        fill_row(w->format, look, r, k, w->row_bytes, to + (uint64_t)r * w->row_bytes, &t->seed);
    return w;
}

q_weight *st_vector(st *t, int32_t n, int32_t matrices, float middle, float spread) {
    q_weight *w = weight(t, q_format_find("f32"), 1, n, matrices, 0);
    for (int64_t i = 0; i < (int64_t)n * matrices; i++)
        q_store32(t->blocks[w - t->weights] + 4 * i, q_f32_bits(middle + spread * t_normal(&t->seed)));
    return w;
}

const float *st_angles(st *t, int32_t rot, float base) {
    float *f = must(malloc((size_t)(rot / 2) * sizeof(float)));
    for (int32_t i = 0; i < rot / 2; i++) f[i] = powf(base, -2.0f * (float)i / (float)rot);
    return t->freqs[t->n_freqs++] = f;
}

int64_t st_state(st *t, int32_t floats) {
    const int64_t at = (int64_t)t->segments[0].state_floats;
    t->state_owner[t->n_states] = t->n_insts;
    t->state_floats_of[t->n_states++] = floats;
    t->segments[0].state_floats += (uint64_t)floats;
    return at;
}

q_kv_pool *st_pool(st *t, int32_t layers, int32_t heads, int32_t k_width, int32_t v_width, const char *k_form,
                   const char *v_form, int32_t window) {
    ck_assert_int_lt(t->plan.n_kv, ST_POOLS);
    q_kv_pool *p = &t->pools[t->plan.n_kv++];
    *p = (q_kv_pool){.layers = layers, .heads = heads, .window = window};
    t_kv_forms_of(p, q_kv_kind_find(k_form), q_kv_kind_find(v_form), k_width, v_width);
    return p;
}

q_inst *st_add(st *t, q_inst s) {
    ck_assert_int_lt(t->n_insts, ST_STEPS);
    t->insts[t->n_insts] = s;
    return &t->insts[t->n_insts++];
}

void st_ready(st *t, bool groups) {
    enum { LAYER = 4 };
    int32_t body = 0;
    while (body < t->n_insts && t->insts[body].op != Q_OP_HEAD) body++;
    t->plan.n_insts = t->n_insts;
    t->plan.n_layers = (body + LAYER - 1) / LAYER;
    for (int32_t i = 0; i < t->n_insts; i++) {
        t->insts[i].layer = i < body ? i / LAYER : t->plan.n_layers;
        if (groups && i < body) t->insts[i].group = (uint8_t)(1 + i / LAYER % 200);
        if (t->insts[i].op == Q_OP_HEAD) t->plan.vocab = t->insts[i].w->rows;
        if (t->insts[i].op == Q_OP_EMBED && t->by_ids) t->plan.vocab = t->insts[i].w->rows;
    }
    t->segments[0].last = t->n_insts;
    t->plan.context = (t->past + 200 + Q_KV_TOKENS - 1) / Q_KV_TOKENS * Q_KV_TOKENS;
    for (int32_t i = 0; i < t->plan.n_kv; i++)
        t->pools[i].pages = (uint32_t)(ST_SEQS * (t->plan.context / Q_KV_TOKENS) + 1);
    for (int32_t i = 1; i < t->plan.n_slots; i++) t->widths[i] = Q_MAX(t->widths[i], 1);
}

/* ------------------------------------------------------------------------------------------------------- a device */

static lq_status open_rung(st_device *d, const q_backend *be, uint32_t index, const char *isa) {
    memset(d, 0, sizeof *d);
    d->be = be;
    d->index = index;
    d->alloc = st_counting(&d->count);
    const q_device_options o = {.alloc = &d->alloc, .threads = 2, .isa = isa};
    return be->open(index, &o, &d->dev);
}

void st_device_open(st_device *d, const q_backend *be, uint32_t index) {
    const lq_status s = open_rung(d, be, index, NULL);
    ck_assert_msg(s == LQ_OK, "%s:%u does not open: %s", be->name, index, lq_error_detail());
}

void st_device_close(st_device *d) {
    d->be->close(d->dev);
    ck_assert_msg(d->count.blocks == 0 && d->count.bytes == 0, "%s:%u: %ld blocks of %ld bytes are left", d->be->name,
                  d->index, d->count.blocks, d->count.bytes);
}

void st_each_device(void (*fn)(st_device *d, void *user), void *user) {
    for (uint32_t b = 0; b < q_backend_count(); b++)
        for (uint32_t i = 0; i < q_backends[b]->probe(); i++) {
            st_device d;
            st_device_open(&d, q_backends[b], i);
            fn(&d, user);
            st_device_close(&d);
        }
}

void st_each_rung(void (*fn)(st_device *d, void *user), void *user) {
    static const char *const names[] = {
#define ISA(name, ...) #name,
#include "../kernels/cpu/isa.def"
#undef ISA
    };
    for (size_t i = 1; i + 1 < Q_COUNT(names); i++) {
        st_device d;
        if (open_rung(&d, q_backends[0], 0, names[i]) != LQ_OK) continue;
        fn(&d, user);
        st_device_close(&d);
    }
}

static const q_weight *moved(const st_program *p, const q_weight *w) {
    return w ? &p->weights[w - p->t->weights] : NULL;
}

/* The weights in the device's memory, written in two odd pieces each; there is nothing of them elsewhere then. */
static void upload(st_program *p) {
    const q_backend *be = p->d->be;
    const st *t = p->t;
    uint64_t at = 0;
    if (be->host_memory || t->n_weights == 0) return;
    for (int32_t i = 0; i < t->n_weights; i++) at += q_round_up(t->sizes[i], 32);
    ck_assert_int_eq(be->alloc(p->d->dev, at, &p->data), LQ_OK);
    at = 0;
    for (int32_t i = 0; i < t->n_weights; i++) {
        const uint64_t cut = t->sizes[i] / 3, n = t->sizes[i];
        ck_assert_int_eq(be->write(p->d->dev, &p->data, at + cut, t->blocks[i] + cut, n - cut), LQ_OK);
        ck_assert_int_eq(be->write(p->d->dev, &p->data, at, t->blocks[i], cut), LQ_OK);
        p->weights[i].data = NULL;
        p->weights[i].device = p->data.device + at + (uint64_t)(t->weights[i].data - t->blocks[i]);
        at += q_round_up(n, 32);
    }
    ck_assert_int_eq(be->flush(p->d->dev), LQ_OK);
}

void st_compile(st_program *p, st *t, st_device *d, int32_t segment) {
    memset(p, 0, sizeof *p);
    p->t = t, p->d = d, p->segment = segment;
    memcpy(p->insts, t->insts, sizeof p->insts);
    memcpy(p->weights, t->weights, sizeof p->weights);
    p->plan = t->plan;
    p->plan.insts = p->insts;
    const q_segment *part = &p->plan.segments[segment];
    for (int32_t i = 0; i < t->n_insts; i++) {
        q_inst *s = &p->insts[i];
        s->w = moved(p, s->w), s->w2 = moved(p, s->w2), s->w3 = moved(p, s->w3), s->b = moved(p, s->b);
        s->b2 = moved(p, s->b2), s->lora_a = moved(p, s->lora_a), s->lora_b = moved(p, s->lora_b);
    }
    upload(p);
    for (int32_t i = part->first; i < part->last; i++) {
        const char *why = d->be->supports(d->dev, &p->insts[i]);
        ck_assert_msg(!why, "%s cannot do %s, step %d: %s", d->be->name, q_ops[p->insts[i].op].name, i, why);
    }
    for (int32_t i = 0; i < t->plan.n_kv; i++)
        if (t->pools[i].segment == segment)
            ck_assert_int_eq(d->be->alloc(d->dev, t->pools[i].page_bytes * t->pools[i].pages, &p->kv[i]), LQ_OK);
    if (part->state_floats)
        ck_assert_int_eq(d->be->alloc(d->dev, part->state_floats * ST_SEQS * sizeof(float), &p->state), LQ_OK);
    q_need need = {0};
    const long before = d->count.bytes;
    lq_status s = d->be->measure(d->dev, &p->plan, segment, 2, &need);
    ck_assert_msg(s == LQ_OK, "measure: %s", lq_error_detail());
    ck_assert_int_eq(d->count.bytes, before);
    s = d->be->compile(d->dev, &p->plan, segment, p->kv, part->state_floats ? &p->state : NULL, 2, &p->program);
    ck_assert_msg(s == LQ_OK, "compile: %s", lq_error_detail());
    ck_assert_int_eq((uint64_t)(d->count.bytes - before), need.host);
    ck_assert(d->be->host_memory || need.device > 0);
    for (int32_t i = 0; i < t->n_insts; i++)
        ck_assert_msg((d->be->kernel_name(p->program, i)[0] != 0) == (i >= part->first && i < part->last),
                      "step %d has the kernel \"%s\"", i, d->be->kernel_name(p->program, i));
}

void st_release(st_program *p) {
    const q_backend *be = p->d->be;
    be->release(p->program);
    for (int32_t i = 0; i < p->plan.n_kv; i++)
        if (p->kv[i].bytes) be->free(p->d->dev, &p->kv[i]);
    if (p->state.bytes) be->free(p->d->dev, &p->state);
    if (p->data.bytes) be->free(p->d->dev, &p->data);
}

/* -------------------------------------------------------------------------------------------------------- a batch */

static float special(uint64_t *seed) {
    static const uint32_t bits[] = {0x7F800000, 0xFF800000, 0x7FC00000, 0x00000001, 0x80000123, 0x007FFFFF, 0x00800000,
                                    0x477FE000, 0x477FEFFF, 0x477FF000, 0xC77FF000, 0x38800000, 0x387FFFFF, 0x33000000,
                                    0x33000001, 0x33800000, 0x33C00000, 0x34200000, 0x80000000, 0x00000000, 0x3F801000,
                                    0x3F801001, 0x3F803000, 0x7F7FFFFF};
    const uint64_t i = below(seed, 2 * Q_COUNT(bits));
    return i < Q_COUNT(bits) ? q_bits_f32(bits[i]) : t_normal(seed);
}

static float edge(uint64_t *seed, int32_t c) {
    static const float far[] = {88.0f, -88.0f, 89.0f, -104.0f, 300.0f, -300.0f, 16.6f, -16.7f, 0, 1e-6f, -9.0f, 5.5f};
    static const float huge[] = {1e15f, -1e15f, 3e12f, -3e12f, 2e14f};
    if (c % 3 == 0) return t_normal(seed) * 4;
    if (c % 3 == 1) return far[below(seed, Q_COUNT(far))];
    return huge[below(seed, Q_COUNT(huge))];
}

static float value_of(st_fill fill, int32_t flavour, int32_t c, int32_t i, uint64_t *seed) {
    const float v = t_normal(seed);
    switch (fill) {
    case ST_SMALL: return 0.15f * v;
    case ST_BITS: return special(seed);
    case ST_EDGES: return edge(seed, c);
    case ST_GRID: return (float)below(seed, 5) * 0.125f - 0.25f;
    case ST_WILD:
        if (flavour == 5) return v * 1e12f;
        if (flavour == 6) return v * 1e-12f;
        break;
    case ST_MILD: break;
    default: return v;
    }
    switch (flavour) {
    case 1: return i % 37 == 5 ? 20 * v : v;
    case 2: return 0;
    case 3: return v < 0 ? -1.0f : 1.0f;
    case 4: return i % 3 == 1 ? v * 1e-39f : v;
    default: return v;
    }
}

static void fill_choice(const st_region *r, int32_t c, float *x, uint64_t *seed) {
    static const float noise[] = {-3, 1e30f, INFINITY, NAN, -INFINITY, 2.75f, 0.9f};
    for (int32_t i = 0; i < r->n_used; i++) {
        x[i] = (float)(((uint64_t)c * 3 + (uint64_t)i + below(seed, 2) * (uint64_t)r->n_used) % (uint64_t)r->n_expert);
        if (r->fill == ST_NOISE) x[i] = noise[below(seed, Q_COUNT(noise))];
        x[r->n_used + i] = 0.1f + 0.4f * fabsf(t_normal(seed));
    }
}

static void fill_x(const st *t, st_batch *b, int turn, uint64_t *seed) {
    const int64_t width = t->widths[1];
    for (int32_t c = 0; c < b->b.n; c++) {
        float *x = b->x + c * width;
        for (int64_t i = 0; i < width; i++) x[i] = t_normal(seed);
        for (int32_t r = 0; r < t->n_regions; r++) {
            const st_region *g = &t->regions[r];
            const int32_t flavour = (c + r + turn) % 7;
            if (g->fill == ST_CHOICE || g->fill == ST_NOISE) fill_choice(g, c, x + g->offset, seed);
            else
                for (int32_t i = 0; i < g->floats; i++) x[g->offset + i] = value_of(g->fill, flavour, c, i, seed);
        }
    }
}

static void fill_pages(const st *t, st_batch *b, uint64_t *seed) {
    const uint32_t pages = (uint32_t)(t->plan.context / Q_KV_TOKENS);
    for (int32_t p = 0; p < t->plan.n_kv; p++) {
        const q_kv_pool *pool = &t->pools[p];
        const uint64_t bytes = pool->page_bytes * pool->pages;
        uint32_t *order = must(malloc(pool->pages * sizeof *order));
        for (uint32_t i = 0; i < pool->pages; i++) order[i] = i;
        for (uint32_t i = pool->pages; i > 1; i--) {
            const uint32_t j = (uint32_t)below(seed, i), keep = order[i - 1];
            order[i - 1] = order[j], order[j] = keep;
        }
        for (int32_t s = 0; s < ST_SEQS; s++) {
            b->pages[s][p] = must(malloc(pages * sizeof(uint32_t)));
            memcpy(b->pages[s][p], order + (uint32_t)s * pages, pages * sizeof(uint32_t));
            b->tables[s][p] = b->pages[s][p];
        }
        free(order);
        b->kv[p] = must(malloc(bytes));
        b->kv_before[p] = must(malloc(bytes));
        t_kv_fill(pool, b->kv_before[p], t_normal, seed);
    }
}

/* Up to three sequences, one of which begins here. */
static void fill_sequences(const st *t, st_batch *b, int turn) {
    const int32_t n = b->b.n, parts = Q_MIN(n, ST_SEQS);
    const int32_t first[ST_SEQS] = {t->past + turn * 13 % 100, 0, t->past + 3 + turn};
    b->b.n_seqs = parts;
    for (int32_t c = 0, part = 0, from = 0; c < n; c++) {
        if (part + 1 < parts && c - from >= (part == 0 ? (n + 1) / 2 : n / 4) && c > from) part++, from = c;
        b->seq[c] = (part + 1) % parts;
        b->pos[c] = first[b->seq[c]] + c - from;
    }
    for (int32_t s = 0; s < ST_SEQS; s++) b->seqs[s] = (q_seq_ref){b->tables[s], (uint32_t)(ST_SEQS - 1 - s), s & 1};
}

void st_batch_open(st_batch *b, st *t, int32_t n, int32_t n_out, int turn) {
    uint64_t seed = t->seed + 1000003u * (uint64_t)(n * 16 + turn + 1);
    const size_t floats = (size_t)n * (size_t)t->widths[1];
    const size_t state = (size_t)t->segments[0].state_floats * ST_SEQS, logits = (size_t)n_out * (size_t)t->plan.vocab;
    memset(b, 0, sizeof *b);
    b->turn = turn;
    b->x = must(calloc(floats, sizeof(float)));
    b->y = must(calloc(floats, sizeof(float)));
    b->state = must(calloc(state + 1, sizeof(float)));
    b->state_before = must(calloc(state + 1, sizeof(float)));
    b->logits = must(calloc(logits + 1, sizeof(float)));
    b->b = (q_batch){.n = n, .ids = t->by_ids ? b->ids : NULL, .x = t->by_ids ? NULL : b->x, .y = b->y, .pos = b->pos,
                     .seq = b->seq, .seqs = b->seqs, .n_out = n_out, .out = b->out, .draw = b->draw,
                     .logits = logits ? b->logits : NULL, .sampled = b->sampled,
                     .sampler = turn % 4 == 3 ? NULL : t->sampler};
    fill_x(t, b, turn, &seed);
    fill_pages(t, b, &seed);
    fill_sequences(t, b, turn);
    for (size_t i = 0; i < state; i++) b->state_before[i] = 0.5f * t_normal(&seed);
    for (int32_t c = 0; c < n; c++) b->ids[c] = (int32_t)below(&seed, (uint64_t)Q_MAX(t->plan.vocab, 1));
    for (int32_t o = 0; o < n_out; o++) {
        b->out[o] = (o + 1) * n / n_out - 1;
        b->draw[o] = t_rand(&seed);
    }
    for (int32_t o = 0; o < ST_OUTS; o++) b->sampled[o] = -7;
}

void st_batch_free(st_batch *b) {
    for (int32_t p = 0; p < ST_POOLS; p++) {
        for (int32_t s = 0; s < ST_SEQS; s++) free(b->pages[s][p]);
        free(b->kv[p]), free(b->kv_before[p]);
    }
    free(b->x), free(b->y), free(b->logits), free(b->state), free(b->state_before);
}

static uint64_t pool_bytes(const st *t, int32_t p) { return t->pools[p].page_bytes * t->pools[p].pages; }

static void restore(const st *t, st_batch *b) {
    for (int32_t p = 0; p < t->plan.n_kv; p++) memcpy(b->kv[p], b->kv_before[p], pool_bytes(t, p));
    memcpy(b->state, b->state_before, (size_t)t->segments[0].state_floats * ST_SEQS * sizeof(float));
}

void st_reference(st *t, st_batch *b) {
    float *slots[ST_SLOTS] = {NULL};
    const int32_t columns = Q_MAX(b->b.n, b->b.n_out);
    for (int32_t i = 1; i < t->plan.n_slots; i++)
        slots[i] = must(calloc((size_t)columns * (size_t)t->widths[i], sizeof(float)));
    if (b->b.x) memcpy(slots[1], b->b.x, (size_t)b->b.n * (size_t)t->widths[1] * sizeof(float));
    restore(t, b);
    for (int32_t i = 0; i < t->n_insts; i++) {
        const q_inst *s = &t->insts[i];
        const size_t bytes = q_ref_scratch(s, columns);
        void *scratch = must(aligned_alloc(Q_ALIGN, q_round_up(bytes + 1, Q_ALIGN)));
        const q_exec e = {.plan = &t->plan, .batch = &b->b, .slots = slots, .kv = b->kv, .state = b->state,
                          .state_floats = t->segments[0].state_floats, .scratch = scratch, .scratch_bytes = bytes};
        q_ops[s->op].ref(s, &e, 0, q_op_units(s, b->b.n, b->b.n_out));
        free(scratch);
    }
    memcpy(b->y, slots[1], (size_t)b->b.n * (size_t)t->widths[1] * sizeof(float));
    for (int32_t i = 1; i < t->plan.n_slots; i++) free(slots[i]);
}

lq_status st_run(st_program *p, st_batch *b) {
    const q_backend *be = p->d->be;
    const st *t = p->t;
    const size_t state = (size_t)t->plan.segments[p->segment].state_floats * ST_SEQS * sizeof(float);
    for (int32_t i = 0; i < t->plan.n_kv; i++)
        if (p->kv[i].bytes)
            ck_assert_int_eq(be->write(p->d->dev, &p->kv[i], 0, b->kv_before[i], pool_bytes(t, i)), LQ_OK);
    if (state) ck_assert_int_eq(be->write(p->d->dev, &p->state, 0, b->state_before, state), LQ_OK);
    const long calls = p->d->count.calls;
    lq_status s = be->run(p->program, &b->b);
    if (s == LQ_OK) s = be->wait(p->program);
    ck_assert_int_eq(p->d->count.calls, calls);
    if (s != LQ_OK) return s;
    for (int32_t i = 0; i < t->plan.n_kv; i++)
        if (p->kv[i].bytes) ck_assert_int_eq(be->read(p->d->dev, &p->kv[i], 0, b->kv[i], pool_bytes(t, i)), LQ_OK);
    if (state) ck_assert_int_eq(be->read(p->d->dev, &p->state, 0, b->state, state), LQ_OK);
    return s;
}

/* ----------------------------------------------------------------------------------------------------- comparison */

static bool alike(float a, float b) { return q_f32_bits(a) == q_f32_bits(b) || (a != a && b != b); }

double st_nmse(const float *a, const float *b, int64_t n, int64_t stride) {
    double d = 0, s = 0;
    for (int64_t i = 0; i < n * stride; i += stride) {
        if (!isfinite(a[i]) || !isfinite(b[i])) {
            if (!alike(a[i], b[i])) return (double)INFINITY;
            continue;
        }
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        s += (double)b[i] * b[i];
    }
    return s > 0 ? d / s : d > 0 ? (double)INFINITY : 0;
}

/* op.h's bounds; 0 = exact. */
static double bound_of(q_op op) {
    switch (op) {
    case Q_OP_EMBED:
    case Q_OP_COPY:
    case Q_OP_KV_PUT:
    case Q_OP_SAMPLE: return 0;
    case Q_OP_NORM:
    case Q_OP_HEADNORM:
    case Q_OP_ROPE:
    case Q_OP_SCALE:
    case Q_OP_GLU:
    case Q_OP_CONV: return 1e-9;
    default: return 1e-7;
    }
}

static void check_values(const float *got, const float *want, int64_t n, double bound, const char *who,
                         const char *what, int32_t step, int32_t column) {
    for (int64_t i = 0; i < n && bound == 0; i++)
        VALUE_MSG(alike(got[i], want[i]), "%s: %s, step %d, column %d, value %ld: %.9g (%08x), not %.9g (%08x)", who,
                      what, step, column, (long)i, (double)got[i], q_f32_bits(got[i]), (double)want[i],
                      q_f32_bits(want[i]));
    const double far = st_nmse(got, want, n, 1);
    int64_t worst = 0;
    for (int64_t i = 1; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= fabs((double)got[worst] - want[worst]))) worst = i;
    VALUE_MSG(far <= bound, "%s: %s, step %d, column %d: NMSE %g, more than %g; value %ld is %.9g, not %.9g", who, what,
                  step, column, far, bound, (long)worst, (double)got[worst], (double)want[worst]);
}

/* What a step of slot 1 wrote: column by column, and together. */
static void check_step(const st *t, int32_t step, const st_batch *want, const st_batch *got, const char *who) {
    const q_inst *s = &t->insts[step];
    const int32_t n = s->out ? want->b.n_out : want->b.n, each = s->y.heads * s->y.width, width = t->widths[1];
    const int32_t exact = s->op == Q_OP_ROUTE ? s->n_used : 0; /* ids come first */
    const double bound = bound_of((q_op)s->op);
    float *g = must(malloc((size_t)n * (size_t)each * sizeof(float) + 1));
    float *w = must(malloc((size_t)n * (size_t)each * sizeof(float) + 1));
    int64_t all = 0;
    for (int32_t c = 0; c < n; c++) {
        const int64_t from = all;
        for (int32_t i = 0; i < each; i++, all++) {
            const int64_t at = (int64_t)c * width + s->y.offset + i / s->y.width * s->y.stride + i % s->y.width;
            g[all] = got->y[at], w[all] = want->y[at];
        }
        check_values(g + from, w + from, exact, 0, who, q_ops[s->op].name, step, c);
        if (each - exact >= 8 || bound == 0)
            check_values(g + from + exact, w + from + exact, each - exact, bound, who, q_ops[s->op].name, step, c);
    }
    check_values(g, w, all, bound, who, q_ops[s->op].name, step, -1);
    free(g), free(w);
}

/* Values that no step owns are those that were there before. */
static void check_rest(const st *t, const st_batch *got, const char *who) {
    const int64_t width = t->widths[1];
    int16_t *owner = must(calloc((size_t)width, sizeof *owner)); /* columns that have one; -1: all */
    if (t->by_ids) {
        free(owner);
        return;
    }
    for (int32_t i = 0; i < t->n_insts; i++) {
        const q_view *y = &t->insts[i].y;
        for (int32_t j = 0; y->slot == 1 && j < y->heads * y->width; j++) {
            int16_t *o = &owner[y->offset + j / y->width * y->stride + j % y->width];
            if (!t->insts[i].out) *o = -1;
            else if (*o >= 0) *o = (int16_t)got->b.n_out;
        }
    }
    for (int64_t c = 0; c < got->b.n; c++)
        for (int64_t i = 0; i < width; i++)
            if (owner[i] >= 0 && c >= owner[i])
                VALUE_MSG(alike(got->y[c * width + i], got->x[c * width + i]),
                              "%s: value %ld of column %ld belongs to no step and changed from %.9g to %.9g", who,
                              (long)i, (long)c, (double)got->x[c * width + i], (double)got->y[c * width + i]);
    free(owner);
}

static void check_row(const float *got, const float *want, int32_t n, const char *who, const char *what,
                      int32_t pool, uint32_t page, int32_t at) {
    for (int32_t i = 0; i < n; i++)
        VALUE_MSG(alike(got[i], want[i]), "%s: pool %d, page %u, number %d of %s %d: %.9g, not %.9g", who, pool, page,
                  i, what, at, (double)got[i], (double)want[i]);
}

static void check_pages(const st *t, const st_batch *want, const st_batch *got, const char *who) {
    enum { WIDEST = 1024 };
    float a[WIDEST], b[WIDEST];
    for (int32_t p = 0; p < t->plan.n_kv; p++) {
        const q_kv_pool *pool = &t->pools[p];
        ck_assert_int_le(Q_MAX(pool->k.width, pool->v.width), WIDEST);
        for (uint32_t page = 0; page < pool->pages; page++)
            for (int32_t at = 0; at < pool->layers * pool->heads * Q_KV_TOKENS; at++) {
                const int32_t layer = at / (pool->heads * Q_KV_TOKENS), head = at / Q_KV_TOKENS % pool->heads;
                const int32_t row = at % Q_KV_TOKENS;
                q_ref_kv_key(&pool->k, q_kv_k(pool, got->kv[p], page, layer, head), row, pool->k.width, a);
                q_ref_kv_key(&pool->k, q_kv_k(pool, want->kv[p], page, layer, head), row, pool->k.width, b);
                check_row(a, b, pool->k.width, who, "key", p, page, at);
                if (pool->v.width == 0) continue;
                q_ref_kv_value(&pool->v, q_kv_v(pool, got->kv[p], page, layer, head), row, pool->v.width, a);
                q_ref_kv_value(&pool->v, q_kv_v(pool, want->kv[p], page, layer, head), row, pool->v.width, b);
                check_row(a, b, pool->v.width, who, "value", p, page, at);
            }
    }
}

static void check_state(const st *t, const st_batch *want, const st_batch *got, const char *who) {
    for (int32_t q = 0; q < ST_SEQS; q++) {
        int64_t at = q * (int64_t)t->segments[0].state_floats;
        for (int32_t i = 0; i < t->n_states; at += t->state_floats_of[i++]) {
            const int32_t step = t->state_owner[i];
            const bool scan = t->insts[step].op == Q_OP_SCAN;
            check_values(got->state + at, want->state + at, t->state_floats_of[i], scan ? 1e-7 : 0, who, "state", step,
                         q);
        }
    }
}

void st_compare(const st *t, const st_batch *want, const st_batch *got, const char *who) {
    bool head = false, sample = false;
    for (int32_t i = 0; i < t->n_insts; i++) {
        if (t->insts[i].y.slot == 1) check_step(t, i, want, got, who);
        head |= t->insts[i].op == Q_OP_HEAD;
        sample |= t->insts[i].op == Q_OP_SAMPLE;
    }
    check_rest(t, got, who);
    check_pages(t, want, got, who);
    check_state(t, want, got, who);
    for (int32_t o = 0; head && o < want->b.n_out; o++)
        check_values(got->logits + (int64_t)o * t->plan.vocab, want->logits + (int64_t)o * t->plan.vocab, t->plan.vocab,
                     1e-7, who, "logits", -1, o);
    for (int32_t o = 0; sample && o < ST_OUTS; o++)
        VALUE_MSG(got->sampled[o] == want->sampled[o], "%s: wanted row %d of %d sampled %d, not %d "
                  "(temperature %g, top_k %u, top_p %g, min_p %g)", who, o,
                  want->b.n_out, got->sampled[o], want->sampled[o], (double)t->sampler->temperature, t->sampler->top_k,
                  (double)t->sampler->top_p, (double)t->sampler->min_p);
}

bool st_same(const st *t, const st_batch *a, const st_batch *b) {
    if (!t->by_ids && memcmp(a->y, b->y, (size_t)a->b.n * (size_t)t->widths[1] * sizeof(float)) != 0) return false;
    if (memcmp(a->logits, b->logits, (size_t)a->b.n_out * (size_t)t->plan.vocab * sizeof(float)) != 0) return false;
    if (memcmp(a->sampled, b->sampled, sizeof a->sampled) != 0) return false;
    for (int32_t p = 0; p < t->plan.n_kv; p++)
        if (memcmp(a->kv[p], b->kv[p], pool_bytes(t, p)) != 0) return false;
    return memcmp(a->state, b->state, (size_t)t->segments[0].state_floats * ST_SEQS * sizeof(float)) == 0;
}

void st_check_against(st_program *p, const st_batch *want) {
    st_batch got;
    char who[48];
    snprintf(who, sizeof who, "%s:%u, %d columns, turn %d", p->d->be->name, p->d->index, want->b.n, want->turn);
    st_batch_open(&got, p->t, want->b.n, want->b.n_out, want->turn);
    const lq_status s = st_run(p, &got);
    VALUE_MSG(s == LQ_OK, "%s: %s", who, lq_error_detail());
    st_compare(p->t, want, &got, who);
    st_batch_free(&got);
}

void st_check(st_program *p, int32_t n, int32_t n_out, int turn) {
    st_batch want;
    st_batch_open(&want, p->t, n, n_out, turn);
    st_reference(p->t, &want);
    st_check_against(p, &want);
    st_batch_free(&want);
}
