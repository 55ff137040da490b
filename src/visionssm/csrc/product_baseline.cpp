#define VISIONSSM_TARGET baseline
#include "product_kernels.h"
