/* cli_lora.c: `--lora DIR[:scale]`: adapters and how much of each. What is behind the last colon counts as a scale
 * where it is a number, so a path that ends in one needs a scale behind it. */
#include "cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The colon before a scale; NULL = there is none. */
static const char *scale_of(const char *text, double *scale) {
    const char *colon = strrchr(text, ':');
    char *end = NULL;
    *scale = 1;
    if (!colon || colon == text || colon[1] == ' ') return NULL;
    const double v = strtod(colon + 1, &end);
    if (end == colon + 1 || *end) return NULL;
    *scale = v;
    return colon;
}

int cli_loras_open(cli *c, const cli_list *list, cli_loras *out) {
    *out = (cli_loras){0};
    size_t bytes = 0;
    for (size_t i = 0; i < list->count; i++) bytes += strlen(list->items[i]) + 1;
    if (list->count == 0) return 0;
    out->paths = calloc(list->count, sizeof *out->paths);
    out->scales = calloc(list->count, sizeof *out->scales);
    out->text = calloc(bytes, 1);
    if (!out->paths || !out->scales || !out->text) return cli_nomem(c);
    char *at = out->text;
    for (size_t i = 0; i < list->count; i++) {
        double scale;
        const char *item = list->items[i], *colon = scale_of(item, &scale);
        if (!item[0]) return cli_usage(c, "--lora needs the path of an adapter");
        if (!isfinite((float)scale)) return cli_usage(c, "--lora %s: the scale must be a finite number", item);
        const size_t n = colon ? (size_t)(colon - item) : strlen(item);
        memcpy(at, item, n); /* ends with a zero: the whole is zeros */
        out->paths[i] = at;
        out->scales[i] = (float)scale;
        at += n + 1;
    }
    out->n = (uint32_t)list->count;
    return 0;
}

void cli_loras_free(cli_loras *l) {
    free(l->paths);
    free(l->scales);
    free(l->text);
}
