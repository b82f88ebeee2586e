"""What a sink's worker says in the log: when trouble begins, when it lasts, when it ends; never a line per attempt."""

from __future__ import annotations

import structlog

from edge.clock import Clock

log = structlog.get_logger(__name__)

REMINDER_SECS = 60.0


class Limiter:
    """Lets one line through per `REMINDER_SECS` and adds up what the others would have said."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: float | None = None
        self._held_events = 0

    @property
    def is_holding(self) -> bool:
        """Whether there are events that no line has spoken of."""
        return self._held_events > 0

    def due(self, n_events: int = 0, *, at_once: bool = False) -> int | None:
        """Return the events to report now, with those held back before; None when the last line is too recent."""
        self._held_events += n_events
        now = self._clock.monotonic()
        if not at_once and self._last is not None and now - self._last < REMINDER_SECS:
            return None
        self._last = now
        held, self._held_events = self._held_events, 0
        return held

    def reset(self) -> None:
        """Let the next line through."""
        self._last = None
        self._held_events = 0


class Reporter:
    """The log lines of one sink. WARNING: it is in trouble; ERROR: events are lost to it or somebody must act."""

    def __init__(self, sink: str, clock: Clock) -> None:
        self._sink = sink
        self._failing = False
        self._failures = Limiter(clock)
        self._dead = Limiter(clock)
        self._unkept = Limiter(clock)
        self._lost = Limiter(clock)
        self._dropped = Limiter(clock)
        self._internal = Limiter(clock)
        self._died: dict[str, str] = {}
        self._kept = True

    def failed(self, error: str, *, opened: bool, is_open: bool, wait_secs: float) -> None:
        """An attempt failed; `opened`: and the circuit opened with it, `is_open`: it is open now."""
        fields = {"sink": self._sink, "error": error, "retry_in_secs": round(wait_secs, 3)}
        if opened:
            self._failures.reset()
            self._failures.due()
            log.warning("a sink's circuit opened: only probes are sent until one succeeds", **fields)
        elif not self._failing:
            self._failures.due()
            log.info("a sink did not take a batch; it is tried again", **fields)
        elif self._failures.due() is not None:
            log.warning("a sink is still failing", circuit_open=is_open, **fields)
        self._failing = True

    def recovered(self, *, closed: bool) -> None:
        """An attempt succeeded; `closed`: and the circuit closed with it."""
        if closed:
            log.info("a sink's circuit closed: it takes events again", sink=self._sink)
        if self._failing:
            self._failing = False
            self._failures.reset()

    def dead_lettered(self, n_events: int, reason: str, error: str, *, kept: bool) -> None:
        """Events were given up on."""
        self._died = {"reason": reason, "error": error}
        self._kept = kept
        self._tell_dead(self._dead.due(n_events))

    def _tell_dead(self, held: int | None) -> None:
        if held is not None:
            line = "events became dead letters" if self._kept else "events were given up and, as configured, not kept"
            log.error(line, sink=self._sink, events=held, **self._died)

    def letters_failed(self, error: str) -> None:
        """Dead letters cannot be written; the sink waits."""
        if self._unkept.due() is not None:
            log.error("dead letters cannot be written: the sink waits until they can", sink=self._sink, error=error)

    def lost(self, n_events: int) -> None:
        """The spool could not give back events that were accepted."""
        self._tell_lost(self._lost.due(n_events))

    def _tell_lost(self, held: int | None) -> None:
        if held is not None:
            log.error("the spool has lost events of a sink", sink=self._sink, events=held)

    def dropped(self, n_events: int) -> None:
        """Events were given up because the spool has no room and the sink is not required."""
        self._tell_dropped(self._dropped.due(n_events))

    def _tell_dropped(self, held: int | None) -> None:
        if held is not None:
            log.error("the spool is full: the oldest events of a sink were dropped", sink=self._sink, events=held)

    def remind(self, *, at_once: bool = False) -> None:
        """Say how many events no line has spoken of yet, when it is time, or at once: every loss is said."""
        for limiter, tell in (
            (self._dead, self._tell_dead),
            (self._lost, self._tell_lost),
            (self._dropped, self._tell_dropped),
        ):
            if limiter.is_holding:
                tell(limiter.due(at_once=at_once))

    def unreadable(self, error: BaseException) -> None:
        """The worker itself stumbled, over the spool's files or over a defect; it starts over from its cursor."""
        if self._internal.due() is not None:
            log.error("a sink's worker failed and starts over", sink=self._sink, exc_info=error)

    def stuck(self) -> None:
        """A call went on after it was cancelled at drain."""
        log.warning("a sink did not end its call when it was cancelled", sink=self._sink)

    def close_failed(self, error: str) -> None:
        """`edge_close` raised or took too long."""
        log.warning("a sink failed to close", sink=self._sink, error=error)
