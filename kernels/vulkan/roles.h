/* roles.h: which part of an operation a pass is (specialization constant ROLE), for C and GLSL: macros, for want of an
 * enumeration in both. Layer L2. */
#ifndef Q_VK_ROLES_H
#define Q_VK_ROLES_H

/* gemv, matmul */
#define Q_VK_MATMUL 0
#define Q_VK_LORA_A 1 /* A x of each head, to scratch: [column][head][rank] */
#define Q_VK_LORA_B 2 /* y += lora_scale * B (A x) */
#define Q_VK_HEAD 3
#define Q_VK_ROUTE 4 /* logits of the experts, to scratch: [column][n_expert] */

/* moe */
#define Q_VK_EXPERT 5  /* y[i] = w[e_i] x + b[e_i], and act of it where there is no w2 */
#define Q_VK_EXPERT2 6 /* y[i] = act(y[i]) * (w2[e_i] x + b2[e_i]) */
#define Q_VK_DOWN 7

/* embed: the table that is added */
#define Q_VK_EMBED_W 0
#define Q_VK_EMBED_W2 1
#define Q_VK_EMBED_W3 2

/* norm: learned vectors that there are */
#define Q_VK_NORM_PLAIN 0
#define Q_VK_NORM_W 1

/* attn */
#define Q_VK_ATTN_PAGES 0
#define Q_VK_ATTN_COLUMNS 1
#define Q_VK_ATTN_PREFIX 2 /* in pages, values are a prefix of the keys */

/* kv_put */
#define Q_VK_PUT_KEYS 0
#define Q_VK_PUT_VALUES 1

#endif
