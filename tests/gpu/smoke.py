"""Every GPU kernel once on small sizes, for compute-sanitizer: python tests/gpu/smoke.py."""

import torch

from ddi_kernels import (
    active_channels,
    backend,
    backends,
    gate_plan,
    gated_basic_block,
    gated_basic_block_,
    gated_conv2d,
    gated_dense_layer_,
    gather_samples,
    pack_entry,
    pack_stage,
    resident_stage,
    scatter_samples_,
    skip_conv2d_,
)


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 72, 9, 9, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(72, 72, 3, 3, device="cuda", dtype=torch.bfloat16) / 25
    gate, keep = torch.rand(3, 5, device="cuda") < 0.5, torch.tensor([True, False, True], device="cuda")
    with backend("triton"):
        y = gated_conv2d(
            x, weight, in_mask=gate, out_mask=gate, in_group_size=16, out_group_size=16, padding=1
        )
        skip_conv2d_(x, y, weight, keep=keep, padding=1, accumulate=True)
        for mask in (gate, None):
            _, pooled = gated_basic_block(
                x, weight, None, weight, None, keep=keep, mask=mask, group_size=16, pool=True
            )
            gated_basic_block_(x, weight, None, weight, None, keep=keep, mask=mask, group_size=16)
        buffer = torch.randn(3, 48, 9, 9, device="cuda").contiguous(memory_format=torch.channels_last)
        layer = [torch.randn(size, device="cuda") for size in ((36,), (36,), (48, 36, 1, 1))]
        new = torch.randn(12, 48, 3, 3, device="cuda")
        bits = torch.rand(3, 36, device="cuda") < 0.5
        gated_dense_layer_(
            buffer, *layer, None, new, None, in_mask=bits, out_mask=bits[:, :3], group_size=4, pool=True
        )
        state = torch.zeros(3, 10, device="cuda")
        sizes = [(10, 72), (10,), (40, 10), (40, 10), (40,), (40,)]
        gate_plan(pooled, state, state, [torch.randn(size, device="cuda") for size in sizes])
    if backends.cuda_available()[0]:
        with backend("native"):
            index = torch.tensor([2, 0], device="cuda")
            scatter_samples_(x, gather_samples(x, index), index)
            active_channels(gate, 72, 16)
            for size in (16, 3):
                masks = [torch.rand(3, -(-72 // size), device="cuda") < 0.5] * 2
                gated_conv2d(
                    x, weight, in_mask=masks[0], out_mask=masks[1], in_group_size=size, out_group_size=size,
                    residual=y, padding=1,
                )  # fmt: skip
            filters = torch.randn(2, 2, 64, 64, 3, 3, device="cuda", dtype=torch.bfloat16) / 24
            image = torch.randn(3, 64, 8, 8, device="cuda", dtype=torch.bfloat16)
            biases, none = torch.zeros(2, 2, 64, device="cuda"), torch.empty(3, 0, device="cuda")
            if torch.cuda.get_device_capability()[0] >= 9:
                weights = pack_stage(*filters)
                resident_stage(image, none, none, weights, biases)
                narrow = filters[0, 0, :, :32].contiguous()
                entry = [*pack_entry(narrow, filters[1, 0], narrow[:, :, :1, :1].contiguous()), biases[0]]
                image = torch.randn(3, 32, 16, 16, device="cuda", dtype=torch.bfloat16)
                resident_stage(image, none, none, weights, biases, entry=entry)
    torch.cuda.synchronize()
    assert not x.isnan().any()
    print("smoke: ok")


if __name__ == "__main__":
    main()
