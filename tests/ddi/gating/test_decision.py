"""Mask and Decision: counting channels, straight-through values, selection."""

import torch

from ddi import Decision, Mask


def test_open_channels_counts_a_short_last_group():
    mask = Mask(torch.tensor([[True, True, True], [True, False, True], [False, False, False]]), group_size=4)
    # 10 channels in groups of 4: the last group has 2.
    assert mask.open_channels(10).tolist() == [10.0, 6.0, 0.0]


def test_weights_repeat_groups_and_multiply_scale():
    mask = Mask(torch.tensor([[True, False]]), group_size=2, scale=torch.tensor([[0.5, 3.0]]))
    assert mask.weights(3).tolist() == [[0.5, 0.5, 0.0]]


def test_straight_through_has_hard_values_and_soft_gradients():
    soft = torch.tensor([0.9, 0.2], requires_grad=True)
    decision = Decision(keep=torch.tensor([True, False]), keep_soft=soft)
    weights = decision.keep_weights()
    assert weights.tolist() == [1.0, 0.0]
    weights.sum().backward()
    assert soft.grad.tolist() == [1.0, 1.0]
    assert decision.needs_grad


def test_per_channel_repeats_bits_and_soft_values_and_drops_the_scale():
    soft = torch.tensor([[0.9, 0.2]], requires_grad=True)
    mask = Mask(torch.tensor([[True, False]]), 2, scale=torch.tensor([[3.0, 3.0]]), soft=soft).per_channel(3)
    assert mask.open.tolist() == [[True, True, False]] and mask.group_size == 1
    assert mask.weights(3).tolist() == [[1.0, 1.0, 0.0]]
    mask.weights(3).sum().backward()
    assert soft.grad.tolist() == [[2.0, 1.0]]


def test_apply_multiplies_channels_in_the_dtype_of_x():
    mask = Mask(torch.tensor([[True, False]]), scale=torch.tensor([[0.5, 1.0]]))
    y = mask.apply(torch.full((1, 2, 1, 1), 4.0, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and y.flatten().tolist() == [2.0, 0.0]


def test_without_a_gradient_what_closed_channels_hold_does_not_matter():
    x, open = torch.tensor([[2.0, torch.nan, torch.inf, torch.nan]])[:, :, None, None], [[True, False]]
    mask = Mask(torch.tensor(open), group_size=2)
    assert mask.apply(x).isnan().flatten().tolist() == [False, True, False, False]  # an open NaN stays
    assert mask.apply(x)[0, 2:].flatten().tolist() == [0.0, 0.0]
    trained = Mask(torch.tensor(open), soft=torch.tensor([[0.9, 0.1]], requires_grad=True))
    x = torch.full((1, 2, 1, 1), 3.0)
    trained.apply(x).sum().backward()
    assert trained.soft.grad.tolist() == [[3.0, 3.0]]  # the gate may learn to open again


def test_a_gradient_may_be_needed_by_the_mask_of_the_inputs():
    soft = torch.tensor([[0.9]], requires_grad=True)
    assert Decision(in_mask=Mask(torch.tensor([[True]]), soft=soft)).needs_grad
    assert not Decision(in_mask=Mask(torch.tensor([[True]]))).needs_grad


def test_select_takes_samples_of_every_field():
    mask = Mask(torch.tensor([[True], [False], [True]]), scale=torch.tensor([[1.0], [2.0], [3.0]]))
    decision = Decision(
        keep=torch.tensor([True, False, True]),
        keep_scale=torch.tensor([1.0, 2.0, 3.0]),
        masks=(mask,),
        in_mask=Mask(torch.tensor([[True], [True], [False]])),
    )
    some = decision.select(torch.tensor([2]))
    assert some.keep.tolist() == [True]
    assert some.keep_scale.tolist() == [3.0]
    assert some.masks[0].open.tolist() == [[True]]
    assert some.masks[0].scale.tolist() == [[3.0]]
    assert some.in_mask.open.tolist() == [[False]]
    assert not some.needs_grad
