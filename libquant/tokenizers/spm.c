/* spm.c: the SentencePiece BPE tokenizer: reads tokenizer.model, merges characters to pieces by score.
 *
 * Owns the protobuf reader of that file and the encoder. Gives the ids that SentencePiece gives for every valid UTF-8
 * text, with three documented differences: invalid UTF-8 is kept byte by byte through the byte tokens (SentencePiece
 * replaces it); a control token that is one character long never comes out of plain text; a space that no piece has
 * becomes the byte token <0x20>, so that it comes back as a space. As in SentencePiece a U+2581 in the text cannot be
 * told from a space and comes back as one. Refuses unigram models and files that ask for
 * a normalization we do not have: a wrong tokenizer is worse than none. Layer L2.
 *
 * How the encoder works. Text and pieces are first made canonical: U+2581 becomes a plain space, which is one byte.
 * The text is cut where no piece of the vocabulary can span: between two characters that stand side by side in no
 * piece, which in practice means words. Cutting there changes nothing and keeps the working memory small. Within a
 * fragment the candidates for merging lie in a heap of runs, best score first, leftmost first among equals. */
#include "../tokenizer.h"

/* ------------------------------------------------------------------------------------------------ tokenizer.model */

/* A reader of protobuf fields that never leaves [p, end). `base` is for messages: offsets in the file. */
typedef struct reader {
    const uint8_t *p, *end, *base;
} reader;

typedef struct field {
    uint32_t number, wire;
    uint64_t value;   /* varint, or the 4 bytes of a fixed32 */
    reader bytes;     /* length-delimited */
} field;

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

static unsigned long long at(const reader *r) { return (unsigned long long)(r->p - r->base); }

static lq_status truncated(const reader *r, const char *what) {
    return q_fail(LQ_E_TRUNCATED, "tokenizer.model: %s at byte %llu is cut off", what, at(r));
}

static lq_status read_varint(reader *r, uint64_t *out) {
    uint64_t v = 0;
    for (uint32_t shift = 0; shift < 70; shift += 7) {
        if (r->p == r->end) return truncated(r, "a number");
        const uint8_t b = *r->p++;
        v |= shift < 63 ? (uint64_t)(b & 127) << shift : (uint64_t)(b & 1) << 63;
        if (b < 128) {
            *out = v;
            return LQ_OK;
        }
    }
    return q_fail(LQ_E_FORMAT, "tokenizer.model: the number before byte %llu is longer than 10 bytes", at(r));
}

static lq_status read_field(reader *r, field *f) {
    uint64_t tag, n;
    *f = (field){0};
    Q_TRY(read_varint(r, &tag));
    if (tag >> 3 == 0 || tag >> 32) return q_fail(LQ_E_FORMAT, "tokenizer.model: bad field before byte %llu", at(r));
    f->number = (uint32_t)(tag >> 3);
    f->wire = (uint32_t)(tag & 7);
    switch (f->wire) {
    case WIRE_VARINT: return read_varint(r, &f->value);
    case WIRE_64:
        if (r->end - r->p < 8) return truncated(r, "a field");
        f->value = q_load64(r->p);
        r->p += 8;
        return LQ_OK;
    case WIRE_32:
        if (r->end - r->p < 4) return truncated(r, "a field");
        f->value = q_load32(r->p);
        r->p += 4;
        return LQ_OK;
    case WIRE_BYTES:
        Q_TRY(read_varint(r, &n));
        if (n > (uint64_t)(r->end - r->p)) return truncated(r, "a field");
        f->bytes = (reader){r->p, r->p + n, r->base};
        r->p += n;
        return LQ_OK;
    default: /* groups nest without a length and no SentencePiece file has them */
        return q_fail(LQ_E_FORMAT, "tokenizer.model: wire type %u before byte %llu", f->wire, at(r));
    }
}

static lq_status want(const reader *r, const field *f, uint32_t wire) {
    if (f->wire == wire) return LQ_OK;
    return q_fail(LQ_E_FORMAT, "tokenizer.model: field %u before byte %llu has wire type %u, not %u", f->number, at(r),
                  f->wire, wire);
}

/* What of trainer_spec and normalizer_spec matters here, with the defaults of the format. */
typedef struct spec {
    uint64_t model_type; /* 1 unigram, 2 BPE, 3 word, 4 char */
    bool byte_fallback, space_as_suffix;
    int64_t unk, bos, eos, pad;
    bool add_dummy_prefix, remove_extra_spaces, escape_spaces;
    uint64_t charsmap_bytes, denormalizer_bytes;
    q_str normalizer;
    uint64_t n_pieces, piece_bytes;
    bool has_trainer, has_normalizer;
} spec;

