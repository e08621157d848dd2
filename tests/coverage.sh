#!/bin/sh
# coverage.sh: run the tests of a build with gcc's coverage (`make coverage`) and print what they reached, per file.
#
# Lines and branches of libquant/ and kernels/, with totals; then the parsers of foreign bytes alone, of which at least
# LEAST percent of the lines have to be reached by tests: less is a failure. The fuzz seeds do not count, since they
# assert little; with FUZZ=1 they and what fuzzing kept in FUZZ_CORPORA are added. gcov knows branches of machine code:
# a condition that the compiler made branchless is not among them. Tables in $B/coverage.csv.
set -u
cd "$(dirname "$0")/.." || exit 1
B=${B:-build-coverage} FUZZ=${FUZZ:-0} LEAST=${LEAST:-95}
parsers='libquant/importance.c libquant/json.c libquant/lora_read.c libquant/recipe.c libquant/text.c libquant/match.c libquant/loader.c libquant/seq_file.c
    libquant/loaders/gguf.c libquant/loaders/gguf_types.c libquant/loaders/hf_config.c libquant/loaders/hf_dir.c libquant/loaders/hf_awq.c
    libquant/loaders/hf_bnb.c libquant/loaders/hf_ct.c libquant/loaders/hf_fp8.c libquant/loaders/hf_gptq.c libquant/loaders/hf_rows.c
    libquant/loaders/hf_view.c
    libquant/loaders/safetensors.c libquant/tokenizers/spm.c tools/cli_args.c'

command -v gcovr >/dev/null 2>&1 || { echo "coverage.sh: gcovr is needed (Debian package gcovr)" >&2; exit 1; }
find "$B" -name '*.gcda' -delete
SEEDS=$FUZZ CORPORA=${FUZZ_CORPORA:-} T_SLOW=1 tests/run.sh
failed=$?
gcovr -r . --object-directory "$B/obj" -f libquant/ -f kernels/ -f tools/cli_args.c --exclude-unreachable-branches \
    --csv "$B/coverage.csv" "$B/obj" >/dev/null || exit 1

row='function row(name, l, lc, b, bc) {
    printf "%-40s %6d %6d %6.1f %%  %6d %6d %6.1f %%\n", name, l, lc, l ? 100 * lc / l : 100, b, bc, b ? 100 * bc / b : 100
}
BEGIN { FS = ","; printf "%-40s %6s %6s %8s  %6s %6s %8s\n", "file", "lines", "hit", "", "brnchs", "hit", "" }'
echo
awk "$row"' FNR > 1 && $1 ~ /^(libquant|kernels)\// {
        row($1, $2, $3, $5, $6); split($1, part, "/"); d = part[1]
        for (i = 0; i < 2; i++) { k = i ? "" : d; l[k] += $2; lc[k] += $3; b[k] += $5; bc[k] += $6 }
    }
    END {
        row("total of kernels/", l["kernels"], lc["kernels"], b["kernels"], bc["kernels"])
        row("total of libquant/", l["libquant"], lc["libquant"], b["libquant"], bc["libquant"])
        row("total", l[""], lc[""], b[""], bc[""])
    }' "$B/coverage.csv"
echo
echo "parsers, of which $LEAST % of the lines have to be reached:"
awk -v parsers="$parsers" -v least="$LEAST" "$row"'
    BEGIN { n = split(parsers, p, /[ \n]+/); for (i = 1; i <= n; i++) wanted[p[i]] = 1 }
    $1 in wanted { row($1, $2, $3, $5, $6); low += 100 * $3 < least * $2; found++; delete wanted[$1] }
    END {
        for (name in wanted) print "not in the table: " name
        if (low) print low " below " least " %"
        exit low || found < n
    }' "$B/coverage.csv" || failed=1
[ "$failed" -eq 0 ]
