"use strict";
// The views of a run's page, and what a person can correct in them.
(() => {
  const { data, byId, percent, count, counted, make, picture, scores, joining, served } = shared;
  const { images } = store;
  const { overview } = data;
  const TILE = 9, FOUND = 600;
  const link = (cluster, words = store.name(cluster)) => make("a", { href: gallery.address(cluster), textContent: words });
  const cells = store.single;
  const mean = (values) => values.reduce((a, b) => a + b, 0) / Math.max(1, values.length);

  // ---- where we are: the part of the address after #
  const views = [...document.querySelectorAll("section[data-view]")];
  const fill = { clusters: arrange, cluster: showCluster, map: () => {}, tree: showTree, duplicates: showDuplicates, unsure: showUnsure, unusual: showUnusual, removed: showRemoved, trials: showTrials, about: showAbout, like: showLike };
  let current = "clusters", number = 0;

  // Why there is nothing to show at an address; "" where there is something.
  function nothing() {
    if (current === "cluster" && !store.clusters().includes(number)) return `There is no cluster ${number}.`;
    if (current === "removed" && !store.removed) return "No image is removed.";
    return current === "like" && number >= store.count ? "There is no such image." : "";
  }

  function go() {
    const [, view, id] = location.hash.match(/^#([a-z]+)(?:-(\d+))?$/) ?? [];
    if (location.hash === "#main") return;
    current = Object.hasOwn(fill, view) ? view : "clusters";
    number = Number(id ?? 0);
    const why = nothing();
    if (why) { current = "clusters"; gallery.said(why); }
    if (location.hash && (why || current !== view)) history.replaceState(null, "", "#clusters");
    views.forEach((section) => { section.hidden = section.dataset.view !== current; });
    const tab = { cluster: "clusters", like: "clusters" }[current] ?? current;
    document.querySelectorAll("#tabs a").forEach((a) => { a.ariaCurrent = a.hash === `#${tab}` ? "page" : null; });
    document.querySelector("#tabs [aria-current]").scrollIntoView({ block: "nearest", inline: "nearest" });
    fill[current]();
    map.redraw();
    scrollTo(0, 0);
    if (id !== undefined || current === "like") views.find((section) => !section.hidden).querySelector("h2").focus({ preventScroll: true });
  }

  // ---- clusters
  const confidenceOf = (cluster) => mean(store.members(cluster).map(store.confidence));
  const SORT = {
    id: (a, b) => a - b,
    size: (a, b) => store.size(b) - store.size(a),
    small: (a, b) => store.size(a) - store.size(b),
    sure: (a, b) => confidenceOf(b) - confidenceOf(a),
    unsure: (a, b) => confidenceOf(a) - confidenceOf(b),
    name: (a, b) => store.name(a).localeCompare(store.name(b), "en", { numeric: true }),
  };

  function classes(cluster) {
    if (!images.label.length) return [];
    const tally = new Map();
    store.members(cluster).forEach((i) => { if (images.label[i] >= 0) tally.set(images.label[i], (tally.get(images.label[i]) ?? 0) + 1); });
    const all = [...tally.values()].reduce((a, b) => a + b, 0);
    return [...tally].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([label, n]) => [data.classes[label] ?? `class ${label}`, n / all]);
  }

  const tiles = new Map();  // made once, until a correction
  function tile(cluster) {
    const shown = store.folded(store.sorted(store.members(cluster), "typical")).slice(0, TILE);
    const pictures = shown.map(([image]) => picture(image, ""));
    const name = store.name(cluster);
    const a = make("a", { href: `#cluster-${cluster}` },
      make("div", { className: `tile of-${Math.min(3, Math.ceil(Math.sqrt(shown.length)))}` }, ...pictures), make("b", { textContent: name }),
      make("span", { textContent: count(store.size(cluster)) }, make("span", { className: "unseen", textContent: store.size(cluster) === 1 ? " image" : " images" })));
    const item = make("li", {}, a);
    item.dataset.cluster = cluster;
    return item;
  }

  function arrange() {
    const asked = byId("search").value.trim().toLowerCase();
    const fits = (cluster) => !asked || store.name(cluster).toLowerCase().includes(asked) || `cluster ${cluster}` === asked || String(cluster) === asked
      || classes(cluster).some(([name]) => name.toLowerCase().includes(asked));
    const all = store.clusters(), found = all.filter(fits);
    if (byId("sort").value !== "id") found.sort(SORT[byId("sort").value]);
    found.filter((cluster) => !tiles.has(cluster)).forEach((cluster) => tiles.set(cluster, tile(cluster)));
    byId("mosaic").replaceChildren(...found.map((cluster) => tiles.get(cluster)));
    byId("found").textContent = found.length === all.length ? counted(all.length, "cluster") : `${found.length} of ${counted(all.length, "cluster")}`;
    const named = [];
    const gone = asked && store.removed && "removed".startsWith(asked);
    if (gone) byId("found").append(", ", link(store.REMOVED, `${count(store.removed)} removed`));
    if (asked) for (let i = 0; i < store.count && named.length < FOUND; i += 1) if (images.key[i].toLowerCase().includes(asked)) named.push(i);
    byId("named").hidden = !asked;
    byId("described").hidden = !(asked && data.words);
    byId("described").textContent = `Show images of “${asked}”`;
    if (!asked) return;
    byId("named-title").textContent = named.length ? `${named.length === FOUND ? "The first " : ""}${counted(named.length, "image")} of that name` : "No image of that name";
    gallery.grid(byId("named-images"), cells(named), found.length || gone ? "" : "Nothing fits; try part of a cluster's name, of a class or of a file's name.");
  }

  function showCluster() {
    const members = store.members(number), all = store.clusters(), at = all.indexOf(number);
    byId("cluster-title").textContent = store.name(number);
    byId("before").href = `#cluster-${all[(at + all.length - 1) % all.length]}`;
    byId("after").href = `#cluster-${all[(at + 1) % all.length]}`;
    const facts = [`cluster ${number}, ${counted(store.size(number), "image")}, mean confidence ${percent(confidenceOf(number))}`];
    const found = classes(number);
    if (found.length) facts.push(`mostly ${found.map(([name, share]) => `${name} ${percent(share)}`).join(", ")}`);
    const near = (data.near[number] ?? []).filter((other) => all.includes(other));
    byId("cluster-facts").replaceChildren(facts.join("; "), ...near.flatMap((other, i) => [i ? ", " : "; most alike: ", link(other)]));
    if (members.length < store.size(number)) byId("cluster-facts").append(`; ${count(members.length)} of them in this page`);
    byId("name").value = store.state.names.get(number) ?? "";
    const others = all.filter((other) => other !== number);
    byId("merge-with").replaceChildren(make("option", { value: "", textContent: "choose" }), ...[...near, ...others.filter((other) => !near.includes(other))].map((other) => make("option", { value: other, textContent: `${store.name(other)} (${count(store.size(other))})` })));
    byId("notes").replaceChildren(...store.state.notes.filter((note) => note.cluster === number).map((note) => make("li", { textContent: note.text })));
    const list = store.sorted(members, byId("order").value);
    gallery.grid(byId("members"), byId("fold").checked ? store.folded(list) : cells(list), "No images are left in this cluster.");
  }

  // ---- lists
  const groups = () => {
    const found = new Map();
    images.group.forEach((group, i) => {
      if (group < 0 || store.state.cluster[i] === store.REMOVED) return;
      if (!found.has(group)) found.set(group, []);
      found.get(group).push(i);
    });
    return [...found.values()].filter((list) => list.length > 1).sort((a, b) => b.length - a.length);
  };
  const unsure = () => store.sorted([...images.key.keys()].filter((i) => !store.state.byHand[i] && store.state.second[i] !== store.state.cluster[i] && images.confidence[i] < 2 * images.runner[i]), "unsure");
  const unusual = () => store.sorted([...images.key.keys()].filter((i) => store.state.cluster[i] !== store.REMOVED && (images.strange[i] || data.odd[i])), "new");

  function showDuplicates() {
    const found = groups();
    const rows = found.slice(0, 200).map((list) => {
      const host = make("div", {}), cut = list.slice(0, 12);
      gallery.grid(host, cells(cut));
      const equal = list.every((i) => images.exact[i] >= 0 && images.exact[i] === images.exact[list[0]]);
      const apart = new Set(list.map((i) => store.state.cluster[i])).size;
      const words = `${list.length} ${equal ? "equal to the encoder" : "alike"}${apart > 1 ? `, in ${apart} clusters` : `, in ${store.name(store.state.cluster[list[0]])}`}`;
      const rest = make("button", { type: "button", textContent: "Select all but the first", onclick: () => gallery.select(list.slice(1)) });
      return make("li", {}, make("p", {}, words, " ", rest), host);
    });
    const lead = found.length > 200 ? [make("p", { className: "lead", textContent: `The 200 largest of ${count(found.length)} groups.` })] : [];
    byId("duplicate-groups").replaceChildren(...lead, found.length ? make("ul", { className: "groups" }, ...rows) : make("p", { className: "lead", textContent: "No near-duplicates were found." }));
  }

  function showUnsure() { gallery.grid(byId("unsure-images"), cells(unsure()), "Every image is at least twice as likely in its cluster as in the next."); }
  function showUnusual() {
    const part = `; known of ${count(data.looked)} of ${counted(store.count, "image")}, those with a small picture`;
    const more = data.looking ? ". The others are looked at while nothing else is asked of the server: reload the page to see what was found" : "";
    byId("unusual-text").textContent = `The 1 % of images least like others, and those that are black, blank or blurred${data.looked < store.count ? part + more : ""}.`;
    gallery.grid(byId("unusual-images"), cells(unusual()));
  }

  function showRemoved() {
    const taken = store.members(store.REMOVED);
    const sample = taken.length < store.removed ? ` ${count(taken.length)} of them in this page.` : "";
    byId("removed-text").textContent = `A person took ${counted(store.removed, "image")} out of all clusters.${sample} To put some back, select them and move them to a cluster.`;
    gallery.grid(byId("removed-images"), cells(store.sorted(taken, "name")));
  }
  byId("all-removed").onclick = () => gallery.select(store.members(store.REMOVED));

  function tally() {
    byId("count-duplicates").textContent = groups().length || "";
    byId("count-unsure").textContent = unsure().length || "";
    byId("count-unusual").textContent = unusual().length || "";
  }

  async function showLike() {
    if (location.hash === "#like") { byId("like-title").textContent = sought.title; gallery.grid(byId("like-images"), cells(sought.images), sought.empty); return; }
    byId("like-title").textContent = `Like ${images.key[number]}`;
    const asked = number, found = await store.similar(asked, 60);
    if (asked === number) gallery.grid(byId("like-images"), cells([asked, ...found]));
  }

  // ---- search by a picture and by words, where a server has the encoder
  let sought = { title: "Search by picture", images: [], empty: "Drop a picture on this page." };
  async function seek(title, address, request) {
    gallery.said("Searching; the encoder is loaded the first time.", false, true);
    const { images: found, problem } = await store.ask(address, request);
    gallery.said(problem, Boolean(problem));
    if (problem) return;
    sought = { title, images: found, empty: "Nothing was found." };
    if (location.hash === "#like") go(); else location.hash = "#like";
  }
  const seekLike = (file) => (file.type.startsWith("image/") ? seek(`Like ${file.name}`, "like", { method: "POST", headers: { "content-type": file.type }, body: file })
    : gallery.said(`${file.name} is not a picture.`, true));
  const seekDescribed = () => { const text = byId("search").value.trim(); if (text) seek(`Images closest to “${text}”`, `described?text=${encodeURIComponent(text)}`); };
  if (served) {
    byId("pick").hidden = false;
    byId("pick").onclick = () => byId("picture").click();
    byId("picture").onchange = (event) => { const [file] = event.target.files; event.target.value = ""; if (file) seekLike(file); };
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => { event.preventDefault(); const [file] = event.dataTransfer.files; if (file) seekLike(file); });
    byId("described").onclick = seekDescribed;
    byId("search").addEventListener("keydown", (event) => { if (event.key === "Enter" && data.words) seekDescribed(); });
  }

  function showTree() {
    if (!data.tree) return;
    const beside = (cluster) => [link(cluster), make("span", { textContent: count(store.size(cluster)) }),
      make("div", { className: "strip" }, ...store.folded(store.sorted(store.members(cluster), "typical")).slice(0, 5).map(([image]) => picture(image, "")))];
    const all = store.clusters(), tree = charts.pruned(data.tree, new Set(all));
    const since = all.filter((cluster) => !data.tree.leaves.includes(cluster));
    byId("beside-tree").replaceChildren(...since.flatMap((cluster, i) => [i ? ", " : "Made since, and not in this tree: ", link(cluster), ` (${count(store.size(cluster))})`]),
      since.length && served ? "; reload the page to draw the tree anew." : "");
    const few = make("p", { className: "lead", textContent: `${["No", "Only one"][tree.leaves.length]} cluster of this tree is left.` });
    byId("merge-tree").replaceChildren(tree.leaves.length > 1 ? charts.tree(tree, beside) : few);
  }

  function showTrials() {
    byId("to-trials").hidden = served;
    if (!data.levels || byId("joining").childElementCount) return;
    const own = data.levels.levels.findIndex((level) => level.own);
    byId("joining").append(joining(data.levels, (cluster) => (cluster.level === own && store.clusters().includes(cluster.id) ? [link(cluster.id, "its images")] : [])));
  }

  // ---- about
  function showAbout() {
    showCounts();
    if (byId("tables").childElementCount) return;
    showTraining();
    showConfusion();
    showSettings();
  }

  // What corrections change, and beside it the figures of the training, which they leave alone.
  function showCounts() {
    const share = (value) => (value == null ? "none" : percent(value, 1));
    const tiles = [["images", count(overview.images)], ["removed", count(store.removed)], ["unreadable", count(overview.unreadable)], ["clusters used, as trained", `${count(overview.used)} of ${count(overview.clusters)}`],
      ["sizes, as trained", `${count(overview.smallest)} to ${count(overview.largest)}`], ["mean confidence, as trained", percent(overview.confidence, 1)], ["neighbors in own cluster, as trained", share(overview.consistency)],
      ["heads agree (NMI)", overview.agreement == null ? "one head" : overview.agreement.toFixed(2)], ["training", `${overview.seconds.toFixed(0)} s`], ["backbone", overview.backbone]];
    byId("tiles").replaceChildren(...tiles.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
    const all = store.clusters(), sizes = all.map(store.size);
    byId("sizes").replaceChildren(!all.length ? make("p", { className: "lead", textContent: "No image is left in any cluster." })
      : charts.bars(`Images per cluster, ${Math.min(...sizes)} to ${Math.max(...sizes)}`, sizes, (i) => `${store.name(all[i])}: ${count(sizes[i])}`, [`cluster ${all[0]}`, `cluster ${all.at(-1)}`]));
    byId("since").hidden = !store.since;
  }

  function showTraining() {
    byId("histogram").append(charts.bars(`Histogram, mean confidence ${percent(overview.confidence)}`, overview.histogram, (i) => `${i * 5} to ${i * 5 + 5} %: ${count(overview.histogram[i])}`, ["0 %", "100 %"]));
    byId("loss").closest("figure").hidden = !data.curves;
    if (data.curves) byId("loss").append(charts.lines("Training loss by step", data.curves.step, [["mean of the heads", data.curves.loss], ["best head", data.curves.best_head_loss]]));
    byId("agreement").closest("figure").hidden = !data.agreement.length;
    const heads = data.agreement.map((_, i) => `head ${i + 1}`);
    if (heads.length) byId("agreement").append(charts.heat("Agreement of the heads", data.agreement, heads, heads, (i, j) => `${heads[i]} and ${heads[j]}: ${data.agreement[i][j].toFixed(2)}`));
    data.comparison.forEach((part) => byId("comparison").append(scores(part)));
  }

  function showConfusion() {
    const found = data.confusion;
    byId("confusion").hidden = !found;
    if (!found) return;
    byId("confusion-text").textContent = `Share of each class by cluster, clusters matched one to one to classes (Hungarian): ${percent(found.accuracy, 1)} of the labeled images lie on the diagonal. Labels had no part in training.`;
    const share = found.count.map((row) => { const all = row.reduce((a, b) => a + b, 0); return row.map((value) => value / all); });
    byId("matrix").append(charts.heat(`Confusion matrix; accuracy after matching ${percent(found.accuracy, 1)}`, share, found.classes, found.clusters, (i, j) => `${found.classes[i]} in ${found.clusters[j]}: ${found.count[i][j]}`));
  }

  function showSettings() {
    const shown = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
    for (const [section, table] of Object.entries(data.settings)) {
      const rows = Object.entries(table).map(([name, value]) => make("tr", {}, make("th", { textContent: name, scope: "row" }), make("td", { textContent: shown(value) })));
      byId("tables").append(make("div", {}, make("table", {}, make("caption", { textContent: section }), make("tbody", {}, ...rows))));
    }
  }

  // ---- corrections
  // A name that was typed and could not be taken is still in its field after the page was loaded again.
  function reload() {
    const name = byId("name").value;
    const typed = current === "cluster" && name !== (store.state.names.get(number) ?? "") ? { cluster: number, name } : null;
    history.replaceState({ typed }, "");
    location.reload();
  }
  function typeAgain() {
    const typed = history.state?.typed;
    if (typed && current === "cluster" && number === typed.cluster) byId("name").value = typed.name;
    history.replaceState(null, "");
  }

  async function edit(action, done) {
    const problem = await store.edit(action);
    if (problem === null) return false;
    gallery.said(problem || done, Boolean(problem));
    if (problem && store.stale) byId("said").append(" ", make("button", { type: "button", textContent: "Reload", onclick: reload }));
    return !problem;
  }

  const keys = () => [...gallery.selected].map((image) => images.key[image]);
  const unselect = () => gallery.select([...gallery.selected], false);
  async function withSelected(action, done) {
    const images = keys();
    if (images.length && (await edit({ ...action, keys: images }, done(counted(images.length, "image"))))) unselect();
  }

  const TAKEN = /^(removed|cluster (0|[1-9]\d*))$/i;  // as pipeline/results/names.py
  byId("rename").onsubmit = (event) => {
    event.preventDefault();
    const name = byId("name").value.trim(), other = store.clusters().find((cluster) => cluster !== number && name && store.state.names.get(cluster) === name);
    if (other !== undefined) gallery.said(`Cluster ${other} has that name; merge the two, or choose another.`, true);
    else if (TAKEN.test(name) && name.toLowerCase() !== `cluster ${number}`) gallery.said(`${name} cannot be the name of a cluster, as it says another place; choose another.`, true);
    else edit({ action: "rename", names: { [number]: name } }, name ? `Cluster ${number} is called ${name}.` : "The name is taken away.");
  };
  // Choosing does nothing yet: by the arrow keys, every cluster on the way is chosen for a moment.
  const chosen = (id) => {
    if (byId(id).value) return Number(byId(id).value);
    gallery.said("Choose a cluster first.", true, false);
    return undefined;
  };
  byId("merge").onclick = () => {
    const other = chosen("merge-with");
    if (other !== undefined) edit({ action: "merge", clusters: [number, other] }, `${store.name(other)} is merged into ${store.name(number)}.`);
  };
  // The second click of a double click is none: the first may be answered before it.
  byId("split").onclick = (event) => {
    const parts = Number(byId("parts").value);
    if (!Number.isInteger(parts) || parts < 2 || parts > 50) gallery.said("A cluster is split into 2 to 50 parts.", true);
    else if (event.detail < 2) edit({ action: "split", cluster: number, parts }, `${store.name(number)} is split.`);
  };
  byId("split").closest("span").hidden = !served;
  byId("note").onclick = () => { const text = prompt(`Note on ${store.name(number)}`); if (text) edit({ action: "note", cluster: number, text }, "Noted."); };
  byId("note-images").onclick = () => { const text = prompt("Note on the selected images"); if (text) withSelected({ action: "note", text }, (some) => `Noted on ${some}.`); };
  byId("color").onclick = () => { map.choose(number); location.hash = "#map"; };
  byId("order").onchange = showCluster;
  byId("fold").onchange = showCluster;
  byId("all").onclick = () => gallery.select(store.members(number));
  byId("move").onclick = () => {
    const to = chosen("move-to");
    if (to !== undefined) withSelected({ action: "move", to }, (some) => `${some} moved to ${store.name(to)}.`);
  };
  byId("remove").onclick = () => withSelected({ action: "remove" }, (some) => `${some} removed from all clusters.`);
  byId("same").onclick = () => withSelected({ action: "same" }, () => "Noted: these two belong together.");
  byId("different").onclick = () => withSelected({ action: "different" }, () => "Noted: these two do not belong together.");
  byId("clear").onclick = unselect;
  byId("undo").onclick = () => edit({ action: "undo" }, "Undone.");
  byId("redo").onclick = () => edit({ action: "redo" }, "Done again.");
  // Each file holds what came after the one before, and has a name of its own, or a browser would give it one.
  byId("save").onclick = () => {
    const href = URL.createObjectURL(new Blob([store.lines()], { type: "application/json" }));
    const download = `corrections-${new Date().toISOString().replace(/[-:.]/g, "")}.jsonl`;
    const save = () => make("a", { href, download }).click();
    save();
    store.saved();
    changed();
    gallery.said(`Saved: temi correct RUN ${download} takes them into the run. The next file holds what comes after. `, false, true);
    byId("said").append(make("button", { type: "button", textContent: "Save this one again", onclick: save }));
  };
  document.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || event.target.matches("input:not([type=checkbox])")) return;
    event.preventDefault();
    byId(event.shiftKey ? "redo" : "undo").click();
  });
  addEventListener("beforeunload", (event) => { if (store.unsaved) event.preventDefault(); });

  const described = () => [`${counted(overview.images, "image")}${store.count < overview.images ? `, a sample of ${count(store.count)} in this file` : ""}`,
    ...(store.removed ? [`${count(store.removed)} removed`] : []), overview.backbone, overview.written].join(", ");
  function changed() {
    byId("undo").disabled = !store.state.canUndo;
    byId("redo").disabled = !store.state.canRedo;
    byId("save").hidden = served || !store.unsaved;
    byId("made").textContent = described();
    byId("removed-tab").hidden = !store.removed;
    byId("count-removed").textContent = count(store.removed);
    const two = gallery.selected.size === 2;
    byId("same").hidden = byId("different").hidden = !two;
    byId("move-to").replaceChildren(make("option", { value: "", textContent: "choose" }), make("option", { value: store.state.clusters, textContent: "a new cluster" }),
      ...store.clusters().map((cluster) => make("option", { value: cluster, textContent: store.name(cluster) })));
  }
  store.onChange(() => { tiles.clear(); changed(); tally(); go(); });
  document.addEventListener("selection", () => { const two = gallery.selected.size === 2; byId("same").hidden = byId("different").hidden = !two; });

  // ---- print: a page for each cluster
  addEventListener("beforeprint", () => {
    const page = (cluster) => make("section", {}, make("h2", { textContent: store.name(cluster) }), make("p", { textContent: `${counted(store.size(cluster), "image")}, mean confidence ${percent(confidenceOf(cluster))}` }),
      make("div", {}, ...store.folded(store.sorted(store.members(cluster), "typical")).slice(0, 24).map(([image]) => { const shown = picture(image, ""); shown.loading = "eager"; return shown; })));
    byId("print").replaceChildren(...store.clusters().map(page));
  });
  addEventListener("afterprint", () => byId("print").replaceChildren());

  byId("missing").hidden = !data.missing;
  byId("missing").textContent = data.missing ? `No pictures: ${data.missing}.` : "";
  document.querySelectorAll("[data-needs]").forEach((tab) => { tab.hidden = !data[tab.dataset.needs]; });
  byId("search").addEventListener("input", arrange);
  byId("sort").addEventListener("change", arrange);
  addEventListener("hashchange", go);
  changed();
  go();
  typeAgain();
  requestAnimationFrame(() => setTimeout(() => { tally(); document.documentElement.dataset.ready = "yes"; }));
})();
