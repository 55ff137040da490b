// The kernels of one instruction set, in a namespace of its own: VISIONSSM_TARGET is defined by the file that includes
// this. Only inline functions of the standard library that the compiler always expands may be used below: an ordinary
// one would be compiled for every instruction set under one name, and the linker would keep any of them.
#pragma once
#include "backward.h"
#include "forward.h"

namespace visionssm::VISIONSSM_TARGET {

Status path_scan(const Arguments& a) { return a.x.dtype == kFloat64 ? forward<double>(a) : forward<float>(a); }

Status path_scan_backward(const Arguments& a) {
  return a.x.dtype == kFloat64 ? backward<double>(a) : backward<float>(a);
}

}  // namespace visionssm::VISIONSSM_TARGET
