#define VISIONSSM_TARGET avx2
#include "depthwise_kernels.h"
