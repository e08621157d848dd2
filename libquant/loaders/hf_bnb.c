/* hf_bnb.c: directories of bitsandbytes: NF4 and FP4, their scales quantized in their turn or not, and INT8 (LLM.int8).
 *
 * NF4, FP4: X.weight holds nibbles of the flattened matrix, the first of a pair high; each block of them has an absmax.
 * A JSON text in the bytes of X.weight.quant_state.bitsandbytes__nf4 (__fp4) has shape and block sizes. Nested, the
 * absmax values are codes of another map with scales of their own and a common offset. Rows of nf4 and fp4, or of
 * nf4_dq where the map is the usual one, hold the same numbers; larger blocks repeat their absmax. Rows that 64 does
 * not divide begin within a block, and no format of ours has groups that do: they are decoded as they are read, and
 * told. INT8: X.weight and X.SCB, the absmax of each row: i8_row. The weights are those that bitsandbytes computes,
 * before it rounds them to the model's type where we keep the codes, and after it where we do not. Refuses other
 * levels. Layer L2. */
#include "../json.h"
#include "hf_view.h"

typedef struct bnb {
    q_hf_strips strips;
    const q_tensor *codes, *absmax;
    uint64_t in, block; /* weights of a row; with one absmax */
    /* nested: absmax = nested[i / nested_block] * map[code] + offset */
    bool dq; /* kept so; else as a float */
    const float *nested, *map;
    uint64_t nested_block;
    float offset;
    const float *levels; /* of rows that are decoded */
} bnb;

/* The JSON text. */
typedef struct state {
    int64_t block, nested_block, rows, in;
    double offset;
    bool nested;
    const q_format *dtype; /* what bitsandbytes decodes to; NULL = a type that is not known */
} state;

/* Matrices whose rows are decoded. */
typedef struct decoded {
    uint32_t n;
    const q_tensor *first;
    state state; /* of the first */
} decoded;

static const q_hf_field fields[] = {
    {"load_in_4bit", NULL}, {"load_in_8bit", NULL}, {"_load_in_4bit", NULL}, {"_load_in_8bit", NULL},
    {"bnb_4bit_quant_type", "nf4,fp4"},
    /* tensors tell, or how others are to compute with them */
    {"bnb_4bit_use_double_quant", NULL}, {"bnb_4bit_quant_storage", NULL}, {"bnb_4bit_compute_dtype", NULL},
    {"llm_int8_enable_fp32_cpu_offload", NULL}, {"llm_int8_has_fp16_weight", NULL}, {"llm_int8_skip_modules", NULL},
    {"llm_int8_threshold", NULL}, {"modules_to_not_convert", NULL},
};
static const char nf4_state[] = ".weight.quant_state.bitsandbytes__nf4",
                  fp4_state[] = ".weight.quant_state.bitsandbytes__fp4";

/* ------------------------------------------------------------------------------------------------ rows */

/* Block b, of which `absmax` has entry i. */
static float absmax_of(const bnb *w, uint64_t b, const uint8_t *absmax, uint64_t i) {
    if (!w->map) return q_bits_f32(q_load32(absmax + i * 4));
    const float d = w->nested[b / w->nested_block] * w->map[absmax[i]];
    return d + w->offset;
}

static void nf4_row(const bnb *w, const uint8_t *codes, const uint8_t *absmax, uint64_t flat, uint64_t first_block,
                    uint8_t *out) {
    if (w->dq) {
        q_store32(out, q_f32_bits(w->offset));
        out += 4;
    }
    for (uint64_t at = 0; at < w->in; at += 64, codes += 32) {
        const uint64_t b = (flat + at) / w->block, i = b - first_block;
        if (w->dq) { /* float, four codes, 128 bytes of nibbles */
            const uint64_t g = at / 64 % 4;
            if (g == 0) q_store32(out, q_f32_bits(w->nested[b / w->nested_block]));
            out[4 + g] = absmax[i];
            memcpy(out + 8 + 32 * g, codes, 32);
            if (g == 3) out += 136;
        } else {
            q_store32(out, q_f32_bits(absmax_of(w, b, absmax, i)));
            memcpy(out + 4, codes, 32);
            out += 36;
        }
    }
}

