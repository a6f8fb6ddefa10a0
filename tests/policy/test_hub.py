"""What is sent to the hub, and when nothing is: against a stub of its interface, without a network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from tiny import tiny_policy

from mm_spine.policy.errors import ModelError
from mm_spine.policy.hub import own_card, push_folder
from mm_spine.policy.model import Policy


class Hub:
    """A stub of HfApi that remembers what it is asked, and answers as a hub with one repository."""

    def __init__(self, private: bool = True, error: Exception | None = None) -> None:
        self.private, self.error = private, error
        self.made: list[dict[str, Any]] = []
        self.sent: dict[str, bytes] = {}

    def create_repo(self, repo: str, **how: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.made.append({"repo": repo, **how})
        return Url("https://hub.example/me/model")

    def model_info(self, repo: str) -> Any:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert repo_id == "me/model" and commit_message
        self.sent = {path.name: path.read_bytes() for path in Path(folder_path).rglob("*") if path.is_file()}


class Url(str):
    repo_id = "me/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return use(Hub(), monkeypatch)


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    return hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_a_policy_is_sent_whole_to_a_private_repository_with_its_card(hub: Hub, tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.card = "---\ntags:\n- mm-spine\n---\n# a card\n"
    pushed = policy.push_to_hub("me/model")
    assert hub.made == [{"repo": "me/model", "private": True, "exist_ok": True}]
    assert hub.sent["README.md"].decode() == policy.card
    assert pushed.private and pushed.url == "https://hub.example/me/model"
    assert pushed.files == {name: len(data) for name, data in hub.sent.items()}
    for name, data in hub.sent.items():
        (tmp_path / name).write_bytes(data)
    again = Policy.load(tmp_path)
    assert all(weight.equal(again.trainable()[name]) for name, weight in policy.trainable().items())
    assert again.card == policy.card and again.source == str(tmp_path)


def test_a_repository_is_public_only_on_request(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    public = use(Hub(private=False), monkeypatch)
    with pytest.raises(ModelError, match="me/model: that repository is public already, and nothing was sent"):
        push_folder(folder, "model")
    assert public.sent == {}
    assert push_folder(folder, "model", private=False).private is False
    assert set(public.sent) == {"config.json", "model.safetensors"} and public.made[-1]["private"] is False


def test_what_is_sent_is_logged_before(hub: Hub, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        push_folder(folder, "model")
    assert "to the private repository model: config.json (2 bytes), model.safetensors (7 bytes)" in caplog.text


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set, so nothing was sent"),
        (HFValidationError("Repo id must be"), "model: nothing was sent, or not everything: Repo id must be"),
        (RuntimeError("no route"), "no route; `hf auth whoami` shows who is logged in"),
    ],
)
def test_a_hub_that_refuses_is_one_sentence(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    use(Hub(error=error), monkeypatch)
    with pytest.raises(ModelError, match=message):
        push_folder(folder, "model")


def test_a_folder_without_a_model_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("names")
    with pytest.raises(ModelError, match=r"no config\.json there"):
        push_folder(tmp_path, "model")
    assert not hub.made


def test_only_a_card_of_our_own_is_kept(tmp_path: Path) -> None:
    assert own_card(tmp_path) is None
    for text, own in (
        ("---\nlicense: mit\ntags:\n- mm-spine\n- x\n---\n# A\n", True),
        ("---\nlicense: mit\ntags:\n- other\n---\nmade by\n- mm-spine\n---\n", False),
        ("# Qwen\n- mm-spine\n", False),
    ):
        (tmp_path / "README.md").write_text(text)
        assert (own_card(tmp_path) == text) is own


def test_weights_that_are_set_back_lose_the_card_of_the_adapted_ones() -> None:
    policy = tiny_policy()
    start, policy.card = policy.weights(), "a card"
    policy.restore(start)
    assert policy.card is None
