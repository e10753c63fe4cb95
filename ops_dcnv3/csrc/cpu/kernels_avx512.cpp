// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for x86-64 with AVX-512 (F, BW, DQ, VL). Everything that is
// included above the pragma is compiled for the baseline.
#include "kernels.h"

#if defined(__x86_64__)
// GCC 12 warns of its own functions that leave a register undefined on purpose.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#if defined(__clang__)
#pragma clang attribute push(                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define DCNV3_CAPABILITY avx512
#define DCNV3_VECTOR_BYTES 64
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
