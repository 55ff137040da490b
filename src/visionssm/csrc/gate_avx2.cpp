#define VISIONSSM_TARGET avx2
#include "gate_kernels.h"
