/* fit.c: the searches behind every format's `fit`.
 *
 * A block is first brought to magnitudes around 1 (by a power of two, hence exactly) and its weights to a maximum of 1,
 * so that neither subnormal nor huge input loses precision. The search then goes in two stages:
 *   groups  for each group, scales over a range are tried; each try rounds the values to levels and solves the least
 *           squares for the scale (and minimum) that suit those levels; the best one is polished by repeating that.
 *   block   the groups' scales and minima become multiples of d and dmin; then, in turns, every group takes the
 *           multiple next to its own with the least error, and d, dmin are solved by least squares for all together.
 * Sums are taken over residuals, not over values: the gain of a step is then a small difference of small numbers, and
 * float32 suffices at 8 bits. Where the reference encoder's grid has the smaller error, that one is returned.
 * Without importance every error counts alike: on the bundled model that gave a smaller KL divergence in every format
 * than counting it by |x| plus its root mean square, or by x^2. Layer L1. */
#include "fit.h"

#include <float.h>
#include <math.h>

enum { MAX_TURNS = 3, POLISH = 6, MAX_STARTS = 32, FINALISTS = 3, CHUNK = 16 /* divides every group */ };

/* One block, normalised: x = value * 2^-exponent. */
typedef struct problem {
    const q_shape *shape;
    int n;                  /* values per group */
    int exponent;
    _Alignas(64) float x[Q_MAX_BLOCK], w[Q_MAX_BLOCK];
    float total[Q_MAX_GROUPS]; /* sum of w by group */
    float book[16], mid[15]; /* of a codebook: its levels and the borders between them */
    float top, bottom;      /* highest and lowest level */
} problem;

/* Sums over a group of weights w, levels l chosen under (s, m), and residuals r = x - (s * l - m). */
typedef struct sums {
    float w, wr, wrr, wl, wll, wrl;
} sums;

uint16_t q_fit_half(float f) {
    return q_f32_to_half(f > 65504.0f ? 65504.0f : f < -65504.0f ? -65504.0f : f);
}

/* As fmaxf and fminf, which are calls, of numbers. */
static inline float larger(float a, float b) { return a > b ? a : b; }
static inline float smaller(float a, float b) { return a < b ? a : b; }

/* Lowest and highest of n values, a multiple of CHUNK. */
Q_UNCHECKED static void extremes(const float *x, int n, float *lo, float *hi) {
    float l[CHUNK], h[CHUNK];
    for (int i = 0; i < CHUNK; i++) l[i] = h[i] = x[i];
    for (int at = CHUNK; at < n; at += CHUNK)
        for (int i = 0; i < CHUNK; i++) {
            l[i] = smaller(l[i], x[at + i]);
            h[i] = larger(h[i], x[at + i]);
        }
    for (int i = 0; i < 8; i++) l[i] = smaller(l[i], l[i + 8]);
    for (int i = 0; i < 8; i++) h[i] = larger(h[i], h[i + 8]);
    for (int i = 0; i < 4; i++) l[i] = smaller(l[i], l[i + 4]);
    for (int i = 0; i < 4; i++) h[i] = larger(h[i], h[i + 4]);
    *lo = smaller(smaller(l[0], l[1]), smaller(l[2], l[3]));
    *hi = larger(larger(h[0], h[1]), larger(h[2], h[3]));
}

/* Multiplied by a power of two, in double: exact until it is a float again. */
Q_UNCHECKED static void multiply(const float *x, int n, double by, float *y) {
    for (int at = 0; at < n; at += CHUNK)
        for (int i = 0; i < CHUNK; i++) y[at + i] = (float)((double)x[at + i] * by);
}

