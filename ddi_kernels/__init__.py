"""Operators of networks that gate channels and skip layers per sample: tensors in, tensors out.

Every operator is one file named after it; the plain torch reference in it defines what all other
implementations compute. `backend(...)` chooses among them.
"""

from __future__ import annotations

from ddi_kernels import engine as engine
from ddi_kernels.backends import backend, current_backend
from ddi_kernels.collect_env import collect_env
from ddi_kernels.ops.active_channels import active_channels
from ddi_kernels.ops.fold import fold_bn
from ddi_kernels.ops.gate_plan import gate_logits, gate_plan
from ddi_kernels.ops.gated_basic_block import gated_basic_block, gated_basic_block_
from ddi_kernels.ops.gated_bottleneck import gated_bottleneck, gated_bottleneck_
from ddi_kernels.ops.gated_conv2d import gated_conv2d
from ddi_kernels.ops.gated_conv2d_int8 import gated_conv2d_int8
from ddi_kernels.ops.gated_dense_layer import gated_dense_layer, gated_dense_layer_
from ddi_kernels.ops.gather_samples import gather_samples
from ddi_kernels.ops.pack_stage import pack_entry, pack_stage
from ddi_kernels.ops.prepack_conv2d import prepack_conv2d
from ddi_kernels.ops.quantize import quantize, quantize_weight
from ddi_kernels.ops.resident_stage import resident_stage, resident_stage_unsupported
from ddi_kernels.ops.scatter_samples import scatter_samples, scatter_samples_
from ddi_kernels.ops.skip_conv2d import skip_conv2d_

__all__ = [
    "active_channels",
    "backend",
    "collect_env",
    "current_backend",
    "fold_bn",
    "gate_logits",
    "gate_plan",
    "gated_basic_block",
    "gated_basic_block_",
    "gated_bottleneck",
    "gated_bottleneck_",
    "gated_conv2d",
    "gated_conv2d_int8",
    "gated_dense_layer",
    "gated_dense_layer_",
    "gather_samples",
    "pack_entry",
    "pack_stage",
    "prepack_conv2d",
    "quantize",
    "quantize_weight",
    "resident_stage",
    "resident_stage_unsupported",
    "scatter_samples",
    "scatter_samples_",
    "skip_conv2d_",
]
