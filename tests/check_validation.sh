#!/bin/sh
# check_validation.sh: the Vulkan backend under the Khronos validation layer, which must have nothing to say.
#
# Runs what the other tests run, on every device here: buffers, every operation, and the command with layers on both
# sides of a border. The loader's own log proves that the layer was there. Without a device or the layer: a counted
# skip.
set -u
cd "$(dirname "$0")/.." || exit 1
B=${B:-build}
if [ -z "${T_TMP:-}" ]; then T_TMP=$(mktemp -d) || exit 1; trap 'rm -rf "$T_TMP"' EXIT; fi
passed=0 failed=0

finish() { echo "$passed passed, $failed failed"; [ "$failed" -eq 0 ]; exit; }
skip() { echo "SKIP: $1"; finish; }
[ -z "${SAN:-}" ] || skip 'the validation layer is not built for sanitizers'
"$B/lq" info --devices 2>/dev/null | grep -q '^vulkan:' || skip 'no Vulkan device is here: nothing to validate'
[ -z "$(find /usr/share/vulkan /usr/local/share/vulkan /etc/vulkan -name '*khronos_validation*.json' 2>/dev/null)" ] &&
    skip 'the Khronos validation layer is not here'

VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation VK_LOADER_DEBUG=layer ASAN_OPTIONS=detect_leaks=0
export VK_INSTANCE_LAYERS VK_LOADER_DEBUG ASAN_OPTIONS
quiet() { # quiet NAME COMMAND...: succeeds under the layer, and the layer reports nothing
    name=$1; shift
    if ! "$@" >"$T_TMP/log" 2>&1; then
        tail -n 20 "$T_TMP/log"; echo "FAIL: $name fails under the validation layer"; failed=$((failed + 1))
    elif ! grep -q 'nsert.*VK_LAYER_KHRONOS_validation\|VK_LAYER_KHRONOS_validation.*nsert' "$T_TMP/log"; then
        echo "FAIL: $name: the loader did not insert the layer"; failed=$((failed + 1))
    elif grep -E 'VUID|Validation (Error|Warning|Performance)|UNASSIGNED' "$T_TMP/log" | head -n 5 | grep .; then
        echo "FAIL: $name: the layer objects"; failed=$((failed + 1))
    else passed=$((passed + 1))
    fi
}
quiet 'buffers, segments, threads' "$B/tests/test_backend_life"
for op in EMBED NORM MATMUL GLU ROPE ATTN ROUTE MOE_GLU MOE_DOWN CONV SCAN SAMPLE; do
    quiet "$op" env T_FEW=1 CK_RUN_CASE=$op "$B/tests/test_backend"
done
quiet 'lq run' "$B/lq" run bench/data/pocket -p 'Once upon a time' -n 4 --device vulkan:0
quiet 'lq eval, a border' "$B/lq" eval bench/data/pocket --text bench/data/text/prose.txt --max-tokens 256 \
    --device vulkan:0 --gpu-layers 2
finish
