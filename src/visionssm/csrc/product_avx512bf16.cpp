#define VISIONSSM_TARGET avx512bf16
#include "product_kernels.h"
