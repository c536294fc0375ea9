"""One training run in a folder: its stages, its steps, its interruption.

Every random draw is keyed by (seed, epoch), never by a global generator, so a run that was interrupted and
resumed gives bit for bit what an uninterrupted one gives on the same machine.
"""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import save_model
from ..cost import Macs, Resource
from ..cost.record import record
from ..data import Dataset, get_dataset
from ..evaluate.evaluate import evaluate, has_exits
from ..gating.stand_in import is_converted
from ..nn.losses import branch_loss, budget_loss, distillation_loss
from .config import Stage, TrainConfig
from .distributed import World
from .history import add_step, summary, without_times, write_history
from .initial import initial_model, model_kwargs, teacher_model
from .optimizers import gate_parameters, make_optimizers, part_of, set_rates
from .state import Progress, load_state, restore_optimizers, save_state
from .tensorboard import Board

__all__ = ["Interrupted", "Trainer"]

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """Training was asked to stop (SIGINT) and has saved its state."""


class Trainer:
    """One run in a folder: `history.jsonl`, `state.safetensors` while it runs, then `model.safetensors`."""

    def __init__(self, config: TrainConfig, out: str | Path, world: World | None = None) -> None:
        self.config = config
        self.out = Path(out)
        self.world = world or World(device=torch.device(config.device))
        self.world.check_batch(config.batch_size)
        self.stages = config.stages()
        # A plain network is held to nothing, so that it needs no table.
        self.resource: Resource = Macs() if config.gates is None else config.priced()
        self.data: Dataset = get_dataset(config.dataset, config.data_root)
        self.progress = Progress()
        self.model = initial_model(config, self.data.num_classes).to(self.world.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        teacher = teacher_model(config, self.data)
        self.teacher = None if teacher is None else teacher.to(self.world.device)
        self._network = self.model  # what training calls: the model, or its wrapper
        self._board: Board | None = None
        self._saved_optimizers: dict[str, Tensor] = {}
        self._stop = False

    def _target(self, stage: Stage, done: float) -> float:
        if stage.name != "joint":
            return 1.0
        share = min(1.0, done / self.config.anneal) if self.config.anneal > 0 else 1.0
        return 1.0 - share * (1.0 - self.config.mac_target)

    def _loss(self, stage: Stage, done: float, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """The loss, its part that is not the budget's penalty, and the share of the MACs."""
        mixed = torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        with mixed:
            taught = self._taught(stage, x)
        # The recipe's backbone stage knows no gates; a converted model runs it fully open by construction.
        if not is_converted(self.model) or stage.name == "backbone":
            with mixed:
                task = self._task_loss(x, labels, taught)
            return task, task, 1.0
        with record(self._network) as rec, mixed:
            task = self._task_loss(x, labels, taught)
        resource = self.resource if stage.name == "joint" else Macs()
        penalty = budget_loss(rec, self._target(stage, done), resource, self.world.mean)
        # While the target falls, a batch within it is not yet within the wanted one.
        settle = max(self.config.settle, self.config.anneal)
        if stage.name == "joint" and done >= settle and penalty.item() <= 0:
            self.progress.settled = True
        loss = task + self.config.budget_weight * penalty
        return loss, task, rec.macs.mean().item() / rec.dense_macs

    def _taught(self, stage: Stage, x: Tensor) -> Tensor | None:
        """What the teacher says of x, where it is asked."""
        if self.teacher is None or stage.name != "joint":
            return None
        with torch.no_grad():
            return self.teacher(x)

    def _task_loss(self, x: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
        *branches, main = self._network(x, all_exits=True) if has_exits(self.model) else [self._network(x)]
        loss = F.cross_entropy(main.float(), labels)
        if taught is not None:
            weight = self.config.teacher_weight
            loss = (1.0 - weight) * loss + weight * distillation_loss(main, taught)
        if not branches:
            return loss
        return loss + self.config.branch_weight * branch_loss(branches, labels, self.config.equalise)

    def _train_mode(self, stage: Stage) -> None:
        # A frozen backbone keeps its BatchNorm statistics too; gates learn theirs.
        self.model.train(stage.name != "gates")
        if is_converted(self.model):
            self.model.ddi_gates.train()  # type: ignore[operator, union-attr]

    def run(self, progress_bar: bool = True, tensorboard: bool = False) -> dict[str, Any]:
        """Trains to the end, or to SIGINT in any process.

        Returns:
            The last history entry.

        Raises:
            Interrupted: after saving, on SIGINT.
            ImportError: tensorboard is asked for and missing.
        """
        past = self.progress.history
        if self.world.main:
            self._board = Board(self.out, len(past)) if tensorboard else None
            write_history(self.out, past)
        previous = signal.signal(signal.SIGINT, self._on_signal)
        try:
            while self.progress.stage < len(self.stages):
                self._run_stage(self.stages[self.progress.stage], progress_bar)
        finally:
            signal.signal(signal.SIGINT, previous)
            if self._board is not None:
                self._board.close()
        self.world.on_main(self._finish)
        return self.progress.history[-1] if self.progress.history else {}

    def _on_signal(self, number: int, frame: Any) -> None:
        self._stop = True

    def _run_stage(self, stage: Stage, progress_bar: bool) -> None:
        optimizers = make_optimizers(self.config, stage, self.model)
        restore_optimizers(optimizers, self._saved_optimizers)
        self._saved_optimizers = {}
        self._network = self.world.wrap(
            self.model, trains_gates=any(p.requires_grad for p in gate_parameters(self.model))
        )
        while self.progress.epoch < stage.epochs:
            self._run_epoch(stage, optimizers, progress_bar)
            self._end_epoch(stage, optimizers)
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
        if steps == 0:
            raise ValueError(
                f"train: batch_size is {config.batch_size}, but an epoch of {config.dataset} has "
                f"{len(order)} images; take a smaller one"
            )
        self._train_mode(stage)
        bar = tqdm(
            total=steps,
            initial=state.step,
            desc=f"{stage.name} {state.epoch + 1}/{stage.epochs}",
            disable=None if progress_bar and self.world.main else True,
            leave=False,
        )
        with bar:
            while state.step < steps:
                batch = order[state.step * config.batch_size : (state.step + 1) * config.batch_size]
                rows = self.world.part(batch)
                done = (state.epoch * steps + state.step) / (stage.epochs * steps)
                set_rates(config, stage, optimizers, done, state.settled)
                with self.world.working():
                    shown = self._step(stage, done, optimizers, split.images[rows], split.labels[rows])
                state.step += 1
                bar.update()
                bar.set_postfix(shown)
                if self.world.any(self._stop):
                    self._mean_totals()
                    self._save(optimizers)
                    raise Interrupted(f"train: stopped by SIGINT; `--resume` continues from {self.out}")

    def _step(
        self,
        stage: Stage,
        done: float,
        optimizers: list[torch.optim.Optimizer],
        images: Tensor,
        labels: Tensor,
    ) -> dict[str, str]:
        """One step on this process's part of a batch; returns what the progress bar shows."""
        begin = perf_counter()
        device = self.world.device
        loss, task, share = self._loss(stage, done, self.data.normalize(images).to(device), labels.to(device))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        means = {"loss": loss.item(), "task_loss": task.item(), "mac_share": share}
        means["penalty"] = means["loss"] - means["task_loss"]
        add_step(self.progress.totals, self.config.batch_size, perf_counter() - begin, means)
        return {"loss": f"{means['loss']:.3f}", "macs": f"{share:.2f}"}

    def _mean_totals(self) -> None:
        """Makes this process's sums over the epoch those of all."""
        totals = self.progress.totals
        values = torch.tensor(list(totals.values()), dtype=torch.float64, device=self.world.device)
        self.progress.totals = dict(zip(totals, self.world.mean(values).tolist(), strict=True))

    def _end_epoch(self, stage: Stage, optimizers: list[torch.optim.Optimizer]) -> None:
        self._mean_totals()
        line = self.world.on_main(lambda: self._validated(stage, optimizers))
        self.progress.history.append(line)
        self.progress.epoch, self.progress.step, self.progress.totals = self.progress.epoch + 1, 0, {}
        self._save(optimizers)

    def _validated(self, stage: Stage, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
        """The history's line on the epoch that has ended."""
        split, device = self.data.validation(), self.world.device
        with self.world.working():
            result = evaluate(self.model, self.data, split, device=device, resource=self.resource)
        rates = {part_of(optimizer): optimizer.param_groups[0]["lr"] for optimizer in optimizers}
        line = dict(
            stage=stage.name,
            epoch=self.progress.epoch + 1,
            **summary(self.progress.totals),
            **{f"lr_{name}": rate for name, rate in rates.items()},
            validation_accuracy=round(result.accuracy, 5),
            mac_ratio=round(result.mac_ratio, 4),
            resource_share=round(result.cost.share.item(), 4),
            **({"exit_accuracy": [round(a, 5) for a in exits]} if (exits := result.exit_accuracy) else {}),
        )
        logger.info("%s", json.dumps(line))
        if self._board is not None:
            self._board.write(len(self.progress.history) + 1, line, result)
        return line

    @property
    def _state_path(self) -> Path:
        return self.out / "state.safetensors"

    def _save(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Writes state and history; returns when they are there, in all processes."""
        self.world.on_main(lambda: self._write(optimizers))

    def _write(self, optimizers: list[torch.optim.Optimizer]) -> None:
        save_state(self._state_path, self.config, self.progress, self.model, optimizers)
        write_history(self.out, self.progress.history)

    def resume(self) -> None:
        """Takes up the run whose state lies in the folder, which all processes must see.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: it is damaged, or belongs to another configuration.
        """
        self.progress, self._saved_optimizers = load_state(self._state_path, self.config, self.model)

    def _finish(self) -> None:
        meta = {
            "model": self.config.model,
            "dataset": self.config.dataset,
            "train": asdict(self.config),
            "history": without_times(self.progress.history),
        }
        plain = self.model.to("cpu")
        save_model(
            self.out / "model.safetensors",
            plain,
            self.config.model,
            meta,
            **model_kwargs(self.config, self.data.num_classes),
            exits=list(plain.exit_positions) or None,  # type: ignore[arg-type]
        )
        self._state_path.unlink(missing_ok=True)
