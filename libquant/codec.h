/* codec.h: the subset of C in which a format's decoder is written, so that one text compiles as C, C++, CUDA and GLSL.
 *
 * A codec is the part of libquant/formats/X.c outside `#ifdef Q_HOST`. It may use: int, uint, float; fixed `for` loops,
 * `if`, arithmetic, bit operations, arrays of constant size; the accessors and macros below. It may not use pointers,
 * casts (write q_float(i), q_int(u), q_uint(i)), structs, 64-bit integers, float literals without a dot, or anything
 * included. Evaluation is float32, left to right, uncontracted: -ffp-contract=off in C and C++, --fmad=false in nvcc,
 * `precise` in GLSL. Then every backend decodes the same bits.
 *
 *   Q_FORMAT(q4_k, 256, 144)                     weights and bytes per block, typed once
 *   Q_FN void q4_k_decode(Q_SRC row, int block, int sub, Q_OUT(float, y, 32))
 *   Q_TABLE(int, name, 16) = { ... };            a codebook
 *   q_u8(row, i) q_i8 q_u16 q_u32 q_f16 q_bf16 q_f32      little-endian loads at byte i of the row
 *   Q_FIELDS(name, row, at, n, shift)                     n bytes of the row (a multiple of 4), looked at by
 *   q_field(name, i, mask)                                (byte at + i >> shift) & mask; mask << shift fits a byte
 *
 * Rows begin at even addresses, and what loads more than one byte, fields too, does so at an even byte: devices load 16
 * bits at once. On the CPU rows may lie anywhere.
 *
 * `decode` yields unit `sub` (32 weights) of block `block` of a row; it sees the whole row so that row heads and nested
 * scales fit. Why 32, and not less or more: bench/SPEED.md, "The generic decoder on a GPU". A format whose weights are
 * integer codes writes `split` instead and gets `decode` from it by macro:
 *
 *   Q_FN void q4_k_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
 *                        Q_OUT(float, d, 2))
 *   weight i of the unit = (d[0] * sc[i / 16]) * q[i] - (d[1] * mn[i / 16])
 *
 * with d equal for all units of a span (a block, unless the record in format.h says otherwise), |q| <= 128 and |sc|,
 * |mn| <= 255: integer products over a span then fit in int32 and are exact, which is what the CPU's 8-bit kernels
 * stand on. Formats without minimum set mn to 0, d[1] to 0. Where the span is the whole row all sc are 1.
 *
 * A codebook whose levels are no integers may write both: a `decode` that is exact, which float32 activations use, and
 * a `split` with the levels rounded to integers, for 8-bit activations. The record then states how far the two are
 * apart.
 *
 * Layer L1. */
#ifndef Q_CODEC_H
#define Q_CODEC_H

