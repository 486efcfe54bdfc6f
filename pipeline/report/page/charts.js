"use strict";
// Small charts as SVG, in the colors of the page.
const charts = (() => {
  const { make, percent } = shared;
  const SPACE = "http://www.w3.org/2000/svg";
  const W = 480, H = 200, LEFT = 46, BOTTOM = 24;

  function draw(tag, attributes, ...children) {
    const element = document.createElementNS(SPACE, tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    element.append(...children);
    return element;
  }
  const text = (x, y, words, anchor = "start") => draw("text", { x, y, "text-anchor": anchor }, words);
  const title = (words) => draw("title", {}, words);
  const frame = (label, width, height, ...children) => draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "chart" }, ...children);

  function bars(label, values, hint, ends) {
    const most = Math.max(...values, 1), wide = (W - LEFT) / values.length;
    const bar = (value, i) => {
      const high = (value / most) * (H - BOTTOM - 8);
      return draw("rect", { x: LEFT + i * wide, y: H - BOTTOM - high, width: Math.max(0.5, wide * 0.9), height: high, class: "mark" }, title(hint(i)));
    };
    return frame(label, W, H, ...values.map(bar), text(LEFT - 6, 14, most.toLocaleString("en"), "end"), text(LEFT - 6, H - BOTTOM, "0", "end"),
      text(LEFT, H - 6, ends[0]), text(W, H - 6, ends[1], "end"));
  }

  function lines(label, x, series) {
    const all = series.flatMap(([, y]) => y).filter((value) => value !== null);
    const [low, high] = [Math.min(...all), Math.max(...all)], span = high - low || 1, last = x.at(-1) || 1;
    const path = (y) => x.map((step, i) => `${LEFT + (step / last) * (W - LEFT)},${8 + ((high - y[i]) / span) * (H - BOTTOM - 8)}`).join(" ");
    return frame(label, W, H, ...series.map(([name, y], i) => draw("polyline", { points: path(y), class: i ? "line thin" : "line" }, title(name))),
      text(LEFT - 6, 14, high.toFixed(2), "end"), text(LEFT - 6, H - BOTTOM, low.toFixed(2), "end"), text(LEFT, H - 6, "step 0"), text(W, H - 6, `step ${last}`, "end"));
  }

  // A matrix of shares as cells whose shade is their size; names beside it where there are few.
  function heat(label, share, rows, columns, hint) {
    const few = Math.max(rows.length, columns.length) <= 40, side = few ? 18 : Math.max(2, Math.floor(720 / columns.length));
    const left = few ? 150 : 4, top = few ? 130 : 4;
    const cells = share.flatMap((row, i) => row.flatMap((value, j) => (value > 0.004 || rows.length <= 20
      ? [draw("rect", { x: left + j * side, y: top + i * side, width: side, height: side, class: "mark", "fill-opacity": Math.min(1, value).toFixed(3) }, title(hint(i, j)))] : [])));
    const short = (name) => (name.length > 20 ? `${name.slice(0, 19)}…` : name);
    const names = !few ? [] : [...rows.map((name, i) => text(left - 6, top + i * side + 13, short(name), "end")),
      ...columns.map((name, j) => draw("text", { transform: `translate(${left + j * side + 13},${top - 6}) rotate(-60)` }, short(name)))];
    const [width, height] = [left + columns.length * side + (few ? 60 : 4), top + rows.length * side + 4];
    const shown = frame(label, width, height, draw("rect", { x: left, y: top, width: columns.length * side, height: rows.length * side, class: "ground" }), ...cells, ...names);
    shown.style.width = `${width}px`;
    return shown;
  }

  // A merge tree with the leaves that are `there` alone. Of two that meet, both come before the bracket that joins them.
  function pruned({ across, along, leaves }, there) {
    const waiting = [];
    const ending = (x) => (waiting.length && Math.abs(waiting.at(-1).x - x) < 1 ? waiting.pop() : { x, leaf: leaves[Math.round((x - 5) / 10)] });
    along.forEach((x, i) => {
      const last = ending(x[3]), first = ending(x[0]);
      waiting.push({ x: (x[0] + x[3]) / 2, height: across[i][1], parts: [first, last] });
    });
    const left = { across: [], along: [], leaves: [] };
    // Lays out what is left below a node: where it stands and how high; null where nothing is left.
    const lay = ({ leaf, height, parts }) => {
      if (!parts) return there.has(leaf) ? { x: 10 * left.leaves.push(leaf) - 5, height: 0 } : null;
      const [first, last] = parts.map(lay);
      if (!first || !last) return first ?? last;
      left.across.push([first.height, height, height, last.height]);
      left.along.push([first.x, first.x, last.x, last.x]);
      return { x: (first.x + last.x) / 2, height };
    };
    waiting.forEach(lay);
    return left;
  }

  // Brackets of a merge tree; beside each leaf its name and pictures.
  function tree({ across, along, leaves }, beside) {
    const step = 46, wide = 300, far = Math.max(...across.flat()) || 1;
    const path = across.map((row, i) => `M${row.map((d, k) => `${(wide * (1 - d / far)).toFixed(1)},${((along[i][k] / 10) * step).toFixed(1)}`).join("L")}`).join("");
    const brackets = draw("svg", { viewBox: `0 0 ${wide} ${leaves.length * step}`, width: wide, height: leaves.length * step, preserveAspectRatio: "none", role: "img", "aria-label": "Which clusters are most alike" }, draw("path", { d: path, class: "line" }));
    return make("div", { className: "merge-tree" }, brackets, make("ul", {}, ...leaves.map((leaf) => make("li", {}, ...beside(leaf)))));
  }

  return { bars, lines, heat, pruned, tree, percent };
})();