static lq_status nf4_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const bnb *w = (const bnb *)t->view;
    const uint64_t size = w->map ? 1 : 4, from = first * w->in / w->block,
                   to = ((first + n) * w->in - 1) / w->block + 1;
    const uint64_t bytes = w->in / 2;
    uint8_t *codes = (uint8_t *)q_new_raw(dir->alloc, 1, n * bytes + (to - from) * size);
    if (!codes) return LQ_E_NOMEM;
    uint8_t *absmax = codes + n * bytes;
    lq_status s = q_hf_bytes(dir, w->codes, first * bytes, codes, n * bytes);
    if (s == LQ_OK) s = q_hf_bytes(dir, w->absmax, from * size, absmax, (to - from) * size);
    for (uint64_t r = 0; r < n && s == LQ_OK; r++)
        nf4_row(w, codes + r * bytes, absmax, (first + r) * w->in, from, out + r * t->row_bytes);
    q_delete(dir->alloc, codes);
    return s;
}

/* A row that begins anywhere, in a byte or in a block. `codes`: those of the pair of weight `flat` first. */
static void decode_row(const bnb *w, const uint8_t *codes, const uint8_t *absmax, uint64_t flat, uint64_t first_block,
                       float *y) {
    const uint64_t pair = flat / 2;
    for (uint64_t at = 0; at < w->in;) {
        const uint64_t b = (flat + at) / w->block, end = Q_MIN((b + 1) * w->block - flat, w->in);
        const float d = absmax_of(w, b, absmax, b - first_block);
        for (; at < end; at++) {
            const uint8_t two = codes[(flat + at) / 2 - pair];
            y[at] = d * w->levels[(flat + at) % 2 ? two & 15 : two >> 4];
        }
    }
}

static lq_status decoded_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const bnb *w = (const bnb *)t->view;
    const uint64_t begin = first * w->in, end = begin + n * w->in, size = w->map ? 1 : 4;
    const uint64_t from = begin / w->block, to = (end - 1) / w->block + 1, pair = begin / 2,
                   pairs = (end + 1) / 2 - pair;
    float *y = (float *)q_new_raw(dir->alloc, 1, w->in * 4 + (to - from) * size + pairs);
    if (!y) return LQ_E_NOMEM;
    uint8_t *absmax = (uint8_t *)(y + w->in), *codes = absmax + (to - from) * size;
    lq_status s = q_hf_bytes(dir, w->codes, pair, codes, pairs);
    if (s == LQ_OK) s = q_hf_bytes(dir, w->absmax, from * size, absmax, (to - from) * size);
    for (uint64_t at = begin; at < end && s == LQ_OK; at += w->in, out += t->row_bytes) {
        decode_row(w, codes + (at / 2 - pair), absmax, at, from, y);
        q_encode_row(t->format, y, NULL, false, (int64_t)w->in, out);
    }
    q_delete(dir->alloc, y);
    return s;
}

