"""What one name, or one key, may take of the server: requests and tokens a minute, sequences at once and in the queue.

Each limit is checked before anything is taken, so that a refused request costs nobody anything. The clock is monotonic:
setting the time changes nothing. Asyncio-confined.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.api.error_responses import ApiError
from server.limits import Limits

MINUTE = 60.0
MAX_ACCOUNTS = 4096  # beyond so many, those are forgotten that have nothing to remember
RATE, CONCURRENCY, QUEUE = "rate_limit_exceeded", "too_many_concurrent_requests", "queue_full"
Clock = Callable[[], float]


class TokenBucket:
    """Holds ``per_minute`` at most and fills at that rate. It may be overdrawn; then it fills up to nothing first."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def resize(self, per_minute: int, now: float) -> None:
        """Another limit from now on; what has been taken stays taken."""
        self._level = min(self.level(now), per_minute)
        self.per_minute = per_minute
        self._at = now

    def level(self, now: float) -> float:
        """What can be taken."""
        return min(self.per_minute, self._level + (now - self._at) * self.per_minute / MINUTE)

    def take(self, amount: float, now: float) -> None:
        """Take ``amount``, or with a negative one give back."""
        self._level = min(self.per_minute, self.level(now) - amount)
        self._at = now

    def seconds_until(self, amount: float, now: float) -> float:
        """When ``amount`` is there; ``per_minute`` and more: when it is full."""
        return max(0.0, (min(amount, self.per_minute) - self.level(now)) * MINUTE / self.per_minute)


@dataclass(frozen=True)
class Subject:
    """Whose limits they are: ``kind`` is a word for its owner, ``name`` tells it from others of the kind."""

    kind: str
    name: str
    limits: Limits


@dataclass
class _Account:
    """What a subject has taken."""

    requests: TokenBucket | None = None
    tokens: TokenBucket | None = None
    running: int = 0
    queued: int = 0

    def set(self, limits: Limits, now: float) -> None:
        self.requests = _bucket(self.requests, limits.requests_per_minute, now)
        self.tokens = _bucket(self.tokens, limits.tokens_per_minute, now)

    def is_blank(self, now: float) -> bool:
        buckets = [bucket for bucket in (self.requests, self.tokens) if bucket is not None]
        return not self.running and all(bucket.level(now) >= bucket.per_minute for bucket in buckets)


def _bucket(bucket: TokenBucket | None, limit: int | None, now: float) -> TokenBucket | None:
    if not limit:
        return None
    if bucket is None:
        return TokenBucket(limit, now)
    if bucket.per_minute != limit:
        bucket.resize(limit, now)
    return bucket


def merged(limits: Limits, defaults: Limits) -> Limits:
    """``limits``, where they say nothing ``defaults``. 0 is no limit in both."""
    values = {name: getattr(limits, name) for name in Limits.__struct_fields__}
    return Limits(**{name: getattr(defaults, name) if value is None else value for name, value in values.items()})


