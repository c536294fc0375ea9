"""Budgets: multiply-adds are never exceeded, what can be spent is spent, and the engine halts alike."""

import itertools

import pytest
import torch
from gated_models import images, mixed_model

import ddi
from ddi import Budget
from ddi.backbones.densenet import DenseNet
from ddi.backbones.resnet import BasicBlock, ResNet
from ddi.budgets.budget import _Clock
from ddi.budgets.exit_costs import ExitCosts, Step, exit_costs, exit_ms
from ddi.cost import Joules
from ddi_kernels import engine
from ddi_kernels.prices.energy import HOROWITZ_45NM, EnergyModel

FAMILIES = {
    "resnet": lambda: ResNet(BasicBlock, (3, 3, 2), 8, "cifar", 10, 5),
    "densenet": lambda: DenseNet(6, (4, 4, 4), 8, "cifar", 10, "default"),
}


def plain(name="resnet"):
    torch.manual_seed(0)
    return FAMILIES[name]().eval()


def gated(name="resnet", **config):
    """With gates that open for about half of what they see."""
    return mixed_model(FAMILIES[name], **{"group_size": 4 if name == "resnet" else 2, **config})


MODELS = {
    "plain": plain,
    "plain densenet": lambda: plain("densenet"),
    "gated": gated,
    "layers": lambda: gated(channels=False),
    "densenet": lambda: gated("densenet"),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture
def budgets(model):
    """From the first exit's worst case to the whole network's."""
    costs = exit_costs(model, (1, 3, 32, 32))
    low, high = costs.worst(0), costs.worst(len(costs.heads) - 1)
    return [low + (high - low) * i // 15 for i in range(16)]


def test_macs_are_never_exceeded_and_the_answer_is_the_exits_own(model, budgets):
    x = images(3)
    with torch.inference_mode():
        every = model.forward_exits(x)
    exits = []
    for limit in budgets:
        answer = ddi.budget(model, x, Budget(macs=limit))
        assert answer.macs.shape == (3,) and answer.macs.max() <= limit
        torch.testing.assert_close(answer.logits, every[answer.exit], rtol=1e-4, atol=1e-4)
        exits.append(answer.exit)
    assert exits[0] >= 0 and exits[-1] == len(every) - 1 and len(set(exits)) > 1


def test_joules_are_never_exceeded(model):
    """Of the shipped model, and of one by which they are multiply-adds."""
    x, macs_only = images(3), EnergyModel("toy", "none", {"fp32": 1e12}, {"l1": 0.0}, "l1", "l1")
    for energy in (HOROWITZ_45NM, macs_only):
        costs = exit_costs(model, x.shape, Joules(energy))
        low, high = costs.worst(0), costs.worst(len(costs.heads) - 1)
        exits = []
        for i in range(8):
            limit = low + (high - low) * i / 7
            answer = ddi.budget(model, x, Budget(joules=limit, energy=energy))
            assert answer.joules.max() <= limit
            exits.append(answer.exit)
            if energy is macs_only:
                torch.testing.assert_close(answer.joules, answer.macs, rtol=1e-9, atol=1e-9)
        assert exits[-1] == len(model.exits) and len(set(exits)) > 1


def test_joules_are_those_of_the_energy_model():
    model, x = gated(), images(4)
    free = ddi.budget(model, x, Budget(joules=1.0))
    torch.testing.assert_close(free.joules, ddi.energy(model, x).per_sample.double(), rtol=1e-6, atol=0)
    assert ddi.budget(model, x, Budget()).joules is None


def test_gates_put_on_later_are_counted():
    model = plain()
    before = exit_costs(model, (1, 3, 32, 32)).worst(0)
    ddi.convert_(model, ddi.DDIConfig(group_size=4))
    assert exit_costs(model, (1, 3, 32, 32)).worst(0) > before


def test_a_plain_network_spends_what_it_may(budgets):
    model = plain()
    costs = exit_costs(model, (1, 3, 32, 32))
    for exit in range(len(costs.heads)):
        worst = costs.worst(exit)
        assert ddi.budget(model, images(2), Budget(macs=worst)).exit == exit
        if exit:
            assert ddi.budget(model, images(2), Budget(macs=worst - 1)).exit == exit - 1
        assert costs.latest(worst) == exit
    assert costs.latest(costs.worst(0) - 1) is None


def test_macs_are_those_that_record_counts(model):
    """Without a limit, and with one that leaves the whole network's classifier in reach."""
    x = images(4)
    expected = ddi.count_macs(model, x).per_sample
    free = ddi.budget(model, x, Budget())
    assert free.exit == len(model.exits)
    torch.testing.assert_close(free.macs, expected, rtol=0, atol=0.5)
    costs = exit_costs(model, x.shape)
    assert costs.worst(len(model.exits)) >= expected.max()


def test_closed_gates_buy_later_exits():
    """What gates save before an exit is spent behind it."""
    model = gated()
    costs = exit_costs(model, (1, 3, 32, 32))
    limit = costs.worst(2)
    assert ddi.budget(model, images(1), Budget(macs=limit)).exit > costs.latest(limit)


def test_the_dearest_sample_halts_the_batch():
    model, x = gated(), images(16)
    alone = [ddi.budget(model, one[None], Budget()).macs.item() for one in x]
    limit = sorted(alone)[8]
    cheap = [i for i, macs in enumerate(alone) if macs <= limit]
    assert any(ddi.budget(model, x[[i]], Budget(macs=limit)).exit == len(model.exits) for i in cheap)
    together = ddi.budget(model, x, Budget(macs=limit))
    assert together.exit < len(model.exits) and together.macs.max() <= limit


@pytest.mark.parametrize("name", ["plain", "gated", "layers", "densenet"])
def test_the_engine_halts_at_the_same_exit(name, tmp_path):
    pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")
    model, x = MODELS[name](), images(3)
    ddi.freeze(model, x[:1], tmp_path / "net.ddi")
    frozen = engine.load(tmp_path / "net.ddi", 3)
    costs = exit_costs(model, x.shape)
    assert [costs.worst(exit) for exit in range(len(costs.heads))] == frozen.exit_worst_macs
    low, high = costs.worst(0), costs.worst(len(costs.heads) - 1)
    for i in range(24):
        limit = int(low + (high - low) * i / 23)
        ours = ddi.budget(model, x, Budget(macs=limit))
        _, report = frozen(x, max_macs=limit, report=True)
        assert ours.exit == report.exit
        if name != "densenet":  # the engine's classifiers do not read what is closed in a concatenation
            assert ours.macs.tolist() == report.macs


def test_each_sample_has_the_answer_of_the_first_exit_that_is_certain():
    model, x = gated(), images(6)
    with torch.inference_mode():
        logits = torch.stack(model.forward_exits(x))
    sure = logits.softmax(2).amax(2)
    costs = exit_costs(model, x.shape)
    for threshold in sorted([*sure[:-1].flatten().tolist(), 0.999999]):
        answer = ddi.budget(model, x, Budget(confidence=threshold))
        certain = sure >= threshold
        certain[-1] = True
        expected = certain.int().argmax(0)
        assert torch.equal(answer.exits, expected) and answer.exit == expected.max()
        torch.testing.assert_close(answer.logits, logits[expected, torch.arange(6)])
    # All classifiers on the way are paid for.
    free = ddi.budget(model, x, Budget())
    assert set(free.exits.tolist()) == {len(model.exits)}
    torch.testing.assert_close(answer.macs, free.macs + sum(costs.heads[:-1]), rtol=0, atol=0.5)


def test_confidence_under_a_limit_never_exceeds_it(budgets, model):
    for limit in budgets:
        answer = ddi.budget(model, images(2), Budget(macs=limit, confidence=0.999999))
        assert answer.macs.max() <= limit


def test_deadlines_halt_early_or_not_at_all(model):
    costs = exit_ms(model, images(1))
    assert costs.unit == "ms" and min(costs.heads) >= 0 and costs.worst(0) > 0
    assert ddi.budget(model, images(1), Budget(ms=1e6)).exit == len(model.exits)
    # As soon as an exit is reached, there is no time left.
    late = {key: _slower(value) for key, value in model.__dict__["_ddi_exit_ms"].items()}
    model.__dict__["_ddi_exit_ms"].update(late)
    assert ddi.budget(model, images(1), Budget(ms=costs.worst(0) + 1000)).exit == 0


def test_a_deadline_never_makes_a_call_exceed_its_macs(monkeypatch):
    """Behind an exit whose answer no longer fits, the next one has to be reached, however late it is."""
    model, x = plain(), images(1)
    model.exits[0] = ddi.ExitHead(8, 10, side=32, width=256).eval()  # dearer than the blocks behind it
    costs = exit_costs(model, x.shape)
    exit_ms(model, x)
    limit, exits = costs.worst(0), set()
    assert costs.worst(1) < limit
    for late in range(40):  # the clock goes forward by a second whenever it is looked at
        ticks = itertools.count()
        monkeypatch.setitem(_Clock.elapsed.__globals__, "perf_counter", lambda ticks=ticks: 1.0 * next(ticks))
        answer = ddi.budget(model, x, Budget(macs=limit, ms=1e3 * late + 1e3))
        assert answer.macs.max() <= limit
        exits.add(answer.exit)
    assert exits >= {0, 1}


def _slower(costs):
    """As if all behind the first exit took seconds."""
    first = costs.positions[0]
    steps = [*costs.steps[:first], *(Step(1e4, s.gates, s.blocks) for s in costs.steps[first:])]
    heads = (costs.heads[0], *(1e4 for _ in costs.heads[1:]))
    return ExitCosts(costs.unit, costs.positions, tuple(steps), heads)


def test_the_clock_counts_from_the_start_of_the_call(monkeypatch):
    clock = _Clock(ExitCosts("ms", (1,), (Step(1.0),), (1.0,)), 5.0)
    clock.start = 100.0
    monkeypatch.setitem(_Clock.elapsed.__globals__, "perf_counter", lambda: 100.003)
    assert clock.fits(1.9) and not clock.fits(2.1)


def test_other_sizes_and_empty_batches(model):
    small = torch.randn(2, 3, 24, 40)
    limit = exit_costs(model, small.shape).worst(1)
    assert ddi.budget(model, small, Budget(macs=limit)).macs.max() <= limit
    none = ddi.budget(model, torch.randn(0, 3, 32, 32), Budget(macs=1e9))
    assert none.logits.shape == (0, 10) and none.macs.shape == (0,)


def test_a_pass_that_halts_leaves_nothing_behind():
    model, x = gated(), images(2)
    with torch.inference_mode():
        before = model(x)
        ddi.budget(model, x, Budget(macs=exit_costs(model, x.shape).worst(0)))
        torch.testing.assert_close(model(x), before)
        with ddi.record(model) as rec:
            model(x)
    assert len(rec.passes) == 1


@pytest.mark.parametrize(
    "values", [{"macs": 0}, {"macs": -1}, {"joules": 0.0}, {"ms": float("nan")}, {"ms": "2"}]
)
def test_budgets_that_are_none(values):
    with pytest.raises(ValueError, match=f"Budget: {next(iter(values))} must be a positive number"):
        Budget(**values)


@pytest.mark.parametrize("confidence", [0, 1.1, "high", float("nan")])
def test_confidences_that_are_none(confidence):
    with pytest.raises(ValueError, match=r"Budget: confidence must lie in \(0, 1\]"):
        Budget(confidence=confidence)


def test_impossible_budgets_are_refused_before_the_run(model):
    worst = exit_costs(model, (1, 3, 32, 32)).worst(0)
    with pytest.raises(ValueError, match="no exit fits into .* MACs: the first may take"):
        ddi.budget(model, images(1), Budget(macs=worst - 1))
    with pytest.raises(ValueError, match="no exit fits into 1e-06 ms"):
        ddi.budget(model, images(1), Budget(ms=1e-6))


def test_networks_without_branches():
    model = ddi.create_model("cifar_resnet8").eval()
    dense = ddi.count_macs(model, images(1)).dense
    assert ddi.budget(model, images(1), Budget(macs=dense)).macs.item() == dense
    with pytest.raises(ValueError, match="no branch classifiers, create it with exits"):
        ddi.budget(model, images(1), Budget(macs=dense - 1))
    with pytest.raises(ValueError, match="confidence needs branch classifiers"):
        ddi.budget(model, images(1), Budget(confidence=0.9))


def test_other_bad_calls():
    model = plain()
    with pytest.raises(ValueError, match=r"training mode; call model.eval\(\)"):
        ddi.budget(plain().train(), images(1), Budget())
    with pytest.raises(TypeError, match="must come from ddi.create_model.*got Linear"):
        ddi.budget(torch.nn.Linear(2, 2), images(1), Budget())
    with pytest.raises(TypeError, match="must be a ddi.Budget, got int"):
        ddi.budget(model, images(1), 20_000_000)
    with pytest.raises(ValueError, match=r"must be a Tensor\[N, 3, H, W\], got \(3, 32, 32\)"):
        ddi.budget(model, images(1)[0], Budget())
    with pytest.raises(ValueError, match="expected input"):
        ddi.budget(model, torch.randn(1, 4, 32, 32), Budget())
