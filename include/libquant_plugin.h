/* libquant_plugin.h: the unstable tier: the records that formats, kernels, backends, loaders and architectures are made
 * of, for programs built together with the library (its tests and benchmarks, plug-ins in the same tree).
 *
 * Nothing here keeps its layout from one version to the next, so `make install` leaves it out: it includes the headers
 * of the tree that it belongs to. Programs that only use models need libquant.h alone. */
#ifndef LIBQUANT_PLUGIN_H
#define LIBQUANT_PLUGIN_H

#include "libquant.h"

#include "../libquant/arch.h"
#include "../libquant/backend.h"
#include "../libquant/format.h"
#include "../libquant/loader.h"
#include "../libquant/op.h"
#include "../libquant/plan.h"
#include "../libquant/quantizer.h"
#include "../libquant/recipe.h" /* which format a scheme gives a tensor, for programs that make models */
#include "../libquant/tokenizer.h"

#endif
