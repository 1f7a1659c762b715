// The loops of csrc/loops.h for AVX2.
#include "processor.h"

#ifdef TARGET_AVX2
#define SET avx2
#define TARGET TARGET_AVX2
#define LANES 8  // of the vectors of csrc/lanes.h; 1 for none
#include "loops.h"
#endif
