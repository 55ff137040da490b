// GCC 12 warns about the deliberately undefined values inside its own intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#define VISIONSSM_TARGET avx512
#include "path_scan_kernels.h"
