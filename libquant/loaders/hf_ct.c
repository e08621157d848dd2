/* hf_ct.c: directories of compressed-tensors: INT4 packed in words (pack-quantized), INT8 rows (int-quantized) and E4M3
 * floats (float-quantized).
 *
 * config_groups say which numbers there are; which module has which, its tensors say, and the two must agree. Packed:
 * codes of `bits` bits, stored as unsigned, lie along the inputs of a row, one little-endian stream; w = scale * (code
 * - zero) with a scale per group, and zero points packed along the outputs where the scheme has them, else the middle.
 * INT8: w = scale * (q - zero), with a scale and, where the scheme has them, a zero point per row, per group or for
 * all. Refuses sparsity, transforms, quantized KV and outputs, and numbers for which there is no format. How
 * activations are quantized is this engine's own business. Layer L2. */
#include <stdio.h>

#include "hf_view.h"

typedef struct packed {
    q_hf_strips strips;
    const q_tensor *codes, *scales, *zeros;
    uint32_t bits;
    uint64_t in, group, groups;
} packed;

typedef struct int8 {
    q_hf_strips strips;
    const q_tensor *codes, *scales, *zeros;
    uint64_t groups; /* of a row; 0: one for all rows */
} int8;

static const q_hf_field fields[] = {
    {"config_groups", NULL}, {"format", "pack-quantized,int-quantized,float-quantized,naive-quantized,mixed-precision"},
    {"quantization_status", "compressed,frozen"}, {"sparsity_config.format", "dense"}, {"sparsity_config.ignore", NULL},
    {"sparsity_config.global_sparsity", NULL}, {"sparsity_config.sparsity_structure", NULL},
    {"sparsity_config.targets", NULL}, {"sparsity_config.registry_requires_subclass", NULL},
    {"ignore", NULL}, {"version", NULL}, {"global_compression_ratio", NULL},
};

/* Below config_groups.NAME. */
static const q_hf_field group_fields[] = {
    {"targets", NULL}, {"format", "pack-quantized,int-quantized,float-quantized,naive-quantized"},
    {"weights.num_bits", "2,3,4,8"}, {"weights.type", "int,float"}, {"weights.symmetric", NULL},
    {"weights.strategy", "group,channel,tensor,block"}, {"weights.group_size", NULL}, {"weights.dynamic", "false"},
    {"weights.actorder", "false,weight,static,group,dynamic"}, {"weights.block_structure", NULL},
    {"weights.observer", NULL},
    {"weights.observer_kwargs", NULL}, {"weights.scale_dtype", NULL}, {"weights.zp_dtype", NULL},
    {"input_activations", NULL},
};

/* ------------------------------------------------------------------------------------------------ rows */

static lq_status packed_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const packed *w = (const packed *)t->view;
    const uint64_t words = w->in * w->bits / 32, zero = first * w->bits / 32;
    const uint64_t zero_rows = w->zeros ? ((first + n) * w->bits + 31) / 32 - zero : 0;
    const int32_t *order = w->strips.view.order;
    uint32_t *codes = (uint32_t *)q_new_raw(
        dir->alloc, 1, (n * words + zero_rows * w->groups) * 4 + n * w->groups * 2 + w->groups + w->in * 2);
    if (!codes) return LQ_E_NOMEM;
    uint32_t *zeros = codes + n * words;
    uint16_t *halves = (uint16_t *)(zeros + zero_rows * w->groups);
    uint8_t *z = (uint8_t *)(halves + n * w->groups), *row = z + w->groups, *mixed = row + w->in;
    lq_status s = q_hf_bytes(dir, w->codes, first * words * 4, codes, n * words * 4);
    if (s == LQ_OK) s = q_hf_halves(dir, w->scales, first * w->groups, n * w->groups, halves);
    if (s == LQ_OK && w->zeros) s = q_hf_bytes(dir, w->zeros, zero * w->groups * 4, zeros, zero_rows * w->groups * 4);
    memset(z, 1 << (w->bits - 1), (size_t)w->groups);
    for (uint64_t r = 0; r < n && s == LQ_OK; r++) {
        for (uint64_t g = 0; w->zeros && g < w->groups; g++)
            z[g] = (uint8_t)q_hf_code(zeros + g, w->groups, first * w->bits % 32, r, w->bits);
        q_hf_unpack(codes + r * words, 1, w->in, w->bits, row);
        for (uint64_t i = 0; order && i < w->in; i++) mixed[i] = row[order[i]];
        q_hf_row(t->format, w->in, w->group, order ? mixed : row, halves + r * w->groups, z, out + r * t->row_bytes);
    }
    q_delete(dir->alloc, codes);
    return s;
}

