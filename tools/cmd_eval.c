/* cmd_eval.c: `lq eval`: perplexity of a model on a text, and its distance from a reference model.
 *
 * The numbers come from lq_evaluate and lq_compare; this file chooses the window, checks that the text suffices before
 * anything is evaluated, and names the results. */
#include "cli_gate.h"

#include <stdlib.h>
#include <string.h>

typedef struct args {
    cli_place place;
    cli_memory memory;
    const char *model, *text, *against, *activations, *isa;
    cli_kv kv;
    cli_rope rope;
    uint64_t ctx, max_tokens, threads, threads_prefill;
    uint32_t score_all;
    cli_gate gate;
} args;

static const args defaults = {.place = CLI_PLACE};

static const cli_operand operands[] = {{"MODEL", offsetof(args, model), 0, "a GGUF file or a Hugging Face folder"},
                                       {0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "What to measure"},
    {.type = CLI_TEXT,
     .letter = 'x',
     .required = 1,
     .name = "text",
     .value = "FILE",
     .at = offsetof(args, text),
     .help = "a text the model was not trained on, in UTF-8; - reads standard input",
     .also = "|file|corpus|prompt|"},
    {.type = CLI_TEXT,
     .letter = 'a',
     .name = "against",
     .value = "REF",
     .at = offsetof(args, against),
     .help = "also compare with this model, usually the original in f16",
     .also = "|reference|ref|base|"},
    CLI_OPT_CTX(args),
    CLI_OPT_MAX_TOKENS(args),
    {.type = CLI_FLAG,
     .name = "score-all",
     .at = offsetof(args, score_all),
     .help = "score every position; without it, the second half of each window, where the\n"
             "model has context to go by",
     .also = "|stride|all|"},
    CLI_OPT_GATE(args),
    {.type = CLI_GROUP, .name = "How"},
    CLI_OPT_DEVICE(args),
    CLI_OPT_GPU_LAYERS(args),
    CLI_OPT_NO_PACK(args),
    CLI_OPT_LOAD_AS(args),
    CLI_OPT_RUN_LORA(args),
    CLI_OPT_KV(args),
    CLI_OPT_ROPE(args),
    CLI_OPT_ACTIVATIONS(args),
    CLI_OPT_THREADS(args),
    CLI_OPT_THREADS_PREFILL(args),
    CLI_OPT_MEMORY(args),
    CLI_OPT_ISA(args),
    {.type = CLI_END}};

static json_t *result_json(const lq_eval_result *r, bool compared) {
    json_t *o = json_object();
    cli_set_int(o, "tokens", r->tokens);
    cli_set_int(o, "evaluated", r->evaluated);
    cli_set_int(o, "window", r->window);
    cli_set_real(o, "nll", r->nll);
    cli_set_real(o, "ppl", r->ppl);
    cli_set_real(o, "ppl_se", r->ppl_se);
    if (!compared) return o;
    cli_set_real(o, "ppl_ratio", r->ppl_ratio);
    cli_set_real(o, "kld_mean", r->kld_mean);
    cli_set_real(o, "kld_se", r->kld_se);
    cli_set_real(o, "kld_median", r->kld_median);
    cli_set_real(o, "kld_p90", r->kld_p90);
    cli_set_real(o, "kld_p95", r->kld_p95);
    cli_set_real(o, "kld_p99", r->kld_p99);
    cli_set_real(o, "kld_p999", r->kld_p999);
    cli_set_real(o, "kld_max", r->kld_max);
    cli_set_real(o, "same_top", r->same_top);
    cli_set_real(o, "dp_mean", r->dp_mean);
    cli_set_real(o, "dp_rms", r->dp_rms);
    return o;
}

/* What a sweep gives; [0] the model, [1] the reference. */
typedef struct sweep {
    lq_eval_result result[2];
    lq_plan_info plan;
    lq_stats stats; /* of the model */
    double seconds;
} sweep;

