// The CUDA backend: one launch makes the step of a list of tensors, in one pass over memory. optim/adan_optim/engine/cuda.py
// compiles it with NVRTC and launches it. Results are those of csrc/cpu.cpp bit for bit, as far as `pow`
// agrees: the operations are the same, and contraction is off.
//
// A thread block works on a chunk of one tensor, a warp on one tile of it after the other. A tile is a block
// of 8-bit storage, so that its maximum is a reduction within the warp. What a lane does is plain C++, in
// phases that a program on the host can run for all lanes in turn: tests/optim/emulator.cpp.
#include "table.h"

namespace kernels {

using namespace storage;
using namespace tables;

constexpr int kWarp = 32, kWarps = 8, kTurns = 4;  // lanes of a warp, warps of a block, tiles of a warp
constexpr int kLane = kBlock / kWarp;              // elements of a tile that are one lane's
constexpr int kTiles = kWarps * kTurns;            // of a chunk

// These four are known to optim/adan_optim/engine/cuda.py.
constexpr int kChunk = kBlock * kTiles;  // elements
constexpr int kRows = 240, kWords = 480;          // so that the arguments of a launch fit into 4 kB
constexpr int kCommonBytes = 256;                 // room for a Common

// Element `at` of an array in device memory. Without the assumption the compiler makes accesses that may be to
// shared memory as well, which are slower.
template <class T>
RULE_FN T* global(uint64_t address, int64_t at = 0) {
  T* const pointer = reinterpret_cast<T*>(address) + at;
#ifdef __CUDACC__
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// The table in device memory: column by column the addresses of table.h, the sizes of the tensors (elements),
// and the numbers of chunks in tensors 0..i; then each tensor's Common.
struct Work {
  uint64_t* words;
  int64_t rows;

  RULE_FN uint64_t& word(int column, int64_t row) const { return words[column * rows + row]; }
  template <class Rule>
  RULE_FN int64_t size(int64_t row) const {
    return word(kWidth<Rule>, row);
  }
  template <class Rule>
  RULE_FN int64_t end(int64_t row) const {
    return word(kWidth<Rule> + 1, row);
  }
  template <class Rule>
  RULE_FN void* common(int64_t row) const {
    return reinterpret_cast<char*>(words + (kWidth<Rule> + 2) * rows) + row * kCommonBytes;
  }
};

// A number in device memory, or several, for which the host need not wait; `at` is null where there is none.
struct Number {
  const void* at;
  int64_t is_double;

  RULE_FN double operator*() const { return (*this)[0]; }
  RULE_FN double operator[](int i) const {
    return is_double ? static_cast<const double*>(at)[i] : static_cast<const float*>(at)[i];
  }
};

// The addresses that may be others at every step. As arguments of a launch they are copied when it is made,
// and a captured CUDA graph keeps its own.
struct Gradients {
  uint64_t grad[kRows], previous[kRows];
};

struct Words {
  uint64_t word[kWords];
};

// Kept out of line, because `pow` takes as long to compile as all the rest.
template <class Rule, class R>
__attribute__((noinline)) __device__ Common<Rule, R> common_of(const typename Rule::Hyper& hyper, float step,
                                                           double factor) {
  return {{hyper, double(step), factor}, uint32_t(step), 0};
}

template <class Rule, class Common>
struct Chunk {
  uint64_t address[kWidth<Rule>];
  int64_t size, number;  // of the tensor; of the chunk in it
  Common common;
  alignas(32) uint32_t noise_of_place[kBlock];  // for `get`
  uint32_t noise_of_tile[kTiles];

  RULE_FN Chunk(const Work& work, int64_t number) : Chunk(work, number, row_of(work, number)) {}

  // A part of the noise, by each of kBlock threads: hashing it again for each tile would take a tenth of a step.
  RULE_FN void make_noise(int thread) {
    noise_of_place[thread] = storage::noise_of_place(common.step, thread);
    if (thread < kTiles) noise_of_tile[thread] = noise_of_block(common.step, uint64_t(number) * kTiles + thread);
  }

 private:
  RULE_FN Chunk(const Work& work, int64_t number, int64_t row)
      : size(work.size<Rule>(row)), number(row ? number - work.end<Rule>(row - 1) : number),
        common(*static_cast<const Common*>(work.common<Rule>(row))) {
    for (int column = 0; column < kWidth<Rule>; ++column) address[column] = work.word(column, row);
  }

  static RULE_FN int64_t row_of(const Work& work, int64_t number) {
    int64_t row = 0, last = work.rows - 1;
    while (row < last) {
      const int64_t middle = (row + last) / 2;
      if (work.end<Rule>(middle) > number)
        last = middle;
      else
        row = middle + 1;
    }
    return row;
  }
};

struct Tile {
  int64_t at;  // where it begins in the tensor
  int count;   // elements; none where it is past the end

  RULE_FN Tile(int64_t size, int64_t chunk, int turn, int warp)
      : at(chunk * kChunk + (turn * kWarps + warp) * kBlock),
        count(size - at < kBlock ? size > at ? int(size - at) : 0 : kBlock) {}
};

template <bool condition, class A, class B>
struct Choose {
  using Type = A;
};
template <class A, class B>
struct Choose<false, A, B> {
  using Type = B;
};

template <class T, int V>
struct alignas(V * sizeof(T)) Wide {
  T x[V];
};

// The place in the tile of a lane's k-th element: V in a row make one access of a lane, and the accesses of a
// warp's lanes lie side by side.
template <int V>
RULE_FN int place(int lane, int k) {
  return (k / V * kWarp + lane) * V + k % V;
}

// Loads a lane's elements of a tile, V at a time if the tile is whole; zeros past the end.
template <int V, bool whole, class T, int n>
RULE_FN void get(T (&to)[n], const T* tile, int lane, int count) {
  if constexpr (whole) {
#pragma unroll
    for (int k = 0; k < n; k += V) {
      const Wide<T, V> some = reinterpret_cast<const Wide<T, V>*>(tile)[k / V * kWarp + lane];
#pragma unroll
      for (int i = 0; i < V; ++i) to[k + i] = some.x[i];
    }
  } else {
#pragma unroll
    for (int k = 0; k < n; ++k) to[k] = place<V>(lane, k) < count ? tile[place<V>(lane, k)] : T{};
  }
}

// Stores them. The address is made of the tile's, as in `get`: from that of an element, NVRTC makes a scalar
// store of each element for sm_75 to sm_90.
template <int V, bool whole, class T, int n>
RULE_FN void put(T* tile, const T (&from)[n], int lane, int count) {
  if constexpr (whole) {
#pragma unroll
    for (int k = 0; k < n; k += V) {
      Wide<T, V> some;
#pragma unroll
      for (int i = 0; i < V; ++i) some.x[i] = from[k + i];
      reinterpret_cast<Wide<T, V>*>(tile)[k / V * kWarp + lane] = some;
    }
  } else {
#pragma unroll
    for (int k = 0; k < n; ++k)
      if (place<V>(lane, k) < count) tile[place<V>(lane, k)] = from[k];
  }
}

// A lane's elements of a tile as they are in memory. Those smaller than a word stay in words until they are used: the
// shift that takes one out is then part of its conversion.
template <class T>
struct Packed {
  static constexpr int in_word = sizeof(T) < 4 ? 4 / sizeof(T) : 1;
  using Word = typename Choose<in_word == 1, T, uint32_t>::Type;
  using Bits = typename Choose<in_word == 4, uint8_t, uint16_t>::Type;
  Word words[kLane / in_word];

  RULE_FN T operator[](int k) const {
    if constexpr (in_word == 1)
      return words[k];
    else
      return T{Bits(words[k / in_word] >> 8 * sizeof(T) * (k % in_word))};
  }
};

template <int V, bool whole, class T>
RULE_FN void get(Packed<T>& to, const T* tile, int lane, int count) {
  constexpr int n = Packed<T>::in_word;
  using Word = typename Packed<T>::Word;
  if constexpr (whole || n == 1) {
    get<V / n, whole>(to.words, reinterpret_cast<const Word*>(tile), lane, count);
  } else {
    T each[kLane];
    get<V, false>(each, tile, lane, count);
#pragma unroll
    for (int k = 0; k < kLane; ++k)
      to.words[k / n] = (k % n ? to.words[k / n] : 0) | bits_of(each[k]) << 8 * sizeof(T) * (k % n);
  }
}

template <int V, bool whole, class T>
RULE_FN void put(T* tile, const Packed<T>& from, int lane, int count) {
  constexpr int n = Packed<T>::in_word;
  using Word = typename Packed<T>::Word;
  if constexpr (whole || n == 1) {
    put<V / n, whole>(reinterpret_cast<Word*>(tile), from.words, lane, count);
  } else {
    T each[kLane];
#pragma unroll
    for (int k = 0; k < kLane; ++k) each[k] = from[k];
    put<V, false>(tile, each, lane, count);
  }
}

// The types and constants of a rule on tensors of one kind, and what is done once a tensor or chunk.
template <class Rule_, int parameter, int state_, int rounding_, bool taken_>
struct Kernel {
  template <bool condition, class A, class B>
  using If = typename Choose<condition, A, B>::Type;
  using Narrow = If<parameter == kBfloat16, bfloat16, float16>;
  using Rounded = If<state_ == kStateBfloat16, bfloat16, uint8_t>;

  using Rule = Rule_;
  using P = If<parameter == kFloat32, float, If<parameter == kFloat64, double, Narrow>>;
  using S = If<state_ == kLikeParameter, P, If<state_ == kStateFloat32, float, Rounded>>;
  using R = If<parameter == kFloat64, double, float>;
  using Common = tables::Common<Rule, R>;
  using Chunk = kernels::Chunk<Rule, Common>;

  using Rest = If<rounding_ == kSplit, lower16, bfloat16>;

  static constexpr int rounding = rounding_;
  static constexpr bool taken = taken_, summed = Rule::sums > 0, rounded = state_ == kStateBfloat16;
  static constexpr bool coded = state_ == kStateInt8, noisy = coded || rounded || rounding == kStochastic;
  static constexpr int kThreads = kWarp * kWarps, kBlocks = sizeof(R) == 4 ? 2 : 1;  // on a multiprocessor
  static constexpr int kVector = 16 / (sizeof(P) > sizeof(S) ? sizeof(P) : sizeof(S));  // 16 bytes are an access

  // Counts the step of row first + i and makes its Common; nothing if a found_inf is not zero.
  static RULE_FN void prepare(const Work& work, int64_t first, int i, typename Rule::Hyper hyper, Number lr,
                              double factor, Number scale, Number found_inf, const Gradients& gradients) {
    static_assert(sizeof(Common) <= kCommonBytes, "");
    const int64_t row = first + i;
    work.word(kGrad, row) = gradients.grad[i];
    work.word(kPrevious, row) = gradients.previous[i];
    if (found_inf.at && *found_inf != 0) return;
    if (lr.at) Rule::take(hyper, lr);
    if (scale.at) factor *= *scale;
    const float step = *global<float>(work.word(kStep, row)) += Rule::counts;
    Common common = common_of<Rule, R>(hyper, step, factor);
    if (taken) {
      R& previous_scale = *global<R>(work.word(kPreviousScale, row));
      common.previous_scale = previous_scale;
      previous_scale = R(factor);
    }
    *static_cast<Common*>(work.common<Rule>(row)) = common;
  }

  // Whether the tensors can be accessed 16 bytes at a time.
  static RULE_FN bool aligned(const Chunk& chunk) {
    uint64_t bits = chunk.address[kParam] | chunk.address[kGrad] | chunk.address[kRest];
    if (taken) bits |= chunk.address[kPrevious];
    for (int j = 0; j < Rule::states; ++j) bits |= chunk.address[kStates + j];
    return bits % 16 == 0;
  }
};

// One lane's part of a tile. The constructor loads all of it before anything waits for any; then either skip,
// or update, the largest `top` of the warp's lanes for each, and store.
//
// whole: the tile has kBlock elements, in tensors that can be accessed 16 bytes at a time. In others each
// access of a warp is one run of memory; only where numbers are added up, their order stays the same.
template <class Kernel, bool whole>
class Lane {
  using Rule = typename Kernel::Rule;
  using P = typename Kernel::P;
  using S = typename Kernel::S;
  using R = typename Kernel::R;
  using Rest = typename Kernel::Rest;
  using Chunk = typename Kernel::Chunk;

  static constexpr int V = whole || Kernel::summed ? Kernel::kVector : 1, rounding = Kernel::rounding;
  static constexpr bool has_rest = rounding == kKahan || rounding == kSplit;
  static constexpr bool taken = Kernel::taken, coded = Kernel::coded, rounded = Kernel::rounded;

  static constexpr RULE_FN bool kept(int j) { return !taken || j != Rule::previous; }
  static constexpr RULE_FN bool written(int j) { return kept(j) && Rule::writes_states && !(Rule::constant >> j & 1); }
  static constexpr RULE_FN bool positive(int j) { return Rule::nonnegative >> j & 1; }

 public:
  R sum[rules::kSums<Rule>];  // of the numbers that the rule adds up, over the lane's elements
  float factor[rules::kSlots<Rule>];  // of each state, for decoding its codes and then for encoding them
  uint32_t top[rules::kSlots<Rule>];  // largest absolute value of each state: its bits, which have the same order

  RULE_FN Lane(const Chunk& chunk, Tile tile, int lane) : chunk(chunk), tile(tile), lane(lane) {
    get<V, whole>(param, at<P>(kParam), lane, tile.count);
    get<V, whole>(grad, at<P>(kGrad), lane, tile.count);
    if constexpr (taken) get<V, whole>(previous, at<P>(kPrevious), lane, tile.count);
    if constexpr (has_rest) get<V, whole>(rest, at<Rest>(kRest), lane, tile.count);
#pragma unroll
    for (int j = 0; j < Rule::states; ++j)
      if (kept(j)) get<V, whole>(s[j], at<S>(kStates + j), lane, tile.count);
  }

  // Leaves the step out. The memory of a gradient that is to be the previous one next time gets that.
  RULE_FN void skip() const {
    if (taken) put<V, whole>(at<P>(kGrad), previous, lane, tile.count);
  }

  RULE_FN void update() {
    const auto& common = chunk.common;
#pragma unroll
    for (int j = 0; j < Rule::states; ++j) {
      top[j] = 0;
      if (!coded || !kept(j)) continue;
      const float most = *maximum(j);
      factor[j] = positive(j) ? Code<false>::decode_factor(most) : Code<true>::decode_factor(most);
    }
    const uint64_t decays = chunk.address[kDecay];
    const R decay = Rule::factors && decays ? *global<const R>(decays) : R(0);
    const Position first = Rule::factors ? Position(tile.at, chunk.address[kLength]) : Position();
#pragma unroll
    for (int j = 0; j < rules::kSums<Rule>; ++j) sum[j] = 0;
#pragma unroll
    for (int k = 0; k < kLane; ++k) {
      R gradient = load(grad[k]), values[rules::kSlots<Rule>], numbers[rules::kSums<Rule>];
      if constexpr (coded || rounded) gradient = quiet_input(gradient);
      new_param[k] = load(param[k]);
      if constexpr (has_rest) new_param[k] = add(new_param[k], rest[k]);
#pragma unroll
      for (int j = 0; j < Rule::states; ++j) {
        if (!kept(j))
          values[j] = -common.previous_scale * load(previous[k]);
        else if constexpr (coded)
          values[j] = positive(j) ? Code<false>::decode(s[j][k], factor[j])
                                  : Code<true>::decode(s[j][k], factor[j]);
        else
          values[j] = load(s[j][k]);
      }
      const R x = Rule::factors ? factor_of(first, k) : R(1);
      rules::update<Rule>(common.scalars, x, decay, gradient, new_param[k], values, numbers);
#pragma unroll
      for (int j = 0; j < Rule::sums; ++j)
        if (inside(k)) sum[j] += numbers[j];
#pragma unroll
      for (int j = 0; j < Rule::states; ++j) {
        new_s[j][k] = values[j];
        if (coded && inside(k)) top[j] = larger(top[j], values[j]);
      }
    }
  }

  // The factor for the codes of the state that has the lane's number, if this is its largest value.
  RULE_FN float encode_factor(uint32_t top) const {
    return Code<true>::encode_factor(float_of(top), positive(lane) ? Code<false>::kTop : Code<true>::kTop);
  }

  // After the sums of a warp's lanes have been added up.
  RULE_FN void store_sums() const {
    for (int j = 0; j < Rule::sums; ++j)
      if (lane == 0) *global<R>(chunk.address[kBlockSums], tile.at / kBlock * Rule::sums + j) = sum[j];
  }

  RULE_FN void store_all() const {
    uint32_t random[kLane];
    if constexpr (Kernel::noisy) {
      get<V, true>(random, chunk.noise_of_place, lane, kBlock);
      const uint32_t key = chunk.noise_of_tile[tile.at / kBlock % kTiles];
#pragma unroll
      for (int k = 0; k < kLane; ++k) random[k] ^= key;
    }
    P p[kLane];
    Rest new_rest[kLane];
#pragma unroll
    for (int k = 0; Rule::writes_param && k < kLane; ++k) {
      if constexpr (rounding == kStochastic)
        store(p[k], quiet_input(new_param[k]), noise_of_parameter(random[k]));
      else if constexpr (has_rest)
        store(p[k], new_rest[k], new_param[k]);
      else
        store(p[k], new_param[k]);
    }
    if constexpr (Rule::writes_param) put<V, whole>(at<P>(kParam), p, lane, tile.count);
    if constexpr (Rule::writes_param && has_rest) put<V, whole>(at<Rest>(kRest), new_rest, lane, tile.count);
#pragma unroll
    for (int j = 0; j < Rule::states; ++j) {
      if (!written(j)) continue;
      if constexpr (coded) {
        if (lane == 0) *maximum(j) = float_of(top[j]);
        uint32_t codes[kLane];
#pragma unroll
        for (int k = 0; k < kLane; ++k)
          codes[k] = positive(j) ? Code<false>::encode(new_s[j][k], factor[j], noise_of_code(random[k], j))
                                 : Code<true>::encode(new_s[j][k], factor[j], noise_of_code(random[k], j));
        Packed<S> to;
#pragma unroll
        for (int k = 0; k < kLane; k += 4)
          to.words[k / 4] = top_bytes(codes[k], codes[k + 1], codes[k + 2], codes[k + 3]);
        put<V, whole>(at<S>(kStates + j), to, lane, tile.count);
      } else {
        S to[kLane];
#pragma unroll
        for (int k = 0; k < kLane; ++k) {
          if constexpr (rounded)
            store(to[k], new_s[j][k], noise_bits(random[k], j));
          else
            store(to[k], new_s[j][k]);
        }
        put<V, whole>(at<S>(kStates + j), to, lane, tile.count);
      }
    }
  }

 private:
  const Chunk& chunk;
  const Tile tile;
  const int lane;
  Packed<P> param, grad, previous;
  Packed<Rest> rest;
  Packed<S> s[rules::kSlots<Rule>];
  R new_param[kLane], new_s[rules::kSlots<Rule>][kLane];  // as computed

  // Where the tile begins in a tensor that is rows of `length` elements. 64-bit divisions take some hundred
  // instructions: there is one a tile.
  struct Position {
    int64_t length = 1, row = 0, column = 0;
    RULE_FN Position() {}
    RULE_FN Position(int64_t at, int64_t length)
        : length(length), row(at < length ? 0 : at / length), column(at - row * length) {}
  };

  RULE_FN bool inside(int k) const { return whole || place<V>(lane, k) < tile.count; }

  template <class T>
  RULE_FN T* at(int column) const {
    return global<T>(chunk.address[column], tile.at);
  }

  // The factor of a lane's k-th element. Where rows are as long as a tile or longer, it is in the row of the
  // tile's first element or in the next.
  RULE_FN R factor_of(const Position& first, int k) const {
    if (!inside(k)) return 0;
    const uint64_t rows = chunk.address[kRowFactors], columns = chunk.address[kColumnFactors];
    const int64_t i = first.column + place<V>(lane, k);
    const int64_t more = first.length >= kBlock ? i >= first.length : uint32_t(i) / uint32_t(first.length);
    const R row = rows ? *global<const R>(rows, first.row + more) : R(1);
    return columns ? row * *global<const R>(columns, i - more * first.length) : row;
  }

  RULE_FN float* maximum(int j) const {
    return global<float>(chunk.address[kStates + Rule::states + j], tile.at / kBlock);
  }
};

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t largest_of_warp(uint32_t x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffff, x);
#else
  for (int distance = kWarp / 2; distance; distance /= 2) x = max(x, __shfl_xor_sync(0xffffffff, x, distance));
  return x;
#endif
}

template <class Kernel, bool whole>
__device__ __forceinline__ void step(const typename Kernel::Chunk& chunk, Tile tile, bool skip) {
  Lane<Kernel, whole> lane(chunk, tile, threadIdx.x % kWarp);
  if (skip) return lane.skip();
  lane.update();
  if constexpr (Kernel::coded) {
    uint32_t own = 0;  // of the state that has the lane's number: one division makes the factors of all states
#pragma unroll
    for (int j = 0; j < Kernel::Rule::states; ++j) {
      const uint32_t top = lane.top[j] = largest_of_warp(lane.top[j]);
      own |= threadIdx.x % kWarp == j ? top : 0;
    }
    const float factor = lane.encode_factor(own);
#pragma unroll
    for (int j = 0; j < Kernel::Rule::states; ++j) lane.factor[j] = __shfl_sync(0xffffffff, factor, j);
  }
  if constexpr (Kernel::summed) {
    for (auto& sum : lane.sum)
      for (int distance = kWarp / 2; distance; distance /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, distance);
    lane.store_sums();
  }
  lane.store_all();
}

template <class Kernel>
__device__ __forceinline__ void step(const Work& work, Number found_inf) {
  using Chunk = typename Kernel::Chunk;
  __shared__ alignas(Chunk) char memory[sizeof(Chunk)];  // in which it needs no registers
  Chunk& chunk = *reinterpret_cast<Chunk*>(memory);
  if (threadIdx.x == 0) chunk = Chunk(work, blockIdx.x);
  __syncthreads();
  if constexpr (Kernel::noisy) {
    chunk.make_noise(threadIdx.x);
    __syncthreads();
  }
  const bool aligned = Kernel::aligned(chunk), skip = found_inf.at && *found_inf != 0;
#pragma unroll 1
  for (int turn = 0; turn < kTurns; ++turn) {
    const Tile tile(chunk.size, chunk.number, turn, threadIdx.x / kWarp);
    if (tile.count == 0) break;
    if (aligned && tile.count == kBlock)
      step<Kernel, true>(chunk, tile, skip);
    else
      step<Kernel, false>(chunk, tile, skip);
  }
}

// Puts words into device memory; unlike a copy from the host, a launch never has to be waited for.
extern "C" __global__ void upload(uint64_t* to, int64_t count, Words words) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = words.word[i];
}

// optim/adan_optim/engine/cuda.py appends a line with this for the kernels it needs: name, rule, and the arguments of Kernel.
#define KERNELS(NAME, RULE, ...)                                                                           \
  using NAME = kernels::Kernel<rules::RULE, __VA_ARGS__>;                                                  \
  extern "C" __global__ void NAME##_prepare(kernels::Work work, int64_t first, int64_t count,              \
                                            rules::RULE::Hyper hyper, kernels::Number lr, double factor,   \
                                            kernels::Number scale, kernels::Number found_inf,              \
                                            kernels::Gradients gradients) {                                \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;                                                   \
    if (i < count) NAME::prepare(work, first, i, hyper, lr, factor, scale, found_inf, gradients);          \
  }                                                                                                        \
  extern "C" __global__ void __launch_bounds__(NAME::kThreads, NAME::kBlocks)                              \
      NAME##_step(kernels::Work work, kernels::Number found_inf) {                                         \
    kernels::step<NAME>(work, found_inf);                                                                  \
  }

#endif

}  // namespace kernels
