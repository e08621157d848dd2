#!/bin/sh
# cli_man.sh: the manual pages say what the help text says, and mandoc and man have nothing against them.
# shellcheck disable=SC2013 # words
. tests/cli_lib.sh

pages='' commands=$(sed -n 's/^COMMAND(\([a-z0-9_]*\)).*/\1/p' "$T_ROOT/tools/commands.def" | tr _ -)
exits 0 "lq(1)" "$LQ" help --man; cp "$out" lq.1
for c in $commands; do
    exits 0 "lq-$c(1)" "$LQ" help --man "$c"; cp "$out" "lq-$c.1"; pages="$pages lq-$c.1"
    tr -d '\\' <lq.1 >plain; says "lq(1) refers to $c" "^\.BR lq-$c (1)," plain
done
# Headings of every page, and one entry per option of the help text.
for c in $commands; do
    for h in NAME SYNOPSIS DESCRIPTION OPTIONS 'EXIT STATUS' EXAMPLES 'SEE ALSO'; do
        says "lq-$c(1) has $h" "^\.SH $h$" "lq-$c.1"
    done
done
for c in quantize run info eval; do
    tr -d '\\' <"lq-$c.1" >plain
    for o in $("$LQ" $c --help | sed -n 's/^  \(-., \|    \)--\([a-z0-9-]*\).*/\2/p'); do
        says "lq-$c(1): --$o" "^\(fB-.fR, \)*fB--${o}fR" plain
    done
done
says 'names' '^lq\\-bench\\-quality \\- what every scheme costs' lq-bench-quality.1
says 'exit codes' '^a bug in libquant$' lq-run.1
says 'examples can be copied' '^  lq quantize my\\-model/ .*\\-\\-scheme q4_k_m' lq-quantize.1
awk -f "$T_ROOT/tools/man3.awk" -v version=9.8.7 -v date=2001-02-03 "$T_ROOT/include/libquant.h" >libquant.3 2>"$err"
holds 'libquant(3): silent' ! -s "$err"
says 'libquant(3): version' '^\.TH LIBQUANT 3 "2001-02-03" "libquant 9\.8\.7"' libquant.3
for f in $(grep -E '^LQ_API' "$T_ROOT/include/libquant.h" | grep -oE 'lq_[a-z_]+\(' | tr -d '('); do
    says "libquant(3): $f" "^[a-z].*[ *]$f(" libquant.3
done
for s in $(sed -n 's/^typedef struct \(lq_[a-z_]*\) {$/\1/p' "$T_ROOT/include/libquant.h"); do
    says "libquant(3): $s" "^} $s;" libquant.3
done
says 'libquant(3): a comment of the header' '^Tokenize .*bytes.* bytes of text' libquant.3
holds 'libquant(3): nothing of the preprocessor' -z "$(grep -nE 'LQ_API|LIBQUANT_H|__cplusplus' libquant.3)"

# A page of the same day is the same to the byte.
SOURCE_DATE_EPOCH=86400 "$LQ" help --man run >"$out"; says 'date' '^\.TH LQ-RUN 1 "1970-01-02"' "$out"

if command -v mandoc >/dev/null 2>&1; then
    for p in lq.1 $pages libquant.3; do
        mandoc -Tlint -W warning "$p" >"$out" 2>&1; rc=$?
        if [ $rc -eq 0 ] && [ ! -s "$out" ]; then pass; else cat "$out"; fail "mandoc: $p"; fi
    done
else skip "mandoc is not here: the pages' form"; fi
if command -v man >/dev/null 2>&1 && man --warnings -l lq.1 >/dev/null 2>&1; then
    for p in lq.1 $pages libquant.3; do
        man --warnings -E UTF-8 -l "$p" >"$out" 2>"$err"
        holds "man: $p" ! -s "$err"; holds "man: $p is a page" -s "$out"
    done
else skip "man is not here, or not man-db: the pages as they are shown"; fi

exits 2 'no such page' "$LQ" help --man bench; says 'no such page' "no command has the manual page 'bench'"
finish
