/* file.c: every system call on files: reading, mapping, identifying, outputs that are temporary until complete, and
 * shared libraries opened at run time.
 *
 * Owns the rule that only regular files are read (opened without blocking, judged by fstat, so a FIFO or a device never
 * holds us), and the life of an output: a locked temporary in the destination's directory, checked for space before the
 * first byte, renamed over the final name only after fsync; a directory of files lives the same life. Refuses everything
 * else with the path in the sentence. It is long because no other file may make these calls. Layer L0. */
#include "file.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Bytes per read or write call: far below the 2 GiB at which the kernel cuts a call short. */
enum { PIECE = 1 << 30, NAME_BYTES = 255, BEGIN = 8 << 20 };

/* The sentence of a failed system call: "cannot WHAT PATH: reason". */
static lq_status fail_errno(int error, const char *what, const char *path) {
    char text[128];
    const char *reason = strerror_r(error, text, sizeof text);
    return q_fail(error == ENOMEM ? LQ_E_NOMEM : LQ_E_IO, "cannot %s %s: %s", what, path, reason);
}

static const char *kind_name(mode_t mode) {
    if (S_ISDIR(mode)) return "a directory";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISSOCK(mode)) return "a socket";
    if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
    return "not a regular file";
}

/* ------------------------------------------------------------------------------------------------ reading */

struct q_file {
    const q_alloc *alloc;
    char *path;
    int fd;
    uint64_t size;
    struct timespec mtime;
    dev_t dev;
    ino_t ino;
    void *map; /* NULL when not mapped */
};

static char *copy_text(const q_alloc *a, const char *s) {
    const size_t n = strlen(s) + 1;
    char *p = (char *)q_new_raw(a, n, 1);
    if (p) memcpy(p, s, n);
    return p;
}

static lq_status open_regular(const char *path, int *fd, struct stat *st) {
    /* stat first: opening some devices acts on them. fstat after: the path may have changed in between. */
    if (stat(path, st) != 0) return fail_errno(errno, "open", path);
    if (!S_ISREG(st->st_mode)) return q_fail(LQ_E_FORMAT, "%s is %s, not a file", path, kind_name(st->st_mode));
    do *fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    while (*fd < 0 && errno == EINTR);
    if (*fd < 0) return fail_errno(errno, "open", path);
    if (fstat(*fd, st) != 0) {
        const int error = errno;
        close(*fd);
        return fail_errno(error, "inspect", path);
    }
    if (!S_ISREG(st->st_mode) || st->st_size < 0) {
        close(*fd);
        return q_fail(LQ_E_FORMAT, "%s is %s, not a file", path, kind_name(st->st_mode));
    }
    return LQ_OK;
}

lq_status q_file_open(const q_alloc *a, const char *path, uint32_t flags, q_file **out) {
    if (!path || !*path) return q_fail(LQ_E_ARG, "the path of a file to read is empty");
    int fd = -1;
    struct stat st;
    Q_TRY(open_regular(path, &fd, &st));
    q_file *f = Q_NEW(a, q_file, 1);
    if (!f || !(f->path = copy_text(a, path))) {
        q_delete(a, f);
        close(fd);
        return LQ_E_NOMEM;
    }
    f->alloc = a;
    f->fd = fd;
    f->size = (uint64_t)st.st_size;
    f->mtime = st.st_mtim;
    f->dev = st.st_dev;
    f->ino = st.st_ino;
    if ((flags & Q_FILE_MAP) && f->size) {
        int error = ENOMEM;
        void *p = MAP_FAILED;
        if (f->size <= SIZE_MAX / 2) {
            p = mmap(NULL, (size_t)f->size, PROT_READ, MAP_PRIVATE, fd, 0);
            error = errno;
        }
        if (p == MAP_FAILED) {
            const unsigned long long size = f->size, have = q_address_space();
            q_file_close(f);
            if (error != ENOMEM) return fail_errno(error, "map", path);
            return q_fail(LQ_E_NOMEM, "%s needs %llu bytes of address space to be mapped; %llu bytes are available", path,
                          size, have);
        }
        f->map = p;
    }
    *out = f;
    return LQ_OK;
}

void q_file_close(q_file *f) {
    if (!f) return;
    if (f->map) munmap(f->map, (size_t)f->size);
    close(f->fd);
    q_delete(f->alloc, f->path);
    q_delete(f->alloc, f);
}

