#!/bin/sh
# cli_bench_speed.sh: lq bench make-model, roof, kernels, model, compare: files, tables, keys. No figure is judged by
# speed.
. "$(dirname "$0")/cli_lib.sh"
mm() { "$LQ" bench make-model "$@"; }
left() { find "$T_TMP" -name '*.gguf*' -newer mark | head -1; }

# Every scheme gives a file that says so, opens, and has finite logits.
for s in $("$LQ" info --schemes | grep -v 'Hugging Face directory' | cut -d' ' -f1); do
    exits 0 "make $s" mm --shape tiny -s "$s" "$s.gguf" --json; json_is "make $s"
    holds "make $s: bytes" "$(wc -c <"$s.gguf")" -eq "$(json bytes)"
    exits 0 "info $s" "$LQ" info "$s.gguf" --json
    holds "info $s" "$(json scheme)" = "$s"; holds "info $s: context" "$(json context)" -eq 32768
    exits 0 "run $s" "$LQ" run "$s.gguf" -p "some words" -n 2 --ctx 64
done
exits 0 "eval" "$LQ" eval q4_k_m.gguf --text "$TEXT/prose.txt" --max-tokens 600 --json
compare "eval: guesses" "$(json ppl)" ">" 256; compare "eval: finite" "$(json ppl)" "<" 1e6

# The bytes depend on the seed alone.
exits 0 "one thread" mm --shape tiny -s q4_k_m one.gguf -t 1; silent "one thread"
same "one thread" one.gguf q4_k_m.gguf
exits 0 "three threads" mm --shape tiny -s q4_k_m -t 3 three.gguf; same "three threads" three.gguf q4_k_m.gguf
exits 0 "--seed" mm --shape tiny -s q4_k_m --seed 2 seed.gguf
cmp -s seed.gguf q4_k_m.gguf; holds "--seed: other bytes" $? -eq 1

# Refusals leave things as they are.
touch mark
exits 2 "exists" mm --shape tiny -s q4_0 one.gguf; says "exists" "--force"; same "exists" one.gguf q4_k_m.gguf
exits 0 "--force" mm --shape tiny -s q4_0 one.gguf --force; same "--force" one.gguf q4_0.gguf
rm one.gguf
exits 2 "shape" mm --shape tinny -s q4_0 x.gguf; says "shape" "nearest is tiny"; absent "shape" x.gguf
exits 2 "scheme" mm --shape tiny -s q4_kk x.gguf; says "scheme" "nearest is q4_k"; absent "scheme" x.gguf
exits 6 "no GGUF type" mm --shape tiny -s nf4 x.gguf --json; json_is "no GGUF type"; absent "no GGUF type" x.gguf
exits 4 "no folder" mm --shape tiny -s q4_0 none/x.gguf
# 400 MB of model in less memory than that, then one that is stopped.
if [ -z "${SAN:-}" ]; then
    little() { (ulimit -v 150000; mm --shape llama-1.1b -s q2_k large.gguf); }
    exits 0 "little memory" little; rm -f large.gguf
else
    skip "little memory: a sanitizer needs much"
fi
interrupts INT 0.3 "$LQ" bench make-model --shape llama-1.1b -s f16 x.gguf -t 1
[ "$rc" -ne 0 ] || rm -f x.gguf
holds "SIGINT" -z "$(left)"

