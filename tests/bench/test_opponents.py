"""Dense opponents: every one computes the convolution, and one that cannot be timed says why."""

import builtins

import pytest
import torch

from bench import opponents
from bench.cases import INPUTS, SUITES, Case, make_inputs, select_cases

CASES = [
    Case(1, 5, 7, 6),
    Case(3, 16, 16, 5),
    Case(2, 8, 20, 4, kernel=1),
    Case(1, 6, 4, 7, stride=2),
    Case(1, 6, 4, 8, kernel=1, stride=2),
]
NAMES = {
    torch.float32: ["eager", "channels_last", "onednn_prepacked", "onnxruntime", "openvino"],
    torch.bfloat16: ["eager", "channels_last", "onednn_prepacked"],
    torch.float16: ["eager", "channels_last", "onednn_prepacked", "onnxruntime"],
}
# Whether oneDNN packs weights of a type is up to the CPU, and torch says so.
PACKED = {
    torch.float32: True,
    torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_every_opponent_agrees_with_float64(case, dtype):
    with torch.inference_mode():
        inputs, weight = make_inputs(case, dtype)
        providers, missing = opponents.make_opponents(inputs, weight, case, threads=1)
        assert [*providers] == [name for name in NAMES[dtype] if name not in missing]
        assert missing.keys() <= {"onnxruntime", "openvino", "onednn_prepacked"}
        assert ("onednn_prepacked" in providers) == PACKED[dtype]
        for provider in providers.values():
            assert len(provider.calls) == INPUTS
            for i, x in enumerate(inputs):
                got = provider.output(i)
                expected = opponents.dense_float64(x, weight, case)
                assert got.shape == (case.batch, case.channels_out, case.side_out, case.side_out)
                atol = opponents.TOLERANCES[dtype] * expected.abs().max().item()
                torch.testing.assert_close(got.double(), expected, atol=atol, rtol=0)


def test_a_wrong_result_is_not_timed(monkeypatch):
    case = CASES[0]

    def twice(inputs, weight, case, threads):
        return opponents._eager(inputs, 2 * weight, case, threads)

    monkeypatch.setitem(opponents._BUILDERS, torch.float32, {"twice": twice})
    with pytest.raises(RuntimeError, match=r"twice on conv3x3 N1 C5-7 H6 differs .* not be comparable"):
        opponents.make_opponents(*make_inputs(case, torch.float32), case, threads=1)


@pytest.mark.parametrize("bad", (float("nan"), 1.0))
def test_check_result_sees_nan_and_one_bad_sample(bad):
    expected = torch.ones(3, 2, 2, 2, dtype=torch.float64)
    got = expected.float()
    assert opponents.check_result("x", CASES[0].name, got, expected) == 0
    got[2, 1, 0, 1] += bad
    with pytest.raises(RuntimeError, match="differs from float64"):
        opponents.check_result("x", CASES[0].name, got, expected)


def test_what_is_not_installed_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "onnxruntime":
            raise ImportError("no module onnxruntime")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    case = CASES[0]
    providers, missing = opponents.make_opponents(*make_inputs(case, torch.float32), case, threads=1)
    assert "onnxruntime" not in providers and "eager" in providers
    assert missing["onnxruntime"] == "ImportError: no module onnxruntime"


def test_names_and_macs_of_cases():
    cases = {case.name: case for case in SUITES["cpu"]}
    assert len(cases) == len(SUITES["cpu"]) == 24
    assert cases["conv3x3 N1 C16 H32"].macs == 16 * 16 * 9 * 32 * 32
    assert cases["conv1x1 N8 C256-64 H56"].macs == 8 * 256 * 64 * 56 * 56
    assert cases["conv3x3s2 N1 C128 H56"].macs == 128 * 128 * 9 * 28 * 28


def test_select_cases():
    assert len(select_cases("cpu", "conv1x1")) == 8 and len(select_cases("cpu", "")) == 24
    with pytest.raises(ValueError, match="--cases 'zz' is part of no case .* conv3x3 N1 C16 H32"):
        select_cases("cpu", "zz")
