"""``python -m tests.tools.store_study OUT.zip``: make a small study, and store it with its tables for the tests.

`tests/end_to_end/test_stored_studies.py` reads what earlier versions have stored so. With ``--checkout FOLDER`` the
code of another version makes the study, from a checkout of it. With ``--study FOLDER`` one is stored that is there.

Its runs: two that are done, one that has failed, one that was resumed, one that is interrupted, one that is cancelled,
and one that was never launched.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from tests.seqlm.training.studies import write_text

ROOT = Path(__file__).parents[2]
MANIFEST = """
[study]
name = "stored"
data = "text"

[report]
behaviour = ["rnn-adam"]
groups."Recurrent" = ["rnn-adam", "gru-adam"]

[[expect]]
text = "a GRU beats an RNN"
lower = "arch=gru optimizer=adam"
higher = "arch=rnn optimizer=adam"

[defaults]
model = {hidden_size = 4, num_layers = 1, embedding_size = 4}
data.corpus = "files"
train = {epochs = 12, batch_size = 8, seq_len = 5}

[[run]]
name = "rnn-adam"
model.arch = "rnn"
optim = {optimizer = "adam", lr = 0.01}
published.val_ppl = 12.5

[[run]]
name = "gru-adam"
model.arch = "gru"
optim = {optimizer = "adam", lr = 0.01}

[[run]]
name = "rnn-diverges"
model.arch = "rnn"
optim = {optimizer = "sgd", lr = 1e30}
train.clip_norm = 1e30

[[run]]
name = "gru-resumed"
model.arch = "gru"
optim = {optimizer = "sgd", lr = 0.5}

[[run]]
name = "transformer-interrupted"
model = {arch = "transformer", num_heads = 2, mlp_size = 8}
optim = {optimizer = "adam", lr = 0.01}
train.epochs = 60

[[run]]
name = "rnn-cancelled"
model.arch = "rnn"
optim = {optimizer = "sgd", lr = 0.5}
train.epochs = 60

[[run]]
name = "gru-never"
model.arch = "gru"
optim = {optimizer = "sgd", lr = 0.1}
"""
TEXT_LINES = 220
"""Sentences of the training text, which the tests write, too."""
LEFT_OUT = re.compile(r"/(code|report|notify)/|\.tmp$|/previous\.pt$")
"""Files of the study that are large, or that other files replace."""
CHECKPOINTS = ("transformer-interrupted", "rnn-adam")
"""Beginnings of the ids of runs whose checkpoints are stored: to resume, and to tell whether behaviour is up to date.
Those of the second are small."""
EXPECTED = re.compile(r"data/(runs|epochs|attempts|behaviour)\.json")
"""Files of the report that are stored."""


class Study:
    """A study that another program makes."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        """``folder``: where its manifest is. ``checkout``: the code."""
        self.folder, self.checkout = folder, checkout
        home = folder / "home"
        home.mkdir(exist_ok=True)
        own = {"SEQLM_CACHE": str(folder / "cache"), "HOME": str(home), "USER": "ada", "LOGNAME": "ada"}
        self._env = {**os.environ, **own, "SEQLM_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}

    def command(self, *words: str, **options: object) -> subprocess.Popen[str]:
        """Start a command of seqlm."""
        argv = [sys.executable, str(self.checkout / "launch.py"), *words]
        return subprocess.Popen(argv, env=self._env, cwd=self.folder, text=True, **options)  # type: ignore[call-overload, no-any-return]

    def launch(self, *names: str) -> subprocess.Popen[str]:
        """Start to train some runs."""
        only = [word for name in names for word in ("--only", f"name={name}")]
        return self.command("run", "stored.toml", "--backend", "local", "--live-code", *only)

    def wait_for_epochs(self, name: str, number: int) -> None:
        """Wait until a run has finished ``number`` epochs."""
        while True:
            files = list(self.folder.glob(f"runs/stored/{name}-????????/metrics.jsonl"))
            if files and files[0].read_text("utf-8").count("\n") >= number:
                return
            time.sleep(0.05)

    def make(self) -> None:
        """Train, interrupt, resume and cancel."""
        (self.folder / "stored.toml").write_text(MANIFEST, "utf-8")
        write_text(self.folder / "text", train_lines=TEXT_LINES)
        self.launch("rnn-adam", "gru-adam", "rnn-diverges").wait()
        for name in ("gru-resumed", "transformer-interrupted"):
            launcher = self.launch(name)
            self.wait_for_epochs(name, 3)
            launcher.send_signal(signal.SIGINT)
            launcher.wait()
        self.launch("gru-resumed").wait()
        launcher = self.launch("rnn-cancelled")
        self.wait_for_epochs("rnn-cancelled", 2)
        self.command("cancel", "stored", "--only", "name=rnn-cancelled").wait()
        launcher.wait()
        self.command("report", "stored").wait()

    def neutral(self, content: bytes) -> bytes:
        """Return the content of a file without the names of this machine."""
        names = {str(self.folder): "/home/ada", str(self.checkout): "/home/ada/seqlm", sys.prefix: "/home/ada/venv"}
        for name, other in sorted(names.items(), key=lambda pair: -len(pair[0])):
            content = content.replace(name.encode(), other.encode())
        for name, other in ((os.uname().nodename, "node1"), (self.checkout.name, "seqlm")):
            content = content.replace(f'"{name}"'.encode(), f'"{other}"'.encode())
        content = re.sub(rb'"Linux [^"]+"', b'"Linux"', content)
        return re.sub(rb'("(?:machine|boot)_id": ")[^"]*', rb"\g<1>0", content)

    def store(self, out: Path) -> None:
        """Write the study, and what this code says of it, to a zip file."""
        (manifest,) = self.folder.glob("*.toml")
        name = next((self.folder / "runs").iterdir()).name
        answer, _ = self.command("status", name, "--json", stdout=subprocess.PIPE).communicate()
        study = self.folder / "runs" / name
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.write(manifest, manifest.name)
            archive.writestr("expected/status.json", json.dumps(json.loads(answer)["data"]["runs"], indent=1))
            for path in sorted((study / "report").rglob("*")):
                place = path.relative_to(study / "report").as_posix()
                if EXPECTED.fullmatch(place):
                    archive.writestr(f"expected/{place}", self.neutral(path.read_bytes()))
            for path in sorted(study.rglob("*")):
                is_other = path.suffix == ".pt" and not path.relative_to(study).parts[0].startswith(CHECKPOINTS)
                if path.is_file() and not is_other and not LEFT_OUT.search(f"/{path.relative_to(study).as_posix()}"):
                    content = path.read_bytes()
                    is_text = path.suffix in (".json", ".jsonl", ".log", ".lock", ".sh", ".out")
                    content = self.neutral(content) if is_text else content
                    archive.writestr(f"runs/{name}/{path.relative_to(study).as_posix()}", content)


def main() -> None:
    """Make a study, or take one that is there, and store it."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.store_study", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkout", type=Path, default=ROOT, help="the code (default: this checkout)")
    parser.add_argument("--study", type=Path, help="folder with a manifest and runs/NAME, which has a report")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="store-") as folder:
        study = Study(given.study or Path(folder), given.checkout.resolve())
        if given.study is None:
            study.make()
        study.store(given.out)
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