static lq_status int8_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const int8 *w = (const int8 *)t->view;
    for (uint64_t r = first; r < first + n; r++, out += t->row_bytes) {
        float scale;
        Q_TRY(q_hf_floats(dir, w->scales, w->groups ? r : 0, 1, &scale));
        q_store32(out, q_f32_bits(scale));
        Q_TRY(q_hf_bytes(dir, w->codes, r * t->shape[0], out + 4, t->shape[0]));
    }
    return LQ_OK;
}

/* With zero points, or in groups: signed bytes become codes from 0. */
static lq_status int8_groups_fill(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const int8 *w = (const int8 *)t->view;
    const uint64_t in = t->shape[0], groups = Q_MAX(w->groups, (uint64_t)1);
    uint16_t *d = (uint16_t *)q_new_raw(dir->alloc, 1, groups * 3 + in);
    if (!d) return LQ_E_NOMEM;
    uint8_t *z = (uint8_t *)(d + groups), *codes = z + groups;
    lq_status s = LQ_OK;
    for (uint64_t r = first; r < first + n && s == LQ_OK; r++, out += t->row_bytes) {
        const uint64_t at = w->groups ? r * groups : 0;
        s = q_hf_halves(dir, w->scales, at, groups, d);
        memset(z, 0, (size_t)groups);
        if (s == LQ_OK && w->zeros) s = q_hf_bytes(dir, w->zeros, at, z, groups);
        if (s == LQ_OK) s = q_hf_bytes(dir, w->codes, r * in, codes, in);
        if (s != LQ_OK) break;
        for (uint64_t g = 0; g < groups; g++) z[g] ^= 0x80;
        for (uint64_t i = 0; i < in; i++) codes[i] ^= 0x80;
        q_hf_row(t->format, in, in / groups, codes, d, z, out);
    }
    q_delete(dir->alloc, d);
    return s;
}

/* -------------------------------------------------------------------------------------- what the configuration says */

enum { GROUPS = 16, NAME = 64 };
typedef struct scheme {
    char name[NAME];
    int64_t bits, group; /* group: -1 = a row, 0 = the whole matrix, or blocks of two dimensions */
    bool symmetric, real, block;
    bool order; /* columns are permuted: weight_g_idx says how */
} scheme;
typedef struct schemes {
    scheme items[GROUPS];
    uint32_t n;
} schemes;

/* The names between "config_groups." and the next dot, each once. */
static lq_status list_groups(const q_hf_reader *r, schemes *all) {
    static const char head[] = "quantization_config.config_groups.";
    for (uint32_t i = 0; i < r->dir->n_meta; i++) {
        const q_str key = r->dir->meta[i].key;
        if (key.n < sizeof head || memcmp(key.p, head, sizeof head - 1) != 0) continue;
        const char *name = key.p + sizeof head - 1,
                   *dot = (const char *)memchr(name, '.', (size_t)(key.n - sizeof head + 1));
        if (!dot || dot - name >= NAME)
            return q_fail(LQ_E_UNSUPPORTED, "config.json: the field '%.*s' is no scheme of weights", Q_STR_ARG(key));
        uint32_t g = 0;
        while (g < all->n && !q_str_is((q_str){name, (uint64_t)(dot - name)}, all->items[g].name)) g++;
        if (g < all->n) continue;
        if (g == GROUPS) return q_fail(LQ_E_LIMIT, "config.json: more than %d config_groups", GROUPS);
        memcpy(all->items[all->n++].name, name, (size_t)(dot - name));
    }
    return LQ_OK;
}

