#!/bin/sh
# check_codecs.sh: every line of formats.def compiles as C, C++, GLSL and CUDA from the one text of its codec, and
# decodes the same bits at -O0 and -O3 -march=native, in C and in C++, and on AArch64.
#
# One translation unit per language holds all codecs; a compiler's message names the codec's file (in GLSL, which has no
# includes, the line tells the function). Compilers that are not here are skips. All output lies below T_TMP.
set -u
cd "$(dirname "$0")/.." || exit 1
if [ -z "${T_TMP:-}" ]; then T_TMP=$(mktemp -d) || exit 1; trap 'rm -rf "$T_TMP"' EXIT; fi
tmp=$T_TMP
root=$(pwd)
passed=0 failed=0
names=$(sed -n 's/^FORMAT(\([a-z0-9_]*\),.*/\1/p' libquant/formats.def)
count=$(echo "$names" | wc -l)

# ok LANGUAGE: every codec counts; bad LANGUAGE LOG: those that the log names count as failed, else all.
ok() { passed=$((passed + count)); echo "$1: $count codecs"; }
bad() {
    cat "$2"; n=0
    for name in $names; do
        if grep -q "formats/$name\.c" "$2"; then echo "FAIL: $1: codec $name"; n=$((n + 1)); fi
    done
    if [ "$n" -eq 0 ]; then echo "FAIL: $1: no codec is named"; n=$count; fi
    failed=$((failed + n)); passed=$((passed + count - n))
}
skip() { echo "SKIP: $1"; }
have() { command -v "$1" >/dev/null 2>&1; }

