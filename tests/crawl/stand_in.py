"""Stand in for a program that runs in a fork of a warm process (:mod:`tests.warm`): ``stand_in.py WORDS``.

``WORDS`` is the ``repr`` of the program's command line without the interpreter. This process passes signals on to the
fork and ends as the fork ends. If this process is killed, so is the fork. It imports as little as possible.
"""

import _socket
import os
import signal
import sys

PASSED_ON = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCONT")


def main() -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    network = f"/proc/{os.getpid()}/ns/net"
    request = repr((sys.argv[1], os.getcwd(), dict(os.environ), umask, network))  # noqa: PTH109 -- no pathlib
    spawner = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    spawner.connect(os.environ["SEQLM_TEST_SPAWNER"].partition(":")[0])
    files = b"".join(number.to_bytes(4, sys.byteorder) for number in range(3))
    signals = {getattr(signal, name) for name in PASSED_ON}
    signals = {number for number in signals if signal.getsignal(number) != signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    spawner.sendmsg([request.encode("utf-8", "surrogateescape")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)])
    fork = int(spawner.recv(64) or 0)
    for number in signals:
        signal.signal(number, lambda number, _: os.kill(fork, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    answer = spawner.recv(64)
    if not answer:
        sys.exit("the warm process of the tests has ended")
    code = os.waitstatus_to_exitcode(int(answer))
    if code < 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
