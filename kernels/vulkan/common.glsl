/* common.glsl: what every shader shares: the step, the batch, addresses, views, and float functions of our own.
 *
 * Tier 0: nothing but buffer device addresses and loads of 8 and 16 bits. There are no descriptor sets: two addresses
 * come as push constants and lead to all else. 64-bit addresses are pairs of words (low first), so that no device needs
 * 64-bit integers. exp, sin and their like are written out here, because what a driver's own must be good for is loose
 * (an angle may be a million, an exp may err by many units), and because the bits are then ours everywhere.
 * Layer L2. */
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int16 : require
#extension GL_EXT_shader_8bit_storage : require
#extension GL_EXT_shader_16bit_storage : require

/* Specialization constants, the same ids in every shader (vk_shapes.c gives all of them to each). */
layout(constant_id = 0) const int FORMAT_OF_W = 0; /* of the weight that the pass decodes: position in formats.def */
layout(constant_id = 1) const int COLUMNS = 1;     /* gemv, moe: most columns of the batch */
layout(constant_id = 2) const int ROLE = 0;        /* which part of its operation a pass is: roles.h */
layout(constant_id = 3) const int FORMAT_OF_K = 0; /* of the keys in pages, or of what is stored there */
layout(constant_id = 4) const int FORMAT_OF_V = 0; /* of the values */

#define A(name) uvec2 name;
#define I(name) int name;
#define F(name) float name;
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Step {
#include "step.def"
};
#undef A
#undef I
#undef F
#define P(name) int name;
#define R(name) float name;
layout(buffer_reference, std430, buffer_reference_align = 4) readonly buffer Params {
#include "params.def"
};
#undef P
#undef R

layout(push_constant) uniform Push {
    uvec2 step_at;
    uvec2 params_at;
};
#define st Step(step_at)
#define pm Params(params_at)

