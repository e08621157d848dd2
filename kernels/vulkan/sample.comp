/* sample.comp: SAMPLE: a workgroup of 256 threads chooses the token of one wanted row, as q_ref_sample_row but in float32.
 *
 * What top_k and top_p keep is a prefix of the ids in the order "larger logit first, then lower id". No sorting: the logit
 * at which the prefix ends is found bit by bit, by counting or adding up what lies above a guess; ids that share that logit
 * are taken in ascending order. Every sum is of the same terms in the same order: 256 threads, each with a range of ids
 * in ascending order, then the 256 sums. Dispatch: x = wanted rows. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 256) in;
#include "common.glsl"

const int THREADS = 256;
shared float part[THREADS];
shared int whole[THREADS];
shared int chosen;

int tid, vocab, from, to, row; /* the thread's ids: from .. to - 1; the row's logits begin at `row` */
float best, temperature;

float logit(int i) { return Floats(st.logits).f[row + i]; }

/* Bits that order as logits do; both zeros are one. */
uint key_of(float x) {
    const uint u = x == 0.0 ? 0u : floatBitsToUint(x);
    return (u & 0x80000000u) != 0u ? ~u : u | 0x80000000u;
}

/* exp((x - best) / temperature); halves, because a difference of floats may overflow. What top_p and min_p keep is of
 * the model's own probabilities, at temperature 1. */
float weight_at(float x, float t) { return x == best ? 1.0 : exp_((0.5 * x - 0.5 * best) / t * 2.0); }
float weight_of(float x) { return weight_at(x, 1.0); }

/* What threads 0 .. t - 1 have. */
float below(int t) {
    float sum = 0.0;
    for (int i = 0; i < t; i++) sum += part[i];
    return sum;
}
float total_of(float mine) {
    barrier();
    part[tid] = mine;
    barrier();
    return below(THREADS);
}
int count_of(int mine) {
    int sum = 0;
    barrier();
    whole[tid] = mine;
    barrier();
    for (int i = 0; i < THREADS; i++) sum += whole[i];
    return sum;
}

/* A prefix of the order: all ids of a larger key, and of those with this key the ones up to `last`. */
uint edge_key;
int edge_id;
bool kept(int i, uint key) { return key > edge_key || (key == edge_key && i <= edge_id); }

/* The id of number `number` (from 1) among those with key edge_key, ascending; there are that many. */
int tie(int number) {
    int mine = 0, before = 0;
    for (int i = from; i < to; i++)
        if (key_of(logit(i)) == edge_key) mine++;
    count_of(mine);
    for (int i = 0; i < tid; i++) before += whole[i];
    if (before < number && number <= before + mine)
        for (int i = from; i < to; i++)
            if (key_of(logit(i)) == edge_key && ++before == number) chosen = i;
    barrier();
    return chosen;
}

/* How many kept ids have a key of at least this, and how much they weigh. */
int count_from(uint key) {
    int mine = 0;
    for (int i = from; i < to; i++)
        if (key_of(logit(i)) >= key) mine++;
    return count_of(mine);
}
float weight_from(uint key) {
    float mine = 0.0;
    for (int i = from; i < to; i++) {
        const float x = logit(i);
        const uint k = key_of(x);
        if (k >= key && kept(i, k)) mine += weight_of(x);
    }
    return total_of(mine);
}

void keep_top_k(int k) {
    uint key = 0u;
    for (uint bit = 0x80000000u; bit != 0u; bit >>= 1)
        if (count_from(key | bit) >= k) key |= bit;
    edge_key = key;
    edge_id = tie(k - (key == 0xFFFFFFFFu ? 0 : count_from(key + 1u)));
}

void keep_top_p(float p) {
    const float target = max(p * weight_from(0u), 1.0e-30);
    uint key = 0u;
    for (uint bit = 0x80000000u; bit != 0u; bit >>= 1)
        if (weight_from(key | bit) >= target) key |= bit;
    /* Of the ids with this key as many as are needed, one at least; all weigh the same. */
    const float above = weight_from(key + 1u), each = weight_of(uintBitsToFloat((key >> 31) != 0u ? key ^ 0x80000000u : ~key));
    int mine = 0;
    for (int i = from; i < to; i++) {
        const uint k = key_of(logit(i));
        if (k == key && kept(i, k)) mine++;
    }
    const int ties = count_of(mine);
    const float wanted = each > 0.0 ? ceil((target - above) / each) : 1.0;
    edge_key = key;
    edge_id = tie(int(clamp(wanted, 1.0, float(ties))));
}

/* The largest logit's lowest id, or -1: something is not a number or infinite, or all is masked out. */
int largest() {
    float top = -INFINITY;
    int id = -1, bad = 0;
    for (int i = from; i < to; i++) {
        const float x = logit(i);
        if (is_nan(x) || x == INFINITY) bad = 1;
        else if (x > top) {
            top = x;
            id = i;
        }
    }
    if (count_of(bad) != 0) return -1;
    barrier();
    part[tid] = top;
    whole[tid] = id;
    barrier();
    top = -INFINITY;
    id = -1;
    for (int t = 0; t < THREADS; t++)
        if (part[t] > top) {
            top = part[t];
            id = whole[t];
        }
    best = top;
    return id;
}

/* What an id weighs in the draw; 0 = it is not kept. */
float drawn(int i, float x) {
    return !kept(i, key_of(x)) || weight_of(x) < pm.min_p ? 0.0 : weight_at(x, temperature);
}

/* The id at which the running sum of what is kept, in order of ids, passes u times the total; else the last kept. */
int draw(float u, int top) {
    float mine = 0.0;
    int last = -1;
    for (int i = from; i < to; i++) {
        const float x = logit(i), w = drawn(i, x);
        if (w == 0.0) continue;
        mine += w;
        last = i;
    }
    const float target = u * total_of(mine);
    barrier();
    whole[tid] = last;
    if (tid == 0) chosen = -1;
    barrier();
    const float before = below(tid);
    /* One thread's range has the passing: the sums of threads ascend. */
    if (last >= 0 && before <= target && before + mine > target) {
        float sum = 0.0;
        for (int i = from; i < to; i++) {
            const float x = logit(i), w = drawn(i, x);
            if (w == 0.0) continue;
            sum += w;
            chosen = i;
            if (before + sum > target) break;
        }
    }
    barrier();
    if (chosen >= 0) return chosen;
    int id = top;
    for (int t = 0; t < THREADS; t++)
        if (whole[t] >= 0) id = whole[t];
    return id;
}

bool within(float x, float most) { return x >= 0.0 && x <= most; }

void main() {
    const int o = int(gl_WorkGroupID.x);
    if (pm.sampling == 0 || o >= pm.n_out) return;
    tid = int(gl_LocalInvocationID.x);
    vocab = st.vocab;
    row = o * vocab;
    temperature = pm.temperature;
    const int each = (vocab + THREADS - 1) / THREADS;
    from = min(tid * each, vocab);
    to = min(from + each, vocab);
    edge_key = 0u;
    edge_id = vocab;
    int id = largest();
    if (!within(temperature, 3.4e38) || !within(pm.top_p, 1.0) || !within(pm.min_p, 1.0)) id = -1;
    if (id >= 0 && temperature != 0.0) {
        if (pm.top_k > 0 && pm.top_k < vocab) keep_top_k(pm.top_k);
        if (pm.top_p > 0.0 && pm.top_p < 1.0) keep_top_p(pm.top_p);
        id = draw(param_float(pm.u_at, o), id);
    }
    if (tid == 0) Ints(st.sampled).i[o] = id;
}
