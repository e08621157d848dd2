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
 * Sums over values are wide.h's. What does not wait for one another is asked of it in one call, groups side by side:
 * the processor then works on several tries at a time. Without importance every error counts alike: on the bundled
 * model that gave a smaller KL divergence in every format than counting it by |x| plus its root mean square, or by x^2.
 * Layer L1. */
#include "fit.h"

#include <float.h>
#include <math.h>

#include "wide.h"

enum { MAX_TURNS = 3, POLISH = 6, MAX_STARTS = 34, FINALISTS = 3, MAX_WAYS = 112 /* 16 groups of 7 */ };

/* One block, normalised: x = value * 2^-exponent. */
typedef struct problem {
    const q_shape *shape;
    const q_wide *wide;
    double up, down;        /* 2^exponent, 2^-exponent */
    float lo[Q_MAX_GROUPS], hi[Q_MAX_GROUPS]; /* extreme values by group */
    float total[Q_MAX_GROUPS]; /* sum of w by group */
    float top;              /* highest level */
    q_wide_block block;
} problem;

static inline uint16_t half_of(float f) {
    return q_f32_to_half(f > 65504.0f ? 65504.0f : f < -65504.0f ? -65504.0f : f);
}
uint16_t q_fit_half(float f) { return half_of(f); }

/* As fmaxf and fminf, which are calls, of numbers. */
static inline float larger(float a, float b) { return a > b ? a : b; }
static inline float smaller(float a, float b) { return a < b ? a : b; }

/* What a search needs besides: how much each error counts, brought to a maximum of 1, and a codebook's levels. */
static void prepare_weights(const q_shape *s, const q_fit_in *in, problem *p) {
    float wmax = 0.0f, *w = p->block.w;
    const int n = p->block.n;
    for (int i = 0; in->weight && i < s->weights; i++)
        if (in->weight[i] <= FLT_MAX) wmax = larger(wmax, in->weight[i]);
    if (!(wmax > 0.0f)) {
        for (int i = 0; i < s->weights; i++) w[i] = 1.0f;
        for (int g = 0; g < s->groups; g++) p->total[g] = (float)n;
        return;
    }
    for (int i = 0; i < s->weights; i++) {
        const float v = in->weight[i];
        w[i] = v > 0.0f && v <= FLT_MAX ? (float)((double)v / (double)wmax) : 0.0f;
    }
    for (int g = 0; g < s->groups; g++) { /* a group that does not count still wants parameters of its own */
        float total = 0.0f;
        for (int k = 0; k < n; k++) total += w[g * n + k];
        for (int k = 0; !(total > 0.0f) && k < n; k++) w[g * n + k] = 1e-6f;
        p->total[g] = total > 0.0f ? total : 1e-6f * (float)n;
    }
}

static void prepare_search(const q_shape *s, const q_fit_in *in, problem *p) {
    q_wide_block *b = &p->block;
    b->with_min = s->mn_hi != 0;
    b->with_book = q_fit_book(s);
    b->lo = q_fit_level(s, s->lo);
    b->hi = p->top;
    for (int k = 0; b->with_book && k < 16; k++) b->book[k] = q_fit_level(s, k);
    for (int k = 0; b->with_book && k < 16; k++) b->mid[k] = k < 15 ? (b->book[k] + b->book[k + 1]) * 0.5f : HUGE_VALF;
    if (p->down > 0x1p-126 && p->down < 0x1p126) p->wide->multiply(in->x, s->weights, (float)p->down, b->x);
    else for (int i = 0; i < s->weights; i++) b->x[i] = (float)((double)in->x[i] * p->down);
    prepare_weights(s, in, p);
}

/* The power of two that brings values of at most amax > 0 to at most 1, and extreme values by it. */
static inline void normalise(problem *p, float amax, int groups) {
    int exponent;
    if (amax >= FLT_MIN) exponent = (int)(q_f32_bits(amax) >> 23) - 126; /* amax is 0.5 .. 1 times 2^exponent */
    else (void)frexpf(amax, &exponent);
    p->up = q_fit_power(exponent);
    p->down = q_fit_power(-exponent);
    for (int g = 0; g < groups; g++) {
        p->lo[g] = (float)((double)p->lo[g] * p->down);
        p->hi[g] = (float)((double)p->hi[g] * p->down);
    }
}

