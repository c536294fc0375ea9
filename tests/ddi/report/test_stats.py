"""Correlation and the paired interval, against answers that can be worked out by hand."""

import pytest
import torch

from ddi.report.stats import correlation, paired_interval


def test_correlation_is_pearsons():
    a = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert correlation(a, 5 - 2 * a) == pytest.approx(-1)
    assert correlation(a, torch.tensor([1.0, -1.0, -1.0, 1.0])) == pytest.approx(0)


def test_correlation_with_a_constant_is_undefined():
    assert correlation(torch.ones(5), torch.arange(5.0)) is None


def test_interval_holds_the_difference_and_is_reproducible():
    torch.manual_seed(0)
    first, second = torch.rand(2000) < 0.9, torch.rand(2000) < 0.8
    scan = torch.arange(2000) // 4
    low, high = paired_interval(first, second, scan, seed=1)
    difference = second.double().mean().item() - first.double().mean().item()
    assert low < difference < high < 0
    # Two independent binomials: standard deviation sqrt((0.9 * 0.1 + 0.8 * 0.2) / 2000) = 0.0112.
    assert high - low == pytest.approx(2 * 1.96 * 0.0112, rel=0.15)
    assert (low, high) == paired_interval(first, second, scan, seed=1)


def test_images_of_one_scan_count_as_one_draw():
    """Where all images of a scan share their fate, more of them make the interval no narrower."""
    torch.manual_seed(0)
    right = torch.rand(100) < 0.7
    always = torch.ones(100, dtype=torch.bool)
    single = paired_interval(always, right, torch.arange(100), seed=0)
    tenfold = paired_interval(
        always.repeat_interleave(10),
        right.repeat_interleave(10),
        torch.arange(100).repeat_interleave(10),
        seed=0,
    )
    assert tenfold == pytest.approx(single)
