"use strict";
// Grids of images, page by page; what is selected in them; one image large.
const gallery = (() => {
  const { byId, make, picture, percent, count, source, pixelated, served } = shared;
  const { images } = store;
  const PAGE = 60;
  const selected = new Set();
  let fading = 0;
  function said(text, problem = false, stays = problem) {
    byId("said").textContent = text;
    byId("said").classList.toggle("problem", problem);
    clearTimeout(fading);
    if (!stays) fading = setTimeout(() => { byId("said").textContent = ""; }, 8000);
  }

  // Shows `cells`, [image, how many it stands for] each, in `host`, PAGE at a time.
  function grid(host, cells, empty = "No images.") {
    const list = make("ul", { className: "grid" });
    const more = make("button", { type: "button", className: "more-images" });
    let shown = 0;
    const next = () => {
      list.append(...cells.slice(shown, shown + PAGE).map(([image, stands]) => cell(image, stands, cells)));
      shown = Math.min(cells.length, shown + PAGE);
      more.hidden = shown === cells.length;
      more.textContent = `Show more (${count(shown)} of ${count(cells.length)})`;
    };
    more.onclick = () => { const focus = shown; next(); list.children[focus]?.querySelector("button").focus(); };
    next();
    new IntersectionObserver(([seen]) => { if (seen.isIntersecting && !more.hidden && cells.length) next(); }, { rootMargin: "600px" }).observe(more);
    host.replaceChildren(cells.length ? list : make("p", { className: "lead", textContent: empty }), more);
  }

  function cell(image, stands, cells) {
    const text = `${images.key[image]}, ${store.name(store.state.cluster[image])}`;
    const open = make("button", { type: "button", className: "open", onclick: () => view(image, cells.map(([other]) => other)) }, picture(image, text));
    const mark = make("input", { type: "checkbox", ariaLabel: `Select ${images.key[image]}`, checked: selected.has(image) });
    mark.onchange = () => select([image], mark.checked);
    const item = make("li", { className: selected.has(image) ? "chosen" : "" }, open, mark);
    item.dataset.image = image;
    if (stands > 1) item.append(make("span", { className: "stands", textContent: `×${stands}`, title: `${stands} near-duplicates` }));
    return item;
  }

  function select(list, on = true) {
    list.forEach((image) => (on ? selected.add(image) : selected.delete(image)));
    document.querySelectorAll(".grid > li").forEach((item) => {
      const chosen = selected.has(Number(item.dataset.image));
      item.classList.toggle("chosen", chosen);
      item.querySelector("input").checked = chosen;
    });
    byId("picked").textContent = `${count(selected.size)} selected`;
    byId("selection").hidden = !selected.size;
    document.dispatchEvent(new Event("selection"));
  }

  // ---- one image
  const dialog = byId("viewer");
  let current = 0, around = [];

  function view(image, list) {
    around = list.length ? list : [image];
    show(image);
    if (!dialog.open) dialog.showModal();
  }

  function show(image) {
    current = image;
    const { cluster, second } = store.state;
    const large = byId("large");
    large.classList.remove("tiny");
    large.onload = () => pixelated(large);
    large.onerror = () => { large.onerror = null; large.src = source(image); };
    large.alt = images.key[image];
    large.src = served && !store.data.missing ? `image/${images.row[image]}` : source(image) || "data:,";
    byId("large-name").textContent = images.key[image];
    const own = cluster[image], other = second[image];
    const facts = [["cluster", [make("a", { href: `#cluster-${own}`, textContent: store.name(own), onclick: () => dialog.close() })]],
      ["confidence", [store.state.byHand[image] ? "put here by a person" : percent(images.confidence[image], 1)]]];
    if (other !== own && images.runner[image] > 0) facts.push(["second", [`${store.name(other)}, ${percent(images.runner[image], 1)}`]]);
    if (images.label.length) facts.push(["label", [images.label[image] < 0 ? "unknown" : store.data.classes[images.label[image]] ?? `class ${images.label[image]}`]]);
    if (store.data.odd[image]) facts.push(["pixels", [store.data.odd[image]]]);
    if (images.strange[image]) facts.push(["unusual", ["unlike the others"]]);
    const notes = store.state.notes.filter((note) => note.keys?.includes(images.key[image]));
    notes.forEach((note) => facts.push(["note", [note.text]]));
    byId("facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", {}, ...value))));
    byId("large-select").checked = selected.has(image);
    byId("large-place").textContent = around.length > 1 ? `${count(around.indexOf(image) + 1)} of ${count(around.length)}` : "";
    byId("similar").replaceChildren();
    if (served) views(image);
    store.similar(image, 8).then((found) => {
      if (current !== image) return;
      byId("similar").replaceChildren(...found.map((other) => make("li", {}, make("button", { type: "button", className: "open", onclick: () => show(other) }, picture(other, images.key[other])))));
    });
  }

  async function views(image) {
    const answer = await fetch(`views/${images.row[image]}`).catch(() => null);
    const { views: together } = answer?.ok ? await answer.json() : {};
    if (current !== image || together === undefined || together === null) return;
    byId("facts").append(make("div", {}, make("dt", { textContent: "views" }), make("dd", { textContent: `${percent(together)} of its views in this cluster` })));
  }

  function step(by) {
    const at = around.indexOf(current);
    show(around[(at + by + around.length) % around.length]);
  }

  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "x") select([current], !selected.has(current));
    else return;
    byId("large-select").checked = selected.has(current);
    event.preventDefault();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  byId("next").onclick = () => step(1);
  byId("previous").onclick = () => step(-1);
  byId("close").onclick = () => dialog.close();
  byId("large-select").onchange = (event) => select([current], event.target.checked);
  byId("alike").onclick = () => { dialog.close(); location.hash = `#like-${current}`; };

  // The arrow keys walk through a grid, x selects.
  document.addEventListener("keydown", (event) => {
    const item = event.target.closest?.(".grid > li");
    if (!item || event.target.type === "checkbox") return;
    const columns = getComputedStyle(item.parentNode).gridTemplateColumns.split(" ").length;
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const items = [...item.parentNode.children];
    if (by) items[items.indexOf(item) + by]?.querySelector("button").focus();
    else if (event.key === "x") select([Number(item.dataset.image)], !item.classList.contains("chosen"));
    else return;
    event.preventDefault();
  });

  return { grid, select, selected, view, said, current: () => current };
})();
