import pytest

from tests.seqlm.training.graphs import Device, Graph, on_the_cpu


@pytest.fixture
def cuda_device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A stand-in for a GPU, on which captures are made and replayed on the CPU."""
    return on_the_cpu(monkeypatch)


@pytest.fixture
def cuda_graphs(cuda_device: Device) -> list[Graph]:
    """The captures of the test, which are made and replayed on the CPU."""
    return cuda_device.graphs


@pytest.fixture(params=["graphs", pytest.param("cuda", marks=pytest.mark.gpu)])
def captures(request: pytest.FixtureRequest) -> str:
    """Where steps are captured: on the CPU with the stand-in of :mod:`tests.seqlm.training.graphs`, or on a GPU."""
    if request.param == "graphs":
        request.getfixturevalue("cuda_graphs")
    return str(request.param)
