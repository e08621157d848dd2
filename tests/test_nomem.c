/* test_nomem.c: every allocation of a model's whole life fails once, and fails with all that follow it.
 *
 * A scenario opens, quantizes, generates and evaluates through the public API alone. It is run again and again with the
 * k-th allocation refused, for every k until none is refused any more. The call that meets the refusal has to end with
 * LQ_E_NOMEM and a sentence, give back every block it took, leave its results and the output's folder alone, and
 * succeed when it is repeated, with the bits and bytes of an undisturbed run. What is refused is either the hook's
 * blocks (lq_allocator), or everything that the process asks of the system: the C library's malloc for anyone (jansson,
 * fopen, our own), mappings and threads. For the latter this program defines malloc and its kin itself, which a
 * sanitizer's own allocator does not bear. */
#include "harness.h"
#include "help_gguf.h"
#include "help_model.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* ------------------------------------------------------------------------------------------------ refusing */

static atomic_bool inside;        /* a call of the library is running */
static atomic_uint asked, refuse; /* requests so far in this run; the number of the refused one, 0 = none */
static atomic_bool and_later;     /* every later one too */
static atomic_bool refused;       /* it has happened */
static atomic_int live;           /* blocks and mappings that are out: the hook's, or the process's */

static bool refuses(void) {
    if (!inside) return false;
    const unsigned n = ++asked;
    if (!refuse || (n != refuse && !(and_later && n > refuse))) return false;
    refused = true;
    return true;
}

static void *hook_alloc(void *user, size_t n, size_t to) {
    void *p = NULL;
    Q_UNUSED(user);
    if (refuses() || posix_memalign(&p, to, n) != 0) return NULL;
    live++;
    return p;
}
static void hook_free(void *user, void *p, size_t n) {
    Q_UNUSED(user);
    memset(p, 0xDD, n); /* a use after it shows */
    free(p);
    live--;
}
static const lq_allocator hook = {hook_alloc, hook_free, NULL};

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZER_MALLOC 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZER_MALLOC 1
#endif
#if defined(__GLIBC__) && !defined(SANITIZER_MALLOC)
#define OWN_MALLOC 1
#else
#define OWN_MALLOC 0
#endif

static bool whole_system; /* refusals and `live` are the process's, not the hook's */

#if OWN_MALLOC
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static bool system_refuses(void) {
    if (!whole_system || !refuses()) return false;
    errno = ENOMEM;
    return true;
}
static void *taken(void *p) {
    if (p && whole_system && inside) live++;
    return p;
}
static void given(const void *p) {
    if (p && whole_system && inside) live--;
}
#pragma GCC visibility push(default) /* for the shared libraries too */
void *malloc(size_t n) { return system_refuses() ? NULL : taken(__libc_malloc(n)); }
void *calloc(size_t n, size_t m) { return system_refuses() ? NULL : taken(__libc_calloc(n, m)); }
void *realloc(void *p, size_t n) {
    if (system_refuses()) return NULL;
    void *q = __libc_realloc(p, n);
    if (!p) return taken(q);
    if (!n) given(p);
    return q;
}
void *memalign(size_t to, size_t n) { return system_refuses() ? NULL : taken(__libc_memalign(to, n)); }
void *aligned_alloc(size_t to, size_t n) { return memalign(to, n); }
int posix_memalign(void **out, size_t to, size_t n) {
    void *p = memalign(to, n);
    if (!p) return ENOMEM;
    *out = p;
    return 0;
}
void free(void *p) {
    given(p);
    __libc_free(p);
}
void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    if (system_refuses()) return MAP_FAILED;
    void *p = (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
    return p == MAP_FAILED ? p : taken(p);
}
int munmap(void *p, size_t n) {
    given(p);
    return (int)syscall(SYS_munmap, p, n);
}
static int (*real_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*fn)(void *), void *arg) {
    if (whole_system && refuses()) return EAGAIN;
    return real_create(id, attr, fn, arg);
}
#pragma GCC visibility pop
static void find_real(void) { *(void **)&real_create = dlsym(RTLD_NEXT, "pthread_create"); }
#else
static void find_real(void) {}
#endif

/* ------------------------------------------------------------------------------------------------ one call */

static char folder[4096]; /* where outputs go */
static uint64_t digest;   /* of everything that a run produced */

