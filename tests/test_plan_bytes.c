/* test_plan_bytes.c: what lq_model_plan says is what is used, to the byte, for 200 random configurations of models,
 * devices and sessions: as the caller's allocator counts, and as the Vulkan library does; and whatever an open session
 * does asks nobody for memory: not the allocator, nor the C library, whose functions are replaced here.
 *
 * Models whose tables have windows or a recurrence: test_session_life.c. */
#include "harness.h"
#include "help_model.h"
#include "help_spawn.h"
#include "mock_vulkan.h"

#include "../libquant/engine.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

T_ASAN_OPTIONS("detect_leaks=0") /* drivers keep what they allocate until the process ends; our blocks are counted */

enum { CONTEXT = 96, CONFIGURATIONS = 200, FILES = 4 };

/* ------------------------------------------------------------------------------------------------ the C library */

static volatile long asked_libc; /* how often memory was asked for */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
enum { WATCHES = 0 }; /* the functions are the sanitizer's */
#else
enum { WATCHES = 1 };
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t item);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
static void count(void) { __atomic_add_fetch(&asked_libc, 1, __ATOMIC_RELAXED); }
void *malloc(size_t n) {
    count();
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t item) {
    count();
    return __libc_calloc(n, item);
}
void *realloc(void *p, size_t n) {
    count();
    return __libc_realloc(p, n);
}
int posix_memalign(void **out, size_t align, size_t n) {
    count();
    *out = __libc_memalign(align, n);
    return *out ? 0 : 12;
}
void *aligned_alloc(size_t align, size_t n) {
    count();
    return __libc_memalign(align, n);
}
void *mmap(void *at, size_t n, int protection, int flags, int file, off_t offset) {
    count();
    return (void *)syscall(SYS_mmap, at, n, protection, flags, file, offset);
}
#endif

/* ------------------------------------------------------------------------------------------------ the caller's hook */

static long asked; /* of it */
static void *hook_alloc(void *user, size_t bytes, size_t align) {
    __atomic_add_fetch(&asked, 1, __ATOMIC_RELAXED);
    return live_alloc(user, bytes, align);
}
static const lq_allocator hook = {hook_alloc, live_free, NULL};

/* ------------------------------------------------------------------------------------------------ devices */

static mock_vulkan *mock;
static char device[64];

/* The library that counts, in the place of the real one; no device where there is none. */
static void load_mock(void) {
    static char real[4096];
    struct link_map *map = NULL;
    const q_backend *vulkan = NULL;
    void *library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    for (uint32_t i = 0; i < q_backend_count(); i++)
        if (strcmp(q_backends[i]->name, "vulkan") == 0) vulkan = q_backends[i];
    device[0] = 0;
    if (!vulkan || !library || vulkan->probe() == 0 || dlinfo(library, RTLD_DI_LINKMAP, &map) != 0) return;
    snprintf(real, sizeof real, "%s", map->l_name);
    dlclose(library);
    library = dlopen(spawn_built("tests/mock/libvulkan.so.1"), RTLD_NOW | RTLD_LOCAL);
    ck_assert_msg(library != NULL, "%s", dlerror());
    mock = (mock_vulkan *)dlsym(library, "mock_control");
    ck_assert_ptr_nonnull(mock);
    mock->real = real;
    snprintf(device, sizeof device, "vulkan:0");
}
static uint64_t on_device(void) { return mock ? (uint64_t)mock->device_bytes : 0; }

/* ------------------------------------------------------------------------------------------------ configurations */

static uint64_t seed = 3;
static uint32_t roll(uint32_t n) { return (uint32_t)(t_rand(&seed) >> 33) % n; }
#define ONE_OF(type, ...) (((const type[]){__VA_ARGS__})[roll((uint32_t)Q_COUNT(((const type[]){__VA_ARGS__})))])

static char files[FILES][4096];
static void write_files(void) {
    static tiny t;
    static const char *const formats[] = {"q8_0", "f16", "q4_0"};
    for (int i = 0; i < FILES; i++) {
        char name[32];
        tiny_init(&t, formats[i % 3]);
        tiny_u32(&t, "llama.context_length", CONTEXT);
        tiny_u32(&t, "llama.attention.head_count", 2); /* of 32, which every form of keys and values fits */
        tiny_u32(&t, "llama.attention.head_count_kv", 1);
        tiny_u32(&t, "llama.rope.dimension_count", 32);
        snprintf(name, sizeof name, "bytes-%d%s", i, i == 3 ? "" : ".gguf");
        t_path(files[i], sizeof files[i], t_tmp(), name);
        if (i < 3) tiny_write(&t, files[i]);
        else { /* a directory, whose shapes are the usual ones: heads of 16 */
            tiny_init(&t, "f16");
            ck_assert_int_eq(mkdir(files[i], 0755), 0);
            tiny_write_hf(&t, files[i]);
        }
    }
}