static lq_status read_group(q_hf_reader *r, scheme *s) {
    char base[NAME + 32], key[NAME + 64];
    snprintf(base, sizeof base, "config_groups.%s.", s->name);
    Q_TRY(q_hf_check_fields(r, base, group_fields, Q_COUNT(group_fields)));
#define KEY(field) (snprintf(key, sizeof key, "%sweights." field, base), key)
    Q_TRY(q_hf_integer(r, KEY("num_bits"), 2, 8, 8, &s->bits));
    Q_TRY(q_hf_flag(r, KEY("symmetric"), true, &s->symmetric));
    s->real = q_hf_word(r, KEY("type"), "float");
    s->block = q_hf_word(r, KEY("strategy"), "block");
    s->order = q_hf_word(r, KEY("actorder"), "group") || q_hf_word(r, KEY("actorder"), "dynamic");
    const bool row = q_hf_word(r, KEY("strategy"), "channel"), group = q_hf_word(r, KEY("strategy"), "group");
    Q_TRY(q_hf_integer(r, KEY("group_size"), -1, 1 << 20, row ? -1 : 0, &s->group));
    if (group && s->group <= 0)
        return q_fail(LQ_E_INCONSISTENT,
                      "config.json: quantization_config.%s is missing, which the strategy group needs",
                      KEY("group_size"));
    if (s->group > 0 && s->group % 32)
        return q_fail(LQ_E_UNSUPPORTED,
                      "config.json: the field 'quantization_config.%s' is %lld; multiples of 32 are read",
                      KEY("group_size"), (long long)s->group);
    if (s->real && s->bits != 8)
        return q_fail(LQ_E_UNSUPPORTED, "config.json: quantization_config.%s: floats of %lld bits are not read",
                      KEY("num_bits"), (long long)s->bits);
#undef KEY
    return LQ_OK;
}

/* Some group has such weights, or the sentence names what was looked for. */
static lq_status some_group(const q_hf_reader *r, const schemes *all, const q_tensor *t, const scheme *want) {
    for (uint32_t i = 0; i < all->n; i++) {
        const scheme *s = &all->items[i];
        if (s->bits == want->bits && s->real == want->real && s->group == want->group &&
            s->symmetric == want->symmetric && s->block == want->block && (want->order || !s->order))
            return LQ_OK;
    }
    return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "it is of %s weights of %lld bits in groups of %lld%s%s, which none of "
                             "quantization_config.config_groups has", want->symmetric ? "symmetric" : "asymmetric",
                             (long long)want->bits, (long long)want->group, want->real ? ", floats" : "",
                             want->order ? "" : ", without weight_g_idx"), t);
}

/* ------------------------------------------------------------------------------------------------ modules */

/* weight_shape: two integers. */
static lq_status read_shape(q_hf_reader *r, q_str module, uint64_t shape[2]) {
    const q_tensor *t;
    uint8_t raw[16];
    Q_TRY(q_hf_need(r, module, ".weight_shape", "i64,i32", 2, 0, &t));
    Q_TRY(q_hf_bytes(r->dir, t, 0, raw, t->bytes));
    for (int i = 0; i < 2; i++) {
        shape[i] = t->bytes == 16 ? q_load64(raw + 8 * i) : q_load32(raw + 4 * i);
        if (shape[i] == 0 || shape[i] > INT32_MAX)
            return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "it has the value %lld", (long long)shape[i]), t);
    }
    return LQ_OK;
}