const char *q_file_path(const q_file *f) { return f->path; }
uint64_t q_file_size(const q_file *f) { return f->size; }
const uint8_t *q_file_data(const q_file *f) { return (const uint8_t *)f->map; }

void q_file_give_back(const uint8_t *p, uint64_t n) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)p / page * page,
                    to = ((uintptr_t)p + (uintptr_t)n + page - 1) / page * page;
    if (n) madvise((void *)from, to - from, MADV_DONTNEED);
}

lq_status q_file_read(const q_file *f, uint64_t offset, void *dst, uint64_t n) {
    uint64_t end;
    if (q_add_overflow(offset, n, &end) || end > f->size)
        return q_fail(LQ_E_TRUNCATED, "%s: %llu bytes at offset %llu lie beyond its end (%llu bytes)", f->path,
                      (unsigned long long)n, (unsigned long long)offset, (unsigned long long)f->size);
    uint8_t *p = (uint8_t *)dst;
    while (n) {
        const ssize_t got = pread(f->fd, p, (size_t)Q_MIN(n, (uint64_t)PIECE), (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail_errno(errno, "read", f->path);
        if (got == 0)
            return q_fail(LQ_E_IO, "%s was made shorter while it was read: nothing at offset %llu", f->path,
                          (unsigned long long)offset);
        p += got;
        n -= (uint64_t)got;
        offset += (uint64_t)got;
    }
    return LQ_OK;
}

void q_file_let_go(const q_file *f, uint64_t offset, uint64_t n) {
    if (n && offset < f->size) (void)posix_fadvise(f->fd, (off_t)offset, (off_t)Q_MIN(n, f->size - offset), POSIX_FADV_DONTNEED);
}

lq_status q_file_unchanged(const q_file *f) {
    struct stat own, named;
    if (fstat(f->fd, &own) != 0) return fail_errno(errno, "inspect", f->path);
    if ((uint64_t)own.st_size != f->size)
        return q_fail(LQ_E_IO, "%s was changed while in use: it had %llu bytes and now has %llu", f->path,
                      (unsigned long long)f->size, (unsigned long long)own.st_size);
    if (own.st_mtim.tv_sec != f->mtime.tv_sec || own.st_mtim.tv_nsec != f->mtime.tv_nsec)
        return q_fail(LQ_E_IO, "%s was changed while in use: it was written to", f->path);
    if (stat(f->path, &named) != 0) return fail_errno(errno, "find again", f->path);
    if (named.st_dev != f->dev || named.st_ino != f->ino)
        return q_fail(LQ_E_IO, "%s was replaced by another file while in use", f->path);
    return LQ_OK;
}

lq_status q_file_slurp(const q_alloc *a, const char *path, uint64_t max, uint8_t **data, uint64_t *n) {
    q_file *f;
    Q_TRY(q_file_open(a, path, 0, &f));
    const uint64_t size = f->size;
    lq_status status = LQ_OK;
    uint8_t *p = NULL;
    if (size > max)
        status = q_fail(LQ_E_LIMIT, "%s has %llu bytes; at most %llu are read", path, (unsigned long long)size,
                        (unsigned long long)max);
    else if (!(p = (uint8_t *)q_new_raw(a, size + 1, 1)))
        status = LQ_E_NOMEM;
    else
        status = q_file_read(f, 0, p, size);
    q_file_close(f);
    if (status != LQ_OK) {
        q_delete(a, p);
        return status;
    }
    p[size] = 0;
    *data = p;
    *n = size;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ paths */

/* stat; *there is false when nothing lies at the path, which is no failure. */
static lq_status look(const char *path, struct stat *st, bool *there) {
    *there = stat(path, st) == 0;
    if (*there || errno == ENOENT || errno == ENOTDIR) return LQ_OK;
    return fail_errno(errno, "look at", path);
}

lq_status q_path_kind_of(const char *path, q_path_kind *kind) {
    struct stat st;
    bool there;
    Q_TRY(look(path, &st, &there));
    *kind = !there ? Q_PATH_NONE
            : S_ISREG(st.st_mode) ? Q_PATH_FILE
            : S_ISDIR(st.st_mode) ? Q_PATH_DIR
                                  : Q_PATH_OTHER;
    return LQ_OK;
}

lq_status q_path_head(const char *path, void *buf, size_t n, size_t *got) {
    q_path_kind kind;
    int fd;
    struct stat st;
    *got = 0;
    Q_TRY(q_path_kind_of(path, &kind));
    if (kind != Q_PATH_FILE) return LQ_OK;
    Q_TRY(open_regular(path, &fd, &st));
    lq_status status = LQ_OK;
    while (*got < n) {
        const ssize_t more = pread(fd, (uint8_t *)buf + *got, n - *got, (off_t)*got);
        if (more < 0 && errno == EINTR) continue;
        if (more < 0) status = fail_errno(errno, "read", path);
        if (more <= 0) break;
        *got += (size_t)more;
    }
    close(fd);
    return status;
}

lq_status q_path_same(const char *a, const char *b, bool *same) {
    struct stat x, y;
    bool has_a, has_b;
    Q_TRY(look(a, &x, &has_a));
    Q_TRY(look(b, &y, &has_b));
    *same = has_a && has_b && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
    return LQ_OK;
}

lq_status q_path_within(const char *dir, const char *path, bool *within) {
    char real[PATH_MAX];
    *within = false;
    if (!realpath(path, real)) return errno == ENOENT ? LQ_OK : fail_errno(errno, "look at", path);
    char *slash = strrchr(real, '/');
    slash[slash == real] = 0;
    return q_path_same(dir, real, within);
}

lq_status q_path_parent(char *buf, size_t n, const char *path) {
    const char *slash = strrchr(path, '/');
    const size_t length = slash ? (size_t)(slash - path) + (slash == path) : 1;
    if (length >= n) return q_fail(LQ_E_LIMIT, "the path %.100s… is too long", path);
    memcpy(buf, slash ? path : ".", length);
    buf[length] = 0;
    return LQ_OK;
}

lq_status q_path_join(char *buf, size_t n, const char *dir, q_str name) {
    const size_t d = strlen(dir);
    const bool slash = d != 0 && dir[d - 1] != '/';
    if (name.n && memchr(name.p, 0, (size_t)name.n))
        return q_fail(LQ_E_FORMAT, "a file name contains a zero byte: %.*s", Q_STR_ARG(name));
    if (name.n >= n || d + slash + name.n >= n)
        return q_fail(LQ_E_LIMIT, "the path %.100s/%.*s is too long", dir, Q_STR_ARG(name));
    memcpy(buf, dir, d);
    if (slash) buf[d] = '/';
    if (name.n) memcpy(buf + d + slash, name.p, (size_t)name.n);
    buf[d + slash + name.n] = 0;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ writing */

struct q_outfile {
    const q_alloc *alloc;
    char *path, *temp;           /* as the caller gave it; the temporary beside it */
    const char *name, *temp_name; /* their last components */
    int dir, fd;
    bool force, dirty;           /* dirty: bytes written since the last fsync */
    uint64_t written, begun;     /* begun: bytes that the system was asked to bring to the disk */
    uint64_t most;               /* RLIMIT_FSIZE, beyond which a write would raise SIGXFSZ */
};

/* Split the path and name the temporary: ".NAME.lq-tmp", with a hash in place of a long name's end, so that it fits and
 * stays the same for every writer of that path. */
static lq_status name_temp(q_outfile *f, const char *path) {
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    const size_t dir = (size_t)(name - path), n = strlen(name);
    if (n == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return q_fail(LQ_E_ARG, "%s is not the name of a file to write", path[0] ? path : "an empty path");
    if (!(f->path = copy_text(f->alloc, path))) return LQ_E_NOMEM;
    f->name = f->path + dir;
    const size_t room = dir + NAME_BYTES + 1;
    if (!(f->temp = (char *)q_new_raw(f->alloc, room, 1))) return LQ_E_NOMEM;
    memcpy(f->temp, path, dir);
    char *t = f->temp + dir;
    if (n + sizeof "..lq-tmp" - 1 <= NAME_BYTES)
        snprintf(t, room - dir, ".%s.lq-tmp", name);
    else
        snprintf(t, room - dir, ".%.200s-%08x.lq-tmp", name, (unsigned)q_fnv32(name, n));
    f->temp_name = t;
    return LQ_OK;
}

static lq_status open_dir(q_outfile *f) {
    const size_t n = (size_t)(f->name - f->path);
    char *dir = (char *)q_new(f->alloc, n + 2, 1);
    if (!dir) return LQ_E_NOMEM;
    memcpy(dir, n ? f->path : ".", n ? n : 1);
    do f->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (f->dir < 0 && errno == EINTR);
    lq_status status = LQ_OK;
    if (f->dir < 0) status = fail_errno(errno, "write into the directory", dir);
    q_delete(f->alloc, dir);
    return status;
}

/* What lies at the final name now. The link itself counts, not its target: rename replaces the link. */
static lq_status check_target(const q_outfile *f) {
    struct stat st;
    if (fstatat(f->dir, f->name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? LQ_OK : fail_errno(errno, "write", f->path);
    if (!S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode))
        return q_fail(LQ_E_ARG, "%s is %s: it cannot be replaced by a file", f->path, kind_name(st.st_mode));
    if (!f->force) return q_fail(LQ_E_ARG, "%s exists already", f->path);
    return LQ_OK;
}

/* Lock what we opened as the temporary, a file or a directory; *ours is false when its name leads elsewhere by now. */
static lq_status lock_temp(const q_outfile *f, bool *ours) {
    struct stat own, named;
    int rc;
    do rc = flock(f->fd, LOCK_EX | LOCK_NB);
    while (rc != 0 && errno == EINTR);
    if (rc != 0 && errno == EWOULDBLOCK) return q_fail(LQ_E_BUSY, "%s is being written by someone else", f->path);
    if (rc != 0) return fail_errno(errno, "lock", f->temp);
    if (fstat(f->fd, &own) != 0) return fail_errno(errno, "inspect", f->temp);
    rc = fstatat(f->dir, f->temp_name, &named, AT_SYMLINK_NOFOLLOW);
    if (rc != 0 && errno != ENOENT) return fail_errno(errno, "inspect", f->temp);
    const bool plain = S_ISREG(own.st_mode) || S_ISDIR(own.st_mode);
    *ours = rc == 0 && plain && named.st_dev == own.st_dev && named.st_ino == own.st_ino;
    return LQ_OK;
}

/* Open and lock the temporary. Whoever holds the lock on the inode that the name leads to is the writer; an inode that
 * lost its name (the last writer renamed or removed it between our open and our lock) is let go and we start again. */
static lq_status open_temp(q_outfile *f) {
    for (int attempt = 0; attempt < 16; attempt++) {
        struct stat there;
        if (fstatat(f->dir, f->temp_name, &there, AT_SYMLINK_NOFOLLOW) != 0) {
            if (errno != ENOENT) return fail_errno(errno, "inspect", f->temp);
        } else if (!S_ISREG(there.st_mode)) {
            return q_fail(LQ_E_IO, "%s is %s: cannot use it as a temporary file", f->temp, kind_name(there.st_mode));
        }
        const int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
        do f->fd = openat(f->dir, f->temp_name, flags, 0666);
        while (f->fd < 0 && errno == EINTR);
        if (f->fd < 0) return fail_errno(errno, "create", f->temp);
        bool ours = false;
        const lq_status status = lock_temp(f, &ours);
        if (status == LQ_OK && ours) return LQ_OK;
        /* Where files cannot be locked or inspected nobody else writes this one: it goes again. */
        if (status != LQ_OK && status != LQ_E_BUSY) unlinkat(f->dir, f->temp_name, 0);
        close(f->fd);
        f->fd = -1;
        Q_TRY(status);
    }
    return q_fail(LQ_E_BUSY, "%s: other writers keep replacing its temporary file", f->path);
}

/* Free space before the first byte, by the file system's count. */
static lq_status check_space(const q_outfile *f, uint64_t bytes) {
    struct statvfs v;
    int rc;
    do rc = fstatvfs(f->dir, &v);
    while (rc != 0 && errno == EINTR);
    if (rc == 0 && v.f_blocks) { /* some network file systems count no blocks at all */
        uint64_t left;
        if (q_mul_overflow((uint64_t)v.f_bavail, v.f_frsize ? v.f_frsize : v.f_bsize, &left)) left = UINT64_MAX;
        if (left < bytes)
            return q_fail(LQ_E_IO, "%s needs %llu bytes; its file system has %llu left", f->path,
                          (unsigned long long)bytes, (unsigned long long)left);
    }
    return LQ_OK;
}

/* The same, and the blocks reserved where the file system can do that. */
static lq_status reserve(const q_outfile *f, uint64_t bytes) {
    int rc;
    if (bytes > f->most)
        return q_fail(LQ_E_IO, "%s needs %llu bytes; this process may write files of at most %llu", f->path,
                      (unsigned long long)bytes, (unsigned long long)f->most);
    Q_TRY(check_space(f, bytes));
    if (bytes == 0) return LQ_OK;
    if (bytes > INT64_MAX) return q_fail(LQ_E_IO, "%s needs more bytes than a file can have", f->path);
    do rc = fallocate(f->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes);
    while (rc != 0 && errno == EINTR);
    if (rc != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO))
        return fail_errno(errno, "reserve space for", f->path);
    return LQ_OK;
}

static lq_status set_length(const q_outfile *f, uint64_t n) {
    int rc;
    do rc = ftruncate(f->fd, (off_t)n);
    while (rc != 0 && errno == EINTR);
    return rc == 0 ? LQ_OK : fail_errno(errno, "set the length of", f->temp);
}

static void free_outfile(q_outfile *f) {
    if (f->fd >= 0) close(f->fd); /* and with it the lock */
    if (f->dir >= 0) close(f->dir);
    q_delete(f->alloc, f->path);
    q_delete(f->alloc, f->temp);
    q_delete(f->alloc, f);
}

lq_status q_outfile_open(const q_alloc *a, const char *path, uint64_t bytes, bool force, q_outfile **out) {
    if (!path) return q_fail(LQ_E_ARG, "the path of a file to write is missing");
    q_outfile *f = Q_NEW(a, q_outfile, 1);
    if (!f) return LQ_E_NOMEM;
    f->alloc = a;
    f->dir = f->fd = -1;
    f->force = force;
    struct rlimit limit;
    f->most = getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY ? (uint64_t)limit.rlim_cur
                                                                                       : UINT64_MAX;
    lq_status status = name_temp(f, path);
    if (status == LQ_OK) status = open_dir(f);
    if (status == LQ_OK) status = check_target(f);
    if (status == LQ_OK) status = open_temp(f);
    if (status != LQ_OK) {
        free_outfile(f);
        return status;
    }
    /* Again, now that we hold the lock: the writer before us may have finished in between. */
    status = check_target(f);
    if (status == LQ_OK) status = set_length(f, 0);
    if (status == LQ_OK) status = reserve(f, bytes);
    if (status != LQ_OK) {
        q_outfile_discard(f);
        return status;
    }
    *out = f;
    return LQ_OK;
}

lq_status q_outfile_write(q_outfile *f, const void *data, uint64_t n) {
    const uint8_t *p = (const uint8_t *)data;
    if (n > f->most || f->written > f->most - n)
        return q_fail(LQ_E_IO, "%s would exceed the largest file this process may write (%llu bytes)", f->path,
                      (unsigned long long)f->most);
    while (n) {
        const ssize_t put = write(f->fd, p, (size_t)Q_MIN(n, (uint64_t)PIECE));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return fail_errno(put < 0 ? errno : EIO, "write", f->temp);
        p += put;
        n -= (uint64_t)put;
        f->written += (uint64_t)put;
        f->dirty = true;
    }
    /* Left alone, the system may wait until fsync: have the disk write while more is computed. Whatever goes wrong, fsync says. */
    if (f->written - f->begun >= BEGIN) {
        (void)sync_file_range(f->fd, (off_t)f->begun, (off_t)(f->written - f->begun), SYNC_FILE_RANGE_WRITE);
        f->begun = f->written;
    }
    return LQ_OK;
}

uint64_t q_outfile_written(const q_outfile *f) { return f->written; }
const char *q_outfile_temp(const q_outfile *f) { return f->temp; }

lq_status q_outfile_sync(q_outfile *f) {
    Q_TRY(set_length(f, f->written)); /* blocks reserved beyond the end go back */
    int rc;
    do rc = fsync(f->fd);
    while (rc != 0 && errno == EINTR);
    if (rc != 0) return fail_errno(errno, "flush", f->temp);
    f->dirty = false;
    return LQ_OK;
}

static lq_status rename_temp(const q_outfile *f) {
    if (!f->force) {
        if (renameat2(f->dir, f->temp_name, f->dir, f->name, RENAME_NOREPLACE) == 0) return LQ_OK;
        if (errno == EEXIST) return q_fail(LQ_E_ARG, "%s exists already: it appeared during the writing", f->path);
        if (errno != EINVAL && errno != ENOSYS) return fail_errno(errno, "rename the temporary file to", f->path);
        Q_TRY(check_target(f)); /* a file system without the flag */
    }
    if (renameat(f->dir, f->temp_name, f->dir, f->name) != 0)
        return fail_errno(errno, "rename the temporary file to", f->path);
    return LQ_OK;
}

/* Some file systems cannot sync a directory; that is no loss we could mend. */
static lq_status sync_directory(int fd) {
    int rc;
    do rc = fsync(fd);
    while (rc != 0 && errno == EINTR);
    return rc == 0 || errno == EINVAL || errno == EROFS || errno == ENOTSUP ? LQ_OK : LQ_E_IO;
}

/* After the rename. */
static lq_status sync_parent(const q_outfile *f) {
    if (sync_directory(f->dir) == LQ_OK) return LQ_OK;
    const lq_status status = fail_errno(errno, "flush the directory of", f->path);
    return q_fail_in(status, "%s is complete, but a power failure may still undo it", f->path);
}

lq_status q_outfile_commit(q_outfile *f) {
    lq_status status = f->dirty || f->written == 0 ? q_outfile_sync(f) : LQ_OK;
    if (status == LQ_OK) status = rename_temp(f);
    if (status != LQ_OK) {
        q_outfile_discard(f);
        return status;
    }
    status = sync_parent(f);
    free_outfile(f);
    return status;
}

void q_outfile_discard(q_outfile *f) {
    if (!f) return;
    if (f->fd >= 0) unlinkat(f->dir, f->temp_name, 0);
    free_outfile(f);
}

lq_status q_path_remove(const char *path) {
    if (unlinkat(AT_FDCWD, path, 0) == 0 || errno == ENOENT) return LQ_OK;
    return fail_errno(errno, "remove", path);
}

/* The descriptor is the stream's from now on. NULL: *status is the failure. */
static DIR *open_entries(int fd, const char *path, lq_status *status) {
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    *status = d ? LQ_OK : fail_errno(errno, "look into", path);
    if (!d && fd >= 0) close(fd);
    return d;
}
static const struct dirent *next_entry(DIR *d) { /* NULL with errno 0: there is none */
    for (const struct dirent *e;;)
        if (errno = 0, !(e = readdir(d)) || (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)) return e;
}

lq_status q_path_each(const char *dir, lq_status (*each)(void *user, const char *name), void *user) {
    lq_status status;
    DIR *d = open_entries(open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), dir, &status);
    if (!d) return status;
    for (const struct dirent *e; status == LQ_OK && (e = next_entry(d)) != NULL;) status = each(user, e->d_name);
    if (status == LQ_OK && errno) status = fail_errno(errno, "look into", dir); /* of the last readdir */
    closedir(d);
    return status;
}

/* ------------------------------------------------------------------------------------------------ scratch */

struct q_scratch {
    const q_alloc *alloc;
    q_outfile *file; /* its temporary: no name of its own is ever given to it */
};

lq_status q_scratch_open(const q_alloc *a, const char *path, uint64_t bytes, q_scratch **out) {
    q_scratch *s = Q_NEW(a, q_scratch, 1);
    char *name = (char *)q_new(a, strlen(path) + sizeof ".scratch", 1);
    lq_status status = s && name ? LQ_OK : LQ_E_NOMEM;
    if (s) s->alloc = a;
    if (status == LQ_OK) {
        snprintf(name, strlen(path) + sizeof ".scratch", "%s.scratch", path);
        status = q_outfile_open(a, name, bytes, true, &s->file);
    }
    if (status == LQ_OK && unlinkat(s->file->dir, s->file->temp_name, 0) != 0)
        status = fail_errno(errno, "remove", s->file->temp);
    q_delete(a, name);
    if (status != LQ_OK) {
        q_scratch_close(s);
        return status;
    }
    *out = s;
    return LQ_OK;
}

lq_status q_scratch_write(q_scratch *s, uint64_t offset, const void *data, uint64_t n) {
    const uint8_t *p = (const uint8_t *)data;
    for (uint64_t done = 0; done < n;) {
        const ssize_t put = pwrite(s->file->fd, p + done, (size_t)Q_MIN(n - done, (uint64_t)PIECE), (off_t)(offset + done));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return fail_errno(put < 0 ? errno : EIO, "write", s->file->temp);
        done += (uint64_t)put;
    }
    return LQ_OK;
}

lq_status q_scratch_read(const q_scratch *s, uint64_t offset, void *data, uint64_t n) {
    uint8_t *p = (uint8_t *)data;
    for (uint64_t done = 0; done < n;) {
        const ssize_t got = pread(s->file->fd, p + done, (size_t)Q_MIN(n - done, (uint64_t)PIECE), (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return fail_errno(got < 0 ? errno : EIO, "read", s->file->temp);
        done += (uint64_t)got;
    }
    return LQ_OK;
}

void q_scratch_close(q_scratch *s) {
    if (!s) return;
    if (s->file) free_outfile(s->file);
    q_delete(s->alloc, s);
}

/* ------------------------------------------------------------------------------------------------ directories */

/* An outfile whose temporary is a directory: f.fd holds it open and locked. */
struct q_outdir {
    q_outfile f;
    const char *mark;
};

/* Go through what a directory holds: LQ_E_ARG (naming `path`) at anything but files and links; with `remove` they go. *has
 * says whether one is called `mark`, *n how many there are. */
static lq_status go_through(int fd, const char *path, bool remove, const char *mark, bool *has, uint32_t *n) {
    lq_status status;
    DIR *d = open_entries(openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), path, &status);
    if (!d) return status;
    struct stat st;
    *has = false;
    *n = 0;
    for (const struct dirent *e; status == LQ_OK && (e = next_entry(d)) != NULL;) {
        *has |= strcmp(e->d_name, mark) == 0;
        ++*n;
        if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) status = fail_errno(errno, "look into", path);
        else if (!S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode))
            status = q_fail(LQ_E_ARG, "%s holds %s, '%.200s': it is not replaced", path, kind_name(st.st_mode), e->d_name);
        else if (remove && unlinkat(fd, e->d_name, 0) != 0 && errno != ENOENT)
            status = fail_errno(errno, "remove a file of", path);
    }
    if (status == LQ_OK && errno) status = fail_errno(errno, "look into", path); /* of the last readdir */
    closedir(d);
    return status;
}

static lq_status empty_directory(int fd, const char *path) {
    bool has;
    uint32_t n;
    Q_TRY(go_through(fd, path, false, "", &has, &n)); /* all or nothing */
    return n ? go_through(fd, path, true, "", &has, &n) : LQ_OK;
}

static int open_directory_at(int dir, const char *name) {
    int fd;
    do fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    while (fd < 0 && errno == EINTR);
    return fd;
}

/* What lies at the final name now; *there = a directory that force replaces. */
static lq_status check_target_dir(const q_outdir *d, bool *there) {
    const q_outfile *f = &d->f;
    struct stat st;
    *there = false;
    if (fstatat(f->dir, f->name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? LQ_OK : fail_errno(errno, "write", f->path);
    if (!S_ISDIR(st.st_mode))
        return q_fail(LQ_E_ARG, "%s is %s: it cannot be replaced by a directory", f->path,
                      S_ISREG(st.st_mode) ? "a file" : S_ISLNK(st.st_mode) ? "a symbolic link" : kind_name(st.st_mode));
    if (!f->force) return q_fail(LQ_E_ARG, "%s exists already", f->path);
    const int fd = open_directory_at(f->dir, f->name);
    if (fd < 0) return fail_errno(errno, "look into", f->path);
    bool has;
    uint32_t n;
    lq_status status = go_through(fd, f->path, false, d->mark, &has, &n);
    if (status == LQ_OK && n && !has)
        status = q_fail(LQ_E_ARG, "%s holds files but no %s: it is no model, and is not replaced", f->path, d->mark);
    close(fd);
    *there = status == LQ_OK;
    return status;
}

/* Make, open and lock the temporary directory, as open_temp does for files. */
static lq_status open_temp_dir(q_outfile *f) {
    for (int attempt = 0; attempt < 16; attempt++) {
        const bool made = mkdirat(f->dir, f->temp_name, 0777) == 0;
        if (!made && errno != EEXIST) return fail_errno(errno, "create", f->temp);
        f->fd = open_directory_at(f->dir, f->temp_name);
        if (f->fd < 0 && errno == ENOENT) continue; /* removed in between */
        if (f->fd < 0) {
            const int error = errno;
            if (made) unlinkat(f->dir, f->temp_name, AT_REMOVEDIR);
            return fail_errno(error, "use as a temporary directory", f->temp);
        }
        bool ours = false;
        const lq_status status = lock_temp(f, &ours);
        if (status == LQ_OK && ours) return LQ_OK;
        if (status != LQ_OK && status != LQ_E_BUSY) unlinkat(f->dir, f->temp_name, AT_REMOVEDIR);
        close(f->fd);
        f->fd = -1;
        Q_TRY(status);
    }
    return q_fail(LQ_E_BUSY, "%s: other writers keep replacing its temporary directory", f->path);
}

static void free_outdir(q_outdir *d) {
    if (d->f.fd >= 0) close(d->f.fd);
    if (d->f.dir >= 0) close(d->f.dir);
    q_delete(d->f.alloc, d->f.path);
    q_delete(d->f.alloc, d->f.temp);
    q_delete(d->f.alloc, d);
}

lq_status q_outdir_open(const q_alloc *a, const char *path, uint64_t bytes, bool force, const char *mark, q_outdir **out) {
    q_outdir *d = Q_NEW(a, q_outdir, 1);
    char *bare = copy_text(a, path);
    if (!d || !bare) {
        q_delete(a, d);
        q_delete(a, bare);
        return LQ_E_NOMEM;
    }
    for (size_t n = strlen(bare); n > 1 && bare[n - 1] == '/'; n--) bare[n - 1] = 0;
    q_outfile *f = &d->f;
    f->alloc = a;
    f->dir = f->fd = -1;
    f->force = force;
    d->mark = mark;
    bool there;
    lq_status status = name_temp(f, bare);
    q_delete(a, bare);
    if (status == LQ_OK) status = open_dir(f);
    if (status == LQ_OK) status = check_target_dir(d, &there);
    if (status == LQ_OK) status = open_temp_dir(f);
    if (status != LQ_OK) {
        free_outdir(d);
        return status;
    }
    status = check_target_dir(d, &there); /* again, now that we hold the lock */
    if (status == LQ_OK) status = empty_directory(f->fd, f->temp);
    if (status == LQ_OK) status = check_space(f, bytes);
    if (status != LQ_OK) {
        q_outdir_discard(d);
        return status;
    }
    *out = d;
    return LQ_OK;
}

const char *q_outdir_temp(const q_outdir *d) { return d->f.temp; }

/* The directory that was replaced now has the temporary's name. It goes, unless someone writes there already. */
static lq_status remove_replaced(const q_outfile *f) {
    q_outfile old = *f;
    bool ours = false;
    old.fd = open_directory_at(f->dir, f->temp_name);
    if (old.fd < 0) return errno == ENOENT ? LQ_OK : fail_errno(errno, "remove", f->temp);
    lq_status status = lock_temp(&old, &ours);
    if (status == LQ_OK && ours) status = empty_directory(old.fd, f->temp);
    if (status == LQ_OK && ours && unlinkat(f->dir, f->temp_name, AT_REMOVEDIR) != 0) status = fail_errno(errno, "remove", f->temp);
    close(old.fd);
    if (status == LQ_OK || status == LQ_E_BUSY) return LQ_OK;
    return q_fail_in(status, "%s is complete, but what it replaced is left", f->path);
}

static lq_status rename_dir(const q_outdir *d, bool *exchanged) {
    const q_outfile *f = &d->f;
    Q_TRY(check_target_dir(d, exchanged));
    const unsigned flag = *exchanged ? RENAME_EXCHANGE : RENAME_NOREPLACE;
    if (renameat2(f->dir, f->temp_name, f->dir, f->name, flag) == 0) return LQ_OK;
    if (errno == EEXIST) return q_fail(LQ_E_ARG, "%s exists already: it appeared during the writing", f->path);
    if (errno != EINVAL && errno != ENOSYS) return fail_errno(errno, "rename the temporary directory to", f->path);
    /* A file system without these flags: over nothing a plain rename does as well. */
    if (*exchanged)
        return q_fail(LQ_E_IO, "the file system of %s cannot replace a directory in one step: remove it first", f->path);
    if (renameat(f->dir, f->temp_name, f->dir, f->name) == 0) return LQ_OK;
    return fail_errno(errno, "rename the temporary directory to", f->path);
}

lq_status q_outdir_commit(q_outdir *d) {
    q_outfile *f = &d->f;
    bool exchanged = false;
    lq_status status = sync_directory(f->fd) == LQ_OK ? LQ_OK : fail_errno(errno, "flush", f->temp);
    if (status == LQ_OK) status = rename_dir(d, &exchanged);
    if (status != LQ_OK) {
        q_outdir_discard(d);
        return status;
    }
    status = sync_parent(f);
    if (exchanged && status == LQ_OK) status = remove_replaced(f);
    free_outdir(d);
    return status;
}

void q_outdir_discard(q_outdir *d) {
    if (!d) return;
    if (d->f.fd >= 0 && empty_directory(d->f.fd, d->f.temp) == LQ_OK) unlinkat(d->f.dir, d->f.temp_name, AT_REMOVEDIR);
    free_outdir(d);
}

/* ------------------------------------------------------------------------------------------------ libraries */

void *q_library_open(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
void *q_library_symbol(void *library, const char *name) { return dlsym(library, name); }
void q_library_close(void *library) {
    if (library) dlclose(library);
}