layout(buffer_reference, std430, buffer_reference_align = 4) buffer Floats { float f[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Ints { int i[]; };
layout(buffer_reference, std430, buffer_reference_align = 2) buffer Halves { uint16_t h[]; };
layout(buffer_reference, std430, buffer_reference_align = 1) readonly buffer Bytes { uint8_t b[]; };
layout(buffer_reference, std430, buffer_reference_align = 2) readonly buffer Pairs { uint16_t h[]; };

/* ----------------------------------------------------------------------------------------------------- addresses */

uvec2 add64(uvec2 a, uint b) {
    uint carry;
    const uint low = uaddCarry(a.x, b, carry);
    return uvec2(low, a.y + carry);
}
uvec2 add64(uvec2 a, uvec2 b) {
    uint carry;
    const uint low = uaddCarry(a.x, b.x, carry);
    return uvec2(low, a.y + b.y + carry);
}
uvec2 mul64(uint a, uint b) {
    uint high, low;
    umulExtended(a, b, high, low);
    return uvec2(low, high);
}
/* base + n * size */
uvec2 step64(uvec2 base, int n, int size) { return add64(base, mul64(uint(n), uint(size))); }
uvec2 step64(uvec2 base, int n, uvec2 size) {
    uvec2 far = mul64(uint(n), size.x);
    far.y += uint(n) * size.y;
    return add64(base, far);
}
bool present(uvec2 address) { return (address.x | address.y) != 0u; }

/* --------------------------------------------------------------------------------------------- the batch and views */

/* Columns that the step works on. */
int columns() { return st.out_columns != 0 ? pm.n_out : pm.n; }
int param_int(int at, int i) { return Ints(params_at).i[at + i]; }
float param_float(int at, int i) { return Floats(params_at).f[at + i]; }
/* The column of the batch that column c of a step is; and the one that x is read at where a step gathers the wanted ones. */
int column_of(int c) { return st.out_columns != 0 ? param_int(pm.out_at, c) : c; }
int gathered(int c) { return st.gathers != 0 ? param_int(pm.out_at, c) : c; }

/* Head h of column c: an index of floats from the view's base. Value i of all heads, one after the other. */
#define VIEW_AT(v, c, h) ((c) * st.v##_column + (h) * st.v##_stride)
#define VIEW_FLAT(v, c, i) ((c) * st.v##_column + (i) / st.v##_width * st.v##_stride + (i) % st.v##_width)
#define SLOT(v) Floats(st.v##_base).f

/* Shaders that treat value after value: 64 threads, 4 values each; x = values of a column / 256, y = columns. */
#define EACH_VALUE(i, n)                                                                                           \
    [[dont_unroll]] for (int i = 256 * int(gl_WorkGroupID.x) + int(gl_LocalInvocationID.x),                        \
                             end_ = min(i + 256 - int(gl_LocalInvocationID.x), n); i < end_; i += 64)

/* The number of a group where groups fold over x and y. */
int folded_group() { return int(gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x); }

/* -------------------------------------------------------------------------------------------------------- numbers */

#define INFINITY uintBitsToFloat(0x7F800000u)

bool is_nan(float x) { return (floatBitsToUint(x) & 0x7FFFFFFFu) > 0x7F800000u; }

/* 2^n for n in -126 .. 127. */
float power2(int n) { return uintBitsToFloat(uint(n + 127) << 23); }

/* ln 2 in two parts, of which the first has 9 bits: its product with an exponent is exact without a fused multiply. */
float exp_(float x) {
    if (is_nan(x)) return x;
    if (x > 88.8) return INFINITY;
    if (x < -104.0) return 0.0;
    const float n = roundEven(x * 1.44269504);
    precise float r = x - n * 0.693359375;
    r = r + n * 2.12194440e-4;
    float y = 1.0 / 5040.0;
    y = y * r + 1.0 / 720.0;
    y = y * r + 1.0 / 120.0;
    y = y * r + 1.0 / 24.0;
    y = y * r + 1.0 / 6.0;
    y = y * r + 0.5;
    y = y * r + 1.0;
    y = y * r + 1.0;
    const int e = int(n), half_e = e / 2; /* in two steps, for results at the ends of the range */
    return y * power2(half_e) * power2(e - half_e);
}

/* Natural logarithm of a positive normal number. */
float log_(float x) {
    const uint u = floatBitsToUint(x);
    int e = int(u >> 23) - 127;
    float m = uintBitsToFloat((u & 0x7FFFFFu) | 0x3F800000u);
    if (m > 1.41421356) {
        m *= 0.5;
        e++;
    }
    const float s = (m - 1.0) / (m + 1.0), z = s * s;
    return float(e) * 0.693147181 + 2.0 * s * (1.0 + z * (1.0 / 3.0 + z * (0.2 + z * (1.0 / 7.0 + z * (1.0 / 9.0)))));
}

float tanh_(float x) {
    const float y = 2.0 * abs(x);
    float t; /* exp(y) - 1 */
    if (y > 40.0) return x < 0.0 ? -1.0 : 1.0;
    if (y < 0.35) t = y * (1.0 + y * (0.5 + y * (1.0 / 6.0 + y * (1.0 / 24.0 + y * (1.0 / 120.0 + y * (1.0 / 720.0))))));
    else t = exp_(y) - 1.0;
    t = t / (t + 2.0);
    return x < 0.0 ? -t : t;
}

/* Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: off by at most 1.5e-7. */
float erf_(float x) {
    const float a = abs(x), t = 1.0 / (1.0 + 0.3275911 * a);
    const float p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    const float y = 1.0 - p * exp_(-a * a);
    return x < 0.0 ? -y : y;
}

float sigmoid(float x) { return 1.0 / (1.0 + exp_(-x)); }
float softcapped(float x, float cap) { return cap != 0.0 ? cap * tanh_(x / cap) : x; }
float softplus(float x) {
    if (x > 20.0) return x;
    const float t = exp_(x);
    return t < 0.01 ? t * (1.0 - t * (0.5 - t * (1.0 / 3.0))) : log_(1.0 + t);
}

/* The words of 2/pi behind the point, after one word of zeros. */
const uint TWO_OVER_PI[8] = {0u,          0xA2F9836Eu, 0x4E441529u, 0xFC2757D1u,
                             0xF534DDC0u, 0xDB629599u, 0x3C439041u, 0xFE5163ABu};

/* Cosine and sine. x is a whole number m times 2^e: m times the 64 bits of 2/pi that weigh between 4 and 2^-62 of a quarter
 * turn after 2^e leaves the quarter in the top bits and what is beyond in the rest, exactly (Payne and Hanek's way), for
 * every float. The series of the rest within an eighth of a turn are good for 1e-9. */
vec2 cos_sin(float x) {
    const float a = abs(x);
    int quarter = 0;
    float r = a;
    if (!(a < 3.0e38)) return vec2(uintBitsToFloat(0x7FC00000u));
    if (a > 0.785) {
        const uint u = floatBitsToUint(a), m = (u & 0x7FFFFFu) | 0x800000u;
        const int bit = 32 + int(u >> 23) - 150 - 2, w = bit >> 5, by = bit & 31;
        uint high = TWO_OVER_PI[w] << by, low = TWO_OVER_PI[w + 1] << by;
        if (by != 0) {
            high |= TWO_OVER_PI[w + 1] >> (32 - by);
            low |= TWO_OVER_PI[w + 2] >> (32 - by);
        }
        uint top, bottom;
        umulExtended(m, low, top, bottom);
        top += m * high;
        quarter = int(top >> 30);
        const int rest = int(top << 2 | bottom >> 30); /* half a quarter or more counts to the next one */
        if (rest < 0) quarter++;
        r = float(rest) * (2.3283064365386963e-10 * 1.57079633);
    }
    const float z = r * r;
    const float si = r * (1.0 + z * (-1.0 / 6.0 + z * (1.0 / 120.0 + z * (-1.0 / 5040.0 + z * (1.0 / 362880.0)))));
    const float co =
        1.0 + z * (-0.5 + z * (1.0 / 24.0 + z * (-1.0 / 720.0 + z * (1.0 / 40320.0 + z * (-1.0 / 3628800.0)))));
    vec2 y = (quarter & 1) == 0 ? vec2(co, si) : vec2(-si, co);
    if ((quarter & 2) != 0) y = -y;
    return x < 0.0 ? vec2(y.x, -y.y) : y;
}

/* -------------------------------------------------------------------------------------------- activations: q_kind */

const int ACT_SILU = 1, ACT_GELU = 2, ACT_GELU_TANH = 3, ACT_RELU = 4, ACT_RELU2 = 5, ACT_SIGMOID = 6, ACT_CLAMP = 7;

float act(float x) {
    const int kind = st.kind;
    if (kind == ACT_SILU) return x / (1.0 + exp_(-x));
    if (kind == ACT_GELU) return 0.5 * x * (1.0 + erf_(x * 0.70710678));
    if (kind == ACT_GELU_TANH) return 0.5 * x * (1.0 + tanh_(0.79788456 * (x + 0.044715 * x * x * x)));
    if (kind == ACT_RELU) return x > 0.0 ? x : 0.0;
    if (kind == ACT_RELU2) return x > 0.0 ? x * x : 0.0;
    if (kind == ACT_SIGMOID) return sigmoid(x);
    return x;
}

/* act(x) * z, as GLU says. */
float glu(float x, float z) {
    if (st.kind != ACT_CLAMP) return act(x) * z;
    const float limit = st.limit, a = x > limit ? limit : x, b = z > limit ? limit : z < -limit ? -limit : z;
    return a * sigmoid(st.alpha * a) * (b + 1.0);
}