# The roof: reading for every number of threads, peaks for one and all; a CSV file that grows.
exits 0 "roof" "$LQ" bench roof -r 2 -t 3 --buffer 8
holds "roof: reading" "$(grep -cE '^ +[123] +[0-9.]+ +[0-9.]+ +[0-9.]+$' "$out")" -eq 3
holds "roof: waiting" "$(grep -cE '^(barrier|pool run) +[23] +[0-9.]+ +[0-9.]+ +[0-9.]+$' "$out")" -eq 4
says "roof" "^fp32 scalar  *1 " "$out"; says "roof" "^int8 scalar  *3 " "$out"
exits 0 "roof JSON" "$LQ" bench roof -r 3 -t 1 --buffer 8 --csv roof.csv --json; json_is "roof JSON"
has "roof JSON" device buffer_bytes read.0.bytes_per_s.min peaks.0.kind peaks.0.isa peaks.0.instructions peaks.0.threads
compare "roof: order" "$(json peaks.1.ops_per_s.min)" "<=" "$(json peaks.1.ops_per_s.median)"
compare "roof: order" "$(json peaks.1.ops_per_s.median)" "<=" "$(json peaks.1.ops_per_s.max)"
compare "roof: reading" "$(json read.0.bytes_per_s.max)" ">" 1e8
holds "roof: runs" "$(json read.0.bytes_per_s.runs)" -eq 3
says "roof CSV" "^# .*1 threads; lq " roof.csv
says "roof CSV" "^bench,case,isa,threads,unit,runs,min,median,max,samples$" roof.csv
says "roof CSV" "^roof,peak fp32 scalar,scalar,1,GOP/s,3,[^,]*,[^,]*,[^,]*,[^;]*;[^;]*;[^;]*$" roof.csv
lines=$(wc -l <roof.csv)
exits 0 "roof CSV again" "$LQ" bench roof -r 1 -t 1 --buffer 8 --csv roof.csv
holds "roof CSV again" "$(wc -l <roof.csv)" -eq $((lines * 2 - 2))
exits 4 "roof CSV nowhere" "$LQ" bench roof -r 1 --csv none/roof.csv; says "roof CSV nowhere" "none/roof.csv"
interrupts TERM 0.3 "$LQ" bench roof -r 100

# Kernels: every one is timed, each filter takes what it says, fractions are those of the figures beside them.
bk() { "$LQ" bench kernels -r 1 "$@"; }
exits 0 "kernels" bk --depth 256 --columns 2 --csv kernels.csv --json; json_is "kernels"
holds "kernels: one without a case" "$(json left_out)" -eq 0
awk '/"kernel":/ { k = $2 } /"peak_fraction": null/ && k ~ /matmul/ { print k }' "$out" >no_peak
holds "kernels: an instruction set without a peak: $(head -1 no_peak)" ! -s no_peak
for f in $("$LQ" info --formats | sed -n "2,\$s, .*,,p"); do
    says "kernels: $f" "^kernels,matmul_any_f32__scalar on $f; 256 deep; 2 columns,scalar,1,GOP/s,1," kernels.csv
done
holds "kernels: rows" "$(grep -c '^kernels,' kernels.csv)" -eq "$(grep -c '"kernel":' "$out")"
exits 0 "kernels table" bk --format q4_0 --isa scalar --columns 1 --hot
says "kernels table" "^kernel .*GOP/s *best *of peak *GB/s *of read" "$out"
holds "kernels table: rows" "$(wc -l <"$out")" -eq 2
says "kernels table" "^matmul_any_f32__scalar on q4_0 *4096 deep; 1 column; hot .* %.* %$" "$out"
exits 0 "kernels JSON" bk --op matmul --format q8_0 --isa scalar -t 2 --json; json_is "kernels JSON"
has "kernels JSON" device rows.0.kernel rows.3.shape rows.0.best_bytes_per_s roofs.0.kind roofs.1.kind
holds "kernels JSON" "$(json rows.0.threads)" -eq 2; holds "kernels JSON" "$(json rows.0.format)" = q8_0
compare "kernels: of peak" "$(json rows.0.best_ops_per_s) / $(json roofs.0.ops_per_s) / $(json rows.0.peak_fraction)" ">" 0.999
compare "kernels: of read" "$(json rows.0.best_bytes_per_s) / $(json roofs.1.bytes_per_s) / $(json rows.0.read_fraction)" "<" 1.001
# Often around the weights: reading past them is a crash.
for i in 1 2 3; do exits 0 "kernels: around" bk --op matmul --format f32 --isa scalar --columns 1 -r 100; done
exits 0 "kernels: --kv" bk --op attn --columns 3 --context 100 --kv q5_1 --head-dim 64 --share 8
says "kernels: --kv" "^attn_paged__[a-z0-9]* *3 columns; context 100; 8 of 64 to q5_1 " "$out"
exits 2 "kernels: head" bk --op attn --head-dim 96; says "kernels: head" "no whole number of such heads"
exits 2 "kernels: --kv q6" bk --op attn --kv q6_k; says "kernels: --kv q6" "q6_k"
exits 2 "kernels: format" bk --format q4_9; says "kernels: format" "nearest is q4_"
exits 2 "kernels: isa" bk --isa sse9; says "kernels: isa" "no such instruction set"
exits 2 "kernels: none" bk --op moe_glu; says "kernels: none" "no kernel"
exits 2 "kernels: depth" bk --format q4_k --depth 288 --columns 1; says "kernels: depth" "288 weights"
interrupts INT 0.5 "$LQ" bench kernels

