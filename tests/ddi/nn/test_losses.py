"""Losses of training, by hand."""

import pytest
import torch
import torch.nn.functional as F

import ddi


def test_branch_loss():
    labels = torch.tensor([0, 1, 2, 0])
    logits = [torch.randn(4, 3, requires_grad=True) for _ in range(3)]
    own = [F.cross_entropy(one, labels) for one in logits]
    loss = ddi.branch_loss(logits, labels)
    assert loss.item() == pytest.approx(sum(own).item())
    got = torch.autograd.grad(loss, logits, retain_graph=True)
    mean = sum(own).item() / 3
    for one, gradient, expected in zip(own, got, torch.autograd.grad(sum(own), logits), strict=True):
        torch.testing.assert_close(gradient, expected * mean / one.item())
    assert ddi.branch_loss(logits, labels, equalise=False).item() == pytest.approx(sum(own).item())
    certain = F.one_hot(labels, 3) * 1e4  # a loss of 0 has no gradient to scale
    assert ddi.branch_loss([certain.float(), logits[0]], labels).isfinite()
    with pytest.raises(ValueError, match="branch_loss: logits is empty"):
        ddi.branch_loss([], labels)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_loss(temperature):
    logits, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    loss = ddi.distillation_loss(logits, teacher, temperature)
    p, q = (F.softmax(one.detach() / temperature, dim=1) for one in (teacher, logits))
    by_hand = sum(a * (a / b).log() for a, b in zip(p.flatten(), q.flatten(), strict=True)) / 4
    assert loss.item() == pytest.approx(temperature**2 * by_hand.item(), rel=1e-5)
    own, of_teacher = torch.autograd.grad(loss, [logits, teacher], allow_unused=True)
    torch.testing.assert_close(own, temperature * (q - p) / 4)
    assert of_teacher is None
    assert ddi.distillation_loss(teacher.bfloat16(), teacher.bfloat16()).item() == pytest.approx(0, abs=1e-6)


def test_distillation_of_what_does_not_fit():
    with pytest.raises(ValueError, match=r"distillation_loss: logits are \(4, 3\), teacher_logits \(4, 10\)"):
        ddi.distillation_loss(torch.zeros(4, 3), torch.zeros(4, 10))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        ddi.distillation_loss(torch.zeros(4, 3), torch.zeros(4, 3), 0)