/* What a search needs besides: how much each error counts, brought to a maximum of 1, and a codebook's levels. */
static void prepare_search(const q_shape *s, const q_fit_in *in, problem *p) {
    float wmax = 0.0f;
    for (int i = 0; in->weight && i < s->weights; i++)
        if (in->weight[i] <= FLT_MAX) wmax = larger(wmax, in->weight[i]);
    for (int i = 0; i < s->weights; i++) {
        const float w = wmax > 0.0f ? in->weight[i] : 1.0f;
        p->w[i] = w > 0.0f && w <= FLT_MAX ? wmax > 0.0f ? (float)((double)w / (double)wmax) : 1.0f : 0.0f;
    }
    for (int g = 0; g < s->groups; g++) { /* a group that does not count still wants parameters of its own */
        float total = 0.0f;
        for (int k = 0; k < p->n; k++) total += p->w[g * p->n + k];
        for (int k = 0; !(total > 0.0f) && k < p->n; k++) p->w[g * p->n + k] = 1e-6f;
        p->total[g] = total > 0.0f ? total : 1e-6f * (float)p->n;
    }
    for (int k = 0; q_fit_book(s) && k < 16; k++) p->book[k] = q_fit_level(s, k);
    for (int k = 0; q_fit_book(s) && k < 15; k++) p->mid[k] = (p->book[k] + p->book[k + 1]) * 0.5f;
}

/* Fill p; false when all values are zero. */
static bool prepare(const q_shape *s, const q_fit_in *in, problem *p) {
    float lo, hi;
    p->shape = s;
    p->n = s->weights / s->groups;
    extremes(in->x, s->weights, &lo, &hi);
    const float amax = larger(-lo, hi);
    if (!(amax > 0.0f && amax <= FLT_MAX)) return false;
    (void)frexpf(amax, &p->exponent);
    multiply(in->x, s->weights, ldexp(1.0, -p->exponent), p->x);
    p->bottom = q_fit_level(s, s->lo);
    p->top = q_fit_level(s, s->hi);
    if (in->search) prepare_search(s, in, p);
    return true;
}

/* Levels for a chunk of values under inv = 1 / s. Loops of constant length over arrays: compilers vectorize them. */
Q_UNCHECKED static inline void levels_linear(const problem *p, const float *x, float inv, float m, float *l) {
    const float lo = p->bottom, hi = p->top;
    for (int i = 0; i < CHUNK; i++) {
        float v = (x[i] + m) * inv;
        v = v > lo ? v : lo;
        v = v < hi ? v : hi;
        l[i] = q_fit_round(v);
    }
}

Q_UNCHECKED static inline void levels_book(const problem *p, const float *x, float inv, float *l) {
    float v[CHUNK];
    int c[CHUNK] = {0};
    for (int i = 0; i < CHUNK; i++) v[i] = x[i] * inv;
    for (int k = 0; k < 15; k++) { /* how many borders lie below: in wide registers quicker than a bisection */
        const float border = p->mid[k];
        for (int i = 0; i < CHUNK; i++) c[i] += v[i] > border ? 1 : 0;
    }
    for (int i = 0; i < CHUNK; i++) l[i] = p->book[c[i]];
}

