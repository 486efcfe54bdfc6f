"use strict";
// The page of one run.
(() => {
  const { data, byId, percent, count, make, picture, scores, joining } = shared;
  const { clusters, images, overview } = data;
  const color = clusters.map((_, c) => `hsl(${(c * 137.508 + 215) % 360} ${[62, 48, 74][c % 3]}% ${[50, 62, 43][c % 3]}%)`);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  // ---- overview
  function tile(name, value, small = "") {
    return make("div", {}, make("dt", { textContent: name }), make("dd", {}, value, small ? make("small", { textContent: ` ${small}` }) : ""));
  }

  function showOverview() {
    const o = overview;
    byId("made").textContent = `${count(o.images)} images in ${o.used} clusters, seen through ${o.backbone}. Written ${o.written}.`;
    const empty = o.clusters - o.used;
    byId("tiles").append(
      tile("images", count(o.images), o.unreadable ? `+ ${count(o.unreadable)} unreadable` : ""),
      tile("clusters", count(o.used), empty ? `+ ${empty} empty` : ""),
      tile("images per cluster", `${count(o.smallest)} – ${count(o.largest)}`),
      tile("mean confidence", percent(o.confidence)),
      ...(o.agreement === null ? [] : [tile("head agreement", o.agreement.toFixed(2), "NMI")]),
      ...(o.consistency === null ? [] : [tile("neighbors in own cluster", percent(o.consistency))]),
      tile("training", o.seconds < 90 ? `${o.seconds.toFixed(0)} s` : `${(o.seconds / 60).toFixed(1)} min`, `${count(o.steps)} steps`),
    );
    byId("missing").hidden = !data.missing;
    byId("missing").textContent = data.missing ? `No pictures: ${data.missing}.` : "";
    data.comparison.forEach((part) => byId("comparison").append(scores(part)));
  }

  // ---- cards
  const card = new Map();
  function makeCard(cluster) {
    const list = (title, members) => members.length === 0 ? [] : [
      make("h4", { textContent: title }),
      make("ul", { className: "grid" }, ...members.map((i) => make("li", {}, picture(i, `${images.key[i]}, confidence ${percent(images.confidence[i])}`)))),
    ];
    const near = cluster.near.map((other) => make("button", { type: "button", className: "link", textContent: clusters[other].name, onclick: () => goTo(other) }));
    const classes = cluster.classes.map(([name, share]) => `${name} (${percent(share)})`).join(", ");
    const facts = `${count(cluster.size)} images (${percent(cluster.size / overview.images, 1)}), mean confidence ${percent(cluster.confidence)}`;
    const element = make("li", { id: `cluster-${cluster.id}`, tabIndex: -1 },
      make("div", { className: "head" }, make("h3", { textContent: cluster.name }), make("span", { className: "number", textContent: cluster.name === `cluster ${cluster.id}` ? "" : `cluster ${cluster.id}` })),
      make("p", { className: "facts", textContent: cluster.size ? facts : "no images" }),
      make("div", { className: "meter", ariaHidden: "true" }, make("i", { style: `width:${100 * cluster.confidence}%` })),
      ...(classes ? [make("p", { className: "facts", textContent: `labels: ${classes}` })] : []),
      ...list("most typical", cluster.typical), ...list("least certain", cluster.uncertain));
    if (cluster.size) {
      const show = make("button", { type: "button", className: "link", textContent: "Show on the map", onclick: () => { single(cluster.id); byId("atlas").scrollIntoView(); byId("single").focus({ preventScroll: true }); } });
      element.append(make("div", { className: "actions" }, show, ...(near.length ? ["near:", ...near] : [])));
    }
    element.style.setProperty("--own", color[cluster.id]);
    card.set(cluster.id, element);
    return element;
  }

  function goTo(id) {
    byId("search").value = "";
    arrange();
    card.get(id).scrollIntoView({ block: "start" });
    card.get(id).focus({ preventScroll: true });
    mark(id);
  }

  function mark(id) {
    card.forEach((element, own) => element.classList.toggle("picked", own === id));
  }

  const ORDER = {
    id: (a, b) => a.id - b.id,
    size: (a, b) => b.size - a.size || a.id - b.id,
    small: (a, b) => a.size - b.size || a.id - b.id,
    sure: (a, b) => b.confidence - a.confidence || a.id - b.id,
    unsure: (a, b) => a.confidence - b.confidence || a.id - b.id,
    name: (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }),
  };

  function matching(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return new Set(clusters.map((cluster) => cluster.id));
    const found = new Set(clusters.filter((cluster) => cluster.name.toLowerCase().includes(wanted) || String(cluster.id) === wanted
      || cluster.classes.some(([name]) => name.toLowerCase().includes(wanted))).map((cluster) => cluster.id));
    images.key.forEach((key, i) => { if (key.toLowerCase().includes(wanted)) found.add(images.cluster[i]); });
    return found;
  }

  function arrange() {
    const found = matching(byId("search").value);
    const sorted = [...clusters].sort(ORDER[byId("sort").value]);
    byId("cards").replaceChildren(...sorted.filter((cluster) => found.has(cluster.id)).map((cluster) => card.get(cluster.id)));
    byId("found").textContent = found.size === clusters.length ? `${clusters.length} clusters` : `${found.size} of ${clusters.length} clusters`;
  }

  // ---- charts
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d"]] };
  function frame(extra = {}) {
    const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
    const { xaxis, yaxis, ...rest } = extra;
    return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), family: "system-ui, sans-serif", size: 12 },
      margin: { l: 46, r: 10, t: 8, b: 36 }, showlegend: false,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") }, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest };
  }
  const plot = (id, traces, layout, config = {}) => Plotly.react(byId(id), traces, layout, { ...CONFIG, displayModeBar: false, ...config });
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");  // plotly reads tags in its texts
  const short = (text) => escaped(text.length > 28 ? `${text.slice(0, 27)}…` : text);
  const scale = () => [[0, css("--cell")], [1, css("--accent")]];

  function drawSmall() {
    const sizes = clusters.map((cluster) => cluster.size);
    const named = clusters.map((cluster) => short(cluster.name));
    byId("sizes").ariaLabel = `Bar chart: the largest cluster has ${count(Math.max(...sizes))} images, the smallest ${count(Math.min(...sizes))}`;
    plot("sizes", [{ type: "bar", y: sizes, customdata: named, marker: { color }, hovertemplate: "%{customdata}: %{y} images<extra></extra>" }], frame({ xaxis: { title: { text: "cluster" }, tickformat: "d" }, bargap: 0.15 }));
    const bins = overview.histogram.map((_, i) => (i + 0.5) / 20);
    byId("histogram").ariaLabel = `Histogram: mean confidence ${percent(overview.confidence)}`;
    plot("histogram", [{ type: "bar", x: bins, y: overview.histogram, marker: { color: css("--accent") }, hovertemplate: "%{y} images<extra></extra>" }], frame({ xaxis: { range: [0, 1], tickformat: ".0%" }, bargap: 0.05 }));
    if (data.curves) {
      const { step, loss, best_head_loss } = data.curves;
      const line = (y, name, dash) => ({ type: "scatter", mode: "lines", x: step, y, name, line: { color: css("--accent"), dash } });
      plot("loss", [line(loss, "mean of the heads", "solid"), line(best_head_loss, "best head", "dot")], frame({ showlegend: true, legend: { x: 1, xanchor: "right", y: 1 }, xaxis: { title: { text: "step" } } }));
    }
    byId("loss").closest("figure").hidden = !data.curves;
    const names = data.agreement.map((_, h) => `head ${h + 1}`);
    byId("agreement").closest("figure").hidden = !names.length;
    if (names.length) {
      byId("agreement").ariaLabel = `Matrix of agreement between heads, ${mean(data.agreement.flat()).toFixed(2)} on average`;
      plot("agreement", [{ type: "heatmap", x: names, y: names, z: data.agreement, zmin: 0, zmax: 1, colorscale: scale(), hovertemplate: "%{y} and %{x}: %{z:.2f}<extra></extra>" }], frame({ yaxis: { autorange: "reversed" } }));
    }
  }

  function drawConfusion() {
    const found = data.confusion;
    byId("confusion").hidden = byId("to-confusion").hidden = !found;
    if (!found) return;
    byId("confusion-text").textContent = `Share of each class by cluster, clusters matched one to one to classes (Hungarian): ${percent(found.accuracy, 1)} of the labeled images lie on the diagonal. Labels had no part in training.`;
    byId("matrix").ariaLabel = `Confusion matrix; accuracy after matching ${percent(found.accuracy, 1)}`;
    const total = found.count.map((row) => row.reduce((a, b) => a + b, 0));
    const z = found.count.map((row, i) => row.map((value) => value / total[i]));
    const ticks = (names) => ({ tickvals: names.map((_, i) => i), ticktext: names.map(short), tickmode: names.length > 60 ? "auto" : "array", showgrid: false });
    const text = found.count.map((row, i) => row.map((value, j) => `${short(found.classes[i])} in ${short(found.clusters[j])}: ${value}`));
    plot("matrix", [{ type: "heatmap", z, text, hoverinfo: "text", zmin: 0, zmax: 1, colorscale: scale(), xgap: 0, ygap: 0, colorbar: { tickformat: ".0%", thickness: 12 } }],
      frame({ xaxis: { ...ticks(found.clusters), tickangle: -50 }, yaxis: { ...ticks(found.classes), autorange: "reversed" } }));
  }

  function drawTree() {
    byId("tree").hidden = !data.tree;
    if (!data.tree) return;
    const { across, along, leaves } = data.tree;
    const gaps = (rows) => rows.flatMap((row) => [...row, null]);  // one trace for all brackets
    byId("dendrogram").style.height = `${Math.max(220, 17 * leaves.length + 60)}px`;
    plot("dendrogram", [{ type: "scatter", mode: "lines", x: gaps(across), y: gaps(along), line: { color: css("--accent"), width: 1.5 }, hoverinfo: "skip" }],
      frame({ xaxis: { title: { text: "distance" }, rangemode: "tozero" }, yaxis: { tickvals: leaves.map((_, i) => 10 * i + 5), ticktext: leaves.map(short), showgrid: false, zeroline: false, range: [0, 10 * leaves.length] } }));
  }

  // ---- map
  let chosen = null;
  function drawMap() {
    const touch = matchMedia("(pointer: coarse)").matches;
    const size = images.key.length > 20000 ? 3 : images.key.length > 4000 ? 4.5 : 6;
    const trace = { type: "scattergl", mode: "markers", x: images.x, y: images.y, hoverinfo: "none",
      marker: { size, color: images.cluster.map((c) => color[c]), opacity: 0.8 },
      selected: { marker: { opacity: 1 } }, unselected: { marker: { opacity: 0.06 } }, selectedpoints: selection() };
    const bare = { visible: false, range: [-1.06, 1.06] };
    plot("map", [trace], frame({ margin: { l: 0, r: 0, t: 0, b: 0 }, xaxis: bare, yaxis: bare, hovermode: "closest", hoverdistance: 12, dragmode: touch ? false : "pan", uirevision: "map" }),
      { scrollZoom: !touch, displayModeBar: !touch });
  }

  function selection() {
    return chosen === null ? null : images.cluster.flatMap((c, i) => (c === chosen ? [i] : []));
  }

  function single(id) {
    chosen = id;
    byId("single").value = id === null ? "" : String(id);
    byId("to-card").hidden = id === null;
    byId("picked").textContent = id === null ? "" : `${count(clusters[id].size)} images`;
    mark(id);
    Plotly.restyle(byId("map"), { selectedpoints: [selection()] });
  }

  function tip(event) {
    const image = event.points[0].pointIndex;
    const [heading, key, confidence] = byId("tip").querySelectorAll("b, span");
    heading.textContent = clusters[images.cluster[image]].name;
    key.textContent = images.key[image];
    confidence.textContent = `confidence ${percent(images.confidence[image])}`;
    const shown = byId("tip").querySelector("img");
    shown.hidden = !images.picture[image];
    shown.onload = () => shown.classList.toggle("tiny", Math.max(shown.naturalWidth, shown.naturalHeight) < 48);
    if (images.picture[image]) shown.src = `data:image/webp;base64,${images.picture[image]}`;
    byId("tip").dataset.image = image;
    byId("tip").hidden = false;
    const { clientX, clientY } = event.event;
    const box = byId("tip").getBoundingClientRect();
    byId("tip").style.left = `${Math.max(4, Math.min(clientX + 16, innerWidth - box.width - 8))}px`;
    byId("tip").style.top = `${Math.max(4, Math.min(clientY + 16, innerHeight - box.height - 8))}px`;
  }

  function showLevels() {
    byId("levels").hidden = byId("to-levels").hidden = !data.levels;
    if (!data.levels) return;
    const own = data.levels.levels.findIndex((level) => level.own);
    const toCard = (cluster) => make("button", { type: "button", className: "link", textContent: "its card", onclick: (event) => { event.preventDefault(); goTo(cluster.id); } });
    byId("joining").append(joining(data.levels, (cluster) => (cluster.level === own ? [toCard(cluster)] : [])));
  }

  function showSettings() {
    const shown = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
    for (const [section, table] of Object.entries(data.settings)) {
      const rows = Object.entries(table).map(([name, value]) => make("tr", {}, make("th", { textContent: name, scope: "row" }), make("td", { textContent: shown(value) })));
      byId("tables").append(make("div", {}, make("table", {}, make("caption", { textContent: section }), make("tbody", {}, ...rows))));
    }
  }

  showOverview();
  clusters.forEach(makeCard);
  arrange();
  byId("search").addEventListener("input", arrange);
  byId("sort").addEventListener("change", arrange);
  byId("single").append(make("option", { value: "", textContent: "none" }), ...clusters.map((cluster) => make("option", { value: cluster.id, textContent: cluster.name })));
  byId("single").addEventListener("change", (event) => single(event.target.value === "" ? null : Number(event.target.value)));
  byId("to-card").addEventListener("click", () => goTo(chosen));
  showLevels();
  showSettings();
  const draw = () => { drawSmall(); drawConfusion(); drawTree(); drawMap(); };
  draw();
  byId("map").on("plotly_hover", tip);
  byId("map").on("plotly_unhover", () => { byId("tip").hidden = true; });
  byId("map").on("plotly_click", (event) => { const id = images.cluster[event.points[0].pointIndex]; single(id === chosen ? null : id); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.documentElement.dataset.ready = "yes";
})();