static lq_status read_trainer(reader r, spec *s) {
    while (r.p < r.end) {
        field f;
        Q_TRY(read_field(&r, &f));
        switch (f.number) {
        case 3: case 24: case 35: case 40: case 41: case 42: case 43: Q_TRY(want(&r, &f, WIRE_VARINT)); break;
        default: continue;
        }
        const int64_t id = (int64_t)(int32_t)(uint32_t)f.value; /* int32 fields: -1 is written as ten bytes */
        switch (f.number) {
        case 3: s->model_type = f.value; break;
        case 24: s->space_as_suffix = f.value != 0; break;
        case 35: s->byte_fallback = f.value != 0; break;
        case 40: s->unk = id; break;
        case 41: s->bos = id; break;
        case 42: s->eos = id; break;
        default: s->pad = id; break;
        }
    }
    return LQ_OK;
}

static lq_status read_normalizer(reader r, bool forward, spec *s) {
    while (r.p < r.end) {
        field f;
        Q_TRY(read_field(&r, &f));
        if (f.number < 1 || f.number > 5) continue;
        Q_TRY(want(&r, &f, f.number <= 2 ? WIRE_BYTES : WIRE_VARINT));
        const uint64_t n = (uint64_t)(f.bytes.end - f.bytes.p);
        if (!forward) {
            if (f.number == 2) s->denormalizer_bytes = n;
            continue;
        }
        switch (f.number) {
        case 1: s->normalizer = (q_str){(const char *)f.bytes.p, n}; break;
        case 2: s->charsmap_bytes = n; break;
        case 3: s->add_dummy_prefix = f.value != 0; break;
        case 4: s->remove_extra_spaces = f.value != 0; break;
        default: s->escape_spaces = f.value != 0; break;
        }
    }
    return LQ_OK;
}

typedef struct piece_fields {
    q_str text;
    float score;
    uint64_t type;
} piece_fields;

static lq_status read_piece(reader r, piece_fields *out) {
    *out = (piece_fields){.type = Q_TOKEN_NORMAL};
    while (r.p < r.end) {
        field f;
        Q_TRY(read_field(&r, &f));
        if (f.number == 1) {
            Q_TRY(want(&r, &f, WIRE_BYTES));
            out->text = (q_str){(const char *)f.bytes.p, (uint64_t)(f.bytes.end - f.bytes.p)};
        } else if (f.number == 2) {
            Q_TRY(want(&r, &f, WIRE_32));
            out->score = q_bits_f32((uint32_t)f.value);
        } else if (f.number == 3) {
            Q_TRY(want(&r, &f, WIRE_VARINT));
            out->type = f.value;
        }
    }
    return LQ_OK;
}

/* First pass: the whole file is walked and counted before anything is allocated. */
static lq_status survey(reader r, spec *s) {
    *s = (spec){.model_type = 1, .unk = 0, .bos = 1, .eos = 2, .pad = -1,
                .add_dummy_prefix = true, .remove_extra_spaces = true, .escape_spaces = true};
    while (r.p < r.end) {
        field f;
        Q_TRY(read_field(&r, &f));
        if (f.number < 1 || f.number > 5 || f.number == 4) continue;
        Q_TRY(want(&r, &f, WIRE_BYTES));
        if (f.number == 1) {
            piece_fields p;
            Q_TRY(read_piece(f.bytes, &p));
            if (p.text.n == 0)
                return q_fail(LQ_E_INCONSISTENT, "tokenizer.model: piece %llu is empty",
                              (unsigned long long)s->n_pieces);
            if (p.type < 1 || p.type > 6)
                return q_fail(LQ_E_INCONSISTENT, "tokenizer.model: piece %llu has unknown type %llu",
                              (unsigned long long)s->n_pieces, (unsigned long long)p.type);
            s->n_pieces++;
            s->piece_bytes += p.text.n;
        } else if (f.number == 2) {
            s->has_trainer = true;
            Q_TRY(read_trainer(f.bytes, s));
        } else {
            s->has_normalizer |= f.number == 3;
            Q_TRY(read_normalizer(f.bytes, f.number == 3, s));
        }
    }
    return LQ_OK;
}

