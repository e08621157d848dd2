/* memory.c: the only caller of malloc and free, arenas, control groups, and what memory the process may still use.
 * Layer L0. */
#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *libc_alloc(void *user, size_t bytes, size_t align) {
    Q_UNUSED(user);
    void *p = NULL;
    return posix_memalign(&p, align, bytes) == 0 ? p : NULL;
}
static void libc_free(void *user, void *ptr, size_t bytes) {
    Q_UNUSED(user);
    Q_UNUSED(bytes);
    free(ptr);
}
const q_alloc q_alloc_libc = {libc_alloc, libc_free, NULL};

/* Blocks carry their size in front, so that the hook's free can be told it. The header keeps the alignment. */
typedef struct header {
    uint64_t bytes;
    uint32_t before; /* bytes from where the block begins to what is in it: the header is their end */
    bool locked;
} header;

static void fail_alloc(const q_alloc *a, uint64_t bytes) {
    const uint64_t left = a->alloc == libc_alloc ? q_address_space() : UINT64_MAX;
    q_fail(LQ_E_NOMEM,
           left == UINT64_MAX ? "out of memory: %llu bytes wanted"
                              : "out of memory: %llu bytes wanted; %llu bytes of address space are left",
           (unsigned long long)bytes, (unsigned long long)left);
}

void *q_new_raw(const q_alloc *a, uint64_t count, uint64_t item) {
    uint64_t bytes;
    if (q_mul_overflow(count, item, &bytes) || q_add_overflow(bytes, Q_ALIGN, &bytes) || bytes > SIZE_MAX / 2) {
        q_fail(LQ_E_NOMEM, "a block of %llu items of %llu bytes does not fit the address space",
               (unsigned long long)count, (unsigned long long)item);
        return NULL;
    }
    uint8_t *p = (uint8_t *)a->alloc(a->user, (size_t)bytes, Q_ALIGN);
    if (!p) {
        fail_alloc(a, bytes);
        return NULL;
    }
    *(header *)(void *)p = (header){bytes, Q_ALIGN, false};
    return p + Q_ALIGN;
}

void *q_new(const q_alloc *a, uint64_t count, uint64_t item) {
    void *p = q_new_raw(a, count, item);
    if (p) memset(p, 0, (size_t)(count * item));
    return p;
}

void *q_grow(const q_alloc *a, void *p, uint64_t old_count, uint64_t count, uint64_t item) {
    void *q = q_new(a, count, item);
    if (q && p) {
        memcpy(q, p, (size_t)(Q_MIN(old_count, count) * item));
        q_delete(a, p);
    }
    return q;
}

void q_delete(const q_alloc *a, void *p) {
    if (!p) return;
    const header h = *(header *)(void *)((uint8_t *)p - Q_ALIGN);
    uint8_t *block = (uint8_t *)p - h.before;
    if (h.locked) munlock(block, (size_t)h.bytes);
    a->free(a->user, block, (size_t)h.bytes);
}

void q_memory_huge(void *p, uint64_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)p + page - 1) / page * page,
                    to = ((uintptr_t)p + (uintptr_t)bytes) / page * page;
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
    Q_UNUSED(p);
    Q_UNUSED(bytes);
#endif
}

/* ---- small files of the system */

static bool read_number(const char *path, const char *key, uint64_t *out) {
    FILE *f = fopen(path, "re");
    if (!f) return false;
    char line[256];
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        if (key && strncmp(line, key, strlen(key)) != 0) continue;
        const char *p = line + (key ? strlen(key) : 0);
        unsigned long long v;
        found = sscanf(p, "%llu", &v) == 1; /* cgroup's "max" is not a number: no limit */
        if (found) *out = v;
        if (!key) break;
    }
    fclose(f);
    return found;
}

/* ---- placing */

