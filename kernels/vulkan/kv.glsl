/* kv.glsl: where a page holds the keys and values of a position: see step.def. Layer L2. */

/* The page of position pos of sequence s: its address for this layer. */
uvec2 page_of(int s, int pos) {
    const int page = param_int(pm.pages_at, (s * pm.pools + st.kv_pool) * pm.page_stride + pos / 32);
    return step64(st.kv, page, st.kv_page);
}
/* Value 0 of row `row` of head h, counted in values from the page's keys or from its values. From a value of a key to
 * the next it is KEY_STEP, since keys lie side by side. */
const int KEY_STEP = 32;
int key_at(int h, int row) { return h * KEY_STEP * st.kv_k_width + row; }
int value_at(int h, int row) { return (h * 32 + row) * st.kv_v_width; }
/* Where a page's values begin; they may be a prefix of the keys. */
uvec2 values_of(uvec2 page) { return st.kv_v_width == 0 ? page : add64(page, uint(st.kv_v_at)); }
float kv_load(uvec2 rows, int at) {
    return st.kv_value == 4 ? Floats(rows).f[at] : q_half_bits(uint(Halves(rows).h[at]));
}
