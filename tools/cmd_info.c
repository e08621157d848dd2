/* cmd_info.c: `lq info`: what a model file holds and needs, and what this build offers.
 *
 * Reads headers, not weights. The table per tensor class adds up tensors of one role and format. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

typedef struct args {
    cli_place place;
    cli_memory memory;
    cli_kv kv;
    cli_rope rope;
    const char *model, *draft, *max_ram;
    uint64_t ctx, sequences;
    uint32_t tensors, meta, check, devices, formats, schemes;
} args;

static const args defaults = {.place = CLI_PLACE};

static const cli_operand operands[] = {
    {"MODEL", offsetof(args, model), 1, "a GGUF file or a Hugging Face folder"}, {0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "About a model"},
    {.type = CLI_UINT,
     .letter = 'c',
     .name = "ctx",
     .value = "N",
     .at = offsetof(args, ctx),
     .min = 2,
     .max = 16777216,
     .help = "plan the memory for a context of N tokens (default: what a session gets\n"
             "that names none: the trained context, or the power of two that fits into memory)",
     .also = "|context|ctx-size|n-ctx|"},
    {.type = CLI_UINT,
     .name = "sequences",
     .value = "N",
     .at = offsetof(args, sequences),
     .min = 1,
     .max = 4096,
     .help = "and for N sequences of that length, side by side (default 1)",
     .also = "|parallel|np|seqs|slots|"},
    CLI_OPT_KV(args),
    CLI_OPT_ROPE(args),
    CLI_OPT_DEVICE(args),
    CLI_OPT_GPU_LAYERS(args),
    CLI_OPT_NO_PACK(args),
    CLI_OPT_LOAD_AS(args),
    CLI_OPT_RUN_LORA(args),
    CLI_OPT_DRAFT(args),
    CLI_OPT_MAX_RAM(args),
    CLI_OPT_MEMORY(args),
    {.type = CLI_FLAG, .name = "tensors", .at = offsetof(args, tensors), .help = "list every tensor, in file order"},
    {.type = CLI_FLAG, .name = "meta", .at = offsetof(args, meta), .help = "list the metadata of the file",
     .also = "|metadata|keys|"},
    {.type = CLI_FLAG,
     .name = "check-tensors",
     .at = offsetof(args, check),
     .help = "read every weight and refuse values that are not finite (exit 3)",
     .also = "|check|verify|"},
    {.type = CLI_GROUP, .name = "About this build (no MODEL)"},
    {.type = CLI_FLAG, .name = "devices", .at = offsetof(args, devices), .help = "where models can run"},
    {.type = CLI_FLAG, .name = "formats", .at = offsetof(args, formats), .help = "how a tensor can be stored"},
    {.type = CLI_FLAG, .name = "schemes", .at = offsetof(args, schemes), .help = "what `lq quantize --scheme` takes"},
    {.type = CLI_END}};

/* ------------------------------------------------------------------------------------------------ this build */

static json_t *device_json(const lq_device_info *d, lq_status status) {
    json_t *o = json_object();
    if (status != LQ_OK) {
        json_t *e = json_object();
        cli_set_text(e, "status", lq_status_name(status));
        cli_set_text(e, "message", lq_error_detail());
        cli_set(o, "name", json_null());
        cli_set(o, "error", e);
        return o;
    }
    cli_set_text(o, "name", d->name);
    cli_set_text(o, "description", d->description);
    cli_set_text(o, "isa", d->isa);
    cli_set_int(o, "threads", d->threads);
    cli_set_int(o, "memory", d->memory);
    if (d->placing[0]) cli_set_text(o, "placing", d->placing);
    return o;
}

static void print_device(const lq_device_info *d, lq_status status) {
    if (status != LQ_OK) {
        printf("%-9s %s\n", "unusable", cli_safe(lq_error_detail()).s);
        return;
    }
    printf("%-9s %s; %s, ", d->name, cli_safe(d->description).s, d->isa);
    if (d->threads) printf("%u thread%s, ", d->threads, d->threads == 1 ? "" : "s");
    printf("%s of memory", cli_bytes(d->memory).s);
    if (d->placing[0]) printf(" (%s)", cli_safe(d->placing).s);
    putchar('\n');
}

