// What depends on the compiler, the system or the processor, apart from RULE_FN of rules.h.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#ifdef _MSC_VER
#define NOINLINE __declspec(noinline)
#else
#define NOINLINE __attribute__((noinline))
#endif

// Functions that are compiled for several instruction sets.
#if defined(__x86_64__)
#ifdef __clang__
#define WIDE_AVX512 min_vector_width(512), target("avx512f,avx512bw,avx512dq,avx512vl")
#else
#define WIDE_AVX512 target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 __attribute__((WIDE_AVX512))
#elif defined(__aarch64__) && defined(__linux__)
#define TARGET_SVE __attribute__((target("+sve")))
#endif

namespace processor {

// What every processor of a kind has, and what else functions are compiled for, the widest last.
#if defined(TARGET_AVX2)
constexpr const char* kNames[] = {"baseline", "AVX2", "AVX-512"};
#elif defined(TARGET_SVE)
constexpr const char* kNames[] = {"NEON", "SVE"};
#elif defined(__aarch64__)
constexpr const char* kNames[] = {"NEON"};
#else
constexpr const char* kNames[] = {"baseline"};
#endif

// The number of the widest that the processor at hand has. ATEN_CPU_CAPABILITY limits it on x86-64, as it does torch:
// "default" to baseline, "avx2" to AVX2. Read once; `static`, so that two copies of the library have a value each.
static inline int instruction_set() {
  static const int found = [] {
#if defined(TARGET_AVX2)
    const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
    const auto is = [limit](const char* name) { return limit && !std::strcmp(limit, name); };
    if (is("default") || !__builtin_cpu_supports("avx2")) return 0;
    if (is("avx2") || !__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
      return 1;
    return 2;
#elif defined(TARGET_SVE)
    return int(getauxval(AT_HWCAP) >> 22 & 1);  // HWCAP_SVE
#endif
    return 0;
  }();
  return found;
}

}  // namespace processor