static lq_status int8_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const bnb *w = (const bnb *)t->view;
    for (uint64_t r = 0; r < n; r++, out += t->row_bytes) {
        uint8_t scb[4];
        Q_TRY(q_hf_bytes(dir, w->absmax, (first + r) * 4, scb, 4));
        q_store32(out, q_f32_bits(q_bits_f32(q_load32(scb)) / 127.0f));
        Q_TRY(q_hf_bytes(dir, w->codes, (first + r) * w->in, out + 4, w->in));
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ the JSON text */

static const q_json *member(const q_json *object, const char *key) {
    for (const q_json *v = object->first; v; v = v->next)
        if (q_str_is(v->key, key)) return v;
    return NULL;
}

static lq_status whole(const q_json *object, const char *key, int64_t *out) {
    const q_json *v = member(object, key);
    if (!v || v->type != Q_JSON_INTEGER) return q_fail(LQ_E_INCONSISTENT, "its '%s' is missing or no integer", key);
    if (v->i < 4 || !q_is_pow2((uint64_t)v->i) || v->i > 1 << 20)
        return q_fail(LQ_E_INCONSISTENT, "its '%s' is %lld, no power of two from 4 to 1048576", key, (long long)v->i);
    *out = v->i;
    return LQ_OK;
}

static lq_status read_shape(const q_json *object, state *s) {
    const q_json *v = member(object, "shape");
    if (!v || v->type != Q_JSON_ARRAY || v->n != 2)
        return q_fail(LQ_E_INCONSISTENT, "its 'shape' is missing or not of two numbers");
    const q_json *rows = v->first, *in = rows->next;
    if (rows->type != Q_JSON_INTEGER || in->type != Q_JSON_INTEGER || rows->i < 1 || in->i < 1 || rows->i > INT32_MAX ||
        in->i > INT32_MAX)
        return q_fail(LQ_E_INCONSISTENT, "its 'shape' is not of two positive integers");
    s->rows = rows->i;
    s->in = in->i;
    return LQ_OK;
}

static lq_status read_object(const q_json *object, const char *type, state *s) {
    static const char *const known[] = {"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype",
                                        "nested_offset"};
    for (const q_json *v = object->first; v; v = v->next) {
        size_t i = 0;
        while (i < Q_COUNT(known) && !q_str_is(v->key, known[i])) i++;
        if (i == Q_COUNT(known))
            return q_fail(LQ_E_UNSUPPORTED, "its field '%.*s' is not understood", Q_STR_ARG(v->key));
    }
    const q_json *v = member(object, "quant_type");
    if (!v || v->type != Q_JSON_STRING || !q_str_is(v->s, type))
        return q_fail(LQ_E_INCONSISTENT, "its 'quant_type' is not '%s'", type);
    Q_TRY(read_shape(object, s));
    Q_TRY(whole(object, "blocksize", &s->block));
    v = member(object, "dtype");
    s->dtype = NULL;
    if (v && v->type == Q_JSON_STRING)
        s->dtype = q_format_find(q_str_is(v->s, "float16") ? "f16" : q_str_is(v->s, "bfloat16") ? "bf16"
                                 : q_str_is(v->s, "float32") ? "f32" : "");
    s->nested = member(object, "nested_blocksize") != NULL;
    if (!s->nested) return LQ_OK;
    Q_TRY(whole(object, "nested_blocksize", &s->nested_block));
    v = member(object, "nested_offset");
    if (!v || (v->type != Q_JSON_REAL && v->type != Q_JSON_INTEGER))
        return q_fail(LQ_E_INCONSISTENT, "its 'nested_offset' is missing or no number");
    s->offset = v->f;
    v = member(object, "nested_dtype");
    if (!v || v->type != Q_JSON_STRING || !q_str_is(v->s, "float32"))
        return q_fail(LQ_E_UNSUPPORTED, "its 'nested_dtype' is not float32");
    return LQ_OK;
}

static lq_status read_state(const q_hf_reader *r, const q_tensor *t, const char *type, state *s) {
    q_arena tree = {.alloc = r->alloc};
    const q_json *object;
    void *text;
    if (t->bytes > 1 << 16)
        return q_hf_at(r, q_fail(LQ_E_LIMIT, "a text of %llu bytes", (unsigned long long)t->bytes), t);
    Q_TRY(q_hf_all(r, t, &text));
    lq_status st = q_json_parse(&tree, (const uint8_t *)text, t->bytes, 0, "quant_state", &object);
    if (st == LQ_OK) st = read_object(object, type, s);
    q_arena_free(&tree);
    q_delete(r->alloc, text);
    return q_hf_at(r, st, t);
}

/* ------------------------------------------------------------------------------------------------ opening */

/* Floats of a small part, in the arena. */
static lq_status floats(q_hf_reader *r, q_str module, const char *suffix, uint64_t n, const float **out) {
    const q_tensor *t;
    Q_TRY(q_hf_need(r, module, suffix, "f32", n, 0, &t));
    float *v = (float *)q_arena_new(r->arena, n, sizeof *v);
    if (!v) return LQ_E_NOMEM;
    *out = v;
    return q_hf_bytes(r->dir, t, 0, v, n * 4);
}

/* The level of each code as the format decodes it: for code c, a block with absmax 1. */
static lq_status check_levels(const q_hf_reader *r, q_str module, const q_format *f, const float *map) {
    uint8_t block[36];
    float y[32];
    memset(block, 0, sizeof block);
    q_store32(block, q_f32_bits(1.0f));
    for (int i = 0; i < 8; i++) block[4 + i] = (uint8_t)(2 * i << 4 | (2 * i + 1));
    f->decode(block, 0, 0, y);
    for (int i = 0; i < 16; i++)
        if (map[i] != y[i])
            return q_hf_at(r, q_fail(LQ_E_UNSUPPORTED, "level %d is %g, that of %s %g", i, (double)map[i], f->name,
                                     (double)y[i]),
                           q_hf_part(r, module, ".weight.quant_map"));
    return LQ_OK;
}

/* Whether the map of nested absmax values is that of nf4_dq, by decoding each code with scale 1, offset 0 and level
 * 1. */
static bool usual_map(const float *map) {
    const q_format *f = q_format_find("nf4_dq");
    uint8_t row[4 + 136];
    float y[32];
    memset(row, 0xFF, sizeof row);
    q_store32(row, 0);
    q_store32(row + 4, q_f32_bits(1.0f));
    bool same = true;
    for (int c = 0; c < 256 && same; c++) {
        row[8] = (uint8_t)c;
        f->decode(row, 0, 0, y);
        same = y[0] == map[c];
    }
    return same;
}

/* The format of the rows; where they are decoded, that is counted. */
static lq_status choose_format(const q_hf_reader *r, const char *type, const q_tensor *text, const state *s,
                               const float *levels, bnb *w, decoded *all, const q_format **out) {
    w->strips.fill = nf4_fill;
    *out = q_format_find(w->dq ? "nf4_dq" : type);
    if (s->block >= 64 && s->in % 64 == 0) return LQ_OK;
    if (!s->dtype)
        return q_hf_at(r,
                       q_fail(LQ_E_UNSUPPORTED,
                              "blocks of %lld in rows of %lld weights are decoded to its 'dtype', which is "
                              "missing, or none of float16, bfloat16 and float32",
                              (long long)s->block, (long long)s->in),
                       text);
    w->levels = levels;
    w->strips.fill = decoded_fill;
    *out = s->dtype;
    if (all->n++ == 0) {
        all->first = w->codes;
        all->state = *s;
    }
    return LQ_OK;
}

static lq_status add_4bit(q_hf_reader *r, const char *type, const q_tensor *text, q_str module, decoded *all) {
    state s = {0};
    q_hf_claim(r, text);
    Q_TRY(read_state(r, text, type, &s));
    if (s.block < 32 || s.block > 4096)
        return q_hf_at(
            r, q_fail(LQ_E_UNSUPPORTED, "blocks of %lld weights; those of 32 to 4096 are read", (long long)s.block),
            text);
    bnb *w = (bnb *)q_arena_new(r->arena, 1, sizeof *w);
    if (!w) return LQ_E_NOMEM;
    const uint64_t n = (uint64_t)s.rows * (uint64_t)s.in, blocks = (n + (uint64_t)s.block - 1) / (uint64_t)s.block;
    const q_tensor *codes = q_hf_part(r, module, ".weight");
    const q_format *format;
    const float *levels;
    if (!codes) return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s.weight' is missing", Q_STR_ARG(module));
    if (codes->bytes != (n + 1) / 2)
        return q_hf_at(r,
                       q_fail(LQ_E_INCONSISTENT, "it has %llu bytes; %lld x %lld codes take %llu",
                              (unsigned long long)codes->bytes, (long long)s.rows, (long long)s.in,
                              (unsigned long long)(n + 1) / 2),
                       codes);
    w->codes = codes;
    w->in = (uint64_t)s.in;
    w->block = (uint64_t)s.block;
    Q_TRY(q_hf_need(r, module, ".weight.absmax", s.nested ? "u8" : "f32", blocks, 0, &w->absmax));
    Q_TRY(floats(r, module, ".weight.quant_map", 16, &levels));
    Q_TRY(check_levels(r, module, q_format_find(type), levels));
    if (s.nested) {
        w->nested_block = (uint64_t)s.nested_block;
        w->offset = (float)s.offset;
        Q_TRY(floats(r, module, ".weight.nested_absmax", (blocks + w->nested_block - 1) / w->nested_block, &w->nested));
        Q_TRY(floats(r, module, ".weight.nested_quant_map", 256, &w->map));
        w->dq = strcmp(type, "nf4") == 0 && w->in % 256 == 0 && usual_map(w->map);
    }
    Q_TRY(choose_format(r, type, text, &s, levels, w, all, &format));
    return q_hf_add_strips(r, module, codes, format, w->in, (uint64_t)s.rows, false, &w->strips);
}

static lq_status add_8bit(q_hf_reader *r, const q_tensor *scb, q_str module) {
    bnb *w = (bnb *)q_arena_new(r->arena, 1, sizeof *w);
    const q_tensor *codes = q_hf_part(r, module, ".weight"), *layout = q_hf_part(r, module, ".weight_format");
    if (!w) return LQ_E_NOMEM;
    if (!codes) return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s.weight' is missing", Q_STR_ARG(module));
    if (codes->rank != 2 || strcmp(codes->type_name, "i8") != 0)
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "it is %u-dimensional of type %s, not a matrix of i8", codes->rank,
                                 codes->type_name), codes);
    Q_TRY(q_hf_need(r, module, ".SCB", "f32", codes->rows, 0, &scb));
    if (layout) { /* 0: rows; others are layouts of some GPU */
        uint8_t value = 1;
        if (layout->bytes == 1) Q_TRY(q_hf_bytes(r->dir, layout, 0, &value, 1));
        if (value != 0)
            return q_hf_at(r, q_fail(LQ_E_UNSUPPORTED, "the layout of X.weight is not that of rows"), layout);
        q_hf_claim(r, layout);
    }
    w->codes = codes;
    w->absmax = scb;
    w->in = codes->shape[0];
    w->strips.fill = int8_fill;
    return q_hf_add_strips(r, module, codes, q_format_find("i8_row"), w->in, codes->rows, false, &w->strips);
}

