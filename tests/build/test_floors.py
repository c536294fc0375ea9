"""The folders of csrc as floors of a house: a file includes what lies beside it or on a lower floor."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
# From the ground up. Folders of one floor know nothing of each other.
FLOORS = (
    ("cpu/base",),
    ("cpu/micro",),
    ("cpu/micro/generic",),
    ("cpu/micro/scalar", "cpu/micro/avx2", "cpu/micro/avx512", "cpu/micro/neon"),
    ("cpu/pixels", "cpu/conv", "cpu/samples"),
    ("cpu/gate", "cpu/block"),
    ("engine/plan",),
    ("engine/ops",),
    ("engine",),
    ("engine/cli", "bindings", "torch"),
    ("cuda",),
)
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}
SUFFIXES = {".h", ".cpp", ".cuh", ".cu"}
ROOTS = ("cpu", "engine")  # where includes that are not found beside a file are looked for
NOT_HERE = {"emulate.h"}  # stands in for a GPU, in tests/cuda


def sources(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES)


def find(root: Path, source: Path, name: str) -> Path | None:
    """The file of csrc that `#include "name"` in `source` means."""
    candidates = ((folder / name).resolve() for folder in (source.parent, *(root / r for r in ROOTS)))
    return next((path for path in candidates if path.is_file()), None)


def broken(root: Path) -> list[str]:
    """What breaks the rule, of all files below `root`."""
    found = []
    for source in sources(root):
        at = source.relative_to(root).as_posix()
        folder = source.parent.relative_to(root).as_posix()
        if folder not in FLOOR:
            found.append(f"{at} lies on no floor")
            continue
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', source.read_text(), re.MULTILINE):
            target = find(root, source, name)
            if target is None:
                found += [] if name in NOT_HERE else [f"{at} includes {name}, which is not there"]
            elif (other := target.parent.relative_to(root).as_posix()) != folder:
                if FLOOR.get(other, len(FLOORS)) >= FLOOR[folder]:
                    found.append(f"{at} includes {name}, which is not below it")
    return found


def test_folders_include_only_downward() -> None:
    assert len(sources(CSRC)) > 100
    assert broken(CSRC) == []


def test_names_are_unique() -> None:
    # Object files of the tests share a folder, and a name in a stack trace has no folder.
    names = Counter(path.name for part in ROOTS for path in sources(CSRC / part))
    assert len(names) > 100
    assert [name for name, times in names.items() if times > 1] == []


def test_the_rule_is_seen_to_be_broken(tmp_path: Path) -> None:
    texts = {
        "cpu/base/low.h": "#include <vector>\n",
        "cpu/base/wrong.h": '#include "low.h"\n#include "conv/conv.h"\n',
        "cpu/conv/conv.h": '#include "base/low.h"\n  # include "pixels/pool.h"\n',
        "cpu/pixels/pool.h": '// #include "conv/conv.h"\n#include "missing.h"\n',
        "cpu/top.cpp": "",
        "engine/run.cpp": '#include "ops/op.h"\n#include "conv/conv.h"\n',
        "engine/ops/op.h": '#include "../run.cpp"\n',
        "torch/conv.cpp": '#include "../cpu/conv/conv.h"\n',
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert broken(tmp_path) == [
        "cpu/base/wrong.h includes conv/conv.h, which is not below it",
        "cpu/conv/conv.h includes pixels/pool.h, which is not below it",
        "cpu/pixels/pool.h includes missing.h, which is not there",
        "cpu/top.cpp lies on no floor",
        "engine/ops/op.h includes ../run.cpp, which is not below it",
    ]