typedef struct setting {
    int file;
    lq_model_options model;
    lq_session_options session;
} setting;

static setting choose(uint32_t turn) {
    setting s = {.file = (int)roll(FILES), .model.size = sizeof s.model, .session.size = sizeof s.session};
    const bool floats = s.file == 1 || s.file == 3, blocks = s.file != 3; /* of 32 values in a head */
    s.model.no_mmap = roll(3) == 0;
    s.model.no_pack = roll(4) == 0;
    s.model.pack_at_open = roll(2);
    if (floats && roll(3) == 0) s.model.load_as = ONE_OF(char *const, "q8_0", "q4_0", "i8_row");
    if (device[0] && turn % (T_SLOW ? 60 : 20) == 0) s.model.device = device, s.model.gpu_layers = roll(3);
    s.session.context = ONE_OF(uint32_t, 0, 64, 33, 1);
    s.session.batch = ONE_OF(uint32_t, 0, 1, 7, 40);
    s.session.max_logits = ONE_OF(uint32_t, 0, 1, 2, 5);
    s.session.threads = ONE_OF(uint32_t, 1, 1, 2, 3);
    s.session.threads_prefill = ONE_OF(uint32_t, 0, 0, 1, 2);
    s.session.sequences = 1 + roll(9);
    s.session.no_reuse = roll(4) == 0;
    s.session.kv_tokens = ONE_OF(uint64_t, 0, 0, CONTEXT, 1000);
    s.session.activations = ONE_OF(char *const, NULL, NULL, "f32");
    s.session.overflow = ONE_OF(char *const, NULL, "stop", "slide");
    s.session.ngram = ONE_OF(uint32_t, 0, 0, 2);
    s.session.embed = roll(8) == 0;
    if (s.session.embed) s.session.max_logits = s.session.ngram = 0, s.session.overflow = NULL;
    if (blocks && !s.model.device) {
        s.session.kv_k = ONE_OF(char *const, NULL, "f16", "bf16", "f32", "q8_0", "q5_1", "q4_0");
        s.session.kv_v = ONE_OF(char *const, NULL, "f16", "bf16", "f32", "q8_0", "q5_1", "q4_0");
    }
    if (s.session.max_logits > 1) s.session.max_logits = Q_MIN(s.session.max_logits, s.session.sequences);
    return s;
}

/* ------------------------------------------------------------------------------------------------ the proof */

/* What a session does. The line where it failed, 0 = nowhere: assertions of Check allocate. */
#define OK(what) \
    if (!(what)) return __LINE__
static int use(lq_session *s, const setting *o, uint32_t context) {
    int32_t ids[CONTEXT], id;
    const float *row;
    const lq_sampler warm = {.size = sizeof warm, .temperature = 1, .top_k = 20};
    for (int i = 0; i < CONTEXT; i++) ids[i] = 3 + i * 7 % 250;
    const uint32_t n = context < 40 ? context : 40, last = o->session.sequences - 1;
    const lq_item item = {.ids = ids, .count = n}, one = {.ids = ids, .count = 1};
    if (o->session.embed) {
        static float out[64];
        OK(lq_embed(s, &item, 1, NULL, out) == LQ_OK);
        return 0;
    }
    OK(lq_sync(s, last, ids, n, n - 1) == LQ_OK);
    OK(lq_logits(s, 0, &row) == LQ_OK);
    OK(lq_sample(s, 0, &warm, &id) == LQ_OK);
    OK(lq_seq_truncate(s, last, n / 2) == LQ_OK);
    OK(lq_seq_fork(s, last, 0) == LQ_OK);
    lq_session_cancel(s);
    OK(lq_decode(s, &one, 1) == LQ_E_CANCELLED);
    OK(lq_decode(s, &one, 1) == LQ_OK);
    OK(lq_sync(s, 0, ids, n, n) == LQ_OK);
    OK(lq_seq_truncate(s, 0, 0) == LQ_OK);
    return 0;
}

