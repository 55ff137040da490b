#define VISIONSSM_TARGET avx2
#include "path_scan_kernels.h"
