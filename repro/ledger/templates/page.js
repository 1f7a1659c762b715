"use strict";

// Filters of the ledger, kept in the address: #task=glue&optimizer=adan. What is no filter is the id of a row.
const form = document.forms.filters;
const entries = [...document.querySelectorAll("tr[data-status]")];

function filter() {
  const wanted = [...new FormData(form)].filter(([, value]) => value);
  for (const entry of entries) {
    entry.hidden = !wanted.every(([key, value]) => entry.dataset[key].split(" ").includes(value));
    document.getElementById(entry.querySelector("a").hash.slice(1)).hidden = entry.hidden;
  }
  for (const group of document.querySelectorAll("[data-group]"))
    group.hidden = !group.querySelector("article:not([hidden]), [data-status]:not([hidden])");
  const shown = entries.filter((entry) => !entry.hidden);
  const published = shown.filter((entry) => entry.matches(".published"));
  document.getElementById("shown").textContent =
    `${shown.length} rows, ${published.length} with a published number`;
}

function remember() {
  const wanted = [...new FormData(form)].filter(([, value]) => value);
  history.replaceState(null, "", "#" + (new URLSearchParams(wanted).toString() || "ledger"));
  filter();
}

function recall() {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.includes("=")) {
    const wanted = new URLSearchParams(hash);
    for (const select of form.querySelectorAll("select")) {
      select.value = wanted.get(select.name) ?? "";
      if (select.selectedIndex < 0) select.value = "";
    }
    filter();
    form.scrollIntoView();
    return;
  }
  const target = document.getElementById(hash);
  const closed = target?.closest("details:not([open])");
  if (closed) {
    closed.open = true;
    target.scrollIntoView();
  }
}

form.hidden = false;
form.addEventListener("change", remember);
form.addEventListener("reset", () => setTimeout(remember));
addEventListener("hashchange", recall);
filter();
recall();

// Values of charts: of the mark next to the pointer, and with the arrow keys.
const value = document.createElement("output");
value.className = "value";

function marks(svg) {
  const figure = svg.closest("figure");
  const round = (x) => String(+x.toPrecision(6)); // points are stored in single precision
  const box = svg.querySelector(".grid").getBoundingClientRect();
  const lines = [...svg.querySelectorAll("polyline")].map((line) => {
    const place = line.getScreenCTM();
    return [...line.points].map((point) => {
      const { x, y } = point.matrixTransform(place);
      const says = `${line.dataset.label}: ${round(point.y)} at ${figure.dataset.x} ${point.x}`;
      return { x, y, says };
    }).filter((mark) => mark.y >= box.top - 1 && mark.y <= box.bottom + 1);
  });
  const others = [...svg.querySelectorAll("circle")].map((mark) => {
    const box = mark.getBoundingClientRect();
    return { x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2, says: mark.dataset.label };
  });
  return [...lines, others].filter((line) => line.length);
}

function show(svg, mark) {
  const plot = svg.parentElement;
  const box = plot.getBoundingClientRect();
  value.textContent = mark.says;
  plot.append(value);
  const half = value.offsetWidth / 2;
  const left = Math.max(Math.min(mark.x - box.left, box.width - half), half);
  value.style.left = `${left}px`;
  value.style.top = `${mark.y - box.top}px`;
  value.style.setProperty("--shift", `${mark.x - box.left - left}px`);
}

const chart = (event) => event.target.closest?.(".plot")?.querySelector("svg");

function point(event) {
  const svg = chart(event);
  if (!svg) return value.remove();
  const all = marks(svg).flat();
  const distance = (mark, x, y) => Math.hypot(mark.x - x, mark.y - y);
  let nearest, least = 30;
  for (const mark of all) {
    const found = distance(mark, event.clientX, event.clientY);
    if (found < least) [nearest, least] = [mark, found];
  }
  if (!nearest) return value.remove();
  const says = all.filter((mark) => distance(mark, nearest.x, nearest.y) < 1).map((mark) => mark.says);
  show(svg, { ...nearest, says: says.join("\n") }); // some lie on each other
}

document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point); // a finger does not move before

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const place = new WeakMap(); // of a chart: the line and the mark that were last read

document.addEventListener("keydown", (event) => {
  const svg = event.target.matches?.(".plot") && chart(event);
  if (!svg || !(event.key in MOVES)) return;
  event.preventDefault();
  const lines = marks(svg);
  const [down, right] = MOVES[event.key];
  const within = (at, of) => Math.max(0, Math.min(at, of.length - 1));
  const [line, mark] = place.get(svg) ?? [0, -right];
  const next = within(line + down, lines);
  place.set(svg, [next, within(mark + right, lines[next])]);
  show(svg, lines[next][place.get(svg)[1]]);
});
document.addEventListener("focusout", () => value.remove());
for (const plot of document.querySelectorAll(".plot")) {
  plot.tabIndex = 0;
  plot.role = "group";
  plot.ariaLabel = "Chart; the arrow keys read its values";
  for (const title of plot.querySelectorAll("title")) {
    title.parentElement.dataset.label = title.textContent; // the browser would show it, too
    title.remove();
  }
}