static void mix(const void *data, size_t n) { digest = digest * 0x9E3779B97F4A7C15u ^ q_fnv64(data, n); }

static int files_in_folder(void) { return t_files(folder, 0); }

typedef struct call {
    const char *what;
    int live, files;
    bool refused; /* before */
    char stale[128];
} call;

static void begin(call *c, const char *what) {
    uint32_t none;
    ck_assert_int_eq(lq_format_find("stale", &none), LQ_E_UNSUPPORTED); /* a sentence that has to be replaced */
    snprintf(c->stale, sizeof c->stale, "%s", lq_error_detail());
    c->what = what;
    c->files = files_in_folder();
    c->refused = refused;
    c->live = live;
    inside = true;
}

/* True when the call met a refusal and has to be repeated. */
static bool end(const call *c, lq_status s) {
    inside = false;
    const int left = live - c->live;
    const char *name = lq_status_name(s), *detail = lq_error_detail();
    const unsigned k = refuse;
    if (s == LQ_OK) {
        /* What the C library does for itself may fall back: a lock without a limit, qsort without a buffer. */
        ck_assert_msg(whole_system || refused == c->refused, "%s: refusal %u went unnoticed", c->what, k);
        return false;
    }
    ck_assert_msg(refused && (and_later || !c->refused), "%s: %s: %s, and nothing was refused", c->what, name, detail);
    ck_assert_msg(s == LQ_E_NOMEM, "%s, request %u: %s: %s", c->what, k, name, detail);
    ck_assert_msg(detail[0] && strcmp(detail, c->stale) != 0, "%s, request %u: no sentence", c->what, k);
    ck_assert_msg(left == 0, "%s, request %u: %d blocks more than before", c->what, k, left);
    ck_assert_msg(files_in_folder() == c->files, "%s, request %u: a file was left in %s", c->what, k, folder);
    refuse = 0;
    return true;
}

