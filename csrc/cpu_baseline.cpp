// The loops of csrc/loops.h for what every processor of a kind has: SSE2 on x86-64, NEON on ARM.
#include "processor.h"

#define SET baseline
#define TARGET
#define LANES 1  // of the vectors of csrc/lanes.h; 1 for none
#include "loops.h"