static lq_status add_packed(q_hf_reader *r, const schemes *all, const q_tensor *t, q_str module) {
    packed *w = (packed *)q_arena_new(r->arena, 1, sizeof *w);
    const q_tensor *scales = q_hf_part(r, module, ".weight_scale"), *zeros = q_hf_part(r, module, ".weight_zero_point");
    uint64_t shape[2] = {0, 0};
    if (!w) return LQ_E_NOMEM;
    Q_TRY(read_shape(r, module, shape));
    w->in = shape[1];
    if (t->rank != 2 || strcmp(t->type_name, "i32") != 0 || t->rows != shape[0] ||
        t->shape[0] * 32 / w->in * w->in != t->shape[0] * 32 || t->shape[0] > w->in || w->in % 32)
        return q_hf_at(r,
                       q_fail(LQ_E_INCONSISTENT,
                              "%llu x %llu words of type %s do not hold %llu x %llu codes, of inputs in 32s",
                              (unsigned long long)t->rows, (unsigned long long)t->shape[0], t->type_name,
                              (unsigned long long)shape[0], (unsigned long long)w->in),
                       t);
    w->bits = (uint32_t)(t->shape[0] * 32 / w->in);
    if (!scales) return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s.weight_scale' is missing", Q_STR_ARG(module));
    w->groups = scales->shape[0];
    if (w->groups == 0 || w->in % w->groups || (w->in / w->groups) % 32)
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "%llu groups of %llu inputs", (unsigned long long)w->groups,
                                 (unsigned long long)w->in), scales);
    w->group = w->in / w->groups;
    scheme want = {.bits = w->bits, .group = w->groups == 1 ? -1 : (int64_t)w->group, .symmetric = !zeros,
                   .order = w->groups == 1 || q_hf_part(r, module, ".weight_g_idx")};
    /* one group is a row too */
    if (w->groups == 1 && some_group(r, all, t, &want) != LQ_OK) want.group = (int64_t)w->group;
    Q_TRY(some_group(r, all, t, &want));
    w->codes = t;
    Q_TRY(q_hf_need(r, module, ".weight_scale", Q_HF_SCALES, w->groups, shape[0], &w->scales));
    Q_TRY(q_hf_check_scales(r, w->scales));
    if (zeros)
        Q_TRY(q_hf_need(r, module, ".weight_zero_point", "i32", w->groups, (shape[0] * w->bits + 31) / 32, &w->zeros));
    const q_tensor *g_idx = q_hf_part(r, module, ".weight_g_idx");
    if (g_idx) {
        Q_TRY(q_hf_need(r, module, ".weight_g_idx", "i32,i64", w->in, 0, &g_idx));
        Q_TRY(q_hf_order(r, g_idx, w->in, w->group, &w->strips.view.order));
    }
    q_hf_spare_activations(r, module);
    w->strips.fill = packed_fill;
    return q_hf_add_strips(r, module, t, q_hf_grouped(w->bits, w->in, w->group), w->in, shape[0], false, &w->strips);
}

/* Zero points of 8-bit weights; NULL where there are none, or none but 0. `spare`: they are there, and say nothing. */
static lq_status read_zeros(q_hf_reader *r, q_str module, const q_tensor **out, bool *spare) {
    const q_tensor *t = q_hf_part(r, module, ".weight_zero_point");
    void *all;
    *out = NULL;
    *spare = t != NULL;
    if (!t) return LQ_OK;
    Q_TRY(q_hf_all(r, t, &all));
    for (uint64_t i = 0; i < t->bytes && *spare; i++) *spare = ((const uint8_t *)all)[i] == 0;
    q_delete(r->alloc, all);
    if (!*spare) *out = t;
    else q_hf_claim(r, t);
    return LQ_OK;
}

/* Of scales, or of zero points: one for all (*groups = 0), or one for each row, or several. */
static lq_status part_shape(q_hf_reader *r, q_str module, const char *suffix, const char *types, const q_tensor *t,
                            const q_tensor **out, uint64_t *groups) {
    const q_tensor *part = q_hf_part(r, module, suffix);
    if (!part) return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s%s' is missing", Q_STR_ARG(module), suffix);
    const uint64_t k = part->shape[0], n = k * part->rows;
    *groups = n == 1 ? 0 : part->rank == 2 && part->rows == t->rows ? k : 1;
    if (*groups > 1 && (t->shape[0] % k || t->shape[0] / k % 32))
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "%llu groups of %llu inputs", (unsigned long long)k,
                                 (unsigned long long)t->shape[0]), part);
    if (n == 1 || (k == t->rows && part->rows == 1))
        return q_hf_need(r, module, suffix, types, k, part->rank == 2 ? 1 : 0, out);
    return q_hf_need(r, module, suffix, types, Q_MAX(*groups, (uint64_t)1), t->rows, out);
}

/* As configurations have it. */
static int64_t group_of(const q_tensor *t, uint64_t groups) {
    return groups > 1 ? (int64_t)(t->shape[0] / groups) : groups == 0 && t->rows > 1 ? 0 : -1;
}

