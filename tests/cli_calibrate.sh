#!/bin/sh
# cli_calibrate.sh: lq calibrate, and what lq quantize makes of its files and of other engines'.
. "$(dirname "$0")/cli_lib.sh"
calibrate() { "$LQ" calibrate "$POCKET" "$@"; }
q() { "$LQ" quantize "$POCKET" "$@"; }
few=4096; [ -z "${T_SLOW:-}" ] || few=1024

exits 0 "calibrate" calibrate --text "$TEXT/calibration.txt" -o stats.gguf --max-tokens $few --json; json_is "calibrate"
has "calibrate" model text output entries tokens chunks window bytes seconds
holds "calibrate: window" "$(json window)" = 256; holds "calibrate: tokens" "$(json tokens)" = $few
holds "calibrate: chunks" "$(json chunks)" = $((few / 256)); holds "calibrate: entries" "$(json entries)" = 42
holds "calibrate: bytes" "$(json bytes)" = "$(wc -c <stats.gguf)"
exits 0 "text form" calibrate --text "$TEXT/calibration.txt" -o t1.gguf --max-tokens $few -t 1; silent "text form"
says "text form" "t1.gguf: 42 matrices, $few tokens in $((few / 256)) windows of 256"
same "threads change nothing" stats.gguf t1.gguf
head -c $((few * 5)) "$TEXT/prose.txt" >prose.txt
"$LQ" calibrate "$POCKET" --text - -o in.gguf <prose.txt 2>"$err"; holds "standard input" $? -eq 0
exits 0 "from a file" calibrate --text prose.txt -o file.gguf
exits 0 "a shorter window" calibrate --text prose.txt -o short.gguf --ctx 64 --max-tokens 640 --json
holds "a shorter window" "$(json chunks)" = 10

# Refusals leave things as they are.
cp stats.gguf keep.gguf; touch mark
exits 2 "exists" calibrate --text prose.txt -o keep.gguf; says "exists" "--force"; same "exists" keep.gguf stats.gguf
exits 0 "--force" calibrate --text prose.txt -o keep.gguf --force; same "--force" keep.gguf file.gguf
cp prose.txt text.txt
exits 2 "the text itself" calibrate --text text.txt -o text.txt --force; same "the text itself" text.txt prose.txt
"$LQ" quantize "$POCKET" f16.gguf -s f16 2>/dev/null; cp f16.gguf model.gguf
exits 2 "the model itself" "$LQ" calibrate model.gguf --text prose.txt -o model.gguf --force
same "the model itself" model.gguf f16.gguf
exits 2 "no output" calibrate --text prose.txt; says "no output" "--output"
exits 2 "no text" calibrate -o x.gguf; exits 4 "absent text" calibrate --text none.txt -o x.gguf
printf 'too short' >tiny.txt
exits 3 "too short" calibrate --text tiny.txt -o x.gguf --json; says "too short" "at least 256"; json_is "too short"
exits 2 "few tokens" calibrate --text prose.txt -o x.gguf --max-tokens 100
exits 2 "long window" calibrate --text prose.txt -o x.gguf --ctx 512; says "long window" "256"
exits 4 "no folder" calibrate --text prose.txt -o none/x.gguf
absent "refusals" x.gguf
for sig in INT TERM; do
    interrupts $sig 0.5 "$LQ" calibrate "$POCKET" --text "$TEXT/calibration.txt" -o x.gguf --isa scalar -t 1
    absent "SIG$sig" x.gguf
done
holds "nothing is left" -z "$(find . -name '.*gguf*')"

# In lq quantize.
exits 0 "plain" q plain.gguf -s q2_k --json; holds "plain" -z "$(json importance 2>/dev/null)"
exits 0 "--importance" q by.gguf -s q2_k --importance stats.gguf --json; json_is "--importance"
holds "--importance: with" "$(json importance.with)" = 42
holds "--importance: without" "$(json importance.without)" = 2
holds "--importance: report" "$(json report.2.importance)" = true
holds "--importance: report" "$(json report.0.importance)" = false
holds "the same size but for the keys" $(($(wc -c <by.gguf) / 1000)) -eq $(($(wc -c <plain.gguf) / 1000))
if cmp -s by.gguf plain.gguf; then fail "importance changed nothing"; else pass; fi
exits 0 "--imatrix" q alias.gguf -s q2_k --imatrix=stats.gguf -v; same "--imatrix" alias.gguf by.gguf
says "--imatrix" "42 by importance, 2 without (token_embd.weight, output.weight)"
says "-v" "ffn_down.* search .* 0[.][0-9]* *0[.][0-9]*$" "$out"
exits 0 "info" "$LQ" info by.gguf --meta; says "info" "quantize.imatrix.file.*stats.gguf" "$out"
says "info" "quantize.imatrix.dataset.*calibration.txt" "$out"
says "info" "quantize.imatrix.entries_count.*42" "$out"
says "info" "quantize.imatrix.chunks_count.*$((few / 256))" "$out"