class RateLimiter:
    """The accounts of all subjects."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[tuple[str, str], _Account] = {}

    @contextmanager
    def request(self, subjects: Sequence[Subject]) -> Iterator[RequestTicket]:
        """Let a request in, counted until the block is left. Raises ApiError (429)."""
        ticket = RequestTicket(subjects, [self._account(subject) for subject in subjects], self._clock)
        ticket.take_request()
        try:
            yield ticket
        finally:
            ticket.close()

    def active(self) -> int:
        """Sequences that are counted as running, over all subjects."""
        return sum(account.running for account in self._accounts.values())

    def _account(self, subject: Subject) -> _Account:
        now = self._clock()
        key = (subject.kind, subject.name)
        if key not in self._accounts:
            if len(self._accounts) >= MAX_ACCOUNTS:
                self._accounts = {who: kept for who, kept in self._accounts.items() if not kept.is_blank(now)}
            self._accounts[key] = _Account()
        self._accounts[key].set(subject.limits, now)
        return self._accounts[key]


@dataclass
class RequestTicket:
    """What one request has taken of its subjects' accounts, and how many tokens it has ``used``."""

    subjects: Sequence[Subject]
    accounts: Sequence[_Account]
    clock: Clock
    used: int = 0
    _sequences: int = 0
    _begun: set[int] = field(default_factory=set)
    _reserved: int = 0
    _buckets: list[TokenBucket] = field(default_factory=list)

    def take_request(self) -> None:
        """Count it among the requests of this minute. Raises ApiError."""
        now = self.clock()
        for subject, account in self._both():
            bucket = account.requests
            if bucket is not None and bucket.level(now) < 1:
                what = f"requests per minute (RPM): limit {bucket.per_minute}"
                raise self._refusal(RATE, f"{_of(subject)} has reached its {what}", bucket.seconds_until(1, now))
        self._count_request(1, now)

    def admit(self, sequences: int, prompt_tokens: int, most_tokens: int | None) -> None:
        """Reserve places for ``sequences``, and tokens: the prompt's and ``most_tokens`` (None: what there is of them).

        Raises ApiError; then the request counts for nothing.
        """
        now = self.clock()
        try:
            for subject, account in self._both():
                self._check_places(subject, account, sequences)
                self._check_tokens(subject, account, prompt_tokens + (most_tokens or 0), now)
        except ApiError:
            self._count_request(-1, now)
            raise
        levels = [bucket.level(now) for _, account in self._both() if (bucket := account.tokens) is not None]
        self._reserved = prompt_tokens + (most_tokens or 0)
        if most_tokens is None and levels:
            self._reserved = max(prompt_tokens, int(min(levels)))
        self._buckets = [account.tokens for account in self.accounts if account.tokens is not None]
        for bucket in self._buckets:
            bucket.take(self._reserved, now)
        self._sequences = sequences
        for account in self.accounts:
            account.running += sequences
            account.queued += sequences

    def begun(self, index: int) -> None:
        """The first token of a sequence has come."""
        if index not in self._begun:
            self._begun.add(index)
            for account in self.accounts:
                account.queued -= 1

    def close(self) -> None:
        """The request has ended: ``used`` tokens are taken instead of those that were reserved."""
        for bucket in self._buckets:
            bucket.take(self.used - self._reserved, self.clock())
        self._buckets = []
        for account in self.accounts:
            account.running -= self._sequences
            account.queued -= self._sequences - len(self._begun)
        self._sequences = 0
        self._begun.clear()

    def headers(self) -> dict[str, str]:
        """OpenAI's ``x-ratelimit`` headers, of requests and of tokens, each of whoever has the least left."""
        now = self.clock()
        found: dict[str, str] = {}
        for what in ("requests", "tokens"):
            buckets = [bucket for account in self.accounts if (bucket := getattr(account, what)) is not None]
            if buckets:
                least = min(buckets, key=lambda bucket: bucket.level(now))
                found[f"x-ratelimit-limit-{what}"] = str(least.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(least.level(now))))
                found[f"x-ratelimit-reset-{what}"] = duration(least.seconds_until(math.inf, now))
        return found

    def _both(self) -> Iterator[tuple[Subject, _Account]]:
        return zip(self.subjects, self.accounts, strict=True)

    def _count_request(self, amount: int, now: float) -> None:
        for account in self.accounts:
            if account.requests is not None:
                account.requests.take(amount, now)

    def _check_places(self, subject: Subject, account: _Account, sequences: int) -> None:
        most, queue = subject.limits.max_concurrency, subject.limits.max_queue
        if most and account.running + sequences > most:
            told = f"{account.running} sequences of {_of(subject)} run or wait, the limit is {most}"
            raise self._refusal(CONCURRENCY, told)
        if queue and account.queued + sequences > queue:
            told = f"{account.queued} sequences of {_of(subject)} wait for their first token, the limit is {queue}"
            raise self._refusal(QUEUE, told)

    def _check_tokens(self, subject: Subject, account: _Account, tokens: int, now: float) -> None:
        bucket = account.tokens
        if bucket is None or tokens <= bucket.level(now):
            return
        what = f"tokens per minute (TPM): limit {bucket.per_minute}, requested {tokens}"
        if tokens > bucket.per_minute:
            told = f"the request is too large for {_of(subject)}'s {what}; shorten the prompt or ask for fewer tokens"
            raise self._refusal(RATE, told, retry=False)
        raise self._refusal(RATE, f"{_of(subject)} has reached its {what}", bucket.seconds_until(tokens, now))

    def _refusal(self, code: str, told: str, seconds: float = 1.0, *, retry: bool = True) -> ApiError:
        headers = self.headers()
        if retry:
            headers |= {"Retry-After": str(max(1, math.ceil(seconds))), "retry-after-ms": str(math.ceil(1e3 * seconds))}
            told += f"; try again in {duration(seconds)}"
        else:
            headers["x-should-retry"] = "false"
        return ApiError(429, told, type="rate_limit_error", code=code, headers=headers)


def duration(seconds: float) -> str:
    """A time as OpenAI writes it: 20ms, 7.66s, 6m0s."""
    millis = math.ceil(1e3 * seconds)
    if millis < 1000:
        return f"{millis}ms"
    minutes, millis = divmod(millis, 60_000)
    text = f"{millis / 1e3:g}s"
    return f"{minutes}m{text}" if minutes else text


def _of(subject: Subject) -> str:
    return f"{subject.kind} {subject.name!r}" if subject.name else f"whoever has no {subject.kind}"
