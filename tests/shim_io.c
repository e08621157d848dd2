/* shim_io.c: a library for LD_PRELOAD that disturbs a program's file calls: short, interrupted, failing, killed.
 *
 * Owns wrappers of the calls that libquant and `lq` make on files; check_shim.sh compares them with what `lq` imports.
 * Only paths that begin with SHIM_PREFIX and descriptors opened from them are touched, and counted; everything else
 * passes. What happens is read from the environment, once:
 *   SHIM_PREFIX  absolute path; without it nothing is disturbed
 *   SHIM_CALLS   names of the calls that count, joined by commas ("write,fsync"); all of them when absent
 *   SHIM_FAIL    the counted call with this number, from 1, fails with SHIM_ERROR (a number of errno)
 *   SHIM_STAY    1: and so does every counted call after it
 *   SHIM_BYTE    reads and writes that count move this many bytes in all, then they fail with SHIM_ERROR
 *   SHIM_SHORT   a read or write moves at most 1 to this many bytes, by a fixed sequence
 *   SHIM_EINTR   every n-th counted call that the system may interrupt is interrupted (n > 1)
 *   SHIM_KILL    SIGKILL in the place of the counted call with this number
 *   SHIM_REPORT  a file that gets a line "failed CALL PATH" for each failed call, and "calls N" when the program ends
 * Streams are read through descriptors of ours, since the C library's own reads cannot be caught. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define SHOWN __attribute__((visibility("default")))

enum { DESCRIPTORS = 1024, PATH_BYTES = 4096 + 256 };

static struct {
    const char *prefix, *calls, *report;
    uint64_t fail, byte, shorten, interrupt, kill;
    int error;
    bool stay;
} plan;
static atomic_uint_fast64_t calls, moved, lengths;
static char watched[DESCRIPTORS][PATH_BYTES]; /* the paths of descriptors that count; "" = none. Never on the heap: a
                                                 process may end with a file open, and its leaks are looked for */

/* The next definition of the function that is being wrapped. */
#define REAL(name)                                                     \
    static __typeof__(&name) real;                                     \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static uint64_t number(const char *name) {
    const char *v = getenv(name);
    return v ? strtoull(v, NULL, 10) : 0;
}

__attribute__((constructor)) static void begin(void) {
    plan.calls = getenv("SHIM_CALLS");
    plan.report = getenv("SHIM_REPORT");
    plan.fail = number("SHIM_FAIL");
    plan.byte = getenv("SHIM_BYTE") ? number("SHIM_BYTE") : UINT64_MAX;
    plan.shorten = number("SHIM_SHORT");
    plan.interrupt = number("SHIM_EINTR");
    plan.kill = number("SHIM_KILL");
    plan.error = (int)number("SHIM_ERROR");
    plan.stay = number("SHIM_STAY") != 0;
    plan.prefix = getenv("SHIM_PREFIX");
}

static ssize_t real_write(int fd, const void *p, size_t n) {
    REAL(write);
    return real(fd, p, n);
}
static int real_open(const char *path, int flags, mode_t mode) {
    REAL(open);
    return real(path, flags, mode);
}
static int real_close(int fd) {
    REAL(close);
    return real(fd);
}

static void tell(const char *format, ...) {
    char line[PATH_BYTES + 64];
    if (!plan.report) return;
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    const int fd = real_open(plan.report, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0 || n < 0 || real_write(fd, line, (size_t)n) != n) _exit(99); /* a test that would prove nothing */
    real_close(fd);
}

__attribute__((destructor)) static void end(void) {
    if (plan.prefix) tell("calls %llu\n", (unsigned long long)calls);
}

/* ------------------------------------------------------------------------------------------------ what counts */

/* The path that `name` below `dir` means, when it counts; else NULL. */
static const char *path_at(int dir, const char *name, char full[PATH_BYTES]) {
    if (!plan.prefix || !name) return NULL;
    size_t n = 0;
    if (name[0] != '/') {
        if (dir >= 0) {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
            const ssize_t got = readlink(link, full, PATH_MAX);
            if (got < 0) return NULL;
            n = (size_t)got;
        } else {
            if (!getcwd(full, PATH_MAX)) return NULL;
            n = strlen(full);
        }
        full[n++] = '/';
    }
    if (n + strlen(name) >= PATH_BYTES) return NULL;
    strcpy(full + n, name);
    return strncmp(full, plan.prefix, strlen(plan.prefix)) == 0 ? full : NULL;
}

