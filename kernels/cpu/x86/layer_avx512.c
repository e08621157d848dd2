/* layer_avx512.c: the steps between products on this instruction set: layer_steps.h, recurrent_steps.h. Layer L2. */
#define V_NAME(step, of) q_##step##__avx512##of

#include "vec_avx512.h"

#include "../vec.h"

#include "../layer_steps.h"
#include "../recurrent_steps.h"
