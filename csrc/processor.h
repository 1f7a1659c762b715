// The vector instructions of the processor at hand, for functions that are compiled for several.
#pragma once

#include <cstdlib>
#include <cstring>

#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))

namespace processor {

// 2: AVX-512, 1: AVX2, 0: what every processor of its kind has. ATEN_CPU_CAPABILITY limits it, as it does torch:
// "default" to 0, "avx2" to 1. Read once; `static`, so that two copies of the library have a value each.
static inline int instruction_set() {
  static const int found = [] {
#ifdef __x86_64__
    const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
    const auto is = [limit](const char* name) { return limit && !std::strcmp(limit, name); };
    if (is("default") || !__builtin_cpu_supports("avx2")) return 0;
    if (is("avx2") || !__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
      return 1;
    return 2;
#endif
    return 0;
  }();
  return found;
}

}  // namespace processor