static const char *path_of(int fd) { return fd >= 0 && fd < DESCRIPTORS && watched[fd][0] ? watched[fd] : NULL; }

static int watch(int fd, const char *path) {
    if (fd >= DESCRIPTORS) _exit(98);
    if (fd >= 0) snprintf(watched[fd], sizeof watched[fd], "%s", path ? path : "");
    return fd;
}

static bool counts(const char *call) {
    if (!plan.calls) return true;
    const size_t n = strlen(call);
    for (const char *p = plan.calls; (p = strstr(p, call)) != NULL; p += n)
        if ((p == plan.calls || p[-1] == ',') && (p[n] == 0 || p[n] == ',')) return true;
    return false;
}

/* What this call shall end with: 0 = as usual, else a number of errno. */
static int verdict(const char *call, const char *path, bool interruptible) {
    if (!path || !counts(call)) return 0;
    const uint64_t n = atomic_fetch_add(&calls, 1) + 1;
    if (n == plan.kill) raise(SIGKILL);
    if (interruptible && plan.interrupt > 1 && n % plan.interrupt == 0) return EINTR;
    if (!plan.fail || n < plan.fail || (n > plan.fail && !plan.stay)) return 0;
    tell("failed %s %s\n", call, path);
    return plan.error;
}

/* The bytes that a read or write of `n` may move; 0 with a verdict when it may move none. */
static size_t allowance(const char *call, const char *path, size_t n, int *error) {
    if (!path || !counts(call) || n == 0) return n;
    if (plan.shorten) {
        uint64_t x = (atomic_fetch_add(&lengths, 1) + 1) * 0x9E3779B97F4A7C15u;
        x ^= x >> 32;
        const size_t most = (size_t)(1 + x % plan.shorten);
        if (n > most) n = most;
    }
    if (plan.byte != UINT64_MAX) {
        const uint64_t left = moved < plan.byte ? plan.byte - moved : 0;
        if (n > left) n = (size_t)left;
        if (n == 0) {
            tell("failed %s %s\n", call, path);
            *error = plan.error;
        }
    }
    return n;
}

static ssize_t count_moved(const char *path, ssize_t n) {
    if (path && n > 0) atomic_fetch_add(&moved, (uint64_t)n);
    return n;
}

/* ------------------------------------------------------------------------------------------------ the calls */

#define JUDGE(call, path, interruptible)                                \
    do {                                                                \
        const int error_ = verdict(call, path, interruptible);          \
        if (error_) {                                                   \
            errno = error_;                                             \
            return -1;                                                  \
        }                                                               \
    } while (0)

#define TRANSFER(call, fd, n, expression)                                     \
    do {                                                                      \
        const char *path = path_of(fd);                                       \
        JUDGE(call, path, true);                                              \
        int error_ = 0;                                                       \
        n = allowance(call, path, n, &error_);                                \
        if (error_) {                                                         \
            errno = error_;                                                   \
            return -1;                                                        \
        }                                                                     \
        return count_moved(path, expression);                                 \
    } while (0)

