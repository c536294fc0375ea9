"""What each of the processes does that test_distributed.py has torchrun start."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

import ddi
from ddi.cli import main
from ddi.train import Interrupted, TrainConfig, train
from ddi.train.distributed import world
from ddi.train.trainer import Trainer

FOLDER = Path(sys.argv[1])


def run(config, name):
    """A whole training; leaves this process's parameters beside the run."""
    with world("cpu") as here:
        trainer = Trainer(config, FOLDER / name, here)
        last = trainer.run(progress_bar=False)
        parameters = {n: p.detach().contiguous() for n, p in trainer.model.named_parameters()}
        save_file(parameters, FOLDER / f"{name}_{here.rank}.safetensors")
        return last


def interrupt(config, name):
    """The same training, stopped by a signal to rank 1 alone and then gone on with."""
    steps, original = [], Trainer._loss

    def loss(self, *args):
        steps.append(1)
        if len(steps) == 6 and self.world.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    Trainer._loss = loss
    try:
        train(config, FOLDER / name, progress_bar=False)
    except Interrupted:
        stopped = len(steps)
        files = sorted(path.name for path in (FOLDER / name).iterdir())
    Trainer._loss = original
    last = train(config, FOLDER / name, resume=True, progress_bar=False)
    return {"stopped": stopped, "files": files, "last": last}


def signs():
    """Whether the penalty is positive, here, where rank 1 skips all blocks, and the shares."""
    torch.manual_seed(0)
    model = ddi.create_model("cifar_resnet8", gates=ddi.DDIConfig())
    with world("cpu") as here:
        if here.rank == 1:
            for gate in model.ddi_gates.layer.values():
                torch.nn.init.constant_(gate.bias, -9.0)
        with ddi.record(model) as rec:
            model(torch.zeros(4, 3, 32, 32))
        own = (rec.macs.mean() / rec.dense_macs).item()
        share = here.mean(torch.tensor(own)).item()
        return {
            "own": own,
            "share": share,
            "below": ddi.budget_loss(rec, share - 0.01, mean=here.mean).item() > 0,
            "above": ddi.budget_loss(rec, share + 0.01, mean=here.mean).item() > 0,
            "alone": ddi.budget_loss(rec, share).item() > 0,
        }


def work():
    configs = json.loads((FOLDER / "configs.json").read_text())
    found = {"command": main(configs["command"])}
    # torchrun's own store serves one group; the second one meets in a file.
    dist.init_process_group(
        "gloo",
        f"file://{FOLDER}/store",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    found["gates"] = run(TrainConfig(**configs["gates"]), "gates")
    train_mode = Trainer._train_mode
    Trainer._train_mode = lambda self, stage: self.model.eval()
    found["joint"] = run(TrainConfig(**configs["joint"]), "joint")
    Trainer._train_mode = train_mode
    found["whole"] = run(TrainConfig(**configs["whole"]), "whole")
    found["resumed"] = interrupt(TrainConfig(**configs["whole"]), "resumed")
    found["signs"] = signs()
    (FOLDER / f"found_{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    work()
