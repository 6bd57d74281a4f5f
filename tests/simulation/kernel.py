"""Simulated processes in virtual time, played one call after another in an order that a seed decides.

Each thread of a simulated process is a thread of this process, and one of them runs at a time: the one that has the
baton. It gives the baton away where the product reaches outside (:mod:`tests.simulation.seam`): there it takes some
time by the virtual clock, and whoever is first by that clock goes on. Nothing else decides the order, so a seed
repeats it.

A process that is killed raises :class:`Killed` at each further call, and changes nothing more.
"""

from __future__ import annotations

import _thread
import hashlib
import heapq
import itertools
import os
import random
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias, final

START = 1_780_000_000.0
"""The virtual time at which a story begins, in seconds since 1970."""
STEP_SECONDS = (1e-4, 5e-4)
"""How long a call takes, at least and at most."""
HEARD_AT_ONCE = 4000
SPIN_CALLS, SPIN_SECONDS = 30_000, 20.0
"""More calls than this within so many seconds are a loop that does not wait."""

Handler: TypeAlias = Any


class Killed(BaseException):
    """The simulated process of this thread is gone."""


class ViolationError(Exception):
    """A check has failed. Its text says what was seen."""


@final
class Host:
    """A machine."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.boot = 0
        """How often it was started again."""
        self.ticks = itertools.count(100)
        """Start times of its processes."""
        self.is_up = True
        self.clock = 0.0
        """How many seconds its clock is ahead of the cluster's."""


@final
class Process:
    """A simulated process."""

    def __init__(
        self,
        kernel: Kernel,
        host: Host,
        words: Sequence[str],
        env: Mapping[str, str],
        *,
        parent: Process | None,
        group: int | None,
        output: Any,
        cwd: str,
    ) -> None:
        self.pid = next(kernel.pids)
        self.host, self.argv, self.parent, self.output, self.cwd = host, list(words), parent, output, cwd
        self.group = self.pid if group is None else group
        self.environ = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
        self.start_tick = next(host.ticks)
        self.handlers: dict[int, Handler] = {}
        self.signals: deque[int] = deque()
        """Those that its main thread is still to handle."""
        self.threads: list[Thread] = []
        self.dies_with_parent = False
        self.exit_code: int | None = None
        """Negative: the signal that has ended it. ``None``: it lives."""
        self.began_at = kernel.now
        self.ended_at: float | None = None
        """``None``: it lives."""
        self.is_stopped = False
        self.waiters: list[Thread] = []
        self.tag: Any = None
        """What it is, for checks and accidents."""
        self.state: dict[tuple[Any, str], Any] = {}
        """Values of modules that each process has of its own."""
        self.calls: deque[float] = deque(maxlen=SPIN_CALLS)
        self.error: str | None = None
        """The traceback with which a thread of it has ended."""
        self.ended_by_error = False
        """Whether that was an error of seqlm's own, with which a program may end."""

    @property
    def lives(self) -> bool:
        return self.exit_code is None

    def __repr__(self) -> str:
        return f"{self.tag or self.argv[:1]} (process {self.pid} on {self.host.name})"


@final
class Thread:
    """A thread of a simulated process."""

    def __init__(self, process: Process, run: Callable[[], None], *, is_main: bool) -> None:
        self.process, self.run, self.is_main = process, run, is_main
        self.baton = _thread.allocate_lock()
        self.baton.acquire()
        self.entry: list[Any] | None = None
        """Its place in the queue. ``None``: it runs, or waits for something that has no time."""
        self.is_over = False
        self.waiters: list[Thread] = []


