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


def densenet_keys(depths, growth):
    """Of a DenseNet on 1000 classes: features.conv0 to features.norm5, classifier."""
    channels = 2 * growth
    keys = {"conv0.weight": (channels, 3, 7, 7), **_norm("norm0", channels)}
    for block, depth in enumerate(depths, 1):
        for layer in range(1, depth + 1):
            at = f"denseblock{block}.denselayer{layer}"
            keys |= {**_norm(f"{at}.norm1", channels), **_norm(f"{at}.norm2", 4 * growth)}
            keys[f"{at}.conv1.weight"] = (4 * growth, channels, 1, 1)
            keys[f"{at}.conv2.weight"] = (growth, 4 * growth, 3, 3)
            channels += growth
        if block < len(depths):
            keys |= _norm(f"transition{block}.norm", channels)
            keys[f"transition{block}.conv.weight"] = (channels // 2, channels, 1, 1)
            channels //= 2
    keys = {f"features.{key}": shape for key, shape in {**keys, **_norm("norm5", channels)}.items()}
    return {**keys, "classifier.weight": (1000, channels), "classifier.bias": (1000,)}