/* A lane for each value of a chunk: wide registers then add without moving values about. */
Q_UNCHECKED static inline float add_lanes(const float *a) {
    float b[8], c[4];
    for (int i = 0; i < 8; i++) b[i] = a[i] + a[i + 8];
    for (int i = 0; i < 4; i++) c[i] = b[i] + b[i + 4];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* Everything about group g under (s, m). Without minima only wrr, wll and wrl. */
Q_UNCHECKED static void sums_at(const problem *p, int g, float s, float m, sums *out) {
    const float inv = s != 0.0f ? 1.0f / s : 0.0f;
    const bool book = q_fit_book(p->shape), with_min = p->shape->mn_hi != 0;
    float rr[CHUNK] = {0}, ll[CHUNK] = {0}, rl[CHUNK] = {0}, rs[CHUNK] = {0}, ls[CHUNK] = {0};
    for (int at = g * p->n; at < (g + 1) * p->n; at += CHUNK) {
        const float *x = p->x + at, *w = p->w + at;
        float l[CHUNK], r[CHUNK], wr[CHUNK], wl[CHUNK];
        if (book) levels_book(p, x, inv, l);
        else levels_linear(p, x, inv, m, l);
        for (int i = 0; i < CHUNK; i++) {
            r[i] = x[i] - (s * l[i] - m);
            wr[i] = w[i] * r[i];
            wl[i] = w[i] * l[i];
        }
        for (int i = 0; i < CHUNK; i++) {
            rr[i] += wr[i] * r[i];
            ll[i] += wl[i] * l[i];
            rl[i] += wr[i] * l[i];
        }
        if (!with_min) continue;
        for (int i = 0; i < CHUNK; i++) {
            rs[i] += wr[i];
            ls[i] += wl[i];
        }
    }
    *out = (sums){.w = p->total[g], .wrr = add_lanes(rr), .wll = add_lanes(ll), .wrl = add_lanes(rl)};
    if (!with_min) return;
    out->wr = add_lanes(rs);
    out->wl = add_lanes(ls);
}

/* Least squares: the changes of s and m that suit the levels best; returns the error that then remains. A shape with
 * stored minima has m >= 0. */
static float solve(const sums *t, bool with_min, float *s, float *m) {
    const float s0 = *s, m0 = *m;
    const double W = (double)t->w, L = (double)t->wl, LL = (double)t->wll, R = (double)t->wr, RL = (double)t->wrl;
    double ds = LL > 0 ? RL / LL : 0, dm = 0;
    if (with_min) {
        const double det = W * LL - L * L;
        if (det > 1e-9 * W * LL) {
            const double inverse = 1 / det;
            ds = (W * RL - L * R) * inverse;
            dm = (L * RL - LL * R) * inverse;
        } else {
            ds = 0;
            dm = W > 0 ? -R / W : 0;
        }
    }
    *s = (float)((double)s0 + ds);
    *m = (float)((double)m0 + dm);
    return (float)((double)t->wrr - 2 * ds * RL + 2 * dm * R + ds * ds * LL - 2 * ds * dm * L + dm * dm * W);
}

/* As solve, with m kept at or above zero where minima are stored multiples. */
static float solve_bounded(const problem *p, const sums *t, float *s, float *m) {
    const float s0 = *s, m0 = *m;
    const bool with_min = p->shape->mn_hi != 0;
    float e = solve(t, with_min, s, m);
    if (p->shape->mn_hi > 0 && *m < 0.0f) {
        /* With m = 0 the residual is x - s0 l = r - m0: from there solve for s alone. */
        const double L = (double)t->wl, LL = (double)t->wll, W = (double)t->w, c = (double)m0;
        const double RL = (double)t->wrl - c * L, RR = (double)t->wrr - 2 * c * (double)t->wr + c * c * W;
        const double ds = LL > 0 ? RL / LL : 0;
        *s = (float)((double)s0 + ds);
        *m = 0.0f;
        e = (float)(RR - ds * RL);
    }
    if (p->shape->sc_lo >= 0 && p->shape->sc_hi > 1 && *s < 0.0f) *s = 0.0f;
    return e;
}

/* Repeat "levels for the parameters, parameters for the levels" from (s, m) while the error falls. */
static float polish(const problem *p, int g, float *s, float *m, int turns) {
    float best = FLT_MAX, ts = *s, tm = *m;
    for (int turn = 0; turn < turns; turn++) {
        sums t;
        sums_at(p, g, ts, tm, &t);
        if (!(t.wrr < best)) break;
        best = t.wrr;
        *s = ts;
        *m = tm;
        (void)solve_bounded(p, &t, &ts, &tm);
    }
    return best;
}

/* The value of largest magnitude of a group. */
static float extreme(const problem *p, int g) {
    float lo, hi;
    extremes(p->x + g * p->n, p->n, &lo, &hi);
    if (hi != -lo) return hi > -lo ? hi : lo;
    for (int i = g * p->n;; i++) /* of two alike the first */
        if (fabsf(p->x[i]) == hi) return p->x[i];
}

static float reference_scale(const problem *p, int g) {
    const float x = extreme(p, g), at = p->shape->reference;
    return at > 0.0f ? fabsf(x) / at : x / at;
}

static float search_scale(const problem *p, int g) {
    const q_shape *sh = p->shape;
    const float x = extreme(p, g);
    float best_s = 0.0f, best = FLT_MAX, none = 0.0f;
    if (x == 0.0f) return 0.0f;
    for (int k = 0; k <= 2 * sh->steps + 1; k++) {
        const float t = sh->from + (sh->to - sh->from) * (float)(k / 2) / (float)sh->steps;
        float s = k % 2 ? x / t : -x / t;
        sums at;
        sums_at(p, g, s, 0.0f, &at);
        const float e = solve(&at, false, &s, &none);
        if (e < best) {
            best = e;
            best_s = s;
        }
    }
    polish(p, g, &best_s, &none, POLISH);
    return best_s;
}

/* Lowest and highest of the range that levels 0 .. hi are spread over. */
static void range(const problem *p, int g, float *lo, float *hi) {
    extremes(p->x + g * p->n, p->n, lo, hi);
    if (p->shape->mn_hi > 0) { /* a stored minimum can only lower */
        *lo = smaller(*lo, 0.0f);
        *hi = larger(*hi, *lo);
    }
}

static void reference_min(const problem *p, int g, float *s, float *m) {
    float lo, hi;
    range(p, g, &lo, &hi);
    *s = (hi - lo) / p->top;
    *m = -lo;
}

static void search_min(const problem *p, int g, float *s, float *m) {
    const q_shape *sh = p->shape;
    float lo, hi, best = FLT_MAX;
    range(p, g, &lo, &hi);
    *s = 0.0f;
    *m = -lo;
    if (!(hi > lo)) return;
    float starts[MAX_STARTS][3] = {{0}}; /* scale, minimum, and the error that they leave for their levels */
    const int n = Q_MIN(sh->steps + 1, MAX_STARTS);
    for (int k = 0; k < n; k++) {
        float *t = starts[k];
        sums at;
        t[0] = (hi - lo) / (sh->from + (sh->to - sh->from) * (float)k / (float)sh->steps);
        t[1] = -lo;
        sums_at(p, g, t[0], t[1], &at);
        t[2] = solve_bounded(p, &at, &t[0], &t[1]);
    }
    for (int turn = 0; turn < (p->top < 4.0f ? n : Q_MIN(n, FINALISTS)); turn++) {
        float *t = starts[0];
        for (int k = 1; k < n; k++)
            if (starts[k][2] < t[2]) t = starts[k];
        const float e = polish(p, g, &t[0], &t[1], p->top < 4.0f ? 4 : 2);
        t[2] = FLT_MAX;
        if (e < best) {
            best = e;
            *s = t[0];
            *m = t[1];
        }
    }
    polish(p, g, s, m, POLISH);
}

/* The stored form of a real d: a finite half or float; `back` is it in the normalised block. */
static float stored(const problem *p, float d, float *back) {
    const double up = ldexp((double)d, p->exponent);
    float v;
    if (p->shape->full)
        v = up > (double)FLT_MAX ? FLT_MAX : up < -(double)FLT_MAX ? -FLT_MAX : (float)up;
    else
        v = q_half_to_f32(q_fit_half((float)fmax(-70000.0, fmin(70000.0, up))));
    *back = (float)ldexp((double)v, -p->exponent);
    return v;
}

/* What follows from d, dmin, sc and mn. The products are those of the decoder. */
static void finish(const q_shape *s, q_grid *grid) {
    for (int g = 0; g < s->groups; g++) {
        grid->scale[g] = grid->d * (float)grid->sc[g];
        grid->min[g] = grid->dmin * (float)grid->mn[g];
    }
}

/* Parameters of a block being refined: the grid, and its d and dmin in the normalised block. */
typedef struct trial {
    q_grid grid;
    float d, dmin;
} trial;

static void set_d(const problem *p, trial *t, float d, float dmin) {
    t->grid.d = stored(p, d, &t->d);
    t->grid.dmin = p->shape->mn_hi != 0 ? stored(p, dmin, &t->dmin) : 0.0f;
}

/* Make stored multiples of the groups' scales and minima. */
static void assemble(const problem *p, const float *s, const float *m, trial *t) {
    const q_shape *sh = p->shape;
    float smax = 0.0f, mmax = 0.0f;
    memset(t, 0, sizeof *t);
    if (sh->sc_hi == 1) {
        set_d(p, t, s[0], -m[0]);
        t->grid.sc[0] = 1;
        t->grid.mn[0] = (int16_t)(sh->mn_hi < 0 ? -1 : 0);
        return;
    }
    for (int g = 0; g < sh->groups; g++) {
        if (fabsf(s[g]) > fabsf(smax)) smax = s[g];
        mmax = fmaxf(mmax, m[g]);
    }
    set_d(p, t, smax / (float)(sh->sc_lo < 0 ? sh->sc_lo : sh->sc_hi),
          sh->mn_hi > 0 ? mmax / (float)sh->mn_hi : 0.0f);
    for (int g = 0; g < sh->groups; g++) {
        t->grid.sc[g] = (int16_t)(t->d != 0.0f ? q_fit_round_to(s[g] / t->d, sh->sc_lo, sh->sc_hi) : 0);
        t->grid.mn[g] = (int16_t)(t->dmin != 0.0f ? q_fit_round_to(m[g] / t->dmin, 0, sh->mn_hi) : 0);
    }
}

/* Take multiples a and b for group g where that lowers its error. */
static void try_multiples(const problem *p, int g, int a, int b, trial *t, sums *best) {
    sums at;
    sums_at(p, g, t->d * (float)a, t->dmin * (float)b, &at);
    if (!(at.wrr < best->wrr)) return;
    *best = at;
    t->grid.sc[g] = (int16_t)a;
    t->grid.mn[g] = (int16_t)b;
}

/* Give every group the multiples next to its own with the least error; returns that of the block and the least-squares
 * d and dmin for the levels chosen. */
static double choose_multiples(const problem *p, trial *t, float *d, float *dmin) {
    const q_shape *sh = p->shape;
    double AA = 0, AB = 0, BB = 0, RA = 0, RB = 0, total = 0;
    for (int g = 0; g < sh->groups; g++) {
        const int sc = t->grid.sc[g], mn = t->grid.mn[g];
        sums best;
        sums_at(p, g, t->d * (float)sc, t->dmin * (float)mn, &best);
        for (int a = Q_MAX(sc - 1, sh->sc_lo); a <= Q_MIN(sc + 1, sh->sc_hi); a += 2)
            try_multiples(p, g, a, mn, t, &best);
        for (int b = mn - 1; sh->mn_hi > 0 && b <= mn + 1; b += 2)
            if (b >= 0 && b <= sh->mn_hi) try_multiples(p, g, t->grid.sc[g], b, t, &best);
        const double A = (double)t->grid.sc[g], B = (double)t->grid.mn[g];
        AA += A * A * (double)best.wll;
        AB += A * B * (double)best.wl;
        BB += B * B * (double)best.w;
        RA += A * (double)best.wrl;
        RB += B * (double)best.wr;
        total += (double)best.wrr;
    }
    const double det = AA * BB - AB * AB;
    double dd = AA > 0 ? RA / AA : 0, dm = 0;
    if (BB > 0 && det > 1e-9 * AA * BB) {
        dd = (RA * BB - AB * RB) / det;
        dm = (AB * RA - AA * RB) / det;
    }
    *d = (float)((double)t->d + dd);
    *dmin = (float)((double)t->dmin + dm);
    return total;
}

static void refine(const problem *p, trial *t) {
    trial now = *t;
    double best = HUGE_VAL;
    if (p->shape->sc_hi == 1) return;
    for (int turn = 0; turn < MAX_TURNS; turn++) {
        float d, dmin;
        const double e = choose_multiples(p, &now, &d, &dmin);
        if (!(e < best)) return;
        best = e;
        *t = now;
        set_d(p, &now, d, fmaxf(dmin, 0.0f));
    }
}

/* Weighted error of a block under a grid. */
static double error_of(const problem *p, const trial *t) {
    double e = 0;
    for (int g = 0; g < p->shape->groups; g++) {
        sums at;
        sums_at(p, g, t->d * (float)t->grid.sc[g], t->dmin * (float)t->grid.mn[g], &at);
        e += (double)at.wrr;
    }
    return e;
}

static void fit(const q_shape *s, const q_fit_in *in, q_grid *grid, bool with_min) {
    problem p;
    trial reference, best;
    float sc[Q_MAX_GROUPS] = {0}, mn[Q_MAX_GROUPS] = {0};
    memset(grid, 0, sizeof *grid);
    if (!prepare(s, in, &p)) {
        for (int g = 0; s->sc_hi == 1 && g < s->groups; g++) grid->sc[g] = 1;
        for (int g = 0; s->mn_hi < 0 && g < s->groups; g++) grid->mn[g] = -1;
        finish(s, grid);
        return;
    }
    for (int g = 0; g < s->groups; g++) {
        if (with_min) reference_min(&p, g, &sc[g], &mn[g]);
        else sc[g] = reference_scale(&p, g);
    }
    assemble(&p, sc, mn, &reference);
    *grid = reference.grid;
    finish(s, grid);
    if (!in->search) return;
    for (int g = 0; g < s->groups; g++) {
        if (with_min) search_min(&p, g, &sc[g], &mn[g]);
        else sc[g] = search_scale(&p, g);
    }
    assemble(&p, sc, mn, &best);
    refine(&p, &best);
    if (error_of(&p, &best) < error_of(&p, &reference)) *grid = best.grid;
    finish(s, grid);
}

void q_fit_symmetric(const q_shape *s, const q_fit_in *in, q_grid *grid) { fit(s, in, grid, false); }
void q_fit_minimum(const q_shape *s, const q_fit_in *in, q_grid *grid) { fit(s, in, grid, true); }

/* q_fit_nearest for a group of integer levels; false when some value lies near a border, where that one decides. */
Q_UNCHECKED static bool codes_linear(const q_shape *s, float scale, float min, const float *x, int n, int32_t *codes) {
    const float lo = (float)s->lo, hi = (float)s->hi, limit = 0.499f * fabsf(scale);
    int near[CHUNK] = {0};
    for (int at = 0; at < n; at += CHUNK)
        for (int i = 0; i < CHUNK; i++) {
            float v = (x[at + i] + min) / scale;
            v = v > lo ? v : lo;
            v = v < hi ? v : hi;
            v = q_fit_round(v);
            codes[at + i] = (int32_t)v;
            near[i] |= fabsf(x[at + i] - (scale * v - min)) < limit ? 0 : 1;
        }
    int any = 0;
    for (int i = 0; i < CHUNK; i++) any |= near[i];
    return any == 0;
}

void q_fit_codes(const q_shape *s, const q_grid *grid, const float *x, int32_t *codes) {
    const int n = s->weights / s->groups;
    for (int g = 0; g < s->groups; g++, x += n, codes += n) {
        const float scale = grid->scale[g];
        float value;
        if (!q_fit_book(s) && scale != 0.0f && codes_linear(s, scale, grid->min[g], x, n, codes)) continue;
        for (int j = 0; j < n; j++) codes[j] = q_fit_nearest(s, grid, g * n + j, x[j], &value);
    }
}
