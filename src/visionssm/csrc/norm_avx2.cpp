#define VISIONSSM_TARGET avx2
#include "norm_kernels.h"