static int print_json(cli *c, const args *a, const sweep *w, int code, json_t *missed) {
    const lq_eval_result *r = &w->result[0], *ref = &w->result[1];
    json_t *o = result_json(r, a->against != NULL);
    cli_set_text(o, "model", a->model);
    cli_set_text(o, "text", a->text);
    if (a->against) {
        json_t *e = result_json(ref, false);
        cli_set_text(e, "model", a->against);
        cli_set(o, "reference", e);
    }
    if (w->plan.device[0]) cli_set(o, "device", cli_plan_json(&w->plan));
    cli_border_json(o, &w->stats);
    cli_set_real(o, "seconds", w->seconds);
    if (cli_gate_set(&a->gate)) cli_set(o, "missed", json_incref(missed));
    return cli_json_print(c, o, code);
}

static void print_result(const args *a, const sweep *w) {
    const lq_eval_result *r = &w->result[0], *ref = &w->result[1];
    printf("tokens scored     %llu of %llu, windows of %u\n", (unsigned long long)r->tokens,
           (unsigned long long)r->evaluated, r->window);
    printf("perplexity        %.4f +- %.4f  (%.6f nats per token)\n", r->ppl, r->ppl_se, r->nll);
    if (a->against) {
        printf("reference         %.4f +- %.4f  (%s)\n", ref->ppl, ref->ppl_se, cli_safe(a->against).s);
        printf("ratio             %.6f\n", r->ppl_ratio);
        printf("KL divergence     mean %.6f +- %.6f, median %.6f\n", r->kld_mean, r->kld_se, r->kld_median);
        printf("  percentiles     90: %.5f   95: %.5f   99: %.5f   99.9: %.5f   maximum: %.5f\n", r->kld_p90,
               r->kld_p95, r->kld_p99, r->kld_p999, r->kld_max);
        printf("same top token    %.3f %%\n", r->same_top * 100);
        printf("right token's p   mean change %+.4f %%, root mean square %.4f %%\n", r->dp_mean * 100, r->dp_rms * 100);
    }
    fprintf(stderr, "%.1f s, %.0f tokens/s\n", w->seconds, w->seconds > 0 ? (double)r->evaluated / w->seconds : 0.0);
    cli_border_print(&w->stats);
}

/* The result, and what of it misses the limits. */
static int report(cli *c, const args *a, const sweep *w) {
    json_t *missed = json_array();
    if (!c->json) print_result(a, w);
    int code = cli_gate_check(&a->gate, a->model, a->text, &w->result[0], missed) ? CLI_CHECK_FAILED : CLI_OK;
    if (c->json) code = print_json(c, a, w, code, missed);
    json_decref(missed);
    return code;
}

