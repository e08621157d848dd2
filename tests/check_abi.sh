#!/bin/sh
# check_abi.sh: what programs rely on: headers that compile alone, the golden interface, and a library without a state.
#
# tests/golden/abi.txt holds every public function, struct, field and constant. Nothing in it may change or go: a program
# built against an older header must run with this library. Fields are added behind a struct's end. After an addition,
#     tests/check_abi.sh --update
# writes the list anew; it refuses while anything that was there is gone or differs. Whoever means to break the interface
# edits the list by hand, raises LQ_VERSION_MAJOR and the SONAME, and says so in CHANGELOG.md.
#
# tests/golden/imports.txt holds what the library may call, in groups with reasons, and is edited by hand.
# shellcheck disable=SC2016 # awk programs in quotes: $0 and its like are awk's
set -u
cd "$(dirname "$0")/.." || exit 1
root=$(pwd)
B=${B:-build}
case $B in /*) ;; *) B=$root/$B ;; esac
CC=${CC:-cc}
tmp=$(mktemp -d "${T_TMP:-${TMPDIR:-/tmp}}/abi.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
golden=tests/golden/abi.txt
allowed=tests/golden/imports.txt
passed=0 failed=0
pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "FAILED: $*"; }
skip() { echo "SKIP: $*"; }
# none WHAT FILE: the file, a list of what is wrong, is empty.
none() { if [ -s "$2" ]; then fail "$1:"; sed 's/^/    /' "$2"; else pass; fi; }
# some WHAT FILE PATTERN: the list has a line that matches: a rule that cannot fail is no rule.
some() { if grep -q -e "$3" "$2"; then pass; else fail "$1 is not seen"; fi; }

# ------------------------------------------------------------------------------------------------ the interface as a list

# A header without comments, attributes and preprocessor lines, one declaration a line.
cat >"$tmp/lines.awk" <<'AWK'
{ text = text " " ($0 ~ /^[ \t]*#/ ? "" : $0) }
END {
    gsub(/\/\*([^*]|\*+[^*\/])*\*+\//, " ", text)
    sub(/.*extern "C" \{/, "", text)
    gsub(/[ \t]+/, " ", text)
    depth = 0; line = ""
    n = length(text)
    for (i = 1; i <= n; i++) {
        c = substr(text, i, 1)
        if (c == "{") depth++
        if (c == "}") depth--
        if (depth < 0) break # of extern "C"
        line = line c
        if (c == ";" && depth == 0) { sub(/^ +/, "", line); print line; line = "" }
    }
}
AWK
# Those lines as a C program that prints the list. Each field has to begin where the one before it ends, up to its own
# alignment, and a struct to end with its last: so that no field can be overlooked here.
cat >"$tmp/program.awk" <<'AWK'
BEGIN {
    print "#include <stdio.h>\n#include <stddef.h>\n#include \"libquant.h\"\n"
    print "static size_t end, align;"
    print "static int field(const char *s, const char *f, size_t at, size_t bytes, size_t to) {"
    print "    printf(\"field %s.%s %zu %zu\\n\", s, f, at, bytes);"
    print "    const int wrong = at != (end + to - 1) / to * to;"
    print "    if (wrong) fprintf(stderr, \"%s: something lies before %s\\n\", s, f);"
    print "    end = at + bytes;"
    print "    if (to > align) align = to;"
    print "    return wrong;"
    print "}"
    print "int main(void) {\n    int wrong = 0;"
}
function emit_field(s, f) {
    gsub(/[ *]|\[.*/, "", f)
    printf "    wrong |= field(\"%s\", \"%s\", offsetof(%s, %s), sizeof(((%s *)0)->%s), _Alignof(__typeof__(((%s *)0)->%s)));\n",
        s, f, s, f, s, f, s, f
}
/^LQ_API / {
    sub(/^LQ_API /, ""); sub(/;$/, "")
    name = $0; sub(/\(.*/, "", name); sub(/.*[ *]/, "", name)
    printf "    puts(\"function %s %s\");\n", name, $0
    next
}
/^typedef struct [a-z_]+ \{/ {
    s = $3
    body = $0; sub(/^[^{]*\{/, "", body); sub(/\}[^}]*$/, "", body)
    printf "    end = align = 0;\n    printf(\"struct %s %%zu\\n\", sizeof(%s));\n", s, s
    k = split(body, part, ";")
    for (i = 1; i <= k; i++) {
        d = part[i]
        if (d !~ /[^ ]/) continue
        if (match(d, /\(\*[a-z_]+\)/)) { emit_field(s, substr(d, RSTART + 2, RLENGTH - 3)); continue }
        m = split(d, names, ",")
        sub(/.*[ *]/, "", names[1])
        for (j = 1; j <= m; j++) emit_field(s, names[j])
    }
    printf "    if (sizeof(%s) != (end + align - 1) / align * align) wrong = !!fprintf(stderr, \"%s: its end is missing\\n\");\n", s, s
    next
}
/^(typedef )?enum/ {
    body = $0; sub(/^[^{]*\{/, "", body); sub(/\}.*/, "", body)
    k = split(body, part, ",")
    for (i = 1; i <= k; i++) {
        sub(/=.*/, "", part[i]); gsub(/ /, "", part[i])
        if (part[i] != "") printf "    printf(\"constant %s %%lld\\n\", (long long)%s);\n", part[i], part[i]
    }
    next
}
/^typedef / { sub(/;$/, ""); printf "    puts(\"type %s\");\n", $0; next }
{ printf "    wrong = !!fprintf(stderr, \"not understood: %%s\\n\", \"%s\");\n", $0 }
END { print "    return wrong;\n}" }
AWK
# list HEADER FILE: false, with a reason, when it cannot be made.
list() {
    mkdir -p "$tmp/list" && cp "$1" "$tmp/list/libquant.h" &&
        awk -f "$tmp/lines.awk" "$1" | awk -f "$tmp/program.awk" >"$tmp/list/list.c" &&
        $CC -std=gnu11 -I"$tmp/list" -o "$tmp/list/list" "$tmp/list/list.c" >"$2.err" 2>&1 &&
        "$tmp/list/list" >"$2" 2>"$2.err"
}

# What of an old list (comments left out) a new one breaks. A struct that tells its size may grow; a new field has to lie
# behind the old end, since a program that does not know it leaves anything in the padding there.
cat >"$tmp/breaks.awk" <<'AWK'
/^#/ || NF == 0 { next }
FILENAME == ARGV[1] {
    old[$1 " " $2] = $0
    if ($1 == "type") old[$1 " " $2] = ""
    if ($1 == "type") types[$0]
    if ($1 == "field") { split($2, part, "."); if (part[2] == "size") sized[part[1]] }
    if ($1 == "struct") bytes[$2] = $3
    next
}
{ if ($1 == "type") delete types[$0]; else { seen[$1 " " $2]; now[$1 " " $2] = $0 } }
$1 == "field" && !($1 " " $2 in old) {
    split($2, part, ".")
    if (part[1] in bytes && $3 < bytes[part[1]])
        print $2 " is new and lies at " $3 ", inside the " bytes[part[1]] " bytes that older programs know"
}
END {
    for (key in old) {
        if (key ~ /^type /) continue
        if (!(key in seen)) { print key " is gone"; continue }
        split(old[key], a, " "); split(now[key], b, " ")
        if (a[1] == "struct") {
            if (b[3] + 0 < a[3] + 0) print key " has shrunk from " a[3] " to " b[3] " bytes"
            else if (b[3] != a[3] && !(a[2] in sized)) print key " has another size, and no field that tells it"
        } else if (old[key] != now[key]) print old[key] "  is now  " now[key]
    }
    for (t in types) print t " is gone"
}
AWK
breaks() { awk -f "$tmp/breaks.awk" "$1" "$2"; }

heading() {
    echo '# The public interface of libquant: functions, structs and fields (offset, bytes) on 64-bit machines, constants.'
    echo '# Compared by tests/check_abi.sh, which says how to add to it. Lines are never changed or removed.'
}

if [ "${1:-}" = --update ]; then
    list include/libquant.h "$tmp/new" || { cat "$tmp/new.err"; exit 1; }
    touch "$golden"
    breaks "$golden" "$tmp/new" >"$tmp/found"
    if [ -s "$tmp/found" ]; then
        echo 'Not updated. Programs built against an older header rely on this:'; cat "$tmp/found"
        exit 1
    fi
    { heading; cat "$tmp/new"; } >"$golden"
    exit 0
fi

# ------------------------------------------------------------------------------------------------ headers

# Each header alone, twice, in every standard that it is for; C++ also in two units that are linked together.
compiles() { # WHAT COMPILER...: $tmp/unit.* compiles without a message
    what=$1; shift
    "$@" >"$tmp/log" 2>&1 || echo 'it failed' >>"$tmp/log"
    none "$what" "$tmp/log"
}
strict='-Wall -Wextra -Wpedantic -Wshadow -Werror'
for h in include/*.h include/*.hpp; do
    [ -e "$h" ] || continue
    name=$(basename "$h")
    printf '#include "%s"\n#include "%s"\nint lq_unit_is_not_empty;\n' "$name" "$name" >"$tmp/unit.c"
    cp "$tmp/unit.c" "$tmp/unit.cpp"
    for cc in gcc clang; do
        case $cc in gcc) cxx=g++ ;; *) cxx=clang++ ;; esac
        if ! command -v $cc >/dev/null 2>&1; then skip "$name with $cc: it is not here"; continue; fi
        # shellcheck disable=SC2086
        case $name in *.h) compiles "$name: $cc, C11" $cc -std=c11 $strict -Wstrict-prototypes -Iinclude -fsyntax-only "$tmp/unit.c" ;; esac
        case $name in libquant_plugin.h) continue ;; esac # the library's own records: C alone
        if ! echo 'int x;' | $cxx -x c++ -fsyntax-only - 2>/dev/null; then skip "$name with $cxx: it is not here"; continue; fi
        # shellcheck disable=SC2086
        compiles "$name: $cxx, C++17" $cxx -std=c++17 $strict -Iinclude -fsyntax-only "$tmp/unit.cpp"
        case $name in
            *.hpp)
                sed 's/lq_unit_is_not_empty/main(void) { return 0; } int lq_other/' "$tmp/unit.cpp" >"$tmp/main.cpp"
                # shellcheck disable=SC2086
                [ -n "${SAN:-}" ] || compiles "$name: $cxx, two units" $cxx -std=c++17 -Iinclude -o "$tmp/two" "$tmp/unit.cpp" \
                    "$tmp/main.cpp" "$B/libquant.a" -lm -pthread ;;
        esac
    done
done
grep -n '#include' include/libquant.h | grep -v '<std\(def\|int\)\.h>' >"$tmp/found"
none 'libquant.h includes nothing but stddef.h and stdint.h' "$tmp/found"

# ------------------------------------------------------------------------------------------------ the golden list

if [ "$(echo __SIZEOF_POINTER__ | $CC -E -P - 2>/dev/null)" != 8 ]; then skip 'the golden interface is that of 64-bit machines'
elif ! list include/libquant.h "$tmp/now"; then fail 'libquant.h as a list:'; cat "$tmp/now.err"
else
    breaks "$golden" "$tmp/now" >"$tmp/found"
    none 'older programs rely on this' "$tmp/found"
    grep -v '^#' "$golden" | cmp -s - "$tmp/now" || echo "run tests/check_abi.sh --update and review the difference" >"$tmp/new"
    [ -s "$tmp/found" ] || { touch "$tmp/new"; none "$golden lacks additions, or has another order" "$tmp/new"; }

    # Rules that have to see what they are for, on a header that was tampered with.
    tampered() { # WHAT PATTERN SED-SCRIPT
        sed "$3" include/libquant.h >"$tmp/tampered.h"
        if cmp -s "$tmp/tampered.h" include/libquant.h; then fail "$1: the script changes nothing"; return; fi
        if ! list "$tmp/tampered.h" "$tmp/then"; then cat "$tmp/then.err"; fail "$1: cannot be listed"; return; fi
        breaks "$tmp/now" "$tmp/then" >"$tmp/found"
        some "$1" "$tmp/found" "$2"
    }
    tampered 'a removed field' 'lq_device_info.isa is gone' '/char isa\[32\];/d'
    tampered 'a field in the middle' 'lq_tensor_info.bytes 72 8  is now' 's/^    uint64_t shape\[8\];.*/&\n    uint64_t extra;/'
    tampered 'fields exchanged' 'lq_model_options.no_mmap 8 4  is now' 's/check_tensors;/swap;/;s/no_mmap;/check_tensors;/;s/swap;/no_mmap;/'
    tampered 'a wider field' 'lq_plan_info.context 4 4  is now' '/^typedef struct lq_plan_info/,/^}/s/uint32_t context/uint64_t context/'
    tampered 'a field in the padding' 'lq_quantize_options.extra is new and lies at' '/^typedef struct lq_quantize_options/,/^}/{s/uint32_t dry_run;/&/;s/uint32_t size;/uint32_t size, extra;/}'
    tampered 'a struct without a size that grows' 'struct lq_allocator has another size' '/^typedef struct lq_allocator/,/^}/s/^    void \*user;/&\n    void *more;/'
    tampered 'another value' 'LQ_E_NOMEM -8  is now' 's/LQ_E_NOMEM = -8/LQ_E_NOMEM = -80/'
    tampered 'a removed constant' 'LQ_LOG_DEBUG is gone' 's/, LQ_LOG_DEBUG = 3//'
    tampered 'a removed function' 'function lq_seq_length is gone' '/lq_seq_length/d'
    tampered 'another parameter' 'lq_seq_truncate .*  is now' 's/lq_seq_truncate(lq_session \*session, uint32_t sequence, uint32_t length)/lq_seq_truncate(lq_session *session, uint32_t sequence, uint64_t length)/'
    tampered 'another callback' 'typedef int (\*lq_progress).* is gone' 's/uint64_t done, uint64_t total, const char \*what/uint64_t done, uint64_t total/'
    sed 's/^} lq_stats;/    uint64_t more;\n&/' include/libquant.h >"$tmp/tampered.h"
    list "$tmp/tampered.h" "$tmp/then"; breaks "$tmp/now" "$tmp/then" >"$tmp/found"
    none 'a field behind the end is no break' "$tmp/found"
    if cmp -s "$tmp/now" "$tmp/then"; then fail 'a field behind the end changes nothing'; else pass; fi
fi

# ------------------------------------------------------------------------------------------------ the objects

# Functions of the header and symbols of the shared library are the same names.
sed -n 's/^function \([a-z_]*\) .*/\1/p' "$golden" | sort >"$tmp/declared"
nm -D --defined-only "$B/libquant.so" 2>/dev/null | grep -v ' A ' | sed 's/@.*//' | awk '{ print ($2 == "T" ? "" : $2 " ") $3 }' | sort >"$tmp/exported"
if [ -n "${SAN:-}${COV:-}" ] || nm "$B/libquant.a" 2>/dev/null | grep -q -e '__asan_' -e '__tsan_' -e '__ubsan_' -e '__gcov_' -e '__llvm_prof'; then
    skip 'symbols, state and imports of the objects: an instrumented build has its own besides ours'
else
    diff "$tmp/declared" "$tmp/exported" >"$tmp/found"
    none 'libquant.so exports what libquant.h declares (< declared, > exported)' "$tmp/found"

    # needs OBJECT-OR-ARCHIVE: imports that are not allowed. Fortified names stand for the plain ones.
    sed 's/#.*//' "$allowed" | tr -s ' ' '\n' | grep . | sort -u >"$tmp/allowed"
    needs() {
        nm "$1" 2>/dev/null | awk 'NF == 3 { defined[$3] } NF == 2 && $1 ~ /^[Uvw]$/ { used[$2] } END { for (s in used) if (!(s in defined)) print s }' |
            sed 's/^__\(.*\)_chk$/\1/;s/^__aarch64_[a-z]*[0-9]*_[a-z_]*$/__aarch64_atomics/' | sort -u | comm -23 - "$tmp/allowed"
    }
    # holds OBJECT-OR-ARCHIVE: state and code that runs by itself: writable sections, common blocks, constructors,
    # resolvers. Thread-local is the sentence of lq_error_detail alone: status.c's `detail`.
    holds() {
        readelf -SW "$1" 2>/dev/null | sed 's/^ *\[ *[0-9]*\] *//' | awk '
            /^File: / { file = $2 }
            $1 ~ /^\.(data|bss|ldata|lbss|init_array|fini_array|preinit_array|ctors|dtors|init|fini)/ && $1 !~ /^\.data\.rel\.ro/ &&
                $5 !~ /^0+$/ { print file ": " $1 " has 0x" $5 " bytes" }'
        nm "$1" 2>/dev/null | awk '$2 ~ /^[CcBbGgSsi]$/ && $3 != "detail" { print $3 " is of kind " $2 }'
        readelf -sW "$1" 2>/dev/null | awk '$4 == "TLS" && $7 != "UND" && $8 != "detail" { print $8 " is thread-local" }'
    }
    needs "$B/libquant.a" >"$tmp/found"; none "imports that $allowed does not allow" "$tmp/found"
    holds "$B/libquant.a" >"$tmp/found"; none 'state or start-up code in the library' "$tmp/found"
    readelf -d "$B/libquant.so" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -v -e '^libc\.so' -e '^libm\.so' -e '^libpthread\.so' -e '^ld-linux' >"$tmp/found"
    none 'libraries that libquant.so needs besides the C library' "$tmp/found"

    # What the sources no longer mention is no longer allowed either; the last groups are not theirs to mention.
    sed '/^# ==/,$d;s/#.*//' "$allowed" | tr -s ' ' '\n' | grep . | while read -r name; do
        grep -rqw -e "$name" libquant kernels --include='*.c' --include='*.h' || echo "$name"
    done >"$tmp/found"
    none "$allowed allows what no source calls" "$tmp/found"

    bad() { # WHAT PATTERN RULE SOURCE
        printf '%s\n' "$4" >"$tmp/bad.c"
        if ! $CC -O1 -fPIC -w -c -o "$tmp/bad.o" "$tmp/bad.c" 2>"$tmp/log"; then fail "$1: does not compile"; return; fi
        "$3" "$tmp/bad.o" >"$tmp/found"
        some "$1" "$tmp/found" "$2"
    }
    bad 'abort' '^abort$' needs 'void abort(void); void f(void) { abort(); }'
    bad 'printf' '^\(puts\|printf\)$' needs 'int printf(const char *, ...); void f(void) { printf("x\n"); }'
    bad 'getenv' '^getenv$' needs 'char *getenv(const char *); char *f(void) { return getenv("X"); }'
    bad 'a weak import' '^other$' needs 'void other(void) __attribute__((weak)); void f(void) { other(); }'
    bad 'a writable global' 'x is of kind\|\.data has' holds 'int x = 5; int f(void) { return x++; }'
    bad 'a static variable' '\.bss has' holds 'int f(void) { static int x; return x++; }'
    bad 'a table of pointers that is not const' '\.data' holds 'int a; const int *table[] = { &a };'
    bad 'a constructor' 'init_array\|ctors' holds '__attribute__((constructor)) void f(void) { __asm__(""); }'
    bad 'another thread-local' 'mine is thread-local' holds '_Thread_local int mine; int *f(void) { return &mine; }'
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
