/* help_spawn.h: run `lq` as a process of its own, disturbed by shim_io.c, and see what became of its files. */
#ifndef HELP_SPAWN_H
#define HELP_SPAWN_H

#include "harness.h"

#include <sys/types.h>

/* What the shim shall do; zero = nothing. See shim_io.c for the meaning. */
typedef struct disturb {
    const char *prefix; /* NULL: no shim */
    const char *calls;
    uint64_t fail, shorten, interrupt, kill;
    int64_t byte; /* -1 after disturb_none: no limit */
    int error;
    bool stay;
} disturb;

typedef struct outcome {
    int code;           /* exit status; 128 + signal when one ended it */
    double seconds;     /* since the last spawn_begin */
    char said[2048];    /* standard error, or its beginning: Check takes messages of 4 KiB */
    uint64_t out_hash;  /* of standard output, and its length */
    uint64_t out_bytes;
    uint64_t failures;  /* calls that the shim let fail */
    char failed_call[32], failed_path[4400]; /* the first of them on which anything depends, else the first of all */
    bool harmless;      /* nothing depends on it: close, statvfs, unlink */
    bool failed_unlink; /* one of them, so that something had to stay */
    uint64_t calls;     /* that counted; 0 when it was killed */
} outcome;

static inline disturb disturb_none(const char *prefix) { return (disturb){.prefix = prefix, .byte = -1}; }

/* The path of a program or library of this build, "lq" or "tests/shim_io.so", beside this one. */
const char *spawn_built(const char *name);
/* False, and why, where the shim does not work: then nothing here can be tested. */
bool spawn_shim_works(const char *folder);

/* Start `argv` (argv[0] a path) with standard input empty; `d` may be NULL. */
pid_t spawn_begin(char *const argv[], const disturb *d);
/* Wait for it, and collect. */
void spawn_end(pid_t pid, outcome *o);
void spawn_run(char *const argv[], const disturb *d, outcome *o);

/* Files. The hash of content that is not there is 0. */
uint64_t spawn_hash(const char *path);
/* Entries of a folder other than `but` (may be NULL), one of them copied to `name`. */
int spawn_entries(const char *folder, const char *but, char name[300]);

#endif
