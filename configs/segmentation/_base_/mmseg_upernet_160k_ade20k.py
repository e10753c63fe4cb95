# SPDX-License-Identifier: Apache-2.0
"""mmseg's UperNet on ADE20K for 160000 iterations: all other recipes start from it.

It is the only one that knows where mmseg's configs are.
"""

# `mmseg::` would be shorter, but mmengine looks for a distribution `mmsegmentation`,
# and ours is `onedl-mmsegmentation`. To go when `mmseg::` finds that too. A path gives
# no `_scope_`: `default_scope`, in default_runtime.py, has to.
_base_ = [
    f'{__import__("mmseg").__path__[0]}/.mim/configs/_base_/{name}.py'
    for name in (
        'models/upernet_r50',
        'datasets/ade20k',
        'schedules/schedule_160k',
        'default_runtime',
    )
]
