#define VISIONSSM_TARGET avx512
#include "product_kernels.h"