/* A device that cannot be used stands in the list with the reason: it is not the command that fails. */
static int show_devices(cli *c, const args *a) {
    lq_ctx *ctx;
    const int code = cli_open(c, 0, NULL, &a->memory, &ctx);
    if (code != 0) return code;
    json_t *list = json_array();
    const uint32_t n = lq_device_count(ctx);
    lq_device_info d = {.size = sizeof d};
    for (uint32_t i = 0; i < n; i++) {
        const lq_status s = lq_device_info_get(ctx, i, &d);
        if (!c->json) print_device(&d, s);
        (void)json_array_append_new(list, device_json(&d, s));
    }
    /* Nothing but the processor: the library's sentence on the next one says which kinds this build knows. */
    if (n == 1 && !c->json && lq_device_info_get(ctx, n, &d) != LQ_OK) {
        fprintf(stderr, "no other device is here: %s\n", cli_safe(lq_error_detail()).s);
    }
    lq_close(ctx);
    if (c->json) return cli_json_print(c, list, 0);
    json_decref(list);
    return 0;
}

static int show_formats(cli *c) {
    json_t *list = json_array();
    if (!c->json) printf("%-8s %15s  %-23s %s\n", "format", "bits per weight", "a block", "GGUF type");
    for (uint32_t i = 0; i < lq_format_count(); i++) {
        lq_format_info f = {.size = sizeof f};
        char block[48];
        if (lq_format_info_get(i, &f) != LQ_OK) continue;
        json_t *o = json_object();
        cli_set_text(o, "name", f.name);
        cli_set_real(o, "bits_per_weight", f.bits_per_weight);
        cli_set_int(o, "block_weights", f.block_weights);
        cli_set_int(o, "block_bytes", f.block_bytes);
        cli_set(o, "gguf_id", json_integer(f.gguf_id));
        (void)json_array_append_new(list, o);
        snprintf(block, sizeof block, "%u weight%s, %u bytes", f.block_weights, f.block_weights == 1 ? "" : "s",
                 f.block_bytes);
        if (!c->json) printf("%-8s %15.4f  %-23s %d\n", f.name, f.bits_per_weight, block, f.gguf_id);
    }
    if (c->json) return cli_json_print(c, list, 0);
    json_decref(list);
    return 0;
}

static int show_schemes(cli *c) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < lq_scheme_count(); i++) {
        const char *description = NULL, *name = lq_scheme_name(i, &description);
        if (!name) break;
        json_t *o = json_object();
        cli_set_text(o, "name", name);
        cli_set_text(o, "description", description ? description : "");
        (void)json_array_append_new(list, o);
        if (!c->json) printf("%-18s %s\n", name, description ? description : "");
    }
    if (c->json) return cli_json_print(c, list, 0);
    json_decref(list);
    return 0;
}

/* ------------------------------------------------------------------------------------------------ a model */

/* Tensors of one role and one format. */
typedef struct tensor_class {
    const char *role, *format;
    uint32_t tensors;
    uint64_t weights, bytes;
} tensor_class;

static uint64_t weights_of(const lq_tensor_info *t) {
    uint64_t n = 1;
    for (uint32_t d = 0; d < t->rank && d < 8; d++) n *= t->shape[d];
    return n;
}

/* The classes in order of first appearance; the caller frees. NULL = out of memory or none. */
static tensor_class *classify(const lq_model *model, uint32_t tensors, size_t *count) {
    tensor_class *list = NULL;
    *count = 0;
    for (uint32_t i = 0; i < tensors; i++) {
        lq_tensor_info t = {.size = sizeof t};
        size_t k = 0;
        if (lq_model_tensor(model, i, &t) != LQ_OK) continue;
        while (k < *count && (strcmp(list[k].role, t.role) != 0 || strcmp(list[k].format, t.format) != 0)) k++;
        if (k == *count) {
            tensor_class *more = realloc(list, (*count + 1) * sizeof *list);
            if (!more) break;
            list = more;
            list[(*count)++] = (tensor_class){.role = t.role, .format = t.format};
        }
        list[k].tensors++;
        list[k].weights += weights_of(&t);
        list[k].bytes += t.bytes;
    }
    return list;
}

/* A draft model beside the model: its session is part of the model's plan, the rest is not. */
typedef struct beside {
    const char *path; /* NULL = none */
    uint64_t bytes, device_bytes;
} beside;

