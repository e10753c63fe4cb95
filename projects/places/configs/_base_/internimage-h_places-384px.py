# SPDX-License-Identifier: Apache-2.0
"""InternImage-H on Places: as on ImageNet-1K, without warm-up (arXiv:2211.05778, C.1).

No config was published, and the paper does not say the size of the images.
"""

_base_ = '../../../../configs/classification/internimage-h_32xb16_in1k-384px.py'

model = dict(head=dict(type='LinearClsHead'))
param_scheduler = [_base_.param_scheduler[1]]
