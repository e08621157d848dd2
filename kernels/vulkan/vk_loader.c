/* vk_loader.c: opens libvulkan.so.1 at run time and finds its functions.
 *
 * A system without the library, or with one older than Vulkan 1.2, simply has no such devices. A function that the
 * library does not have is an error, not a NULL to be called later. Layer L2. */
#include "../../libquant/file.h"
#include "vulkan.h"

/* Addresses of functions pass through PFN_vkVoidFunction; dlsym's is a pointer to void. */
static PFN_vkVoidFunction find(const q_vk_api *vk, VkInstance instance, const char *name) {
    return vk->GetInstanceProcAddr(instance, name);
}

static lq_status missing(const char *name) {
    return q_fail(LQ_E_UNSUPPORTED, "libvulkan.so.1 has no function vk%s", name);
}

/* With Vulkan 1.0 vkEnumerateInstanceVersion is not there, and vkCreateInstance refuses any later version. */
static lq_status make_instance(q_vk_api *vk) {
    uint32_t version = VK_API_VERSION_1_0;
    VkResult r = VK_SUCCESS;
    vk->EnumerateInstanceVersion = (PFN_vkEnumerateInstanceVersion)find(vk, NULL, "vkEnumerateInstanceVersion");
    vk->CreateInstance = (PFN_vkCreateInstance)find(vk, NULL, "vkCreateInstance");
    if (!vk->CreateInstance) return missing("CreateInstance");
    if (vk->EnumerateInstanceVersion) r = vk->EnumerateInstanceVersion(&version);
    if (r != VK_SUCCESS)
        return q_fail(LQ_E_DEVICE, "libvulkan.so.1 does not say its version: %s", q_vk_result_name(r));
    if (version < VK_API_VERSION_1_2)
        return q_fail(LQ_E_UNSUPPORTED, "libvulkan.so.1 offers Vulkan %u.%u; 1.2 is needed",
                      VK_API_VERSION_MAJOR(version), VK_API_VERSION_MINOR(version));
    const VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .pApplicationName = "libquant",
                                           .pEngineName = "libquant", .apiVersion = VK_API_VERSION_1_2};
    const VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                       .pApplicationInfo = &application};
    r = vk->CreateInstance(&info, NULL, &vk->instance);
    if (r == VK_SUCCESS && vk->instance) return LQ_OK;
    vk->instance = NULL;
    return q_fail(r == VK_ERROR_OUT_OF_HOST_MEMORY || r == VK_ERROR_OUT_OF_DEVICE_MEMORY ? LQ_E_NOMEM
                                                                                         : LQ_E_UNSUPPORTED,
                  "libvulkan.so.1 makes no instance: %s", q_vk_result_name(r));
}

static lq_status find_functions(q_vk_api *vk) {
#define X(name)                                                                             \
    vk->name = (PFN_vk##name)find(vk, vk->instance, "vk" #name);                            \
    if (!vk->name) return missing(#name);
    Q_VK_INSTANCE(X)
#undef X
    return LQ_OK;
}

lq_status q_vk_api_open(q_vk_api *vk) {
    *vk = (q_vk_api){0};
    vk->library = q_library_open("libvulkan.so.1");
    if (!vk->library) return q_fail(LQ_E_UNSUPPORTED, "there is no Vulkan on this system: libvulkan.so.1 is not found");
    void *first = q_library_symbol(vk->library, "vkGetInstanceProcAddr");
    lq_status s = LQ_OK;
    if (first) memcpy(&vk->GetInstanceProcAddr, &first, sizeof first);
    else s = missing("GetInstanceProcAddr");
    if (s == LQ_OK) s = make_instance(vk);
    if (s == LQ_OK) s = find_functions(vk);
    if (s != LQ_OK) q_vk_api_close(vk);
    return s;
}

lq_status q_vk_api_device(q_vk_api *vk, VkDevice device) {
#define X(name)                                                                             \
    vk->name = (PFN_vk##name)vk->GetDeviceProcAddr(device, "vk" #name);                     \
    if (!vk->name) return missing(#name);
    Q_VK_DEVICE(X)
#undef X
    return LQ_OK;
}

void q_vk_api_close(q_vk_api *vk) {
    /* an instance without this function cannot be destroyed; the library goes all the same */
    if (vk->instance && vk->DestroyInstance) vk->DestroyInstance(vk->instance, NULL);
    q_library_close(vk->library);
    *vk = (q_vk_api){0};
}

lq_status q_vk_api_devices(const q_vk_api *vk, VkPhysicalDevice out[Q_VK_DEVICES], uint32_t *n) {
    uint32_t count = Q_VK_DEVICES;
    memset(out, 0, Q_VK_DEVICES * sizeof *out);
    const VkResult r = vk->EnumeratePhysicalDevices(vk->instance, &count, out);
    if (r == VK_ERROR_OUT_OF_HOST_MEMORY || r == VK_ERROR_OUT_OF_DEVICE_MEMORY)
        return q_fail(LQ_E_NOMEM, "libvulkan.so.1 does not list its devices: %s", q_vk_result_name(r));
    if ((r == VK_SUCCESS || r == VK_INCOMPLETE) && count > Q_VK_DEVICES)
        return q_fail(LQ_E_UNSUPPORTED, "libvulkan.so.1 lists %u devices where it was given room for %d: not believed",
                      count, (int)Q_VK_DEVICES);
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        return q_fail(LQ_E_DEVICE, "libvulkan.so.1 does not list its devices: %s", q_vk_result_name(r));
    *n = count;
    return LQ_OK;
}

const char *q_vk_result_name(VkResult r) {
    static const struct {
        VkResult r;
        const char *name;
    } names[] = {
#define NAME(name) {VK_##name, #name},
        NAME(SUCCESS) NAME(NOT_READY) NAME(TIMEOUT) NAME(INCOMPLETE) NAME(ERROR_OUT_OF_HOST_MEMORY)
        NAME(ERROR_OUT_OF_DEVICE_MEMORY) NAME(ERROR_INITIALIZATION_FAILED) NAME(ERROR_DEVICE_LOST)
        NAME(ERROR_MEMORY_MAP_FAILED) NAME(ERROR_LAYER_NOT_PRESENT) NAME(ERROR_EXTENSION_NOT_PRESENT)
        NAME(ERROR_FEATURE_NOT_PRESENT) NAME(ERROR_INCOMPATIBLE_DRIVER) NAME(ERROR_TOO_MANY_OBJECTS)
        NAME(ERROR_FRAGMENTED_POOL) NAME(ERROR_UNKNOWN) NAME(ERROR_OUT_OF_POOL_MEMORY) NAME(ERROR_FRAGMENTATION)
        NAME(ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS) NAME(ERROR_INVALID_SHADER_NV)
#undef NAME
    };
    for (size_t i = 0; i < Q_COUNT(names); i++)
        if (names[i].r == r) return names[i].name;
    return "an unknown error";
}
