/* layer_neon.c: the steps between products on this instruction set: layer_steps.h, recurrent_steps.h. Layer L2. */
#define V_NAME(step, of) q_##step##__neon##of

#include "vec_neon.h"

#include "../vec.h"

#include "../layer_steps.h"
#include "../recurrent_steps.h"
