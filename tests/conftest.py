"""Set up before any module of ours is imported, and look after every test.

- Shapes are checked at run time, the user's files stay untouched, and GPUs are hidden except with `-m gpu`.
- A test that starts a process is marked ``process``; one that does without the mark fails (``make test FAST=1``).
- A test past the deadline fails with the stacks of everything that it runs.
- The whole run fails if a process, a mount or shared memory is left at its end.
"""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process compiles all of seqlm, and every run all tests
sys.dont_write_bytecode = False
os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"  # of other libraries: trio's collects all garbage, which takes 0.3 s by then
# Several test processes share the machine. Cold programs take two threads each, as in `make cold`.
os.environ["OMP_NUM_THREADS"] = "2" if "SEQLM_TEST_COLD" in os.environ else "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # workers with more threads: one that spins keeps the others from working
if "SEQLM_DATA" in os.environ:  # the tests of the real Penn Treebank read it, and nothing else does
    os.environ["SEQLM_TEST_DATA"] = os.environ["SEQLM_DATA"]
os.environ["SEQLM_BACKEND"] = "local"  # Ray listens on the machine's own address: its tests have a network of their own
os.environ.pop("RAY_ADDRESS", None)
for variable in ("DATA", "RUNS", "DEVICE", "ATTEMPT", "RENDEZVOUS", "RENDEZVOUS_HOST"):
    os.environ.pop(f"SEQLM_{variable}", None)
sys.path.insert(0, str(Path(__file__).parent.parent))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of what a shell runs in the background; commands inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # of nohup, which commands heed
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

if "SEQLM_TEST_RENAME_SECONDS" in os.environ:  # a planted race: `make soak RENAME=0.05`
    from tests.crawl import sitecustomize

    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(sitecustomize.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )

CHECKED = [
    "seqlm.models",
    "seqlm.data.batches",
    "seqlm.training.step",
    "analysis.behaviour",
    "benchmarks.baselines",
]
from tests import shapes  # noqa: E402 -- tests are found from here on

if shapes.AVAILABLE:
    shapes.install(CHECKED)

from slurm.testcluster import ClusterOptions, LoopbackCluster  # noqa: E402 -- after the hook
from tests import commands, leftovers, waiting, warm  # noqa: E402
from tests.ray_lab import RayLab  # noqa: E402
from tests.slurm.real import require_slurm  # noqa: E402

subprocess.Popen = warm.OwnPopen  # type: ignore[misc] -- what code under test starts in this process
os.environ.setdefault(waiting.SESSION_VARIABLE, f"{os.getpid()}-{time.time_ns()}")
SHARED = {"ray_cluster": "ray", "slurm_cluster": "slurm", "report": "report", "browser": "report", "texts": "pydoc"}
"""Fixtures that take long to make -> the group of their tests, which one process of the test run does."""
LONG = (
    "tests/slurm/test_cluster.py",
    "tests/slurm/test_pool.py",
    "tests/slurm/test_ray_in_a_job.py",
    "tests/simulation/test_slurm.py",
    "tests/simulation/test_simulation.py",
    "tests/end_to_end/test_pages_run.py",
    "tests/end_to_end/test_search_launch.py",
    "tests/chaos/",
    "tests/jobs/backends/test_ray",
    "tests/benchmarks/test_gpu_command.py",
    "tests/trust/test_group_folder.py",
    "tests/trust/test_links.py",
    "tests/trust/test_planted.py",
    "tests/trust/test_ray_intruder.py",
    "tests/trust/test_wrong_types.py",
)
LIBRARIES = ("tests/seqlm/", "tests/analysis/")
TEST_SECONDS = 2 * waiting.DEADLINE_SECONDS
"""How long a test may take in all."""


NO_GPU = Path(__file__).parent / "no_gpu"


