#define VISIONSSM_TARGET baseline
#include "gelu_kernels.h"
