#define VISIONSSM_TARGET avx2
#include "gelu_kernels.h"
