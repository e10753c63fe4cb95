// SPDX-License-Identifier: Apache-2.0
// The schemas of the operators, but for one of CUDA alone. Kernels are
// registered beside their code, and all fake kernels in ../registration.py.
// dcnv3_forward has a gradient and autocast there; the others have none, and
// refuse what requires a gradient.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <string>

#include "checks.h"

STABLE_TORCH_LIBRARY(ops_dcnv3, m) {
  m.def(
      "dcnv3_forward(Tensor input, Tensor offset, Tensor mask, int[] "
      "kernel_size, "
      "int[] stride, int[] padding, int[] dilation, int groups, "
      "float offset_scale, bool remove_center, bool softmax=False) -> Tensor");
  m.def(
      "dcnv3_backward(Tensor grad_output, Tensor input, Tensor offset, "
      "Tensor mask, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, int groups, float offset_scale, bool remove_center, "
      "bool softmax=False) -> (Tensor, Tensor, Tensor)");
  m.def(
      "branch_forward(Tensor input, Tensor weight, Tensor bias, Tensor "
      "norm_weight, Tensor norm_bias, float eps) -> Tensor");
  m.def(
      "mlp_forward(Tensor input, Tensor[] pre_norm, float pre_norm_eps, "
      "Tensor[] fc1, Tensor[] fc2, Tensor[] post_norm, float post_norm_eps, "
      "Tensor? scale, bool add_input) -> Tensor");
  m.def(
      "layer_forward(Tensor input, Tensor[] pre_norm, float pre_norm_eps, "
      "Tensor[] dw_conv, Tensor[] dw_norm, float dw_norm_eps, "
      "Tensor[] offset, Tensor[] mask, Tensor[] center_scale, "
      "Tensor[] input_proj, Tensor[] output_proj, Tensor[] post_norm, "
      "float post_norm_eps, Tensor? scale, bool add_input, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, int groups, "
      "float offset_scale, bool remove_center) -> Tensor");
  m.def("built_with_torch() -> str");
  m.def("cpu_capability() -> str");
  m.def("cuda_archs() -> str");
}

namespace {

std::string built_with_torch() {
  return TORCH_VERSION;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CompositeExplicitAutograd, m) {
  m.impl("built_with_torch", TORCH_BOX(&built_with_torch));
}
