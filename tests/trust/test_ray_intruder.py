"""Another user of the host and the Ray that a launch starts: ``nobody`` connects, reads and submits in vain."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from tests.ray_lab import ROOT, RayLab
from tests.small_study import RayStudy
from tests.trust.canaries import SHELL, files_with, told_in
from tests.waiting import wait_for

pytestmark = pytest.mark.process

INTRUDER = """
import http.client, json, os, socket, sys, urllib.error, urllib.request
import grpc
given = json.load(sys.stdin)

def attempt(look):
    try:
        return look()
    except grpc.RpcError as error:
        return error.code().name
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__

def call(port, method, token):
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.unary_unary(method)(b"", metadata=metadata, timeout=20)
    return "OK"

def post(port, path):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=b"{}")
    return str(urllib.request.urlopen(request, timeout=20).status)

def connect(path):
    socket.socket(socket.AF_UNIX).connect(path)
    return "connected"

attempt(lambda: call(1, given["methods"][0], "x"))  # modules that are imported late: nobody may be unable to read them
attempt(lambda: post(1, "/"))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
found = {"user": os.getuid()}
found["calls"] = {
    who: [[m, attempt(lambda: call(p, m, token))] for m in methods for p in given["ports"]]
    for who, token, methods in (
        ("none", None, given["methods"]),
        ("wrong", "0" * 64, given["methods"]),
        ("right", given["token"], given["methods"][:1]),  # only reads; the others would end Ray's servers
    )
}
found["posts"] = [[p, path, attempt(lambda: post(p, path))] for p in given["http"] for path in given["paths"]]
found["files"] = [attempt(lambda: (os.listdir(path), "read")[1]) for path in given["folders"]]
found["sockets"] = [attempt(lambda: connect(path)) for path in given["sockets"]]
found["environ"] = attempt(lambda: open(f"/proc/{given['pid']}/environ").read())
print(json.dumps(found))
"""
METHODS = [
    "/ray.rpc.InternalKVGcsService/InternalKVGet",
    "/ray.rpc.ActorInfoGcsService/RegisterActor",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.ObjectManagerService/Pull",
]
PATHS = ["/get_or_create_runtime_env", "/api/job_agent/jobs/"]
ADDRESS = "10.9.8.7"


def listening(lab: RayLab) -> list[tuple[str, int]]:
    """The (address, port) pairs at which something in the lab listens."""
    answer = lab.run(["ss", "--listening", "--tcp", "--numeric", "--no-header"], cwd=lab.folder)
    pairs = [line.split()[3].rpartition(":") for line in answer.stdout.splitlines()]
    return [(host.strip("[]").removeprefix("::ffff:"), int(port)) for host, _, port in pairs]


def test_another_user_of_the_host_does_not_get_into_the_ray_of_a_launch_which_ends_with_its_killed_launcher(
    lab: RayLab, tmp_path: Path
) -> None:
    # A host has an address; and everybody may look into the folder in which Ray makes its own.
    for words in (
        ["addr", "add", f"{ADDRESS}/32", "dev", "lo"],
        ["route", "add", "default", "dev", "lo", "src", ADDRESS],
    ):
        assert lab.run(["ip", *words], cwd=tmp_path).returncode == 0
    lab.folder.chmod(0o755)
    lab.env |= SHELL
    study = RayStudy(lab, tmp_path, gpus=0, epochs=5000)
    launcher = study.start("run", "small.toml")
    wait_for(study.epochs, "an epoch of the run", until=any, by=launcher)

    (server,) = [pid for pid, words in lab.pids().items() if "gcs_server" in words.split()[0]]
    environ = dict(word.partition("=")[::2] for word in Path(f"/proc/{server}/environ").read_text().split("\0"))
    token = environ.get("RAY_AUTH_TOKEN", "")
    assert len(token) >= 32, "a token of this launch"
    files = [path for path in lab.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files if token.encode() in path.read_bytes()], "in the environment only"
    assert not (lab.folder / ".ray").exists()
    assert files_with(lab.folder) == [], "nothing of the shell"
    assert not [words for words in lab.processes() if token in words]
    where = listening(lab)
    assert {host for host, _ in where} == {"127.0.0.1"}

    sockets = [str(path) for path in lab.folder.rglob("*") if path.is_socket()]
    assert sockets
    folders = [str(path) for path in lab.folder.rglob("*") if path.is_dir()]
    http = [port for _, port in where]
    given: dict[str, Any] = {"token": token, "ports": http, "http": http, "pid": server, "methods": METHODS}
    given |= {"paths": PATHS, "folders": folders, "sockets": sockets}
    intruder = lab.start([sys.executable, "-c", INTRUDER], cwd=ROOT)
    stdout, stderr = commands.finish(intruder, json.dumps(given))
    assert intruder.returncode == 0, stderr
    found = json.loads(stdout)
    assert found["user"] == 65534
    for who in ("none", "wrong"):
        answers = [(method, answer) for method, answer in found["calls"][who]]
        assert {answer for _, answer in answers} <= {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE"}
        assert {method for method, answer in answers if answer == "UNAUTHENTICATED"} == set(METHODS)
    assert [METHODS[0], "OK"] in found["calls"]["right"], "the same call with the token reaches Ray"
    assert not [answer for answer in found["posts"] if answer[2].startswith("2")]
    assert [path for path in PATHS if [path, "401"] in [answer[1:] for answer in found["posts"]]] == PATHS
    assert set(found["files"]) == {"PermissionError"}
    assert set(found["sockets"]) == {"PermissionError"}
    assert found["environ"] == "PermissionError"

    launcher.kill()
    assert told_in(commands.finish(launcher)) == []
    wait_for(lab.processes, "Ray and the worker to end", until=lambda alive: not alive)
    assert not [path for path in lab.folder.iterdir() if path.is_dir()], "Ray's folder is gone with it"
    assert files_with(tmp_path) == []
    # A process lets go of its locks a moment after it has left its network.
    wait_for(study.each, "the run to be released", until=lambda states: states == ["pending"])
