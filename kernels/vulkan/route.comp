/* route.comp: ROUTE's choice from the logits in scratch ([column][n_expert], made by gemv or matmul): a workgroup of 64
 * threads has one column. Up to 1024 experts. Dispatch: y = columns. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"

const int MOST = 1024, SOFTMAX = 0, SOFTMAX_TOP = 1, SIGMOID = 2;
shared float value[MOST], rank[MOST], group_score[MOST], best_rank[64];
shared int best_id[64];
shared bool taken[MOST];

/* a before b: the larger rank, of equals the lower id. What is not a number comes last. */
bool before(float a, int ia, float b, int ib) {
    if (ib < 0) return ia >= 0;
    if (ia < 0) return false;
    if (is_nan(a) != is_nan(b)) return is_nan(b);
    return a > b || ((a == b || is_nan(a)) && ia < ib);
}

/* The untaken one of n scores that comes first; all threads get it. */
#define BEST(score, n, id)                                                            \
    {                                                                                 \
        barrier();                                                                    \
        int mine = -1;                                                                \
        for (int i = tid; i < n; i += 64)                                             \
            if (!taken[i] && (mine < 0 || before(score[i], i, score[mine], mine))) mine = i; \
        best_id[tid] = mine;                                                          \
        best_rank[tid] = mine < 0 ? 0.0 : score[mine];                                \
        for (int s = 32; s > 0; s /= 2) {                                             \
            barrier();                                                                \
            if (tid < s && before(best_rank[tid + s], best_id[tid + s], best_rank[tid], best_id[tid])) { \
                best_rank[tid] = best_rank[tid + s];                                  \
                best_id[tid] = best_id[tid + s];                                      \
            }                                                                         \
        }                                                                             \
        barrier();                                                                    \
        id = best_id[0];                                                              \
        barrier();                                                                    \
        if (tid == 0) taken[id] = true;                                               \
        barrier();                                                                    \
    }

/* Put the experts of all but the best groups out of the running: by the sum of a group's two best. */
void keep_groups(int tid) {
    const int size = st.n_expert / st.n_groups;
    for (int g = tid; g < st.n_groups; g += 64) {
        float a = -INFINITY, b = -INFINITY;
        for (int i = g * size; i < (g + 1) * size; i++) {
            const float r = rank[i];
            if (r > a) {
                b = a;
                a = r;
            } else if (r > b) b = r;
        }
        group_score[g] = size > 1 ? a + b : a;
        taken[g] = false;
    }
    for (int i = 0; i < st.n_groups_used; i++) {
        int id;
        BEST(group_score, st.n_groups, id)
    }
    for (int i = tid; i < st.n_expert; i += 64)
        if (!taken[i / size]) rank[i] = -INFINITY;
    barrier();
}

void main() {
    const int c = int(gl_WorkGroupID.y), tid = int(gl_LocalInvocationID.x), n = st.n_expert, used = st.n_used;
    if (c >= columns()) return;
    for (int i = tid; i < n; i += 64) value[i] = Floats(st.scratch).f[c * n + i];
    barrier();
    if (st.kind == SOFTMAX) {
        float m = value[0], sum = 0.0;
        for (int i = 1; i < n; i++) m = value[i] > m ? value[i] : m;
        barrier();
        for (int i = tid; i < n; i += 64) value[i] = exp_(value[i] - m);
        barrier();
        for (int i = 0; i < n; i++) sum += value[i];
        barrier();
        const float r = 1.0 / sum;
        for (int i = tid; i < n; i += 64) value[i] *= r;
    }
    for (int i = tid; i < n; i += 64) {
        if (st.kind == SIGMOID) value[i] = sigmoid(value[i]);
        rank[i] = value[i];
        if (st.kind == SIGMOID && present(st.b2)) rank[i] += Floats(st.b2).f[i];
    }
    barrier();
    if (st.n_groups > 1) keep_groups(tid);
    for (int i = tid; i < n; i += 64) taken[i] = false;
    const int ids = VIEW_AT(y, c, 0), weights = ids + used;
    for (int i = 0; i < used; i++) {
        int id;
        BEST(rank, n, id)
        if (tid == 0) {
            SLOT(y)[ids + i] = float(id);
            group_score[i] = value[id]; /* the weights from here on */
        }
    }
    if (tid != 0) return;
    if (st.kind == SOFTMAX_TOP) {
        float m = group_score[0], sum = 0.0;
        for (int i = 1; i < used; i++) m = max(m, group_score[i]);
        for (int i = 0; i < used; i++) {
            group_score[i] = exp_(group_score[i] - m);
            sum += group_score[i];
        }
        for (int i = 0; i < used; i++) group_score[i] *= 1.0 / sum;
    }
    float sum = 0.0;
    for (int i = 0; i < used; i++) sum += group_score[i];
    for (int i = 0; i < used; i++) {
        float v = group_score[i];
        if (st.renorm != 0 && sum > 0.0) v /= sum;
        SLOT(y)[weights + i] = v * st.scale;
    }
}
