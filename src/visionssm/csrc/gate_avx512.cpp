#define VISIONSSM_TARGET avx512
#include "gate_kernels.h"
