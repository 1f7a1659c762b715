// The loops of all rules for an instruction set, which a file csrc/cpu_*.cpp names before it includes this: SET and the
// attribute TARGET. Each element of the parameter, the gradient and the states is read once and written once (the gradient
// is not written).

#include <algorithm>
#include <array>
#include <type_traits>

#include "convert.h"
#include "steps.h"

namespace {

using namespace storage;
using namespace tables;
using converting::Noise;

// The sum of a block, the same on every instruction set.
template <class R>
RULE_FN R total(const R (&x)[kBlock]) {
  constexpr int lanes = 16;
  R sums[lanes] = {};
  for (int i = 0; i < kBlock; i += lanes)
    for (int j = 0; j < lanes; ++j) sums[j] += x[i + j];
  for (int half = lanes / 2; half; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

// Whether state j of a rule is in memory; it may be the gradient of the step before instead.
template <class Rule, bool taken>
constexpr bool kept(int j) {
  return !taken || j != Rule::previous;
}

// Whether it is written there.
template <class Rule, bool taken>
constexpr bool written(int j) {
  return kept<Rule, taken>(j) && Rule::writes_states && !(Rule::constant >> j & 1);
}

// The rule for n elements: p, g and the previous gradient in the type of the arithmetic, states as S: that
// type too, or bfloat16 with stochastic rounding (then at most kBlock elements, with their noise).
// Element i has the factor x[i], and all have decay; the numbers to be added up go to sums[j][i].
template <class Rule, class S, bool taken, class R>
RULE_FN void loop(const Common<Rule, R>& common, R* p, const R* g, const R* previous, S* const* states, int64_t n,
                  const uint32_t* places, uint32_t key, const R* x, R decay, R (*sums)[kBlock]) {
  constexpr bool rounded = !std::is_same_v<S, R>;
  const auto k = common.scalars;  // copies that no store can alias, or the loop is not vectorised
  const R previous_scale = common.previous_scale;
  S* s[rules::kSlots<Rule>];
  for (int j = 0; j < Rule::states; ++j) s[j] = states[j];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    R parameter = p[i], gradient = g[i], state[rules::kSlots<Rule>], number[rules::kSums<Rule>];
    if constexpr (rounded) gradient = quiet_input(gradient);
    for (int j = 0; j < Rule::states; ++j) state[j] = kept<Rule, taken>(j) ? load(s[j][i]) : -previous_scale * previous[i];
    rules::update<Rule>(k, Rule::factors ? x[i] : R(1), decay, gradient, parameter, state, number);
    for (int j = 0; j < Rule::sums; ++j) sums[j][i] = number[j];
    if constexpr (Rule::writes_param) p[i] = parameter;
    for (int j = 0; j < Rule::states; ++j) {
      if (!written<Rule, taken>(j)) continue;
      if constexpr (rounded)
        store(s[j][i], state[j], noise_bits(places[i] ^ key, j));
      else
        store(s[j][i], state[j]);
    }
  }
}

// The factors of n elements from `at` on of the tensor of a row.
template <class R>
RULE_FN void fill_factors(R* to, void* const* row, int64_t at, int64_t n) {
  const R *rows = static_cast<const R*>(row[kRowFactors]), *columns = static_cast<const R*>(row[kColumnFactors]);
  const int64_t length = reinterpret_cast<int64_t>(row[kLength]);
  for (int64_t i = 0, r = at / length, c = at % length; i < n; ++r, c = 0) {
    const R factor = rows ? rows[r] : R(1);
    const int64_t end = std::min(n, i + length - c);
    if (columns)
      for (const R* column = columns + c; i < end; ++i, ++column) to[i] = factor * *column;
    else
      for (; i < end; ++i) to[i] = factor;
  }
}

// The rule for elements from `at` on of the tensor of a row, with its factors and sums; where it has either,
// `at` is a multiple of kBlock.
template <class Rule, class S, bool taken, class R>
SHARED void update(const Common<Rule, R>& common, R* p, const R* g, const R* previous, S* const* states, int64_t n,
                   const uint32_t* places, uint32_t key, void* const* row, int64_t at) {
  if constexpr (!Rule::factors && !Rule::sums)
    return loop<Rule, S, taken, R>(common, p, g, previous, states, n, places, key, nullptr, R(0), nullptr);
  const R decay = row[kDecay] ? *static_cast<const R*>(row[kDecay]) : R(0);
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min<int64_t>(kBlock, n - i);
    alignas(64) R x[kBlock], sums[rules::kSums<Rule>][kBlock] = {};
    S* s[rules::kSlots<Rule>];
    for (int j = 0; j < Rule::states; ++j) s[j] = states[j] + i;
    if constexpr (Rule::factors) fill_factors(x, row, at + i, count);
    loop<Rule, S, taken, R>(common, p + i, g + i, taken ? previous + i : nullptr, s, count, places, key, x, decay,
                               sums);
    for (int j = 0; j < Rule::sums; ++j)
      static_cast<R*>(row[kBlockSums])[(at + i) / kBlock * Rule::sums + j] = total(sums[j]);
  }
}

template <class Rule, class S>
RULE_FN std::array<S*, rules::kSlots<Rule>> states_at(void* const* row, int64_t at) {
  std::array<S*, rules::kSlots<Rule>> s;
  for (int j = 0; j < Rule::states; ++j) s[j] = static_cast<S*>(row[kStates + j]) + at;
  return s;
}

// Elements [begin, end) of a tensor whose states are kept in the type of the arithmetic, as it is itself.
template <class Rule, bool taken, class R>
RULE_FN void direct(const Common<Rule, R>& common, void* const* row, int64_t begin, int64_t end) {
  const auto at = [=](int column) { return static_cast<R*>(row[column]) + begin; };
  const R* previous = taken ? at(kPrevious) : nullptr;
  const auto s = states_at<Rule, R>(row, begin);
  update<Rule, R, taken>(common, at(kParam), at(kGrad), previous, s.data(), end - begin, nullptr, 0, row, begin);
}

// At most kBlock elements of a tensor, from a multiple of kBlock on. What is not kept in float32 is expanded
// into buffers first, but for bfloat16 states, which the rule's own loop converts.
template <class Rule, bool taken>
RULE_FN void block(const Kinds& kinds, const Common<Rule, float>& common, void* const* row, int64_t at, int64_t n,
                   const Noise& noise) {
  const uint32_t key = noise_of_block(common.step, uint64_t(at) / kBlock);
  alignas(64) float buffers[3 + Rule::states][kBlock];
  float* three[3];
  constexpr Column columns[3] = {kParam, kGrad, kPrevious};
  for (int c = 0; c < (taken ? 3 : 2); ++c) {
    three[c] = kinds.parameter == kFloat32 ? static_cast<float*>(row[columns[c]]) + at : buffers[c];
    if (kinds.parameter != kFloat32) converting::expand(kinds.parameter, three[c], row[columns[c]], at, n);
  }
  auto& [p, g, previous] = three;
  if (kinds.rounding == kKahan || kinds.rounding == kSplit) converting::add_rest(kinds.rounding, p, row, at, n);
  if (kinds.state == kStateFloat32) {
    const auto s = states_at<Rule, float>(row, at);
    update<Rule, float, taken>(common, p, g, previous, s.data(), n, nullptr, 0, row, at);
  } else if (kinds.state == kStateBfloat16) {
    const auto s = states_at<Rule, bfloat16>(row, at);
    update<Rule, bfloat16, taken>(common, p, g, previous, s.data(), n, noise.places, key, row, at);
  } else {
    float* s[rules::kSlots<Rule>];
    constexpr auto is_signed = [](int j) { return !(Rule::nonnegative >> j & 1); };
    const auto maximum = [=](int j) { return static_cast<float*>(row[kStates + Rule::states + j]) + at / kBlock; };
    for (int j = 0; j < Rule::states; ++j) {
      s[j] = buffers[3 + j];
      if (!kept<Rule, taken>(j)) continue;
      if (kinds.state != kStateInt8)
        converting::expand(kinds.parameter, s[j], row[kStates + j], at, n);
      else
        converting::decode(is_signed(j), s[j], row[kStates + j], at, *maximum(j), n);
    }
    update<Rule, float, taken>(common, p, g, previous, s, n, nullptr, 0, row, at);
    for (int j = 0; j < Rule::states; ++j)  // all before the first is used: a quotient of it takes long
      if (kinds.state == kStateInt8 && written<Rule, taken>(j)) *maximum(j) = converting::largest(s[j], n);
    for (int j = 0; j < Rule::states; ++j) {
      if (!written<Rule, taken>(j)) continue;
      const uint32_t part = noise_of_code(key, j) >> kUnused;
      if (kinds.state != kStateInt8)
        converting::shrink(kinds.parameter, row[kStates + j], at, s[j], n);
      else
        converting::encode(is_signed(j), row[kStates + j], at, *maximum(j), s[j], n, noise.of_codes[j % 2], part);
    }
  }
  if (kinds.parameter != kFloat32 && Rule::writes_param) converting::store_param(kinds, row, at, p, n, noise, key);
}

// Elements [begin, end) of any tensor; begin is a multiple of kBlock.
template <class Rule, bool taken>
TARGET void span(const Kinds&, const Common<Rule, double>& common, void* const* row, int64_t begin, int64_t end) {
  direct<Rule, taken>(common, row, begin, end);
}

template <class Rule, bool taken>
TARGET void span(const Kinds& kinds, const Common<Rule, float>& common, void* const* row, int64_t begin, int64_t end) {
  if (!Rule::small || (kinds.parameter == kFloat32 && (kinds.state == kLikeParameter || kinds.state == kStateFloat32)))
    return direct<Rule, taken>(common, row, begin, end);
  if constexpr (Rule::small) {
    const Noise noise(common.step, std::min<int64_t>(kBlock, end - begin));
    for (int64_t at = begin; at < end; at += kBlock)
      block<Rule, taken>(kinds, common, row, at, std::min<int64_t>(kBlock, end - at), noise);
  }
}

#define ONE(NAME, RULE)                                                         \
  {{span<rules::RULE, false>, span<rules::RULE, (rules::RULE::previous >= 0)>}, \
   {span<rules::RULE, false>, span<rules::RULE, (rules::RULE::previous >= 0)>}},
#define WITH_CAUTION(NAME, RULE) \
  ONE(NAME, RULE) ONE(NAME##_agreement, Agreement<rules::RULE>) ONE(NAME##_cautious, Cautious<rules::RULE>)

}  // namespace

const steps::Loops steps::SET = {RULES_OF_STEPS(WITH_CAUTION) OTHER_RULES(ONE)};
