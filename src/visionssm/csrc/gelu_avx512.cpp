#define VISIONSSM_TARGET avx512
#include "gelu_kernels.h"
