/* matmul_rows16_avxvnni.c: products of packed weights with 8-bit activations by vpdpbusd in 256 bits. Layer L2. */
#define Q_Y_TARGET "avx2,fma,f16c,avxvnni"
#define Q_Y_VNNI 1
#include "rows16_avx2.h"
#include "panel_avx2.h"
#include "rows16_formats_avx2.h"

Q_Y_PRODUCTS(avxvnni)