/* The models are open: sessions, tokens, the sweep. models[1] is the reference or NULL. */
static int evaluate(cli *c, const args *a, lq_model *const models[2]) {
    lq_session *sessions[2] = {NULL, NULL};
    lq_model_info info = {.size = sizeof info};
    sweep w = {.result = {{.size = sizeof *w.result}, {.size = sizeof *w.result}}, .stats = {.size = sizeof w.stats}};
    int32_t *ids = NULL;
    size_t count = 0;
    cli_progress progress;
    lq_status s = lq_model_info_get(models[0], &info);
    if (s != LQ_OK) return cli_fail(c, s, NULL);
    if (a->ctx > info.longest_context && !a->rope.type) {
        return cli_usage(c, "--ctx %llu: %s was trained with a context of %u tokens; see --rope-scaling",
                         (unsigned long long)a->ctx, a->model, info.longest_context);
    }
    const uint32_t window = a->ctx ? (uint32_t)a->ctx : info.context < 512 ? info.context : 512;
    if (a->max_tokens && a->max_tokens < window) {
        return cli_usage(c, "--max-tokens %llu: one window alone has %u tokens; see --ctx",
                         (unsigned long long)a->max_tokens, window);
    }
    int code = cli_corpus(c, models[0], a->text, window, &ids, &count);
    if (code != 0) return code;
    lq_session_options so = {.size = sizeof so,
                                   .context = window,
                                   .max_logits = a->score_all ? window : (window + 1) / 2,
                                   .threads = (uint32_t)a->threads,
                                   .activations = a->activations,
                                   .threads_prefill = (uint32_t)a->threads_prefill};
    cli_rope_set(&a->rope, &so);
    if (models[1]) code = cli_session(c, models[1], &so, &sessions[1]); /* the reference keeps what it would */
    cli_kv_set(&a->kv, &so);
    if (code == 0) code = cli_plan_tell(c, models[0], &so, &w.plan);
    if (code == 0) code = cli_session(c, models[0], &so, &sessions[0]);
    if (code == 0) {
        const lq_eval_options eo = {.size = sizeof eo,
                                    .window = window,
                                    .max_tokens = a->max_tokens,
                                    .score_all = a->score_all,
                                    .progress = cli_progress_update,
                                    .user = &progress};
        cli_progress_begin(&progress, "eval");
        cli_watch(sessions, models[1] ? 2 : 1);
        s = models[1] ? lq_compare(sessions[1], sessions, 1, ids, count, &eo, &w.result[1], &w.result[0])
                      : lq_evaluate(sessions[0], ids, count, &eo, &w.result[0]);
        cli_unwatch();
        cli_progress_clear(&progress);
        w.seconds = cli_clock() - progress.start;
        if (s == LQ_OK) s = lq_session_stats(sessions[0], &w.stats);
        if (s != LQ_OK) code = cli_fail(c, s, NULL);
        else code = report(c, a, &w);
    }
    lq_session_close(sessions[0]);
    lq_session_close(sessions[1]);
    free(ids);
    return code;
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    lq_ctx *ctx;
    lq_model *models[2] = {NULL, NULL};
    const lq_model_options mo = cli_model_options(a->activations);
    if (cli_gate_set(&a->gate) && !a->against)
        return cli_usage(c, "limits are to a reference: name it with --against");
    int code = cli_check_activations(c, a->activations);
    if (code == 0) code = cli_open(c, a->threads, a->isa, &a->memory, &ctx);
    if (code != 0) return code;
    code = cli_model(c, ctx, a->model, &a->place, &mo, &models[0]);
    cli_place stored = a->place; /* the reference is used as it is stored */
    stored.load_as = NULL;
    stored.lora = (cli_list){0};
    if (code == 0 && a->against) code = cli_model(c, ctx, a->against, &stored, &mo, &models[1]);
    if (code == 0) code = evaluate(c, a, models);
    lq_model_close(models[0]);
    lq_model_close(models[1]);
    lq_close(ctx);
    return code;
}

const cli_command cli_command_eval = {
    .name = "eval",
    .summary = "perplexity on a text, and the distance from a reference",
    .about = "Perplexity says how surprised the model is by a text: lower is better, and only numbers from the\n"
             "same text, window and tokenizer compare. With --against the KL divergence tells more: how far the\n"
             "model's predictions are from those of the reference, token by token (0 = identical), and how\n"
             "often both have the same most likely token.\n\n"
             "The text is cut into windows that do not overlap; each begins with an empty context. With --device\n"
             "both models run there.\n\n"
             "With limits (--max-kld and others) the report comes first, then what was missed, and the exit code\n"
             "is 1: a gate for scripts.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq eval my-model.q4_k_m.gguf --text book.txt\n"
                "  lq eval my-model.q4_k_m.gguf --text book.txt --against my-model.f16.gguf --json\n"
                "  lq eval my-model.gguf --text book.txt --against my-model.f16.gguf --max-kld 0.02 || echo worse\n"
                "  lq eval my-model.gguf --text book.txt --ctx 2048 --max-tokens 100000 --score-all\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