# All codecs, and a program that decodes the same random bytes with each and prints a hash per codec. What is not a
# number hashes as one: its payload is not promised.
{
    for name in $names; do echo "#include \"$root/libquant/formats/$name.c\""; done
    cat <<'C'
#include <stdio.h>
static unsigned hash(unsigned h, const float *y) {
    for (int i = 0; i < 32; i++) {
        unsigned u;
        memcpy(&u, y + i, 4);
        if ((u & 0x7FFFFFFFu) > 0x7F800000u) u = 0x7FC00000u;
        h = (h ^ u) * 16777619u;
    }
    return h;
}
static unsigned char data[64 * 1024 + 256];
#define CHECK(name)                                                                            \
    {                                                                                          \
        const int units = name##_weights > 1 ? name##_weights / 32 : 1;                        \
        const int size = name##_weights > 1 ? name##_bytes : 32 * name##_bytes;                \
        unsigned h = 2166136261u;                                                              \
        for (int b = 0; (b + 1) * size <= 64 * 1024; b++)                                      \
            for (int s = 0; s < units; s++) {                                                  \
                float y[32];                                                                   \
                name##_decode(data, b, s, y);                                                  \
                h = hash(h, y);                                                                \
            }                                                                                  \
        printf("%s %08x\n", #name, h);                                                         \
    }
int main(void) {
    unsigned long long z = 42;
    for (unsigned i = 0; i < sizeof data; i++) {
        z = z * 6364136223846793005u + 1442695040888963407u;
        data[i] = (unsigned char)(z >> 56);
    }
C
    for name in $names; do echo "    CHECK($name)"; done
    echo '    return 0;'
    echo '}'
} >"$tmp/all.c"
cp "$tmp/all.c" "$tmp/all.cpp"

# C and C++: build, run, compare with the first one.
warn='-Wall -Wextra -Wshadow -Wno-unused-function'
first= through=
native() { # label, compiler, flags...
    label=$1; shift
    have "$1" || { skip "$1 is not here: codecs as $label"; return; }
    if ! "$@" -o "$tmp/run" >"$tmp/log" 2>&1 || [ -s "$tmp/log" ]; then bad "$label" "$tmp/log"; return; fi
    $through "$tmp/run" >"$tmp/hashes" 2>&1 || { echo "the program failed" >>"$tmp/hashes"; }
    if [ -z "$first" ]; then
        first=$label; cp "$tmp/hashes" "$tmp/hashes.first"
        [ "$(wc -l <"$tmp/hashes")" -eq "$count" ] && ok "$label" || bad "$label" "$tmp/hashes"
    elif diff "$tmp/hashes.first" "$tmp/hashes" >"$tmp/diff"; then ok "$label, same bits as $first"
    else
        sed -n 's/^> \([a-z0-9_]*\) .*/formats\/\1.c: decodes other bits/p' "$tmp/diff" >"$tmp/log"
        bad "$label" "$tmp/log"
    fi
}
exact='-ffp-contract=off'
# shellcheck disable=SC2086
{
    native 'C (gcc -O0)' gcc -std=c11 $warn -Wconversion $exact -O0 "$tmp/all.c"
    native 'C (gcc -O3 -march=native)' gcc -std=c11 $warn $exact -O3 -march=native "$tmp/all.c"
    native 'C (clang -O3 -march=native)' clang -std=c11 $warn -Wconversion $exact -O3 -march=native "$tmp/all.c"
    native 'C++ (g++ -O2)' g++ -std=c++17 $warn $exact -O2 "$tmp/all.cpp"
    through=qemu-aarch64-static # static, so that it needs no libraries for that processor
    if have $through; then
        native 'C (AArch64, -O3)' aarch64-linux-gnu-gcc -static -std=c11 $warn $exact -O3 "$tmp/all.c"
    else skip "$through is not here: codecs on AArch64"
    fi
}

# GLSL: the preprocessor of C first, then a compute shader that reads bytes from a buffer.
{
    echo '#define Q_GLSL 1'
    for name in $names; do
        echo "#include \"$root/libquant/formats/$name.c\""
    done
} >"$tmp/glsl.c"
if ! have glslangValidator; then skip "glslangValidator is not here: codecs as GLSL"
elif ! ${CC:-cc} -E -P "$tmp/glsl.c" >"$tmp/codecs.glsl" 2>"$tmp/log"; then bad GLSL "$tmp/log"
else
    {
        cat <<'G'
#version 450
layout(local_size_x = 32) in;
layout(std430, binding = 0) readonly buffer Bytes { uint words[]; };
layout(std430, binding = 1) writeonly buffer Values { float values[]; };
uint q_u8(const int row, const int i) { return (words[(row + i) >> 2] >> (8 * ((row + i) & 3))) & 255u; }
uint q_u16(const int row, const int i) { return q_u8(row, i) | q_u8(row, i + 1) << 8; }
uint q_u32(const int row, const int i) { return q_u16(row, i) | q_u16(row, i + 2) << 16; }
G
        sed 's/Q_SRC_TYPE/int/g' "$tmp/codecs.glsl"
        echo 'void main() {'
        echo '    int unit = int(gl_GlobalInvocationID.x), row = 0;'
        echo '    float y[32];'
        for name in $names; do
            echo "    ${name}_decode(row, unit, 0, y);"
            echo "    for (int i = 0; i < 32; i++) values[32 * unit + i] = y[i];"
        done
        echo '}'
    } >"$tmp/all.comp"
    if glslangValidator --target-env vulkan1.2 -o "$tmp/all.spv" "$tmp/all.comp" >"$tmp/log" 2>&1; then
        ok 'GLSL (vulkan1.2)'
    else # "ERROR: FILE:LINE: ...": the codec is the last function begun before that line
        grep '^ERROR' "$tmp/log" | sed -n 's/^ERROR: [^:]*:\([0-9]*\):.*/\1/p' | while read -r line; do
            head -n "$line" "$tmp/all.comp" |
                sed -n 's/^ *void \([a-z0-9_]*\)_\(split\|decode\)(.*/formats\/\1.c: in this codec/p' | tail -1
        done >>"$tmp/log"
        bad 'GLSL (vulkan1.2)' "$tmp/log"
    fi
fi

# CUDA: device code for one old target, no linking.
{
    for name in $names; do echo "#include \"$root/libquant/formats/$name.c\""; done
    echo 'extern "C" __global__ void all(const uint8_t *row, float *out) {'
    echo '    float y[32];'
    for name in $names; do
        echo "    ${name}_decode(row, (int)threadIdx.x, 0, y);"
        echo "    for (int i = 0; i < 32; i++) out[32 * threadIdx.x + i] += y[i];"
    done
    echo '}'
} >"$tmp/all.cu"
nvcc=$(command -v nvcc || command -v /usr/local/cuda/bin/nvcc) # its installer leaves PATH alone
if [ -z "$nvcc" ]; then skip "nvcc is not here: codecs as CUDA"
elif "$nvcc" --fmad=false -ptx -o "$tmp/all.ptx" "$tmp/all.cu" >"$tmp/log" 2>&1; then ok CUDA
else bad CUDA "$tmp/log"
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
