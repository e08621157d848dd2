/* choose.h: which kernel of kernels.def a step gets, on what a device may use. Private to the CPU backend. Layer L2. */
#ifndef Q_CPU_CHOOSE_H
#define Q_CPU_CHOOSE_H

#include "program.h"

/* The layout that the best kernel for a product of this weight reads: what would be chosen if it were packed. NULL =
 * none. */
const q_cpu_layout *q_cpu_layout_for(q_op op, const q_weight *w, q_isas isas);

/* The kernel of a step, NULL = the reference; where its weight is packed as sessions run, the one for then. choose2: of
 * the step's w2, NULL also where it has none. f32_activations: none that rounds them. */
const q_cpu_kernel *q_cpu_choose(const q_inst *s, q_isas isas, bool f32_activations);
const q_cpu_kernel *q_cpu_choose2(const q_inst *s, q_isas isas, bool f32_activations);
/* The step with its w2, which has a kernel of its own. */
q_inst q_cpu_second_of(const q_inst *s);
/* What runs until a weight is packed for kernel k, reading the same copies of activations; NULL = there is nothing to
 * wait for, or nothing to wait with. */
const q_cpu_kernel *q_cpu_choose_meanwhile(const q_inst *s, const q_cpu_kernel *k, q_isas isas, bool f32_activations);

/* What copies a slot in an activation format, and what sums experts' results. */
void (*q_cpu_choose_quantize(const q_act *act, q_isas isas))(const float *x, int64_t n, void *dst);
q_combine_fn q_cpu_choose_combine(q_isas isas);
/* The loops of quantizing; NULL = those for any processor. */
const q_wide *q_cpu_choose_wide(q_isas isas);
/* The function of a step that is not the plan's, but follows a product. */
q_op_fn q_cpu_choose_after(q_op op, q_isas isas);

#endif
