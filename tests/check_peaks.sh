#!/bin/sh
# check_peaks.sh: that the loops of `lq bench roof` are what they claim: the compiled code has as many multiply-adds as
# are counted, and none was folded away. Reads the object files of the build.
set -u
cd "$(dirname "$0")/.." || exit 1
B=${B:-build}
passed=0 failed=0
tmp=$(mktemp "${T_TMP:-${TMPDIR:-/tmp}}/peaks.XXXXXX") || exit 1
trap 'rm -f "$tmp"' EXIT
if ! command -v objdump >/dev/null; then
    echo "SKIP: no objdump to read the machine code with"
    echo "0 passed, 0 failed"
    exit 0
fi

# has FILE FUNCTION COUNT INSTRUCTION...: each instruction stands COUNT times in the function.
has() {
    object=$B/obj/bench/$1.o function=$2 count=$3; shift 3
    objdump -d --no-show-raw-insn "$object" 2>/dev/null |
        awk -v f="<$function>:" '/^[0-9a-f]+ </ { inside = $2 == f } inside' >"$tmp"
    for instruction in "$@"; do
        n=$(grep -cE "[[:space:]]$instruction" "$tmp")
        if [ "$n" -eq "$count" ]; then passed=$((passed + 1)); else
            failed=$((failed + 1)); echo "FAIL: $object: $function has $n $instruction, not $count"
        fi
    done
}
case $(objdump -f "$B/obj/bench/peak.o" 2>/dev/null) in
*x86-64*)
    has peak_scalar fp32 8 mulss addss
    has peak_scalar int8 6 imul
    has peak_x86 fp32_avx2 12 'vfmadd[0-9]*ps .*%ymm'
    has peak_x86 int8_avx2 12 'vpmaddubsw .*%ymm' 'vpmaddwd .*%ymm' 'vpaddd .*%ymm'
    has peak_x86 int8_avxvnni 12 'vpdpbusd .*%ymm'
    has peak_x86 fp32_avx512 12 'vfmadd[0-9]*ps .*%zmm'
    has peak_x86 int8_avx512 12 'vpmaddubsw .*%zmm' 'vpmaddwd .*%zmm' 'vpaddd .*%zmm'
    has peak_x86 int8_avx512vnni 12 'vpdpbusd .*%zmm'
    has peak_x86 int8_amx 4 tdpbssd
    has peak_x86 bf16_avx512 12 'vdpbf16ps .*%zmm'
    ;;
*aarch64*)
    has peak_scalar fp32 8 fmul fadd
    has peak_scalar int8 6 madd
    has peak_arm fp32_neon 12 fmla
    has peak_arm int8_neon 12 smull smlal2 sadalp
    has peak_arm int8_dotprod 12 sdot
    ;;
*) echo "SKIP: no counts for this processor's instructions" ;;
esac
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
