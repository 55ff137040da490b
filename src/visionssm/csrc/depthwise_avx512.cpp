#define VISIONSSM_TARGET avx512
#include "depthwise_kernels.h"
