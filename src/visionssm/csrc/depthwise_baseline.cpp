#define VISIONSSM_TARGET baseline
#include "depthwise_kernels.h"
