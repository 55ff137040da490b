#define VISIONSSM_TARGET baseline
#include "norm_kernels.h"
