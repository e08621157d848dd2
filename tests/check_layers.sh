#!/bin/sh
# check_layers.sh: the tree's own rules: who includes whom, what the library never calls, names, openings, lengths.
#
# Each rule is a function that prints its violations as "file:line: what". It runs on this tree, where it must print
# nothing, and on a scratch tree with one violation of it, where it must print something: a rule that cannot fail is no
# rule. The layers are those of the table in layer() below; libquant/README.md says why they are so.
# shellcheck disable=SC2016 # awk programs in quotes: $0 and its like are awk's
set -u
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d "${T_TMP:-${TMPDIR:-/tmp}}/layers.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0

# Code without comments, strings and characters, as "file:line:code"; includes stay whole.
cat >"$tmp/strip.awk" <<'AWK'
FNR == 1 { inside = 0 }
{
    rest = $0; code = ""
    if (!inside && rest ~ /^[ \t]*#[ \t]*include/) {
        sub(/[ \t]*\/[*\/].*/, "", rest)
        print FILENAME ":" FNR ":" rest
        next
    }
    if (!inside && rest ~ /^[ \t]*#[ \t]*error/) next
    while (rest != "") {
        if (inside) {
            at = index(rest, "*/")
            if (!at) break
            rest = substr(rest, at + 2); inside = 0
        } else if (match(rest, /\/\*|\/\/|"([^"\\]|\\.)*"|'([^'\\]|\\.)*'/)) {
            code = code substr(rest, 1, RSTART - 1)
            what = substr(rest, RSTART, 2)
            if (what == "//") break
            inside = what == "/*"
            if (!inside) code = code substr(what, 1, 1) substr(what, 1, 1)
            rest = substr(rest, RSTART + (inside ? 2 : RLENGTH))
        } else { code = code rest; break }
    }
    if (code ~ /[^ \t]/) print FILENAME ":" FNR ":" code
}
AWK

