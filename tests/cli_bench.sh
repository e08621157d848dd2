#!/bin/sh
# cli_bench.sh: lq bench: the tables and keys on little text, that nothing is left behind. No figure is judged by speed.
. "$(dirname "$0")/cli_lib.sh"
mkdir tmp; TMPDIR=$T_TMP/tmp; export TMPDIR
bq() { "$LQ" bench quality --model "$POCKET" --text "$TEXT/prose.txt" --text "$TEXT/c.txt" --max-tokens 1024 "$@"; }
few=4096; [ -z "${T_SLOW:-}" ] || few=1024
left() { find tmp -mindepth 1 | head -1; }

exits 0 "quality" bq --schemes q8_0,f16,q4_0
says "quality" "^q8_0 .*+-" "$out"; says "quality" "^mean KL divergence" "$out"; says "quality" "prose .* c$" "$out"
holds "quality: rows" "$(grep -c '^q4_0 ' "$out")" -eq 2; holds "quality: folder" -z "$(left)"
exits 0 "quality JSON" bq --schemes q8_0,f16,q4_0 --json; json_is "quality JSON"
has "quality JSON" tokens window reference.ppl schemes.0.scheme schemes.0.ppl_se schemes.0.prefill.tokens_per_s \
    schemes.2.decode.tokens_per_s schemes.2.texts.prose.kld_mean schemes.2.bytes schemes.2.bits_per_weight
compare "quality: f16 against itself" "$(json schemes.1.kld_mean)" "==" 0
compare "quality: order" "$(json schemes.0.kld_mean)" "<" "$(json schemes.2.kld_mean)"
mkdir -p other; cp "$TEXT/technical.txt" other/c.txt
exits 0 "equal names" bq --schemes q8_0 --text other/c.txt --json; has "equal names" schemes.0.texts.c schemes.0.texts.c-3
exits 0 "--keep" bq --schemes q4_0 --keep kept; holds "--keep" -s kept/q4_0.gguf; holds "--keep" -s kept/f16.gguf
exits 2 "--keep again" bq --schemes q4_0 --keep kept; says "--keep again" "exists"
kld=$(bq --schemes q2_k --json 2>"$err" >"$out"; json schemes.0.kld_mean)
"$LQ" calibrate "$POCKET" --text "$TEXT/calibration.txt" -o stats.gguf --max-tokens $few 2>"$err"
exits 0 "importance" bq --schemes q2_k --importance stats.gguf --json; holds "importance" "$(json importance)" = stats.gguf
compare "importance" "$(json schemes.0.kld_mean)" "<" "${kld:-0}"
"$LQ" calibrate "$POCKET" --text "$TEXT/calibration.txt" -o factors.gguf --for awq-4bit-g128 --max-tokens 256 2>"$err"
exits 0 "directories" bq --schemes nf4,int8,awq-4bit-g128 --importance factors.gguf --keep kept2
says "directories" "^scheme         bits/w" "$out"; says "directories" "^awq-4bit-g128 .*+-" "$out"
for d in nf4 int8 awq-4bit-g128; do holds "directories: $d" -s kept2/$d/config.json; done
exits 2 "a directory again" bq --schemes nf4 --keep kept2; says "a directory again" "exists"
exits 0 "candidates" bq --schemes nf4 --candidate kept2/nf4/ --candidate kept/q4_0.gguf --candidate ./kept2/nf4 --json
holds "candidates: folder" -z "$(left)"; holds "candidates: files" -s kept2/nf4/config.json -a -s kept/q4_0.gguf
compare "candidates: as made" "$(json schemes.1.kld_mean)" "==" "$(json schemes.0.kld_mean)"
compare "candidates: different" "$(json schemes.2.kld_mean)" "!=" "$(json schemes.0.kld_mean)"
holds "candidates: names" \
    "$(json schemes.1.scheme) $(json schemes.1.path) $(json schemes.3.scheme)" = "nf4-2 kept2/nf4/ nf4-4"
compare "candidates: bits" "$(json schemes.1.bits_per_weight)" "<" 9
exits 0 "candidates alone" bq --candidate kept/q4_0.gguf; says "candidates alone" "^q4_0.gguf .*+-" "$out"
holds "candidates alone" "$(grep -c '+-' "$out")" -eq 1
exits 4 "no candidate" bq --candidate none; says "no candidate" "none"; holds "no candidate" -z "$(left)"
exits 2 "candidate without name" bq --candidate ""
exits 2 "candidate /" bq --candidate none --candidate //; says "candidate /" "'//' is no path"
exits 2 "GPTQ without statistics" bq --schemes gptq-4bit-g128; says "GPTQ without statistics" "calibrate"
holds "GPTQ without statistics" -z "$(left)"
exits 2 "--load-as with a transform" bq --load-as awq+q4_k_m
says "--load-as with a transform" "lq quantize MODEL OUTPUT"
exits 2 "unknown scheme" bq --schemes q8_0,q4_9; says "unknown scheme" "q4_9"
exits 2 "no scheme" bq --schemes ""
# A limit holds for each text; the tables come first.
exits 1 "gate" bq --schemes q8_0,q2_k --max-kld 0.005; says "gate: tables" "^q2_k .*%" "$out"
says "gate" "missed: q2_k on prose: mean KL"; says "gate" "missed: q2_k on c: mean KL"
holds "gate: q8_0 keeps it" "$(grep -c 'missed: q8_0' "$err")" -eq 0; holds "gate: nothing left" -z "$(left)"
exits 1 "gate JSON" bq --schemes q8_0,q2_k --max-kld 0.005 --json; json_is "gate JSON"; holds "gate JSON" "$(json missed)" = 2
exits 0 "gate kept" bq --schemes q8_0 --max-kld 0.1 --min-same-top 60
exits 4 "no text" "$LQ" bench quality --model "$POCKET" --text none.txt --schemes q8_0; holds "no text" -z "$(left)"
exits 4 "no model" "$LQ" bench quality --model none --schemes q8_0; holds "no model" -z "$(left)"
: >empty.txt
exits 3 "empty text" "$LQ" bench quality --model "$POCKET" --text empty.txt --schemes q8_0; holds "empty" -z "$(left)"
for pause in 0.2 1.5; do
    interrupts INT $pause "$LQ" bench quality --model "$POCKET" --text "$TEXT/c.txt" --threads 1 \
        -s nf4-dq,int8,q2_k,nf4
    holds "SIGINT" -z "$(left)"; silent "SIGINT"
done

exits 0 "model" "$LQ" bench model "$POCKET" -p 512 -n 8 --repeat 1; says "model" "^prefill" "$out"
says "model" "256 tokens; longer runs are cut"
exits 0 "model JSON" "$LQ" bench model "$POCKET" -p 32 -n 8 --repeat 1 --threads 1 --json; json_is "model JSON"
has "model JSON" prefill.tokens_per_s decode.tokens_per_s decode.bytes_per_s decode.roof_fraction roof.bytes_per_s
compare "model: prefill" "$(json prefill.tokens_per_s)" ">" 0; compare "model: roof" "$(json roof.bytes_per_s)" ">" 1e8
compare "model: fraction" "$(json decode.roof_fraction) * $(json roof.bytes_per_s) / $(json decode.bytes_per_s)" ">" 0.99
finish