static lq_status plan_draft(const lq_model *draft, beside *b) {
    lq_plan_info p;
    if (!draft) return LQ_OK;
    const lq_status s = cli_plan(draft, NULL, false, &p);
    b->bytes = p.total - p.kv - p.activations;
    b->device_bytes = p.device_weights;
    return s;
}

static const char *role_of(const char *role) { return role[0] ? role : "(unused)"; }

static void print_model(const char *path, const lq_model_info *m, const lq_plan_info *p, bool by_default,
                        const beside *draft, const tensor_class *k, size_t n) {
    printf("%s\n", cli_safe(path).s);
    if (m->name[0]) printf("  name              %s\n", cli_safe(m->name).s);
    printf("  architecture      %s, in %s%s%s\n", cli_safe(m->architecture).s, cli_safe(m->container).s,
           m->file_scheme[0] ? ", scheme " : "", cli_safe(m->file_scheme).s);
    printf("  dimensions        %u layers, embedding %u, feed-forward %u, %u heads of %u (%u for keys and values)\n",
           m->layers, m->embedding, m->feed_forward, m->heads, m->head_dim, m->heads_kv);
    printf("  vocabulary        %u tokens, BOS %d, EOS %d\n", m->vocabulary, m->bos, m->eos);
    printf("  trained context   %u tokens", m->context);
    if (strcmp(m->rope_scaling, "none") != 0) {
        printf(", RoPE scaling %s", m->rope_scaling);
        if (m->rope_original || m->rope_factor != 1) printf(" by %g", m->rope_factor);
        if (m->rope_original) printf(" of the original %u", m->rope_original);
        if (m->longest_context > m->context) printf(", up to %u", m->longest_context);
    }
    if (by_default && p->context < m->context) printf("; by default %u, which fit into memory", p->context);
    putchar('\n');
    printf("  weights           %llu in %u tensors, %s, %.3f bits per weight\n", (unsigned long long)m->parameters,
           m->tensors, cli_bytes(m->weight_bytes).s, m->bits_per_weight);
    printf("  read per token    %s\n", cli_bytes(m->bytes_per_token).s);
    printf("  memory to run     %s for ", cli_bytes(p->total).s);
    if (p->sequences > 1) printf("%u sequences of %u tokens: ", p->sequences, p->context);
    else printf("a context of %u tokens: ", p->context);
    printf("weights %s, ", cli_bytes(p->weights).s);
    if (p->packed) printf("packed copies in their place %s, ", cli_bytes(p->packed).s);
    if (draft->path) printf("the draft model's %s, ", cli_bytes(draft->bytes).s);
    printf("KV cache %s in %s, activations %s", cli_bytes(p->kv).s, cli_kv_text(p).s,
           cli_bytes(p->activations).s);
    if (draft->path) printf(" (of both models)");
    if (p->locked)
        printf("; %s of it locked%s", cli_bytes(p->locked).s, draft->path ? ", without the draft model's weights" : "");
    putchar('\n');
    if (draft->device_bytes) printf("  draft model       %s of the device\n", cli_bytes(draft->device_bytes).s);
    if (p->device[0]) printf("  device            ");
    cli_plan_print(stdout, p);
    putchar('\n');
    printf("%-16s %-7s %7s %12s %12s %8s\n", "class", "format", "tensors", "weights", "bytes", "bits/w");
    for (size_t i = 0; i < n; i++) {
        printf("%-16s %-7s %7u %12llu %12llu %8.3f\n", role_of(k[i].role), k[i].format, k[i].tensors,
               (unsigned long long)k[i].weights, (unsigned long long)k[i].bytes,
               k[i].weights ? (double)k[i].bytes * 8 / (double)k[i].weights : 0.0);
    }
}

