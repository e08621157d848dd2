/* test_vulkan.c: the Vulkan backend over a library that fails, lies and counts (mock_vulkan.c).
 *
 * A device's whole life, from opening to closing it, is repeated with every call refused in turn, with functions
 * missing, and with each lie about a device: what comes out is an error with a sentence, and no handle,
 * no byte of the device's memory and no block of the host's is left. */
#include "help_backend.h"
#include "help_spawn.h"
#include "mock_vulkan.h"

#include <dlfcn.h>
#include <link.h>

/* Drivers keep what they allocate until the process ends; our own blocks are counted here. */
T_ASAN_OPTIONS("detect_leaks=0")

/* The results of vulkan_core.h that are used, so that this file needs no header that may not be there. */
enum { OUT_OF_HOST = -1, OUT_OF_DEVICE = -2, INITIALIZATION = -3, LOST = -4 };

static mock_vulkan *mock;
static const q_backend *vulkan;

/* The stand-in, over the real library; false where there is none, or no device. */
static bool load(void) {
    static char real[4096];
    void *library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    struct link_map *map = NULL;
    for (uint32_t i = 0; i < q_backend_count(); i++)
        if (strcmp(q_backends[i]->name, "vulkan") == 0) vulkan = q_backends[i];
    if (!vulkan || !library || vulkan->probe() == 0) return false;
    ck_assert_int_eq(dlinfo(library, RTLD_DI_LINKMAP, &map), 0);
    snprintf(real, sizeof real, "%s", map->l_name);
    dlclose(library);
    ck_assert_msg(!dlopen("libvulkan.so.1", RTLD_NOW | RTLD_NOLOAD), "the real library stays loaded");
    library = dlopen(spawn_built("tests/mock/libvulkan.so.1"), RTLD_NOW | RTLD_LOCAL);
    ck_assert_msg(library != NULL, "%s", dlerror());
    mock = (mock_vulkan *)dlsym(library, "mock_control");
    ck_assert_ptr_nonnull(mock);
    mock->real = real;
    return true;
}
#define LOAD() \
    if (!load()) T_SKIP("no Vulkan device")

static st plan;
static void make_plan(void) {
    st_open(&plan, 12);
    const q_view x = st_in(&plan, 1, 64, 64, ST_PLAIN), y = st_out(&plan, 1, 33, 33);
    st_add(&plan, (q_inst){.op = Q_OP_MATMUL, .x = x, .y = y, .w = st_weight(&plan, "q8_0", 33, 64, 1, ST_W_NORMAL)});
    st_add(&plan, (q_inst){.op = Q_OP_HEAD, .out = 1, .x = x, .w = st_weight(&plan, "f16", 20, 64, 1, ST_W_NORMAL)});
    st_ready(&plan, false);
}

/* Open, upload, compile, run, close. What was promised of the device's memory is what the library saw taken. */
static lq_status life(st_count *count) {
    const q_alloc alloc = st_counting(count);
    const q_device_options o = {.alloc = &alloc};
    q_device *dev = NULL;
    q_program *p = NULL;
    q_buffer data = {0};
    q_need need = {0};
    uint8_t zeros[4096] = {0};
    st_batch b;
    lq_status s = vulkan->open(0, &o, &dev);
    if (s == LQ_OK) ck_assert_int_eq(mock->device_bytes, (int64_t)vulkan->held(dev).device);
    if (s == LQ_OK) s = vulkan->alloc(dev, 1 << 16, &data);
    if (s == LQ_OK) s = vulkan->write(dev, &data, 0, zeros, sizeof zeros);
    if (s == LQ_OK) s = vulkan->flush(dev);
    for (int32_t i = 0; i < plan.n_weights; i++) plan.weights[i].device = data.device;
    if (s == LQ_OK) s = vulkan->measure(dev, &plan.plan, 0, 1, &need);
    const int64_t before = mock->device_bytes;
    if (s == LQ_OK) s = vulkan->compile(dev, &plan.plan, 0, NULL, NULL, 1, &p);
    if (s == LQ_OK) {
        ck_assert_int_eq(mock->device_bytes - before, (int64_t)need.device);
        st_batch_open(&b, &plan, 9, 1, 0);
        for (int turn = 0; s == LQ_OK && turn < 2; turn++) {
            s = vulkan->run(p, &b.b);
            if (s == LQ_OK) s = vulkan->wait(p);
        }
        st_batch_free(&b);
    }
    if (s == LQ_OK) s = vulkan->read(dev, &data, 0, zeros, sizeof zeros);
    vulkan->release(p);
    if (data.bytes) vulkan->free(dev, &data);
    vulkan->close(dev);
    return s;
}

