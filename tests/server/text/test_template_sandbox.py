"""Foreign templates in their processes: what they ask for is bounded, and who asks for too much harms nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from server.errors import EngineUnavailableError
from server.text.chat_template import ChatTemplate, ForeignRenderer
from server.text.template_sandbox import SandboxLimits, TemplateOverrunError, TemplateSandbox

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
ECHO = "{{ messages[0].content }}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[TemplateSandbox]:
    made = TemplateSandbox(SandboxLimits(seconds=0.5, max_chars=100_000, max_processes=3))
    yield made
    made.close()


def test_it_renders_with_whatever_json_can_say(sandbox: TemplateSandbox) -> None:
    source = ECHO + "{{ n }}{{ text }}{{ bos_token }}"
    arguments = {"n": 10**30, "text": "é🎉\x00", "bos_token": "<s>"}
    assert sandbox.render(source, MESSAGES, arguments).text == f"Hi{10**30}é🎉\x00<s>"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ 'a' * 10**10 }}", "256 MB of memory"),
        (
            "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "memory",
        ),
        ("{{ ('a' | center(10**9)) }}", "memory"),
        ("{{ '%1000000000d' % 1 }}", "memory"),
        (ENDLESS, "longer than the 0.5 seconds"),
        ("{{ 7 ** (7 ** 9) }}", "longer than the 0.5 seconds"),
        ("{{ 'a' * 100001 }}", "more than the 100000 characters"),
        ("{% for i in range(99999) %}{{ 'aaaa' }}{% endfor %}", "more than the 100000 characters"),
    ],
)
def test_bombs_are_overruns_and_the_next_render_is_sound(sandbox: TemplateSandbox, source: str, words: str) -> None:
    with pytest.raises(TemplateOverrunError, match=words) as caught:
        sandbox.render(source, MESSAGES, {})
    assert caught.value.param == "messages"
    assert sandbox.render(ECHO, MESSAGES, {}).text == "Hi"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ range(10**9) }}", "Range too big"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{% if", "unexpected"),
    ],
)
def test_mistakes_are_told(sandbox: TemplateSandbox, source: str, reason: str) -> None:
    answer = sandbox.render(source, MESSAGES, {})
    assert answer.failure is not None
    assert reason in answer.reason
    assert len(answer.reason) <= 300


def test_one_process_renders_one_template_after_the_other(sandbox: TemplateSandbox) -> None:
    """It is the same process that a template was rendered by before, and one whose template changed hands is not."""
    child = _child(sandbox, ECHO)
    assert _child(sandbox, ECHO) is child
    assert _child(sandbox, ECHO + " ") is not child


def test_the_environment_of_the_server_is_not_the_templates(
    sandbox: TemplateSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSWAP_ADMIN_KEY", "secret-key")
    child = _child(sandbox, ECHO + "1")
    with open(f"/proc/{child.pid}/environ", "rb") as file:
        assert b"secret-key" not in file.read()


def test_a_slow_template_holds_up_no_other(sandbox: TemplateSandbox) -> None:
    sandbox.render(ECHO, MESSAGES, {})
    errors: list[BaseException] = []

    def slow() -> None:
        try:
            sandbox.render(ENDLESS, MESSAGES, {})
        except TemplateOverrunError as error:
            errors.append(error)

    thread = threading.Thread(target=slow)
    thread.start()
    rendered = 0
    while thread.is_alive():
        assert sandbox.render(ECHO, MESSAGES, {}).text == "Hi"
        rendered += 1
    thread.join()
    assert len(errors) == 1
    assert rendered > 1


def test_processes_that_were_not_used_make_room_and_come_back(sandbox: TemplateSandbox) -> None:
    sources = [f"{number}{ECHO}" for number in range(4)]
    children = [_child(sandbox, source) for source in sources]
    assert [child.poll() is None for child in children] == [False, True, True, True]
    assert [sandbox.render(source, MESSAGES, {}).text for source in sources] == [f"{n}Hi" for n in range(4)]


def test_a_process_that_was_killed_is_started_again(sandbox: TemplateSandbox) -> None:
    child = _child(sandbox, ECHO)
    child.kill()
    child.wait()
    with pytest.raises(TemplateOverrunError, match="ended its process"):
        sandbox.render(ECHO, MESSAGES, {})
    assert sandbox.render(ECHO, MESSAGES, {}).text == "Hi"


def test_closed_it_leaves_no_process_and_renders_no_more() -> None:
    made = TemplateSandbox(SandboxLimits())
    child = _child(made, ECHO)
    made.close()
    child.wait(10)
    with pytest.raises(EngineUnavailableError):
        made.render(ECHO, MESSAGES, {})


def test_a_process_that_does_not_start_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    made = TemplateSandbox(SandboxLimits())
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(EngineUnavailableError, match="no process"):
        made.render(ECHO, MESSAGES, {})
    monkeypatch.delenv("PYTHONHOME")
    assert made.render(ECHO, MESSAGES, {}).text == "Hi"
    made.close()


async def test_a_flood_to_one_template_leaves_others_their_threads() -> None:
    """Also when its clients leave meanwhile."""
    made = TemplateSandbox(SandboxLimits(seconds=0.3, max_processes=2))
    slow, quick = (ChatTemplate(source, ForeignRenderer(made, source, {})) for source in (ENDLESS, ECHO))
    assert await quick.render_foreign(MESSAGES) == "Hi"
    asked = [asyncio.create_task(slow.render_foreign(MESSAGES)) for _ in range(6)]
    assert await quick.render_foreign(MESSAGES) == "Hi"
    assert not any(task.done() for task in asked)
    asked[0].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(answer, TemplateOverrunError | EngineUnavailableError) for answer in answers[1:])
    assert await quick.render_foreign(MESSAGES) == "Hi"
    made.close()


def test_messages_may_be_large(sandbox: TemplateSandbox) -> None:
    content = "x" * 90_000
    assert sandbox.render(ECHO, [{"role": "user", "content": content}], {}).text == content


def _child(sandbox: TemplateSandbox, source: str) -> Any:
    sandbox.render(source, MESSAGES, {})
    return sandbox._processes[source].process.child
