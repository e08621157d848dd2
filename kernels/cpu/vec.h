/* vec.h: a small vocabulary of float vectors in which the steps between products are written once for all instruction
 * sets, and the functions made of it: tanh, erf, sine and cosine, the activations of op.h, sums in its 16 lanes.
 *
 * A file of an instruction set includes the words (vec_avx2.h and the like), this, and the steps written in it, and
 * defines V_NAME(step, of), which gives functions the names of kernels.def. The words, each for V_N floats v_f; 16
 * floats are V_PARTS vectors:
 *
 *   v_set v_load v_store v_add v_sub v_mul v_div v_fma (a * b + c, rounded once) v_neg v_abs
 *   v_load_part(p, n) v_store_part(p, v, n)   only the first n lanes touch memory, others read 0; n may be any number
 *   v_first(v, n)                             lanes from n on become 0
 *   v_sign(size, sign)                        |size| with the sign of `sign`
 *   v_above(a, b, yes, no)                    a > b ? yes : no
 *   v_exp                                     within one unit of the last place (avx2.h)
 *   v_swap                                    neighbours 2i and 2i + 1 change places
 *   v_transpose(v)                            lane i of v[j] and lane j of v[i] change places, V_N vectors
 *   v_fold(lanes)                             16 lanes added as op.h says
 *   v_turn(x, &r)                             x = n pi / 2 + r, |r| <= pi / 4: n mod 4; the remainder is taken in
 *                                             doubles, with 106 bits of pi, and is right to float precision for |x| <
 *                                             2^40
 *
 * No memory but what it is given. Layer L2. */
#ifndef Q_VEC_H
#define Q_VEC_H

/* A whole vector or a tail of one: `n` is V_N in the body of a loop, where the compiler sees it. */
V_IN v_f v_get(const float *p, int64_t n) { return n >= V_N ? v_load(p) : v_load_part(p, n); }
V_IN void v_put(float *p, v_f v, int64_t n) {
    if (n >= V_N) v_store(p, v);
    else v_store_part(p, v, n);
}

V_IN v_f v_poly(const float *c, int n, v_f x) { /* c[0] is of the highest power; n is constant where this is inlined */
    v_f y = v_set(c[0]);
    Q_UNROLL for (int i = 1; i < n; i++) y = v_fma(y, x, v_set(c[i]));
    return y;
}

/* tanh: up to 0.625 the continued fraction x (x^4 + 105 x^2 + 945) / (15 x^4 + 420 x^2 + 945), whose remainder is below
 * 1e-9 of the value; beyond it 1 - 2 / (e^2x + 1). Within 3 units of the last place. */
V_IN v_f v_tanh(v_f x) {
    const v_f a = v_abs(x), a2 = v_mul(x, x), limit = v_set(0.625f);
    const v_f top = v_mul(a, v_fma(v_add(a2, v_set(105.0f)), a2, v_set(945.0f)));
    const v_f bottom = v_fma(v_fma(a2, v_set(15.0f), v_set(420.0f)), a2, v_set(945.0f));
    const v_f e = v_add(v_exp(v_add(a, a)), v_set(1.0f));
    const v_f q = v_div(v_above(a, limit, v_set(-2.0f), top), v_above(a, limit, e, bottom));
    return v_sign(v_above(a, limit, v_add(v_set(1.0f), q), q), x);
}

/* erf: up to 0.65 an odd polynomial; beyond it 1 - e^(-x^2) p(t), t = 1 / (1 + 0.4375 x), a polynomial fitted by
 * Chebyshev nodes up to x = 4, where erf rounds to 1. Within 2e-7 of the value. */
V_IN v_f v_erf(v_f x) {
    static const float near[] = {-0.0007078843975f, 0.005152080469f, -0.02684966199f, 0.1128361901f, -0.3761263227f,
                                 1.128379167f};
    static const float far[] = {0.07824663917f, -0.3052548679f, 0.3361777758f, -0.03494388737f, 0.209057825f,
                                0.2257165612f, 0.2434890839f, 0.2475833222f, -5.890680955e-5f};
    const v_f a = v_abs(x), limit = v_set(0.65f), end = v_set(4.0f), b = v_above(a, end, end, a), b2 = v_mul(b, b);
    const v_f small = v_mul(a, v_poly(near, (int)Q_COUNT(near), v_mul(a, a)));
    const v_f t = v_div(v_set(1.0f), v_fma(b, v_set(0.4375f), v_set(1.0f)));
    const v_f rest = v_mul(v_exp(v_neg(b2)), v_poly(far, (int)Q_COUNT(far), t));
    return v_sign(v_above(a, limit, v_sub(v_set(1.0f), rest), small), x);
}

