/* cpu.h: private to kernels/cpu: instruction sets, the record of a kernel, and what a product kernel is given.
 *
 * choose.c chooses kernels, cpu.c compiles plans; a kernel file implements rows of kernels.def and knows nothing of
 * plans beyond op.h. Layer L2. */
#ifndef Q_CPU_H
#define Q_CPU_H

#include "../../libquant/backend.h"
#include "../../libquant/wide.h"
#include "../ref/ref.h"
#include "layout.h"

/* Before a part of a kernel over codes, such as what unpacks a format: a skeleton calls it through a constant record,
 * which costs nothing only once it is inlined. Sanitizers make each of those many copies so large that a file takes gcc
 * a minute; their builds (Q_SANITIZED, from the Makefile) let the compiler choose. */
#ifdef Q_SANITIZED
#define Q_PART static inline
#else
#define Q_PART static inline __attribute__((always_inline))
#endif

typedef enum {
#define ISA(name, includes) Q_ISA_##name,
#include "isa.def"
#undef ISA
    Q_ISA_COUNT
} q_isa;

/* A set of rungs, a bit for each. Q_ISAS_x is x with all that it includes, which a compiler knows only of what stands
 * before x. */
typedef uint32_t q_isas;
enum {
#define WITH(name) Q_ISAS_##name
#define ISA(name, includes) Q_ISAS_##name = 1 << Q_ISA_##name | (includes),
#include "isa.def"
#undef ISA
#undef WITH
};
_Static_assert(Q_ISA_COUNT <= 31, "a set of instruction sets is the bits of an int");

extern const char *const q_isa_names[Q_ISA_COUNT];
extern const q_isas q_isa_with[Q_ISA_COUNT]; /* Q_ISAS_x by number */
static inline bool q_isa_in(q_isas set, q_isa isa) { return (set >> isa & 1) != 0; }
/* Does this machine offer it, and all that it includes? */
bool q_isa_present(q_isa isa);
/* What a user's mask leaves: the rungs named ("avx2", or several: "a+b") with all that they include; NULL = all that
 * are present. LQ_E_ARG: no such name; LQ_E_UNSUPPORTED: not here. */
lq_status q_isa_choose(const char *names, q_isas *out);
/* A set as q_isa_choose takes it: the rungs that no other of the set includes. Cut after the last that fits into n. */
void q_isa_text(q_isas set, char *text, size_t n);
/* The processor's own name for itself, trimmed; "" when it has none. */
void q_cpu_brand(char *text, size_t n);

/* One call of a product kernel: y[c][r] = w[r] . x[c] for all rows r and columns c, in the order of op.h. Then the bias
 * is added, and then, with `add`, what y held. */
typedef struct q_mm {
    const q_format *format;
    const uint8_t *w;     /* first row; of any alignment. Packed: the weight's first panel, Q_ALIGN-aligned */
    uint64_t row_bytes;   /* from a row to the next. Packed: from a panel to the next */
    int64_t row;          /* packed: the row of the weight that is the first of `rows` */
    int64_t rows;
    int64_t k;            /* a multiple of the format's block and of the activation's */
    const uint8_t *x;     /* column 0: k floats, or q_act_bytes() of blocks; 4-aligned */
    int64_t x_stride;     /* bytes from a column to the next */
    int64_t n;            /* columns, at least 1 */
    float *y;
    int64_t y_stride;     /* floats from a column to the next */
    const float *bias;    /* [rows] or NULL */
    bool add;
    void *scratch;        /* Q_ALIGN-aligned, as many bytes as the row's `scratch` says */
} q_mm;

typedef struct q_attn_isa q_attn_isa; /* attn.h */

/* MOE_DOWN's sum for n values of a column: y = the sum over i ascending of weight[i] * value[place[i]], fma from 0;
 * with `add` to what y held. value[p] begins at value + p * n. */
typedef void (*q_combine_fn)(float *y, bool add, const float *value, int64_t n, const int32_t *place,
                             const float *weight, int64_t used);

/* A line of kernels.def. Products have `mm`, activation formats `quantize`, sums of experts `combine`, the loops of
 * quantizing `wide`, other operations `fn`. */
typedef struct q_cpu_kernel {
    const char *name;     /* op_weight_act[_tile]__isa */
    q_op op;              /* products: MATMUL, which stands for HEAD too */
    const char *format;   /* of the weight; "any" */
    const q_act *act;     /* what a product reads; NULL = float32 */
    const q_cpu_layout *layout; /* of the weights that a product reads; NULL = as in the file */
    q_isa isa;
    int32_t rows;         /* products: what a chunk of rows is best a multiple of */
    void (*mm)(const q_mm *m);
    uint64_t (*mm_scratch)(int64_t k, int64_t columns);
    q_op_fn fn;
    uint64_t (*scratch)(const q_inst *s, int32_t columns);
    bool (*accepts)(const q_inst *s); /* NULL = any step of its operation */
    void (*quantize)(const float *x, int64_t n, void *dst);
    const q_attn_isa *attn; /* attention's own way of sharing out its work; NULL = by units, as any step */
    q_combine_fn combine;
    const q_wide *wide;
} q_cpu_kernel;

extern const q_cpu_kernel q_cpu_kernels[];
uint32_t q_cpu_kernel_count(void);

/* kernels.def writes activation formats by name. */
#define Q_CPU_ACT_f32 NULL
#define Q_CPU_ACT_a8_32 (&q_act_a8_32)
#define Q_CPU_ACT_a8_256 (&q_act_a8_256)
#define Q_CPU_ACT_a_bf16 (&q_act_a_bf16)
#define Q_CPU_ACT_a8_row (&q_act_a8_row)
#define Q_CPU_ACT_lanes (&q_act_lanes)

#define PRODUCT(weight, activation, isa_, rows_, name_)  \
    void q_##name_(const q_mm *m);                       \
    uint64_t q_##name_##_scratch(int64_t k, int64_t n);
#define PACKED(weight, activation, isa_, rows_, layout_, name_) \
    extern const q_cpu_layout q_##layout_;                      \
    PRODUCT(weight, activation, isa_, rows_, name_)
#define STEP(op_, isa_, name_)                                                      \
    void q_##name_(const q_inst *s, const q_exec *e, int64_t begin, int64_t end);   \
    uint64_t q_##name_##_scratch(const q_inst *s, int32_t columns);                 \
    bool q_##name_##_accepts(const q_inst *s);
#define ATTENTION(isa_, name_)              \
    extern const q_attn_isa q_##name_##_isa; \
    STEP(ATTN, isa_, name_)
#define ACTIVATION(activation, isa_, name_) void q_##name_(const float *x, int64_t n, void *dst);
#define COMBINE(isa_, name_)                                                                                           \
    void q_##name_(float *y, bool add, const float *value, int64_t n, const int32_t *place, const float *weight,       \
                   int64_t used);
#define WIDE(isa_, name_) extern const q_wide q_##name_;
#include "kernels.def"

#endif
