/* log.h: messages to the embedder's log callback; silent without one. Layer L0. */
#ifndef Q_LOG_H
#define Q_LOG_H

#include "status.h"

typedef struct q_log {
    void (*fn)(void *user, lq_log_level level, const char *message);
    void *user;
} q_log;

/* log may be NULL. */
void q_log_write(const q_log *log, lq_log_level level, const char *fmt, ...) Q_PRINTF(3, 4);

#endif
