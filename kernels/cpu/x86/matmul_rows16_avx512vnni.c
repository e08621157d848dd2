/* matmul_rows16_avx512vnni.c: products of packed weights with 8-bit activations. The formats are records of
 * rows16_formats_avx512.h, the loops are in rows16_avx512.h. Layer L2. */
#include "rows16_formats_avx512.h"

Q_P_PRODUCT(matmul_q4_0_a8_32_rows16__avx512vnni, q_p_q4_0)
Q_P_PRODUCT(matmul_q8_0_a8_32_rows16__avx512vnni, q_p_q8_0)
Q_P_PRODUCT(matmul_iq4_nl_a8_32_rows16__avx512vnni, q_p_iq4_nl)
Q_P_PRODUCT(matmul_q5_0_a8_32_rows16__avx512vnni, q_p_q5_0)
Q_P_PRODUCT(matmul_q4_1_a8_32_rows16__avx512vnni, q_p_q4_1)
Q_P_PRODUCT(matmul_q5_1_a8_32_rows16__avx512vnni, q_p_q5_1)
Q_P_PRODUCT(matmul_q4_k_a8_256_rows16__avx512vnni, q_p_q4_k)
Q_P_PRODUCT(matmul_q5_k_a8_256_rows16__avx512vnni, q_p_q5_k)
Q_P_PRODUCT(matmul_q2_k_a8_256_rows16__avx512vnni, q_p_q2_k)
Q_P_PRODUCT(matmul_q3_k_a8_256_rows16__avx512vnni, q_p_q3_k)
Q_P_PRODUCT(matmul_q6_k_a8_32_rows16__avx512vnni, q_p_q6_k)
Q_P_PRODUCT(matmul_iq4_xs_a8_256_rows16__avx512vnni, q_p_iq4_xs)
