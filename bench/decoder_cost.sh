#!/bin/sh
# decoder_cost.sh: what nvcc makes of the generic decoder: registers, local memory and instructions per weight of codecs
# of libquant/formats/ in four loops as a GPU runs them. Compiles only: needs no GPU and times nothing.
#
#   bench/decoder_cost.sh [sm_NN ...] [FORMAT ...]      default: sm_75 sm_80 sm_86 sm_90, q4_k q6_k iq4_xs
#
# FORMAT is a name out of formats.def with blocks of 32 weights or more, or the path of a file NAME.c with another
# version of a codec: it includes "codec.h", has Q_FORMAT(NAME, ...) and NAME_decode, and may say `#define NAME_unit N`
# (a multiple of 8) where NAME_decode yields N weights and not 32. So another contract is measured before it is written.
#
#   gemv    a warp per row, a thread per unit: decode it, multiply it with one column of floats
#   tile    a thread per row: decode a unit into shared memory, for many columns; counted up to the barrier
#   near    the same, but the codec is given the address of its block as the row, and 0 as its number
#   block   as gemv, but a thread per block, with all its units unrolled: what the compiler shares between them
#
# Columns: registers per thread; bytes of local memory (spills, arrays with an index); warps per multiprocessor that the
# registers allow, of the most; instructions in the loop, both sides of its branches; the same per weight. Then of these
# per weight: loads of 8, of 16, and of 32 or more bits from global memory, tables included, the column's own (float4,
# 0.25) not; integer operations; conversions; float operations. What follows "warps" needs cuobjdump.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
nvcc=$(command -v nvcc || command -v /usr/local/cuda/bin/nvcc) || # its installer leaves PATH alone
    { echo "SKIP: nvcc is not here: no decoder to look at"; exit 0; }
dump=$(command -v cuobjdump || command -v /usr/local/cuda/bin/cuobjdump) ||
    { dump=; echo "SKIP: cuobjdump is not here: registers and local memory only"; }
machines='' formats=''
for word; do
    case $word in
        sm_*) machines="$machines $word" ;;
        -*) echo "usage: bench/decoder_cost.sh [sm_NN ...] [FORMAT | NAME.c ...]" >&2; exit 2 ;;
        *) formats="$formats $word" ;;
    esac
done
tmp=$(mktemp -d "${TMPDIR:-/tmp}/lq-decoder.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

# The loops of a codec. The outermost may not be unrolled: one pass is what is counted.
kernels() { # file, name, weights per unit
    cat <<CUDA
#include "$1"
enum { N = $3, UNITS = $2_weights / N, ROWS = N > 64 ? 8192 / N : 128 };
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define ARGS const uint8_t *w, const float *x, float *y, int k, int row_bytes
static __device__ __forceinline__ void dot(const float *v, const float *x, float s[4]) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        const float4 c = ((const float4 *)x)[i];
        s[0] = fmaf(v[4 * i], c.x, s[0]);
        s[1] = fmaf(v[4 * i + 1], c.y, s[1]);
        s[2] = fmaf(v[4 * i + 2], c.z, s[2]);
        s[3] = fmaf(v[4 * i + 3], c.w, s[3]);
    }
}
KERNEL(128) gemv(ARGS) {
    const int r = blockIdx.x * 4 + threadIdx.y;
    const uint8_t *row = w + (size_t)r * row_bytes;
    float s[4] = {0, 0, 0, 0};
#pragma unroll 1
    for (int u = threadIdx.x; u < k / N; u += 32) {
        float v[N];
        $2_decode(row, u / UNITS, u % UNITS, v);
        dot(v, x + N * u, s);
    }
    atomicAdd(y + r, (s[0] + s[1]) + (s[2] + s[3]));
}
template <bool near_block> static __device__ __forceinline__ void tiles(ARGS) {
    __shared__ float t[N][ROWS];
    const int r = blockIdx.x * ROWS + threadIdx.x;
    const uint8_t *row = w + (size_t)r * row_bytes;
    float s[4] = {0, 0, 0, 0};
#pragma unroll 1
    for (int u = 0; u < k / N; u++) {
        float v[N];
        if (near_block) $2_decode(row + (size_t)(u / UNITS) * $2_bytes, 0, u % UNITS, v);
        else $2_decode(row, u / UNITS, u % UNITS, v);
#pragma unroll
        for (int i = 0; i < N; i++) t[i][threadIdx.x] = v[i];
        __syncthreads();
#pragma unroll 1
        for (int i = 0; i < N; i++)
            for (int c = 0; c < 4; c++) s[c] = fmaf(t[i][threadIdx.x ^ 1], x[c * k + u * N + i], s[c]);
        __syncthreads();
    }
    for (int c = 0; c < 4; c++) y[4 * r + c] = s[c];
}
KERNEL(ROWS) tile(ARGS) { tiles<false>(w, x, y, k, row_bytes); }
KERNEL(ROWS) near(ARGS) { tiles<true>(w, x, y, k, row_bytes); }
KERNEL(128) block(ARGS) {
    const int r = blockIdx.x * 4 + threadIdx.y;
    const uint8_t *row = w + (size_t)r * row_bytes;
    float s[4] = {0, 0, 0, 0};
#pragma unroll 1
    for (int b = threadIdx.x; b < k / $2_weights; b += 32) {
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            float v[N];
            $2_decode(row, b, u, v);
            dot(v, x + b * $2_weights + N * u, s);
        }
    }
    atomicAdd(y + r, (s[0] + s[1]) + (s[2] + s[3]));
}
CUDA
}

