"""One training run in a folder: its steps, its state on disk, its interruption.

Every random draw is keyed by (seed, epoch), never by a global generator, so a run that was interrupted and
resumed gives bit for bit what an uninterrupted one gives on the same machine.
"""

from __future__ import annotations

import json
import logging
import math
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..backbones import create_model
from ..checkpoint import (
    CheckpointError,
    load_model,
    read_tensors,
    save_model,
    write_atomic,
    write_tensors,
)
from ..convert import convert_, is_converted
from ..cost import Macs, Resource
from ..data import Dataset, get_dataset
from ..evaluate import evaluate, has_exits
from ..gates import config_from_dict
from ..losses import branch_loss, budget_loss
from ..quiet import working
from ..record import record
from .config import Stage, TrainConfig

__all__ = ["Interrupted", "Trainer"]

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """Training was asked to stop (SIGINT) and has saved its state."""


@dataclass
class Progress:
    """Where a run stands: the next step to take."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """One run in a folder: `state.safetensors` while it runs, then `model.safetensors` and `history.json`."""

    def __init__(self, config: TrainConfig, out: str | Path) -> None:
        self.config = config
        self.out = Path(out)
        self.stages = config.stages()
        # A plain network is held to nothing, so that it needs no table.
        self.resource: Resource = Macs() if config.gates is None else config.priced()
        self.data: Dataset = get_dataset(config.dataset, config.data_root)
        self.progress = Progress()
        self.model = self._initial_model().to(config.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._saved_optimizers: dict[str, Tensor] = {}
        self._stop = False

    def _initial_model(self) -> nn.Module:
        config = self.config
        torch.manual_seed(config.seed)
        model = self._new_model() if config.init is None else self._load_init(config.init)
        if config.gates is not None:
            convert_(model, config_from_dict(config.gates))
        return model

    def _new_model(self) -> Any:
        return create_model(self.config.model, exits=self.config.backbone_exits(), **self._model_kwargs())

    def _model_kwargs(self) -> dict[str, Any]:
        """Of `create_model`, but for exits."""
        return {"num_classes": self.data.num_classes, **(self.config.model_kwargs or {})}

    def _load_init(self, path: str) -> Any:
        """The checkpoint's plain network, with branch classifiers if some are wanted."""
        loaded: Any
        loaded, meta = load_model(path)
        if is_converted(loaded):
            raise CheckpointError(f"train: init={path} holds a gated model; give a plain one")
        if meta.get("model") not in (None, self.config.model):
            raise CheckpointError(
                f"train: init={path} holds {meta['model']!r}, the run wants {self.config.model!r}"
            )
        if self.config.exits is None:
            return loaded
        model = self._new_model()
        if loaded.exit_positions not in ((), model.exit_positions):
            raise CheckpointError(
                f"train: init={path} has branch classifiers after blocks {loaded.exit_positions}, the run "
                f"wants them after {model.exit_positions}; leave exits out to train those that it has"
            )
        model.load_state_dict(loaded.state_dict(), strict=False)  # all, or all but exits.*
        return model

    def _gate_parameters(self) -> list[nn.Parameter]:
        gates = getattr(self.model, "ddi_gates", None)
        return [] if gates is None else list(gates.parameters())

    def _optimizers(self, stage: Stage) -> list[torch.optim.Optimizer]:
        config = self.config
        gates = self._gate_parameters()
        gate_ids = {id(p) for p in gates}
        network = [p for p in self.model.parameters() if id(p) not in gate_ids]
        for parameter in network:
            parameter.requires_grad_(stage.name != "gates")
        for parameter in gates:
            parameter.requires_grad_(stage.name != "backbone")
        optimizers: list[torch.optim.Optimizer] = []
        if stage.name != "gates":
            decay = config.weight_decay
            optimizers.append(
                torch.optim.SGD(network, lr=1.0, momentum=0.9, nesterov=True, weight_decay=decay)
            )
        if gates and stage.name != "backbone":
            optimizers.append(torch.optim.Adam(gates, lr=1.0))
        return optimizers

    def _set_rates(self, stage: Stage, optimizers: list[torch.optim.Optimizer], done: float) -> None:
        """Warm-up over the first tenth, then a cosine to zero; done is the share of the stage behind us."""
        shape = min(done / 0.1, 0.5 * (1 + math.cos(math.pi * max(0.0, (done - 0.1) / 0.9))))
        for optimizer in optimizers:
            if isinstance(optimizer, torch.optim.Adam):
                rate = self.config.gate_lr
            else:
                rate = self.config.backbone_lr if stage.name == "backbone" else self.config.joint_lr
            optimizer.param_groups[0]["lr"] = rate * max(shape, 1e-3)

    def _target(self, stage: Stage, done: float) -> float:
        if stage.name != "joint":
            return 1.0
        share = min(1.0, done / self.config.anneal) if self.config.anneal > 0 else 1.0
        return 1.0 - share * (1.0 - self.config.mac_target)

    def _loss(self, stage: Stage, done: float, x: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        mixed = torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        # The recipe's backbone stage knows no gates; a converted model runs it fully open by construction.
        if not is_converted(self.model) or stage.name == "backbone":
            with mixed:
                return self._task_loss(x, labels), 1.0
        with record(self.model) as rec, mixed:
            loss = self._task_loss(x, labels)
        resource = self.resource if stage.name == "joint" else Macs()
        loss = loss + self.config.budget_weight * budget_loss(rec, self._target(stage, done), resource)
        return loss, rec.macs.mean().item() / rec.dense_macs

    def _task_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        if not has_exits(self.model):
            return F.cross_entropy(self.model(x).float(), labels)
        *branches, main = self.model(x, all_exits=True)
        loss = F.cross_entropy(main.float(), labels)
        return loss + self.config.branch_weight * branch_loss(branches, labels, self.config.equalise)

    def _train_mode(self, stage: Stage) -> None:
        # A frozen backbone keeps its BatchNorm statistics too; gates learn theirs.
        self.model.train(stage.name != "gates")
        if is_converted(self.model):
            self.model.ddi_gates.train()  # type: ignore[operator, union-attr]

    def run(self, progress_bar: bool = True) -> dict[str, Any]:
        """Trains to the end, or to SIGINT.

        Returns:
            The last history entry.

        Raises:
            Interrupted: after saving, on SIGINT.
        """
        previous = signal.signal(signal.SIGINT, self._on_signal)
        try:
            while self.progress.stage < len(self.stages):
                self._run_stage(self.stages[self.progress.stage], progress_bar)
        finally:
            signal.signal(signal.SIGINT, previous)
        self._finish()
        return self.progress.history[-1] if self.progress.history else {}

    def _on_signal(self, number: int, frame: Any) -> None:
        self._stop = True

    def _run_stage(self, stage: Stage, progress_bar: bool) -> None:
        optimizers = self._optimizers(stage)
        self._restore_optimizers(optimizers)
        while self.progress.epoch < stage.epochs:
            self._run_epoch(stage, optimizers, progress_bar)
            self.progress.history.append(self._summary(stage))
            logger.info("%s", json.dumps(self.progress.history[-1]))
            self.progress.epoch, self.progress.step = self.progress.epoch + 1, 0
            self._save(optimizers)
        self.progress.stage, self.progress.epoch = self.progress.stage + 1, 0
        self._save([])

    def _run_epoch(self, stage: Stage, optimizers: list[torch.optim.Optimizer], progress_bar: bool) -> None:
        config, state = self.config, self.progress
        # One number per (stage, epoch), the same whether or not the run was interrupted.
        draw = sum(s.epochs for s in self.stages[: state.stage]) + state.epoch
        split = self.data.train(config.seed, draw)
        order = torch.randperm(
            len(split.labels),
            generator=torch.Generator().manual_seed(config.seed * 1_000_003 + draw),
        )
        steps = len(order) // config.batch_size
        self._train_mode(stage)
        title = f"{stage.name} {state.epoch + 1}/{stage.epochs}"
        bar = tqdm(
            total=steps,
            initial=state.step,
            desc=title,
            disable=None if progress_bar else True,
            leave=False,
        )
        with bar:
            while state.step < steps:
                rows = order[state.step * config.batch_size : (state.step + 1) * config.batch_size]
                done = (state.epoch * steps + state.step) / (stage.epochs * steps)
                x, labels = self.data.normalize(split.images[rows]), split.labels[rows]
                self._set_rates(stage, optimizers, done)
                with working():
                    loss, share = self._loss(stage, done, x.to(config.device), labels.to(config.device))
                    self._step(loss, optimizers)
                state.step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", macs=f"{share:.2f}")
                if self._stop:
                    self._save(optimizers)
                    raise Interrupted(f"train: stopped by SIGINT; `--resume` continues from {self.out}")

    def _step(self, loss: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    def _summary(self, stage: Stage) -> dict[str, Any]:
        with working():
            result = evaluate(
                self.model,
                self.data,
                self.data.validation(),
                device=self.config.device,
                resource=self.resource,
            )
        return dict(
            stage=stage.name,
            epoch=self.progress.epoch + 1,
            validation_accuracy=round(result.accuracy, 5),
            mac_ratio=round(result.mac_ratio, 4),
            resource_share=round(result.cost.share.item(), 4),
            **({"exit_accuracy": [round(a, 5) for a in exits]} if (exits := result.exit_accuracy) else {}),
        )

    @property
    def _state_path(self) -> Path:
        return self.out / "state.safetensors"

    def _save(self, optimizers: list[torch.optim.Optimizer]) -> None:
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for i, optimizer in enumerate(optimizers):
            for j, entry in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"optimizer.{i}.{j}.{key}": torch.as_tensor(value)
                    for key, value in entry.items()
                    if value is not None
                }
        state = asdict(self.progress)
        write_tensors(self._state_path, tensors, {"config": asdict(self.config), "progress": state})

    def resume(self) -> None:
        """Takes up the run whose state lies in the folder.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: it is damaged, or belongs to another configuration.
        """
        tensors, info = read_tensors(self._state_path)
        # A setting that did not exist when the state was written has its default.
        saved, wanted = asdict(TrainConfig()) | info.get("config", {}), asdict(self.config)
        if saved != json.loads(json.dumps(wanted)):
            raise CheckpointError(
                f"train: {self._state_path} was written by another configuration; resume with the same "
                f"arguments, or train into another folder. It has {info.get('config')}"
            )
        self.progress = Progress(**info["progress"])
        prefix = "model."
        weights = {k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)}
        self.model.load_state_dict(weights)
        self._saved_optimizers = {k: t for k, t in tensors.items() if k.startswith("optimizer.")}

    def _restore_optimizers(self, optimizers: list[torch.optim.Optimizer]) -> None:
        for name, tensor in self._saved_optimizers.items():
            _, i, j, key = name.split(".")
            group = optimizers[int(i)].param_groups[0]["params"]
            optimizers[int(i)].state[group[int(j)]][key] = tensor
        self._saved_optimizers = {}

    def _finish(self) -> None:
        meta = {
            "model": self.config.model,
            "dataset": self.config.dataset,
            "train": asdict(self.config),
            "history": self.progress.history,
        }
        plain = self.model.to("cpu")
        save_model(
            self.out / "model.safetensors",
            plain,
            self.config.model,
            meta,
            **self._model_kwargs(),
            exits=list(plain.exit_positions) or None,  # type: ignore[arg-type]
        )
        write_atomic(self.out / "history.json", json.dumps(meta, indent=1).encode())
        self._state_path.unlink(missing_ok=True)
