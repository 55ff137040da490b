#define VISIONSSM_TARGET baseline
#include "gate_kernels.h"
