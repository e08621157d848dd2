#!/bin/sh
# cli_memory.sh: too little memory: exit code 5 with what is needed and what is available, never a crash.
#
# The address space of each command grows in steps from too small for the program itself to enough. How much a start
# takes depends on the machine, which is why no limit is fixed here.
. "$(dirname "$0")/cli_lib.sh"
if [ -n "${SAN:-}" ]; then
    skip "too little memory: sanitizers need the address space"
    finish
fi
"$LQ" quantize "$POCKET" q4.gguf -s q4_k_m 2>/dev/null
head -c 20000 "$TEXT/prose.txt" >text

# Below this the system cannot lay out the program itself: it is killed before its first instruction.
least=1000
until (ulimit -v $least && exec "$LQ" --version >/dev/null 2>&1 </dev/null) || [ $least -gt 300000 ]; do least=$((least + 500)); done

figures='needs [0-9][0-9]* bytes.*[0-9][0-9]* bytes.*available'
# grows WHAT SENTENCE CMD...: below what the command needs it ends with 5 and a sentence on memory; one of them is
# SENTENCE.
grows() {
    what=$1 sentence=$2; shift 2
    kib=$least refusals=0 named=0 wrong=
    while [ $kib -lt 300000 ]; do
        (ulimit -v $kib && exec "$@" >"$out" 2>"$err" </dev/null); rc=$?
        case $rc in
            0) break ;;
            126|127) [ $refusals -eq 0 ] || wrong="$wrong exit $rc at $kib KiB" ;; # the loader's: before our code runs
            5)
                refusals=$((refusals + 1))
                grep -q "$sentence" "$err" && grep -q "$figures" "$err" && named=$((named + 1))
                grep -q -e "$figures" -e 'out of memory' -e 'not enough memory' -e 'refused thread' "$err" || wrong="$wrong no reason at $kib KiB"
                [ ! -e new.gguf ] || wrong="$wrong a file at $kib KiB"
                [ -z "$(find . -name '.*lq-tmp*')" ] || wrong="$wrong a temporary file at $kib KiB" ;;
            *) wrong="$wrong exit $rc at $kib KiB" ;;
        esac
        kib=$((kib + 500))
    done
    holds "$what: with enough" "$rc" -eq 0
    if [ -z "$wrong" ]; then pass; else fail "$what:$wrong"; fi
    holds "$what: refusals" $refusals -gt 2
    holds "$what: refusals that say '$sentence' and the figures" $named -gt 1
    rm -f new.gguf
}
grows 'run' 'a session with context 256' "$LQ" run q4.gguf -p x -n 2 -t 2
grows 'run: the file itself' 'q4.gguf needs .* to be mapped' "$LQ" run q4.gguf -p x -n 2 -t 2
grows 'eval' 'a session with context' "$LQ" eval q4.gguf -x text -t 2 -m 600
grows 'quantize a directory' 'quantizing needs' "$LQ" quantize "$POCKET" new.gguf -s q8_0 -t 2
grows 'quantize a GGUF file' 'quantizing needs' "$LQ" quantize q4.gguf new.gguf -s q8_0 -t 2 --requantize

finish
