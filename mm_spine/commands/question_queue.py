"""Questions from a web page, answered one at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Event

from mm_spine.commands.ask_session import AskOptions, AskResult, AskSettings, ask, ask_settings, question_of
from mm_spine.config import RunStopped
from mm_spine.policy.model import Policy
from mm_spine.processors.vision import BadQuestion
from mm_spine.sampling.wordings import worded
from mm_spine.types import Question, StepReport

log = logging.getLogger(__name__)

MAX_CHARACTERS = 4000
"""Characters of a question together with its choices."""

ROUNDS = 8
"""In how many parts the responses arrive."""

MAX_IMAGES = 8
"""Images of a question."""

MAX_OPEN = 8
"""Questions that may be open at once, including the one being answered; further ones are refused."""

VOTES, STEPS, TEMPERATURE = (2, 64), (0, 32), (0.05, 2.0)
"""What a page may ask for: the smallest and the largest value."""


@dataclass
class Upload:
    """An uploaded file. Its bytes are emptied after the answer, so that no later reference keeps them."""

    name: str
    data: bytes = field(repr=False)

    # Errors name an image by this text.
    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class PageFields:
    """One question as the fields of the page hold it."""

    images: tuple[Upload, ...]
    words: str
    kind: str | None = None
    choices: tuple[str, ...] = ()
    votes: int = 16
    temperature: float = 1.0
    steps: int = 0


@dataclass(frozen=True)
class Asked:
    """The question as the model gets it, how it is asked, and the names of its images.

    `inferred`: nobody chose the answer kind; it follows from the question or the benchmark.
    """

    question: Question
    settings: AskSettings
    names: tuple[str, ...]
    inferred: bool


@dataclass(frozen=True)
class PageState:
    """What the page shows: votes planned, what is going on, the result so far, what went wrong, the question.

    `done`: the result is complete.
    """

    votes: int
    stage: str = ""
    result: AskResult | None = None
    problem: str = ""
    asked: Asked | None = None
    done: bool = False


def without_id(error: BadQuestion, question_id: str) -> str:
    """Return the message of an error without the question's id, which says nothing to somebody who asked one."""
    return str(error).removeprefix(f"{question_id}: ")


class _PageLeft(Exception):
    """The page that asked was closed, or its question was stopped."""


@dataclass(eq=False)
class _OpenQuestion:
    """A question from when it is asked to its last state. `left`: nobody wants its answer any more."""

    page: str
    left: Event = field(default_factory=Event)
    states: SimpleQueue[PageState | None] = field(default_factory=SimpleQueue)


