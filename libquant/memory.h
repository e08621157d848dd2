/* memory.h: every allocation of the library, through one hook.
 *
 * malloc and free appear in memory.c alone (checked by tests/check_layers.sh). Blocks are Q_ALIGN-aligned. Layer L0. */
#ifndef Q_MEMORY_H
#define Q_MEMORY_H

#include "status.h"

typedef lq_allocator q_alloc;

/* The C library's allocator; what a NULL hook means. */
extern const q_alloc q_alloc_libc;

/* `count` items of `item` bytes, zeroed; NULL on overflow or exhaustion, with the sentence set (LQ_E_NOMEM).
 * count == 0 gives a valid block. */
void *q_new(const q_alloc *a, uint64_t count, uint64_t item);
/* The same without zeroing, for buffers that are wholly overwritten before they are read. */
void *q_new_raw(const q_alloc *a, uint64_t count, uint64_t item);
/* Grow to `count` items; contents kept, new items zeroed; NULL leaves the old block valid. */
void *q_grow(const q_alloc *a, void *p, uint64_t old_count, uint64_t count, uint64_t item);
/* Size is kept in a header before the block. p may be NULL. */
void q_delete(const q_alloc *a, void *p);

/* How large blocks lie in memory (lq_options; placing.c chooses). */
typedef struct q_placing {
    bool huge;      /* ask for huge pages: a hint, which the system need not follow */
    bool lock;      /* keep in memory */
    uint64_t nodes; /* NUMA nodes over which pages are interleaved, by bits; 0 = each where it is first touched */
} q_placing;
/* A block placed so; released by q_delete. NULL with the sentence set (LQ_E_NOMEM) when there is no memory, or none
 * that may be locked. */
void *q_new_placed(const q_alloc *a, const q_placing *how, uint64_t bytes, bool zeroed);
/* What that asks of the allocator: locked and interleaved blocks have pages of their own. */
uint64_t q_placed_bytes(const q_placing *how, uint64_t bytes);
/* Keep a part of a mapping in memory until it is unmapped, and what that locks: whole pages. `what` is for the
 * sentence. */
lq_status q_memory_lock(const void *p, uint64_t bytes, const char *what);
uint64_t q_memory_lock_bytes(const void *p, uint64_t bytes);
/* Does the system give huge pages to who asks? NUMA nodes that this process may use, by bits. `root` as below. */
bool q_memory_has_huge(const char *root);
uint64_t q_memory_nodes(const char *root);

/* A hint that the system may back a block by huge pages: filling it then takes fewer faults. */
void q_memory_huge(void *p, uint64_t bytes);

#define Q_NEW(a, type, count) ((type *)q_new((a), (uint64_t)(count), sizeof(type)))

/* An arena: many small pieces with one life, freed at once. Zero-initialize, set `alloc`. */
typedef struct q_arena {
    const q_alloc *alloc;
    struct q_arena_chunk *chunks;
    uint64_t used, limit; /* bytes handed out; limit 0 = none, otherwise exceeding it is LQ_E_LIMIT */
} q_arena;
/* Zeroed, 16-byte aligned; NULL on exhaustion (sentence set). */
void *q_arena_new(q_arena *arena, uint64_t count, uint64_t item);
/* A NUL-terminated copy. */
char *q_arena_str(q_arena *arena, q_str s);
void q_arena_free(q_arena *arena);
/* What it holds of the allocator's, headers and rests of chunks included. */
uint64_t q_arena_bytes(const q_arena *arena);
/* What q_new of so many bytes asks of the allocator: the block and its header. */
static inline uint64_t q_new_bytes(uint64_t bytes) { return bytes + Q_ALIGN; }

/* Bytes of memory this process may still use: the least of available RAM, what the limits of its control groups leave
 * (v1 and v2, each group up to the root), and RLIMIT_AS. UINT64_MAX where nothing is known. */
uint64_t q_memory_available(void);
/* Its two parts: memory, by /proc and /sys below `root` ("" but in tests); address space. */
uint64_t q_memory_physical(const char *root);
uint64_t q_address_space(void);
/* LQ_E_NOMEM "WHAT needs .. bytes of memory; .. bytes are available" when they are not. `untouched` bytes more are only
 * address space: the stacks of threads. */
lq_status q_memory_check(const char *what, uint64_t bytes, uint64_t untouched);

/* The control groups that this process is in for a controller ("memory", "cpu"), each up to the root of its hierarchy:
 * `folder` holds the files of that version (1 or 2). */
typedef void q_group_visit(const char *folder, int version, void *arg);
void q_groups_visit(const char *root, const char *controller, q_group_visit *visit, void *arg);

#endif
