# SPDX-License-Identifier: Apache-2.0
"""Mask2Former's head four times as wide as in mmseg, with twice the queries."""

_base_ = './mask2former.py'

width = 1024
attention = dict(embed_dims=width, num_heads=32)
ffn = dict(embed_dims=width, feedforward_channels=4 * width)
positions = dict(num_feats=width // 2)
mask2former = dict(
    decode_head=dict(
        feat_channels=width,
        out_channels=width,
        num_queries=200,
        positional_encoding=positions,
        pixel_decoder=dict(
            positional_encoding=positions,
            encoder=dict(layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
        ),
        transformer_decoder=dict(
            layer_cfg=dict(
                self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn
            )
        ),
    )
)
