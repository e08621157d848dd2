/* cli_report.c: how `lq` says what went wrong: messages, exit codes, the JSON form of an error, the end of output.
 *
 * Every error is one line on standard error that begins with the command; with --json the same goes to standard output
 * as an object, so that a program has one place to look. Bytes that could steer a terminal are replaced. */
#include "cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static void print_safe(FILE *f, const char *text) {
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        fputc(*p < 32 || *p == 127 ? '?' : *p, f);
    }
}

const cli_exit cli_exits[] = {{0, "done"},
                              {CLI_CHECK_FAILED, "a check failed"},
                              {CLI_USAGE, "wrong usage"},
                              {CLI_BAD_INPUT, "bad input file"},
                              {CLI_IO, "input/output or no space"},
                              {CLI_NOMEM, "not enough memory"},
                              {CLI_UNSUPPORTED, "not supported"},
                              {CLI_BUSY, "busy"},
                              {CLI_INTERNAL, "a bug in libquant"},
                              {130, "interrupted"},
                              {143, "terminated"},
                              {0, NULL}};

int cli_exit_code(lq_status status) {
    static const struct {
        lq_status status;
        int code;
    } codes[] = {{LQ_OK, CLI_OK},
                 {LQ_E_ARG, CLI_USAGE},
                 {LQ_E_CONTEXT, CLI_USAGE},
                 {LQ_E_TRUNCATED, CLI_BAD_INPUT},
                 {LQ_E_FORMAT, CLI_BAD_INPUT},
                 {LQ_E_LIMIT, CLI_BAD_INPUT},
                 {LQ_E_INCONSISTENT, CLI_BAD_INPUT},
                 {LQ_E_NUMERIC, CLI_BAD_INPUT},
                 {LQ_E_IO, CLI_IO},
                 {LQ_E_DEVICE, CLI_IO},
                 {LQ_E_NOMEM, CLI_NOMEM},
                 {LQ_E_UNSUPPORTED, CLI_UNSUPPORTED},
                 {LQ_E_BUSY, CLI_BUSY}};
    if (status == LQ_E_CANCELLED) return 128 + (cli_interrupted() ? cli_interrupted() : 2);
    for (size_t i = 0; i < CLI_COUNT(codes); i++) {
        if (codes[i].status == status) return codes[i].code;
    }
    return CLI_INTERNAL;
}

static int report(cli *c, lq_status status, int code, const char *message, const char *hint) {
    fputs("lq", stderr);
    if (c->command) fprintf(stderr, " %s", c->command->name);
    fputs(": ", stderr);
    print_safe(stderr, message);
    if (status <= LQ_FATAL) fprintf(stderr, " (%s)", lq_status_name(status));
    fputc('\n', stderr);
    if (hint) fprintf(stderr, "%s\n", hint);
    if (c->json && !c->failed) {
        json_t *o = json_object(), *e = json_object();
        cli_set_text(e, "status", lq_status_name(status));
        cli_set_text(e, "message", message);
        cli_set_int(e, "exit", (uint64_t)code);
        cli_set(o, "error", e);
        cli_json_print(c, o, code);
    }
    c->failed = true;
    return code;
}

int cli_fail(cli *c, lq_status status, const char *hint) {
    const char *detail = lq_error_detail();
    if (status == LQ_E_CANCELLED) return report(c, status, cli_exit_code(status), "interrupted", NULL);
    if (status == LQ_E_DEVICE && !hint) {
        hint =
            "`lq info --devices` says whether the device is still there; without --device the processor runs it all.";
    }
    return report(c, status, cli_exit_code(status), detail[0] ? detail : lq_status_name(status), hint);
}

int cli_error(cli *c, lq_status status, const char *fmt, ...) {
    char message[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    return report(c, status, cli_exit_code(status), message, NULL);
}

int cli_usage(cli *c, const char *fmt, ...) {
    char message[1024], hint[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    snprintf(hint, sizeof hint, "See `lq %s%s`.", c->command ? c->command->name : "help", c->command ? " --help" : "");
    return report(c, LQ_E_ARG, CLI_USAGE, message, hint);
}

int cli_nomem(cli *c) { return report(c, LQ_E_NOMEM, CLI_NOMEM, "not enough memory", NULL); }

void cli_warn(const char *fmt, ...) {
    char message[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    fputs("lq: warning: ", stderr);
    print_safe(stderr, message);
    fputc('\n', stderr);
}

int cli_finish(cli *c, int code) {
    errno = 0;
    const bool lost = fflush(stdout) != 0;
    if (!lost && !ferror(stdout)) return code;
    if (code != CLI_OK) return code;
    c->json = 0; /* there is nobody to read it */
    return cli_error(c, LQ_E_IO, "standard output: %s",
                     lost && errno ? strerror(errno) : "what was written did not arrive");
}

cli_str cli_safe(const char *text) {
    cli_str r;
    size_t n = 0;
    for (; text[n] && n + 1 < sizeof r.s; n++) {
        const unsigned char ch = (unsigned char)text[n];
        r.s[n] = (char)(ch < 32 || ch == 127 ? '?' : ch);
    }
    r.s[n] = 0;
    return r;
}

cli_str cli_bytes(uint64_t bytes) {
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    cli_str r;
    double v = (double)bytes;
    size_t u = 0;
    if (bytes < 1024) {
        snprintf(r.s, sizeof r.s, "%u B", (unsigned)bytes);
        return r;
    }
    for (v /= 1024; v >= 1000 && u + 1 < CLI_COUNT(units); u++) v /= 1024;
    snprintf(r.s, sizeof r.s, v < 10 ? "%.2f %s" : v < 100 ? "%.1f %s" : "%.0f %s", v, units[u]);
    return r;
}
