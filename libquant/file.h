/* file.h: files: read, map, identify; outputs, files and directories of them, that are temporary until complete; libraries opened at run time.
 *
 * The only place that opens, maps, writes, renames or stats a file. Every error sentence names the path. Interrupted
 * calls are repeated, short reads completed. Layer L0. */
#ifndef Q_FILE_H
#define Q_FILE_H

#include "memory.h"

typedef struct q_file q_file;

enum { Q_FILE_MAP = 1 }; /* map the file read-only; without it q_file_read is the only access */

/* Open a regular file for reading. Directories, FIFOs, sockets and devices are LQ_E_FORMAT without blocking; the
 * size is taken at this moment and never trusted to stay. */
lq_status q_file_open(const q_alloc *a, const char *path, uint32_t flags, q_file **out);
void q_file_close(q_file *f);
const char *q_file_path(const q_file *f);
uint64_t q_file_size(const q_file *f);
/* The mapping, NULL when not mapped (or an empty file). */
const uint8_t *q_file_data(const q_file *f);
/* The pages that hold n bytes of a mapping leave the process's memory, and come back from the file when they are read. */
void q_file_give_back(const uint8_t *p, uint64_t n);
/* Exactly n bytes at offset; LQ_E_TRUNCATED past the end, LQ_E_IO when the system fails. Thread-safe. */
lq_status q_file_read(const q_file *f, uint64_t offset, void *dst, uint64_t n);
/* What was read of these bytes is not wanted again: the system need not keep its pages for the next who asks. */
void q_file_let_go(const q_file *f, uint64_t offset, uint64_t n);
/* LQ_E_IO when size, mtime or inode differ from those at open: the file was changed under us. */
lq_status q_file_unchanged(const q_file *f);

/* A whole small file as bytes with a NUL after the end; LQ_E_LIMIT above max. Free with q_delete. */
lq_status q_file_slurp(const q_alloc *a, const char *path, uint64_t max, uint8_t **data, uint64_t *n);

typedef enum { Q_PATH_NONE, Q_PATH_FILE, Q_PATH_DIR, Q_PATH_OTHER } q_path_kind;
/* What lies at a path. That nothing does is no failure; LQ_E_IO when the system cannot say. */
lq_status q_path_kind_of(const char *path, q_path_kind *kind);
/* The first bytes of a regular file, at most n; *got = how many, 0 when there is none. For guessing what a file is. */
lq_status q_path_head(const char *path, void *buf, size_t n, size_t *got);
/* Whether both name the same inode (symbolic and hard links followed); not when one of them names nothing. */
lq_status q_path_same(const char *a, const char *b, bool *same);
/* Whether the file that `path` leads to, links followed, lies in the directory `dir` itself. */
lq_status q_path_within(const char *dir, const char *path, bool *within);
/* The directory of a file's path; "." for a bare name. */
lq_status q_path_parent(char *buf, size_t n, const char *path);
/* dir + "/" + name into buf; LQ_E_LIMIT when it does not fit. */
lq_status q_path_join(char *buf, size_t n, const char *dir, q_str name);

/* An output file: bytes go to a locked temporary in the same directory, and reach the final name in commit. */
typedef struct q_outfile q_outfile;
/* Refuses: missing or read-only directory (LQ_E_IO), less free space than `bytes` (LQ_E_IO), existing path without
 * force (LQ_E_ARG), a second writer of the same path (LQ_E_BUSY). A stale temporary of a dead writer is replaced. */
lq_status q_outfile_open(const q_alloc *a, const char *path, uint64_t bytes, bool force, q_outfile **out);
lq_status q_outfile_write(q_outfile *f, const void *data, uint64_t n);
uint64_t q_outfile_written(const q_outfile *f);
/* The temporary's path, for reading back before commit. */
const char *q_outfile_temp(const q_outfile *f);
/* Flush to the disk so that the temporary can be read back and checked. */
lq_status q_outfile_sync(q_outfile *f);
/* Rename over the final name and sync the directory; frees f. */
lq_status q_outfile_commit(q_outfile *f);
/* Remove the temporary; frees f. NULL is fine. */
void q_outfile_discard(q_outfile *f);

/* Remove a file; that there is none is no failure. */
lq_status q_path_remove(const char *path);
/* Every entry of a directory but "." and "..", in no order; a status other than LQ_OK ends it. `each` may remove the entry. */
lq_status q_path_each(const char *dir, lq_status (*each)(void *user, const char *name), void *user);

/* A file without a name, in the directory of `path`, of `bytes` bytes: memory that lies on the disk. It is gone with the
 * process. */
typedef struct q_scratch q_scratch;
lq_status q_scratch_open(const q_alloc *a, const char *path, uint64_t bytes, q_scratch **out);
lq_status q_scratch_write(q_scratch *s, uint64_t offset, const void *data, uint64_t n);
lq_status q_scratch_read(const q_scratch *s, uint64_t offset, void *data, uint64_t n);
void q_scratch_close(q_scratch *s); /* NULL is fine */

/* An output directory of plain files: they are written into a locked temporary directory beside it (each by a q_outfile
 * there), which gets the final name in one step in commit. */
typedef struct q_outdir q_outdir;
/* Refuses as q_outfile_open does. With force an existing directory is replaced when it is a model's: plain files alone,
 * among them `mark` (LQ_E_ARG says what is not so); so is an empty one. A dead writer's temporary directory is emptied. */
lq_status q_outdir_open(const q_alloc *a, const char *path, uint64_t bytes, bool force, const char *mark, q_outdir **out);
/* Where its files go. */
const char *q_outdir_temp(const q_outdir *d);
/* Give it the final name, remove what it replaced, sync the directory above; frees d. */
lq_status q_outdir_commit(q_outdir *d);
/* Remove the temporary and its files; frees d. NULL is fine. */
void q_outdir_discard(q_outdir *d);

/* A shared library of the system that the program can do without; NULL = not here. Its name is one that the system's
 * linker looks for ("libvulkan.so.1"). */
void *q_library_open(const char *name);
/* The address of a function or object; NULL = it has none of that name. */
void *q_library_symbol(void *library, const char *name);
void q_library_close(void *library);

#endif
