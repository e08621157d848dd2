#!/bin/sh
# cli_bench_openblas.sh: OpenBLAS beside products in `lq bench kernels`: where it is, where it is not, and where it took
# the machine for another one. No figure is judged by speed.
. "$(dirname "$0")/cli_lib.sh"
unset OPENBLAS_CORETYPE # a core that the surroundings chose would stand
bk() { "$LQ" bench kernels -r 1 --op matmul --isa scalar --depth 64 "$@"; }

# Not there: a file of that name which is no library is found first. All else is as ever.
mkdir none; echo none >none/libopenblas.so.0
without() { LD_LIBRARY_PATH=$PWD/none bk "$@"; }
exits 0 "absent" without --format f16 --columns 32; says "absent" "libopenblas0-pthread or libopenblas0-serial"
holds "absent: rows" "$(wc -l <"$out")" -eq 2
exits 0 "absent JSON" without --format f16 --columns 32 --json; json_is "absent JSON"
holds "absent JSON" "$(json openblas)" = null; holds "absent JSON: no ratio" "$(json rows.0.openblas_ratio)" = null

# Not asked for: few columns, codes instead of floats, weights in the caches.
exits 0 "few" without --format f16 --columns 2; holds "few: nothing said" ! -s "$err"
exits 0 "codes" without --format q8_0 --columns 32; holds "codes: nothing said" ! -s "$err"
exits 0 "hot" without --format f16 --columns 32 --hot; holds "hot: nothing said" ! -s "$err"

exits 0 "present" bk --format f16 --columns 32 --json --csv rows.csv; json_is "present"
if [ "$(json openblas)" = null ]; then
    skip "OpenBLAS is not installed (libopenblas0-pthread)"
    finish
fi
core=$(json openblas.core)
has "present" openblas.wanted rows.1.openblas_ratio
holds "present: its row" "$(json rows.0.kernel)" = openblas_sgemm; holds "present: core" "$(json rows.0.isa)" = "$core"
holds "present: format" "$(json rows.0.format)" = f32
holds "present: shape" "$(json rows.0.shape)" = "64 deep; 32 columns"
holds "present: no ratio to itself" "$(json rows.0.openblas_ratio)" = null
compare "present: ratio" "$(json rows.1.best_ops_per_s) / $(json rows.0.best_ops_per_s) / $(json rows.1.openblas_ratio)" "<" 1.001
compare "present: ratio" "$(json rows.1.best_ops_per_s) / $(json rows.0.best_ops_per_s) / $(json rows.1.openblas_ratio)" ">" 0.999
says "present CSV" "^kernels,openblas_sgemm as $core; 64 deep; 32 columns,$core,1,GOP/s,1," rows.csv
exits 0 "table" bk --format f32 --columns 32
says "table" "^kernel .* OpenBLAS$" "$out"; says "table" "^openblas_sgemm as $core  *64 deep; 32 columns .*%$" "$out"
says "table" "^matmul_any_f32__scalar on f32 .* x *[0-9.]*$" "$out"
exits 0 "each number of columns" bk --format f16
holds "each number of columns" "$(grep -c '^openblas_sgemm' "$out")" -eq 1

# A core that is not the machine's is told, and nothing is compared with it.
case "$(uname -m)" in x86_64)
    if grep -qw avx2 /proc/cpuinfo; then
        wrong() { OPENBLAS_CORETYPE=Nehalem "$LQ" bench kernels -r 1 --isa avx2 --format f16 --depth 64 --columns 32 "$@"; }
        exits 0 "wrong core" wrong; says "wrong core" "kernels for Nehalem"
        says "wrong core: row" "^openblas_sgemm as Nehalem, not [A-Z]" "$out"
        holds "wrong core: no ratio" "$(grep -c ' x  *[0-9.]*$' "$out")" -eq 0
        exits 0 "wrong core JSON" wrong --json; json_is "wrong core JSON"
        holds "wrong core JSON" "$(json openblas.core)" = Nehalem
        holds "wrong core JSON: no ratio" "$(json rows.1.openblas_ratio)" = null
        exits 0 "right core" "$LQ" bench kernels -r 1 --isa avx2 --format f16 --depth 64 --columns 32 --json
        holds "right core" "$(json openblas.core)" = "$(json openblas.wanted)"
        exits 0 "the format's own kernel" "$LQ" bench kernels -r 1 --isa avx2 --format f16 --depth 64 --columns 32
        says "the format's own kernel" "^matmul_f16_f32_[0-9x]*__avx2 .* x  *[0-9.]*$" "$out"
    fi ;;
esac
finish