/* Fill p; false when all values are zero. */
static bool prepare(const q_shape *s, const q_fit_in *in, problem *p) {
    float amax = 0.0f;
    p->shape = s;
    p->wide = q_wide_of(in->wide);
    p->block.n = s->weights / s->groups;
    p->wide->extremes(in->x, s->groups, p->block.n, p->lo, p->hi);
    for (int g = 0; g < s->groups; g++) amax = larger(amax, larger(-p->lo[g], p->hi[g]));
    if (!(amax > 0.0f && amax <= FLT_MAX)) return false;
    normalise(p, amax, s->groups);
    p->top = q_fit_level(s, s->hi);
    if (in->search) prepare_search(s, in, p);
    return true;
}

/* ------------------------------------------------------------------------------------------------ least squares */

/* Least squares for the levels that a try chose: the change of s that suits them best; returns the error that then
 * remains. */
static float solve_scale(const q_wide_sums *t, float *s) {
    const double LL = (double)t->wll, RL = (double)t->wrl, ds = LL > 0 ? RL / LL : 0;
    *s = (float)((double)*s + ds);
    return (float)((double)t->wrr - 2 * ds * RL + ds * ds * LL);
}

/* The same for s and m. `w` is the sum of the group's weights. */
static float solve(const q_wide_sums *t, float w, float *s, float *m) {
    const double W = (double)w, L = (double)t->wl, LL = (double)t->wll, R = (double)t->wr, RL = (double)t->wrl;
    const double det = W * LL - L * L;
    double ds = 0, dm = W > 0 ? -R / W : 0;
    if (det > 1e-9 * W * LL) {
        const double inverse = 1 / det;
        ds = (W * RL - L * R) * inverse;
        dm = (L * RL - LL * R) * inverse;
    }
    *s = (float)((double)*s + ds);
    *m = (float)((double)*m + dm);
    return (float)((double)t->wrr - 2 * ds * RL + 2 * dm * R + ds * ds * LL - 2 * ds * dm * L + dm * dm * W);
}

/* What suits the shape: no minimum, any, or one at or above zero where minima are stored multiples. */
static float solve_bounded(const problem *p, int g, const q_wide_sums *t, float *s, float *m) {
    const float s0 = *s, m0 = *m, w = p->total[g];
    float e = p->block.with_min ? solve(t, w, s, m) : solve_scale(t, s);
    if (p->shape->mn_hi > 0 && *m < 0.0f) {
        /* With m = 0 the residual is x - s0 l = r - m0: from there solve for s alone. */
        const double L = (double)t->wl, LL = (double)t->wll, W = (double)w, c = (double)m0;
        const double RL = (double)t->wrl - c * L, RR = (double)t->wrr - 2 * c * (double)t->wr + c * c * W;
        const double ds = LL > 0 ? RL / LL : 0;
        *s = (float)((double)s0 + ds);
        *m = 0.0f;
        e = (float)(RR - ds * RL);
    }
    if (p->shape->sc_lo >= 0 && p->shape->sc_hi > 1 && *s < 0.0f) *s = 0.0f;
    return e;
}

/* ------------------------------------------------------------------------------------------------ groups */

/* A way down from some start: "levels for the parameters, parameters for the levels", while the error falls. */
typedef struct way {
    float s, m, error;      /* the best so far */
    q_wide_try next;        /* what to try then */
    bool over;
} way;

/* Some more turns of each. */
static void polish(const problem *p, way *ways, int n, int turns) {
    q_wide_try tries[MAX_WAYS];
    q_wide_sums sums[MAX_WAYS];
    for (int turn = 0; turn < turns; turn++) {
        int live = 0;
        for (int i = 0; i < n; i++)
            if (!ways[i].over) tries[live++] = ways[i].next;
        if (live == 0) return;
        p->wide->sums(&p->block, tries, live, sums);
        live = 0;
        for (int i = 0; i < n; i++) {
            way *t = &ways[i];
            if (t->over) continue;
            const q_wide_sums *at = &sums[live++];
            t->over = !(at->wrr < t->error);
            if (t->over) continue;
            t->error = at->wrr;
            t->s = t->next.s;
            t->m = t->next.m;
            (void)solve_bounded(p, t->next.group, at, &t->next.s, &t->next.m);
        }
    }
}

static way way_from(int group, float s, float m) { return (way){s, m, FLT_MAX, {group, s, m}, false}; }

/* The value of largest magnitude of a group; of two alike the first. */
static float extreme(const problem *p, const float *x, int g) {
    const float lo = p->lo[g], hi = p->hi[g];
    if (hi != -lo) return hi > -lo ? hi : lo;
    for (int i = g * p->block.n;; i++)
        if (fabsf((float)((double)x[i] * p->down)) == hi) return x[i] < 0.0f ? -hi : hi;
}