static lq_status add_int8(q_hf_reader *r, const schemes *all, const q_tensor *t, q_str module) {
    int8 *w = (int8 *)q_arena_new(r->arena, 1, sizeof *w);
    uint64_t groups;
    bool spare;
    if (!w) return LQ_E_NOMEM;
    if (t->rank != 2) return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "it is no matrix"), t);
    Q_TRY(read_zeros(r, module, &w->zeros, &spare));
    Q_TRY(part_shape(r, module, ".weight_scale", Q_HF_SCALES, t, &w->scales, &w->groups));
    scheme want = {.bits = 8, .group = group_of(t, w->groups), .symmetric = !w->zeros};
    if (spare && some_group(r, all, t, &want) != LQ_OK) want.symmetric = false; /* all of them happen to be 0 */
    Q_TRY(some_group(r, all, t, &want));
    q_hf_spare_activations(r, module);
    w->codes = t;
    w->strips.fill = int8_fill;
    if (!w->zeros && w->groups <= 1)
        return q_hf_add_strips(r, module, t, q_format_find("i8_row"), t->shape[0], t->rows, false, &w->strips);
    if (w->zeros) {
        Q_TRY(part_shape(r, module, ".weight_zero_point", "i8", t, &w->zeros, &groups));
        if (groups != w->groups)
            return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "its shape is not that of the scales"), w->zeros);
    }
    Q_TRY(q_hf_check_scales(r, w->scales));
    w->strips.fill = int8_groups_fill;
    return q_hf_add_strips(r, module, t, q_hf_grouped(8, t->shape[0], t->shape[0] / Q_MAX(w->groups, (uint64_t)1)),
                           t->shape[0], t->rows, false, &w->strips);
}

static lq_status add_float(q_hf_reader *r, const schemes *all, const q_tensor *t, q_str module) {
    const q_tensor *scale = q_hf_part(r, module, ".weight_scale"), *zeros;
    uint64_t groups;
    bool spare;
    if (t->rank != 2 || t->bytes == 0) return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "it is no matrix"), t);
    Q_TRY(read_zeros(r, module, &zeros, &spare));
    if (zeros) return q_hf_at(r, q_fail(LQ_E_UNSUPPORTED, "floats of 8 bits with zero points are not read"), zeros);
    for (uint32_t i = 0; i < all->n; i++) {
        uint64_t block[2];
        char key[NAME + 64];
        if (!all->items[i].block || !all->items[i].real) continue;
        snprintf(key, sizeof key, "config_groups.%s.weights.block_structure", all->items[i].name);
        const q_meta *m = q_hf_key(r, key);
        if (!m || m->type != Q_META_ARRAY || m->item != Q_META_U64 || m->count != 2)
            return q_fail(LQ_E_UNSUPPORTED, "config.json: the field 'quantization_config.%s' is not two numbers", key);
        for (int j = 0; j < 2; j++) block[j] = q_load64(m->raw + 8 * j);
        if (block[0] == 0 || block[1] == 0 || block[0] > 1 << 20 || block[1] > 1 << 20)
            return q_fail(LQ_E_UNSUPPORTED, "config.json: the field 'quantization_config.%s' is out of range", key);
        Q_TRY(q_hf_need(r, module, ".weight_scale", Q_HF_SCALES, (t->shape[0] + block[1] - 1) / block[1],
                        (t->rows + block[0] - 1) / block[0], &scale));
        return q_hf_add_fp8(r, module, t, scale, block[0], block[1]);
    }
    Q_TRY(part_shape(r, module, ".weight_scale", Q_HF_SCALES, t, &scale, &groups));
    const scheme want = {.bits = 8, .group = group_of(t, groups), .symmetric = true, .real = true};
    Q_TRY(some_group(r, all, t, &want));
    return q_hf_add_fp8(r, module, t, scale, groups ? 1 : t->rows, t->shape[0] / Q_MAX(groups, (uint64_t)1));
}

static lq_status ct_read(q_hf_reader *r) {
    schemes all;
    memset(&all, 0, sizeof all);
    q_str module;
    Q_TRY(q_hf_check_fields(r, "", fields, Q_COUNT(fields)));
    Q_TRY(list_groups(r, &all));
    for (uint32_t i = 0; i < all.n; i++) Q_TRY(read_group(r, &all.items[i]));
    for (uint32_t i = 0; i < r->dir->n_tensors; i++) {
        const q_tensor *t = &r->dir->tensors[i];
        if (q_hf_module(t, ".weight_packed", &module)) Q_TRY(add_packed(r, &all, t, module));
        else if (q_hf_module(t, ".weight", &module) && strcmp(t->type_name, "i8") == 0)
            Q_TRY(add_int8(r, &all, t, module));
        else if (q_hf_module(t, ".weight", &module) && strcmp(t->type_name, "f8_e4m3") == 0)
            Q_TRY(add_float(r, &all, t, module));
    }
    return LQ_OK;
}

const q_hf_kind q_hf_ct = {.method = "compressed-tensors", .read = ct_read};
