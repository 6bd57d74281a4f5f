"""The same study without any disturbance, once: what everything is compared with."""

from dataclasses import dataclass

from tests.chaos.study import Lab, Study
from tests.outcome import Outcome, outcomes


@dataclass(frozen=True)
class Quiet:
    """What the undisturbed study has come to."""

    outcomes: dict[str, Outcome]
    """By run id."""
    steps: dict[str, int]
    """Run id -> steps that it takes, all ranks together."""
    epochs: int


def quiet_study(lab: Lab, epochs: int) -> Quiet:
    """Train the study undisturbed."""
    study = Study(lab.folder / "quiet", lab)
    study.folder.mkdir()
    log = lab.folder / "quiet.log"
    with log.open("wb") as output:
        code = study.start(output).wait()
    assert code == 0, f"the quiet study has failed:\n{log.read_text()}"
    return Quiet(outcomes(study.study_dir), lab.take_steps(), epochs)