static float reference_scale(const problem *p, const float *x, int g) {
    const float at = p->shape->reference;
    if (at > 0.0f) return larger(-p->lo[g], p->hi[g]) / at;
    return extreme(p, x, g) / at;
}

/* The scales of all groups. */
static void search_scales(const problem *p, const float *x, float *s) {
    const q_shape *sh = p->shape;
    way ways[Q_MAX_GROUPS];
    for (int g = 0; g < sh->groups; g++) {
        q_wide_try tries[MAX_STARTS];
        q_wide_sums sums[MAX_STARTS];
        const float top = extreme(p, x, g);
        const int n = Q_MIN(2 * sh->steps + 2, MAX_STARTS);
        float best = FLT_MAX;
        ways[g] = way_from(g, 0.0f, 0.0f);
        ways[g].over = top == 0.0f;
        if (top == 0.0f) continue;
        for (int k = 0; k < n; k++) {
            const float t = sh->from + (sh->to - sh->from) * (float)(k / 2) / (float)sh->steps;
            tries[k] = (q_wide_try){g, k % 2 ? top / t : -top / t, 0.0f};
        }
        p->wide->sums(&p->block, tries, n, sums);
        for (int k = 0; k < n; k++) {
            const float e = solve_scale(&sums[k], &tries[k].s);
            if (e < best) {
                best = e;
                ways[g].s = ways[g].next.s = tries[k].s;
            }
        }
    }
    polish(p, ways, sh->groups, POLISH);
    for (int g = 0; g < sh->groups; g++) s[g] = ways[g].s;
}

/* Lowest and highest of the range that levels 0 .. hi are spread over. */
static void range(const problem *p, int g, float *lo, float *hi) {
    *lo = p->lo[g];
    *hi = p->hi[g];
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

/* Starts of a group; the most promising become ways. Returns how many. */
static int start_min(const problem *p, int g, int most, way *ways) {
    const q_shape *sh = p->shape;
    q_wide_try tries[MAX_STARTS];
    q_wide_sums sums[MAX_STARTS];
    float lo, hi, left[MAX_STARTS]; /* the error that a start leaves for its levels */
    range(p, g, &lo, &hi);
    if (!(hi > lo)) return 0;
    const int n = Q_MIN(sh->steps + 1, MAX_STARTS);
    for (int k = 0; k < n; k++)
        tries[k] = (q_wide_try){g, (hi - lo) / (sh->from + (sh->to - sh->from) * (float)k / (float)sh->steps), -lo};
    p->wide->sums(&p->block, tries, n, sums);
    for (int k = 0; k < n; k++) left[k] = solve_bounded(p, g, &sums[k], &tries[k].s, &tries[k].m);
    for (int i = 0; i < Q_MIN(n, most); i++) {
        int best = 0;
        for (int k = 1; k < n; k++)
            if (left[k] < left[best]) best = k;
        ways[i] = way_from(g, tries[best].s, tries[best].m);
        left[best] = FLT_MAX;
    }
    return Q_MIN(n, most);
}

/* The scales and minima of all groups. */
static void search_mins(const problem *p, float *s, float *m) {
    const int groups = p->shape->groups;
    const bool few = p->top < 4.0f; /* two bits: each start counts */
    const int most = few ? MAX_WAYS / Q_MAX_GROUPS : FINALISTS;
    way ways[MAX_WAYS], best[Q_MAX_GROUPS];
    int count[Q_MAX_GROUPS], n = 0;
    for (int g = 0; g < groups; g++) n += count[g] = start_min(p, g, most, ways + n);
    polish(p, ways, n, few ? 4 : 2);
    n = 0;
    for (int g = 0; g < groups; g++) {
        float lo, hi;
        range(p, g, &lo, &hi);
        best[g] = way_from(g, 0.0f, -lo);
        best[g].over = count[g] == 0;
        for (int i = 0; i < count[g]; i++, n++)
            if (ways[n].error < best[g].error) best[g] = ways[n];
    }
    polish(p, best, groups, POLISH - 1);
    for (int g = 0; g < groups; g++) {
        s[g] = best[g].s;
        m[g] = best[g].m;
    }
}

/* ------------------------------------------------------------------------------------------------ blocks */

/* The stored form of a real d: a finite half or float; `back` is it in the normalised block. */
static inline float stored(const problem *p, float d, float *back) {
    const double up = (double)d * p->up;
    float v;
    if (p->shape->full)
        v = up > (double)FLT_MAX ? FLT_MAX : up < -(double)FLT_MAX ? -FLT_MAX : (float)up;
    else
        v = q_half_to_f32(half_of((float)(up < 70000.0 ? up > -70000.0 ? up : -70000.0 : 70000.0)));
    *back = (float)((double)v * p->down);
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
        mmax = larger(mmax, m[g]);
    }
    set_d(p, t, smax / (float)(sh->sc_lo < 0 ? sh->sc_lo : sh->sc_hi),
          sh->mn_hi > 0 ? mmax / (float)sh->mn_hi : 0.0f);
    for (int g = 0; g < sh->groups; g++) {
        t->grid.sc[g] = (int16_t)(t->d != 0.0f ? q_fit_round_to(s[g] / t->d, sh->sc_lo, sh->sc_hi) : 0);
        t->grid.mn[g] = (int16_t)(t->dmin != 0.0f ? q_fit_round_to(m[g] / t->dmin, 0, sh->mn_hi) : 0);
    }
}