/* Sine and cosine, within 2e-7 for |x| < 2^40; NaN for what is not finite. */
V_IN void v_sincos(v_f x, v_f *sine, v_f *cosine) {
    static const float s[] = {2.72499258e-6f, -0.0001984008674f, 0.008333331875f, -0.1666666666f};
    static const float c[] = {2.480060038e-5f, -0.001388888767f, 0.04166666666f};
    v_f r;
    const v_f n = v_turn(x, &r), r2 = v_mul(r, r), half = v_set(0.5f);
    const v_f si = v_fma(v_mul(r, r2), v_poly(s, (int)Q_COUNT(s), r2), r);
    const v_f co = v_fma(v_mul(r2, r2), v_poly(c, (int)Q_COUNT(c), r2), v_fma(r2, v_set(-0.5f), v_set(1.0f)));
    /* n:   0   1    2    3
     * sin  si  co  -si  -co
     * cos  co -si  -co   si */
    const v_f past = v_above(n, v_set(1.5f), v_sub(n, v_set(2.0f)), n); /* 0 or 1: which of the two */
    const v_f first = v_above(past, half, co, si), second = v_above(past, half, si, co);
    *sine = v_above(n, v_set(1.5f), v_neg(first), first);
    const v_f turned = v_sub(n, v_set(1.5f)); /* cosine is negative for 1 and 2 */
    *cosine = v_above(v_set(1.0f), v_abs(turned), v_neg(second), second);
}

V_IN v_f v_sigmoid(v_f x) { return v_div(v_set(1.0f), v_add(v_set(1.0f), v_exp(v_neg(x)))); }

/* An activation of q_kind, constant where this is inlined; SWIGLU_CLAMP has two inputs. */
V_IN v_f v_act(int kind, v_f x) {
    const v_f zero = v_set(0), one = v_set(1.0f);
    switch (kind) {
    case Q_ACT_SILU: return v_div(x, v_add(one, v_exp(v_neg(x))));
    case Q_ACT_GELU: return v_mul(v_mul(v_set(0.5f), x), v_add(one, v_erf(v_mul(x, v_set(0.70710678f)))));
    case Q_ACT_GELU_TANH: { /* (1 + tanh u) / 2 = 1 / (1 + e^-2u), without the cancellation */
        const v_f x3 = v_mul(v_mul(v_mul(v_set(0.044715f), x), x), x);
        return v_div(x, v_add(one, v_exp(v_mul(v_set(-2 * 0.79788456f), v_add(x, x3)))));
    }
    case Q_ACT_RELU: return v_above(x, zero, x, zero);
    case Q_ACT_RELU2: return v_above(x, zero, v_mul(x, x), zero);
    case Q_ACT_SIGMOID: return v_sigmoid(x);
    default: return x;
    }
}

/* dot of op.h. Lanes past the end add 0 * 0. */
V_IN float v_dot(const float *a, const float *b, int64_t k) {
    v_f lane[V_PARTS];
    int64_t i = 0;
    Q_UNROLL for (int p = 0; p < V_PARTS; p++) lane[p] = v_set(0);
    for (; i + 16 <= k; i += 16)
        Q_UNROLL for (int p = 0; p < V_PARTS; p++)
            lane[p] = v_fma(v_load(a + i + p * V_N), v_load(b + i + p * V_N), lane[p]);
    for (int p = 0; i < k && p < V_PARTS; p++)
        lane[p] = v_fma(v_load_part(a + i + p * V_N, k - i - p * V_N), v_load_part(b + i + p * V_N, k - i - p * V_N),
                        lane[p]);
    return v_fold(lane);
}

/* Values of a view's column from i on that lie one after the other, at most n. */
static inline int64_t v_run(const q_view *v, int64_t i, int64_t n) {
    return v->heads == 1 || v->stride == v->width ? n : Q_MIN(n, v->width - i % v->width);
}

#endif
