/* cli_device.c: where a model runs: opening it on a device, the plan in words and in JSON, what crossed the border.
 *
 * Owns what --device, --gpu-layers and --load-as mean: 0 layers is the processor alone, no such option is all of them.
 * Refuses layers without a device. No number here is the tool's own: all are of lq_model_plan and lq_session_stats. */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------ opening */

static bool is_processor(const char *device) {
    return !device || strcmp(device, "cpu") == 0 || strncmp(device, "cpu:", 4) == 0;
}

static int check_place(cli *c, const cli_place *place) {
    const unsigned long long layers = place->layers;
    if (place->layers == CLI_ALL_LAYERS || !is_processor(place->device)) return 0;
    if (!place->device) {
        return cli_usage(c, "--gpu-layers %llu: say with --device where, such as --device vulkan:0", layers);
    }
    if (place->layers == 0) return 0;
    return cli_usage(c, "--gpu-layers %llu: --device %s is the processor, which runs all layers by itself", layers,
                     place->device);
}

/* What to try next when a model could not be put on a device; NULL when the failure was not the device's. */
static const char *device_hint(lq_status status, const char *device, char *text, size_t n) {
    const bool about = strstr(lq_error_detail(), device) != NULL;
    if (status == LQ_E_NOMEM && about) {
        snprintf(text, n,
                 "With --gpu-layers N the processor runs the first layers; "
                 "`lq info MODEL --device %.64s --gpu-layers N` says what that takes.",
                 device);
    } else if ((status == LQ_E_ARG || status == LQ_E_UNSUPPORTED) && about) {
        snprintf(text, n, "`lq info --devices` lists what is here.");
    } else {
        return NULL;
    }
    return text;
}

lq_model_options cli_model_options(const char *activations) {
    const lq_model_options mo = {.size = sizeof mo, .no_pack = activations && strcmp(activations, "f32") == 0};
    return mo;
}

int cli_model(cli *c, lq_ctx *ctx, const char *path, const cli_place *place, const lq_model_options *o,
              lq_model **model) {
    lq_model_options mo = {.size = sizeof mo};
    char hint[256];
    if (o) mo = *o;
    const int code = check_place(c, place);
    if (code != 0) return code;
    if (place->layers != 0) {
        mo.device = place->device;
        mo.gpu_layers = place->layers == CLI_ALL_LAYERS ? 0 : (uint32_t)place->layers;
    }
    if (place->no_pack) mo.no_pack = 1;
    if (place->pack_at_open) mo.pack_at_open = 1;
    if (place->load_as) mo.load_as = place->load_as;
    cli_loras loras;
    const int bad = cli_loras_open(c, &place->lora, &loras);
    if (bad != 0) {
        cli_loras_free(&loras);
        return bad;
    }
    mo.loras = (const char *const *)loras.paths;
    mo.lora_scales = loras.scales;
    mo.n_loras = loras.n;
    const lq_status s = lq_model_open(ctx, path, &mo, model);
    cli_loras_free(&loras);
    if (s == LQ_OK) return 0;
    return cli_fail(c, s, mo.device ? device_hint(s, mo.device, hint, sizeof hint) : NULL);
}

int cli_draft(cli *c, lq_ctx *ctx, const char *path, const cli_place *place, const lq_model_options *o,
              lq_model **draft) {
    if (!path) return 0;
    const cli_place at = {.device = place->device, .layers = place->layers ? CLI_ALL_LAYERS : 0,
                          .no_pack = place->no_pack, .pack_at_open = place->pack_at_open};
    return cli_model(c, ctx, path, &at, o, draft);
}

/* ------------------------------------------------------------------------------------------------ the plan */

int cli_ram(cli *c, const char *text, uint64_t *out) {
    char *end;
    *out = 0;
    if (!text) return 0;
    errno = 0;
    const double v = strtod(text, &end);
    const char *const units = "KMGT";
    const char *unit = *end ? strchr(units, *end >= 'a' ? *end - 'a' + 'A' : *end) : NULL;
    double scale = 1;
    for (const char *u = units; unit && u <= unit; u++) scale *= 1024;
    if (unit) end++;
    if (*end == 'B') end++;
    if (errno || *end || !(v * scale >= 1 && v * scale < 1e18))
        return cli_usage(c, "--max-ram %s: not a number of bytes, such as 8G", text);
    *out = (uint64_t)(v * scale);
    return 0;
}

