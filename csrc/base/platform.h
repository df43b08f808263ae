// What differs between compilers: function qualifiers shared by the C++ and the CUDA build.
#pragma once

#if defined(__CUDACC__)
#define FUSED_OPTIM_HOST_DEVICE __host__ __device__
#else
#define FUSED_OPTIM_HOST_DEVICE
#endif

// Rules are compiled once, for the baseline instruction set, and must be inlined into each
// engine's loop to be vectorised there for that loop's instruction set.
#define FUSED_OPTIM_INLINE FUSED_OPTIM_HOST_DEVICE __attribute__((always_inline)) inline

// Arrays that hold registers must be indexed by constants: loops over them are unrolled whole.
// Loops over what only the run knows must stay loops: unrolled, they take registers from the rest.
#if defined(__CUDA_ARCH__)
#define FUSED_OPTIM_UNROLL _Pragma("unroll")
#define FUSED_OPTIM_KEEP_LOOP _Pragma("unroll 1")
#else
#define FUSED_OPTIM_UNROLL
#define FUSED_OPTIM_KEEP_LOOP
#endif
