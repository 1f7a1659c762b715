// What the two backends share besides the rules: how a table of tensors is laid out, and what the elements of
// one tensor have in common.
#pragma once

#include "storage.h"

namespace tables {

// The columns of a table's row, one row a tensor; those that a storage or a rule does not need are null.
// Element i of a tensor has the factor rows[i / length] * columns[i % length], where null means 1; kLength is
// a number, not an address. At kDecay is one number. At kBlockSums are Rule::sums numbers for each block of kBlock
// elements, at kMoments the second moment of each block of elements that share a factor.
enum Column {
  kParam, kGrad, kStep, kRest, kPrevious, kPreviousScale, kRowFactors, kColumnFactors, kLength, kDecay,
  kBlockSums, kMoments, kStates
};

template <class Rule>
constexpr int kWidth = kStates + 2 * Rule::states;  // the states, then the scales of 8-bit states

// How parameters and states are kept; optim/adan_optim/engine/native.py passes the same numbers.
enum Parameter { kFloat32, kFloat64, kBfloat16, kFloat16 };
enum State { kLikeParameter, kStateFloat32, kStateBfloat16, kStateInt8 };
enum Rounding { kNearest, kStochastic, kKahan, kSplit };  // the last two keep a rest in column kRest

struct Kinds {
  int parameter, state, rounding;
  int taken;  // the previous gradient is that of column kPrevious times that in kPreviousScale, not a state
};

// What the elements of one tensor share.
template <class Rule, class R>
struct Common {
  typename Rule::template Scalars<R> scalars;
  uint32_t step;
  R previous_scale;
};

}  // namespace tables