/* Whatever came of it, nothing is left and an error was told. */
static lq_status check_life(const char *what) {
    st_count count = {0};
    mock->calls = 0, mock->failed[0] = 0;
    const lq_status s = life(&count);
    ck_assert_msg(mock->handles == 0 && mock->device_bytes == 0, "%s (%s): %ld handles and %lld bytes are left", what,
                  mock->failed, mock->handles, (long long)mock->device_bytes);
    ck_assert_msg(count.blocks == 0 && count.bytes == 0, "%s (%s): %ld blocks are left", what, mock->failed,
                  count.blocks);
    ck_assert_msg(s == LQ_OK || strlen(lq_error_detail()) > 10, "%s: no sentence", what);
    return s;
}

START_TEST(promised_bytes_are_allocated) {
    LOAD();
    make_plan();
    ck_assert_msg(check_life("honest") == LQ_OK, "%s", lq_error_detail());
    ck_assert_int_gt(mock->device_most, 0);
    st_free(&plan);
}
END_TEST

/* Every call that can fail does so once, with each result. */
START_TEST(refused_calls_are_errors) {
    static const struct { int result; const char *name; } results[] = {
        {OUT_OF_DEVICE, "out of device memory"}, {OUT_OF_HOST, "out of host memory"},
        {INITIALIZATION, "initialization failed"}, {LOST, "device lost"}};
    LOAD();
    make_plan();
    mock->result = results[_i].result;
    for (long k = 1;; k++) {
        mock->fail_at = k;
        const lq_status s = check_life(results[_i].name);
        if (mock->calls < k) {
            ck_assert_int_eq(s, LQ_OK);
            ck_assert_int_gt(k, 40);
            break;
        }
        const bool memory = results[_i].result == OUT_OF_DEVICE || results[_i].result == OUT_OF_HOST;
        const bool idle = strcmp(mock->failed, "vkDeviceWaitIdle") == 0; /* on the way out: nobody is told */
        const bool counts = strcmp(mock->failed, "vkEnumeratePhysicalDevices") == 0; /* no device then */
        const bool version = strcmp(mock->failed, "vkEnumerateInstanceVersion") == 0;
        ck_assert_msg(idle || counts || version || s == LQ_E_NOMEM || !memory,
                      "%s by %s, call %ld: %d, %s", results[_i].name, mock->failed, k, (int)s, lq_error_detail());
        ck_assert_msg(idle || s == LQ_E_NOMEM || s == LQ_E_DEVICE || s == LQ_E_UNSUPPORTED || (counts && s == LQ_E_ARG),
                      "%s by %s, call %ld: %d, %s", results[_i].name, mock->failed, k, (int)s, lq_error_detail());
    }
    st_free(&plan);
}
END_TEST

/* What is left is what the driver says. */
static void check_budget(lq_status s) {
    q_device *dev = NULL;
    lq_device_info info = {.size = sizeof info};
    ck_assert(s == LQ_OK || s == LQ_E_NOMEM);
    if (vulkan->open(0, NULL, &dev) != LQ_OK) return;
    vulkan->info(dev, &info);
    ck_assert_uint_le(info.memory, mock->heap_bytes);
    vulkan->close(dev);
}

