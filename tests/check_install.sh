#!/bin/sh
# check_install.sh: what `make install` leaves behind is complete: headers, both libraries, libquant.pc, lq, manual
# pages and completion, in a scratch prefix, used from there alone: no file of the tree, no LD_LIBRARY_PATH. Then `make
# uninstall` takes all of it away.
# shellcheck disable=SC2046,SC2086,SC2317 # flags are words
set -u
cd "$(dirname "$0")/.." || exit 1
T_TMP=${T_TMP:-$(mktemp -d)}
B=${B:-build}
root=$(pwd)
pocket=$root/bench/data/pocket
passed=0 failed=0
pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "FAIL: $1"; [ ! -s "${2:-}" ] || head -20 "$2"; }
skip() { echo "SKIP: $*"; }
finish() { echo "$passed passed, $failed failed"; [ "$failed" -eq 0 ]; exit; }
if [ -n "${SAN:-}${T_SLOW:-}" ]; then # programs and Python would have to be built with the same instruments
    skip 'installing is checked on a build without sanitizers and coverage'
    finish
fi
# run WHAT COMMAND...: it succeeds. $log has what it said.
log=$T_TMP/log
run() { what=$1; shift; if "$@" >"$log" 2>&1; then pass; else fail "$what" "$log"; fi; }
# is WHAT GOT EXPECTED
is() { if [ "$2" = "$3" ]; then pass; else fail "$1: '$2', expected '$3'"; fi; }
has() { if [ -e "$1" ] || [ -L "$1" ]; then pass; else fail "$1 is missing"; fi; }
mk() { MAKEFLAGS='' make -s --no-print-directory SETUP=0 B="$B" CC="${CC:-cc}" LDCONFIG=: "$@"; }

prefix=$T_TMP/prefix
run 'make install' mk install PREFIX="$prefix"
[ -x "$prefix/bin/lq" ] || finish
lib=$prefix/lib
version=$("$prefix/bin/lq" --version | sed 's/lq \([0-9.]*\) .*/\1/')

# ---- files, links, names

for f in bin/lq include/libquant.h include/libquant.hpp lib/libquant.a lib/libquant.so lib/pkgconfig/libquant.pc \
    share/man/man1/lq.1 share/man/man3/libquant.3 share/bash-completion/completions/lq share/zsh/site-functions/_lq \
    share/fish/vendor_completions.d/lq.fish share/libquant/pocket/config.json share/libquant/text/prose.txt \
    share/libquant/python/libquant.py share/doc/libquant/LICENSE share/doc/libquant/README.md \
    share/doc/libquant/examples/generate.c; do has "$prefix/$f"; done
is 'the link for programs' "$(readlink "$lib/libquant.so.0")" "libquant.so.$version"
is 'the link for compilers' "$(readlink "$lib/libquant.so")" libquant.so.0
if [ -x "$lib/libquant.so.$version" ]; then pass; else fail "libquant.so.$version"; fi
is SONAME "$(readelf -d "$lib/libquant.so" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')" libquant.so.0
is 'no rpath' "$(readelf -d "$prefix/bin/lq" "$lib/libquant.so" | grep -cE 'RPATH|RUNPATH')" 0
is 'nothing refers to the build' "$(sed "s|$prefix||g" "$prefix"/include/* "$lib"/pkgconfig/* "$prefix"/share/man/*/* |
    grep -cF "$root")" 0
is 'a plugin header that needs the tree' "$(find "$prefix" -name 'libquant_plugin*')" ''

# ---- symbols: lq_* and the version node are all that an embedder sees

api=$(grep -oE '\blq_[a-z_]+\(' include/libquant.h | tr -d '(' | sort -u)
nm -D --defined-only "$lib/libquant.so" | awk '{ print $3 }' | sort >"$T_TMP/so"
is 'the shared library shows other than lq_*' "$(grep -vE '^(lq_[a-z_]*@@)?LIBQUANT_0$' "$T_TMP/so")" ''
nm -g --defined-only "$lib/libquant.a" | awk 'NF == 3 { print $3 }' | sort >"$T_TMP/a"
is 'the static library shows other than lq_*' "$(grep -v '^lq_' "$T_TMP/a")" ''
is 'both show the same' "$(sed 's/@@.*//' "$T_TMP/so" | grep -v '^LIBQUANT_0$')" "$(cat "$T_TMP/a")"
missing=''
for f in $(grep -E '^LQ_API' include/libquant.h | grep -oE 'lq_[a-z_]+\(' | tr -d '(' | sort -u); do
    grep -qx "$f" "$T_TMP/a" || missing="$missing $f"
    case $api in *"$f"*) ;; *) missing="$missing $f" ;; esac
done
is 'functions of the header that are missing' "$missing" ''

