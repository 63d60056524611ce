"use strict";
// Values of a chart under the pointer or by the arrow keys; images that grow when clicked.

const formatted = (value) => Math.abs(value) < 1e-4 && value !== 0
  ? value.toExponential(2)
  : value.toLocaleString("en", { maximumSignificantDigits: 4 });

function nearest(axis, x) {
  let low = 0, high = axis.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (axis[middle] < x) low = middle; else high = middle;
  }
  return x - axis[low] < axis[high] - x ? low : high;
}

for (const figure of document.querySelectorAll(".chart")) {
  const area = figure.querySelector(".area");
  const [cursor, tip] = [figure.querySelector(".cursor"), figure.querySelector(".tip")];
  const label = figure.querySelector(".ticks.x em").textContent;
  const data = JSON.parse(figure.querySelector("script").textContent);
  const longest = data.x.reduce((a, b) => (b.length > a.length ? b : a));
  let current = longest.length - 1;

  function show(index) {
    const x = longest[index];
    const share = (x - data.low) / (data.high - data.low);
    current = index;
    const rows = [`${label} ${x.toLocaleString("en", { maximumFractionDigits: 2 })}`];
    const keys = [null];
    for (const line of data.lines) {
      const axis = data.x[line.axis];
      const k = nearest(axis, x);
      const gap = (axis[axis.length - 1] - axis[0]) / Math.max(1, axis.length - 1);
      if (Math.abs(axis[k] - x) > gap) continue;
      rows.push(data.lines.length > 1 ? `${line.name}: ${formatted(line.y[k])}` : formatted(line.y[k]));
      keys.push(line.colour);
    }
    tip.replaceChildren(...rows.map((text, i) => {
      const row = document.createElement("p");
      if (keys[i]) {
        const key = document.createElement("span");
        key.className = `key ${keys[i]}`;
        row.append(key);
      }
      row.append(text);
      return row;
    }));
    cursor.style.left = `${100 * share}%`;
    tip.style.left = share < 0.5 ? `calc(${100 * share}% + 0.5rem)` : "auto";
    tip.style.right = share < 0.5 ? "auto" : `calc(${100 - 100 * share}% + 0.5rem)`;
    cursor.hidden = tip.hidden = false;
  }

  function hide() {
    cursor.hidden = tip.hidden = true;
  }

  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    show(nearest(longest, data.low + share * (data.high - data.low)));
  });
  area.addEventListener("pointerleave", hide);
  area.addEventListener("focus", () => { if (area.matches(":focus-visible")) show(current); });
  area.addEventListener("blur", hide);
  area.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") hide();
    if (step === undefined) return;
    event.preventDefault();
    show(Math.min(longest.length - 1, Math.max(0, current + step)));
  });
}

for (const button of document.querySelectorAll(".enlarge")) {
  button.addEventListener("click", () => {
    const large = button.closest(".image").classList.toggle("large");
    button.setAttribute("aria-pressed", String(large));
  });
}

// closed parts cannot be opened on paper
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open], .values)")];
  for (const each of opened) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of opened) each.open = false;
});