lq_status cli_plan(const lq_model *model, const lq_session_options *options, bool loaded, lq_plan_info *plan) {
    *plan = (lq_plan_info){.size = sizeof *plan};
    const lq_status s = lq_model_plan(model, options, plan);
    if (s == LQ_OK) plan->device_memory += plan->device_own + (loaded ? plan->device_weights : 0);
    return s;
}

/* Layers `first` to `last` in words: "layer 5", "layers 2 to 5". */
static cli_str layers_text(uint32_t first, uint32_t last) {
    cli_str r;
    if (first == last) snprintf(r.s, sizeof r.s, "layer %u", first);
    else snprintf(r.s, sizeof r.s, "layers %u to %u", first, last);
    return r;
}

void cli_plan_print(FILE *f, const lq_plan_info *plan) {
    const uint32_t first = plan->layers - plan->device_layers;
    if (!plan->device[0]) return;
    fprintf(f, "%s runs ", plan->device);
    if (plan->device_embedding) fprintf(f, "the embedding, all %u layers and the output", plan->layers);
    else fprintf(f, "%s and the output", layers_text(first, plan->layers - 1).s);
    fprintf(f, ": %s of weights, %s of KV cache, %s of activations, %s to copy through (%s of %s%s)",
            cli_bytes(plan->device_weights).s, cli_bytes(plan->device_kv).s, cli_bytes(plan->device_activations).s,
            cli_bytes(plan->device_own).s, cli_bytes(plan->device_total).s, cli_bytes(plan->device_memory).s,
            plan->device_total > plan->device_memory ? ", too much" : "");
    if (plan->device_staging)
        fprintf(f, ", reached through %s of the processor's memory", cli_bytes(plan->device_staging).s);
    if (!plan->device_embedding) {
        fprintf(f, "; the processor runs the embedding%s%s; %llu bytes per token cross the border",
                first ? " and " : "", first ? layers_text(0, first - 1).s : "", (unsigned long long)plan->border_bytes);
    }
    fputs(".\n", f);
}

json_t *cli_plan_json(const lq_plan_info *plan) {
    if (!plan->device[0]) return NULL;
    json_t *o = json_object();
    cli_set_text(o, "name", plan->device);
    cli_set_int(o, "layers", plan->device_layers);
    cli_set_int(o, "first_layer", plan->layers - plan->device_layers);
    cli_set_bool(o, "embedding", plan->device_embedding != 0);
    cli_set_int(o, "weights", plan->device_weights);
    cli_set_int(o, "kv", plan->device_kv);
    cli_set_int(o, "activations", plan->device_activations);
    cli_set_int(o, "own", plan->device_own);
    cli_set_int(o, "total", plan->device_total);
    cli_set_int(o, "memory", plan->device_memory);
    cli_set_bool(o, "fits", plan->device_total <= plan->device_memory);
    cli_set_int(o, "staging", plan->device_staging);
    cli_set_int(o, "border_bytes_per_token", plan->border_bytes);
    return o;
}

int cli_plan_tell(cli *c, const lq_model *model, const lq_session_options *options, lq_plan_info *plan) {
    const lq_status s = cli_plan(model, options, true, plan);
    if (s != LQ_OK) return cli_fail(c, s, NULL);
    if (!c->json) cli_plan_print(stderr, plan);
    return 0;
}

/* ------------------------------------------------------------------------------------------------ the border */

void cli_border_print(const lq_stats *stats) {
    if (!stats->border_bytes) return;
    fprintf(stderr, "border: %s in %.6f s", cli_bytes(stats->border_bytes).s, stats->border_seconds);
    const double all = stats->prefill_seconds + stats->decode_seconds;
    if (all > 0) fprintf(stderr, ", %.2f %% of the time", stats->border_seconds / all * 100);
    fputc('\n', stderr);
}

void cli_border_json(json_t *object, const lq_stats *stats) {
    if (!stats->border_bytes) return;
    json_t *o = json_object();
    cli_set_int(o, "bytes", stats->border_bytes);
    cli_set_real(o, "seconds", stats->border_seconds);
    cli_set(object, "border", o);
}
