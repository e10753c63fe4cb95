// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for what every machine of the architecture has: SSE2 on
// x86-64, NEON on AArch64.
#include "kernels.h"

#define DCNV3_CAPABILITY baseline
#define DCNV3_VECTOR_BYTES 16
#include "../sampling.h"
#include "backward_impl.h"
#include "branch_impl.h"
#include "center_impl.h"
#include "forward_impl.h"
#include "linear_impl.h"
