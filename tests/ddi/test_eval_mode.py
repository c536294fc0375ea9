"""eval_mode: every module is left in the mode that it was in, and with nothing prepared for inference."""

import pytest
from gated_models import mixed_model

import ddi
from ddi.data import get_dataset
from ddi.data.base import Split
from ddi.eval_mode import eval_mode
from ddi.evaluate.evaluate import evaluate


def test_modes_are_restored_module_by_module_even_after_an_error():
    model = mixed_model().train()
    model.ddi_gates.eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), eval_mode(model):
        assert not any(module.training for module in model.modules())
        ddi.prepare_(model)
        assert model.layer1[0].__dict__["_prepared"] is not None
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
    assert model.layer1[0].__dict__["_prepared"] is None


def test_evaluate_leaves_gates_that_train_alone_in_train_mode():
    model = mixed_model()
    model.ddi_gates.train()
    modes = [module.training for module in model.modules()]
    split = get_dataset("digits32").validation()
    evaluate(model, get_dataset("digits32"), Split(split.images[:4], split.labels[:4]))
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