/* Multiples to try for all groups: three each at most. */
typedef struct multiples {
    q_wide_try tries[3 * Q_MAX_GROUPS];
    q_wide_sums sums[3 * Q_MAX_GROUPS];
    int sc[3 * Q_MAX_GROUPS], mn[3 * Q_MAX_GROUPS], n;
} multiples;

static void add_multiples(const trial *t, int g, int sc, int mn, multiples *to) {
    to->tries[to->n] = (q_wide_try){g, t->d * (float)sc, t->dmin * (float)mn};
    to->sc[to->n] = sc;
    to->mn[to->n++] = mn;
}

/* Take those that lower a group's error. */
static void take_multiples(const problem *p, multiples *from, trial *t, q_wide_sums *best) {
    p->wide->sums(&p->block, from->tries, from->n, from->sums);
    for (int i = 0; i < from->n; i++) {
        const int g = from->tries[i].group;
        if (!(from->sums[i].wrr < best[g].wrr)) continue;
        best[g] = from->sums[i];
        t->grid.sc[g] = (int16_t)from->sc[i];
        t->grid.mn[g] = (int16_t)from->mn[i];
    }
}

/* Sums of each group as the trial has it. */
static void sums_of_all(const problem *p, const trial *t, q_wide_sums *out) {
    multiples all;
    all.n = 0;
    for (int g = 0; g < p->shape->groups; g++) add_multiples(t, g, t->grid.sc[g], t->grid.mn[g], &all);
    p->wide->sums(&p->block, all.tries, all.n, out);
}

/* Give every group the multiples next to its own with the least error. Who has the lowest keeps it: going up from there
 * too lowers q6_k's error by 0.005 %. */
static void next_multiples(const problem *p, trial *t, q_wide_sums *best) {
    const q_shape *sh = p->shape;
    multiples some;
    sums_of_all(p, t, best);
    some.n = 0;
    for (int g = 0; g < sh->groups; g++) {
        const int sc = t->grid.sc[g], mn = t->grid.mn[g];
        if (sc - 1 >= sh->sc_lo) add_multiples(t, g, sc - 1, mn, &some);
        if (sc > sh->sc_lo && sc + 1 <= sh->sc_hi) add_multiples(t, g, sc + 1, mn, &some);
    }
    take_multiples(p, &some, t, best);
    some.n = 0;
    for (int g = 0; g < sh->groups && sh->mn_hi > 0; g++) {
        const int sc = t->grid.sc[g], mn = t->grid.mn[g];
        if (mn - 1 >= 0) add_multiples(t, g, sc, mn - 1, &some);
        if (mn + 1 <= sh->mn_hi) add_multiples(t, g, sc, mn + 1, &some);
    }
    if (some.n) take_multiples(p, &some, t, best);
}

