/* checksum.h: a hash for change detection over bytes that come in any pieces: what was written against what is read back.
 *
 * Four lanes of eight bytes each; not for security. Layer L1. */
#ifndef Q_CHECKSUM_H
#define Q_CHECKSUM_H

#include "base.h"

typedef struct q_checksum {
    uint64_t lane[4], total;
    uint8_t rest[32]; /* total % 32 bytes that do not fill a block yet */
} q_checksum;

static inline void q_checksum_block(q_checksum *h, const uint8_t *p) {
    for (uint32_t i = 0; i < 4; i++) {
        /* Each step is a bijection of the lane: one changed word always changes the result. */
        const uint64_t x = (h->lane[i] ^ q_load64(p + 8 * i)) * 0x9E3779B97F4A7C15u;
        h->lane[i] = x << 31 | x >> 33;
    }
}

static inline void q_checksum_add(q_checksum *h, const void *data, uint64_t n) {
    const uint8_t *p = (const uint8_t *)data;
    const uint64_t have = h->total % sizeof h->rest;
    h->total += n;
    if (have) {
        const uint64_t take = Q_MIN(n, sizeof h->rest - have);
        memcpy(h->rest + have, p, (size_t)take);
        p += take;
        n -= take;
        if (have + take < sizeof h->rest) return;
        q_checksum_block(h, h->rest);
    }
    for (; n >= sizeof h->rest; n -= sizeof h->rest, p += sizeof h->rest) q_checksum_block(h, p);
    if (n) memcpy(h->rest, p, (size_t)n);
}

static inline uint64_t q_checksum_end(const q_checksum *h) {
    q_checksum t = *h;
    const uint64_t have = t.total % sizeof t.rest;
    memset(t.rest + have, 0, (size_t)(sizeof t.rest - have));
    q_checksum_block(&t, t.rest);
    uint64_t r = t.total;
    for (uint32_t i = 0; i < 4; i++) r = (r ^ t.lane[i]) * 0xD6E8FEB86659FD93u, r ^= r >> 32;
    return r;
}

/* The same for large files, by pieces of Q_CHECKSUM_PIECE bytes, the last one shorter: what is written in order may be read
 * by several threads, each its own pieces. */
enum { Q_CHECKSUM_PIECE = 1 << 18 };
typedef struct q_piece_sums {
    uint64_t total, sum; /* bytes; of the whole pieces */
    q_checksum piece;    /* the one being filled */
} q_piece_sums;

/* What piece number i adds to the sum. */
static inline uint64_t q_checksum_piece(const q_checksum *piece, uint64_t i) {
    const uint64_t x = (q_checksum_end(piece) ^ (i + 1) * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u;
    return x ^ x >> 32;
}

static inline void q_piece_sums_add(q_piece_sums *h, const void *data, uint64_t n) {
    const uint8_t *p = (const uint8_t *)data;
    while (n) {
        const uint64_t take = Q_MIN(n, Q_CHECKSUM_PIECE - h->piece.total);
        q_checksum_add(&h->piece, p, take);
        p += take;
        n -= take;
        h->total += take;
        if (h->piece.total < Q_CHECKSUM_PIECE) return;
        h->sum += q_checksum_piece(&h->piece, h->total / Q_CHECKSUM_PIECE - 1);
        h->piece = (q_checksum){0};
    }
}

static inline uint64_t q_piece_sums_end(const q_piece_sums *h) {
    return h->piece.total ? h->sum + q_checksum_piece(&h->piece, h->total / Q_CHECKSUM_PIECE) : h->sum;
}

#endif