static uint64_t page_bytes(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

/* Locked and interleaved blocks share no page with others, whose life and place are not theirs. */
static bool has_pages(const q_placing *how) { return how->lock || how->nodes; }

enum { LARGE = 1 << 20, BOUNDARY = 4096 };

/* What is large begins at a boundary of 4 KiB, at which processors' own reading ahead ends and small pages do. */
static uint32_t before(uint64_t bytes) { return bytes < LARGE ? Q_ALIGN : BOUNDARY; }

uint64_t q_placed_bytes(const q_placing *how, uint64_t bytes) {
    uint64_t all;
    if (q_add_overflow(bytes, before(bytes), &all) || all > UINT64_MAX / 2) return UINT64_MAX / 2;
    return has_pages(how) ? q_round_up(all, page_bytes()) : all;
}

static bool interleave(void *p, uint64_t bytes, uint64_t nodes) {
#ifdef SYS_mbind
    enum { INTERLEAVE = 3 }; /* MPOL_INTERLEAVE of the kernel's interface; its mask of nodes has a bit to spare */
    unsigned long mask[2] = {(unsigned long)nodes, 0};
    return syscall(SYS_mbind, p, (unsigned long)bytes, INTERLEAVE, mask, 8 * sizeof mask, 0u) == 0;
#else
    Q_UNUSED(p);
    Q_UNUSED(bytes);
    Q_UNUSED(nodes);
    return false;
#endif
}

/* Why locking failed: mostly the limit. */
static void fail_lock(uint64_t bytes, const char *what) {
    struct rlimit r;
    uint64_t locked = 0;
    read_number("/proc/self/status", "VmLck:", &locked);
    if (getrlimit(RLIMIT_MEMLOCK, &r) != 0 || r.rlim_cur == RLIM_INFINITY) r.rlim_cur = 0;
    q_fail(
        LQ_E_NOMEM,
        "the system does not let %s (%llu bytes) be locked in memory; RLIMIT_MEMLOCK is %llu bytes, of which %llu are "
        "taken: raise it (ulimit -l, LimitMEMLOCK= of a service) or do not ask for locked memory",
        what, (unsigned long long)bytes, (unsigned long long)r.rlim_cur, (unsigned long long)locked * 1024);
}

void *q_new_placed(const q_alloc *a, const q_placing *how, uint64_t bytes, bool zeroed) {
    const uint64_t all = q_placed_bytes(how, bytes);
    const uint32_t head = before(bytes);
    const size_t align = has_pages(how) ? (size_t)Q_MAX(page_bytes(), (uint64_t)head) : head;
    uint8_t *p = all > SIZE_MAX / 2 ? NULL : (uint8_t *)a->alloc(a->user, (size_t)all, align);
    if (!p) {
        fail_alloc(a, all);
        return NULL;
    }
    if (how->huge) q_memory_huge(p, all);
    if (how->nodes && !interleave(p, all, how->nodes)) /* before anything is touched */
        q_fail(LQ_E_NOMEM, "the system does not interleave %llu bytes over NUMA nodes", (unsigned long long)all);
    else if (how->lock && mlock(p, (size_t)all) != 0) fail_lock(all, "a block");
    else {
        uint8_t *data = p + head;
        *(header *)(void *)(data - Q_ALIGN) = (header){all, head, how->lock};
        if (zeroed) memset(data, 0, (size_t)bytes);
        return data;
    }
    a->free(a->user, p, (size_t)all);
    return NULL;
}

uint64_t q_memory_lock_bytes(const void *p, uint64_t bytes) {
    const uint64_t page = page_bytes(), from = (uint64_t)(uintptr_t)p / page * page;
    return bytes ? q_round_up((uint64_t)(uintptr_t)p + bytes, page) - from : 0;
}

lq_status q_memory_lock(const void *p, uint64_t bytes, const char *what) {
    if (bytes == 0 || mlock(p, (size_t)bytes) == 0) return LQ_OK;
    fail_lock(bytes, what);
    return LQ_E_NOMEM;
}

bool q_memory_has_huge(const char *root) {
    char path[300], line[128] = "";
    snprintf(path, sizeof path, "%s/sys/kernel/mm/transparent_hugepage/enabled", root);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    const bool read = fgets(line, sizeof line, f) != NULL;
    fclose(f);
    return read && !strstr(line, "[never]");
}

/* "Mems_allowed_list: 0-1,4": nodes beyond the 64th are left out. */
uint64_t q_memory_nodes(const char *root) {
    char path[300], line[256];
    uint64_t nodes = 0;
    snprintf(path, sizeof path, "%s/proc/self/status", root);
    FILE *f = fopen(path, "re");
    if (!f) return 0;
    while (!nodes && fgets(line, sizeof line, f)) {
        static const char key[] = "Mems_allowed_list:";
        if (strncmp(line, key, sizeof key - 1) != 0) continue;
        for (char *p = line + sizeof key - 1; p; p = strchr(p, ',')) {
            unsigned from, to;
            if (*p == ',') p++;
            const int n = sscanf(p, "%u-%u", &from, &to);
            if (n == 1) to = from;
            for (; n >= 1 && from <= to && from < 64; from++) nodes |= 1ull << from;
        }
    }
    fclose(f);
    return nodes;
}

/* ---- arena: chunks that double from 4 KiB to 1 MiB; a large piece gets a chunk of its own */

struct q_arena_chunk {
    struct q_arena_chunk *next;
    uint64_t used, size;
};
enum { CHUNK_HEAD = 32, CHUNK_MIN = 4096, CHUNK_MAX = 1 << 20 };

void *q_arena_new(q_arena *arena, uint64_t count, uint64_t item) {
    uint64_t bytes;
    if (q_mul_overflow(count, item, &bytes) || bytes > SIZE_MAX / 4) {
        q_fail(LQ_E_NOMEM, "a block of %llu items of %llu bytes does not fit the address space",
               (unsigned long long)count, (unsigned long long)item);
        return NULL;
    }
    bytes = q_round_up(bytes ? bytes : 1, 16);
    if (arena->limit && arena->used + bytes > arena->limit) {
        q_fail(LQ_E_LIMIT, "needs more than the limit of %llu bytes of metadata", (unsigned long long)arena->limit);
        return NULL;
    }
    struct q_arena_chunk *c = arena->chunks;
    if (!c || c->size - c->used < bytes) {
        const uint64_t grown = c ? Q_MIN(c->size * 2, (uint64_t)CHUNK_MAX) : CHUNK_MIN;
        const uint64_t size = Q_MAX(grown, bytes + CHUNK_HEAD);
        struct q_arena_chunk *fresh = (struct q_arena_chunk *)q_new_raw(arena->alloc, size, 1);
        if (!fresh) return NULL;
        fresh->size = size;
        fresh->used = CHUNK_HEAD;
        /* Keep filling the old chunk when the new one was made for one large piece only. */
        if (c && bytes > CHUNK_MAX) {
            fresh->next = c->next;
            c->next = fresh;
        } else {
            fresh->next = c;
            arena->chunks = fresh;
        }
        c = fresh;
    }
    void *p = (uint8_t *)c + c->used;
    c->used += bytes;
    arena->used += bytes;
    memset(p, 0, (size_t)bytes);
    return p;
}

char *q_arena_str(q_arena *arena, q_str s) {
    char *p = (char *)q_arena_new(arena, s.n + 1, 1);
    if (p && s.n) memcpy(p, s.p, (size_t)s.n);
    return p;
}

void q_arena_free(q_arena *arena) {
    for (struct q_arena_chunk *c = arena->chunks; c;) {
        struct q_arena_chunk *next = c->next;
        q_delete(arena->alloc, c);
        c = next;
    }
    arena->chunks = NULL;
    arena->used = 0;
}

uint64_t q_arena_bytes(const q_arena *arena) {
    uint64_t bytes = 0;
    for (const struct q_arena_chunk *c = arena->chunks; c; c = c->next) bytes += q_new_bytes(c->size);
    return bytes;
}

/* ---- memory that is left */

/* The groups from `path` up to the root of its hierarchy. In a container the mount may show our own group as its root,
 * whatever the path says, which is why the root is always visited too. */
static void visit_up(const char *mount, char *path, int version, q_group_visit *visit, void *arg) {
    for (;;) {
        char folder[1400];
        if (strcmp(path, "/") == 0) path[0] = '\0';
        snprintf(folder, sizeof folder, "%s%s", mount, path);
        visit(folder, version, arg);
        char *slash = strrchr(path, '/');
        if (!slash) return;
        *slash = '\0';
    }
}

/* Is the name in the comma-separated list of v1 controllers? */
static bool names(const char *list, const char *controller) {
    const size_t n = strlen(controller);
    for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (strncmp(p, controller, n) == 0 && (p[n] == ',' || p[n] == '\0')) return true;
    return false;
}

void q_groups_visit(const char *root, const char *controller, q_group_visit *visit, void *arg) {
    char line[1024], mount[300];
    snprintf(line, sizeof line, "%s/proc/self/cgroup", root);
    FILE *f = fopen(line, "re");
    if (!f) return;
    while (fgets(line, sizeof line, f)) { /* "0::/path" or "4:cpu,cpuacct:/path" */
        line[strcspn(line, "\n")] = '\0';
        char *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;
        if (!path || path[1] != '/') continue;
        list++;
        *path++ = '\0';
        const int version = list[0] == '\0' ? 2 : 1;
        if (version == 1 && !names(list, controller)) continue;
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s%s", root, version == 1 ? "/" : "",
                 version == 1 ? controller : "");
        visit_up(mount, path, version, visit, arg);
    }
    fclose(f);
}

