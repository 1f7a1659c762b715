// Makes steps of every rule on tensors kept in every way, of awkward sizes, with the kernels of a shared library, and
// prints the instruction set and the threads that they use, and a hash of all that they wrote for each case: the same on
// every processor. tests/platforms.py runs it.
#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include <cstdio>
#include <cstring>
#include <vector>

#include "table.h"

using namespace tables;

namespace {

constexpr int64_t kSizes[] = {0, 1, 3, 15, 16, 17, 255, 256, 257, 1000, 70001};  // the last is for two threads
constexpr int64_t kRows = sizeof kSizes / sizeof *kSizes;
constexpr int64_t kSumElements = 70001;
constexpr int kSteps = 3;

#ifdef _WIN32
void* open(const char* path) { return reinterpret_cast<void*>(LoadLibraryA(path)); }
void* find(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}
#else
void* open(const char* path) { return dlopen(path, RTLD_LAZY); }
void* find(void* library, const char* name) { return dlsym(library, name); }
#endif

uint64_t hash_of(uint64_t h, const void* bytes, size_t count) {  // FNV-1a
  for (size_t i = 0; i < count; ++i) h = (h ^ static_cast<const unsigned char*>(bytes)[i]) * 1099511628211u;
  return h;
}

struct Random {
  uint64_t state = 1;
  float next() {  // in [-1, 1), of magnitudes from 1 down to 2^-40
    state = state * 6364136223846793005u + 1442695040888963407u;
    const float x = float(int32_t(state >> 32)) * 0x1p-31f;
    return (state >> 20) % 8 ? x : x * 0x1p-20f * x;
  }
};

int width_of(int parameter) { return parameter == kFloat64 ? 8 : parameter == kFloat32 ? 4 : 2; }

void fill(std::vector<char>& to, int parameter, int64_t count, Random& random) {
  to.assign(count * width_of(parameter), 0);
  for (int64_t i = 0; i < count; ++i) {
    const float x = random.next();
    char* at = to.data() + i * width_of(parameter);
    const double wide = x;
    storage::bfloat16 bf;
    storage::float16 half;
    storage::store(bf, x);
    storage::store(half, x);
    const void* from = parameter == kFloat64 ? static_cast<const void*>(&wide)
                       : parameter == kFloat32 ? static_cast<const void*>(&x)
                       : parameter == kBfloat16 ? static_cast<const void*>(&bf) : &half;
    std::memcpy(at, from, width_of(parameter));
  }
}

// What the tensor of a row consists of, besides its step count.
struct Row {
  std::vector<char> param, grad, rest, previous, scale, rows, columns, decay, sums, moments;
  std::vector<std::vector<char>> states;
  float step;
};

template <class Rule>
void run(void* library, const char* name, const Kinds& kinds, int threads) {
  using Step = void (*)(const Kinds*, int64_t, void**, const int64_t*, const double*, double, int);
  char symbol[64];
  std::snprintf(symbol, sizeof symbol, "cpu_%s", name);
  const auto step = reinterpret_cast<Step>(find(library, symbol));
  if (!step) return void(std::printf("%s is missing\n", symbol));
  const int work = kinds.parameter == kFloat64 ? kFloat64 : kFloat32;
  const int of_state = kinds.state == kLikeParameter || kinds.parameter == kFloat64 ? kinds.parameter
                       : kinds.state == kStateFloat32 ? int(kFloat32) : int(kBfloat16);
  double hyper[sizeof(typename Rule::Hyper) / sizeof(double)];
  for (double& x : hyper) x = 0.3;  // a learning rate, decay factors, a decay; as a switch it is on
  Random random;
  std::vector<Row> rows(kRows);
  std::vector<int64_t> ends;
  std::vector<void*> table;
  for (int64_t i = 0, end = 0; i < kRows; ++i) {
    Row& row = rows[i];
    const int64_t n = kSizes[i], blocks = (n + storage::kBlock - 1) / storage::kBlock;
    int64_t length = n % 257 ? 16 : 257;
    while (n % length) --length;
    ends.push_back(end += n);
    fill(row.param, kinds.parameter, n, random);
    fill(row.grad, kinds.parameter, n, random);
    fill(row.previous, kinds.parameter, n, random);
    fill(row.scale, work, 1, random);
    fill(row.rows, work, n / length + 1, random);
    fill(row.columns, work, length, random);
    fill(row.decay, work, 1, random);
    row.moments.assign((n / length + 1) * width_of(work), 0);
    row.step = !Rule::counts;  // a second pass comes after one that counts
    row.rest.assign(2 * n, 0);
    row.sums.assign((blocks + 1) * rules::kSums<Rule> * width_of(work), 0);
    std::vector<void*> columns(kWidth<Rule>, nullptr);
    columns[kParam] = row.param.data();
    columns[kGrad] = row.grad.data();
    columns[kStep] = &row.step;
    if (kinds.rounding == kKahan || kinds.rounding == kSplit) columns[kRest] = row.rest.data();
    if (kinds.taken) columns[kPrevious] = row.previous.data(), columns[kPreviousScale] = row.scale.data();
    columns[kRowFactors] = row.rows.data();
    if (i % 2) columns[kColumnFactors] = row.columns.data();
    columns[kLength] = reinterpret_cast<void*>(length);
    columns[kDecay] = row.decay.data();
    columns[kBlockSums] = row.sums.data();
    columns[kMoments] = row.moments.data();
    row.states.resize(2 * Rule::states);
    for (int j = 0; j < Rule::states; ++j) {
      const bool codes = kinds.state == kStateInt8 && kinds.parameter != kFloat64;
      row.states[j].assign(n * (codes ? 1 : width_of(of_state)), 0);
      row.states[Rule::states + j].assign(4 * blocks, 0);
      columns[kStates + j] = row.states[j].data();
      columns[kStates + Rule::states + j] = row.states[Rule::states + j].data();
    }
    table.insert(table.end(), columns.begin(), columns.end());
  }
  uint64_t h = 14695981039346656037u;
  for (int k = 0; k < kSteps; ++k) {
    step(&kinds, kRows, table.data(), ends.data(), hyper, k % 2 ? 0.5 : -1, threads);
    for (Row& row : rows) {
      for (const auto* x : {&row.param, &row.rest, &row.scale, &row.sums, &row.rows, &row.moments})
        h = hash_of(h, x->data(), x->size());
      for (const auto& x : row.states) h = hash_of(h, x.data(), x.size());
      h = hash_of(h, &row.step, 4);
      for (size_t i = 0; i < row.grad.size(); ++i) row.grad[i] = row.grad[i] ^ (i % 2 ? 0 : char(k + 1));
    }
  }
  std::printf("%s parameter %d state %d rounding %d taken %d: %016llx\n", name, kinds.parameter, kinds.state,
              kinds.rounding, kinds.taken, static_cast<unsigned long long>(h));
}

template <class Rule>
void each_kind(void* library, const char* name, int threads) {
  for (int parameter : {kFloat32, kFloat64, kBfloat16, kFloat16})
    for (int state : {kLikeParameter, kStateFloat32, kStateBfloat16, kStateInt8})
      for (int rounding : {kNearest, kStochastic, kKahan, kSplit})
        for (int taken = 0; taken <= (Rule::previous >= 0); ++taken) {
          const bool is_small = parameter > kFloat64 || state > kStateFloat32;
          if ((is_small && !Rule::small) || (rounding != kNearest && parameter != kBfloat16)) continue;
          if (parameter == kFloat64 && state != kLikeParameter) continue;
          run<Rule>(library, name, {parameter, state, rounding, taken}, threads);
        }
}

void total(void* library, int threads) {
  using Total = double (*)(int, int64_t, const void* const*, int64_t, const int64_t*, int);
  const auto sum = reinterpret_cast<Total>(find(library, "cpu_total_square_sum"));
  for (int parameter : {kFloat32, kFloat64, kBfloat16, kFloat16}) {
    Random random;
    std::vector<char> x;
    fill(x, parameter, kSumElements, random);
    const void* from = x.data();
    const double result = sum(parameter, 1, &from, 1, &kSumElements, threads);
    std::printf("total parameter %d: %016llx\n", parameter,
                static_cast<unsigned long long>(hash_of(14695981039346656037u, &result, sizeof result)));
  }
}

void sums(void* library, int threads) {
  using Sum = void (*)(int, int64_t, const void* const*, const int64_t*, const int64_t*, const void* const*,
                       void* const*, int);
  using ColumnSum = void (*)(int, int64_t, const void* const*, const int64_t*, const int64_t*, void* const*, int);
  const auto rows = reinterpret_cast<Sum>(find(library, "cpu_square_sums"));
  const auto columns = reinterpret_cast<ColumnSum>(find(library, "cpu_column_square_sums"));
  for (int parameter : {kFloat32, kFloat64, kBfloat16, kFloat16})
    for (int64_t length : {int64_t(1), int64_t(15), int64_t(257), kSumElements}) {
      Random random;
      std::vector<char> x, results(2 * 8 * kSumElements, 0);
      const int64_t count = kSumElements / length * length;
      fill(x, parameter, count, random);
      const void* from = x.data();
      void *to = results.data(), *then = results.data() + 8 * kSumElements;
      rows(parameter, 1, &from, &count, &length, nullptr, &to, threads);
      columns(parameter, 1, &from, &count, &length, &then, threads);
      std::printf("sums parameter %d length %lld: %016llx\n", parameter, static_cast<long long>(length),
                  static_cast<unsigned long long>(hash_of(14695981039346656037u, results.data(), results.size())));
    }
}

}  // namespace

int main(int, char** arguments) {  // the library, and the number of threads
  void* library = open(arguments[1]);
  if (!library) return std::fprintf(stderr, "%s cannot be loaded\n", arguments[1]), 1;
  const int threads = arguments[2][0] - '0';
  for (const char* name : {"cpu_instruction_set", "cpu_threads"})
    std::printf("%s\n", reinterpret_cast<const char* (*)()>(find(library, name))());
#define RULE(NAME, STRUCT) each_kind<rules::STRUCT>(library, #NAME, threads);
#define WITH_CAUTION(NAME, STRUCT) \
  RULE(NAME, STRUCT) RULE(NAME##_agreement, Agreement<rules::STRUCT>) RULE(NAME##_cautious, Cautious<rules::STRUCT>)
  RULES_OF_STEPS(WITH_CAUTION)
  OTHER_RULES(RULE)
  RULE(adam_mini_blocks, AdamMini)
  sums(library, threads);
  total(library, threads);
}