# One model: at a depth of context, two instruction sets in turn, and lines for compare.
bm() { "$LQ" bench model q4_k_m.gguf -p 16 -n 4 "$@"; }
exits 0 "model" bm --repeat 3 --context 100 --csv a.csv
says "model" "^decode .*(4 tokens after 100, .* to .* in 3 runs)" "$out"
says "model: start" "^start .* empty sequence): decode is [0-9.]* of it (.* in 3 pairs)" "$out"
exits 0 "model JSON" bm --repeat 2 --context 32 -t 1 --json; json_is "model JSON"
has "model JSON" prefill.min prefill.max decode.min decode.max decode.bytes_per_s decode.roof_fraction roof.buffer_bytes
holds "model JSON" "$(json decode.context)" -eq 32
has "model JSON: start" decode.start_tokens_per_s decode.of_start.median
holds "model JSON: pairs" "$(json decode.of_start.runs)" -eq 2
compare "model: share" "$(json prefill.cpu_share)" ">" 0; has "model: by processor time" decode.tokens_per_cpu_s
compare "model: share" "$(json decode.cpu_share)" "<" 1.1
compare "model: order" "$(json decode.min)" "<=" "$(json decode.tokens_per_s)"
exits 0 "versus" bm --repeat 3 --isa scalar --versus-isa scalar --csv a.csv --json; json_is "versus"
has "versus" versus.isa versus.prefill.tokens_per_s versus.decode_ratio.median versus.prefill_ratio.max
holds "versus: pairs" "$(json versus.decode_ratio.runs)" -eq 3
exits 0 "versus table" bm --repeat 1 --versus-isa scalar; says "versus table" "^decode .* times .*1 pairs" "$out"
says "model CSV" "^# " a.csv
says "model CSV" "^model,tiny q4_k_m; decode 4 after 100,[a-z0-9_+]*,[0-9]*,tokens/s,3," a.csv
says "model CSV" "^model,tiny q4_k_m; prefill 16; scalar,scalar," a.csv
says "model CSV: start" "^model,tiny q4_k_m; decode 4,[a-z0-9_+]*,[0-9]*,tokens/s,3," a.csv
holds "model CSV" "$(grep -c '^model,.*,tokens/s,' a.csv)" -eq 7
holds "model CSV" "$(grep -c ',tokens/cpu-s,' a.csv)" -eq 6
holds "model CSV: header" "$(grep -c '^bench,' a.csv)" -eq 1
exits 2 "versus nothing" bm --versus-isa sse9
exits 2 "context" bm --context 32768; says "context" "context of 32768"
exits 4 "model CSV nowhere" bm --repeat 1 --csv none/a.csv