SHOWN int openat(int dir, const char *name, int flags, ...) {
    REAL(openat);
    char full[PATH_BYTES];
    const char *path = path_at(dir, name, full);
    va_list args;
    va_start(args, flags);
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
    va_end(args);
    JUDGE("open", path, true);
    return watch(real(dir, name, flags, mode), path);
}
SHOWN int open(const char *name, int flags, ...) {
    va_list args;
    va_start(args, flags);
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
    va_end(args);
    return openat(AT_FDCWD, name, flags, mode);
}
SHOWN int close(int fd) {
    const char *path = path_of(fd);
    const int error = verdict("close", path, true);
    if (path) watched[fd][0] = 0;
    const int rc = real_close(fd); /* a close that fails has closed all the same */
    if (error == 0) return rc;
    errno = error;
    return -1;
}
SHOWN ssize_t read(int fd, void *p, size_t n) {
    REAL(read);
    TRANSFER("read", fd, n, real(fd, p, n));
}
SHOWN ssize_t pread(int fd, void *p, size_t n, off_t at) {
    REAL(pread);
    TRANSFER("read", fd, n, real(fd, p, n, at));
}
SHOWN ssize_t write(int fd, const void *p, size_t n) { TRANSFER("write", fd, n, real_write(fd, p, n)); }
SHOWN ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
    REAL(pwrite);
    TRANSFER("write", fd, n, real(fd, p, n, at));
}
SHOWN void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    REAL(mmap);
    const int error = flags & MAP_ANONYMOUS ? 0 : verdict("mmap", path_of(fd), false);
    if (error == 0) return real(at, n, protection, flags, fd, offset);
    errno = error;
    return MAP_FAILED;
}
SHOWN int fsync(int fd) {
    REAL(fsync);
    JUDGE("fsync", path_of(fd), true);
    return real(fd);
}
SHOWN int fdatasync(int fd) {
    REAL(fdatasync);
    JUDGE("fsync", path_of(fd), true);
    return real(fd);
}
SHOWN int ftruncate(int fd, off_t n) {
    REAL(ftruncate);
    JUDGE("ftruncate", path_of(fd), true);
    return real(fd, n);
}
SHOWN int sync_file_range(int fd, off_t at, off_t n, unsigned flags) {
    REAL(sync_file_range);
    JUDGE("sync_file_range", path_of(fd), true);
    return real(fd, at, n, flags);
}
SHOWN int fallocate(int fd, int mode, off_t at, off_t n) {
    REAL(fallocate);
    JUDGE("fallocate", path_of(fd), true);
    return real(fd, mode, at, n);
}
SHOWN int flock(int fd, int operation) {
    REAL(flock);
    JUDGE("flock", path_of(fd), true);
    return real(fd, operation);
}
SHOWN int fstat(int fd, struct stat *st) {
    REAL(fstat);
    JUDGE("stat", path_of(fd), false);
    return real(fd, st);
}
SHOWN int fstatat(int dir, const char *name, struct stat *st, int flags) {
    REAL(fstatat);
    char full[PATH_BYTES];
    JUDGE("stat", path_at(dir, name, full), false);
    return real(dir, name, st, flags);
}
SHOWN int stat(const char *name, struct stat *st) { return fstatat(AT_FDCWD, name, st, 0); }
SHOWN int lstat(const char *name, struct stat *st) { return fstatat(AT_FDCWD, name, st, AT_SYMLINK_NOFOLLOW); }
SHOWN int fstatvfs(int fd, struct statvfs *v) {
    REAL(fstatvfs);
    JUDGE("statvfs", path_of(fd), true);
    return real(fd, v);
}
SHOWN int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    REAL(renameat2);
    char full[PATH_BYTES];
    JUDGE("rename", path_at(to_dir, to, full), false);
    return real(from_dir, from, to_dir, to, flags);
}
SHOWN int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return renameat2(from_dir, from, to_dir, to, 0);
}
SHOWN int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
SHOWN int unlinkat(int dir, const char *name, int flags) {
    REAL(unlinkat);
    char full[PATH_BYTES];
    JUDGE("unlink", path_at(dir, name, full), false);
    return real(dir, name, flags);
}
SHOWN int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
SHOWN int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
SHOWN DIR *fdopendir(int fd) {
    REAL(fdopendir);
    const int error = verdict("opendir", path_of(fd), false);
    if (error) errno = error;
    return error ? NULL : real(fd);
}
SHOWN int mkdirat(int dir, const char *name, mode_t mode) {
    REAL(mkdirat);
    char full[PATH_BYTES];
    JUDGE("mkdir", path_at(dir, name, full), false);
    return real(dir, name, mode);
}
SHOWN int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

/* ------------------------------------------------------------------------------------------------ streams */

static ssize_t stream_read(void *fd, char *p, size_t n) { return read((int)(intptr_t)fd, p, n); }
static ssize_t stream_write(void *fd, const char *p, size_t n) {
    const ssize_t put = write((int)(intptr_t)fd, p, n);
    return put < 0 ? 0 : put; /* what fopencookie wants */
}
static int stream_seek(void *fd, off_t *at, int whence) {
    *at = lseek((int)(intptr_t)fd, *at, whence);
    return *at < 0 ? -1 : 0;
}
static int stream_close(void *fd) { return close((int)(intptr_t)fd); }

SHOWN FILE *fopen(const char *name, const char *mode) {
    REAL(fopen);
    char full[PATH_BYTES];
    if (!path_at(AT_FDCWD, name, full)) return real(name, mode);
    const int flags = mode[0] == 'r' ? O_RDONLY : O_WRONLY | O_CREAT | (mode[0] == 'a' ? O_APPEND : O_TRUNC);
    if (strchr(mode, '+')) _exit(97); /* nobody does */
    const int fd = open(name, flags | O_CLOEXEC, 0666);
    if (fd < 0) return NULL;
    const cookie_io_functions_t io = {stream_read, stream_write, stream_seek, stream_close};
    FILE *f = fopencookie((void *)(intptr_t)fd, mode, io);
    if (!f) close(fd);
    return f;
}
