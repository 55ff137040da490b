// The library's interface: picks the instruction set when it is loaded, and checks what could lead out of bounds.
#include <cstring>

#include "arguments.h"
#include "depthwise_arguments.h"
#include "gate_arguments.h"
#include "gelu_arguments.h"
#include "norm_arguments.h"
#include "product_arguments.h"

namespace visionssm {

#define DECLARE(set)                                \
  namespace set {                                   \
  Status path_scan(const Arguments&);               \
  Status path_scan_backward(const Arguments&);      \
  void depthwise(const DepthwiseArguments&);        \
  void bias_gelu(const GeluArguments&);             \
  void gelu_backward(const GeluBackwardArguments&); \
  void layer_norm(const NormArguments&);            \
  void rms_norm(const RmsNormArguments&);           \
  void gate_silu(const GateArguments&);             \
  void product(const ProductArguments&);            \
  }
DECLARE(avx512)
DECLARE(avx2)
DECLARE(baseline)
namespace avx512bf16 {
void product(const ProductArguments&);
}

namespace {

struct InstructionSet {
  const char* name;
  Status (*forward)(const Arguments&);
  Status (*backward)(const Arguments&);
  void (*depthwise)(const DepthwiseArguments&);
  void (*bias_gelu)(const GeluArguments&);
  void (*gelu_backward)(const GeluBackwardArguments&);
  void (*layer_norm)(const NormArguments&);
  void (*rms_norm)(const RmsNormArguments&);
  void (*gate_silu)(const GateArguments&);
  void (*product)(const ProductArguments&);
};

#define INSTRUCTION_SET(name, set, product)                                                                     \
  {                                                                                                             \
    name, set::path_scan, set::path_scan_backward, set::depthwise, set::bias_gelu, set::gelu_backward,          \
        set::layer_norm, set::rms_norm, set::gate_silu, product                                                 \
  }

// The best that this processor has, or the one that is asked for by name; null where it does not have that.
const InstructionSet* choose(const char* wanted) {
  const auto takes = [wanted](const char* name) { return !*wanted || strcmp(wanted, name) == 0; };
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
#if defined(VISIONSSM_HAVE_AVX512)
  static const InstructionSet avx512_set = INSTRUCTION_SET("avx512", avx512, avx512::product);
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#if defined(VISIONSSM_HAVE_AVX512BF16)  // AVX-512 with products of bfloat16
  static const InstructionSet avx512bf16_set = INSTRUCTION_SET("avx512bf16", avx512, avx512bf16::product);
  if (has_avx512 && __builtin_cpu_supports("avx512bf16") && takes("avx512bf16")) return &avx512bf16_set;
#endif
  if (has_avx512 && takes("avx512")) return &avx512_set;
#endif
#if defined(VISIONSSM_HAVE_AVX2)
  static const InstructionSet avx2_set = INSTRUCTION_SET("avx2", avx2, avx2::product);
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (has_avx2 && takes("avx2")) return &avx2_set;
#endif
  static const InstructionSet baseline_set = INSTRUCTION_SET("baseline", baseline, baseline::product);
  return takes("baseline") ? &baseline_set : nullptr;
}

const InstructionSet* current = choose("");

// Reads the whole table, which is small against the maps, so that no entry can lead out of bounds.
Status check_path(Arguments& a) {
  for (int64_t k = 0; k < a.K; k++) {
    const int32_t* row = a.path + k * a.path_stride;
    int32_t lowest = 0, highest = -1;
    for (int64_t t = 0; t < a.T; t++) {
      lowest = row[t] < lowest ? row[t] : lowest;
      highest = row[t] > highest ? row[t] : highest;
    }
    if (lowest >= -1 && highest < a.L) continue;
    for (int64_t t = 0; t < a.T; t++) {
      if (row[t] >= -1 && row[t] < a.L) continue;
      a.bad_k = k;
      a.bad_t = t;
      a.bad_position = row[t];
      return kBadPath;
    }
  }
  return kDone;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Uses the named instruction set from now on, or the best one for an empty name. Returns the name of what is used;
// null, and changes nothing, where this processor does not have it.
EXPORT const char* visionssm_use_instruction_set(const char* name) {
  const InstructionSet* found = choose(name);
  if (!found) return nullptr;
  current = found;
  return found->name;
}

EXPORT int64_t visionssm_path_scan(Arguments* a) {
  const Status status = check_path(*a);
  return status == kDone ? current->forward(*a) : status;
}

EXPORT int64_t visionssm_path_scan_backward(Arguments* a) {
  const Status status = check_path(*a);
  return status == kDone ? current->backward(*a) : status;
}

EXPORT void visionssm_depthwise(const DepthwiseArguments* a) { current->depthwise(*a); }

EXPORT void visionssm_bias_gelu(const GeluArguments* a) { current->bias_gelu(*a); }

EXPORT void visionssm_gelu_backward(const GeluBackwardArguments* a) { current->gelu_backward(*a); }

EXPORT void visionssm_layer_norm(const NormArguments* a) { current->layer_norm(*a); }

EXPORT void visionssm_rms_norm(const RmsNormArguments* a) { current->rms_norm(*a); }

EXPORT void visionssm_gate_silu(const GateArguments* a) { current->gate_silu(*a); }

EXPORT void visionssm_product(const ProductArguments* a) { current->product(*a); }

}  // namespace visionssm
