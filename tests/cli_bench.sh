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
exits 2 "unknown scheme" bq --schemes q8_0,q4_9; says "unknown scheme" "q4_9"
exits 2 "no scheme" bq --schemes ""
exits 4 "no text" "$LQ" bench quality --model "$POCKET" --text none.txt --schemes q8_0; holds "no text" -z "$(left)"
exits 4 "no model" "$LQ" bench quality --model none --schemes q8_0; holds "no model" -z "$(left)"
: >empty.txt
exits 3 "empty text" "$LQ" bench quality --model "$POCKET" --text empty.txt --schemes q8_0; holds "empty" -z "$(left)"
for pause in 0.2 1.5; do
    interrupts INT $pause "$LQ" bench quality --model "$POCKET" --text "$TEXT/c.txt" --threads 1
    holds "SIGINT" -z "$(left)"; silent "SIGINT"
done

exits 0 "model" "$LQ" bench model "$POCKET" -p 512 -n 8 --repeat 1; says "model" "^prefill" "$out"
says "model" "256 tokens; longer runs are cut"
exits 0 "model JSON" "$LQ" bench model "$POCKET" -p 32 -n 8 --repeat 1 --threads 1 --json; json_is "model JSON"
has "model JSON" prefill.tokens_per_s decode.tokens_per_s decode.bytes_per_s decode.roof_fraction roof.bytes_per_s
compare "model: prefill" "$(json prefill.tokens_per_s)" ">" 0; compare "model: roof" "$(json roof.bytes_per_s)" ">" 1e8
compare "model: fraction" "$(json decode.roof_fraction) * $(json roof.bytes_per_s) / $(json decode.bytes_per_s)" ">" 0.99
finish
