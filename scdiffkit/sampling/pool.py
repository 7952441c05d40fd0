"""A pool of threads or worker processes that runs jobs and returns their results in order. It is not about cells.

A worker process is a separate program that receives jobs over its pipes. `multiprocessing` would run the user's script
again in each process; this works from any script, a notebook, a terminal and R. Ctrl-C reaches only the parent, which
stops its workers. A worker also exits if its parent is gone.
"""

from __future__ import annotations

import collections
import json
import logging
import multiprocessing.spawn
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any, Protocol

import torch

from scdiffkit.errors import RunError, ScdiffError

AHEAD = 2  # jobs under way per thread, including results not taken yet
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from scdiffkit.sampling.pool import worker_main; worker_main()"
)
log = logging.getLogger("scdiffkit")

LogMessage = tuple[int, str] | tuple[type[Warning], str]  # a level and a log message, or a category and a warning


class Worker(Protocol):
    """A worker that runs `slots` jobs at a time, each on its own thread."""

    slots: int
    said: collections.deque[LogMessage]  # messages that the parent has yet to log

    def submit(self, job: Any) -> Future[Any]: ...
    def close(self) -> None: ...


def map_ordered(members: Sequence[Worker], jobs: Iterable[Any], interrupted: threading.Event) -> Generator[Any]:
    """Yield the result of each job in order, while the workers process the next ones. Raises the first error at once.

    Log messages and warnings of the workers are emitted in the thread that takes the results, repeated ones once.
    Raises KeyboardInterrupt if the event is set.
    """
    changed = threading.Event()
    under_way: collections.deque[tuple[Worker, Future[Any]]] = collections.deque()
    loads: collections.Counter[int] = collections.Counter()
    heard: set[LogMessage] = set()

    def pass_on() -> None:
        for member in members:
            while member.said:
                said = member.said.popleft()
                if said in heard:
                    continue
                heard.add(said)
                if isinstance(said[0], int):
                    log.log(said[0], said[1])
                else:
                    warnings.warn(said[1], said[0], stacklevel=4)

    def first() -> Any:
        while True:
            changed.clear()
            if interrupted.is_set():
                raise KeyboardInterrupt
            pass_on()
            for _, future in under_way:
                if future.done() and future.exception():
                    future.result()
            member, future = under_way[0]
            if future.done():
                under_way.popleft()
                loads[id(member)] -= 1
                return future.result()
            changed.wait(0.5)  # a timeout, to notice Ctrl-C and emit messages

    for job in jobs:
        if len(under_way) == sum(AHEAD * member.slots for member in members):
            yield first()
        member = min(members, key=lambda member: loads[id(member)] / member.slots)
        loads[id(member)] += 1
        future = member.submit(job)
        under_way.append((member, future))
        future.add_done_callback(lambda _: changed.set())
    while under_way:
        yield first()
    pass_on()


class Threads:
    """A worker that runs work(job) on threads of this process. `torch_threads`, if given, is torch's number in each."""

    def __init__(
        self, work: Callable[[Any], Any], slots: int, torch_threads: int | None, stop: Callable[[], None]
    ) -> None:
        self.slots, self.said = slots, collections.deque[LogMessage]()
        self._work, self._stop = work, stop
        self._executor = ThreadPoolExecutor(slots, initializer=_use, initargs=(torch_threads,))

    def submit(self, job: Any) -> Future[Any]:
        return self._executor.submit(self._work, job)

    def close(self) -> None:
        self._stop()
        self._executor.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(torch.get_num_threads())  # restore torch's number of threads for new threads


