"""Everything that determines a training run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

from ..backbones.base import Exits
from ..cost import RESOURCES, Resource, as_resource

__all__ = ["Stage", "TrainConfig"]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run.

    Args:
        model, dataset, data_root: names known to `create_model` and `get_dataset`.
        model_kwargs: more for `create_model`, as {"width": 8}.
        gates: a gate config as `config_to_dict` gives it, or None for a plain network.
        exits: branch classifiers, trained with the network: "default", a number of them, or after which
            blocks, as "3,6,9"; "none": none, also if `init` has some; None: those that it has, else none.
        branch_weight: factor of their `branch_loss`.
        equalise: see `branch_loss`.
        teacher: checkpoint of a network, of any kind, whose outputs the joint stage learns beside the labels.
        teacher_weight: share of the `distillation_loss` in the main classifier's loss; the rest is cross
            entropy.
        mac_target: wanted share of the dense cost in `resource`, reached in the joint stage.
        resource: what the network is held to: "macs"; "ms", by a latency table; "joules", by the default
            energy model. The gates stage is held to all MACs whatever it is: full execution.
        latency_table: file of the table for "ms", also one of another device; None: this device's own,
            which `ddi profile` measures.
        init: checkpoint of a plain network to start from, instead of random weights.
        backbone_epochs, gates_epochs, joint_epochs: length of each stage; 0 leaves it out. Without gates the
            joint stage fine-tunes the plain network, which gives a dense baseline trained as long.
        backbone_lr, joint_lr: peak learning rate of SGD for the network's weights. The authors' code has 0.01
            in the joint stage; on scene_digits that left a network gated to 0.3 of its MACs underfit.
        gate_lr: learning rate of Adam for the gates (their gradients differ by orders of magnitude between
            layer and channel bits, which plain SGD at one rate cannot serve).
        batch_size: images a step; of all processes together.
        budget_weight: factor of `budget_loss`.
        anneal: share of the joint stage over which the target falls from 1 to mac_target.
        settle: share of the joint stage after which gates learn no more, once mac_target is reached, so that
            the network learns to do with what they decide; not before anneal; 1: never.
        precision: "fp32", or "bf16" for mixed precision (torch.autocast; weights, losses and gates stay
            float32): 1.5 times as fast on CPUs with AVX512-BF16.
        device: "cpu", "cuda", or a GPU as "cuda:1"; for several processes "cuda" is a GPU each.
    """

    model: str = "cifar_resnet38"
    dataset: str = "scene_digits"
    data_root: str | None = None
    model_kwargs: dict[str, Any] | None = None
    gates: dict[str, Any] | None = None
    exits: str | None = None
    branch_weight: float = 1.0
    equalise: bool = True
    teacher: str | None = None
    teacher_weight: float = 0.7
    mac_target: float = 0.3
    resource: str = "macs"
    latency_table: str | None = None
    init: str | None = None
    seed: int = 0
    batch_size: int = 128
    backbone_epochs: int = 16
    gates_epochs: int = 1
    joint_epochs: int = 12
    backbone_lr: float = 0.2
    joint_lr: float = 0.2
    gate_lr: float = 0.004
    weight_decay: float = 1e-4
    budget_weight: float = 1.5
    anneal: float = 0.35
    settle: float = 0.45
    precision: str = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0.0 < self.mac_target <= 1.0:
            raise ValueError(f"train: mac_target must lie in (0, 1], got {self.mac_target!r}")
        if self.resource not in RESOURCES:
            raise ValueError(f"train: resource must be one of {', '.join(RESOURCES)}, got {self.resource!r}")
        if self.latency_table is not None and self.resource != "ms":
            raise ValueError(f'train: latency_table is for resource "ms", got resource {self.resource!r}')
        for name in ("backbone_epochs", "gates_epochs", "joint_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"train: {name} must not be negative, got {getattr(self, name)!r}")
        if self.branch_weight < 0:
            raise ValueError(f"train: branch_weight must not be negative, got {self.branch_weight!r}")
        for name in ("teacher_weight", "settle"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"train: {name} must lie in [0, 1], got {getattr(self, name)!r}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f'train: precision must be "fp32" or "bf16", got {self.precision!r}')
        if self.batch_size < 2:
            raise ValueError(f"train: batch_size must be at least 2, got {self.batch_size!r}")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainConfig:
        """A config from parsed JSON or TOML; unknown keys are an error that names the allowed ones."""
        allowed = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - allowed):
            raise ValueError(f"train config: unknown keys {unknown}; allowed: {sorted(allowed)}")
        return cls(**data)

    def backbone_exits(self) -> Exits:
        """`exits` as `create_model` takes it."""
        if self.exits in (None, "none"):
            return None
        if self.exits == "default":
            return cast(Exits, self.exits)
        try:
            numbers = [int(word) for word in self.exits.split(",")]
        except ValueError as error:
            raise ValueError(
                'train: exits must be "default", "none", a number, or numbers as in "3,6,9"; '
                f"got {self.exits!r}"
            ) from error
        return numbers if "," in self.exits else numbers[0]

    def priced(self) -> Resource:
        """`resource` with its prices.

        Raises:
            OSError, ValueError: the latency table cannot be read, or there is none of this device.
        """
        return as_resource(self.resource, self.latency_table)

    def stages(self) -> list[Stage]:
        """The stages this run goes through, in order."""
        planned = [Stage("backbone", self.backbone_epochs if self.init is None else 0)]
        planned.append(Stage("gates", self.gates_epochs if self.gates else 0))
        planned.append(Stage("joint", self.joint_epochs))
        return [stage for stage in planned if stage.epochs]


@dataclass(frozen=True)
class Stage:
    name: str
    epochs: int