def pytest_configure(config: pytest.Config) -> None:
    """Hide the machine's GPUs from all tests but those of `-m gpu`: CUDA finds none, and nvidia-smi lists none."""
    if not config.option.markexpr.strip().startswith("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["PATH"] = os.pathsep.join([str(NO_GPU), os.environ["PATH"]])
        for variable in ("CUDA_DEVICE_ORDER", "CUDA_MPS_PIPE_DIRECTORY"):
            os.environ.pop(variable, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in the random order of this seed")


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Corpora are cached, and launches recorded, in folders of this test session, shared by its processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["SEQLM_CACHE"] = str(shared / "seqlm-cache")
    os.environ["XDG_CONFIG_HOME"] = str(shared / "config")
    os.environ["SEQLM_GPU_LEDGER"] = str(shared / "seqlm-gpus")


@pytest.fixture(autouse=True)
def _plain_output() -> Generator[None]:
    """Print and follow links as a new process does: earlier tests have set how this one prints and confined it."""
    yield
    if reading := sys.modules.get("seqlm.reading"):
        reading._studies.clear()
    if terminal := sys.modules.get("jobs.terminal"):
        terminal.configure()


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures of reports blank: for tests of a report that are about other things."""
    monkeypatch.setattr("analysis.report.figure_bytes", lambda *_: b'<svg width="1" height="1"></svg>')
    monkeypatch.setattr("analysis.report.column_files", lambda _: [])
    monkeypatch.setattr("analysis.blocks.figure.Chart.__post_init__", lambda _: None)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatcher that looks again and tries again at once."""
    for name in ("POLL_SECONDS", "LOOK_SECONDS", "QUEUE_SECONDS"):
        monkeypatch.setattr(f"jobs.launch.dispatch.{name}", 0.0)
    monkeypatch.setattr("jobs.study.budget.READ_SECONDS", 0.0)
    monkeypatch.setattr("seqlm.ends.FIRST_DELAY_SECONDS", 0.0)


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> commands.Ask:
    """Run a command in this process: exit code, data or error of its document, and stderr and its notes."""

    def run(*words: str) -> tuple[int, Any, str]:
        import launch

        capsys.readouterr()
        code = launch.main([*words, "--json"])
        out, err = capsys.readouterr()
        document = json.loads(out)
        said = "\n".join([err, *document["notes"]])
        return code, document["error"] if document["data"] is None else document["data"], said

    return run


@pytest.fixture
def lab() -> Generator[RayLab]:
    """A network of its own for a Ray."""
    lab = RayLab()
    try:
        yield lab
    finally:
        lab.close()


_clusters: dict[str, RayLab | LoopbackCluster] = {}
"""Fixture -> the cluster of its tests. It is closed once the next test does without: an idle one has work, too."""


@pytest.fixture
def ray_cluster() -> RayLab:
    """Two nodes of four cores and one fake GPU each; for tests that leave it as it was."""
    lab = _clusters.get("ray_cluster")
    if lab is None:
        lab = _clusters["ray_cluster"] = RayLab()
        lab.start_cluster((4, 1), (4, 1))
    assert isinstance(lab, RayLab)
    return lab


@pytest.fixture
def slurm_cluster() -> Generator[LoopbackCluster]:
    """Three nodes of four cores and two fake GPUs each."""
    require_slurm()
    cluster = _clusters.get("slurm_cluster")
    if cluster is None:
        cluster = LoopbackCluster(ClusterOptions(nodes=3, cpus=4, gpus=2))
        cluster.start()
        _clusters["slurm_cluster"] = cluster
    assert isinstance(cluster, LoopbackCluster)
    yield cluster
    cluster.run("scancel", "--me")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m gpu``, import only files with such a test: a machine with a GPU may lack what other files import."""
    if config.getoption("markexpr") != "gpu" or not collection_path.match("test_*.py"):
        return None
    return "pytest.mark.gpu" not in collection_path.read_text("utf-8") or None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from searching imported modules and collected tests, which stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked ``gpu`` where there is no device; put the tests in the order that was asked for."""
    import torch  # only once the variables above are set

    if not torch.cuda.is_available():
        # torch.manual_seed would note each seed, with the stack, for a GPU that may come.
        torch.cuda.manual_seed_all = torch.xpu.manual_seed_all = lambda seed: None
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="no CUDA device, or hidden: run them with -m gpu"))
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for fixture in SHARED.keys() & fixtures:
            item.add_marker(pytest.mark.xdist_group(SHARED[fixture]))
        if fixtures & {"lab", "ray_cluster", "browser"}:
            item.add_marker(pytest.mark.process)
        if "report" in fixtures:
            item.add_marker(pytest.mark.slow)
        if item.nodeid.startswith(LIBRARIES):
            item.add_marker(pytest.mark.libraries)
    seed = config.getoption("--shuffle")
    if seed is None:  # what waits most lies between what computes most, and nothing long comes last
        kinds = [[item for item in items if item.nodeid.startswith(LONG) == long] for long in (True, False)]
        places = _places(_mixed(kinds[0]), 0.85) + _places(kinds[1], 1.0)
        items[:] = [item for _, item in sorted(places, key=itemgetter(0))]
    else:
        random.Random(seed).shuffle(items)
        modules = {item.nodeid.partition("::")[0]: index for index, item in enumerate(items)}
        items.sort(key=lambda item: modules[item.nodeid.partition("::")[0]])  # fixtures of a module are made once


