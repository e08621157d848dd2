/* memory.c: the only caller of malloc and free, arenas, and what memory the process may still use. Layer L0. */
#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
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
        q_fail(LQ_E_NOMEM, "out of memory: %llu bytes wanted", (unsigned long long)bytes);
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

uint64_t q_memory_available(void) {
    uint64_t best = UINT64_MAX, limit, used;
    if (read_number("/proc/meminfo", "MemAvailable:", &limit)) best = limit * 1024;
    static const char *const groups[][2] = {
        {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
    };
    for (size_t i = 0; i < Q_COUNT(groups); i++)
        if (read_number(groups[i][0], NULL, &limit) && read_number(groups[i][1], NULL, &used))
            best = Q_MIN(best, limit > used ? limit - used : 0);
    struct rlimit r;
    if (getrlimit(RLIMIT_AS, &r) == 0 && r.rlim_cur != RLIM_INFINITY) {
        uint64_t pages = 0;
        const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
        if (read_number("/proc/self/statm", NULL, &pages)) {
            const uint64_t mapped = pages * page;
            best = Q_MIN(best, (uint64_t)r.rlim_cur > mapped ? (uint64_t)r.rlim_cur - mapped : 0);
        }
    }
    return best;
}
