#!/bin/sh
# check_shim.sh: shim_io.c wraps every call on files that `lq` imports; a new one must not escape the tests of faults.
set -u
cd "$(dirname "$0")/.." || exit 1
B=${B:-build}
command -v nm >/dev/null 2>&1 || { echo "SKIP: nm is not here"; echo "0 passed, 0 failed"; exit 0; }
# What the C library has for files. Not wrapped on purpose: fcntl and readlink change and read nothing of a model, posix_fadvise is advice;
# mkdtemp makes the folder of one benchmark.
calls='open|openat|creat|fopen|freopen|fdopen|tmpfile|mkstemp|mkostemp|read|readv|pread|preadv|
write|writev|pwrite|pwritev|mmap|msync|mremap|
fsync|fdatasync|sync_file_range|ftruncate|truncate|fallocate|posix_fallocate|flock|lockf|
stat|lstat|fstat|fstatat|statx|statvfs|fstatvfs|statfs|fstatfs|access|faccessat|rename|renameat|renameat2|
link|linkat|symlink|symlinkat|unlink|unlinkat|remove|rmdir|mkdir|mkdirat|opendir|fdopendir|scandir|
copy_file_range|sendfile|splice|close|close_range|utimensat|futimens|chmod|fchmod'
calls=$(printf %s "$calls" | tr -d '\n')
passed=0 failed=0
if nm "$B/lq" 2>/dev/null | grep -q ' __gcov_'; then # the counters of coverage have file calls of their own
    echo 'SKIP: this build writes coverage files'
    echo '0 passed, 0 failed'
    exit 0
fi
wrapped=$(nm -D --defined-only "$B/tests/shim_io.so" | awk '{ print $3 }')
for call in $(nm -D --undefined-only "$B/lq" | awk '{ print $2 }' | sed 's/@.*//; s/64$//' | grep -xE "$calls"); do
    if echo "$wrapped" | grep -qx "$call"; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAIL: lq calls $call, which tests/shim_io.c does not wrap"; fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
