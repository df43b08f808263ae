#include "gather/gathered.h"

namespace fused_optim {

const char* text_of(HostDecides reason) {
  switch (reason) {
    case HostDecides::No:
      break;
    case HostDecides::ForCpuParams:
      return "some parameters are on the CPU";
    case HostDecides::ForFirstStep:
      return "it is the first of a state that begins otherwise than with zero";
    case HostDecides::ForFirstAverages:
      return "averages begin";
    case HostDecides::ForAverageAlone:
      return "a parameter has an average and no gradient";
  }
  return "";
}

}  // namespace fused_optim