/* What the group leaves, with the file pages that the kernel would drop for us counted as free, as MemAvailable
 * does. */
static void group_memory(const char *folder, int version, void *arg) {
    static const char *const files[][3] = {{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_"},
                                           {"memory.max", "memory.current", ""}};
    const char *const *names_of = files[version == 2];
    uint64_t *best = (uint64_t *)arg, limit, used;
    char path[1500], key[40];
    snprintf(path, sizeof path, "%s/%s", folder, names_of[0]);
    if (!read_number(path, NULL, &limit)) return; /* "max": no limit */
    snprintf(path, sizeof path, "%s/%s", folder, names_of[1]);
    if (!read_number(path, NULL, &used)) return;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    for (int i = 0; i < 2; i++) {
        uint64_t cached = 0;
        snprintf(key, sizeof key, "%s%sactive_file ", names_of[2], i ? "in" : "");
        if (read_number(path, key, &cached)) used -= Q_MIN(cached, used);
    }
    *best = Q_MIN(*best, limit > used ? limit - used : 0);
}

uint64_t q_memory_physical(const char *root) {
    char path[300];
    uint64_t best = UINT64_MAX, kib;
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    if (read_number(path, "MemAvailable:", &kib)) best = kib * 1024;
    q_groups_visit(root, "memory", group_memory, &best);
    return best;
}

uint64_t q_address_space(void) {
    struct rlimit r;
    uint64_t pages;
    if (getrlimit(RLIMIT_AS, &r) != 0 || r.rlim_cur == RLIM_INFINITY) return UINT64_MAX;
    if (!read_number("/proc/self/statm", NULL, &pages)) return UINT64_MAX;
    const uint64_t mapped = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    return (uint64_t)r.rlim_cur > mapped ? (uint64_t)r.rlim_cur - mapped : 0;
}

uint64_t q_memory_available(void) { return Q_MIN(q_memory_physical(""), q_address_space()); }

lq_status q_memory_check(const char *what, uint64_t bytes, uint64_t untouched) {
    uint64_t space, have = q_memory_physical("");
    if (bytes <= have) {
        have = q_address_space();
        if (q_add_overflow(bytes, untouched, &space)) space = UINT64_MAX;
        if (space <= have) return LQ_OK;
        bytes = space;
    }
    return q_fail(LQ_E_NOMEM, "%s needs %llu bytes of memory (%.1f MiB); %llu bytes (%.1f MiB) are available", what,
                  (unsigned long long)bytes, (double)bytes / 1048576.0, (unsigned long long)have,
                  (double)have / 1048576.0);
}
