"""Deals faults at random to a running system: to its processes, its broker, and the connections between them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

import psutil

from rookery.local.cluster import Cluster
from tests.faults.proxy import Proxy

LONGEST_SILENCE = 4.0
"""Seconds for which a connection refuses or is deaf."""
HEAVY = 0.15
"""How often a process with a model is chosen beside one without: it takes seconds of CPU to start."""


class Broker(Protocol):
    """A server that can be broken."""

    def restart(self, *, in_order: bool) -> None: ...

    def wipe(self) -> None:
        """Lose all messages."""


class Adversary:
    """Deals a fault about every `pace` seconds until it is stopped, and then puts right what does not heal itself."""

    def __init__(
        self, cluster: Cluster, broker: Broker, proxies: Mapping[str, Proxy], *, seed: int, pace: float, stop: float
    ) -> None:
        """A process is stopped for at most `stop` seconds."""
        self.dealt: Counter[str] = Counter()
        self._cluster, self._broker, self._proxies = cluster, broker, proxies
        self._dice = random.Random(seed)
        self._pace, self._longest_stop = pace, stop
        self._over = threading.Event()
        self._later: list[threading.Timer] = []
        self._stopped: set[int] = set()
        self._thread = threading.Thread(target=self._deal, name="adversary", daemon=True)
        self._faults: list[tuple[float, Callable[[], str]]] = [
            (10, lambda: self._signal(signal.SIGKILL)),
            (5, lambda: self._signal(signal.SIGTERM)),
            (7, self._stop_a_process),
            (6, self._cut),
            (4, self._refuse),
            (2, self._half_open),
            (3, self._delay),
            (2, self._restart_broker),
            (2, self._wipe_broker),
        ]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        for timer in self._later:
            timer.join()
        for proxy in self._proxies.values():
            proxy.heal()

    def _deal(self) -> None:
        weights, faults = zip(*self._faults, strict=True)
        while not self._over.wait(self._dice.expovariate(1 / self._pace)):
            [fault] = self._dice.choices(faults, weights)
            with suppress(ProcessLookupError, psutil.Error):  # it has just ended by itself
                self.dealt[fault()] += 1

    def _in(self, seconds: float, action: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, action)
        timer.start()
        self._later = [*(waiting for waiting in self._later if waiting.is_alive()), timer]

    # --- processes ------------------------------------------------------------------------------------------------

    def _victim(self) -> tuple[str, int]:
        """A service's name and its process, or that which it has for its jobs."""
        names = [name for name in self._cluster.names if self._cluster.process(name).pid is not None]
        [name] = self._dice.choices(names, [1.0 if name in ("coordinator", "worker") else HEAVY for name in names])
        pid = self._cluster.process(name).pid
        if pid is None:
            raise ProcessLookupError
        children = [child.pid for child in psutil.Process(pid).children(recursive=True)]
        if children and self._dice.random() < 0.5:
            return f"{name.partition('-')[0]}'s process for jobs", children[0]
        return name.partition("-")[0], pid

    def _signal(self, number: signal.Signals) -> str:
        name, pid = self._victim()
        os.kill(pid, number)
        return f"{number.name} {name}"

    def _stop_a_process(self) -> str:
        name, pid = self._victim()
        os.kill(pid, signal.SIGSTOP)
        self._in(self._dice.uniform(0.5, self._longest_stop), lambda: _continue(pid))
        return f"SIGSTOP {name}"

    # --- connections ----------------------------------------------------------------------------------------------

    def _proxy(self) -> tuple[str, Proxy]:
        name = self._dice.choice([*self._proxies])
        return name, self._proxies[name]

    def _cut(self) -> str:
        name, proxy = self._proxy()
        proxy.cut()
        return f"cut {name}"

    def _refuse(self) -> str:
        name, proxy = self._proxy()
        proxy.refuse()
        self._in(self._dice.uniform(0.5, LONGEST_SILENCE), proxy.heal)
        return f"refuse {name}"

    def _half_open(self) -> str:
        name, proxy = self._proxy()
        proxy.half_open()
        self._in(self._dice.uniform(0.5, LONGEST_SILENCE), proxy.heal)
        return f"half-open {name}"

    def _delay(self) -> str:
        name, proxy = self._proxy()
        proxy.delay(self._dice.uniform(0.02, 0.3))
        self._in(self._dice.uniform(0.5, LONGEST_SILENCE), proxy.heal)
        return f"delay {name}"

    # --- the broker -----------------------------------------------------------------------------------------------

    def _restart_broker(self) -> str:
        in_order = self._dice.random() < 0.5
        self._broker.restart(in_order=in_order)
        return "restart broker" if in_order else "kill broker"

    def _wipe_broker(self) -> str:
        self._broker.wipe()
        return "wipe broker"


def _continue(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def wait(holds: Callable[[], object], *, seconds: float) -> bool:
    """Whether it held within that time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.5)
    return True
