"use strict";
(function () {
  const SVG = "http://www.w3.org/2000/svg"; // the name of a namespace, nothing is loaded from it
  const tip = document.getElementById("tip");
  const read = (element) => JSON.parse(element.textContent);
  const short = (value, unit) =>
    unit === "%" ? (100 * value).toFixed(1) + " %" : Number(value.toPrecision(3)).toLocaleString("en") + " " + unit;

  // Curves: show the values at the step that is nearest to the pointer.
  function nearest(xs, x) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  }

  // Arrow keys move along curves and along the tokens of a response.
  const TURNS = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  const moved = (from, turn, count) => Math.min(count - 1, Math.max(0, from + turn));

  document.querySelectorAll("figure.steps").forEach(function (figure) {
    const svg = figure.querySelector("svg"), out = figure.querySelector(".readout");
    let data = null, rule = null, here = null;
    svg.setAttribute("tabindex", "0");
    function show(event) {
      data = data || read(figure.querySelector("script"));
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width - data.left) / (data.right - data.left);
      tell(data.from + Math.min(1, Math.max(0, at)) * (data.to - data.from));
    }
    function tell(x) {
      const view = svg.viewBox.baseVal;
      const lines = data.lines.map((line) => [line, nearest(line.x, x)]);
      const step = lines.reduce((best, [line, i]) =>
        Math.abs(line.x[i] - x) < Math.abs(best - x) ? line.x[i] : best, lines[0][0].x[lines[0][1]]);
      here = step;
      out.textContent = "step " + step + ": " + lines.filter(([line, i]) => line.x[i] === step)
        .map(([line, i]) => line.label + " " + short(line.y[i], data.unit)).join(", ") +
        (data.mark && data.mark.step === step ? " · " + data.mark.label : "");
      if (!rule) {
        rule = document.createElementNS(SVG, "line");
        rule.setAttribute("class", "pointer");
        svg.appendChild(rule);
      }
      const share = data.left + (step - data.from) / (data.to - data.from) * (data.right - data.left);
      const where = { x1: share * view.width, x2: share * view.width, y1: data.top * view.height, y2: data.bottom * view.height };
      Object.entries(where).forEach(([name, value]) => rule.setAttribute(name, value));
    }
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    function leave() {
      out.textContent = "";
      here = null;
      if (rule) { rule.remove(); rule = null; }
    }
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", function (event) {
      const turn = TURNS[event.key];
      if (!turn) return;
      event.preventDefault();
      data = data || read(figure.querySelector("script"));
      const steps = [...new Set(data.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
      tell(steps[moved(here === null ? -1 : steps.indexOf(here), turn, steps.length)]);
    });
  });

  // Responses are built when their question is opened, so that a page with many of them loads fast.
  // Characters that cannot be seen, or that change the direction of text, are replaced by their number.
  const plain = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g,
    (sign) => "‹U+" + sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "›");
  function token(roll, top, i) {
    const span = document.createElement("span");
    const shared = roll.fork_at !== null && i < roll.fork_at && (roll.cut === null || i < roll.cut);
    span.className = "tok" + (roll.selected && roll.selected[i] ? " s" : "") + (shared ? " shared" : "");
    span.textContent = plain(roll.tokens[i]);
    const entropy = roll.entropy ? roll.entropy[i] : null, logp = roll.logp ? roll.logp[i] : null;
    if (entropy !== null) span.style.setProperty("--e", Math.min(1, entropy / top).toFixed(3));
    span.dataset.tip = "entropy " + (entropy === null ? "unknown" : entropy.toFixed(3) + " nats") +
      "\nlog-prob " + (logp === null ? "unknown" : logp.toFixed(3) + " nats") +
      "\n" + (roll.selected && roll.selected[i] ? "selected to train" : "not selected") +
      (shared ? "\nshared with rollout " + roll.parent : "");
    return span;
  }

  function rollout(roll, top) {
    const box = document.createElement("div"), head = document.createElement("h4"), small = document.createElement("span");
    box.className = "roll";
    const answer = document.createElement("bdi");
    answer.textContent = roll.answer === null ? "none" : roll.answer;
    head.append("Step " + roll.step + ", rollout " + roll.index + ": answer ", answer, roll.won ? " (won the vote)" : "");
    small.textContent = " · " + roll.length + " tokens" +
      (roll.fork_at === null ? "" : ", a branch of rollout " + roll.parent + (roll.fork_at === 0 ?
        " from its first token on" : " after " + roll.fork_at + " tokens, in italics, that both share")) +
      (roll.reward === null ? "" : ", reward " + roll.reward) + (roll.finish_reason === "length" ? ", cut off" : "");
    head.appendChild(small);
    box.appendChild(head);
    const text = document.createElement("p");
    text.className = "tokens";
    text.tabIndex = 0;
    text.setAttribute("aria-label", "Response, " + roll.length + " tokens");
    text.setAttribute("role", "group");
    if (!roll.tokens) text.textContent = plain(roll.text);
    else roll.tokens.forEach(function (_, i) {
      if (i === roll.cut) {
        const gap = document.createElement("span");
        gap.className = "gap";
        gap.textContent = " [... " + (roll.length - roll.tokens.length) + " tokens left out ...] ";
        text.appendChild(gap);
      }
      text.appendChild(token(roll, top, i));
    });
    box.appendChild(text);
    return box;
  }

  // "toggle" does not bubble; this way questions that are added later are heard too.
  document.addEventListener("toggle", function (event) {
    const details = event.target;
    if (!details.matches || !details.matches("details.question")) return;
    const first = details.querySelector("img.first"), place = details.querySelector(".rollouts");
    if (details.open && first && !first.src) first.src = details.querySelector(".thumb img").src; // the page holds each image once
    if (!details.open || !place || place.childElementCount) return;
    const top = Number(document.documentElement.dataset.top);
    read(details.querySelector("script")).forEach((roll) => place.appendChild(rollout(roll, top)));
  }, true);

  // Long lists: the questions beyond the first wait in templates, and are added when they are asked for.
  document.querySelectorAll("button.more").forEach(function (button) {
    const list = button.parentElement;
    function say() {
      const next = list.querySelector("template");
      button.hidden = !next;
      if (!next) return;
      const shown = list.querySelectorAll("details.question").length, total = Number(button.dataset.total);
      button.textContent = "Show " + next.content.querySelectorAll("details.question").length + " more (" + shown + " of " + total + " are shown)";
    }
    button.addEventListener("click", function () {
      const next = list.querySelector("template"), first = next.content.querySelector("summary");
      next.replaceWith(next.content);
      say();
      first.focus({ preventScroll: true });
    });
    say();
  });

  // keyed: the token was marked by a key. A page that scrolls under a resting pointer must not mark another one.
  let on = null, keyed = false;
  function point(event) {
    if (keyed && event.type === "pointerover") return;
    keyed = false;
    mark(event.target.closest ? event.target.closest(".tok[data-tip]") : null);
  }
  function mark(target) {
    if (on) on.classList.remove("on");
    on = target;
    tip.hidden = !target;
    if (!target) return;
    target.classList.add("on");
    tip.textContent = target.dataset.tip;
    const box = target.getBoundingClientRect(), size = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(box.left, window.innerWidth - size.width - 4)) + "px";
    tip.style.top = (box.top - size.height - 6 > 0 ? box.top - size.height - 6 : box.bottom + 6) + "px";
  }
  document.addEventListener("pointerover", point);
  document.addEventListener("pointerdown", point);
  document.addEventListener("pointermove", (event) => { if (event.movementX || event.movementY) keyed = false; });
  document.addEventListener("keydown", function (event) {
    const text = event.target.closest && event.target.closest("p.tokens"), turn = TURNS[event.key];
    if (event.key === "Escape") mark(null);
    const all = text && turn ? [...text.querySelectorAll(".tok")] : [];
    if (!all.length) return;
    event.preventDefault();
    const next = all[moved(all.indexOf(on), turn, all.length)];
    keyed = true;
    next.scrollIntoView({ block: "nearest" });
    mark(next);
  });
  document.addEventListener("focusout", (event) => { if (event.target.closest("p.tokens")) mark(null); });
  document.addEventListener("scroll", () => { if (!keyed) tip.hidden = true; }, { passive: true });
})();
