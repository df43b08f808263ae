// One parallel region over a range, on the OpenMP runtime that torch has loaded.
#pragma once

#include <cstdint>

namespace fused_optim::cpu {

/// Calls body(context, begin, end) for ranges that cover 0 to total once, on torch's number of
/// threads. Small totals, and calls from inside a parallel region, run on the caller's thread.
void parallel_ranges(int64_t total, void (*body)(const void* context, int64_t begin, int64_t end),
                     const void* context);

/// The path of the OpenMP runtime that serves parallel_ranges, empty if there is none.
const char* openmp_runtime();

}  // namespace fused_optim::cpu