# ---- lq, from there and from where the prefix is moved to

cd "$T_TMP" || exit 1
model=$T_TMP/model.gguf
run 'lq quantize' "$prefix/bin/lq" quantize "$pocket" "$model" --scheme q8_0
run 'lq finds the bundled data' "$prefix/bin/lq" bench quality --schemes q8_0 --max-tokens 2048
text=$("$prefix/bin/lq" run "$model" -p 'Once upon a time' -n 32 2>/dev/null)
is 'lq run says something' "$([ "${#text}" -gt 32 ] && echo yes)" yes

# ---- programs, by pkg-config alone

unset LD_LIBRARY_PATH LIBRARY_PATH CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH PKG_CONFIG_LIBDIR
PKG_CONFIG_PATH=$lib/pkgconfig; export PKG_CONFIG_PATH
pc() { pkg-config "$@" libquant | sed 's/ *$//'; }
is 'pkg-config --modversion' "$(pc --modversion)" "$version"
is 'pkg-config --cflags' "$(pc --cflags)" "-I$prefix/include"
is 'pkg-config --libs' "$(pc --libs)" "-L$lib -lquant"
is 'pkg-config --static --libs' "$(pc --static --libs)" "-L$lib -lquant -lm -pthread"

examples=$prefix/share/doc/libquant/examples
strict='-Wall -Wextra -Werror'
# build NAME COMPILER FLAGS... SOURCE: as shared.NAME and static.NAME. Shared: found at run time by its SONAME, in a
# folder that the program is told. Static: the archive, with nothing left to find.
build() {
    name=$1 cc=$2; shift 2
    run "$name, shared" $cc $strict "$@" $(pc --cflags --libs) -pthread -Wl,-rpath,"$lib" -o "shared.$name"
    run "$name, static" $cc $strict "$@" $(pc --cflags) -Wl,-Bstatic $(pc --libs) -Wl,-Bdynamic \
        $(pc --static --libs | sed 's/.*-lquant//') -o "static.$name"
    is "$name, shared: what it needs" "$(readelf -d "shared.$name" | grep -cF '[libquant.so.0]')" 1
    is "$name, static: what it needs" "$(readelf -d "static.$name" | grep -cF '[libquant')" 0
}
says() { # says WHAT COMMAND...: the text that lq made
    what=$1; shift
    is "$what" "$("$@" 2>"$log")" "Once upon a time$text"
}
for cc in gcc clang; do
    command -v $cc >/dev/null 2>&1 || { skip "$cc is not here: the examples in C"; continue; }
    build "generate.$cc" $cc -std=c11 "$examples/generate.c"
    build "cancel.$cc" $cc -std=c11 "$examples/cancel.c"
    for kind in shared static; do
        says "generate.c, $cc, $kind" "./$kind.generate.$cc" "$model" 'Once upon a time'
        begin=$(date +%s)
        run "cancel.c, $cc, $kind: from a thread" "./$kind.cancel.$cc" "$model" 'Once upon a time' 0.3
        is "cancel.c, $cc, $kind: says why it ended" "$(grep -c '^stopped$' "$log")" 1
        rm -f cancel.out
        ./$kind.cancel.$cc "$model" 'Once upon a time' 300 >cancel.out 2>"$log" & pid=$!
        for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do [ -s cancel.out ] && break; sleep 0.2; done
        kill -INT $pid; wait $pid
        is "cancel.c, $cc, $kind: by SIGINT" "$? $(cat "$log")" '0 stopped'
        is "cancel.c, $cc, $kind: at once" "$([ $(($(date +%s) - begin)) -lt 120 ] && echo yes)" yes
    done
done
if gcc -static -o static.all "$examples/generate.c" $(pc --static --cflags --libs) 2>"$log"; then
    says 'generate.c, entirely static' ./static.all "$model" 'Once upon a time'
else skip 'no static C library: a program that is entirely static'; fi

for cc in g++ clang++; do
    command -v $cc >/dev/null 2>&1 || { skip "$cc is not here: the examples in C++"; continue; }
    run "libquant.hpp alone, $cc" $cc -std=c++17 $strict -Wconversion -Wshadow -Wpedantic -fsyntax-only -x c++ \
        -I"$prefix/include" "$prefix/include/libquant.hpp"
    build "generate++.$cc" $cc -std=c++17 "$examples/generate.cpp"
    build "raii.$cc" $cc -std=c++17 "$root/tests/raii.cpp"
    for kind in shared static; do
        says "generate.cpp, $cc, $kind" "./$kind.generate++.$cc" "$model" 'Once upon a time'
        run "raii.cpp, $cc, $kind" "./$kind.raii.$cc" "$pocket" "$T_TMP"
    done
done

# ---- Python

if command -v python3 >/dev/null 2>&1; then
    {
        echo '#include <libquant.h>'
        echo '#include <stdio.h>'
        echo 'int main(void) {'
        sed -n 's/^typedef struct \(lq_[a-z_]*\) {$/\1/p' "$prefix/include/libquant.h" | grep -v lq_allocator |
            sed 's/.*/    printf("struct & %zu\\n", sizeof(&));/'
        echo '}'
    } >sizes.c
    run 'sizes of structs' ${CC:-cc} sizes.c $(pc --cflags) -o sizes
    { ./sizes; grep -E '^LQ_API' "$prefix/include/libquant.h" | grep -oE 'lq_[a-z_]+\(' | tr -d '(' |
        sed 's/.*/function & 0/'; } >sizes.txt
    unset LIBQUANT
    PYTHONPATH=$prefix/share/libquant/python PYTHONDONTWRITEBYTECODE=1
    export PYTHONPATH PYTHONDONTWRITEBYTECODE
    python3 "$root/tests/binding.py" "$pocket" "$T_TMP" sizes.txt >"$log" 2>&1
    line=$(tail -1 "$log")
    case $line in
    *' passed, '*' failed') passed=$((passed + ${line%% *})); n=${line##*, }; n=${n%% *}
        failed=$((failed + n)); [ "$n" -eq 0 ] || cat "$log" ;;
    *) fail 'binding.py' "$log" ;;
    esac
    says 'generate.py' python3 "$examples/generate.py" "$model" 'Once upon a time'
    # Where it looks: the variable, beside itself, the system's folders.
    mkdir -p beside empty
    cp "$prefix/share/libquant/python/libquant.py" beside/
    cp "$prefix/share/libquant/python/libquant.py" empty/
    cp "$lib/libquant.so.$version" beside/libquant.so.0
    found() { (cd / && env "$@" python3 -c 'import libquant; print(libquant.load()._name)' 2>&1 | tail -1); }
    is 'Python: LIBQUANT' "$(found LIBQUANT="$lib/libquant.so" PYTHONPATH="$T_TMP/beside")" "$lib/libquant.so"
    is 'Python: beside itself' "$(found PYTHONPATH="$T_TMP/beside")" "$T_TMP/beside/libquant.so.0"
    is 'Python: in the prefix' "$(found PYTHONPATH="$PYTHONPATH")" "$lib/libquant.so.0"
    is 'Python: a library that is none' "$(found LIBQUANT=/dev/null PYTHONPATH="$T_TMP/empty" | grep -c OSError)" 1