@final
class Kernel:
    """The clock, the processes, and who is next."""

    def __init__(self, seed: int, *, own_state: Sequence[tuple[Any, str, Callable[[], Any]]] = ()) -> None:
        """``own_state``: module, name and first value of what each process has of its own."""
        self.dice = random.Random(f"order {seed}")
        self._share = self.dice.random
        self.names = random.Random(f"names {seed}")
        """Draws what a process asks for at random."""
        self.now = START
        self.pids = itertools.count(1001)
        self.processes: list[Process] = []
        self.own_state = own_state
        self._order = itertools.count()
        self._queue: list[list[Any]] = []
        """Entries (time, number, thread or action). An entry whose last part is ``None`` does not count any more."""
        self.running: Thread | None = None
        self.ident = 0
        """Of the thread that has the baton, in a process."""
        self.is_inside = False
        """Whether the kernel itself is at work, whose calls are not simulated."""
        self._controller = _thread.allocate_lock()
        self._controller.acquire()
        self._until = 0.0
        self._shown: Process | None = None
        self._outside: dict[str, Any] = {}
        self.problem: BaseException | None = None
        self._digest = hashlib.blake2b(digest_size=8)
        self._heard: list[str] = []
        """Lines of the digest that are not in it yet."""
        self.steps = 0
        self.story: list[tuple[float, str]] = []
        self.own_errors: tuple[type[BaseException], ...] = ()
        """Errors with which a program may end, although it prints a traceback."""
        self.on_exit: list[Callable[[Process], None]] = []

    # -- what a story tells -----------------------------------------------------------------------------------------

    def tell(self, line: str) -> None:
        """Note what happens, for the story."""
        self.story.append((self.now, line))
        self._heard.append(f"{self.now:.6f} {line}\n")

    def _hash(self) -> None:
        self._digest.update("".join(self._heard).encode())
        self._heard.clear()

    @property
    def digest(self) -> str:
        """A hash of every call and of what is told: alike in two plays if they were alike."""
        self._hash()
        return self._digest.hexdigest()

    # -- the queue ---------------------------------------------------------------------------------------------------

    def at(self, seconds: float, act: Callable[[], None]) -> list[Any]:
        """Have the kernel do something at a time. The entry that is returned can be given to :meth:`forget`."""
        entry = [max(seconds, self.now), next(self._order), act]
        heapq.heappush(self._queue, entry)
        return entry

    def after(self, seconds: float, act: Callable[[], None]) -> list[Any]:
        return self.at(self.now + seconds, act)

    @staticmethod
    def forget(entry: list[Any] | None) -> None:
        if entry is not None:
            entry[2] = None

    def _wake_at(self, thread: Thread, seconds: float) -> None:
        self.forget(thread.entry)
        thread.entry = [max(seconds, self.now), next(self._order), thread]
        heapq.heappush(self._queue, thread.entry)

    def wake(self, thread: Thread) -> None:
        """Have a waiting thread go on now."""
        is_waiting = thread is not self.running or self.is_inside  # the one that ran last may sleep while timers act
        if is_waiting and not thread.is_over:
            self._wake_at(thread, self.now)

    def _next(self) -> Thread | None:
        """Take what is first, and do actions on the way. ``None``: nothing is left, or it is beyond the limit."""
        while self._queue and self.problem is None:
            if self._queue[0][2] is None:
                heapq.heappop(self._queue)
                continue
            if self._queue[0][0] > self._until:
                self.now = self._until
                return None
            when, _, what = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            if isinstance(what, Thread):
                what.entry = None
                if what.process.is_stopped and what.process.lives:
                    self._wake_at(what, self.now + 0.5)  # looks again whether it may go on
                    continue
                return what
            with self.inside():
                try:
                    what()
                except BaseException as error:
                    self.problem = error
        return None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calls of the block are the kernel's own."""
        before, self.is_inside = self.is_inside, True
        try:
            yield
        finally:
            self.is_inside = before

    # -- the baton ---------------------------------------------------------------------------------------------------

    def play(self, seconds: float) -> None:
        """Let everything happen that happens until then, in seconds since 1970.

        Raises:
            ViolationError: a check has failed.
        """
        self._until = seconds
        if self.problem is None and (first := self._next()) is not None:
            self._give(first)
            self._controller.acquire()
        self._show(None)
        self.running, self.ident = None, 0
        if self.problem is not None:
            raise self.problem
        self.now = max(self.now, seconds)

    def _give(self, thread: Thread) -> None:
        self.running = thread
        thread.baton.release()

    def _pass_on(self, me: Thread | None) -> None:
        """Give the baton to whoever is next, and wait until it comes back. ``None``: this thread is over."""
        following = self._next()
        if following is me and me is not None:
            self.running = me
            return
        if following is None:
            self.running, self.ident = None, 0
            self._controller.release()
        else:
            self._give(following)
        if me is not None:
            me.baton.acquire()
            self._came_back(me)

    def _came_back(self, me: Thread) -> None:
        self.running, self.ident = me, threading.get_ident()
        self._show(me.process)

    def _show(self, process: Process | None) -> None:
        """Have the interpreter's globals be those of a process."""
        before = self._shown
        if process is before:
            return
        self._shown = process
        if before is None:
            self._outside = {"environ": os.environ._data, "argv": sys.argv, "out": (sys.stdout, sys.stderr)}  # type: ignore[attr-defined]
            self._outside["state"] = [getattr(module, name) for module, name, _ in self.own_state]
        else:
            before.state = {(module, name): getattr(module, name) for module, name, _ in self.own_state}
        if process is None:
            os.environ._data = self._outside["environ"]  # type: ignore[attr-defined]
            sys.argv, (sys.stdout, sys.stderr) = self._outside["argv"], self._outside["out"]
            for (module, name, _), value in zip(self.own_state, self._outside["state"], strict=True):
                setattr(module, name, value)
            return
        os.environ._data = process.environ  # type: ignore[attr-defined]
        sys.argv, sys.stdout, sys.stderr = process.argv, process.output, process.output
        for module, name, first in self.own_state:
            key = (module, name)
            setattr(module, name, process.state[key] if key in process.state else first())

    # -- processes ---------------------------------------------------------------------------------------------------

    def spawn(
        self,
        host: Host,
        words: Sequence[str],
        main: Callable[[], int | None],
        *,
        env: Mapping[str, str],
        output: Any,
        parent: Process | None = None,
        group: int | None = None,
        cwd: str = "/sim",
        tag: Any = None,
        delay: float = 0.0,
    ) -> Process:
        """Start a process whose main thread calls ``main`` and ends with the exit code that it returns."""
        process = Process(self, host, words, env, parent=parent, group=group, output=output, cwd=cwd)
        process.tag = tag
        self.processes.append(process)

        def run() -> None:
            code: int | None = 1
            try:
                code = main() or 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            except Killed:
                return
            except BaseException as error:
                process.error = "".join(traceback.format_exception(error))
                process.ended_by_error = isinstance(error, self.own_errors)
                with self.inside():
                    process.output.write(process.error)
                    self.tell(f"{process} ends with a traceback: {error!r}")
            self.ends(process, code or 0)

        self.start_thread(process, run, is_main=True, delay=delay)
        return process

    def start_thread(
        self, process: Process, run: Callable[[], None], *, is_main: bool = False, delay: float = 0.0
    ) -> Thread:
        thread = Thread(process, run, is_main=is_main)
        process.threads.append(thread)

        def begin() -> None:
            thread.baton.acquire()
            self._came_back(thread)
            try:
                self._require_alive(thread)
                thread.run()
            except Killed:
                pass
            except BaseException as error:  # a thread of its own ends alone, as Python's do
                process.error = "".join(traceback.format_exception(error))
            thread.is_over = True
            for one in thread.waiters:
                self.wake(one)
            self._pass_on(None)

        _thread.start_new_thread(begin, ())
        self._wake_at(thread, self.now + delay + self.dice.uniform(*STEP_SECONDS))
        return thread

    def ends(self, process: Process, code: int) -> None:
        """End a process: its threads stop at their next call, and whoever waits for it goes on."""
        if not process.lives:
            return
        process.exit_code, process.ended_at = code, self.now
        for act in self.on_exit:
            act(process)
        for thread in process.threads:
            self.wake(thread)
        for thread in process.waiters:
            self.wake(thread)
        for child in self.processes:
            if child.parent is process and child.dies_with_parent and child.lives:
                self.ends(child, -signal.SIGKILL)

    def send(self, process: Process, number: int) -> None:
        """Send a signal."""
        if not process.lives:
            return
        if number == signal.SIGKILL:
            self.ends(process, -signal.SIGKILL)
            return
        if number in (signal.SIGSTOP, signal.SIGCONT):
            process.is_stopped = number == signal.SIGSTOP
            return
        handler = process.handlers.get(number, signal.SIG_DFL)
        if handler is signal.SIG_DFL:
            if number not in (signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH):
                self.ends(process, -number)
        elif handler is not signal.SIG_IGN:
            process.signals.append(number)
            self.wake(process.threads[0])

    def _require_alive(self, thread: Thread) -> None:
        """Raise if the process is gone; call the handlers of signals that have come."""
        process = thread.process
        if not process.lives or self.problem is not None:
            raise Killed
        while thread.is_main and process.signals:
            number = process.signals.popleft()
            handler = process.handlers.get(number)
            if callable(handler):
                handler(number, None)

    # -- what a call does --------------------------------------------------------------------------------------------

    @property
    def current(self) -> Thread | None:
        """The simulated thread that calls. ``None``: the caller is the kernel, or no simulated thread."""
        if self.is_inside or threading.get_ident() != self.ident:
            return None
        return self.running

    def step(self, what: str = "") -> Process:
        """Take the time of a call, and let others go on meanwhile. Returns the process that calls."""
        me = self.running
        assert me is not None
        process = me.process
        if process.exit_code is not None:
            raise Killed
        self.steps += 1
        now, calls = self.now, process.calls
        if len(calls) == SPIN_CALLS and now - calls[0] < SPIN_SECONDS:
            self.violate(f"SPIN: {process} made {SPIN_CALLS:,} calls within {now - calls[0]:.0f} s")
        calls.append(now)
        if what:
            self._heard.append(f"{process.pid} {what}\n")
            if len(self._heard) > HEARD_AT_ONCE:
                self._hash()
        shortest, longest = STEP_SECONDS
        self._sleep_until(me, now + shortest + (longest - shortest) * self._share())
        return process

    def violate(self, problem: str) -> NoReturn:
        """End the story, since a check has failed. No handler of the product's gets hold of that."""
        self.problem = self.problem or ViolationError(problem)
        raise Killed

    def sleep(self, seconds: float) -> None:
        """Let time pass for the thread that calls."""
        me = self.running
        assert me is not None
        self._sleep_until(me, self.now + seconds)

    def _sleep_until(self, me: Thread, deadline: float) -> None:
        queue, process = self._queue, me.process
        while True:
            is_first = not queue or queue[0][0] > deadline
            if is_first and deadline <= self._until and not process.is_stopped:
                self.now = max(self.now, deadline)
            else:
                self._wake_at(me, deadline)
                self._pass_on(me)
            if process.signals or process.exit_code is not None or self.problem is not None:
                self._require_alive(me)
            if self.now >= deadline:
                return

    def wait_for(self, is_so: Callable[[], bool], waiters: list[Thread], timeout: float | None) -> bool:
        """Wait until something is so, at most ``timeout`` seconds. Whoever changes it wakes the ``waiters``."""
        me = self.running
        assert me is not None
        deadline = None if timeout is None else self.now + timeout
        waiters.append(me)
        try:
            while not is_so():
                if deadline is not None and self.now >= deadline:
                    return False
                if deadline is not None:
                    self._wake_at(me, deadline)
                self._pass_on(me)
                self._require_alive(me)
            return True
        finally:
            waiters.remove(me)

    def lives_on(self, host: Host, pid: int) -> Process | None:
        """Return the process of this number on a host. ``None``: there is none."""
        return next((one for one in self.processes if one.pid == pid and one.host is host and one.lives), None)

    def end_all(self) -> None:
        """Have all threads of this process end that play simulated ones."""
        self.problem = self.problem or Killed()
        for process in self.processes:
            process.exit_code = -signal.SIGKILL if process.exit_code is None else process.exit_code
            for thread in process.threads:
                if not thread.is_over:
                    self._finish(thread)
        self._show(None)

    def _finish(self, thread: Thread) -> None:
        """Let one thread unwind, alone."""
        self.running = thread
        thread.baton.release()
        self._controller.acquire()


State: TypeAlias = MutableMapping[str, Any]
