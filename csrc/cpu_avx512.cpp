// The loops of csrc/loops.h for AVX-512.
#include "processor.h"

#ifdef TARGET_AVX512
#define SET avx512
#define TARGET TARGET_AVX512
#define LANES 16  // of the vectors of csrc/lanes.h; 1 for none
#include "loops.h"
#endif
