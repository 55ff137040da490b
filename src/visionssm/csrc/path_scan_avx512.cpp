#define VISIONSSM_TARGET avx512
#include "path_scan_kernels.h"
