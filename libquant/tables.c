/* tables.c: the one place where the .def lists become arrays. Holds no logic but lookup by name. Layer L1. */
#include "arch.h"
#include "backend.h"
#include "hf_kind.h"
#include "loader.h"
#include "method.h"
#include "quantizer.h"
#include "tokenizer.h"
#include "transform.h"

#define FORMAT(name, id) extern const q_format q_format_##name;
#include "formats.def"
#undef FORMAT
const q_format *const q_formats[] = {
#define FORMAT(name, id) &q_format_##name,
#include "formats.def"
#undef FORMAT
};
const int32_t q_format_gguf_ids[] = {
#define FORMAT(name, id) id,
#include "formats.def"
#undef FORMAT
};
uint32_t q_format_count(void) { return (uint32_t)Q_COUNT(q_formats); }

#define QUANTIZER(name) extern const q_quantizer q_quantizer_##name;
#include "quantizers.def"
#undef QUANTIZER
const q_quantizer *const q_quantizers[] = {
#define QUANTIZER(name) &q_quantizer_##name,
#include "quantizers.def"
#undef QUANTIZER
    NULL};

#define TRANSFORM(name) extern const q_transform q_transform_##name;
#include "transforms.def"
#undef TRANSFORM
const q_transform *const q_transforms[] = {
#define TRANSFORM(name) &q_transform_##name,
#include "transforms.def"
#undef TRANSFORM
    NULL};

#define LOADER(name) extern const q_loader q_loader_##name;
#include "loaders.def"
#undef LOADER
const q_loader *const q_loaders[] = {
#define LOADER(name) &q_loader_##name,
#include "loaders.def"
#undef LOADER
    NULL};

#define HF_KIND(name) extern const q_hf_kind q_hf_##name;
#include "hf_kinds.def"
#undef HF_KIND
const q_hf_kind *const q_hf_kinds[] = {
#define HF_KIND(name) &q_hf_##name,
#include "hf_kinds.def"
#undef HF_KIND
    NULL};

#define METHOD(name) extern const q_method q_method_##name;
#include "methods.def"
#undef METHOD
const q_method *const q_methods[] = {
#define METHOD(name) &q_method_##name,
#include "methods.def"
#undef METHOD
    NULL};

#define TOKENIZER(name) extern const q_tokenizer_kind q_tokenizer_##name;
#include "tokenizers.def"
#undef TOKENIZER
const q_tokenizer_kind *const q_tokenizers[] = {
#define TOKENIZER(name) &q_tokenizer_##name,
#include "tokenizers.def"
#undef TOKENIZER
    NULL};

#define ARCH(name) extern const q_arch q_arch_##name;
#include "archs.def"
#undef ARCH
const q_arch *const q_archs[] = {
#define ARCH(name) &q_arch_##name,
#include "archs.def"
#undef ARCH
    NULL};

#define BACKEND(name) extern const q_backend q_backend_##name;
#include "backends.def"
#undef BACKEND
const q_backend *const q_backends[] = {
#define BACKEND(name) &q_backend_##name,
#include "backends.def"
#undef BACKEND
};
uint32_t q_backend_count(void) { return (uint32_t)Q_COUNT(q_backends); }

#define OP(name, fn, unit) void fn(const q_inst *s, const q_exec *e, int64_t begin, int64_t end);
#include "ops.def"
#undef OP
const q_op_info q_ops[Q_OP_COUNT] = {
#define OP(name, fn, unit) [Q_OP_##name] = {#name, unit, fn},
#include "ops.def"
#undef OP
};

const q_quantizer *q_quantizer_find(const char *name) {
    for (const q_quantizer *const *q = q_quantizers; *q; q++)
        if (strcmp((*q)->name, name) == 0) return *q;
    return NULL;
}

const q_transform *q_transform_find(const char *name) {
    for (const q_transform *const *t = q_transforms; *t; t++)
        if (strcmp((*t)->name, name) == 0) return *t;
    return NULL;
}

const q_method *q_method_find(q_str name) {
    for (const q_method *const *p = q_methods; *p; p++)
        if (q_str_is(name, (*p)->name)) return *p;
    return NULL;
}

double q_dim_value(const q_hparams *hp, q_dim dim, int32_t layer) {
    switch (dim) {
#define H(name) q_hp(hp, Q_HP_##name, layer)
#define DIM(name, expr) \
    case Q_DIM_##name: return (expr);
#include "dims.def"
#undef DIM
#undef H
    case Q_DIM_COUNT: break;
    }
    return 0;
}