static json_t *model_json(const char *path, const lq_model_info *m, const lq_plan_info *p, const beside *draft,
                          const tensor_class *k, size_t n) {
    json_t *o = json_object(), *memory = json_object(), *classes = json_array();
    cli_set_text(o, "path", path);
    cli_set_text(o, "name", m->name);
    cli_set_text(o, "architecture", m->architecture);
    cli_set_text(o, "container", m->container);
    cli_set_text(o, "scheme", m->file_scheme);
    cli_set_int(o, "layers", m->layers);
    cli_set_int(o, "embedding", m->embedding);
    cli_set_int(o, "feed_forward", m->feed_forward);
    cli_set_int(o, "heads", m->heads);
    cli_set_int(o, "heads_kv", m->heads_kv);
    cli_set_int(o, "head_dim", m->head_dim);
    cli_set_int(o, "vocabulary", m->vocabulary);
    cli_set(o, "bos", json_integer(m->bos));
    cli_set(o, "eos", json_integer(m->eos));
    cli_set_int(o, "context", m->context);
    cli_set_int(o, "longest_context", m->longest_context);
    cli_set_text(o, "rope_scaling", m->rope_scaling);
    cli_set_real(o, "rope_factor", m->rope_factor);
    cli_set_int(o, "rope_original", m->rope_original);
    cli_set_int(o, "parameters", m->parameters);
    cli_set_int(o, "tensors", m->tensors);
    cli_set_int(o, "weight_bytes", m->weight_bytes);
    cli_set_int(o, "bytes_per_token", m->bytes_per_token);
    cli_set_real(o, "bits_per_weight", m->bits_per_weight);
    cli_set_int(memory, "context", p->context);
    cli_set_int(memory, "sequences", p->sequences);
    cli_set_int(memory, "weights", p->weights);
    cli_set_int(memory, "packed", p->packed);
    cli_set_int(memory, "kv", p->kv);
    cli_set_text(memory, "kv_k", p->kv_k);
    cli_set_text(memory, "kv_v", p->kv_v);
    cli_set_int(memory, "activations", p->activations);
    cli_set_int(memory, "total", p->total);
    cli_set_int(memory, "locked", p->locked);
    if (draft->path) {
        json_t *d = json_object();
        cli_set_text(d, "path", draft->path);
        cli_set_int(d, "bytes", draft->bytes);
        cli_set_int(d, "device_bytes", draft->device_bytes);
        cli_set(memory, "draft", d);
    }
    cli_set(o, "memory", memory);
    if (p->device[0]) cli_set(o, "device", cli_plan_json(p));
    for (size_t i = 0; i < n; i++) {
        json_t *e = json_object();
        cli_set_text(e, "class", k[i].role);
        cli_set_text(e, "format", k[i].format);
        cli_set_int(e, "tensors", k[i].tensors);
        cli_set_int(e, "weights", k[i].weights);
        cli_set_int(e, "bytes", k[i].bytes);
        (void)json_array_append_new(classes, e);
    }
    cli_set(o, "classes", classes);
    return o;
}

static void list_tensors(const lq_model *model, uint32_t count, json_t *list) {
    if (!list) printf("\n%-40s %-16s %-7s %12s  %s\n", "tensor", "class", "format", "bytes", "shape");
    for (uint32_t i = 0; i < count; i++) {
        lq_tensor_info t = {.size = sizeof t};
        if (lq_model_tensor(model, i, &t) != LQ_OK) continue;
        json_t *o = list ? json_object() : NULL, *shape = list ? json_array() : NULL;
        if (!list) {
            printf("%-40s %-16s %-7s %12llu  ", cli_safe(t.name).s, role_of(t.role), t.format, (unsigned long long)t.bytes);
        }
        for (uint32_t d = 0; d < t.rank && d < 8; d++) {
            if (list) (void)json_array_append_new(shape, json_integer((json_int_t)t.shape[d]));
            else printf("%s%llu", d ? " x " : "", (unsigned long long)t.shape[d]);
        }
        if (!list) {
            putchar('\n');
            continue;
        }
        cli_set_text(o, "name", t.name);
        cli_set_text(o, "class", t.role);
        cli_set_text(o, "format", t.format);
        cli_set_int(o, "bytes", t.bytes);
        cli_set(o, "shape", shape);
        (void)json_array_append_new(list, o);
    }
}

static void list_meta(const lq_model *model, json_t *object) {
    if (!object) printf("\nmetadata\n");
    for (uint32_t i = 0;; i++) {
        const char *name = NULL;
        size_t n = 0;
        char *text;
        if (lq_model_meta(model, NULL, i, &name, NULL, &n) == LQ_OK || n == 0 || !(text = malloc(n + 1))) break;
        text[n] = 0;
        const lq_status s = lq_model_meta(model, NULL, i, &name, text, &n);
        if (s == LQ_OK && name) {
            if (object) cli_set(object, name, cli_json_text(text, strlen(text)));
            else printf("  %-40s %.100s\n", cli_safe(name).s, cli_safe(text).s);
        }
        free(text);
        if (s != LQ_OK) break;
    }
}

