/* cli_lora.c: `--lora DIR[:scale]`: adapters and how much of each. What is behind the last colon counts as a scale where it is
 * a number, so a path that ends in one needs a scale behind it. */
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
    if (list->count == 0) return 0;
    out->paths = calloc(list->count, sizeof *out->paths);
    out->scales = calloc(list->count, sizeof *out->scales);
    if (!out->paths || !out->scales) return cli_nomem(c);
    for (size_t i = 0; i < list->count; i++) {
        double scale;
        const char *colon = scale_of(list->items[i], &scale);
        if (!list->items[i][0]) return cli_usage(c, "--lora needs the path of an adapter");
        if (!isfinite((float)scale)) return cli_usage(c, "--lora %s: the scale must be a finite number", list->items[i]);
        const size_t n = colon ? (size_t)(colon - list->items[i]) : strlen(list->items[i]);
        out->paths[i] = strndup(list->items[i], n);
        if (!out->paths[i]) return cli_nomem(c);
        out->scales[i] = (float)scale;
        out->n++;
    }
    return 0;
}

void cli_loras_free(cli_loras *l) {
    for (uint32_t i = 0; i < l->n; i++) free(l->paths[i]);
    free(l->paths);
    free(l->scales);
}
