"""state_dict keys and shapes of torchvision's networks, typed in from their published structure."""

_NORM = ("weight", "bias", "running_mean", "running_var")


def _norm(name, channels):
    return {**{f"{name}.{key}": (channels,) for key in _NORM}, f"{name}.num_batches_tracked": ()}


def resnet_keys(depths, bottleneck):
    """Of a ResNet on 1000 classes: conv1, bn1, layer1 to layer4, fc."""
    keys = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    for stage, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), 1):
        out = width * 4 if bottleneck else width
        before = 64 if stage == 1 else out // 2
        for i in range(depth):
            at, ci = f"layer{stage}.{i}", out if i else before
            if bottleneck:
                shapes = [(width, ci, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            else:
                shapes = [(width, ci, 3, 3), (width, width, 3, 3)]
            for j, shape in enumerate(shapes, 1):
                keys |= {f"{at}.conv{j}.weight": shape, **_norm(f"{at}.bn{j}", shape[0])}
            if i == 0 and before != out:
                keys[f"{at}.downsample.0.weight"] = (out, before, 1, 1)
                keys |= _norm(f"{at}.downsample.1", out)
    return {**keys, "fc.weight": (1000, out), "fc.bias": (1000,)}
