#define VISIONSSM_TARGET avx512
#include "norm_kernels.h"
