"""The page as a file: safe, readable, small, and in a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import open_page
from PIL import Image
from saved_runs import (
    EVIL,
    SPEC,
    accuracy,
    group,
    item,
    rollout,
    rows_of,
    step_report,
    timing,
    undrawn,
    write_run,
    write_step,
)

from mm_spine import evaluation
from mm_spine.files import write_json_lines
from mm_spine.reporting import changes, figures, page, report
from mm_spine.reporting.saved_run import read_run
from mm_spine.reporting.training_responses import HEAD, TAIL
from mm_spine.types import Question, Rollout


def test_the_page_is_one_file_that_may_load_nothing(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    assert "default-src 'none'" in html.replace("&#39;", "'")
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', re.sub(r"<svg\b.*?</svg>", "", html, flags=re.S))
    assert len(re.findall(r"<script>", html)) == 1


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    before = [item(EVIL, False, [EVIL, "2"], text=EVIL)]
    after = [item(EVIL, True, ["1", EVIL], text=EVIL)]
    folder = write_run(
        tmp_path / "run", before, after, model=EVIL, benchmark=EVIL, skipped={EVIL: EVIL}, bad_rows=[EVIL],
        breakdowns={"before": {EVIL: {EVIL: {"n": 1}}}, "after": {EVIL: {EVIL: {"n": 1}}}}, method=EVIL, merger=EVIL,
        lmms_eval={EVIL: {EVIL: {EVIL: 0.5}}}, stopped_by=EVIL,
    )  # fmt: skip
    write_step(folder, 0, [group(EVIL, [rollout(EVIL, 0)], [EVIL], EVIL)])
    (folder / "config.yaml").write_text(json.dumps({"method": {"name": EVIL}, EVIL: EVIL}))
    changes.save_for_report(
        folder, changes.find_changes(rows_of(before), rows_of(after)), [Question(EVIL, (), EVIL, SPEC)], True
    )
    (folder / "adapted" / "tokenizer.json").unlink()  # then the response's text is what is shown
    write_json_lines(folder / "evaluation" / "steps.jsonl", [accuracy(0)])
    html = report.render_report(read_run(folder))
    assert "<script>alert" not in html and "</details>&" not in html
    assert html.count("alert(") > 10, "it is shown, escaped"
    for data in re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.S):
        json.loads(data)


def test_lone_surrogates_do_not_cost_the_page(tmp_path: Path) -> None:
    before, after = (item("a\ud800", right, "12", text="\udfff") for right in (False, True))
    folder = write_run(tmp_path / "run")
    for when, row in (("before", before), ("after", after)):
        line = json.dumps(evaluation.to_json(row))
        (folder / "evaluation" / f"{when}.jsonl").write_text(line + "\n")
    assert "Learnt: wrong before, right after" in page.write_page(tmp_path / "page.html", undrawn(folder)).read_text()


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes() -> list[dict[str, str]]:
    css = (Path(page.__file__).parent / "pages" / "page.css").read_text()
    return [dict(re.findall(r"--([\w]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)]


def test_both_themes_can_be_read() -> None:
    """WCAG 2.2: 4.5 : 1 for text (1.4.3), 3 : 1 for lines (1.4.11)."""
    light, dark = themes()
    for theme in (light, dark):
        for ground in ("page", "card"):
            assert all(contrast(theme[name], theme[ground]) >= 4.5 for name in ("ink", "muted", "good", "bad"))
            assert all(contrast(theme[f"s{i}"], theme[ground]) >= 3 for i in range(1, 7))
    assert [light[f"s{i}"] for i in range(1, 7)] == list(figures.COLOURS)


@pytest.mark.slow
def test_both_pages_open_without_error_or_request_at_any_width(finished: Path, large: Path) -> None:
    """One browser for all of it: to start one takes longer than what it is asked."""
    with open_page(finished / "report.html") as opened:
        for width, dark in ((1280, False), (390, True)):
            opened.page.set_viewport_size({"width": width, "height": 900})
            opened.page.emulate_media(color_scheme="dark" if dark else "light")
            opened.page.reload()
            for summary in opened.page.locator("summary").all():
                summary.click()
            assert (opened.errors, opened.fetched(), opened.too_wide()) == ([], [], 0)
            assert (luminance(_ground(opened.page)) < 0.2) is dark
            if width == 1280:
                _reads_tokens_and_curves(opened.page)
                _reads_by_keys(opened.page)
        opened.page.emulate_media(media="print", color_scheme="dark")
        assert luminance(_ink(opened.page)) < 0.2, "paper is white"
        assert opened.page.evaluate(_BARRED) == [False, "img-src", "script-src-attr", "script-src-elem"]
        opened.errors.clear()
        opened.requests.clear()
        opened.page.goto(large.as_uri())
        opened.page.locator("details.question > summary").first.click()
        assert opened.page.locator("details.question .tok").count() == 4 * (HEAD + TAIL)
        assert (opened.errors, opened.fetched(), opened.too_wide()) == ([], [], 0)


_BARRED = """new Promise(told => {
  window.ran = false;
  const seen = [];
  document.addEventListener("securitypolicyviolation", event => {
    seen.push(event.effectiveDirective);
    if (seen.length === 3) told([window.ran, ...seen.sort()]);
  });
  document.body.insertAdjacentHTML("beforeend", "<b onclick='ran = true'></b>");
  document.body.lastChild.click();
  document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = true" }));
  document.body.append(Object.assign(document.createElement("img"), { src: "http://127.0.0.1:9/x.png" }));
})"""
"""What text that got into the page as markup would try: to run a script, two ways, and to fetch an image."""


def _ground(at: Any) -> str:
    return _hex(at.evaluate("getComputedStyle(document.body).backgroundColor"))


def _ink(at: Any) -> str:
    return _hex(at.evaluate("getComputedStyle(document.body).color"))


def _hex(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def _reads_by_keys(at: Any) -> None:
    """What the pointer reads out, the arrow keys do, too."""
    at.locator("details.question").first.locator("p.tokens").first.focus()
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowLeft"):
        at.keyboard.press(key)
    assert at.locator(".tok.on").inner_text() == "." and "log-prob" in at.locator("#tip").inner_text()
    at.keyboard.press("Escape")
    assert at.locator("#tip").is_hidden()
    curve = at.locator("#figure-majority_share")
    curve.locator("svg").focus()
    at.keyboard.press("End")
    assert curve.locator(".readout").inner_text().startswith("step 3: winner 70.0 %")
    at.keyboard.press("ArrowLeft")
    assert curve.locator(".readout").inner_text().startswith("step 2: ")


def _reads_tokens_and_curves(at: Any) -> None:
    """Tokens are coloured, underlined where selected, and tell entropy and log-prob; curves tell their values."""
    roll = at.locator("details.question").first.locator(".roll").first
    spans = roll.locator(".tok")
    assert spans.all_inner_texts() == ["I", " see", " ", "5", ".", "<|im_end|>"]
    assert [("s" in name.split()) for name in spans.evaluate_all("all => all.map(x => x.className)")] == [True] * 2 + [
        False
    ] * 4
    shades = spans.evaluate_all("all => all.map(x => getComputedStyle(x).backgroundColor)")
    assert shades[0] != shades[-1]
    spans.first.hover()
    assert at.locator("#tip").inner_text() == "entropy 1.000 nats\nlog-prob -0.250 nats\nselected to train"
    curve = at.locator("#figure-majority_share")
    box = curve.locator("svg").bounding_box()
    curve.locator("svg").hover(position={"x": 0.56 * box["width"], "y": 0.5 * box["height"]})
    assert curve.locator(".readout").inner_text() == "step 2: winner 60.0 %, margin 0.0 %, unanimous 0.0 %"


def write_large_run(folder: Path, steps: int = 500, questions: int = 1000) -> Path:
    """500 steps, 1,000 questions that all changed, long responses, photographs of noise."""
    names = [f"benchmark/split/{i:05}" for i in range(questions)]
    words = "Looking at the image, the left lower lobe shows an opacity. " * 40
    before = [item(name, i % 2 == 0, "11222333", text=words) for i, name in enumerate(names)]
    after = [item(name, i % 2 == 1, "22113334", text=words) for i, name in enumerate(names)]
    write_run(folder, before, after, steps=0)
    write_json_lines(folder / "steps.jsonl", [step_report(i) for i in range(steps)])
    write_json_lines(folder / "timings.jsonl", [timing(i) for i in range(steps)])
    write_json_lines(folder / "evaluation" / "steps.jsonl", [accuracy(i) for i in range(steps)])
    rng = np.random.default_rng(0)
    for step in range(21):  # long where the page shows them; all later steps are alike
        asked = names[4 * step : 4 * step + 4]
        drawn = [_drawn(name, 900 if step < 20 else 60, rng) for name in asked]
        write_step(folder, step, [group(rolls[0].question_id, rolls, ["1", "2", "3", None]) for rolls in drawn])
    for step in range(21, steps):
        shutil.copy(folder / "rollouts" / "step_000020.parquet", folder / "rollouts" / f"step_{step:06d}.parquet")
    noise = rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)
    shown = changes.find_changes(rows_of(before), rows_of(after))
    asked_of = [Question(name, (Image.fromarray(noise),), words[:300], SPEC) for name in names]
    changes.save_for_report(folder, shown, asked_of, images=True)
    return folder


def _drawn(name: str, length: int, rng: np.random.Generator) -> list[Rollout]:
    return [
        rollout(name, i, rng.integers(0, 300, length).tolist(), np.sort(rng.exponential(0.3, length))[::-1])
        for i in range(4)
    ]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    return report.write_report(write_large_run(folder / "run"), folder / "page.html")


@pytest.mark.slow
def test_a_run_of_500_steps_and_1000_questions_stays_below_15_mb(large: Path) -> None:
    html = large.read_text()
    shown = html.count('<details class="question">')
    assert 500 < shown < 1000 and f"the page holds {shown // 2} of them" in html
    assert html.count("data:image/jpeg") > 60, "each list has its share of the images"
    assert large.stat().st_size < 15_000_000
