// Factors of blocks of consecutive elements, from the sums of their squared gradients, on the CPU: a gradient is read
// for the sum and, while it is in a cache, for the step. The same bits with any number of threads and on every
// instruction set.
#pragma once

#include "sums.h"

namespace blocks {

using storage::load;

constexpr int64_t kTile = 16 * storage::kBlock;  // elements between the two readings of a gradient
constexpr int64_t kLong = sums::kUnit;           // blocks of more elements are added up before the step

// The blocks of a tensor of `size` elements: gradient, second moments and factors, one of each for every `length`.
template <class T, class R>
struct Blocks {
  const T* g;
  R *moments, *factors;
  int64_t length, count;

  Blocks(void* const* row, int64_t size)
      : g(static_cast<const T*>(row[tables::kGrad])), moments(static_cast<R*>(row[tables::kMoments])),
        factors(static_cast<R*>(row[row[tables::kRowFactors] ? tables::kRowFactors : tables::kColumnFactors])),
        length(row[tables::kRowFactors] ? reinterpret_cast<int64_t>(row[tables::kLength]) : 1),
        count(size / length) {}
};

// Makes factors of the sums that are in their places, for blocks [begin, end).
template <class Rule, class T, class R>
RULE_FN void finish(const typename Rule::template Block<R>& scalars, const Blocks<T, R>& of, int64_t begin, int64_t end) {
  const auto k = scalars;
  const R share = R(1) / R(of.length);
  R *x = of.factors, *v = of.moments;
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) x[i] = Rule::factor(k, x[i] * share, v[i]);
}

template <class Rule, class T, class R>
RULE_FN void fill(const typename Rule::template Block<R>& scalars, const Blocks<T, R>& of, int64_t begin, int64_t end) {
  if (of.length == 1)
    for (int64_t i = begin; i < end; ++i) of.factors[i] = R(load(of.g[i])) * R(load(of.g[i]));
  else
    for (int64_t i = begin; i < end; ++i)
      of.factors[i] = R(sums::row<false, T, R>(of.g + i * of.length, nullptr, of.length));
  finish<Rule>(scalars, of, begin, end);
}

#define FILL_FOR(NAME, ...)                                                                                \
  template <class Rule, class T, class R>                                                                  \
  __VA_ARGS__ void fill_##NAME(const typename Rule::template Block<R>& k, const Blocks<T, R>& of, int64_t begin, \
                               int64_t end) {                                                              \
    fill<Rule>(k, of, begin, end);                                                                         \
  }
FILL_FOR(baseline, )
#if defined(TARGET_AVX2)
FILL_FOR(avx2, TARGET_AVX2)
FILL_FOR(avx512, TARGET_AVX512)
#elif defined(TARGET_SVE)
FILL_FOR(sve, TARGET_SVE)
#endif

template <class Rule, class T, class R>
struct Best {
  static constexpr void (*fill[])(const typename Rule::template Block<R>&, const Blocks<T, R>&, int64_t, int64_t) = {
      fill_baseline<Rule, T, R>,
#if defined(TARGET_AVX2)
      fill_avx2<Rule, T, R>, fill_avx512<Rule, T, R>,
#elif defined(TARGET_SVE)
      fill_sve<Rule, T, R>,
#endif
  };
};

// Some of the blocks of a tensor.
struct Some {
  int64_t tensor, begin, end;
};

// The factors of `some`, of tensors[some.tensor], before the step: the blocks may be long, and all threads add up.
template <class Rule, class T, class R, class Scalars>
void fill_before(const std::vector<Some>& some, const std::vector<Blocks<T, R>>& tensors, const Scalars& scalars,
                 int threads) {
  std::vector<const void*> x;
  std::vector<void*> to;
  std::vector<int64_t> sizes, lengths;
  for (const auto& [i, begin, end] : some) {
    x.push_back(tensors[i].g + begin * tensors[i].length);
    to.push_back(tensors[i].factors + begin);
    sizes.push_back((end - begin) * tensors[i].length);
    lengths.push_back(tensors[i].length);
  }
  sums::of_rows_as<T, R>(int64_t(some.size()), x.data(), sizes.data(), lengths.data(), nullptr, to.data(), threads);
  for (const auto& [i, begin, end] : some) finish<Rule>(scalars[i], tensors[i], begin, end);
}

}  // namespace blocks
