"use strict";
(function () {
  const SVG = "http://www.w3.org/2000/svg"; // a name, not an address
  const tip = document.getElementById("tip");
  const read = (element) => JSON.parse(element.textContent);
  const short = (value, unit) =>
    unit === "%" ? (100 * value).toFixed(1) + " %" : Number(value.toPrecision(3)).toLocaleString("en") + " " + unit;

  // Curves: the values at the step nearest to the pointer.
  function nearest(xs, x) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  }

  document.querySelectorAll("figure.steps").forEach(function (figure) {
    const svg = figure.querySelector("svg"), out = figure.querySelector(".readout");
    let data = null, rule = null;
    function show(event) {
      data = data || read(figure.querySelector("script"));
      const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
      const at = ((event.clientX - box.left) / box.width - data.left) / (data.right - data.left);
      const x = data.from + Math.min(1, Math.max(0, at)) * (data.to - data.from);
      const lines = data.lines.map((line) => [line, nearest(line.x, x)]);
      const step = lines.reduce((best, [line, i]) =>
        Math.abs(line.x[i] - x) < Math.abs(best - x) ? line.x[i] : best, lines[0][0].x[lines[0][1]]);
      out.textContent = "step " + step + ": " + lines.filter(([line, i]) => line.x[i] === step)
        .map(([line, i]) => line.label + " " + short(line.y[i], data.unit)).join(", ");
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
    svg.addEventListener("pointerleave", function () {
      out.textContent = "";
      if (rule) { rule.remove(); rule = null; }
    });
  });

  // Responses: coloured when their question is opened, so that a page of many opens at once.
  function token(roll, top, i) {
    const span = document.createElement("span");
    span.className = roll.selected && roll.selected[i] ? "tok s" : "tok";
    span.textContent = roll.tokens[i];
    const entropy = roll.entropy ? roll.entropy[i] : null, logp = roll.logp ? roll.logp[i] : null;
    if (entropy !== null) span.style.setProperty("--e", Math.min(1, entropy / top).toFixed(3));
    span.dataset.tip = "entropy " + (entropy === null ? "unknown" : entropy.toFixed(3) + " nats") +
      "\nlog-prob " + (logp === null ? "unknown" : logp.toFixed(3) + " nats") +
      "\n" + (roll.selected && roll.selected[i] ? "selected to train" : "not selected");
    return span;
  }

  function rollout(roll, top) {
    const box = document.createElement("div"), head = document.createElement("h4"), small = document.createElement("span");
    box.className = "roll";
    head.textContent = "Step " + roll.step + ", answer " + (roll.answer === null ? "none" : roll.answer) +
      (roll.won ? " (the vote)" : "");
    small.textContent = " · " + roll.length + " tokens" +
      (roll.reward === null ? "" : ", reward " + roll.reward) + (roll.finish_reason === "length" ? ", cut off" : "");
    head.appendChild(small);
    box.appendChild(head);
    const text = document.createElement("p");
    text.className = "tokens";
    if (!roll.tokens) text.textContent = roll.text;
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

  document.querySelectorAll("details.question").forEach(function (details) {
    details.addEventListener("toggle", function () {
      const first = details.querySelector("img.first"), place = details.querySelector(".rollouts");
      if (details.open && first && !first.src) first.src = details.querySelector(".thumb img").src; // held once
      if (!details.open || !place || place.childElementCount) return;
      const top = Number(document.documentElement.dataset.top);
      read(details.querySelector("script")).forEach((roll) => place.appendChild(rollout(roll, top)));
    });
  });

  let on = null;
  function point(event) {
    const target = event.target.closest ? event.target.closest(".tok") : null;
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
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