static lq_status refuse_unsupported(const spec *s) {
    static const char *const kinds[] = {"?", "unigram", "BPE", "word", "char"};
    /* The messages have no end of their own, and SentencePiece writes both after the pieces. */
    if (s->n_pieces && (!s->has_trainer || !s->has_normalizer))
        return q_fail(LQ_E_TRUNCATED, "tokenizer.model ends before its %s",
                      s->has_trainer ? "normalizer_spec" : "trainer_spec");
    if (s->model_type != 2)
        return q_fail(LQ_E_UNSUPPORTED, "tokenizer.model: trainer_spec.model_type is %llu (%s); this tokenizer is BPE",
                      (unsigned long long)s->model_type, kinds[s->model_type <= 4 ? s->model_type : 0]);
    if (s->charsmap_bytes)
        return q_fail(LQ_E_UNSUPPORTED,
                      "tokenizer.model: normalizer_spec.precompiled_charsmap (\"%.*s\", %llu bytes) is not supported; "
                      "only identity normalization is", Q_STR_ARG(s->normalizer),
                      (unsigned long long)s->charsmap_bytes);
    if (s->denormalizer_bytes)
        return q_fail(LQ_E_UNSUPPORTED, "tokenizer.model: denormalizer_spec.precompiled_charsmap is not supported");
    if (!s->escape_spaces)
        return q_fail(LQ_E_UNSUPPORTED, "tokenizer.model: normalizer_spec.escape_whitespaces = false is not supported");
    if (s->space_as_suffix)
        return q_fail(LQ_E_UNSUPPORTED,
                      "tokenizer.model: trainer_spec.treat_whitespace_as_suffix is not supported");
    if (s->n_pieces == 0) return q_fail(LQ_E_INCONSISTENT, "tokenizer.model has no pieces");
    if (s->n_pieces > Q_LIMIT_VOCAB)
        return q_fail(LQ_E_LIMIT, "tokenizer.model has %llu pieces; at most %d are supported",
                      (unsigned long long)s->n_pieces, Q_LIMIT_VOCAB);
    return LQ_OK;
}

static lq_status special_id(const char *name, int64_t id, uint64_t n, int32_t *out) {
    if (id >= (int64_t)n)
        return q_fail(LQ_E_INCONSISTENT, "tokenizer.model: trainer_spec.%s is %lld in a vocabulary of %llu", name,
                      (long long)id, (unsigned long long)n);
    *out = id < 0 ? -1 : (int32_t)id; /* SentencePiece: negative = there is none */
    return LQ_OK;
}