def _mixed(items: list[pytest.Item]) -> list[pytest.Item]:
    """Items in an order in which those of one file, which wait for the same things, are far apart."""
    numbers = Counter(item.path for item in items)
    seen = Counter[Path]()
    places = []
    for item in items:
        places.append((seen[item.path] / numbers[item.path], item))
        seen[item.path] += 1
    return [item for _, item in sorted(places, key=itemgetter(0))]


def _places(items: list[pytest.Item], end: float) -> list[tuple[float, pytest.Item]]:
    """Items with places evenly from 0 to ``end``; those that start processes first."""
    items = sorted(items, key=lambda item: item.get_closest_marker("process") is None)
    return [(end * number / len(items), item) for number, item in enumerate(items)]


def pytest_report_header(config: pytest.Config) -> list[str]:
    seed = config.getoption("--shuffle")
    header = [] if seed is None else [f"shuffled: --shuffle {seed}"]
    return header if shapes.AVAILABLE else [*header, "shapes are not checked: beartype is not installed"]


# -- processes, by tests that say so ---------------------------------------------------------------------------------

_current: pytest.Item | None = None


def _only_with_the_mark(event: str, _: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system") and _current is not None:
        pytest.fail(f"{_current.nodeid} starts a process: mark it with @pytest.mark.process", pytrace=False)


sys.addaudithook(_only_with_the_mark)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    global _current
    _current = None if item.get_closest_marker("process") is not None else item
    shapes.forget()
    try:
        return (yield)
    finally:
        _current = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Close what the next test does without."""
    global _current
    if nextitem is None:  # what modules share is ended after the last test
        _current = None
    try:
        return (yield)
    finally:
        for name in _clusters.keys() - set(getattr(nextitem, "fixturenames", ())):
            _current = None
            _clusters.pop(name).close()


# -- too long --------------------------------------------------------------------------------------------------------


def _too_long(_: int, __: FrameType | None) -> None:
    pytest.fail(f"not done after {TEST_SECONDS:g} s\n\n{waiting.scene()}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    before = commands.number_started()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(int(TEST_SECONDS))
    try:
        return (yield)
    finally:
        signal.alarm(0)
        commands.kill_what_was_started(before)


# -- left behind -----------------------------------------------------------------------------------------------------


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.config.stash[_before] = leftovers.Machine.look()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Fail the run where something is left once its test processes have ended."""
    result = yield
    warm.close()
    for name in ("forkserver", "resource_tracker"):  # without xdist it is this process that has started them
        if module := sys.modules.get(f"multiprocessing.{name}"):
            getattr(module, f"_{name}")._stop()
    before = session.config.stash.get(_before, None)
    left = leftovers.left_since(before) if before is not None else []
    if left:
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line("")
        reporter.section("left behind by the tests", red=True)
        for line in left:
            reporter.write_line(line)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result


_before = pytest.StashKey[leftovers.Machine]()


def pytest_unconfigure() -> None:
    """Free what ``pytest_collection`` has kept if triton is loaded, which lists what is never freed as leaked."""
    if "triton" in sys.modules:
        gc.unfreeze()