static int show_model(cli *c, const args *a, lq_model *model, lq_model *draft) {
    lq_model_info m = {.size = sizeof m};
    lq_plan_info p;
    beside b = {.path = a->draft};
    lq_session_options so = {.size = sizeof so, .context = (uint32_t)a->ctx, .sequences = (uint32_t)a->sequences,
                             .draft = draft};
    cli_kv_set(&a->kv, &so);
    cli_rope_set(&a->rope, &so);
    const int wrong = cli_ram(c, a->max_ram, &so.max_bytes);
    if (wrong != 0) return wrong;
    lq_status s = lq_model_info_get(model, &m);
    if (s == LQ_OK) s = cli_plan(model, &so, false, &p);
    if (s == LQ_OK) s = plan_draft(draft, &b);
    if (s != LQ_OK) return cli_fail(c, s, NULL);
    p.total += b.bytes;
    p.device_total += b.device_bytes;
    size_t n = 0;
    tensor_class *k = classify(model, m.tensors, &n);
    int code = 0;
    if (c->json) {
        json_t *o = model_json(a->model, &m, &p, &b, k, n);
        json_t *list = a->tensors ? json_array() : NULL, *meta = a->meta ? json_object() : NULL;
        if (list) list_tensors(model, m.tensors, list);
        if (list) cli_set(o, "tensor_list", list);
        if (meta) list_meta(model, meta);
        if (meta) cli_set(o, "meta", meta);
        code = cli_json_print(c, o, 0);
    } else {
        print_model(a->model, &m, &p, a->ctx == 0, &b, k, n);
        if (a->tensors) list_tensors(model, m.tensors, NULL);
        if (a->meta) list_meta(model, NULL);
    }
    free(k);
    return code;
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    if ((a->devices + a->formats + a->schemes + (a->model != NULL)) != 1) {
        return cli_usage(c, "one of MODEL, --devices, --formats and --schemes is needed");
    }
    if (!a->model && a->place.load_as) return cli_usage(c, "--load-as plans a MODEL");
    if (!a->model && a->max_ram) return cli_usage(c, "--max-ram plans a MODEL");
    if (!a->model && a->draft) return cli_usage(c, "--draft plans a MODEL");
    if (!a->model && a->place.lora.count) return cli_usage(c, "--lora plans a MODEL");
    if (!a->model && (a->place.device || a->place.layers != CLI_ALL_LAYERS)) {
        return cli_usage(c, "--device and --gpu-layers plan a MODEL; --devices lists the devices");
    }
    if (a->devices) return show_devices(c, a);
    if (a->formats) return show_formats(c);
    if (a->schemes) return show_schemes(c);
    lq_ctx *ctx;
    lq_model *model = NULL, *draft = NULL;
    const lq_model_options mo = {.size = sizeof mo, .check_tensors = a->check, .plan_only = 1};
    int code = cli_open(c, 0, NULL, &a->memory, &ctx);
    if (code != 0) return code;
    code = cli_model(c, ctx, a->model, &a->place, &mo, &model);
    if (code == 0) code = cli_draft(c, ctx, a->draft, &a->place, &mo, &draft);
    if (code == 0) code = show_model(c, a, model, draft);
    lq_model_close(draft);
    lq_model_close(model);
    lq_close(ctx);
    return code;
}

const cli_command cli_command_info = {
    .name = "info",
    .summary = "what a model holds and needs, and what this build offers",
    .about = "Reads the headers of a model, not its weights: architecture, dimensions, formats and bytes per\n"
             "class of tensor, bits per weight, and the memory that running it takes before it is loaded; with\n"
             "--device also what runs where, and whether that fits.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq info my-model.q4_k_m.gguf\n"
                "  lq info my-model/ --ctx 4096 --json\n"
                "  lq info my-model.gguf --tensors --meta\n"
                "  lq info my-model.gguf --device vulkan:0 --gpu-layers 20\n"
                "  lq info my-model.gguf --draft my-small-model.gguf --ctx 8192 --sequences 4 --kv q8_0\n"
                "  lq info --schemes\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