else skip 'python3 is not here: the binding'; fi
cd "$root" || exit 1

# ---- elsewhere: folders one by one, DESTDIR in no file; then away

dest=$T_TMP/dest
run 'make install with folders' mk install DESTDIR="$dest" PREFIX=/opt/quant LIBDIR=/opt/quant/lib64 \
    INCLUDEDIR=/usr/include/quant MANDIR=/opt/man BINDIR=/opt/quant/sbin DOCDIR=/opt/doc PKGCONFIGDIR=/opt/pc
for f in opt/quant/sbin/lq opt/quant/lib64/libquant.so.0 usr/include/quant/libquant.h opt/man/man1/lq-run.1 \
    opt/doc/LICENSE opt/pc/libquant.pc opt/quant/share/libquant/pocket/config.json; do has "$dest/$f"; done
is 'DESTDIR in a file' "$(grep -rlF "$dest" "$dest")" ''
is 'libquant.pc' "$(PKG_CONFIG_PATH=$dest/opt/pc pkg-config --variable=libdir libquant)" /opt/quant/lib64
is 'libquant.pc' "$(PKG_CONFIG_PATH=$dest/opt/pc pkg-config --cflags-only-I libquant | tr -d ' ')" -I/usr/include/quant
is 'libquant.pc, moved' "$(PKG_CONFIG_PATH=$dest/opt/pc pkg-config --define-variable=prefix=/new --variable=libdir \
    libquant)" /new/lib64
run 'make uninstall with folders' mk uninstall DESTDIR="$dest" PREFIX=/opt/quant LIBDIR=/opt/quant/lib64 \
    INCLUDEDIR=/usr/include/quant MANDIR=/opt/man BINDIR=/opt/quant/sbin DOCDIR=/opt/doc PKGCONFIGDIR=/opt/pc
is 'what uninstall left' "$(find "$dest" ! -type d)" ''
: >"$prefix/bin/other"
run 'make uninstall' mk uninstall PREFIX="$prefix"
is 'what uninstall left' "$(find "$prefix" ! -type d)" "$prefix/bin/other"
is 'folders of its own' "$(find "$prefix" -path '*libquant*')" ''
finish
