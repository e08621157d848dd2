/* memory.c: the only caller of malloc and free, arenas, control groups, and what memory the process may still use.
 * Layer L0. */
#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
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
} header;

void *q_new_raw(const q_alloc *a, uint64_t count, uint64_t item) {
    uint64_t bytes;
    if (q_mul_overflow(count, item, &bytes) || q_add_overflow(bytes, Q_ALIGN, &bytes) || bytes > SIZE_MAX / 2) {
        q_fail(LQ_E_NOMEM, "a block of %llu items of %llu bytes does not fit the address space",
               (unsigned long long)count, (unsigned long long)item);
        return NULL;
    }
    uint8_t *p = (uint8_t *)a->alloc(a->user, (size_t)bytes, Q_ALIGN);
    if (!p) {
        const uint64_t left = a->alloc == libc_alloc ? q_address_space() : UINT64_MAX;
        q_fail(LQ_E_NOMEM, left == UINT64_MAX ? "out of memory: %llu bytes wanted"
                                              : "out of memory: %llu bytes wanted; %llu bytes of address space are left",
               (unsigned long long)bytes, (unsigned long long)left);
        return NULL;
    }
    ((header *)(void *)p)->bytes = bytes;
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
    uint8_t *block = (uint8_t *)p - Q_ALIGN;
    a->free(a->user, block, (size_t)((header *)(void *)block)->bytes);
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

/* ---- memory that is left */

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
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s%s", root, version == 1 ? "/" : "", version == 1 ? controller : "");
        visit_up(mount, path, version, visit, arg);
    }
    fclose(f);
}

/* What the group leaves, with the file pages that the kernel would drop for us counted as free, as MemAvailable does. */
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