static lq_status from_file(const uint8_t *data, uint64_t n, q_vocab *vocab) {
    reader r = {data, data + n, data};
    spec s;
    Q_TRY(survey(r, &s));
    Q_TRY(refuse_unsupported(&s));
    int32_t unk = -1, bos = -1, eos = -1, pad = -1;
    Q_TRY(special_id("unk_id", s.unk, s.n_pieces, &unk));
    Q_TRY(special_id("bos_id", s.bos, s.n_pieces, &bos));
    Q_TRY(special_id("eos_id", s.eos, s.n_pieces, &eos));
    Q_TRY(special_id("pad_id", s.pad, s.n_pieces, &pad));
    q_str *pieces = (q_str *)q_arena_new(&vocab->arena, s.n_pieces, sizeof *pieces);
    float *scores = (float *)q_arena_new(&vocab->arena, s.n_pieces, sizeof *scores);
    int32_t *types = (int32_t *)q_arena_new(&vocab->arena, s.n_pieces, sizeof *types);
    char *bytes = (char *)q_arena_new(&vocab->arena, s.piece_bytes, 1);
    if (!pieces || !scores || !types || !bytes) return LQ_E_NOMEM;
    uint32_t n_bytes = 0;
    for (uint64_t i = 0; r.p < r.end;) {
        field f;
        piece_fields p;
        Q_TRY(read_field(&r, &f));
        if (f.number != 1) continue;
        Q_TRY(read_piece(f.bytes, &p));
        memcpy(bytes, p.text.p, (size_t)p.text.n);
        pieces[i] = (q_str){bytes, p.text.n};
        bytes += p.text.n;
        scores[i] = p.score;
        types[i++] = (int32_t)p.type;
        n_bytes += p.type == Q_TOKEN_BYTE;
    }
    if (s.byte_fallback ? n_bytes != 256 : n_bytes != 0)
        return q_fail(LQ_E_INCONSISTENT, "tokenizer.model: trainer_spec.byte_fallback is %s, but there are %u byte "
                      "tokens", s.byte_fallback ? "true" : "false", n_bytes);
    vocab->n = (int32_t)s.n_pieces;
    vocab->pieces = pieces;
    vocab->scores = scores;
    vocab->types = types;
    vocab->unk = unk;
    vocab->bos = bos;
    vocab->eos = eos;
    vocab->pad = pad;
    vocab->add_space_prefix = s.add_dummy_prefix;
    vocab->remove_extra_spaces = s.remove_extra_spaces;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ look-up tables */

typedef struct cell {
    uint32_t tag;
    int32_t id; /* + 1; 0 = empty */
} cell;

typedef struct state {
    const q_alloc *alloc;
    const q_vocab *vocab;
    q_str *canon;        /* [n] pieces with spaces for U+2581; control tokens as they are */
    char *bytes;         /* their bytes */
    uint32_t *order;     /* [n] of the score: smaller merges first */
    cell *cells;         /* pieces that merging may form: canonical bytes -> id */
    uint32_t mask;
    uint32_t longest;    /* of those, in bytes */
    uint64_t seed;       /* differs from run to run: a file cannot aim at one hash chain */
    int32_t ascii[128];  /* id of a character alone; -1 = none */
    int32_t byte_id[256];
    uint64_t *joints;    /* bit set of hashed character pairs that occur inside a piece */
    uint64_t joint_mask;
    q_match user;        /* user-defined pieces */
    bool resegment;      /* merging can form an unused piece, which is then taken apart again */
} state;

enum { SPACE_BYTES = 3, CODE_INVALID = 0x110000 };

static bool is_space_sign(const char *p, uint64_t n) { return n >= SPACE_BYTES && memcmp(p, "\xE2\x96\x81", 3) == 0; }

/* The character at p (n >= 1): its bytes; `code` gets the code point, or CODE_INVALID + byte, alone, when no valid
 * UTF-8 sequence begins here. */
static uint32_t character(const char *text, uint64_t n, uint32_t *code) {
    const uint8_t *p = (const uint8_t *)text;
    const uint32_t b = p[0];
    *code = b;
    if (b < 0x80) return 1;
    *code = CODE_INVALID + b;
    const uint32_t len = b >= 0xF0 ? 4 : b >= 0xE0 ? 3 : 2;
    if (b < 0xC2 || b > 0xF4 || n < len) return 1;
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t c = b & (0x7Fu >> len);
    for (uint32_t i = 1; i < len; i++) {
        if ((p[i] & 0xC0) != 0x80) return 1;
        c = c << 6 | (p[i] & 0x3Fu);
    }
    if (c < least[len] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return 1;
    *code = c;
    return len;
}

static inline uint64_t mix(uint64_t h) {
    h ^= h >> 32;
    h *= 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}
static uint64_t hash(uint64_t seed, const char *p, uint32_t n) {
    uint64_t h = mix(seed + n);
    for (; n > 8; n -= 8, p += 8) h = mix(h ^ q_load64(p)) * 0xD6E8FEB86659FD93u;
    uint64_t tail = 0;
    if (n >= 4) tail = q_load32(p) | (uint64_t)q_load32(p + n - 4) << 32;
    else if (n) tail = (uint8_t)p[0] | (uint64_t)(uint8_t)p[n / 2] << 8 | (uint64_t)(uint8_t)p[n - 1] << 16;
    return mix(mix(h ^ tail) * 0xD6E8FEB86659FD93u);
}

static int32_t find_piece(const state *st, const char *p, uint32_t n) {
    if (n > st->longest) return -1;
    const uint64_t h = hash(st->seed, p, n);
    for (uint32_t i = (uint32_t)h & st->mask;; i = (i + 1) & st->mask) {
        const cell c = st->cells[i];
        if (c.id == 0) return -1;
        if (c.tag != (uint32_t)(h >> 32)) continue;
        const q_str s = st->canon[c.id - 1];
        if (s.n == n && memcmp(s.p, p, n) == 0) return c.id - 1;
    }
}

static inline uint64_t joint_bit(const state *st, uint32_t left, uint32_t right) {
    /* ASCII pairs have bits of their own: the first 16384. */
    if (left < 128 && right < 128) return left * 128 + right;
    return 16384 + (mix(st->seed ^ ((uint64_t)left << 32 | right)) & st->joint_mask);
}
static inline bool can_join(const state *st, uint32_t left, uint32_t right) {
    const uint64_t bit = joint_bit(st, left, right);
    return st->joints[bit / 64] >> (bit % 64) & 1;
}

static bool mergeable(int32_t type) { return type == Q_TOKEN_NORMAL || type == Q_TOKEN_UNUSED; }

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}
/* The byte that "<0x0A>" stands for; -1 when it is not spelled like that. */
static int32_t byte_value(q_str s) {
    if (s.n != 6 || memcmp(s.p, "<0x", 3) != 0 || s.p[5] != '>') return -1;
    const int high = hex_digit(s.p[3]), low = hex_digit(s.p[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Copy s with U+2581 as a space; returns the bytes written. */
static uint64_t canonical(q_str s, char *out) {
    uint64_t n = 0;
    for (uint64_t i = 0; i < s.n;) {
        const bool space = is_space_sign(s.p + i, s.n - i);
        out[n++] = space ? ' ' : s.p[i];
        i += space ? SPACE_BYTES : 1;
    }
    return n;
}

static void add_joints(state *st, q_str s) {
    uint32_t left = 0, right;
    for (uint64_t i = 0; i < s.n; left = right) {
        const uint32_t n = character(s.p + i, s.n - i, &right);
        if (i) {
            const uint64_t bit = joint_bit(st, left, right);
            st->joints[bit / 64] |= 1ull << (bit % 64);
        }
        i += n;
    }
}

/* Whether merging could form this unused piece: some cut leaves two parts that a fragment may hold. A guess that is
 * too high costs speed alone. */
static bool formable(const state *st, q_str s) {
    uint32_t code;
    if (s.n > 256) return true;
    const uint32_t first = character(s.p, s.n, &code);
    for (uint32_t i = first; i < s.n; i += character(s.p + i, s.n - i, &code)) {
        const bool left = i == first || find_piece(st, s.p, i) >= 0;
        const uint32_t rest = (uint32_t)s.n - i;
        if (left && (character(s.p + i, rest, &code) == rest || find_piece(st, s.p + i, rest) >= 0)) return true;
    }
    return false;
}

static void put_piece(state *st, int32_t id) {
    const q_str s = st->canon[id];
    const uint64_t h = hash(st->seed, s.p, (uint32_t)s.n);
    uint32_t i = (uint32_t)h & st->mask;
    while (st->cells[i].id) i = (i + 1) & st->mask;
    st->cells[i] = (cell){(uint32_t)(h >> 32), id + 1};
    st->longest = Q_MAX(st->longest, (uint32_t)s.n);
    if (s.n == 1 && (uint8_t)s.p[0] < 128) st->ascii[(uint8_t)s.p[0]] = id;
    add_joints(st, s);
}

static lq_status fill_tables(state *st, int32_t *user, uint32_t *n_user) {
    const q_vocab *v = st->vocab;
    char *to = st->bytes;
    for (int32_t i = 0; i < v->n; i++) {
        const int32_t type = v->types[i];
        const bool keep = type == Q_TOKEN_CONTROL;
        st->canon[i] = (q_str){to, v->pieces[i].n};
        if (keep) memcpy(to, v->pieces[i].p, (size_t)v->pieces[i].n);
        else st->canon[i].n = canonical(v->pieces[i], to);
        to += st->canon[i].n;
        const uint32_t bits = q_f32_bits(v->scores[i] + 0.0f); /* -0 is 0 */
        st->order[i] = ~(bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u));
        /* Spaces in text are U+2581 by the time pieces are sought: one with a plain space is never found. */
        const bool plain_space = memchr(v->pieces[i].p, ' ', (size_t)v->pieces[i].n) != NULL;
        if (type == Q_TOKEN_USER && !plain_space) user[(*n_user)++] = i;
        if (mergeable(type) && !plain_space) put_piece(st, i);
        if (type == Q_TOKEN_BYTE) {
            const int32_t byte = byte_value(v->pieces[i]);
            if (byte < 0 || st->byte_id[byte] >= 0)
                return q_fail(LQ_E_INCONSISTENT, "token %d, \"%.*s\", is not a byte token or stands for a byte that "
                              "another token has", i, Q_STR_ARG(v->pieces[i]));
            st->byte_id[byte] = i;
        }
    }
    for (int32_t i = 0; i < v->n && !st->resegment; i++)
        st->resegment = v->types[i] == Q_TOKEN_UNUSED && formable(st, st->canon[i]);
    return LQ_OK;
}

static void spm_close(void *p) {
    state *st = (state *)p;
    if (!st) return;
    q_match_free(st->alloc, &st->user);
    q_delete(st->alloc, st->canon);
    q_delete(st->alloc, st->bytes);
    q_delete(st->alloc, st->order);
    q_delete(st->alloc, st->cells);
    q_delete(st->alloc, st->joints);
    q_delete(st->alloc, st);
}

static lq_status spm_open(const q_alloc *a, const q_vocab *vocab, void **out) {
    if (vocab->n < 1 || vocab->n > Q_LIMIT_VOCAB)
        return q_fail(LQ_E_LIMIT, "a vocabulary of %d tokens; 1 to %d are supported", vocab->n, Q_LIMIT_VOCAB);
    uint64_t bytes = 0, cells = 16, joints = 4096;
    for (int32_t i = 0; i < vocab->n; i++) {
        if (vocab->pieces[i].n > Q_LIMIT_PIECE)
            return q_fail(LQ_E_INCONSISTENT, "token %d has %llu bytes; at most %d are supported", i,
                          (unsigned long long)vocab->pieces[i].n, Q_LIMIT_PIECE);
        bytes += vocab->pieces[i].n;
    }
    while (cells < (uint64_t)vocab->n * 2) cells *= 2;
    while (joints < bytes * 4 && joints < 1u << 26) joints *= 2; /* at most 8 MiB: a crowded set only joins more */
    state *st = Q_NEW(a, state, 1);
    if (!st) return LQ_E_NOMEM;
    st->alloc = a;
    st->vocab = vocab;
    st->seed = mix((uint64_t)(uintptr_t)st);
    st->mask = (uint32_t)(cells - 1);
    st->joint_mask = joints - 1;
    for (uint32_t i = 0; i < 128; i++) st->ascii[i] = -1;
    for (uint32_t i = 0; i < 256; i++) st->byte_id[i] = -1;
    st->canon = Q_NEW(a, q_str, vocab->n);
    st->bytes = Q_NEW(a, char, bytes);
    st->order = Q_NEW(a, uint32_t, vocab->n);
    st->cells = Q_NEW(a, cell, cells);
    st->joints = Q_NEW(a, uint64_t, (16384 + joints) / 64);
    int32_t *user = Q_NEW(a, int32_t, vocab->n);
    uint32_t n_user = 0;
    lq_status s = st->canon && st->bytes && st->order && st->cells && st->joints && user ? LQ_OK : LQ_E_NOMEM;
    if (s == LQ_OK) s = fill_tables(st, user, &n_user);
    if (s == LQ_OK) s = q_match_build(a, st->canon, user, n_user, &st->user);
    q_delete(a, user);
    if (s != LQ_OK) spm_close(st);
    else *out = st;
    return s;
}

/* ------------------------------------------------------------------------------------------------ encode */

/* Candidates of one piece are found mostly from left to right, so they are kept as runs of ascending positions, and
 * the heap holds the first of each run: megabytes of one character are a handful of runs. */
typedef struct candidate {
    uint32_t symbol; /* the left one of the pair */
    uint32_t link;   /* the next of the run, or of the free list; NONE = the last */
} candidate;
typedef struct run {
    uint64_t key;    /* order of the score << 32 | symbol of the first candidate; the least on top */
    uint32_t first;
    int32_t id;      /* of the piece */
} run;

/* One fragment: symbols 0 .. n-1, at first one per character, as a linked list. Symbol i spans
 * [start[i], start[next[i]]) of `text`; the symbol n is the end. */
typedef struct work {
    const state *st;
    lq_status (*emit)(void *user, int32_t id);
    void *user;
    const char *text;
    uint32_t *start;
    int32_t *id;     /* of the symbol; -1 = unknown, FROZEN = a user-defined piece */
    uint32_t *next, *prev;
    int32_t *pair;   /* id of the symbol joined with its right neighbour; -1 = no such piece */
    candidate *list;
    uint32_t n, cap, cap_merge, n_list, free_list;
    run *heap;
    uint32_t n_heap, cap_heap;
    uint32_t *last;  /* [vocabulary] of each piece: last candidate of its newest run + 1; 0 = no run */
    uint32_t *split; /* [vocabulary] of unused pieces: bytes of the left part they were last seen made of */
    bool after_unknown;
} work;

enum { FROZEN = 1 << 30, ARY = 4 };
#define NONE UINT32_MAX /* no enumerator: those are signed */

static lq_status heap_push(work *w, run r) {
    if (w->n_heap == w->cap_heap) {
        const uint32_t cap = w->cap_heap ? w->cap_heap * 2 : 64;
        run *fresh = (run *)q_grow(w->st->alloc, w->heap, w->cap_heap, cap, sizeof *fresh);
        if (!fresh) return LQ_E_NOMEM;
        w->heap = fresh;
        w->cap_heap = cap;
    }
    uint32_t i = w->n_heap++;
    for (uint32_t up; i && w->heap[up = (i - 1) / ARY].key > r.key; i = up) w->heap[i] = w->heap[up];
    w->heap[i] = r;
    return LQ_OK;
}

/* Put r where the top was. */
static void heap_replace(work *w, run r) {
    uint32_t i = 0;
    for (uint32_t c; (c = ARY * i + 1) < w->n_heap;) {
        uint32_t best = c;
        const uint32_t end = Q_MIN(c + ARY, w->n_heap);
        for (uint32_t k = c + 1; k < end; k++)
            if (w->heap[k].key < w->heap[best].key) best = k;
        if (w->heap[best].key >= r.key) break;
        w->heap[i] = w->heap[best];
        i = best;
    }
    w->heap[i] = r;
}

static uint64_t key_of(const work *w, int32_t id, uint32_t symbol) { return (uint64_t)w->st->order[id] << 32 | symbol; }

/* At most 2 n candidates live at once: n - 1 at the start, and each of n - 1 merges takes one and adds two. */
static lq_status push(work *w, uint32_t symbol, int32_t id) {
    const uint32_t c = w->free_list == NONE ? w->n_list++ : w->free_list;
    if (c == w->free_list) w->free_list = w->list[c].link;
    w->list[c] = (candidate){symbol, NONE};
    const uint32_t last = w->last[id];
    w->last[id] = c + 1;
    if (!last || w->list[last - 1].symbol > symbol) return heap_push(w, (run){key_of(w, id, symbol), c, id});
    w->list[last - 1].link = c;
    return LQ_OK;
}

static uint64_t pop(work *w) {
    run top = w->heap[0];
    const uint64_t key = top.key;
    const uint32_t c = top.first, link = w->list[c].link;
    if (link != NONE) {
        top.first = link;
        top.key = key_of(w, top.id, w->list[link].symbol);
        heap_replace(w, top);
    } else {
        if (w->last[top.id] == c + 1) w->last[top.id] = 0; /* an empty heap leaves `last` zeroed */
        w->n_heap--;
        if (w->n_heap) heap_replace(w, w->heap[w->n_heap]);
    }
    w->list[c].link = w->free_list;
    w->free_list = c;
    return key;
}

/* Look up symbol i joined with its neighbour; a piece found becomes a candidate. */
static lq_status consider(work *w, uint32_t i) {
    const uint32_t j = w->next[i];
    w->pair[i] = -1;
    if (j == w->n || w->id[i] >= FROZEN || w->id[j] >= FROZEN) return LQ_OK;
    const uint32_t bytes = w->start[w->next[j]] - w->start[i];
    const int32_t id = find_piece(w->st, w->text + w->start[i], bytes);
    if (id < 0) return LQ_OK;
    w->pair[i] = id;
    if (w->split && w->st->vocab->types[id] == Q_TOKEN_UNUSED) w->split[id] = w->start[j] - w->start[i];
    return push(w, i, id);
}

static lq_status merge(work *w) {
    w->n_list = 0;
    w->free_list = NONE;
    for (uint32_t i = 0; i < w->n; i++) {
        w->next[i] = i + 1;
        w->prev[i] = i - 1;
    }
    for (uint32_t i = 0; i < w->n; i++) Q_TRY(consider(w, i));
    while (w->n_heap) {
        const uint64_t key = pop(w);
        const uint32_t i = (uint32_t)key;
        if (w->pair[i] < 0 || w->st->order[w->pair[i]] != key >> 32) continue; /* a neighbour changed since */
        const uint32_t j = w->next[i];
        w->id[i] = w->pair[i];
        w->pair[j] = -1;
        w->next[i] = w->next[j];
        if (w->next[j] < w->n) w->prev[w->next[j]] = i;
        if (i) Q_TRY(consider(w, w->prev[i]));
        Q_TRY(consider(w, i));
    }
    return LQ_OK;
}

/* Symbol i turned out as an unused piece: cut it where it was joined. Every cut lies where a symbol began, and that
 * symbol's place is free. */
static bool take_apart(work *w, uint32_t i) {
    const int32_t id = w->id[i];
    if (!w->split || id < 0 || id >= FROZEN || w->st->vocab->types[id] != Q_TOKEN_UNUSED || !w->split[id]) return false;
    const uint32_t cut = w->start[i] + w->split[id];
    uint32_t lo = i, hi = w->n;
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if (w->start[mid] < cut) lo = mid + 1;
        else hi = mid;
    }
    if (lo >= w->next[i] || w->start[lo] != cut) return false;
    w->next[lo] = w->next[i];
    w->next[i] = lo;
    w->id[i] = find_piece(w->st, w->text + w->start[i], cut - w->start[i]);
    w->id[lo] = find_piece(w->st, w->text + cut, w->start[w->next[lo]] - cut);
    return true;
}

static lq_status emit_symbol(work *w, const char *p, uint32_t n, int32_t id) {
    if (id >= FROZEN || (id >= 0 && w->st->vocab->types[id] != Q_TOKEN_UNUSED)) {
        w->after_unknown = false;
        return w->emit(w->user, id & (FROZEN - 1));
    }
    for (uint32_t i = 0; i < n; i++) {
        const int32_t byte = w->st->byte_id[(uint8_t)p[i]];
        if (byte < 0 && w->st->vocab->unk < 0)
            return q_fail(LQ_E_UNSUPPORTED, "the vocabulary has no token for the byte 0x%02X and no unknown token",
                          (uint8_t)p[i]);
        if (byte >= 0) Q_TRY(w->emit(w->user, byte));
        else if (!w->after_unknown) Q_TRY(w->emit(w->user, w->st->vocab->unk)); /* a run of unknowns is one token */
        w->after_unknown = byte < 0;
    }
    return LQ_OK;
}

static lq_status flush(work *w, uint32_t end) {
    if (w->n == 0) return LQ_OK;
    w->start[w->n] = end;
    if (w->n == 1) { /* most punctuation, and words of one letter */
        const lq_status s = emit_symbol(w, w->text + w->start[0], end - w->start[0], w->id[0]);
        w->n = 0;
        return s;
    }
    if (w->n > w->cap_merge) {
        const q_alloc *a = w->st->alloc;
        q_delete(a, w->next);
        q_delete(a, w->list);
        w->cap_merge = 0;
        w->list = NULL;
        w->next = (uint32_t *)q_new_raw(a, (uint64_t)w->cap * 3, sizeof *w->next);
        if (w->next) w->list = (candidate *)q_new_raw(a, (uint64_t)w->cap * 2, sizeof *w->list);
        if (!w->list) return LQ_E_NOMEM;
        w->prev = w->next + w->cap;
        w->pair = (int32_t *)(w->next + 2 * (uint64_t)w->cap);
        w->cap_merge = w->cap;
    }
    Q_TRY(merge(w));
    for (uint32_t i = 0; i < w->n; i = w->next[i]) {
        while (take_apart(w, i)) {}
        Q_TRY(emit_symbol(w, w->text + w->start[i], w->start[w->next[i]] - w->start[i], w->id[i]));
    }
    w->n = 0;
    return LQ_OK;
}

static lq_status add_symbol(work *w, uint32_t start, int32_t id) {
    if (w->n + 1 >= w->cap) {
        const q_alloc *a = w->st->alloc;
        const uint32_t cap = w->cap ? w->cap * 2 : 256; /* the text's limit keeps this below 2^32 */
        uint32_t *fresh = (uint32_t *)q_new_raw(a, (uint64_t)cap * 2, sizeof *fresh);
        if (!fresh) return LQ_E_NOMEM;
        if (w->n) {
            memcpy(fresh, w->start, w->n * sizeof *w->start);
            memcpy(fresh + cap, w->id, w->n * sizeof *w->id);
        }
        q_delete(a, w->start);
        w->start = fresh;
        w->id = (int32_t *)(fresh + cap);
        w->cap = cap;
    }
    w->start[w->n] = start;
    w->id[w->n++] = id;
    return LQ_OK;
}

static lq_status encode_canonical(work *w, uint32_t n) {
    const state *st = w->st;
    uint32_t left = 0;
    for (uint32_t i = 0; i < n;) {
        uint32_t code, bytes;
        const int32_t user = q_match_find(&st->user, w->text + i, n - i, &bytes);
        if (user >= 0) {
            if (!st->resegment) Q_TRY(flush(w, i));
            Q_TRY(add_symbol(w, i, user | FROZEN));
            i += bytes;
            if (!st->resegment) Q_TRY(flush(w, i));
            continue;
        }
        bytes = character(w->text + i, n - i, &code);
        if (w->n && !st->resegment && !can_join(st, left, code)) Q_TRY(flush(w, i));
        Q_TRY(add_symbol(w, i, code < 128 ? st->ascii[code] : find_piece(st, w->text + i, bytes)));
        left = code;
        i += bytes;
    }
    return flush(w, n);
}

/* The text as SentencePiece's normalizer would leave it, with spaces for U+2581; returns its bytes. */
static uint64_t normalize(const q_vocab *v, q_str text, bool start, char *out) {
    const bool squeeze = v->remove_extra_spaces;
    uint64_t n = 0, i = 0;
    while (squeeze && i < text.n && text.p[i] == ' ') i++;
    if (i == text.n) return 0;
    if (start && v->add_space_prefix) out[n++] = ' ';
    for (bool after_space = false; i < text.n;) {
        const bool sign = is_space_sign(text.p + i, text.n - i), space = text.p[i] == ' ';
        if (!(squeeze && space && after_space)) out[n++] = sign ? ' ' : text.p[i];
        i += sign ? SPACE_BYTES : 1;
        after_space = space;
    }
    while (squeeze && n && out[n - 1] == ' ') n--;
    return n;
}

static lq_status spm_encode(const void *p, const char *text, uint64_t n, bool start,
                            lq_status (*emit)(void *user, int32_t id), void *user) {
    const state *st = (const state *)p;
    if (n == 0) return LQ_OK;
    if (n > 1u << 30) return q_fail(LQ_E_LIMIT, "a text of %llu bytes; at most 1 GiB", (unsigned long long)n);
    char *canon = (char *)q_new_raw(st->alloc, n + 1, 1);
    if (!canon) return LQ_E_NOMEM;
    work w = {.st = st, .emit = emit, .user = user, .text = canon};
    w.last = Q_NEW(st->alloc, uint32_t, st->vocab->n);
    if (st->resegment) w.split = Q_NEW(st->alloc, uint32_t, st->vocab->n);
    lq_status s = w.last && (w.split || !st->resegment) ? LQ_OK : LQ_E_NOMEM;
    if (s == LQ_OK) s = encode_canonical(&w, (uint32_t)normalize(st->vocab, (q_str){text, n}, start, canon));
    q_delete(st->alloc, w.last);
    q_delete(st->alloc, w.split);
    q_delete(st->alloc, w.start);
    q_delete(st->alloc, w.next);
    q_delete(st->alloc, w.list);
    q_delete(st->alloc, w.heap);
    q_delete(st->alloc, canon);
    return s;
}

static uint64_t spm_piece(const void *p, int32_t id, char *out, uint64_t cap) {
    const state *st = (const state *)p;
    if (st->vocab->types[id] == Q_TOKEN_BYTE) {
        if (cap) out[0] = (char)byte_value(st->vocab->pieces[id]);
        return 1;
    }
    const q_str s = st->canon[id];
    if (cap) memcpy(out, s.p, (size_t)Q_MIN(s.n, cap));
    return s.n;
}

const q_tokenizer_kind q_tokenizer_spm = {"spm",    "llama",   "tokenizer.model", from_file,
                                          spm_open, spm_close, spm_encode,        spm_piece};