# Comparison: medians, the ratios of pairs, what lies outside the noise, samples added by later lines.
csv() { printf '# a machine\nbench,case,isa,threads,unit,runs,min,median,max,samples\n'; printf '%s\n' "$@"; }
csv 'model,x,avx2,2,tokens/s,3,1,2,4,1;2;4' 'model,y,avx2,2,tokens/s,1,9,9,9,9' 'model,y,avx2,2,tokens/s,2,9,9,9,10;8' \
    'model,z,avx2,2,tokens/s,1,1,1,1,1' 'roof,r,,1,GB/s,1,1,1,1,1' >1.csv
csv 'model,x,avx512,2,tokens/s,4,1,2,4,1.5;4;6;99' 'model,y,avx2,2,tokens/s,3,8,8,8,8;9;8.4' \
    'model,z,avx2,2,tokens/s,1,1,1,1,0.5' 'roof,r,,2,GB/s,1,1,1,1,1' 'model,w,,2,tokens/s,1,1,1,1,1' >2.csv
exits 0 "compare JSON" "$LQ" bench compare 1.csv 2.csv --json; json_is "compare JSON"
says "compare" "2 only in 2.csv"; holds "compare" "$(json only_a)" -eq 1; holds "compare" "$(json failed)" -eq 0
holds "compare x" "$(json rows.0.pairs)" -eq 3; holds "compare x" "$(json rows.0.verdict)" = faster
compare "compare x: A" "$(json rows.0.a)" "==" 2; compare "compare x: B" "$(json rows.0.b)" "==" 5
compare "compare x: ratio" "$(json rows.0.ratio.median)" "==" 1.5
compare "compare x: min" "$(json rows.0.ratio.min)" "==" 1.5
compare "compare x: max" "$(json rows.0.ratio.max)" "==" 2
compare "compare x: best" "$(json rows.0.ratio.best)" "==" 24.75
holds "compare y" "$(json rows.1.pairs)" -eq 3; holds "compare y" "$(json rows.1.verdict)" = same
compare "compare y: ratio" "$(json rows.1.ratio.median)" "==" 0.9
compare "compare y: max" "$(json rows.1.ratio.max)" "==" 1.05
holds "compare z" "$(json rows.2.verdict)" = ""; compare "compare z" "$(json rows.2.ratio.median)" "==" 0.5
exits 0 "compare" "$LQ" bench compare 1.csv 2.csv; says "compare" "^model *x .* 1.500 .* faster$" "$out"
exits 1 "--fail-below" "$LQ" bench compare 1.csv 2.csv --fail-below 0.95 --json; json_is "--fail-below"
holds "--fail-below: y is noise" "$(json rows.1.fails)" = false; holds "--fail-below: z" "$(json rows.2.fails)" = true
says "--fail-below" "1 of 3 rows"
exits 0 "--fail-below" "$LQ" bench compare 1.csv 2.csv --fail-below 0.4
exits 0 "compare itself" "$LQ" bench compare a.csv a.csv --fail-below 0.999
says "compare itself" "^model *tiny q4_k_m; decode 4; scalar .* 1.000 " "$out"
csv 'roof,q,,1,GB/s,1,1,1,1,1' >3.csv
exits 3 "no common row" "$LQ" bench compare 1.csv 3.csv; says "no common row" "no row in common"
for bad in 'model,x,,2,t' 'model,x,,2,t,1,1,1,1,1,1' 'model,x,,2,t,2,1,1,1,1' 'model,x,,2,t,1,1,1,1,-1' 'model,x,,2,t,1,1,1,1,nan'; do
    csv "$bad" >bad.csv
    exits 3 "compare '$bad'" "$LQ" bench compare 1.csv bad.csv; says "compare '$bad'" "bad.csv, line 3"
done
echo hello >bad.csv; exits 3 "no header" "$LQ" bench compare bad.csv 1.csv; says "no header" "line 1: not the header"
: >bad.csv; exits 3 "empty" "$LQ" bench compare 1.csv bad.csv; says "empty" "no measurements"
exits 4 "no file" "$LQ" bench compare none.csv 1.csv; silent "no file"

finish