class Process:
    """A worker process that calls make(*arguments) once and the returned function on each job, on `slots` threads.

    `make` must be importable. `name` is the name of the process in messages.
    """

    def __init__(
        self, name: str, make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...], slots: int,
        torch_threads: int | None,
    ) -> None:  # fmt: skip
        self.name, self.slots, self.said = name, slots, collections.deque[LogMessage]()
        self._waiting: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._number = 0
        self._broken: BaseException | None = None
        executable = os.fsdecode(multiprocessing.spawn.get_executable() or "")
        apart: dict[str, Any] = {"process_group": 0}  # a terminal's Ctrl-C does not reach it
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        try:
            command = [executable, "-c", BOOT, json.dumps([str(path) for path in sys.path])]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **apart)
        except OSError as e:
            raise RunError(f"A worker process could not be started with {executable!r} ({e}): give --devices 1.") from e
        assert self._process.stdin
        self._to: IO[bytes] = self._process.stdin
        self._listener = threading.Thread(target=self._listen, daemon=True, name=f"scdiffkit {name}")
        self._listener.start()
        self._send((make, arguments, slots, torch_threads, log.getEffectiveLevel()))

    def submit(self, job: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            self._number += 1
            number = self._number
            self._waiting[number] = future
        self._send((number, job))
        if self._broken:
            self._fail(self._broken)  # the listener may have ended before this job was registered
        return future

    def close(self) -> None:
        """Kill the process, which has nothing to save."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        with suppress(OSError):
            self._to.close()

    def _send(self, message: Any) -> None:
        with suppress(OSError):  # the listener reports a worker that is gone
            pickle.dump(message, self._to)
            self._to.flush()

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as answers:
            try:
                while True:
                    kind, number, value = pickle.load(answers)
                    if kind == "said":
                        self.said.append(value)
                    elif number is None:
                        self._fail(value)
                    else:
                        with self._lock:
                            future = self._waiting.pop(number)
                        if kind == "done":
                            future.set_result(value)
                        else:
                            future.set_exception(value)
            except Exception:  # end of file, or a truncated answer
                self._fail(self._broken or RunError(self._exit_message(self._process.wait())))

    def _fail(self, error: BaseException) -> None:
        self._broken = error
        with self._lock:
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for future in waiting:
            future.set_exception(error)

    def _exit_message(self, code: int) -> str:
        if code >= 0:
            return f"{self.name} ended with exit code {code}; its messages are above. Give --devices 1."
        return (
            f"{self.name} was killed ({signal.Signals(-code).name}), which happens when memory runs out: give "
            "fewer --devices, or a smaller --batch-size."
        )


def worker_main() -> None:
    """Run a worker process, see Process. It exits when its parent closes the pipe or is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # stdout carries the answers: send what libraries print to stderr
    questions = sys.stdin.buffer
    lock = threading.Lock()

    def send(*answer: Any) -> None:
        data = pickle.dumps(answer)
        try:
            with lock:
                answers.write(data)
                answers.flush()
        except OSError:
            os._exit(1)

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send("said", None, (record.levelno, record.getMessage()))

    def tell(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        send("said", None, (category, str(message)))

    def answer(number: int | None, question: Callable[[], Any]) -> None:
        try:
            send("done", number, question())
        except BaseException as e:
            send("failed", number, _portable(e))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parent has already shown the warnings of imports
            make, arguments, slots, torch_threads, level = pickle.load(questions)
        log.addHandler(Telling())
        log.propagate = False
        log.setLevel(level)
        warnings.showwarning = tell
        work = make(*arguments)
    except EOFError:
        os._exit(1)
    except BaseException as e:
        send("failed", None, _portable(e))
        os._exit(1)
    executor = ThreadPoolExecutor(slots, initializer=_use, initargs=(torch_threads,))
    while True:
        try:
            number, job = pickle.load(questions)
        except EOFError:
            os._exit(0)  # exit at once: nobody waits for running jobs
        executor.submit(answer, number, lambda job=job: work(job))  # type: ignore[misc]


def _use(torch_threads: int | None) -> None:
    """Set torch's number of threads in this thread, unless it is None."""
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)


def _portable(error: BaseException) -> BaseException:
    """Return an error that the parent can raise: a ScdiffError unchanged, any other as a RunError with its message."""
    if isinstance(error, ScdiffError):
        return error
    log.debug("%s", "".join(traceback.format_exception(error)))
    return RunError(f"A worker process failed: {type(error).__name__}: {error}")