static void check_session(lq_model *m, const setting *o, const lq_plan_info *plan, uint32_t turn) {
    lq_session *s;
    lq_session_info info = {.size = sizeof info};
    const size_t before = live_bytes;
    const uint64_t there = on_device();
    ck_assert_msg(lq_session_open(m, &o->session, &s) == LQ_OK, "%u: %s", turn, lq_error_detail());
    ck_assert_msg(live_bytes - before == plan->kv + plan->activations, "%u: %zu bytes used, %llu + %llu promised", turn,
                  live_bytes - before, (unsigned long long)plan->kv, (unsigned long long)plan->activations);
    ck_assert_msg(on_device() - there == plan->device_kv + plan->device_activations, "%u: %llu bytes used, %llu + %llu",
                  turn, (unsigned long long)(on_device() - there), (unsigned long long)plan->device_kv,
                  (unsigned long long)plan->device_activations);
    ck_assert_int_eq(lq_session_info_get(s, &info), LQ_OK);
    ck_assert(info.kv_bytes == plan->kv && info.activation_bytes == plan->activations);
    ck_assert(info.device_kv_bytes == plan->device_kv && info.device_activation_bytes == plan->device_activations);
    const long hooked = asked, libc = asked_libc;
    const int line = use(s, o, plan->context);
    const long by_libc = asked_libc - libc;
    ck_assert_msg(line == 0, "%u, line %d: %s", turn, line, lq_error_detail());
    ck_assert_msg(asked == hooked, "%u: the allocator was asked %ld times by an open session", turn, asked - hooked);
    if (!o->model.device) /* a driver does as it likes */
        ck_assert_msg(by_libc == 0, "%u: the C library was asked %ld times by an open session", turn, by_libc);
    lq_session_close(s);
    ck_assert_uint_eq(live_bytes, before);
    ck_assert_uint_eq(on_device(), there);
}

/* Bytes of a model beyond those that it takes to say its plan. */
static uint64_t model_bytes(const lq_model *m, const lq_plan_info *plan) {
    uint64_t n = plan->packed + q_pack_list_bytes(m);
    for (uint32_t i = 0; i < m->binding->n_items; i++)
        if (q_load_as_bytes(m, i)) n += q_placed_bytes(&m->ctx->placing, q_load_as_bytes(m, i));
    return n;
}

static void check(lq_ctx *ctx, uint32_t turn) {
    const setting o = choose(turn);
    lq_model *m;
    lq_plan_info before = {.size = sizeof before}, plan = before;
    lq_model_options only = o.model;
    only.plan_only = 1;
    const size_t none = live_bytes;
    const uint64_t there = on_device();
    ck_assert_msg(lq_model_open(ctx, files[o.file], &only, &m) == LQ_OK, "%u: %s", turn, lq_error_detail());
    ck_assert_msg(lq_model_plan(m, &o.session, &before) == LQ_OK, "%u: %s", turn, lq_error_detail());
    const size_t bare = live_bytes - none - q_pack_list_bytes(m);
    lq_model_close(m);
    ck_assert_uint_eq(live_bytes, none);
    ck_assert_msg(lq_model_open(ctx, files[o.file], &o.model, &m) == LQ_OK, "%u: %s", turn, lq_error_detail());
    ck_assert_int_eq(lq_model_plan(m, &o.session, &plan), LQ_OK);
    before.device_memory = plan.device_memory; /* what is left changes */
    ck_assert_msg(memcmp(&before, &plan, sizeof plan) == 0, "%u: another plan than before", turn);
    if (o.model.device) ck_assert_uint_eq(on_device() - there, plan.device_own + plan.device_weights);
    else if (!o.model.load_as || !o.model.no_mmap)
        ck_assert_msg(live_bytes - none == bare + model_bytes(m, &plan), "%u: a model of %zu bytes, %llu promised",
                      turn, live_bytes - none, (unsigned long long)(bare + model_bytes(m, &plan)));
    check_session(m, &o, &plan, turn);
    lq_model_close(m);
    ck_assert_uint_eq(live_bytes, none);
    ck_assert_uint_eq(on_device(), there);
}

START_TEST(plans_are_what_is_used) {
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &hook};
    lq_ctx *ctx;
    write_files();
    load_mock();
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    const long before = asked_libc;
    void *volatile block = malloc(10);
    free(block);
    ck_assert(!WATCHES || asked_libc > before);
    for (uint32_t i = 0; i < (t_emulated() ? 20u : T_TSAN ? 40u : (uint32_t)CONFIGURATIONS); i++) check(ctx, i);
    lq_close(ctx);
    ck_assert_uint_eq(live_bytes, 0);
    if (!device[0]) printf("SKIP: %s: no device to share layers with\n", __func__);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("plan bytes");
    TCase *t = tcase_create("plans");
    tcase_set_timeout(t, 600);
    tcase_add_test(t, plans_are_what_is_used);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