#if defined(Q_GLSL)
/* The including shader supplies q_u8, q_u16, q_u32 over its own row handle type Q_SRC_TYPE. */
#define Q_FN
#define Q_SRC const Q_SRC_TYPE
#define Q_OUT(type, name, n) Q_OUT_##type(name, n)
#define Q_OUT_float(name, n) precise out float name[n]
#define Q_OUT_int(name, n) out int name[n]
#define Q_LOCAL_float(name, n) precise float name[n]
#define Q_FORMAT(name, weights, bytes) const int name##_weights = weights; const int name##_bytes = bytes;
#define Q_TABLE(type, name, n) const type name[n]
#define q_float(x) float(x)
#define q_int(x) int(x)
#define q_uint(x) uint(x)
#define q_bits(u) uintBitsToFloat(u)
#define q_i8(row, i) ((int(q_u8(row, i)) ^ 128) - 128)
float q_half_bits(uint h) {
    uint e = (h >> 10) & 31u, m = h & 1023u, s = (h & 32768u) << 16;
    if (e == 31u) return uintBitsToFloat(s | 2139095040u | (m << 13));
    if (e != 0u) return uintBitsToFloat(s | ((e + 112u) << 23) | (m << 13));
    float f = float(m) * 5.9604644775390625e-8;
    return uintBitsToFloat(s | floatBitsToUint(f));
}
#else
#include <stdint.h>
#include <string.h>
#if defined(__CUDACC__)
#define Q_FN static __host__ __device__ __forceinline__
#define Q_TABLE(type, name, n) static __device__ const type name[n]
#else
#define Q_FN static inline
#define Q_TABLE(type, name, n) static const type name[n]
#endif
#define Q_SRC const uint8_t *
#define Q_OUT(type, name, n) type *name
#define Q_LOCAL_float(name, n) float name[n]
#define Q_FORMAT(name, weights, bytes) enum { name##_weights = weights, name##_bytes = bytes };
#define q_float(x) ((float)(x))
#define q_int(x) ((int)(x))
#define q_uint(x) ((uint)(x))
typedef unsigned int uint;
Q_FN float q_bits(uint u) { float f; memcpy(&f, &u, 4); return f; }
Q_FN uint q_u8(Q_SRC row, int i) { return row[i]; }
Q_FN int q_i8(Q_SRC row, int i) { return (int)(row[i] ^ 128u) - 128; }
#if defined(__CUDA_ARCH__)
Q_FN uint q_u16(Q_SRC row, int i) { return *(const uint16_t *)(row + i); }
#else
Q_FN uint q_u16(Q_SRC row, int i) { return (uint)row[i] | (uint)row[i + 1] << 8; }
#endif
Q_FN uint q_u32(Q_SRC row, int i) { return q_u16(row, i) | q_u16(row, i + 2) << 16; }
Q_FN float q_half_bits(uint h) {
    const uint e = (h >> 10) & 31u, m = h & 1023u, s = (h & 32768u) << 16;
    float f;
    uint b;
    if (e == 31u) return q_bits(s | 0x7F800000u | m << 13);
    if (e != 0u) return q_bits(s | (e + 112u) << 23 | m << 13);
    f = (float)m * 5.9604644775390625e-8f;
    memcpy(&b, &f, 4);
    return q_bits(s | b);
}
#endif

#if defined(Q_GLSL) || defined(__CUDA_ARCH__) /* words: a third to a half of the loads */
#define Q_FIELDS(name, row, at, n, shift)                  \
    uint name[(n) / 4];                                    \
    for (int name##_i = 0; name##_i < (n) / 4; name##_i++) \
        name[name##_i] = q_u32(row, (at) + 4 * name##_i) >> (shift);
#define q_field(name, i, mask) ((name[(i) / 4] >> (8 * ((i) & 3))) & (mask))
#else /* bytes: compilers for CPUs make vectors of loops over them */
#define Q_FIELDS(name, row, at, n, shift) \
    const uint8_t *name = (row) + (at);   \
    const int name##_shift = (shift);
#define q_field(name, i, mask) (((uint)name[i] >> name##_shift) & (mask))
#endif

#define q_f16(row, i) q_half_bits(q_u16(row, i))
#define q_bf16(row, i) q_bits(q_u16(row, i) << 16)
#define q_f32(row, i) q_bits(q_u32(row, i))

/* decode from split: with and without a minimum. */
#define Q_DECODE_SPLIT_MIN(name)                                                          \
    Q_FN void name##_decode(Q_SRC row, int block, int sub, Q_OUT(float, y, 32)) {         \
        int q[32], sc[2], mn[2];                                                          \
        Q_LOCAL_float(d, 2);                                                              \
        name##_split(row, block, sub, q, sc, mn, d);                                      \
        for (int i = 0; i < 32; i++)                                                      \
            y[i] = (d[0] * q_float(sc[i / 16])) * q_float(q[i]) - d[1] * q_float(mn[i / 16]); \
    }
#define Q_DECODE_SPLIT(name)                                                              \
    Q_FN void name##_decode(Q_SRC row, int block, int sub, Q_OUT(float, y, 32)) {         \
        int q[32], sc[2], mn[2];                                                          \
        Q_LOCAL_float(d, 2);                                                              \
        name##_split(row, block, sub, q, sc, mn, d);                                      \
        for (int i = 0; i < 32; i++) y[i] = (d[0] * q_float(sc[i / 16])) * q_float(q[i]); \
    }

#endif
