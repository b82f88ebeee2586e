"""The worker of one sink: takes events off the spool, hands them over, and does not let go before each has its outcome."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from edge.api import EdgeError, PermanentError
from edge.clock import Clock
from edge.config.model import SinkConfig
from edge.delivery.attempt import Answer, Caller, DeliverySink, error_text, opens_circuit, per_event_errors, retry_after
from edge.delivery.backoff import Backoff
from edge.delivery.batcher import Batcher
from edge.delivery.circuit import CircuitBreaker, CircuitState, probe_secs
from edge.delivery.dead_letters import DeadLetterReason, DeadLetterStore, Letter
from edge.delivery.observer import DeliveryObserver
from edge.delivery.progress import CursorKeeper, Saveable
from edge.delivery.reporter import Reporter
from edge.delivery.window import DEAD, DELIVERED, Window
from edge.outcomes import AttemptResult, SinkOutcome
from edge.spool.cursor import Cursor
from edge.spool.log import Log