# Includes in quotes: resolved against the including file, then judged by layer.
cat >"$tmp/layers.awk" <<'AWK'
function base(path) { sub(/.*\//, "", path); return path }
function folder(path) { return path ~ /\// ? substr(path, 1, length(path) - length(base(path)) - 1) : "" }
function resolve(dir, name,    n, i, k, part, out) { # "a/b" and "../c.h" give "a/c.h"
    n = split(dir "/" name, part, "/"); k = 0
    for (i = 1; i <= n; i++) {
        if (part[i] == ".." && k > 0) k--
        else if (part[i] != "" && part[i] != ".") out_part[++k] = part[i]
    }
    out = out_part[1]
    for (i = 2; i <= k; i++) out = out "/" out_part[i]
    return out
}
function layer(path,    b) {
    b = base(path)
    if (path ~ /^include\//) return 0
    if (path ~ /^(kernels\/|libquant\/[^\/]+\/)/) return 2
    if (path !~ /^libquant\//) return 5
    if (b ~ /\.def$/) return 1
    if (b ~ /^(base|status|memory|threads|log|file)\.[ch]$/) return 0
    if (b ~ /^(format|codec|encode_codec|i4_codec|i8_codec|book_codec|nf4_levels|e2m1|fit|wide|dense|kv_form|op|plan|backend|quantizer|transform|loader|hf_kind|method|checksum|arch|tokenizer|json)\.h$/) return 1
    if (b ~ /^(format|fit|fit_row|wide|dense|kv_form|op|loader|method|json|json_write|tables)\.c$/) return 1
    return b == "api.c" ? 4 : 3
}
function backend(path,    part) { split(path, part, "/"); return part[1] == "kernels" ? part[2] : "" }
# Files of one leaf that share a private header.
function family(path) {
    if (path ~ /^libquant\/loaders\/gguf/) return "gguf"
    if (path ~ /^libquant\/loaders\/(safetensors|hf_)/) return "safetensors"
    return path
}
function allowed(from, to,    a, b) {
    a = layer(from); b = layer(to)
    # A kernel is a record of its backend, and bench/ times each one alone: it may see the header that has the record.
    if (from ~ /^bench\//) return to ~ /^include\/libquant(_plugin)?\.h$/ || to ~ /^(tools|bench)\// || to == "kernels/cpu/cpu.h"
    if (from ~ /^tools\//) return to ~ /^include\/libquant(_plugin)?\.h$/ || to ~ /^(tools|bench)\//
    if (from ~ /^kernels\//)
        return b <= 1 || to ~ /^libquant\/formats\// || backend(to) == "ref" || backend(to) == backend(from)
    if (a == 2) return b <= 1 || family(from) == family(to)
    return b <= a && b != 2 # the engine reaches leaves through the .def tables alone
}
{
    split($0, field, ":")
    from = field[1]
    match($0, /"[^"]+"/)
    name = substr($0, RSTART + 1, RLENGTH - 2)
    if (name ~ /\.inc$/) next # made by the Makefile
    to = resolve(folder(from), name)
    if (!allowed(from, to))
        print from ":" field[2] ": must not include " to " (layer " layer(from) " includes layer " layer(to) ")"
}
AWK

# Prepare a tree for the rules: ROOT/… -> $tmp/code (all code) and $tmp/files.
scan() {
    (cd "$1" && find include libquant kernels tools bench tests -type f \( -name '*.c' -o -name '*.h' -o -name '*.def' \
        -o -name '*.sh' -o -name '*.cu' -o -name '*.cuh' -o -name '*.comp' \) 2>/dev/null | sort) >"$tmp/files"
    (cd "$1" && grep -E '\.[ch]$' "$tmp/files" | xargs awk -f "$tmp/strip.awk") >"$tmp/code"
    grep -E '^(libquant|kernels)/' "$tmp/code" >"$tmp/lib"
    root=$1
}

# Calls and names in the library's code: calls PATTERN WHY [FILES TO LEAVE OUT]. A member's name (x->free) is not one.
banned() {
    grep -E "^[^:]*:[0-9]*:(.*[^A-Za-z0-9_.>])?($1)" "$tmp/lib" | grep -vE "^(${3:-none}):" |
        sed "s/:\([0-9]*\):.*/:\1: $2/"
}

includes() { grep -E "^($1)/[^:]*:[0-9]*:[[:space:]]*#[[:space:]]*include[[:space:]]*\"" "$tmp/code"; }
rule_layers() { includes 'libquant|kernels' | awk -f "$tmp/layers.awk"; }
rule_tools() { includes 'tools|bench' | awk -f "$tmp/layers.awk"; }
rule_environment() { banned '(secure_)?getenv *\(|setenv *\(|setlocale *\(' 'touches the environment'; }
rule_streams() {
    banned 'v?f?printf *\(|f?puts *\(|f?putc *\(|putchar *\(|perror *\(|stdout|stderr' 'writes to a stream'
}
rule_exit() { banned '(abort|exit|_exit|_Exit|quick_exit|raise|assert) *\(' 'ends the process'; }
rule_malloc() {
    banned '(malloc|calloc|realloc|free|posix_memalign|aligned_alloc|strn?dup|v?asprintf|alloca) *\(' \
        'allocates outside memory.c' libquant/memory.c
}
rule_switch() {
    banned 'switch *\(.*(format|fmt)' 'switches on a format' 'libquant/formats/.*'
}
rule_intrinsics() {
    grep -E '^libquant/.*(<([a-z]mm|x86)intrin\.h>|<arm_[a-z]*\.h>|<cpuid\.h>|__builtin_ia32)' "$tmp/code" |
        grep -v '__builtin_ia32_pause *()' | # the wait in a spin loop is no arithmetic
        sed 's/:\([0-9]*\):.*/:\1: uses intrinsics/'
}
rule_system() {
    sys='auxv|mman|stat|types|resource|file|statvfs|ioctl|syscall'
    banned "# *include *<(unistd|fcntl|pthread|sched|dirent|signal|sys/($sys))\\.h>" \
        'includes a header of the operating system' 'libquant/(file|threads|memory)\.c'
}
rule_json() { banned '# *include *<jansson\.h>' 'uses jansson: json.h reads JSON'; }
rule_names() { # kernels.def: one per backend, by design
    awk -F/ '$NF == "kernels.def" { next }
        $NF in seen { print $0 ":1: has the name of " seen[$NF] }
        { seen[$NF] = $0 }' "$tmp/files"
}
rule_opening() {
    (cd "$root" && xargs awk '
        FNR == 1 && FILENAME !~ /\.sh$/ && !/^(\/\*|\/\/) ?[^ ]/ { print FILENAME ":1: does not open with a comment" }
        FNR == 1 { first = $0 }
        FNR == 2 && FILENAME ~ /\.sh$/ && (first ~ /^#!/ ? $0 : first) !~ /^# / {
            print FILENAME ":2: does not open with a comment"
        }' <"$tmp/files")
}
rule_length() {
    (cd "$root" && xargs awk '
        function judge() { if (n > 800 && !why) print file ":1: " n " lines, and does not say why it is long" }
        FNR == 1 { judge(); why = 0; file = FILENAME }
        FNR <= 12 && /[^a-z]long[^a-z]|800 lines/ { why = 1 }
        { n = FNR }
        END { judge() }' <"$tmp/files")
}
rule_functions() {
    (cd "$root" && grep -E '^(libquant|kernels|tools)/.*\.[ch]$' "$tmp/files" | xargs awk '
        FNR == 1 { why = 0; begin = 0 }
        FNR <= 12 && /80 lines/ { why = 1 }
        /^[A-Za-z].*\(.*\{$/ || (/^[A-Za-z ].*\) *\{$/ && !begin) { begin = FNR }
        /^}/ && begin {
            n = FNR - begin + 1
            if (n > 80 && !why) print FILENAME ":" begin ": a function of " n " lines, and the file does not say why"
            begin = 0
        }')
}
# Lines of C. tests/golden/long_lines.txt lists files that still have longer ones: take off what you mend, add none.
rule_columns() {
    (cd "$root" && grep -E '\.[ch]$' "$tmp/files" | xargs awk -v list="$old_lines" '
        BEGIN { while ((getline name < list) > 0) old[name] = 1 }
        length($0) > 120 && !(FILENAME in old) { print FILENAME ":" FNR ": " length($0) " columns; 120 are allowed" }')
}
rules='layers tools environment streams exit malloc switch intrinsics system json names opening length functions columns'
old_lines=tests/golden/long_lines.txt

result() { # result OK NAME
    if [ "$1" = 1 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $2"; fi
}

scan .
for rule in $rules; do
    "rule_$rule" >"$tmp/found"
    cat "$tmp/found"
    result "$([ -s "$tmp/found" ] || echo 1)" "$rule: $(wc -l <"$tmp/found") violations"
done

# ---- that each rule can fail: a scratch tree that keeps all of them, then breaks one at a time

s=$tmp/scratch
rm -rf "$s"
for d in include libquant/loaders libquant/formats kernels/cpu/x86 kernels/ref kernels/cuda tools bench tests; do
    mkdir -p "$s/$d"
done
put() { # put FILE LINE...
    f=$1; shift
    { echo "/* $f: a file of the scratch tree. */"; printf '%s\n' "$@"; } >"$s/$f"
}
make_scratch() {
    put include/libquant.h 'int lq;'
    put libquant/status.h '#include "../include/libquant.h"'
    put libquant/memory.c '#include "status.h"' '#include <unistd.h>' 'void f(void *p) { free(p); } /* getenv("x") */'
    put libquant/format.h '#include "status.h"' '/* switch (format) */'
    put libquant/json.h '#include "loader.h"'
    put libquant/model.c '#include "format.h"' '#include "formats.def"' 'const char *s = "abort() // malloc(";' \
        'int g(void) { a->free(p); q_free(p); snprintf(b, 1, "x"); return '"'\"'; } // exit(1)"
    put libquant/formats.def 'F(x)'
    put libquant/api.c '#include "engine.h"'
    put libquant/loaders/gguf.h '#include "../format.h"'
    put libquant/loaders/gguf_write.c '#include "gguf.h"'
    put libquant/formats/q4.c '#include "../format.h"'
    put kernels/ref/ref.h '#include "../../libquant/format.h"'
    put kernels/cpu/cpu.h '#include "../ref/ref.h"' '#include "../../libquant/formats/q4.c"'
    put kernels/cpu/x86/dot.c '#include "../cpu.h"' '#include <immintrin.h>'
    put tools/cli.h '#include "../include/libquant.h"'
    put bench/kernels.c '#include "../kernels/cpu/cpu.h"' '#include "../tools/cli.h"'
    put tools/lq.c '#include "cli.h"' 'int main(void) { printf("x"); exit(0); }'
    put tests/test_x.c '#include "../libquant/format.h"' 'int main(void) { return !getenv("X"); }'
}
make_scratch
old_lines=/dev/null
scan "$s"
for rule in $rules; do "rule_$rule"; done >"$tmp/found"
cat "$tmp/found"
result "$([ -s "$tmp/found" ] || echo 1)" 'a tree that keeps the rules is accepted'

breaks() { # breaks RULE FILE LINE: with this line in the file, the rule reports the file
    rule=$1 file=$2
    saved=; [ -f "$s/$file" ] && saved=1 && cp "$s/$file" "$tmp/saved"
    put "$file" "$3"
    scan "$s"
    "rule_$rule" >"$tmp/found"
    result "$(grep -q "^$file:" "$tmp/found" && echo 1)" "$rule does not see in $file: $3"
    if [ "$saved" ]; then cp "$tmp/saved" "$s/$file"; else rm "$s/$file"; fi
}
breaks layers libquant/status.h '#include "format.h"'
breaks layers libquant/format.h '#include "engine.h"'
breaks layers libquant/format.h '#include "loaders/gguf.h"'
breaks layers libquant/model.c '#include "loaders/gguf.h"'
breaks layers libquant/model.c '#include "../kernels/ref/ref.h"'
breaks layers libquant/loaders/gguf.h '#include "../engine.h"'
breaks layers libquant/loaders/gguf.h '#include "../plan.c"'
breaks layers libquant/loaders/safetensors.c '#include "gguf.h"'
breaks layers libquant/formats/q4.c '#include "../loaders/gguf.h"'
breaks layers kernels/ref/ref.h '#include "../cpu/cpu.h"'
breaks layers kernels/cuda/cuda.c '#include "../cpu/cpu.h"'
breaks layers kernels/cpu/cpu.h '#include "../../libquant/engine.h"'
breaks layers kernels/cpu/cpu.h '#include "../../libquant/loaders/gguf.h"'
breaks layers libquant/format.h '#include "../tools/cli.h"'
breaks tools tools/lq.c '#include "../libquant/format.h"'
breaks tools tools/lq.c '#include "../kernels/cpu/cpu.h"'
breaks tools bench/peak.c '#include "../kernels/ref/ref.h"'
breaks environment libquant/model.c 'x = getenv("HOME");'
breaks environment kernels/cpu/cpu.h 'x = secure_getenv("HOME");'
breaks streams libquant/model.c '/* a */ fprintf(stderr, "x"); // b'
breaks streams libquant/model.c 'int x; printf ("x");'
breaks streams libquant/model.c 'perror(0);'
breaks exit libquant/model.c 'if (x) abort();'
breaks exit kernels/cpu/cpu.h 'exit(1);'
breaks exit libquant/model.c 'assert(x < n);'
breaks malloc libquant/model.c 'p = (int *)malloc(4);'
breaks malloc libquant/model.c '"it'"'"'s" free(p);'
breaks malloc kernels/ref/ref.h 'x = realloc(x, 8);'
breaks switch libquant/model.c 'switch (t->format->id) {'
breaks switch kernels/cpu/cpu.h 'switch (fmt) {'
breaks intrinsics libquant/model.c '#include <immintrin.h>'
breaks intrinsics libquant/formats/q4.c '#include <arm_neon.h>'
breaks system libquant/model.c '#include <unistd.h>'
breaks system kernels/cpu/cpu.h '#include <sys/mman.h>'
breaks system kernels/cpu/detect.c '#include <sys/auxv.h>'
breaks system libquant/status.h '#  include <pthread.h>'
breaks json libquant/model.c '#include <jansson.h>'
breaks intrinsics libquant/model.c 'x = __builtin_ia32_addps(x, y);'
breaks names kernels/ref/dot.c 'int x;'
breaks length libquant/model.c "$(yes 'int x;' | head -801)"
breaks columns libquant/model.c "int $(printf '%0118d' 0 | tr 0 x);"
breaks functions libquant/model.c "$(echo 'int f(int x) {'; yes '    x++;' | head -80; echo '}')"
for bare in libquant/bare.c tests/bare.sh; do
    printf 'x\nint x;\n' >"$s/$bare"
    scan "$s"
    rule_opening >"$tmp/found"
    result "$(grep -q "^$bare:" "$tmp/found" && echo 1)" "opening does not see $bare, which has no comment"
    rm "$s/$bare"
done

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