# ptxas's words and the machine code in, a row per kernel out. The loop is the widest jump back; of a tile, up to the
# barrier.
table() { # name, machine, weights per unit, weights per block
    awk -v name="$1" -v machine="$2" -v unit="$3" -v weights="$4" '
    function hex(s,   i, n) {
        n = 0; s = tolower(s); sub(/^0x/, "", s)
        for (i = 1; i <= length(s); i++) n = n * 16 + index("0123456789abcdef", substr(s, i, 1)) - 1
        return n
    }
    function loop(   i, from, to, n, o, c, per, column) {
        from = to = n = 0
        tiled = kernel == "tile" || kernel == "near"
        per = kernel == "block" ? weights : unit
        column = tiled ? 0 : per / 4
        for (i = 1; i <= count; i++)
            if (jump[i] != "" && jump[i] < at[i] && at[i] - jump[i] > to - from) { from = jump[i]; to = at[i] }
        for (i = 1; i <= count; i++) {
            o = op[i]
            if (at[i] < from || at[i] > to || o == "NOP") continue
            if (tiled && o ~ /^BAR/) break
            n++
            if (o ~ /^LDG?\..*\.128/ && column > 0) column--
            else if (o ~ /^LDG?\..*\.[US]8/) c["u8"]++
            else if (o ~ /^LDG?\..*\.[US]16/) c["u16"]++
            else if (o ~ /^LDG?\./) c["wide"]++
            else if (o ~ /^(I2F|F2F|F2I|I2I)/) c["cvt"]++
            else if (o ~ /^(FADD|FMUL|FFMA|FSEL|FSETP)/) c["float"]++
            else if (o ~ /^(U?I[AMS]|U?LOP|U?SHF|U?PRMT|U?LEA|U?SEL|U?SGXT|U?PLOP|U?BMSK|U?MOV|VIADD|R2UR)/) c["int"]++
        }
        return sprintf(" %6d %6.2f %6.2f %5.2f %5.2f %6.2f %5.2f %5.2f", n, n / per, c["u8"] / per, c["u16"] / per,
            c["wide"] / per, c["int"] / per, c["cvt"] / per, c["float"] / per)
    }
    function row(kernel,   most, warps) {
        most = machine == "sm_75" ? 32 : machine ~ /^sm_8[6-9]|^sm_12/ ? 48 : 64
        warps = int(65536 / (256 * int((regs[kernel] + 7) / 8))); warps -= warps % 4
        if (warps > most) warps = most
        printf "%-11s %-6s %-6s %5d %6d %6s%s\n", name, machine, kernel, regs[kernel], stack[kernel], warps "/" most,
            code[kernel]
    }
    /Compiling entry function/ { split($0, part, "\047"); compiled = part[2] }
    /bytes stack frame/ { if (compiled != "") stack[compiled] = $1 }
    /Used [0-9]+ registers/ { for (i = 1; i <= NF; i++) if ($i == "Used") regs[compiled] = $(i + 1) }
    /Function : / { if (kernel != "") code[kernel] = loop(); kernel = $NF; count = 0 }
    /^ +\/\*[0-9a-f]+\*\/ / {
        address = $1; gsub(/[\/*]/, "", address); i = 2
        if ($i ~ /^@/) i++
        count++; at[count] = hex(address); op[count] = $i; sub(/;$/, "", op[count]); jump[count] = ""
        if (op[count] ~ /^BRA/) for (i++; i <= NF && $i !~ /^\/\*/; i++) if ($i ~ /^0x[0-9a-f]+;?$/) {
            sub(/;/, "", $i); jump[count] = hex($i)
        }
    }
    END { if (kernel != "") code[kernel] = loop(); row("gemv"); row("tile"); row("near"); row("block") }'
}

echo "format      for    loop    regs  local  warps  instr /weight    u8   u16   32+    int   cvt float"
for format in ${formats:-q4_k q6_k iq4_xs}; do
    case $format in
        */*) name=$(basename "$format" .c); file=$(cd "$(dirname "$format")" && pwd)/$name.c ;;
        *) name=$format; file=$root/libquant/formats/$name.c ;;
    esac
    [ -f "$file" ] || { echo "there is no codec $file" >&2; exit 2; }
    unit=$(sed -n "s/^#define ${name}_unit \([0-9]*\).*/\1/p" "$file")
    weights=$(sed -n "s/^Q_FORMAT($name, \([0-9]*\),.*/\1/p" "$file")
    [ "${weights:-0}" -ge "${unit:-32}" ] ||
        { echo "SKIP: $name has no block of ${unit:-32} weights or more"; continue; }
    kernels "$file" "$name" "${unit:-32}" >"$tmp/$name.cu"
    for machine in ${machines:-sm_75 sm_80 sm_86 sm_90}; do
        "$nvcc" --fmad=false -Xptxas -v -arch="$machine" -I"$root/libquant" -cubin -o "$tmp/cubin" "$tmp/$name.cu" \
            2>"$tmp/log" || { cat "$tmp/log" >&2; echo "$name does not compile for $machine" >&2; exit 1; }
        if [ -n "$dump" ]; then "$dump" -sass "$tmp/cubin" >>"$tmp/log"; fi
        table "$name" "$machine" "${unit:-32}" "$weights" <"$tmp/log"
    done
done
