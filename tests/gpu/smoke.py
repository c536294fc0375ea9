"""Every GPU kernel once on small sizes, for compute-sanitizer: python tests/gpu/smoke.py."""

import torch

from ddi_kernels import (
    backend,
    backends,
    gated_basic_block,
    gated_conv2d,
    gather_samples,
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
            gated_basic_block(x, weight, None, weight, None, keep=keep, mask=mask, group_size=16, pool=True)
    if backends.cuda_available()[0]:
        with backend("native"):
            gather_samples(x, torch.tensor([2, 0], device="cuda"))
    torch.cuda.synchronize()
    assert not x.isnan().any()
    print("smoke: ok")


if __name__ == "__main__":
    main()
