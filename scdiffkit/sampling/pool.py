"""Jobs shared out to threads and to processes, and their results in order. Knows nothing of cells.

A process is a program of its own that is told over its pipes what to do, rather than one of `multiprocessing`, which
would run the user's script once more in each: so this works from any script, a notebook, a terminal and R. Ctrl-C
reaches the parent alone, which ends its workers; a worker whose parent is gone ends too.
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

AHEAD = 2  # results a thread may be ahead of the one that takes them
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from scdiffkit.sampling.pool import worker_main; worker_main()"
)
log = logging.getLogger("scdiffkit")

LogMessage = tuple[int, str] | tuple[type[Warning], str]  # a log line with its level, or a warning


class Worker(Protocol):
    """What takes jobs: `slots` at a time, each on a thread of its own."""

    slots: int
    said: collections.deque[LogMessage]  # what is to be passed on

    def submit(self, job: Any) -> Future[Any]: ...
    def close(self) -> None: ...


def map_ordered(members: Sequence[Worker], jobs: Iterable[Any], interrupted: threading.Event) -> Generator[Any]:
    """The result of each job, in order; a few are worked at ahead of it. Raises the first error, once it is known.

    What the members say is passed on from the thread that takes the results; what several say, once. KeyboardInterrupt
    when the event is set.
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
            changed.wait(0.5)  # not for ever: Ctrl-C is noticed, and logs are passed on

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
    """work(job) on threads of this process, each with so many threads of torch; None: as many as there are."""

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
        torch.set_num_threads(torch.get_num_threads())  # this thread's own number again for threads to come


class Process:
    """A worker process: make(*arguments) once, and what that returns for each job, on so many threads.

    make is a function that can be imported. name is what messages call the process.
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
        apart: dict[str, Any] = {"process_group": 0}  # Ctrl-C in the terminal is not for it
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
            self._fail(self._broken)  # the listener may have ended before this job was there
        return future

    def close(self) -> None:
        """It holds nothing that must be saved."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        with suppress(OSError):
            self._to.close()

    def _send(self, message: Any) -> None:
        with suppress(OSError):  # a worker that is gone: the listener says so
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
            except Exception:  # the end, or half an answer
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
    """What a worker process does: see Process. Ends when its parent closes the pipe, or is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between answers
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
            warnings.simplefilter("ignore")  # of imports, which the parent has had
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
            os._exit(0)  # at once: nobody waits for what is under way
        executor.submit(answer, number, lambda job=job: work(job))  # type: ignore[misc]


def _use(torch_threads: int | None) -> None:
    """Let torch work on so many threads where it is called from this thread."""
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)


def _portable(error: BaseException) -> BaseException:
    """What a parent can raise: errors that a user can act on as they are, others in words."""
    if isinstance(error, ScdiffError):
        return error
    log.debug("%s", "".join(traceback.format_exception(error)))
    return RunError(f"A worker process failed: {type(error).__name__}: {error}")