/* The flags say which of the two it is. */
static lq_status check_bits(const q_hf_reader *r, const q_tensor *t, const char *name, const char *other) {
    bool flag, under;
    char key[32] = "_";
    memcpy(key + 1, name, strlen(name) + 1);
    Q_TRY(q_hf_flag(r, name, false, &flag));
    Q_TRY(q_hf_flag(r, key, false, &under));
    if (flag || under) return LQ_OK;
    return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "quantization_config does not say %s (but perhaps %s)", name, other),
                   t);
}

static lq_status bnb_read(q_hf_reader *r) {
    q_str module;
    decoded all = {0};
    Q_TRY(q_hf_check_fields(r, "", fields, Q_COUNT(fields)));
    for (uint32_t i = 0; i < r->dir->n_tensors; i++) {
        const q_tensor *t = &r->dir->tensors[i];
        const bool nf4 = q_hf_module(t, nf4_state, &module);
        if (nf4 || q_hf_module(t, fp4_state, &module)) {
            Q_TRY(check_bits(r, t, "load_in_4bit", "load_in_8bit"));
            if (q_hf_word(r, "bnb_4bit_quant_type", nf4 ? "fp4" : "nf4"))
                return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "quantization_config says %s", nf4 ? "fp4" : "nf4"), t);
            Q_TRY(add_4bit(r, nf4 ? "nf4" : "fp4", t, module, &all));
        } else if (q_hf_module(t, ".SCB", &module)) {
            Q_TRY(check_bits(r, t, "load_in_8bit", "load_in_4bit"));
            Q_TRY(add_8bit(r, t, module));
        }
    }
    if (all.n)
        q_log_write(r->log, LQ_LOG_WARN,
                    "%u tensors ('%.*s'%s) are decoded to %s as they are read, and take about %d times their "
                    "bytes in the file: no format here has blocks of %lld in rows of %lld weights",
                    all.n, Q_STR_ARG(all.first->name), all.n > 1 ? " is the first" : "", all.state.dtype->name,
                    all.state.dtype->bytes * 2, (long long)all.state.block, (long long)all.state.in);
    return LQ_OK;
}

const q_hf_kind q_hf_bnb = {.method = "bitsandbytes", .read = bnb_read};
