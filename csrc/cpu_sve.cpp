// The loops of csrc/loops.h for ARM's SVE.
#include "processor.h"

#ifdef TARGET_SVE
#define SET sve
#define TARGET TARGET_SVE
#define LANES 1  // of the vectors of csrc/lanes.h; 1 for none
#include "loops.h"
#endif
