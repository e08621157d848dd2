/* fuzz_args.c: the words of a command line through the option parser over the table of every command.
 *
 * The first byte chooses the command, the rest are words, one a line. Nothing is run. What is accepted lies in the
 * ranges that the table states and has everything that it requires; what is refused is told. Each word also goes
 * through the two functions that make any bytes fit to be shown. */
#include "help_fuzz.h"

#include "../tools/cli.h"

#define COMMAND(x) extern const cli_command cli_command_##x;
#include "../tools/commands.def"
#undef COMMAND
static const cli_command *const commands[] = {
#define COMMAND(x) &cli_command_##x,
#include "../tools/commands.def"
#undef COMMAND
};
enum { WORDS = 64 };

/* Left alone, or within its range. */
static bool number_fits(const cli_option *o, double v, double usual) {
    return v == usual || (v >= o->min && v <= o->max);
}

static void check_accepted(const cli_command *command, const char *args) {
    const char *defaults = (const char *)command->defaults;
    for (const cli_option *o = command->options; o->type != CLI_END; o++) {
        uint64_t whole[2] = {0};
        double real[2] = {0};
        const char *text = NULL;
        if (o->type == CLI_UINT) {
            memcpy(&whole[0], args + o->at, sizeof whole[0]);
            if (defaults) memcpy(&whole[1], defaults + o->at, sizeof whole[1]);
            demand(number_fits(o, (double)whole[0], (double)whole[1]));
        } else if (o->type == CLI_REAL) {
            memcpy(&real[0], args + o->at, sizeof real[0]);
            if (defaults) memcpy(&real[1], defaults + o->at, sizeof real[1]);
            demand(number_fits(o, real[0], real[1]));
        } else if (o->type == CLI_TEXT && o->required) {
            memcpy(&text, args + o->at, sizeof text);
            demand(text);
        }
    }
    for (const cli_operand *p = command->operands; p && p->name; p++) {
        const char *text;
        memcpy(&text, args + p->at, sizeof text);
        demand(p->optional || text);
    }
}

static void check_shown(const char *word) {
    const cli_str safe = cli_safe(word);
    demand(strlen(safe.s) < sizeof safe.s);
    for (const char *p = safe.s; *p; p++) demand((unsigned char)*p >= 32 && *p != 127);
    json_t *text = cli_json_text(word, strlen(word));
    char *dumped = json_dumps(text, JSON_ENCODE_ANY);
    demand(dumped);
    json_t *again = json_loads(dumped, JSON_DECODE_ANY, NULL); /* jansson takes valid UTF-8 alone */
    demand(again && json_equal(text, again));
    json_decref(again);
    json_decref(text);
    free(dumped);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    char *text = (char *)malloc(size + 1);
    char *words[WORDS + 1];
    int n = 0;
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\n';
    text[size] = 0;
    for (char *p = text, *end; n < WORDS && (end = strchr(p, '\n')); p = end + 1) {
        *end = 0;
        words[n++] = p;
    }
    words[n] = NULL;
    cli c = {.command = commands[data[0] % CLI_COUNT(commands)]};
    void *args = calloc(1, c.command->args_size);
    demand(args);
    if (c.command->defaults) memcpy(args, c.command->defaults, c.command->args_size);

    /* What the parser says goes into a buffer: glibc lets a program replace its streams. */
    char *said = NULL;
    size_t bytes = 0;
    FILE *const out = stdout, *const err = stderr, *const into = open_memstream(&said, &bytes);
    demand(into);
    stdout = stderr = into;
    const int code = cli_parse(&c, n, words, args);
    if (c.help) cli_help(into, c.command);
    stdout = out;
    stderr = err;
    fclose(into);
    demand(code == CLI_OK || code == CLI_USAGE);
    demand((code == CLI_USAGE || c.help) == (bytes > 0));
    if (code == CLI_OK && !c.help) check_accepted(c.command, (const char *)args);
    free(said);
    cli_args_free(c.command, args);
    for (int i = 0; i < n; i++) check_shown(words[i]);
    free(text);
    return 0;
}
