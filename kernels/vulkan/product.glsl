/* product.glsl: what the two ways to multiply (gemv, matmul) share: whose rows and vectors a role means, and where its
 * results go. Layer L2. */
#include "common.glsl"
#include "decode.glsl"
#include "roles.h"

bool per_head() { return ROLE <= Q_VK_LORA_B && st.x_heads > 1; }
int product_k() { return ROLE == Q_VK_LORA_A ? st.lora_a_k : ROLE == Q_VK_LORA_B ? st.lora_a_rows : st.w_k; }
/* Rows that belong to one head of x: all, where x has one head. */
int product_rows() {
    if (ROLE == Q_VK_LORA_A) return st.lora_a_rows;
    if (ROLE == Q_VK_HEAD) return st.w_rows;
    if (ROLE == Q_VK_ROUTE) return st.n_expert;
    return per_head() ? st.y_width : st.y_heads * st.y_width;
}

/* Row r of head h. */
uvec2 product_row(int h, int r) {
    if (ROLE == Q_VK_LORA_A) return step64(st.lora_a_base, r, st.lora_a_row);
    const int at = h * product_rows() + r;
    if (ROLE == Q_VK_LORA_B) return step64(st.lora_b_base, at, st.lora_b_row);
    return step64(st.w_base, at, st.w_row);
}

/* The vector of head h of column c: where it begins in product_x. */
uvec2 product_x() { return ROLE == Q_VK_LORA_B ? st.scratch : st.x_base; }
int product_x_at(int c, int h) {
    if (ROLE == Q_VK_LORA_B) return (c * max(st.x_heads, 1) + h) * st.lora_a_rows;
    return VIEW_AT(x, c, h);
}

/* The product of row r of head h with its vector of column c. */
void product_emit(int c, int h, int r, float v) {
    if (ROLE == Q_VK_LORA_A) {
        Floats(st.scratch).f[(c * max(st.x_heads, 1) + h) * st.lora_a_rows + r] = v;
        return;
    }
    const int at = h * product_rows() + r;
    if (ROLE != Q_VK_LORA_B && present(st.b)) v += Floats(st.b).f[at];
    if (ROLE == Q_VK_HEAD) {
        Floats(st.logits).f[c * st.vocab + r] = softcapped(st.scale * v, st.softcap);
    } else if (ROLE == Q_VK_ROUTE) {
        Floats(st.scratch).f[c * st.n_expert + r] = v;
    } else {
        const int to = VIEW_FLAT(y, c, at);
        if (ROLE == Q_VK_LORA_B) v = SLOT(y)[to] + st.lora_scale * v;
        else if (st.add != 0) v = SLOT(y)[to] + v;
        SLOT(y)[to] = v;
    }
}