/* The same; returns the error of the block and the least-squares d and dmin for the levels chosen. */
static double choose_multiples(const problem *p, trial *t, float *d, float *dmin) {
    double AA = 0, AB = 0, BB = 0, RA = 0, RB = 0, total = 0;
    q_wide_sums best[Q_MAX_GROUPS];
    next_multiples(p, t, best);
    for (int g = 0; g < p->shape->groups; g++) {
        const double A = (double)t->grid.sc[g], B = (double)t->grid.mn[g];
        AA += A * A * (double)best[g].wll;
        AB += A * B * (double)best[g].wl;
        BB += B * B * (double)p->total[g];
        RA += A * (double)best[g].wrl;
        RB += B * (double)best[g].wr;
        total += (double)best[g].wrr;
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

/* Weighted error of a block under a grid. */
static double error_of(const problem *p, const trial *t) {
    q_wide_sums sums[Q_MAX_GROUPS];
    double e = 0;
    sums_of_all(p, t, sums);
    for (int g = 0; g < p->shape->groups; g++) e += (double)sums[g].wrr;
    return e;
}

/* Returns the error that is left. */
static double refine(const problem *p, trial *t) {
    trial now = *t;
    double best = HUGE_VAL;
    for (int turn = 0; p->shape->sc_hi > 1 && turn < MAX_TURNS; turn++) {
        float d, dmin;
        const double e = choose_multiples(p, &now, &d, &dmin);
        if (!(e < best)) break;
        best = e;
        *t = now;
        set_d(p, &now, d, larger(dmin, 0.0f));
    }
    return best < HUGE_VAL ? best : error_of(p, t);
}

/* The reference of a block that is one group, without the detour through multiples: rounding to nearest is little
 * else. */
static bool fit_one(const q_shape *s, const q_fit_in *in, q_grid *grid, bool with_min) {
    problem p;
    float scale, min = 0.0f, unused;
    p.shape = s;
    p.block.n = s->weights;
    p.top = q_fit_level(s, s->hi);
    q_wide_of(in->wide)->extremes(in->x, 1, s->weights, p.lo, p.hi);
    const float amax = larger(-p.lo[0], p.hi[0]);
    if (!(amax > 0.0f && amax <= FLT_MAX)) return false;
    normalise(&p, amax, 1);
    if (with_min) reference_min(&p, 0, &scale, &min);
    else scale = reference_scale(&p, in->x, 0);
    grid->d = grid->scale[0] = stored(&p, scale, &unused);
    grid->dmin = s->mn_hi != 0 ? stored(&p, -min, &unused) : 0.0f;
    grid->sc[0] = 1;
    grid->mn[0] = (int16_t)(s->mn_hi < 0 ? -1 : 0);
    grid->min[0] = grid->dmin * (float)grid->mn[0];
    return true;
}

static void fit(const q_shape *s, const q_fit_in *in, q_grid *grid, bool with_min) {
    problem p;
    trial reference, best;
    float sc[Q_MAX_GROUPS] = {0}, mn[Q_MAX_GROUPS] = {0};
    if (!in->search && s->sc_hi == 1 && fit_one(s, in, grid, with_min)) return;
    if (!prepare(s, in, &p)) {
        memset(grid, 0, sizeof *grid);
        for (int g = 0; s->sc_hi == 1 && g < s->groups; g++) grid->sc[g] = 1;
        for (int g = 0; s->mn_hi < 0 && g < s->groups; g++) grid->mn[g] = -1;
        finish(s, grid);
        return;
    }
    for (int g = 0; g < s->groups; g++) {
        if (with_min) reference_min(&p, g, &sc[g], &mn[g]);
        else sc[g] = reference_scale(&p, in->x, g);
    }
    assemble(&p, sc, mn, &reference);
    *grid = reference.grid;
    finish(s, grid);
    if (!in->search) return;
    if (with_min) search_mins(&p, sc, mn);
    else search_scales(&p, in->x, sc);
    assemble(&p, sc, mn, &best);
    if (refine(&p, &best) < error_of(&p, &reference)) *grid = best.grid;
    finish(s, grid);
}

void q_fit_symmetric(const q_shape *s, const q_fit_in *in, q_grid *grid) { fit(s, in, grid, false); }
void q_fit_minimum(const q_shape *s, const q_fit_in *in, q_grid *grid) { fit(s, in, grid, true); }

void q_fit_codes(const q_shape *s, const q_wide *wide, const q_grid *grid, const float *x, int32_t *codes) {
    const int n = s->weights / s->groups;
    const q_wide *w = q_wide_of(wide);
    for (int g = 0; g < s->groups; g++, x += n, codes += n) {
        const float scale = grid->scale[g], min = grid->min[g], limit = 0.499f * fabsf(scale);
        const bool plain = !q_fit_book(s) && scale != 0.0f;
        float value;
        if (plain && w->codes(x, n, scale, min, (float)s->lo, (float)s->hi, codes)) continue;
        for (int j = 0; j < n; j++)
            if (!plain || !(fabsf(x[j] - (scale * (float)codes[j] - min)) < limit))
                codes[j] = q_fit_nearest(s, grid, g * n + j, x[j], &value);
    }
}
