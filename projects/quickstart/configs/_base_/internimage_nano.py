# SPDX-License-Identifier: Apache-2.0
"""A small InternImage, from scratch: 1.6 M parameters. And its widths."""

custom_imports = dict(imports=['internimage'], allow_failed_imports=False)
backbone = dict(
    type='InternImage',
    arch=dict(
        channels=32,
        depths=[1, 1, 2, 1],
        groups=[2, 4, 8, 16],
    ),
    drop_path_rate=0.0,
)
channels = [32, 64, 128, 256]
