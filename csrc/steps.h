// What csrc/cpu_*.cpp, one for each instruction set, provide for csrc/cpu.cpp: the loops of all rules. Floating-point
// contraction is off, so all sets give the same bits.
#pragma once

#include "processor.h"
#include "table.h"

namespace steps {

using namespace tables;

// The rule for elements [begin, end) of the tensor of a row; begin is a multiple of kBlock. R: the type of the arithmetic.
template <class Rule, class R>
using Span = void (*)(const Kinds&, const Common<Rule, R>&, void* const* row, int64_t begin, int64_t end);

template <class Rule>
struct Spans {
  Span<Rule, float> of_float[2];  // by Kinds::taken
  Span<Rule, double> of_double[2];

  Span<Rule, float> get(bool taken, float) const { return of_float[taken]; }
  Span<Rule, double> get(bool taken, double) const { return of_double[taken]; }
};

#define ONE(NAME, RULE) Spans<rules::RULE> NAME;
#define WITH_CAUTION(NAME, RULE) \
  ONE(NAME, RULE) ONE(NAME##_agreement, Agreement<rules::RULE>) ONE(NAME##_cautious, Cautious<rules::RULE>)
struct Loops {
  RULES_OF_STEPS(WITH_CAUTION)
  OTHER_RULES(ONE)
};
#undef ONE
#undef WITH_CAUTION

extern const Loops baseline, avx2, avx512, sve;  // those that are not compiled for a processor are not used

inline const Loops& best() {
  static constexpr const Loops* all[] = {
      &baseline,
#if defined(TARGET_AVX2)
      &avx2, &avx512,
#elif defined(TARGET_SVE)
      &sve,
#endif
  };
  return *all[processor::instruction_set()];
}

}  // namespace steps
