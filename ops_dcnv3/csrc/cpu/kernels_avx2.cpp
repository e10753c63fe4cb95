// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for x86-64 with AVX2 and FMA. Everything that is included
// above the pragma is compiled for the baseline.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(            \
    __attribute__((target("avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define DCNV3_CAPABILITY avx2
#define DCNV3_VECTOR_BYTES 32
#include "../sampling.h"
#include "backward_impl.h"
#include "branch_impl.h"
#include "center_impl.h"
#include "forward_impl.h"
#include "linear_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
