// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for what every machine of the architecture has: SSE2 on
// x86-64, NEON on AArch64.
#include "../sampling.h"
#include "kernels.h"

#define DCNV3_CAPABILITY baseline
#include "kernels_impl.h"
