/* mock_vulkan.h: what a test tells the library that stands in for libvulkan.so.1, and what it learns of it. */
#ifndef MOCK_VULKAN_H
#define MOCK_VULKAN_H

#include <stdint.h>

typedef enum {
    MOCK_HONEST,
    MOCK_NO_DEVICES,
    MOCK_DEVICES_HUGE,    /* counts more devices than it was given room for */
    MOCK_INSTANCE_OLD,    /* Vulkan 1.1 */
    MOCK_DEVICE_OLD,      /* Vulkan 1.0 */
    MOCK_HEAPS_EMPTY,
    MOCK_HEAPS_TINY,      /* heap_bytes each */
    MOCK_HEAPS_NONE,      /* neither heaps nor types */
    MOCK_HEAPS_HUGE,      /* counts beyond the arrays */
    MOCK_HEAPS_ASTRAY,    /* types in heaps that are not there */
    MOCK_TYPES_UNMAPPED,  /* nothing that the processor can map */
    MOCK_BUDGET,          /* heap_bytes are left */
    MOCK_QUEUES_NONE,
    MOCK_QUEUES_GRAPHICS, /* none that computes */
    MOCK_QUEUES_HUGE,
    MOCK_FEATURES_NONE,
    MOCK_LIMITS_ZERO,
    MOCK_PUSH_NONE,
    MOCK_ALLOCATION_TINY,
    MOCK_EXTENSIONS_HUGE,
    MOCK_NAME_WILD,       /* a name without an end, of control characters */
    MOCK_LIES
} mock_lie;

typedef struct mock_vulkan {
    /* told */
    const char *real;     /* path of the library that does the work; NULL = there is none */
    mock_lie lie;
    uint64_t heap_bytes;
    long fail_at;         /* number of the call that fails, among those that can; 0 = none */
    int result;           /* with this */
    const char *missing;  /* this function is not there */
    /* learned */
    long calls;
    char failed[64];
    long handles;         /* made and not yet destroyed: of every kind */
    int64_t device_bytes; /* allocated now, and the most */
    int64_t device_most;
    long missed;          /* times that the missing function was asked for */
} mock_vulkan;

#endif
