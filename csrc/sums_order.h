// In which order squares are added up: the same on the CPU (sums.h) and under CUDA (sums.cuh).
//
// A row is cut into chunks. Place j of a chunk goes to chain j % kLanes, in the type of the arithmetic; half of
// the chains is added to the other half until one is left. Chunks are added up in double, kUnit elements at a
// time, and then those sums.
//
// In a column, kRowChain rows at a time are added up in the type of the arithmetic. The sums of these chains are
// added up in double, those of a part of the rows at a time, and then the parts.
#pragma once

#include "storage.h"

namespace sums {

constexpr int kLanes = 16;
constexpr int64_t kChain = 512;      // elements of a chunk
constexpr int64_t kUnit = 1 << 16;   // elements of a row, a multiple of kChain
constexpr int64_t kRowChain = 64;
constexpr int64_t kParts = 16;       // at most; each has kUnit elements or more, unless the tensor has fewer

RULE_FN int64_t pieces(int64_t whole, int64_t piece) { return (whole + piece - 1) / piece; }

// How many chains each part of the rows has, except for the last part, which may have fewer.
RULE_FN int64_t chains_of_part(int64_t rows, int64_t length) {
  const int64_t most = rows * length / kUnit, parts = most < 1 ? 1 : most < kParts ? most : kParts;
  return pieces(pieces(rows, kRowChain), parts);
}

}  // namespace sums
