// Which counter of arrived blocks a launch may use: none that a concurrent launch uses.
#pragma once

#include <cstdint>

namespace fused_optim::cuda {

/// Launches on one stream follow one another, and so do the replays of a graph; anything else may
/// run at the same time. So each stream has a counter, and each stream of each capture another.
/// Returns TableHead::kNoStepsToAdvance when all are given away.
/// `capture`: the id of the capture under way, 0 for none.
uint32_t arrival_for(int64_t stream, uint64_t capture);

}  // namespace fused_optim::cuda