#define STEP(expr)                                                                                 \
    do {                                                                                           \
        call call_;                                                                                \
        begin(&call_, #expr);                                                                      \
        if (end(&call_, (expr))) {                                                                 \
            inside = true;                                                                         \
            const lq_status again_ = (expr);                                                       \
            inside = false;                                                                        \
            ck_assert_msg(again_ == LQ_OK, "%s, repeated: %s", #expr, lq_error_detail());          \
        }                                                                                          \
    } while (0)
#define CLOSE(expr)    \
    do {               \
        inside = true; \
        expr;          \
        inside = false; \
    } while (0)
/* The same for a call that makes an object: on failure `ptr` stays as it was. */
#define MAKES(ptr, expr)                                                                           \
    do {                                                                                           \
        call call_;                                                                                \
        begin(&call_, #expr);                                                                      \
        if (end(&call_, (expr))) {                                                                 \
            ck_assert_ptr_null(ptr);                                                               \
            inside = true;                                                                         \
            const lq_status again_ = (expr);                                                       \
            inside = false;                                                                        \
            ck_assert_msg(again_ == LQ_OK, "%s, repeated: %s", #expr, lq_error_detail());          \
        }                                                                                          \
    } while (0)

/* ------------------------------------------------------------------------------------------------ scenarios */

typedef struct scenario {
    const char *name, *source;
    const char *scheme; /* NULL = use the model; else quantize it */
    const char *importance;
    const char *adapter[2];
    uint32_t no_mmap, check_tensors, dry_run, requantize;
    uint32_t threads;   /* 0 = 1: two on a busy machine wait for each other more than they work */
    unsigned least;     /* requests that have to be seen, so that a scenario cannot become hollow */
} scenario;

static uint32_t threads;
static lq_ctx *open_ctx(void) {
    const lq_options o = {.size = sizeof o, .threads = threads, .allocator = whole_system ? NULL : &hook};
    lq_ctx *ctx = NULL;
    MAKES(ctx, lq_open(&o, &ctx));
    return ctx;
}

static char text[4096]; /* what the models read */

/* Its bytes are part of the result; the file goes. */
static void mix_file(const char *path) {
    uint8_t *data;
    uint64_t n;
    ck_assert_int_eq(q_file_slurp(&q_alloc_libc, path, 1 << 24, &data, &n), LQ_OK);
    mix(data, n);
    q_delete(&q_alloc_libc, data);
    ck_assert_int_eq(unlink(path), 0);
}

static void use(const scenario *t) {
    lq_ctx *ctx = open_ctx();
    const lq_model_options mo = {.size = sizeof mo, .no_mmap = t->no_mmap, .check_tensors = t->check_tensors,
                                 .loras = t->adapter, .n_loras = t->adapter[0] != NULL};
    const lq_session_options so = {.size = sizeof so, .context = 48, .batch = 16, .max_logits = 8};
    lq_model *m = NULL;
    lq_session *s = NULL, *other = NULL;
    MAKES(m, lq_model_open(ctx, t->source, &mo, &m));

    float row[256];
    STEP(lq_model_tensor_row(m, 0, 1, row));
    mix(row, 64 * sizeof *row);
    static int32_t ids[8192], id;
    size_t n = 0;
    STEP((n = Q_COUNT(ids), lq_tokenize(m, text, strlen(text), LQ_TOKENIZE_BOS | LQ_TOKENIZE_PARSE_SPECIAL, ids, &n)));
    mix(ids, n * sizeof *ids);
    ck_assert_uint_gt(n, 80);
    static char back[8192];
    size_t length = 0;
    STEP((length = sizeof back, lq_detokenize(m, ids, n, LQ_DETOKENIZE_SPECIAL, back, &length)));
    mix(back, length);
    STEP((id = lq_token_find(m, "</s>")) == 2 ? LQ_OK : LQ_E_NOMEM);

    lq_plan_info plan = {.size = sizeof plan};
    STEP(lq_model_plan(m, &so, &plan));
    mix(&plan, sizeof plan);
    MAKES(s, lq_session_open(m, &so, &s));
    const unsigned before = asked;
    STEP(t_decode(s, ids, 24, 20));
    const float *logits;
    lq_model_info info = {.size = sizeof info};
    STEP(lq_model_info_get(m, &info));
    STEP(lq_logits(s, 3, &logits));
    mix(logits, info.vocabulary * sizeof *logits);
    const lq_sampler warm = {.size = sizeof warm, .temperature = 0.9f, .top_k = 40, .top_p = 0.95f, .seed = 3};
    STEP(lq_sample(s, LQ_ROW_LAST, &warm, &id));
    mix(&id, sizeof id);
    ck_assert_uint_eq(asked, before); /* evaluating and sampling ask for nothing */
    STEP(lq_sample_logits(NULL, logits, info.vocabulary, &warm, NULL, 0, 7, &id));
    mix(&id, sizeof id);

    MAKES(other, lq_session_open(m, &so, &other));
    const lq_eval_options eo = {.size = sizeof eo, .window = 16};
    lq_eval_result r[2] = {{.size = sizeof r[0]}, {.size = sizeof r[0]}};
    STEP(lq_evaluate(s, ids, 80, &eo, &r[0]));
    mix(r, sizeof r);
    STEP(lq_compare(s, &other, 1, ids, 80, &eo, &r[0], &r[1]));
    mix(r, sizeof r);

    char stats[4200];
    t_path(stats, sizeof stats, folder, "stats.gguf");
    const lq_calibrate_options co = {.size = sizeof co, .window = 16, .dataset = "text"};
    lq_calibrate_result cr = {.size = sizeof cr};
    if (!t->adapter[0]) { /* wants them merged */
        STEP(lq_calibrate(s, ids, 80, stats, &co, &cr));
        cr.seconds = 0;
        mix(&cr, sizeof cr);
        mix_file(stats);
    }
    CLOSE(lq_session_close(other));
    CLOSE(lq_session_close(s));
    CLOSE(lq_model_close(m));
    CLOSE(lq_close(ctx));
}

static void count_report(void *user, const lq_tensor_report *t) {
    ++*(unsigned *)user;
    digest += q_fnv64(t->name, strlen(t->name)) ^ q_fnv64(t->to, strlen(t->to));
}

static void quantize(const scenario *t) {
    char path[4200];
    t_path(path, sizeof path, folder, "out.gguf");
    unsigned reports = 0;
    lq_ctx *ctx = open_ctx();
    const lq_quantize_options o = {.size = sizeof o, .scheme = t->scheme, .dry_run = t->dry_run,
                                   .requantize = t->requantize, .report = count_report, .user = &reports,
                                   .importance = t->importance, .loras = t->adapter, .n_loras = t->adapter[0] != NULL};
    lq_quantize_result r = {.size = sizeof r};
    const uint64_t before = digest;
    STEP((digest = before, reports = 0, lq_quantize(ctx, t->source, path, &o, &r)));
    ck_assert_uint_eq(reports, r.tensors);
    CLOSE(lq_close(ctx));
    r.seconds = 0;
    mix(&r, sizeof r);
    if (!t->dry_run) mix_file(path);
}

static bool settled; /* the C library has its caches: the stacks of threads that ended */
static uint64_t run(const scenario *t, unsigned k, bool later) {
    const int before = live;
    digest = 1;
    asked = 0;
    refused = false;
    and_later = later;
    threads = t->threads && !later ? t->threads : 1;
    refuse = k;
    if (t->scheme) quantize(t);
    else use(t);
    ck_assert_msg(live == before || !settled, "%s, request %u: %d blocks are still out", t->name, k, live - before);
    ck_assert_int_eq(files_in_folder(), 0);
    return digest;
}

static void every_refusal(const scenario *t, bool later) {
    uint64_t undisturbed = 0;
    for (int i = 0; i < 2; i++) {
        undisturbed = run(t, 0, later);
        settled = true;
    }
    const unsigned all = asked;
    ck_assert_msg(all >= t->least, "%s asks for memory %u times only", t->name, all);
    unsigned k = 1, step = T_SLOW ? 3 : 1;
    for (;; k += step) { /* to the first that is not there, of which the last step is taken again one by one */
        ck_assert_msg(run(t, k, later) == undisturbed, "%s, request %u: another result", t->name, k);
        if (refused) continue;
        if (step == 1) break;
        k -= Q_MIN(k, step);
        step = 1;
    }
    ck_assert_msg(k >= t->least, "%s: %u requests were refused", t->name, k - 1);
}

/* ------------------------------------------------------------------------------------------------ sources */

static char gguf_path[4096], q8_path[4096], split_path[4096], hf_path[4096], stats_path[4096], adapter_path[4096],
    shards_path[4096];

static void write_meta(bytes *b, const q_meta *m) {
    if (m->type == Q_META_U32) key_u32(b, m->key.p, (uint32_t)m->u);
    else if (m->type == Q_META_STRING) key_str(b, m->key.p, m->s.p);
    else if (m->type == Q_META_F32) key(b, m->key.p, Q_META_F32), put32(b, q_f32_bits((float)m->f));
    else {
        ck_assert_int_eq(m->type, Q_META_ARRAY);
        key_array(b, m->key.p, m->item, m->count);
        if (m->item != Q_META_STRING) put(b, m->raw, (size_t)m->count * 4);
        for (uint64_t i = 0; m->item == Q_META_STRING && i < m->count; i++) put_text(b, m->strs[i].p);
    }
}

/* The model in gguf_path as two files of a set, half of the tensors in each, all keys in the first. */
static void write_split(const tiny *t) {
    q_directory *d;
    ck_assert_int_eq(open_path(gguf_path, true, &d), LQ_OK);
    for (uint32_t no = 0; no < 2; no++) {
        const uint32_t from = no ? d->n_tensors / 2 : 0, to = no ? d->n_tensors : d->n_tensors / 2;
        const uint32_t n_meta = no ? 0 : t->n_meta, two = 2;
        bytes b = head(3, to - from, n_meta + 3);
        for (uint32_t i = 0; i < n_meta; i++) write_meta(&b, &t->meta[i]);
        key(&b, "split.no", Q_META_U16), put(&b, &no, 2);
        key(&b, "split.count", Q_META_U16), put(&b, &two, 2);
        key(&b, "split.tensors.count", Q_META_I32), put32(&b, d->n_tensors);
        uint64_t at = 0;
        for (uint32_t i = from; i < to; i++) {
            const q_tensor *x = &d->tensors[i];
            char name[64];
            snprintf(name, sizeof name, "%.*s", Q_STR_ARG(x->name));
            tensor(&b, name, x->rank, x->shape, x->format == q_format_find("f32") ? 0 : 1, at);
            at = q_round_up(at + x->bytes, 32);
        }
        for (uint32_t i = from; i < to; i++) {
            align(&b, 32);
            put(&b, d->tensors[i].data, d->tensors[i].bytes);
        }
        char name[64];
        snprintf(name, sizeof name, "set-0000%u-of-00002.gguf", no + 1);
        snprintf(split_path, sizeof split_path, "%s/%s", t_tmp(), name);
        save_as(&b, split_path);
        free(b.p);
    }
    q_directory_close(d);
}

/* The first `n` pieces of the bundled model's vocabulary: fields 1 at the start of the file. */
static void cut_tokenizer(const char *path, uint32_t n) {
    char from[4096];
    uint8_t *p;
    uint64_t size, at = 0;
    bytes b = {0};
    t_path(from, sizeof from, t_root(), "bench/data/pocket/tokenizer.model");
    ck_assert_int_eq(q_file_slurp(&q_alloc_libc, from, 1 << 24, &p, &size), LQ_OK);
    for (uint32_t i = 0; at < size && p[at] == 0x0A; i++, at += 2u + p[at + 1])
        if (i < n) put(&b, p + at, 2u + p[at + 1]);
    put(&b, p + at, (size_t)(size - at));
    save_as(&b, path);
    free(b.p);
    q_delete(&q_alloc_libc, p);
}

enum { HF_VOCAB = 600, HF_TENSORS = 12 };
static const struct {
    const char *name;
    int rows, k;
} hf_tensors[HF_TENSORS] = {
    {"model.embed_tokens.weight", HF_VOCAB, 64}, {"model.layers.0.input_layernorm.weight", 64, 0},
    {"model.layers.0.self_attn.q_proj.weight", 64, 64}, {"model.layers.0.self_attn.k_proj.weight", 32, 64},
    {"model.layers.0.self_attn.v_proj.weight", 32, 64}, {"model.layers.0.self_attn.o_proj.weight", 64, 64},
    {"model.layers.0.post_attention_layernorm.weight", 64, 0}, {"model.layers.0.mlp.gate_proj.weight", 96, 64},
    {"model.layers.0.mlp.up_proj.weight", 96, 64}, {"model.layers.0.mlp.down_proj.weight", 64, 96},
    {"model.norm.weight", 64, 0}, {"lm_head.weight", HF_VOCAB, 64},
};

static void write_container(const char *path, int from, int to) {
    bytes b = {0};
    char line[256];
    size_t at = 0;
    put64(&b, 0);
    for (int i = from; i < to; i++) {
        const size_t n = 2u * (size_t)hf_tensors[i].rows * (size_t)Q_MAX(hf_tensors[i].k, 1);
        /* One name is spelled with an escape, so that it is decoded into memory of its own. */
        snprintf(line, sizeof line, "%s\"%s%s\":{\"dtype\":\"F16\",\"shape\":[%d", i == from ? "{" : ",",
                 i == from ? "\\u006d" : "", hf_tensors[i].name + (i == from), hf_tensors[i].rows);
        put(&b, line, strlen(line));
        snprintf(line, sizeof line, hf_tensors[i].k ? ",%d],\"data_offsets\":[%zu,%zu]}"
                                                    : "%.0d],\"data_offsets\":[%zu,%zu]}", hf_tensors[i].k, at, at + n);
        put(&b, line, strlen(line));
        at += n;
    }
    put(&b, "}", 1);
    while (b.n % 8) put(&b, " ", 1);
    const uint64_t header = b.n - 8;
    memcpy(b.p, &header, 8);
    for (int i = from; i < to; i++) {
        uint64_t seed = (uint64_t)i;
        for (int r = 0; r < hf_tensors[i].rows * Q_MAX(hf_tensors[i].k, 1); r++) {
            const uint16_t h = q_f32_to_half((hf_tensors[i].k ? 0.0f : 1.0f) + 0.15f * t_normal(&seed));
            put(&b, &h, 2);
        }
    }
    save_as(&b, path);
    free(b.p);
}

static void write_text(const char *dir, const char *name, const char *s) {
    char path[4200];
    const bytes b = {(uint8_t *)(uintptr_t)s, strlen(s), 0};
    save_as(&b, t_path(path, sizeof path, dir, name));
}

static void write_hf(char *dir, const char *name, bool sharded) {
    static const char *const one = "model-00001-of-00002.safetensors", *const two = "model-00002-of-00002.safetensors";
    char path[4200];
    t_path(dir, 4096, t_tmp(), name);
    ck_assert_int_eq(mkdir(dir, 0700), 0);
    snprintf(path, sizeof path, "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,"
             "\"intermediate_size\":96,\"num_hidden_layers\":1,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
             "\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-5,\"rope_theta\":1e4,\"max_position_embeddings\":64,"
             "\"vocab_size\":%d,\"bos_token_id\":1,\"eos_token_id\":2,\"tie_word_embeddings\":false,"
             "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
             "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":32},"
             "\"torch_dtype\":\"float\\u00316\"}", HF_VOCAB);
    write_text(dir, "config.json", path);
    write_text(dir, "tokenizer_config.json", "{\"add_bos_token\":true,\"add_eos_token\":false,\"legacy\":false,"
               "\"model_max_length\":1000000000000000019884624838656,\"tokenizer_class\":\"LlamaTokenizer\","
               "\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"unk_token\":\"<unk>\"}");
    cut_tokenizer(t_path(path, sizeof path, dir, "tokenizer.model"), HF_VOCAB);
    if (!sharded) {
        write_container(t_path(path, sizeof path, dir, "model.safetensors"), 0, HF_TENSORS);
        return;
    }
    write_container(t_path(path, sizeof path, dir, one), 0, 5);
    write_container(t_path(path, sizeof path, dir, two), 5, HF_TENSORS);
    bytes b = {0};
    put(&b, "{\"weight_map\":{", 15);
    for (int i = 0; i < HF_TENSORS; i++) {
        snprintf(path, sizeof path, "%s\"%s\":\"%s\"", i ? "," : "", hf_tensors[i].name, i < 5 ? one : two);
        put(&b, path, strlen(path));
    }
    put(&b, "}}", 2);
    save_as(&b, t_path(path, sizeof path, dir, "model.safetensors.index.json"));
    free(b.p);
}

/* For one matrix of the tiny model. */
static void write_adapter(void) {
    static const char head[] =
        "{\"base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight\":{\"dtype\":\"F16\",\"shape\":[2,64],"
        "\"data_offsets\":[0,256]},\"base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight\":"
        "{\"dtype\":\"F16\",\"shape\":[32,2],\"data_offsets\":[256,384]}}";
    char path[4200];
    bytes b = {0};
    t_path(adapter_path, sizeof adapter_path, t_tmp(), "adapter");
    ck_assert_int_eq(mkdir(adapter_path, 0700), 0);
    write_text(adapter_path, "adapter_config.json",
               "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"rank_pattern\":{\"k_proj\":2}}");
    put64(&b, sizeof head - 1);
    put(&b, head, sizeof head - 1);
    for (int i = 0; i < 192; i++) put8(&b, (uint8_t)(i * 7)), put8(&b, 0x2C); /* some sixteenth */
    save_as(&b, t_path(path, sizeof path, adapter_path, "adapter_model.safetensors"));
    free(b.p);
}

/* The statistics of the tiny model's text. */
static void write_statistics(const char *path) {
    const lq_session_options so = {.size = sizeof so, .context = 16};
    const lq_calibrate_options co = {.size = sizeof co, .window = 16, .dataset = "text", .force = 1};
    static int32_t ids[8192];
    size_t n = Q_COUNT(ids);
    lq_ctx *ctx;
    lq_model *m;
    lq_session *s;
    ck_assert_int_eq(lq_open(NULL, &ctx), LQ_OK);
    ck_assert_int_eq(lq_model_open(ctx, gguf_path, NULL, &m), LQ_OK);
    ck_assert_int_eq(lq_tokenize(m, text, strlen(text), LQ_TOKENIZE_BOS, ids, &n), LQ_OK);
    ck_assert_int_eq(lq_session_open(m, &so, &s), LQ_OK);
    ck_assert_msg(lq_calibrate(s, ids, n, path, &co, NULL) == LQ_OK, "%s", lq_error_detail());
    lq_session_close(s);
    lq_model_close(m);
    lq_close(ctx);
}

static void sources(void) {
    static tiny t;
    find_real();
    tiny_init(&t, "f16");
    tiny_write(&t, t_path(gguf_path, sizeof gguf_path, t_tmp(), "tiny.gguf"));
    write_split(&t);
    tiny_init(&t, "q8_0");
    tiny_write(&t, t_path(q8_path, sizeof q8_path, t_tmp(), "q8.gguf"));
    write_hf(hf_path, "hf", false);
    write_hf(shards_path, "shards", true);
    char path[4096];
    FILE *f = fopen(t_path(path, sizeof path, t_root(), "bench/data/text/prose.txt"), "rb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fread(text, 1, 1500, f), 1500);
    fclose(f);
    strcat(text, " </s>\xff\xfe\xc3\xa4\xe2\x82\xac"); /* a special token, invalid UTF-8, characters without a piece */
    write_adapter();
    write_statistics(t_path(stats_path, sizeof stats_path, t_tmp(), "stats.gguf"));
}

/* Each test has its folder for outputs: what a failed one leaves is not the next one's. */
static void make_folder(void) {
    snprintf(folder, sizeof folder, "%s/out-%d", t_tmp(), (int)getpid());
    ck_assert_int_eq(mkdir(folder, 0700), 0);
}

/* ------------------------------------------------------------------------------------------------ tests */

static const scenario scenarios[] = {
    {.name = "use a GGUF file", .source = gguf_path, .threads = 2, .least = 60},
    {.name = "use a GGUF file of 8 bits, read and checked", .source = q8_path, .no_mmap = 1, .check_tensors = 1,
     .least = 60},
    {.name = "use a split GGUF", .source = split_path, .least = 60},
    {.name = "use a directory", .source = hf_path, .least = 60},
    {.name = "use shards, read and checked", .source = shards_path, .no_mmap = 1, .check_tensors = 1, .least = 60},
    {.name = "quantize a directory to 8 bits", .source = hf_path, .scheme = "q8_0", .threads = 2, .least = 40},
    {.name = "quantize shards to q4_k_m", .source = shards_path, .scheme = "q4_k_m", .least = 40},
    {.name = "quantize a GGUF file to iq4_nl", .source = gguf_path, .scheme = "iq4_nl", .least = 40},
    {.name = "quantize a split GGUF to q5_1", .source = split_path, .scheme = "q5_1", .least = 40},
    {.name = "quantize again", .source = q8_path, .scheme = "q4_0", .requantize = 1, .least = 40},
    {.name = "quantize by importance", .source = gguf_path, .scheme = "q4_0", .importance = stats_path, .least = 60},
    {.name = "quantize with an adapter", .source = gguf_path, .scheme = "q8_0", .adapter = {adapter_path}, .least = 60},
    {.name = "use a GGUF file with an adapter", .source = gguf_path, .adapter = {adapter_path}, .least = 80},
    {.name = "dry run", .source = hf_path, .scheme = "q4_k_s", .dry_run = 1, .least = 40},
};

START_TEST(hook_refuses_once) { every_refusal(&scenarios[_i], false); }
END_TEST
START_TEST(hook_refuses_from_then_on) { every_refusal(&scenarios[_i], true); }
END_TEST
START_TEST(system_refuses_once) {
    whole_system = true;
    every_refusal(&scenarios[_i], false);
}
END_TEST
START_TEST(system_refuses_from_then_on) {
    whole_system = true;
    every_refusal(&scenarios[_i], true);
}
END_TEST

START_TEST(system_is_not_ours) { T_SKIP("refusals by the whole system: malloc belongs to the sanitizer"); }
END_TEST

static Suite *nomem_suite(void) {
    const int n = (int)Q_COUNT(scenarios);
    Suite *s = suite_create("nomem");
    TCase *t = tcase_create("refusals");
    tcase_add_unchecked_fixture(t, sources, NULL);
    tcase_add_checked_fixture(t, make_folder, NULL);
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, hook_refuses_once, 0, n);
    if (OWN_MALLOC) { /* the hook's blocks among others */
        tcase_add_loop_test(t, system_refuses_once, 0, n);
        tcase_add_loop_test(t, system_refuses_from_then_on, 0, n);
    } else {
        tcase_add_loop_test(t, hook_refuses_from_then_on, 0, n);
        tcase_add_test(t, system_is_not_ours);
    }
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(nomem_suite)