# It is worth it: closer to the original on a text that was not calibrated on.
for f in plain by; do
    exits 0 "eval $f" "$LQ" eval $f.gguf --against f16.gguf --text "$TEXT/technical.txt" --max-tokens $few --json
    eval "$f=\$(json kld_mean)"
done
# shellcheck disable=SC2154 # set by eval
compare "divergence with importance" "$by" "<" "$plain"

# For a transform: factors beside the sums, whatever the threads. Without a transform, or for gptq, Hessians are asked
# for.
exits 0 "awq" calibrate --text prose.txt -o awq.gguf --for awq+q4_0:rtn --samples 2 -t 2
exits 0 "awq, one thread" calibrate --text prose.txt -o awq1.gguf --for awq+q4_0:rtn --samples 2 -t 1 --max-ram 64M
same "awq" awq.gguf awq1.gguf
exits 2 "awq and gptq" calibrate --text prose.txt -o x.gguf --for awq+q4_k:gptq; says "awq and gptq" "--hessians"
holds "nothing is left of it" -z "$(find . -name 'awq*.gguf.*')"

# With Hessians, and gptq by them.
exits 2 "--for alone" calibrate --text prose.txt -o x.gguf --for q4_k:gptq; says "--for alone" "--hessians"
exits 2 "--max-ram" calibrate --text prose.txt -o x.gguf --hessians --max-ram 8X; says "--max-ram" "8X"
exits 2 "--samples" calibrate --text prose.txt -o x.gguf --samples 4 --max-tokens 999; says "--samples" "--max-tokens"
exits 2 "gptq without" q x.gguf -s q4_k:gptq --importance stats.gguf; says "gptq without" "attn_q.*gptq.*--hessians"
calibrate --text "$TEXT/calibration.txt" -o h.gguf --hessians --for q4_k:gptq --samples $((few / 256)) --max-ram 64M 2>"$err"
case $? in
6)  says "without OpenBLAS" "libopenblas0-pthread"; skip "OpenBLAS is not installed (libopenblas0-pthread)" ;;
0)  pass
    exits 0 "gptq" q gptq.gguf -s q4_k:gptq --importance h.gguf -v; says "gptq" "attn_q.* gptq" "$out"
    exits 0 "search" q search.gguf -s q4_k --importance h.gguf
    for f in search gptq; do
        exits 0 "eval $f" "$LQ" eval $f.gguf --against f16.gguf --text "$TEXT/technical.txt" --max-tokens $few --json
        eval "$f=\$(json kld_mean)"
    done
    # shellcheck disable=SC2154 # set by eval
    if [ "${T_SLOW:-}" ]; then skip "so little text says nothing of gptq beside search"
    else compare "divergence with gptq" "$gptq" "<" "$search"; fi ;;
*)  fail "calibrate --hessians: $(cat "$err")" ;;
esac
holds "nothing is left of it" -z "$(find . -name 'h.gguf.*')"

# Files that do not do.
touch mark
exits 6 "a model as STATS" q x.gguf -s q4_0 --importance f16.gguf; says "a model as STATS" "f16.gguf.*general.type"
exits 3 "a text as STATS" q x.gguf -s q4_0 --importance prose.txt; says "a text as STATS" "neither GGUF nor"
exits 4 "absent STATS" q x.gguf -s q4_0 --importance none.gguf
printf '\001\0\0\0\001\0\0\0a\003\0\0\0\001\0\0\0\0\0\200\077' >other.dat # one entry: a, 3 calls, one value: 1.0
exits 3 "another model's" q x.gguf -s q4_0 --importance other.dat
says "another model's" "is for another model.*first: a"
head -c 30000 stats.gguf >cut.gguf
exits 3 "cut" q x.gguf -s q4_0 --importance cut.gguf --json; says "cut" "cut.gguf.*in_sum2"; json_is "cut"
exits 2 "STATS as DST" q stats.gguf -s q4_0 --importance stats.gguf --force; same "STATS as DST" stats.gguf t1.gguf
exits 2 "no value" q x.gguf -s q4_0 --imatrix; says "no value" "--importance"
absent "refusals" x.gguf
finish
