/* log.c: formats a message and hands it to the embedder's callback. Layer L0. */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>

void q_log_write(const q_log *log, lq_log_level level, const char *fmt, ...) {
    if (!log || !log->fn) return;
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    log->fn(log->user, level, text);
}
