#define VISIONSSM_TARGET baseline
#include "path_scan_kernels.h"
