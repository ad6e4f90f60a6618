// The namespace of this unit's instruction set, and how its small functions are inlined.
#pragma once

#ifndef FASTRNN_ISA
#define FASTRNN_ISA device
#endif

#ifdef __CUDACC__
#define FASTRNN_INLINE __host__ __device__ __forceinline__
#else
#define FASTRNN_INLINE inline __attribute__((always_inline))
#endif
