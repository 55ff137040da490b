#define VISIONSSM_TARGET avx2
#include "product_kernels.h"