@dataclass
class QuestionQueue:
    """Answers one question at a time in a thread of its own; every question starts from the same weights."""

    policy: Policy
    options: AskOptions = field(default_factory=AskOptions)
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "answering"), repr=False)
    _open: set[_OpenQuestion] = field(default_factory=set, repr=False)

    def answer(self, fields: PageFields, page: str = "") -> Iterator[PageState]:
        """Yield the state of the page as responses arrive.

        The last state is complete, names the problem or says that the question was stopped. If another question is
        being answered, the first state says so. Closing the iterator stops the work at the next round or step.

        Args:
            page: Name under which `stop` finds this question.
        """
        if len(self._open) >= MAX_OPEN:
            problem = f"{len(self._open)} questions are being asked already; ask again later."
            yield PageState(fields.votes, problem=problem)
            return
        waits, opened = bool(self._open), _OpenQuestion(page)
        self._open.add(opened)
        try:
            self._worker.submit(self._work, fields, opened.states.put, opened.left)
            if waits:
                yield PageState(fields.votes, "Waiting: another question is being answered …")
            yield from iter(opened.states.get, None)
            if opened.left.is_set():
                yield PageState(fields.votes, "Stopped.")
        finally:
            opened.left.set()
            self._open.discard(opened)

    def stop(self, page: str) -> None:
        """Stop the questions of one page: their last state follows at once, the work ends at its next round or step."""
        _stop([opened for opened in tuple(self._open) if opened.page == page])

    def stop_all(self) -> None:
        """Stop the work on all open questions at their next round or step."""
        _stop(tuple(self._open))

    def _work(self, fields: PageFields, send: Callable[[PageState | None], None], left: Event) -> None:
        """Answer one question in the worker thread. Every error becomes a state; None ends the states."""
        try:
            self._answer(fields, send, left)
        except _PageLeft:
            log.info("the page was left before its answer")
        except (ValueError, RunStopped) as error:
            send(PageState(fields.votes, problem=str(error)))
        except Exception:
            # The text of an unforeseen error may name paths of this machine, so only the log gets it.
            log.exception("a question failed")
            send(PageState(fields.votes, problem="Something went wrong here; the server's log says what."))
        finally:
            send(None)

    def _answer(self, fields: PageFields, send: Callable[[PageState | None], None], left: Event) -> None:
        def check_left() -> None:
            if left.is_set():
                raise _PageLeft

        check_left()
        _check(fields)
        settings = ask_settings(
            replace(
                self.options,
                kind=fields.kind or self.options.kind,
                votes=fields.votes,
                steps=fields.steps,
                overrides=(*self.options.overrides, f"sampling.temperature={fields.temperature}"),
            )
        )
        question = question_of(fields.words, fields.images, settings, fields.choices)
        asked = Asked(question, settings, tuple(upload.name for upload in fields.images), settings.kind is None)
        send(PageState(fields.votes, f"Reading the image{'s' if len(fields.images) > 1 else ''} …", asked=asked))
        result: AskResult | None = None

        def on_step(report: StepReport) -> None:
            check_left()
            stage = f"Adapting: step {report.step + 1} of {fields.steps} …"
            send(PageState(fields.votes, stage, result, asked=asked))

        responses_per_round = -(-fields.votes // ROUNDS)
        try:
            with closing(ask(self.policy, question, settings, responses_per_round, on_step)) as results:
                for result in results:
                    check_left()
                    send(PageState(fields.votes, _stage(result, fields), result, asked=asked))
        except BadQuestion as error:
            raise ValueError(without_id(error, question.id)) from error
        finally:
            for upload in fields.images:
                upload.data = b""
            wordings = settings.config.sampling.wordings
            for number in range(1 + len(wordings)):
                self.policy.forget(worded(question, wordings, number))
        send(_final_state(result, fields, asked))


def _stop(questions: Sequence[_OpenQuestion]) -> None:
    for opened in questions:
        opened.left.set()
        # Ends the states at once: the next one may take long to come.
        opened.states.put(None)


def _check(fields: PageFields) -> None:
    """Raise ValueError for no image or too many, and for values that our own page would not send."""
    if not fields.images:
        raise ValueError("There is no image yet: upload one, or paste it.")
    if len(fields.images) > MAX_IMAGES:
        raise ValueError(f"{len(fields.images)} images are too many: at most {MAX_IMAGES} for a question.")
    if len(fields.words) + sum(map(len, fields.choices)) > MAX_CHARACTERS:
        raise ValueError(f"The question is too long: at most {MAX_CHARACTERS:,} characters, its choices included.")
    limits = {"votes": VOTES, "steps": STEPS, "temperature": TEMPERATURE}
    for name, (least, most) in limits.items():
        if not least <= getattr(fields, name) <= most:
            raise ValueError(f"{name}={getattr(fields, name)}: from {least} to {most}.")


def _stage(result: AskResult, fields: PageFields) -> str:
    done = len(result.outcome.responses)
    if done < fields.votes:
        return f"{done} of {fields.votes} responses{' after adaptation' if result.after else ''} …"
    return "" if result.after or not fields.steps else f"Adapting: {fields.steps} steps …"


def _final_state(result: AskResult | None, fields: PageFields, asked: Asked) -> PageState:
    if result is None or result.outcome.vote.answer is None:
        problem = "No response could be read as an answer. Try another kind of answer; all responses are below."
        return PageState(fields.votes, result=result, problem=problem, asked=asked, done=True)
    outcomes = [outcome for outcome in (result.before, result.after) if outcome]
    n, tokens = sum(len(o.responses) for o in outcomes), sum(o.tokens for o in outcomes)
    seconds = sum(o.seconds for o in outcomes) + result.seconds
    stage = f"{n} responses, {tokens:,} tokens, {seconds:.1f} s."
    return PageState(fields.votes, stage, result, asked=asked, done=True)