START_TEST(lies_are_errors) {
    LOAD();
    make_plan();
    for (int lie = MOCK_NO_DEVICES; lie < MOCK_LIES; lie++) {
        char what[32];
        snprintf(what, sizeof what, "lie %d", lie);
        mock->lie = (mock_lie)lie;
        for (mock->heap_bytes = 1; mock->heap_bytes <= 1 << 24; mock->heap_bytes *= 64) {
            const lq_status s = check_life(what);
            const bool room = lie == MOCK_HEAPS_TINY || lie == MOCK_BUDGET; /* some of it */
            if (lie == MOCK_NAME_WILD || lie == MOCK_QUEUES_HUGE) ck_assert_int_eq(s, LQ_OK);
            else if (lie == MOCK_BUDGET) check_budget(s); /* advice: the driver refuses, not we */
            else if (room && mock->heap_bytes == 1 << 24) ck_assert_int_eq(s, LQ_OK);
            else ck_assert_msg(s == LQ_E_UNSUPPORTED || s == LQ_E_NOMEM || s == LQ_E_ARG, "%s: %d, %s", what, (int)s,
                               s == LQ_OK ? "" : lq_error_detail());
            if (room && s == LQ_E_NOMEM) {
                const char *rest = strchr(lq_error_detail(), ')'); /* behind the device's name */
                ck_assert_msg(rest && strpbrk(rest, "0123456789"), "no numbers: %s", lq_error_detail());
            }
            if (!room) break;
        }
        if (lie == MOCK_NO_DEVICES || lie == MOCK_INSTANCE_OLD) ck_assert_uint_eq(vulkan->probe(), 0);
        ck_assert_uint_le(vulkan->probe(), 64);
        ck_assert_int_eq(mock->handles, 0);
    }
    st_free(&plan);
}
END_TEST

START_TEST(missing_functions_are_errors) {
    static const char *const names[] = {
        "vkCreateInstance", "vkEnumeratePhysicalDevices", "vkGetDeviceProcAddr", "vkGetPhysicalDeviceFeatures2",
        "vkCreateDevice", "vkGetDeviceQueue", "vkQueueSubmit", "vkAllocateMemory", "vkMapMemory",
        "vkGetBufferDeviceAddress", "vkWaitForFences", "vkAllocateCommandBuffers", "vkCmdDispatch",
        "vkCreateComputePipelines", "vkDestroyPipeline", "vkFreeMemory"};
    LOAD();
    make_plan();
    for (size_t i = 0; i < Q_COUNT(names); i++) {
        mock->missing = names[i], mock->missed = 0;
        ck_assert_msg(check_life(names[i]) == LQ_E_UNSUPPORTED, "%s is not missed", names[i]);
        ck_assert_msg(mock->missed > 0 && strstr(lq_error_detail(), names[i]), "%s: %s", names[i], lq_error_detail());
    }
    mock->missing = "vkEnumerateInstanceVersion"; /* Vulkan 1.0 */
    ck_assert_int_eq(check_life("1.0"), LQ_E_UNSUPPORTED);
    st_free(&plan);
}
END_TEST

/* A library with nothing behind it. */
START_TEST(an_empty_library_has_no_devices) {
    LOAD();
    mock->real = NULL;
    ck_assert_uint_eq(vulkan->probe(), 0);
    q_device *dev = NULL;
    ck_assert_int_eq(vulkan->open(0, NULL, &dev), LQ_E_UNSUPPORTED);
    ck_assert_ptr_null(dev);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("vulkan");
    TCase *t = tcase_create("vulkan");
    tcase_set_timeout(t, 240);
    tcase_add_test(t, promised_bytes_are_allocated);
    tcase_add_loop_test(t, refused_calls_are_errors, 0, T_SLOW ? 1 : 4);
    tcase_add_test(t, lies_are_errors);
    tcase_add_test(t, missing_functions_are_errors);
    tcase_add_test(t, an_empty_library_has_no_devices);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
